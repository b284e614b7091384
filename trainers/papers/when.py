"""When does a real model displace? A map of what no paper varies together: where the two answers come from (the
model itself, the model with one word more, somebody else's data), whether the winner can be learned or was drawn by a
coin, the learning rate, and whether the model was first trained on the chosen answers.

Every cell is one short DPO run on as many pairs, on prompts of the data. What the start model says of the pairs before
is kept beside it, so that a rule can be made on the cells from the model as it is, and tried on those after SFT, from
which it was not made. That alike answers displace is a claim of arXiv:2410.08847 (section 5); the rest is asked here.
The model is given: a folder or a hub id.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diagnostics.errors import DataError, UserError
from diagnostics.flag.flagging import flag
from diagnostics.manifest import file_hash
from diagnostics.pairs import read_pairs
from diagnostics.runlog import read_frame
from diagnostics.tables import Field
from trainers.models import load_to_device, load_tokenizer, model_limit
from trainers.papers import PAIR, RUNS, SEED, Setting
from trainers.studies.demo_runs import PLAIN_ADAM
from trainers.studies.paper_cost import Work, plain_rows, tokens_of
from trainers.studies.paper_runs import Order, Trial, finished, in_form, measured, train, worlds, write_data
from trainers.worlds.sourced_pairs import SOURCES, WINNERS, build

SEEDS = 2
TUNED = range(16)
SCALES = ("small",)
DATA = "preference pairs, whose prompts are answered and whose answers are the off-policy ones"
STARTS = ("instruct", "sft")
SETTINGS = (
    Setting("model", None, "ours", "given by --model", "the user's own"),
    Setting("pairs", None, "ours", 16, "of each cell; the same prompts in all of a seed"),
    Setting("updates", None, "ours", 6, "one pass and a half over the pairs"),
    Setting("batch", None, "ours", 4, "a laptop, and more updates of as many pairs"),
    Setting("rates", None, "ours", [5e-6, 2e-5], "both usual for the size"),
    Setting("rates after SFT", None, "ours", [2e-5], "the higher one: cells that no rule was made from"),
    Setting("rows of SFT", None, "ours", 32, "chosen answers of the data, those of the pairs among them"),
    Setting("passes of SFT", None, "ours", 2.0, "the answers are to become the model's own"),
    Setting("rate of SFT", None, "ours", 5e-5, "as above"),
)  # fmt: skip
LABELS = {
    "start": Field(str, "instruct: the given model; sft: after SFT on chosen answers"),
    "source": Field(str, "where the answers come from: own, near or given; sft for the phase before"),
    "winner": Field(str, "learnable, or random: drawn by a coin"),
    "rate": Field(float, "learning rate"),
}
MEASURES = (
    "set_rate",
    "ches_score",
    "ln_ches_score",
    "edit_similarity",
    "chosen_logps",
    "chosen_length",
    "rejected_logps",
    "rejected_length",
)
TABLES = {
    "runs": RUNS | LABELS,
    "scores": {
        "seed": SEED,
        **{name: LABELS[name] for name in ("start", "source", "winner")},
        "pair_id": PAIR,
        **{name: Field(float, "of the pair under its start model; see `chesboard list measures`") for name in MEASURES},
    },
}
_LIGHT = PLAIN_ADAM | {
    "append_eos": False,  # the model's own answers are first sentences: it would have gone on
    "heldout_pairs": 0,
    "response_types": 0,
    "tokens": "none",
    "save_model": False,
    "save_strategy": "no",
}
LONGEST = 96  # tokens of a prompt and its longer answer


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Train on chosen answers, draw the pairs of either start, score them, train every cell."""
    if not order.data:
        raise UserError("paper when: give --data, preference pairs whose prompts the model answers.")
    order = replace(order, data=in_form(order, order.data, None, str(order.model))["data"])
    rows = _short(order, settings)
    taught = train(order, [_sft(order, settings, seed, rows[seed]) for seed in order.numbers])
    models = {("instruct", seed): str(order.model) for seed in order.numbers}
    models |= {("sft", row["seed"]): str(place / "model") for row, place in finished(order, taught)}
    places = _pairs(order, settings, models, rows)
    cells = list(_cells(places))
    scores = measured(order, _scored, [(models[k], p, str(_flags(order, k, p))) for k, p, _ in cells],
                      [{"start": k[0], "seed": k[1], **labels} for k, _, labels in cells], name="flags")  # fmt: skip
    trials = [t for key, path, labels in cells for t in _trials(settings, key, models[key], path, labels)]
    return {"runs": pd.concat([taught, train(order, trials)], ignore_index=True), "scores": scores}


def work(order: Order, settings: Mapping[str, Any]) -> list[Work]:
    """SFT, scoring the twelve sets of a seed, and its cells."""
    seeds, batch, pairs = order.seeds or 0, settings["batch"], settings["pairs"]
    tokens = min(LONGEST, tokens_of(order, plain_rows(order.data))) if order.data else LONGEST
    phase = settings["rows of SFT"] * int(settings["passes of SFT"]) // batch
    cells = len(SOURCES) * len(WINNERS) * (len(settings["rates"]) + len(settings["rates after SFT"]))
    sets = len(STARTS) * len(SOURCES) * len(WINNERS)
    return [
        Work(seeds, phase, batch, 0, 2 * tokens / 3, reference=False),
        Work(seeds * sets, 0, 0, pairs, tokens),
        Work(seeds * cells, settings["updates"], batch, 4 * pairs, tokens),
    ]


def _short(order: Order, settings: Mapping[str, Any]) -> dict[int, list[int]]:
    """By seed: source rows of the data that are short, in the order of the draw."""
    tokenizer = load_tokenizer(str(order.model))
    sizes = {
        p.source_row: _tokens(tokenizer, p.prompt) + max(_tokens(tokenizer, text) for text in (p.chosen, p.rejected))
        for p in read_pairs(str(order.data)).pairs
    }
    short = sorted(row for row, size in sizes.items() if size <= LONGEST)
    if len(short) < settings["pairs"]:
        raise DataError(f"{order.data}: {len(short)} pairs of at most {LONGEST} tokens, not {settings['pairs']}.")
    return {seed: np.random.default_rng([seed, 7]).permutation(short).tolist() for seed in order.numbers}


def _tokens(tokenizer: Any, text: Any) -> int:
    said = text if isinstance(text, str) else "\n".join(str(message["content"]) for message in text)
    return len(tokenizer(said)["input_ids"])


def _content(order: Order) -> str:
    """The data's content, short: a file of the same name may hold other rows."""
    return (file_hash(str(order.data)) or str(order.data))[-12:]


def _sft(order: Order, settings: Mapping[str, Any], seed: int, rows: list[int]) -> Trial:
    table = {pair.source_row: pair for pair in read_pairs(str(order.data)).pairs}
    taken = [table[row] for row in rows[: settings["rows of SFT"]]]
    lines = [{n: getattr(p, n) for n in ("pair_id", "prompt", "chosen", "rejected")} for p in taken]
    keys = {
        "objective": "sft",
        "reference": "none",
        "log_kl": False,
        "model": str(order.model),
        "data": write_data(order, f"when-sft-{len(taken)}-seed{seed}-{_content(order)}", lines),
        "learning_rate": settings["rate of SFT"],
        "num_train_epochs": settings["passes of SFT"],
        "per_device_train_batch_size": settings["batch"],
        "probe_pairs": 4,
        "probe_every": 10**6,
        "save_model": True,
        "seed": seed,
    }
    labels = {
        "seed": seed,
        "start": "instruct",
        "source": "sft",
        "winner": "learnable",
        "rate": settings["rate of SFT"],
    }
    return Trial(labels, _LIGHT | keys)


def _pairs(
    order: Order, settings: Mapping[str, Any], models: Mapping[tuple[str, int], str], rows: Mapping[int, list[int]]
) -> dict[tuple[str, int], Path]:
    """The folder of the six files of each start and seed."""
    count, found = settings["pairs"], dict[tuple[str, int], str]()
    wanted = {}
    for (start, seed), model in models.items():
        made_from = hashlib.sha256(f"{model.replace(str(order.out), '')} {_content(order)}".encode()).hexdigest()[:12]
        name = f"when-{Path(str(order.data)).stem}-{start}-{count}-seed{seed}-{made_from}"
        found[start, seed] = name
        wanted[name] = (build, (model, str(order.data), rows[seed][: 5 * count], count, seed))
    places = worlds(order, wanted)
    return {key: places[name] for key, name in found.items()}


def _cells(places: Mapping[tuple[str, int], Path]) -> Iterator[tuple[tuple[str, int], str, dict[str, str]]]:
    """Start and seed, file and labels of every set of pairs."""
    for key, place in places.items():
        for source in SOURCES:
            for winner in WINNERS:
                yield key, str(place / f"{source}-{winner}.jsonl"), {"source": source, "winner": winner}


def _trials(
    settings: Mapping[str, Any], key: tuple[str, int], model: str, path: str, labels: Mapping[str, str]
) -> list[Trial]:
    start, seed = key
    keys = {
        "objective": "dpo",
        "beta": 0.1,
        "reference": "precomputed",
        "model": model,
        "data": path,
        "seed": seed,
        "per_device_train_batch_size": settings["batch"],
        "max_steps": settings["updates"],
        "probe_pairs": settings["pairs"],
        "probe_every": 1,
    }
    rates = settings["rates after SFT" if start == "sft" else "rates"]
    return [
        Trial({"seed": seed, "start": start, **labels, "rate": rate}, _LIGHT | keys | {"learning_rate": rate})
        for rate in rates
    ]


def _flags(order: Order, key: tuple[str, int], path: str) -> Path:
    return order.out / "flags" / f"{Path(path).parent.name}-{Path(path).stem}"


def _scored(model: str, data: str, folder: str) -> list[dict[str, Any]]:
    """What flag says of every pair before training; goes on where it was stopped."""
    loaded = load_to_device(model)
    how: dict[str, Any] = {
        "model_name": model,
        "by": "set_rate",
        "max_length": model_limit(loaded),
        "append_eos": False,
    }
    flag(data, loaded, load_tokenizer(model), folder, **how)
    scores = read_frame(Path(folder) / "scores.parquet").query("status == 'scored'")
    return pd.DataFrame({name: scores[name] for name in ("pair_id", *MEASURES)}).to_dict("records")
