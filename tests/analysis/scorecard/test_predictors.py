import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.scorecard import predictors, trust
from analysis.tables.columns import direction
from diagnostics.runlog import RunLog


def _ends(n: int = 60, length_matters: float = 0.0, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    length = rng.integers(-20, 20, n).astype(float)
    ches = length + rng.normal(scale=2.0, size=n)
    change = -length_matters * length - (1 - length_matters) * rng.normal(size=n)
    frame = pd.DataFrame(dict(pair_id=[f"p{i}" for i in range(n)], chosen_change=change, start_ches_score=ches))
    return frame.assign(chosen_length=20.0, rejected_length=20.0 + length, start_ln_ches_score=math.nan)


def _card(*ends: pd.DataFrame, scores: pd.DataFrame | None = None, given: str = "") -> pd.DataFrame:
    card = predictors.scorecard([predictors.table(e, scores) for e in ends])
    return card.loc[card["given"] == given].set_index("measure")


def _scores(ends: pd.DataFrame, **columns) -> pd.DataFrame:
    return pd.DataFrame(dict(pair_id=ends["pair_id"], **columns)).iloc[::-1].reset_index(drop=True)


def test_displacement_is_the_likelihood_lost():
    table = predictors.table(_ends().assign(chosen_change=-3.0))
    assert set(table["displacement"]) == {3.0}
    assert set(table["displacement_per_token"]) == {0.15}
    assert set(table["fell"]) == {1.0}


def test_scorecard_of_six_pairs_by_hand():
    """fell, fell, not, fell, not, not from the highest CHES down: AUROC 8/9, AP 11/12, the flagged one fell, so lift
    is 1 / 0.5; nats lost 6, 5, -3, 1, -2, -1 are ranked 6 5 1 4 2 3: rho = 1 - 6 (9 + 1 + 0 + 4) / (6 * 35) = 0.6."""
    lost = np.array([6.0, 5.0, -3.0, 1.0, -2.0, -1.0])
    ends = pd.DataFrame(dict(pair_id=list("abcdef"), chosen_change=-lost, start_ches_score=[6.0, 5, 4, 3, 2, 1]))
    row = _card(ends.assign(chosen_length=2.0, rejected_length=2.0)).loc["ches_score"]
    assert row["auroc"] == pytest.approx(8 / 9)
    assert row["average_precision"] == pytest.approx(11 / 12)
    assert (row["precision"], row["lift"], row["n"], row["fell"]) == pytest.approx((1.0, 2.0, 6, 0.5))
    assert row["spearman"] == row["per_token"] == pytest.approx(0.6)


def test_scorecard_shows_the_length_confound():
    """CHES here is length plus noise: it predicts well, and holds nothing once the length difference is fixed."""
    ends = _ends(200, length_matters=0.9)
    plain, matched = _card(ends), _card(ends, given="length")
    assert plain.loc["ches_score", "spearman"] > 0.9
    assert plain.loc["ches_score", "with_length"] > 0.9
    assert plain.loc["ches_score", "auroc"] > 0.9
    assert matched.loc["ches_score", "spearman_low"] < 0.05
    assert matched.loc["ches_score", "auroc"] < 0.75  # what is left inside a tenth of the length differences
    assert plain.loc["length_difference", "spearman"] > plain.loc["ches_score", "spearman"]
    assert "length_difference" not in matched.index


def test_unmeasured_measures_are_nan_with_no_rows():
    card = _card(_ends())
    assert card.loc["ln_ches_score", "n"] == 0
    assert math.isnan(card.loc["ln_ches_score", "spearman"])


@pytest.mark.parametrize(("fallen", "told"), [(0, False), (2, False), (3, True), (30, True), (57, True), (58, False)])
def test_auroc_is_refused_when_almost_none_or_almost_all_fell(fallen, told):
    card = _card(_ends().assign(chosen_change=np.arange(60) - fallen + 0.5))
    row = card.loc["ches_score"]
    for name in ("auroc", "average_precision", "precision", "lift"):
        assert math.isnan(row[name]) is not told, name
    assert row["told"] == told
    assert ("left out for the runs" in trust.judge(card.reset_index()).meaning) is not told


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("set_rate", -1),
        ("set_rate_sign", -1),
        ("last_layer_set_rate", -1),
        ("edit_distance", -1),
        ("alpha_ches", 1),
        ("ln_ches_score", 1),
        ("last_hidden_similarity", 1),
        ("length_difference", 1),
        ("reference_margin", 0),
        ("grated_cheese", 0),
    ],
)
def test_direction_by_the_words_of_the_name(name, expected):
    assert direction(name) == expected


def test_rates_count_from_below_and_unknown_columns_both_ways():
    """The same numbers under three names: as a rate they are right, as a similarity wrong, as unknown found out."""
    ends = _ends()
    change = ends["chosen_change"]
    scores = pd.DataFrame({"pair_id": ends["pair_id"]}).assign(set_rate=change, odd_similarity=change, mystery=change)
    card = _card(ends, scores=scores.iloc[::-1])
    assert card.loc["set_rate", ["spearman", "auroc"]].tolist() == pytest.approx([1.0, 1.0])
    assert card.loc["odd_similarity", ["spearman", "auroc"]].tolist() == pytest.approx([-1.0, 0.0])
    assert card.loc["mystery", ["spearman", "auroc"]].tolist() == pytest.approx([1.0, 1.0])
    assert card.loc[["set_rate", "odd_similarity", "mystery"], "direction"].tolist() == ["lower", "higher", "lower?"]


def test_scores_are_joined_by_pair_id_and_go_before_the_runs_own():
    ends = _ends()
    scores = _scores(ends, ches_score=ends["chosen_change"].to_numpy()[::-1], source_row=1.0, chosen_logps=2.0)
    table = predictors.table(ends, scores.iloc[:40])
    assert table["ches_score"].tolist()[20:] == scores["ches_score"].iloc[:40].tolist()[::-1]
    assert table["ches_score"].tolist()[:20] == ends["start_ches_score"].tolist()[:20]  # not scored: the run's own
    assert not {"source_row", "chosen_logps"} & set(table)


def test_several_runs_are_averaged_and_counted():
    """One run in which the rate is right, one in which it is wrong: the mean is 0, and the interval knows of both."""
    ends = _ends()
    right, wrong = (predictors.table(ends, pd.DataFrame(dict(pair_id=ends["pair_id"], set_rate=s * ends["chosen_change"]))) for s in (1, -1))  # fmt: skip  # noqa: E501
    card = predictors.scorecard([right, wrong])
    row = card.loc[(card["measure"] == "set_rate") & (card["given"] == "")].iloc[0]
    assert (row["runs"], row["n"], row["told"]) == (2, 120, 2)
    assert row["spearman"] == pytest.approx(0.0)
    assert (row["spearman_low"], row["spearman_high"]) == pytest.approx((-1.0, 1.0))


def test_runs_without_auroc_do_not_count_behind_it():
    """In the second run all pairs fell: its ranks count, its AUROC does not."""
    ends = _ends()
    tables = [predictors.table(e) for e in (ends, ends.assign(chosen_change=ends["chosen_change"] - 100))]
    card = predictors.scorecard(tables)
    row = card.loc[(card["measure"] == "ches_score") & (card["given"] == "")].iloc[0]
    alone = _card(ends).loc["ches_score"]
    assert (row["n"], row["runs"], row["told_n"], row["told"]) == (120, 2, 60, 1)
    assert row["auroc"] == alone["auroc"]
    said = trust.judge(card).meaning
    assert "n = 60, 1 run" in said
    assert "left out for 1 of 2 runs" in said


def test_the_bootstrap_is_the_same_every_time_and_wider_over_runs():
    ends = [_ends(seed=s) for s in range(3)]
    scores = [pd.DataFrame(dict(pair_id=e["pair_id"], set_rate=e["chosen_change"] + k * np.sin(np.arange(60)))) for k, e in enumerate(ends)]  # fmt: skip  # noqa: E501
    tables = [predictors.table(e, s) for e, s in zip(ends, scores)]
    first, again = (
        predictors.scorecard(tables),
        predictors.scorecard([t.sample(frac=1, random_state=1) for t in tables]),
    )
    pd.testing.assert_frame_equal(first, again)
    row = first.loc[(first["measure"] == "set_rate") & (first["given"] == "")].iloc[0]
    assert row["spearman_low"] < row["spearman"] < row["spearman_high"]


def test_the_sentence_names_a_predictor_or_says_there_is_none():
    ends = _ends(200)
    rng = np.random.default_rng(5)
    good = pd.DataFrame(dict(pair_id=ends["pair_id"], set_rate=ends["chosen_change"] + rng.normal(scale=0.3, size=200)))
    found = trust.judge(_card(ends, scores=good).reset_index())
    assert found.passed
    assert found.meaning.startswith("Trust set_rate here: AUROC for “fell” 0.9")
    assert "n = 200, 1 run" in found.meaning
    assert "the best of 2 predictors of known direction" in found.meaning
    noise = pd.DataFrame(dict(pair_id=ends["pair_id"], set_rate=rng.normal(size=200), ches_score=rng.normal(size=200)))
    found = trust.judge(_card(ends, scores=noise).reset_index())
    assert found.passed is False
    assert found.meaning.startswith("None of 2 predictors beats chance (0.50) here")


CARD = dict(measure="set_rate", given="", direction="lower", n=200, runs=1, told=1, told_n=200, fewest=60, fell=0.3)
CARD |= dict(spearman=0.26, spearman_low=0.13, spearman_high=0.38, auroc=0.9, auroc_low=0.85, auroc_high=0.95)


@pytest.mark.parametrize(
    ("changes", "passed", "words"),
    [
        ({}, True, "Trust set_rate here"),
        (dict(auroc=0.6, auroc_low=0.55, auroc_high=0.65), False, "is above chance (0.50), but weak"),
        (dict(fewest=1), False, "only 1 fell, or held, too few to trust it"),
        (dict(fewest=2, auroc_low=0.45), False, "Only 2 pairs fell, or held: none can be trusted (5 are needed)"),
        (dict(auroc=math.nan, auroc_low=math.nan, told=0, told_n=0, fewest=0), False, "cannot be said here"),
        (dict(auroc=0.75, auroc_low=0.45), False, "None of 1 predictor beats chance"),
    ],
)
def test_trust_needs_a_strong_auroc_above_chance_and_enough_fallen_and_held(changes, passed, words):
    found = trust.judge(pd.DataFrame([CARD | changes]))
    assert found.passed is passed
    assert words in found.meaning
    assert ("Trust" in found.meaning) is passed


def test_a_predictor_that_only_follows_length_is_not_trusted():
    found = trust.judge(_card(_ends(200, length_matters=0.9)).reset_index())
    assert found.passed is False
    assert found.meaning.startswith("None clearly beats both chance (0.50) and the length difference alone (1.00)")


def test_scores_of_other_data_are_refused(tmp_path):
    from diagnostics.errors import DataError
    from diagnostics.runlog import RunLog

    pairs = pd.DataFrame(dict(step=[0, 1], split="probe", pair_id="a", chosen_logps=[-1.0, -2.0], rejected_logps=-1.0))
    empty = pd.DataFrame()
    run = RunLog(tmp_path / "run", {}, {}, empty, pairs, empty, empty, empty)
    with pytest.raises(DataError, match="none of its probe pairs is in the scores"):
        predictors.collect([run], [pd.DataFrame(dict(pair_id=["b"], set_rate=[1.0]))])


def _probed(*changes: list[float]) -> RunLog:
    """A run whose pairs' chosen log-probs have changed by so much at steps 0, 3, 6, ..."""
    rows = [
        {"split": "probe", "step": 3 * k, "pair_id": f"p{i}", "chosen_logps": -20.0 + change, "rejected_logps": -20.0}
        for k, at in enumerate(([0.0] * len(changes[0]), *changes))
        for i, change in enumerate(at)
    ]
    return RunLog(
        Path("run"), {}, {}, pd.DataFrame(), pd.DataFrame(rows), pd.DataFrame(), pd.DataFrame(), pd.DataFrame()
    )


def test_the_first_probe_is_held_against_the_end():
    """Lost by step 3: 1 -1 2 -2; at the end: 3 -1 1 -4. Ranks 3 2 4 1 and 4 2 3 1:
    rho = 1 - 6 * 2 / (4 * 15) = .8; both that fell
    were ahead of both that did not."""
    (row,) = predictors.under_way(_probed([-1.0, 1.0, -2.0, 2.0], [-3.0, 1.0, -1.0, 4.0]))
    assert row == {"step": 3, "last": 6, "n": 4, "spearman": pytest.approx(0.8), "auroc": 1.0}
    said = trust.under_way(pd.DataFrame([row]))
    assert "by step 3 of 6 rank those at the end with Spearman +0.80 (1 run), AUROC for “fell” 1.00" in said
    assert predictors.under_way(_probed([-1.0, 1.0, -2.0])) == []
    assert trust.under_way(pd.DataFrame([], columns=predictors.EARLY)) == ""
