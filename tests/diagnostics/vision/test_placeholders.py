import json
from types import SimpleNamespace

import numpy as np
import pytest
from transformers import (
    InternVLConfig,
    LlavaOnevisionConfig,
    Qwen2_5_VLConfig,
    Qwen2Config,
    Qwen3VLConfig,
    SmolVLMConfig,
)
from transformers.models.llava_onevision.processing_llava_onevision import LlavaOnevisionProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize
from transformers.models.qwen3_vl.video_processing_qwen3_vl import smart_resize as smart_resize_clip
from transformers.models.smolvlm.image_processing_pil_smolvlm import SmolVLMImageProcessorPil

from diagnostics.errors import DataError
from diagnostics.media import Kind, Media, of_frames
from diagnostics.vision.placeholders import LlavaOnevision, Qwen, SmolVLM, family_of

SIZES = [(30, 45), (64, 64), (448, 336), (200, 1200), (1000, 37), (700, 701)]


def seen(height: int, width: int, frames: int = 1, kind: Kind = "image") -> Media:
    return of_frames(np.zeros((frames, height, width, 3), np.uint8), kind=kind)


def test_a_text_model_has_no_family():
    assert family_of(Qwen2Config()) is None


@pytest.mark.parametrize("size", SIZES)
def test_qwen_resizes_images_and_clips_as_transformers_does(size):
    family = family_of(Qwen2_5_VLConfig())
    assert isinstance(family, Qwen)
    assert family.resized("image", 1, size) == smart_resize(*size, 28, 56 * 56, 28 * 28 * 1280)
    assert family.resized("video", 9, size) == smart_resize(*size, 28, 128 * 28 * 28, 28 * 28 * 768)
    family = family_of(Qwen3VLConfig())
    assert isinstance(family, Qwen)
    limits = (128 * 32 * 32, 32 * 32 * 768)
    assert family.resized("video", 9, size) == smart_resize_clip(9, *size, 2, 32, *limits)


def test_the_folders_processor_files_decide(tmp_path):
    config = Qwen2_5_VLConfig()
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 784, "max_pixels": 1568}))
    family = family_of(config, str(tmp_path))
    assert isinstance(family, Qwen)
    assert family.resized("image", 1, (100, 100)) == family.resized("video", 4, (100, 100)) == (28, 28)
    (tmp_path / "processor_config.json").write_text(
        json.dumps({"video_processor": {"size": {"shortest_edge": 784, "longest_edge": 3200}, "image_mean": [0, 0, 0]}})
    )
    family = family_of(config, str(tmp_path))
    assert isinstance(family, Qwen)
    assert family.resized("video", 4, (100, 100)) == (56, 56)
    assert family.norm("video")[0] == [0, 0, 0]


def test_qwen25_writes_one_run_for_a_clip_and_one_for_an_image():
    family = family_of(Qwen2_5_VLConfig())
    assert family is not None
    text = "a<|vision_start|><|video_pad|><|vision_end|>b<|vision_start|><|image_pad|><|vision_end|>c"
    found = family.expand(text, [seen(400, 400, 5, "video"), seen(56, 84)])
    # 400 becomes 392, 14 merged patches; 5 frames are 3 steps; 56 x 84 is 2 x 3 merged patches
    clip, image = "<|video_pad|>" * (3 * 14 * 14), "<|image_pad|>" * 6
    assert found == f"a<|vision_start|>{clip}<|vision_end|>b<|vision_start|>{image}<|vision_end|>c"


def test_qwen3_writes_the_time_before_every_step_of_a_clip():
    family = family_of(Qwen3VLConfig())
    assert family is not None
    found = family.expand("<|vision_start|><|video_pad|><|vision_end|>?", [seen(320, 320, 3, "video")])
    # 3 frames of 10 x 10 merged patches are 2 steps, at (0 + 1/2) / 2 s and, the last frame repeated, at 1 s
    step = "<|vision_start|>" + "<|video_pad|>" * 100 + "<|vision_end|>"
    assert found == f"<0.2 seconds>{step}<1.0 seconds>{step}?"


@pytest.mark.parametrize("size", [(384, 384), (500, 300), (100, 900), (2304, 2304), (1200, 1600)])
def test_llava_onevision_counts_tiles_as_transformers_does(size):
    config = LlavaOnevisionConfig()
    family = family_of(config)
    assert isinstance(family, LlavaOnevision)
    theirs = SimpleNamespace(
        image_processor=SimpleNamespace(image_grid_pinpoints=config.image_grid_pinpoints),
        num_image_tokens=27**2, vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    theirs._get_unpadded_features = lambda *a: LlavaOnevisionProcessor._get_unpadded_features(theirs, *a)
    wanted = LlavaOnevisionProcessor._get_number_of_features(theirs, *size, 384, 384)
    assert family.expand("<image>", [seen(*size)]) == "<image>" * wanted
    both = family.expand("<image> <image>", [seen(*size), seen(384, 384)])
    assert both.split() == ["<image>" * (27**2 + 1)] * 2  # images beside each other are not cut
    assert family.expand("<video>", [seen(*size, 3, "video")]) == "<video>" * (3 * 14 * 14 + 1)


def test_internvl_writes_frames_as_numbered_images_and_cuts_images():
    family = family_of(InternVLConfig())
    assert family is not None
    tile = "<IMG_CONTEXT>" * 256
    clip = family.expand("<video>\n?", [seen(30, 30, 2, "video")])
    assert clip == f"Frame1: <img>{tile}</img>\nFrame2: <img>{tile}</img>\n?"
    assert family.expand("<IMG_CONTEXT>", [seen(448, 448)]) == f"<img>{tile}</img>"
    assert family.expand("<IMG_CONTEXT>", [seen(448, 896)]) == f"<img>{tile * 3}</img>"


@pytest.mark.parametrize("size", [(364, 364), (300, 200), (100, 900), (800, 333)])
def test_smolvlm_counts_tiles_as_transformers_does(size):
    config = SmolVLMConfig(vision_config={"image_size": 364, "patch_size": 14}, scale_factor=2)
    family = family_of(config)
    assert isinstance(family, SmolVLM)
    theirs = SmolVLMImageProcessorPil(return_row_col_info=True)(seen(*size).frames()[0], return_tensors="np")
    rows, columns = theirs["rows"][0][0], theirs["cols"][0][0]
    assert family.tiles(size) == (rows, columns)
    found = family.expand("<image>", [seen(*size)])
    assert found.count("<image>") == theirs["pixel_values"].shape[1] * 13 * 13
    assert found.count("<row_") == rows * columns
    assert f"<row_{rows}_col_{columns}>" in found


def test_smolvlm_writes_times_and_the_number_of_frames_in_words():
    config = SmolVLMConfig(vision_config={"image_size": 32, "patch_size": 8}, scale_factor=2)
    family = family_of(config)
    assert family is not None
    found = family.expand("<video>?", [seen(8, 8, 72, "video")])
    assert found.startswith("You are provided the following series of seventy-two frames from a 0:01:12 [H:MM:SS]")
    tile = "<fake_token_around_image><global-img><image><image><image><image><fake_token_around_image>"
    assert f"\nFrame from 01:11:{tile}\n\n?" in found
    assert found.count(tile) == 72


@pytest.mark.parametrize("text", ["no tag", "<|image_pad|>", "<|video_pad|><|video_pad|>"])
def test_tags_that_do_not_fit_the_media_are_refused(text):
    family = family_of(Qwen2_5_VLConfig())
    assert family is not None
    with pytest.raises(DataError, match="its media are video"):
        family.expand(text, [seen(30, 30, 2, "video")])
