"""Perturbed images and clips: what a model is shown to make it wrong. Numpy and PIL, no torch.

Each function gives another Media, made when its frames are asked for. Its view says what was done, with every number
that was drawn; the same seed draws the same. RRPO (arXiv 2504.12083) masks and shuffles, LeanPO (arXiv 2506.05260)
augments; both papers' text leaves numbers open, and what is ours here is said where it is.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from diagnostics.media import Media

FILL = 128  # a grey that no usual normalisation turns into 0: SmolVLM takes frames of zeros for padding
SIDE = 224  # LeanPO: pixels of a crop's side after it is resized
AREA, RATIO = (0.08, 0.3), (3 / 4, 4 / 3)  # LeanPO: a crop's share of the frame, and its width over its height
JITTER = {"brightness": 0.4, "contrast": 0.4, "saturation": 0.2, "hue": 0.1}
JITTERED, GREYED, FLIPPED, BLUR = 0.8, 0.2, 0.5, (0.1, 2.0)  # shares of clips, and radius in pixels

Box = tuple[int, int, int, int]  # left, top, width, height in pixels


def mask(medium: Media, *, seed: int, low: float = 0.25, high: float = 0.5, fill: int = FILL) -> Media:
    """One square of one grey at one place in all frames, of a share U[low, high] of the area (RRPO, as its figure shows
    it; that the share is drawn uniformly is ours). Where no square of that area fits, a rectangle of the full side.
    """
    if not 0 < low <= high <= 1 or not 1 <= fill <= 255:
        raise ValueError(f"shares {low} to {high} and grey {fill}: give 0 < low <= high <= 1 and a grey of 1 to 255.")
    draw = np.random.default_rng(seed)
    _, height, width = medium.shape()
    share = draw.uniform(low, high)
    side = math.sqrt(share * height * width)
    tall = min(height, max(1, round(side if side <= width else share * height)))
    wide = min(width, max(1, round(share * height * width / tall)))
    left, top = int(draw.integers(width - wide + 1)), int(draw.integers(height - tall + 1))

    def masked(frames: np.ndarray) -> np.ndarray:
        found = frames.copy()
        found[:, top : top + tall, left : left + wide] = fill
        return found

    covered = tall * wide / (height * width)
    said = f"mask: seed {seed}, {covered:.4f} of the area, box {_said((left, top, wide, tall))}, grey {fill}"
    return _changed(medium, said, masked)


def global_shuffle(medium: Media, *, seed: int) -> Media:
    """The frames in a random order, all orders alike likely (RRPO)."""
    order = np.random.default_rng(seed).permutation(medium.shape()[0])
    return _ordered(medium, f"global shuffle: seed {seed}", order)


def local_shuffle(medium: Media, *, seed: int, window: int = 4) -> Media:
    """The frames in a random order within each stretch of `window` of them (RRPO; the length of a stretch is ours)."""
    if window < 1:
        raise ValueError(f"window {window}: give 1 or more frames.")
    draw, count = np.random.default_rng(seed), medium.shape()[0]
    order = np.concatenate([s + draw.permutation(min(window, count - s)) for s in range(0, count, window)])
    return _ordered(medium, f"local shuffle: seed {seed}, window {window}", order)


@dataclass(frozen=True)
class Augmentation:
    """What was drawn for a clip. factors: brightness, contrast, saturation around 1 and hue around 0, in the order in
    which they are applied; empty without jitter. radius: of the blur, in pixels."""

    box: Box
    factors: dict[str, float]
    grey: bool
    radius: float
    flip: bool


def augment(medium: Media, *, seed: int, side: int = SIDE) -> Media:
    """LeanPO's augmentation of a losing answer's clip, one draw for all its frames: a crop of 8 to 30 % of the area
    resized to side x side, colour jitter (in 80 % of clips), grey (20 %), blur of radius U(0.1, 2) and a mirror image
    (50 %, ours). Its code draws the blur for each frame anew; here it is one, as the rest."""
    _, height, width = medium.shape()
    drawn = draw_augmentation(height, width, seed)

    def augmented(frames: np.ndarray) -> np.ndarray:
        return np.stack([np.asarray(_augmented(Image.fromarray(frame), drawn, side)) for frame in frames])

    jitter = " ".join(f"{name} {value:.6g}" for name, value in drawn.factors.items()) or "none"
    said = (
        f"augment: seed {seed}, box {_said(drawn.box)} to {side} x {side}, jitter {jitter}, grey {_yes(drawn.grey)}, "
    )
    said += f"blur {drawn.radius:.6g}, flip {_yes(drawn.flip)}"
    return _changed(medium, said, augmented, (medium.shape()[0], side, side))


def draw_augmentation(height: int, width: int, seed: int) -> Augmentation:
    """The random numbers of one clip, whose frames are height x width."""
    draw = np.random.default_rng(seed)
    box = _draw_box(height, width, draw)
    jittered, grey = draw.random() < JITTERED, bool(draw.random() < GREYED)
    middle = {name: 0.0 if name == "hue" else 1.0 for name in JITTER}
    factors = {
        n: float(draw.uniform(middle[n] - JITTER[n], middle[n] + JITTER[n]))
        for n in map(str, draw.permutation([*JITTER]))
    }
    return Augmentation(
        box, factors if jittered else {}, grey, float(draw.uniform(*BLUR)), bool(draw.random() < FLIPPED)
    )


def _draw_box(height: int, width: int, draw: np.random.Generator) -> Box:
    """A crop as torchvision's RandomResizedCrop draws it: ten tries, then the middle of the frame."""
    for _ in range(10):
        area = height * width * draw.uniform(*AREA)
        ratio = math.exp(draw.uniform(math.log(RATIO[0]), math.log(RATIO[1])))
        wide, tall = max(1, round(math.sqrt(area * ratio))), max(1, round(math.sqrt(area / ratio)))
        if wide <= width and tall <= height:
            return int(draw.integers(width - wide + 1)), int(draw.integers(height - tall + 1)), wide, tall
    wide = min(width, round(height * RATIO[1]))
    tall = min(height, round(width / RATIO[0]))
    return (width - wide) // 2, (height - tall) // 2, wide, tall


def _augmented(frame: Image.Image, drawn: Augmentation, side: int) -> Image.Image:
    left, top, wide, tall = drawn.box
    frame = frame.crop((left, top, left + wide, top + tall)).resize((side, side), Image.Resampling.BILINEAR)
    for name, factor in drawn.factors.items():
        frame = _shifted(frame, factor) if name == "hue" else _ENHANCE[name](frame).enhance(factor)
    frame = frame.convert("L").convert("RGB") if drawn.grey else frame
    frame = frame.filter(ImageFilter.GaussianBlur(drawn.radius))
    return ImageOps.mirror(frame) if drawn.flip else frame


_ENHANCE = {"brightness": ImageEnhance.Brightness, "contrast": ImageEnhance.Contrast, "saturation": ImageEnhance.Color}


def _shifted(frame: Image.Image, turn: float) -> Image.Image:
    """The colours turned by a share of the circle of hues."""
    hue, *rest = frame.convert("HSV").split()
    moved = Image.fromarray((np.asarray(hue).astype(np.int16) + int(turn * 255)).astype(np.uint8))
    return Image.merge("HSV", (moved, *rest)).convert("RGB")


def _ordered(medium: Media, said: str, order: np.ndarray) -> Media:
    return _changed(medium, f"{said}, order {' '.join(map(str, order))}", lambda frames: frames[order])


def _changed(
    medium: Media, said: str, change: Callable[[np.ndarray], np.ndarray], size: tuple[int, int, int] | None = None
) -> Media:
    """The medium after a change of its frames."""
    view = (*medium.view, said)
    return replace(medium, view=view, load=lambda: change(medium.frames()), size=size or medium.shape())


def _said(box: Box) -> str:
    left, top, wide, tall = box
    return f"{wide} x {tall} at ({left}, {top})"


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"
