"""PreferenceTrainer: transformers' Trainer with an objective over pairs and every instrument attached.

Accumulation, mixed precision, checkpointing, report_to, accelerate, FSDP and DeepSpeed are the Trainer's own.
The loss is the mean over all pairs of an update, whatever the micro-batches: 1 x 8 equals 8 x 1.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from accelerate.utils import DistributedType
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainingArguments

from diagnostics.batch import PreferenceBatch, collate
from diagnostics.forward import pair_stats, prepare, run
from diagnostics.tokenized import TokenizedPair
from trainers.objectives import ObjectiveOutput
from trainers.recorder import Recorder


class PairDataset(Dataset):
    """Tokenized pairs by index."""

    def __init__(self, pairs: Sequence[TokenizedPair]) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> TokenizedPair:
        return self.pairs[index]


class PreferenceTrainer(Trainer):
    """Trains on pairs with any objective of trainers/objectives and records every pair of every update.

    objective: function (PairStats) -> ObjectiveOutput, its hyperparameters already bound.
    reference: runs the reference on a batch (LiveReference or StoredReference), or None.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module,
        args: TrainingArguments,
        *,
        pairs: Sequence[TokenizedPair],
        tokenizer: PreTrainedTokenizerBase,
        pad_token_id: int,
        objective: Callable[..., ObjectiveOutput],
        reference: Any,
        recorder: Recorder,
    ) -> None:
        def collator(group: list[TokenizedPair]) -> dict[str, Any]:
            return vars(collate(group, pad_token_id=pad_token_id))

        super().__init__(
            model=model,
            args=args,
            train_dataset=PairDataset(pairs),
            data_collator=collator,
            callbacks=[recorder],
            processing_class=tokenizer,
        )
        self.remove_callback(PrinterCallback)  # the recorder shows progress
        self.objective, self.reference, self.recorder = objective, reference, recorder
        recorder.report = lambda values: Trainer.log(self, dict(values))  # the probe, to every viewer
        self.model_accepts_loss_kwargs = True  # compute_loss divides by the update's pairs itself
        self.loss_is_scaled_for_ga = True
        sharded = self.accelerator.distributed_type in (DistributedType.FSDP, DistributedType.DEEPSPEED)
        if not sharded and not args.torch_compile:  # a sharded model's head is whole only inside its own forward
            for each in (model, getattr(reference, "model", model)):
                prepare(each)
        if isinstance(getattr(reference, "model", None), nn.Module) and not reference.adapter:
            reference.model = self.accelerator.prepare_model(reference.model, evaluation_mode=True)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Share of this micro-batch in the update's mean loss; its rows go to the recorder."""
        batch = PreferenceBatch(**inputs)
        reference = self.reference(batch) if self.reference else None
        stats = pair_stats(batch, run(model, batch), reference)
        output = self.objective(stats)
        self.recorder.add(batch.pair_ids, stats, output)
        pairs = num_items_in_batch if num_items_in_batch is not None else len(output.losses)
        loss = (output.losses.sum() * self.accelerator.num_processes / pairs).float()
        return (loss, output) if return_outputs else loss

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
        return total

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; the probe runs the same (prepared) model as the training step."""
        self.recorder.model = self.model
        return super().train(*args, **kwargs)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the last update's measurements to what the Trainer reports to its viewers."""
        if "loss" in logs:
            own = {
                k: v
                for k, v in self.recorder.last_step.items()
                if "/" not in k or not k.startswith(("probe/", "eval/", "track/"))
            }
            own = {k: v for k, v in own.items() if k not in ("step", "epoch", "loss") and v == v}
            logs = own | logs
        super().log(logs, start_time)


def group_norms(model: nn.Module) -> dict[str, float]:
    """Gradient norm of each layer group (embed, layer_00, ..., head, other), as the gradients stand."""
    groups: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            groups.setdefault(layer_group(name), []).append(parameter.grad)
    return {name: float(torch.nn.utils.get_total_norm(grads)) for name, grads in sorted(groups.items())}


def layer_group(parameter: str) -> str:
    """Group of a parameter by its name: the first number in it is its layer."""
    layer = re.search(r"\.(\d+)\.", parameter)
    if layer:
        return f"layer_{int(layer.group(1)):02d}"
    if re.search(r"lm_head|embed_out|output_projection", parameter):
        return "head"
    return "embed" if re.search(r"embed|wte|wpe", parameter) else "other"
