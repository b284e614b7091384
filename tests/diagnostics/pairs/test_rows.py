"""Files as rows: what a packed file may unpack to."""

import gzip
import json
from pathlib import Path

import pytest

from diagnostics.errors import DataError
from diagnostics.pairs import rows as raw_rows
from diagnostics.pairs.rows import read_rows


def test_a_file_that_unpacks_without_end_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_rows, "GZ_LEAST", 2**20)
    row = json.dumps({"prompt": "p", "chosen": "a" * 2**20, "rejected": "b"}).encode()
    (tmp_path / "trap.jsonl.gz").write_bytes(gzip.compress(row * 4))
    with pytest.raises(DataError, match=r"trap.jsonl.gz: unpacks to more than 1 MiB, over 100 times its size"):
        read_rows(tmp_path / "trap.jsonl.gz")


def test_ordinary_packed_text_is_read(tmp_path: Path) -> None:
    rows = [{"prompt": f"{i:x}" * 9, "chosen": "a", "rejected": "b"} for i in range(3000)]
    text = "".join(json.dumps(r) + "\n" for r in rows)
    (tmp_path / "rows.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert read_rows(tmp_path / "rows.jsonl.gz").rows == rows


def test_a_packed_file_that_was_cut(tmp_path: Path) -> None:
    packed = gzip.compress(b'{"prompt": "p", "chosen": "a", "rejected": "b"}\n' * 50)
    (tmp_path / "cut.jsonl.gz").write_bytes(packed[:-9])
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "cut.jsonl.gz")
