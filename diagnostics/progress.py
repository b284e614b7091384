"""Progress of long work: a bar on a terminal, elsewhere (a log file, CI) a plain line every half minute."""

import contextlib
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from tqdm import tqdm

from diagnostics.errors import printable
from diagnostics.sequences import Example

EVERY = 30.0  # seconds between two lines where no person watches
_BAR = "{desc}: {percentage:3.0f}%|{bar}| {rate_fmt}, {remaining} left{postfix}"
_hushed = threading.Event()
T = TypeVar("T")


class Steps:
    """Counts steps of some work. before: steps that an earlier start has done. Use it in a `with`.

    clock: seconds. wait: waits so many seconds, or until the work is done, which it says. state: how far the work is,
    in words, if not in steps.
    """

    def __init__(
        self,
        what: str,
        total: int,
        *,
        unit: str = "step",
        before: int = 0,
        show: bool = True,
        clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], bool] | None = None,
        bar_format: str | None = None,
        state: Callable[[], str] | None = None,
    ) -> None:
        self.what, self.total, self.unit, self.before, self.done, self.note = what, total, unit, before, 0, ""
        self.clock, self.started, self.over, self.state = clock, clock(), threading.Event(), state or self._counted
        show = show and not _hushed.is_set()
        self.bar = tqdm(
            total=total, initial=before, desc=what, unit=f" {unit}", bar_format=bar_format,
            unit_scale=bar_format is not None, disable=None if show else True,  # None: only on a terminal
        )  # fmt: skip
        self.thread = None
        if show and self.bar.disable:
            self.thread = threading.Thread(target=self._speak, args=(wait or self.over.wait,), daemon=True)
            self.thread.start()

    def __enter__(self) -> "Steps":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, steps: int = 1, note: str = "") -> None:
        """Count these steps as done. note: further words behind the count."""
        self.done, self.note = self.done + steps, note
        self.bar.set_postfix_str(note, refresh=False)
        self.bar.update(steps)

    def close(self) -> None:
        """The end, also where not all is done."""
        self.over.set()
        self.bar.close()

    def _counted(self) -> str:
        return f"{self.unit} {self.before + self.done} of {self.total}" + (f", {self.note}" if self.note else "")

    def line(self) -> str:
        """How far the work is, how long it took and how long it will take."""
        gone = self.clock() - self.started
        left = gone * (self.total - self.before - self.done) / self.done if self.done else None
        estimate = "time left not known yet" if left is None else f"about {duration(left)} left"
        return f"{self.what}: {self.state()}, {duration(gone)} so far, {estimate}"

    def _speak(self, wait: Callable[[float], bool]) -> None:
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            while not wait(EVERY):
                print(printable(self.line()), file=sys.stderr, flush=True)


class Progress:
    """Of pairs run through a model. Time left goes by tokens, because the long pairs come first. before: pairs that an
    earlier start has done. Use it in a `with`."""

    def __init__(self, what: str, pairs: Sequence[Example], *, before: int = 0, show: bool = True) -> None:
        self.before, self.all, self.done = before, before + len(pairs), 0
        tokens = sum(map(_tokens, pairs))
        self.steps = Steps(what, tokens, unit="tokens", show=show, bar_format=_BAR, state=self._state)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.steps.close()

    def add(self, pairs: Sequence[Example]) -> None:
        """Count these pairs as done."""
        self.done += len(pairs)
        self.steps.add(sum(map(_tokens, pairs)), self._state())

    def _state(self) -> str:
        rate = self.done / max(self.steps.clock() - self.steps.started, 1e-9)
        return f"{self.before + self.done}/{self.all} pairs, {rate:.3g} pairs/s"


def counted(work: Iterable[T], what: str, total: int, *, unit: str, show: bool = True) -> Iterator[T]:
    """The items of some work; one counts as done when the next is asked for."""
    with Steps(what, total, unit=unit, show=show) as steps:
        for item in work:
            yield item
            steps.add()


@contextlib.contextmanager
def hushed() -> Iterator[None]:
    """Work inside says nothing: whoever started it shows the progress of all of it."""
    before = _hushed.is_set()
    _hushed.set()
    try:
        yield
    finally:
        if not before:
            _hushed.clear()


def duration(seconds: float) -> str:
    """A time in words: 45 s, 3 min 20 s, 2 h 5 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min" + (f" {whole % 60} s" if whole % 60 else "")
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _tokens(pair: Example) -> int:
    """Tokens that are run through the model: the prompt once, and both completions."""
    return len(pair.prompt_ids) + sum(len(row.completion_ids) for row in pair.rows.values())
