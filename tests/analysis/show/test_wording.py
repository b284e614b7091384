import math

import pytest
from matplotlib.cbook import is_math_text

from analysis.show import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [(math.nan, "not measured"), (-4.25, "−4.25"), (0.0, "0.00"), (2e-6, "2e−06"), (math.inf, "infinite")],
)
def test_numbers(value, text):
    assert wording.number(value) == text


def test_changes_show_their_sign():
    assert [wording.signed(v) for v in (1.5, -1.5, 0.0)] == ["+1.50", "−1.50", "0.00"]


def test_tokens_are_visible_whatever_they_hold():
    assert wording.visible(" a\n\x00\u202e") == "' a⏎\\u0000\\u202e'"


def test_plot_text_is_never_mathtext():
    safe = wording.for_plot("costs $x$ and $\\frac{")
    assert not is_math_text(safe)
    assert "\\$x\\$" in safe


def test_clipping_says_what_was_left_out():
    assert wording.clip("abcdef", 4) == "abcd… (2 more characters)"
    assert wording.clip("abcd", 4) == "abcd"


def test_spans_without_rows_say_so():
    assert wording.span((math.nan, math.nan)) == "no interval"
    assert wording.span((0.5, 0.74), wording.percent) == "50 % to 74 %"
