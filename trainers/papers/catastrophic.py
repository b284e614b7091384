"""One pair of one-token answers on one prompt: how far the preferred answer falls, and which tokens gain.

Section 3 and Tables 1 to 13 of "Unintentional Unalignment" (arXiv:2410.08847): persona prompts, a phase of supervised
training on labels drawn from two sets of answers, then DPO or IPO on one prompt and one pair for 100 steps; ten
seeds pick ten prompts. At toy scale a base model is made first, which gives graded answers (synthetic, also where the
statements are real ones): it stands for what a pretrained model brings. The phase after it is the paper's. A
chat model is asked in its own form, with `Answer Yes or No.` below the statement: else its mass is on other words.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from diagnostics import unembedding
from diagnostics.engine import device_of
from diagnostics.errors import DataError, UserError
from diagnostics.flag.closed_forms import closed_forms
from diagnostics.forward import run
from diagnostics.manifest import file_hash
from diagnostics.pairs import read_pairs
from diagnostics.prepare import prepare
from diagnostics.sequences import Example
from diagnostics.tables import Field
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.token_text import token_text
from trainers.loop.probe import TOP
from trainers.models import load_to_device, load_tokenizer
from trainers.papers import RUNS, SEED, Setting
from trainers.studies.demo_runs import PLAIN_ADAM
from trainers.studies.paper_cost import SAMPLE, Work, tokens_of
from trainers.studies.paper_runs import (
    Order,
    Trial,
    examples,
    finished,
    is_chat,
    keys,
    measure,
    train,
    worlds,
    write_lines,
)
from trainers.worlds import chat_worlds, lm, persona
from trainers.worlds.chat import ONE_TOKEN
from trainers.worlds.persona import ANSWERS, SIDES, Statement

SEEDS = 10
TUNED = range(16)
SCALES = ("toy", "small", "paper")
DATA = "a persona file (ends-justify-means.jsonl): its statements in place of the synthetic ones"
PAPER_SEEDS = (9773, 5290, 8767, 9818, 7596, 344, 2701, 3298, 7834, 6327)
PAIRS = {"yes_no": ("Yes", "No"), "no_never": ("No", "Never"), "sure_yes": ("Sure", "Yes")}
MORE_PAIRS = {"no_yes": ("No", "Yes"), "yes_absolutely": ("Yes", "Absolutely"), "no_nope": ("No", "Nope")}
LABELS = {"yes": ("No", "Never", "Maybe", "Perhaps"), "no": SIDES["yes"]}  # by the statement's matching behaviour
CONTROLS = {
    "rmsprop": {"optim": "rmsprop", "learning_rate": 2e-5},  # at 1e-5 some runs do not reach the margin
    "sgd": {"optim": "sgd", "learning_rate": 0.03, "max_steps": 41},
    "frozen_head": {"lora_r": 64, "lora_alpha": 64, "learning_rate": 2e-4},  # peft leaves head and embeddings alone
}
_H = "appendix H.1"
_FEW = {"no_yes": ("No", "Yes")}
_SMALL = "models of under a million weights do not move at the paper's rate"
_RATE = "about 3 nats of margin after 8 updates of Adam on 135 M weights"
SETTINGS = (
    Setting("model", "allenai/OLMo-1B-hf", "section 3; also google/gemma-2b, meta-llama/Meta-Llama-3-8B", None,
            "built from scratch, one a seed"),
    Setting("statements", "ends-justify-means.jsonl, given by --data", _H, None, "synthetic, or given by --data"),
    Setting("prompts a seed", 1, _H, 1),
    Setting("pairs of answers", PAIRS, "tables 1 to 3, those whose answers are tokens", PAIRS),
    Setting("more pairs on the base", {}, "ours", MORE_PAIRS, "similar and dissimilar pairs of the recipe", _FEW,
            "the others' answers are no single tokens of the models in use"),
    Setting("base training steps", None, "a pretrained model", persona.STEPS, "graded answers, synthetic"),
    Setting("SFT learning rate", 1e-7, _H, 1e-4, "at 1e-5 the answers stay what they were", 5e-6,
            "the form is learned, not the labels; at the paper's the answers stay what they were"),
    Setting("SFT epochs", 1.0, _H, 1.0, "", 0.16, "20 updates on 160 statements; two minutes"),
    Setting("SFT batch", 32, _H, 32, "", 8, "20 updates on 160 statements; two minutes"),
    Setting("SFT optimizer", "rmsprop", _H, "rmsprop", "", "adamw_torch", "as for the pairs"),
    Setting("optim", "rmsprop", _H, "adamw_torch", "as in the recipe; RMSProp is a control"),
    Setting("max_steps", 101, _H + ": record s is after s updates, and the last one gives the loss of record 100", 101,
            "", 26, "records 0 to 25: a minute a run; the margin is above 1.5 by then"),
    Setting("DPO learning rate", 1e-7, _H, 3e-5, _SMALL, 1e-6, _RATE),
    Setting("DPO beta", 0.1, _H, 0.1),
    Setting("IPO learning rate", 1e-8, _H, 3e-5, _SMALL + ", nor at a tenth of DPO's", 1e-6, _RATE),
    Setting("IPO tau", 0.01, _H, 0.01),
    Setting("control runs", {}, "ours", CONTROLS, "No over Never on the base with another optimizer or scope", {},
            "the toy's rates are not theirs"),
    Setting("seeds of the control runs", 0, "ours", 5, "the first ones, to save time"),
    Setting("prompts compared with one another", 1000, "appendix D.3: the persona prompts", 200, "enough for signs",
            40, "a forward pass each"),
)  # fmt: skip
_MODEL = {"seed": SEED, "phase": Field(str, "base, or sft: after the supervised phase")}
_PAIR = _MODEL | {
    "case": Field(str, "the pair of answers, a name of PAIRS or MORE_PAIRS"),
    "prompt": Field(int, "number of the seed's prompt"),
}
TABLES = {
    "runs": RUNS
    | _PAIR
    | {"objective": Field(str, "dpo or ipo"), "control": Field(str, "a name of CONTROLS; empty for the paper's run")},
    "geometry": _PAIR
    | {
        "along": Field(float, "length of W+ - W- along W+; W: unembeddings"),
        "across": Field(float, "length of the rest"),
        "inner": Field(float, "<W+, W->"),
        "cosine": Field(float, "of W+ and W-"),
        "centred_cosine": Field(float, "the same with the answers' mean taken away"),
        "hidden_norm2": Field(float, "squared length of the hidden state after the prompt"),
        "*": Field(float, "a closed form, see diagnostics.flag.closed_forms"),
    },
    "predicted": _PAIR
    | {
        "way": Field(str, "the order: unembeddings, weighed (by the probability), or likeliest"),
        "rank": Field(int, "in that order, from 0"),
        "token_id": Field(int, "of the token"),
        "token": Field(str, "its text"),
        "vocabulary": Field(int, "how many tokens there are"),
    },
    "prompts": _MODEL
    | {
        "positive": Field(float, "share of pairs of prompts whose hidden states have a product above 0"),
        "prompts": Field(int, "how many were compared"),
        "pairs": Field(int, "how many pairs that makes"),
    },
}
ONE_PAIR = PLAIN_ADAM | dict(
    append_eos=False,
    per_device_train_batch_size=1,
    reference="precomputed",
    probe_every=1,
    probe_pairs=1,
    heldout_pairs=0,
    response_types=0,
    tokens="none",
    log_kl=False,
    save_model=False,
    save_strategy="no",
)

Cases = Mapping[str, Sequence[str]]


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Every run on one pair, and what is known of the models before it."""
    bases = _bases(order, settings)
    cases = {k: tuple(v) for k, v in (settings["pairs of answers"] | settings["more pairs on the base"]).items()}
    cases = _known_cases(cases, next(iter(bases.values())))
    written = _written(order, settings, cases, next(iter(bases.values())))
    controlled = order.numbers[: settings["seeds of the control runs"]]
    models = {("base", seed): model for seed, model in bases.items()} | _tuned(order, settings, bases, written)
    trials = [t for (phase, seed), model in models.items() for t in _trials(
        settings, cases, written[seed], {"seed": seed, "phase": phase}, model, seed in controlled)]  # fmt: skip
    runs = train(order, trials)
    tasks = [(phase, seed, m, str(written[seed]), settings["prompts compared with one another"])
             for (phase, seed), m in models.items()]  # fmt: skip
    found = measure(order, _measure, tasks)
    return {"runs": runs} | {
        name: pd.DataFrame([row for each in found for row in each[name]])
        for name in ("geometry", "predicted", "prompts")
    }


def work(order: Order, settings: Mapping[str, Any]) -> list[Work]:
    """The supervised phase, and of every seed each pair on the base, and after that phase by DPO and IPO. A run is
    probed at each of its steps, which is counted as one more pass a step."""
    rows = [{"prompt": s.prompt + ONE_TOKEN, "chosen": "", "rejected": ""} for s in _statements(0, order.data)]
    tokens, pairs, batch = tokens_of(order, rows[:SAMPLE]), settings["pairs of answers"], settings["SFT batch"]
    taught = math.ceil(-(-len(rows) // batch) * settings["SFT epochs"])
    each = (3 * len(pairs) + len(settings["more pairs on the base"])) * settings["prompts a seed"]
    controls = len(settings["control runs"]) * min(settings["seeds of the control runs"], order.seeds or 0)
    count, steps = each * (order.seeds or 0) + controls, settings["max_steps"]
    return [
        Work(1, taught, batch, 0, tokens, reference=False),
        Work(count, steps, 1, steps, tokens, reference=False),
    ]


def pick(statements: Sequence[Statement], behaviour: str, seed: int, count: int) -> list[Statement]:
    """The paper's prompts of a seed: the first ones of torch.randperm over the statements of this behaviour."""
    same = [s for s in statements if s.stance == behaviour]
    number = PAPER_SEEDS[seed] if seed < len(PAPER_SEEDS) else seed
    order = torch.randperm(len(same), generator=torch.Generator().manual_seed(number))
    return [same[i] for i in order[:count].tolist()]


def behaviour(chosen: str) -> str:
    """Matching behaviour of the statements that a pair is trained on: the model is to disagree with the trait, so an
    answer of the no side goes with statements that the trait agrees with (H.1)."""
    return "yes" if chosen in SIDES["no"] else "no"


def build_base(folder: Path, seed: int, data: str | None, steps: int) -> None:
    """The toy's base model, trained on graded answers of the side that the later phase teaches too: folder/model."""
    turned = [Statement(s.prompt, "no" if s.stance == "yes" else "yes", s.confidence) for s in _statements(seed, data)]
    model, tokenizer, _ = persona.train(turned, seed, steps=steps)
    lm.save(model, tokenizer, folder / "model")


def write_data(
    folder: Path,
    seed: int,
    data: str | None,
    cases: dict[str, tuple[str, str]],
    answers: tuple[str, ...],
    prompts: int,
    chat: bool = False,
) -> None:
    """labels.jsonl (the supervised phase), and for each case and prompt one pair and one track file. chat: as messages,
    with the words that ask for one of the answers."""
    statements = _statements(seed, data)
    folder.mkdir(parents=True)
    rng = np.random.default_rng([seed, 5])
    labels = [_label(s, k, answers, rng) for k, s in enumerate(statements)]
    write_lines(folder / "labels.jsonl", [_formed(label, chat) for label in labels])
    for case, (chosen, rejected) in cases.items():
        for k, statement in enumerate(pick(statements, behaviour(chosen), seed, prompts)):
            pair = dict(pair_id=f"{case}-p{k}", prompt=statement.prompt, chosen=chosen, rejected=rejected)
            write_lines(folder / f"{case}-p{k}.jsonl", [_formed(pair, chat)])
            track = _track(f"{case}-p{k}", statement, chosen, answers)
            track["prompts"] = [_formed(prompt, chat) for prompt in track["prompts"]]
            (folder / f"{case}-p{k}.track.json").write_text(json.dumps(track), encoding="utf-8")


def _formed(row: dict[str, Any], chat: bool) -> dict[str, Any]:
    """A row as it stands, or as a chat whose prompt asks for an answer of one token."""
    asked = row | {"prompt": str(row["prompt"]).strip() + ONE_TOKEN}
    return chat_worlds.formed(asked, True) if chat else row


def _statements(seed: int, data: str | None) -> list[Statement]:
    return persona.read_statements(data) if data else persona.generate_statements(seed)


def _label(statement: Statement, number: int, answers: tuple[str, ...], rng: np.random.Generator) -> dict[str, str]:
    """One supervised example: a label drawn evenly from the answers of its set. The other answer is not trained on."""
    wanted, others = ([a for a in LABELS[side] if a in answers] for side in (statement.stance, _other(statement)))
    if not wanted or not others:
        raise DataError("this model's vocabulary has no answer of one side as a single token; choose another --model.")
    drawn = dict(prompt=statement.prompt, chosen=str(rng.choice(wanted)), rejected=others[0])
    return {"pair_id": f"s{number}"} | drawn


def _other(statement: Statement) -> str:
    return "no" if statement.stance == "yes" else "yes"


def _track(name: str, statement: Statement, chosen: str, answers: tuple[str, ...]) -> dict[str, Any]:
    """The prompt with the answers of the chosen one's side, of the other side, of neither; only known tokens."""
    own = "no" if chosen in SIDES["no"] else "yes"
    sides = dict(own=SIDES[own], opposite=SIDES["yes" if own == "no" else "no"], neutral=SIDES["neutral"])
    groups = {group: [w for w in words if w in answers] for group, words in sides.items()}
    prompts = [dict(id=name, set="answer", prompt=statement.prompt)]
    return dict(prompts=prompts, groups={group: words for group, words in groups.items() if words})


def _bases(order: Order, settings: Mapping[str, Any]) -> dict[int, str]:
    """The model before any phase, by seed: built here at toy scale, else the given one for all seeds."""
    if order.scale == "paper" and not order.data:
        raise UserError("paper catastrophic: at paper scale give the statements: --data ends-justify-means.jsonl")
    if order.scale != "toy":
        return {seed: order.model or settings["model"] for seed in order.numbers}
    steps = settings["base training steps"]
    name = f"persona-{_source(order)}-{steps}steps"
    found = worlds(order, {f"{name}-seed{s}": (build_base, (s, order.data, steps)) for s in order.numbers})
    return {s: str(path / "model") for s, path in zip(order.numbers, found.values())}


def _source(order: Order) -> str:
    """What the statements are, in a folder's name."""
    return f"{file_hash(order.data)}"[-8:] if order.data else "synthetic"


def _known_cases(cases: dict[str, tuple[str, str]], model: str) -> dict[str, tuple[str, str]]:
    """The pairs whose answers are both single tokens of this model, looked up by string as in the paper."""
    vocabulary = load_tokenizer(model).get_vocab()
    found = {case: pair for case, pair in cases.items() if all(answer in vocabulary for answer in pair)}
    if not found:
        raise DataError(f"{model}: its vocabulary has none of the answers Yes, No, Never, Sure as single tokens.")
    return found


def _written(order: Order, settings: Mapping[str, Any], cases: Cases, model: str) -> dict[int, Path]:
    """The folder of `write_data` by seed."""
    vocabulary = load_tokenizer(model).get_vocab()
    answers, prompts = tuple(a for a in ANSWERS if a in vocabulary), settings["prompts a seed"]
    chat = is_chat(order, model)
    mark = f"{len(cases)}-{'-'.join(a[:3] for a in answers)}{'-chat' * chat}"
    names = {s: f"persona-{_source(order)}-pairs-{mark}-{prompts}-seed{s}" for s in order.numbers}
    found = worlds(order, {n: (write_data, (s, order.data, cases, answers, prompts, chat)) for s, n in names.items()})
    return {s: found[name] for s, name in names.items()}


def _tuned(
    order: Order, settings: Mapping[str, Any], bases: Mapping[int, str], written: Mapping[int, Path]
) -> dict[tuple[str, int], str]:
    """The models after the supervised phase. Of a given model there is one: equal keys, equal run."""
    first = order.numbers[0]
    sft = PLAIN_ADAM | dict(objective="sft", append_eos=False, reference="none", probe_pairs=8, probe_every=10**6,
                            heldout_pairs=0, response_types=0, tokens="none", log_kl=False, save_strategy="no",
                            optim=settings["SFT optimizer"], learning_rate=settings["SFT learning rate"],
                            num_train_epochs=settings["SFT epochs"],
                            per_device_train_batch_size=settings["SFT batch"])  # fmt: skip
    trials = []
    for seed, model in bases.items():
        own = seed if order.scale == "toy" else first
        paths = {"model": model, "data": str(written[own] / "labels.jsonl"), "seed": own}
        trials.append(Trial({"seed": seed}, sft | paths))
    return {("sft", row["seed"]): str(run / "model") for row, run in finished(order, train(order, trials))}


def _trials(
    settings: Mapping[str, Any], cases: Cases, folder: Path, labels: dict[str, Any], model: str, controlled: bool
) -> list[Trial]:
    """Every run on one model: DPO, IPO after the supervised phase, and where `controlled` the controls on the base."""
    shared = ONE_PAIR | {k: v for k, v in keys(settings).items() if k in ("optim", "max_steps")}
    dpo = dict(objective="dpo", learning_rate=settings["DPO learning rate"], beta=settings["DPO beta"])
    ipo = dict(objective="ipo_sum", learning_rate=settings["IPO learning rate"], tau=settings["IPO tau"])
    sft = labels["phase"] == "sft"
    ways = [(case, "", dpo) for case in cases if not sft or case in settings["pairs of answers"]]
    ways += [(case, "", ipo) for case in cases if sft and case in settings["pairs of answers"]]
    ways += [
        ("no_never", name, dpo | more) for name, more in settings["control runs"].items() if controlled and not sft
    ]
    found = []
    for case, control, how in ways:
        for k in range(settings["prompts a seed"]):
            named = {"prompt": k, "case": case, "objective": how["objective"][:3], "control": control}
            place = {"data": str(folder / f"{case}-p{k}.jsonl"), "track": str(folder / f"{case}-p{k}.track.json")}
            found.append(Trial(labels | named, shared | how | place | {"model": model, "seed": labels["seed"]}))
    return found


def _measure(phase: str, seed: int, name: str, folder: str, compared: int) -> dict[str, list[dict[str, Any]]]:
    """One model before it is trained on any pair. geometry: a row a pair; predicted: its ten first tokens by
    <W_z, W+ - W->, by that weighed with pi(z), and by pi(z) alone; prompts: signs of <h, h~> over the prompts."""
    model, tokenizer = load_to_device(name), load_tokenizer(name)
    prepare(model)
    found: dict[str, list[dict[str, Any]]] = {"geometry": [], "predicted": [], "prompts": []}
    for path in sorted(Path(folder).glob("*-p*.jsonl")):
        case, _, number = path.stem.rpartition("-p")
        labels = {"phase": phase, "seed": seed, "case": case, "prompt": int(number)}
        (pair,) = _tokenized(path, tokenizer)
        row, ranked = _geometry(model, tokenizer, pair)
        found["geometry"].append(labels | row)
        found["predicted"] += [labels | token for token in ranked]
    prompts = _tokenized(Path(folder) / "labels.jsonl", tokenizer)
    found["prompts"].append({"phase": phase, "seed": seed} | _signs(model, tokenizer, prompts, compared))
    return found


def _tokenized(path: Path, tokenizer: Any) -> list[Example]:
    kept = examples(read_pairs(path).pairs, tokenizer, append_eos=False)
    if not kept or any(len(p.chosen.completion_ids) > 1 for p in kept):
        raise DataError(f"{path.name}: an answer is not a single token of this model; see --prompt-form.")
    return kept


@torch.no_grad()
def _geometry(model: Any, tokenizer: Any, pair: Example) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    batch = TokenLikelihood.of(tokenizer).collate([pair]).to(device_of(model))
    out = run(model, batch)
    probs = out.logits()[0].double().softmax(-1)
    rates = {k: float(v[0]) for k, v in closed_forms(batch, out).items()}
    weight = model.get_output_embeddings().weight.detach()
    chosen, rejected = pair.chosen.completion_ids[0], pair.rejected.completion_ids[0]
    along, across = unembedding.split(weight[chosen], weight[rejected])
    vocabulary = tokenizer.get_vocab()
    middle = weight[[vocabulary[a] for a in ANSWERS if a in vocabulary]].double().mean(0)
    row = dict(along=along, across=across, inner=float(weight[chosen].double() @ weight[rejected].double()))
    row |= dict(
        cosine=unembedding.cosine(weight[chosen], weight[rejected]),
        hidden_norm2=float(out.hidden[0].double() @ out.hidden[0].double()),
    )
    row |= dict(centred_cosine=unembedding.cosine(weight[chosen] - middle, weight[rejected] - middle))
    lift = unembedding.lifts(weight, chosen, rejected)
    orders = {"unembeddings": lift, "weighed": unembedding.gains(lift, probs), "likeliest": probs}
    ranked = [
        dict(way=way, rank=k, token_id=t, token=token_text(tokenizer, t), vocabulary=len(probs))
        for way, score in orders.items()
        for k, t in enumerate(score.topk(min(TOP, len(probs))).indices.tolist())
    ]
    return row | rates, ranked


@torch.no_grad()
def _signs(model: Any, tokenizer: Any, pairs: Sequence[Example], compared: int) -> dict[str, float]:
    """Share of pairs of prompts with <h, h~> > 0, h the vector that the head multiplies after the prompt."""
    step = max(1, len(pairs) // compared)
    hidden = []
    for pair in pairs[::step][:compared]:
        batch = TokenLikelihood.of(tokenizer).collate([pair]).to(device_of(model))
        hidden.append(run(model, batch, head=False).hidden[0].double())
    table = torch.stack(hidden)
    products = (table @ table.T)[tuple(torch.triu_indices(len(table), len(table), 1))]
    return {"positive": float((products > 0).double().mean()), "prompts": len(table), "pairs": len(products)}
