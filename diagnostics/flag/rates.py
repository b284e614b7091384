"""The rate of the chosen log-prob by gradients through the model, in all trainable weights or in the head's alone.

To first order, a step along the gradient of a pairwise loss moves the weights by (-l') * D with D a mean of
g+ - g- (g+ = grad ln pi(y+), g- = grad ln pi(y-), sums over completion tokens) and a log-prob by <its gradient, D>.
At DPO's start -l' is beta / 2 for every pair; it is left out: all rates are nats per unit of -l'.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from diagnostics.engine import head_of
from diagnostics.errors import UserError
from diagnostics.gradients.pairs import FAST, all_alone, choose_way
from diagnostics.likelihood import Likelihood, pair_stats
from diagnostics.stats import PairStats, wide

Which = Literal["all", "head"]
Weights = dict[str, Tensor]

# length of the step, in the norm over all weights, whose two ends a rate is taken from: measured on small models, the
# slope against exact products is .9995 here and .95 at ten times the length; much shorter drowns in float32 rounding
LENGTH = 0.02


def weights_of(model: nn.Module, which: Which = "all") -> dict[str, nn.Parameter]:
    """The weights that rates are taken in, by name: all that are trainable (of a LoRA model its adapters), or those
    of the output embedding alone (where it is tied to the input embedding, both uses count)."""
    found = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if which == "head":
        own = {id(p) for p in head_of(model).parameters()}
        found = {name: p for name, p in found.items() if id(p) in own}
    if not found:
        raise UserError(f"the model has no trainable weights to take rates in (--parameters {which}).")
    if any(p.is_meta for p in found.values()):
        raise UserError("rates by gradients need all weights on a device: use a smaller model or --parameters head.")
    return found


def gradients(
    likelihood: Likelihood, model: nn.Module, batch: Any, weights: Mapping[str, Tensor]
) -> tuple[Weights, Weights]:
    """Gradients of the batch's summed ln pi(y+) and of its summed ln pi(y-): two products of one graph."""
    stats = pair_stats(likelihood, batch, likelihood.run(model, batch))
    sides = stats.chosen.logps.sum(), stats.rejected.logps.sum()
    found = [_grad(side, weights, retain=i == 0) for i, side in enumerate(sides)]
    return found[0], found[1]


def self_rate(likelihood: Likelihood, model: nn.Module, batch: Any, weights: Mapping[str, Tensor]) -> Tensor:
    """<g+, g+ - g-> of a batch of ONE pair: the rate of its chosen log-prob when it trains alone. (1,) float64.

    Positive = the chosen answer rises; lower = more prone to displacement. It is the true counterpart of U + V
    (closed_forms.py), in the model's own weights. Nats per unit of -l'.
    Source: arXiv 2410.08847, Appendix E (the inner product that its theory bounds).
    """
    chosen, rejected = gradients(likelihood, model, batch, weights)
    terms = [_inner(g, g - rejected[name]) for name, g in chosen.items()]
    return torch.stack([t.to(terms[0].device) for t in terms]).sum()[None]


def takes_all(likelihood: Likelihood, model: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether `self_rates` can be used: a language model of modules that it knows."""
    return "gradients" in likelihood.gives and choose_way(model, list(weights.values()), head=False) == FAST


def self_rates(model: nn.Module, batch: Any, weights: Mapping[str, Tensor]) -> Tensor:
    """`self_rate` of every pair of a batch by one forward and two backward passes; (B,) float64."""
    found = all_alone(model, batch, list(weights.values()))
    return found.chosen_norm**2 - found.inner


def difference(stats: PairStats, weights: Mapping[str, Tensor]) -> Weights:
    """Sum over a batch's pairs of g+ - g-, by one backward pass from their stats; float32 at least."""
    return _grad((stats.chosen.logps - stats.rejected.logps).sum(), weights)


def answers_gradient(likelihood: Likelihood, model: nn.Module, batch: Any, weights: Mapping[str, Tensor]) -> Weights:
    """Gradient of the summed log-probs of all rows of a batch (a probe's answers)."""
    rows, _ = likelihood.stats(batch, likelihood.run(model, batch))
    return _grad(torch.cat([stats.logps for stats in rows.values()]).sum(), weights)


def norm(direction: Mapping[str, Tensor]) -> float:
    """Euclidean length over all weights, in float64."""
    return float(torch.stack([_inner(d, d).cpu() for d in direction.values()]).sum().sqrt())


@contextmanager
def moved(weights: Mapping[str, Tensor], direction: Mapping[str, Tensor], step: float) -> Iterator[None]:
    """While open, the weights stand at theta + step * direction; then they are what they were, to the bit."""
    # adding and subtracting again would not be exact, so the values themselves are kept, off the device
    kept = {name: w.detach().to("cpu", copy=True) for name, w in weights.items()}
    try:
        with torch.no_grad():
            for name, w in weights.items():
                w.add_(direction[name].to(w.device, w.dtype), alpha=step)
        yield
    finally:
        with torch.no_grad():
            for name, w in weights.items():
                w.copy_(kept[name])


def slope(plus: Any, minus: Any, length: float) -> Any:
    """<gradient, direction> from log-probs at theta +- LENGTH * direction / length (central difference)."""
    return (plus - minus) / (2 * LENGTH) * length


def _grad(value: Tensor, weights: Mapping[str, Tensor], *, retain: bool = False) -> Weights:
    found = torch.autograd.grad(value, list(weights.values()), retain_graph=retain, materialize_grads=True)
    return {n: g.to(torch.promote_types(g.dtype, torch.float32)) for n, g in zip(weights, found, strict=True)}


def _inner(a: Tensor, b: Tensor) -> Tensor:
    return (a.to(wide(a.device)) * b.to(wide(b.device))).sum()
