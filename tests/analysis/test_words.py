"""No sentence contradicts its own numbers, whatever the table: every word has its precondition."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.compare import verdict as board_verdict
from analysis.run import figures, readings, verdict
from analysis.scorecard import trust
from analysis.show.units import TOKENS
from analysis.tables import displacement, entanglement, mass, runs
from analysis.tables.curves import Change, frontier
from analysis.tables.first_difference import Profile
from analysis.tables.intervals import NOTHING, mean, mean_interval, share_interval
from diagnostics.runlog import RunLog

MANY = settings(max_examples=150, deadline=None)
NUMBER = st.one_of(
    st.sampled_from([0.0, math.nan, -0.01, 0.01, -1e-9, 1e-9, -5.0, 5.0]),
    st.floats(-3, 3, allow_nan=False),
)
NONE = pd.DataFrame()


@st.composite
def logs(draw) -> RunLog:
    """A run of up to three probes of up to eight probe and held-out pairs, with whatever numbers, some missing."""
    steps = draw(st.sampled_from([[0], [0, 1], [0, 4, 9], [2, 5]]))
    rows = [
        dict(step=step, split=split, pair_id=f"{split}{i}", chosen_logps=-20 + draw(NUMBER) * (step > 0),
             rejected_logps=-9 + draw(NUMBER) * (step > 0), chosen_kl=abs(draw(NUMBER)))
        for split in ("probe", "eval") for i in range(draw(st.integers(0, 8))) for step in steps
    ]  # fmt: skip
    columns = ["step", "split", "pair_id", "chosen_logps", "rejected_logps", "chosen_kl"]
    kinds = draw(st.lists(st.sampled_from(["gained", "lost", "chosen", "chosen_eos"]), max_size=5))
    base = dict(step=steps[-1], split="probe", pair_id="probe0", token="x", token_id=1, prob=0.2, name="x")
    moves = [base | dict(kind=kind, change=draw(st.floats(-0.3, 0.3))) for kind in kinds]
    manifest = draw(st.sampled_from([
        {}, {"parity": {"noise": 0.5, "n": 4}}, {"parity": {"noise_floor": math.nan, "max_difference": 1e-4}},
        {"weights_moved": {"share": 0.0, "n": 9}}, {"weights_moved": {"share": 1e-4, "n": 90_000}},
    ]))  # fmt: skip
    table = pd.DataFrame(dict(step=steps, learning_rate=draw(st.sampled_from([0.0, 1e-4, math.nan]))))
    pairs = pd.DataFrame(rows, columns=columns) if rows else NONE
    return RunLog(Path("run"), {}, manifest, table, pairs, pd.DataFrame(moves), NONE, NONE)


@MANY
@given(logs())
def test_the_verdict_agrees_with_its_numbers(run):
    found = verdict.judge(run)
    said = {f.name: f for f in found}
    for finding in found:
        assert "nan" not in finding.meaning.split()
        assert not re.search(r"not measured (nats|of|to)|to not measured|by not measured", finding.meaning)
        if finding.name != "displaced":
            assert finding.n or "not measured" in finding.meaning or finding.name == "parity"
        assert finding.n or math.isnan(finding.value) or finding.name == "parity"
    first, words = found[0], found[0].meaning
    states = {split: displacement.state(displacement.by_step(runs.rows(run, split))) for split in ("probe", "eval")}
    if first.passed is False:
        assert displacement.DISPLACED in states.values()
        assert words.startswith("displaced")
    if first.passed is True:
        assert words.startswith("not displaced:")
        assert said["displacement/frac"].value <= 0.5
        assert not said["eval/displacement/frac"].value > 0.5
        assert verdict.measured(run)
        assert not verdict.no_weight_moved(run)
    if words.startswith(("nothing moved", "no effect", "not measured")):
        assert first.passed is None
    if words.startswith("nothing moved"):
        assert said["displacement/frac"].value == 0
    if "mass went to" in words or "onset at" in words:
        assert states["probe"] == displacement.DISPLACED
    if "no onset" in said["onset"].meaning:
        assert said["onset"].n > 0
    assert all("+" in gain or "0.00" in gain for gain in re.findall(r"'x' \(([^)]*)\)", said["mass/gained"].meaning))


@MANY
@given(logs())
def test_the_worst_pairs_lost_and_the_outcomes_add_up(run):
    rows = runs.rows(run, "probe")
    ends = runs.ends(rows)
    if len(ends):
        assert (displacement.worst(ends, 9)["chosen_change"] < 0).all()
        shares = displacement.quadrants_by_step(rows)
        assert 0 not in shares.index
        assert np.allclose(shares.sum(axis=1), 1.0)
    said = readings.monotone_fall(displacement.monotone_fall(rows), TOKENS) if len(rows) else ""
    assert "of 0 probe" not in said
    assert "not measured (" not in said


@st.composite
def changes(draw) -> Change:
    """A mean change of some pairs, as the tables make it."""
    values = np.array(draw(st.lists(st.floats(-1, 1), max_size=9)), dtype=float)
    if draw(st.booleans()):
        values = values / 100 + draw(st.sampled_from([-0.5, 0.0, 0.5]))
    return Change(len(values), mean(values), mean_interval(values) if len(values) else NOTHING)


@MANY
@given(changes(), changes(), changes())
def test_harm_is_read_only_where_likelihood_was_lost(likelihood, entropy, tail):
    said = readings.spread(likelihood, entropy, tail)
    word = said.split(":")[0].split(" so far")[0]
    if word in ("Leak", "Collapse", "Benign", "Unclear"):
        assert likelihood.mean < 0
        assert tail.n >= 5
    assert word != "Leak" or tail.mean < 0
    assert word != "Collapse" or entropy.mean < 0
    assert word != "Benign" or entropy.mean > 0
    assert not re.search("not measured (nats|\\()", said)


@MANY
@given(changes(), changes(), changes(), changes(), st.lists(st.floats(-1, 1), min_size=1, max_size=4))
def test_a_dip_is_a_loss_and_the_deepest_place_lost(before, at, after, lead, means):
    rows = [("chosen", place, 6, m, m - 0.1, m + 0.1) for place, m in enumerate(means)]
    table = pd.DataFrame(rows, columns=["side", "place", "n", "mean", "low", "high"])
    said = readings.first_difference(Profile(table, before, at, after, lead))
    if "fell further than" in said or "lost there" in said:
        assert at.mean < 0 or after.mean < 0
    if "deepest single place" in said:
        assert min(means) < 0
    assert not re.search(r"deepest single place is \d+: \+", said)


@MANY
@given(st.dictionaries(st.sampled_from(list(mass.RESPONSES)), changes(), min_size=1))
def test_who_fell_fell_and_who_rose_rose(found):
    rows = [(name, 9, c.n, -2.0, c.mean, *c.interval) for name, c in found.items()]
    table = pd.DataFrame(rows, columns=["name", "step", "n", "logp", "change", "low", "high"])
    said = readings.responses(table)
    for words, sign in (("fell", "−"), ("rose", "+")):
        part = re.search(rf"{words}: (.*?)(?:; [a-z]|\(nats)", said, re.IGNORECASE)
        assert part is None or all(sign in item for item in part[1].split(", ") if re.search(r"\d", item))
    assert not said.startswith("Squeezing") or found["own"].mean > 0
    assert "not measured (" not in said
    assert "not measured," not in said


@MANY
@given(st.data())
def test_trust_is_above_chance_with_enough_on_either_side(data):
    share, few = st.floats(0, 1), st.integers(0, 60)
    rows = []
    for name in ("set_rate", "ches_score", "length_difference"):
        auroc, width = data.draw(st.one_of(share, st.just(math.nan))), data.draw(st.floats(0, 0.5))
        rho = data.draw(st.floats(-1, 1))
        row = dict(
            measure=name, given="", direction="lower", n=60, runs=1, told=int(auroc == auroc), told_n=60, fell=0.4
        )
        row |= dict(fewest=data.draw(few), spearman=rho, spearman_low=rho - width, spearman_high=rho + width)
        rows.append(row | dict(auroc=auroc, auroc_low=auroc - width, auroc_high=auroc + width))
    card = pd.DataFrame(rows)
    found = trust.judge(card)
    assert ("Trust" in found.meaning) == bool(found.passed)
    if found.passed:
        best = card.set_index("measure").loc[found.name.partition("/")[2]]
        assert best["auroc_low"] > 0.5
        assert best["auroc"] >= trust.USEFUL
        assert best["fewest"] >= 5


@MANY
@given(logs())
def test_curves_say_nothing_of_what_was_not_measured(run):
    rows = runs.rows(run, "probe")
    if not len(rows):
        return
    pushed = entanglement.push_by_step(rows)
    said = [readings.push(pushed)] if len(pushed) else []
    points = frontier(rows.assign(chosen_kl_reverse=0.3, rejected_kl_reverse=0.2))
    said += [readings.frontier(points, "probe pair", TOKENS.distance)] if len(points) else []
    table = pd.DataFrame({"chosen_kl": rows.groupby("step")["chosen_kl"].mean()})
    said.append(figures.furthest(table, TOKENS))
    assert not any("not measured" in s or "nan" in s.split() for s in said)


@MANY
@given(st.lists(st.tuples(st.one_of(st.just(math.nan), st.floats(0, 1)), st.integers(1, 30)), min_size=1, max_size=4))
def test_a_share_over_seeds_stays_a_share_and_its_word_follows(seeds):
    shares, counts = zip(*seeds)

    judged = board_verdict.Judged(("dpo", 1e-4), mean(shares), share_interval(shares, counts), len(seeds))
    if judged.state is None:
        assert math.isnan(judged.share)
        return
    low, high = judged.interval
    assert 0 <= low <= judged.share <= high <= 1
    assert judged.state != "displaced" or judged.share > 0.5
    assert judged.state != "did not displace" or judged.share < 0.5
