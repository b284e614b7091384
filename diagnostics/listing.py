"""The finished files of a run folder, listed in its manifest.json and held against it before they are read.

    "files": {"pairs/part-00000-r0.parquet": {"rows": 35, "bytes": 6301, "sha256": "..."}, "steps.jsonl": ...}

A file that a run goes on writing to (steps.jsonl after a resume) may be longer than it was when it was listed.
"""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from diagnostics.errors import DataError
from diagnostics.files import read_json, write_json

GROWS = ("steps.jsonl",)
_AGAIN = "If it was changed on purpose, remove its line from `files` in manifest.json; if not, run again"


def listed(folder: Path) -> dict[str, dict[str, Any]]:
    """The list of a folder; empty where it has none. Raises DataError where it is no such list."""
    path = folder / "manifest.json"
    files = read_json(path).get("files", {}) if path.exists() else {}
    if not isinstance(files, dict) or not all(_is_entry(entry) for entry in files.values()):
        raise DataError(f"{path}: `files` is no list of files with bytes, rows and sha256. The file is damaged.")
    return files


def check(folder: Path, name: str) -> None:
    """Raise DataError where the folder lists a file (by its name from there) that is missing or not as it was."""
    entry = listed(folder).get(name)
    if entry is None:
        return
    try:
        with open(folder / name, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            data = file.read(min(size, entry["bytes"]))
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{folder / name}: manifest.json lists it, but it cannot be read ({reason}). {_AGAIN}."
        ) from None
    same = len(data) == entry["bytes"] and hashlib.sha256(data).hexdigest() == entry["sha256"]
    if not same or (size > entry["bytes"] and name not in GROWS):
        raise DataError(f"{folder / name}: damaged, it is not as manifest.json lists it. {_AGAIN}.")


def add(folder: Path, rows: Mapping[str, int]) -> None:
    """List files as they are now (name: rows); the folder's other files as they were. Nothing without manifest.json."""
    path = folder / "manifest.json"
    if path.exists():
        files = listed(folder) | {name: _entry(folder / name, n) for name, n in rows.items()}
        write_json(path, read_json(path) | {"files": files})


def clear(folder: Path) -> None:
    """Forget the list, before files that stand in it are written anew."""
    path = folder / "manifest.json"
    if path.exists():
        write_json(path, {k: v for k, v in read_json(path).items() if k != "files"})


def _entry(path: Path, rows: int) -> dict[str, Any]:
    with open(path, "rb") as file:
        return {"rows": rows, "bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}


def _is_entry(entry: Any) -> bool:
    typed = isinstance(entry, dict) and all(type(entry.get(k)) is t for k, t in (("bytes", int), ("sha256", str)))
    return typed and entry["bytes"] >= 0
