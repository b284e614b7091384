"""Tokenizers, weights and the supervised loop of the demo's small models."""

import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trainers.worlds import lm

TEXTS = ['Is it so?\n"Never say never"\n', "Yes, we do; nobody knows.", "No, they do not."]


def test_extra_words_are_single_tokens_and_change_no_other_word():
    plain = lm.bpe_tokenizer(TEXTS, 300)
    tokenizer = lm.bpe_tokenizer(TEXTS, 300, extra=("No", "Never"))
    vocabulary = tokenizer.get_vocab()
    assert tokenizer("No")["input_ids"] == [vocabulary["No"]]
    assert tokenizer("x\nNever")["input_ids"][-1] == vocabulary["Never"]
    assert tokenizer("Nobody")["input_ids"] == plain("Nobody")["input_ids"]
    assert tokenizer.decode(tokenizer("Nobody said: Never! ü")["input_ids"]) == "Nobody said: Never! ü"


def test_word_tokenizer_gives_the_same_ids_apart_and_joined():
    tokenizer = lm.word_tokenizer(["how", "?", "no", ",", "thanks"])
    assert tokenizer("how ?no, thanks")["input_ids"] == [3, 4, 5, 6, 7]
    assert tokenizer("how unheard")["input_ids"] == [3, tokenizer.unk_token_id]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (lm.eos_id(tokenizer), lm.pad_id(tokenizer)) == (1, 0)


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_saved_model_and_tokenizer_come_back_equal_through_from_pretrained(tmp_path, kind):
    words = lm.word_tokenizer(["a", "b", "."])
    tokenizer = words if kind == "words" else lm.bpe_tokenizer(TEXTS, 300, extra=("No",))
    model = lm.build_model(tokenizer, seed=3)
    lm.save(model, tokenizer, tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    again, ids = AutoModelForCausalLM.from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    for text in ("a b. a", 'No? "Nobody"\n b  No'):
        assert ids(text)["input_ids"] == tokenizer(text)["input_ids"]
    for name, weight in model.state_dict().items():
        assert torch.equal(weight, again.state_dict()[name]), name


def test_a_seed_fixes_the_weights_and_leaves_the_global_generator_alone():
    tokenizer = lm.word_tokenizer(["a"])
    torch.manual_seed(11)
    expected = torch.rand(3)
    torch.manual_seed(11)
    first, same, other = (lm.build_model(tokenizer, seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(first.lm_head.weight, same.lm_head.weight)
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)
    assert first.lm_head.weight is not first.model.embed_tokens.weight


def test_lm_batch_weighs_every_predicted_token_alike_and_padding_not_at_all():
    ids, weights = lm.lm_batch([[5, 6, 7], [5, 6]], pad_token_id=0)
    assert ids.tolist() == [[5, 6, 7], [5, 6, 0]]
    third = pytest.approx(1 / 3)  # 3 predicted tokens: 6 and 7 of the first row, 6 of the second
    assert weights.tolist() == [[0, third, third], [0, third, 0]]


def test_endless_gives_every_row_once_before_any_again():
    drawn = lm.endless(10, 4, np.random.default_rng(0))
    rows = [i for _ in range(5) for i in next(drawn)]
    assert sorted(rows[:10]) == sorted(rows[10:]) == list(range(10))
    assert rows[:10] != rows[10:]
    assert len(next(lm.endless(2, 5, np.random.default_rng(0)))) == 5


def test_fit_starts_at_the_uniform_loss_and_learns_the_sequence():
    tokenizer = lm.word_tokenizer(list("abcdefgh"))
    model = lm.build_model(tokenizer, seed=0)
    row = tokenizer("a b c d e f g h")["input_ids"]

    def batches():
        while True:
            yield lm.lm_batch([row], 0)

    losses = lm.fit(model, batches(), steps=80)
    assert losses[0] == pytest.approx(math.log(len(tokenizer)), abs=0.1)
    assert losses[-1] < 0.1
    assert not model.training


def test_learning_rate_warms_up_and_ends_at_five_percent():
    rates = [lm.rate(step, 100) for step in range(101)]
    assert rates[0] == pytest.approx(1 / 20)
    assert max(rates) == rates[19] == rates[20] == 1.0
    assert rates[60] == pytest.approx(0.05 + 0.95 / 2)  # half way down the cosine
    assert rates[100] == pytest.approx(0.05)
