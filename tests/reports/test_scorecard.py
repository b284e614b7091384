"""The scorecard command on made-up folders."""

import pandas as pd
import pytest

from analysis import runs, scorecard_page
from diagnostics.errors import DataError
from diagnostics.runlog import read_frame, write_frame
from reports import scorecard
from reports.console import show_scorecard


def test_it_writes_a_page_and_every_number(make_run, make_flags, nasty, capsys):
    """In the made-up run a later pair falls more; the scores say so under a hostile name."""
    run, flags = make_run(n=40), make_flags(n=40)
    scores = read_frame(flags / "scores.parquet").assign(**{nasty: range(40)})
    write_frame(flags / "scores.parquet", scores)
    found, page = scorecard.make([run], [flags])
    assert page == run / "report" / "scorecard.html"
    written = pd.read_parquet(run / "report" / "scorecard.parquet")
    row = written.loc[(written["measure"] == nasty) & (written["given"] == "")].iloc[0]
    assert (row["spearman"], row["n"], row["direction"]) == (pytest.approx(1.0), 39, "higher?")  # one was skipped
    html = page.read_text()
    assert nasty not in html
    assert "data:image/png" in html
    show_scorecard(found)
    printed = capsys.readouterr().out
    assert "None" not in printed.split("run: ")[0]
    assert "40 probe pairs, measured before the first step and at step 20" in " ".join(printed.split())
    assert "left out for the runs" in " ".join(printed.split())  # all pairs fell


def test_one_score_file_for_all_or_one_for_each(make_run, make_flags):
    names = [str(make_run(name)) for name in "abc"]
    flags = str(make_flags())
    assert len(scorecard_page.load(names, [flags]).tables) == 3
    with pytest.raises(DataError, match="2 score files for 3 runs"):
        scorecard_page.load(names, [flags, flags])


def test_what_is_no_score_file_is_named(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        runs.read_scores(tmp_path)
    write_frame(tmp_path / "scores.parquet", pd.DataFrame(dict(a=[1])))
    with pytest.raises(DataError, match="no column pair_id and status"):
        runs.read_scores(tmp_path / "scores.parquet")


def test_a_run_without_a_probe_has_no_scorecard(make_run):
    run = make_run(n=2)
    found = scorecard_page.load([str(run)], [])
    assert "not measured" in scorecard_page.verdict(found).html
    assert "not measured" in scorecard_page.forest(found).html
