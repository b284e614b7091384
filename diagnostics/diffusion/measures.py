"""Measures of a denoiser's pairs before training, from the gradients of both sides' errors. They tell how much the
error of the chosen sample will rise under a contrast of errors such as Diffusion-DPO.

Notation: e is the denoising error of a side, the mean over the likelihood's fixed draws; G_w and G_l are the gradients
of the chosen and of the rejected side's error in the trainable weights. The first step on a whole set goes along
-mean_j(G_w,j - G_l,j), as the log-sigmoid's slope is the same in every pair at its start.

The rates are those of the forecast for text (diagnostics.flag.rates), with minus the error for the log-prob: `set_rate`
is <G_w, mean_j(G_w,j - G_l,j)>, `set_rate_sign` the same along the sign of the mean (Adam's first step), `self_rate`
|G_w|^2 - <G_w, G_l>. The literature's "G" scores are minus these: low rates are prone.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import pandas as pd
import torch
from torch import Tensor, nn

from diagnostics.columns import Column
from diagnostics.engine import device_of, evaluating, innermost
from diagnostics.errors import UserError
from diagnostics.flag import forecast, rates
from diagnostics.likelihood import Likelihood, pair_stats
from diagnostics.scoring import batches, score
from diagnostics.sequences import Example
from diagnostics.stats import wide

SQUARED = "squared gradient of the denoising error"
RATES = ("set_rate", "set_rate_sign", "self_rate")
COLUMNS = {name: forecast.COLUMNS[name] for name in RATES} | {
    "denoising_ches": Column(
        "D-CHES",
        SQUARED,
        "<G_w, G_l - G_w> in the last layer, G the gradients of both sides' denoising errors",
        "highest",
    ),
    "error_cosine": Column(
        "cosine of the errors' gradients",
        "cosine",
        "how alike the gradients of both sides' denoising errors are",
    ),
    "feature_cosine": Column(
        "cosine of features",
        "cosine",
        "how alike what the last layer reads of both sides is, draw by draw",
        "highest",
    ),
    "chosen_error_norm": Column(
        "gradient norm of the chosen error",
        "gradient of the denoising error",
        "length of the gradient of the chosen side's denoising error",
    ),
    "rejected_error_norm": Column(
        "gradient norm of the rejected error",
        "gradient of the denoising error",
        "length of the gradient of the rejected side's denoising error",
    ),
    "error_norm_ratio": Column(
        "rejected / chosen gradient norm",
        "ratio",
        "length of the gradient of the rejected side's denoising error over the chosen side's",
        "highest",
    ),
}


def measure(likelihood: Likelihood, model: nn.Module, pairs: Sequence[Example]) -> pd.DataFrame:
    """pair_id and COLUMNS of every pair: two backward passes a pair, one over all pairs, four forward passes."""
    weights, last = rates.weights_of(model), last_layer(model)
    with evaluating(model):
        alone = pd.DataFrame([_alone(likelihood, model, pair, weights, last) for pair in pairs])
        mean = mean_difference(likelihood, model, pairs, weights)
        for name, direction in {"set_rate": mean, "set_rate_sign": {n: g.sign() for n, g in mean.items()}}.items():
            found = along(likelihood, model, pairs, weights, direction)
            alone[name] = [found[pair.pair_id] for pair in pairs]
    return alone.loc[:, ["pair_id", *COLUMNS]]


def mean_difference(
    likelihood: Likelihood, model: nn.Module, pairs: Sequence[Example], weights: Mapping[str, Tensor]
) -> rates.Weights:
    """mean_j(G_l,j - G_w,j): the direction of the first step on all pairs, up to its length."""
    total: dict[str, Tensor] = {}
    for group in batches(pairs, likelihood.budget(model, pairs), likelihood.cost(model)):
        batch = likelihood.collate(group).to(device_of(model))
        part = rates.difference(pair_stats(likelihood, batch, likelihood.run(model, batch)), weights)
        total = {name: total[name] + g if total else g for name, g in part.items()}
    return {name: g / len(pairs) for name, g in total.items()}


def along(
    likelihood: Likelihood,
    model: nn.Module,
    pairs: Sequence[Example],
    weights: Mapping[str, Tensor],
    direction: Mapping[str, Tensor],
) -> dict[str, float]:
    """By pair_id minus the derivative of the chosen side's error along a direction in the weights (a central
    difference)."""
    length = rates.norm(direction)
    ends = []
    for sign in (1, -1):
        with rates.moved(weights, direction, sign * rates.LENGTH / length if length else 0.0):
            ends.append(_chosen(likelihood, model, pairs))
    return {name: rates.slope(plus, ends[1][name], length) for name, plus in ends[0].items()}


def last_layer(model: nn.Module) -> nn.Module:
    """The last linear or convolutional layer. Raises UserError where there is none."""
    found = [m for m in innermost(model).modules() if isinstance(m, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d)]
    if not found:
        raise UserError(f"{type(innermost(model)).__name__} has no linear layer to take gradients in.")
    return found[-1]


def _alone(
    likelihood: Likelihood, model: nn.Module, pair: Example, weights: Mapping[str, Tensor], last: nn.Module
) -> dict[str, float | str]:
    """What a pair's own two gradients say."""
    batch = likelihood.collate([pair]).to(device_of(model))
    with _inputs(last) as seen:
        chosen, rejected = rates.gradients(likelihood, model, batch, weights)
    own = {id(p) for p in last.parameters()}
    head = [name for name, w in weights.items() if id(w) in own]
    ww, ll, wl = (_inner(a, b) for a, b in ((chosen, chosen), (rejected, rejected), (chosen, rejected)))
    return {
        "pair_id": pair.pair_id,
        "self_rate": ww - wl,
        "denoising_ches": sum(_dot(chosen[n], rejected[n] - chosen[n]) for n in head),
        "error_cosine": wl / (ww * ll) ** 0.5 if ww and ll else float("nan"),
        "feature_cosine": _alike(seen[0], batch.rows),
        "chosen_error_norm": ww**0.5,
        "rejected_error_norm": ll**0.5,
        "error_norm_ratio": (ll / ww) ** 0.5 if ww else float("nan"),
    }


def _chosen(likelihood: Likelihood, model: nn.Module, pairs: Sequence[Example]) -> dict[str, float]:
    """By pair_id minus the chosen side's error, with the weights as they are."""
    found: dict[str, float] = {}
    for scored in score(model, pairs, likelihood=likelihood):
        found |= zip((p.pair_id for p in scored.pairs), scored.stats.chosen.logps.tolist())
    return found


def _alike(features: Tensor, rows: Mapping[str, slice]) -> float:
    """Mean over draws of the cosine of both sides' features. features: (2K, ...), the chosen side's K draws first."""
    chosen, rejected = features.flatten(1).to(wide(features.device)).unflatten(0, (len(rows), -1))
    return float(torch.cosine_similarity(chosen, rejected, dim=-1).mean())


@contextmanager
def _inputs(layer: nn.Module) -> Iterator[list[Tensor]]:
    """While open, what a layer reads is kept."""
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda module, args, output: seen.append(args[0].detach()))
    try:
        yield seen
    finally:
        handle.remove()


def _inner(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> float:
    return sum(_dot(g, b[name]) for name, g in a.items())


def _dot(a: Tensor, b: Tensor) -> float:
    return float((a.to(wide(a.device)) * b.to(wide(b.device))).sum())
