"""The run log loses no row that was written, whatever happens after."""

import errno
import math

import numpy as np
import pandas as pd
import pytest

from diagnostics.errors import DataError
from diagnostics.runlog import RunLogWriter, compact, drop_after, read_run, read_table


def row(step: int, pair_id: str = "a", **values) -> dict:
    return {"step": step, "split": "train", "pair_id": pair_id, "chosen_logps": -1.5 * step} | values


@pytest.fixture
def writer(tmp_path):
    writer = RunLogWriter(tmp_path / "run")
    writer.write_json("config.json", {"beta": 0.1})
    return writer


def test_rows_are_there_while_the_run_lives(writer):
    writer.append("pairs", [row(1), row(1, "b")])
    writer.append_step({"step": 1, "loss": math.nan, "grad_norm": math.inf})
    log = read_run(writer.path)  # neither closed nor compacted
    assert log.pairs["pair_id"].tolist() == ["a", "b"]
    assert log.pairs["chosen_logps"].tolist() == [-1.5, -1.5]
    assert log.pairs["chosen_logps"].dtype == np.float64
    assert log.pairs["step"].dtype == np.int64
    assert math.isnan(log.steps["loss"][0])  # not measured is NaN, and comes back as NaN
    assert log.steps["grad_norm"][0] == math.inf


def test_compacting_changes_nothing_and_can_be_repeated(writer):
    for step in range(5):
        writer.append("pairs", [row(step)])
    before = read_table(writer.path, "pairs")
    writer.close()
    compact(writer.path)
    compact(writer.path)
    assert not list(writer.path.glob("pairs/*.arrow"))
    pd.testing.assert_frame_equal(read_table(writer.path, "pairs"), before)


def test_interrupted_compacting_counts_no_row_twice(writer, tmp_path):
    """The crash between writing the Parquet twin and removing the stream leaves both."""
    writer.append("pairs", [row(1), row(2)])
    stream = next(writer.path.glob("pairs/*.arrow"))
    copy = stream.read_bytes()
    writer.close()
    compact(writer.path)
    stream.write_bytes(copy)
    assert len(read_table(writer.path, "pairs")) == 2


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.6, 0.95])
def test_a_stream_cut_anywhere_keeps_its_whole_batches(writer, share):
    for step in range(20):
        writer.append("pairs", [row(step, p) for p in "abc"])
    stream = next(writer.path.glob("pairs/*.arrow"))
    whole = stream.read_bytes()
    stream.write_bytes(whole[: int(share * len(whole))])
    left = read_table(writer.path, "pairs")
    assert len(left) % 3 == 0
    assert len(left) >= 3 * int(20 * share) - 6
    if len(left):
        assert left["step"].tolist() == [s for s in range(len(left) // 3) for _ in "abc"]
    writer.close()


def test_a_last_line_cut_by_a_crash_is_left_out_and_a_broken_one_is_named(writer):
    writer.append_step({"step": 1, "loss": 0.5})
    steps = writer.path / "steps.jsonl"
    steps.write_text(steps.read_text() + '{"step": 2, "lo')
    assert read_run(writer.path).steps["step"].tolist() == [1]
    steps.write_text('{"step": 1}\n{"step": oops}\n{"step": 3}\n')
    with pytest.raises(DataError, match=r"steps\.jsonl: line 2 is not JSON"):
        read_run(writer.path)


def test_a_new_column_opens_a_new_part_and_old_rows_have_nan(writer):
    writer.append("pairs", [row(1)])
    writer.append("pairs", [row(2, new_measure=3.0)])
    table = read_table(writer.path, "pairs")
    assert math.isnan(table["new_measure"][0])
    assert table["new_measure"][1] == 3.0


def test_resuming_forgets_rows_past_the_checkpoint(writer):
    for step in range(6):
        writer.append("pairs", [row(step)])
        writer.append_step({"step": step, "loss": 1.0})
    writer.close()
    drop_after(writer.path, 3)
    again = RunLogWriter(writer.path)
    again.append("pairs", [row(4, "z")])
    again.append_step({"step": 4, "loss": 2.0})
    log = read_run(writer.path)
    assert log.pairs["step"].tolist() == [0, 1, 2, 3, 4]
    assert log.pairs["pair_id"].tolist()[-1] == "z"
    assert log.steps["loss"].tolist() == [1, 1, 1, 1, 2]


def test_a_full_disk_is_one_sentence_and_keeps_earlier_rows(writer, monkeypatch):
    writer.append("pairs", [row(1)])
    _, file, _ = writer._streams["pairs"]

    def full():
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(
        writer, "_streams", {"pairs": (writer._streams["pairs"][0], _Full(file, full), _Full(file, full))}
    )
    with pytest.raises(DataError, match=r"cannot write .No space left on device.*kept"):
        writer.append("pairs", [row(2)])
    assert read_table(writer.path, "pairs")["step"].tolist() == [1]


class _Full:
    """A file on a full disk."""

    def __init__(self, file, fail):
        self.file, self.fail = file, fail

    def write_batch(self, batch):
        self.fail()

    def flush(self):
        self.fail()


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(DataError, match="not a run folder"):
        read_run(tmp_path)


def test_a_damaged_parquet_part_is_named(writer):
    (writer.path / "pairs" / "part-00000-r0.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"part-00000-r0\.parquet: not readable as Parquet"):
        read_run(writer.path)
