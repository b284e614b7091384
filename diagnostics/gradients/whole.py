"""Gradients apart: how the loss pulls on the weights through the chosen answers, and how through the rejected.

The loss acts through the log-probs of two sides. `cut` makes them the leaves of the objective's own small graph, whose
slopes in them are the cotangents of one vector-Jacobian product a side; `run_sides` keeps the sides' graphs apart, so
that neither product works on the other side's tokens. Their sum, with whatever acts in another way (a KL term, a third
answer), is the gradient of the step.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from diagnostics.engine import head_of
from diagnostics.forward import Outputs, Sides
from diagnostics.logits import logps, with_kl
from diagnostics.stats import PairStats

Gradient = Sequence[Tensor | None]  # one entry a parameter; None where it has no part
Pull = Callable[[Tensor, bool], tuple[Gradient, Gradient]]

KL = "per_token_kl"


@dataclass(frozen=True)
class Arrows:
    """The gradient of a loss in the parameters, by what it acts through: chosen and rejected log-probs, or the rest."""

    chosen: Gradient
    rejected: Gradient
    rest: Gradient

    def plus(self, other: "Arrows") -> "Arrows":
        """The sum of two micro-batches, in tensors of its own."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Arrows(*([_sum(a, b) for a, b in zip(*pair, strict=True)] for pair in pairs))

    def total(self) -> Gradient:
        """The whole gradient."""
        return [_sum(_sum(a, b), c) for a, b, c in zip(self.chosen, self.rejected, self.rest, strict=True)]


def trained(model: nn.Module, which: str = "all") -> dict[str, nn.Parameter]:
    """The trainable parameters by name: all of them, or only the head's."""
    known = set(head_of(model).parameters()) if which == "head" else None
    return {n: p for n, p in model.named_parameters() if p.requires_grad and (known is None or p in known)}


def cut(stats: PairStats, *, kl: bool) -> PairStats:
    """The same numbers as leaves of a new graph: log-probs, and with kl KL(ref || policy)."""
    sides = []
    for side in (stats.chosen, stats.rejected):
        values = {n: getattr(side, n) for n in (("per_token_logps", KL) if kl else ("per_token_logps",))}
        sides.append(replace(side, **{n: v.detach().requires_grad_() for n, v in values.items() if v is not None}))
    return replace(stats, chosen=sides[0], rejected=sides[1])


def slopes(loss: Tensor, stats: PairStats, out: Outputs, name: str = "per_token_logps") -> Tensor | None:
    """(N,) slope of the loss in each predicted token's log-prob (or KL), 0 where it has none; None where nowhere."""
    values = [getattr(side, name) for side in (stats.chosen, stats.rejected)]
    if not all(v is not None and v.requires_grad for v in values):
        return None
    found = torch.autograd.grad(loss, values, retain_graph=True, allow_unused=True)
    if all(g is None for g in found):
        return None
    both = [torch.zeros_like(v) if g is None else g for v, g in zip(values, found, strict=True)]
    return torch.cat(both)[out.rows, out.columns]


def side_gradients(
    loss: Tensor,
    stats: PairStats,
    sides: Sides,
    parameters: Sequence[Tensor],
    reference: Outputs | None = None,
    *,
    pull: Pull | None = None,
) -> Arrows:
    """The arrows of a loss that was computed from `cut` statistics of a `run_sides` pass.

    pull: another way to the sides' gradients than `pull_sides`, given the slopes (N,) and whether to keep the graph.
    """
    weights, kl_weights = (slopes(loss, stats, sides.out, n) for n in ("per_token_logps", KL))
    if weights is None:
        weights = torch.zeros_like(sides.out.hidden[:, 0])
    rest = list(torch.autograd.grad(loss, parameters, allow_unused=True))
    keep = kl_weights is not None and isinstance(reference, Outputs)
    if pull is None:
        chosen, rejected = pull_sides(sides, weights, parameters, keep=keep)
    else:
        chosen, rejected = pull(weights, keep)
    if kl_weights is not None and isinstance(reference, Outputs):
        rest = _plus(rest, _pull_kl(sides, reference, kl_weights, parameters))
    return Arrows(chosen, rejected, rest)


def pull_sides(sides: Sides, weights: Tensor, parameters: Sequence[Tensor], *, keep: bool) -> tuple[Gradient, Gradient]:
    """Gradients of sum(weights * log-probs) of either side, weights (N,): two vector-Jacobian products."""
    middle = len(sides.chosen)
    chosen = _pull(sides.out.part(slice(middle)), sides.chosen, weights[:middle], parameters, keep=True)
    rejected = _pull(sides.out.part(slice(middle, None)), sides.rejected, weights[middle:], parameters, keep=keep)
    return chosen, rejected


def head_gradients(out: Outputs, weights: Tensor, parameters: Sequence[Tensor]) -> tuple[Tensor, Gradient]:
    """Gradient of sum(weights * log-probs) in the head's inputs (N, D) and in the parameters, through the head alone.

    weights: (N,). Each tile of logits is made once here and thrown away.
    """
    pulled, found = torch.zeros_like(out.hidden), _nothing(parameters)
    for tile in out.tiles():
        hidden = out.hidden[tile].detach().requires_grad_()
        values = logps(replace(out.part(tile), hidden=hidden))
        pulled[tile], *more = torch.autograd.grad(values, [hidden, *parameters], weights[tile], allow_unused=True)
        found = _plus(found, more, own=True)
    return pulled, found


@torch.no_grad()
def products(one: Gradient, other: Gradient, groups: Sequence[str]) -> dict[str, float]:
    """Inner product of two gradients by group of parameters, and in total under "". One group name a parameter."""
    found = [(g, _dot(a, b)) for g, a, b in zip(groups, one, other, strict=True) if a is not None and b is not None]
    values = torch.stack([v for _, v in found]).tolist() if found else []
    sums = dict.fromkeys(["", *sorted(set(groups))], 0.0)
    for (group, _), value in zip(found, values, strict=True):
        sums[group] += value
        sums[""] += value
    return sums


def norms(arrows: Arrows, groups: Sequence[str]) -> dict[str, float]:
    """Lengths of the arrows and the cosine of chosen and rejected, in total and by group of parameters:

    grad/chosen, grad/rejected, grad/cosine, each also with /<group>; grad/rest where there is a rest. The arrows are
    those of the gradient, so a step moves against them.
    """
    pairs = ((arrows.chosen, arrows.chosen), (arrows.rejected, arrows.rejected), (arrows.chosen, arrows.rejected))
    chosen, rejected, inner = (products(a, b, groups) for a, b in pairs)
    found = {}
    for group in chosen:
        end = f"/{group}" if group else ""
        one, other = math.sqrt(chosen[group]), math.sqrt(rejected[group])
        found[f"grad/chosen{end}"], found[f"grad/rejected{end}"] = one, other
        found[f"grad/cosine{end}"] = inner[group] / (one * other) if one * other else math.nan
    if any(g is not None for g in arrows.rest):
        found["grad/rest"] = math.sqrt(products(arrows.rest, arrows.rest, groups)[""])
    return found


def band(
    chosen_incentive: Tensor, rejected_incentive: Tensor, chosen_norm: Tensor, rejected_norm: Tensor, inner: Tensor
) -> dict[str, Tensor]:
    """(B,) each: where a pair's incentives stand in its disentanglement band (arXiv 2604.18239).

    With d_w, d_l the incentives, s_w, s_l the gradients of the two log-probs, rho their cosine and r* = |s_l|/|s_w|, a
    small step along the pair's own gradient raises the chosen answer iff log r > log r* + log rho and lowers the
    rejected one iff log r < log r* - log rho, r = d_w / d_l.

    incentive_ratio: r. gradient_cosine: rho. slack: nats to the nearer edge, -log rho - |log r - log r*|; below 0 one
    of the two fails; inf where rho <= 0 (both hold whatever r is); NaN unless both incentives and both gradients are
    positive. grad_push_ratio: |d_l s_l| / |d_w s_w|.
    """
    ratio, cosine = chosen_incentive / rejected_incentive, inner / (chosen_norm * rejected_norm)
    off = (ratio.log() - (rejected_norm / chosen_norm).log()).abs()
    slack = torch.where(cosine > 0, -cosine.log() - off, math.inf)
    defined = (chosen_incentive > 0) & (rejected_incentive > 0) & (chosen_norm > 0) & (rejected_norm > 0)
    push = (rejected_incentive * rejected_norm).abs() / (chosen_incentive * chosen_norm).abs()
    slack = torch.where(defined & ~cosine.isnan(), slack, math.nan)
    return {"incentive_ratio": ratio, "gradient_cosine": cosine, "slack": slack, "grad_push_ratio": push}


class _Carry(torch.autograd.Function):
    """A loss whose backward pass hands out gradients that are known already."""

    @staticmethod
    def forward(ctx, loss: Tensor, gradient: Gradient, *parameters: Tensor) -> Tensor:
        ctx.gradient = gradient
        return loss.clone()

    @staticmethod
    def backward(ctx, factor: Tensor):  # type: ignore[override]
        return None, None, *(None if g is None else g.mul_(factor) for g in ctx.gradient)


def carry(loss: Tensor, gradient: Gradient, parameters: Sequence[Tensor]) -> Tensor:
    """The loss's value, with this gradient in the parameters: whoever calls backward on it (accumulation, scaling,
    data-parallel reduction) finds what the whole graph would have given. The gradient's tensors are used up."""
    value: Tensor = _Carry.apply(loss.detach(), gradient, *parameters)  # type: ignore[assignment]
    return value


def _pull(out: Outputs, hidden: Tensor, weights: Tensor, parameters: Sequence[Tensor], *, keep: bool) -> Gradient:
    """Gradient of one side's sum(weights * log-probs): head first, then the body that made `hidden`."""
    pulled, found = head_gradients(out, weights, parameters)
    body = torch.autograd.grad(hidden, parameters, pulled, retain_graph=keep, allow_unused=True)
    return _plus(body, found)


def _pull_kl(sides: Sides, reference: Outputs, weights: Tensor, parameters: Sequence[Tensor]) -> Gradient:
    """Gradient of sum(weights * KL(ref || policy)) over both sides."""
    leaf = sides.out.hidden.detach().requires_grad_()
    values = with_kl(replace(sides.out, hidden=leaf), reference)[2]
    pulled, *found = torch.autograd.grad(values, [leaf, *parameters], weights, allow_unused=True)
    middle = len(sides.chosen)
    body = torch.autograd.grad(
        [sides.chosen, sides.rejected], parameters, [pulled[:middle], pulled[middle:]], allow_unused=True
    )
    return _plus(body, found)


def _plus(one: Sequence[Tensor | None], other: Sequence[Tensor | None], *, own: bool = False) -> Gradient:
    """The sum of two gradients; own: into the first one's tensors."""
    return [a.add_(b) if own and a is not None and b is not None else _sum(a, b) for a, b in zip(one, other)]


def _nothing(parameters: Sequence[Tensor]) -> Gradient:
    return [None] * len(parameters)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    return b if a is None else a if b is None else a + b


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product in float32 at least."""
    wide = torch.promote_types(a.dtype, torch.float32)
    return torch.dot(a.flatten().to(wide), b.flatten().to(wide)).double()
