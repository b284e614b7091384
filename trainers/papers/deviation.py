"""How far does each objective leave the reference, and what is gained by it? RRPO's divergence figure and ablation
(arXiv:2504.12083), TDPO's KL plots (arXiv:2404.11999), and RRPO's gradient bound.

The papers' own runs are on video models (RRPO) and on a sentiment task (TDPO). Video models are not loaded here: at toy
scale every objective trains the small model of the fact world (and TDPO's also that of refusals, whose answers share
few words, so that the KL of the two sides can differ), at paper scale a text model stands in, with RRPO's
hyperparameters and any preference data. What "accuracy" is at toy scale: the probability of the true value, and whether
it is the likeliest token, in answers to questions in words never trained on.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import torch

from diagnostics import gradient_bound
from diagnostics.errors import DataError
from diagnostics.forward import run
from diagnostics.pairs import read_pairs
from diagnostics.rates import weights_of
from diagnostics.row_stats import pair_stats
from diagnostics.sequences import Example
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.tokenized import tokenize_pairs
from trainers import objectives
from trainers.loop.given import cleaned, gather
from trainers.loop.ingredients import Given, Ingredients
from trainers.models import load_model, load_tokenizer, model_limit, quiet
from trainers.papers import Order, Setting, Trial, keys, measure, train, worlds
from trainers.studies.compare import Entry, parse_entries
from trainers.studies.demo_runs import FACTS, REFUSALS, builders, world_paths

SEEDS = 5
TUNED = range(16)
DATA = ""
NAMES = {"dpo": "DPO", "dpa": "DPA", "tdpo1": "TDPO1", "tdpo2": "TDPO2", "ddpo_dense": "DDPO", "rrpo": "RRPO"}
FAMILY = ("dpo", "tdpo1", "tdpo2")  # of TDPO's plots
_COMMON = "dpo,dpa,tdpo1,tdpo2:alpha=0.1,tdpo2:alpha=0.3,tdpo2,tdpo2:alpha=0.7,ddpo_dense,rrpo:alpha=0"
_RECIPE = "as in the recipe of the fact world"
_VIDEO = "of a video model, which is not loaded here: a text model stands in"
SETTINGS = (
    Setting("entries", f"{_COMMON},rrpo:alpha=0.05,rrpo:alpha=0.05:phrases=false", "ablation table; alpha: scripts",
            f"{_COMMON},rrpo,rrpo:phrases=false,rrpo:alpha=0.1,rrpo:alpha=0.1:phrases=false",
            "alpha 0.01 goes with beta 0.1 in RRPO's scripts; 0.1 is the upper end of its range"),
    Setting("beta", 0.5, "RRPO's script for LongVU; TDPO's default is 0.1; the other baselines': not stated", 0.1,
            "TDPO's default and RRPO's for LLaVA-Video"),
    Setting("learning rates", [5e-7, 5e-6], "RRPO's scripts 5e-6; DPO's said to be ten times lower", [1e-4, 3e-4],
            "models of under a million weights do not move at 5e-6"),
    Setting("optim", "adamw_torch", "scripts", "adamw_torch"),
    Setting("lr_scheduler_type", "cosine", "scripts", "constant", _RECIPE),
    Setting("warmup_steps", 0.03, "scripts: warmup ratio 0.03", None, "none, as in the recipe of the fact world"),
    Setting("weight_decay", 0.0, "scripts", 0.0),
    Setting("num_train_epochs", 1.0, "scripts", 3.0, "3 on facts, 1 on refusals, as in their recipes"),
    Setting("per_device_train_batch_size", 1, "scripts", 16, _RECIPE),
    Setting("gradient_accumulation_steps", 32, "scripts: effective batch 32", None, "the batch fits"),
    Setting("lora_r", 128, "scripts", None, "all weights are trained"),
    Setting("lora_alpha", 256, "scripts", None, "all weights are trained"),
    Setting("bf16", True, "scripts", None, "a CPU"),
    Setting("gradient_checkpointing", True, "scripts", None, "the model is small"),
    Setting("model", "Qwen/Qwen2-7B-Instruct", f"LongVU-Qwen2-7B {_VIDEO}", None, "built from scratch, one a seed"),
    Setting("data", "HuggingFaceH4/ultrafeedback_binarized", "its pairs are on videos; text pairs stand in", None,
            "synthetic pairs whose answers differ in a short phrase"),
    Setting("split", "train_prefs", "not stated", None, "files have none"),
    Setting("pairs probed", 256, "ours", 64, "all 256 in the DPO run that other analyses share"),
    Setting("SFT steps", None, "starts from an instruct model", None, "700 on facts, 400 on refusals"),
    Setting("pairs of the gradient bound", 4, "ours", 8, "one backward pass a token"),
    Setting("precision of the bound", "float32", "ours", "float64", "small models have the room"),
)  # fmt: skip


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """runs: world, method, alpha, rate and seed; bounds: one row a pair and seed, both bounds and both actual norms."""
    toy = order.scale == "toy"
    bases = _toy(order, settings) if toy else _paper(order, settings)
    rates, entries = sorted(settings["learning rates"]), parse_entries(settings["entries"])
    trials = [
        _trial(entry, rate, base, rate == rates[-1], "facts" if toy else "given", settings)
        for entry in entries
        for rate in rates
        for base in bases
    ]
    family = [entry for entry in entries if entry.objective in FAMILY]
    apart = _refusals(order, settings) if toy else []
    trials += [_trial(entry, rates[-1], base, True, "refusal", settings) for entry in family for base in apart]
    runs = train(order, trials)
    tasks = [(base, settings) for base in bases]
    return {"runs": runs, "bounds": pd.concat(measure(order, bounds, tasks, "gradients"), ignore_index=True)}


def _toy(order: Order, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Keys of the runs on the fact world, one a seed."""
    places = worlds(order, builders("facts", order.numbers, settings["SFT steps"]))
    own = {k: v for k, v in keys(settings).items() if k not in ("entries", "beta")}
    return [FACTS | own | world_paths("facts", p) | {"seed": s} for s, p in zip(order.numbers, places.values())]


def _refusals(order: Order, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Keys of the runs on refusals for TDPO's plots: there the two answers of a pair share few words."""
    places = worlds(order, builders("refusal", order.numbers, settings["SFT steps"]))
    epochs = {"num_train_epochs": min(settings["num_train_epochs"], REFUSALS["num_train_epochs"])}
    return [REFUSALS | epochs | world_paths("refusal", p) | {"seed": s} for s, p in zip(order.numbers, places.values())]


def _paper(order: Order, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Keys of the runs of the given model on the given data, one a seed; a share of the data is held out."""
    given = {k: v for k, v in (("model", order.model), ("data", order.data)) if v}
    own = {k: v for k, v in keys(settings).items() if k not in ("entries", "beta")}
    size = settings["pairs probed"]
    base = own | given | {"tokens": "none", "probe_pairs": size, "heldout_pairs": size, "save_model": False}
    return [base | {"seed": seed} for seed in order.numbers]


def _trial(
    entry: Entry, rate: float, base: Mapping[str, Any], last: bool, world: str, settings: Mapping[str, Any]
) -> Trial:
    known = objectives.hyperparameters(entry.objective)
    beta = {"beta": settings["beta"]} if "beta" in known else {}
    own = {"objective": entry.objective, "learning_rate": rate} | beta | entry.hyperparameters
    dropped = {k: v for k, v in base.items() if k != "beta"}
    labels = {
        "world": world,
        "method": method(entry),
        "alpha": float((known | entry.hyperparameters).get("alpha", np.nan)),
    }
    labels |= {"rate": rate, "seed": base["seed"]}
    return Trial(labels, dropped | own | ({} if world == "given" else _lighter(entry, last, base, settings)))


def _lighter(entry: Entry, last: bool, base: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Fewer measurements than the standard run, which is left as it is so that other analyses find it."""
    if entry.objective == "dpo" and last:
        return {}
    return {
        "probe_pairs": settings["pairs probed"],
        "response_types": 0,
        "probe_every": base["probe_every"] if last else 48,
    }


def method(entry: Entry) -> str:
    """The name in the papers; RRPO w/o R* is its loss on all tokens, w/o TKL without the KL term."""
    full = objectives.hyperparameters(entry.objective) | entry.hyperparameters
    ablation = "" if full.get("phrases", True) else " w/o R*"
    ablation += " w/o TKL" if entry.objective == "rrpo" and full["alpha"] == 0 else ""
    return NAMES.get(entry.objective, entry.objective) + ablation


def bounds(base: Mapping[str, Any], settings: Mapping[str, Any]) -> pd.DataFrame:
    """Both bounds and the actual gradient norms of the starting model on a few pairs that differ in a phrase.

    Columns seed, pair_id, chosen_length, rejected_length (tokens), phrases (N), longest (L, tokens), largest (M),
    phrase_bound, dpo_bound, rrpo_norm (rank term alone), dpo_norm; norms over all trainable weights.
    """
    quiet()
    model = load_model(base["model"]).to(getattr(torch, settings["precision of the bound"]))
    pairs, given, likelihood = _marked(base, model, settings["pairs of the gradient bound"])
    rows = [_bounds_of(model, pair, given, likelihood, settings["beta"]) for pair in pairs]
    return pd.DataFrame(rows).assign(seed=base["seed"])


def _marked(base: Mapping[str, Any], model: Any, count: int) -> tuple[list[Example], Given, TokenLikelihood]:
    """Pairs drawn by seed among those with a phrase on either side, and their phrases."""
    tokenizer = load_tokenizer(base["model"])
    table, spans = cleaned(read_pairs(base["data"], split=base.get("split")), "rrpo")
    found = tokenize_pairs(table.pairs, tokenizer, max_length=model_limit(model), truncation="drop")
    kept = [pair for pair in found if isinstance(pair, Example)]
    given = gather(table, kept, spans, tokenizer, "rrpo", phrase_source="auto", settings={})
    marked = [pair for pair in kept if any(map(any, given.phrases[pair.pair_id]))]
    if not marked:
        raise DataError(f"{base['data']}: no pair has a phrase in which its answers differ; RRPO needs such pairs.")
    order = np.random.default_rng([base["seed"], 12]).permutation(len(marked))[:count]
    return [marked[i] for i in order], given, TokenLikelihood.of(tokenizer)


def _bounds_of(model: Any, pair: Example, given: Given, likelihood: TokenLikelihood, beta: float) -> dict[str, Any]:
    weights, batch = weights_of(model), likelihood.collate([pair])
    largest = float(gradient_bound.token_norms(model, batch, weights).max())
    marks = given.phrases[pair.pair_id]
    phrases, longest = gradient_bound.phrase_sizes(marks)
    lengths = len(pair.chosen.completion_ids), len(pair.rejected.completion_ids)
    out = run(model, batch)
    with torch.no_grad():
        start = run(model, batch)
    stats = pair_stats(batch, out, start)
    stats = Ingredients("rrpo", [pair], likelihood=likelihood, given=given).complete(stats, batch, out, model, None)
    rank = objectives.load("rrpo")(stats, beta=beta, alpha=0.0).losses.sum()
    whole = objectives.load("dpo")(stats, beta=beta).losses.sum()
    norms = [_norm(loss, weights) for loss in (rank, whole)]
    return {"pair_id": pair.pair_id, "chosen_length": lengths[0], "rejected_length": lengths[1], "phrases": phrases,
            "longest": longest, "largest": largest, "rrpo_norm": norms[0], "dpo_norm": norms[1],
            "phrase_bound": gradient_bound.phrase_bound(beta, largest, marks),
            "dpo_bound": gradient_bound.dpo_bound(beta, largest, *lengths)}  # fmt: skip


def _norm(loss: torch.Tensor, weights: Mapping[str, torch.Tensor]) -> float:
    found = torch.autograd.grad(loss, list(weights.values()), retain_graph=True, materialize_grads=True)
    return float(gradient_bound.norm(found))
