"""The gradient instruments of a run: when they measure, what they add up, what goes into the log."""

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainingArguments

from diagnostics.batch import Batch
from diagnostics.errors import UserError
from diagnostics.forward import Outputs, Sides, run_sides
from diagnostics.gradients.pairs import (
    FAST,
    Activations,
    PairGradients,
    by_pair,
    choose_way,
    from_activations,
    from_head,
    one_by_one,
)
from diagnostics.gradients.whole import (
    Arrows,
    Gradient,
    carry,
    head_gradients,
    norms,
    pull_sides,
    side_gradients,
    slopes,
    trained,
)
from diagnostics.runlog import read_json, write_json
from diagnostics.stats import PairStats

SIDES = ("chosen", "rejected")


class GradientLog:
    """Measures update 1, 1 + every, 1 + 2 every, ... (every 0: none).

    which: `all` trainable parameters or only those of the `head`. groups: the layer group of each.
    """

    FILE = "gradient_totals.json"

    def __init__(self, model: nn.Module, every: int, which: str, group_of: Any) -> None:
        self.every, self.which = every, which
        self.parameters = trained(model, which) if every else {}
        self.groups = [group_of(name) for name in self.parameters]
        self.totals: dict[str, float] = dict.fromkeys(SIDES, 0.0)
        self.way = ""
        self._sum: Arrows | None = None
        self._seen: Activations | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """The parameters measured."""
        return list(self.parameters.values())

    def prepare(self, model: nn.Module) -> None:
        """Choose how the pairs' gradients are taken (see pair_gradients)."""
        if self.every:
            self.way = choose_way(model, self.tensors, head=self.which == "head")

    def due(self, step: int) -> bool:
        """Whether the update after `step` updates is measured."""
        return bool(self.every) and step % self.every == 0

    def run(self, model: nn.Module, batch: Batch) -> Sides | None:
        """The forward pass of a measured update; None where the ordinary one serves."""
        if self.which == "head":
            return None
        if self.way != FAST:
            return run_sides(model, batch)
        self._seen = Activations(model, self.tensors)
        with self._seen.watch():
            return run_sides(model, batch)

    def measure(
        self, model: nn.Module, batch: Batch, loss: Tensor, stats: PairStats, policy: Outputs | Sides,
        reference: Any,
    ) -> tuple[Tensor, Arrows, PairGradients]:  # fmt: skip
        """The loss, which still gives the weights its whole gradient; its arrows; the pairs' gradients."""
        if not isinstance(policy, Sides):
            return loss, self._head_arrows(loss, stats, policy), self._head_pairs(model, batch, policy)
        found: list[PairGradients] = []

        def pull(weights: Tensor, keep: bool) -> tuple[Gradient, Gradient]:
            slope = by_pair(weights, policy.out)
            both = None
            if self._seen is None:
                found.append(one_by_one(model, batch, self.tensors))
            else:
                pairs, both = from_activations(policy, self._seen, self.tensors, slope, keep=keep or slope is None)
                found.append(pairs)
            return both if both and slope is not None else pull_sides(policy, weights, self.tensors, keep=keep)

        arrows = side_gradients(loss, stats, policy, self.tensors, reference, pull=pull)
        self._seen = None
        return carry(loss, arrows.total(), self.tensors), arrows, found[0]

    def _head_arrows(self, loss: Tensor, stats: PairStats, policy: Outputs) -> Arrows:
        """The sides' gradients in the head's weights, as far as they act there; the loss keeps its graph."""
        weights = slopes(loss, stats, policy)
        if weights is None:
            weights = torch.zeros_like(policy.hidden[:, 0])
        middle = int((policy.rows < len(stats.chosen.completion_mask)).sum())
        parts = (slice(middle), slice(middle, None))
        chosen, rejected = (head_gradients(policy.part(p), weights[p], self.tensors)[1] for p in parts)
        return Arrows(chosen, rejected, [None] * len(self.tensors))

    def _head_pairs(self, model: nn.Module, batch: Batch, policy: Outputs) -> PairGradients:
        if self.way == FAST:
            return from_head(model, policy.part(slice(None)))
        return one_by_one(model, batch, self.tensors, head=True)

    def add(self, arrows: Arrows, accelerator: Accelerator) -> dict[str, float]:
        """Add a micro-batch's arrows. At the update's last one: their norms and cosines, and the sums of the sides'
        norms over all measured updates so far, who moved the weights; before it nothing."""
        whole = arrows if self._sum is None else self._sum.plus(arrows)
        if not accelerator.sync_gradients:
            self._sum = whole
            return {}
        self._sum = None
        found = norms(_everywhere(whole, accelerator), self.groups)
        for side in SIDES:
            self.totals[side] += found[f"grad/{side}"]
        return found | {f"grad_total/{side}": value for side, value in self.totals.items()}

    def write(self, folder: Path) -> None:
        """Into a checkpoint's folder."""
        if self.every:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / self.FILE, self.totals)

    def read(self, folder: Path) -> None:
        """From a checkpoint's folder."""
        if self.every and (folder / self.FILE).exists():
            self.totals = read_json(folder / self.FILE)


def check(args: TrainingArguments, parameters: dict[str, Any], *, sharded: bool) -> None:
    """UserError where the gradient instruments cannot measure this kind of training."""
    settings: Any = args.gradient_checkpointing_kwargs or {}
    reentrant = settings.get("use_reentrant")
    reasons = {
        "a sharded model (FSDP, DeepSpeed), whose weights are never whole; launch without them": sharded,
        "torch_compile; leave it out": args.torch_compile,
        "fp16, whose small gradients vanish without loss scaling; use bf16": args.fp16,
        "reentrant gradient checkpointing; set use_reentrant to false": args.gradient_checkpointing and reentrant,
        "grad_parameters: head here, because the head is not trained; use all": not parameters,
    }
    for reason, found in reasons.items():
        if found:
            raise UserError(f"grad_every cannot be used with {reason}, or set grad_every to 0.")


def _everywhere(arrows: Arrows, accelerator: Accelerator) -> Arrows:
    """The arrows of the whole update: processes have scaled their losses so that the mean is the update's."""
    if accelerator.num_processes == 1:
        return arrows

    def one(gradient: Gradient) -> Gradient:
        return [None if g is None else _mean(g, accelerator) for g in gradient]

    return Arrows(one(arrows.chosen), one(arrows.rejected), one(arrows.rest))


def _mean(tensor: Tensor, accelerator: Accelerator) -> Tensor:
    found: Any = accelerator.reduce(tensor.clone(), "mean")
    return found
