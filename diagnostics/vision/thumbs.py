"""Frames of an image or a clip as one small picture: what a page shows beside a pair. Numpy and PIL, no torch."""

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from PIL import Image

from diagnostics.frames import spread
from diagnostics.media import Media
from diagnostics.sequences import Example

THUMBS, HEIGHT, WIDTH = 8, 72, 288  # frames of a clip; most pixels of a frame's height and width


def strip(medium: Media) -> bytes:
    """A PNG of its frames side by side, at most THUMBS, spread evenly over the clip."""
    frames = medium.frames()
    frames = frames[spread(len(frames), THUMBS)]
    high, wide = frames.shape[1:3]
    scale = min(HEIGHT / high, WIDTH / wide)
    size = max(1, round(wide * scale)), max(1, round(high * scale))
    thumbs = [np.asarray(Image.fromarray(f).resize(size, Image.Resampling.NEAREST)) for f in frames]
    gap = np.full((size[1], 2, 3), 255, np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([part for thumb in thumbs for part in (thumb, gap)], 1)).save(file, "png")
    return file.getvalue()


def caption(medium: Media) -> str:
    """What such a picture shows, in words."""
    count = medium.shape()[0]
    return f"{min(count, THUMBS)} of {count} frames of the clip" if medium.kind == "video" else "the image"


def tables(pairs: Sequence[Example]) -> dict[str, pd.DataFrame]:
    """By the name of its file, one row an image or a clip that a pair's chosen answer is shown: pair_id, words (its
    caption) and picture (PNG); {} where no pair shows anything."""
    media = {pair.pair_id: pair.chosen.media for pair in pairs}  # of a denoiser's pair no tuple, but what is scored
    shown = [(name, medium) for name, some in media.items() if isinstance(some, tuple) for medium in some]
    rows = [(pair_id, caption(medium), strip(medium)) for pair_id, medium in shown]
    return {"frames.parquet": pd.DataFrame(rows, columns=["pair_id", "words", "picture"])} if rows else {}
