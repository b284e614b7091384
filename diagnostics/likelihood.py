"""Likelihood: how a kind of model gives the rows of a batch their log-probs. Trainer, probe, scoring, reference and
forecast know nothing else of a model, but for what probe and forecast read of tokens. `TokenLikelihood` is that of a
causal language model, `DenoisingLikelihood` that of a diffusion or flow model.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from torch import nn

from diagnostics.processes import tell
from diagnostics.sequences import Example
from diagnostics.stats import PairStats, SequenceStats

GIVES = {
    "kl": "the exact KL to the reference",
    "hidden": "hidden states (CHES and its relatives)",
    "tokens": "probabilities of tokens (where the mass goes, own answers, tracked prompts)",
    "gradients": "the gradients of chosen and rejected apart",
}


class Likelihood(Protocol):
    """kind: a word of trainers.objectives.LIKELIHOODS. gives: which of GIVES it can; what it cannot is NaN.

    A batch is a dataclass of B examples with the same R names as R * B rows, those of the first name first: pair_ids
    (B strings), rows (where the rows of each name stand), completion_mask (R * B, T: 1 where a log-prob is given) and
    `to(device)`, which gives the same batch on another device.
    """

    @property
    def kind(self) -> str:
        """Which objectives are defined on it."""
        ...

    @property
    def gives(self) -> frozenset[str]:
        """The words of GIVES that it can."""
        ...

    def prepare(self, model: nn.Module) -> Any:
        """Once, before a model is run: choose the way to run it. Nothing in the model is changed."""

    def collate(self, examples: Sequence[Example]) -> Any:
        """The batch of some examples, which have the same names."""

    def batch(self, fields: dict[str, Any]) -> Any:
        """A batch again from its fields, as a data loader hands them on."""

    def drawn(self, batch: Any, step: int, model: nn.Module, reference: Any) -> Any:
        """The batch as the update after `step` updates sees it: itself, where a likelihood draws nothing."""

    def run(self, model: nn.Module, batch: Any) -> Any:
        """One forward pass: whatever `stats` reads."""

    def stats(
        self, batch: Any, policy: Any, reference: Any = None, *, kl: bool = True, kl_gradient: bool = False
    ) -> tuple[dict[str, SequenceStats], dict[str, SequenceStats]]:
        """The stats of every row by name under the policy and under the reference (empty without one).

        policy, reference: what `run` gave; the reference may also be its stored SequenceStats of all rows. kl: take the
        KL where both were run; kl_gradient: KL(ref || policy) has a gradient in the policy.
        """
        ...

    def cost(self, model: nn.Module) -> Callable[[Example, int], int]:
        """What an example adds to a batch whose longest row has so many tokens, in the unit of `budget`."""
        ...

    def budget(self, model: nn.Module, examples: Sequence[Example]) -> int:
        """The largest batch that fits into memory."""
        ...


def pair_stats(likelihood: Likelihood, batch: Any, policy: Any, reference: Any = None, **how: bool) -> PairStats:
    """PairStats of B pairs; see Likelihood.stats."""
    return PairStats.of(*likelihood.stats(batch, policy, reference, **how))


def say_missing(likelihood: Likelihood) -> None:
    """What stays NaN with this likelihood, in one line."""
    missing = [words for name, words in GIVES.items() if name not in likelihood.gives]
    if missing:
        tell(f"{type(likelihood).__name__} does not give {'; '.join(missing)}: their columns are NaN.")
