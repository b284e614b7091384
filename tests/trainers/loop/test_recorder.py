"""What the recorder derives from pair rows: means over rows, outcomes by the signs of the log-ratios."""

import math
from types import SimpleNamespace

import pytest

from diagnostics.runlog import RunLogWriter
from trainers.loop.columns import ProbeRows, means, quadrant
from trainers.loop.recorder import Recorder
from trainers.loop.schedule import ProbeSchedule

NAN = math.nan


def row(chosen: float, rejected: float) -> dict[str, float]:
    """A probe row with these log-ratios."""
    common, margin = (chosen + rejected) / 2, chosen - rejected
    likelihoods = dict(chosen_logps=-4.0, rejected_logps=-6.0, chosen_length=2, rejected_length=3)
    ratios = dict(chosen_logratios=chosen, rejected_logratios=rejected, common_mode=common, logratio_margin=margin)
    return likelihoods | ratios


@pytest.mark.parametrize(
    ("chosen", "rejected", "name"),
    [
        (1.0, -1.0, "separated"),
        (0.0, -1.0, "separated"),
        (-1.0, -1.0, "both_fell"),
        (1.0, 1.0, "neither_fell"),
        (0.0, 0.0, "neither_fell"),
        (-1.0, 0.0, "inverted"),
        (-0.1, -1.0, "separated"),  # within the noise of 0.1
    ],
)
def test_a_pair_is_in_one_quadrant(chosen, rejected, name):
    found = quadrant(chosen, rejected, noise=0.1)
    assert {k for k, v in found.items() if v} == {name}
    assert sum(found.values()) == 1


def test_quadrant_shares_and_modes_are_means_over_rows():
    """One pair in each quadrant; the common modes are 0, -2, -1 and 1.5, the margins 2, 2, -2 and 1."""
    found = means([row(1.0, -1.0), row(-1.0, -3.0), row(-2.0, 0.0), row(2.0, 1.0)])
    assert found["quadrant/separated"] == 0.25
    assert found["quadrant/both_fell"] == 0.25
    assert found["quadrant/neither_fell"] == 0.25
    assert found["quadrant/inverted"] == 0.25
    assert found["common_mode"] == (0 - 2 - 1 + 1.5) / 4
    assert found["differential_mode"] == (2 + 2 - 2 + 1) / 4
    assert found["displacement/frac"] == found["quadrant/both_fell"] + found["quadrant/inverted"]


def test_without_a_reference_there_is_no_quadrant():
    found = means([row(NAN, NAN)])
    assert all(math.isnan(v) for k, v in found.items() if k.startswith("quadrant/") or k.endswith("_mode"))
    assert math.isnan(means([])["quadrant/separated"])


def test_push_ratio_counts_the_pairs_whose_rejected_answer_is_pushed_a_hundred_times_harder():
    """p(chosen) / p(rejected) = e^2, e^4.6 (99.5), e^4.7 (109.9) and e^12; a pair not measured counts nowhere."""
    gaps = (2.0, 4.6, 4.7, 12.0)
    rows = [row(0.0, 0.0) | dict(chosen_logps=-3.0, rejected_logps=-3.0 - gap) for gap in gaps]
    found = means([*rows, row(0.0, 0.0) | dict(chosen_logps=NAN)])
    assert found["push_ratio/log_mean"] == pytest.approx(sum(gaps) / 4)
    assert found["push_ratio/over_100"] == 0.5


def test_an_impossible_rejected_answer_is_over_100_and_leaves_the_mean_finite():
    found = means([row(0.0, 0.0), row(0.0, 0.0) | dict(rejected_logps=-math.inf)])
    assert (found["push_ratio/log_mean"], found["push_ratio/over_100"]) == (2.0, 0.5)
    assert math.isnan(means([])["push_ratio/over_100"])


@pytest.mark.parametrize(("noise", "same"), [(0.0, True), (1e-6, True), (1e-6, False), (NAN, False)])
def test_before_the_first_update_nothing_has_moved(tmp_path, noise, same):
    """Policy and reference are the same weights: what they differ by there is rounding, however the batch was run;
    but not where the reference is another model, or was found to be one (parity: warn)."""
    probe = SimpleNamespace(likelihood=SimpleNamespace(kind="tokens"))
    schedule = ProbeSchedule(RunLogWriter(tmp_path), probe, every=0, tokens="none", main=False, noise=noise)
    made = Recorder(schedule, before=lambda _: (noise, same))
    made.same = same
    for step, ratio in ((1, 1e-6), (1, -0.02), (2, 1e-6), (2, -0.02)):
        made._rows = [row(ratio, ratio) | dict(loss=0.69), row(NAN, NAN) | dict(loss=0.69)]
        found, still = made.flush(step, 0.0), step == 1 and same
        assert found["displacement/chosen"] == (0.0 if still else ratio)
        assert found["displacement/frac"] == float(not still and ratio < 0)
        assert found["quadrant/neither_fell"] == float(still or ratio > 0)


@pytest.mark.parametrize(("noise", "step", "share"), [(0.01, 0, 0.25), (NAN, 0, 0.75), (0.01, 1, 0.75)])
def test_before_the_first_update_a_margin_of_rounding_is_a_tie(tmp_path, noise, step, share):
    """A tie is no win, whichever way the last bits fell; after an update every margin above 0 is one, as in TRL, and so
    it is where the reference is another model, of which no noise is known."""
    rows = [row(ratio, 0.0) | dict(split="probe") for ratio in (1e-6, -1e-6, 0.015, 0.5)]
    probe = SimpleNamespace(likelihood=SimpleNamespace(kind="tokens"), measure=lambda *_, **__: ProbeRows(pairs=rows))
    schedule = ProbeSchedule(RunLogWriter(tmp_path), probe, every=1, tokens="none", main=False, noise=noise)
    found = schedule.at(None, step, 0.0)
    assert found["probe/rewards/accuracies"] == share
    assert found["probe/displacement/chosen"] == pytest.approx(0.515 / 4)
