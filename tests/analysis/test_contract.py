import pkgutil
import subprocess
import sys

import analysis

HEAVY = ("torch", "transformers", "datasets", "peft", "accelerate")


def test_analysis_imports_no_torch():
    modules = [m.name for m in pkgutil.walk_packages(analysis.__path__, "analysis.")]
    assert "analysis.run.page" in modules
    code = f"import sys, {', '.join(modules)}; print([m for m in {HEAVY} if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
