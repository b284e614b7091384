"""How much do DPO, LN-DPO and SimPO depend on learning rate and beta? And how long are their answers?

The guide to *PO (arXiv:2407.15229) sweeps the three over learning rates and betas, compares them by the whole sweep
and not by its best point, and looks at the KL to the start and at the length of what they write. Here every
configuration is trained for the same number of steps; the greedy answers to held-out prompts come from the trained
weights, so every run keeps its weights. At toy scale the pairs of the fact world are as long on both sides, so that
length has nothing to follow; in a second set (synthetic, ours) every second pair prefers the longer closing phrase.
"""

import json
import math
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from diagnostics import sequences
from diagnostics.errors import DataError
from diagnostics.forward import caches
from diagnostics.pairs import PreferencePair, read_pairs
from diagnostics.runlog import read_frame, read_json, read_table, write_frame
from diagnostics.sampling import draw
from diagnostics.scoring import batches, score_rows
from diagnostics.sequences import Example
from diagnostics.tables import Field
from diagnostics.token_ids import TokenIds
from diagnostics.token_likelihood import TokenLikelihood, padded
from diagnostics.tokenized import end_ids
from trainers.loop.reference import LiveReference
from trainers.models import load_to_device, load_tokenizer, model_limit
from trainers.papers import MINUTES, PAIR, RUNS, SEED, SMALL_WORLDS, Setting
from trainers.studies.paper_cost import Work, world_work
from trainers.studies.paper_runs import (
    Order,
    Trial,
    examples,
    finished,
    given_bases,
    measure,
    measured,
    plain,
    train,
    world_bases,
    write_lines,
)
from trainers.worlds import facts

SEEDS = 5
TUNED = range(16)
SCALES = ("toy", "small", "paper")
DATA = ""
_NOT = "not read"
_GRID = "not read; a factor 3 either side of"
SETTINGS = (
    Setting("objectives compared", ["dpo", "ln_dpo", "simpo"], "abstract", ["dpo", "ln_dpo", "simpo"]),
    Setting(
        "learning rates", [3e-7, 5e-7, 1e-6], "not read; the range of SimPO's repository", [1e-4, 3e-4, 1e-3],
        "models of under a million weights do not move at 5e-7", [1e-5, 5e-5], MINUTES,
    ),
    Setting("dpo betas", [0.03, 0.1, 0.3], f"{_GRID} 0.1, a common choice", [0.03, 0.1, 0.3], "", [0.03, 0.3], MINUTES),
    Setting("ln_dpo betas", [1.5, 5.0, 15.0], f"{_GRID} 5, open-instruct's", [1.5, 5.0, 15.0], "",
            [1.5, 15.0], MINUTES),
    Setting("simpo betas", [0.8, 2.5, 8.0], f"{_GRID} 2.5, of SimPO's repository", [0.8, 2.5, 8.0], "",
            [0.8, 8.0], MINUTES),
    Setting("per_device_train_batch_size", 4, _NOT, 16, "one small model on a CPU", 4, MINUTES),
    Setting("gradient_accumulation_steps", 32, "not read; SimPO's repository trains on 128", 1, "256 pairs"),
    Setting("num_train_epochs", 1.0, _NOT, 2.0, "32 steps", 1.0, MINUTES),
    Setting("heldout_pairs", 512, "ours", 64, "a minute less", 16, "all there are"),
    Setting("probe_pairs", 64, "ours", 16, "a minute less"),
    Setting("response_types", 0, "ours", 0),
    Setting("answer tokens", 512, "ours", 48, "the longest answer of the world has 24"),
    Setting("SFT steps", None, "starts from a supervised model", None, "700, as in the world's recipe"),
    Setting("pairs with longer chosen answers", None, "ours", True, "the world's own pairs do not move lengths", False,
            MINUTES),
    Setting("model", None, "not read: give --model", None, "built from scratch, one a seed"),
    Setting("data", None, "not read: give --data", None, "synthetic pairs of the fact world"),
    *SMALL_WORLDS,
)  # fmt: skip
TABLES = {
    "runs": RUNS
    | {
        "pairs": Field(str, "plain, or longer: every second pair prefers the longer answer"),
        "objective": Field(str, "dpo, ln_dpo or simpo"),
        "learning_rate": Field(float, "of the run"),
        "beta": Field(float, "of the objective"),
    },
    "answers": {
        "seed": SEED,
        "run": Field(str, "the run's folder; empty for the model that a seed starts from"),
        "pairs": Field(str, "the run's; empty for a start"),
        "objective": Field(str, "the run's, or start"),
        "pair_id": PAIR,
        "tokens": Field(float, "of the greedy answer to the pair's prompt, EOS included"),
        "ended": Field(float, "1 where EOS came before the limit, else 0"),
        "true": Field(float, "1 where it names the true value and no other, else 0; NaN where no truth is known"),
        "kl": Field(float, "exact KL(policy || start) summed over the answer, nats"),
        "text": Field(str, "the answer"),
    },
}


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Every configuration at each seed; the greedy answers of what it ended with, and of each seed's start."""
    bases = _toy(order, settings) if order.own_worlds else _paper(order, settings)
    trials = [trial for base in bases for trial in _sweep(base, settings)]
    # of a given model one after the other, so that the weights of one run alone lie on the disk
    tables = [_run(order, settings, part) for part in ([trials] if order.scale == "toy" else [[t] for t in trials])]
    runs = pd.concat(tables, ignore_index=True)
    done = finished(order, runs)
    if not done:
        raise DataError(f"no run of the analysis could be finished. The first one said: {runs['failed'].iloc[0]}")
    starts = {row["seed"]: run for row, run in done}  # the start of a seed is the same whatever it is trained on
    places = [(str(run), "trained") for _, run in done] + [(str(run), "start") for run in starts.values()]
    labels = [{name: row[name] for name in ("run", "pairs", "seed", "objective")} for row, _ in done]
    labels += [{"run": "", "pairs": "", "seed": seed, "objective": "start"} for seed in starts]
    tasks = [(*place, settings["answer tokens"], order.own_worlds) for place in places]
    return {"runs": runs, "answers": measured(order, kept_answers, tasks, labels)}


def work(order: Order, settings: Mapping[str, Any]) -> list[Work]:
    """Every configuration; the greedy answers are not counted."""
    betas = sum(len(settings[f"{name} betas"]) for name in settings["objectives compared"])
    count = betas * len(settings["learning rates"])
    return world_work(order, settings, given=count, facts=count)


def _run(order: Order, settings: Mapping[str, Any], trials: Sequence[Trial]) -> pd.DataFrame:
    """Train; of a given model also answer, and remove the weights then."""
    if order.scale == "toy":
        return train(order, trials)
    try:
        runs = train(order, trials)
    except DataError as error:  # one that cannot go on does not stop the others
        return pd.DataFrame([trial.labels | {"run": "", "failed": str(error)} for trial in trials])
    done = [run for _, run in finished(order, runs)]
    limit = settings["answer tokens"]
    measure(order, kept_answers, [(str(run), "trained", limit, order.own_worlds) for run in done])
    for run in done:
        shutil.rmtree(run / "model", ignore_errors=True)
    return runs


def kept_answers(folder: str, which: str, limit: int, truth: bool) -> list[dict[str, Any]]:
    """`answers`, kept in the run's folder: its weights may be gone when they are asked for again."""
    file = Path(folder) / f"answers-{which}-{limit}.frame"
    if not file.exists():
        write_frame(file, pd.DataFrame(answers(folder, which, limit, truth)))
    return [{str(name): value for name, value in row.items()} for row in read_frame(file).to_dict("records")]


def _toy(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """The fact world's own pairs at every seed, and those with longer chosen answers."""
    found = []
    for base in world_bases(order, "facts", settings, save_model=True, probe_every=1000):
        seed, data = base.labels["seed"], Path(base.keys["data"])
        found.append(Trial({"pairs": "plain", "seed": seed}, base.keys))
        if settings["pairs with longer chosen answers"]:
            longer = lengthened(data, order.out / "data" / f"{data.parent.name}-longer.jsonl")
            found.append(Trial({"pairs": "longer", "seed": seed}, base.keys | {"data": str(longer)}))
    return found


def _paper(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """The given model and data, one a seed."""
    bases = given_bases(order, settings, probe_every=10**9, save_model=True)
    return [Trial({"pairs": "plain", "seed": base.labels["seed"]}, base.keys) for base in bases]


def _sweep(base: Trial, settings: Mapping[str, Any]) -> list[Trial]:
    """Every objective at every learning rate and beta; on the longer pairs at the middle beta alone, to save time."""
    trials = []
    for objective, rate in product(settings["objectives compared"], settings["learning rates"]):
        betas = settings[f"{objective} betas"]
        for beta in betas if base.labels["pairs"] == "plain" else betas[len(betas) // 2 :][:1]:
            own = {"objective": objective, "learning_rate": rate, "beta": beta}
            trials.append(base.but(own, **own))
    return trials


def lengthened(source: Path, place: Path) -> Path:
    """The fact world's pairs; in every second one the chosen answer closes with the longest of its phrases and the
    rejected one with the shortest, five tokens less. Returns place."""
    shortest, longest = (pick(facts.FILLERS, key=lambda phrase: len(phrase.split())) for pick in (min, max))
    pairs = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]
    for pair in pairs[::2]:
        for side, phrase in (("chosen", longest), ("rejected", shortest)):
            old = next(f for f in facts.FILLERS if f in pair[side])
            pair[side] = pair[side].replace(old, phrase)
    write_lines(place, pairs)
    return place


def answers(folder: str, which: str, limit: int, truth: bool) -> list[dict[str, Any]]:
    """The greedy answer of a run (which: trained, or start for the model it started from) to each held-out prompt.

    tokens: length, EOS included; ended: whether EOS came before the limit; kl: exact KL(policy || start) in nats,
    summed over the answer; true: whether it names the true value and no other (NaN unless truth: the fact world).
    """
    config = read_json(Path(folder) / "config.json")
    tokenizer = load_tokenizer(config["model"])
    start = load_to_device(config["model"], dtype=config["dtype"])
    model = load_to_device(str(Path(folder) / "model"), dtype=config["dtype"]) if which == "trained" else start
    pairs = _held_out(Path(folder), config)
    asked = examples(list(pairs.values()), tokenizer, model_limit(start))
    likelihood, ends = TokenLikelihood.of(tokenizer), end_ids(tokenizer)
    own = written(model, asked, limit=limit, room=model_limit(start), likelihood=likelihood, ends=ends)
    drift = _drift(model, start, own, likelihood)
    rows = []
    for pair in own:
        ids = pair.rows["own"].completion_ids
        text = str(tokenizer.decode(list(ids), skip_special_tokens=True))
        named = is_true(text, plain(pairs[pair.pair_id].chosen)) if truth else math.nan
        ended = float(ids[-1] in ends)
        rows.append({"pair_id": pair.pair_id, "tokens": float(len(ids)), "ended": ended, "true": named,
                     "kl": drift[pair.pair_id], "text": text})  # fmt: skip
    return rows


def _held_out(run: Path, config: Mapping[str, Any]) -> dict[str, PreferencePair]:
    """A held-out pair for each distinct prompt, by pair_id."""
    rows = read_table(run, "pairs")
    ids = {str(i).removeprefix("heldout/") for i in rows.loc[rows["split"] == "eval", "pair_id"]}
    table = read_pairs(config["heldout_data"] or config["data"], split=config["split"])
    by_prompt = {str(p.prompt): p for p in reversed(table.pairs) if p.pair_id in ids}
    return {p.pair_id: p for p in sorted(by_prompt.values(), key=lambda p: p.pair_id)}


def written(
    model: nn.Module,
    pairs: Sequence[Example],
    *,
    limit: int,
    room: int | None,
    likelihood: TokenLikelihood,
    ends: Collection[int],
) -> list[Example]:
    """The model's greedy answer to each pair's prompt, as its one row `own`. limit: most tokens of an answer; room: of
    prompt and answer."""
    found = []
    for group in batches(pairs, likelihood.budget(model, pairs) if caches(model) else 1, padded):
        limits = [min(limit, (room or 10**9) - len(p.prompt_ids)) for p in group]
        texts = draw(model, [p.prompt_ids for p in group], limits, pad=likelihood.pad_token_id, ends=ends)
        own = [sequences.Sequence(p.prompt_ids, TokenIds(ids)) for p, ids in zip(group, texts)]
        found += [replace(p, rows={"own": row}) for p, row in zip(group, own) if row.completion_ids]
    return found


def _drift(model: nn.Module, start: nn.Module, own: Sequence[Example], likelihood: TokenLikelihood) -> dict[str, float]:
    """KL(policy || start) along each answer, nats, by pair_id."""
    found: dict[str, float] = {}
    reference = LiveReference(start, likelihood)
    for part, rows, _ in score_rows(model, own, likelihood=likelihood, reference=reference):
        per_token = rows["own"].per_token_kl_reverse
        assert per_token is not None  # the reference was run
        found |= {p.pair_id: value for p, value in zip(part, rows["own"].masked_sum(per_token).tolist())}
    return found


def is_true(answer: str, chosen: str) -> float:
    """1 where the answer names the value that the chosen answer names and no other value of the fact world, else 0;
    NaN where the chosen answer names none."""
    every = {value for values in facts.VALUES.values() for value in values}
    said, wanted = every & set(answer.split()), every & set(chosen.split())
    return float(said == wanted) if wanted else math.nan
