"""What the sections of `make gpu` share: the plan of a run, the lines that they give, and a clock that waits."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Plan:
    """device: what is tried. quick: sizes that a CPU can do. data: hh-rlhf file whose lengths are used, or None."""

    device: torch.device
    quick: bool
    data: Path | None = None

    @property
    def card(self) -> bool:
        """Whether it is a real GPU, with memory and a peak of its own."""
        return self.device.type == "cuda"


@dataclass(frozen=True)
class Line:
    """One thing found. wanted: in words, empty for a figure without a verdict. right: whether it is as wanted; aim: a
    goal, which decides no exit code."""

    what: str
    found: float | str
    wanted: str = ""
    right: bool | None = None
    aim: bool = False


def at_most(what: str, found: float, limit: float) -> Line:
    """A figure that is right up to a limit; NaN is wrong."""
    return Line(what, found, f"at most {limit:g}", found <= limit)


def holds(what: str, right: bool, found: str) -> Line:
    """Something that is or is not so."""
    return Line(what, found, "yes", right)


def seconds(plan: Plan, work: Callable[[], Any]) -> float:
    """Time by the clock until the device has done the work."""
    wait(plan)
    start = time.perf_counter()
    work()
    wait(plan)
    return time.perf_counter() - start


def wait(plan: Plan) -> None:
    """Until the device has nothing more to do."""
    if plan.card:
        torch.cuda.synchronize(plan.device)


def peak_bytes(plan: Plan, work: Callable[[], Any]) -> float:
    """Memory that the work needs on the card above what is held before it; NaN elsewhere."""
    if not plan.card:
        work()
        return float("nan")
    wait(plan)
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(plan.device)
    before = torch.cuda.memory_allocated(plan.device)
    work()
    wait(plan)
    return float(torch.cuda.max_memory_allocated(plan.device) - before)
