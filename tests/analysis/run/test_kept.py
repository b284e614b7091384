"""verdict.json: what was judged at a run's end is read again, for this log and these rules only."""

import json
import shutil
from pathlib import Path

import pytest

from analysis.run import kept, verdict
from analysis.tables import runs
from diagnostics.errors import DataError
from diagnostics.runlog import compact, write_json

TINY = Path(__file__).parents[2] / "data" / "tiny_run"


@pytest.fixture
def run(tmp_path):
    shutil.copytree(TINY, tmp_path / "run")
    return runs.load(tmp_path / "run")


@pytest.fixture
def counted(monkeypatch):
    """How often a log is judged."""
    calls, judge = [], verdict.judge
    monkeypatch.setattr(verdict, "judge", lambda run: (calls.append(run.name), judge(run))[1])
    return calls


def test_a_run_is_judged_once(run, counted):
    made = kept.keep(run)
    assert repr(kept.verdict_of(run)) == repr(made)  # NaN too
    assert len(counted) == 1
    written = json.loads((run.path / kept.FILE).read_text(), parse_constant=lambda word: pytest.fail(word))
    assert written["verdict"] == made[0].meaning


def test_without_the_file_or_with_a_damaged_one_the_log_is_judged(run, counted):
    plain = repr(kept.verdict_of(run))
    for text in ("", "{}", "[1]", '{"log": 1, "rules": 2, "findings": 3}'):
        (run.path / kept.FILE).write_text(text)
        assert repr(kept.verdict_of(run)) == plain
    kept.keep(run)
    whole = json.loads((run.path / kept.FILE).read_text())
    for spoiled in (5, [5], [{"name": "displaced"}], [{**whole["findings"][0], "n": "many"}]):
        write_json(run.path / kept.FILE, whole | {"findings": spoiled})
        assert repr(kept.verdict_of(run)) == plain


def test_of_another_log_or_by_other_rules_it_is_not_taken(run, counted, monkeypatch):
    kept.keep(run)
    run.manifest["parity"] = {"max_difference": 3.0, "noise_floor": 1.0, "passed": False, "n": 4}
    assert "by at most 3" in repr(kept.verdict_of(run))
    kept.keep(run)
    counted.clear()
    kept.verdict_of(run)
    assert counted == []
    monkeypatch.setattr(kept, "_rules", lambda: "others")
    kept.verdict_of(run)
    assert len(counted) == 1


def test_a_changed_table_is_seen_before_its_verdict_is_read(run):
    compact(run.path)
    kept.keep(runs.load(run.path))
    part = next((run.path / "pairs").glob("part-*.parquet"))
    part.write_bytes(part.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match=r"pairs/part-.*parquet"):
        runs.load(run.path)
