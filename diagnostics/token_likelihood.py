"""TokenLikelihood: a language model of transformers, causal or with an encoder, whose rows are prompts with completions
as token ids."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from diagnostics.batch import Batch, collate
from diagnostics.engine import Engine, engine_of, innermost
from diagnostics.errors import DataError
from diagnostics.forward import Outputs, run
from diagnostics.likelihood import GIVES
from diagnostics.prepare import prepare
from diagnostics.row_stats import row_stats
from diagnostics.sequences import Example
from diagnostics.stats import SequenceStats
from diagnostics.vision.placeholders import FAMILIES

CPU_TOKENS = 2048  # tokens of one batch on a CPU: more is slower where what a layer makes leaves the cache
GPU_TOKENS = (2048, 65536)  # fewest and most tokens of one batch on a GPU: more than that is not faster


@dataclass(frozen=True)
class TokenLikelihood:
    """See diagnostics.likelihood. pad_token_id: any id works, because padding is masked. head: False skips the
    vocabulary head where only hidden states are wanted; log-probs are then NaN. family: that of a model which is shown
    media (vision.placeholders.family_of)."""

    pad_token_id: int
    head: bool = True
    family: Any = None
    kind = "tokens"
    gives = frozenset(GIVES)

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> "TokenLikelihood":
        """With the padding of a tokenizer, and the family that `load_tokenizer` noted at it."""
        pad = tokenizer.pad_token_id if isinstance(tokenizer.pad_token_id, int) else 0
        return cls(pad, family=getattr(tokenizer, "family", None))

    def prepare(self, model: nn.Module) -> Engine:
        """The fastest way that gives the model's plain results (see prepare.prepare)."""
        return prepare(model, self.family)

    def collate(self, examples: Sequence[Example]) -> Batch:
        """Padded on the right. Raises DataError where rows have media and the model is shown none."""
        if self.family is None and any(row.media for example in examples for row in example.rows.values()):
            raise DataError(
                f"pair_id {examples[0].pair_id} and others have images or clips, which this model is not shown, or not "
                f"by Chesboard. Leave them out, or choose one of {', '.join(FAMILIES)}."
            )
        return collate(examples, pad_token_id=self.pad_token_id, family=self.family)

    def batch(self, fields: dict[str, Any]) -> Batch:
        """See Likelihood. A data loader that pins memory makes lists of tuples."""
        found = Batch(**fields)
        rows: Any = (found.lengths and tuple(map(tuple, found.lengths)), tuple(map(tuple, found.first)))
        return replace(found, pair_ids=tuple(found.pair_ids), names=tuple(found.names), lengths=rows[0], first=rows[1])

    def drawn(self, batch: Batch, step: int, model: nn.Module, reference: Any) -> Batch:
        """See Likelihood: nothing is drawn."""
        return batch

    def run(self, model: nn.Module, batch: Batch) -> Outputs:
        """See forward.run."""
        return run(model, batch, head=self.head)

    def stats(
        self, batch: Batch, policy: Outputs, reference: Outputs | SequenceStats | None = None, **how: bool
    ) -> tuple[dict[str, SequenceStats], dict[str, SequenceStats]]:
        """See row_stats.row_stats."""
        return row_stats(batch, policy, reference, **how)

    def cost(self, model: nn.Module) -> Callable[[Example, int], int]:
        """Tokens as the engine lays them out: packed, or padded to the longest row."""
        return cost_of(engine_of(model))

    def budget(self, model: nn.Module, examples: Sequence[Example]) -> int:
        """Tokens of one batch: a constant on a CPU; on a GPU what fits into half of the memory that is free now.

        The estimate is a power of two, so that it is mostly the same at the next start. Where it is too high, batches
        are halved.
        """
        devices = {p.device for p in model.parameters() if p.device.type == "cuda"}
        if not devices or not examples:
            return CPU_TOKENS
        longest = max(e.longest for e in examples)
        fitting = min(_free_bytes(d) for d in devices) / 2 / _token_bytes(model, longest)
        low, high = GPU_TOKENS
        return min(high, max(low, 1 << int(math.log2(max(fitting, 1)))))


def cost_of(engine: Engine) -> Callable[[Example, int], int]:
    """What an example adds to a batch as this engine lays it out."""

    def tokens(example: Example, longest: int) -> int:
        fits = (engine.longest is None or longest <= engine.longest) and not engine.regime(longest)
        shown = any(row.media for row in example.rows.values())
        if engine.packed and fits and (engine.shown or not shown):
            return _prompts(example) + sum(len(row.completion_ids) - 1 for row in example.rows.values())
        return padded(example, longest)

    return tokens


def _prompts(example: Example) -> int:
    """Tokens of the prompt that most rows share, and of those that have another one, or other media."""
    first, *others = example.rows.values()
    apart = [row for row in others if (row.prompt_ids, row.media) != (first.prompt_ids, first.media)]
    return len(first.prompt_ids) + sum(len(row.prompt_ids) for row in apart)


def padded(example: Example, longest: int) -> int:
    """Tokens that an example adds to a padded batch."""
    return len(example.rows) * longest


def _token_bytes(model: nn.Module, longest: int) -> int:
    """Most memory that one more token needs in a forward pass without gradient: a generous estimate.

    Hidden states and what a layer makes of them (about 16 vectors of the model's width and 4 of its feed-forward's),
    float64 copies of two hidden states for the sums, the scores of attention that is not fused, and the logits where
    the head cannot be applied in tiles.
    """
    config, engine = innermost(model).config.get_text_config(), engine_of(model)
    size = next(model.parameters()).element_size()
    hidden = int(getattr(config, "hidden_size", 4096))
    inner = getattr(config, "intermediate_size", None)
    inner = (inner if isinstance(inner, int) else 4 * hidden) * int(getattr(config, "num_experts_per_tok", None) or 1)
    scores = 0 if engine.packed else 8 * longest * int(getattr(config, "num_attention_heads", None) or 1)
    logits = 0 if engine.tiled else (size + 12) * int(getattr(config, "vocab_size", 1 << 17))
    return size * (16 * hidden + 4 * inner) + 16 * hidden + scores + logits


def _free_bytes(device: torch.device) -> int:
    """Memory of a GPU that is free, or kept by torch without being used."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
