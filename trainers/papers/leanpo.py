"""What happens to both answers' likelihoods under DPO, SimPO and LeanPO (arXiv:2506.05260), on given and own pairs?

LeanPO takes the average log-likelihood as the reward, smooths the labels of wrongly ranked pairs, adds an SFT term, and
trains on pairs that the model makes itself. The paper's models read videos, which are not loaded here: at toy scale the
small model of the fact world is trained, at paper scale a text model with the paper's settings. The formula is read in
the first author's code. Pairs of its own: trainers/worlds/self_pairs.py; all data of the toy are synthetic.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from diagnostics.pairs import read_pairs
from diagnostics.tables import Field
from trainers import objectives
from trainers.papers import DISPLACES, MINUTES, RUNS, SEED, SMALL_WORLDS, Setting
from trainers.studies.compare import Entry, parse_entries
from trainers.studies.paper_cost import Work, world_work
from trainers.studies.paper_runs import Order, Trial, given_bases, train, world_bases, worlds
from trainers.worlds import self_pairs

SEEDS = 5
TUNED = range(16)
SCALES = ("toy", "small", "paper")
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
    Setting("entries", _ENTRIES, "the code's last video run: smoothing 0.1, margin 0, SFT 0.5", _ENTRIES, "",
            "dpo,dpo_nll:alpha=0.5,simpo,leanpo,leanpo:alpha=0", MINUTES),
    Setting("DPO beta", 0.1, "scripts", 0.1),
    Setting("learning_rate", 5e-7, "scripts", 3e-4, "models of under a million weights do not move at 5e-7",
            5e-5, DISPLACES),
    Setting("optim", "adamw_torch", "not stated", "adamw_torch"),
    Setting("lr_scheduler_type", "linear", "scripts (LLaVA-Hound)", "constant", _RECIPE),
    Setting("warmup_steps", 0.1, "scripts (LLaVA-Hound): warmup 0.1", None, "none, " + _RECIPE),
    Setting("weight_decay", 0.0, "scripts (LLaVA-Hound)", 0.0),
    Setting("num_train_epochs", 3.0, "scripts: 2, 3 and 4 were tried", 3.0, "", 1.0, MINUTES),
    Setting("per_device_train_batch_size", 16, "scripts: effective batch 16", 16, "", 4, MINUTES),
    Setting("bf16", True, "scripts", None, "a CPU"),
    Setting("gradient_checkpointing", True, "not stated", None, "the model is small"),
    Setting("model", "Qwen/Qwen2-7B-Instruct", "Qwen2-VL-7B, a video model: its kind of text model stands in", None,
            "built from scratch, one a seed"),
    Setting("data", "HuggingFaceH4/ultrafeedback_binarized", "ShareGPTVideo pairs on videos: text pairs stand in", None,
            "synthetic pairs whose answers differ in a short phrase"),
    Setting("split", "train_prefs", "not stated", None, "files have none"),
    Setting("own pairs", 17000, "17k prompts in the code's data", None, "one a given pair, where both are found", 64,
            "of given data"),
    Setting("pairs probed", 256, "ours", 64, "all 256 in the DPO run that other analyses share", 32, MINUTES),
    Setting("SFT steps", None, "starts from an instruct model", 700, "a base that knows the facts half the time"),
    *SMALL_WORLDS,
)  # fmt: skip
_PAIRS = Field(str, "given, or the model's own")
TABLES = {
    "runs": RUNS | {"pairs": _PAIRS, "method": Field(str, "the objective, as NAMES says it")},
    "sources": {"pairs": _PAIRS, "seed": SEED, "n": Field(int, "how many pairs there are")},
}


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Every entry on given and own pairs at each seed."""
    toy = order.scale == "toy"
    bases = _toy(order, settings) if order.own_worlds else _paper(order, settings)
    runs = train(order, [_trial(e, b, toy, settings) for e in parse_entries(settings["entries"]) for b in bases])
    sizes = [b.labels | {"n": len(read_pairs(b.keys["data"], split=b.keys.get("split")).pairs)} for b in bases]
    return {"runs": runs, "sources": pd.DataFrame(sizes)}


def work(order: Order, settings: Mapping[str, Any]) -> list[Work]:
    """Every entry on given and own pairs."""
    count = 2 * len(parse_entries(settings["entries"]))
    return world_work(order, settings, given=count, facts=count)


def _toy(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """The runs on the fact world's pairs and on the model's own, at each seed."""
    given = world_bases(order, "facts", settings)
    wanted = {}
    for base in given:
        asked = [base.keys[name] for name in ("model", "data")]
        name = "-".join(dict.fromkeys(Path(path).parent.name for path in asked))
        wanted[f"own-{name}"] = (self_pairs.build_facts, (*asked, base.labels["seed"]))
    return _both(given, list(worlds(order, wanted).values()))


def _paper(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """The same on the given model and data; the model's own pairs are made once a seed."""
    size = settings["pairs probed"]
    given = given_bases(order, settings, save_model=False, probe_pairs=size, heldout_pairs=size)
    base = given[0].keys
    asked = (str(base["model"]), str(base["data"]), base.get("split"), settings["own pairs"])
    name = "-".join(Path(str(part)).name for part in asked)
    wanted = {f"own-{name}-seed{seed}": (self_pairs.build_hinted, (*asked, seed)) for seed in order.numbers}
    return _both(given, list(worlds(order, wanted).values()), split=None)


def _both(given: Sequence[Trial], own: Sequence[Path], **keys: Any) -> list[Trial]:
    found = []
    for base, place in zip(given, own, strict=True):
        labels = {"seed": base.labels["seed"]}
        found.append(Trial({"pairs": "given"} | labels, base.keys))
        found.append(Trial({"pairs": "own"} | labels, base.keys | keys | {"data": str(place / "pairs.jsonl")}))
    return found


def _trial(entry: Entry, base: Trial, toy: bool, settings: Mapping[str, Any]) -> Trial:
    """Another objective on a base; LeanPO's and SimPO's beta is their own."""
    known = objectives.hyperparameters(entry.objective)
    own = {"beta": settings["DPO beta"]} if entry.objective.startswith("dpo") and "beta" in known else {}
    own |= entry.hyperparameters
    if toy and not (entry.objective == "dpo" and base.labels["pairs"] == "given"):  # that one is shared with others
        own |= {"probe_pairs": settings["pairs probed"], "response_types": 0}
    return base.by({"method": NAMES.get(entry.label, entry.label)}, entry.objective, **own)
