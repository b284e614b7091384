"""Whether a run log holds all rows that it says it has. No checksum is needed: its tables are held against each other.

Probe and held-out pairs are fixed, so every probe has rows of the same pairs; steps.jsonl says at which steps a probe
was made and how many training rows an update had. A step is written to steps.jsonl after its rows are written, so only
the rows of the last step may be missing, and only where the end of a stream was cut off by a crash.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from diagnostics.errors import DataError

FIXED = ("probe", "eval")


def require(path: Path, steps: pd.DataFrame, tables: Mapping[str, pd.DataFrame], cut: Mapping[str, bool]) -> None:
    """Raise DataError naming table and step where rows are missing.

    tables: pairs, mass, tokens as logged (before doubles are dropped), with whether the end of one was cut.
    """
    last = steps["step"].max() if len(steps) else None
    pairs = tables["pairs"]
    if len(pairs) and last is not None:
        live = any((path / "pairs").glob("*.arrow"))  # then rows may be ahead of their step's line
        unknown = sorted(set(pairs.loc[pairs["step"] < last, "step"] if live else pairs["step"]) - set(steps["step"]))
        _refuse(path / "steps.jsonl", unknown[:1], "its line is missing")
    for table, keys in (
        ("pairs", ["split", "pair_id"]),
        ("mass", ["split", "pair_id"]),
        ("tokens", ["pair_id", "side"]),
    ):
        frame, place = tables[table], path / table
        if cut[table] and last is not None:
            frame, known = frame.loc[frame["step"] < last] if len(frame) else frame, steps.loc[steps["step"] < last]
        else:
            known = steps
        if table == "pairs":
            _training(place, known, frame)
            frame = frame.loc[frame["split"].isin(FIXED)] if len(frame) else frame
        if any(place.glob("part-*")) and table != "tokens":
            _probed(place, known, frame)
        _same(place, frame, keys)


def _training(place: Path, steps: pd.DataFrame, pairs: pd.DataFrame) -> None:
    """As many training rows as steps.jsonl says."""
    if "n" not in steps or pairs.empty:
        return
    found = pairs.loc[pairs["split"] == "train"].groupby("step").size()
    wanted = steps.loc[steps["n"] > 0].set_index("step")["n"]
    _refuse(
        place, sorted(s for s, n in wanted.items() if found.get(s, 0) < n)[:1], "some of its training rows are missing"
    )


def _probed(place: Path, steps: pd.DataFrame, frame: pd.DataFrame) -> None:
    """Rows at every step at which a probe was made; in mass only where it has some at all."""
    keys = [c for c in steps if c.startswith("probe/")]
    probed = set(steps.loc[steps[keys].notna().any(axis=1), "step"]) if keys else set()
    _refuse(place, sorted(probed - (set(frame["step"]) if len(frame) else set()))[:1], "its rows are missing")


def _same(place: Path, frame: pd.DataFrame, keys: list[str]) -> None:
    """Every step that has rows of a split has those of the same pairs."""
    if frame.empty:
        return
    frame = frame.loc[:, ["step", *keys]].drop_duplicates()
    groups: list[Any] = [rows for _, rows in frame.groupby("split")] if "split" in keys else [frame]
    for rows in groups:
        counts, total = rows.groupby("step").size(), len(rows[keys].drop_duplicates())
        _refuse(place, list(counts.index[counts < total])[:1], "it has not the same pairs as the other steps")


def _refuse(place: Path, step: list[int], what: str) -> None:
    if step:
        parts = sorted(place.glob("part-*"))
        place = parts[0] if len(parts) == 1 else place
        raise DataError(f"{place}: damaged at step {step[0]}: {what}. Restore it from a copy, or run again.")
