"""`chesboard show`: the row's own tokens, parts that are told apart without colour, hostile text as text."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from diagnostics.errors import UserError
from diagnostics.pairs import read_pairs
from reports.show import pieces, show_row

SETTINGS = {"max_length": None, "truncation": "drop", "append_eos": True}
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<|im_start|>", "<|im_end|>", "</s>"])
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    fast.chat_template = CHATML
    return fast


def shown(path: Path, tokenizer: Any, capsys: Any, *rows: Any, row: int = 0, **settings: Any) -> str:
    file = path / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    show_row(read_pairs(file), tokenizer, row, SETTINGS | settings, plain=True)
    return capsys.readouterr().out


def text(prompt: str = "q", chosen: str = "yes", rejected: str = "no") -> dict[str, str]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected}


def chat(*chosen: dict[str, str]) -> dict[str, Any]:
    say = [{"role": "user", "content": "q"}]
    return {"prompt": say, "chosen": list(chosen), "rejected": [{"role": "assistant", "content": "no"}]}


def test_every_part_has_its_heading_and_every_token_its_id(tmp_path: Path, tokenizer: Any, capsys: Any) -> None:
    out = shown(tmp_path, tokenizer, capsys, text(), text("r"), row=1)
    assert "pairs.jsonl: line 2 (row 1 of 2)" in out
    y, e, s = tokenizer("yes")["input_ids"]
    assert f"[prompt] 1 tokens\nr:{tokenizer('r')['input_ids'][0]}\n" in out
    assert f"[chosen] 4 tokens, with its end\ny:{y}|e:{e}|s:{s}|[END </s>:{tokenizer.eos_token_id}]\n" in out
    assert "\x1b" not in out
    without = shown(tmp_path, tokenizer, capsys, text(), append_eos=False)
    assert f"[chosen] 3 tokens, without an end\ny:{y}|e:{e}|s:{s}\n" in without


def test_a_chat_says_what_was_left_out_and_what_is_doubtful(tmp_path: Path, tokenizer: Any, capsys: Any) -> None:
    turns = ({"role": "assistant", "content": "yes", "reasoning_content": "hm"}, {"role": "user", "content": "ok"})
    out = shown(tmp_path, tokenizer, capsys, chat(*turns))
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert f"|[END <|im_end|>:{end}]\n" in out
    assert "chosen: the turn of the user behind the answer is left out" in out
    assert "chosen[0].reasoning_content is not in the text that the chat template made: 'hm'" in out
    assert "which the chat template writes behind the end, is left out" in out
    for code in ("template_dropped", "turns_cut", "eos_differs", "text_after_end"):
        assert f"doubt, {code}: " in out


def test_rows_that_are_skipped_say_why(tmp_path: Path, tokenizer: Any, capsys: Any) -> None:
    rows = [text(), text(chosen="no"), {"prompt": "q", "chosen": 1, "rejected": "no"}, text(chosen=" ")]
    reasons = ["[chosen]", "skipped, identical_completions: ", "skipped, not_text: ", "skipped, empty_completion: "]
    for row, reason in enumerate(reasons):
        assert reason in shown(tmp_path, tokenizer, capsys, *rows, row=row)
    with pytest.raises(UserError, match=r"pairs\.jsonl: there is no row 4. Give --row 0 to 3"):
        shown(tmp_path, tokenizer, capsys, *rows, row=4)


def test_hostile_text_is_shown_as_text(tmp_path: Path, tokenizer: Any, capsys: Any) -> None:
    out = shown(tmp_path, tokenizer, capsys, text("\x1b[2J\r\u202e", "[red]yes[/red]", "[/]") | {"id": "\x1b]0;x\x07"})
    assert "\x1b" not in out
    assert "\r" not in out
    assert "\\x1b:" in out
    assert "\\u202e:" in out
    assert "pair_id \\x1b]0;x\\x07" in out
    letters = "|".join(f"{c}:{tokenizer(c)['input_ids'][0]}" for c in "[red]yes[/red]")
    assert letters in out


def test_tokens_that_share_a_character_stand_together(tokenizer: Any) -> None:
    ids = tokenizer("a日é!")["input_ids"]
    found = pieces(tokenizer, ids)
    assert [text for text, _ in found] == ["a", "日", "é", "!"]
    assert [i for _, own in found for i in own] == ids
    assert pieces(tokenizer, ids[:2]) == [("a", tuple(ids[:1])), ("�", tuple(ids[1:2]))]


def test_spaces_in_front_of_words_are_kept() -> None:
    words = ["<unk>", "</s>", "▁the", "▁sky", "s"]
    core = Tokenizer(models.Unigram([(word, -1.0) for word in words], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    core.decoder = decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")
    assert [text for text, _ in pieces(tokenizer, [2, 3, 4])] == ["the", " sky", "s"]
