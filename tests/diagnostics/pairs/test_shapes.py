"""Every file of tests/data/rows through the reader: the right pairs, or one sentence that names the column.

expected.json says for each file: shape and pairs (prompt, chosen, rejected), or `error`, a part of the sentence. Where
given also: chat (the prompt as a chat), ignored and scores (columns), problems (row, code), tools, template_kwargs, and
says (a part of what the reading says).
"""

import json
from pathlib import Path
from typing import Any

import pytest

from diagnostics.errors import DataError
from diagnostics.pairs import PreferencePair, read_pairs

ROWS = Path(__file__).parents[2] / "data" / "rows"
EXPECTED: dict[str, dict[str, Any]] = json.loads((ROWS / "expected.json").read_text(encoding="utf-8"))


def test_every_file_has_its_outcome() -> None:
    assert {p.name for p in ROWS.iterdir()} == {*EXPECTED, "expected.json"}


@pytest.mark.parametrize("name", [n for n in EXPECTED if "error" in EXPECTED[n]])
def test_what_cannot_be_read_is_refused_by_name(name: str) -> None:
    with pytest.raises(DataError) as caught:
        read_pairs(ROWS / name)
    assert EXPECTED[name]["error"] in str(caught.value)
    assert str(caught.value).startswith(str(ROWS / name))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [n for n in EXPECTED if "error" not in EXPECTED[n]])
def test_what_is_read_is_read_right(name: str) -> None:
    expected, table = EXPECTED[name], read_pairs(ROWS / name)
    reading = table.reading
    assert reading.shape == table.shape == expected["shape"]
    assert [[p.prompt, p.chosen, p.rejected] for p in table.pairs] == expected["pairs"]
    assert [[p.source_row, p.code] for p in table.problems] == expected.get("problems", [])
    for column in expected.get("ignored", []):
        assert column in reading.ignored
    assert reading.used.get("scores", ()) == tuple(expected.get("scores", ()))
    assert expected.get("says", "") in reading.said()
    for key in ("chat", "tools", "template_kwargs"):
        if key in expected:
            assert _field(table.pairs[0], key) == expected[key]


def test_every_column_is_used_or_ignored_and_said() -> None:
    for name in [n for n in EXPECTED if "error" not in EXPECTED[n]]:
        table = read_pairs(ROWS / name)
        columns = {c for row in table.raw.rows for c in row}
        used = {c for names in table.reading.used.values() for c in names}
        assert columns == used | set(table.reading.ignored)
        assert not used & set(table.reading.ignored)
        said = table.reading.said()
        assert all(column in said for column in columns)
        assert "\n" not in said


def test_a_hostile_column_name_is_written_out(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "x\x1b[31m": 1}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    assert "\x1b" not in read_pairs(tmp_path / "rows.jsonl").reading.said()


def _field(pair: PreferencePair, key: str) -> Any:
    return pair.chat_prompt if key == "chat" else getattr(pair, key)
