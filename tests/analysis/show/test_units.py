"""What a run's likelihoods are counted in: signs, shares and limits by hand, and words that fit."""

import dataclasses
import math
import re

import pandas as pd
import pytest

from analysis.show import units
from analysis.show.units import ERRORS, STEPS, TOKENS
from analysis.tables.displacement import OUTCOMES
from diagnostics.finding import Finding


def test_an_error_is_shown_and_its_likelihood_is_logged():
    # the error of .1 rose by .02: the likelihood -.1 fell to -.12
    assert ERRORS.told(-0.02, -0.1) == "+0.020 (+20 % of the start's 0.100)"
    assert ERRORS.told(0.05, -0.1) == "−0.050 (−50 % of the start's 0.100)"
    assert ERRORS.told(-0.02, math.nan) == "+0.020 (the start's was not measured)"
    assert TOKENS.told(-0.02, -20.0) == STEPS.told(-0.02, -20.0) == "−0.02 nats"
    found = ERRORS.finding(Finding("f", -0.02, 4, (-0.03, -0.01), None, None, "m"))
    assert (found.value, found.interval) == (0.02, (0.01, 0.03))
    assert TOKENS.finding(found) == found
    rows = pd.DataFrame(dict(chosen_change=[-0.02], rejected_change=[0.01], margin_change=[-0.03]))
    assert ERRORS.turned(rows).iloc[0].to_dict() == dict(chosen_change=0.02, rejected_change=-0.01, margin_change=-0.03)
    assert TOKENS.turned(rows) is rows


@pytest.mark.parametrize(
    ("unit", "change", "start", "broken"),
    [
        (ERRORS, -0.1, -0.1, True),  # doubled
        (ERRORS, -0.099, -0.1, False),
        (ERRORS, -0.5, -0.1, True),  # sixfold, by less than ln 2
        (ERRORS, -0.9, -1.0, False),  # by more than ln 2, and not doubled
        (ERRORS, -5.0, math.nan, False),
        (TOKENS, -math.log(2), -20.0, True),
        (TOKENS, -0.69, -20.0, False),
        (STEPS, -math.log(2), -3.0, True),
    ],
)
def test_a_break_is_a_doubled_error_or_a_halved_likelihood(unit, change, start, broken):
    assert unit.broken(change, start) is broken


def test_far_is_a_deviation_as_large_as_the_start_s_error_or_ten_nats():
    assert ERRORS.far(0.11, -0.1)
    assert not ERRORS.far(0.09, -0.1)
    assert TOKENS.far(10.5, -20.0)
    assert not TOKENS.far(9.5, -20.0)
    assert ERRORS.away(0.11, -0.1) == "0.110 per chosen sample, 110 % of the start's error"
    assert TOKENS.away(10.5, -20.0) == "10.50 nats per chosen answer"


def _words(unit: units.Unit) -> str:
    def texts(value):
        return [value] if isinstance(value, str) else [t for v in value for t in texts(v)]

    values = [v for v in vars(unit).values() if isinstance(v, str | tuple)]
    values += [tuple(v.values()) for v in vars(unit).values() if isinstance(v, dict)]
    return " | ".join(text for value in values for text in texts(value))


def test_a_denoiser_s_words_have_no_tokens_and_an_error_has_no_nats():
    assert not re.search(r"\b(nats?|tokens?|CHES|vocabulary|answers?|responses?|log-prob)\b", _words(ERRORS))
    assert not re.search(r"\b(tokens?|CHES|vocabulary|answers?)\b", _words(STEPS))
    assert "nats" in _words(STEPS)
    assert {ERRORS.outcome(name) for name in OUTCOMES} == {
        "separated", "both errors rose", "neither error rose", "inverted"
    }  # fmt: skip
    assert [TOKENS.outcome(name) for name in OUTCOMES] == list(OUTCOMES)


def test_every_kind_has_its_unit_and_a_log_that_names_none_is_of_tokens():
    from diagnostics.outcomes import MIN_EFFECTS

    assert units.KINDS.keys() == MIN_EFFECTS.keys()
    assert all(units.of_config({"likelihood": kind}) is unit for kind, unit in units.KINDS.items())
    assert units.of_config({}) is TOKENS
    assert {f.name for f in dataclasses.fields(ERRORS)} == vars(ERRORS).keys()
