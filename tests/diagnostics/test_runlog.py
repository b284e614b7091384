"""The run log loses no row that was written, whatever happens after."""

import json
import math
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest

from diagnostics.errors import DataError
from diagnostics.files import disk_errors, write_json
from diagnostics.runlog import (
    RunLogWriter,
    compact,
    drop_after,
    read_frame,
    read_json,
    read_run,
    read_steps,
    read_table,
    write_frame,
)


def row(step: int, pair_id: str = "a", **values) -> dict:
    return {"step": step, "split": "train", "pair_id": pair_id, "chosen_logps": -1.5 * step} | values


@pytest.fixture
def writer(tmp_path):
    writer = RunLogWriter(tmp_path / "run")
    write_json(writer.path / "config.json", {"beta": 0.1})
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


def test_samples_can_be_appended_round_after_round_and_survive_compacting_and_resuming(writer):
    assert not (writer.path / "samples").exists()
    for step, turn in ((0, 0), (5, 1), (9, 2)):
        writer.append("pairs", [row(step)])
        head = {"step": step, "round": turn, "prompt_id": "a", "sampler": "policy", "seed": 7, "score": 0.5}
        writer.append("samples", [head | {"sample": k, "text": f"say <b> é {k}", "tokens": 3} for k in (1, 0)])
        writer.append_step({"step": step, "loss": 1.0})
    writer.close()
    live = read_run(writer.path).samples
    assert live[["step", "sample"]].values.tolist() == [[0, 0], [0, 1], [5, 0], [5, 1], [9, 0], [9, 1]]
    compact(writer.path)
    assert read_run(writer.path).samples.equals(live)
    drop_after(writer.path, 5)
    assert read_run(writer.path).samples.equals(live.head(4))


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


def test_rows_of_two_kinds_in_turn_stand_in_two_parts(writer):
    """A measure that is taken every second step: one part for each set of columns, not one at every change."""
    for step in range(40):
        writer.append("pairs", [row(step, **({"new_measure": 3.0} if step % 2 else {}))])
    assert len(list(writer.path.glob("pairs/part-*.arrow"))) == 2
    table = read_table(writer.path, "pairs")
    assert table["step"].tolist() == list(range(40))
    assert table["new_measure"].notna().tolist() == [bool(s % 2) for s in range(40)]


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


@contextmanager
def full_disk(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("more", [10, 300])  # within the batch's metadata, within its columns
def test_a_full_disk_is_one_sentence_and_keeps_earlier_rows(writer, more):
    writer.append("pairs", [row(1, p) for p in "abcdefgh"])
    whole = next(writer.path.glob("pairs/*.arrow")).stat().st_size
    with full_disk(whole + more), pytest.raises(DataError, match=r"pairs: cannot write .File too large.*are kept"):
        writer.append("pairs", [row(2, p) for p in "abcdefgh"])
    assert read_table(writer.path, "pairs")["step"].tolist() == [1] * 8
    writer.append("pairs", [row(3)])  # there is room again: nothing is written behind the batch that was cut
    writer.close()
    assert read_table(writer.path, "pairs")["step"].tolist() == [1] * 8 + [3]
    compact(writer.path)
    assert read_table(writer.path, "pairs")["step"].tolist() == [1] * 8 + [3]


def test_every_write_on_a_full_disk_is_one_sentence(writer):
    for step in range(100):
        writer.append("pairs", [row(step)])
    with full_disk(100):
        with pytest.raises(DataError, match=r"steps\.jsonl: cannot write .File too large"):
            writer.append_step({"step": 1, "note": 1.0} | {f"k{i}": 0.0 for i in range(20)})
        with pytest.raises(DataError, match=r"config\.json: cannot write"):
            write_json(writer.path / "config.json", {"a": "b" * 200})
        with pytest.raises(DataError, match=r"pairs: cannot write"):
            writer.close()
        with pytest.raises(DataError, match=r"part-00000-r0\.parquet: cannot write"):
            compact(writer.path)
    assert not list(writer.path.glob("pairs/*.tmp"))
    assert len(read_table(writer.path, "pairs")) == 100
    assert read_json(writer.path / "config.json") == {"beta": 0.1}


def test_a_folder_removed_meanwhile_is_said(writer):
    writer.append("pairs", [row(1)])
    shutil.rmtree(writer.path)
    with pytest.raises(DataError, match=r"pairs: cannot write, for its folder was removed"):
        writer.append("pairs", [row(2)])
    with pytest.raises(DataError, match=r"steps\.jsonl: cannot write, for its folder was removed"):
        writer.append_step({"step": 2})


def test_memory_that_does_not_suffice_is_one_sentence(writer):
    with pytest.raises(DataError, match=r"cannot write .out of memory"), disk_errors(writer.path):
        np.empty(2**58)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match="no such run folder"):
        read_run(tmp_path / "nothing")
    with pytest.raises(DataError, match="not a run folder"):
        read_run(tmp_path)


def test_a_damaged_parquet_part_is_named(writer):
    (writer.path / "pairs" / "part-00000-r0.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(DataError, match=r"part-00000-r0\.parquet: not readable as Parquet"):
        read_run(writer.path)


STEPS = ['{"step": 0, "loss": 0.7}', '{"step": 1, "loss": 0.6}', '{"step": 2, "loss": 0.5}']


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[]", "is no row with a step"),
        ("7", "is no row with a step"),
        ("null", "is no row with a step"),
        ('{"loss": 0.6}', "is no row with a step"),
        ('{"step": "one", "loss": 0.6}', "has a step that is no whole number"),
        ('{"step": 1.5, "loss": 0.6}', "has a step that is no whole number"),
        ('{"step": true, "loss": 0.6}', "has a step that is no whole number"),
        ('{"step": -1, "loss": 0.6}', "has a step that is no whole number"),
        ('{"step": NaN, "loss": 0.6}', "has a step that is no whole number"),
        ('{"step": 1e300, "loss": 0.6}', "has a step that is no whole number"),
        ('{"step": 1, "loss": "low"}', "has loss that is no number"),
        ('{"step": 1, "loss": [1]}', "has loss that is no number"),
        ('{"step": 1, "alarm": 3}', "has alarm that is no text"),
        ('{"step": 1, "loss": 1' + "0" * 400 + "}", "has loss that is no number"),
        ('{"step": 1, "loss": 1' + "0" * 5000 + "}", "is not JSON"),
        ('{"step": 1, "loss": ' + "[" * 100_000 + "}", "is (not JSON|nested too deeply)"),
        ("", "is not JSON"),
        ('{"step": 1}{"step": 1}', "is not JSON"),
        ('{"step": 0, "loss": 0.1}', "gives step 0 another loss than a line before"),
    ],
)
def test_a_line_that_is_no_row_is_named_before_anything_is_rewritten(writer, line, said):
    for step in range(3):
        writer.append("pairs", [row(step)])
    writer.close()
    steps = writer.path / "steps.jsonl"
    steps.write_text("\n".join([STEPS[0], line, STEPS[2], ""]))
    before = {p: p.read_bytes() for p in writer.path.rglob("*") if p.is_file()}
    for act in (read_run, lambda path: drop_after(path, 1)):
        with pytest.raises(DataError, match=rf"steps\.jsonl: line 2 {said}"):
            act(writer.path)
    assert {p: p.read_bytes() for p in writer.path.rglob("*") if p.is_file()} == before


def test_lines_that_say_the_same_are_one_row(writer):
    """Two writers leave a line twice; a probe after the last update stands in a line of its own."""
    more = '{"step": 2, "loss": null, "probe/n": 5}'
    (writer.path / "steps.jsonl").write_text("\r\n".join([STEPS[0], STEPS[1], STEPS[1], STEPS[2], more, ""]))
    steps = read_run(writer.path).steps
    assert steps["step"].tolist() == [0, 1, 2]
    assert steps["loss"].tolist() == [0.7, 0.6, 0.5]
    assert steps["probe/n"].tolist()[2] == 5


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_last_line_that_only_lacks_its_newline_counts(writer, end):
    steps = writer.path / "steps.jsonl"
    steps.write_bytes(b"\xef\xbb\xbf" + ("\n".join(STEPS) + end).encode())
    assert read_run(writer.path).steps["step"].tolist() == [0, 1, 2]
    drop_after(writer.path, 2)
    writer.append_step({"step": 3})  # stands in a line of its own
    assert read_run(writer.path).steps["step"].tolist() == [0, 1, 2, 3]
    steps.write_text("\n".join(STEPS) + "x")
    with pytest.raises(DataError, match=r"steps\.jsonl: line 3 is not JSON"):
        read_run(writer.path)


@pytest.mark.parametrize("name", ["config.json", "manifest.json"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"[]", "holds no JSON object"),
        (b"3", "holds no JSON object"),
        (b"null", "holds no JSON object"),
        (b"NaN", "holds no JSON object"),
        (b"", "not readable as JSON"),
        (b'{"a": 1', "not readable as JSON"),
        (b'{"a": ' + b"[" * 100_000, "not readable as JSON"),
        (b'{"a": 1' + b"0" * 5000 + b"}", "not readable as JSON"),
        (b'{"a": "\xff"}', "byte 7 is not UTF-8"),
    ],
)
def test_a_spoiled_json_file_is_named(writer, name, content, said):
    (writer.path / name).write_bytes(content)
    with pytest.raises(DataError, match=rf"{name}: {said}"):
        read_run(writer.path)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("config.json", {"beta": []}, "`beta` is no number"),
        ("config.json", {"seed": {}}, "`seed` is no number"),
        ("manifest.json", {"parity": [1]}, "`parity` is no JSON object"),
        ("manifest.json", {"hashes": 3}, "`hashes` is no JSON object"),
        ("manifest.json", {"parity": {"max_difference": "much"}}, "`parity/max_difference` is no number"),
        ("manifest.json", {"files": [1]}, "`files` is no list of files"),
        ("manifest.json", {"files": {"steps.jsonl": {"bytes": "3"}}}, "`files` is no list of files"),
    ],
)
def test_a_wrong_type_in_a_json_file_is_named(writer, name, content, said):
    (writer.path / name).write_text(json.dumps(content))
    with pytest.raises(DataError, match=rf"{name}: {said}"):
        read_run(writer.path)


def finished(writer) -> None:
    """A run that ended: 4 steps of 3 pairs, everything listed in its manifest."""
    write_json(writer.path / "manifest.json", {"parity": {"max_difference": 0.0}})
    write_frame(writer.path / "audit.parquet", pd.DataFrame({"pair_id": list("abc"), "status": "kept"}))
    for step in range(4):
        writer.append("pairs", [row(step, p) for p in "abc"])
        writer.append_step({"step": step, "loss": 1.0 / (step + 1), "n": 3})
    writer.close()
    compact(writer.path)


def test_what_a_finished_run_holds_is_listed_and_checked(writer):
    finished(writer)
    listed = read_json(writer.path / "manifest.json")["files"]
    assert {name: entry["rows"] for name, entry in listed.items()} == {
        "pairs/part-00000-r0.parquet": 12,
        "audit.parquet": 3,
        "steps.jsonl": 4,
    }
    before = read_run(writer.path)
    assert (len(before.pairs), len(before.steps), len(before.audit)) == (12, 4, 3)
    for name in listed:
        file = writer.path / name
        whole = file.read_bytes()
        file.write_bytes(whole[:-40] + bytes([whole[-40] ^ 1]) + whole[-39:])
        for act in (read_run, compact, lambda path: drop_after(path, 3)):
            with pytest.raises(DataError, match=rf"{file.name}: (damaged|line)"):
                act(writer.path)
        file.unlink()
        with pytest.raises(DataError, match=rf"{file.name}: manifest\.json lists it, but it cannot be read"):
            read_run(writer.path)
        file.write_bytes(whole)
    pd.testing.assert_frame_equal(read_run(writer.path).pairs, before.pairs)


def test_a_finished_run_resumed_stays_as_it_is_and_goes_on(writer):
    finished(writer)
    before = {p: p.read_bytes() for p in writer.path.rglob("*") if p.is_file()}
    drop_after(writer.path, 3)
    assert {p: p.read_bytes() for p in writer.path.rglob("*") if p.is_file()} == before
    again = RunLogWriter(writer.path)
    again.append("pairs", [row(4, p) for p in "abc"])
    again.append_step({"step": 4, "n": 3})
    assert len(read_run(writer.path).pairs) == 15  # steps.jsonl may grow
    drop_after(writer.path, 1)
    assert read_run(writer.path).pairs["step"].max() == 1
    assert read_json(writer.path / "manifest.json")["files"]["steps.jsonl"]["rows"] == 2


def test_a_run_goes_on_where_later_lines_are_lost_and_not_where_earlier_ones_are(writer):
    finished(writer)
    steps = writer.path / "steps.jsonl"
    lines = steps.read_text().splitlines(keepends=True)
    steps.write_text("".join([lines[0], lines[2], lines[3]]))
    with pytest.raises(DataError, match=r"steps\.jsonl: the line of step 1 is missing"):
        drop_after(writer.path, 2)
    steps.write_text("".join(lines[:3]))
    with pytest.raises(DataError, match=r"steps\.jsonl: (damaged|line)"):
        read_run(writer.path)
    drop_after(writer.path, 2)
    assert len(read_run(writer.path).pairs) == 9


def test_training_rows_that_are_lost_are_missed(writer):
    finished(writer)
    part = writer.path / "pairs" / "part-00000-r0.parquet"
    table = read_frame(part)
    write_json(writer.path / "manifest.json", {})
    write_frame(part, table.loc[(table["step"] != 2) | (table["pair_id"] != "b")])
    with pytest.raises(
        DataError, match=r"pairs/part-00000-r0\.parquet: damaged at step 2: some of its training rows are missing"
    ):
        read_run(writer.path)
    write_frame(part, table.rename(columns={"split": "spllt"}))
    with pytest.raises(DataError, match=r"part-00000-r0\.parquet: the column split is missing"):
        read_run(writer.path)


def test_the_metadata_that_pandas_wrote_is_not_needed(tmp_path):
    path = tmp_path / "audit.parquet"
    write_frame(
        path, pd.DataFrame({"pair_id": ["a", None], "n": [1, 2], "x": [0.5, math.nan], "flagged": [True, False]})
    )
    before = read_frame(path)
    whole = path.read_bytes()
    at = whole.index(b'"pandas_version"')
    path.write_bytes(whole[: at - 3] + b"]]]" + whole[at:])
    pd.testing.assert_frame_equal(read_frame(path), before)
    assert before["n"].dtype == np.int64
    assert before["flagged"].dtype == bool


def test_a_nan_that_another_writer_put_into_a_step_is_not_measured(tmp_path):
    (tmp_path / "steps.jsonl").write_text('{"step": 0, "loss": NaN}\n{"step": 1, "loss": -Infinity}\n')
    assert read_steps(tmp_path) == {0: {"step": 0, "loss": None}, 1: {"step": 1, "loss": -math.inf}}


@pytest.mark.parametrize("value", ["high", [1.0]])
def test_a_measure_that_is_no_number_is_refused(tmp_path, value):
    writer = RunLogWriter(tmp_path)
    writer.append("pairs", [{"step": 0, "split": "probe", "pair_id": "a", "chosen_logps": -1.0}])
    writer.close()
    compact(tmp_path)
    (part,) = tmp_path.glob("pairs/*.parquet")
    write_frame(part, pd.read_parquet(part).assign(chosen_logps=[value]))
    (tmp_path / "manifest.json").unlink(missing_ok=True)  # as without checksums
    with pytest.raises(DataError, match="the column chosen_logps holds no numbers"):
        read_table(tmp_path, "pairs")


def test_two_alarms_of_one_step_are_read_as_both(writer):
    """A step may have several lines; only an alarm may stand in more than one of them with other words."""
    writer.append_step({"step": 1, "loss": 0.5, "alarm": "a"})
    writer.append_step({"step": 1, "grad": 2.0, "alarm": "b"})
    assert read_steps(writer.path)[1] == {"step": 1, "loss": 0.5, "alarm": "a; b", "grad": 2.0}
