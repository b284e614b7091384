"""Squeezing: a negative gradient moves probability from everything to what the model already holds most likely.

Ren and Sutherland, Learning Dynamics of LLM Finetuning, arXiv:2407.10490. Exactly: one gradient step that lowers one
entry of a softmax, over sweeps of its shape. In models: several answers to each prompt followed through DPO, and the
confidence of the argmax, for rejected answers that are likely or unlikely at the start, and after supervised training
on the chosen answers or on both sides ("extend"). Two worlds: in one the sides differ in a word, in the other from the
first word on.
"""

import math
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from diagnostics.pairs import read_pairs
from diagnostics.runlog import read_frame, read_json, read_table, write_frame
from diagnostics.squeezing import confidence, negative_step, preference_step
from diagnostics.tables import Field
from diagnostics.token_likelihood import TokenLikelihood
from trainers.models import load_to_device, load_tokenizer, model_limit
from trainers.papers import DISPLACES, MINUTES, PAIR, RUNS, SEED, SMALL_WORLDS, WORLD, Setting
from trainers.studies.paper_cost import Work, world_work
from trainers.studies.paper_runs import (
    Order,
    Trial,
    examples,
    finished,
    given_bases,
    like,
    measured,
    train_then,
    world_bases,
    write_data,
)
from trainers.worlds import facts

SEEDS = 5
TUNED = range(16)
SCALES = ("toy", "small", "paper")
DATA = ""
_CODE = "the authors' code, default configuration"
_SCRIPT = "the authors' code, script of its DPO runs"
_SWEEP = "ours; the law is exact at every point"
SETTINGS = (
    Setting("objective", "dpo", "abstract", "dpo"),
    Setting("beta", 0.1, _SCRIPT, 0.1),
    Setting(
        "learning_rate", 5e-7, _CODE, 3e-4, "models of under a million weights do not move at 5e-7", 5e-5, DISPLACES
    ),
    Setting("optim", "rmsprop", _CODE, "adamw_torch", "as all runs on these worlds; another optimizer is a control"),
    Setting("per_device_train_batch_size", 4, _CODE, 16, "as all runs on these worlds", 4, MINUTES),
    Setting("num_train_epochs", 6.0, _SCRIPT, None, "3 on facts, 1 on refusals, as in their recipes"),
    Setting("warmup_steps", 150, _CODE, 0, "48 or 16 updates in all"),
    Setting("max_grad_norm", 10.0, _CODE, 0.0, "as all runs on these worlds"),
    Setting("max_length", 512, _CODE, None, "no answer is longer than 30 tokens"),
    Setting("model", "EleutherAI/pythia-410m-deduped", _CODE, None, "built from scratch, one a seed"),
    Setting("data", "Anthropic/hh-rlhf", _CODE + " (its helpful-base part)", None, "synthetic pairs"),
    Setting("split", "train", _CODE, None, "files have none"),
    Setting("pairs drawn", 5000, _CODE, None, "all 256 of each world", 32, "of given data"),
    Setting("probe_pairs", 100, _CODE + " (n_eval_examples)", 64, "quick", 16, MINUTES),
    Setting("response_types", 100, _CODE + " (n_eval_examples)", 64, "quick", 8, MINUTES),
    Setting("probe_every", 100, _CODE + " (eval_every)", 6, "48 or 16 updates in all", 10**6, "both ends alone"),
    Setting("SFT steps", None, "starts from a pretrained model", None, "the worlds' own start models: 700 and 400"),
    Setting("SFT epochs on chosen", 2.0, "not read", 2.0),
    Setting("worlds trained on", None, "ours", ["facts", "refusal"], "both", ["facts"], MINUTES),
    Setting("SGD learning_rate", 0.03, "ours", 0.03),
    Setting("SFT term alpha", 1.0, "ours", 1.0),
    Setting("softmax entries", [10, 100, 1000], _SWEEP, [10, 100, 1000]),
    Setting("softmax exponents", list(np.linspace(0, 3, 13)), _SWEEP, list(np.linspace(0, 3, 13))),
    Setting("rejected probabilities", list(np.geomspace(1e-6, 0.3, 12)), _SWEEP, list(np.geomspace(1e-6, 0.3, 12))),
    Setting("step sizes", [0.01, 0.1, 1.0, 10.0], _SWEEP, [0.01, 0.1, 1.0, 10.0]),
    *SMALL_WORLDS,
)

Rows = list[dict[str, Any]]
LABELS = ("world", "seed", "case")
_CASE = Field(str, "what is trained, see _trials; after_chosen, after_both: DPO after that SFT")
_SOFTMAX = {"exponent": Field(float, "of the others' probabilities, rank ** -exponent")}
TABLES = {
    "law": _SOFTMAX
    | {
        "entries": Field(int, "of the softmax"),
        "p": Field(float, "of the rejected entry"),
        "rate": Field(float, "size of the step"),
        "rejected": Field(float, "change of ln p of the rejected entry by a step that lowers it, nats"),
        "argmax": Field(float, "that of the largest other entry"),
        "rest": Field(float, "mean of all others"),
        "ordered": Field(bool, "whether entries of larger p gain no less"),
        "pair_chosen": Field(float, "change of ln p of the chosen entry by a whole preference step"),
        "pair_spread": Field(float, "largest less smallest change of all that are in no pair"),
    },
    "entries": _SOFTMAX
    | {
        "rank": Field(int, "of the entry, most likely first"),
        "p": Field(float, "of the entry"),
        "change": Field(float, "of its ln p by one negative step, nats"),
    },
    "runs": RUNS | {"world": WORLD, "case": _CASE},
    "confidence": {
        "world": WORLD,
        "seed": SEED,
        "case": _CASE,
        "when": Field(str, "start or end"),
        "pair_id": PAIR,
        "side": Field(str, "chosen or rejected"),
        "argmax": Field(float, "mean over the answer of ln max p, nats a token"),
        "rest": Field(float, "mean of ln (1 - max p)"),
    },
}


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """The exact steps, every run, and the confidence in the argmax at both ends of each."""
    bases = _toy(order, settings) if order.own_worlds else _paper(order, settings)
    toy = order.scale == "toy"
    # of a given model a seed at a time, so that the weights of one seed alone lie on the disk
    made = [_trained(order, part, settings) for part in ([bases] if toy else [[base] for base in bases])]
    runs, confident = (pd.concat(of, ignore_index=True) for of in zip(*made))
    return {"law": law(settings), "entries": entries(), "runs": runs, "confidence": confident}


def work(order: Order, settings: Mapping[str, Any]) -> list[Work]:
    """Four cases of DPO, in the fact world a fifth, two after SFT, and two SFT runs, with epochs of their own."""
    counts = {"facts": 7, "refusal": 6}
    found = world_work(order, settings, given=6, **{name: counts[name] for name in settings["worlds trained on"] or []})
    share = settings["SFT epochs on chosen"] / (settings["num_train_epochs"] or 1.0)
    dpo = [of for of in found if of.reference]
    return found + [of._replace(count=2 * (order.seeds or 0), updates=math.ceil(of.updates * share)) for of in dpo]


def _trained(order: Order, bases: Sequence[Trial], settings: Mapping[str, Any]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The runs from these bases, and the confidence of each; of a given model the weights are removed then."""
    trials = [trial for base in bases for trial in _trials(order, base, settings)]
    runs = train_then(order, trials, partial(_after, bases))
    done = finished(order, runs)
    labels = [{name: row[name] for name in LABELS} for row, _ in done]
    confident = measured(order, confidence_of, [(run,) for _, run in done], labels)
    for _, run in done:
        if order.scale != "toy":
            shutil.rmtree(run / "model", ignore_errors=True)
    return runs, confident


def confidence_of(run: Path) -> pd.DataFrame:
    """`measure_run`, kept in the run's folder: its weights may be gone when it is asked for again."""
    file = run / "confidence.frame"
    if not file.exists():
        write_frame(file, measure_run(run))
    return read_frame(file)


def softmax(size: int, exponent: float, rejected: float) -> torch.Tensor:
    """(size,) float64 probabilities: entry 0 is the rejected one, the others share the rest as rank ** -exponent."""
    others = torch.arange(1, size, dtype=torch.float64) ** -exponent
    return torch.cat([torch.tensor([rejected], dtype=torch.float64), (1 - rejected) * others / others.sum()])


def law(settings: Mapping[str, Any]) -> pd.DataFrame:
    """One row a point of the sweep: log changes (nats) by one step, of the rejected entry, the largest other, and the
    mean of the rest; whether entries of larger p gain no less; and the same for a whole preference step."""
    names = ("softmax entries", "softmax exponents", "rejected probabilities", "step sizes")
    return pd.DataFrame([_point(*at) for at in product(*(settings[name] for name in names))])


def _point(size: int, exponent: float, rejected: float, rate: float) -> dict[str, Any]:
    probs = softmax(size, exponent, rejected)
    alone, both = negative_step(probs, 0, rate), preference_step(probs, size // 2, 0, rate)
    same = torch.cat([both[1 : size // 2], both[size // 2 + 1 :]])
    return dict(
        entries=size, exponent=exponent, p=rejected, rate=rate,
        rejected=float(alone[0]), argmax=float(alone[1]), rest=float(alone[2:].mean()),
        ordered=bool((alone[1:].diff() <= 1e-12).all()),
        pair_chosen=float(both[size // 2]), pair_spread=float(same.max() - same.min()),
    )  # fmt: skip


def entries(size: int = 20, rejected: float = 1e-3, rate: float = 1.0) -> pd.DataFrame:
    """The log change of every other entry by its rank, for a flat, a middling and a peaky softmax."""
    rows = []
    for exponent in (0.0, 1.0, 2.0):
        probs = softmax(size, exponent, rejected)
        change = negative_step(probs, 0, rate)
        rows += [dict(exponent=exponent, rank=k, p=float(probs[k]), change=float(change[k])) for k in range(1, size)]
    return pd.DataFrame(rows)


def _toy(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """The DPO run on each world and seed: without held-out pairs, tracked prompts, and with its weights kept."""
    found = []
    for base in (b for world in settings["worlds trained on"] for b in world_bases(order, world, settings)):
        kept = {key: value for key, value in base.keys.items() if key not in ("heldout_data", "track")}
        own = {"heldout_pairs": 0, "save_model": True, "probe_data": kept["data"]}
        found.append(Trial(base.labels, kept | own))
    return found


def _paper(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """The same on the given model and data, from which each seed draws its pairs."""
    bases = given_bases(order, settings, heldout_pairs=0, save_model=True)
    data, found = bases[0].keys["data"], []
    pairs = _rows(data, bases[0].keys.get("split"))
    for base in bases:
        seed = base.labels["seed"]
        drawn = np.random.default_rng([seed, 1]).permutation(len(pairs))[: settings["pairs drawn"]]
        name = f"{Path(data).name.split('.')[0]}-{len(drawn)}-seed{seed}"
        own = write_data(order, name, [pairs[i] for i in sorted(drawn)])
        kept = {key: value for key, value in base.keys.items() if key != "split"}
        found.append(Trial(base.labels, kept | {"data": own, "probe_data": own}))
    return found


def _trials(order: Order, base: Trial, settings: Mapping[str, Any]) -> list[Trial]:
    """What is trained from the start model: DPO, DPO with other rejected answers and as controls, and SFT."""
    seed, data = base.labels["seed"], Path(base.keys["data"])
    pairs, name = _rows(str(data)), f"squeezing-{data.parent.name}-{data.stem}"
    random = write_data(order, f"{name}-random-seed{seed}", _random(pairs, seed))
    both = write_data(order, f"{name}-both", [*pairs, *map(_swapped, pairs)])
    epochs = settings["SFT epochs on chosen"]
    found = [
        base.but({"case": "dpo"}),
        base.but({"case": "random"}, data=random),
        base.but({"case": "sft_term"}, objective="dpo_nll", alpha=settings["SFT term alpha"]),
        base.but({"case": "sgd"}, optim="sgd", learning_rate=settings["SGD learning_rate"]),
        base.by({"case": "sft_chosen"}, "sft", num_train_epochs=epochs),
        base.by({"case": "sft_both"}, "sft", num_train_epochs=epochs / 2, data=both),
    ]
    if base.labels["world"] == "facts":
        off = write_data(order, f"{name}-off-seed{seed}", _unlikely(pairs, seed))
        found.append(base.but({"case": "off"}, data=off))
    return found


def _after(bases: Sequence[Trial], trial: Trial, run: Path) -> list[Trial]:
    """DPO from what a supervised run ended with."""
    case = trial.labels["case"]
    if case not in ("sft_chosen", "sft_both"):
        return []
    base = next(base for base in bases if base.labels.items() <= trial.labels.items())
    return [base.but({"case": case.replace("sft", "after")}, model=str(run / "model"))]


def _unlikely(pairs: Rows, seed: int) -> Rows:
    """Fact pairs whose rejected answers state a value of another attribute, which no sentence of the world does."""
    rng = np.random.default_rng([seed, 21])
    attribute = {value: name for name, values in facts.VALUES.items() for value in values}

    def other(word: str) -> str:
        rest = [v for v, name in attribute.items() if name != attribute.get(word)]
        return str(rng.choice(rest)) if word in attribute else word

    def unlikely(text: str) -> str:
        return " ".join(map(other, text.split()))

    return [pair | {"rejected": like(pair["rejected"], unlikely)} for pair in pairs]


def _random(pairs: Rows, seed: int) -> Rows:
    """The same pairs, each with another pair's rejected answer: the next one in a random circle."""
    order = np.random.default_rng([seed, 22]).permutation(len(pairs))
    follower = dict(zip(order.tolist(), np.roll(order, -1).tolist()))
    return [pair | {"rejected": pairs[follower[i]]["rejected"]} for i, pair in enumerate(pairs)]


def _swapped(pair: dict[str, Any]) -> dict[str, Any]:
    sides = {"chosen": pair["rejected"], "rejected": pair["chosen"]}
    return pair | sides | {"pair_id": f"{pair['pair_id']}-swapped"}


def _rows(data: str, split: str | None = None) -> Rows:
    names = ("pair_id", "prompt", "chosen", "rejected")
    return [{name: getattr(pair, name) for name in names} for pair in read_pairs(data, split=split).pairs]


def measure_run(run: Path) -> pd.DataFrame:
    """when (start, end), pair_id, side, argmax, rest: the argmax confidence in a run's start model and in its last."""
    config = read_json(run / "config.json")
    pairs = read_table(run, "pairs")
    probed = set(pairs.loc[pairs["split"] == "probe", "pair_id"])
    rows = []
    for when, folder in (("start", config["model"]), ("end", str(run / "model"))):
        model, tokenizer = load_to_device(folder), load_tokenizer(folder)
        limit = min(filter(None, (config["max_length"], model_limit(model))), default=None)
        wanted = [p for p in read_pairs(config["probe_data"]).pairs if p.pair_id in probed]
        kept = examples(wanted, tokenizer, limit, truncation=config["truncation"])
        rows += [{"when": when} | row for row in confidence(model, kept, likelihood=TokenLikelihood.of(tokenizer))]
    return pd.DataFrame(rows)
