"""A run folder in which one file was changed: one sentence that names the file, or all its rows; never a traceback.

CHESBOARD_MUTATIONS sets how many cases each test tries.
"""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diagnostics.errors import DataError
from diagnostics.files import read_json, write_json
from diagnostics.runlog import RunLog, RunLogWriter, compact, read_run, write_frame

TABLES = ("steps", "pairs", "mass", "audit")
TRIES = int(os.environ.get("CHESBOARD_MUTATIONS", "1200"))


def write(folder: Path) -> RunLogWriter:
    """Three steps: a probe of two pairs with its mass at each, one training row between them."""
    writer = RunLogWriter(folder)
    write_json(writer.path / "config.json", {"objective": "dpo", "beta": 0.1, "seed": 0})
    write_json(
        writer.path / "manifest.json", {"parity": {"max_difference": 0.0, "noise_floor": 1e-5}, "hashes": {"data": "0"}}
    )
    write_frame(folder / "audit.parquet", pd.DataFrame({"pair_id": ["a", "b"], "status": "kept", "prompt": "why? é"}))
    for step in range(3):
        head = {"step": step, "epoch": step / 3, "split": "probe"}
        rows = [head | {"pair_id": p, "chosen_logps": -step - 0.3, "rejected_logps": -1.0} for p in "ab"]
        writer.append("pairs", rows + [rows[0] | {"split": "train"}] * bool(step))
        mass = [{"step": step, "split": "probe", "pair_id": p, "kind": "gained", "rank": 0, "prob": 0.1} for p in "ab"]
        writer.append("mass", mass)
        writer.append_step({"step": step, "loss": 0.7 - step / 9, "n": min(step, 1), "probe/n": 2})
    return writer


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, tuple[Path, RunLog]]:
    """A live run and one that ended, with what is read from them."""
    folders = {name: tmp_path_factory.mktemp("runs") / name for name in ("live", "done")}
    write(folders["live"])
    write(folders["done"]).close()
    compact(folders["done"])
    return {name: (folder, read_run(folder)) for name, folder in folders.items()}


def changed(data: bytes, how: str, at: float, bit: int) -> bytes:
    """The bytes with one bit turned, one byte written over, cut short, a line twice or left out, or lengthened."""
    place = int(at * len(data))
    if how == "bit":
        return data[:place] + bytes([data[place] ^ (1 << bit)]) + data[place + 1 :]
    if how == "byte":
        return data[:place] + b'\x00"\xff{[e9-'[bit : bit + 1] + data[place + 1 :]
    if how == "cut":
        return data[:place]
    if how == "longer":
        return data + data[place:][: bit + 1]
    lines = data.split(b"\n")
    place = int(at * len(lines))
    return b"\n".join(lines[:place] + lines[place : place + 1] * (2 if how == "twice" else 0) + lines[place + 1 :])


CHANGE = st.tuples(
    st.integers(0, 20), st.sampled_from(["bit", "bit", "byte", "cut", "longer", "twice", "without"]),
    st.floats(0, 1, exclude_max=True), st.integers(0, 7),
)  # fmt: skip


@pytest.mark.parametrize("name", ["live", "done"])
@settings(max_examples=TRIES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(change=CHANGE)
def test_a_changed_file_is_a_sentence_or_changes_no_row(runs, name, change):
    which, how, at, bit = change
    folder, whole = runs[name]
    files = sorted(p for p in folder.rglob("*") if p.is_file())
    file = files[which % len(files)]
    data = file.read_bytes()
    new = changed(data, how, at, bit)
    found = read(folder, file, data, new)
    if isinstance(found, str):
        assert str(folder) in found
        assert len(found) < 600
        return
    for table in TABLES:
        rows, wanted = getattr(found, table), getattr(whole, table)
        if name == "live" and file.suffix in (".arrow", ".jsonl") and len(new) < len(data):
            wanted = wanted.iloc[
                : len(rows)
            ]  # the last batch or line is short, as after a crash: those before are whole
        if name == "live" and file.name in ("steps.jsonl", "audit.parquet"):
            assert len(rows) == len(wanted)  # without a checksum: no row is lost
        else:
            pd.testing.assert_frame_equal(rows, wanted)


def read(folder: Path, file: Path, data: bytes, new: bytes) -> RunLog | str:
    """The run with other bytes in one file, or the sentence that refuses it."""
    try:
        file.write_bytes(new)
        return read_run(folder)
    except DataError as error:
        return str(error)
    finally:
        file.write_bytes(data)


def test_every_file_of_a_finished_run_can_be_copied_and_read(runs, tmp_path):
    folder, whole = runs["done"]
    pd.testing.assert_frame_equal(read_run(shutil.copytree(folder, tmp_path / "copy")).pairs, whole.pairs)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bytes": -2081}, "is no list of files"),
        ({"bytes": 10**30}, "damaged"),
        ({"bytes": "2081"}, "is no list of files"),
        ({"sha256": None}, "is no list of files"),
    ],
)
def test_a_list_with_impossible_sizes_is_one_sentence(runs, tmp_path, changes, words):
    folder = tmp_path / "run"
    shutil.copytree(runs["done"][0], folder)
    about = read_json(folder / "manifest.json")
    about["files"]["steps.jsonl"] |= changes
    write_json(folder / "manifest.json", about)
    with pytest.raises(DataError, match=words):
        read_run(folder)


def test_a_list_with_an_impossible_name_is_one_sentence(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs["done"][0], folder)
    about = read_json(folder / "manifest.json")
    about["files"]["pairs/\0"] = about["files"].pop("pairs/part-00000-r0.parquet")
    write_json(folder / "manifest.json", about)
    with pytest.raises(DataError, match="lists it, but it cannot be read"):
        read_run(folder)
