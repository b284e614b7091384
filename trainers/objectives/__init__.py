"""Preference objectives, found by listing this folder: one file = one objective.

File name = function name = the name to configure. An objective is
`name(pair: PairStats, *, hyperparameters with defaults) -> ObjectiveOutput`, and its file says in
NEEDS_REFERENCE whether it compares the policy with a reference.
"""

import pkgutil
from collections.abc import Callable
from importlib import import_module
from math import inf
from numbers import Real
from typing import NamedTuple

from torch import Tensor

from diagnostics.errors import UserError
from diagnostics.measures import unknown
from diagnostics.measures.logratios import chosen_logratios, rejected_logratios
from diagnostics.stats import PairStats


class ObjectiveOutput(NamedTuple):
    """losses (B,) with gradient, one a pair, to be averaged; chosen_rewards, rejected_rewards (B,) detached."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


Objective = Callable[..., ObjectiveOutput]


def names() -> list[str]:
    """Every objective in this folder, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def load(name: str) -> Objective:
    """The function of one objective. An unknown name raises UserError with the nearest known one."""
    if name not in names():
        raise unknown("objective", name, names())
    return getattr(import_module(f"{__name__}.{name}"), name)


def needs_reference(name: str) -> bool:
    """Whether the objective compares the policy with a reference: NEEDS_REFERENCE of its file."""
    return import_module(load(name).__module__).NEEDS_REFERENCE


def logratios(pair: PairStats) -> tuple[Tensor, Tensor]:
    """(B,) nats each: log-ratios of chosen and rejected, policy - reference, summed over completion tokens."""
    if pair.ref_chosen is None or pair.ref_rejected is None:
        raise UserError("this objective compares with a reference: set 'reference' to live or precomputed.")
    return chosen_logratios(pair), rejected_logratios(pair)


def require_positive(**hyperparameters: float) -> None:
    """Raise UserError naming the first hyperparameter that is not a number above 0."""
    for name, value in hyperparameters.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < inf:
            raise UserError(f"{name} is {value!r}; it must be a number above 0.")


def require_not_negative(**hyperparameters: float) -> None:
    """Raise UserError naming the first hyperparameter that is not a number of at least 0."""
    for name, value in hyperparameters.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not 0 <= value < inf:
            raise UserError(f"{name} is {value!r}; it must be a number, 0 or more.")
