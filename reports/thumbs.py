"""Frames of an image or a clip as one small picture that stands inside a page."""

import base64
import io
from html import escape

import numpy as np
from PIL import Image

from diagnostics.frames import spread
from diagnostics.media import Media

THUMBS, HEIGHT = 8, 72  # frames of a clip; pixels of a frame's height


def strip(medium: Media, words: str) -> str:
    """Frames side by side, spread evenly over the clip, as a figure with its words as caption and alternative text."""
    frames = medium.frames()
    frames = frames[spread(len(frames), THUMBS)]
    width = max(1, round(HEIGHT * frames.shape[2] / frames.shape[1]))
    thumbs = [np.asarray(Image.fromarray(f).resize((width, HEIGHT), Image.Resampling.NEAREST)) for f in frames]
    gap = np.full((HEIGHT, 2, 3), 255, np.uint8)
    file = io.BytesIO()
    Image.fromarray(np.concatenate([part for thumb in thumbs for part in (thumb, gap)], 1)).save(file, "png")
    data = base64.b64encode(file.getvalue()).decode()
    return (
        f'<figure><img alt="{escape(words)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )
