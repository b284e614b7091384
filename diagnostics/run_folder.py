"""A run's folder: what it was started with, its log, and what was found out about it. Train, trace and whatever else
writes a run log begin it, go on in it and end it by this. No torch.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from diagnostics import folder, outcomes
from diagnostics.errors import UserError
from diagnostics.manifest import manifest
from diagnostics.runlog import (
    RunLogWriter,
    compact,
    drop_after,
    read_json,
    read_steps,
    write_frame,
    write_json,
)


class RunFolder:
    """One run's folder; a command holds it while it works (processes.hold)."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    @property
    def empty(self) -> bool:
        """Whether nothing of a run lies in it, or it is not there."""
        return not folder.contents(self.path)

    @property
    def is_run(self) -> bool:
        """Whether something was started in it."""
        return (self.path / "config.json").exists()

    @property
    def never_began(self) -> bool:
        """Whether it is left of a start that ended before its manifest, so before anything was measured."""
        return self.is_run and not (self.path / "manifest.json").exists() and "output_dir" in self.config

    @property
    def config(self) -> dict[str, Any]:
        """The settings that it was started with."""
        return read_json(self.path / "config.json")

    @property
    def about(self) -> dict[str, Any]:
        """Its manifest."""
        return read_json(self.path / "manifest.json")

    @property
    def steps(self) -> set[int]:
        """The steps of its log."""
        return set(read_steps(self.path))

    @property
    def probed(self) -> int:
        """The last step of its log that was measured; -1 where none was."""
        return max((step for step, row in read_steps(self.path).items() if row.get("probe/n")), default=-1)

    @property
    def noise(self) -> float:
        """What a change must exceed to be a movement in this run (see outcomes.noise)."""
        return outcomes.noise(self.about.get("parity"), str(self.config.get("likelihood", "tokens")))

    def begin(self, config: Mapping[str, Any], tables: Mapping[str, pd.DataFrame]) -> None:
        """Write the settings and the tables (audit.parquet ...) of a new run; what lay there is set aside."""
        folder.set_aside(self.path)
        write_json(self.path / "config.json", dict(config))
        for name, frame in tables.items():
            write_frame(self.path / name, frame)

    def go_on(self, step: int, hashes: Mapping[str, Any]) -> None:
        """Take the log back to the end of a step; UserError where what was hashed has changed since the start."""
        self.check(hashes)
        about = self.about
        before = {name: found for name, found in about.items() if name not in ("finished", "returned")}
        if before != about:
            write_json(self.path / "manifest.json", before)
        drop_after(self.path, step)

    def describe(self, **content: Any) -> None:
        """The manifest: what the numbers depend on, with versions and conventions."""
        write_json(self.path / "manifest.json", manifest(**content))

    def note(self, **found: Any) -> None:
        """What was found out about the run, into its manifest."""
        write_json(self.path / "manifest.json", self.about | found)

    def writer(self) -> RunLogWriter:
        """Of its log."""
        return RunLogWriter(self.path)

    def compact(self) -> None:
        """Bring a log that has ended into its last form, listed with checksums."""
        compact(self.path)

    def check(self, now: Mapping[str, Any]) -> None:
        """UserError where what was hashed has changed since the start."""
        written = self.about.get("hashes", {})
        changed = sorted(k for k, v in now.items() if k in written and written[k] != v)
        if changed == ["rendered"]:
            changed = ["text of the prompts as the chat template renders it (does it show the date?)"]
        changed = [name for name in changed if name != "rendered"]  # it changed with the others
        if changed:
            raise UserError(
                f"{self.path}: the {' and '.join(changed)} changed since this run was started, so its log would mix "
                "two. Restore what it was started with, or start anew in another folder."
            )
