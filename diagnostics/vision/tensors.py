"""From media to what a vision-language model reads, without torchvision: pixels, and which row is shown what.

Images go through the image processors of transformers (their PIL side) and so are cut into tiles as there; frames of a
clip are resized by PIL, scaled to 0..1 and normalised here. How many placeholders each makes stands in `placeholders`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from diagnostics.errors import DataError
from diagnostics.media import Kind, Media
from diagnostics.vision.placeholders import InternVL, LlavaOnevision, Qwen, Size, SmolVLM, Square, alone


@dataclass(frozen=True)
class Shown:
    """One image or clip as its family's model reads it.

    pixels: Qwen: (patches, C * time * p * p); else (tiles, 3, H, W), where a clip's frames are tiles. kind: of the
    placeholders that it fills. runs: how many, in runs that stand apart. grid: Qwen's patches in time, height, width.
    size: of an image that LLaVA-OneVision cuts into tiles; None where it doesn't.
    """

    kind: Kind
    pixels: Tensor
    runs: tuple[int, ...]
    grid: tuple[int, int, int] | None = None
    size: Size | None = None


@dataclass(frozen=True)
class Visual:
    """What the rows of a batch are shown. shown: each image or clip once; rows: for each row, which of them, in the
    order of its placeholders."""

    shown: tuple[Shown, ...]
    rows: tuple[tuple[int, ...], ...]

    def to(self, device: torch.device | str) -> "Visual":
        """The same on another device."""
        return replace(self, shown=tuple(replace(s, pixels=s.pixels.to(device)) for s in self.shown))

    def of(self, rows: Iterable[int]) -> "Visual":
        """What some rows are shown."""
        return replace(self, rows=tuple(self.rows[i] for i in rows))


def visual(family: Any, rows: Sequence[tuple[Media, ...] | None]) -> Visual | None:
    """What rows with these media are shown; None where no row is shown anything."""
    places: dict[tuple[Media, bool], int] = {}
    found = tuple(
        tuple(places.setdefault((item, alone(item, media)), len(places)) for item in media)
        for media in (media or () for media in rows)
    )
    return Visual(tuple(prepare(family, *one) for one in places), found) if places else None


@singledispatch
def prepare(family: Any, item: Media, single: bool) -> Shown:
    """One image or clip as the family reads it. single: whether it is the only one of its kind in its prompt."""
    raise TypeError(f"no family of vision-language models: {family!r}")


@prepare.register
def _(family: Qwen, item: Media, single: bool) -> Shown:
    vision = family.config.vision_config
    frames, (step, patch, merge) = item.frames(), (vision.temporal_patch_size, vision.patch_size, _merge(family))
    size = family.resized(item.kind, len(frames), frames.shape[1:3])
    pixels = normal(resized(frames, size, _how(family, item.kind)), *family.norm(item.kind))
    pixels = np.concatenate([pixels, *[pixels[-1:]] * (-len(pixels) % step)])  # the last frame again, to whole steps
    times, high, wide = family.grid(item.kind, len(frames), frames.shape[1:3])
    split = pixels.reshape(times, step, 3, high // merge, merge, patch, wide // merge, merge, patch)
    flat = split.transpose(0, 3, 6, 4, 7, 2, 1, 5, 8).reshape(times * high * wide, -1)
    each = high * wide // merge**2
    runs = (each,) * times if family.stamped and item.kind == "video" else (each * times,)
    return Shown(item.kind, torch.from_numpy(flat), runs, (times, high, wide))


@prepare.register
def _(family: LlavaOnevision, item: Media, single: bool) -> Shown:
    frames = item.frames()
    if item.kind == "video":
        pixels = _square(family, frames, item.kind)
        return Shown("video", torch.from_numpy(pixels), (len(frames) * (-(-family.patches // 2)) ** 2 + 1,))
    from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil

    side = {"height": family.side, "width": family.side}
    pinpoints = family.config.image_grid_pinpoints
    tiles = _processor(family, LlavaOnevisionImageProcessorPil, size=side, image_grid_pinpoints=pinpoints)
    height, width = frames.shape[1:3]
    if single:
        pixels = tiles(frames[0])["pixel_values"][0]
        return Shown("image", _tensor(pixels), (family.alone((height, width)),), size=(height, width))
    # two of them, as an image beside others is not cut into tiles
    pixels = tiles([[frames[0], frames[0]]])["pixel_values"][0]
    return Shown("image", _tensor(pixels), (family.patches**2 + 1,))


@prepare.register
def _(family: InternVL, item: Media, single: bool) -> Shown:
    frames = item.frames()
    each = round(family.patches**2 * family.config.downsample_ratio**2)
    if item.kind == "video":
        return Shown("image", torch.from_numpy(_square(family, frames, item.kind)), (each,) * len(frames))
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    side = {"height": family.side, "width": family.side}
    pixels = _processor(family, GotOcr2ImageProcessorPil, size=side, crop_to_patches=True)(frames[0])["pixel_values"]
    return Shown("image", _tensor(pixels), (each * len(pixels),))


@prepare.register
def _(family: SmolVLM, item: Media, single: bool) -> Shown:
    frames = item.frames()
    if item.kind == "video":
        scaled = resized(frames, family.scaled("video", frames.shape[1:3]), _how(family, item.kind))
        pixels = _square(family, scaled, item.kind)
    else:
        from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

        side, said = {"longest_edge": family.side}, family.settings["image"]
        longest = said.get("size") or {"longest_edge": 4 * family.side}
        tiles = _processor(family, SmolVLMImageProcessorPil, max_image_size=side, size=longest)
        pixels = np.asarray(tiles(frames[0])["pixel_values"])[0]
    if not pixels.any(axis=(1, 2, 3)).all():
        raise DataError(
            f"{item.source or item.digest}: a frame of it is all zeros once it is normalised, and SmolVLM drops such "
            "frames as padding. Fill it with another value."
        )
    return Shown("image", _tensor(pixels), (family.patches**2 // family.config.scale_factor**2,) * len(pixels))


def unseen(family: Any, media: Iterable[Media]) -> str:
    """Why a model of the family is not shown one of these, else ""; their frames are read where that can be."""
    if isinstance(family, SmolVLM):
        for item in media:
            try:
                prepare(family, item, True)
            except DataError as error:
                return str(error)
    return ""


def resized(frames: np.ndarray, size: Size, how: Image.Resampling) -> np.ndarray:
    """(T, H, W, 3) uint8 frames at another height and width, by PIL."""
    if frames.shape[1:3] == size:
        return frames
    return np.stack([np.asarray(Image.fromarray(frame).resize((size[1], size[0]), how)) for frame in frames])


def normal(frames: np.ndarray, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """(T, 3, H, W) float32: values of 0..1, less the mean, over the standard deviation of each channel."""
    scaled = frames.astype(np.float32) / np.float32(255)
    return ((scaled - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)).transpose(0, 3, 1, 2)


def _square(family: Square, frames: np.ndarray, kind: Kind) -> np.ndarray:
    """Each frame as one tile."""
    tiles = resized(frames, (family.side, family.side), _how(family, kind))
    return np.ascontiguousarray(normal(tiles, *family.norm(kind)))


def _how(family: Qwen | Square, kind: Kind) -> Image.Resampling:
    """How frames are resized."""
    default = Image.Resampling.LANCZOS if isinstance(family, SmolVLM) else Image.Resampling.BICUBIC
    return Image.Resampling(family.settings[kind].get("resample", default))


def _processor(family: Square, kind: Any, **how: Any) -> Any:
    """An image processor of transformers with the folder's settings and these; of pictures (H, W, 3), which it is told:
    one that is one or three pixels high it takes for one with its channels first."""
    said = {k: v for k, v in family.settings["image"].items() if not k.endswith(("_type", "processor_class"))}
    found = kind(**{"image_mean": list(family.mean_std[0]), "image_std": list(family.mean_std[1])} | said | how)
    return lambda images: found(images, return_tensors="np", input_data_format="channels_last")


def _merge(family: Qwen) -> int:
    return family.config.vision_config.spatial_merge_size


def _tensor(pixels: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
