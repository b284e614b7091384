"""Probe rows: an answer is just its own text, in chats too."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from diagnostics.flag.probe_rows import read_probe


@pytest.mark.parametrize("prompt", ["q", [{"role": "user", "content": "q"}]])
def test_an_answer_may_be_the_start_of_one(tmp_path: Path, prompt: Any) -> None:
    """Neither EOS nor the end of a turn stands behind it, and its own last token counts as text."""
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(pre_tokenizers.ByteLevel.alphabet())}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<end>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")
    tokenizer.chat_template = "{% for m in messages %}{{ m.role + ':' + m.content + '<end>\n' }}{% endfor %}"
    file = tmp_path / "probe.jsonl"
    file.write_text(json.dumps({"prompt": prompt, "answer": "Sorry, I"}) + "\n", encoding="utf-8")
    (pair,) = read_probe(file, tokenizer, max_length=None, truncation="drop")
    assert list(pair.rows) == ["answer"]
    assert tokenizer.decode(list(pair.rows["answer"].completion_ids)) == "Sorry, I"
    assert not pair.rows["answer"].has_eos
