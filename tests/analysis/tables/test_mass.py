import math

import pandas as pd
import pytest

from analysis.tables import mass

ROWS = pd.DataFrame(
    [
        (0, "probe", "a", "chosen", "", "No", 1, 0.5, 0.0),
        (0, "probe", "a", "rejected", "", "Never", 2, 0.2, 0.0),
        (0, "probe", "a", "other", "", "", -1, 0.3, 0.0),
        (9, "probe", "a", "chosen", "", "No", 1, 0.3, -0.2),
        (9, "probe", "a", "rejected", "", "Never", 2, 0.1, -0.1),
        (9, "probe", "a", "other", "", "", -1, 0.6, 0.3),
        (9, "probe", "b", "chosen", "", "No", 1, 0.5, 0.0),
        (0, "probe", "a", "gained", "", "old", 9, 0.1, 0.9),
        (9, "probe", "a", "gained", "", "Yes", 3, 0.4, 0.25),
        (9, "probe", "b", "gained", "", "Yes", 3, 0.2, 0.10),
        (9, "probe", "b", "gained", "", "Sure", 4, 0.2, 0.15),
        (9, "probe", "b", "gained", "", "flat", 5, 0.2, 0.0),
        (9, "eval", "h", "gained", "", "Sure", 4, 0.9, 0.90),
        (9, "probe", "a", "lost", "", "No", 1, 0.3, -0.20),
        (0, "unsafe", "u1", "group", "refusal", "", -1, 0.8, 0.0),
        (0, "unsafe", "u2", "group", "refusal", "", -1, 0.6, 0.0),
        (9, "unsafe", "u1", "group", "refusal", "", -1, 0.2, -0.6),
    ],
    columns=["step", "split", "pair_id", "kind", "name", "token", "token_id", "prob", "change"],
)


def test_gainers_sum_over_probe_pairs_at_the_last_step_only():
    table = mass.movers(ROWS)
    assert table["token"].tolist() == ["Yes", "Sure"]  # not the token of step 0, the flat one, or the held-out pair's
    assert table["mass"].tolist() == pytest.approx([0.35, 0.15])
    assert table["pairs"].tolist() == [2, 1]
    assert table["largest"][0] == 0.25


def test_losers_are_negative():
    assert mass.movers(ROWS, "lost")["mass"].tolist() == [-0.2]


def test_ledger_means_add_up_at_each_step():
    table = mass.ledger(ROWS[ROWS["pair_id"] == "a"])
    assert table.loc[9, ["chosen", "rejected", "other"]].sum() == pytest.approx(1.0)
    assert mass.first_and_last(table, "chosen") == (0.5, 0.3)


def test_tokens_that_gained_are_taken_out_of_the_others():
    start = {"Yes": 0.1, "Sure": 0.05}
    rows = ROWS.assign(prob_start=[start.get(token, math.nan) for token in ROWS["token"]])
    other = [(step, "probe", "b", "other", "", "", -1, 0.5, 0.0, math.nan) for step in (0, 9)]
    answers = [(0, "probe", "b", "chosen", "", "Sure", 4, 0.5, 0.0, math.nan)]
    rows = pd.concat([rows, pd.DataFrame(other + answers, columns=rows.columns)])
    table, plain = mass.named(rows), mass.ledger(rows)
    assert table["Yes"].tolist() == pytest.approx([0.1, 0.3])  # at the start what it was there; (0.4 + 0.2) / 2
    assert "Sure" not in table  # it is the answer of the only pair in which it gained
    assert (table["other"] + table["Yes"]).tolist() == pytest.approx(plain["other"].tolist())


def test_tracked_groups_average_over_prompts_of_their_set():
    assert mass.first_and_last(mass.tracked(ROWS), "unsafe: refusal") == pytest.approx((0.7, 0.2))


def test_nothing_logged_gives_empty_tables():
    empty = pd.DataFrame()
    assert mass.movers(empty).empty
    assert mass.ledger(empty).empty
    assert mass.tracked(empty).empty


def test_response_types_average_log_probs_and_pair_their_changes():
    """own: log .5 and log .25 at the start, log .25 for both later (b's row comes first): changes -log 2 and 0."""
    rows = [(0, "a", "own", 0.5), (0, "b", "own", 0.25), (9, "b", "own", 0.25), (9, "a", "own", 0.25)]
    rows += [(0, "a", "chosen", 0.1), (9, "a", "chosen", 0.2)]
    frame = pd.DataFrame(rows, columns=["step", "pair_id", "name", "prob"]).assign(split="probe", kind="response")
    table = mass.responses(frame)
    assert table["name"].tolist() == ["chosen", "chosen", "own", "own"]
    assert table["n"].tolist() == [1, 1, 2, 2]
    halves = [-math.log(10), -math.log(5), -1.5 * math.log(2), -2 * math.log(2)]
    assert table["logp"].tolist() == pytest.approx(halves)
    assert table["change"].tolist() == pytest.approx([0.0, math.log(2), 0.0, -math.log(2) / 2])
    assert table["low"].iloc[-1] < -math.log(2) / 2 < table["high"].iloc[-1]
    assert mass.responses(ROWS).empty
