"""TRL's own DPOTrainer, where TRL is installed: its reference pass, its training step, a training with our callback.

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
import transformers
from scoring import EOS, PAD, PADDED_PAIRS, Models, Scores, Way
from torch import nn
from training import RATE

from diagnostics.sequences import Example

COMPACT_PAIRS = 1
UPDATES, PROBED = (
    50,
    64,
)  # the callback's own defaults: a probe every 50 updates, of 64 pairs trained on and 64 held out
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


def trainings(model: nn.Module, pairs: Sequence[Example], folder: str, updates: int = UPDATES) -> dict[str, Any]:
    """A training of so many updates by 8 pairs, bare and with DisplacementCallback as it comes: a probe at both ends.
    The last PROBED pairs are held out, the others trained on."""
    from chesboard import DisplacementCallback

    split = max(1, len(pairs) - PROBED)
    sets = [_texts(part) for part in (pairs[:split], pairs[split:])]
    options = dict(max_steps=updates, per_device_train_batch_size=PADDED_PAIRS, logging_steps=10, save_strategy="no")
    trainers = [_trainer(copy.deepcopy(model), copy.deepcopy(model), sets, **options) for _ in range(2)]
    for trainer in trainers:
        trainer.remove_callback(transformers.PrinterCallback)

    def measured() -> float:
        trainers[1].add_callback(DisplacementCallback(trainers[1], out=f"{folder}/callback-{updates}"))
        return float(trainers[1].train().training_loss)

    return {"TRL": lambda: float(trainers[0].train().training_loss), "TRL with the callback": measured}


def _texts(pairs: Sequence[Example]) -> list[dict[str, str]]:
    """Pairs as TRL reads them: a word a token, the end left to TRL."""
    rows = [(p.prompt_ids, p.chosen.completion_ids[:-1], p.rejected.completion_ids[:-1]) for p in pairs]
    texts = [[" ".join(f"w{i}" for i in ids) for ids in row] for row in rows]
    return [dict(zip(("prompt", "chosen", "rejected"), (a, f" {b}", f" {c}"), strict=True)) for a, b, c in texts]


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


def _trainer(policy: nn.Module, reference: nn.Module, sets: Sequence[Any] = (), **options: Any) -> Any:
    """A DPOTrainer on sets of texts to train on and to hold out; without, its data set is never read, and batches are
    handed to it."""
    from datasets import Dataset, disable_progress_bars
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast
    from trl import DPOConfig, DPOTrainer  # type: ignore

    disable_progress_bars()
    known = {"pad": PAD, "word": 1, "eos": EOS}
    if sets:
        known |= {f"w{i}": i for i in range(3, policy.get_input_embeddings().num_embeddings)}  # type: ignore[operator]
    words = Tokenizer(models.WordLevel(known, unk_token="word"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="pad", eos_token="eos", unk_token="word")
    unread = [{"prompt": "word", "chosen": "word", "rejected": "word"}]
    data, *held = [Dataset.from_list(rows) for rows in (sets or [unread])]
    settings = DPOConfig(
        tempfile.mkdtemp(), report_to="none", gradient_checkpointing=False, bf16=False, disable_tqdm=True,
        use_cpu=next(policy.parameters()).device.type == "cpu", **options,
    )  # fmt: skip
    return DPOTrainer(  # type: ignore
        policy, reference, settings, train_dataset=data, eval_dataset=next(iter(held), None), processing_class=tokenizer
    )
