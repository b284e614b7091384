"""Frames of images and clips, from image files, folders of frames, arrays and, with a decoder, video files. No torch.

A file is looked at once, when a data set is read: whether it is there, how many frames it holds, how large they are and
whether they are whole. They are decoded when a model is shown them. Nothing is unpickled, and nothing is fetched.
"""

import hashlib
import importlib.util
import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from diagnostics.errors import DataError, printable
from diagnostics.media import Kind, Media

FRAMES = 16  # most frames that are taken of a clip (RRPO's number, arXiv 2504.12083)
FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")  # none whose reader starts other programs
STILL = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
PICTURES = (*STILL, ".gif", ".webp", ".apng")
FILMS = (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".flv", ".wmv", ".ts", ".3gp")
LARGEST = 2**29  # pixels of all taken frames of a clip: a gigabyte and a half
_ORIENTATION, _TURNED = 0x0112, (5, 6, 7, 8)  # of EXIF: a quarter turn exchanges height and width
_ARRAY = b"\x93NUMPY"
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
_RIFF_FILMS = (b"AVI ",)

Item = str | bytes  # the path of a file, or its content


class MediaError(DataError):
    """Media that cannot be shown: a code of diagnostics.codes.SKIPS, and why."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code = code


@dataclass(frozen=True, slots=True)
class Frames:
    """Where the frames of an image or a clip are: several files of one frame each, or one file of several.

    Called, it gives them as (T, H, W, 3) uint8, turned as EXIF says. taken: of one file, the places of its frames.
    """

    items: tuple[Item, ...]
    taken: tuple[int, ...] = (0,)

    def __call__(self) -> np.ndarray:
        """Decode them. Raises MediaError where a file is gone or damaged by now."""
        if len(self.items) == 1:
            return _decode(self.items[0], self.taken)
        return np.concatenate([_decode(item, (0,)) for item in self.items])


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` frames: floor(k * count / most), k = 0 .. most - 1 (RRPO's loaders); all if fewer."""
    return list(range(count)) if count <= most else [k * count // most for k in range(most)]


def open_media(items: Sequence[Item], kind: Kind, *, most: int = FRAMES, source: str = "") -> Media:
    """An image, or a clip of at most `most` frames, from files. Raises MediaError where it cannot be shown.

    items: one file, or the frames of a clip, a file each. source: where a person finds it.
    """
    source = source or ", ".join(_name(item) for item in items[:2]) + (" ..." if len(items) > 2 else "")
    if not items:
        raise MediaError("media_unreadable", f"{source}: holds no frames")
    if len(items) == 1:
        count, sizes, taken = _look(items[0], kind, most)
        shown, total = (items[0],), count
    else:
        taken = spread(len(items), most)
        shown, total = tuple(items[i] for i in taken), len(items)
        sizes = [_look(item, "image", 1)[1][0] for item in shown]
    if len(set(sizes)) > 1:
        one, other = list(dict.fromkeys(sizes))[:2]
        said = f"frames of {one[1]} x {one[0]} and of {other[1]} x {other[0]} pixels; a clip has frames of one size"
        raise MediaError("media_unreadable", f"{source}: {said}")
    if len(taken) * sizes[0][0] * sizes[0][1] > LARGEST:
        said = f"{len(taken)} frames of {sizes[0][1]} x {sizes[0][0]} pixels are too many; take fewer (--frames)"
        raise MediaError("media_unreadable", f"{source}: {said}")
    word = "frames" if len(taken) > 1 else "frame"
    view = (f"{word} {', '.join(map(str, taken))} of {total}",) if len(taken) < total else ()
    frames = Frames(shown, tuple(taken) if len(shown) == 1 else (0,))
    return Media(kind, _digest(shown), view, source, frames, (len(taken), *sizes[0]))


def of_array(value: Any, kind: Kind, *, most: int = FRAMES, source: str = "") -> Media:
    """The same from nested lists of pixels: (H, W), (H, W, 3) or, of a clip, (T, H, W, 3), numbers from 0 to 255."""
    try:
        array = np.asarray(value)
    except (ValueError, OverflowError, MemoryError):
        raise MediaError("media_unreadable", f"{source}: the rows of pixels differ in length") from None
    if not array.size:
        raise MediaError("media_unreadable", f"{source}: holds no frames")
    if array.dtype.kind not in "iu" or array.min() < 0 or array.max() > 255:
        raise MediaError("media_unreadable", f"{source}: pixels must be whole numbers from 0 to 255")
    return open_media([_packed(array.astype(np.uint8))], kind, most=most, source=source)


def packed(medium: Media) -> Frames:
    """Where a medium's frames are, in a form that can be written: those of media made here in memory become a file's
    content."""
    return medium.load if isinstance(medium.load, Frames) else Frames((_packed(medium.frames()),), _all(medium))


def folder_items(path: Path) -> list[Item]:
    """The pictures of a folder of frames, in natural order: frame_2 before frame_10."""
    names = [entry.name for entry in path.iterdir() if not entry.name.startswith(".") and is_picture(entry.name)]
    return [str(path / name) for name in sorted(names, key=_natural)]


def is_picture(name: str) -> bool:
    """Whether a file is a picture, by its name."""
    return name.lower().endswith(PICTURES)


def is_still(item: Item) -> bool:
    """Whether a file is a picture of one frame. MediaError where it cannot be read."""
    if isinstance(item, str) and not is_picture(item):
        return False
    if isinstance(item, bytes) and (item.startswith(_ARRAY) or _is_film(item)):
        return False
    with _opened(item) as image:
        return _count(image) == 1


def check_path(name: str, folder: Path) -> Path:
    """The file or folder that a data set names, relative to its own folder. MediaError where there is none."""
    name = name.removeprefix("file://")
    if _ADDRESS.match(name):
        said = "is an address on a network, and nothing is fetched; download it and give its path"
        raise MediaError("media_missing", f"{printable(name[:200])} {said}")
    try:
        path = folder / name
        if path.is_file() or path.is_dir():
            return path
        there = path.exists()
    except (OSError, ValueError):
        there = False
    what = "is neither a file nor a folder" if there else "is not there"
    raise MediaError("media_missing", f"{printable(name[:200])} {what}")


# --- looking at a file ------------------------------------------------------------------------------------------


def _look(item: Item, kind: Kind, most: int) -> tuple[int, list[tuple[int, int]], list[int]]:
    """(frames of a file, (height, width) of the taken ones, their places)."""
    if _is_array(item):
        array = _array(item)
        if kind == "image" and len(array) > 1:
            said = f"{_name(item)}: holds {len(array)} frames, not one image; name its column `video`"
            raise MediaError("media_unreadable", said)
        taken = [0] if kind == "image" else spread(len(array), most)
        return len(array), [array.shape[1:3]], taken
    if _is_film(item):
        if kind == "image":
            raise MediaError("media_unreadable", f"{_name(item)}: is a video, not an image; name its column `video`")
        count, size = _film_size(item)
        return count, [size], spread(count, most)
    with _opened(item) as image:
        count = _count(image)
        taken = [0] if kind == "image" else spread(count, most)
        return count, _sizes(image, item, taken), taken


def _sizes(image: Image.Image, item: Item, taken: Sequence[int]) -> list[tuple[int, int]]:
    """The sizes of whole frames, with as little decoding as shows that they are whole."""
    if _count(image) > 1 or image.format not in ("PNG", "JPEG") or (image.format == "PNG" and _noted(item)):
        return [_frame(image, i).shape[:2] for i in taken]
    width, height = image.size
    if image.format == "PNG":
        _check_mode(image)
        image.verify()  # the checksums of all its parts
        return [(height, width)]
    turned = image.getexif().get(_ORIENTATION) in _TURNED
    image.draft("RGB", (max(1, width // 8), max(1, height // 8)))
    image.load()
    return [(width, height) if turned else (height, width)]


def _noted(item: Item) -> bool:
    """Whether a PNG holds notes that may say how it is turned."""
    content = item if isinstance(item, bytes) else Path(item).read_bytes()
    return any(mark in content for mark in (b"eXIf", b"Raw profile type", b"adobe.xmp"))


def _count(image: Image.Image) -> int:
    return 1 if image.format == "MPO" else int(getattr(image, "n_frames", 1))  # MPO: a photo beside its preview


def _digest(items: Sequence[Item]) -> str:
    """16 hex digits of a hash of the files, as they stand."""
    whole = hashlib.sha256()
    for item in items:
        if isinstance(item, bytes):
            whole.update(hashlib.sha256(item).digest())
            continue
        with open(item, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()[:16]


# --- decoding ---------------------------------------------------------------------------------------------------


def _decode(item: Item, taken: Sequence[int]) -> np.ndarray:
    if _is_array(item):
        return np.ascontiguousarray(_array(item)[list(taken)])
    if _is_film(item):
        return _film(item, taken)
    with _opened(item) as image:
        return np.stack([_frame(image, i) for i in taken])


@contextmanager
def _opened(item: Item) -> Iterator[Image.Image]:
    """A picture, none that unpacks to more pixels than PIL allows. Whatever its reader raises is one sentence."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(item) if isinstance(item, bytes) else item, formats=FORMATS) as image:
                yield image
    except MediaError:
        raise
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        most = (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        raise MediaError("media_unreadable", f"{_name(item)}: has more than {most:.0f} million pixels") from None
    except Exception as error:  # a reader of pictures may raise anything
        known = not isinstance(error, Image.UnidentifiedImageError)
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        why = f"cannot be read ({printable(reason)})" if known else "is no picture of a known format, or is damaged"
        raise MediaError("media_unreadable", f"{_name(item)}: {why}") from None


def _frame(image: Image.Image, place: int) -> np.ndarray:
    """(H, W, 3) uint8, as transformers reads images: turned as EXIF says, transparency left out. 16 bits become 8."""
    if _count(image) > 1:
        image.seek(place)
    _check_mode(image)
    still = ImageOps.exif_transpose(image)
    if still.mode.startswith("I"):
        values = np.asarray(still)
        if values.min() < 0 or values.max() > 0xFFFF:
            raise ValueError(f"its pixels of mode {still.mode} have more than 16 bits")
        still = Image.fromarray((values >> 8).astype(np.uint8))
    return np.asarray(still.convert("RGB"))


def _check_mode(image: Image.Image) -> None:
    if image.mode == "F":
        raise ValueError("its pixels are no whole numbers; save it with 8 bits a channel")


def _is_array(item: Item) -> bool:
    return item.startswith(_ARRAY) if isinstance(item, bytes) else item.lower().endswith(".npy")


def _array(item: Item) -> np.ndarray:
    """(T, H, W, 3) uint8, mapped and not read where it is a file."""
    try:
        if isinstance(item, bytes):
            found: Any = np.load(io.BytesIO(item), allow_pickle=False)
        else:
            found = np.load(item, mmap_mode="r", allow_pickle=False)
    except Exception:  # a damaged header is read as Python, which may fail in any way
        raise MediaError("media_unreadable", f"{_name(item)}: is no array of pixels, or is damaged") from None
    shape = getattr(found, "shape", ())  # an archive of arrays has none
    if not shape:
        raise MediaError("media_unreadable", f"{_name(item)}: is no array of pixels, or is damaged")
    if len(shape) == 2:
        found = np.broadcast_to(found[None, :, :, None], (1, *shape, 3))
    elif len(shape) == 3:
        found = found[None]
    if found.dtype != np.uint8 or found.ndim != 4 or found.shape[-1] != 3 or not found.size:
        said = f"holds {found.dtype} {tuple(shape)}; frames must be uint8 (T, H, W, 3), an image (H, W, 3)"
        raise MediaError("media_unreadable", f"{_name(item)}: {said}")
    if found.shape[1] * found.shape[2] > (Image.MAX_IMAGE_PIXELS or np.inf):
        raise MediaError("media_unreadable", f"{_name(item)}: has frames of too many pixels")
    return found


def _packed(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def _all(medium: Media) -> tuple[int, ...]:
    return tuple(range(medium.shape()[0]))


def _name(item: Item) -> str:
    return "an image in the data" if isinstance(item, bytes) else printable(item)


def _natural(name: str) -> list[Any]:
    parts = re.split(r"([0-9]+)", name)
    return [int(part) if i % 2 else part.lower() for i, part in enumerate(parts)] + [name]


# --- video files ------------------------------------------------------------------------------------------------


def _is_film(item: Item) -> bool:
    if isinstance(item, str):
        return item.lower().endswith(FILMS)
    return item[4:8] == b"ftyp" or item[:4] == b"\x1aE\xdf\xa3" or (item[:4] == b"RIFF" and item[8:12] in _RIFF_FILMS)


def _film_size(item: Item) -> tuple[int, tuple[int, int]]:
    """(frames of a video file, (height, width))."""
    with _film_errors(item):
        if _has("torchcodec"):
            decoder = _torchcodec(item)
            frame = decoder.get_frames_at(indices=[0]).data
            return len(decoder), (int(frame.shape[1]), int(frame.shape[2]))
        count, size = 0, (0, 0)
        for frame in _av_frames(item):
            count, size = count + 1, (frame.height, frame.width)
        if not count:
            raise MediaError("media_unreadable", f"{_name(item)}: holds no frames")
        return count, size


def _film(item: Item, taken: Sequence[int]) -> np.ndarray:
    with _film_errors(item):
        if _has("torchcodec"):
            return _torchcodec(item).get_frames_at(indices=list(taken)).data.numpy()
        wanted = set(taken)
        found = {i: f.to_ndarray(format="rgb24") for i, f in enumerate(_av_frames(item)) if i in wanted}
        return np.stack([found[i] for i in taken])


def _torchcodec(item: Item) -> Any:
    from torchcodec.decoders import VideoDecoder  # pyright: ignore[reportMissingImports]

    return VideoDecoder(item, dimension_order="NHWC")


def _av_frames(item: Item) -> Iterator[Any]:
    import av  # pyright: ignore[reportMissingImports]

    with av.open(io.BytesIO(item) if isinstance(item, bytes) else item) as container:
        yield from container.decode(video=0)


@contextmanager
def _film_errors(item: Item) -> Iterator[None]:
    if not _has("av") and not _has("torchcodec"):
        said = "is a video file, and no decoder is installed; pip install av, or give a folder of its frames"
        raise MediaError("media_unreadable", f"{_name(item)}: {said}")
    try:
        yield
    except MediaError:
        raise
    except Exception as error:  # decoders raise errors of their own
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise MediaError("media_unreadable", f"{_name(item)}: cannot be decoded ({printable(reason)})") from None


def _has(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
