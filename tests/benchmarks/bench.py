"""The speed benchmark: `make bench`. One process, one thread, interleaved repeats, CPU seconds, verdicts on ratios.

    python tests/benchmarks/bench.py                  everything, about ten minutes
    python tests/benchmarks/bench.py --quick          the small model only, few pairs, about a minute
    python tests/benchmarks/bench.py --model FOLDER   the same tables for a model of your own and real pairs

Seconds depend on the machine and on what else it does; the ratios between ways, which are measured in turn, hold.
"""

import argparse
import ctypes
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout that this file belongs to

import scoring
import torch
import training
import transformers
import trl_ways
from rich.console import Console
from rich.table import Table
from scoring import Case

DATA = Path(__file__).resolve().parents[3] / "shared/data/hh-rlhf/harmless-base-test.jsonl.gz"
GIVEN_PAIRS = 4
SMALL, WORDS, SHORT = scoring.Size(128, 344, 2), 4_000, 96  # on which a whole training with the callback is timed
START, TIMES = 120, 250  # reckoned from the parts' speeds with 135 million weights, not measured as a whole
OURS = ("ours, CHES only", "ours, CHES and likelihoods", "ours, KL both ways")


@dataclass(frozen=True)
class Plan:
    """What is measured. cases: on which scoring is timed; steps: the training step; memory: where its peak is taken.
    repeats: rounds of scoring, and step_repeats of the step."""

    cases: tuple[Case, ...]
    steps: tuple[Case, ...]
    memory: tuple[Case, ...]
    repeats: int
    step_repeats: int


FULL = Plan(
    (Case("S", "32k", 24), Case("S", "128k", 12), Case("M", "32k", 12), Case("M", "128k", 8)),
    (Case("S", "32k", training.PAIRS), Case("M", "32k", training.PAIRS)),
    (Case("S", "32k", 24), Case("S", "128k", 24)),
    3,
    6,
)
QUICK = Plan((Case("S", "32k", 8),), (Case("S", "32k", training.PAIRS),), (Case("S", "32k", 24),), 2, 4)


def plan_of(quick: bool, model: str | None) -> Plan:
    """The plan asked for; a given model is a single case of few pairs."""
    if model is None:
        return QUICK if quick else FULL
    only = (Case("", "", GIVEN_PAIRS, folder=model),)
    return Plan(only, only, only, 2, 2)


@dataclass(frozen=True)
class Timing:
    """CPU seconds of one way in every round, and the share of the matrix-product ceiling it reaches."""

    case: str
    way: str
    seconds: tuple[float, ...]
    share: float | None = None

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> float:
        """Largest less smallest, over the median."""
        return (max(self.seconds) - min(self.seconds)) / self.median


@dataclass(frozen=True)
class Verdict:
    """One target: a ratio measured in this run beside what it should at least (or, `most`, at most) be."""

    target: str
    wanted: float
    found: float | None
    most: bool = False

    @property
    def reached(self) -> bool | None:
        """None where it was not measured."""
        if self.found is None:
            return None
        return self.found <= self.wanted if self.most else self.found >= self.wanted


def cpu_seconds(work: Callable[[], Any]) -> float:
    """CPU time of this process while it does the work."""
    start = time.process_time()
    work()
    return time.process_time() - start


def interleave(ways: dict[str, Callable[[], Any]], repeats: int) -> dict[str, tuple[float, ...]]:
    """CPU seconds of every way, all ways in turn in each round, so that a busy machine disturbs all alike."""
    rounds = [{name: cpu_seconds(way) for name, way in ways.items()} for _ in range(repeats)]
    return {name: tuple(each[name] for each in rounds) for name in ways}


def time_scoring(case: Case, plan: Plan, data: Path | None) -> list[Timing]:
    """Every way to score on one model; also checks that all ways give the same numbers."""
    models, pairs = case.models(), case.read(data)
    found: dict[str, dict[str, scoring.Scores]] = {}

    ways = scoring.WAYS | trl_ways.ways()
    for way in ways.values():
        way(models, pairs[:1])  # first calls set up the libraries
    ideal, body = ceiling(models, pairs)
    seconds = interleave(
        {name: _note(found, name, partial(way, models, pairs)) for name, way in ways.items()}, plan.repeats
    )
    ideal_after, body_after = ceiling(models, pairs)
    scoring.agree(found)
    ideal, body = (ideal + ideal_after) / 2, (body + body_after) / 2
    least = {"script": body, OURS[0]: body, OURS[2]: 2 * ideal}
    return [
        Timing(case.name, name, values, least.get(name, ideal) / statistics.median(values))
        for name, values in seconds.items()
    ]


def ceiling(models: scoring.Models, pairs: Sequence[Any]) -> tuple[float, float]:
    """CPU seconds that the unavoidable matrix products take at the rate measured now: body and head, body alone."""
    work = scoring.useful_work(models.ours, pairs)
    body, head = scoring.body_products(models.ours), [scoring.head_product(models.ours)]
    body_seconds = work.body / rate(body)
    return body_seconds + work.head / rate(head), body_seconds


def expected(case: Case, data: Path | None) -> float:
    """About how many CPU seconds a given model will take: START for loading it in every process, and TIMES the ceiling
    of its pairs.
    """
    return START + TIMES * ceiling(case.models(), case.read(data))[0]


def rate(products: Sequence[Any], seconds: float = 0.5) -> float:
    """Floating-point operations a CPU second in these products."""
    scoring.multiply(products)
    start, done = time.process_time(), 0.0
    while time.process_time() - start < seconds:
        done += scoring.multiply(products)
    return done / (time.process_time() - start)


def time_steps(case: Case, plan: Plan, data: Path | None) -> list[Timing]:
    """Every way to do a training step on one model. The naive step, the slowest by far, is done once."""
    models, pairs, share = case.models(), case.read(data), case.folder is not None
    with tempfile.TemporaryDirectory() as folder:
        steps = training.make_steps(models, pairs, Path(folder), share=share)
        if trl_ways.installed():
            steps |= trl_ways.steps(*models.to_train(plain=True), pairs, share=share)
        losses: dict[str, float] = {}
        first = interleave({name: _note(losses, name, step) for name, step in steps.items()}, 1)
        if max(losses.values()) - min(losses.values()) > 1e-4:
            raise AssertionError(f"the ways to train start from different losses: {losses}")
        del steps["naive"]  # the others go on: their first call set up the libraries and AdamW's state
        seconds = {"naive": first["naive"]} | interleave(steps, plan.step_repeats)
    return [Timing(case.name, name, values) for name, values in seconds.items()]


def time_callback(data: Path | None) -> list[Timing]:
    """A whole training by TRL's trainer, bare and with the callback at its defaults; the losses must be the same."""
    if not trl_ways.installed():
        return []
    pairs = scoring.make_pairs(data, 8 * trl_ways.UPDATES + trl_ways.PROBED, WORDS, SHORT)
    with tempfile.TemporaryDirectory() as folder:
        model = scoring.make_model(SMALL, WORDS, 0)
        for way in trl_ways.trainings(model, pairs, folder, updates=1).values():
            way()  # first calls set up the libraries
        ways = trl_ways.trainings(model, pairs, folder)
        losses: dict[str, float] = {}
        seconds = interleave({name: _note(losses, name, way) for name, way in ways.items()}, 1)
    if len(set(losses.values())) > 1:
        raise AssertionError(f"the callback changes the training: {losses}")
    return [Timing(f"{trl_ways.UPDATES} updates", name, values) for name, values in seconds.items()]


def judge_callback(timings: Sequence[Timing]) -> list[Verdict]:
    """What the callback adds to TRL's training, as a ratio of this run."""
    bare, measured = [t.median for t in timings] or [None, None]
    ratio = measured / bare if measured and bare else None
    return [Verdict("TRL's training with the callback, over bare", 1.25, ratio, most=True)]


def _note(found: dict[str, Any], name: str, work: Callable[[], Any]) -> Callable[[], None]:
    """The same work, its result kept."""
    return lambda: found.update({name: work()})


def measure_memory(plan: Plan) -> dict[str, dict[str, float]]:
    """MiB over the loaded model at the peak of each way to score, each in a process of its own."""
    found: dict[str, dict[str, float]] = {}
    for case in plan.memory:
        for way in scoring.WAYS | trl_ways.ways():
            command = [sys.executable, *sys.argv, "--peak", way, case.name]
            done = subprocess.run(command, capture_output=True, text=True)
            killed = done.returncode != 0  # too little memory
            found.setdefault(way, {})[case.name] = float("nan") if killed else float(done.stdout.split()[-1])
    return found


def peak(way: str, case: Case, data: Path | None) -> float:
    """MiB that scoring needs above what is held before it. Linux only."""
    models, pairs = case.models(), case.read(data)
    function = (scoring.WAYS | trl_ways.ways())[way]
    function(models, pairs[:1])
    ctypes.CDLL(None).malloc_trim(0)  # give back what only loading the model needed
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = _status("VmRSS")
    function(models, pairs)
    return (_status("VmHWM") - before) / 1024


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))


def judge(score: Sequence[Timing], steps: Sequence[Timing], memory: dict[str, dict[str, float]]) -> list[Verdict]:
    """The targets, each beside what this run found."""
    table = {(t.case, t.way): t for t in score}
    verdicts: list[Verdict] = []

    def over(case: str, slow: str, fast: str) -> float | None:
        pair = table.get((case, slow)), table.get((case, fast))
        return pair[0].median / pair[1].median if pair[0] and pair[1] else None

    for case, script, compact in (("S 32k", 4, 2.5), ("S 128k", 10, 1.8), ("M 32k", 2.5, 2.5), ("M 128k", None, None)):
        if (case, "script") not in table:
            continue
        if script and compact:
            verdicts.append(Verdict(f"{case}: CHES only, times the script", script, over(case, "script", OURS[0])))
            verdicts.append(Verdict(f"{case}: both, times TRL compact", compact, over(case, "TRL compact", OURS[1])))
        verdicts.append(Verdict(f"{case}: both, times TRL", 6, over(case, "TRL", OURS[1])))
        verdicts.append(Verdict(f"{case}: KL over both", 2.3, over(case, OURS[2], OURS[1]), most=True))
        if case.startswith("M"):
            verdicts.append(Verdict(f"{case}: share of the ceiling, both", 0.65, table[case, OURS[1]].share))
    verdicts += [
        Verdict(f"S 128k: peak MiB, {way}", 350, memory[way]["S 128k"], most=True)
        for way in OURS
        if "S 128k" in memory.get(way, {})
    ]
    return verdicts + judge_steps(steps)


def judge_given(score: Sequence[Timing], steps: Sequence[Timing]) -> list[Verdict]:
    """The aims for a given model, each beside what this run found."""
    found = {(t.case, t.way): t for t in score}
    verdicts = [
        Verdict(f"{case}: share of the ceiling, {way.removeprefix('ours, ')}", 0.8, timing.share)
        for (case, way), timing in found.items()
        if way in OURS[:2]
    ]
    table = {(t.case, t.way): t.median for t in steps}
    for case in dict.fromkeys(t.case for t in steps):
        for trl in ("TRL", "TRL compact"):
            ratio = table[case, trl] / table[case, "ours, logged"] if (case, trl) in table else None
            verdicts.append(Verdict(f"{case}: logged step, times the bare step of {trl}", 5, ratio))
    return verdicts


def judge_steps(steps: Sequence[Timing]) -> list[Verdict]:
    """The targets of the training step."""
    table = {(t.case, t.way): t.median for t in steps}
    verdicts = []
    for case in dict.fromkeys(t.case for t in steps):
        bare, logged, trl = (table.get((case, way)) for way in ("ours, bare", "ours, logged", "TRL compact"))
        ratio = logged / bare if logged and bare else None
        verdicts.append(Verdict(f"{case}: logged step over bare", 1.05, ratio, most=True))
        verdicts.append(Verdict(f"{case}: logged step, times TRL compact", 1, trl / logged if trl and logged else None))
        for what, every, tenth in (("sides", 1.30, 1.06), ("pairs", 1.50, None)):
            step = table.get((case, f"ours, gradients of {what}"))
            ratio = step / bare if step and bare else None
            verdicts.append(Verdict(f"{case}: gradients of {what} every step, over bare", every, ratio, most=True))
            if tenth:  # nine bare steps and one measured
                ratio = 0.9 + 0.1 * ratio if ratio else None
                verdicts.append(Verdict(f"{case}: the same every tenth step", tenth, ratio, most=True))
    return verdicts


def show(title: str, timings: Sequence[Timing], base: str) -> Table:
    """CPU seconds and, as the thing to look at, how many times faster than `base`."""
    table = Table(title=title)
    for column in ("case", "way", "CPU s", "spread", f"times {base}", "of the ceiling"):
        table.add_column(column, justify="left" if column in ("case", "way") else "right")
    slow = {t.case: t.median for t in timings if t.way == base}
    for t in timings:
        share = "" if t.share is None else f"{t.share:.2f}"
        table.add_row(t.case, t.way, f"{t.median:.2f}", f"{t.spread:.0%}", f"{slow[t.case] / t.median:.2f}", share)
    return table


def show_memory(memory: dict[str, dict[str, float]]) -> Table:
    """Peak memory over the loaded model."""
    cases = list(next(iter(memory.values()), {}))
    table = Table("way", *cases, title="Peak MiB over the loaded model, scoring")
    for way, peaks in memory.items():
        table.add_row(way, *(f"{peaks[case]:,.0f}" for case in cases))
    return table


def show_verdicts(verdicts: Sequence[Verdict]) -> Table:
    """Targets, reached or not."""
    table = Table("target", "wanted", "found", "", title="Targets")
    words = {True: "reached", False: "[bold]not reached[/bold]", None: "not measured"}
    for v in verdicts:
        found = "" if v.found is None else f"{v.found:.2f}"
        table.add_row(v.target, f"{'at most' if v.most else 'at least'} {v.wanted:g}", found, words[v.reached])
    return table


def main() -> None:
    """Measure, print tables, write JSON."""
    arguments = _arguments()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    data = arguments.data if arguments.data and arguments.data.is_file() else None
    plan = plan_of(arguments.quick, arguments.model)
    if arguments.peak:
        way, name = arguments.peak
        print(peak(way, next(case for case in plan.memory if case.name == name), data))
        return
    console = Console(width=110)
    console.print(f"lengths: {'hh-rlhf harmless-base' if data else 'log-normal, as hh-rlhf harmless-base has them'}")
    if arguments.model:
        console.print(f"{arguments.model}: about {expected(plan.cases[0], data) / 60:.0f} CPU minutes on this machine")
    if not trl_ways.installed():
        console.print("TRL is not installed: its ways, and the targets that compare with them, are not measured")
    results: dict[str, Any] = {"scoring": [], "training": [], "callback": [], "memory": {}}
    sections = {
        "scoring": lambda: [t for case in plan.cases for t in time_scoring(case, plan, data)],
        "training": lambda: [t for case in plan.steps for t in time_steps(case, plan, data)],
        "callback": lambda: [] if arguments.model else time_callback(data),
        "memory": lambda: measure_memory(plan),
    }
    tables = {
        "scoring": partial(show, "Scoring", base="script"),
        "training": partial(show, f"Training step, {plan.steps[0].pairs} pairs", base="naive"),
        "callback": partial(show, "A training with DisplacementCallback at its defaults", base="TRL"),
        "memory": show_memory,
    }
    for name, measure in sections.items():
        results[name] = measure()
        if results[name]:
            console.print(tables[name](results[name]))
        verdicts = judge(results["scoring"], results["training"], results["memory"])
        given = (results["scoring"], results["training"])
        verdicts += judge_given(*given) if arguments.model else judge_callback(results["callback"])
        _write(arguments.out, results, verdicts)  # after each section: what is measured is not lost
    console.print(show_verdicts(verdicts))
    console.print(f"written: {arguments.out}")


def _write(path: Path, results: dict[str, Any], verdicts: Sequence[Verdict]) -> None:
    """The same as JSON, with the versions it was measured with."""
    found = {
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "scoring": [asdict(t) for t in results["scoring"]],
        "training": [asdict(t) for t in results["training"]],
        "callback": [asdict(t) for t in results["callback"]],
        "memory_mib": results["memory"],
        "targets": [asdict(v) | {"reached": v.reached} for v in verdicts],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the small model only, few pairs")
    parser.add_argument("--model", help="folder or hub id of a causal language model, in place of the random ones")
    parser.add_argument(
        "--data", type=Path, default=DATA, help="hh-rlhf file whose lengths are used, with --model its pairs"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/bench.json"), help="where the JSON goes")
    parser.add_argument("--peak", nargs=2, metavar=("WAY", "CASE"), help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
