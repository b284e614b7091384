"""What happens to both answers' likelihoods under DPO, SimPO and LeanPO (arXiv:2506.05260), on given and own pairs?

LeanPO takes the average log-likelihood as the reward, smooths the labels of wrongly ranked pairs, adds an SFT term, and
trains on pairs that the model makes itself. The paper's models read videos, which are not loaded here: at toy scale the
small model of the fact world is trained, at paper scale a text model with the paper's settings. The formula is read in
the first author's code. Pairs of its own: trainers/worlds/self_pairs.py; all data of the toy are synthetic.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from diagnostics.pairs import read_pairs
from trainers import objectives
from trainers.papers import Order, Setting, Trial, keys, train, worlds
from trainers.studies.compare import Entry, parse_entries
from trainers.studies.demo_runs import FACTS, builders, world_paths
from trainers.worlds import self_pairs

SEEDS = 5
TUNED = range(16)
DATA = ""
NAMES = {
    "dpo": "DPO",
    "dpo_nll:alpha=0.5": "DPO + SFT term",
    "simpo": "SimPO",
    "leanpo": "LeanPO",
    "leanpo:dynamic=false": "LeanPO, fixed smoothing",
    "leanpo:label_smoothing=0": "LeanPO, no smoothing",
    "leanpo:alpha=0": "LeanPO, no SFT term",
    "sft": "SFT term alone",
}
_ENTRIES = ",".join(NAMES)
_RECIPE = "as in the recipe of the fact world"
SETTINGS = (
    Setting("entries", _ENTRIES, "the code's last video run: smoothing 0.1, margin 0, SFT 0.5", _ENTRIES),
    Setting("DPO beta", 0.1, "scripts", 0.1),
    Setting("learning_rate", 5e-7, "scripts", 3e-4, "models of under a million weights do not move at 5e-7"),
    Setting("optim", "adamw_torch", "not stated", "adamw_torch"),
    Setting("lr_scheduler_type", "linear", "scripts (LLaVA-Hound)", "constant", _RECIPE),
    Setting("warmup_steps", 0.1, "scripts (LLaVA-Hound): warmup 0.1", None, "none, " + _RECIPE),
    Setting("weight_decay", 0.0, "scripts (LLaVA-Hound)", 0.0),
    Setting("num_train_epochs", 3.0, "scripts: 2, 3 and 4 were tried", 3.0),
    Setting("per_device_train_batch_size", 16, "scripts: effective batch 16", 16),
    Setting("bf16", True, "scripts", None, "a CPU"),
    Setting("gradient_checkpointing", True, "not stated", None, "the model is small"),
    Setting("model", "Qwen/Qwen2-7B-Instruct", "Qwen2-VL-7B, a video model: its kind of text model stands in", None,
            "built from scratch, one a seed"),
    Setting("data", "HuggingFaceH4/ultrafeedback_binarized", "ShareGPTVideo pairs on videos: text pairs stand in", None,
            "synthetic pairs whose answers differ in a short phrase"),
    Setting("split", "train_prefs", "not stated", None, "files have none"),
    Setting("own pairs", 17000, "17k prompts in the code's data", None, "one a given pair, where both are found"),
    Setting("pairs probed", 256, "ours", 64, "all 256 in the DPO run that other analyses share"),
    Setting("SFT steps", None, "starts from an instruct model", 700, "a base that knows the facts half the time"),
)  # fmt: skip


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """runs: pairs (given, own), method and seed; sources: how many pairs of each kind a seed has."""
    toy = order.scale == "toy"
    bases = _toy(order, settings) if toy else _paper(order, settings)
    entries = parse_entries(settings["entries"])
    runs = train(order, [_trial(e, labels, base, toy, settings) for e in entries for labels, base in bases])
    sizes = [labels | {"n": len(read_pairs(base["data"], split=base.get("split")).pairs)} for labels, base in bases]
    return {"runs": runs, "sources": pd.DataFrame(sizes)}


def _toy(order: Order, settings: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Labels and keys of the runs on the fact world's pairs and on the model's own, at each seed."""
    given = worlds(order, builders("facts", order.numbers, settings["SFT steps"]))
    wanted = {f"own-{n}": (self_pairs.build_facts, (p, s)) for s, (n, p) in zip(order.numbers, given.items())}
    own, found = worlds(order, wanted), []
    for seed, place, other in zip(order.numbers, given.values(), own.values(), strict=True):
        base = FACTS | _keys(settings) | world_paths("facts", place) | {"seed": seed}
        found.append(({"pairs": "given", "seed": seed}, base))
        found.append(({"pairs": "own", "seed": seed}, base | {"data": str(other / "pairs.jsonl")}))
    return found


def _paper(order: Order, settings: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The same on the given model and data; the model's own pairs are made once a seed."""
    given = {k: v for k, v in (("model", order.model), ("data", order.data)) if v}
    size = settings["pairs probed"]
    base = _keys(settings) | given | {"tokens": "none", "save_model": False, "probe_pairs": size, "heldout_pairs": size}
    asked = (str(base["model"]), str(base["data"]), base.get("split"), settings["own pairs"])
    name = "-".join(Path(str(part)).name for part in asked)
    wanted = {f"own-{name}-seed{seed}": (self_pairs.build_hinted, (*asked, seed)) for seed in order.numbers}
    found = []
    for seed, place in zip(order.numbers, worlds(order, wanted).values()):
        found.append(({"pairs": "given", "seed": seed}, base | {"seed": seed}))
        own = {"seed": seed, "data": str(place / "pairs.jsonl"), "split": None}
        found.append(({"pairs": "own", "seed": seed}, base | own))
    return found


def _keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in keys(settings).items() if k != "entries"}


def _trial(
    entry: Entry, labels: Mapping[str, Any], base: Mapping[str, Any], toy: bool, settings: Mapping[str, Any]
) -> Trial:
    known = objectives.hyperparameters(entry.objective)
    beta = {"beta": settings["DPO beta"]} if entry.objective.startswith("dpo") and "beta" in known else {}
    own = {"objective": entry.objective} | beta | entry.hyperparameters
    standard = entry.objective == "dpo" and labels["pairs"] == "given"
    lighter = {"probe_pairs": settings["pairs probed"], "response_types": 0}  # not the run that others share
    named = dict(labels) | {"method": NAMES.get(entry.label, entry.label)}
    shared = {
        k: v for k, v in base.items() if k != "beta"
    }  # of the standard run; LeanPO's and SimPO's beta is their own
    return Trial(named, shared | own | (lighter if toy and not standard else {}))
