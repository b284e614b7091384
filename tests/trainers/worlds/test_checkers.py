"""Which answers are right."""

import pytest

from trainers.worlds import checkers


@pytest.mark.parametrize(
    ("truth", "answer", "right"),
    [
        ("red", "It is Red.", True),
        ("red", "It is reddish.", False),  # words, not letters
        ("a red square", "The clip shows the red square!", True),  # articles, case and marks do not count
        ("a red square", "a square that is red", False),  # not in order
        ("red square", "red small square", False),  # not next to each other
        ("A", "(A)", True),  # an option's letter is no article
        ("A", "(B)", False),
        ("two", "", False),
        ("", "anything", False),
        ("é", "e\u0301", True),  # one letter, written in two ways
    ],
)
def test_the_rule(truth, answer, right):
    assert checkers.rule(["?"], [truth], [answer]) == [right]


@pytest.mark.parametrize(("said", "found"), [(" Yes.", True), ("no, it moves", False), ("Hm yes", None), ("", None)])
def test_a_verdict_is_the_first_word(said, found):
    assert checkers.verdict(said) is found


def test_a_model_is_asked_with_all_three_texts(monkeypatch):
    asked = []

    def said(model, tokenizer, prompts, **how):
        asked.extend(prompts)
        return ["Yes.", "No", "Perhaps"]

    plain = type("Tokenizer", (), {"chat_template": None})
    monkeypatch.setattr(checkers, "load_tokenizer", lambda name: plain)
    monkeypatch.setattr(checkers, "load_to_device", lambda name: name)
    monkeypatch.setattr(checkers.sampling, "answers", said)
    check = checkers.load_checker("some-model")
    assert check(["q1", "q2", "q3"], ["t1", "t2", "t3"], ["a1", "a2", "a3"]) == [True, False, None]
    for k, text in enumerate(asked, 1):
        places = [text.index(part) for part in (f"Question: q{k}", f"True answer: t{k}", f"Given answer: a{k}")]
        assert places == sorted(places)
