"""TRL's own DPOTrainer, where TRL is installed: its reference pass and its training step.

"TRL" takes pairs as they come, 8 a batch; "TRL compact" takes them sorted by length, one a batch, its best setting.
"""

import copy
import importlib.metadata
import importlib.util
import tempfile
from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any

import torch
from scoring import EOS, PAD, PADDED_PAIRS, Models, Scores, Way
from torch import nn
from training import RATE

from diagnostics.sequences import Example

COMPACT_PAIRS = 1
VERSION = "1.16.0"  # as in pyproject.toml


def installed() -> bool:
    """Whether TRL can be imported, in the version whose inner methods are called here."""
    return importlib.util.find_spec("trl") is not None and importlib.metadata.version("trl") == VERSION


def ways() -> dict[str, Way]:
    """TRL's ways to score, in its usual and in its best setting; none where TRL is missing."""
    if not installed():
        return {}
    return {"TRL": partial(_score, compact=False), "TRL compact": partial(_score, compact=True)}


def steps(
    policy: nn.Module, reference: nn.Module, pairs: Sequence[Example], *, share: bool = False
) -> dict[str, Callable[[], float]]:
    """One update of the usual DPO with AdamW, accumulated over length-sorted small batches (its best setting). share:
    also in its usual setting, with the same policy, which then never moves (a learning rate of 0)."""
    trainer = _trainer(policy.requires_grad_().train(), copy.deepcopy(reference))
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0 if share else RATE)

    def update(parts: Sequence[Any]) -> float:
        total = 0.0
        for part in parts:
            loss = trainer.compute_loss(trainer.model, part) / len(parts)
            loss.backward()
            total += float(loss.detach())
        nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    settings = {"TRL": False, "TRL compact": True} if share else {"TRL compact": True}
    parts = {name: [_collate(trainer, g) for g in _groups(pairs, compact)] for name, compact in settings.items()}
    return {name: partial(update, groups) for name, groups in parts.items()}


def _score(models: Models, pairs: Sequence[Example], compact: bool) -> dict[str, Scores]:
    trainer = _scorer(models)
    found = {}
    for group in _groups(pairs, compact):
        chosen, rejected = trainer.compute_ref_log_probs(trainer.ref_model, _collate(trainer, group))
        both = zip(group, chosen.tolist(), rejected.tolist(), strict=True)
        found |= {pair.pair_id: Scores(chosen=c, rejected=r) for pair, c, r in both}
    return found


@lru_cache(maxsize=1)
def _scorer(models: Models) -> Any:
    """A trainer with copies of the model, because TRL changes their forward."""
    return _trainer(copy.deepcopy(models.plain), copy.deepcopy(models.plain))


def _groups(pairs: Sequence[Example], compact: bool) -> list[Sequence[Example]]:
    ordered = sorted(pairs, key=lambda p: p.longest) if compact else pairs
    size = COMPACT_PAIRS if compact else PADDED_PAIRS
    return [ordered[i : i + size] for i in range(0, len(ordered), size)]


def _collate(trainer: Any, group: Sequence[Example]) -> Any:
    rows = [(pair.prompt_ids, pair.chosen.completion_ids, pair.rejected.completion_ids) for pair in group]
    names = ("prompt_ids", "chosen_ids", "rejected_ids")
    found = trainer.data_collator([dict(zip(names, map(list, ids), strict=True)) for ids in rows])
    return {k: v.to(trainer.args.device) if isinstance(v, torch.Tensor) else v for k, v in found.items()}


def _trainer(policy: nn.Module, reference: nn.Module) -> Any:
    """A DPOTrainer with a data set that is never read; batches are handed to it."""
    from datasets import Dataset, disable_progress_bars
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer  # type: ignore

    disable_progress_bars()
    words = Tokenizer(models.WordLevel({"pad": PAD, "word": 1, "eos": EOS}, unk_token="word"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="pad", eos_token="eos", unk_token="word")
    unread = Dataset.from_list([{"prompt": "word", "chosen": "word", "rejected": "word"}])
    settings = DPOConfig(
        tempfile.mkdtemp(), report_to="none", gradient_checkpointing=False, bf16=False,
        use_cpu=next(policy.parameters()).device.type == "cpu",
    )  # fmt: skip
    return DPOTrainer(policy, reference, settings, train_dataset=unread, processing_class=tokenizer)  # type: ignore
