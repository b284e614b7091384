"""What is taken from logits, tile by tile: log-probs, exact KL, collisions, the most likely tokens. (B, T, V) never
exists; a backward pass computes its tiles again.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from diagnostics.forward import Outputs
from diagnostics.stats import wide

TOP = 10  # most likely tokens whose entropy and mass are taken
SERIES = 0.05  # differences of log-probs up to which the KL takes a series; there float32 keeps 5 digits without it
TOGETHER = 3e-8  # a KL below this share of a common move, squared, is taken in float64
NEAR = 1e-4  # nats: a smaller KL needs the series where d is small
BLOCK_BYTES = 1 << 20  # logits that one softmax works through on a CPU: they stay in the cache of one core


def logps(out: Outputs, look: Callable[[Tensor, slice], None] | None = None) -> Tensor:
    """(N,) log-probabilities of the targets, in float32 at least; tiles are computed again in the backward pass.

    look: is shown every tile of logits, without gradient, also when a tile is computed again.
    """

    def one(hidden: Tensor, targets: Tensor, tile: slice) -> Tensor:
        logits = replace(out, hidden=hidden).logits() if out.whole is None else out.logits(tile)
        if look is not None:
            with torch.no_grad():
                look(logits.detach(), tile)
        return _target_logps(logits, targets)

    return torch.cat(_by_tile(out, one))


def compare(policy: Outputs, reference: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(N,) each: log-probs of policy and reference, exact KL(ref || policy) and KL(policy || ref) over the vocabulary.

    Each tile of logits is made once for all of them. Only the policy's log-probs have a gradient.
    """
    found: dict[int, tuple[Tensor, ...]] = {}
    training = torch.is_grad_enabled()
    if reference is policy and not training:
        # by the formula of the other steps, so that an answer that never moves has a change of exactly 0
        tiles = ((policy.logits(tile), policy.targets[tile]) for tile in policy.tiles())
        values = torch.cat([_compare(z, z, targets)[0] for z, targets in tiles])
        return values, values, torch.zeros_like(values), torch.zeros_like(values)

    def look(logits: Tensor, tile: slice) -> None:
        if tile.start not in found:  # the backward pass computes tiles again; they are measured already
            other, targets = reference.logits(tile), reference.targets[tile]
            same, ref, forward, reverse = _compare(logits, other, targets)
            # both sides by one formula to the last bit: the policy's own log-probs come from log_softmax in training
            found[tile.start] = (same, _target_logps(other, targets) if training else ref, forward, reverse)

    values = None
    if training:
        values = logps(policy, look)
    else:
        for tile in policy.tiles():
            look(policy.logits(tile), tile)
    same, ref, forward, reverse = (torch.cat(parts) for parts in zip(*found.values(), strict=True))
    return same if values is None else values, ref, forward, reverse


def with_kl(policy: Outputs, reference: Outputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """`compare` with a gradient in KL(ref || policy) too; tiles are computed again in the backward pass."""

    def one(hidden: Tensor, targets: Tensor, tile: slice) -> tuple[Tensor, ...]:
        logits = replace(policy, hidden=hidden).logits() if policy.whole is None else policy.logits(tile)
        with torch.no_grad():
            other = reference.logits(tile)
            ref_sum, probs = other.logsumexp(-1), other.softmax(-1)
        own_sum = logits.logsumexp(-1)
        own, ref = (z.gather(-1, targets[:, None])[:, 0] - n for z, n in ((logits, own_sum), (other, ref_sum)))
        forward, reverse = divergences(logits, other, own_sum - ref_sum, probs)
        return own, ref, forward, reverse.detach()

    values, ref, forward, reverse = (torch.cat(parts) for parts in zip(*_by_tile(policy, one), strict=True))
    return values, ref, forward, reverse


def collisions(out: Outputs) -> Tensor:
    """(N,) nats: log of the sum over the vocabulary of squared probabilities. No gradient."""
    with torch.no_grad():
        return torch.cat([(2 * out.logits(t).log_softmax(-1)).logsumexp(-1) for t in out.tiles()])


def top_tokens(out: Outputs, k: int = TOP) -> tuple[Tensor, Tensor]:
    """(N,) each: entropy H_k (nats) and mass M_k of the k most likely tokens where a token is predicted. No gradient.

    H_k = - sum_{i <= k} p_i log p_i and M_k = sum_{i <= k} p_i, with the model's own p_i: they are not made to add up
    to 1. With k or fewer tokens in the vocabulary that is the whole entropy, and M_k = 1.
    Source: arXiv 2410.11677 (entropy and mass over the top k as signs of over-optimisation; k = 10 is our choice).
    """
    with torch.no_grad():
        parts = [_top_tokens(out.logits(tile), k) for tile in out.tiles()]
    entropy, mass = (torch.cat(part) for part in zip(*parts, strict=True))
    return entropy, mass


def _by_tile(out: Outputs, one: Callable[..., Any]) -> list[Any]:
    """one(hidden, targets, tile) of every tile; computed again in the backward pass where that saves memory."""
    parts = [(out.hidden[t], out.targets[t], t) for t in out.tiles()]
    if out.whole is not None or len(parts) < 2 or not torch.is_grad_enabled():
        return [one(*part) for part in parts]
    return [checkpoint(one, *part, use_reentrant=False) for part in parts]


def _target_logps(logits: Tensor, targets: Tensor) -> Tensor:
    if logits.requires_grad:
        return logits.log_softmax(-1).gather(-1, targets[:, None])[:, 0]
    blocks = zip(logits.split(_block(logits)), targets.split(_block(logits)), strict=True)
    return torch.cat([b.log_softmax(-1).gather(-1, t[:, None])[:, 0] for b, t in blocks])


def _compare(policy: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    """(N,) each, from logits (N, V): log-probs of both, KL(ref || policy) and KL(policy || ref), block by block."""
    size = _block(policy)
    blocks = zip(policy.split(size), reference.split(size), targets[:, None].split(size), strict=True)
    parts = [_compare_block(*block) for block in blocks]
    return tuple(torch.cat(part) for part in zip(*parts, strict=True))


def _compare_block(policy: Tensor, reference: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    # the exponential inside softmax is by far the cheapest: the largest logit and its probability give the log-sum
    policy_sum = policy.amax(-1) - policy.softmax(-1).amax(-1).log()
    ref_probs = reference.softmax(-1)
    ref_sum = reference.amax(-1) - ref_probs.amax(-1).log()
    logps = policy.gather(-1, targets)[:, 0] - policy_sum, reference.gather(-1, targets)[:, 0] - ref_sum
    return *logps, *divergences(policy, reference, policy_sum - ref_sum, ref_probs)


def divergences(policy: Tensor, reference: Tensor, shift: Tensor, ref_probs: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) nats each: exact KL(ref || policy) and KL(policy || ref) of logits (N, V), precise also near 0.

    With d = log policy - log ref and ref's probabilities as weights, KL(ref || policy) is the sum of expm1(d) - d and
    KL(policy || ref) that of d * expm1(d) - (expm1(d) - d): terms that are never negative, where the textbook's
    differences of log-sums lose everything below 1e-6 in float32. shift: (N,) log-sum of the policy's logits less the
    reference's, as rounded; by how much probabilities then miss 1 is known from d and taken back.
    """
    d = (policy - reference).sub_(shift[:, None])
    missed, forward, reverse = _sums(d, partial(torch.linalg.vecdot, ref_probs))
    taken = missed**2 / 2
    forward, reverse = forward - taken, reverse - taken
    # rounding of the differences themselves counts where all logits moved together by far more than apart
    if bool((forward.isfinite() & reverse.isfinite() & (forward >= TOGETHER * shift**2)).all()):
        return forward.clamp(min=0), reverse.clamp(min=0)
    return _kl(policy, reference)


def _sums(d: Tensor, mean: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Means of expm1(d), of expm1(d) - d, and (without gradient) of d * expm1(d) - (expm1(d) - d)."""
    if bool(torch.stack(d.detach().aminmax()).abs().amax() < SERIES):
        rest = _series(d)
        grown = rest + d
        missed, forward = mean(grown), mean(rest)
    else:
        grown = d.expm1()
        missed = mean(grown)
        forward = missed - mean(d)
        if bool(forward.detach().amin() < NEAR):
            forward = mean(torch.where(d.abs() < SERIES, _series(d), grown - d))
    with torch.no_grad():
        return missed, forward, mean(d * grown) - forward


def _series(d: Tensor) -> Tensor:
    """expm1(d) - d for small d: d^2 / 2 + d^3 / 6 + ..., to a relative 1e-12."""
    found = d * (1 / 5040)
    for factor in (1 / 720, 1 / 120, 1 / 24, 1 / 6, 1 / 2):
        found.add_(factor).mul_(d)
    return found.mul_(d)


def _top_tokens(logits: Tensor, k: int) -> tuple[Tensor, Tensor]:
    logps = logits.topk(min(k, logits.shape[-1]), -1).values - logits.logsumexp(-1, keepdim=True)
    probs = logps.exp()
    # a token that is ruled out (log-prob -inf) adds nothing
    return -torch.where(probs > 0, probs * logps, 0.0).sum(-1), probs.sum(-1)


def _kl(policy: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """KL(ref || policy) and KL(policy || ref) of logits (N, V) of which some are infinite, in float64, (N,) nats each.

    A token that a model rules out (log-prob -inf) adds nothing to the sum weighted by that model.
    """
    dtype = wide(policy.device)
    own, other = policy.to(dtype).log_softmax(-1), reference.to(dtype).log_softmax(-1)
    neither, never = own.isneginf() & other.isneginf(), other.isneginf()
    d = torch.where(neither, 0.0, own - other)
    forward = torch.where(never, own.exp(), other.exp() * (d.expm1() - d)).sum(-1)
    back = torch.where(own.isneginf(), other.exp(), own.exp() * ((-d).expm1() + d)).sum(-1)
    return forward.to(policy.dtype), back.to(policy.dtype)


def _block(logits: Tensor) -> int:
    """How many rows of logits to work through at once."""
    rows = BLOCK_BYTES // (logits.element_size() * logits.shape[-1]) if logits.device.type == "cpu" else len(logits)
    return max(1, rows)
