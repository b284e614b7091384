"""Rows of media, question and answer that a model is asked, and the folder of what it said: what all makers of pairs
from a model's own answers share.

A folder holds config.json (what it was started with), answers.jsonl (what the model said, a line a row, which a later
start goes on from), the pairs, and audit.parquet (every row of the data: kept, or why not).
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diagnostics.errors import DataError, UserError
from diagnostics.files import disk_errors, read_json, replace_text, write_json
from diagnostics.fingerprint import weights_hash
from diagnostics.media import Media
from diagnostics.pairs import PreferencePair, SkipRow, Text, pairs_of
from diagnostics.pairs.answers import RRPO
from diagnostics.pairs.media import COLUMNS, TAG, in_parts, media_columns
from diagnostics.pairs.rows import read_rows
from diagnostics.pairs.table import media_folder_of
from diagnostics.progress import Steps
from diagnostics.runlog import write_frame
from diagnostics.sampling import answers, room
from diagnostics.templates import Turn, find_turn
from diagnostics.tokenized import SkippedPair, render_pairs, tokenize_prompts
from diagnostics.vision.prompts import placed
from diagnostics.vision.tensors import unseen
from trainers.models import load_to_device, load_tokenizer

TOGETHER = 16  # rows answered at a time, and kept together: a start goes on at a multiple of it
TRUTH, LONGEST = "answer", 256  # the column of the true answer; most tokens of an answer
IDS = ("sample_id", "pair_id", "id")
REASONS = {
    "right": "the answer on the perturbed clip is right",
    "unclear": "the checker gave no verdict",
    "empty": "an answer is empty",
    "same": "both answers are the same",
    "no_truth": "the true answer is blank",
    "tags": "an answer holds <MASK> or </MASK> itself",
    "no_phrase": "no words of one stand in place of words of the other",
    "unscored": "the metric gives no points to two or more answers",
    "near": "no two answers differ by enough points",
    "long": "the true answer is too long",
    "sure": "the model was too sure of its answer",
    "no_room": "the prompt leaves the model no room to answer",
    "attended": "the model looked at the right image enough",
}


@dataclass(frozen=True)
class Made:
    """Pairs that were made. path: their file; counts: how many rows were kept, and left out by code of REASONS or of
    the reader."""

    path: Path
    counts: dict[str, int]

    def said(self) -> str:
        """One line: how many were kept, and why the others were not."""
        left = [f"{n} {code} ({REASONS[code]})" if code in REASONS else f"{n} {code}" for code, n in self._left()]
        return f"{self.counts.get('kept', 0)} of {sum(self.counts.values())} rows gave a pair" + (
            f"; left out: {', '.join(left)}." if left else "."
        )

    def _left(self) -> list[tuple[str, int]]:
        return sorted((item for item in self.counts.items() if item[0] != "kept"), key=lambda item: (-item[1], item[0]))


def row_seed(seed: int, source_row: int) -> int:
    """A row's own seed."""
    return int(np.random.default_rng([seed, source_row]).integers(2**31))


def untagged(text: str) -> str:
    """A text that is quoted in a prompt, without tags that would stand for media there."""
    return TAG.sub("", text).strip()


def question(pair: PreferencePair) -> str:
    """The question as the data has it, with its tags."""
    return str(pair.prompt)


@dataclass
class Asking:
    """One making of pairs. raw: the data's rows; pairs: those that can be asked; skipped: why others cannot, by row, as
    code and reason; left: the same of rows that could not be asked when it came to it."""

    out: Path
    settings: dict[str, Any]
    model: Any
    tokenizer: Any
    turn: Turn | None
    raw: list[Any]
    folder: Path
    pairs: list[PreferencePair]
    skipped: dict[int, tuple[str, str]]
    left: dict[int, tuple[str, str]] = field(default_factory=dict)

    def say(
        self,
        group: Sequence[PreferencePair],
        asked: Sequence[str],
        shown: Sequence[tuple[Media, ...]],
        heat: float,
        draw: int,
    ) -> list[str]:
        """The model's answers to questions about what is shown. draw: seed of what is drawn at a temperature. Where it
        cannot be asked the answer is blank, and `left` says why."""
        prompts = [self._asked(*row) for row in zip(group, asked, shown, strict=True)]
        places = [k for k, pair in enumerate(group) if pair.source_row not in self.left]
        how: dict[str, Any] = {"temperature": heat, "limit": self.settings["limit"], "seed": draw, "together": TOGETHER}
        rows, media = [prompts[k] or "" for k in places], [shown[k] for k in places]
        found = dict(zip(places, answers(self.model, self.tokenizer, rows, media=media, **how), strict=True))
        return [found.get(k, "") for k in range(len(group))]

    def _asked(self, pair: PreferencePair, text: str, media: tuple[Media, ...]) -> Text | None:
        """The prompt, or None where the row is left."""
        try:
            if why := unseen(self.tokenizer.family, (*pair.media, *media)):
                raise SkipRow("media_unseen", why)
            prompt = self.prompt(pair, text, media)
            length, most = len(tokenize_prompts([prompt], self.tokenizer, [media])[0]), room(self.model)
            if length >= most:
                raise SkipRow("no_room", f"a prompt of {length} tokens leaves a model of {most} no room to answer")
        except SkipRow as skip:
            self.left[pair.source_row] = skip.code, skip.reason
            return None
        return prompt

    def prompt(self, pair: PreferencePair, text: str, media: tuple[Media, ...]) -> Text:
        """A question as the model is asked it in training: a chat where it has a chat template. SkipRow where it cannot
        be."""
        chat = in_parts([{"role": "user", "content": text}], media)
        made = replace(pair, prompt=text, chat_prompt=chat, media=media)
        parts = bool(self.turn and self.turn.parts)
        return placed(made, self.tokenizer.family, chat=bool(self.tokenizer.chat_template), parts=parts).prompt

    def finish(
        self,
        answer: Callable[[Sequence[PreferencePair], int], list[dict[str, Any]]],
        rows_of: Callable[[PreferencePair, Mapping[str, Any]], tuple[str, list[dict[str, Any]]]],
        leaf: str,
    ) -> Made:
        """Have the model answer what it has not yet, then write pairs and audit. DataError where there is no pair.

        rows_of: of a pair and what was said, "kept" and its rows, or a code of REASONS; rows that do not say what they
        show get `media_path`.
        """
        self._check_settings()
        lines = self._answered(answer)
        rows, audit = [], {i: {"status": "skipped", "code": c, "reason": r} for i, (c, r) in self.skipped.items()}
        for pair, line in zip(self.pairs, lines, strict=True):
            code, made = (line["left"][0], []) if "left" in line else rows_of(pair, line)
            rows += [row if "images" in row else row | {"media_path": self.path(pair)} for row in made]
            status, reason = "kept" if made else "skipped", line["left"][1] if "left" in line else REASONS.get(code, "")
            audit[pair.source_row] = {"status": status, "code": code, "reason": reason}
        frame = pd.DataFrame([{"source_row": i, **audit[i]} for i in sorted(audit)])
        write_frame(self.out / "audit.parquet", frame)
        found = Made(self.out / leaf, {str(k): int(n) for k, n in frame["code"].value_counts().items()})
        if not rows:
            raise DataError(f"{self.out}: no pair was made. {found.said()}")
        whole = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
        each = "".join(json.dumps(made, ensure_ascii=False) + "\n" for made in rows)
        replace_text(found.path, whole if leaf.endswith(".json") else each)
        return found

    def _check_settings(self) -> None:
        """Keep what the folder was started with, or refuse to go on with anything else."""
        path = self.out / "config.json"
        if not path.exists():
            return write_json(path, self.settings)
        before = read_json(path)
        other = [name for name in {**before, **self.settings} if before.get(name) != self.settings.get(name)]
        if other:
            raise UserError(
                f"{self.out}: was started with another {', '.join(other)}. Choose another --out, or remove the folder."
            )

    def _answered(
        self, answer: Callable[[Sequence[PreferencePair], int], list[dict[str, Any]]]
    ) -> list[dict[str, Any]]:
        """A line for each pair; those of whole groups that an earlier start kept are not asked again."""
        path = self.out / "answers.jsonl"
        lines = _kept(path, len(self.pairs))
        replace_text(path, "".join(json.dumps(line) + "\n" for line in lines))
        with Steps("answers", len(self.pairs), unit="row", before=len(lines)) as steps:
            for start in range(len(lines), len(self.pairs), TOGETHER):
                group = self.pairs[start : start + TOGETHER]
                new = answer(group, row_seed(self.settings["seed"] + 1, start))
                new = [x | ({"left": self.left[x["row"]]} if x["row"] in self.left else {}) for x in new]
                with disk_errors(path), open(path, "a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(line) + "\n" for line in new))
                lines += new
                steps.add(len(group))
        return lines

    def path(self, pair: PreferencePair) -> str:
        """Where a row's clip is, from this folder; one that stands in the row itself is written beside the pairs."""
        row, medium = self.raw[pair.source_row], pair.media[0]
        value = row[next(iter(media_columns(row).values()))]
        if isinstance(value, str) and (self.folder / value).exists():
            return os.path.relpath((self.folder / value).resolve(), self.out.resolve())
        place = self.out / "clips" / f"{pair.source_row:06d}.npy"
        place.parent.mkdir(exist_ok=True)
        with disk_errors(place):
            np.save(place, medium.frames() if medium.kind == "video" else medium.frames()[0])
        return os.path.relpath(place, self.out)


def start(
    out: Path,
    data: str,
    model: str,
    kind: str,
    seed: int,
    limit: int,
    split: str | None,
    frames: int,
    media_folder: str | None,
    kinds: Sequence[str] = ("video", "image"),
) -> Asking:
    """Read data and model. kinds: of media that rows may show."""
    raw, folder = read_rows(data, split), media_folder_of(data, media_folder)
    table = pairs_of(str(data), replace(raw, rows=[_asked_row(row) for row in raw.rows]), frames=frames, folder=folder)
    skipped = {p.source_row: (p.code, p.reason) for p in table.problems}
    for pair in table.pairs:
        if len(pair.media) != 1:
            skipped[pair.source_row] = ("media", f"it shows {len(pair.media)} images and clips, and must show one")
        elif pair.media[0].kind not in kinds:
            skipped[pair.source_row] = ("media", f"it shows a {pair.media[0].kind}, and must show an {kinds[0]}")
        elif not str(pair.chosen).strip():
            skipped[pair.source_row] = ("no_truth", REASONS["no_truth"])
    loaded = load_to_device(model)
    tokenizer: Any = load_tokenizer(model)
    if tokenizer.family is None:
        raise UserError(f"{model}: this model is shown no clips. Give a vision-language model.")
    shown = [pair for pair in table.pairs if pair.source_row not in skipped]
    texts = zip(shown, render_pairs(shown, tokenizer), strict=True)  # as they will be trained on
    skipped |= {pair.source_row: (t.code, t.reason) for pair, t in texts if isinstance(t, SkippedPair)}
    pairs = [pair for pair in shown if pair.source_row not in skipped]
    if not pairs:
        why = next(iter(skipped.values()), ("", "it has no rows"))[1]
        shape = f"{' or '.join(kinds)}, question and answer"
        raise DataError(f"{data}: no row can be asked; of the first: {why}. Give rows of {shape}.")
    settings = {
        "kind": kind, "data": hashlib.sha256(repr([_identity(p) for p in pairs]).encode()).hexdigest()[:16],
        "model": weights_hash(loaded), "seed": seed, "limit": limit,
    }  # fmt: skip
    turn = find_turn(tokenizer) if tokenizer.chat_template else None
    return Asking(out, settings, loaded, tokenizer, turn, raw.rows, folder, pairs, skipped)


def _asked_row(row: Any) -> Any:
    """A row of media, question and answer in RRPO's shape, which it will have; its other columns are left out."""
    if not isinstance(row, dict):
        return row
    media = {name for names in COLUMNS.values() for name in names}
    kept = {k: v for k, v in row.items() if k in media or k in IDS or k == "question"}
    truth = row.get(TRUTH)
    other = f"{truth} ?" if isinstance(truth, str) else truth
    return kept | {"question": row.get("question")} | dict(zip(RRPO[1:], (truth, other, truth, other)))


def _identity(pair: PreferencePair) -> tuple[Any, ...]:
    return pair.source_row, pair.pair_id, pair.prompt, pair.chosen, pair.media


def _kept(path: Path, count: int) -> list[dict[str, Any]]:
    """The lines of whole groups; a line that was cut ends them."""
    lines: list[dict[str, Any]] = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            break
    return lines if len(lines) >= count else lines[: len(lines) // TOGETHER * TOGETHER]
