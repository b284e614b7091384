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

from diagnostics.errors import DataError
from diagnostics.flag.rates import weights_of
from diagnostics.forward import run
from diagnostics.gradients import bound as gradient_bound
from diagnostics.pairs import read_pairs
from diagnostics.row_stats import pair_stats
from diagnostics.sequences import Example
from diagnostics.tables import Field
from diagnostics.token_likelihood import TokenLikelihood
from trainers import objectives
from trainers.loop.given import cleaned, gather
from trainers.loop.ingredients import Given, Ingredients
from trainers.models import load_model, load_tokenizer, model_limit, quiet
from trainers.papers import DISPLACES, MINUTES, PAIR, RUNS, SEED, SMALL_WORLDS, WORLD, Setting
from trainers.studies.compare import Entry, parse_entries
from trainers.studies.demo_runs import REFUSALS
from trainers.studies.paper_cost import Work, world_work
from trainers.studies.paper_runs import Order, Trial, examples, given_bases, measured, train, world_bases

SEEDS = 5
TUNED = range(16)
SCALES = ("toy", "small", "paper")
DATA = ""
NAMES = {"dpo": "DPO", "dpa": "DPA", "tdpo1": "TDPO1", "tdpo2": "TDPO2", "ddpo_dense": "DDPO", "rrpo": "RRPO"}
FAMILY = ("dpo", "tdpo1", "tdpo2")  # of TDPO's plots
_COMMON = "dpo,dpa,tdpo1,tdpo2:alpha=0.1,tdpo2:alpha=0.3,tdpo2,tdpo2:alpha=0.7,ddpo_dense,rrpo:alpha=0"
_FEW = "dpo,tdpo1,tdpo2,rrpo:alpha=0,rrpo,rrpo:alpha=0.1,rrpo:alpha=0.1:phrases=false"
_RECIPE = "as in the recipe of the fact world"
_VIDEO = "of a video model, which is not loaded here: a text model stands in"
SETTINGS = (
    Setting("entries", f"{_COMMON},rrpo:alpha=0.05,rrpo:alpha=0.05:phrases=false", "ablation table; alpha: scripts",
            f"{_COMMON},rrpo,rrpo:phrases=false,rrpo:alpha=0.1,rrpo:alpha=0.1:phrases=false",
            "alpha 0.01 goes with beta 0.1 in RRPO's scripts; 0.1 is the upper end of its range", _FEW, MINUTES),
    Setting("beta", 0.5, "RRPO's script for LongVU; TDPO's default is 0.1; the other baselines': not stated", 0.1,
            "TDPO's default and RRPO's for LLaVA-Video"),
    Setting("learning rates", [5e-7, 5e-6], "RRPO's scripts 5e-6; DPO's said to be ten times lower", [1e-4, 3e-4],
            "models of under a million weights do not move at 5e-6", [5e-5], DISPLACES),
    Setting("optim", "adamw_torch", "scripts", "adamw_torch"),
    Setting("lr_scheduler_type", "cosine", "scripts", "constant", _RECIPE),
    Setting("warmup_steps", 0.03, "scripts: warmup ratio 0.03", None, "none, as in the recipe of the fact world"),
    Setting("weight_decay", 0.0, "scripts", 0.0),
    Setting("num_train_epochs", 1.0, "scripts", 3.0, "3 on facts, 1 on refusals, as in their recipes", 1.0, MINUTES),
    Setting("per_device_train_batch_size", 1, "scripts", 16, _RECIPE, 4, MINUTES),
    Setting("gradient_accumulation_steps", 32, "scripts: effective batch 32", None, "the batch fits"),
    Setting("lora_r", 128, "scripts", None, "all weights are trained"),
    Setting("lora_alpha", 256, "scripts", None, "all weights are trained"),
    Setting("bf16", True, "scripts", None, "a CPU"),
    Setting("gradient_checkpointing", True, "scripts", None, "the model is small"),
    Setting("model", "Qwen/Qwen2-7B-Instruct", f"LongVU-Qwen2-7B {_VIDEO}", None, "built from scratch, one a seed"),
    Setting("data", "HuggingFaceH4/ultrafeedback_binarized", "its pairs are on videos; text pairs stand in", None,
            "synthetic pairs whose answers differ in a short phrase"),
    Setting("split", "train_prefs", "not stated", None, "files have none"),
    Setting("pairs probed", 256, "ours", 64, "all 256 in the DPO run that other analyses share", 32, MINUTES),
    Setting("SFT steps", None, "starts from an instruct model", None, "700 on facts, 400 on refusals"),
    Setting("pairs of the gradient bound", 4, "ours", 8, "one backward pass a token", 1, "a minute"),
    Setting("precision of the bound", "float32", "ours", "float64", "small models have the room", "float32",
            "the room that they take"),
    *SMALL_WORLDS,
)  # fmt: skip
TABLES = {
    "runs": RUNS
    | {
        "world": WORLD,
        "method": Field(str, "the objective as the papers name it"),
        "alpha": Field(float, "weight of its KL term; NaN where it has none"),
        "rate": Field(float, "learning rate"),
    },
    "bounds": {
        "seed": SEED,
        "pair_id": PAIR,
        "chosen_length": Field(int, "tokens"),
        "rejected_length": Field(int, "tokens"),
        "phrases": Field(int, "N: phrases in which the answers differ"),
        "longest": Field(int, "L: tokens of the longest phrase"),
        "largest": Field(float, "M: largest gradient norm of one token's log-prob, over all trainable weights"),
        "phrase_bound": Field(float, "RRPO's bound of the gradient norm, beta M 2NL"),
        "dpo_bound": Field(float, "DPO's, beta M (|y+| + |y-|)"),
        "rrpo_norm": Field(float, "gradient norm of RRPO's rank term alone at the start"),
        "dpo_norm": Field(float, "of DPO's loss there"),
    },
}


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Every entry at every rate; TDPO's on refusals too; and the bounds of the starting models."""
    bases = world_bases(order, "facts", settings) if order.own_worlds else _paper(order, settings)
    rates, entries = sorted(settings["learning rates"]), parse_entries(settings["entries"])
    trials = [_trial(e, rate, base, rate == rates[-1], settings) for e in entries for rate in rates for base in bases]
    family = [entry for entry in entries if entry.objective in FAMILY]
    apart = _refusals(order, settings) if order.own_worlds else []
    trials += [_trial(entry, rates[-1], base, True, settings) for entry in family for base in apart]
    runs = train(order, trials)
    tasks = [(base.keys, settings) for base in bases]
    seeds = [{"seed": base.labels["seed"]} for base in bases]
    return {"runs": runs, "bounds": measured(order, bounds, tasks, seeds, "gradients")}


def work(order: Order, settings: Mapping[str, Any]) -> list[Work]:
    """Every entry at every rate on facts or given data, and TDPO's family on refusals."""
    entries = parse_entries(settings["entries"])
    count = len(entries) * len(settings["learning rates"])
    family = sum(entry.objective in FAMILY for entry in entries)
    return world_work(order, settings, given=count, facts=count, refusal=family)


def _refusals(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """The runs on refusals for TDPO's plots: there the two answers of a pair share few words."""
    epochs = min(settings["num_train_epochs"], REFUSALS["num_train_epochs"])
    return world_bases(order, "refusal", settings, num_train_epochs=epochs)


def _paper(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """The runs of the given model on the given data, one a seed; a share of the data is held out."""
    size = settings["pairs probed"]
    return given_bases(order, settings, probe_pairs=size, heldout_pairs=size, save_model=False)


def _trial(entry: Entry, rate: float, base: Trial, last: bool, settings: Mapping[str, Any]) -> Trial:
    known = objectives.hyperparameters(entry.objective)
    own = {"beta": settings["beta"]} if "beta" in known else {}
    own |= {"learning_rate": rate} | entry.hyperparameters
    standard = entry.objective == "dpo" and last  # left as it is, so that other analyses find it
    if base.labels["world"] != "given" and not standard:  # probed less, to save time
        own |= {"probe_pairs": settings["pairs probed"], "response_types": 0}
        own |= {"probe_every": base.keys["probe_every"] if last else 48}
    alpha = float((known | entry.hyperparameters).get("alpha", np.nan))
    return base.by({"method": method(entry), "alpha": alpha, "rate": rate}, entry.objective, **own)


def method(entry: Entry) -> str:
    """The name in the papers; RRPO w/o R* is its loss on all tokens, w/o TKL without the KL term."""
    full = objectives.hyperparameters(entry.objective) | entry.hyperparameters
    ablation = "" if full.get("phrases", True) else " w/o R*"
    ablation += " w/o TKL" if entry.objective == "rrpo" and full["alpha"] == 0 else ""
    return NAMES.get(entry.objective, entry.objective) + ablation


def bounds(base: Mapping[str, Any], settings: Mapping[str, Any]) -> pd.DataFrame:
    """Both bounds and the actual gradient norms of the starting model on a few pairs that differ in a phrase."""
    quiet()
    model = load_model(base["model"]).to(getattr(torch, settings["precision of the bound"]))
    pairs, given, likelihood = _marked(base, model, settings["pairs of the gradient bound"])
    return pd.DataFrame([_bounds_of(model, pair, given, likelihood, settings["beta"]) for pair in pairs])


def _marked(base: Mapping[str, Any], model: Any, count: int) -> tuple[list[Example], Given, TokenLikelihood]:
    """Pairs drawn by seed among those with a phrase on either side, and their phrases."""
    tokenizer = load_tokenizer(base["model"])
    table, spans = cleaned(read_pairs(base["data"], split=base.get("split")), "rrpo")
    kept = examples(table.pairs, tokenizer, model_limit(model))
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
