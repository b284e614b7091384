"""Measures of a pair, found by listing this folder: one file = one measure (or one quantity for both sides).

A measure is a public function `name(pair: PairStats) -> Tensor (B,)`; its name is its column in every table.
Each file says in NEEDS what has to be measured first: "logps", "reference" (the reference's log-probs too),
"kl" (exact KL, which takes both models at once), "hidden" (hidden states of the head's input), "text" (token ids)
or "top" (the most likely tokens at each position). What was not measured comes out as NaN. COLUMNS says of each what
it is (diagnostics.columns.Column): there is no other list to extend.
"""

import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module

import torch
from torch import Tensor

from diagnostics.columns import Column
from diagnostics.names import unknown
from diagnostics.stats import PairStats, wide

Measure = Callable[[PairStats], Tensor]


def names() -> list[str]:
    """Every measure in this folder, sorted."""
    return sorted(_found())


def load(name: str) -> Measure:
    """The function of one measure. An unknown name raises UserError with the nearest known one."""
    found = _found()
    if name not in found:
        raise unknown("measure", name, found)
    return found[name]


def needs(name: str) -> frozenset[str]:
    """What must be measured before this measure can be taken: NEEDS of its file."""
    return frozenset(import_module(load(name).__module__).NEEDS)


def column(name: str) -> Column:
    """What a measure is: COLUMNS of its file."""
    return import_module(load(name).__module__).COLUMNS[name]


def columns() -> dict[str, Column]:
    """Every measure with what it is, sorted."""
    return {name: column(name) for name in names()}


def unmeasured(pair: PairStats) -> Tensor:
    """(B,) NaN: what a measure returns where its inputs are missing."""
    device = pair.chosen.completion_mask.device
    return torch.full((len(pair.chosen.completion_mask),), torch.nan, dtype=wide(device), device=device)


@cache
def _found() -> dict[str, Measure]:
    """Public functions whose first parameter is `pair`, in the file that defines them."""
    modules = [import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    return {
        name: function
        for module in modules
        for name, function in inspect.getmembers(module, inspect.isfunction)
        if function.__module__ == module.__name__
        and not name.startswith("_")
        and next(iter(inspect.signature(function).parameters), "") == "pair"
    }
