"""Media: an image or a clip that a model is shown beside the text, as frames of pixels. No torch.

`Sequence.media` holds a row's media in the order in which its prompt's placeholders stand.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

Kind = Literal["image", "video"]


@dataclass(frozen=True, slots=True)
class Media:
    """One image or one clip. Its repr says its whole content: equal ones are shown to a model alike.

    digest: 16 hex digits of a hash of the pixels or of the file. view: what was done to it since (which frames were
    taken, what was masked, how it was shuffled), in words with every number. source: where a person finds it; load:
    gives its frames as they are after view; size: (T, H, W) of them, where it is known without loading. These three
    are no part of what it is.
    """

    kind: Kind
    digest: str
    view: tuple[str, ...] = ()
    source: str = field(default="", repr=False, compare=False)
    load: Callable[[], np.ndarray] | None = field(default=None, repr=False, compare=False)
    size: tuple[int, int, int] | None = field(default=None, repr=False, compare=False)

    def frames(self) -> np.ndarray:
        """(T, H, W, 3) uint8, T = 1 for an image."""
        if self.load is None:
            raise ValueError(f"{self.source or self.digest}: these media cannot be loaded again")
        found = self.load()
        return found[None] if found.ndim == 3 else found

    def shape(self) -> tuple[int, int, int]:
        """(T, H, W); loads the frames only where that is not known otherwise."""
        if self.size is None:
            count, height, width, _ = self.frames().shape
            return count, height, width
        return self.size


def of_frames(frames: np.ndarray, *, kind: Kind = "video", source: str = "") -> Media:
    """Media of (T, H, W, 3) uint8 frames, or (H, W, 3) of an image, kept in memory."""
    found = np.ascontiguousarray(frames if frames.ndim == 4 else frames[None])
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[-1] != 3 or not found.size:
        raise ValueError(f"frames are {frames.dtype} {frames.shape}; they must be uint8 (T, H, W, 3)")
    digest = hashlib.sha256(repr(found.shape).encode() + found.tobytes()).hexdigest()[:16]
    return Media(kind, digest, source=source, load=lambda: found, size=found.shape[:3])
