"""Whether training moved the weights at all: updates below half a unit in the last place leave them as they were."""

from typing import Any

import torch
from torch import Tensor, nn

LIMIT = 1 << 22  # weights that are compared; of more, every k-th


def sample(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the trainable weights, evenly spaced where they are more than LIMIT, by name."""
    trainable = {n: p for n, p in model.named_parameters() if p.requires_grad}
    stride = -(-sum(p.numel() for p in trainable.values()) // LIMIT) or 1
    return {n: p.detach().flatten()[::stride].cpu().clone() for n, p in trainable.items()}


def moved(start: dict[str, Tensor], model: nn.Module) -> dict[str, Any]:
    """share of the compared weights that differ from `start`, n: how many were compared, largest: largest change."""
    now = sample(model)
    changes = [(now[name].double() - before.double()).abs() for name, before in start.items()]
    n = sum(len(c) for c in changes)
    if not n:
        return {}
    largest = max(float(c.max()) for c in changes if len(c))
    return {"share": sum(int(torch.count_nonzero(c)) for c in changes) / n, "n": n, "largest": largest}
