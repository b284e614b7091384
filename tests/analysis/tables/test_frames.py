"""What the frames add: worked numbers."""

import math

import pandas as pd
import pytest

from analysis.run import readings
from analysis.tables import frames

NAN = math.nan


def rows(step: int, grey: list[float]) -> pd.DataFrame:
    """Three pairs with clips, whose chosen answers are at -1, -2, -3 with them, and one of text."""
    return pd.DataFrame({
        "step": step, "pair_id": list("abcd"), "chosen_logps": [-1.0, -2, -3, -50], "chosen_grey_logps": [*grey, NAN],
        "rejected_logps": [-9.0, -9, -9, -50], "rejected_grey_logps": [-4.0, -4, -4, NAN],
        "chosen_perturbed_logps": [-2.0, -2, -2, NAN], "rejected_perturbed_logps": [-9.0, -9, -9, NAN],
    })  # fmt: skip


def test_by_view_by_hand():
    middle = rows(3, [-7.0, -7, -7]).assign(chosen_grey_logps=NAN)
    table = frames.by_view(pd.concat([rows(0, [-6.0, -8, -10]), middle, rows(6, [-4.0, -6, -5])]))
    assert sorted(set(table["step"])) == [0, 6]  # not the step at which nothing was taken
    assert set(table["n"]) == {3}  # not the pair of text
    found = table.set_index(["step", "side", "view"])
    assert found.loc[(0, "chosen", ""), ["mean", "lost"]].tolist() == [-2, 0]
    # -1 + 6, -2 + 8, -3 + 10: mean 6, SD 1, t(2) = 4.3027, half 4.3027 / sqrt(3)
    assert found.loc[(0, "chosen", "grey"), ["mean", "lost"]].tolist() == [-8, 6]
    assert found.loc[(0, "chosen", "grey"), "high"] == pytest.approx(6 + 2.4842, abs=1e-3)
    assert found.loc[(6, "chosen", "grey"), "lost"] == pytest.approx(3)
    assert found.loc[(0, "chosen", "perturbed"), "lost"] == 0
    assert found.loc[(6, "rejected", "grey"), "lost"] == -5  # the frames speak against it


def test_pairs_of_text_have_no_table():
    assert frames.by_view(rows(0, [NAN] * 3)).empty
    assert frames.by_view(rows(0, [NAN] * 3).drop(columns="chosen_grey_logps")).empty


@pytest.mark.parametrize(
    ("grey", "words"),
    [
        ([-6.0, -8, -10, -9, -7], "Yes:"),
        ([-3.0, -4, -1, -6, -2.5], "Not clearly:"),
        ([-0.5, -1, -1, -2, -2], "Against"),
    ],
)
def test_the_sentence_says_whether_answers_depend_on_the_frames(grey, words):
    chosen = [-1.0, -2, -3, -4, -5]
    data = pd.DataFrame({"step": 0, "pair_id": list("abcde"), "chosen_logps": chosen, "chosen_grey_logps": grey})
    table = frames.by_view(data.assign(rejected_logps=-9.0, rejected_grey_logps=-9.0))
    assert readings.frames(table).startswith(words)
    assert readings.frames(table.assign(n=3)).startswith("No reading:")
