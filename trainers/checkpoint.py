"""Checkpoints to go on from: the newest that is whole, told by the list of its files that is written last."""

import json
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers.trainer_pt_utils import safe_globals

from diagnostics.errors import UserError
from diagnostics.manifest import file_hash
from diagnostics.runlog import write_json

LIST = "files.json"  # in a checkpoint: the hash of every other file
STATE = "trainer_state.json"


def seal(folder: Path) -> None:
    """Write the list of the checkpoint's files."""
    write_json(folder / LIST, {name: file_hash(folder / name) for name in _names(folder)})


def newest(found: list[Path], *, processes: int, logged: float) -> tuple[Path | None, list[str]]:
    """The newest whole checkpoint, and what is wrong with those after it; None where none is whole.

    logged: last step of the log, which may have lost rows that a checkpoint stands for. Raises UserError where the
    newest was written by another number of processes: each has random numbers of its own.
    """
    wrong = []
    for folder in sorted(found, key=lambda p: _number(p.name), reverse=True):
        fault = fault_of(folder, processes=processes)
        if not fault and step_of(folder) > logged:
            fault = f"the log ends before it, at step {logged:.0f}"
        if not fault:
            return folder, wrong
        wrong.append(f"{folder.name} cannot be used ({fault})")
    return None, wrong


def step_of(folder: Path) -> int:
    """The optimizer step of a whole checkpoint."""
    return int(_state(folder)["global_step"])


def is_last(folder: Path) -> bool:
    """Whether the run of this whole checkpoint had no step left."""
    return step_of(folder) >= int(_state(folder)["max_steps"])


def fault_of(folder: Path, *, processes: int) -> str:
    """What is wrong with a checkpoint, in a few words; empty where nothing is."""
    try:
        names = _names(folder)
        if missing := _missing(names, processes, folder):
            return f"{missing} is missing"
        if (folder / LIST).exists():
            return _changed(folder)
        step_of(folder)
        is_last(folder)
        for name in names:
            _load(folder / name)
    except UserError:
        raise
    except Exception as error:  # whatever a library makes of a damaged file
        return f"it does not load: {' '.join(str(error).split())[:200] or type(error).__name__}"
    return ""


def _missing(names: list[str], processes: int, folder: Path) -> str:
    """The file that a checkpoint lacks to go on exactly where it was."""
    if STATE not in names:
        return STATE
    if any(name.startswith("global_step") for name in names):
        return ""  # DeepSpeed keeps everything there
    written = sum(name.startswith("rng_state") for name in names)
    if written and written != processes:
        raise UserError(f"{folder}: was written by {written} processes and not by {processes}. Start as many again.")
    needed = {
        "model.safetensors": any(n.endswith(".safetensors") or n.startswith("pytorch_model_fsdp") for n in names),
        "optimizer.pt": any(n.startswith("optimizer") for n in names),
        "scheduler.pt": "scheduler.pt" in names,
        "rng_state.pth": written > 0,
    }
    return next((name for name, there in needed.items() if not there), "")


def _changed(folder: Path) -> str:
    """By the list: the first file that is not what was written; empty where all are."""
    listed = json.loads((folder / LIST).read_text(encoding="utf-8"))
    for name, digest in listed.items():
        if not (folder / name).exists():
            return f"{name} is missing"
        if file_hash(folder / name) != digest:
            return f"{name} is damaged"
    return ""


def _load(path: Path) -> None:
    """Read a file as the trainer will. A checkpoint without a list was cut as it was about to get one, or is older."""
    if path.suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            for name in file.keys():
                file.get_tensor(name)
    elif path.suffix in (".pt", ".pth"):
        with safe_globals():
            torch.load(path, map_location="cpu", weights_only=True)
    elif path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))


def _names(folder: Path) -> list[str]:
    found = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return [name for name in found if name != LIST and not name.endswith(".tmp")]


def _state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATE).read_text(encoding="utf-8"))


def _number(name: str) -> int:
    found = re.search(r"(\d+)$", name)
    return int(found.group(1)) if found else -1
