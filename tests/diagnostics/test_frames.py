"""Frames from files: the pixels that are meant, sizes before decoding, and one sentence for what cannot be shown."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from diagnostics import frames
from diagnostics.frames import Frames, MediaError, check_path, folder_items, of_array, open_media, spread


def noise(height: int = 6, width: int = 9, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, image: Image.Image | np.ndarray, **how: object) -> str:
    found = image if isinstance(image, Image.Image) else Image.fromarray(image)
    found.save(path, **how)
    return str(path)


def gif(path: Path, count: int) -> str:
    greys = [Image.new("L", (4, 3), 40 * k) for k in range(count)]
    greys[0].save(path, save_all=True, append_images=greys[1:])
    return str(path)


@pytest.mark.parametrize(
    ("count", "most", "taken"),
    [(5, 8, [0, 1, 2, 3, 4]), (8, 8, [*range(8)]), (10, 4, [0, 2, 5, 7]), (9, 2, [0, 4]), (3, 1, [0])],  # k * N // T
)
def test_frames_are_spread_evenly(count: int, most: int, taken: list[int]) -> None:
    assert spread(count, most) == taken


def test_an_image_is_its_pixels(tmp_path: Path) -> None:
    pixels = noise()
    found = open_media([save(tmp_path / "a.png", pixels)], "image", source="a.png")
    assert (found.frames() == pixels[None]).all()
    assert found.shape() == (1, 6, 9)
    assert found.view == ()
    again = open_media([(tmp_path / "a.png").read_bytes()], "image")
    assert again == found  # by content, wherever it stands
    assert open_media([save(tmp_path / "b.png", noise(seed=1))], "image") != found


def test_modes_of_pictures(tmp_path: Path) -> None:
    grey = noise()[..., 0]
    deep = grey.astype(np.uint16) * 257  # the same grey in 16 bits
    colour = Image.fromarray(noise())
    clear = np.dstack([noise(), np.full((6, 9), 7, np.uint8)])
    palette = colour.convert("P", palette=Image.Palette.ADAPTIVE)
    cases = {
        "grey": (Image.fromarray(grey), np.dstack([grey] * 3)),
        "deep": (Image.fromarray(deep), np.dstack([grey] * 3)),
        "alpha": (Image.fromarray(clear), clear[..., :3]),
        "palette": (palette, np.asarray(palette.convert("RGB"))),
        "bits": (Image.fromarray(grey > 128), np.dstack([(grey > 128) * np.uint8(255)] * 3)),
    }
    for name, (image, pixels) in cases.items():
        found = open_media([save(tmp_path / f"{name}.png", image)], "image")
        assert found.shape() == (1, 6, 9)
        assert (found.frames()[0] == pixels).all(), name
    palette.info["transparency"] = bytes(range(256))
    save(tmp_path / "clear.png", palette, transparency=bytes(range(256)))
    assert open_media([str(tmp_path / "clear.png")], "image").frames().shape == (1, 6, 9, 3)


@pytest.mark.parametrize("suffix", ["jpg", "png", "tiff"])
def test_a_picture_is_turned_as_exif_says(tmp_path: Path, suffix: str) -> None:
    pixels = np.zeros((16, 32, 3), np.uint8)
    pixels[:, :16] = 255  # white on the left
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    found = open_media([save(tmp_path / f"a.{suffix}", pixels, exif=exif)], "image")
    assert found.shape() == found.frames().shape[:3] == (1, 32, 16)
    assert found.frames()[0, :12].min() > 200  # white on top
    assert found.frames()[0, 20:].max() < 50


def test_a_clip_in_one_file_gives_some_of_its_frames(tmp_path: Path) -> None:
    found = open_media([gif(tmp_path / "a.gif", 5)], "video", most=2)
    assert found.view == ("frames 0, 2 of 5",)
    assert found.shape() == (2, 3, 4)
    assert found.frames()[:, 0, 0, 0].tolist() == [0, 80]
    still = open_media([str(tmp_path / "a.gif")], "image")
    assert still.view == ("frame 0 of 5",)
    assert still.frames().max() == 0


def test_a_clip_in_a_folder_is_sorted_as_people_count(tmp_path: Path) -> None:
    for k in (1, 2, 10):
        save(tmp_path / f"frame_{k}.png", np.full((3, 4, 3), k, np.uint8))
    (tmp_path / "notes.txt").write_text("no frame")
    (tmp_path / ".hidden.png").write_text("no frame")
    items = folder_items(tmp_path)
    assert [Path(str(item)).name for item in items] == ["frame_1.png", "frame_2.png", "frame_10.png"]
    found = open_media(items, "video")
    assert found.frames()[:, 0, 0, 0].tolist() == [1, 2, 10]
    half = open_media(items, "video", most=2)
    assert half.frames()[:, 0, 0, 0].tolist() == [1, 2]  # floor(k * 3 / 2)
    assert half.view == ("frames 0, 1 of 3",)
    assert half != found
    assert open_media(items[::-1], "video") != found


def test_arrays(tmp_path: Path) -> None:
    clip = np.stack([noise(seed=k) for k in range(3)])
    np.save(tmp_path / "a.npy", clip)
    found = open_media([str(tmp_path / "a.npy")], "video", most=2)
    with pytest.raises(MediaError, match="frames, not one image"):
        open_media([str(tmp_path / "a.npy")], "image", most=2)
    assert (found.frames() == clip[[0, 1]]).all()
    assert (of_array(clip.tolist(), "video").frames() == clip).all()
    assert (of_array(clip[0, ..., 0].tolist(), "image").frames()[0] == clip[0, ..., :1]).all()
    for value, says in ([[[[-1] * 3]]], "0 to 255"), ([[[[0.5] * 3]]], "whole numbers"), ([[[1]], [[1, 2]]], "differ"):
        with pytest.raises(MediaError, match=says):
            of_array(value, "video")


def test_what_cannot_be_shown_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = (tmp_path / "a.png", tmp_path / "a.jpg")
    for path in whole:
        save(path, noise(64, 64))
    png, jpg = (path.read_bytes() for path in whole)
    broken = {
        "flipped.png": png[:2000] + bytes([png[2000] ^ 1]) + png[2001:],
        "cut.png": png[: len(png) // 2],
        "cut.jpg": jpg[: len(jpg) // 2],
        "text.png": b"this is no picture",
        "empty.png": b"",
        "array.npy": b"\x93NUMPY\x01\x00",
    }
    for name, content in broken.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(MediaError, match=name) as caught:
            open_media([str(tmp_path / name)], "image")
        assert caught.value.code == "media_unreadable"
        assert "\n" not in str(caught.value)
    np.save(tmp_path / "objects.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    np.savez(tmp_path / "many.npz", a=noise())
    (tmp_path / "many.npz").rename(tmp_path / "many.npy")
    np.save(tmp_path / "floats.npy", noise() / 255)
    for name in ("objects.npy", "many.npy", "floats.npy"):
        with pytest.raises(MediaError, match=name):
            open_media([str(tmp_path / name)], "image")
    with pytest.raises(MediaError, match="holds no frames"):
        open_media([], "video", source="folder")
    sizes = [save(tmp_path / f"{k}.png", noise(6, 6 + k)) for k in range(2)]
    with pytest.raises(MediaError, match="frames of 6 x 6 and of 7 x 6 pixels"):
        open_media(sizes, "video")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 64 * 64 - 1)
    for item in (str(whole[0]), png):
        with pytest.raises(MediaError, match="million pixels"):
            open_media([item], "image")


def test_a_clip_that_would_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frames, "LARGEST", 4 * 3 * 4)
    with pytest.raises(MediaError, match="5 frames of 4 x 3 pixels are too many"):
        open_media([gif(tmp_path / "a.gif", 5)], "video")
    assert open_media([str(tmp_path / "a.gif")], "video", most=4).shape() == (4, 3, 4)


def test_a_bomb_is_not_unpacked(tmp_path: Path) -> None:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(MediaError, match="more than 89 million pixels"):
        open_media([content], "image")


def test_paths(tmp_path: Path) -> None:
    save(tmp_path / "a.png", noise())
    os.mkfifo(tmp_path / "pipe.png")
    assert check_path("a.png", tmp_path) == check_path(f"file://{tmp_path}/a.png", Path("/")) == tmp_path / "a.png"
    for name, says in (
        ("b.png", "b.png is not there"),
        ("https://example.com/a.png", "nothing is fetched"),
        ("pipe.png", "neither a file nor a folder"),
        ("x\0y.png", r"x\\x00y.png is not there"),
        ("z" * 5000, "is not there"),
    ):
        with pytest.raises(MediaError, match=says) as caught:
            check_path(name, tmp_path)
        assert caught.value.code == "media_missing"


def test_a_video_file_needs_a_decoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.mp4").write_bytes(b"\0\0\0\x18ftypmp42")
    monkeypatch.setattr(frames, "_has", lambda module: False)
    for item in (str(tmp_path / "a.mp4"), (tmp_path / "a.mp4").read_bytes()):
        with pytest.raises(MediaError, match="no decoder is installed"):
            open_media([item], "video")


def test_media_damaged_after_they_were_read_are_named(tmp_path: Path) -> None:
    found = open_media([save(tmp_path / "a.png", noise())], "image")
    (tmp_path / "a.png").unlink()
    with pytest.raises(MediaError, match=r"a\.png"):
        found.frames()


def test_media_from_memory_have_a_form_that_can_be_written() -> None:
    found = of_array(np.stack([noise(seed=k) for k in range(3)]).tolist(), "video", most=2)
    assert isinstance(found.load, Frames)
    assert frames.packed(found) == found.load
    assert (np.load(io.BytesIO(found.load.items[0]))[0] == noise()).all()  # pyright: ignore[reportArgumentType]


def test_a_film_is_read_by_av(tmp_path):
    """A film's frames are those that went into it, up to what its compression takes; a cut one says so."""
    av = pytest.importorskip("av", reason="films are read by PyAV or torchcodec, which are no dependencies: install av")
    colours = [(20 * k + 10, 255 - 20 * k, 128) for k in range(10)]
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as file:
        stream = file.add_stream("mpeg4", rate=5)
        stream.width, stream.height, stream.pix_fmt = 96, 64, "yuv420p"
        for colour in colours:
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), colour, np.uint8), format="rgb24")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    for item in (str(path), path.read_bytes()):
        film = open_media([item], "video", most=4)
        assert film.view == ("frames 0, 2, 5, 7 of 10",)
        found = film.frames()
        assert found.shape == (*film.shape(), 3) == (4, 64, 96, 3)
        assert abs(found[:, 32, 48].astype(int) - [colours[k] for k in (0, 2, 5, 7)]).max() < 12
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(MediaError, match="cannot be decoded"):
        open_media([str(path)], "video")
