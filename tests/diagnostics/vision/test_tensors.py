"""Pixels as transformers' own processors make them, where these can be built without torchvision."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import vlms
from PIL import Image
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from diagnostics.errors import DataError
from diagnostics.media import of_frames
from diagnostics.vision.placeholders import Qwen, SmolVLM
from diagnostics.vision.tensors import normal, prepare, visual

SIZES = [(32, 32), (40, 72), (90, 30), (1, 1), (3, 40)]  # the last two read as (channels, H, W) as well


def theirs(name: str, image: Image.Image, config: Any) -> tuple[np.ndarray, Any]:
    side = {"height": 32, "width": 32}
    if name.startswith("qwen"):
        half = [0.5] * 3
        norm = {"image_mean": half, "image_std": half} if name == "qwen3" else {}
        found: Any = Qwen2VLImageProcessorPil(**vlms.QWEN, **norm, patch_size=4, merge_size=2, temporal_patch_size=2)
        made = found(image, return_tensors="np")
        return made["pixel_values"], tuple(made["image_grid_thw"][0].tolist())
    if name == "llava":
        found = LlavaOnevisionImageProcessorPil(size=side, image_grid_pinpoints=config.image_grid_pinpoints)
        made = found(image, return_tensors="np")
        return made["pixel_values"][0], None
    if name == "internvl":
        found = GotOcr2ImageProcessorPil(size=side, crop_to_patches=True)
        return found(image, return_tensors="np")["pixel_values"], None
    found = SmolVLMImageProcessorPil(do_image_splitting=False, max_image_size={"longest_edge": 32})
    return found(image, return_tensors="np")["pixel_values"][0], None


@pytest.mark.parametrize("size", SIZES)
def test_an_image(made, request, size):
    model, family = made
    name = request.node.callspec.params["made"]
    item = vlms.media(0, size=size)
    if name == "smolvlm":
        family = replace(family, settings={"image": {"do_image_splitting": False, "size": {"longest_edge": 4 * 364}}})
    found = prepare(family, item, True)
    wanted, grid = theirs(name, Image.fromarray(item.frames()[0]), model.config)
    assert found.grid == grid
    assert found.pixels.shape == wanted.shape
    assert np.abs(found.pixels.numpy() - wanted).max() < 1e-5
    tag = family.tags["image"]
    assert family.expand(tag, (item,)).count(tag) == sum(found.runs)


@pytest.mark.parametrize("frames", [1, 2, 5])
def test_a_clip_of_qwen_is_cut_into_patches(made, frames):
    _, family = made
    if not isinstance(family, Qwen):
        return
    item = vlms.media(0, frames, (24, 40))
    found = prepare(family, item, True)
    pixels = normal(item.frames(), *family.norm("video"))
    pixels = np.concatenate([pixels, pixels[-1:]])[: frames + frames % 2]  # the last frame again, to whole steps
    places = [  # step by step, in squares of 2 x 2 patches of 4 x 4 pixels
        (t, 2 * row + r, 2 * column + c)
        for t in range(len(pixels) // 2) for row in range(3) for column in range(5) for r in (0, 1) for c in (0, 1)
    ]  # fmt: skip
    cut = [pixels[2 * t : 2 * t + 2, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].swapaxes(0, 1) for t, r, c in places]
    assert found.grid == (len(pixels) // 2, 6, 10)
    assert np.array_equal(found.pixels.numpy(), np.stack([patch.ravel() for patch in cut]))


def test_frames_are_normalised_channel_by_channel():
    found = normal(np.full((1, 1, 1, 3), 255, np.uint8), (0.5, 0.0, 1.0), (0.5, 2.0, 1.0))
    assert found[0, :, 0, 0].tolist() == [1.0, 0.5, 0.0]  # (1 - mean) / std


def test_processor_files_decide_how_pixels_are_scaled(made):
    """(x * rescale_factor - mean) / std, in transformers' words."""
    _, family = made
    said = {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3, "resample": 0}
    family = replace(family, settings={"image": said, "video": {"size": {"shortest_edge": 64}} | said})
    pixels = np.zeros((1, 16, 16, 3), np.uint8)
    pixels[:, :, 8:] = 255
    found = prepare(family, of_frames(pixels), True).pixels
    assert sorted(found.unique().tolist()) == pytest.approx([-1.0, 1.0])  # the nearest pixel: nothing in between
    family = replace(family, settings={kind: said | {"do_center_crop": True} for kind in ("image", "video")})
    with pytest.raises(DataError, match="do_center_crop"):
        prepare(family, of_frames(pixels), True)


def test_each_of_the_media_stands_once_and_rows_name_them_in_order(made):
    _, family = made
    clip, image = vlms.media(0, 2), vlms.media(1)
    again = of_frames(clip.frames().copy())
    found = visual(family, [(clip,), None, (image, again), (image,)])
    assert found is not None
    assert found.rows == ((0,), (), (1, 0), (1,))
    assert len(found.shown) == 2
    assert found.of([2, 1]).rows == ((1, 0), ())
    assert visual(family, [None, ()]) is None


def test_frames_that_smolvlm_would_drop_are_refused(made):
    """It takes a frame of zeros for padding; the others read it like any other."""
    _, family = made
    black = of_frames(np.zeros((2, 32, 32, 3), np.uint8))
    bare: Any = {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    family = replace(family, settings={kind: dict(family.settings[kind]) | bare for kind in ("image", "video")})
    if isinstance(family, SmolVLM):
        with pytest.raises(DataError, match="all zeros once it is normalised"):
            prepare(family, black, True)
    else:
        assert not prepare(family, black, True).pixels.any()
