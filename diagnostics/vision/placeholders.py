"""Which placeholder tokens a family of vision-language models wants for an image or a clip. No torch.

How many they are follows from the sizes of the frames, the model's config and the processor files of its folder
(FILES); where the folder has none, the family's defaults in transformers hold. `tensors` prepares as many features.
A clip is taken to be sampled at its family's own rate: 2 frames a second for Qwen, 1 for SmolVLM.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar, Protocol

from diagnostics.errors import DataError
from diagnostics.files import read_json
from diagnostics.media import Kind, Media

CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))  # mean and std of the channels
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
PROCESSOR, IMAGES, VIDEOS = "processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json"
FILES = (PROCESSOR, IMAGES, VIDEOS)  # what of a model's folder says how media are prepared
SIDE = 4096  # SmolVLM: longest side of an image, in pixels

Size = tuple[int, int]  # height, width
Settings = Mapping[str, Any]


class Family(Protocol):
    """How a family of models writes media into text."""

    @property
    def tags(self) -> dict[Kind, str]:
        """The one placeholder that the family's chat templates write for an image or a clip."""
        ...

    def expand(self, text: str, media: Sequence[Media]) -> str:
        """A rendered prompt whose i-th tag stands for the i-th of the media, with all the placeholders in its place.

        Raises DataError where the text has more or fewer tags than there are media, or another kind.
        """
        ...


def family_of(config: Any, folder: str | None = None) -> "Family | None":
    """The family of a model by its config; None for a model that is shown no media, or of a family not known here.

    folder: where its processor files are; by default where the config was read.
    """
    family = family_class(config)
    return family(config, settings_of(folder or getattr(config, "_name_or_path", ""))) if family else None


def family_class(config: Any) -> Any:
    """The class of a model's family; None as in family_of."""
    return FAMILIES.get(getattr(config, "model_type", ""))


def placeholder_ids(family: Any) -> list[int]:
    """The token ids that stand for images and clips in a family's prompts."""
    found = (getattr(family.config, f"{kind}_token_id", None) for kind in ("image", "video"))
    return [i for i in found if isinstance(i, int)]


def settings_of(name: str) -> dict[Kind, Settings]:
    """What the processor files of a model folder or hub id (one that was fetched) say of images and of clips."""
    whole, images, videos = (_read(name, leaf) for leaf in FILES)
    image = whole.get("image_processor") or images
    return {"image": image, "video": whole.get("video_processor") or videos or image}


@dataclass(frozen=True)
class Qwen:
    """Qwen2-VL, Qwen2.5-VL, Qwen3-VL: frames keep their shape, in whole patches; a clip is a block of patches."""

    config: Any = field(repr=False)
    settings: Mapping[Kind, Settings]
    tags: ClassVar[dict[Kind, str]] = {"image": "<|image_pad|>", "video": "<|video_pad|>"}
    fps: ClassVar[float] = 2.0

    @property
    def stamped(self) -> bool:
        """Whether every step of a clip has its time before it (Qwen3-VL)."""
        return self.config.model_type.startswith("qwen3")

    @property
    def whole(self) -> int:
        """Sides of a frame are multiples of so many pixels."""
        return self.config.vision_config.patch_size * self.config.vision_config.spatial_merge_size

    def norm(self, kind: Kind) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of the channels, of values from 0 to 1."""
        return _norm(self.settings[kind], HALF if self.stamped else CLIP)

    def resized(self, kind: Kind, frames: int, size: Size) -> Size:
        """To which height and width frames are resized."""
        said = self.settings[kind]
        if said.get("do_resize") is False:
            if any(side % self.whole for side in size):
                raise DataError(f"frames of {size[0]} x {size[1]} pixels, but both must be multiples of {self.whole}.")
            return size
        over_time = self.stamped and kind == "video"
        low, high = self._limits(kind, frames)
        if over_time and min(size) < self.whole:
            scale = max(self.whole / side for side in size)
            size = (int(size[0] * scale), int(size[1] * scale))
        if max(size) > 200 * min(size):
            raise DataError(f"frames of {size[0]} x {size[1]} pixels: one side is more than 200 times the other.")
        step = self.config.vision_config.temporal_patch_size
        # as transformers counts it: frames rounded to whole steps in the comparison, as they are in the scale
        rounded, real = (max(step, round(frames / step) * step), frames) if over_time else (1, 1)
        best = tuple(round(side / self.whole) * self.whole for side in size)
        if rounded * best[0] * best[1] > high:
            scale = math.sqrt(real * size[0] * size[1] / high)
            best = tuple(max(self.whole, math.floor(side / scale / self.whole) * self.whole) for side in size)
        elif rounded * best[0] * best[1] < low:
            scale = math.sqrt(low / (real * size[0] * size[1]))
            best = tuple(math.ceil(side * scale / self.whole) * self.whole for side in size)
        return best[0], best[1]

    def grid(self, kind: Kind, frames: int, size: Size) -> tuple[int, int, int]:
        """Patches in time, height and width, before they are merged. size: of the frames as they are."""
        height, width = self.resized(kind, frames, size)
        vision = self.config.vision_config
        return -(-frames // vision.temporal_patch_size), height // vision.patch_size, width // vision.patch_size

    def expand(self, text: str, media: Sequence[Media]) -> str:
        """See Family."""
        if self.stamped:  # each step of a clip has a start and an end of its own
            text = text.replace(f"<|vision_start|>{self.tags['video']}<|vision_end|>", self.tags["video"])
        return _expand(text, media, self.tags, self._written)

    def _written(self, item: Media, _: Sequence[Media]) -> str:
        frames, *size = item.frames().shape[:3]
        steps, height, width = self.grid(item.kind, frames, (size[0], size[1]))
        each = self.tags[item.kind] * (height * width // self.config.vision_config.spatial_merge_size**2)
        if not self.stamped or item.kind == "image":
            return each * steps
        step = self.config.vision_config.temporal_patch_size
        firsts = range(0, frames, step)
        times = ((first + min(first + step - 1, frames - 1)) / 2 / self.fps for first in firsts)
        return "".join(f"<{time:.1f} seconds><|vision_start|>{each}<|vision_end|>" for time in times)

    def _limits(self, kind: Kind, frames: int) -> tuple[int, int]:
        """Fewest and most pixels: of a frame, of Qwen3-VL's clips over all frames. Defaults count patches, merged."""
        said, unit = self.settings[kind], self.whole**2
        size = said.get("size") or {}
        low, high = (4, 1280) if kind == "image" else (128, 768)
        low = int(said.get("min_pixels") or size.get("shortest_edge") or size.get("min_pixels") or low * unit)
        high = int(said.get("max_pixels") or size.get("longest_edge") or size.get("max_pixels") or high * unit)
        if kind == "image" or not said.get("cap_pixels_per_frame"):
            return low, high
        if self.stamped:
            one = min(int(said.get("max_video_tokens", 768)) * unit, high // frames)
            return low, max(one, int(low * 1.05)) * frames
        share = int(int(said.get("max_video_tokens", 128000)) * unit * 0.9)
        return low, max(min(high, share * self.config.vision_config.temporal_patch_size // frames), int(low * 1.05))


@dataclass(frozen=True)
class Square:
    """Families whose tower reads square tiles of one size; a frame of a clip is one tile."""

    config: Any = field(repr=False)
    settings: Mapping[Kind, Settings]
    mean_std: ClassVar[Any] = CLIP

    @property
    def side(self) -> int:
        """Height and width of a tile in pixels."""
        size = self.config.vision_config.image_size
        return int(size if isinstance(size, int) else size[0])

    @property
    def patches(self) -> int:
        """Patches along a side of a tile."""
        patch = self.config.vision_config.patch_size
        return self.side // int(patch if isinstance(patch, int) else patch[0])

    def norm(self, kind: Kind) -> tuple[Sequence[float], Sequence[float]]:
        """Mean and standard deviation of the channels, of values from 0 to 1."""
        return _norm(self.settings[kind], self.mean_std)


@dataclass(frozen=True)
class LlavaOnevision(Square):
    """LLaVA-OneVision: a clip's tiles are pooled by two; an image that is a prompt's only one is cut into tiles too."""

    tags: ClassVar[dict[Kind, str]] = {"image": "<image>", "video": "<video>"}

    def expand(self, text: str, media: Sequence[Media]) -> str:
        """See Family."""
        return _expand(text, media, self.tags, self._written)

    def _written(self, item: Media, media: Sequence[Media]) -> str:
        frames, *size = item.frames().shape[:3]
        if item.kind == "video":
            return self.tags["video"] * (frames * math.ceil(self.patches / 2) ** 2 + 1)  # 1: the end of the line
        count = self.alone((size[0], size[1])) if alone(item, media) else self.patches**2 + 1
        return self.tags["image"] * count

    def alone(self, size: Size) -> int:
        """Features of an image that is its prompt's only one: the whole, and its tiles without their padding, line by
        line."""
        from transformers.image_processing_utils import select_best_resolution

        best = select_best_resolution(list(size), self.config.image_grid_pinpoints)
        high, wide = (self.patches * (side // self.side) for side in best)
        if size[1] / size[0] > wide / high:
            high -= (high - int(round(size[0] * (wide / size[1]), 7))) // 2 * 2
        else:
            wide -= (wide - int(round(size[1] * (high / size[0]), 7))) // 2 * 2
        most = int(self.config.vision_aspect_ratio.removeprefix("anyres_max_"))
        ratio = math.sqrt(high * wide / (most * self.patches**2))
        if ratio > 1.1:
            high, wide = int(high // ratio), int(wide // ratio)
        return self.patches**2 + high * (wide + 1)


@dataclass(frozen=True)
class InternVL(Square):
    """InternVL: frames of a clip are images in a row; an image is cut into as many as twelve tiles and the whole."""

    tags: ClassVar[dict[Kind, str]] = {"image": "<IMG_CONTEXT>", "video": "<video>"}

    def expand(self, text: str, media: Sequence[Media]) -> str:
        """See Family."""
        return _expand(text, media, self.tags, self._written)

    def _written(self, item: Media, _: Sequence[Media]) -> str:
        frames, *size = item.frames().shape[:3]
        tile = self.tags["image"] * round(self.patches**2 * self.config.downsample_ratio**2)
        if item.kind == "image":
            return f"<img>{tile * self.tiles((size[0], size[1]))}</img>"
        return "\n".join(f"Frame{i + 1}: <img>{tile}</img>" for i in range(frames))

    def tiles(self, size: Size) -> int:
        """Tiles of an image, the whole among them."""
        from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

        said = self.settings["image"]
        low, high = int(said.get("min_patches", 1)), int(said.get("max_patches", 12))
        columns, rows = get_optimal_tiled_canvas(size, (self.side, self.side), low, high) if high > 1 else (1, 1)
        return columns * rows + (columns * rows > 1)


@dataclass(frozen=True)
class SmolVLM(Square):
    """SmolVLM: frames of a clip are images with their times; an image is cut into tiles, and the whole."""

    tags: ClassVar[dict[Kind, str]] = {"image": "<image>", "video": "<video>"}
    mean_std: ClassVar[Any] = HALF

    def expand(self, text: str, media: Sequence[Media]) -> str:
        """See Family."""
        return _expand(text, media, self.tags, self._written)

    def _written(self, item: Media, _: Sequence[Media]) -> str:
        frames, *size = item.frames().shape[:3]
        tile = self.tags["image"] * (self.patches**2 // self.config.scale_factor**2)
        whole = f"<fake_token_around_image><global-img>{tile}<fake_token_around_image>"
        if item.kind == "video":
            times = "".join(f"\nFrame from {s // 60:02d}:{s % 60:02d}:{whole}" for s in range(frames))
            return (
                f"You are provided the following series of {_in_words(frames)} frames from a "
                f"{timedelta(seconds=frames)} [H:MM:SS] video.\n{times}\n\n"
            )
        rows, columns = self.tiles((size[0], size[1]))
        if not rows:
            return whole
        lines = (
            "".join(f"<fake_token_around_image><row_{r + 1}_col_{c + 1}>{tile}" for c in range(columns)) + "\n"
            for r in range(rows)
        )
        return f"{''.join(lines)}\n{whole}"

    def tiles(self, size: Size) -> Size:
        """Rows and columns of tiles that an image is cut into beside the whole; (0, 0) where it is not cut."""
        said = self.settings["image"]
        if said.get("do_image_splitting") is False:
            return 0, 0
        high, wide = self.scaled("image", size)
        if wide >= high:
            columns = math.ceil(wide / self.side)
            rows = math.ceil(int(columns * self.side / (wide / high)) / self.side)
        else:
            rows = math.ceil(high / self.side)
            columns = math.ceil(int(rows * self.side * (wide / high)) / self.side)
        return (rows, columns) if rows * columns > 1 else (0, 0)

    def scaled(self, kind: Kind, size: Size) -> Size:
        """Height and width of a frame before it becomes tiles: its longer side is the processor's."""
        said = self.settings[kind]
        longest = (said.get("video_sampling", {}).get("video_size") or said.get("size") or {}).get("longest_edge")
        longest, ratio = min(SIDE, int(longest or 4 * self.side)), size[1] / size[0]
        if ratio >= 1:
            short = int(longest / ratio)
            return max(1, short + short % 2), longest
        short = int(longest * ratio)
        return longest, max(1, short + short % 2)


def alone(item: Media, media: Sequence[Media]) -> bool:
    """Whether an image is the only one of its prompt."""
    return sum(m.kind == item.kind for m in media) == 1


def _expand(text: str, media: Sequence[Media], tags: dict[Kind, str], written: Any) -> str:
    """The text with what is written for each of the media in place of its tag."""
    kinds: dict[str, Kind] = {tag: kind for kind, tag in tags.items()}
    parts = re.split(f"({'|'.join(map(re.escape, kinds))})", text)
    found: list[Kind] = [kinds[tag] for tag in parts[1::2]]
    wanted: list[Kind] = [item.kind for item in media]
    if found != wanted:
        raise DataError(
            f"its prompt has placeholders for {_named(found)}, but its media are {_named(wanted)}. Write one "
            f"({', '.join(tags.values())}) for each, in the same order."
        )
    parts[1::2] = [written(item, media) for item in media]
    return "".join(parts)


def _named(kinds: Sequence[str]) -> str:
    return ", ".join(kinds) or "none"


def _norm(said: Settings, default: tuple[Sequence[float], Sequence[float]]) -> tuple[Sequence[float], Sequence[float]]:
    if said.get("do_normalize") is False:
        return (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    return said.get("image_mean") or default[0], said.get("image_std") or default[1]


def _read(name: str, leaf: str) -> dict[str, Any]:
    """A file of a model folder or of a hub id that was fetched; {} where there is none."""
    path = Path(name) / leaf if name and Path(name).is_dir() else None
    if name and path is None:
        from transformers.utils.hub import cached_file

        quiet = {f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo")}
        try:
            found = cached_file(name, leaf, _raise_exceptions_for_connection_errors=False, **quiet)
        except (OSError, ValueError):  # no hub id either
            found = None
        path = Path(found) if found else None
    return read_json(path) if path is not None and path.is_file() else {}


def _in_words(number: int) -> str:
    """A number from 0 to 999 in English words, as SmolVLM's prompts have it; digits above."""
    ones = (
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen"
    ).split()
    tens = "twenty thirty forty fifty sixty seventy eighty ninety".split()
    if number < 20:
        return ones[number]
    if number < 100:
        return tens[number // 10 - 2] + (f"-{ones[number % 10]}" if number % 10 else "")
    if number < 1000:
        rest = f" and {_in_words(number % 100)}" if number % 100 else ""
        return f"{ones[number // 100]} hundred{rest}"
    return str(number)


FAMILIES: dict[str, Any] = {  # by model_type
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe"), Qwen),
    "llava_onevision": LlavaOnevision,
    "internvl": InternVL,
    "smolvlm": SmolVLM,
}
