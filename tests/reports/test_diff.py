"""One run against another: the page, the lines for a pull request, and what cannot be compared."""

import json
import re

import pytest

from analysis.diff import page as diff_page
from analysis.diff import verdict
from analysis.tables import runs
from diagnostics.errors import DataError, UserError
from diagnostics.runlog import RunLogWriter, read_frame, read_table, write_frame, write_json
from reports import build, diff


@pytest.fixture
def two(make_run):
    """A run in which every chosen answer falls by 2 nats and more, and one in which none does."""
    return make_run("fell"), make_run("held", fall=0.5, config=dict(objective="dpo_nll"))


def _both(before, after) -> verdict.Compared:
    return verdict.compare(runs.load(before), runs.load(after))


def test_the_page_and_its_five_lines(two, nasty, capsys):
    both, lines, page = diff.make(*two)
    assert len(lines) == 5
    assert (
        lines[0]
        == "✅ held displaces less than fell on 12 probe pairs; held displaces less than fell on 12 held-out pairs."
    )
    assert "fell 100 % → 0 % (−100 points; 95 %: −100 to −66)" in lines[1]
    assert lines[3] == "Pairs whose chosen answer falls only now: 0; that no longer falls: 24."
    assert lines[4] == "Settings that differ: objective dpo → dpo\\_nll."
    assert page == two[1] / "report" / "diff-fell.html"
    assert page.with_suffix(".md").read_text().splitlines() == [f"- {line}" for line in lines]
    html = page.read_text()
    assert nasty not in html
    assert 'id="pair-p3"' in html
    assert 'href="index.html"' not in html  # no report was made there
    assert both.found["probe"]["chosen"].value == pytest.approx(2.5 * (1 + 5.5 / 4))


def test_the_difference_turned_round_is_worse(two):
    found = verdict.judge(_both(*reversed(two)))
    assert found[0].passed is False
    assert found[0].meaning.startswith("fell displaces more than held on 12 probe pairs: 0 % to 100 %")


def test_a_run_against_its_like_is_not_told_apart(make_run):
    both = _both(make_run("a"), make_run("b"))
    found = verdict.judge(both)
    assert found[0].passed is None
    assert "no difference in displacement between b and a can be told" in found[0].meaning
    assert verdict.moved(both, "probe").empty
    assert verdict.settings(both).empty
    assert verdict.markdown(both)[4] == "No setting differs."


def test_few_pairs_tell_nothing(make_run):
    both = _both(make_run("a", n=4), make_run("b", n=4, fall=1.0))
    assert verdict.state(both, "probe") == verdict.FEW
    assert verdict.judge(both)[0].passed is None


def test_pairs_that_changed_class_the_largest_loss_first(two):
    moved = verdict.moved(_both(*reversed(two)), "probe")
    assert moved["pair_id"].iloc[0] == "p11"
    assert set(moved["is"]) == {"both fell"}
    assert list(moved["change"]) == sorted(moved["change"])


def test_an_id_with_another_text_is_another_pair(two):
    audit = read_frame(two[1] / "audit.parquet")
    audit.loc[audit["pair_id"] == "p0", "chosen"] = "another answer"
    write_frame(two[1] / "audit.parquet", audit)
    both = _both(*two)
    assert both.found["probe"]["fell"].n == 11
    assert "1 id of both runs that stand for different texts" in verdict.left_out(both)
    write_frame(two[1] / "audit.parquet", audit.assign(prompt="another prompt"))
    with pytest.raises(DataError, match=r"share no measured pair \(the same ids stand for other texts\)"):
        _both(*two)


def test_runs_without_a_shared_or_measured_pair_are_refused_in_one_sentence(make_run, tmp_path):
    run, other = make_run("run"), tmp_path / "other"
    log = RunLogWriter(other)
    write_json(other / "config.json", {})
    rows = read_table(run, "pairs").assign(pair_id=lambda t: "q" + t["pair_id"]).to_dict("records")
    log.append("pairs", rows)
    for step in (0, 5, 10, 15, 20):
        log.append_step({"step": step})
    log.close()
    with pytest.raises(DataError, match=r"share no measured pair \(no pair_id is in both\)"):
        _both(run, other)
    write_json(other / "config.json", {"likelihood": "denoising"})
    with pytest.raises(DataError, match=r"/run measured likelihoods of tokens, and .*/other of denoising: these"):
        _both(run, other)
    start = tmp_path / "start"
    log = RunLogWriter(start)
    write_json(start / "config.json", {})
    log.append("pairs", [row for row in rows if row["step"] == 0])
    log.append_step({"step": 0})
    log.close()
    with pytest.raises(DataError, match=r"start: no pair was measured after the start"):
        _both(run, start)


def test_a_report_holds_every_run_against_the_baseline(two, monkeypatch):
    made = []
    monkeypatch.setattr(build, "_run_all", lambda pages, out, links, figures: made.extend(pages))
    index = build.build_report([two[1]], baseline=two[0])
    assert [page.stem for page in made] == ["run-held", "diff-held"]
    assert made[1].parameters["after_page"] == "run-held.html"
    assert '<a href="diff-held.html">held against fell</a>' in index.read_text()
    assert "held displaces less than fell" in (index.parent / "summary.md").read_text()
    with pytest.raises(UserError, match="give another run than the baseline"):
        build.build_report([two[0]], baseline=two[0])


def test_settings_that_differ_name_both_values(make_run):
    both = _both(make_run("a"), make_run("b", config=dict(learning_rate=1e-6, output_dir="elsewhere")))
    assert verdict.settings(both).to_dict("records") == [dict(setting="learning_rate", before=None, after=1e-6)]
    assert re.search(r"learning_rate None → 1e-06", verdict.markdown(both)[4])


def test_a_run_that_stopped_early_is_not_called_better(make_run, cut_short):
    whole, stopped = make_run("whole"), cut_short(make_run("stopped"))
    both = _both(whole, stopped)
    assert verdict.state(both, "probe") == verdict.LESS
    found = verdict.judge(both)[0]
    assert found.passed is None
    said = "whole is read at step 20 and stopped at step 10"
    assert found.meaning.endswith(f"{said}: stopped has not finished, so this is no verdict")
    assert verdict.markdown(both)[0].startswith("ℹ️")
    about = json.loads((stopped / "manifest.json").read_text())
    write_json(stopped / "manifest.json", about | {"finished": {"step": 10}})
    found = verdict.judge(_both(whole, stopped))[0]
    assert found.passed is True
    assert found.meaning.endswith(said)


def test_a_trace_is_whole_where_all_its_steps_are_measured(make_run, cut_short):
    asked = dict(command="trace", steps=[0, 5, 10])
    runs_ = make_run("whole"), cut_short(make_run("traced", config=asked))
    assert verdict.judge(_both(*runs_))[0].passed is True
    more = cut_short(make_run("more", config=asked | dict(steps=[0, 5, 10, 15])))
    assert verdict.judge(_both(runs_[0], more))[0].passed is None


def test_a_run_given_twice_is_refused(two):
    with pytest.raises(UserError, match="is given twice"):
        diff.make(two[0], two[0])


def test_runs_of_one_name_link_each_to_its_own_page(make_run, tmp_path):
    before, after = (runs.load(make_run(f"{folder}/run")) for folder in ("a", "b"))
    out = after.path / "report"
    out.mkdir()
    (out / "run-run.html").write_text("the page of the second")
    found = diff.page(verdict.compare(before, after), out, {}).parameters
    assert (found["before_page"], found["after_page"]) == ("", "run-run.html")


def test_two_denoisers_are_compared_by_their_errors(make_run):
    # the made-up likelihoods taken as minus errors: the chosen ones fall by 2 (1 + i/4), or rise by .5 (1 + i/4)
    errors = dict(likelihood="denoising")
    both = _both(make_run("held", fall=0.5, config=errors), make_run("fell", config=errors))
    first, *found = verdict.judge(both)
    assert first.passed is False
    assert (
        "0 % to 100 % of the chosen errors rose (+100 points; 95 %: +66 to +100), mean change of the" in first.meaning
    )
    # t(11) = 2.201, SD of 2.5 i / 4 is 2.2535: half width 2.201 * 2.2535 / sqrt(12) = 1.4318
    assert "error −1.188 to +4.750 (+5.938; 95 %: +4.506 to +7.369)" in first.meaning
    values = {f.name: f for f in found}
    assert "probe/difference/per_token" not in values
    assert values["probe/difference/chosen"].value == pytest.approx(-2.5 * (1 + 5.5 / 4))  # of likelihoods
    assert values["probe/difference/chosen"].meaning.startswith("mean change of the chosen error, probe pairs: −1.188")
    lines = verdict.markdown(both)
    assert lines[1].startswith("Probe pairs (n 12): rose 0 % → 100 % (+100 points; 95 %: +66 to +100), chosen error")
    assert lines[3] == "Pairs whose chosen error rises only now: 24; that no longer rises: 0."
    shown = diff_page.summary(both).html + diff_page.numbers(both).html + diff_page.changed(both).html
    assert "both errors rose" in shown
    assert not re.search(r"\bnats\b|\btoken\b|KL\(", " ".join([shown, *lines, *(f.meaning for f in found)]))
