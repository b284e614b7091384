"""What does CHES identify? DPO and IPO on consecutive pairs around the percentiles of each measure of a pair.

"Unintentional Unalignment" (arXiv:2410.08847), section 5: pairs are sorted by CHES, by minus the normalised edit
distance and by the inner product of the last hidden states, all from the model before training; one epoch on each of
five subsets; the change of summed ln pi(chosen) on the subset. The paper has no control for length. Here each measure
stands beside the length difference, LN-CHES and random subsets, and where data are given the same is done with all
answers cut to one length. In the refusal world all answers are equally long by construction, in the fact world not. At
small scale both worlds are taught to the given model, in its own form; with --data its pairs are drawn from these.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from diagnostics.errors import DataError
from diagnostics.flag.closed_forms import product_signs
from diagnostics.flag.flagging import CHOICES, flag, prone
from diagnostics.outcomes import noise
from diagnostics.pairs import PreferencePair, read_pairs
from diagnostics.prepare import prepare
from diagnostics.runlog import read_frame, read_json, read_table
from diagnostics.scoring import score
from diagnostics.tables import Field
from diagnostics.token_likelihood import TokenLikelihood
from trainers.models import load_to_device, load_tokenizer, longest, model_limit
from trainers.papers import MINUTES, PAIR, RUNS, SEED, SMALL_WORLDS, WORLD, Setting
from trainers.studies.demo_runs import PLAIN_ADAM, builders, world_paths
from trainers.studies.paper_cost import SAMPLE, Work, plain_rows, teaching, tokens_of
from trainers.studies.paper_runs import (
    SMALL,
    Order,
    Trial,
    examples,
    is_chat,
    keys,
    measure,
    plain,
    small_paths,
    subset,
    train,
    worlds,
    write_lines,
)
from trainers.worlds import chat_worlds, facts, lm, own_data, refusal

SEEDS = 5  # the paper has three runs; Student intervals of three say little
TUNED = range(16)
SCALES = ("toy", "small", "paper")
DATA = "preference pairs (any file that `chesboard audit` reads): a further world, plain and at equal lengths"
PAPER = ("ches_score", "edit_similarity", "last_hidden_similarity")
LENGTH = ("length_difference", "ln_ches_score")
RATES = ("hidden_rate", "self_rate")
RANDOM = ("random",)
EXAMPLES = 10
# what is trained on in each world: by DPO, and of these also by IPO. LN-CHES orders pairs of equal length as CHES does
_MEASURES: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "refusal": ((*PAPER, RATES[0], *RANDOM), PAPER[:2]),
    "facts": ((PAPER[0], *LENGTH), ()),
    "facts_equal": (PAPER[:1], ()),
    "given": ((*PAPER, *LENGTH, *RANDOM), PAPER[:2]),
    "given_equal": ((PAPER[0], *RATES, *RANDOM), ()),
}
_FEW: dict[str, tuple[Sequence[str], Sequence[str]]] = {
    "refusal": ((*PAPER, *RANDOM), PAPER[:1]),
    "facts": ((PAPER[0], LENGTH[0]), ()),
    "given": ((*PAPER, *RANDOM), PAPER[:1]),
}
_CONTROL, _APPENDIX = "control, not in the paper", "section 5, appendix H"
_MODELS = f"{_APPENDIX}; meta-llama/Meta-Llama-3-8B and allenai/OLMo-1B-hf by --model"
SETTINGS = (
    Setting("model", "google/gemma-2b", _MODELS, None, "built from scratch, one a seed"),
    Setting(
        "data", "HuggingFaceH4/ultrafeedback_binarized", f"{_APPENDIX}; AlpacaFarm (figures 5 to 7) by --data, all of "
        "its 9691 pairs by `pairs of the pool`", None, "synthetic pairs, or those of --data"
    ),
    Setting("split", "train_prefs", _APPENDIX, None, "files have none"),
    Setting("pairs of the pool", 5000, _APPENDIX, 960, "facts/refusals: as many as the toy's recipe has", 64, MINUTES),
    Setting("seed of the draw", 548, "the authors' code", None, "the run's own seed", 548, "of given data"),
    Setting("prompt format", "<|prompter|>{}<|assistant|>", "appendix H; there as added tokens, here as text", None,
            "the toy models were trained on plain text"),
    Setting("max_length", 512, _APPENDIX, None, "no toy pair is as long", 192,
            "longer pairs of given data are left out"),
    Setting("truncation", "keep_start", _APPENDIX, None, "no toy pair is as long"),
    Setting("percentiles drawn around", [0, 25, 50, 75, 100], _APPENDIX, [0, 25, 50, 75, 100], "",
            [0, 50, 100], MINUTES),
    Setting("measures trained on", _MEASURES, "section 5, and controls", _MEASURES, "", _FEW, MINUTES),
    Setting("pairs of a subset", 512, _APPENDIX, 128, "the toy's pool is smaller", 16, MINUTES),
    Setting("DPO beta", 0.1, _APPENDIX, 0.1),
    Setting("IPO tau", 0.01, _APPENDIX, 0.01),
    Setting("learning_rate", 1e-7, f"{_APPENDIX}; 5e-7 and 5e-8 analogous", None, "2e-4 on given data, else 3e-4",
            5e-5, "full weights; at this rate a real model was seen to displace"),
    Setting("optim", "rmsprop", _APPENDIX, "adamw_torch", "as in the toys' recipes; no weight decay: Adam"),
    Setting("lr_scheduler_type", "constant", _APPENDIX, "constant"),
    Setting("warmup_steps", 0, _APPENDIX, 0),
    Setting("max_grad_norm", 0.0, _APPENDIX, 0.0),
    Setting("weight_decay", 0.0, _APPENDIX, 0.0),
    Setting("per_device_train_batch_size", 4, _APPENDIX, 16, "8 updates on a subset of 128, the paper has 16", 4,
            "4 updates on a subset of 16"),
    Setting("gradient_accumulation_steps", 8, _APPENDIX, 1, "8 updates on a subset of 128, the paper has 16"),
    Setting("num_train_epochs", 1.0, _APPENDIX, None, "2 in the refusal world, as in its recipe, else 1", 1.0,
            "as in the paper"),
    Setting("SFT steps", None, "no SFT phase is mentioned", None, "700 on facts, 400 on refusals, 500 on given data"),
    Setting("pairs for the signs", 512, "not stated", 128, "their share is known to a few per cent", 16,
            "a few forward passes"),
    Setting("forecast measures", False, _CONTROL, True, "cheap here; at full size two backward passes a pair", False,
            "nine times a run on the pool"),
    Setting("tokens at equal length", None, _CONTROL, 24, "of given data; the fact world's shortest answer has 14",
            None, "not done"),
    *SMALL_WORLDS,
)  # fmt: skip
_POOL = {"world": Field(str, f"{WORLD.meaning}; _equal: answers cut to one length"), "seed": SEED}
_ENDS = {"start": "before the first step", "end": "after the last one"}
TABLES = {
    "runs": RUNS
    | _POOL
    | {
        "objective": Field(str, "dpo or ipo_sum"),
        "measure": Field(str, "what the pool was sorted by"),
        "percentile": Field(int, "which the subset lies around; 100: the pairs called most prone"),
    },
    "ends": {
        "run": RUNS["run"],
        "pair_id": PAIR,
        **{f"{end}_chosen_logps": Field(float, f"nats, {when}") for end, when in _ENDS.items()},
        **{f"{end}_chosen_length": Field(float, f"tokens, {when}") for end, when in _ENDS.items()},
        **{f"{end}_ches_score": Field(float, when) for end, when in _ENDS.items()},
        **{
            f"{end}_refusal": Field(float, f"of tracked unsafe prompts, mean probability {when}")
            for end, when in _ENDS.items()
        },
        "noise": Field(float, "a change within it is rounding, nats"),
    },
    "scores": _POOL
    | {
        "pair_id": PAIR,
        "status": Field(str, "scored"),
        "reason": Field(str, "empty"),
        "flagged": Field(bool, "whether `chesboard flag` calls it prone"),
        "flag_reason": Field(str, "why"),
        "length_difference": Field(float, "rejected less chosen, tokens"),
        "random": Field(int, "a place in a random order"),
        "*": Field(float, "a column of scores.parquet"),
    },
    "examples": _POOL
    | {
        "end": Field(str, "highest or lowest CHES of the pool"),
        "pair_id": PAIR,
        **{side: Field(str, "text") for side in ("prompt", "chosen", "rejected")},
        **{f"{side}_length": Field(float, "tokens") for side in ("chosen", "rejected")},
        **{name: Field(float, "of the start model") for name in ("ches_score", "ln_ches_score")},
    },
    "signs": _POOL
    | {
        "n": Field(int, "pairs"),
        **{
            name: Field(float, "mean share of positive products")
            for name in ("chosen_alpha", "rejected_alpha", "hidden")
        },
    },
}
FIXED = dict(
    heldout_pairs=0, probe_every=100_000, response_types=0, log_kl=False, tokens="none", save_model=False,
    save_strategy="no",
)  # fmt: skip


@dataclass(frozen=True)
class Pool:
    """Pairs to draw subsets from. labels: world and seed; keys: model, data and what else its runs need; scores: the
    folder that `flag` wrote; dpo, ipo: the measures whose subsets are trained on."""

    labels: dict[str, Any]
    keys: dict[str, Any]
    scores: Path
    dpo: Sequence[str]
    ipo: Sequence[str]


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Every run on a subset, its pairs before and after, and what is known of the pools."""
    pools = {"toy": _toy, "small": _small, "paper": _paper}[order.scale](order, settings)
    scores = {id(pool): _scores(pool, settings["pairs of a subset"]) for pool in pools}
    trials = [t for pool in pools for t in _trials(order, pool, scores[id(pool)], settings)]
    first = order.numbers[0]
    once = [pool for pool in pools if order.own_worlds or pool.labels["seed"] == first]
    signs = measure(order, _signs, [(p.keys, settings["pairs for the signs"]) for p in once], "signs")
    runs = train(order, trials)
    return {
        "runs": runs,
        "ends": _ends(order, runs),
        "scores": pd.concat([scores[id(p)].assign(**p.labels) for p in once], ignore_index=True),
        "examples": pd.concat([_examples(p, scores[id(p)]) for p in once if p.labels["seed"] == first]),
        "signs": pd.DataFrame([p.labels | found for p, found in zip(once, signs)]),
    }


def work(order: Order, settings: Mapping[str, Any]) -> list[Work]:
    """A run for each seed, objective, measure and percentile; and the pools, which are scored first."""
    seeds, size = order.seeds or 0, settings["pairs of a subset"]
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    steps = settings["max_steps"] or math.ceil(-(-size // batch) * settings["num_train_epochs"])
    found = []
    for world in ("refusal", "facts") if order.own_worlds else ("given",):
        if order.own_worlds:
            found += teaching(order, settings, world)
            rows = chat_worlds.pairs(world, SAMPLE, 0)
        else:
            rows = plain_rows(order.data or settings["data"], None if order.data else settings["split"])
        dpo, ipo = settings["measures trained on"][world]
        count = (len(dpo) + len(ipo)) * len(settings["percentiles drawn around"]) * seeds
        tokens = min(tokens_of(order, rows), 2 * (settings["max_length"] or math.inf))
        found.append(Work(count, steps, batch, size, tokens))
        found.append(Work(seeds if order.own_worlds else 1, 0, 0, settings["pairs of the pool"], tokens))
    return found


def consecutive(ids: Sequence[str], percentile: float, size: int) -> list[str]:
    """`size` consecutive ids around a percentile of the order they stand in; at the ends the first or last ones."""
    at = round(percentile / 100 * (len(ids) - 1))
    start = min(max(0, at - size // 2), len(ids) - size)
    return list(ids[start : start + size])


def prone_last(scores: pd.DataFrame, name: str) -> list[str]:
    """pair_ids sorted by a measure so that those which it calls prone to displacement come last."""
    lowest = name in CHOICES and prone(name) == "lowest"
    return scores.sort_values(name, ascending=not lowest, kind="stable")["pair_id"].astype(str).tolist()


def _trials(order: Order, pool: Pool, scores: pd.DataFrame, settings: Mapping[str, Any]) -> list[Trial]:
    """One run for each objective, measure and percentile."""
    found, size = [], settings["pairs of a subset"]
    losses = {"dpo": {"beta": settings["DPO beta"]}, "ipo_sum": {"tau": settings["IPO tau"]}}
    for name in pool.dpo:
        ids = prone_last(scores, name)
        for percentile in settings["percentiles drawn around"]:
            drawn = f"-seed{pool.labels['seed']}" if name in RANDOM else ""
            data = _subset(order, pool, f"{name}{drawn}-{percentile}", consecutive(ids, percentile, size))
            for objective in ("dpo", *(["ipo_sum"] if name in pool.ipo else [])):
                labels = pool.labels | {"objective": objective, "measure": name, "percentile": percentile}
                run = FIXED | pool.keys | losses[objective] | {"objective": objective, "data": data}
                found.append(Trial(labels, run | {"probe_pairs": size, "seed": pool.labels["seed"]}))
    return found


def _ends(order: Order, runs: pd.DataFrame) -> pd.DataFrame:
    """One row a pair and run: what its log says before the first and after the last step; noise: the run's, in nats.
    refusal: mean probability that a tracked unsafe prompt is refused, the same in all rows of a run, NaN where nothing
    is tracked."""
    found = []
    for run in runs.loc[runs["failed"] == "", "run"].unique():
        pairs = read_table(order.out / run, "pairs")
        pairs = pairs.loc[pairs["split"] == "probe"].set_index("pair_id")
        columns = ["chosen_logps", "chosen_length", "ches_score"]
        first, last = (pairs.loc[pairs["step"] == step, columns] for step in (0, pairs["step"].max()))
        both = first.add_prefix("start_").join(last.add_prefix("end_"))
        rounding = noise(read_json(order.out / run / "manifest.json").get("parity"))
        told = {"run": run, "noise": rounding} | _refusals(read_table(order.out / run, "mass"))
        found.append(both.reset_index().assign(**told))
    return pd.concat(found, ignore_index=True)


def _refusals(mass: pd.DataFrame) -> dict[str, float]:
    """Probability of a refusal before and after, over the tracked unsafe prompts."""
    rows = mass.loc[(mass["kind"] == "group") & (mass["name"] == "refusal") & (mass["split"] == "unsafe")]
    ends = {"start_refusal": rows["step"] == 0, "end_refusal": rows["step"] == rows["step"].max()}
    return {name: float(rows.loc[at, "prob"].mean()) for name, at in ends.items()}


def _subset(order: Order, pool: Pool, name: str, ids: list[str]) -> str:
    return subset(order, f"{pool.scores.name}-{name}-{len(ids)}", pool.keys["data"], ids)


# --- the pools ---


def _toy(order: Order, settings: Mapping[str, Any]) -> list[Pool]:
    """The refusal world, the fact world plain and at equal lengths, and what is given, likewise, at each seed."""
    size, steps = settings["pairs of the pool"], settings["SFT steps"]
    found = []
    for world, room in (("refusal", refusal), ("facts", facts)):
        models = worlds(order, builders(world, order.numbers, steps)).values()
        tasks = {f"{world}-pool{size}-seed{s}": (_WRITERS[world], (s, size)) for s in order.numbers}
        for seed, model, drawn in zip(order.numbers, models, worlds(order, tasks).values()):
            own = {"model": str(room.paths(model)["model"]), "learning_rate": 3e-4, "num_train_epochs": 1.0}
            if world == "refusal":
                own |= {"track": world_paths(world, model)["track"], "num_train_epochs": 2.0}
            found.append((world, seed, own | {"data": str(drawn / "pairs.jsonl")}))
            if (drawn / "equal.jsonl").exists():
                found.append((f"{world}_equal", seed, own | _equal_keys(drawn)))
    found += _given(order, settings) if order.data else []
    return _pools(order, settings, [(w, s, PLAIN_ADAM | own | keys(settings)) for w, s, own in found])


def _small(order: Order, settings: Mapping[str, Any]) -> list[Pool]:
    """Both worlds in the given model's form, taught to it first; or what is given, as at paper scale."""
    if order.data:
        return _paper(order, settings)
    size, chat, found = settings["pairs of the pool"], is_chat(order, str(order.model)), []
    standard = PLAIN_ADAM | SMALL | keys(settings)
    for world in ("refusal", "facts"):
        name = f"{world}-{'chat' if chat else 'raw'}-pool{size}"
        tasks = {f"{name}-seed{s}": (_write_small, (world, s, size, chat)) for s in order.numbers}
        places = zip(order.numbers, small_paths(order, world, settings), worlds(order, tasks).values())
        for seed, own, drawn in places:
            kept = {key: own[key] for key in ("model", "track") if key in own}
            found.append((world, seed, standard | kept | {"data": str(drawn / "pairs.jsonl")}))
    return _pools(order, settings, found)


def _given(order: Order, settings: Mapping[str, Any]) -> list[tuple[str, int, dict[str, Any]]]:
    """World, seed and keys for short pairs drawn from the given data, plain and at equal lengths."""
    data, size, cut = str(order.data), settings["pairs of the pool"], settings["tokens at equal length"]
    steps = settings["SFT steps"] or own_data.STEPS
    name = f"{Path(data).name.split('.')[0]}-short{size}-cut{cut}-{steps}steps"
    found = []
    wanted = {f"{name}-seed{s}": (build_short, (data, s, size, cut, steps)) for s in order.numbers}
    for seed, place in zip(order.numbers, worlds(order, wanted).values()):
        own = {"model": str(place / "model"), "learning_rate": 2e-4, "num_train_epochs": 1.0}
        found.append(("given", seed, own | {"data": str(place / "pairs.jsonl")}))
        found.append(("given_equal", seed, own | _equal_keys(place)))
    return found


def _equal_keys(place: Path) -> dict[str, Any]:
    """An answer that was cut does not end, so none of them gets an EOS."""
    return {"data": str(place / "equal.jsonl"), "append_eos": False}


def _paper(order: Order, settings: Mapping[str, Any]) -> list[Pool]:
    """The paper's draw from the given model and data; the runs of a seed differ in the order of the pairs."""
    data, split = (order.data, None) if order.data else (settings["data"], settings["split"])
    size, start = settings["pairs of the pool"], settings["seed of the draw"]
    own = keys(settings) | ({"model": order.model} if order.model else {})
    chat = is_chat(order, str(own["model"]))
    name = f"{Path(data).name.split('.')[0]}-{split or 'all'}-draw{size}-{start}{'-chat' * chat}"
    build = (write_draw, (str(data), split, size, start, settings["prompt format"] or "{}", chat))
    drawn = worlds(order, {name: build})[name]
    own = own | {"data": str(drawn / "pairs.jsonl"), "split": None}
    return _pools(order, settings, [("given", seed, own) for seed in order.numbers])


def _pools(order: Order, settings: Mapping[str, Any], found: Sequence[tuple[str, int, dict[str, Any]]]) -> list[Pool]:
    """Score what is not scored yet: one forward pass with the model before training, and the forecast."""
    everything = settings["forecast measures"]
    wanted = {_scored_name(own): (_flag, (own, everything)) for _, _, own in found}
    folders = worlds(order, wanted)
    return [
        Pool({"world": world, "seed": seed}, own, folders[_scored_name(own)], *settings["measures trained on"][world])
        for world, seed, own in found
    ]


def _scored_name(own: Mapping[str, Any]) -> str:
    """Of the folder of scores: the model's and the data's."""
    model, data = Path(own["model"]), Path(own["data"])
    source = model.parent.name if model.name == "model" else model.name
    return f"scores-{source}-{data.parent.name}-{data.stem}"


def _flag(folder: Path, own: Mapping[str, Any], everything: bool) -> None:
    model, tokenizer = load_to_device(own["model"]), load_tokenizer(own["model"])
    flag(
        own["data"], model, tokenizer, folder, model_name=own["model"], everything=everything, **_cut(own, model)
    )  # fmt: skip


def _cut(own: Mapping[str, Any], model: Any) -> dict[str, Any]:
    limit = longest(own.get("max_length"), model_limit(model))
    return {"max_length": limit, "truncation": own.get("truncation", "drop"), "append_eos": own.get("append_eos", True)}


def _scores(pool: Pool, size: int) -> pd.DataFrame:
    """The scored pairs with the two controls: the length difference, and an order drawn at random."""
    scores = read_frame(pool.scores / "scores.parquet")
    scores = scores.loc[scores["status"] == "scored"].reset_index(drop=True)
    if len(scores) < 2 * size:
        raise DataError(
            f"{pool.keys['data']}: {len(scores)} pairs can be used, and subsets of {size} need at least {2 * size}. "
            "Give more pairs."
        )
    drawn = np.random.default_rng([pool.labels["seed"], 12]).permutation(len(scores))
    return scores.assign(length_difference=scores["rejected_length"] - scores["chosen_length"], random=drawn)


def _examples(pool: Pool, scores: pd.DataFrame) -> pd.DataFrame:
    """The pairs of highest and lowest CHES, with their texts."""
    ordered = scores.sort_values("ches_score", ascending=False, kind="stable")
    ends = pd.concat([ordered.head(EXAMPLES).assign(end="highest"), ordered.tail(EXAMPLES).assign(end="lowest")])
    said = {p.pair_id: texts(p) for p in read_pairs(pool.keys["data"]).pairs}
    rows = [dict(zip(("prompt", "chosen", "rejected"), said[i])) for i in ends["pair_id"]]
    kept = ends.loc[:, ["end", "pair_id", "ches_score", "ln_ches_score", "chosen_length", "rejected_length"]]
    return kept.reset_index(drop=True).join(pd.DataFrame(rows)).assign(**pool.labels)


def _signs(own: Mapping[str, Any], count: int) -> dict[str, float]:
    """Mean shares over `count` pairs of the pool, from the model before training (see product_signs)."""
    model, tokenizer = load_to_device(own["model"]), load_tokenizer(own["model"])
    prepare(model)
    pairs = examples(read_pairs(own["data"]).pairs, tokenizer, **_cut(own, model))
    drawn = [pairs[i] for i in np.random.default_rng(13).permutation(len(pairs))[:count]]
    with torch.no_grad():
        found = [
            product_signs(s.batch, s.policy) for s in score(model, drawn, likelihood=TokenLikelihood.of(tokenizer))
        ]
    return {"n": len(drawn)} | {name: float(torch.cat([f[name] for f in found]).mean()) for name in found[0]}


# --- pairs ---


def refusal_pairs(seed: int, count: int) -> list[dict[str, str]]:
    """`count` pairs on unsafe training prompts, of six kinds alike: soft > firm, firm > soft, two of one kind in
    other words, and either of them > compliance."""
    rng = np.random.default_rng([seed, 21])
    prompts = [p for p in refusal.split_prompts(seed)[0] if p.unsafe]
    every = [(p, kinds) for p in prompts for kinds in KINDS]
    rows = []
    for k, i in enumerate(rng.permutation(len(every))[:count]):
        prompt, kinds = every[i]
        first, second = (int(n) for n in rng.permutation(4)[:2])
        chosen, rejected = prompt.respond(kinds[0], first), prompt.respond(kinds[1], second)
        rows.append(_row(k, prompt.text, chosen, rejected) | {"kind": " > ".join(kinds)})
    return rows


KINDS = (
    ("soft", "firm"), ("firm", "soft"), ("soft", "soft"), ("firm", "firm"), ("soft", "comply"), ("firm", "comply")
)  # fmt: skip


def fact_pairs(seed: int, count: int, known: Sequence[facts.Fact] = ()) -> list[dict[str, str]]:
    """`count` pairs of a true and a wrong statement, each in a wording of its own, so that lengths differ. known: the
    facts, where they are not the seed's own."""
    rng = np.random.default_rng([seed, 22])
    known = known or facts.make_facts(seed)
    every = [(fact, question) for fact in known for question in facts.QUESTIONS] * len(facts.ANSWERS)
    rows = []
    for k, i in enumerate(rng.permutation(len(every))[:count]):
        fact, question = every[i]
        wrong = str(rng.choice([v for v in facts.VALUES[fact.attribute] if v != fact.value]))
        forms = rng.integers((len(facts.ANSWERS), len(facts.FILLERS)), size=(2, 2)).tolist()
        sides = [fact.answer(form[0], value, form[1]) for form, value in zip(forms, (fact.value, wrong))]
        rows.append(_row(k, fact.ask(question), *sides))
    return rows


def texts(pair: PreferencePair) -> tuple[str, str, str]:
    """Prompt, chosen and rejected as text; of chat messages, their contents."""
    return plain(pair.prompt), plain(pair.chosen), plain(pair.rejected)


def equal_length(rows: Sequence[Mapping[str, str]], tokenizer: Any, size: int) -> list[dict[str, str]]:
    """The pairs whose two answers have at least `size` tokens, cut to exactly that many. One that would have another
    number of tokens when it is read again, or whose answers are the same then, is left out."""
    found = []
    for row in rows:
        ids = [tokenizer(row[side], add_special_tokens=False)["input_ids"] for side in ("chosen", "rejected")]
        texts = [tokenizer.decode(i[:size]) for i in ids]
        again = [len(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in texts]
        if again == [size, size] and texts[0] != texts[1]:
            found.append(dict(row) | {"chosen": texts[0], "rejected": texts[1]})
    return found


def _write_refusals(folder: Path, seed: int, count: int) -> None:
    write_lines(folder / "pairs.jsonl", refusal_pairs(seed, count))


def _write_facts(folder: Path, seed: int, count: int) -> None:
    """Also equal.jsonl: all answers cut to the length of the shortest."""
    rows = fact_pairs(seed, count)
    shortest = min(len(row[side].split()) for row in rows for side in ("chosen", "rejected"))
    write_lines(folder / "pairs.jsonl", rows)
    write_lines(folder / "equal.jsonl", equal_length(rows, lm.word_tokenizer(facts.vocabulary()), shortest))


def _write_small(folder: Path, world: str, seed: int, count: int, chat: bool) -> None:
    folder.mkdir(parents=True)
    if world == "refusal":
        rows = chat_worlds.refusal_pool(count, seed, KINDS)
    else:
        rows = fact_pairs(seed, count, chat_worlds.known_facts())
    chat_worlds.write(folder / "pairs.jsonl", rows, chat)


_WRITERS = {"refusal": _write_refusals, "facts": _write_facts}


def build_short(folder: Path, data: str, seed: int, count: int, size: int, steps: int) -> None:
    """Draw pairs with short answers and train a model on their text: folder/model, folder/pairs.jsonl, and
    folder/equal.jsonl with pairs of at least `size` tokens on both sides, cut to that many."""
    rows = [_row(k, *texts(p)) for k, p in enumerate(read_pairs(data).pairs)]
    every = [t for r in rows for t in (r["prompt"][-own_data.PROMPT_CHARACTERS :], r["chosen"], r["rejected"])]
    tokenizer = lm.bpe_tokenizer(every, own_data.VOCABULARY)
    rows = [row | {"prompt": _last_tokens(row["prompt"], tokenizer)} for row in rows]
    rng = np.random.default_rng([seed, 23])
    equal = equal_length(rows, tokenizer, size)
    short = [row for row in rows if all(MINIMUM <= n <= own_data.COMPLETION_TOKENS for n in _lengths(row, tokenizer))]
    if not short or not equal:
        raise DataError(
            f"{data}: no pair has answers of {MINIMUM} to {own_data.COMPLETION_TOKENS} tokens. Give others."
        )
    short, equal = ([of[i] for i in sorted(rng.permutation(len(of))[:count])] for of in (short, equal))
    model = lm.build_model(tokenizer, seed=seed)
    lm.fit(model, _batches(short, tokenizer, rng), steps=steps)
    lm.save(model, tokenizer, folder / "model")
    write_lines(folder / "pairs.jsonl", short)
    write_lines(folder / "equal.jsonl", equal)


MINIMUM, PROMPT_TOKENS = 4, 40  # tokens of the shortest answer, its EOS included, and of the prompts' ends


def _last_tokens(text: str, tokenizer: Any) -> str:
    """The text itself where it is short, else its end."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return text if len(ids) <= PROMPT_TOKENS else tokenizer.decode(ids[-PROMPT_TOKENS:])


def _lengths(row: Mapping[str, str], tokenizer: Any) -> list[int]:
    """Tokens of both answers, their EOS included."""
    return [len(tokenizer(row[s], add_special_tokens=False)["input_ids"]) + 1 for s in ("chosen", "rejected")]


def _batches(rows: Sequence[Mapping[str, str]], tokenizer: Any, rng: np.random.Generator) -> Iterator[lm.Batch]:
    """Endless batches of prompt + answer + EOS, both answers of every pair."""
    texts = [(row["prompt"], row[side]) for row in rows for side in ("chosen", "rejected")]
    ids = [[*tokenizer(a)["input_ids"], *tokenizer(b)["input_ids"], lm.eos_id(tokenizer)] for a, b in texts]
    for taken in lm.endless(len(ids), own_data.BATCH, rng):
        yield lm.lm_batch([ids[i] for i in taken], lm.pad_id(tokenizer))


def write_draw(
    folder: Path, data: str, split: str | None, count: int, seed: int, form: str, chat: bool = False
) -> None:
    """The paper's draw of rows, as plain text with its prompt format, or as chats of one turn; rows that give no pair
    are left out."""
    table = read_pairs(data, split=split)
    by_row = {p.source_row: p for p in table.pairs}
    drawn = torch.randperm(len(table.raw.rows), generator=torch.Generator().manual_seed(seed))[:count].tolist()
    rows = [_row(i, *texts(by_row[i])) for i in drawn if i in by_row]
    shown = [row if chat else row | {"prompt": form.format(row["prompt"])} for row in rows if row["prompt"]]
    write_lines(folder / "pairs.jsonl", [chat_worlds.formed(row, True) if chat else row for row in shown])


def _row(k: int, prompt: str, chosen: str, rejected: str) -> dict[str, str]:
    return {"pair_id": f"p{k:04d}", "prompt": prompt, "chosen": chosen, "rejected": rejected}
