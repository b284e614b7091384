"""Tables that are whole as files and lack rows all the same."""

import pandas as pd
import pytest

from diagnostics import complete
from diagnostics.errors import DataError

STEPS = pd.DataFrame({"step": range(4), "n": [float("nan"), 1, 1, 1], "probe/displacement/frac": [0.1, None, 0.2, 0.3]})
NO_CUT = dict.fromkeys(("pairs", "mass", "tokens"), False)


def tables() -> dict[str, pd.DataFrame]:
    probed = [dict(step=s, split=x, pair_id=p) for s in (0, 2, 3) for x in ("probe", "eval") for p in "abc"]
    trained = [dict(step=s, split="train", pair_id="abc"[s - 1]) for s in (1, 2, 3)]
    mass = [row | dict(kind="gained", rank=r) for row in probed for r in range(2)]
    tokens = [dict(step=s, pair_id=p, side=side) for s in (0, 3) for p in "abc" for side in ("chosen", "rejected")]
    return dict(pairs=pd.DataFrame(probed + trained), mass=pd.DataFrame(mass), tokens=pd.DataFrame(tokens))


@pytest.fixture
def run(tmp_path):
    """Parts of every table stand in this folder."""
    for table in NO_CUT:
        (tmp_path / table).mkdir()
        (tmp_path / table / "part-00000-r0.parquet").touch()
    return tmp_path


def test_a_whole_log_passes(run):
    complete.require(run, STEPS, tables(), NO_CUT)


def test_a_log_of_steps_alone_passes(tmp_path):
    complete.require(tmp_path, STEPS, dict.fromkeys(NO_CUT, pd.DataFrame()), NO_CUT)


@pytest.mark.parametrize(
    ("table", "lost", "said"),
    [
        ("pairs", "step == 2 and split == 'probe' and pair_id == 'b'", "damaged at step 2: it has not the same pairs"),
        ("pairs", "step == 3 and split == 'eval' and pair_id == 'c'", "damaged at step 3: it has not the same pairs"),
        ("pairs", "step == 2 and split != 'train'", "damaged at step 2: its rows are missing"),
        ("pairs", "step == 1", "damaged at step 1: some of its training rows"),
        ("pairs", "step >= 0", "damaged at step 0: its rows are missing"),
        ("mass", "step == 3", "damaged at step 3: its rows are missing"),
        ("mass", "step == 0 and split == 'probe' and pair_id == 'a'", "damaged at step 0: it has not the same pairs"),
        ("mass", "step >= 0", "damaged at step 0: its rows are missing"),
        ("tokens", "step == 0 and side == 'chosen'", "damaged at step 0: it has not the same pairs"),
    ],
)
def test_lost_rows_are_named(run, table, lost, said):
    found = tables()
    found[table] = found[table].query(f"not ({lost})")
    with pytest.raises(DataError, match=rf"{table}/part-00000-r0.parquet: {said}"):
        complete.require(run, STEPS, found, NO_CUT)


def test_an_id_that_changed_is_named(run):
    found = tables()
    found["pairs"].loc[4, "pair_id"] = "q"
    with pytest.raises(DataError, match=r"part-00000-r0\.parquet: damaged at step 0: it has not the same pairs"):
        complete.require(run, STEPS, found, NO_CUT)


def test_a_lost_line_of_steps_is_named(run):
    with pytest.raises(DataError, match=r"steps\.jsonl: damaged at step 1: its line is missing"):
        complete.require(run, STEPS.loc[STEPS["step"] != 1], tables(), NO_CUT)


@pytest.mark.parametrize("table", ["pairs", "mass"])
def test_a_crash_may_take_the_last_step_and_no_more(run, table):
    """The end of a stream cut off; its step may stand in steps.jsonl already, where the machine died."""
    found = tables()
    found[table] = found[table].query("step < 3")
    cut = NO_CUT | {table: True}
    complete.require(run, STEPS, found, cut)
    with pytest.raises(DataError, match=r"steps\.jsonl: damaged at step 3: its line is missing"):
        complete.require(run, STEPS.iloc[:3], tables(), NO_CUT)
    (run / "pairs" / "part-00001-r0.arrow").touch()  # died before the line was written
    complete.require(run, STEPS.iloc[:3], tables(), NO_CUT)
    found[table] = found[table].query("step < 2")
    with pytest.raises(DataError, match=rf"{table}.*: damaged at step 2"):
        complete.require(run, STEPS, found, cut)
