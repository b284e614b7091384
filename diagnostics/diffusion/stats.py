"""DenoisingStats: what a denoiser says about one side of a batch of pairs, in the place of token log-probs."""

from dataclasses import dataclass

import torch
from torch import Tensor

from diagnostics.stats import SequenceStats


@dataclass(frozen=True)
class DenoisingStats(SequenceStats):
    """One side under one model, over K draws of (time, noise) that are the same for both sides and for the reference.

    e_k is the denoising error of draw k: the mean over the sample's P numbers of (output - target)^2, without unit.
    per_token_logps: (B, K) each draw's share of the likelihood, -e_k / K, so that `logps` is minus the mean error and a
        log-ratio (policy - reference) is minus D = e_policy - e_reference of the literature. It has no nats.
    completion_mask: (B, K) 1 on every draw. lengths: 1, for a sample is one answer; so avg_logps is logps.
    per_token_kl: (B, K) each draw's share, mean over P of (output - reference's output)^2 / K; it is its own reverse.
    residual: (B, K, P) output - target, with the policy's gradient. target: (B, K, P).
    noise: (B, K, P) the draws' noise. times: (B, K) of the draws, 0 .. T - 1 (flow: 1000 s).
    alphas: (B, K) alpha-bar of the draws, the share of the sample in its noised form squared; of a flow (1 - s)^2.
    segments: (B, P) integers, the segment 0 .. S - 1 that each number belongs to, where a sample has segments.
    weights: (B, P) of the sample's numbers, an error map in [0, 1], where there is one.
    predicted_noise: (B, K, P) the noise that the model predicts at a sampling step's start, with the policy's gradient.
    ema_noise: (B, K, P) the same of a moving average of the policy, without gradient, where one is kept.
    """

    residual: Tensor | None = None
    target: Tensor | None = None
    noise: Tensor | None = None
    times: Tensor | None = None
    alphas: Tensor | None = None
    segments: Tensor | None = None
    weights: Tensor | None = None
    predicted_noise: Tensor | None = None
    ema_noise: Tensor | None = None

    @property
    def lengths(self) -> Tensor:
        """(B,) ones."""
        return torch.ones_like(self.completion_mask[:, 0])

    @property
    def errors(self) -> Tensor:
        """(B, K) the denoising error of each draw."""
        return -self.per_token_logps * self.per_token_logps.shape[1]

    @property
    def standard_error(self) -> Tensor:
        """(B,) of the mean error over its draws; NaN for one draw."""
        return self.errors.std(-1) / self.errors.shape[1] ** 0.5
