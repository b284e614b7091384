"""The language-prior meter: how likely an answer is with its images and clips, and with grey or perturbed ones in their
place.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from diagnostics.columns import Column
from diagnostics.media import Media, of_frames
from diagnostics.scoring import score_rows
from diagnostics.sequences import Example
from diagnostics.sequences import Sequence as Row
from diagnostics.stats import PAIR
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.vision import perturb

GREY = 128
VIEWS = {"grey": "grey frames", "perturbed": "frames masked and shuffled"}  # in the place of what a pair shows
COLUMNS = {
    f"{side}_{view}_logps": Column(
        f"{side} log-prob, {words}",
        "nats",
        f"log-prob of the {side} answer with {words} in the place of its images and clips; at the first and last probe",
    )
    for side in PAIR
    for view, words in VIEWS.items()
}


def without(model: nn.Module, pairs: Sequence[Example], *, likelihood: TokenLikelihood) -> dict[str, dict[str, float]]:
    """By pair_id the COLUMNS of every pair whose answers are both shown something: log-probs (nats, summed, EOS
    included) under grey frames and under perturbed ones, which are the same for both answers and at every call."""
    asked = [_views(pair) for pair in pairs if all(pair.rows[side].media for side in PAIR)]
    found: dict[str, dict[str, float]] = {}
    for part, stats, _ in score_rows(model, asked, likelihood=likelihood) if asked else ():
        for k, example in enumerate(part):
            found[example.pair_id] = {name: float(side.logps[k]) for name, side in stats.items()}
    return found


def _views(pair: Example) -> Example:
    """A pair's rows with each of VIEWS in the place of what they show."""
    seed = int.from_bytes(hashlib.sha256(pair.pair_id.encode()).digest()[:4], "big")
    make: dict[str, Callable[[Media], Media]] = {"grey": grey, "perturbed": lambda medium: perturbed(medium, seed)}
    rows = {}
    for side in PAIR:
        row = pair.rows[side]
        for view in VIEWS:
            rows[f"{side}_{view}_logps"] = replace(row, media=tuple(make[view](m) for m in row.media))
    return Example(pair.pair_id, pair.source_row, rows)


def perturbed(medium: Media, seed: int) -> Media:
    """An image or a clip as RRPO perturbs it: masked, and the frames of a clip shuffled nearby."""
    masked = perturb.mask(medium, seed=seed)
    return perturb.local_shuffle(masked, seed=seed) if medium.kind == "video" else masked


def language_prior(
    model: nn.Module, examples: Sequence[Example], *, likelihood: TokenLikelihood, row: str = "chosen"
) -> pd.DataFrame:
    """One row an example, in order: pair_id, length (tokens of the answer), logps and grey_logps (nats, summed over the
    answer, EOS included), and seen = logps - grey_logps.

    seen is what the frames add to the answer's log-probability: near 0 where the model answers from the text alone,
    however likely the answer is; negative where the frames speak against it. The grey frames are as many and as
    large, so the prompt's tokens are the same. An example whose row shows nothing has NaN in grey_logps and seen.
    """
    asked = {e.pair_id: e.rows[row] for e in examples}
    both = [
        Example(i, 0, {"clip": r, "grey": replace(r, media=tuple(grey(m) for m in r.media))})
        for i, r in asked.items()
        if r.media
    ]
    alone = [Example(i, 0, {"clip": r}) for i, r in asked.items() if not r.media]
    found: dict[str, dict[str, float]] = {}
    for group in (both, alone):
        for part, stats, _ in score_rows(model, group, likelihood=likelihood) if group else ():
            for k, example in enumerate(part):
                found[example.pair_id] = {name: float(side.logps[k]) for name, side in stats.items()}
    return pd.DataFrame([_line(i, asked[i], found[i]) for i in asked])


def grey(medium: Media) -> Media:
    """An image or a clip of the same size whose every pixel is the same grey."""
    count, height, width = medium.shape()
    made = of_frames(np.full((count, height, width, 3), GREY, np.uint8), kind=medium.kind)
    return replace(made, source=medium.source)


def _line(pair_id: str, row: Row, logps: dict[str, float]) -> dict[str, Any]:
    clip, without = logps["clip"], logps.get("grey", float("nan"))
    numbers = {"logps": clip, "grey_logps": without, "seen": clip - without}
    return {"pair_id": pair_id, "length": len(row.completion_ids)} | numbers
