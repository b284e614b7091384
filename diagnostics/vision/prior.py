"""The language-prior meter: how likely an answer is with its images and clips, and with grey ones in their place."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from torch import nn

from diagnostics.media import Media, of_frames
from diagnostics.scoring import score_rows
from diagnostics.sequences import Example
from diagnostics.sequences import Sequence as Row
from diagnostics.token_likelihood import TokenLikelihood

GREY = 128


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
