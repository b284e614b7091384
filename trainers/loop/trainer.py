"""PreferenceTrainer: transformers' Trainer with an objective over pairs and every instrument attached.

Accumulation, mixed precision, checkpointing, report_to, accelerate, FSDP and DeepSpeed are the Trainer's own.
The loss is the mean over all pairs of an update, whatever the micro-batches: 1 x 8 equals 8 x 1.
"""

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)

from diagnostics.engine import innermost
from diagnostics.errors import DataError, UserError
from diagnostics.gradients.whole import band, cut
from diagnostics.likelihood import GIVES, Likelihood, pair_stats, say_missing
from diagnostics.runlog import read_json, write_json
from diagnostics.sequences import Example
from diagnostics.stats import PAIR, PairStats
from diagnostics.vision.placeholders import family_class
from trainers import objectives
from trainers.checkpoint import seal
from trainers.loop import gradient_log
from trainers.loop.average import MovingAverage
from trainers.loop.gradient_log import GradientLog
from trainers.loop.guards import Guard, guarded
from trainers.loop.ingredients import Ingredients
from trainers.loop.recipes import Ordered, Recipe, Renewal
from trainers.loop.recorder import Recorder
from trainers.loop.viewers import show
from trainers.models import keep_processor
from trainers.objectives import ObjectiveOutput
from trainers.weights import load_weights

# which part of a likelihood the needs of objectives are taken from
OF = {"kl": "kl", "collision": "tokens", "embeddings": "tokens", "phrases": "tokens", "steps": "hidden"}


class PairDataset(Dataset):
    """Groups of tokenized pairs by index: single pairs, or the whole lists that an objective compares."""

    def __init__(self, groups: Sequence[Sequence[Example]]) -> None:
        self.groups = groups

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> Sequence[Example]:
        return self.groups[index]


class PreferenceTrainer(Trainer):
    """Trains on pairs with any objective of trainers/objectives and records every pair of every update.

    objective: its name; hyperparameters: its settings (defaults where not given); guard, guard_strength: see guards.
    reference: runs the reference on a batch (LiveReference or StoredReference), or None. The training step runs it
        only where the objective needs it; the probe always.
    ingredients: what the objective reads of each pair besides the two answers.
    log_kl: take the KL over the vocabulary in every step, also where the objective does not need it.
    recipe: weights and order of the pairs; renewal: of the reference.
    grad_every: measure the gradients of chosen and rejected apart in every so many updates, 0 for never;
        grad_parameters: in all trainable parameters, or only in those of the head.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: TrainingArguments,
        *,
        pairs: Sequence[Example],
        tokenizer: PreTrainedTokenizerBase,
        likelihood: Likelihood,
        objective: str,
        reference: Any,
        recorder: Recorder,
        hyperparameters: dict[str, Any] | None = None,
        guard: Guard = "none",
        guard_strength: float | None = None,
        ingredients: Ingredients | None = None,
        log_kl: bool = True,
        recipe: Recipe | None = None,
        renewal: Renewal | None = None,
        grad_every: int = 0,
        grad_parameters: str = "all",
    ) -> None:
        def collator(groups: list[Sequence[Example]]) -> dict[str, Any]:
            return vars(likelihood.collate([pair for group in groups for pair in group]))

        self.ingredients = ingredients or Ingredients(objective, pairs, likelihood=likelihood)
        decay = getattr(objectives.module(objective), "AVERAGE", None)
        self.average = MovingAverage(model, decay) if decay is not None else None
        self.ingredients.average = self.average
        followers = [follower for follower in (renewal, self.average) if follower]

        super().__init__(
            model=model,
            args=args,
            train_dataset=PairDataset(self.ingredients.groups),
            data_collator=collator,
            callbacks=[recorder, *followers],
            processing_class=tokenizer,
        )
        self.remove_callback(PrinterCallback)  # the recorder shows progress
        self.objective = guarded(objective, hyperparameters or {}, guard, guard_strength)
        self.statistics = Statistics(objective, hyperparameters or {})
        self.needs = frozenset(objectives.needs(objective))
        self.likelihood = likelihood
        check_gives(likelihood, objective, grad_every)
        say_missing(likelihood)
        self.reference, self.recorder, self.log_kl = reference, recorder, log_kl
        self.recipe, self.renewal = recipe or Recipe(), renewal
        recorder.schedule.report = partial(show, self)
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the update's pairs itself
        self.loss_is_scaled_for_ga = True
        sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if sharded and renewal:
            raise UserError(
                "the reference can be renewed only where models are not sharded: leave out FSDP, DeepSpeed."
            )
        if sharded and self.average:
            raise UserError(
                f"objective '{objective}' reads a moving average of whole weights: leave out FSDP, DeepSpeed."
            )
        self.gradients = GradientLog(model, grad_every, grad_parameters, layer_group)
        if grad_every:
            gradient_log.check(args, self.gradients.parameters, sharded=sharded)
        if not sharded and not args.torch_compile:  # a sharded model's head is whole only inside its own forward
            likelihood.prepare(model)
            if isinstance(getattr(reference, "model", None), nn.Module) and not reference.adapter:
                likelihood.prepare(reference.model)
            self.gradients.prepare(model)
        others: list[Any] = [reference, self.ingredients.reward_model]
        for other in others:
            if isinstance(getattr(other, "model", None), nn.Module) and not other.adapter:
                other.model = self.accelerator.prepare_model(other.model, evaluation_mode=True)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Share of this micro-batch in the update's mean loss; its rows go to the recorder."""
        step = self.state.global_step
        batch = self.likelihood.drawn(self.likelihood.batch(inputs), step, model, self.reference)
        measured = self.gradients.due(step)
        further = None
        if measured and self.ingredients.further:  # these instruments know pairs alone: the rest is run apart
            further = self.ingredients.part(batch, self.ingredients.further)
            batch = self.ingredients.part(batch, PAIR)
        reference = self._refer(batch)
        sides = self.gradients.run(model, batch) if measured else None
        policy = sides.out if sides else self.likelihood.run(model, batch)
        stats = self._stats(batch, policy, model, reference, further, apart=sides is not None)
        output = self.objective(stats, **self.statistics(stats))
        output, more = self._weigh(batch, output)
        pushes = incentives(stats, output.losses)
        if {"residual", "child noise"} & self.needs:  # the loss reaches the outputs not by the log-probs alone
            pushes = {name: torch.full_like(values, torch.nan) for name, values in pushes.items()}
        columns = pushes | more
        pairs = num_items_in_batch if num_items_in_batch is not None else len(output.losses)
        loss = (output.losses.sum() * self.accelerator.num_processes / pairs).float()
        if measured:
            loss, arrows, gradients = self.gradients.measure(model, batch, loss, stats, sides or policy, reference)
            self.recorder.gradients(self.gradients.add(arrows, self.accelerator))
            columns |= gradients.columns | band(*pushes.values(), *gradients.columns.values())
        self.recorder.add(batch.pair_ids, stats, output, columns)
        return (loss, output) if return_outputs else loss

    def _weigh(self, batch: Any, output: ObjectiveOutput) -> tuple[ObjectiveOutput, dict[str, Tensor]]:
        """The losses times the pairs' weights, and these as a column; both as they are where no weights are given."""
        if not self.recipe.weights:
            return output, {}
        weight = output.losses.new_tensor([self.recipe.weights[i] for i in batch.pair_ids])
        return output._replace(losses=output.losses * weight), {"weight": weight}

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The order's sampler, where an order is given."""
        if self.recipe.order is None:
            return super()._get_train_sampler(train_dataset)
        return Ordered(self.recipe.order, lambda: self.state.global_step)

    def _refer(self, batch: Any) -> Any:
        """The reference's run, where the objective reads it."""
        return self.reference(batch) if self.reference and "reference" in self.needs else None

    def _stats(
        self, batch: Any, policy: Any, model: nn.Module, reference: Any, further: Any, *, apart: bool
    ) -> PairStats:
        """What the objective sees. further: the batch of the further rows, where they are not in `batch`. apart: the
        sides as leaves, so that the loss's graph ends there."""
        kl = "kl" in self.needs
        with torch.set_grad_enabled(not apart):
            stats = pair_stats(self.likelihood, batch, policy, reference, kl=self.log_kl, kl_gradient=kl)
        given = cut(stats, kl=kl) if apart else stats
        if further is not None:
            own, ref = self.likelihood.stats(
                further, self.likelihood.run(model, further), self._refer(further), kl=self.log_kl, kl_gradient=kl
            )
            given = replace(given, extra=own, ref_extra=ref)
        stats = self.ingredients.complete(given, batch, policy, model, self.reference)
        if apart:
            torch.clear_autocast_cache()  # it keeps casts made without a graph
        return stats

    def _get_num_items_in_batch(self, batch_samples: list[Any], device: torch.device) -> Tensor:
        """Pairs in the whole update, over all micro-batches and processes."""
        count = torch.tensor(sum(len(b["pair_ids"]) for b in batch_samples), device=device)
        return torch.as_tensor(self.accelerator.gather(count)).sum()

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        """The norm before clipping, noted in total and per layer group."""
        total = super()._get_grad_norm(model, grad_norm=grad_norm)
        value = float(total) if total is not None else float("nan")
        limit = self.args.max_grad_norm
        # the gradients are clipped by now: undo the factor, so that the groups are before clipping too
        factor = max(1.0, value / limit) if limit and limit > 0 else 1.0
        groups = {f"grad_norm/{k}": v * factor for k, v in group_norms(model).items()}
        self.recorder.norms({"grad_norm": value} | groups)
        # fp16's loss scaling overflows at times, and skips that update by itself
        if total is not None and not math.isfinite(value) and not self.args.fp16:
            raise DataError(
                f"the gradient is not finite: its norm is {value} at step {self.state.global_step + 1}, so the update "
                "would change nothing or spoil the weights. The run stopped before it and its log is kept; lower beta "
                "(or the objective's other factors) or the learning rate, or train in float32."
            )
        return total

    def train(self, resume_from_checkpoint: Any = None, **kwargs: Any) -> Any:
        """Train; the probe runs the same (prepared) model as the training step."""
        self.recorder.model = self.model
        if resume_from_checkpoint:
            folder = Path(resume_from_checkpoint)
            self.statistics.read(folder)
            self.gradients.read(folder)
            if self.average:
                self.average.read(folder)
            if self.renewal:
                self.renewal.read(folder, int(read_json(folder / "trainer_state.json")["global_step"]))
        try:
            return super().train(resume_from_checkpoint=resume_from_checkpoint, **kwargs)
        finally:
            self.recorder.close()

    def load(self, checkpoint: str) -> None:
        """The weights and the state of a checkpoint that has no step left."""
        self._load_from_checkpoint(checkpoint)
        self.state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights of a checkpoint, all of them and no others; else DataError. The Trainer loads by name, and leaves
        without a word what is saved under another name than the model's own (Qwen2.5-VL, InternVL, Mixtral)."""
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            super()._load_from_checkpoint(resume_from_checkpoint, model)
        else:
            load_weights(self.model if model is None else model, Path(resume_from_checkpoint))

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> Any:
        """A checkpoint with the objective's statistics and a renewed reference, to go on with them when resumed; last
        comes the list of its files, once every process has written its own."""
        if self.accelerator.is_main_process:
            folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
            self.statistics.write(folder)
            if self.renewal:
                self.renewal.write(folder)
            if self.average:
                self.average.write(folder)
            self.gradients.write(folder)
        super()._save_checkpoint(*args, **kwargs)
        self.accelerator.wait_for_everyone()
        if self.accelerator.is_main_process:
            seal(Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}")

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        """The weights, and beside them what says how images and clips are prepared."""
        super()._save(output_dir, state_dict)
        policy: Any = self.model
        inner = innermost(policy)
        if family_class(getattr(inner, "config", None)) and not hasattr(policy, "peft_config"):
            keep_processor(inner, output_dir or str(self.args.output_dir))

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the last update's measurements to what the Trainer reports to its viewers."""
        if "loss" in logs:
            own = {
                k: v
                for k, v in self.recorder.last_step.items()
                if "/" not in k or not k.startswith(("probe/", "eval/", "track/"))
            }
            own = {k: v for k, v in own.items() if k not in ("step", "epoch", "loss", "alarm") and v == v}
            logs = own | logs
        super().log(logs, start_time)


def check_gives(likelihood: Likelihood, objective: str, grad_every: int) -> None:
    """UserError where the objective, or the gradient instruments, need what this likelihood does not give."""
    objectives.require_likelihood(objective, likelihood.kind)
    asked = {OF[need]: f"objective '{objective}'" for need in objectives.needs(objective) if need in OF}
    asked |= {"gradients": "grad_every"} if grad_every else {}
    for name, who in asked.items():
        if name not in likelihood.gives:
            raise UserError(f"{who} needs {GIVES[name]}, which {type(likelihood).__name__} does not give.")


class Statistics:
    """The statistics over batches that some objectives keep; each process keeps its own, of its own batches."""

    FILE = "objective_statistics.json"

    def __init__(self, objective: str, hyperparameters: dict[str, Any]) -> None:
        update = getattr(objectives.module(objective), "statistics", None)
        known = inspect.signature(update).parameters if update else {}
        self.update = update and partial(update, **{k: v for k, v in hyperparameters.items() if k in known})
        self.values: dict[str, float] | None = None

    def __call__(self, stats: PairStats) -> dict[str, Any]:
        """The objective's keyword `statistics` for this batch, brought up to date; nothing where it keeps none."""
        if self.update is None:
            return {}
        with torch.no_grad():
            self.values = self.update(stats, self.values)
        return {"statistics": self.values}

    def write(self, folder: Path) -> None:
        """Into a checkpoint's folder."""
        if self.values is not None:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / self.FILE, {k: float(v) for k, v in self.values.items()})

    def read(self, folder: Path) -> None:
        """From a checkpoint's folder."""
        if self.update is not None and (folder / self.FILE).exists():
            self.values = read_json(folder / self.FILE)


def incentives(stats: PairStats, losses: Tensor) -> dict[str, Tensor]:
    """(B,) each: how hard the objective pushes the chosen up and the rejected down, loss per nat.

    d_w = -dL/dz_w and d_l = dL/dz_l (facts of a pairwise loss, arXiv 2604.18239), L the sum of the batch's losses and
    z the log-prob of a side, as the mean over its completion tokens of the derivative in that token's log-prob. For a
    loss of summed log-probs that is exactly the derivative in the sum. The part of a KL term is not in it.
    """
    sides = [stats.chosen, stats.rejected]
    found = torch.autograd.grad(
        losses.sum(), [side.per_token_logps for side in sides], retain_graph=True, allow_unused=True
    )
    chosen, rejected = (
        side.masked_sum(torch.zeros_like(side.per_token_logps) if slope is None else slope)
        / side.completion_mask.sum(-1)
        for side, slope in zip(sides, found, strict=True)
    )
    return {"chosen_incentive": -chosen, "rejected_incentive": rejected}


def group_norms(model: nn.Module) -> dict[str, float]:
    """Gradient norm of each layer group (embed, layer_00, ..., head, vision, projector, other), as the gradients
    stand."""
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            groups.setdefault(layer_group(name), []).append(parameter.grad)
    return {name: float(torch.nn.utils.get_total_norm(grads)) for name, grads in sorted(groups.items())}


def layer_group(parameter: str) -> str:
    """Group of a parameter by its name: the first number in it is its layer; what is shown media is two groups."""
    if re.search(r"merger|projector|connector|image_newline", parameter):
        return "projector"
    if re.search(r"(^|\.)(visual|vision_tower|vision_model)\.", parameter):
        return "vision"
    layer = re.search(r"\.(\d+)\.", parameter)
    if layer:
        return f"layer_{int(layer.group(1)):02d}"
    if re.search(r"lm_head|embed_out|output_projection", parameter):
        return "head"
    return "embed" if re.search(r"embed|wte|wpe", parameter) else "other"
