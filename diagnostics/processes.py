"""Many processes doing one job, started by torchrun or accelerate. One process alone needs nothing of this to be said.

Every step that can fail by a user's mistake runs in `agree` or `share`: the mistake then ends all processes, none waits
for one that is gone, and the sentence is said once.
"""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TextIO, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from diagnostics import folder
from diagnostics.errors import UserError, printable

T = TypeVar("T")

# processes wait for each other only at the ends of a job, and one may have hours more to do than another
PATIENCE = timedelta(days=7)


def processes() -> PartialState:
    """Number, count and device of this process: a GPU of its own, or the CPU where there is none."""
    return PartialState(cpu=not torch.cuda.is_available(), timeout=PATIENCE)


def agree(work: Callable[[], T]) -> T:
    """Do the same in every process and wait for all; a user's mistake in any of them ends all."""
    processes()
    result, error = None, None
    try:
        result = work()
    except UserError as mistake:
        error = mistake
    found: list[Any] = gather_object([error])
    _stop(next((e for e in found if e), None))
    return result  # pyright: ignore[reportReturnType]


def share(work: Callable[[], T]) -> T:
    """Do something in the first process only, and give what it returns to all."""
    box: list[Any] = [None, None]
    if processes().is_main_process:
        try:
            box[0] = work()
        except UserError as mistake:
            box[1] = mistake
    broadcast_object_list(box)
    _stop(box[1])
    return box[0]


@contextmanager
def hold(place: Path, command: str) -> Iterator[None]:
    """Keep every other job from writing to the folder meanwhile; the first process holds it for all of this one."""
    share(lambda: folder.take(place, command))
    try:
        yield
    finally:
        folder.release(place)


def tell(text: str, *, file: TextIO | None = None) -> None:
    """Print a sentence, in the first process only, with its control characters written out."""
    PartialState().print(printable(text), file=file)


def leave() -> None:
    """The end of a job: all processes wait for each other, then part. One alone does nothing.

    What still holds on to the group (a wrapped model in a reference cycle) is let go first: torn down later, by the
    interpreter's end, it aborts the process now and then.
    """
    if processes().num_processes > 1:
        gc.collect()
        processes().wait_for_everyone()
        processes().destroy_process_group()


def _stop(error: UserError | None) -> None:
    if error is None:
        return
    if processes().is_main_process:
        raise error
    raise SystemExit(error.exit_code)
