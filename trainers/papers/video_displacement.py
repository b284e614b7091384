"""Do both answers lose likelihood under each objective, and more so with video than with text? LeanPO's displacement
figure (arXiv:2506.05260).

At toy scale a small video model, trained from scratch, is trained on further by seven objectives on pairs about clips,
and on the same pairs told in words: the same two answers, so the same lengths, after the film in words and without a
clip; the model learned to answer from either. Pairs are RRPO's (the true answer against the model's own wrong one) and
LeanPO's (both its own). At paper scale LeanPO's settings for Qwen2.5-VL train a given model on given pairs with clips.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from diagnostics.tables import Field
from trainers import objectives
from trainers.papers import RUNS, Setting
from trainers.papers.deviation import NAMES as FAMILY
from trainers.papers.video_deviation import NAMES, SMALL, WORLD_SETTINGS
from trainers.studies.compare import Entry, parse_entries
from trainers.studies.paper_runs import Order, Trial, train
from trainers.studies.video_runs import given_videos, video_bases, video_worlds

SEEDS = 3
TUNED = range(16)
DATA = ""
ENTRIES = "dpo,tdpo2,dpa,ddpo_dense,rrpo,simpo,leanpo"
OWN_ENTRIES = "dpo,simpo,leanpo"
_SMOOTHED = "leanpo:label_smoothing=0.2"
SETTINGS = (
    Setting("entries", ENTRIES.replace("leanpo", _SMOOTHED), "scripts: smoothing 0.2 for Qwen2.5-VL; the others': ours",
            ENTRIES, "smoothing 0.1 and margin 0, of the code's last video run"),
    Setting("entries on LeanPO's pairs", None, "the given pairs are what they are", OWN_ENTRIES, "LeanPO's own table"),
    Setting("beta", 0.1, "scripts: of DPO; SimPO and LeanPO have their own, 2", 0.1),
    Setting("learning_rate", 5e-7, "scripts", 3e-4, SMALL),
    Setting("optim", "adamw_torch", "not stated", "adamw_torch"),
    Setting("lr_scheduler_type", "cosine", "scripts (Qwen)", "constant", "a few updates"),
    Setting("warmup_steps", 0.03, "scripts (Qwen): warmup 0.03", None, "a few updates"),
    Setting("weight_decay", 0.1, "scripts (Qwen)", 0.0, "a few updates"),
    Setting("num_train_epochs", 1.0, "scripts (Qwen2.5-VL)", 1.0),
    Setting("max_steps", None, "the epochs decide", None),
    Setting("per_device_train_batch_size", 1, "not stated", 16, "it fits"),
    Setting("gradient_accumulation_steps", 8, "scripts: effective batch 8 or 32", None, "14 updates in all"),
    Setting("freeze_vision", True, "scripts: the whole language model is trained, tower and projector are not", None,
            "all weights are trained"),
    Setting("bf16", True, "scripts", None, "a CPU"),
    Setting("gradient_checkpointing", True, "not stated", None, "the model is small"),
    Setting("frames", 16, "scripts: 16 to 32", None, "clips of 8 frames"),
    Setting("model", "Qwen/Qwen2.5-VL-7B-Instruct", "scripts", None, "trained from scratch, one a seed"),
    Setting("pairs probed", 256, "ours", None, "32 on either split"),
    *WORLD_SETTINGS,
)  # fmt: skip
TABLES = {
    "runs": RUNS
    | {
        "pairs": Field(str, "whose pipeline made them: rrpo or leanpo; given"),
        "told": Field(bool, "the film is told in words, and no clip is shown"),
        "method": Field(str, "the objective as the papers name it"),
    }
}


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Every entry on RRPO's pairs, some on LeanPO's, each with clips and in words."""
    if order.scale != "toy":
        labels = {"pairs": "given", "told": False}
        return {"runs": train(order, _trials(settings["entries"], given_videos(order, settings), labels))}
    places, trials = video_worlds(order, settings), []
    for pipeline, entries in (("rrpo", settings["entries"]), ("leanpo", settings["entries on LeanPO's pairs"])):
        for told in (False, True):
            bases = video_bases(order, settings, places, pipeline, told=told)
            trials += _trials(entries, bases, {"pairs": pipeline, "told": told})
    return {"runs": train(order, trials)}


def _trials(entries: str, bases: Sequence[Trial], labels: Mapping[str, Any]) -> list[Trial]:
    wanted = parse_entries(entries) if entries else []
    return [_trial(entry, base, labels) for entry in wanted for base in bases]


def _trial(entry: Entry, base: Trial, labels: Mapping[str, Any]) -> Trial:
    """Another objective on a base; LeanPO's and SimPO's beta is their own."""
    known, name = objectives.hyperparameters(entry.objective), entry.objective
    own = {"beta": base.keys["beta"]} if "beta" in known and name not in NAMES else {}
    method = {"method": (NAMES | FAMILY).get(name, name)}
    return base.by({**labels, **method}, name, **own, **entry.hyperparameters)
