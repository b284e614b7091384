"""The first-difference profile: where sides part, worked means, what is left out, and what the sentence says."""

import math

import pandas as pd
import pytest

from analysis.run import readings
from analysis.run.curve_figures import first_difference as draw
from analysis.tables import first_difference
from analysis.tables.curves import Change
from analysis.tables.first_difference import FEWEST, WINDOW, Profile


def rows(pair: str, chosen: list[int], rejected: list[int], lost: dict[str, list[float]]) -> list[dict]:
    """Token rows of a pair at steps 0 and 4; lost: nats that each token of a side loses."""
    return [
        dict(step=step, split="probe", pair_id=pair, side=side, position=k, token_id=t, token="t", logp=-1.0 - moved)
        for step in (0, 4)
        for side, ids in (("chosen", chosen), ("rejected", rejected))
        for k, t in enumerate(ids)
        for moved in [lost[side][k] if step else 0.0]
    ]


def test_places_count_from_the_first_token_that_differs():
    """a parts at its third token, b at once, c where the rejected side has ended; d never does and is left out."""
    made = [("a", [5, 6, 7, 2], [5, 6, 8, 2]), ("b", [9, 2], [4, 9, 2]), ("c", [5, 6, 2], [5, 6]), ("d", [5], [5])]
    tokens = pd.DataFrame([r for p, c, j in made for r in rows(p, c, j, {"chosen": [0.5] * 9, "rejected": [1.0] * 9})])
    found = first_difference.changes(tokens)
    places = {k: sorted(g["place"]) for k, g in found.groupby(["pair_id", "side"])}
    assert places[("a", "chosen")] == places[("a", "rejected")] == [-2, -1, 0, 1]
    assert places[("b", "chosen")] == [0, 1]
    assert places[("b", "rejected")] == [0, 1, 2]
    assert places[("c", "chosen")] == [-2, -1, 0]
    assert places[("c", "rejected")] == [-2, -1]
    assert set(found["pair_id"]) == {"a", "b", "c"}
    assert found.groupby("side")["change"].unique().map(list).to_dict() == {"chosen": [-0.5], "rejected": [-1.0]}


def profile(lost: list[float], n: int = 6, lead: int = 1) -> Profile:
    """n pairs that share `lead` tokens, whose chosen tokens lose `lost` (a bit more in each further pair)."""
    ids = list(range(10, 10 + len(lost)))
    other = [*ids[:lead], *(i + 50 for i in ids[lead:])]
    made = [
        rows(f"p{k}", ids, other, {"chosen": [x * (1 + k / 20) for x in lost], "rejected": [3.0] * len(lost)})
        for k in range(n)
    ]
    tokens = pd.DataFrame([r for pair in made for r in pair])
    return first_difference.profile(tokens)


def test_means_are_over_pairs_and_apart_by_side():
    """The tokens lose 0.1, 1 and 0.2 times 1, 1.05 ... 1.25, whose mean is 1.125; the shared one stands at -1."""
    found = profile([0.1, 1.0, 0.2])
    chosen = found.table.loc[found.table["side"] == "chosen"].set_index("place")
    assert chosen["mean"].to_dict() == pytest.approx({-1: -0.1125, 0: -1.125, 1: -0.225})
    assert set(found.table.loc[found.table["side"] == "rejected", "mean"]) == {-3.0}
    assert set(found.table["n"]) == {6}
    assert ((chosen["low"] < chosen["mean"]) & (chosen["mean"] < chosen["high"])).all()
    assert (found.before.mean, found.at.mean, found.after.mean) == pytest.approx((-0.1125, -1.125, -0.225))
    assert found.lead.mean == pytest.approx(-0.9)
    assert draw(found.table, "title").axes[0].get_ylabel()


def test_places_of_too_few_pairs_and_outside_the_window_are_left_out():
    assert profile([0.1, 1.0], n=FEWEST - 1).table.empty
    found = profile([0.1] * 40, lead=10).table
    assert (found["place"].min(), found["place"].max()) == WINDOW


@pytest.mark.parametrize(
    ("lost", "said"),
    [
        (
            [0.0, 1.0, 0.2],
            "The first differing token fell further than those after it on average. The tokens after it fell too. ",
        ),
        ([0.0, 1.0, -0.2], "The first differing token fell further than those after it on average. Chosen answers"),
        ([0.0, 0.2, 1.0, 0.8], "The tokens after the first differing one fell further than it. That token fell too. "),
        ([0.0, -0.3, 1.0], "The tokens after the first differing one fell further than it. Chosen answers"),
        ([0.0, -0.3, -1.0], "No dip"),
        ([0.0, 0.5, 0.5], "The chosen answers lost there, but whether"),
    ],
)
def test_the_sentence_says_where_the_dip_sits(lost, said):
    assert readings.first_difference(profile(lost)).startswith(said)


def test_few_pairs_and_unlogged_tokens_give_no_reading():
    assert readings.first_difference(profile([0.1, 1.0, 0.2], n=3)).startswith("No reading")
    none = first_difference.profile(pd.DataFrame())
    assert none.table.empty
    assert (none.at.n, math.isnan(none.at.mean)) == (0, True)
    once = first_difference.changes(
        pd.DataFrame(rows("a", [1], [2], {"chosen": [0.0], "rejected": [0.0]})).query("step == 0")
    )
    assert once.empty


def test_numbers_carry_n_and_interval():
    change = Change(7, -0.5, (-0.7, -0.3))
    table = pd.DataFrame(
        dict(side="chosen", place=[-2, 0, 4], n=[9, 7, 6], mean=[-2.0, -0.5, -0.9], low=-1.0, high=-0.2)
    )
    found = Profile(table, Change(0, math.nan, (math.nan,) * 2), change, change, Change(7, 0.0, (-0.1, 0.1)))
    words = readings.first_difference(found)
    assert "at it −0.50 (−0.70 to −0.30) in 7 pairs; after it" in words
    assert words.endswith("The deepest single place is 4: −0.90 (−1.00 to −0.20) in 6 pairs.")
