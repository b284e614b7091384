"""Kill a command at its file operations, give the same command again, and compare what it leaves with an unbroken run.

    python tests/kills.py COMMAND POINTS FOLDER MODEL DATA

COMMAND: train, flag, trace, compare or report; POINTS: how many of its operations to be killed at, spread over all
(0: every one). Imports once and forks for each start. Prints one line of JSON: operations, killed, wrong.
An operation is a file opened for writing, moved, removed or made in FOLDER, a batch of rows or a step appended, and a
file of weights or states written by a library, which a kill leaves half written.
"""

import importlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers.modeling_utils as modeling

import chesboard
from diagnostics.runlog import RunLogWriter, read_frame, read_run
from trainers.loop import probe
from trainers.models import encodes, load_model, load_tokenizer

torch.set_num_threads(1)
for name in ("reports.build", "reports.console", "trainers.studies.compare", "trainers.trace", "datasets", "peft"):
    importlib.import_module(name)  # once, not in every child
os.environ["TOKENIZERS_PARALLELISM"] = "false"
EVENTS = ("os.rename", "os.remove", "os.mkdir", "os.rmdir")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC


class Operations:
    """Counts the file operations under a folder; at number `last` the process kills itself."""

    def __init__(self, place: Path, last: int) -> None:
        self.place, self.last, self.count = str(place), last, 0

    def one(self) -> bool:
        """Count one; whether it is the last."""
        self.count += 1
        return self.count == self.last

    def audit(self, event: str, given: tuple[Any, ...]) -> None:
        """An operation of Python's own."""
        writes = event in EVENTS or (event == "open" and isinstance(given[2], int) and given[2] & WRITES)
        if writes and isinstance(given[0], str | Path) and str(given[0]).startswith(self.place) and self.one():
            die()

    def before(self, owner: Any, name: str) -> None:
        """Count each call of a function."""
        real = getattr(owner, name)

        def counted(*a: Any, **k: Any) -> Any:
            if self.one():
                die()
            return real(*a, **k)

        setattr(owner, name, counted)

    def half(self, owner: Any, name: str) -> None:
        """Count each file that a function(content, path) writes; the last is left half written."""
        real = getattr(owner, name)

        def counted(content: Any, path: Any, *a: Any, **k: Any) -> Any:
            found = real(content, path, *a, **k)
            if self.one():
                os.truncate(path, os.path.getsize(path) // 2)
                die()
            return found

        setattr(owner, name, counted)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arguments(command: str, out: Path, model: str, data: str) -> list[str]:
    """A small job of the command in a folder of its own; what it reads lies beside."""
    if command == "train":
        small = [
            "--max_steps",
            "3",
            "--per_device_train_batch_size",
            "8",
            "--probe_pairs",
            "3",
            "--response_types",
            "1",
        ]
        save = ["--save_strategy", "steps", "--save_steps", "1", "--save_total_limit", "2", "--resume", "auto"]
        return ["train", "--model", model, "--data", data, "--output_dir", str(out / "run"), *small, *save]
    if command == "flag":
        more = ["--forecast", "--write-kept", str(out / "kept.jsonl")]
        return ["flag", data, "--model", model, "--out", str(out / "run"), *more]
    if command == "trace":
        given = [f"--checkpoints={out.parent}/copy{n}={n}" for n in (1, 2)]
        return ["trace", data, "--reference", model, *given, "--out", str(out / "run"), "--pairs", "4"]
    if command == "compare":
        given = ["--objectives", "dpo", "--seeds", "1", "--jobs", "1", "--config", str(out.parent / "base.yaml")]
        return ["compare", *given, "--out", str(out / "run")]
    return ["report", str(out.parent / "ready" / "run"), "--out", str(out / "run")]


def start(command: str, out: Path, model: str, data: str, last: int) -> tuple[int, int]:
    """Run the command in a child that dies at its operation `last`: (its status, operations counted)."""
    out.mkdir(exist_ok=True)
    said = out.with_name(out.name + ".count")
    child = os.fork()
    if child == 0:
        code = 99
        try:
            with open(out.with_name(out.name + ".said"), "a") as log:
                os.dup2(log.fileno(), 1)
                os.dup2(log.fileno(), 2)
            seen = Operations(out, last)
            sys.addaudithook(seen.audit)
            for name in ("append", "append_step"):
                seen.before(RunLogWriter, name)
            for owner, name in ((torch, "save"), (modeling, "safe_save_file"), (probe, "save_file")):
                seen.half(owner, name)
            sys.argv = ["chesboard", *arguments(command, out, model, data)]
            try:
                chesboard.main()
                code = 0
            except SystemExit as ended:
                code = int(ended.code or 0)
            said.write_text(str(seen.count))
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return status, int(said.read_text()) if said.exists() else 0


def tables(command: str, out: Path) -> dict[str, Any]:
    """What the command leaves, in an order that does not depend on the parts it was written in."""
    run = out / "run"
    if command == "flag":
        return {"scores": read_frame(run / "scores.parquet"), "kept": (out / "kept.jsonl").read_text()}
    if command == "report":
        return {"report": json.loads((run / "report.json").read_text())["entries"]}
    logs = [run] if command != "compare" else sorted(p.parent for p in run.glob("*/config.json"))
    found = {}
    for log in map(read_run, logs):
        for name in ("steps", "pairs", "mass", "tokens", "audit"):
            frame: pd.DataFrame = getattr(log, name)
            found[f"{log.name}/{name}"] = frame.sort_values(list(frame.columns[:6]), ignore_index=True)
        if (log.path / "frames.parquet").exists():
            found["frames"] = read_frame(log.path / "frames.parquet")
        if command == "train":
            found["weights"] = (log.path / "model" / "model.safetensors").read_bytes()
    return found


def differs(one: Any, other: Any) -> bool:
    return not one.equals(other) if isinstance(one, pd.DataFrame) else one != other


def spread(total: int, points: int) -> list[int]:
    """`points` of the operations 1 to total, each in the middle of as many; 0: all of them."""
    if not 0 < points < total:
        return [*range(1, total + 1)]
    return [(2 * k + 1) * total // (2 * points) + 1 for k in range(points)]


def main() -> None:
    command, points, folder, model, data = sys.argv[1:]
    place = Path(folder)
    policy, ids = load_model(model), torch.tensor([load_tokenizer(model)("a")["input_ids"]])
    policy(ids, **({"labels": ids} if encodes(policy) else {}))  # imports what the children need
    status, total = start(command, place / "whole", model, data, 0)
    assert status == 0, (place / "whole.said").read_text()
    whole = tables(command, place / "whole")
    killed, wrong = 0, []
    for last in spread(total, int(points)):
        out = place / f"at{last}"
        status, _ = start(command, out, model, data, last)
        killed += os.WIFSIGNALED(status)
        status, _ = start(command, out, model, data, 0)
        if status:
            said = out.with_name(out.name + ".said").read_text()[-300:]
            wrong.append(f"{last}: ended with {os.waitstatus_to_exitcode(status)}: {said}")
            continue
        found = tables(command, out)
        wrong += [f"{last}: {name} differs" for name in whole if differs(whole[name], found[name])]
    print(json.dumps({"operations": total, "killed": killed, "wrong": wrong}))


if __name__ == "__main__":
    main()
