"""The words of a page on a denoiser (see analysis.show.denoising)."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from analysis.show.denoising import worded
from diagnostics.runlog import read_json

NOTE = (
    "This run trains a denoiser. A likelihood here is minus the denoising error, over the same draws of time and noise "
    "for both sides and both models: it has no unit, and where a figure says nats, its numbers are errors. What stands "
    "as KL is the deviation, the mean squared difference of the outputs of policy and reference. docs/diffusion.md "
    "says more, and the table draws of the run log holds every draw's error."
)
STEPS = (
    "This run trains a denoiser on its sampling steps. A likelihood here is the sum over the steps of the mean "
    "Gaussian log-prob of a number, in nats; there are no tokens, and where a page says so it means a step. "
    "docs/diffusion.md says more."
)
# what is no wording of ours: scripts, tags, and the data's own texts (analysis.show.page.words)
_KEPT = r'(<(?:script|style)\b.*?</(?:script|style)>|<div class="words.*?</div>|<[^>]*>)'


def for_run(page: Path, parameters: Mapping[str, Any]) -> None:
    """Rewrite a page on a denoiser's run, or on two, and say at its top what a likelihood is there; other pages
    stay."""
    folder = parameters.get("run_dir") or parameters.get("after") or next(iter(parameters.get("run_dirs", ())), "")
    config = read_json(Path(str(folder)) / "config.json") if folder else {}
    if config.get("likelihood", "tokens") == "tokens":
        return
    parts = re.split(_KEPT, page.read_text("utf-8"), flags=re.DOTALL)
    html = "".join(part if part.startswith("<") else worded(part, config) for part in parts)
    note = NOTE if config["likelihood"] == "denoising" else STEPS
    page.write_text(html.replace("</h1>", f'</h1><p class="says">{note}</p>', 1), encoding="utf-8")
