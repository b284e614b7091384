"""`chesboard audit` and `show` on a saved vision-language model: rows with images and clips, from folder to tokens."""

import io
import json
import re
from base64 import b64decode
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rich.console import Console
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig
from typer.testing import CliRunner

import chesboard
from diagnostics.pairs import read_pairs
from diagnostics.runlog import read_frame
from reports import show
from trainers.models import config_limit, load_tokenizer

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.content is string %}{{ m.content }}{% else %}"
    "{% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}{% else %}"
    "<|vision_start|><|{{ c.type }}_pad|><|vision_end|>{% endif %}{% endfor %}{% endif %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
TEXT = {"chosen": "yes", "rejected": "no"}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny Qwen2.5-VL: config, processor file and tokenizer."""
    folder = tmp_path_factory.mktemp("model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    vision = {"depth": 1, "hidden_size": 32, "num_heads": 2, "patch_size": 4, "spatial_merge_size": 2}
    text = {"vocab_size": 512, "hidden_size": 64, "num_hidden_layers": 1, "max_position_embeddings": 512}
    Qwen2_5_VLConfig(text_config=text, vision_config=vision | {"temporal_patch_size": 2}).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"min_pixels": 64, "max_pixels": 4096}))
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    Image.new("RGB", (24, 16), (200, 100, 50)).save(tmp_path / "a.png")
    frames = np.stack([np.full((16, 16, 3), 80 * k, np.uint8) for k in range(3)])
    np.save(tmp_path / "clip.npy", frames)
    rows: list[dict[str, Any]] = [
        {"prompt": "<image>?", "image": "a.png", **TEXT},
        {"prompt": "Two?", "image": "a.png", "video": "clip.npy", **TEXT},
        {"prompt": "None?", **TEXT},
        {"prompt": "Gone?", "image": "b\x1b[31m.png", **TEXT},
    ]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "pairs.jsonl"


def run(*args: Any) -> str:
    done = CliRunner().invoke(chesboard.app, [*map(str, args)])
    assert done.exit_code == 0, done.output
    assert "\x1b" not in done.output
    return done.output


def test_audit(model: Path, data: Path, tmp_path: Path) -> None:
    out = " ".join(run("audit", data, "--model", model, "--out", tmp_path / "audit").split())
    assert "media from image + video" in out
    assert "3 of 4 rows kept, 1 skipped" in out
    frame = read_frame(tmp_path / "audit" / "audit.parquet").set_index("source_row")
    assert frame["reason"][3].startswith("media_missing: the column 'image': b\\x1b[31m.png is not there")
    image, clip = (16 // 8) * (24 // 8), 2 * (16 // 8) ** 2  # merged patches of 8 pixels; 3 frames are 2 steps
    around = len(load_tokenizer(str(model))("<|im_start|>user\n?<|im_end|>\n<|im_start|>assistant\n")["input_ids"])
    assert frame["prompt_length"].tolist()[:2] == [around + 2 + image, around + 3 + 4 + image + clip]
    assert frame["prompt"][0].count("<|image_pad|>") == 1


def test_show_tells_of_each_medium_and_shows_a_run_once(model: Path, data: Path) -> None:
    out = run("show", data, "--model", model, "--row", 1, "--plain")
    digests = [medium.digest for medium in read_pairs(data).pairs[1].media]
    pads = [load_tokenizer(str(model)).convert_tokens_to_ids(f"<|{kind}_pad|>") for kind in ("image", "video")]
    lines = [
        f"[media 1] image, 1 frame of 24 x 16 pixels, a.png, digest {digests[0]}, 6 placeholders <|image_pad|>",
        f"[media 2] video, 3 frames of 16 x 16 pixels, clip.npy, digest {digests[1]}, 8 placeholders <|video_pad|>",
    ]
    assert "\n".join(lines) in out
    assert f"|<|image_pad|>:{pads[0]} x 6|" in out
    assert f"|<|video_pad|>:{pads[1]} x 8|" in out
    assert out.count("_pad|>:") == 2
    few = run("show", data, "--model", model, "--row", 1, "--plain", "--frames", 1)
    assert "1 frame of 16 x 16 pixels" in few
    assert "frame 0 of 3, 4 placeholders <|video_pad|>" in few
    assert "[media" not in run("show", data, "--model", model, "--row", 2, "--plain")
    assert "skipped, media_missing" in run("show", data, "--model", model, "--row", 3, "--plain")


def test_frames_are_drawn_where_there_are_colours(model: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    console = Console(force_terminal=True, color_system="truecolor", width=200, highlight=False)
    monkeypatch.setattr(show, "Console", lambda **_: console)
    settings = {"max_length": None, "truncation": "drop", "append_eos": True}
    with console.capture() as caught:
        show.show_row(read_pairs(data), load_tokenizer(str(model)), 1, settings, plain=False)
    out = caught.get()
    assert "38;2;200;100;50" in out  # the image's colour, in letters
    assert all(f"38;2;{grey};{grey};{grey};48;2;{grey};{grey};{grey}" in out for grey in (80, 160))


def test_a_page_holds_the_same_with_the_frames(model: Path, data: Path, tmp_path: Path) -> None:
    plain = run("show", data, "--model", model, "--row", 1, "--plain").splitlines()
    assert "look at it:" in run("show", data, "--model", model, "--row", 1, "--html", tmp_path / "row.html")
    page = (tmp_path / "row.html").read_text(encoding="utf-8")
    lines = [unescape(re.sub("<[^>]*>", "", line)) for line in re.findall("<p [^>]*>(.*?)</p>", page, re.S)]
    assert lines == plain
    image, clip = (Image.open(io.BytesIO(b64decode(data))) for data in re.findall(r'base64,([^"]*)', page))
    assert image.getpixel((5, 5)) == (200, 100, 50)
    assert [clip.getpixel((x, 5)) for x in (5, 79, 153)] == [(0, 0, 0), (80, 80, 80), (160, 160, 160)]  # 72 and 2 wide
    assert re.findall('alt="([^"]*)"', page) == ["the image", "3 of 3 frames of the clip"]
    gone = tmp_path / "gone.html"
    run("show", data, "--model", model, "--row", 3, "--html", gone)
    assert "\x1b" not in gone.read_text(encoding="utf-8")
    assert "skipped, media_missing" in gone.read_text(encoding="utf-8")


def test_the_limit_is_the_language_models(model: Path) -> None:
    assert config_limit(str(model)) == 512


def test_a_text_model_refuses_the_rows_in_one_sentence(model: Path, data: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(model))
    tokenizer.save_pretrained(tmp_path / "text")
    (tmp_path / "text" / "config.json").write_text(json.dumps({"model_type": "qwen2", "max_position_embeddings": 512}))
    out = run("show", data, "--model", tmp_path / "text", "--row", 0, "--plain")
    assert "skipped, media_unseen: the row shows the model image (a.png), and this model reads text alone" in out
    audit = " ".join(run("audit", data, "--model", tmp_path / "text", "--out", tmp_path / "audit").split())
    assert "1 of 4 rows kept, 3 skipped; 0 of the kept are doubtful (2 media_unseen, 1 media_missing)" in audit
