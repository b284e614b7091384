"""The scorecard command on made-up folders."""

import sys

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import chesboard
from analysis.scorecard import page as scorecard_page
from analysis.tables import runs
from diagnostics.errors import DataError
from diagnostics.runlog import read_frame, write_frame
from reports import scorecard
from reports.console import show_scorecard


def test_it_writes_a_page_and_every_number(make_run, make_flags, nasty, capsys):
    """In the made-up run a later pair falls more; the scores say so under a hostile name."""
    run, flags = make_run(n=40), make_flags(n=40)
    scores = read_frame(flags / "scores.parquet").assign(**{nasty: range(40)})
    write_frame(flags / "scores.parquet", scores)
    (run / "report").mkdir()
    (run / "report" / "run-run.html").write_text("the run's own page")
    found, page = scorecard.make([run], [flags])
    assert page == run / "report" / "scorecard.html"
    written = pd.read_parquet(run / "report" / "scorecard.parquet")
    row = written.loc[(written["measure"] == nasty) & (written["given"] == "")].iloc[0]
    assert (row["spearman"], row["n"], row["direction"]) == (pytest.approx(1.0), 39, "higher?")  # one was skipped
    html = page.read_text()
    assert nasty not in html
    assert "data:image/webp" in html
    assert '<a href="run-run.html">Run run</a>' in html
    assert 'href="index.html"' not in html  # only what was made is linked to
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


SCORES = pd.DataFrame(dict(pair_id=[f"p{i}" for i in range(12)], status="scored", ches_score=np.arange(12.0)))


@pytest.mark.parametrize(
    ("table", "said"),
    [
        (b"pair_id,status\np0,scored\n", "cannot be read as Parquet"),
        (b"", "cannot be read as Parquet"),
        (SCORES.drop(columns="status"), "no column pair_id and status"),
        (SCORES.assign(status="kept"), "no row whose status is scored"),  # an audit.parquet
        (SCORES.assign(pair_id=range(12)), "a pair_id that is no text"),
        (SCORES.assign(pair_id=[[i] for i in SCORES["pair_id"]]), "a pair_id that is no text"),
        (pa.table([pa.array(["p0"])] * 3, names=["pair_id", "status", "status"]), "two columns status"),
        (SCORES.assign(ches_score="high"), "holds no measure of a pair"),
        (SCORES.assign(pair_id=[f"q{i}" for i in range(12)]), "none of its probe pairs is in the scores"),
    ],
)
def test_what_is_no_scores_table_ends_in_one_sentence_and_exit_code_3(
    table, said, make_run, tmp_path, monkeypatch, capsys
):
    path = tmp_path / "scores"
    if isinstance(table, bytes):
        path.write_bytes(table)
    else:
        pq.write_table(pa.Table.from_pandas(table) if isinstance(table, pd.DataFrame) else table, path)
    monkeypatch.setattr(sys, "argv", ["chesboard", "scorecard", str(make_run()), "--scores", str(path)])
    with pytest.raises(SystemExit) as stopped:
        chesboard.main()
    assert stopped.value.code == 3
    sentence = capsys.readouterr().err.strip()
    assert said in sentence
    assert sentence.startswith("chesboard: ")
    assert "\n" not in sentence
    assert sentence.endswith(("Give the scores.parquet that `chesboard flag` wrote.", "this run trained on."))


def test_text_in_a_column_that_holds_numbers_elsewhere_is_passed_over(make_run, tmp_path):
    write_frame(tmp_path / "scores.parquet", SCORES.assign(chosen_logps="a", chosen_length="b"))
    found = scorecard_page.load([str(make_run())], [str(tmp_path)])
    assert found.card.loc[found.card["measure"] == "ches_score", "n"].tolist() == [12, 12]


def test_a_run_without_a_probe_has_no_scorecard(make_run):
    run = make_run(n=2)
    found = scorecard_page.load([str(run)], [])
    assert "not measured" in scorecard_page.verdict(found).html
    assert "not measured" in scorecard_page.forest(found).html


def test_the_notebook_takes_what_its_parameter_comments_say(make_run):
    """Its defaults, one path without brackets, and a list."""
    run = str(make_run())
    for given in ((run, None), ([run], None), ([run], []), (run,)):
        assert len(scorecard_page.load(*given).tables) == 1
    with pytest.raises(DataError, match="none: no such file"):
        scorecard_page.load([run], "none")
    with pytest.raises(DataError, match="run_dirs names no run folder"):
        scorecard_page.load([])
