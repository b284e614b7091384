"""The rate of the chosen log-prob in closed form, from one forward pass: hidden states and the head's logits, no
backward pass through the model.

A pair alone moves d/dt ln pi(y+) = (-l') * rate, where -l' > 0 is the loss's own factor (beta / 2 for DPO at its
start, the same for every pair, left out here). With hidden states and unembedding free to move, rate = U + V.

Notation: at the position that predicts completion token k, h_k is the vector that the head multiplies, z_k = W h_k
the head's own output, a_k = d ln pi(y_k) / d z_k (onehot - softmax for a plain head) and g_k = d ln pi(y_k) / d h_k
(W^T a_k for a plain head). What the model does after the head (scale, soft-cap) is in both, because they are taken by
autograd through one tile of logits.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.batch import Batch
from diagnostics.engine import engine_of, head_of
from diagnostics.forward import Outputs
from diagnostics.stats import wide


def closed_forms(batch: Batch, out: Outputs, mean_head: Tensor | None = None) -> dict[str, Tensor]:
    """unembedding_rate (U), hidden_rate (V) and their sum features_rate of each pair; (B,) float64, nats per unit
    of -l'. Positive = the chosen answer rises when the pair trains alone; lower = more prone to displacement.

    U = sum_k |g+_k|^2 - sum_{k <= c} <g+_k, g-_k>, c = number of contexts that both answers share: what free hidden
    states do, given the unembedding. V = sum alpha+ <h+_k, h+_k'> - sum alpha- <h+_k, h-_k'> with alpha = <a_k, a_k'>:
    what a free head does, given the hidden states. V is the exact rate <grad ln pi(y+), grad ln pi(y+) -
    grad ln pi(y-)> in the head's weight alone (last layer); with every alpha = 1 it would be minus CHES.
    mean_head: (V, D), mean over the data of `head_gradient`; adds last_layer_set_rate = <grad ln pi(y+), mean_head>
    in the head's weight: what the whole data set's first step does, through the head alone.
    NaN where the head cannot be applied to single positions (an adapter on the head).
    Source: arXiv 2410.08847, Theorems 4 and 6 (in one formula); the set version is own.
    """
    dtype = wide(out.hidden.device)
    names = ["unembedding_rate", "hidden_rate", *(["last_layer_set_rate"] if mean_head is not None else [])]
    if not engine_of(out.model).tiled:
        values = torch.full((len(names), len(batch.pair_ids)), torch.nan, dtype=dtype, device=out.hidden.device)
    else:
        found = [_pair(out, *sides, mean_head) for sides in _sides(batch, out)]
        values = torch.stack([torch.stack(row) for row in found], 1)
    columns = dict(zip(names, values, strict=True))
    return columns | {"features_rate": columns["unembedding_rate"] + columns["hidden_rate"]}


def head_gradient(batch: Batch, out: Outputs) -> Tensor:
    """(V, D) sum over the batch's pairs of grad ln pi(y+) - grad ln pi(y-) in the head's weight; float32 at least.
    One NaN where the head cannot be applied to single positions."""
    half, total = len(batch.pair_ids), None
    if not engine_of(out.model).tiled:
        return out.hidden.new_full((1, 1), torch.nan)
    for tile in out.tiles():
        errors, _ = _errors(out, tile, pull_hidden=False)
        sign = torch.where(out.rows[tile] < half, 1.0, -1.0).to(errors)
        hidden = out.hidden[tile].to(errors)
        part = (sign[:, None] * errors).T @ hidden
        total = part if total is None else total + part
    assert total is not None, "a batch has at least one completion token"
    return total


def product_signs(batch: Batch, out: Outputs) -> dict[str, Tensor]:
    """Shares of positive inner products in each pair, (B,) float64: chosen_alpha of <a+_k, a+_k'>, rejected_alpha of
    <a+_k, a-_k'>, hidden of <h+_k, h-_k'>, over all k and k'. CHES leaves the alphas out, which is fair where they are
    mostly positive. NaN where the head cannot be applied to single positions.
    Source: arXiv 2410.08847, section 5 and appendix G.2.
    """
    if not engine_of(out.model).tiled:
        nan = torch.full((len(batch.pair_ids),), torch.nan, dtype=torch.float64)
        return {"chosen_alpha": nan, "rejected_alpha": nan, "hidden": nan}
    found = [_positive(out, *sides) for sides in _sides(batch, out)]
    return {name: torch.tensor([row[name] for row in found], dtype=torch.float64) for name in found[0]}


def _positive(out: Outputs, chosen: Tensor, rejected: Tensor) -> dict[str, float]:
    """The three shares of one pair; two tiles of logits at a time."""
    step, wide_hidden = out.tiles()[0].stop, out.hidden.to(wide(out.hidden.device))
    sides, counts = {"chosen_alpha": chosen, "rejected_alpha": rejected}, {"chosen_alpha": 0, "rejected_alpha": 0}
    for own in chosen.split(step):
        errors = _errors(out, own, pull_hidden=False)[0]
        for name, side in sides.items():
            for other in side.split(step):
                alphas = errors @ _errors(out, other, pull_hidden=False)[0].T
                counts[name] += int((alphas > 0).sum())
    hidden = float((wide_hidden[chosen] @ wide_hidden[rejected].T > 0).double().mean())
    return {name: counts[name] / (len(chosen) * len(side)) for name, side in sides.items()} | {"hidden": hidden}


def _sides(batch: Batch, out: Outputs) -> Iterator[tuple[Tensor, Tensor]]:
    """For each pair the indices, among the N positions, of its chosen and of its rejected tokens."""
    counts = out.rows.bincount(minlength=2 * len(batch.pair_ids)).tolist()
    index = torch.arange(len(out.rows), device=out.rows.device).split(counts)
    yield from zip(index[: len(batch.pair_ids)], index[len(batch.pair_ids) :], strict=True)


def _pair(out: Outputs, chosen: Tensor, rejected: Tensor, mean_head: Tensor | None) -> list[Tensor]:
    """U, V and, with mean_head, the set rate of one pair. Only two tiles of logits are there at any time."""
    dtype, step = wide(out.hidden.device), out.tiles()[0].stop
    shared, pulls, last_layer, by_set = _shared(out, chosen, rejected), [], 0.0, 0.0
    blocks = [(b, 1.0) for b in chosen.split(step)] + [(b, -1.0) for b in rejected.split(step)]
    for own, _ in blocks[: len(chosen.split(step))]:
        errors, pull = _errors(out, own)
        pulls.append(pull)
        if mean_head is not None:
            by_set += ((errors @ mean_head) * out.hidden[own].to(errors)).sum(dtype=dtype)
        for other, sign in blocks:
            errors_2 = errors if other is own else _errors(out, other, pull_hidden=False)[0]
            products = out.hidden[own].to(dtype) @ out.hidden[other].to(dtype).T
            last_layer += sign * ((errors @ errors_2.T).to(dtype) * products).sum()
    pulled = torch.cat(pulls).to(dtype)
    others = [_errors(out, block)[1] for block in rejected[:shared].split(step)]  # elsewhere rejected has no part in U
    features = (pulled * pulled).sum() - (pulled[:shared] * torch.cat(others).to(dtype)).sum()
    return [features, last_layer, *([by_set] if mean_head is not None else [])]  # pyright: ignore[reportReturnType]


def _shared(out: Outputs, chosen: Tensor, rejected: Tensor) -> int:
    """c: how many leading contexts the two answers share, 1 + length of their common start, at most either length."""
    size = min(len(chosen), len(rejected))
    same = out.targets[chosen[:size]] == out.targets[rejected[:size]]
    return min(size, 1 + int(same.long().cumprod(0).sum()))


def _errors(out: Outputs, index: Tensor | slice, *, pull_hidden: bool = True) -> tuple[Tensor, Tensor]:
    """(n, V) a and (n, D) g at some of the N positions (g is empty without pull_hidden); no graph is kept."""
    with torch.enable_grad(), _output(head_of(out.model)) as seen:
        hidden = out.hidden[index].detach().requires_grad_()
        logits = replace(out, hidden=hidden, whole=None).logits()
    error = torch.softmax(logits.detach(), -1).neg_()
    error[torch.arange(len(error), device=error.device), out.targets[index]] += 1
    wanted = [seen[0], hidden] if pull_hidden else [seen[0]]
    found = torch.autograd.grad(logits, wanted, error)
    return found[0].reshape(error.shape).to(error.dtype), found[-1] if pull_hidden else hidden.new_empty(0)


@contextmanager
def _output(head: nn.Module) -> Iterator[list[Tensor]]:
    """While open, what the head gives is kept."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, args: Any, output: Tensor) -> None:
        seen.append(output)

    handle = head.register_forward_hook(keep)
    try:
        yield seen
    finally:
        handle.remove()
