"""Whether a run's pairs had been flagged, and links from pages of many runs to their own."""

import pytest

from analysis.ablate import page as ablate_page
from analysis.run import flagged, pairs
from analysis.tables import runs
from diagnostics.runlog import read_frame, write_frame
from reports import build


@pytest.fixture
def both(make_run, make_flags):
    return runs.load(make_run()), make_flags()


def test_the_pairs_say_whether_they_were_flagged_and_link_to_the_scores(both):
    run, scores = both
    html = pairs.section(run, 0, flags={str(scores): "flag-flags.html"}).html
    assert '<a href="flag-flags.html#pair-p3">flagged, rank 4</a>' in html
    assert ">not flagged, rank 5<" in html
    assert "LN-CHES place" not in html
    assert "LN-CHES place" in pairs.section(run, 0).html


def test_a_pair_of_another_text_or_none_is_not_the_one_that_was_scored(both):
    run, scores = both
    audit = read_frame(scores / "audit.parquet")
    audit.loc[audit["pair_id"] == "p3", "chosen"] = "another answer"
    write_frame(scores / "audit.parquet", audit)
    found = flagged.of(run, {str(scores): ""})
    assert found is not None
    assert found.cell("p3").words == "not scored"
    assert found.cell("p2").link == ""
    write_frame(scores / "audit.parquet", audit.assign(prompt="another prompt"))
    assert flagged.of(run, {str(scores): ""}) is None


def test_a_report_gives_the_pages_their_links(both, monkeypatch):
    run, scores = both
    made = []
    monkeypatch.setattr(build, "_run_all", lambda pages, out, links, figures: made.extend(pages))
    build.build_report([run.path, scores])
    assert made[0].parameters["flags"] == {str(scores): "flag-flags.html"}


def test_a_run_on_a_page_of_many_links_to_its_own_or_says_how_to_make_it(make_ablation):
    found = ablate_page.load([str(path) for path in make_ablation])
    first, second = found.logs[0], found.logs[1]
    html = ablate_page.every_run(found, {str(first.path): "run-x.html"}).html
    assert f'<a href="run-x.html">{first.name}</a>' in html
    assert f">{second.name}</td>" in html
    assert "Of 2 runs without a link no page was made; this makes one:" in html
    assert f"<span>{second.path.parent}/RUN</span></code>" in html


@pytest.fixture
def make_ablation(make_run):
    arms = [("full", 0.0), ("flagged", 0.2), ("random", 0.2)]
    folders = [
        make_run(arm, config=dict(ablate_arm=arm, ablate_by="set_rate", ablate_drop=drop, ablate_equal_steps=False))
        for arm, drop in arms
    ]
    for path in folders:
        (path / "board.json").write_text("{}")
    return folders
