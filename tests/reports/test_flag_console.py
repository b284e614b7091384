"""What `flag` prints where a score is no number."""

import math

import pytest

from diagnostics.flag.flagging import choose
from diagnostics.runlog import read_frame
from reports.console import show_flagged


@pytest.mark.parametrize("unmeasured", [1, 7, 39])
def test_pairs_without_a_score_have_no_rank_and_are_counted(make_flags, capsys, tmp_path, unmeasured):
    """In the made-up folder 39 pairs are scored and one is skipped."""
    scores = read_frame(make_flags() / "scores.parquet")
    scores.loc[: unmeasured - 1, "ln_ches_score"] = math.nan
    scores = choose(scores.drop(columns=["rank", "flagged", "flag_reason"]), "ln_ches_score")
    show_flagged(scores, "ln_ches_score", "highest", tmp_path)
    printed = " ".join(capsys.readouterr().out.split())
    assert "39 pairs scored, 1 skipped" in printed
    assert f"ln_ches_score is no number for {unmeasured} of them: they have no rank." in printed
    assert "nan" not in printed
