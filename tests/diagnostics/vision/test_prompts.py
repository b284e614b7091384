"""Rows with media as tokens: chat templates with and without parts, text prompts, cuts, and what is refused."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlavaOnevisionConfig, PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen3VLConfig

from diagnostics.audit import audit_pairs
from diagnostics.codes import MEANINGS
from diagnostics.fingerprint import rendered_hash
from diagnostics.media import Media, of_frames
from diagnostics.pair_file import read_pairs_file, write_pairs
from diagnostics.pairs import PairTable, PreferencePair, read_pairs
from diagnostics.sequences import Example
from diagnostics.templates import RenderedPair
from diagnostics.tokenized import SkippedPair, render_pair, tokenize_pair
from diagnostics.vision.placeholders import family_of
from trainers.loop.given import cleaned, gather

CONTENTS = (
    "{% if m.content is string %}{{ m.content }}{% else %}{% for c in m.content %}"
    "{% if c.type == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif c.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ c.text }}{% endif %}"
    "{% endfor %}{% endif %}"
)
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n" + CONTENTS + "<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TEXT_ONLY = CHATML.replace(CONTENTS, "{{ m.content }}")
IGNORES = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", "")
PARTS_ONLY = CHATML.replace("{% if m.content is string %}{{ m.content }}{% else %}", "").replace(
    "{% endfor %}{% endif %}<|im_end|>", "{% endfor %}<|im_end|>"
)
SPECIAL = ["<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
SPECIAL += ["<image>", "<video>"]
QUESTION = {"prompt": "Sky?", "chosen": "Blue.", "rejected": "Red."}
HEAD = "<|im_start|>user\n"
ASKED = "Sky?<|im_end|>\n<|im_start|>assistant\n"


def build(template: str | None, config: Any = None) -> Any:
    """One token a byte, with Qwen2.5-VL's family unless another config is given."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(SPECIAL)
    fast: Any = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.chat_template, fast.family = template, family_of(config or Qwen2_5_VLConfig())
    return fast


QWEN = build(CHATML)


def pads(count: int, kind: str = "image") -> str:
    return f"<|vision_start|>{f'<|{kind}_pad|>' * count}<|vision_end|>"


def read(folder: Path, *rows: dict[str, Any]) -> PairTable:
    """Rows that may name a.png (2 x 3 merged patches of 28 pixels) and c (5 frames of 28 x 28 pixels)."""
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 84, 3), np.uint8)).save(folder / "a.png")
    Image.new("RGB", (56, 56), (3, 2, 1)).save(folder / "b.png")
    (folder / "c").mkdir(exist_ok=True)
    for k in range(5):
        Image.new("RGB", (448, 448), (k, 2, 1)).save(folder / "c" / f"{k}.png")
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_pairs(folder / "pairs.jsonl")


def prompt_of(folder: Path, tokenizer: Any = QWEN, **row: Any) -> str:
    """The prompt that is tokenized, as text."""
    pair = read(folder, QUESTION | row).pairs[0]
    done = tokenize_pair(pair, tokenizer, max_length=None, truncation="drop")
    assert isinstance(done, Example), done
    assert done.chosen.media == done.rejected.media == pair.media
    assert tokenizer.decode(list(done.chosen.completion_ids)) in ("Blue.<|im_end|>", "Blue.")
    return tokenizer.decode(list(done.prompt_ids))


def skipped(folder: Path, tokenizer: Any = QWEN, **row: Any) -> SkippedPair:
    done = tokenize_pair(read(folder, QUESTION | row).pairs[0], tokenizer, max_length=None, truncation="drop")
    assert isinstance(done, SkippedPair)
    assert done.code in MEANINGS
    return done


CLIP = 3 * 16 * 16  # 5 frames are 3 steps of 448 / 28 = 16 patches a side


@pytest.mark.parametrize("template", [CHATML, PARTS_ONLY])
def test_a_template_of_parts_writes_the_placeholders(tmp_path: Path, template: str) -> None:
    fast = build(template)
    assert prompt_of(tmp_path, fast, image="a.png") == HEAD + pads(6) + ASKED
    assert prompt_of(tmp_path, fast, video="c") == HEAD + pads(CLIP, "video") + ASKED
    both = prompt_of(tmp_path, fast, prompt="<video>A<image>Sky?", image="a.png", video="c")
    assert both == HEAD + pads(CLIP, "video") + "A" + pads(6) + ASKED
    later = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Sky?"}]},
    ]
    chat = {"prompt": later, **{s: [{"role": "assistant", "content": QUESTION[s]}] for s in ("chosen", "rejected")}}
    found = prompt_of(tmp_path, fast, **chat, images=["a.png"])
    assert found.startswith("<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nFirst?<|im_end|>\n")
    assert found.endswith(HEAD + pads(6) + ASKED)


def test_a_template_of_texts_gets_the_familys_placeholders_in_them(tmp_path: Path) -> None:
    fast = build(TEXT_ONLY)
    assert prompt_of(tmp_path, fast, images=["a.png", "b.png"]) == f"{HEAD}{'<|image_pad|>' * (6 + 4)}{ASKED}"


def test_without_a_template_the_prompt_stays_text(tmp_path: Path) -> None:
    fast = build(None)
    assert prompt_of(tmp_path, fast, image="a.png") == "<|image_pad|>" * 6 + "Sky?"
    assert prompt_of(tmp_path, fast, prompt="A <image>?", image="a.png") == f"A {'<|image_pad|>' * 6}?"
    own = f"{pads(1)}Sky?"  # a text prompt that holds the model's own placeholders stays text with a template too
    for tokenizer in (fast, QWEN):
        assert prompt_of(tmp_path, tokenizer, prompt=own, image="a.png") == f"{pads(6)}Sky?"


def test_llavas_own_tag_is_a_tag_like_any_other(tmp_path: Path) -> None:
    template = CHATML.replace("<|vision_start|><|image_pad|><|vision_end|>", "<image>")
    template = template.replace("<|vision_start|><|video_pad|><|vision_end|>", "<video>")
    fast = build(template, LlavaOnevisionConfig())
    found = prompt_of(tmp_path, fast, prompt="<image>Sky?", video="c")  # RRPO writes <image> for a video
    table = read(tmp_path, QUESTION | {"prompt": "<image>Sky?", "video": "c"})
    for tokenizer in (fast, QWEN):
        assert "special_tokens" not in audit_pairs(table, tokenizer, max_length=None, truncation="drop").counts
    assert found == f"{HEAD}{'<video>' * (5 * 14 * 14 + 1)}{ASKED}"  # 384 / 14 = 27 patches a side, pooled by two


def test_text_only_rows_are_as_without_a_family(tmp_path: Path) -> None:
    plain, blind = build(CHATML), build(CHATML)
    blind.family = None
    chat = {"prompt": [{"role": "user", "content": "Sky?"}]}
    chat |= {s: [{"role": "assistant", "content": QUESTION[s]}] for s in ("chosen", "rejected")}
    for row in (QUESTION, chat):
        pair = read(tmp_path, row).pairs[0]
        found = [tokenize_pair(pair, t, max_length=None, truncation="drop") for t in (plain, blind)]
        assert found[0] == found[1]
        assert isinstance(found[0], Example)
        assert found[0].chosen.media is None


def test_a_text_model_refuses_rows_with_media(tmp_path: Path) -> None:
    blind = build(CHATML)
    blind.family = None
    done = skipped(tmp_path, blind, image="a.png")
    assert (done.code, "image (a.png)" in done.reason, "text alone" in done.reason) == ("media_unseen", True, True)


def test_a_wrong_number_of_placeholders_refuses_the_row(tmp_path: Path) -> None:
    assert skipped(tmp_path, build(IGNORES), image="a.png").code == "placeholders"
    assert skipped(tmp_path, image="a.png", prompt=f"{pads(2)}?").code == "placeholders"
    assert skipped(tmp_path, prompt="<|image_pad|>?").code == "placeholders"
    assert skipped(tmp_path, image="a.png", chosen="<|image_pad|>").code == "placeholders"
    assert "chosen holds '<|image_pad|>'" in skipped(tmp_path, chosen="<|image_pad|>").reason


def test_media_gone_before_the_prompt_was_made(tmp_path: Path) -> None:
    pair = read(tmp_path, QUESTION | {"image": "a.png"}).pairs[0]
    gone = Media("image", "0" * 16, load=pair.media[0].load)  # of a size that is not known
    (tmp_path / "a.png").unlink()
    done = render_pair(PreferencePair("p", 0, "Sky?", "Blue.", "Red.", media=(gone,)), QWEN)
    assert isinstance(done, SkippedPair)
    assert done.code == "media_unreadable"


def test_an_image_without_a_size_in_its_header_is_counted_by_its_frames(tmp_path: Path) -> None:
    seen = of_frames(np.zeros((56, 84, 3), np.uint8), kind="image")
    pair = PreferencePair("p", 0, "Sky?", "Blue.", "Red.", media=(seen,))
    done = render_pair(pair, QWEN)
    assert isinstance(done, RenderedPair)
    assert (done.prompt, done.expanded) == ("<|image_pad|>Sky?", "<|image_pad|>" * 6 + "Sky?")


def test_a_cut_spares_the_placeholders(tmp_path: Path) -> None:
    pair = read(tmp_path, QUESTION | {"prompt": "A long way to it <image>Sky?", "image": "a.png"}).pairs[0]
    whole = tokenize_pair(pair, QWEN, max_length=None, truncation="drop")
    assert isinstance(whole, Example)
    kept = QWEN(pads(6) + ASKED)["input_ids"]
    room = len(kept) + len(whole.chosen.completion_ids)
    assert len(whole.chosen) > room
    for more in range(3):
        cut = tokenize_pair(pair, QWEN, max_length=room + more, truncation="keep_end")
        assert isinstance(cut, Example)
        assert list(cut.prompt_ids) == list(whole.prompt_ids)[-len(kept) - more :]
        assert cut.doubts == (*whole.doubts, "prompt_truncated")
    for less in range(1, 9):  # into <|vision_start|> and all six placeholders
        skip = tokenize_pair(pair, QWEN, max_length=room - less, truncation="keep_end")
        assert isinstance(skip, SkippedPair)
        assert skip.code == "media_cut"


def test_a_cut_spares_times_that_stand_before_the_placeholders(tmp_path: Path) -> None:
    fast = build(CHATML, Qwen3VLConfig())
    pair = read(tmp_path, QUESTION | {"prompt": "A way <video>Sky?", "video": "c"}).pairs[0]
    whole = tokenize_pair(pair, fast, max_length=None, truncation="drop")
    assert isinstance(whole, Example)
    text = fast.decode(list(whole.prompt_ids))
    kept = fast(text[text.index("<0.") :])["input_ids"]
    room = len(kept) + len(whole.chosen.completion_ids)
    cut = tokenize_pair(pair, fast, max_length=room, truncation="keep_end")
    assert isinstance(cut, Example)
    assert list(cut.prompt_ids) == kept
    skip = tokenize_pair(pair, fast, max_length=room - 1, truncation="keep_end")
    assert isinstance(skip, SkippedPair)
    assert skip.code == "media_cut"


def test_the_audit_names_each(tmp_path: Path) -> None:
    rows = [
        QUESTION | {"image": "a.png"},
        QUESTION | {"image": "a.png"},
        QUESTION | {"image": "b.png"},
        QUESTION,
        QUESTION | {"image": "9.png"},
        QUESTION | {"image": "pairs.jsonl"},
        QUESTION | {"image": "a.png", "prompt": "<image><image>"},
        QUESTION | {"video": "c", "prompt": "Sky? " * 30},
    ]
    table = read(tmp_path, *rows)
    found = audit_pairs(table, QWEN, max_length=300, truncation="keep_end")
    assert found.counts.pop("text_after_end") == 3
    assert found.counts == {
        "duplicate": 1,
        "media_missing": 1,
        "media_unreadable": 1,
        "placeholders": 1,
        "media_cut": 1,
    }
    assert found.frame.set_index("source_row")["doubts"].to_dict()[1].endswith("duplicate")
    assert found.frame.set_index("source_row")["prompt"].to_dict()[0] == HEAD + pads(1) + ASKED  # not hundreds of them
    assert [e.source_row for e in found.tokenized] == [0, 1, 2, 3]
    assert [e.chosen.media for e in found.tokenized] == [p.media or None for p in table.pairs[:4]]


def test_examples_with_media_go_through_a_file(tmp_path: Path) -> None:
    rows = [QUESTION | {"image": "a.png"}, QUESTION, QUESTION | {"video": "c"}]
    rows += [QUESTION | {"image": [[[5, 6, 7], [8, 9, 10]]]}]
    found = audit_pairs(read(tmp_path, *rows), QWEN, max_length=None, truncation="drop").tokenized
    write_pairs(tmp_path / "pairs.arrow", found)
    again = read_pairs_file(tmp_path / "pairs.arrow")
    assert again == found
    for one, other in zip(found, again, strict=True):
        for before, after in zip(one.chosen.media or (), other.rejected.media or (), strict=True):
            assert (before.frames() == after.frames()).all()
            assert (before.source, before.shape()) == (after.source, after.shape())
    made = Example(
        "a", 0, {"answer": found[0].chosen.__class__((1,), (2,), media=(of_frames(np.ones((2, 3, 3, 3), np.uint8)),))}
    )
    write_pairs(tmp_path / "made.arrow", [made])
    assert read_pairs_file(tmp_path / "made.arrow")[0].rows["answer"].media[0].frames().sum() == 2 * 3 * 3 * 3


def test_the_hash_of_what_a_model_is_shown_holds_the_pixels(tmp_path: Path) -> None:
    def hashed(pixels: int) -> str:
        media = (of_frames(np.full((56, 56, 3), pixels, np.uint8), kind="image"),)
        done = tokenize_pair(
            PreferencePair("p", 0, "?", "a", "b", media=media), QWEN, max_length=None, truncation="drop"
        )
        assert isinstance(done, Example)
        return rendered_hash([done])

    assert hashed(1) == hashed(1) != hashed(2)


def test_rrpos_phrases_stand_in_the_plain_answers(tmp_path: Path) -> None:
    row = {"question": "<image>\nWhat?", "answer": "A cat runs fast.", "pred": "A dog runs fast.", "video": "c"}
    row |= {"answer_masked": "A <MASK> cat </MASK> runs fast.", "pred_masked": "A <MASK>dog </MASK>runs  fast."}
    other = row | {"answer_masked": "Something <MASK> else </MASK>."}
    table, spans = cleaned(read(tmp_path, row, other), "rrpo")
    assert (table.pairs[0].chosen, table.pairs[0].rejected) == ("A cat runs fast.", "A dog runs fast.")
    kept = audit_pairs(table, QWEN, max_length=None, truncation="drop").tokenized
    given = gather(
        table, kept, spans, QWEN, "rrpo", phrase_source="auto",
        settings={"max_length": None, "truncation": "drop", "append_eos": True},
    )  # fmt: skip
    for side, word in enumerate(("cat", "dog")):
        ids = (kept[0].chosen, kept[0].rejected)[side].completion_ids
        marked = [token for token, number in zip(ids, given.phrases[kept[0].pair_id][side], strict=True) if number]
        assert QWEN.decode(marked).strip() == word
    assert not any(given.phrases[kept[1].pair_id][0])  # the tagged text says something else
    assert any(given.phrases[kept[1].pair_id][1])
