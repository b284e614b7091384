"""What a trainer logged itself, beside its checkpoints: read as further columns of the steps, `theirs/<key>`.

They are the trainer's numbers, of its own batches, and stand apart from what is measured here; `meanings` says what
each is. Keys without a known meaning are left out.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from diagnostics.errors import DataError
from diagnostics.plain_yaml import read_plain
from diagnostics.processes import tell

PREFIX = "theirs/"
_BATCHES = "mean of the means of its batches since the line before"
_EVALUATED = "mean of the means of the evaluation set's batches"
_LOGPS = {
    "sum": "a sum over an answer's tokens",
    "mean": "a mean over an answer's tokens",
    "": "for DPO's own losses a sum over an answer's tokens, for orpo, simpo and often ipo a mean over them; which "
    "loss it was, the files beside the weights do not say",
}
# key -> what it is; {side} is chosen or rejected. transformers' Trainer and TRL, then LLaMA-Factory's, OpenRLHF's
_MEANINGS = {
    "loss": f"training loss, {_BATCHES}",
    "eval_loss": f"loss, {_EVALUATED}",
    "eval_nll_loss": f"cross-entropy of the chosen answers, {_EVALUATED}",
    "nll_loss": f"cross-entropy of the chosen answers, {_BATCHES}",
    "grad_norm": "length of the whole gradient before clipping, of the update that was logged",
    "learning_rate": "learning rate",
    "lr": "learning rate",
    "epoch": "epochs done",
    "reward": f"reward, {_BATCHES}",
    "accuracy": f"share of pairs whose chosen reward is higher, {_BATCHES}",
    "acc": "share of pairs whose chosen reward is higher, of the last batch",
    "acc_mean": "share of pairs whose chosen reward is higher, mean of the update's batches",
    "loss_mean": "training loss, mean of the update's batches",
    "chosen_reward": "implicit reward of the chosen answers, mean of the last batch",
    "reject_reward": "implicit reward of the rejected answers, mean of the last batch",
}
_SIDED = {
    "rewards": f"implicit reward of the {{side}} answers, {_BATCHES}",
    "logps": f"log-prob of the {{side}} answers, {_BATCHES}",
    "logps_mean": f"log-prob of the {{side}} answers, {_BATCHES}; a mean over an answer's tokens",
}
_PAIRED = {
    "rewards/margins": f"chosen reward minus rejected reward, {_BATCHES}",
    "rewards/accuracies": f"share of pairs whose chosen reward is higher, {_BATCHES}",
}
# loss -> whether its trainer's logps are sums or means over tokens
_LLAMA_FACTORY = {"sigmoid": "sum", "hinge": "sum", "ipo": "mean", "orpo": "mean", "simpo": "mean"}
_SWIFT = {"dpo": "sum", "orpo": "mean", "simpo": "mean"}


@dataclass
class Imported:
    """rows: step -> theirs/<key> -> number. source: the file. meanings: of the keys."""

    rows: dict[int, dict[str, float]] = field(default_factory=dict)
    source: str = ""
    meanings: dict[str, str] = field(default_factory=dict)

    def between(self, before: int, step: int) -> Iterator[dict[str, Any]]:
        """Rows of steps.jsonl for the steps after one and before another."""
        for at in sorted(s for s in self.rows if before < s < step):
            yield {"step": at, "epoch": math.nan} | self.rows[at]


def read_logs(run: Path, checkpoints: Sequence[str]) -> Imported:
    """The first of these that lies in the folder of a run (or in its last checkpoint) and holds numbers:
    trainer_state.json, ms-swift's logging.jsonl, LLaMA-Factory's trainer_log.jsonl, tensorboard's event files.

    Of a key that stands twice for a step, as after a resumed training, the last one counts. A line that is cut is left
    out; DataError for a file that is no such log. Nothing of a run of Chesboard's: its own log says more.
    """
    if (run.parent / "steps.jsonl").exists():
        return Imported()
    state = max(_states(run, checkpoints), key=_state_step, default=None)
    readers = [
        (state, _read_state),
        (run / "logging.jsonl", _read_lines),
        (run / "trainer_log.jsonl", _read_lines),
        (run, _read_events),
    ]
    for path, read in readers:
        if path is None or not path.exists():
            continue
        if rows := _numbers(read(path), run):
            keys = sorted({key for row in rows.values() for key in row})
            said = {PREFIX + key: _meaning(key, run) for key in keys}
            named = {step: {PREFIX + k: v for k, v in row.items()} for step, row in rows.items()}
            return Imported(named, str(path), said)
    return Imported()


def _states(run: Path, checkpoints: Sequence[str]) -> list[Path]:
    folders = dict.fromkeys([run, *map(Path, checkpoints)])
    return [p for folder in folders if (p := folder / "trainer_state.json").is_file()]


def _state_step(path: Path) -> float:
    step = whole(read_theirs(path).get("global_step"))
    return -1 if step is None else step


def _read_state(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """transformers' Trainer: log_history, a list of rows that each name their step."""
    history = read_theirs(path).get("log_history")
    for row in history if isinstance(history, list) else []:
        if isinstance(row, dict) and (step := whole(row.get("step"))) is not None:
            yield step, row


def _read_lines(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """LLaMA-Factory: current_steps. ms-swift: `global_step/max_steps` as 5/100, older global_step; Megatron: iteration
    as 5/100."""
    lines = _text(path).split("\n")
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line.strip() else {}
        except (ValueError, RecursionError):
            if number == len(lines):
                return  # cut as it was written
            raise DataError(f"{path}: line {number} is not JSON. Mend or remove that line, or move the file.") from None
        if isinstance(row, dict):
            keys = ("global_step/max_steps", "current_steps", "global_step", "iteration")
            step = next((s for key in keys if (s := whole(_first(row.get(key)))) is not None), None)
            if step is not None:
                yield step, row


def _read_events(run: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """tensorboard's scalars, where its package is installed: train/<key>, and eval/<key> as eval_<key>."""
    folders = sorted({p.parent for p in run.rglob("*tfevents*") if p.is_file()})
    if not folders:
        return
    try:
        from tensorboard.backend.event_processing.event_accumulator import (  # pyright: ignore[reportMissingImports]
            EventAccumulator,
        )
    except ImportError:
        tell(f"{run}: its tensorboard event files are not read, for the package tensorboard is not installed.")
        return
    for folder in folders:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
        events.Reload()
        for tag in events.Tags()["scalars"]:
            key = "eval_" + tag[5:] if tag.startswith("eval/") else tag.removeprefix("train/")
            for event in events.Scalars(tag):
                yield int(event.step), {key: float(event.value)}


def _numbers(found: Iterator[tuple[int, Mapping[str, Any]]], run: Path) -> dict[int, dict[str, float]]:
    """The numbers whose meaning is known, by step."""
    rows: dict[int, dict[str, float]] = {}
    for step, row in found:
        known = {k: _float(v) for k, v in row.items() if type(v) in (int, float) and _meaning(k, run)}
        if set(known) - {"epoch"}:
            rows.setdefault(step, {}).update(known)
    return rows


def _meaning(key: str, run: Path) -> str:
    """What a key of a log is; empty where that is not known."""
    plain = key.removeprefix("eval_")
    kind, _, side = plain.partition("/")
    known = _MEANINGS.get(key) or _PAIRED.get(plain) or ""
    if side in ("chosen", "rejected") and kind in _SIDED:
        known = _SIDED[kind].format(side=side) + (f"; {_LOGPS[_sum_or_mean(run)]}" if kind == "logps" else "")
    return known.replace(_BATCHES, _EVALUATED) if plain != key else known


def _sum_or_mean(run: Path) -> str:
    """Whether logps are sums or means over tokens, as far as the settings beside the weights tell; else empty."""
    swift, factory = run / "args.json", run / "training_args.yaml"
    if swift.is_file():
        said = read_theirs(swift)
        loss = said.get("loss_type")
        plain = loss in (None, "sigmoid", ["sigmoid"]) or said.get("rlhf_type") != "dpo"
        return _SWIFT.get(str(said.get("rlhf_type")), "") if plain else ""
    if factory.is_file():
        said = read_plain(factory)
        return _LLAMA_FACTORY.get(str(said.get("pref_loss")), "") if isinstance(said, dict) else ""
    return ""


def _first(value: Any) -> Any:
    """5 of `5/100`."""
    return value.partition("/")[0] if isinstance(value, str) else value


def whole(value: Any) -> int | None:
    """A step: a whole number from 0 that a table can hold, also as text; None for anything else."""
    if isinstance(value, str):
        return whole(int(value)) if re.fullmatch("[0-9]{1,16}", value) else None
    fits = type(value) in (int, float) and 0 <= value < 2**53 and value == value // 1
    return int(value) if fits else None


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # as JSON's 1e999
        return math.inf if value > 0 else -math.inf


def read_theirs(path: Path) -> dict[str, Any]:
    """A JSON object that another program wrote. DataError naming the file."""
    try:
        content, why = json.loads(_text(path)), "it holds no object"
    except RecursionError:
        content, why = None, "it is nested too deeply"
    except ValueError as error:
        content, why = None, str(error)
    if not isinstance(content, dict):
        raise DataError(f"{path}: cannot be read as JSON ({why}). Mend it, or move it away.")
    return content


def _text(path: Path) -> str:
    """A text file of another program; what of it is no UTF-8 is no number either."""
    try:
        return path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error}). Move it away.") from None
