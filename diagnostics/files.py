"""Small files of a run folder: JSON objects, written in one move; an error of the disk is one sentence."""

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from diagnostics.errors import DataError


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong while `path` is written into one sentence; what was written before stays."""
    try:
        yield
    except FileNotFoundError:
        raise DataError(f"{path}: cannot write, for its folder was removed meanwhile. Start again.") from None
    except MemoryError:
        raise DataError(
            f"{path}: cannot write (out of memory). Rows logged before this are kept; resume with smaller batches."
        ) from None
    except (OSError, pa.ArrowException) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DataError(
            f"{path}: cannot write ({reason}). Rows logged before this are kept; free some space "
            "or choose another folder, then resume."
        ) from None


def read_json(path: str | Path) -> dict[str, Any]:
    """A JSON object, or DataError naming the file."""
    try:
        content = json.loads(read_text(path))
    except RecursionError:
        raise DataError(f"{path}: not readable as JSON (nested too deeply). The file is damaged; run again.") from None
    except ValueError as error:
        raise DataError(f"{path}: not readable as JSON ({error}). The file is damaged; run again.") from None
    if not isinstance(content, dict):
        raise DataError(f"{path}: holds no JSON object ({{...}}). The file is damaged; run again.")
    return content


def read_text(path: str | Path) -> str:
    """A UTF-8 file, with or without a byte order mark, its line ends as they are; DataError naming the file."""
    try:
        return Path(path).read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file.") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}).") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: byte {error.start} is not UTF-8. The file is damaged; run again.") from None


def write_json(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a JSON object in one move, so that no half file is ever seen."""
    replace_text(Path(path), json.dumps(content, indent=2, default=str) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Write a text file in one move."""
    part = path.with_name(path.name + ".tmp")
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(text, encoding="utf-8", newline="")
        os.replace(part, path)
