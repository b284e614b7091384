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
