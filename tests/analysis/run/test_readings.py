"""The sentences: what they say at worked numbers, and when they say nothing."""

import math

import pandas as pd
import pytest

from analysis.run import readings
from analysis.show.units import ERRORS, TOKENS
from analysis.tables.curves import Change
from analysis.tables.displacement import MonotoneFall
from analysis.tables.intervals import NOTHING

DOWN, UP, FLAT = (Change(20, m, i) for m, i in ((-0.5, (-0.7, -0.3)), (0.5, (0.3, 0.7)), (0.1, (-0.2, 0.4))))
TINY = Change(20, -0.002, (-0.003, -0.001))  # certain, and of no account


@pytest.mark.parametrize(
    ("likelihood", "entropy", "mass", "word"),
    [
        (DOWN, UP, FLAT, "Benign so far"),
        (DOWN, UP, TINY, "Benign so far"),
        (DOWN, UP, DOWN, "Leak"),
        (DOWN, DOWN, FLAT, "Collapse"),
        (DOWN, DOWN, DOWN, "Leak: the likely tokens lost mass to the tail of the vocabulary. What is left"),
        (UP, DOWN, UP, "No loss to explain"),
        (UP, DOWN, DOWN, "No loss to explain"),
        (FLAT, UP, DOWN, "No loss to explain"),
        (DOWN, FLAT, FLAT, "Unclear"),
        (UP, FLAT, FLAT, "No loss to explain"),
        (FLAT, UP, FLAT, "No loss to explain"),
    ],
)
def test_the_read_out_of_entropy_and_mass(likelihood, entropy, mass, word):
    assert readings.spread(likelihood, entropy, mass).startswith(word)


def test_numbers_come_with_interval_and_n_and_few_pairs_give_no_reading():
    said = readings.spread(DOWN, UP, FLAT)
    assert said.endswith(
        "Chosen responses: log-likelihood −0.50 (−0.70 to −0.30) nats per token, top-k entropy +0.50 (+0.30 to +0.70) "
        "nats, top-k mass +0.10 (−0.20 to +0.40) (20 pairs)."
    )
    few = Change(4, -0.5, (-0.7, -0.3))
    assert readings.spread(few, few, few).startswith("No reading: there are fewer than five pairs")
    none = Change(0, math.nan, NOTHING)
    assert readings.spread(none, none, none) == "Top-k entropy and mass: not measured."


def table(moves: dict[str, float], n: int = 8) -> pd.DataFrame:
    """Response types at step 0 and 9, every interval 0.1 wide on either side."""
    rows = [(k, 0, n, -2.0, 0.0, 0.0, 0.0) for k in moves]
    rows += [(k, 9, n, -2.0 + m, m, m - 0.1, m + 0.1) for k, m in moves.items()]
    return pd.DataFrame(rows, columns=["name", "step", "n", "logp", "change", "low", "high"])


def test_squeezing_is_when_everything_fell_but_the_own_answer():
    moves = {"chosen": -0.5, "rejected": -1.0, "own": 0.4, "other": -0.3, "shuffled": -0.2}
    said = readings.responses(table(moves))
    assert said.startswith("Squeezing: ")
    listed = "chosen −0.50, rejected −1.00, another prompt's chosen −0.30, chosen with its tokens shuffled −0.20"
    assert f"Fell: {listed}; rose: the model's own answer at the start +0.40 (nats per token, 8 pairs)." in said
    for changed in ({"own": -0.4}, {"chosen": 0.5}, {"shuffled": 0.05}):
        assert not readings.responses(table(moves | changed)).startswith("Squeezing")
    assert "no clear change: chosen with its tokens shuffled +0.05" in readings.responses(
        table(moves | {"shuffled": 0.05})
    )
    assert readings.responses(table(moves, n=3)).startswith("No reading: there are fewer than five pairs")


def test_the_frontier_names_the_best_point_and_the_end():
    columns = ["step", "n", "deviation", "accuracy", "accuracy_low", "accuracy_high"]
    first, last = (5, 40, 1.0, 0.7, 0.55, 0.82), (9, 40, 2.0, 0.6, 0.45, 0.74)
    rows = pd.DataFrame([(2, 40, 0.5, 0.5, 0.35, 0.65), first, last], columns=columns)
    way = "√KL(policy || reference)"
    assert readings.frontier(rows, "held-out pair", way) == (
        f"Preference accuracy on 40 held-out pairs is highest at 70 % (55 % to 82 %) at step 5, {way} 1.00; it ends at "
        f"60 % (45 % to 74 %) at step 9, {way} 2.00."
    )
    rising = rows.assign(accuracy=[0.5, 0.6, 0.7])
    assert "ends at its highest: 70 %" in readings.frontier(rising, "held-out pair", way)
    assert "highest" not in readings.frontier(rising.tail(2), "held-out pair", way)


def test_monotone_fall_in_words():
    fall = MonotoneFall(10, 8, 9, 5.0, 20.0, 3)
    assert readings.monotone_fall(fall, TOKENS) == (
        "Monotone fall: of 10 probe pairs whose chosen response had fallen by step 5, 80 % (95 % interval 49 % to "
        "94 %) fell again at every one of the 3 later measurements; at the end, step 20, 90 % (95 % interval 60 % to "
        "98 %) are lower than they were then."
    )
    assert "no chosen response had fallen by step 5" in readings.monotone_fall(
        MonotoneFall(0, 0, 0, 5.0, 20.0, 3), TOKENS
    )
    assert "takes two measurements" in readings.monotone_fall(MonotoneFall(0, 0, 0, math.nan, math.nan, 0), TOKENS)
    risen = readings.monotone_fall(fall, ERRORS)
    assert risen.startswith("Monotone rise: of 10 probe pairs whose chosen error had risen by step 5, 80 %")
    assert "rose again" in risen
    assert risen.endswith("are higher than they were then.")
