"""The GPU check: `make gpu`. Is what Chesboard gives on a card right, and how fast is it there? Under nine minutes.

Wheels: torch built for CUDA (2.6 or newer; its version does not end in +cpu) and a driver for it; what pyproject.toml
lists (`pip install -e .` brings it); trl==1.16.0 for TRL's own speeds, which are left out without it. Nothing else.

    python tests/benchmarks/gpu.py                          everything, on one card
    python tests/benchmarks/gpu.py --device cpu --quick     every section, tiny, on a CPU in a minute; no speed counts

Writes OUT.json and OUT.md anew after every section. A section that breaks is noted and the others go on; so are those
for which no time is left. Exit code 1 where a check is wrong or a section broke, 2 without a GPU, else 0; aims of speed
decide no exit code.
"""

import argparse
import gc
import json
import math
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout that this file belongs to

import gpu_checks
import gpu_speed
import torch
import transformers
from gpu_lines import Line, Plan
from rich.console import Console

DATA = Path(__file__).resolve().parents[3] / "shared/data/hh-rlhf/harmless-base-test.jsonl.gz"

Section = Callable[[Plan], Iterator[Line]]

# in order of worth
SECTIONS: dict[str, Section] = {
    "engines": gpu_checks.engines,
    "flag": gpu_speed.flag,
    "steps": gpu_speed.steps,
    "gradients": gpu_checks.gradients,
    "memory": gpu_checks.memory,
    "training": gpu_checks.training,
    "products": gpu_checks.products,
    "TRL": gpu_speed.trl,
}


class OutOfTime(BaseException):
    """The time is up; no `except Exception` on the way may take it for an engine that does not work."""


@dataclass
class Part:
    """A section and what came of it. end: done, broke off, or not run; error: why it broke off."""

    name: str
    lines: list[Line] = field(default_factory=list)
    end: str = "done"
    error: str = ""
    seconds: float = 0.0

    @property
    def wrong(self) -> bool:
        """Whether a check is wrong or the section broke."""
        return bool(self.error) or any(line.right is False and not line.aim for line in self.lines)


def work(
    plan: Plan, sections: dict[str, Section], minutes: float, write: Callable[[Sequence[Part]], None]
) -> list[Part]:
    """All sections that the time allows; what there is is written after each."""
    end, parts = time.monotonic() + 60 * minutes, list[Part]()
    for name, section in sections.items():
        part = Part(name)
        parts.append(part)
        if time.monotonic() >= end:
            part.end = "not run: time"
        else:
            _fill(part, section, plan, end)
        write(parts)
    return parts


def _fill(part: Part, section: Section, plan: Plan, end: float) -> None:
    """Run one section; the lines that it gave before it broke stay."""
    start = time.monotonic()
    try:
        with _until(end):
            for line in section(plan):
                part.lines.append(line)
    except OutOfTime:
        part.end = "cut off: time"
    except (Exception, SystemExit) as error:
        part.end = "broke"
        part.error = f"{type(error).__name__}: {' '.join(str(error).split())[:500]}"
        traceback.print_exc()
    part.seconds = time.monotonic() - start
    gc.collect()
    if plan.card:
        torch.cuda.empty_cache()


@contextmanager
def _until(end: float) -> Iterator[None]:
    """OutOfTime at the end of the time, where the system has alarms (not on Windows)."""
    if not hasattr(signal, "setitimer"):
        yield
        return

    def stop(*_: Any) -> None:
        raise OutOfTime

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, max(1e-3, end - time.monotonic()))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def about(plan: Plan) -> dict[str, str]:
    """The machine and the versions, in words."""
    found = {"device": "CPU: only that the script works, no statement about a GPU", "python": platform.python_version()}
    if plan.card:
        card, size = torch.cuda.get_device_properties(plan.device), torch.cuda.mem_get_info(plan.device)[1]
        found["device"] = f"{card.name}, {size / 2**30:.0f} GiB, compute capability {card.major}.{card.minor}"
    found |= {"torch": torch.__version__, "CUDA": str(torch.version.cuda), "transformers": transformers.__version__}
    lengths = "hh-rlhf harmless-base" if plan.data else "log-normal, as hh-rlhf harmless-base has them"
    return found | {"sizes": "quick" if plan.quick else "full", "lengths": lengths}


def as_json(words: dict[str, str], parts: Sequence[Part]) -> str:
    """Everything found; what is not a number is null."""

    def finite(line: Line) -> dict[str, Any]:
        number = isinstance(line.found, float)
        return asdict(line) | {"found": line.found if not number or math.isfinite(line.found) else None}  # type: ignore

    found = [asdict(part) | {"lines": [finite(line) for line in part.lines], "wrong": part.wrong} for part in parts]
    return json.dumps({"about": words, "sections": found}, indent=1, allow_nan=False) + "\n"


def as_markdown(words: dict[str, str], parts: Sequence[Part]) -> str:
    """The same as one table."""
    lines = ["# Chesboard on a GPU", "", *(f"- {name}: {value}" for name, value in words.items()), ""]
    lines += ["| section | what | found | wanted | |", "|---|---|---|---|---|"]
    for part in parts:
        for line in part.lines:
            found = f"{line.found:.4g}" if isinstance(line.found, float) else line.found
            lines.append(f"| {part.name} | {line.what} | {found} | {line.wanted} | {_verdict(line)} |")
        end = f"{part.end} {part.error}".strip().replace("|", "/")
        verdict = "**wrong**" if part.error else ""
        lines.append(f"| {part.name} | the section, {part.seconds:.0f} s | {end} | done | {verdict} |")
    return "\n".join(lines) + "\n"


def _verdict(line: Line) -> str:
    if line.right is None:
        return ""
    if line.aim:
        return "reached" if line.right else "not reached"
    return "right" if line.right else "**wrong**"


def main(given: Sequence[str] | None = None) -> int:
    """Run all sections; the exit code."""
    arguments = _arguments(given)
    console = Console(width=140)
    if arguments.device == "cuda" and not torch.cuda.is_available():
        console.print(
            f"this torch ({torch.__version__}) sees no GPU: install a torch wheel that is built for CUDA (its version "
            "does not end in +cpu), and a driver that fits it; or try the script with --device cpu --quick."
        )
        return 2
    transformers.logging.set_verbosity_error()
    if arguments.device == "cpu":
        torch.set_num_threads(1)  # tiny products: more threads only wait for each other
    data = arguments.data if arguments.data.is_file() else None
    plan = Plan(torch.device("cuda:0" if arguments.device == "cuda" else "cpu"), arguments.quick, data)
    words = about(plan)

    def write(parts: Sequence[Part]) -> None:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.with_suffix(".json").write_text(as_json(words, parts), encoding="utf-8")
        arguments.out.with_suffix(".md").write_text(as_markdown(words, parts), encoding="utf-8")
        console.print(f"{parts[-1].name}: {parts[-1].end} in {parts[-1].seconds:.0f} s", markup=False)

    parts = work(plan, SECTIONS, arguments.minutes, write)
    console.print(as_markdown(words, parts), markup=False)
    console.print(f"written: {arguments.out.with_suffix('.json')} and {arguments.out.with_suffix('.md')}", markup=False)
    return int(any(part.wrong for part in parts))


def _arguments(given: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--minutes", type=float, default=9.0, help="sections for which no time is left are not run")
    parser.add_argument("--data", type=Path, default=DATA, help="hh-rlhf file whose lengths are used where it exists")
    parser.add_argument("--out", type=Path, default=Path("runs/gpu"), help="without its ending")
    return parser.parse_args(given)


if __name__ == "__main__":
    raise SystemExit(main())
