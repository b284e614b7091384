import math

import pandas as pd
import pytest

from analysis.scorecard import predictors
from analysis.tables import displacement, runs
from trainers.loop.columns import means, quadrant

STARTS = {"a": -10.0, "b": -20.0, "c": -30.0}


def _rows(changes: dict[int, tuple[float, ...]]) -> pd.DataFrame:
    rows = [
        dict(step=s, split="probe", pair_id=p, chosen_logps=STARTS[p] + d, rejected_logps=-5.0 - s)
        for s, all_changes in changes.items()
        for p, d in zip(STARTS, all_changes)
    ]
    return runs.add_changes(pd.DataFrame(rows))


def test_changes_count_from_the_pairs_own_step_zero():
    rows = _rows({0: (0, 0, 0), 4: (-1.0, 2.0, -3.0)})
    last = rows[rows["step"] == 4]
    assert last["chosen_change"].tolist() == [-1.0, 2.0, -3.0]
    assert last["rejected_change"].tolist() == [-4.0] * 3
    assert last["margin_change"].tolist() == [3.0, 6.0, 1.0]


def test_changes_fall_back_on_the_reference_and_else_are_missing():
    rows = pd.DataFrame(dict(step=[5, 5], pair_id=["a", "b"], chosen_logps=[-3.0, -4.0], rejected_logps=[-6.0, -6.0]))
    assert runs.add_changes(rows)["chosen_change"].isna().all()
    rows = rows.assign(ref_chosen_logps=[-1.0, math.nan], ref_rejected_logps=-6.0)
    assert runs.add_changes(rows)["chosen_change"].tolist() == pytest.approx([-2.0, math.nan], nan_ok=True)


def test_by_step_counts_shares_and_means():
    table = displacement.by_step(_rows({0: (0, 0, 0), 4: (-1.0, 2.0, -3.0)}))
    assert table["n"].tolist() == [3, 3]
    assert table["share"].tolist() == pytest.approx([0.0, 2 / 3])
    assert table["mean"].tolist() == pytest.approx([0.0, -2 / 3])


def test_by_step_of_unmeasured_rows_is_nan_with_a_count():
    table = displacement.by_step(_rows({0: (math.nan,) * 3}))
    assert table["n"].tolist() == [0]
    assert math.isnan(table["share"][0])
    assert math.isnan(table["mean"][0])


@pytest.mark.parametrize(
    ("shares", "expected"),
    [
        ((0.0, 0.6, 0.7, 0.8), 1),
        ((0.0, 0.6, 0.4, 0.8), 3),
        ((0.0, 0.6, 0.7, 0.5), math.nan),
        ((0.0, 0.1, 0.2, 0.3), math.nan),
        ((0.0, 0.6, math.nan, 0.8), 3),
    ],
)
def test_onset_is_the_first_step_of_the_last_unbroken_stretch(shares, expected):
    table = pd.DataFrame(dict(step=range(4), share=shares, n=2, mean=-1.0))
    assert displacement.onset(table) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize(
    ("share_low", "mean_high", "displaced"),
    [
        (0.51, 1.0, True),
        (0.5, 0.1, False),
        (0.1, -0.02, True),
        (0.1, -0.005, False),
        (0.1, 0.0, False),
        (math.nan, math.nan, False),
    ],
)
def test_displaced_when_either_interval_says_so(share_low, mean_high, displaced):
    row = dict(n=20, share=0.9, mean=-1.0, share_low=share_low, mean_high=mean_high)
    assert displacement.is_displaced(row) is displaced


def test_few_pairs_are_judged_by_their_plain_numbers():
    row = dict(n=1, share=1.0, mean=-1.0, share_low=0.2, mean_high=math.nan)
    assert displacement.is_displaced(row) is True
    assert displacement.is_displaced(row | dict(mean=0.1)) is False


def test_quadrants_name_the_four_outcomes_and_leave_out_the_unmeasured():
    ends = pd.DataFrame(
        dict(
            chosen_change=[1.0, -1.0, -2.0, 1.0, -1.0, 0.0, math.nan],
            rejected_change=[-1.0, -1.0, -1.0, 1.0, 1.0, 0.0, -1.0],
        )
    )
    table = displacement.quadrants(ends).set_index("outcome")
    assert table["n"].to_dict() == {"separated": 1, "both fell": 2, "neither fell": 2, "inverted": 1}
    assert table["share"].sum() == pytest.approx(1.0)
    assert table.loc["both fell", "share"] == pytest.approx(2 / 6)


def test_worst_pairs_come_first_and_none_that_gained():
    ends = runs.ends(_rows({0: (0, 0, 0), 4: (-1.0, 2.0, -3.0)}))
    assert displacement.worst(ends, 1)["pair_id"].tolist() == ["c"]
    assert displacement.worst(ends, 9)["pair_id"].tolist() == ["c", "a"]


def test_ends_join_by_pair_id_and_keep_the_first_measures():
    rows = _rows({0: (0, 0, 0), 4: (-1.0, 2.0, -3.0)}).sample(frac=1, random_state=3)
    rows["ches_score"] = rows["step"] + rows["pair_id"].map({"a": 0.1, "b": 0.2, "c": 0.3})
    ends = runs.ends(rows).set_index("pair_id")
    assert ends["chosen_change"].to_dict() == {"a": -1.0, "b": 2.0, "c": -3.0}
    assert ends["start_ches_score"].to_dict() == {"a": 0.1, "b": 0.2, "c": 0.3}


def test_quadrants_by_step():
    """The rejected side falls by the step in every pair (see _rows)."""
    table = displacement.quadrants_by_step(_rows({0: (0, 0, 0), 4: (-1.0, 2.0, -3.0), 8: (math.nan,) * 3}))
    assert table.index.tolist() == [4]  # at step 0 nothing has moved
    assert table.loc[4].tolist() == pytest.approx([1 / 3, 2 / 3, 0, 0])


def test_monotone_fall_counts_pairs_that_fell_at_every_later_measurement():
    """a and b fell by step 2; a fell at 4 and 6 too, b rose at 6; c fell later only and is not counted."""
    rows = _rows({0: (0, 0, 0), 2: (-1.0, -1.0, 1.0), 4: (-2.0, -3.0, 0.5), 6: (-2.5, -2.0, -9.0)})
    fall = displacement.monotone_fall(rows)
    assert (fall.n, fall.again, fall.lower, fall.first, fall.last, fall.checks) == (2, 1, 2, 2, 6, 2)


def test_monotone_fall_starts_after_the_first_epoch_where_something_follows_it():
    changes = {0: (0, 0, 0), 2: (1.0, -1.0, 1.0), 4: (-2.0, -3.0, 0.5), 6: (-2.5, -2.0, -9.0)}
    rows = _rows(changes)
    rows["epoch"] = rows["step"] / 4  # one epoch is over at step 4: a and b are below 0 there, a falls again
    fall = displacement.monotone_fall(rows)
    assert (fall.n, fall.again, fall.first, fall.checks) == (2, 1, 4, 1)
    rows["epoch"] = rows["step"] / 6  # over at the last step: only b is below 0 at the first one, and it rose at 6
    assert (displacement.monotone_fall(rows).first, displacement.monotone_fall(rows).again) == (2, 0)


def test_monotone_fall_of_too_little_is_nan():
    fall = displacement.monotone_fall(_rows({0: (0, 0, 0), 2: (-1.0, -1.0, 1.0)}))
    assert fall.n == 0
    assert math.isnan(fall.first)
    risen = displacement.monotone_fall(_rows({0: (0, 0, 0), 2: (1.0, 1.0, 1.0), 4: (-1.0, 1.0, 1.0)}))
    assert (risen.n, risen.first) == (0, 2)
    missing = _rows({0: (0, 0, 0), 2: (-1.0, -1.0, -1.0), 4: (-2.0, math.nan, -2.0)})
    assert displacement.monotone_fall(missing).n == 2


GRID = [(c, r) for c in (-1.0, -0.1, -0.05, 0.0, 0.05, 1.0) for r in (-1.0, -0.1, -0.05, 0.0, 1.0)]


@pytest.mark.parametrize("noise", [0.0, 0.1])
def test_a_fall_is_the_same_in_the_run_log_and_on_the_pages(noise):
    """A change of exactly the noise has not moved; every page's count is the recorder's."""
    ends = pd.DataFrame(GRID, columns=["chosen_change", "rejected_change"]).assign(noise=noise, step=4)
    ends["pair_id"] = [f"p{i}" for i in range(len(ends))]
    told = [next(k for k, v in quadrant(c, r, noise).items() if v) for c, r in GRID]
    assert displacement.outcome(ends).str.replace(" ", "_").tolist() == told
    logged = [
        dict(chosen_logps=-9.0, rejected_logps=-9.0, chosen_length=3, rejected_length=3, common_mode=0.0) for _ in GRID
    ]
    logged = [
        a | dict(chosen_logratios=c, rejected_logratios=r, logratio_margin=c - r) for a, (c, r) in zip(logged, GRID)
    ]
    share = means(logged, noise)["displacement/frac"]
    assert share == {0.0: 3 / 6, 0.1: 1 / 6}[noise]
    assert displacement.by_step(ends)["share"].tolist() == [share]
    assert predictors.table(ends)["fell"].mean() == share


def test_a_fall_again_must_exceed_the_noise():
    """a falls by 1 and then by 0.05, which is rounding at a noise of 0.1; b's first change is rounding already."""
    rows = _rows({0: (0, 0, 0), 2: (-1.0, -0.05, -1.0), 4: (-1.05, -3.0, -1.2)})
    found = displacement.monotone_fall(rows.assign(noise=0.1))
    assert (found.n, found.again, found.lower) == (2, 1, 1)
    found = displacement.monotone_fall(rows)
    assert (found.n, found.again, found.lower) == (3, 3, 3)
