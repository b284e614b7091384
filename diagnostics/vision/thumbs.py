"""Frames of an image or a clip as one small picture: what a page shows beside a pair. Numpy and PIL, no torch."""

import io
from collections.abc import Sequence

import numpy as np
import pandas as pd
from PIL import Image

from diagnostics.diffusion.sample import Sample
from diagnostics.frames import spread
from diagnostics.media import Media
from diagnostics.sequences import Example

PAIR = ("chosen", "rejected")
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
    caption) and picture (PNG); of a denoiser's pair, one row a side, where its sample can be seen. {} where no pair
    shows anything."""
    media = {pair.pair_id: pair.chosen.media for pair in pairs}  # of a denoiser's pair no tuple, but what is scored
    shown = [(name, medium) for name, some in media.items() if isinstance(some, tuple) for medium in some]
    rows = [(pair_id, caption(medium), strip(medium)) for pair_id, medium in shown]
    for pair in pairs:
        for side in PAIR:
            sample = pair.rows[side].media
            if isinstance(sample, Sample) and (found := seen(sample)):
                rows.append((pair.pair_id, f"{side}{found[0]}", found[1]))
    return {"frames.parquet": pd.DataFrame(rows, columns=["pair_id", "words", "picture"])} if rows else {}


def seen(sample: Sample) -> tuple[str, bytes] | None:
    """What is said of a sample's picture, and a small PNG: its image; numbers (1 or 3, H, W) in [-1, 1] as pixels;
    other numbers (C, H, W), such as latents, as a grey map. None for numbers of other shapes."""
    values = sample.values
    if sample.load is not None:
        return "", _small(sample.load())
    if values.ndim != 3 or min(values.shape) < 1 or not np.isfinite(values).all():
        return None
    if len(values) in (1, 3) and np.abs(values).max() <= 1.001:
        pixels = np.clip((values.transpose(1, 2, 0) + 1) * 127.5, 0, 255).round().astype(np.uint8)
        return "", _small(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))
    grey = values.mean(0)
    low, high = float(grey.min()), float(grey.max())
    shade = (255 * (grey - low) / (high - low) if high > low else np.zeros_like(grey)).round().astype(np.uint8)
    words = f" (mean of {len(values)} channels, black {low:.2g} to white {high:.2g})"
    return words, _small(np.repeat(shade[..., None], 3, 2))


def _small(image: np.ndarray) -> bytes:
    """A PNG of this height; small images are enlarged by whole pixels."""
    found = Image.fromarray(np.ascontiguousarray(image))
    way = Image.Resampling.NEAREST if found.height < HEIGHT else Image.Resampling.BICUBIC
    file = io.BytesIO()
    found.resize((max(1, round(HEIGHT * found.width / found.height)), HEIGHT), way).save(file, "png", optimize=True)
    return file.getvalue()
