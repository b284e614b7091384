"""A preference trainer that is not ours, with those attributes and habits of TRL's DPOTrainer that a callback meets:
token ids in its data sets, cut by its collator; a reference of its own; what it has seen since its last log goes into
whatever it logs next."""

from collections import defaultdict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

KEYS = {
    "learning_rate": 3e-3, "max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "max_grad_norm": 0.4,
    "report_to": "none", "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False,
    "train_sampling_strategy": "sequential", "seed": 0,
}  # fmt: skip


class PairTrainer(Trainer):
    """DPO on pairs of token ids, beta 0.1."""

    beta, max_length, keep = 0.1, None, "start"

    def __init__(self, model: Any, ref_model: Any, *args: Any, **kwargs: Any) -> None:
        super().__init__(model, *args, data_collator=self.collate, **kwargs)
        self.ref_model, self.seen = ref_model, defaultdict(list)
        self.model_accepts_loss_kwargs = False

    def collate(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """Chosen rows, then rejected ones, each cut to max_length, padded on the right."""
        part = slice(self.max_length) if self.keep == "start" else slice(-(self.max_length or 0), None)
        both = [(row["prompt_ids"], row[f"{side}_ids"]) for side in ("chosen", "rejected") for row in rows]
        ids = [torch.tensor((prompt + answer)[part]) for prompt, answer in both]
        masks = [torch.tensor(([0] * len(prompt) + [1] * len(answer))[part]) for prompt, answer in both]
        batch = {"input_ids": ids, "attention_mask": [torch.ones_like(i) for i in ids], "completion_mask": masks}
        found: dict[str, Any] = {name: pad_sequence(values, batch_first=True) for name, values in batch.items()}
        sums = {
            k: torch.tensor([row[k] for row in rows])
            for k in ("ref_chosen_logps", "ref_rejected_logps")
            if k in rows[0]
        }
        return found | sums

    def logps(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(B,) sums over completion tokens of both sides, in float32."""
        logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
        values = logits.float().log_softmax(-1).gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
        chosen, rejected = (values * inputs["completion_mask"][:, 1:]).sum(-1).chunk(2)
        return chosen, rejected

    def reference(self, model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The same of the reference."""
        if "ref_chosen_logps" in inputs:
            return inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        with torch.no_grad(), nullcontext() if self.ref_model else model.disable_adapter():
            return self.logps(self.ref_model or model, inputs)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The mean loss of a batch."""
        chosen, rejected = self.logps(model, inputs)
        ref_chosen, ref_rejected = self.reference(model, inputs)
        rewards = self.beta * (chosen - ref_chosen), self.beta * (rejected - ref_rejected)
        values = {"logps/chosen": chosen, "logps/rejected": rejected, "rewards/chosen": rewards[0]}
        for name, value in values.items():
            self.seen[name].append(float(value.detach().mean()))
        return -torch.nn.functional.logsigmoid(rewards[0] - rewards[1]).mean()

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """With the means of all batches since the last log."""
        logs |= {name: sum(values) / len(values) for name, values in self.seen.items()}
        self.seen.clear()
        super().log(logs, start_time)


def token_rows(tokenizer: Any, texts: list[dict[str, str]]) -> Dataset:
    """Rows as TRL's trainers hold them: the texts, EOS behind the answers, and all of it as token ids."""
    rows = []
    for row in texts:
        answers = {side: row[side] + tokenizer.eos_token for side in ("chosen", "rejected")}
        parts = {"prompt": row["prompt"]} | answers
        rows.append(parts | {f"{name}_ids": tokenizer(text)["input_ids"] for name, text in parts.items()})
    return Dataset.from_list(rows)


def make(
    folder: str,
    texts: list[dict[str, str]],
    out: Path,
    *,
    held: Any = None,
    wrap: Any = None,
    sums: Any = None,
    **keys: Any,
) -> PairTrainer:
    """A trainer of a saved model. wrap: makes the policy of it, which is then its own reference with the adapter off.
    sums: columns of precomputed sums for the training rows."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, frozen = (AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for _ in range(2))
    torch.manual_seed(0)
    policy = wrap(model) if wrap else model
    data = token_rows(tokenizer, texts)
    for name, values in (sums or {}).items():
        data = data.add_column(name, values)
    arguments = TrainingArguments(str(out), **(KEYS | keys))
    return PairTrainer(
        policy, None if wrap or sums else frozen.eval(), arguments, train_dataset=data,
        eval_dataset=token_rows(tokenizer, held) if held else None, processing_class=tokenizer,
    )  # fmt: skip
