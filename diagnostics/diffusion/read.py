"""Pairs of samples from the files people have: images or numbers with a label, a prompt or scores; audited row by row.

A row holds one of
    jpg_0, jpg_1, label_0       two images and which is preferred (Pick-a-Pic): 1 the first, 0 the second, .5 a tie
    chosen, rejected            a sample each
    image, condition_w, condition_l   one sample under the right and under a wrong condition
    images, scores              a list of samples with a score each: every pair of unequal scores
and what the model is told: `prompt` or `caption` (text), `class` or `class_label` (a number). A sample is the path of
an image, of an .npy or of a .safetensors file, an image's bytes, or the numbers themselves. Numbers are taken as the
model takes them (images in [-1, 1], or latents). A .safetensors or .npz file of arrays is a table: entry i of every
array is row i. `segments` and `weights` (`chosen_weights`, `rejected_weights`) hold a number for each of a sample's.
"""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file

from diagnostics.audit import SAMPLES, Audit, count_codes, frame_of
from diagnostics.diffusion.denoiser import Denoiser
from diagnostics.diffusion.sample import Sample, array_digest, sample_pair
from diagnostics.errors import DataError
from diagnostics.pairs import PairTable, PreferencePair, RawRows, Reading, RowProblem
from diagnostics.pairs.rows import folder_of, read_rows
from diagnostics.progress import Steps
from diagnostics.sequences import Example

PICKED, SIDES, CONDITIONS, LISTS = (
    ("jpg_0", "jpg_1", "label_0"), ("chosen", "rejected"), ("condition_w", "condition_l"), ("images", "scores")
)  # fmt: skip
ONE = ("image", "sample", "jpg")  # the sample of a row with two conditions
TOLD = {"text": ("prompt", "caption"), "class": ("class_label", "class_labels", "class"), "": ()}
_ARRAYS = {".safetensors": load_file, ".npz": lambda path: dict(np.load(path, allow_pickle=False))}


class Skip(Exception):
    """A row that gives no pair: a code of the audit and the reason."""

    def __init__(self, code: str, reason: str) -> None:
        super().__init__(reason)
        self.code, self.reason = code, reason


@dataclass(frozen=True)
class Wanted:
    """One pair as a row means it, by name chosen and rejected: where the samples are, and what the model is told."""

    sources: Mapping[str, Any]
    told: Mapping[str, Any]
    columns: dict[str, Any] = field(default_factory=dict)
    group: str = ""
    suffix: str = ""


def read_samples(
    source: str, model: Denoiser, *, split: str | None = None, folder: str | None = None, chains: bool | None = None
) -> Audit:
    """Every row of a data set as pairs of samples for this model, kept or skipped. folder: what paths are relative to;
    default is the data's own. chains: a sample is a chain of points, and the row's `times` are theirs; None: so it is
    where rows have `times`."""
    raw = _raw(source, split)
    if chains is None:
        chains = any(isinstance(row, dict) and "times" in row for row in raw.rows)
    shape = _shape(source, raw)
    base = Path(folder) if folder else folder_of(source)
    table = PairTable(source, _reading(raw, shape, model), [], [], raw)
    rows, kept, seen = [], [], {}
    with Steps("audit", len(raw.rows), unit="row") as steps:
        for at, row in enumerate(raw.rows):
            for asked in _asked(table, at, row, shape, model):
                rows.append(_audited(table, at, asked, model, base, chains, kept, seen))
            steps.add(1)
    rows += [_row("", p.source_row, "", ("", ""), reason=f"{p.code}: {p.reason}") for p in table.problems]
    frame = frame_of(sorted(rows, key=lambda row: row["source_row"]))
    return Audit(table, frame, kept, count_codes(frame), 0, 0)


def _raw(source: str, split: str | None) -> RawRows:
    load = _ARRAYS.get(Path(source).suffix.lower())
    if load is None:
        return read_rows(source, split)
    try:
        arrays = load(source)
    except (OSError, SafetensorError, ValueError) as error:
        raise DataError(f"{source}: cannot be read ({' '.join(str(error).split())[:200]}).") from None
    counts = {name: len(values) if values.ndim else 0 for name, values in arrays.items()}
    if len(set(counts.values())) != 1:
        raise DataError(f"{source}: its arrays have {counts} entries; give each one entry a pair.")
    rows = [dict(zip(arrays, entry, strict=True)) for entry in zip(*arrays.values(), strict=True)]
    return RawRows(Path(source).suffix[1:], rows)


def _shape(source: str, raw: RawRows) -> tuple[str, ...]:
    """Which of the four shapes most rows have."""
    fits = {shape: sum(isinstance(r, dict) and set(shape) <= r.keys() for r in raw.rows) for shape in
            (PICKED, CONDITIONS, LISTS, SIDES)}  # fmt: skip
    best = max(fits, key=lambda shape: fits[shape])
    if not fits[best]:
        columns = sorted({str(name) for row in raw.rows if isinstance(row, dict) for name in row})[:20]
        raise DataError(
            f"{source}: no row holds a pair of samples (its columns: {', '.join(columns) or 'none'}). Give chosen and "
            "rejected, or jpg_0, jpg_1 and label_0, or images and scores, or condition_w and condition_l."
        )
    return best


def _reading(raw: RawRows, shape: tuple[str, ...], model: Denoiser) -> Reading:
    columns = {str(name) for row in raw.rows if isinstance(row, dict) for name in row}
    used = {"preference": tuple(shape)}
    if told := tuple(name for name in TOLD[model.told] if name in columns)[:1]:
        used["prompt"] = told
    known = {*shape, *told, *ONE, "id", "pair_id", "segments", *(f"{s}_weights" for s in SIDES), "weights"}
    return Reading(SAMPLES, used, tuple(sorted(columns - known)))


def _asked(table: PairTable, at: int, row: Any, shape: tuple[str, ...], model: Denoiser) -> Iterator[Wanted]:
    """The pairs that a row means; what gives none goes into the table's problems."""
    try:
        if not isinstance(row, dict):
            raise Skip("unreadable", "the row is no set of fields")
        if missing := [name for name in shape if not _is_there(row.get(name))]:
            raise Skip("missing_field", f"'{missing[0]}' is missing")
        told = _told(row, model)
        if shape == PICKED:
            (label,) = _floats(row, "label_0", 1)
            if label == 0.5:
                raise Skip("tie", "label_0 is 0.5: neither image is preferred")
            if label not in (0.0, 1.0):
                raise Skip("no_preference", f"label_0 is {label:g}; give 1, 0, or 0.5 for a tie")
            both = ("jpg_0", "jpg_1") if label == 1 else ("jpg_1", "jpg_0")
            found = [Wanted({side: row[name] for side, name in zip(SIDES, both)}, dict.fromkeys(SIDES, told))]
        elif shape == CONDITIONS:
            one = next((row[name] for name in ONE if row.get(name) is not None), None)
            if one is None:
                raise Skip("missing_field", "'image' is missing")
            found = [Wanted(dict.fromkeys(SIDES, one), dict(zip(SIDES, (row[c] for c in CONDITIONS))))]
        elif shape == LISTS:
            found = list(_listed(row, told, at))
        else:
            found = [Wanted({side: row[side] for side in SIDES}, dict.fromkeys(SIDES, told))]
    except Skip as skip:
        table.problems.append(RowProblem(at, skip.code, "", skip.reason))
        return
    yield from found


def _told(row: dict[str, Any], model: Denoiser) -> Any:
    names = TOLD[model.told]
    found = next((row[name] for name in names if _is_there(row.get(name))), None)
    if names and found is None and not set(CONDITIONS) <= row.keys():
        raise Skip("missing_field", f"'{names[0]}' is missing, which this model is told")
    return found


def _listed(row: dict[str, Any], told: Any, at: int) -> Iterator[Wanted]:
    """Every pair of a list whose scores differ, the better one chosen."""
    scores, images = _floats(row, "scores"), row["images"]
    if not isinstance(images, (list, tuple, np.ndarray)) or len(scores) != len(images):
        raise Skip("unreadable", f"'images' is no list of as many samples as there are scores ({len(scores)})")
    if not np.isfinite(scores).all():
        raise Skip("no_preference", "a score is not a finite number")
    if len(scores) < 2:
        raise Skip("no_preference", "a list of one sample has no pair")
    if len(set(scores)) < 2:
        raise Skip("tie", "all scores are equal")
    for i, better in enumerate(scores):
        for j, worse in enumerate(scores):
            if better > worse:
                both = dict(zip(SIDES, (images[i], images[j])))
                columns = {"chosen_score": better, "rejected_score": worse}
                yield Wanted(both, dict.fromkeys(SIDES, told), columns, group=f"list {at}", suffix=f"/{i}-{j}")


def _audited(
    table: PairTable, at: int, asked: Wanted, model: Denoiser, base: Path, chains: bool,
    kept: list[Example], seen: dict[Any, str],
) -> dict[str, Any]:  # fmt: skip
    """The pair's row of the audit; the pair itself into kept."""
    row = table.raw.rows[at]
    names = tuple(_name(asked.sources[side]) for side in SIDES)
    said = " / ".join(dict.fromkeys(str(asked.told[side]) for side in SIDES if asked.told[side] is not None))
    try:
        example, doubts, media = _pair(table, at, asked, model, base, chains)
    except Skip as skip:
        return _row("", at, said, names, reason=f"{skip.code}: {skip.reason}")
    if example.pair_id in seen:
        example = replace(example, pair_id=f"{example.pair_id}#{at}")
    seen[example.pair_id] = example.pair_id
    columns = {k: v for k, v in row.items() if k not in {*PICKED, *SIDES, *LISTS, *ONE}} | asked.columns
    columns = {k: v.tolist() if isinstance(v, (np.ndarray, np.generic)) else v for k, v in columns.items()}
    table.pairs.append(PreferencePair(example.pair_id, at, said, *names, columns=columns, media=media))
    key = tuple(example.rows[side].media for side in SIDES)
    doubts |= ({"duplicate"} if key in seen else set()) | ({"contradiction"} if key[::-1] in seen else set())
    seen.setdefault(key, example.pair_id)
    kept.append(replace(example, doubts=tuple(sorted(doubts))))
    return _row(example.pair_id, at, said, names, doubts="; ".join(sorted(doubts)))


def _pair(
    table: PairTable, at: int, asked: Wanted, model: Denoiser, base: Path, chains: bool
) -> tuple[Example, set[str], Any]:
    row, doubts = table.raw.rows[at], set()
    found = {side: _loaded(asked.sources[side], base) for side in SIDES}
    images = {side for side in SIDES if found[side].dtype == np.uint8}
    if len({found[side].shape for side in SIDES}) > 1 and images:
        doubts.add("sizes_differ")
    values = {side: model.see([found[side]])[0] if side in images else found[side].astype(np.float32) for side in SIDES}
    for side in SIDES:
        size, wanted = values[side].shape, model.shape
        if chains and wanted is not None and size:
            wanted = (size[0], *wanted)
        if wanted is not None and size != wanted and (len(size) != 1 or size[0] != np.prod(wanted)):
            raise Skip("other_size", f"{side} has {size} numbers, and the model takes {wanted}")
        if not np.isfinite(values[side]).all():
            raise Skip("media_unreadable", f"{side} holds numbers that are not finite")
        values[side] = values[side].reshape(wanted or size)
    try:
        told = dict(zip(SIDES, model.tell([asked.told[side] for side in SIDES]), strict=True))
    except DataError as error:
        raise Skip("missing_field", str(error)) from None
    if chains:
        if row.get("times") is None:
            raise Skip("missing_field", "'times' is missing, the times of a chain's points")
        times = _floats(row, "times")
        if any(len(times) != (len(values[side]) if values[side].ndim else 0) for side in SIDES):
            raise Skip("other_size", "a chain has not as many points as 'times' has numbers")
        if any(not 0 <= t < model.steps or t % 1 for t in times) or any(a <= b for a, b in pairwise(times)):
            raise Skip("unreadable", f"'times' are no falling whole numbers from 0 to {model.steps - 1}")
        told = {side: {**of, "times": np.array(times, dtype=np.int64)} for side, of in told.items()}
    parts = {side: {name: _numbers(row, name, side, values[side].size) for name in ("segments", "weights")}
             for side in SIDES}  # fmt: skip
    loads = {side: partial(_loaded, asked.sources[side], base) if side in images else None for side in SIDES}
    samples = {
        side: Sample(values[side], told[side], group=asked.group, load=loads[side], **parts[side]) for side in SIDES
    }
    if samples["chosen"] == samples["rejected"]:
        raise Skip("identical_completions", "chosen and rejected are the same sample")
    known = row.get("pair_id", row.get("id", row.get("ranking_id")))
    name = str(known) if known is not None else f"row{at:06d}"
    media = tuple(array_digest(found[side]) for side in SIDES)  # for the hash of the data
    return sample_pair(f"{name}{asked.suffix}", at, samples), doubts, media


def _numbers(row: dict[str, Any], name: str, side: str, size: int) -> np.ndarray | None:
    """A number for each of a sample's, where the row gives them."""
    given = row.get(f"{side}_{name}", row.get(name))
    if given is None:
        return None
    found = np.array(_floats({name: given}, name))
    if len(found) != size:
        raise Skip("other_size", f"'{name}' has {len(found)} numbers for a sample of {size}")
    if name == "segments" and not ((found >= 0) & (found % 1 == 0)).all():
        raise Skip("unreadable", "'segments' are no whole numbers from 0 on")
    if name == "weights" and not ((found >= 0) & (found <= 1)).all():
        raise Skip("unreadable", "'weights' are not from 0 to 1")
    return found.astype(np.int64 if name == "segments" else np.float32)


def _is_there(value: Any) -> bool:
    """Whether a field holds something: tables have NaN where they have nothing."""
    return value is not None and not (isinstance(value, float) and np.isnan(value))


def _floats(row: dict[str, Any], name: str, count: int | None = None) -> list[float]:
    """A field's numbers, of any shape, finite or not. Skip where it holds anything else, or not so many of them."""
    try:
        found = np.asarray(row[name], dtype=np.float64).reshape(-1).tolist()
    except (TypeError, ValueError):
        found = []
    if not found or len(found) != (count or len(found)):
        raise Skip("unreadable", f"'{name}' holds {str(row[name])[:40]!r} in the place of numbers")
    return found


def _loaded(source: Any, base: Path) -> np.ndarray:
    """A sample as it is given: (H, W, 3) uint8 of an image, else its numbers."""
    if isinstance(source, dict):  # as data sets of images hold them
        source = source.get("bytes") or source.get("path")
    if isinstance(source, bytes):
        return _image(io.BytesIO(source), "the image")
    if not isinstance(source, str):
        try:
            found = np.asarray(source, dtype=np.float32)
        except (TypeError, ValueError):
            raise Skip("unreadable", "a sample is neither a path, an image nor numbers") from None
        if not found.size:
            raise Skip("empty_completion", "a sample is empty")
        return found
    path = base / source
    if not path.is_file():
        raise Skip("media_missing", f"{source} is not there")
    if path.suffix.lower() not in (".npy", ".safetensors"):
        return _image(path, source)
    try:
        if path.suffix.lower() == ".npy":
            return np.asarray(np.load(path, allow_pickle=False), dtype=np.float32)
        (found,) = load_file(path).values()
        return np.asarray(found, dtype=np.float32)
    except (OSError, ValueError, SafetensorError) as error:
        raise Skip("media_unreadable", f"{source}: {' '.join(str(error).split())[:120]}") from None


def _image(file: Any, name: str) -> np.ndarray:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise Skip("media_unreadable", f"{name} cannot be decoded ({' '.join(str(error).split())[:120]})") from None


def _name(source: Any) -> str:
    """A sample in a word, for the audit."""
    if isinstance(source, dict):
        source = source.get("path") or source.get("bytes")
    if isinstance(source, str):
        return source
    return f"image of {len(source)} bytes" if isinstance(source, bytes) else f"numbers {np.shape(source)}"


def _row(
    pair_id: str, at: int, prompt: str, names: tuple[str, ...], *, reason: str = "", doubts: str = ""
) -> dict[str, Any]:
    known = {"pair_id": pair_id, "source_row": at, "prompt": prompt, "chosen": names[0], "rejected": names[1]}
    if reason:
        return known | {"status": "skipped", "reason": reason, "doubts": ""}
    kept = {"status": "kept", "reason": "", "doubts": doubts, "prompt_length": 0}
    return known | kept | {"chosen_length": 1, "rejected_length": 1}
