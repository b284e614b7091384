"""SequenceStats and PairStats: what one forward pass says about a batch of pairs."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

PAIR = ("chosen", "rejected")  # the rows of a pair; whatever else an example holds are further rows


def wide(device: torch.device) -> torch.dtype:
    """The dtype to reduce in: float64 wherever the device has it."""
    return torch.float32 if device.type == "mps" else torch.float64


@dataclass(frozen=True)
class SequenceStats:
    """One side (chosen or rejected) under one model.

    per_token_logps: (B, T) nats; entry t is log p(token t | tokens before t). Only entries under the
        mask mean anything; the others are ignored, whatever they hold.
    completion_mask: (B, T) 1 on completion tokens (EOS included, prompt and padding excluded).
    per_token_kl: (B, T) nats, exact KL(ref || policy) over the vocabulary where token t is predicted.
    hidden_sum: (B, D) float64, sum of the head's input vectors over the positions that predict completion tokens.
    phrase_mask: (B, T) integers, 0 outside marked phrases and i > 0 on the tokens of the row's i-th phrase.
    per_token_kl_reverse: (B, T) nats, exact KL(policy || ref).
    last_hidden: (B, D) float64, the head's input that predicts the last completion token (EOS).
    text_ids: (B, T) completion token ids without the terminating EOS, -1 elsewhere.
    per_token_collision: (B, T) nats, log of the sum over the vocabulary of squared probabilities, where token t is
        predicted: the log-probability that two draws agree. No gradient.
    step_ids: (B, T) integers, 0 outside reasoning steps and k > 0 on the tokens of the row's k-th step.
    step_similarity: (B, T) cosine of the mean hidden vector of a token's step with that of the same step in the best
        answer to the prompt. No gradient.
    embeddings: (B, S, D) what the first layer reads at each of a row's tokens, prompt included; NaN where a row has no
        token.
    per_token_top_entropy, per_token_top_mass: (B, T) H_k in nats and M_k in [0, 1] of the most likely tokens where
        token t is predicted (see logits.top_tokens). No gradient.
    summed: (B,) nats, the sum of log-probs where only that is known; per_token_logps are NaN then. Whoever masks or
        weighs tokens sets it to None, so that what is not known stays NaN.
    """

    per_token_logps: Tensor
    completion_mask: Tensor
    per_token_kl: Tensor | None = None
    hidden_sum: Tensor | None = None
    phrase_mask: Tensor | None = None
    per_token_kl_reverse: Tensor | None = None
    last_hidden: Tensor | None = None
    text_ids: Tensor | None = None
    per_token_collision: Tensor | None = None
    step_ids: Tensor | None = None
    step_similarity: Tensor | None = None
    per_token_top_entropy: Tensor | None = None
    per_token_top_mass: Tensor | None = None
    embeddings: Tensor | None = None
    summed: Tensor | None = None

    def __post_init__(self) -> None:
        if self.per_token_logps.ndim != 2 or self.per_token_logps.shape != self.completion_mask.shape:
            raise ValueError(
                f"per_token_logps {tuple(self.per_token_logps.shape)} and completion_mask "
                f"{tuple(self.completion_mask.shape)} must both be (B, T)"
            )

    def masked_sum(self, values: Tensor) -> Tensor:
        """Sum (B, T) values over completion tokens in float64. (B,)"""
        return torch.where(self.completion_mask.bool(), values, 0.0).sum(-1, dtype=wide(values.device))

    @property
    def logps(self) -> Tensor:
        """(B,) nats: sum of per-token log-probs over completion tokens, float64."""
        return self.summed if self.summed is not None else self.masked_sum(self.per_token_logps)

    @property
    def lengths(self) -> Tensor:
        """(B,) number of completion tokens, EOS included."""
        return self.completion_mask.sum(-1)

    @property
    def avg_logps(self) -> Tensor:
        """(B,) nats per token; NaN for a completion of zero tokens."""
        return self.logps / self.lengths

    @property
    def texts(self) -> list[list[int]] | None:
        """Each row's text_ids without the places (-1) that hold no text; None where they were not kept."""
        if self.text_ids is None:
            return None
        ids = self.text_ids.cpu()
        found = iter(ids[ids >= 0].tolist())
        return [list(islice(found, n)) for n in (ids >= 0).sum(-1).tolist()]


@dataclass(frozen=True)
class PairStats:
    """Both sides of B pairs under policy and reference; ref_* None where no reference is needed.

    columns: extra per-pair values the objective may need, name -> tensor (B,), or (B, K) for lists of K numbers.
    extra: further sequences the objective may need, name -> SequenceStats of B rows under the policy: the further rows
        that an objective names (its ROWS: other answers, prompts or pictures), `gold` (another answer); and
        `reward_chosen` and `reward_rejected` (both sides under a reward policy, no gradient).
    ref_extra: the further rows under the reference, by the same names; empty where no reference is needed.
    """

    chosen: SequenceStats
    rejected: SequenceStats
    ref_chosen: SequenceStats | None = None
    ref_rejected: SequenceStats | None = None
    columns: dict[str, Tensor] = field(default_factory=dict)
    extra: dict[str, SequenceStats] = field(default_factory=dict)
    ref_extra: dict[str, SequenceStats] = field(default_factory=dict)

    @classmethod
    def of(cls, own: Mapping[str, SequenceStats], ref: Mapping[str, SequenceStats]) -> "PairStats":
        """From the rows by name under the policy and under the reference (empty without one)."""
        further, ref_further = ({k: v for k, v in rows.items() if k not in PAIR} for rows in (own, ref))
        sides = own["chosen"], own["rejected"], ref.get("chosen"), ref.get("rejected")
        return cls(*sides, extra=further, ref_extra=ref_further)
