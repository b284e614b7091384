"""How far from its reference does each objective take a video model, and what is gained by it? RRPO's divergence figure
and ablation (arXiv:2504.12083) on pairs that a video model makes of its own wrong answers.

At toy scale the model is a Qwen2.5-VL of 0.2 million weights, trained from scratch on clips of moving shapes and
stopped before it answers everything right; its pairs are made as RRPO's are. Accuracy is the plain mean of right greedy
answers to questions on held-out clips. (The paper's figure adds a relative gain to a mean accuracy.) At paper scale
RRPO's settings for LLaVA-Video train a given model on given pairs; the paper's benchmarks are not run.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from diagnostics.tables import Field
from trainers import objectives
from trainers.papers import RUNS, SEED, WORLD, Setting
from trainers.papers.deviation import method
from trainers.studies.compare import Entry, parse_entries
from trainers.studies.paper_runs import Order, Trial, finished, measured, train
from trainers.studies.video_runs import answered, given_videos, started, video_bases, video_worlds

SEEDS = 3
TUNED = range(16)
DATA = ""
ENTRIES = "dpo,tdpo2,dpa,ddpo_dense,rrpo:alpha=0,rrpo:phrases=false,rrpo,simpo,leanpo"
FEW = "dpo,ddpo_dense,rrpo"
NAMES = {"simpo": "SimPO", "leanpo": "LeanPO"}
SMALL = "models of under a million weights do not move at 5e-6"
# of both analyses on video
WORLD_SETTINGS = (
    Setting("SFT steps", None, "starts from an instruct model", 240, "stopped before it answers everything right"),
    Setting("share told in words", None, "ours", 0.3, "pairs without clips are compared in video_displacement"),
    Setting("rows of clips", None, "VideoChat2-IT's questions", 256, "most of them give a pair"),
    Setting("clips held out", None, "its benchmarks are not run here", 160, "40 a kind of question"),
)
SETTINGS = (
    Setting("entries", ENTRIES, "ablation table; SimPO, LeanPO: ours", ENTRIES),
    Setting("entries at smaller rates", FEW, "ours", FEW),
    Setting("beta", 0.1, "scripts (LLaVA-Video); the baselines': not stated", 0.1),
    Setting("learning rates", [5e-7, 5e-6], "scripts 5e-6; DPO's said to be ten times lower", [1e-4, 3e-4], SMALL),
    Setting("optim", "adamw_torch", "scripts", "adamw_torch"),
    Setting("lr_scheduler_type", "cosine", "scripts", "constant", "a few updates"),
    Setting("warmup_steps", 0.03, "scripts: warmup ratio 0.03", None, "a few updates"),
    Setting("weight_decay", 0.0, "scripts", 0.0),
    Setting("num_train_epochs", 1.0, "scripts", 1.0),
    Setting("max_steps", None, "the epochs decide", None),
    Setting("per_device_train_batch_size", 1, "scripts", 16, "it fits"),
    Setting("gradient_accumulation_steps", 32, "scripts: effective batch 32", None, "16 pairs an update: 14 updates"),
    Setting("lora_r", 128, "scripts: on the language model alone", None, "all weights are trained"),
    Setting("lora_alpha", 256, "scripts", None, "all weights are trained"),
    Setting("bf16", True, "scripts", None, "a CPU"),
    Setting("gradient_checkpointing", True, "scripts", None, "the model is small"),
    Setting("frames", 16, "scripts", None, "clips of 8 frames"),
    Setting("model", "llava-hf/llava-onevision-qwen2-7b-ov-hf", "LLaVA-Video-7B-Qwen2, of whose kind transformers "
            "knows no checkpoint: LLaVA-OneVision stands in", None, "trained from scratch, one a seed"),
    Setting("pairs probed", 256, "ours", None, "32 on either split"),
    *WORLD_SETTINGS,
)  # fmt: skip
TABLES = {
    "runs": RUNS
    | {
        "world": WORLD,
        "method": Field(str, "the objective as the paper names it"),
        "alpha": Field(float, "weight of its KL term; NaN where it has none"),
        "rate": Field(float, "learning rate"),
    },
    "answers": {
        "seed": SEED,
        "run": Field(str, "the run's folder; empty: the model before training"),
        "right": Field(float, "share of greedy answers on held-out clips that are the true ones"),
        "perturbed": Field(float, "the same on the clips masked and shuffled"),
        "seen": Field(float, "what the frames add to the true answers: log-prob with them less with grey ones, nats"),
    },
    "start": {
        "seed": SEED,
        "kind": Field(str, "of question"),
        "clips": Field(float, "share of right greedy answers before training"),
        "reversed": Field(float, "the same on the clips reversed"),
        "turned": Field(float, "share that is the reversed film's true answer; NaN where it is the same"),
        "grey": Field(float, "share of right answers on grey frames"),
        "others": Field(float, "share of right answers on another clip of the kind"),
        "told": Field(float, "share of right answers on the film in words, without the clip"),
    },
}


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Every entry at the largest rate, some at the others; at toy scale also what each model answers about clips."""
    toy = order.scale == "toy"
    bases = video_bases(order, settings, video_worlds(order, settings)) if toy else given_videos(order, settings)
    *smaller, largest = sorted(settings["learning rates"])
    wanted = [(entry, largest) for entry in parse_entries(settings["entries"])]
    wanted += [(entry, rate) for rate in smaller for entry in parse_entries(settings["entries at smaller rates"])]
    runs = train(order, [_trial(entry, rate, base, toy) for entry, rate in wanted for base in bases])
    if not toy:
        return {"runs": runs, **{name: pd.DataFrame(columns=[*TABLES[name]]) for name in ("answers", "start")}}
    size = settings["clips held out"]
    models = [({"seed": b.labels["seed"], "run": ""}, b.keys["model"]) for b in bases]
    models += [({k: row[k] for k in ("seed", "run")}, str(run / "model")) for row, run in finished(order, runs)]
    labels = [of for of, _ in models]
    tasks = [(model, of["seed"], size) for of, model in models]
    seeds = [{"seed": of["seed"]} for of in labels[: len(bases)]]
    return {
        "runs": runs,
        "answers": measured(order, answered, tasks, labels, "answers"),
        "start": measured(order, started, tasks[: len(bases)], seeds, "starting models"),
    }


def _trial(entry: Entry, rate: float, base: Trial, toy: bool) -> Trial:
    known = objectives.hyperparameters(entry.objective)
    own = {"beta": base.keys["beta"]} if "beta" in known and entry.objective not in NAMES else {}
    alpha = float((known | entry.hyperparameters).get("alpha", np.nan))
    labels = {"world": "video" if toy else "given", "alpha": alpha, "rate": rate}
    labels["method"] = NAMES.get(entry.objective) or method(entry)
    return base.by(labels, entry.objective, **own, learning_rate=rate, **entry.hyperparameters)
