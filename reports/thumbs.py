"""Frames of an image or a clip as a figure that stands inside a page."""

import base64
from html import escape

from diagnostics.media import Media
from diagnostics.vision import thumbs


def strip(medium: Media, words: str) -> str:
    """Its frames as one picture, with its words as caption and alternative text."""
    data = base64.b64encode(thumbs.strip(medium)).decode()
    return (
        f'<figure><img alt="{escape(words)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(words)}</figcaption></figure>"
    )
