"""Denoiser: what a diffusion or flow model must be; and a small one (MLP) that needs no further library."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.diffusion.noise import FLOW_TIMES, linear_alphas

Condition = Mapping[str, Tensor]  # by name, (N, ...) each; empty where a model has none


class Denoiser(nn.Module):
    """A model with `forward(x_t, times, condition)`: (N, *S) noised samples and (N,) times to (N, *S) predictions of
    `target`. Wrapped (data-parallel, adapters), it is called as the wrapper is.

    target: a word of noise.TARGETS. alphas: (T,) float64 alpha-bar, the squared share of the sample in x_t at t = 0 ..
    T - 1; it is no buffer, for a cast of the weights must not cast it. Of a flow it is not read: there t = 1000 s.
    """

    target: str = "eps"
    alphas: Tensor

    def forward(self, x_t: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See above."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """T, the number of times; of a flow 1000."""
        return FLOW_TIMES if self.target == "flow" else len(self.alphas)


class MLPDenoiser(Denoiser):
    """A residual network on flat samples, conditioned on a class. condition: `class_labels` (N,), 0 .. classes - 1, and
    `classes` for none.

    size: P numbers of a sample. width: of the hidden layers. blocks: residual blocks. betas run from first_beta to
    last_beta in `train_steps` equal steps.
    """

    WAVES = 32  # sines and cosines of the time, each

    def __init__(
        self, *, size: int, classes: int = 0, width: int = 128, blocks: int = 2, target: str = "eps",
        train_steps: int = 1000, first_beta: float = 1e-4, last_beta: float = 0.02,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings: dict[str, Any] = {"size": size, "classes": classes, "width": width, "blocks": blocks}
        self.settings |= {"target": target, "train_steps": train_steps}
        self.settings |= {"first_beta": first_beta, "last_beta": last_beta}
        self.target, self.alphas = target, linear_alphas(train_steps, first_beta, last_beta)
        self.enter = nn.Linear(size, width)
        self.time = nn.Sequential(nn.Linear(2 * self.WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU())
        self.head = nn.Linear(width, size)

    def forward(self, x_t: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See Denoiser."""
        labels = condition.get("class_labels")
        if labels is None:
            labels = torch.full_like(times, self.settings["classes"], dtype=torch.long)
        hidden = self.enter(x_t.flatten(1)) + self.time(self._waves(times).to(x_t.dtype)) + self.label(labels.long())
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(self.leave(hidden)).view_as(x_t)

    def _waves(self, times: Tensor) -> Tensor:
        """(N, 2 * WAVES) sines and cosines of the times at frequencies from 1 down to 1/10000."""
        speeds = torch.exp(-math.log(10_000) * torch.arange(self.WAVES, device=times.device) / self.WAVES)
        angles = times.float()[:, None] * speeds
        return torch.cat([angles.sin(), angles.cos()], -1)
