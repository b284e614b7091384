"""Explicit reward models: a scalar on the hidden state at an answer's end, fitted to pairs by Bradley-Terry.

The counterpart of a policy's implicit reward beta (log pi - log ref). arXiv 2409.03650.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diagnostics.batch import Batch
from diagnostics.engine import device_of
from diagnostics.forward import run
from diagnostics.scoring import score
from diagnostics.sequences import Example
from diagnostics.token_likelihood import TokenLikelihood

MLP_WIDTH, MLP_STEPS, MLP_RATE = 64, 300, 3e-3


def states(model: nn.Module, pairs: Sequence[Example], *, likelihood: TokenLikelihood) -> dict[str, Tensor]:
    """By pair_id (2, D) float64: what the head reads where the last token of chosen and of rejected is predicted."""
    found = {}
    for scored in score(model, pairs, likelihood=replace(likelihood, head=False)):
        sides = [side.last_hidden for side in (scored.stats.chosen, scored.stats.rejected)]
        both = torch.stack([side for side in sides if side is not None], 1).cpu().double()
        found |= {pair.pair_id: both[i] for i, pair in enumerate(scored.pairs)}
    return found


def bradley_terry(rewards: Tensor) -> Tensor:
    """Scalar: mean of -ln sigma(r(chosen) - r(rejected)). rewards: (N, 2)."""
    return -F.logsigmoid(rewards[:, 0] - rewards[:, 1]).mean()


def linear_head(train: Tensor, *, penalty: float) -> Callable[[Tensor], Tensor]:
    """(N, 2, D) states to (N, 2) rewards, linear in the standardised states; penalty times |w|^2 / 2 is added."""
    scaled = _scaling(train)
    weight = torch.zeros(train.shape[-1], dtype=train.dtype, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight], max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = bradley_terry(scaled(train) @ weight) + penalty * weight @ weight / 2
        loss.backward()
        return loss

    optimizer.step(closure)  # type: ignore[arg-type]
    return lambda states: (scaled(states) @ weight).detach()


def mlp_head(train: Tensor, *, seed: int) -> Callable[[Tensor], Tensor]:
    """The same with one hidden layer: Adam, full batch."""
    scaled = _scaling(train)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        head = nn.Sequential(nn.Linear(train.shape[-1], MLP_WIDTH), nn.ReLU(), nn.Linear(MLP_WIDTH, 1)).to(train)
    optimizer = torch.optim.Adam(head.parameters(), lr=MLP_RATE, weight_decay=1e-4)
    for _ in range(MLP_STEPS):
        optimizer.zero_grad()
        bradley_terry(head(scaled(train))[..., 0]).backward()
        optimizer.step()
    return lambda states: head(scaled(states))[..., 0].detach()


class RewardModel(nn.Module):
    """A language model's body with a linear head on the state at the answer's end; all weights are trained."""

    def __init__(self, model: nn.Module, width: int) -> None:
        super().__init__()
        self.model, self.head = model, nn.Linear(width, 1, bias=False)
        nn.init.zeros_(self.head.weight)
        self.head.to(device_of(model))

    def forward(self, batch: Batch) -> Tensor:
        """(B, 2) rewards of chosen and rejected."""
        out = run(self.model, batch, head=False)
        ends = out.rows.bincount(minlength=len(batch.input_ids)).cumsum(0) - 1
        return self.head(out.hidden[ends].to(self.head.weight.dtype))[:, 0].view(2, -1).T


def fine_tune(
    model: RewardModel,
    pairs: Sequence[Example],
    *,
    likelihood: TokenLikelihood,
    epochs: float,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> None:
    """Train all weights by Bradley-Terry with Adam at a constant rate, in a new order each epoch."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)
    steps = max(1, round(epochs * len(pairs) / batch_size))
    order: list[int] = []
    model.train()
    for _ in range(steps):
        order = order if len(order) >= batch_size else torch.randperm(len(pairs), generator=generator).tolist()
        taken, order = order[:batch_size], order[batch_size:]
        batch = likelihood.collate([pairs[i] for i in taken]).to(device_of(model.model))
        optimizer.zero_grad()
        bradley_terry(model(batch)).backward()
        optimizer.step()
    model.eval()


def rewards(model: RewardModel, pairs: Sequence[Example], *, likelihood: TokenLikelihood) -> Tensor:
    """(N, 2) rewards of the pairs, in order."""
    found = []
    with torch.no_grad():
        for k in range(0, len(pairs), 64):
            batch = likelihood.collate(pairs[k : k + 64]).to(device_of(model.model))
            found.append(model(batch).cpu())
    return torch.cat(found)


def _scaling(train: Tensor) -> Callable[[Tensor], Tensor]:
    flat = train.flatten(0, 1)
    middle, spread = flat.mean(0), flat.std(0).clamp(min=1e-9)
    return lambda states: (states - middle) / spread
