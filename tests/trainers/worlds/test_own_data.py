"""The small model made from a user's own file."""

import numpy as np
import pytest

from diagnostics.errors import DataError
from diagnostics.pairs import PreferencePair
from diagnostics.sequences import Example, pair_of
from diagnostics.tokenized import tokenize_pairs
from trainers.models import load_model, load_tokenizer
from trainers.worlds import lm, own_data

WORDS = "the quick brown fox jumps over lazy dogs and sleeps under an old oak tree".split()


def text_pairs(n: int) -> list[PreferencePair]:
    rng = np.random.default_rng(0)

    def say(k: int) -> str:
        return " ".join(rng.choice(WORDS, k))

    return [
        PreferencePair(str(i), i, f"\n\nHuman: {say(5)}\n\nAssistant:", " " + say(8), " " + say(4)) for i in range(n)
    ]


def chat_pairs(n: int) -> list[PreferencePair]:
    def message(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    return [
        PreferencePair(
            str(i),
            i,
            [message("system", "be brief"), message("user", f"what is {i}?")],
            [message("assistant", f"it is {i}, of course")],
            [message("assistant", "no idea")],
        )
        for i in range(n)
    ]


@pytest.mark.parametrize("make", [text_pairs, chat_pairs])
def test_any_data_gives_a_model_that_tokenizes_every_pair(tmp_path, make):
    pairs = make(6)
    folder, losses = own_data.build(tmp_path / "model", pairs, 0, steps=15)
    tokenizer = load_tokenizer(str(folder))
    done = tokenize_pairs(
        pairs, tokenizer, max_length=load_model(str(folder)).config.max_position_embeddings, truncation="drop"
    )
    assert all(isinstance(p, Example) and p.chosen.has_eos and not p.doubts for p in done)
    assert all(p.chosen.completion_ids.count(tokenizer.eos_token_id) == 1 for p in done if isinstance(p, Example))
    assert losses[-1] < 0.9 * losses[0]
    assert len(losses) == 15


def test_chat_prompts_end_where_the_answer_begins():
    tokenizer = lm.bpe_tokenizer(["a"], 300)
    tokenizer.chat_template = own_data.CHAT_TEMPLATE
    (pair,) = tokenize_pairs(chat_pairs(1), tokenizer, max_length=None, truncation="drop")
    assert isinstance(pair, Example)
    assert tokenizer.decode(pair.prompt_ids) == "\n\nSystem: be brief\n\nUser: what is 0?\n\nAssistant:"
    assert tokenizer.decode(pair.chosen.completion_ids) == " it is 0, of course" + lm.EOS


def test_the_limit_is_the_longest_pair_so_that_none_is_dropped(tmp_path):
    long = PreferencePair("long", 0, "z" * 700, " q", " w")
    folder, _ = own_data.build(tmp_path / "model", [long, *text_pairs(2)], 0, steps=1)
    (done,) = tokenize_pairs([long], load_tokenizer(str(folder)), max_length=None, truncation="drop")
    assert isinstance(done, Example)
    assert load_model(str(folder)).config.max_position_embeddings == max(256, len(done.prompt_ids) + 2)


def test_training_rows_keep_the_prompts_end_and_the_completions_start():
    pair = pair_of("p", 0, tuple(range(1000, 1100)), tuple(range(60)), (7, 1))
    chosen, rejected = own_data.training_rows([pair])
    assert chosen == [*range(1052, 1100), *range(48)]
    assert rejected == [*range(1052, 1100), 7, 1]


def test_a_seed_fixes_the_model(tmp_path):
    runs = [own_data.build(tmp_path / str(k), text_pairs(5), seed, steps=3) for k, seed in enumerate((0, 0, 1))]
    assert runs[0][1] == runs[1][1] != runs[2][1]
    files = [(path / "model.safetensors").read_bytes() for path, _ in runs]
    assert files[0] == files[1] != files[2]


def test_data_without_one_usable_pair_is_refused(tmp_path):
    with pytest.raises(DataError, match="no pair of this data can be used"):
        own_data.build(tmp_path, [PreferencePair("a", 0, "p", "", "")], 0)
