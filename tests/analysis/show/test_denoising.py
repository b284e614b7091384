"""Sentences about denoisers keep their numbers."""

import pytest

from analysis.show.denoising import worded

ERRORS = {"likelihood": "denoising"}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("mean −0.01 nats", "mean −0.01"),
        ("no log-prob changed by more than 0.01 nats", "no likelihood changed by more than 0.01"),
        ("mean +0.01 nats on average", "mean +0.01 on average"),
        ("by more than 0.01 nats and more than the noise", "by more than 0.0001 of error and more than the noise"),
        ("more than 0.01 nats (a likelihood 1 % lower) and", "more than 0.0001 of error and"),
        ("KL(reference || policy) 4.8e−05 nats per chosen response", "deviation from the reference 4.8e−05 per chosen "
         "sample"),
        ("chosen +0.02 → +0.006 (−0.01), per token +0.02 → +0.006, KL 0.0015 → 0.0012.",
         "chosen +0.02 → +0.006 (−0.01), deviation 0.0015 → 0.0012."),
    ],
)  # fmt: skip
def test_only_the_unit_goes(text, wanted):
    assert worded(text, ERRORS) == wanted


def test_steps_have_nats_and_no_tokens_and_language_models_have_both():
    text = "+0.79 nats (+0.79 a token)"
    assert worded(text, {"likelihood": "steps"}) == "+0.79 nats"
    assert worded(text, {}) == worded(text, {"likelihood": "tokens"}) == text
