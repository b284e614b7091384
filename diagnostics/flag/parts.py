"""The folder of a scoring job: rows go to parts/ as they are made, so that a stopped job goes on where it was.

    OUT/config.json  manifest.json  audit.parquet  parts/ (while the job is not done)  scores.parquet

A forecast passes over the pairs more than once: each pass has a folder of its own in parts/ (see forecast).

The parts are a run log's `pairs` table (see runlog): Arrow streams, one record batch for every scored batch, on disk
before the next is begun. A job goes on only with the same model, tokenizer, data and settings.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd

from diagnostics.errors import UserError
from diagnostics.runlog import RunLogWriter, read_json, read_table, write_frame, write_json

MODEL = "model (its weights)"
GONE = "parts.tmp"  # parts on their way out
NAMES = ("command", "model", "data", "probe")  # where things lie may change: their content is compared by hash


class Parts:
    """Rows of a job that is under way."""

    def __init__(self, out: Path, phase: str = "") -> None:
        self.out, self.folder = out, out / "parts" / phase

    def phase(self, name: str) -> "Parts":
        """The rows of a further pass over the pairs, apart from the others'."""
        return Parts(self.out, name)

    def start(
        self, config: Mapping[str, Any], manifest: Mapping[str, Any], audit: pd.DataFrame
    ) -> tuple[int, set[str] | None]:
        """Begin a new folder or go on in one. Returns the job's batch size in tokens and the pair_ids already scored,
        None where the job is finished.

        Raises UserError where the folder holds another kind of run, or a job with other content.
        """
        self._check_kind()
        shutil.rmtree(self.out / GONE, ignore_errors=True)
        if (self.out / "scores.parquet").exists() and not self.folder.exists():
            written = read_json(self.out / "manifest.json")
            self._check_same(
                read_json(self.out / "config.json"), written, config, manifest, "holds scores already, made"
            )
            return int(written["batch_tokens"]), None
        found = self.read()
        if found.empty:
            self.out.mkdir(parents=True, exist_ok=True)
            write_json(self.out / "config.json", config)
            write_json(self.out / "manifest.json", manifest)
            write_frame(self.out / "audit.parquet", audit)
            return int(manifest["batch_tokens"]), set()
        written = read_json(self.out / "manifest.json")
        self._check_same(read_json(self.out / "config.json"), written, config, manifest)
        return int(written["batch_tokens"]), set(found["pair_id"])

    @contextmanager
    def writer(self, rank: int) -> Iterator[Callable[[Sequence[Mapping[str, Any]]], None]]:
        """A function that adds rows; they are on disk when it returns. Each process writes its own part."""
        log = RunLogWriter(self.folder, rank=rank)
        try:
            yield lambda rows: log.append("pairs", rows)
        finally:
            log.close()

    def read(self) -> pd.DataFrame:
        """All rows so far, by pair_id; empty where there is none."""
        return read_table(self.folder, "pairs")

    def done(self) -> set[str]:
        """The pair_ids that have a row."""
        found = self.read()
        return set(found["pair_id"]) if len(found) else set()

    def remove(self) -> None:
        """The job is done and its table written. In one move: parts half removed would be a job half done."""
        if self.folder.exists():
            self.folder.rename(self.out / GONE)
        shutil.rmtree(self.out / GONE, ignore_errors=True)

    def _check_kind(self) -> None:
        config = self.out / "config.json"
        left = config.exists() or (self.out / "scores.parquet").exists()
        if left and not (config.exists() and read_json(config).get("command") == "flag"):
            raise UserError(f"{self.out}: holds a run of another kind. Choose another --out folder.")

    def _check_same(
        self,
        config: Mapping[str, Any],
        about: Mapping[str, Any],
        new_config: Mapping[str, Any],
        new: Mapping[str, Any],
        said: str = "scoring was begun here",
    ) -> None:
        before, now = _content(config, about), _content(new_config, new)
        changed = [name for name in now if before.get(name) != now[name]]
        if "dtype" in changed and MODEL in changed:
            changed.remove(MODEL)  # other numbers for that reason alone
        if changed:
            raise UserError(
                f"{self.out}: {said} with another {', another '.join(changed)}. Give the same again "
                "to go on, or choose another --out folder."
            )


def _content(config: Mapping[str, Any], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a row of scores depends on, by the name that a person knows."""
    hashes = manifest["hashes"]
    content = {"dtype": manifest["dtypes"]["weights"], MODEL: hashes["model"]}
    content |= {"tokenizer": hashes.get("tokenizer"), "data set": hashes["data"], "probe": hashes.get("probe")}
    return content | {k: v for k, v in json.loads(json.dumps(config)).items() if k not in NAMES}
