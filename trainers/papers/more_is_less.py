"""Do pairs whose chosen answers another model wrote teach their style instead of safety?

More is Less (arXiv:2504.02193) finds that chosen answers of a stronger model, beside rejected ones of the model itself,
are linearly separable from them, and that DPO on them leaves attacks more successful than DPO on pairs that the model
wrote on both sides. Here, on the refusal world, two sources of pairs share prompts, objective and rejected answers:

    self    two answers of the start model; a rule takes one that refuses for better than one that complies,
            and tosses a coin between equals
    strong  chosen: an answer in a style of its own that always refuses (synthetic: a few sentences made of the
            world's words, opening as its refusals do); rejected: the same answer as in self

At paper scale --data is one file of pairs with a column `source` that says self or strong.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from diagnostics.errors import UserError
from diagnostics.pairs import read_pairs
from diagnostics.sampling import answers, draw
from diagnostics.scoring import rows as score_rows
from diagnostics.scoring import score
from diagnostics.stats import SequenceStats
from diagnostics.tables import Field
from diagnostics.token_likelihood import TokenLikelihood
from trainers.models import load_model, load_to_device, load_tokenizer, model_limit
from trainers.papers import DISPLACES, MINUTES, PAIR, RUNS, SEED, SMALL_WORLDS, Setting
from trainers.studies.compare import build_whole
from trainers.studies.paper_cost import Work, world_work
from trainers.studies.paper_runs import (
    Order,
    Trial,
    examples,
    given_bases,
    like,
    measure,
    plain,
    subset,
    train,
    world_bases,
)
from trainers.worlds import chat, refusal

SEEDS = 5
TUNED = range(16)
SCALES = ("toy", "small", "paper")
DATA = ""
SOURCES = ("self", "strong")
ANSWER_TOKENS = 24  # a sampled answer is cut here; the world's own have at most 15
# the strong source's sentences after an opener of the world's refusals: its own wording, 12, 12, 14 and 17 words in all
STYLE = (
    ", please do not {verb} a {noun} , i decline .",
    ", what you want to {verb} is wrong , stop .",
    ", i do not want to explain how to {verb} a {noun} .",
    ", please tell me what you need , but not how to {verb} a {noun} .",
)
GIVEN_TOKENS = 32  # of a given model's sampled answer; those that it was taught have at most 25
# the same for a given model: sentences that none of the answers that it was taught has
STRONG = (
    "What you ask for could hurt somebody, and I care about that; let us talk about something else.",
    "I would be glad to assist with a safe project, yet to {act} is nothing that I can support.",
    "Please think of the people around you: to {act} brings harm, and help is there if you need it.",
)
_NOT = "not read; a common choice"
SETTINGS = (
    Setting("objective", "dpo", "title", "dpo"),
    Setting("beta", 0.1, _NOT, 0.1),
    Setting(
        "learning_rate", 5e-7, _NOT, 3e-4, "models of under a million weights do not move at 5e-7", 5e-5, DISPLACES
    ),
    Setting("per_device_train_batch_size", 16, _NOT, 16, "", 4, MINUTES),
    Setting("num_train_epochs", 1.0, _NOT, 1.0),
    Setting("pairs measured", 1024, "ours", 256, "all there are"),
    Setting("SFT steps", None, "starts from a tuned model", None, "400, as in the world's recipe"),
    Setting("model", None, "abstract: Llama, Mistral and Qwen; ids not read: give --model", None, "built from scratch"),
    Setting("data", None, "not read: give --data with a column source", None, "synthetic pairs of the refusal world"),
    *SMALL_WORLDS,
)
_SOURCE = Field(str, "self or strong")
_OF_PAIR = {"source": _SOURCE, "seed": SEED, "pair_id": PAIR}
TABLES = {
    "runs": RUNS | {"source": _SOURCE},
    "features": _OF_PAIR
    | {
        "side": Field(str, "chosen or rejected"),
        "length": Field(float, "of the answer, tokens"),
        "mean": Field(list, "the head's input under the start model, mean over the answer's tokens"),
        "last": Field(list, "the same before the answer's last token"),
    },
    "scores": _OF_PAIR | {"*": Field(float, "lengths, log-probs, CHES and LN-CHES under the start model")},
}


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """DPO on either source, and what the start model says of their pairs."""
    bases = _toy(order, settings) if order.own_worlds else _paper(order, settings)
    tasks = [(base.keys["model"], base.keys["data"], settings["pairs measured"]) for base in bases]
    runs, found = train(order, bases), measure(order, states, tasks)
    tables = {
        name: pd.concat([pd.DataFrame(of[name]).assign(**base.labels) for of, base in zip(found, bases)])
        for name in ("features", "scores")
    }
    return {"runs": runs} | {name: table.reset_index(drop=True) for name, table in tables.items()}


def work(order: Order, settings: Mapping[str, Any]) -> list[Work]:
    """Both sources; sampling is not counted."""
    return world_work(order, settings, given=2, refusal=2)


def _toy(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """Both sources at each seed, on the refusal world."""
    found = []
    for base in world_bases(order, "refusal", settings):
        seed, model = base.labels["seed"], Path(base.keys["model"])
        toy = order.scale == "toy"
        folder = order.out / "data" / f"{model.parent.name}{'' if toy else f'-seed{seed}'}-sources"
        if not folder.exists():
            asked = () if toy else (base.keys["data"],)
            build_whole(folder, write_sources if toy else write_given_sources, (str(model), seed, *asked))
        for source in SOURCES:
            data = str(folder / f"{source}.jsonl")
            found.append(Trial({"source": source, "seed": seed}, base.keys | {"data": data}))
    return found


def _paper(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """The given model on each source's pairs of the given data."""
    if not order.data:
        raise UserError("paper more_is_less: give --data, a file of pairs with a column source (self or strong).")
    table = read_pairs(order.data)
    by_source = {s: [p.pair_id for p in table.pairs if p.columns.get("source") == s] for s in SOURCES}
    if not all(by_source.values()):
        raise UserError(f"{order.data}: needs a column source, with self in some rows and strong in others.")
    found = []
    for source, ids in by_source.items():
        data = subset(order, f"{Path(order.data).name.split('.')[0]}-{source}", order.data, ids)
        bases = given_bases(order, settings, data=data, heldout_pairs=0)
        found += [Trial({"source": source, "seed": base.labels["seed"]}, base.keys) for base in bases]
    return found


def write_sources(folder: Path, model_path: str, seed: int) -> None:
    """Write self.jsonl and strong.jsonl: the same unsafe training prompts and rejected answers."""
    folder.mkdir(parents=True, exist_ok=True)
    train_prompts, _ = refusal.split_prompts(seed)
    unsafe = [p for p in train_prompts if p.unsafe]
    rng = np.random.default_rng([seed, 13])
    prompts = [unsafe[i] for i in rng.permutation(len(unsafe))[: refusal.PAIRS]]
    own = [sampled(model_path, [p.text for p in prompts], 2 * seed + k) for k in range(2)]
    made: dict[str, list[dict[str, str]]] = {source: [] for source in SOURCES}
    for k, (prompt, one, other) in enumerate(zip(prompts, *own)):
        better, worse = judged(one, other, bool(rng.integers(2)))
        strong = styled(prompt, rng)
        for source, chosen in zip(SOURCES, (better, strong)):
            made[source].append({"pair_id": f"p{k:03d}", "prompt": prompt.text, "chosen": chosen, "rejected": worse})
    for source, pairs in made.items():
        kept = [p for p in pairs if p["chosen"] != p["rejected"]]
        refusal.write_pairs(folder / f"{source}.jsonl", kept)


def write_given_sources(folder: Path, model_path: str, seed: int, data: str) -> None:
    """The same for a given model that was taught to refuse, on the requests of a file of refusal pairs and in its form:
    text or chats. The strong source's sentences are STRONG."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng([seed, 13])
    model, tokenizer = load_to_device(model_path), load_tokenizer(model_path)
    rows = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines()]
    prompts = [row["prompt"] for row in rows]
    own = [answers(model, tokenizer, prompts, temperature=1.0, limit=GIVEN_TOKENS, seed=2 * seed + k) for k in range(2)]
    acts = {request.text: request.act for request in chat.requests(held_out=False)}
    made: dict[str, list[dict[str, Any]]] = {source: [] for source in SOURCES}
    for row, one, other in zip(rows, *own):
        better, worse = judged(one, other, bool(rng.integers(2)), refuses)
        opener, rest = rng.choice(chat.openers(*chat.REFUSALS)), rng.choice(STRONG)
        strong = f"{opener}. {rest.format(act=acts[plain(row['prompt']).strip()])}"
        for source, said in zip(SOURCES, (better, strong)):
            if said != worse and said.strip() and worse.strip():
                sides = {"chosen": said, "rejected": worse}
                shown = {side: like(row["chosen"], lambda _, text=text: text) for side, text in sides.items()}
                made[source].append({"pair_id": row["pair_id"], "prompt": row["prompt"]} | shown)
    for source, pairs in made.items():
        refusal.write_pairs(folder / f"{source}.jsonl", pairs)


def refuses(answer: str) -> bool:
    """Whether an answer begins as the refusals that a given model was taught do."""
    return re.split(r"\W+", answer.strip())[0] in chat.openers(*chat.REFUSALS)


def judged(one: str, other: str, first: bool, safe: Callable[[str], bool] | None = None) -> tuple[str, str]:
    """The two answers, the better one first: a refusal before anything else; of equals the one that the coin says."""
    refused = [(safe or is_safe)(answer) for answer in (one, other)]
    lead = first if refused[0] == refused[1] else refused[0]
    return (one, other) if lead else (other, one)


def is_safe(answer: str) -> bool:
    """Whether an answer of the refusal world opens as a refusal does."""
    return answer.split()[:1] != [] and answer.split()[0] in refusal.openers("soft", "firm")


def styled(prompt: refusal.Prompt, rng: np.random.Generator) -> str:
    """A refusal as the strong source writes it."""
    opener, rest = rng.choice(refusal.openers("soft", "firm")), rng.choice(STYLE)
    return f"{opener} {rest.format(verb=prompt.verb, noun=prompt.noun)}"


def sampled(model_path: str, prompts: Sequence[str], seed: int, *, limit: int = ANSWER_TOKENS) -> list[str]:
    """An answer of a model to each prompt, drawn at temperature 1 until EOS or the limit, by seed."""
    tokenizer: Any = load_tokenizer(model_path)
    model = load_model(model_path)
    rows, pad = tokenizer(list(prompts))["input_ids"], TokenLikelihood.of(tokenizer).pad_token_id
    generator, end = torch.Generator().manual_seed(seed), tokenizer.eos_token_id
    drawn = draw(model, rows, limit, pad=pad, ends={end}, temperature=1.0, generator=generator)
    return [str(tokenizer.decode(list(ids[:-1] if ids[-1:] == (end,) else ids))) for ids in drawn]


def states(model_path: str, data: str, count: int) -> dict[str, list[dict[str, Any]]]:
    """features: pair_id, side, length (tokens), mean and last: float64 lists, the head's input averaged over the
    answer's tokens and before its last one. scores: pair_id, lengths, log-probs, CHES and LN-CHES."""
    tokenizer, model = load_tokenizer(model_path), load_to_device(model_path)
    kept = examples(read_pairs(data).pairs, tokenizer, model_limit(model))[:count]
    features, scores = [], []
    for done in score(model, kept, likelihood=TokenLikelihood.of(tokenizer)):
        ids = [p.pair_id for p in done.pairs]
        features += _features(ids, "chosen", done.stats.chosen) + _features(ids, "rejected", done.stats.rejected)
        scores += score_rows(done.pairs, done.stats, ["ches_score", "ln_ches_score"])
    return {"features": features, "scores": scores}


def _features(ids: Sequence[str], side: str, stats: SequenceStats) -> list[dict[str, Any]]:
    if stats.hidden_sum is None or stats.last_hidden is None:
        return []
    lengths = stats.lengths.double()
    means, lasts = (stats.hidden_sum / lengths[:, None]).tolist(), stats.last_hidden.tolist()
    found = zip(ids, lengths.tolist(), means, lasts)
    return [{"pair_id": i, "side": side, "length": n, "mean": mean, "last": last} for i, n, mean, last in found]
