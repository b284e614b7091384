"""Rules of claims: who must obey, how surely, and what is left of many verdicts."""

import math

import numpy as np
import pytest
from scipy import stats

from analysis.tables.rules import KINDS, bound, judged, survivors, words

ABOVE, MOST = {"above": 0}, {"at_most": 1}


def of(values, rule, kind="mean", **more):
    return judged(np.array(values, dtype=float), rule, kind, **more)


def test_one_counterexample_refutes_a_claim_of_every_seed():
    # the mean of these lies far below 1, and its interval reaches over 1: by a mean nothing could be said
    values = [0.2, 0.3, 0.2, 0.3, 1.1]
    assert of(values, MOST).holds is True
    found = of(values, MOST, "every")
    assert (found.holds, found.value, found.interval) == (False, 1.1, None)
    assert found.note == "broken in 1 of 5 seeds; shown: the worst"


@pytest.mark.parametrize(("n", "says"), [(1, "95 %"), (2, "78 %"), (5, "45 %"), (10, "26 %")])
def test_a_claim_of_every_seed_holds_of_so_many_and_says_what_that_is_worth(n, says):
    # 1 - .05^(1/5) = .451: were more than that share of all seeds to break it, five of five would obey in under 5 %
    found = of([0.5] * n, MOST, "every")
    assert found.holds is True
    assert f"obeyed in {n} of {n} seeds" in found.note
    assert f"up to {says} of all seeds may still break it" in found.note
    assert (1 - bound(n)) ** n == pytest.approx(0.05)
    assert math.isnan(found.p)  # no mean is judged, so it takes no part in the false-discovery rate


@pytest.mark.parametrize(
    ("rule", "worst", "best"),
    [({"above": 0}, 1, 3), ({"at_most": 9}, 3, 1), ({"between": [0, 3.5]}, 3, 2), ({"below": 9}, 3, 1)],
)
def test_what_is_shown_is_the_value_that_decides(rule, worst, best):
    assert of([1, 2, 3], rule, "every").value == worst
    assert of([1, 2, 3], rule, "some").value == best


def test_a_claim_of_some_seed_is_shown_by_one_and_refuted_by_none():
    found = of([0, 0, 1 / 3, 0], ABOVE, "some")
    assert (found.holds, found.value) == (True, 1 / 3)
    assert found.note.startswith("seen in 1 of 4 seeds")
    found = of([0] * 10, ABOVE, "some")
    assert found.holds is None
    assert "seen in none of 10 seeds" in found.note
    assert "up to 26 %" in found.note


@pytest.mark.parametrize(("n", "holds"), [(2, None), (5, None), (6, True), (10, True)])
def test_equal_seeds_are_no_evidence_by_their_width(n, holds):
    # sign test, both sides: 2 * .5^5 = .0625, 2 * .5^6 = .03125
    found = of([0.7] * n, ABOVE)
    assert (found.holds, found.interval, found.p) == (holds, None, 2 * 0.5**n)
    assert "judged by their number" in found.note
    assert of([-0.7] * n, ABOVE).holds is (None if holds is None else False)
    assert of([0.7 * (1 + 1e-15 * k) for k in range(n)], ABOVE).holds is holds  # rounding is no width
    assert of([1.5] * n, {"above": 1}, geometric=True).holds is holds


def test_worked_t_interval_and_its_p():
    # 1, 2, 3: mean 2, SD 1, t(2) = 4.303, half width 2.484; against 0: t = 2 * sqrt 3 = 3.464, p = .0742
    found = of([1, 2, 3], ABOVE)
    assert found.interval == pytest.approx((2 - 2.4842, 2 + 2.4842), abs=1e-3)
    assert found.p == pytest.approx(0.0742, abs=1e-4)
    assert found.holds is None
    assert of([1], ABOVE).holds is None
    assert of([], ABOVE).holds is None


def test_ratios_are_judged_by_their_logarithms():
    # 2 and 8: geometric mean 4, logs ln 4 -+ ln 2; t(1) = 12.706, half width 12.706 * ln 2
    found = of([2, 8], {"above": 1}, geometric=True)
    assert found.value == pytest.approx(4)
    assert math.log(found.interval[1] / 4) == pytest.approx(12.706 * math.log(2), rel=1e-4)
    # distance ln 4 over ln 2: t = 2 with one degree of freedom
    assert found.p == pytest.approx(2 * stats.t.sf(2, 1))


@pytest.mark.parametrize("rule", [{"above": 0}, {"at_most": 0.3}, {"between": [-0.5, 0.5]}])
def test_a_verdict_is_what_p_says(rule):
    rng = np.random.default_rng(0)
    seen = set()
    for _ in range(300):
        values = rng.normal(rng.normal(), 0.5, size=rng.integers(2, 9))
        found = judged(values, rule)
        assert (found.holds is not None) == (found.p <= 0.05)
        seen.add(found.holds)
    assert seen == {True, False, None}


def test_the_p_of_an_interval_from_elsewhere():
    # .6 to .8 around .7 against .5: distance .2, standard error .1 / 1.96, z = 3.92
    found = of([0.7], {"above": 0.5}, interval=(0.6, 0.8))
    assert found.holds is True
    assert found.p == pytest.approx(2 * stats.norm.sf(3.92), rel=1e-3)
    assert math.isnan(of([1], {"above": 0.5}, interval=(math.nan, math.nan)).p)
    # all of ten runs, by Wilson at least .722: .8 lies within, .7 does not, whatever the middle of the interval is
    for border, holds in ((0.8, None), (0.7, True)):
        found = of([1.0], {"at_least": border}, interval=(0.722, 1.0))
        assert found.holds is holds
        assert (found.p <= 0.05) == (holds is not None)


def test_worked_false_discovery_rate():
    # Benjamini and Hochberg 1995, section 3.2: fifteen p; .05 k / 15 is .0133 at k = 4, where p = .0095; p_5 = .0201
    ps = [1e-4, 4e-4, .0019, .0095, .0201, .0278, .0298, .0344, .0459, .324, .426, .572, .653, .759, 1]  # fmt: skip
    assert survivors(ps).sum() == 4
    assert survivors([*ps, math.nan, math.nan]).tolist()[-2:] == [False, False]
    assert survivors([*ps, math.nan]).sum() == 4
    assert survivors([]).tolist() == []


def test_rules_in_words():
    assert words({"at_most": -0.9}, "every") == "in every seed at most −0.9"
    assert words({"above": 0}, "some") == "in some seed above 0"
    assert words({"between": [-0.1, 0.1]}) == "−0.1 to 0.1"
    assert {words(ABOVE, kind) for kind in KINDS} == {"above 0", "in every seed above 0", "in some seed above 0"}
