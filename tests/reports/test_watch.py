"""A run that is still going: how that is known, what the terminal and the page say."""

import json
import os
import subprocess
import sys

import pytest
from rich.console import Console

from analysis.run import live
from analysis.run import page as run_page
from analysis.tables import runs
from diagnostics import folder
from diagnostics.errors import DataError
from diagnostics.files import read_json, write_json
from reports import watch


@pytest.fixture
def held(make_run):
    """A run whose folder this process holds."""
    run = make_run()
    folder.take(run, "train")
    yield run
    folder.release(run)


def _console() -> Console:
    return Console(record=True, width=100, file=open(os.devnull, "w"))


def test_a_held_run_is_going_until_it_is_marked_as_finished(held):
    going = live.of(runs.load(held))
    assert (going.going, going.finished, going.step) == (True, False, 20)
    assert live.words(going).startswith("This run is still going: step 20, the last row ")
    write_json(held / "manifest.json", read_json(held / "manifest.json") | {"finished": {"step": 20}})
    assert live.words(live.of(runs.load(held))) == "This run has finished, at step 20."


def test_a_run_whose_process_died_is_not_going(make_run):
    run = make_run()
    code = "import os, sys, pathlib, diagnostics.folder as f; f.take(pathlib.Path(sys.argv[1]), 'train'); os._exit(1)"
    subprocess.run([sys.executable, "-c", code, str(run)], check=False)
    assert json.loads((run / folder.LOCK).read_text())["pid"] != os.getpid()
    found = live.of(runs.load(run))
    assert not found.going
    assert live.words(found).startswith("No process is writing to this run: it ends at step 20, ")


def test_a_run_is_going_while_the_job_that_it_is_part_of_is(make_run):
    run = make_run("board/runs/one")
    assert not live.of(runs.load(run)).going
    folder.take(run.parents[1], "compare")
    assert live.of(runs.load(run)).going
    folder.release(run.parents[1])


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.4, "0 s"), (61, "1 min 1 s"), (3600, "1 h 0 min"), (200_000, "2 d 7 h")]
)
def test_a_time_that_has_passed(seconds, said):
    assert live.ago(seconds) == said


def test_the_page_of_a_run_that_is_going_says_so(held):
    assert "This run is still going: step 20" in run_page.summary(runs.load(held)).html
    folder.release(held)
    assert "still going" not in run_page.summary(runs.load(held)).html


def test_once_prints_the_verdict_and_the_curve(held, nasty):
    console = _console()
    watch.watch(held, once=True, console=console)
    printed = console.export_text()
    assert "✖ BROKEN" in printed
    assert "100 %" in printed
    assert f"│ 0    │ {'·' * watch.BAR} │ 0%" in printed
    assert f"│ 20   │ {'█' * watch.BAR} │ 100%" in printed
    assert "still going" in printed
    assert "Next:" not in printed


def test_it_follows_the_run_to_its_end(held, monkeypatch):
    looks = []

    def sleep(seconds: float) -> None:
        looks.append(seconds)
        if len(looks) == 2:
            folder.release(held)

    monkeypatch.setattr(watch.time, "sleep", sleep)
    console = _console()
    watch.watch(held, every=3.0, console=console)
    assert looks == [3.0, 3.0]
    assert "No process is writing to this run" in console.export_text()


def test_a_log_that_cannot_be_read_for_a_moment_is_tried_again(held, monkeypatch):
    answers = iter([DataError("half"), DataError("half"), runs.load(held)])

    def load(path):
        answer = next(answers)
        if isinstance(answer, DataError):
            raise answer
        return answer

    monkeypatch.setattr(watch.runs, "load", load)
    monkeypatch.setattr(watch.time, "sleep", lambda seconds: None)
    assert watch._read(held, 1.0).name == "run"


def test_a_line_half_written_at_the_first_look_is_waited_for(held, monkeypatch):
    steps = (held / "steps.jsonl").read_text()
    (held / "steps.jsonl").write_text(steps[:-9])

    def sleep(seconds: float) -> None:
        (held / "steps.jsonl").write_text(steps)
        folder.release(held)

    monkeypatch.setattr(watch.time, "sleep", sleep)
    console = _console()
    watch.watch(held, console=console)
    assert "at step 20" in console.export_text()


def test_no_run_is_one_sentence(tmp_path):
    with pytest.raises(DataError, match="no run there"):
        watch.watch(tmp_path, once=True)
