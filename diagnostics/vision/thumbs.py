"""Frames of an image or a clip as one small picture: what a page shows beside a pair. Numpy and PIL, no torch."""

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from PIL import Image

from diagnostics.frames import spread
from diagnostics.media import Media
from diagnostics.sequences import Example

THUMBS, HEIGHT = 8, 72  # frames of a clip; pixels of a frame's height


def strip(medium: Media) -> bytes:
    """A PNG of its frames side by side, at most THUMBS, spread evenly over the clip."""
    frames = medium.frames()
    frames = frames[spread(len(frames), THUMBS)]
    width = max(1, round(HEIGHT * frames.shape[2] / frames.shape[1]))
    thumbs = [np.asarray(Image.fromarray(f).resize((width, HEIGHT), Image.Resampling.NEAREST)) for f in frames]
    gap = np.full((HEIGHT, 2, 3), 255, np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([part for thumb in thumbs for part in (thumb, gap)], 1)).save(file, "png")
    return file.getvalue()


def caption(medium: Media) -> str:
    """What such a picture shows, in words."""
    count = medium.shape()[0]
    return f"{min(count, THUMBS)} of {count} frames of the clip" if medium.kind == "video" else "the image"


def table(pairs: Sequence[Example]) -> pd.DataFrame:
    """One row an image or a clip that a pair's chosen answer is shown: pair_id, words (caption) and picture (PNG)."""
    media = {pair.pair_id: pair.chosen.media for pair in pairs}  # of a denoiser's pair no tuple, but what is scored
    shown = [(name, medium) for name, some in media.items() if isinstance(some, tuple) for medium in some]
    rows = [(pair_id, caption(medium), strip(medium)) for pair_id, medium in shown]
    return pd.DataFrame(rows, columns=["pair_id", "words", "picture"])
