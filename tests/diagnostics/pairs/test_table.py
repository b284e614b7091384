"""The reader: shapes, ids, bad input, and writing back."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diagnostics.errors import DataError, UserError
from diagnostics.pairs import PairTable, read_pairs, write_rows

USER = {"role": "user", "content": "Sky?"}
BLUE = {"role": "assistant", "content": "Blue."}
GREEN = {"role": "assistant", "content": "Green."}
ROWS = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}", "tag": i} for i in range(3)]


def jsonl(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def read(path: Path, *rows: object) -> PairTable:
    return read_pairs(jsonl(path / "pairs.jsonl", list(rows)))


@pytest.mark.parametrize(
    ("row", "shape", "expected"),
    [
        ({"prompt": "a", "chosen": "b", "rejected": "c"}, "prompt", ("a", "b", "c")),
        (
            {"chosen": "Q: sky? A: it is blue", "rejected": "Q: sky? A: it is black"},
            "implicit-prompt",
            ("Q: sky? A: it is", " blue", " black"),  # not "... bl": no word is split
        ),
        ({"chosen": "one two", "rejected": "one two three"}, "implicit-prompt", ("one", " two", " two three")),
        ({"chosen": "line\nyes", "rejected": "line\nno"}, "implicit-prompt", ("line\n", "yes", "no")),
        (
            {"chosen": "\n\nHuman: hi\n\nAssistant: yo", "rejected": "\n\nHuman: hi\n\nAssistant: yes"},
            "hh-rlhf",
            ("\n\nHuman: hi\n\nAssistant:", " yo", " yes"),
        ),
        (
            {"instruction": "add", "input": "1+1", "output_1": "2", "output_2": "3", "preference": 2},
            "alpacafarm",
            ("add\n1+1", "3", "2"),
        ),
        (
            {"instruction": "add", "input": "", "output_1": "2", "output_2": "3", "preference": 1.0},
            "alpacafarm",
            ("add", "2", "3"),
        ),
        (
            {"question": "Say?", "answer_matching_behavior": " Yes", "answer_not_matching_behavior": " No"},
            "persona",
            ("Say?\n", "Yes", "No"),
        ),
        ({"prompt": [USER], "chosen": [BLUE], "rejected": [GREEN]}, "conversational", ([USER], [BLUE], [GREEN])),
        (
            {"prompt": [USER], "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
            "conversational",
            ([USER], [BLUE], [GREEN]),
        ),
        ({"chosen": [USER, BLUE], "rejected": [USER, GREEN]}, "conversational", ([USER], [BLUE], [GREEN])),
        ({"prompt": "Sky?", "chosen": [BLUE], "rejected": [GREEN]}, "conversational", ([USER], [BLUE], [GREEN])),
        (
            {"prompt": "Sky?", "chosen": [USER, BLUE], "rejected": [USER, GREEN]},
            "ultrafeedback",
            ([USER], [BLUE], [GREEN]),
        ),
    ],
)
def test_shapes(tmp_path: Path, row: dict, shape: str, expected: tuple) -> None:
    table = read(tmp_path, row)
    pair = table.pairs[0]
    assert (table.shape, pair.prompt, pair.chosen, pair.rejected) == (shape, *expected)


@given(st.text(max_size=12), st.text(max_size=8), st.text(max_size=8))
def test_shared_start_loses_nothing(shared: str, left: str, right: str) -> None:
    """prompt + completion is the text again, whatever the text."""
    from diagnostics.pairs.shapes import shared_start

    chosen, rejected = shared + left, shared + right
    cut = shared_start(chosen, rejected)
    assert 0 <= cut <= min(len(chosen), len(rejected))
    assert chosen[:cut] == rejected[:cut]
    assert cut < len(chosen) or not chosen


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_files_read_and_written_back(tmp_path: Path, suffix: str, gz: str) -> None:
    plain = tmp_path / f"in.{suffix}"
    frame = pd.DataFrame(ROWS)
    if suffix == "jsonl":
        jsonl(plain, ROWS)
    elif suffix == "json":
        frame.to_json(plain, orient="records")
    elif suffix == "csv":
        frame.to_csv(plain, index=False)
    else:
        frame.to_parquet(plain)
    source = tmp_path / f"in.{suffix}{gz}"
    if gz:
        source.write_bytes(gzip.compress(plain.read_bytes()))
    table = read_pairs(source)
    assert [(p.prompt, p.chosen, p.rejected) for p in table.pairs] == [
        (r["prompt"], r["chosen"], r["rejected"]) for r in ROWS
    ]
    assert [{k: str(v) for k, v in p.columns.items()} for p in table.pairs] == [{"tag": str(i)} for i in range(3)]
    kept = tmp_path / f"out.{suffix}{gz}"
    write_rows(table, [2, 0], kept)
    again = read_pairs(kept)
    assert [p.pair_id for p in again.pairs] == [table.pairs[2].pair_id, table.pairs[0].pair_id]
    assert again.raw.rows == [table.raw.rows[2], table.raw.rows[0]]


def test_jsonl_lines_are_written_byte_for_byte(tmp_path: Path) -> None:
    lines = [
        b'{"chosen":  "caf\\u00e9",  "rejected": "tea", "prompt": "drink"}',
        b"",
        '{"rejected": "b", "chosen": "é", "prompt": "p", "n": 1.50}\r'.encode(),
    ]
    source = tmp_path / "in.jsonl"
    source.write_bytes(b"\n".join(lines))
    table = read_pairs(source)
    write_rows(table, [1, 0], tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes() == lines[2] + b"\n" + lines[0] + b"\n"
    assert table.where(1) == f"{source}: line 3"  # the blank line counts as a line, not as a row


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    frame = pd.DataFrame(ROWS).astype({"tag": "int16"})
    frame.to_parquet(tmp_path / "in.parquet")
    write_rows(read_pairs(tmp_path / "in.parquet"), [1], tmp_path / "out.parquet")
    assert pq.read_schema(tmp_path / "out.parquet").field("tag").type == "int16"


def test_csv_with_line_breaks_counts_lines(tmp_path: Path) -> None:
    source = tmp_path / "in.csv"
    with open(source, "w", newline="", encoding="utf-8") as f:
        writer = csv.writer(f)
        writer.writerow(["prompt", "chosen", "rejected"])
        writer.writerow(["two\nlines", "x" * 200_000, "b"])
        writer.writerow(["q", "a"])
    table = read_pairs(source)
    assert table.pairs[0].prompt == "two\nlines"
    assert [(p.source_row, p.code) for p in table.problems] == [(1, "unreadable")]
    assert table.where(1).endswith("line 4")


def test_a_folder_goes_through_datasets(tmp_path: Path) -> None:
    (tmp_path / "set").mkdir()
    jsonl(tmp_path / "set" / "train.jsonl", ROWS)
    table = read_pairs(tmp_path / "set")
    assert [p.chosen for p in table.pairs] == ["good 0", "good 1", "good 2"]
    write_rows(table, [1], tmp_path / "out.jsonl")
    assert json.loads((tmp_path / "out.jsonl").read_text()) == ROWS[1]
    with pytest.raises(DataError, match=r"no split 'test'.*train"):
        read_pairs(tmp_path / "set", split="test")


def test_ids(tmp_path: Path) -> None:
    bare = {"prompt": "p", "chosen": "a", "rejected": "b"}
    first, second = read(tmp_path, bare, bare).pairs
    assert second.pair_id == first.pair_id + "-2"
    assert len(first.pair_id) == 16
    other = read(tmp_path, {**bare, "chosen": "a2"}, {"extra": 1, **bare}).pairs
    assert other[1].pair_id == first.pair_id  # of the content alone: neither place nor other columns count
    assert other[0].pair_id != first.pair_id
    table = read(tmp_path, {**bare, "id": 7}, {**bare, "id": 7}, {**bare, "id": 8})
    digest = first.pair_id
    assert [p.pair_id for p in table.pairs] == [f"7-{digest}", f"7-{digest}-2", "8"]  # nothing is dropped for its id
    assert table.problems == []
    assert "2 rows share their id" in table.reading.said()


def test_repeated_ids_are_the_same_wherever_the_row_stands(tmp_path: Path) -> None:
    rows = [{"id": "q", "prompt": "p", "chosen": c, "rejected": "b"} for c in ("a", "c", "d")]
    ids = {p.chosen: p.pair_id for p in read(tmp_path, *rows).pairs}
    assert {p.chosen: p.pair_id for p in read(tmp_path, *reversed(rows)).pairs} == ids
    assert len(set(ids.values())) == 3
    assert all(i.startswith("q-") for i in ids.values())


def test_a_given_id_that_looks_like_a_made_one_is_kept_apart(tmp_path: Path) -> None:
    bare = {"prompt": "p", "chosen": "a", "rejected": "b"}
    made = read(tmp_path, bare).pairs[0].pair_id
    table = read(tmp_path, {**bare, "id": f"7-{made}"}, {**bare, "id": 7}, {**bare, "id": 7}, {**bare, "id": "\ud800"})
    assert [p.pair_id for p in table.pairs] == [f"7-{made}", f"7-{made}-2", f"7-{made}-3", "\\ud800"]


@pytest.mark.parametrize("kind", ["parquet", "folder"])
def test_nulls_that_the_format_adds_are_removed_and_said(tmp_path: Path, kind: str) -> None:
    calls = [{"to": "Bonn"}, {"day": "Friday", "seats": {"class": 2}}]
    rows = [
        {"prompt": [USER], "chosen": [{**BLUE, "tool_calls": [{"function": {"name": "f", "arguments": c}}]}],
         "rejected": [GREEN], "tools": [{"type": "function", "function": {"name": "f", "parameters": c}}]}
        for c in calls
    ]  # fmt: skip
    path = tmp_path / "set.parquet"
    pd.DataFrame(rows).to_parquet(path)
    if kind == "folder":
        (tmp_path / "set").mkdir()
        path = path.rename(tmp_path / "set" / "train.parquet").parent
    table = read_pairs(path)
    assert [p.chosen[0]["tool_calls"][0]["function"]["arguments"] for p in table.pairs] == calls  # pyright: ignore
    assert [p.tools[0]["function"]["parameters"] for p in table.pairs if p.tools] == calls
    assert "removed in 2 rows" in table.reading.said()
    assert "removed" not in read(tmp_path, *rows).reading.said()


def test_nulls_that_a_person_wrote_stay(tmp_path: Path) -> None:
    call = [{"function": {"name": "f", "arguments": {"to": None}}}]
    table = read(tmp_path, {"prompt": [USER], "chosen": [{**BLUE, "tool_calls": call}], "rejected": [GREEN]})
    assert table.pairs[0].chosen == [{**BLUE, "tool_calls": call}]


@pytest.mark.parametrize(
    ("row", "code", "field"),
    [
        ({"prompt": "q", "rejected": "b"}, "missing_field", "chosen"),
        ({"prompt": "q", "chosen": None, "rejected": "b"}, "missing_field", "chosen"),
        ({"prompt": "q", "chosen": 3, "rejected": "b"}, "not_text", "chosen"),
        ({"prompt": ["q"], "chosen": "a", "rejected": "b"}, "not_text", "prompt"),
        ({"prompt": "q", "chosen": "a", "rejected": "\ud800"}, "unreadable", "rejected"),
        (["not", "a", "row"], "unreadable", ""),
    ],
)
def test_bad_rows_are_skipped_with_a_reason(tmp_path: Path, row: object, code: str, field: str) -> None:
    table = read(tmp_path, row, *ROWS)
    assert len(table.pairs) == 3
    assert [(p.source_row, p.code, p.field) for p in table.problems] == [(0, code, field)]


@pytest.mark.parametrize(
    ("good", "bad", "code"),
    [
        (
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: a\n\nAssistant: c"},
            {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: x\n\nAssistant: c"},
            "prompts_differ",
        ),
        (
            {"instruction": "i", "output_1": "a", "output_2": "b", "preference": 1},
            {"instruction": "i", "output_1": "a", "output_2": "b", "preference": 0},
            "no_preference",
        ),
        (
            {"chosen": [USER, BLUE], "rejected": [USER, GREEN]},
            {"chosen": [USER, BLUE], "rejected": [{**USER, "content": "Sea?"}, GREEN]},
            "prompts_differ",
        ),
        (
            {"chosen": [USER, BLUE], "rejected": [USER, GREEN]},
            {"chosen": [USER, {"role": "assistant", "content": 5}], "rejected": [USER, GREEN]},
            "not_text",
        ),
    ],
)
def test_rows_that_do_not_fit_their_shape(tmp_path: Path, good: dict, bad: dict, code: str) -> None:
    table = read(tmp_path, good, bad, good)
    assert [(p.source_row, p.code) for p in table.problems] == [(1, code)]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b'{"chosen": "a", "rejected": "b"}\n\n{"chosen": ', "line 3 is not JSON"),
        ("a.jsonl", b"[" * 100_000, "line 1 is not JSON"),
        ("a.jsonl", b'{"prompt": "p", "rejected": "b"}\n', "line 1: no field 'chosen'.*prompt, rejected"),
        ("a.jsonl", b'{"chosen": 1, "rejected": 2}\n', "line 1: .*neither text nor chat"),
        ("a.jsonl", b'{"chosen": "\xff"}\n', "line 1 is not UTF-8"),
        ("a.jsonl", b'{"prompt": 5, "chosen": "a", "rejected": "b"}\n', "line 1: field 'prompt' is int, not text"),
        ("a.json", b"[]", "no rows"),
        ("a.json", b'[{"chosen": "a"},\n{"x" 1}]', "line 2 is not JSON"),
        ("a.json", b'{\n"a": 1}', "one JSON value"),
        ("a.csv", b"chosen,rejected\n", "no rows"),
        ("a.csv", b'chosen,rejected\na,b\n"a"x,b\n', "line 3 is not CSV"),
        ("a.parquet", b"PAR1 broken", "not readable as Parquet"),
        ("a.jsonl.gz", b"not gzip", "cannot be read"),
        ("a.txt", b"x", "unknown kind of file.*jsonl"),
    ],
)
def test_bad_files_end_in_one_sentence(tmp_path: Path, name: str, content: bytes, says: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=says) as caught:
        read_pairs(tmp_path / name)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"gone\.jsonl: no such file"):
        read_pairs(tmp_path / "gone.jsonl")


def test_writing_refuses_other_formats_and_the_source(tmp_path: Path) -> None:
    table = read(tmp_path, *ROWS)
    with pytest.raises(UserError, match="own format"):
        write_rows(table, [0], tmp_path / "out.csv")
    with pytest.raises(UserError, match="the data set itself"):
        write_rows(table, [0], tmp_path / "pairs.jsonl")
    (tmp_path / "taken").write_text("a file, not a folder")
    with pytest.raises(DataError, match="cannot write"):
        write_rows(table, [0], tmp_path / "taken" / "out.jsonl")


def test_no_torch_is_loaded() -> None:
    code = "import sys, diagnostics.audit; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
