"""The shape of the house: imports run one way, both lists of dependencies agree, notebooks stay thin elsewhere."""

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from diagnostics.files import write_json
from diagnostics.runlog import RunLogWriter

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_imports_run_one_way():
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 kept, 0 broken" in done.stdout


def test_nothing_imports_the_front_door():
    for room in ("diagnostics", "trainers", "analysis", "reports"):
        for path in (ROOT / room).rglob("*.py"):
            assert not re.search(r"^\s*(import|from) chesboard\b", path.read_text(), re.M), path


def test_a_wrong_import_is_caught(tmp_path):
    """The contracts bite: the same settings on a copy with one upward import fail and name it."""
    import shutil

    for room in ("diagnostics", "trainers", "analysis", "reports"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "diagnostics" / "wrong.py").write_text("import trainers.config\n")
    command = [str(Path(sys.executable).parent / "lint-imports"), "--no-cache"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1
    assert "diagnostics.wrong" in done.stdout


@pytest.mark.parametrize("modules", ["analysis", "diagnostics.runlog, diagnostics.finding, diagnostics.pairs"])
def test_no_torch_where_none_is_needed(modules):
    code = (
        "import pkgutil, importlib, sys\n"
        f"import {modules}\n"
        "if 'analysis' in sys.modules:\n"
        "    for m in pkgutil.iter_modules(sys.modules['analysis'].__path__):\n"
        "        importlib.import_module('analysis.' + m.name)\n"
        "print([m for m in ('torch', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_all_that_is_printed_has_its_control_characters_written_out():
    """A name, a path or a token may hold escape codes: what is printed is fixed text or passes `printable`."""
    sources = [ROOT / "chesboard.py"]
    sources += [
        path for room in ("diagnostics", "trainers", "analysis", "reports") for path in (ROOT / room).rglob("*.py")
    ]
    raw = []
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(
                (".echo", ".print", "tqdm.write", "print")
            ):
                raw += [f"{path.name}:{node.lineno}" for value in node.args[:1] if not _is_clean(value)]
    assert not raw


def _is_clean(value: ast.expr) -> bool:
    """Fixed text, text that went through `printable`, or a table, whose cells `add` fills with such text."""
    said = ast.unparse(value).lstrip("*")
    tables = (
        "table",
        "found",
        "_lines(",
        "_grid(",
        "_objective_table(",
        "_push_table(",
        "_further_table(",
        "view(",
        "EXAMPLE.",
    )
    return (
        isinstance(value, ast.Constant)
        or said.startswith(("printable(", "Text(printable(", *tables))
        or (
            isinstance(value, ast.JoinedStr)
            and all(
                isinstance(part, ast.Constant) or ast.unparse(part.value).startswith("printable(")
                for part in value.values
            )
        )
    )


def name_of(requirement: str) -> str:
    return re.split(r"[<>=\[ ]", requirement, maxsplit=1)[0].lower()


def test_conda_has_the_same_dependencies():
    conda = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    listed = {d.replace("pytorch", "torch") for d in conda if isinstance(d, str)}
    assert set(PROJECT["project"]["dependencies"]) == listed - {"python>=3.11", "pip", "git", "make"}


def test_every_dependency_is_pinned_within_its_range():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)
    pins = {k.lower().replace("_", "-"): v for k, v in pins.items()}
    wanted = PROJECT["project"]["dependencies"] + PROJECT["project"]["optional-dependencies"]["dev"]
    for requirement in wanted:
        low = requirement.split(">=")[1]
        pin = pins[name_of(requirement)]
        assert [int(x) for x in pin.split(".")[:2]] >= [int(x) for x in (low + ".0").split(".")[:2]], requirement
    assert pins["torch"] == "2.13.0"


def test_one_version_everywhere():
    """pyproject.toml, CITATION.cff, what `--version` reads, and the newest version of CHANGELOG.md."""
    version = PROJECT["project"]["version"]
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == version
    assert importlib.metadata.version("chesboard") == version
    headings = re.findall(r"^## (.*)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), flags=re.M)
    unreleased, *released = headings
    assert unreleased == "Unreleased"
    found = [re.fullmatch(r"(\d+\.\d+\.\d+) \((\d{4}-\d{2}-\d{2})\)", heading) for heading in released]
    assert all(found), released
    versions = [heading.split()[0] for heading in released]
    assert versions[0] == version
    assert versions == sorted(versions, key=lambda v: [int(x) for x in v.split(".")], reverse=True)


def test_all_packages_are_listed():
    found = {
        str(p.parent.relative_to(ROOT)).replace("/", ".")
        for room in ("diagnostics", "trainers", "analysis", "reports")
        for p in (ROOT / room).rglob("__init__.py")
    }
    assert found | {"notebooks"} == set(PROJECT["tool"]["setuptools"]["packages"])


def test_what_is_installed_without_the_checkout_has_all_that_it_reads():
    """A wheel holds the notebooks, templates and published values, beside the code that looks for them there."""
    code = (
        "from setuptools import Distribution; d = Distribution({'script_name': 'setup.py'});"
        "d.parse_config_files(['pyproject.toml']); c = d.get_command_obj('build_py'); c.ensure_finalized();"
        "print(*c.get_outputs(), sep='\\n')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    built = {line.split("lib/", 1)[1] for line in done.stdout.splitlines() if "lib/" in line}
    rooms = ("diagnostics", "trainers", "analysis", "reports", "notebooks")
    files = {p.relative_to(ROOT) for room in rooms for p in (ROOT / room).rglob("*") if p.is_file()}
    kept = {str(p) for p in files if not {"__pycache__", ".ipynb_checkpoints"} & set(p.parts)}
    assert kept - built == set(), done.stderr


def test_gate_loads_no_torch(tmp_path):
    """The command itself, from its entry point; seven seconds of computing went into what it does not use."""
    log = RunLogWriter(tmp_path)
    write_json(log.path / "config.json", {"objective": "dpo"})
    log.append_step({"step": 1, "loss": 0.5})
    gates = tmp_path / "gates.yaml"
    gates.write_text("- {table: steps, metric: loss, aggregate: mean, op: '<', value: 9}\n")
    code = (
        f"import chesboard, sys; sys.argv = ['chesboard', 'gate', {str(tmp_path)!r}, '--gates', {str(gates)!r}]\n"
        "try: chesboard.main()\n"
        "except SystemExit as end: print(end.code or 0, {'torch', 'datasets'} & {*sys.modules} or '-')"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "0 -", done.stdout + done.stderr


def test_a_config_is_read_without_what_trains():
    """Loading the file takes no torch, making a config nothing of transformers unless one of its keys is given."""
    code = (
        "import sys; from trainers.config import make_config\n"
        "heavy = {'torch', 'transformers', 'trainers.loop.trainer'}\n"
        "print(sorted(heavy & {*sys.modules}))\n"
        "config = make_config({'model': 'm', 'data': 'd', 'output_dir': 'o', 'objective': 'simpo', 'beta': 2.0})\n"
        "print(config.flat()['beta'], sorted(heavy & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "2.0 ['torch']"], done.stdout + done.stderr


def test_no_init_under_tests():
    """An __init__.py there would make pytest import the test folder as `analysis`."""
    assert not list((ROOT / "tests").rglob("__init__.py"))


def test_another_projects_folder_of_the_same_name_stops_the_front_door(tmp_path):
    (tmp_path / "analysis").mkdir()
    (tmp_path / "analysis" / "__init__.py").write_text("")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); sys.path.append({str(ROOT)!r})\n"
    code += "import chesboard; sys.argv = ['chesboard', 'list']; chesboard.main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 3
    assert re.fullmatch(r"chesboard: 'analysis' resolves to .*\n", done.stderr)


def test_one_word_names_one_class():
    found = [
        node.name
        for room in ("diagnostics", "trainers", "analysis", "reports")
        for path in (ROOT / room).rglob("*.py")
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name in set(found) if found.count(name) > 1] == []
