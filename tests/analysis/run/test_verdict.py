"""The verdict's words: each has its precondition, and probe and held-out pairs are judged apart."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.run import verdict
from diagnostics.runlog import RunLog

NONE = pd.DataFrame()


def run(
    probe: list[float],
    heldout: list[float] | None = None,
    *,
    manifest: dict[str, Any] | None = None,
    rate: float = 1e-4,
    more: dict[str, float] | None = None,
) -> RunLog:
    """A log of two probes whose chosen answers changed by these nats (NaN: not measured); the rejected ones by -5."""
    rows = [
        dict(step=step, split=split, pair_id=f"{split}{i}", chosen_logps=-20 + moved * step, rejected_logps=-9 - step)
        for split, changes in (("probe", probe), ("eval", heldout or []))
        for i, moved in enumerate(changes)
        for step in (0, 1)
    ]
    pairs = pd.DataFrame(rows).assign(**(more or {}))
    steps = pd.DataFrame(dict(step=[0, 1], learning_rate=[math.nan, rate]))
    return RunLog(Path("run"), {}, manifest or {}, steps, pairs, NONE, NONE, NONE)


def say(*args: Any, **settings: Any) -> tuple[bool | None, str]:
    """passed, and the sentence, of such a log."""
    first = verdict.judge(run(*args, **settings))[0]
    return first.passed, first.meaning


FELL, ROSE, MIXED = [-1.0, -1.2] * 20, [1.0, 1.3] * 20, [-3.0, 3.1] * 20


@pytest.mark.parametrize(
    ("probe", "heldout", "passed", "words"),
    [
        (FELL, None, False, "displaced: 100 % of 40 probe pairs lost chosen likelihood"),
        (ROSE, None, True, "not displaced: 0 % of 40 probe pairs lost chosen likelihood"),
        (FELL, FELL, False, "displaced: 100 % of 40 probe pairs"),
        (ROSE, FELL, False, "displaced on held-out pairs, not displaced on probe pairs: 0 % of 40 probe pairs"),
        (FELL, ROSE, False, "displaced on probe pairs, not displaced on held-out pairs: 100 % of 40 probe pairs"),
        (ROSE, ROSE, True, "not displaced: 0 % of 40 probe pairs"),
        (ROSE, MIXED, None, "not displaced on probe pairs, not clear whether displaced on held-out pairs: 0 %"),
        (MIXED, None, None, "not clear whether displaced: 50 % of 40 probe pairs lost chosen likelihood"),
    ],
)
def test_probe_and_held_out_pairs_are_both_in_the_verdict(probe, heldout, passed, words):
    found, said = say(probe, heldout)
    assert found is passed
    assert said.startswith(words)
    assert ("held-out" in said) == (heldout is not None)
    assert not heldout or "40 held-out pairs lost chosen likelihood" in said


def test_held_out_numbers_have_findings_of_their_own():
    """57 % of 14 held-out pairs is not clear (33 % to 79 %), and not a green tick on 3 % of the probe pairs."""
    found = verdict.judge(run([-1.0] * 2 + [2.0, 2.5] * 31, [-2.0, -9.0] * 4 + [9.0, 4.0] * 3))
    share = verdict.by_name(found, "eval/displacement/frac")
    assert (share.n, round(share.value, 2)) == (14, 0.57)
    assert found[0].passed is None
    assert "57 % of 14 held-out pairs lost chosen likelihood (95 % interval 33 % to 79 %)" in found[0].meaning


@pytest.mark.parametrize("noise", [0.0, 1e-4])
def test_rounding_is_no_displacement(noise):
    """At learning rate 1e-9 every chosen answer is lower by 2e-5 to 5e-5 nats."""
    small = [-2e-5, -5e-5] * 9
    log = run(small, manifest={"parity": {"noise_floor": noise, "max_difference": 0.0}})
    log.pairs["rejected_logps"] = -9.0
    first = verdict.judge(log)[0]
    assert first.passed is None
    assert first.meaning == ("nothing moved measurably: no log-prob of 18 probe pairs changed by more than 0.01 nats")
    assert first.value == 0.0


def test_another_reference_is_said_first():
    """Nothing in the manifest says so: a reference that was named is not held to parity. It starts 3 nats away."""
    log = run([2.0] * 9)
    log.pairs["ref_chosen_logps"] = -17.0
    parity = verdict.by_name(verdict.judge(log), "parity")
    assert (parity.value, parity.n, parity.passed) == (3.0, 9, False)
    said = "differ by at most 3.00 nats at step 0: the reference is not the model that training began from"
    assert said in verdict.judge(log)[0].meaning
    log.pairs["ref_chosen_logps"] = -20.0 + 1e-5  # the same model, rounded
    assert verdict.by_name(verdict.judge(log), "parity").passed
    assert "step 0" not in verdict.judge(log)[0].meaning


def test_noise_above_the_changes_hides_them_and_is_named():
    log = run([-0.3] * 9, manifest={"parity": {"noise_floor": 0.5, "max_difference": 0.1}})
    log.pairs["rejected_logps"] = -9.0
    assert verdict.judge(log)[0].meaning.endswith("changed by more than 0.5 nats")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(rate=0.0), "no effect: no weight moved, for the learning rate was 0 throughout"),
        (dict(manifest={"weights_moved": {"share": 0.0, "n": 44192, "largest": 0.0}}), "no effect: no weight moved;"),
    ],
)
def test_a_run_in_which_no_weight_moved_had_no_effect(settings, words):
    passed, said = say(ROSE, **settings)
    assert passed is None
    assert said.startswith(words)
    assert "displaced:" not in said


def test_few_moved_weights_are_said():
    few = {"weights_moved": {"share": 28 / 44192, "n": 44192, "largest": 1e-3}}
    assert say(ROSE, manifest=few)[1].endswith("only 28 of 44,192 weights compared moved")
    most = {"weights_moved": {"share": 0.9, "n": 44192, "largest": 1e-3}}
    assert "weights" not in say(ROSE, manifest=most)[1]


def test_what_was_not_measured_is_named_and_has_no_unit():
    for finding in verdict.judge(run([math.nan] * 6)):
        assert "not measured nats" not in finding.meaning
        assert "not measured of" not in finding.meaning
        assert "no onset" not in finding.meaning


def test_kl_says_side_and_direction():
    log = run(FELL, more=dict(chosen_kl=2.0, rejected_kl=15.0))
    assert "KL(reference || policy) 2.00 nats per chosen response" in verdict.judge(log)[0].meaning
