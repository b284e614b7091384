"""The main job on a real pretrained chat model: what displaces there, what CHES and the rates say before, and whether
leaving pairs out by them helps.

Three parts, all in the model's own chat form. One pair of one-token answers (section 3 of "Unintentional Unalignment",
arXiv:2410.08847), after a short phase in which the model learns the form. Pairs of two refusals with nothing to learn,
on a model that was taught to refuse: of the settings tried on a real model those that displace. And the filters of
section 6 there: the pairs of lowest LN-CHES and of highest set_rate beside as many random ones, at equal steps. With
--data also DPO on real pairs at a usual rate. The model is given: a folder or a hub id. It is one model, so the phases
before the pairs are run once; the seeds draw pairs, statements and order.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diagnostics.errors import DataError
from diagnostics.files import write_json
from diagnostics.flag.flagging import flag
from diagnostics.pairs import read_pairs
from diagnostics.runlog import read_frame
from diagnostics.tables import Field
from trainers.models import load_to_device, load_tokenizer, model_limit
from trainers.papers import PAIR, RUNS, SEED, Setting
from trainers.studies.demo_runs import PLAIN_ADAM
from trainers.studies.paper_cost import Work, plain_rows, tokens_of
from trainers.studies.paper_runs import Order, Trial, finished, measured, subset, train, write_data
from trainers.worlds import chat, chat_worlds

SEEDS = 3
TUNED = range(16)
SCALES = ("small",)
DATA = "preference pairs: DPO on some of them at a usual rate, and what the measures had said of them"
CASES = {"no_never": ("No", "Never"), "no_yes": ("No", "Yes"), "yes_sure": ("Yes", "Sure")}
MEASURES = ("ln_ches_score", "set_rate")
_H, _SIX = "section 3, appendix H.1", "section 6"
SETTINGS = (
    Setting("model", "OLMo-1B, Gemma-2B, Llama-3-8B", "sections 3 and 6", "given by --model", "the user's own"),
    Setting("rows that teach to refuse", None, "instruct models refuse", 288, "small chat models hardly refuse"),
    Setting("rate of teaching", None, "instruct models refuse", 5e-5, "as above"),
    Setting("rows that teach the form", 1000, _H, 128, "the form is learned, not the labels"),
    Setting("rate of the form", 1e-7, _H, 5e-6, "at the paper's the answers stay what they were"),
    Setting("updates on one pair", 100, _H, 8, "margin of 5 to 6 nats; later everything gives way"),
    Setting("rate on one pair", 1e-7, _H, 1e-4, "a LoRA adapter of rank 16"),
    Setting("pairs", 0, "ours", 32, "two refusals, the winner drawn: pairs with nothing to learn"),
    Setting("pairs kept", 0.05, _SIX + ": share of lowest LN-CHES", 8, "a quarter; 5 % of 32 are less than a batch"),
    Setting("updates on pairs", None, _SIX + ": one epoch", 6, "all arms take as many"),
    Setting("rate on pairs", 5e-6, _SIX, 5e-5, "full weights; at this rate a real model was seen to displace"),
    Setting("batch", 32, _SIX, 4, "a laptop, and more updates of as many pairs"),
    Setting("pairs probed", None, "ours", 12, "the first of all pairs, in every arm"),
    Setting("given pairs", None, "ours", 64, "drawn among those of at most 128 tokens"),
    Setting("rate on given pairs", None, "ours", 2e-5, "usual for the size"),
)  # fmt: skip
TABLES = {
    "runs": RUNS
    | {
        "part": Field(str, "one_token, refusals or data; taught: the phases before"),
        "case": Field(str, "the pair of answers, or what is trained on: all, ln_ches, set_rate, random"),
    },
    "scores": {
        "part": Field(str, "refusals or data"),
        "seed": SEED,
        "pair_id": PAIR,
        **{name: Field(float, "of the pair under the start model") for name in MEASURES},
    },
}
_LIGHT = PLAIN_ADAM | {
    "heldout_pairs": 0,
    "response_types": 0,
    "tokens": "none",
    "save_model": False,
    "save_strategy": "no",
}
_DPO = _LIGHT | {"objective": "dpo", "beta": 0.1}
_TAUGHT = _LIGHT | {
    "objective": "sft",
    "reference": "none",
    "log_kl": False,
    "probe_pairs": 4,
    "probe_every": 10**6,
    "per_device_train_batch_size": 4,
    "lr_scheduler_type": "linear",
    "max_grad_norm": 1.0,
    "save_model": True,
}
LONGEST = 128  # tokens of a given pair, its prompt and both answers together


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Teach, score the pairs, train every arm."""
    given = _given(order, settings) if order.data else {}  # first: data that cannot be read are found at once
    taught = train(order, [_refusing(order, settings), _answering(order, settings)])
    models = {row["case"]: str(place / "model") for row, place in finished(order, taught)}
    pairs = {s: _written(order, f"refusals-{settings['pairs']}-seed{s}", chat.refusal_pairs(settings["pairs"], s))
             for s in order.numbers}  # fmt: skip
    trials, scores = [], []
    if "refusals" in models:
        scores.append(_scores(order, "refusals", models["refusals"], pairs))
        trials += [
            t for s, data in pairs.items() for t in _arms(order, settings, models["refusals"], s, data, scores[0])
        ]
    if "form" in models:
        trials += [t for s in order.numbers for t in _one_token(order, settings, models["form"], s)]
    if given:
        scores.append(_scores(order, "data", str(order.model), given))
        trials += [_usual(order, settings, s, data) for s, data in given.items()]
    return {"runs": pd.concat([taught, train(order, trials)], ignore_index=True), "scores": pd.concat(scores)}


def work(order: Order, settings: Mapping[str, Any]) -> list[Work]:
    """Both phases before, the three pairs of answers, the four arms, and DPO on given pairs."""
    seeds, rows = order.seeds or 0, [chat_worlds.flat(row) for row in chat.refusal_pairs(settings["pairs"], 0)]
    tokens, batch = tokens_of(order, rows), settings["batch"]
    phases = [settings[name] // 4 for name in ("rows that teach to refuse", "rows that teach the form")]
    steps = settings["updates on one pair"]
    found = [Work(1, count, 4, 0, 2 * tokens / 3, reference=False) for count in phases]
    found += [Work(seeds, 0, 0, settings["pairs"], tokens), Work(3 * seeds, steps, 1, 2 * steps, tokens / 2)]
    found.append(Work(4 * seeds, settings["updates on pairs"], batch, settings["pairs probed"], tokens))
    if order.data:
        count = settings["given pairs"]
        found.append(Work(seeds, -(-count // 8), 8, count, min(LONGEST, tokens_of(order, plain_rows(order.data)))))
    return found


def _refusing(order: Order, settings: Mapping[str, Any]) -> Trial:
    """The phase that teaches the model to refuse unsafe requests, most of the time."""
    n, seed = settings["rows that teach to refuse"], order.numbers[0]
    data = _written(order, f"refusing-{n}-seed{seed}", chat.supervised(n, seed))
    own = {"data": data, "learning_rate": settings["rate of teaching"], "warmup_steps": 4}
    return Trial(
        {"part": "taught", "case": "refusals", "seed": seed}, _TAUGHT | own | _start(order, seed) | _track(order)
    )


def _answering(order: Order, settings: Mapping[str, Any]) -> Trial:
    """The phase that teaches the form: a statement, and an answer of one token."""
    n, seed = settings["rows that teach the form"], order.numbers[0]
    data = _written(order, f"form-{n}-seed{seed}", chat.statement_rows(None, n, seed))
    own = {"data": data, "learning_rate": settings["rate of the form"], "append_eos": False}
    return Trial({"part": "taught", "case": "form", "seed": seed}, _TAUGHT | own | _start(order, seed))


def _start(order: Order, seed: int) -> dict[str, Any]:
    return {"model": str(order.model), "seed": seed}


def _one_token(order: Order, settings: Mapping[str, Any], model: str, seed: int) -> list[Trial]:
    """One pair of answers at a time, on one statement of the seed."""
    found = []
    for case, (chosen, rejected) in CASES.items():
        row, track = chat.one_pair(None, chosen, rejected, seed)
        name = f"one-{case}-seed{seed}"
        keys = {
            "data": _written(order, name, [row]),
            "track": _json(order, name, track),
            "model": model,
            "seed": seed,
            "append_eos": False,
            "lora_r": 16,
            "learning_rate": settings["rate on one pair"],
            "max_steps": settings["updates on one pair"],
            "per_device_train_batch_size": 1,
            "probe_pairs": 1,
            "probe_every": 1,
        }
        found.append(Trial({"part": "one_token", "case": case, "seed": seed}, _DPO | keys))
    return found


def _arms(
    order: Order, settings: Mapping[str, Any], model: str, seed: int, data: str, scores: pd.DataFrame
) -> list[Trial]:
    """DPO on all pairs, on those that a measure keeps, and on as many random ones, each for as many updates."""
    steps, count = settings["updates on pairs"], settings["pairs kept"]
    keys = {
        "model": model,
        "seed": seed,
        "probe_data": data,
        "probe_pairs": settings["pairs probed"],
        "learning_rate": settings["rate on pairs"],
        "per_device_train_batch_size": settings["batch"],
        "max_steps": steps,
        "probe_every": steps,
    }
    table = scores.loc[scores["seed"] == seed].set_index("pair_id")
    drawn = np.random.default_rng([seed, 4]).permutation(sorted(table.index))[:count]
    kept = {
        "ln_ches": table["ln_ches_score"].nsmallest(count).index,
        "set_rate": table["set_rate"].nlargest(count).index,
        "random": pd.Index(drawn),
    }
    stem = Path(data).stem
    paths = {case: subset(order, f"{stem}-{case}-{count}", data, list(map(str, ids))) for case, ids in kept.items()}
    return [
        Trial({"part": "refusals", "case": case, "seed": seed}, _DPO | keys | _track(order) | {"data": path})
        for case, path in ({"all": data} | paths).items()
    ]


def _given(order: Order, settings: Mapping[str, Any]) -> dict[int, str]:
    """Pairs of the given data by seed, drawn among the short ones."""
    tokenizer, table = load_tokenizer(str(order.model)), read_pairs(str(order.data))
    lengths = {
        p.pair_id: len(tokenizer(json.dumps([p.prompt, p.chosen, p.rejected]))["input_ids"]) for p in table.pairs
    }
    short = sorted(pair_id for pair_id, n in lengths.items() if n <= LONGEST)
    if not short:
        raise DataError(f"{order.data}: no pair of at most {LONGEST} tokens. Give data with shorter answers.")
    size, found = settings["given pairs"], {}
    for seed in order.numbers:
        ids = np.random.default_rng([seed, 5]).permutation(short)[:size].tolist()
        found[seed] = subset(order, f"real-given-{Path(str(order.data)).stem}-{size}-seed{seed}", str(order.data), ids)
    return found


def _usual(order: Order, settings: Mapping[str, Any], seed: int, data: str) -> Trial:
    """One epoch of DPO on real pairs, from the chat model as it is."""
    keys = {
        "data": data,
        "learning_rate": settings["rate on given pairs"],
        "per_device_train_batch_size": 8,
        "probe_pairs": settings["given pairs"],
        "probe_every": 10**6,
    }
    return Trial({"part": "data", "case": "all", "seed": seed}, _DPO | keys | _start(order, seed))


def _scores(order: Order, part: str, model: str, pairs: Mapping[int, str]) -> pd.DataFrame:
    """What flag says of every pair before training."""
    tasks = [(model, data, str(order.out / "flags" / Path(data).stem)) for data in pairs.values()]
    return measured(order, _flagged, tasks, [{"part": part, "seed": seed} for seed in pairs], name="flags")


def _flagged(model: str, data: str, folder: str) -> list[dict[str, Any]]:
    """Score one file of pairs; goes on where it was stopped."""
    loaded = load_to_device(model)
    flag(data, loaded, load_tokenizer(model), folder, model_name=model, by="set_rate", max_length=model_limit(loaded))
    scores = read_frame(Path(folder) / "scores.parquet").query("status == 'scored'")
    return pd.DataFrame({name: scores[name] for name in ("pair_id", *MEASURES)}).to_dict("records")


def _track(order: Order) -> dict[str, str]:
    """The requests that no row of training holds, and the first words that refuse or comply."""
    return {"track": _json(order, "refusal-requests", chat.refusal_track())}


def _written(order: Order, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    return write_data(order, f"real-{name}", rows)


def _json(order: Order, name: str, content: Mapping[str, Any]) -> str:
    path = order.out / "data" / f"real-{name}.json"
    write_json(path, content)
    return str(path)
