"""Tokens of an answer as text: joined they are the answer, in whole characters, with no space that is not there."""

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from diagnostics.token_text import token_text, token_texts

TEXTS = [
    "Sure, I can help.",
    "مرحبا بالعالم",
    "日本語です。",
    "👩‍👩‍👧 yes 🇩🇪",
    "def f(x):\n    return x\t# ü",
    "  two  spaces ",
    "",
]


@pytest.fixture(scope="module")
def byte_level() -> PreTrainedTokenizerFast:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(["sure i can help yes no"], trainers.BpeTrainer(vocab_size=280, initial_alphabet=alphabet))
    return PreTrainedTokenizerFast(tokenizer_object=made)


@pytest.mark.parametrize("text", TEXTS)
def test_joined_they_are_the_answer(byte_level: PreTrainedTokenizerFast, text: str) -> None:
    pieces = token_texts(byte_level, byte_level(text)["input_ids"])
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_of_several_tokens_stands_whole_at_its_first(byte_level: PreTrainedTokenizerFast) -> None:
    ids = byte_level("日x")["input_ids"]
    assert token_texts(byte_level, ids) == ["日", "", "", "x"]


def test_half_a_character_stands_for_itself(byte_level: PreTrainedTokenizerFast) -> None:
    ids = byte_level("日")["input_ids"][:2]
    assert token_texts(byte_level, ids) == [token_text(byte_level, i) for i in ids]


def test_words_that_a_tokenizer_joins_with_spaces_keep_them() -> None:
    made = Tokenizer(models.WordLevel({"we": 0, "refuse": 1, ".": 2}, unk_token="."))
    words = PreTrainedTokenizerFast(tokenizer_object=made)
    assert "".join(token_texts(words, [0, 1, 2])) == words.decode([0, 1, 2])
    assert token_texts(words, [0, 1])[1] == " refuse"
