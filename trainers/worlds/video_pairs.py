"""Preference pairs that a video model makes of its own answers, as RRPO and as LeanPO make them.

RRPO (arXiv 2504.12083): the model answers on a perturbed clip; a wrong answer is rejected, the true one chosen, and the
phrases in which they differ are marked. LeanPO (arXiv 2506.05260): chosen is the model's own answer with the truth as a
hint, improved in a second round, rejected its own at a high temperature on an augmented clip. Both train on the clean
clip and the plain question. Neither paper's code has its wording of prompts that could be read: these words are ours.

A folder holds config.json (what it was started with), answers.jsonl (what the model said, a line a row, which a later
start goes on from), the pairs, and audit.parquet (every row of the data: kept, or why not).
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diagnostics.errors import DataError, UserError
from diagnostics.files import disk_errors, read_json, replace_text, write_json
from diagnostics.fingerprint import weights_hash
from diagnostics.frames import FRAMES
from diagnostics.media import Media
from diagnostics.pairs import PreferencePair, SkipRow, Text, pairs_of
from diagnostics.pairs.answers import RRPO
from diagnostics.pairs.media import COLUMNS, TAG, in_parts, media_columns
from diagnostics.pairs.rows import read_rows
from diagnostics.pairs.table import media_folder_of
from diagnostics.phrases import tagged
from diagnostics.processes import hold
from diagnostics.progress import Steps
from diagnostics.runlog import write_frame
from diagnostics.sampling import answers
from diagnostics.templates import Turn, find_turn
from diagnostics.tokenized import SkippedPair, render_pairs
from diagnostics.vision import perturb
from diagnostics.vision.prompts import placed
from trainers.models import load_to_device, load_tokenizer
from trainers.worlds.checkers import load_checker

HINT = "Here are some hints : {hint} Please respond based on the given hints and video content . {question}"
REFLECT = (
    "Your last reply was : {reply} It can be improved . Align it with this : {hint} Reflect what is given there as "
    "well as you can , and make the reply clear and complete . {question}"
)
HOT = 1.2  # temperature of LeanPO's rejected answer, without any cut of the distribution
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


def rrpo(
    data: str,
    model: str,
    out: Path,
    *,
    perturbations: Sequence[str] = ("mask", "local_shuffle"),
    checker: str = "rule",
    temperature: float = 0.0,
    seed: int = 0,
    limit: int = LONGEST,
    split: str | None = None,
    frames: int = FRAMES,
    media_folder: str | None = None,
) -> Made:
    """Write out/pairs.json, RRPO's rows (question, answer, pred and both with <MASK> tags, media_path), of the rows of
    data (media, question, answer) that the model answers wrongly on a perturbed clip.

    perturbations: names of PERTURBATIONS, applied in this order with one seed a row. checker: "rule" or a model
    (checkers). `made` of a row says perturbations, seed and what was drawn, every permutation too.
    """
    for name in perturbations:
        if name not in PERTURBATIONS:
            raise UserError(f"there is no perturbation '{name}'. Give one or more of {', '.join(PERTURBATIONS)}.")
    with hold(out, "pairs rrpo"):
        work = _start(out, data, model, "rrpo", seed, limit, split, frames, media_folder)
        work.settings |= {"perturbations": [*perturbations], "checker": checker, "temperature": temperature}
        check = load_checker(checker)

        def answer(group: Sequence[PreferencePair], draw: int) -> list[dict[str, Any]]:
            seeds = [row_seed(seed, pair.source_row) for pair in group]
            shown = [perturbed(pair.media[0], perturbations, s) for pair, s in zip(group, seeds, strict=True)]
            said = work.say(group, [_question(p) for p in group], shown, temperature, draw)
            right = check([_question(p) for p in group], [str(p.chosen) for p in group], said)
            rows = zip(group, seeds, shown, said, right, strict=True)
            return [
                {"row": p.source_row, "seed": s, "view": [*m.view], "pred": text, "right": ok}
                for p, s, m, text, ok in rows
            ]

        return work.finish(answer, lambda pair, line: _rrpo_row(pair, line, perturbations), "pairs.json")


def leanpo(
    data: str,
    model: str,
    out: Path,
    *,
    seed: int = 0,
    limit: int = LONGEST,
    split: str | None = None,
    frames: int = FRAMES,
    media_folder: str | None = None,
) -> Made:
    """Write out/pairs.jsonl (question, chosen, rejected, media_path): chosen is the model's greedy answer to the
    question with the true answer as a hint, after a round in which it improves its first one; rejected is drawn at
    temperature 1.2 from an augmented clip. Equal and empty answers are left out.
    """
    with hold(out, "pairs leanpo"):
        work = _start(out, data, model, "leanpo", seed, limit, split, frames, media_folder)

        def answer(group: Sequence[PreferencePair], draw: int) -> list[dict[str, Any]]:
            clean = [pair.media[0] for pair in group]
            seeds = [row_seed(seed, pair.source_row) for pair in group]
            shown = [perturbed(m, ("augment",), s) for m, s in zip(clean, seeds, strict=True)]
            asked = [(_untagged(_question(p)), _untagged(str(p.chosen))) for p in group]
            first = work.say(group, [HINT.format(hint=t, question=q) for q, t in asked], clean, 0.0, draw)
            again = [
                REFLECT.format(reply=_untagged(r), hint=t, question=q) for (q, t), r in zip(asked, first, strict=True)
            ]
            chosen = work.say(group, again, clean, 0.0, draw)
            rejected = work.say(group, [_question(p) for p in group], shown, HOT, draw)
            rows = zip(group, seeds, shown, first, chosen, rejected, strict=True)
            return [
                {"row": p.source_row, "seed": s, "view": [*m.view], "first": f, "chosen": c, "rejected": r}
                for p, s, m, f, c, r in rows
            ]

        return work.finish(answer, _leanpo_row, "pairs.jsonl")


def perturbed(medium: Media, names: Sequence[str], seed: int) -> Media:
    """A clip or an image after these perturbations, in this order, each with the same seed."""
    for name in names:
        medium = PERTURBATIONS[name](medium, seed)
    return medium


def row_seed(seed: int, source_row: int) -> int:
    """A row's own seed."""
    return int(np.random.default_rng([seed, source_row]).integers(2**31))


def _augment(medium: Media, seed: int) -> Media:
    """LeanPO's augmentation; frames that are smaller than its crops keep their shorter side."""
    return perturb.augment(medium, seed=seed, side=min(perturb.SIDE, *medium.shape()[1:]))


PERTURBATIONS: dict[str, Callable[[Media, int], Media]] = {
    "mask": lambda medium, seed: perturb.mask(medium, seed=seed),
    "local_shuffle": lambda medium, seed: perturb.local_shuffle(medium, seed=seed),
    "global_shuffle": lambda medium, seed: perturb.global_shuffle(medium, seed=seed),
    "augment": _augment,
}


# --- one row ----------------------------------------------------------------------------------------------------


def _rrpo_row(
    pair: PreferencePair, line: Mapping[str, Any], perturbations: Sequence[str]
) -> tuple[str, dict[str, Any] | None]:
    """Why a row gives no pair (a code of REASONS), or "kept" and the pair without its medium."""
    answer, pred = str(pair.chosen), line["pred"]
    if not pred.strip():
        return "empty", None
    if line["right"] is not False:
        return ("right" if line["right"] else "unclear"), None
    if answer == pred:
        return "same", None
    try:
        masked = tagged(answer, pred)
    except ValueError:
        return "tags", None
    if masked == (answer, pred):
        return "no_phrase", None
    made = {"perturbations": [*perturbations], "seed": line["seed"], "view": line["view"]}
    row = {"sample_id": pair.pair_id, "question": _question(pair), "answer": answer, "pred": pred}
    return "kept", row | {"answer_masked": masked[0], "pred_masked": masked[1], "made": made}


def _leanpo_row(pair: PreferencePair, line: Mapping[str, Any]) -> tuple[str, dict[str, Any] | None]:
    chosen, rejected = line["chosen"], line["rejected"]
    if not chosen.strip() or not rejected.strip():
        return "empty", None
    if chosen.strip() == rejected.strip():
        return "same", None
    made = {"perturbations": ["augment"], "seed": line["seed"], "view": line["view"], "first": line["first"]}
    row = {"id": pair.pair_id, "question": _question(pair), "chosen": chosen, "rejected": rejected}
    return "kept", row | {"made": made | {"truth": str(pair.chosen)}}


def _untagged(text: str) -> str:
    """A text that is quoted in a prompt, without tags that would stand for media there."""
    return TAG.sub("", text).strip()


def _question(pair: PreferencePair) -> str:
    """The question as the data has it, with its tags."""
    return str(pair.prompt)


# --- a folder of answers ----------------------------------------------------------------------------------------


@dataclass
class _Work:
    """One making of pairs. raw: the data's rows; pairs: those that can be asked; skipped: why others cannot, by row."""

    out: Path
    settings: dict[str, Any]
    model: Any
    tokenizer: Any
    turn: Turn | None
    raw: list[Any]
    folder: Path
    pairs: list[PreferencePair]
    skipped: dict[int, tuple[str, str]]

    def say(
        self, group: Sequence[PreferencePair], asked: Sequence[str], shown: Sequence[Media], heat: float, draw: int
    ) -> list[str]:
        """The model's answers to questions about clips. draw: seed of what is drawn at a temperature."""
        prompts = [self._prompt(pair, text) for pair, text in zip(group, asked, strict=True)]
        how: dict[str, Any] = {"temperature": heat, "limit": self.settings["limit"], "seed": draw}
        return answers(self.model, self.tokenizer, prompts, media=[(m,) for m in shown], together=TOGETHER, **how)

    def _prompt(self, pair: PreferencePair, text: str) -> Text:
        """A question as the model is asked it in training: a chat where it has a chat template."""
        chat = in_parts([{"role": "user", "content": text}], pair.media)
        made = replace(pair, prompt=text, chat_prompt=chat)
        try:
            return placed(
                made, self.tokenizer.family, chat=bool(self.tokenizer.chat_template),
                parts=bool(self.turn and self.turn.parts),
            ).prompt  # fmt: skip
        except SkipRow as skip:
            raise DataError(f"row {pair.source_row} cannot be asked: {skip.reason}.") from None

    def finish(
        self,
        answer: Callable[[Sequence[PreferencePair], int], list[dict[str, Any]]],
        row: Callable[[PreferencePair, Mapping[str, Any]], tuple[str, dict[str, Any] | None]],
        leaf: str,
    ) -> Made:
        """Have the model answer what it has not yet, then write pairs and audit. DataError where there is no pair."""
        self._check_settings()
        lines = self._answered(answer)
        rows, audit = [], {i: {"status": "skipped", "code": c, "reason": r} for i, (c, r) in self.skipped.items()}
        for pair, line in zip(self.pairs, lines, strict=True):
            code, made = row(pair, line)
            audit[pair.source_row] = {"status": "skipped", "code": code, "reason": REASONS.get(code, "")}
            if made is not None:
                rows.append(made | {"media_path": self._path(pair)})
                audit[pair.source_row] = {"status": "kept", "code": "kept", "reason": ""}
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
                with disk_errors(path), open(path, "a", encoding="utf-8") as file:
                    file.write("".join(json.dumps(line) + "\n" for line in new))
                lines += new
                steps.add(len(group))
        return lines

    def _path(self, pair: PreferencePair) -> str:
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


def _start(
    out: Path,
    data: str,
    model: str,
    kind: str,
    seed: int,
    limit: int,
    split: str | None,
    frames: int,
    media_folder: str | None,
) -> _Work:
    """Read data and model."""
    raw, folder = read_rows(data, split), media_folder_of(data, media_folder)
    table = pairs_of(str(data), replace(raw, rows=[_asked_row(row) for row in raw.rows]), frames=frames, folder=folder)
    skipped = {p.source_row: (p.code, p.reason) for p in table.problems}
    for pair in table.pairs:
        if len(pair.media) != 1:
            skipped[pair.source_row] = ("media", f"it shows {len(pair.media)} images and clips, and must show one")
        elif not str(pair.chosen).strip():
            skipped[pair.source_row] = ("no_truth", REASONS["no_truth"])
    loaded, tokenizer = load_to_device(model), load_tokenizer(model)
    if tokenizer.family is None:  # pyright: ignore[reportAttributeAccessIssue]
        raise UserError(f"{model}: this model is shown no clips. Give a vision-language model.")
    shown = [pair for pair in table.pairs if pair.source_row not in skipped]
    texts = zip(shown, render_pairs(shown, tokenizer), strict=True)  # as they will be trained on
    skipped |= {pair.source_row: (t.code, t.reason) for pair, t in texts if isinstance(t, SkippedPair)}
    pairs = [pair for pair in shown if pair.source_row not in skipped]
    if not pairs:
        why = next(iter(skipped.values()), ("", "it has no rows"))[1]
        raise DataError(f"{data}: no row can be asked; of the first: {why}. Give rows of video, question and answer.")
    settings = {
        "kind": kind, "data": hashlib.sha256(repr([_identity(p) for p in pairs]).encode()).hexdigest()[:16],
        "model": weights_hash(loaded), "seed": seed, "limit": limit,
    }  # fmt: skip
    turn = find_turn(tokenizer) if tokenizer.chat_template else None
    return _Work(out, settings, loaded, tokenizer, turn, raw.rows, folder, pairs, skipped)


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
