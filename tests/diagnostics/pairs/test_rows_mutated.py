"""Spoiled rows and spoiled files through the reader: pairs or one sentence, every row accounted for, no text changed.

CHESBOARD_MUTATIONS sets how many cases each test tries.
"""

import gzip
import json
import os
import random
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diagnostics.errors import UserError
from diagnostics.pairs import PairTable, read_pairs
from diagnostics.pairs.context import is_blank

ROWS = Path(__file__).parents[2] / "data" / "rows"
CORPUS = [
    [json.loads(line) for line in p.read_text(encoding="utf-8").splitlines()] for p in sorted(ROWS.glob("*.jsonl"))
]
PROMPTS = ("prompt", "question", "system", "instruction", "input", "context", "query", "passage", "history")
VALUES: list[Any] = [None, "", " ", 0, -1.5, True, [], {}, "Which?", "\ud800", "\x00\x1b[31m", "a\r\nb", "x" * 5000]
VALUES += [[None], [[]], [{}], {"role": "user"}, [{"role": "user", "content": None}], [{"from": "gpt", "value": "Hm"}]]
VALUES += ["[{'role': 'user', 'content': 'Which?'}]", "[{'role': 'user', 'content': ", "{", 10**30, float("nan")]
KEYS = (
    "prompt",
    "question",
    "context",
    "messages",
    "system",
    "chosen",
    "rejected",
    "id",
    "role",
    "content",
    "tools",
    "",
)
TRIES = int(os.environ.get("CHESBOARD_MUTATIONS", "1200"))
tried = settings(max_examples=TRIES, deadline=None, suppress_health_check=list(HealthCheck), database=None)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("rows")


@tried
@given(st.integers(0, 2**48))
def test_spoiled_rows(folder: Path, seed: int) -> None:
    chance = random.Random(seed)
    rows = [_spoiled(row, chance) for row in json.loads(json.dumps(chance.choice(CORPUS))) * chance.randint(1, 3)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "rows.jsonl").write_text(lines, encoding="utf-8")
    table = _read(folder / "rows.jsonl")
    if table:
        _hold(table, rows)


@tried
@given(st.integers(0, 2**48), st.sampled_from(["jsonl", "json", "csv", "parquet", "jsonl.gz"]))
def test_spoiled_files(folder: Path, seed: int, suffix: str) -> None:
    chance = random.Random(seed)
    data = bytearray(_packed(suffix))
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data))
        change = chance.choice(("flip", "cut", "drop", "double"))
        if change == "flip":
            data[at] ^= 1 << chance.randrange(8)
        elif change == "cut":
            del data[max(1, at) :]
        elif change == "drop":
            del data[at : at + chance.randint(1, 20)]
        else:
            data[at:at] = data[at : at + chance.randint(1, 200)]
        data = data or bytearray(b" ")
    (folder / f"file.{suffix}").write_bytes(bytes(data))
    table = _read(folder / f"file.{suffix}")
    if table:
        _hold(table, table.raw.rows)


def _read(path: Path) -> PairTable | None:
    """The table, or None where the file was refused in one sentence that names it."""
    try:
        return read_pairs(path)
    except UserError as error:
        said = str(error)
    assert str(path) in said
    assert "\n" not in said
    assert len(said) < 2000
    return None


def _hold(table: PairTable, rows: list[Any]) -> None:
    """Rows in are rows out; ids are unique; answers stand in their rows; what asks stands in the pair."""
    assert sorted(r.source_row for r in [*table.pairs, *table.problems]) == list(range(len(table.raw.rows)))
    assert len({p.pair_id for p in table.pairs}) == len(table.pairs)
    assert all(p.reason and p.code for p in table.problems)
    assert "\n" not in table.reading.said()
    for pair in table.pairs:
        inside = _joined(_strings(rows[pair.source_row]))
        for side in (pair.chosen, pair.rejected):
            texts = [side] if isinstance(side, str) else [m["content"] for m in side]
            assert all(_joined([t]) in inside or _escaped(t) in inside for t in texts)
        whole = _joined(_strings([pair.prompt, pair.chosen, pair.rejected]))
        row = rows[pair.source_row]
        for name in PROMPTS:
            if is_blank(name, row.get(name)):
                continue
            if isinstance(row.get(name), str) and not row[name].lstrip().startswith(("[", "{", '"[{', '"{')):
                assert _joined([row[name]]) in whole


def _joined(texts: list[str]) -> str:
    return "".join("".join(texts).split())


def _escaped(text: str) -> str:
    """As it stands in text that is itself a list of messages."""
    return _joined([json.dumps(text)[1:-1]])


def _strings(value: Any) -> list[str]:
    if isinstance(value, dict | list):
        return [t for v in (value.values() if isinstance(value, dict) else value) for t in _strings(v)]
    return [value] if isinstance(value, str) else []


def _spoiled(row: Any, chance: random.Random) -> Any:
    """The row with up to three things changed somewhere inside."""
    for _ in range(chance.randint(0, 3)):
        place, key = _somewhere(row, chance)
        if place is None:
            return chance.choice(VALUES)
        change = chance.choice(("value", "drop", "rename", "wrap", "text"))
        if change == "drop":
            del place[key]
        elif change == "rename" and isinstance(place, dict):
            place[chance.choice(KEYS)] = place.pop(key)
        elif change == "wrap":
            place[key] = [place[key]]
        elif change == "text":
            place[key] = json.dumps(place[key]) if chance.random() < 0.5 else str(place[key])
        else:
            place[key] = json.loads(json.dumps(chance.choice(VALUES)))
    return row


def _somewhere(value: Any, chance: random.Random) -> tuple[Any, Any]:
    """A container inside the value and one of its keys; None where there is none."""
    found, here = (None, None), value
    while isinstance(here, dict | list) and here:
        key = chance.choice(list(here)) if isinstance(here, dict) else chance.randrange(len(here))
        found = (here, key)
        if chance.random() < 0.4:
            break
        here = here[key]
    return found


def _packed(suffix: str) -> bytes:
    """A small file of that kind."""
    talk = [{"role": "user", "content": "Which bird?"}, {"role": "assistant", "content": "The kiwi."}]
    rows = [
        {"id": i, "system": "Be brief.", "question": f"Which bird {i}?", "chosen": f"a{i}", "rejected": "b"}
        for i in range(4)
    ]
    chats = [
        {"chosen": talk, "rejected": [talk[0], {"role": "assistant", "content": f"A tern {i}."}]} for i in range(3)
    ]
    if suffix == "csv":
        return pd.DataFrame(rows).to_csv(index=False).encode()
    if suffix == "parquet":
        return pd.DataFrame(chats).to_parquet(compression=None)
    if suffix == "json":
        return json.dumps(chats).encode()
    lines = "".join(json.dumps(row) + "\n" for row in (rows if suffix == "jsonl" else chats)).encode()
    return gzip.compress(lines, mtime=0) if suffix.endswith("gz") else lines
