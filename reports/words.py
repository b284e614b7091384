"""The words of a page on a denoiser: it has no nats, tokens or KL, where pages are written for language models."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diagnostics.outcomes import MIN_EFFECTS
from diagnostics.runlog import read_json

NOTE = (
    "This run trains a denoiser. A likelihood here is minus the denoising error, over the same draws of time and noise "
    "for both sides and both models: it has no unit, and where a figure says nats, its numbers are errors. What stands "
    "as KL is the deviation, the mean squared difference of the outputs of policy and reference. docs/diffusion.md "
    "says more, and the table draws of the run log holds every draw's error."
)
_NUMBER = r"[−+]?[\d.]+(?:e[−-]?\d+)?"
# in this order: whole sentences first
_SAID = [
    (r"Exact KL over the vocabulary.*?(?=The frontier below)", "The deviation is a number of its own and no KL. "),
    (r"1 nat is a factor of 2\.7", "a denoising error that rises makes it fall"),
    (r"0\.01 nats \(a likelihood 1 % lower\)|0\.01 nats", f"{MIN_EFFECTS['denoising']:g} of error"),
    (rf" \({_NUMBER} a token\)", ""),
    (rf"{_NUMBER} a token", ""),
    (r"KL\(reference \|\| policy\)(?: on the chosen answer, nats)?", "deviation from the reference"),
    (r"per chosen response", "per chosen sample"),
    (r" nats lost per token", " likelihood lost"),
    (r", nats per token|,(?: in)? nats| \(nats\)", ""),
    (r"nats lost", "likelihood lost"),
    (rf"({_NUMBER}) nats", r"\1"),
    (r"log-probs?\b", "likelihood"),
]


def for_run(page: Path, parameters: Mapping[str, Any]) -> None:
    """Rewrite a page on a denoiser's run, and say at its top what a likelihood is there; other pages stay."""
    folder = parameters.get("run_dir")
    if not folder or read_json(Path(str(folder)) / "config.json").get("likelihood") != "denoising":
        return
    parts = re.split(r"(<(?:script|style)\b.*?</(?:script|style)>|<[^>]*>)", page.read_text("utf-8"), flags=re.DOTALL)
    html = "".join(part if part.startswith("<") else _worded(part) for part in parts)
    page.write_text(html.replace("</h1>", f'</h1><p class="says">{NOTE}</p>', 1), encoding="utf-8")


def _worded(text: str) -> str:
    for pattern, words in _SAID:
        text = re.sub(pattern, words, text, flags=re.DOTALL)
    return text
