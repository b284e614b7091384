"""The gradient instruments of a run: when they measure, what they add up, what goes into the log."""

from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn
from transformers import TrainingArguments

from diagnostics.errors import UserError
from diagnostics.gradients import Arrows, Gradient, norms, trained
from diagnostics.runlog import read_json, write_json

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
        self._sum: Arrows | None = None

    def due(self, step: int) -> bool:
        """Whether the update after `step` updates is measured."""
        return bool(self.every) and step % self.every == 0

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
        "a sharded model (FSDP, DeepSpeed): its weights are never whole": sharded,
        "torch_compile": args.torch_compile,
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
