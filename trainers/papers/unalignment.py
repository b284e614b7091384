"""Does DPO on a model's own refusals make it comply, and does a filter by LN-CHES prevent that?

Section 6 of "Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization"
(arXiv:2410.08847): figures 3, 4 and 8, tables 16, 17 and 18. Trained on: the original pairs (DPO and IPO), with an SFT
term, on gold pairs, and on the pairs of lowest LN-CHES. Controls beside them: as many random pairs, the pairs of one
refusal and one compliance alone (the trivial filter), as many optimizer steps as the full run, two refusals or two
compliances only, the pairs that help refusals most (probe_influence), all but the top fifth, gold pairs at the others'
learning rate, and DPO with a KL term.

Every run uses its own track file (the training prompts too) and keeps its weights until its answers are sampled, so
none is the standard run of the refusal world. At small scale the given model is taught to refuse first, and trained on
written pairs of the same kinds in its own form. At small and paper scale `--data` is a file of prompts (see
trainers.worlds.judged_pairs.read_prompts); the pairs are made from them, once.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diagnostics.errors import DataError, UserError
from diagnostics.manifest import file_hash
from diagnostics.runlog import read_frame, read_run, write_frame
from diagnostics.sampling import answers
from diagnostics.tables import Field
from trainers.models import load_to_device, load_tokenizer
from trainers.papers import DISPLACES, MINUTES, PAIR, RUNS, SEED, SMALL_WORLDS, Setting
from trainers.studies.demo_runs import REFUSALS, builders, world_paths
from trainers.studies.paper_cost import SAMPLE, Work, tokens_of, world_work
from trainers.studies.paper_runs import (
    SMALL,
    Order,
    Trial,
    finished,
    is_chat,
    keys,
    measure,
    subset,
    taught,
    train,
    worlds,
)
from trainers.worlds import chat, judged_pairs, refusal, refusal_study
from trainers.worlds.judges import Judge, as_prompt, first_words, load_judge
from trainers.worlds.refusal_study import read_rows

SEEDS = 5
TUNED = range(16)
SCALES = ("toy", "small", "paper")
DATA = ""
CONTROLS = (
    *("random", "mixed", "influence", "filtered_more", "drop_top", "two_refusals", "two_compliances", "kl"),
    *("gold_rate", "filtered_steps", "random_steps", "mixed_steps"),
)
_FEW = ("random", "kl", "filtered_steps", "random_steps")
_SMALL = "models of under a million weights do not move at the paper's"
_WHERE = "section 6, appendix H"
SETTINGS = (
    Setting(
        "model", "google/gemma-2b-it", "section 6; also Llama-3-8B-Instruct", None, "made from scratch, one a seed",
    ),
    Setting("data", "sorry-bench/sorry-bench-202406", "section 6", None, "a synthetic world of prompts"),
    Setting(
        "preference pairs", "two samples a prompt, judged", "section 6", "written",
        "so small a model samples few pairs of two refusals",
    ),
    Setting("beta", 0.1, _WHERE, 0.1),
    Setting("tau of IPO", 0.01, _WHERE, 0.01),
    Setting("optim", "rmsprop", _WHERE, "adamw_torch", "RMSProp's first step is ten times its rate: too coarse here"),
    Setting("learning_rate", 5e-6, _WHERE, 3e-4, _SMALL, 5e-5, DISPLACES),
    Setting("learning rate on gold pairs", 1e-6, _WHERE, 6e-5, "a fifth of the others', as in the paper", 1e-5,
            "a fifth of the others'"),
    Setting("per_device_train_batch_size", 4, _WHERE, 16, "in one piece: no accumulation", 4, "8 updates an epoch"),
    Setting("gradient_accumulation_steps", 8, _WHERE, 1, "16 pairs an update, so that an epoch of 256 has 16"),
    Setting("num_train_epochs", 1.0, _WHERE, 1.0),
    Setting("dtype", "float32", "not stated for section 6", "float32"),
    Setting("weights of the SFT term, DPO", [0.01, 0.1, 1.0], _WHERE + "; best: Gemma 1, Llama 0.1", [0.01, 0.1, 1.0],
            "", [0.1], MINUTES),
    Setting("weights of the SFT term, IPO", [10, 100, 1000], _WHERE + "; best: 1000", [10, 100, 1000], "", [100],
            MINUTES),
    Setting("controls trained", CONTROLS, "ours", CONTROLS, "", _FEW, MINUTES),
    Setting("share kept", 0.05, "section 6", 0.2, "5 % of 256 pairs are less than a batch", 0.25, "two batches of 32"),
    Setting("larger share kept", 0.15, "section 6, in words", 0.5, "as far above the smaller one"),
    Setting("share dropped", 0.2, "ours", 0.2),
    Setting("weight of the KL term", 0.1, "ours", 0.1),
    Setting(
        "judge of answers", "sorry-bench/ft-mistral-7b-instruct-v0.2-sorry-bench-202406", _WHERE, "first word",
        "refusals have first words of their own, whose exact probability is read too",
    ),
    Setting(
        "wording of the judge's question", "ours, in the published structure", "the benchmark's own is not shipped",
        "none", "a rule asks nothing",
    ),
    Setting(
        "ties of the judge", "at random", "section 6 has PairRM; random ties are reported to be similar", "none",
        "pairs are written",
    ),
    Setting("temperature of answers", 0.7, _WHERE, 0.7),
    Setting("temperature of pairs", 1.0, _WHERE, None, "pairs are written, not sampled"),
    Setting("most new tokens", 512, _WHERE, 20, "answers have 12 words"),
    Setting("answers sampled a set", None, "all prompts", 100, "the exact probability is over all prompts", 8,
            "half a minute a run"),
    Setting("share of prompts to test", 0.15, _WHERE, None, "300 of 1200 prompts are held out"),
    Setting("seed of the data", 128, _WHERE, None, "every seed has a world of its own"),
    Setting("SFT steps", None, "starts from instruct models", 400, "the model is trained from scratch first"),
    *SMALL_WORLDS,
)  # fmt: skip
_STUDY = Field(str, "the set of prompts and pairs that runs share")
TABLES = {
    "runs": RUNS
    | {
        "study": _STUDY,
        "loss": Field(str, "dpo or ipo"),
        "case": Field(str, "what it trains on, and how"),
        "weight": Field(float, "of the SFT term; NaN without one"),
    },
    "pairs": {
        "study": _STUDY,
        "seed": SEED,
        "pair_id": PAIR,
        "kind": Field(str, "mixed, two_refusals, two_compliances or unknown"),
        "*": Field(float, "a measure under the start model"),
    },
    "answers": {
        "study": _STUDY,
        "run": Field(str, "the run's folder; empty for the start model"),
        "set": Field(str, "of prompts: train, test or safe"),
        "n": Field(int, "sampled answers"),
        "judged": Field(int, "how many the judge could score"),
        "complied": Field(float, "mean score: the share that complied"),
    },
    "examples": {
        "study": _STUDY,
        "seed": SEED,
        "run": RUNS["run"],
        "id": Field(str, "of the prompt"),
        "set": Field(str, "of the prompt"),
        "prompt": Field(str, "text"),
        "before": Field(str, "the likeliest answer of the start model"),
        "before_score": Field(float, "1 where it complied, 0 where it refused"),
        "after": Field(str, "the likeliest answer of the run"),
        "after_score": Field(float, "its score"),
    },
}


@dataclass(frozen=True)
class Study:
    """What runs share: prompts, pairs, scores. folder: see refusal_study; seeds: of its runs; keys: of all its runs."""

    name: str
    folder: Path
    seeds: tuple[int, ...]
    keys: dict[str, Any]

    @property
    def model(self) -> str:
        """The model that every run starts from."""
        return str(self.keys["model"])


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Every run, the pairs' kinds and scores, how often answers complied before and after, and some answers."""
    studies = {"toy": _toy, "small": _small, "paper": _paper}[order.scale](order, settings)
    pairs = {s.name: _scores(s) for s in studies}
    start = [Task("", s, s.seeds[0], s.model) for s in studies]
    _answers(order, settings, start)
    first = [_trial(s, k, settings, "dpo", "original", s.folder / "pairs.jsonl") for s in studies for k in s.seeds]
    runs = [_finished(order, settings, studies, first)]
    steps = {row["seed"]: _steps(run) for row, run in finished(order, runs[0])}
    rest = [t for s in studies for t in _trials(order, s, settings, pairs[s.name], steps)]
    runs.append(_finished(order, settings, studies, rest))
    table = pd.concat(runs, ignore_index=True)
    judged = _judged(order, settings, start + _tasks(order, studies, table))
    scored = pd.concat(pairs.values(), ignore_index=True)
    return {"runs": table, "pairs": scored, "answers": rates(judged), "examples": examples(judged)}


def work(order: Order, settings: Mapping[str, Any]) -> list[Work]:
    """Both losses on all, gold and filtered pairs and with every SFT weight, and controls. Sampling is not counted."""
    weights = sum(len(settings[f"weights of the SFT term, {loss}"]) for loss in ("DPO", "IPO"))
    each, seeds = 6 + weights + len(settings["controls trained"]), order.seeds or 0
    if order.own_worlds:
        return world_work(order, settings, given=0, refusal=each)
    rows = [row for row in judged_pairs.read_prompts(str(order.data)) if row["category"] != "safe"]
    pairs = len(rows) - int(settings["share of prompts to test"] * len(rows))
    batch = settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"]
    steps = settings["max_steps"] or math.ceil(-(-pairs // batch) * settings["num_train_epochs"])
    tokens = tokens_of(order, [row | {"chosen": "", "rejected": ""} for row in rows[:SAMPLE]])
    return [Work(each * seeds, steps, batch, pairs, tokens + 2 * settings["most new tokens"])]


# --- studies ---------------------------------------------------------------------------------------------------


def _toy(order: Order, settings: Mapping[str, Any]) -> list[Study]:
    """One a seed, each with a world of its own."""
    built = worlds(order, builders("refusal", order.numbers, settings["SFT steps"]))
    wanted = {f"{name}-study": (refusal_study.build, (str(p), k)) for k, (name, p) in zip(order.numbers, built.items())}
    found = worlds(order, wanted)
    studies = []
    for k, place, (name, folder) in zip(order.numbers, built.values(), found.items(), strict=True):
        model = world_paths("refusal", place)["model"]
        studies.append(_study(name, folder, (k,), settings, {"model": model, "track": str(folder / "track.json")}))
    return studies


def _small(order: Order, settings: Mapping[str, Any]) -> list[Study]:
    """One a seed, of pairs of its own, from the given model after a phase that taught it to refuse; or, of given
    prompts, as at paper scale."""
    if order.data:
        return _paper(order, settings)
    model, count = taught(order, "refusal", settings), settings["pairs of a world"]
    as_chat = is_chat(order, str(order.model))
    name = f"refusal-{'chat' if as_chat else 'raw'}{count}-{settings['rows that teach refusal']}"
    wanted = {f"{name}-seed{k}-study": (refusal_study.build_given, (model, k, count, as_chat)) for k in order.numbers}
    studies = []
    for k, (name, folder) in zip(order.numbers, worlds(order, wanted).items(), strict=True):
        own = SMALL | keys(settings) | {"model": model, "track": str(folder / "track.json")}
        own.pop("beta")  # it is each loss's own
        studies.append(_study(name, folder, (k,), settings, own))
    return studies


def _paper(order: Order, settings: Mapping[str, Any]) -> list[Study]:
    """One for all seeds: the pairs are made once, as in the paper."""
    if not order.data:
        raise UserError(
            "paper unalignment: give the prompts with --data, JSON lines with prompt (or SORRY-Bench's turns); "
            'category "safe" marks those that should be answered.'
        )
    model = order.model or str(settings["model"])
    told = {
        "seed": settings["seed of the data"], "test": settings["share of prompts to test"], "dtype": settings["dtype"],
        "temperature": settings["temperature of pairs"], "limit": settings["most new tokens"],
        "chat": is_chat(order, model),
    }  # fmt: skip
    name = "unalignment-" + _short([model, file_hash(order.data), settings["judge of answers"], told])
    folder = worlds(order, {name: (judged_pairs.build, (model, order.data, settings["judge of answers"], told))})[name]
    return [_study(name, folder, tuple(order.numbers), settings, {"model": model})]


def _study(name: str, folder: Path, seeds: tuple[int, ...], settings: Mapping[str, Any], own: dict[str, Any]) -> Study:
    """What all runs of a study share: trained as the settings say, measured on all original pairs at both ends."""
    probed = _probed(folder / "pairs.jsonl")
    asked = {k: v for k, v in keys(settings).items() if k not in ("model", "data", "beta")}
    ours = {"probe_every": 10**6, "response_types": 0, "save_model": True}
    base = {k: v for k, v in REFUSALS.items() if k not in ("objective", "beta")}
    return Study(name, folder, seeds, base | asked | probed | ours | own)


def _probed(file: Path) -> dict[str, Any]:
    return {"probe_data": str(file), "probe_pairs": len(read_rows(file))}


def _scores(study: Study) -> pd.DataFrame:
    """Every pair's kind and scores under the start model."""
    scores = read_frame(study.folder / "scores" / "scores.parquet")
    kinds = {row["pair_id"]: row["kind"] for row in read_rows(study.folder / "pairs.jsonl")}
    named = ["pair_id", "ches_score", "ln_ches_score", "edit_similarity", "last_hidden_similarity", "probe_influence"]
    scored = scores.loc[scores["status"] == "scored"].reindex(columns=named)
    return scored.assign(kind=scored["pair_id"].map(kinds), study=study.name, seed=study.seeds[0])


# --- runs ------------------------------------------------------------------------------------------------------


def _trials(
    order: Order, study: Study, settings: Mapping[str, Any], pairs: pd.DataFrame, steps: Mapping[int, int]
) -> list[Trial]:
    """Every run but DPO on the original pairs. steps: of that run, by seed."""
    found = []
    for seed in study.seeds:
        data = _data(order, study, settings, pairs, seed)
        found += [_trial(study, seed, settings, loss, "original", data["original"]) for loss in ("ipo",)]
        for loss in ("dpo", "ipo"):
            weights = settings[f"weights of the SFT term, {loss.upper()}"]
            found += [_trial(study, seed, settings, loss, "sft", data["original"], weight=w) for w in weights]
            found += [_trial(study, seed, settings, loss, c, data[c]) for c in ("gold", "filtered") if c in data]
        controls = data | {"kl": data["original"]} | ({"gold_rate": data["gold"]} if "gold" in data else {})
        for case in settings["controls trained"]:
            source, equal = case.removesuffix("_steps"), case.endswith("_steps")
            if source in controls and (seed in steps or not equal):
                count = steps[seed] if equal else None
                found.append(_trial(study, seed, settings, "dpo", case, controls[source], steps=count))
    return found


def _trial(
    study: Study,
    seed: int,
    settings: Mapping[str, Any],
    loss: str,
    case: str,
    data: Path | str,
    *,
    weight: float = math.nan,
    steps: int | None = None,
) -> Trial:
    own: dict[str, Any] = _objective(settings, loss, case, weight)
    if case in ("gold", "gold_rate"):
        own |= _probed(study.folder / "with_gold.jsonl")
    if case == "gold":
        own["learning_rate"] = settings["learning rate on gold pairs"]
    if steps:
        own["max_steps"] = steps
    labels = {"study": study.name, "seed": seed, "loss": loss, "case": case, "weight": weight}
    return Trial(labels, study.keys | own | {"data": str(data), "seed": seed})


def _objective(settings: Mapping[str, Any], loss: str, case: str, weight: float) -> dict[str, Any]:
    own = {"beta": settings["beta"]} if loss == "dpo" else {"tau": settings["tau of IPO"]}
    if case == "sft":
        return {"objective": f"{loss}_nll", "alpha": weight, "normalization": "sum"} | own
    if case == "kl":
        return {"objective": "rrpo", "phrases": False, "alpha": settings["weight of the KL term"]} | own
    return {"objective": "dpo" if loss == "dpo" else "ipo_sum"} | own


def _data(
    order: Order, study: Study, settings: Mapping[str, Any], pairs: pd.DataFrame, seed: int
) -> dict[str, Path | str]:
    """The file that each case trains on; a case without pairs is left out."""
    files = {"original": "pairs", "gold": "gold", "two_compliances": "compliances"}
    found: dict[str, Path | str] = {c: study.folder / f"{f}.jsonl" for c, f in files.items()}
    found = {case: path for case, path in found.items() if Path(path).exists()}
    shares = {name: settings[name] for name in ("share kept", "larger share kept", "share dropped")}
    for case, ids in subsets(pairs, seed, shares).items():
        if ids and case not in found:
            name = f"{study.name}-{case}-{_short([shares, seed if case == 'random' else 0])}"
            found[case] = subset(order, name, str(study.folder / "pairs.jsonl"), ids)
    return found


def subsets(pairs: pd.DataFrame, seed: int, shares: Mapping[str, float]) -> dict[str, list[str]]:
    """Ids of the pairs that each case keeps. pairs: pair_id, kind, ln_ches_score and probe_influence (may be NaN)."""
    n = len(pairs)
    kept, larger, dropped = (
        max(1, math.floor(n * shares[k] + 0.5)) for k in ("share kept", "larger share kept", "share dropped")
    )
    low = pairs.sort_values("ln_ches_score", kind="stable")["pair_id"].tolist()
    drawn = np.random.default_rng([seed, 6]).permutation(sorted(pairs["pair_id"]))[:kept]
    helpful = pairs.dropna(subset=["probe_influence"]).nlargest(kept, "probe_influence")["pair_id"]
    kinds = {
        kind: pairs.loc[pairs["kind"] == kind, "pair_id"].tolist()
        for kind in ("mixed", "two_refusals", "two_compliances")
    }
    found = {"filtered": low[:kept], "filtered_more": low[:larger], "drop_top": low[: n - dropped]}
    return found | {"random": drawn.tolist(), "influence": helpful.tolist()} | kinds


def _finished(
    order: Order, settings: Mapping[str, Any], studies: Sequence[Study], trials: Sequence[Trial]
) -> pd.DataFrame:
    """Train and sample; of a given model one run after the other, so that only one run's weights lie on the disk."""
    if order.scale == "toy":
        table = train(order, trials)
        _answers(order, settings, _tasks(order, studies, table))
        return table
    rows = []
    for trial in trials:
        try:
            row = train(order, [trial])
            _answers(order, settings, _tasks(order, studies, row))
        except DataError as error:
            row = pd.DataFrame([trial.labels | {"run": "", "failed": str(error)}])
        rows.append(row)
    return pd.concat(rows, ignore_index=True)


def _steps(run: Path) -> int:
    return int(max(read_run(run).steps["step"]))


# --- answers ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """Answers to sample. run: relative to the order's folder, empty for the start model; model: folder or id;
    greedy: also the most likely answers, for the examples."""

    run: str
    study: Study
    seed: int
    model: str
    greedy: bool = True


def _tasks(order: Order, studies: Sequence[Study], table: pd.DataFrame) -> list[Task]:
    by_name, found = {s.name: s for s in studies}, []
    for row, run in finished(order, table):
        greedy = (row["loss"], row["case"]) == ("dpo", "original")
        found.append(Task(row["run"], by_name[row["study"]], row["seed"], str(run / "model"), greedy))
    return found


def _answers(order: Order, settings: Mapping[str, Any], tasks: Sequence[Task]) -> None:
    """Sample what is not sampled yet. Of a given model a run's weights are removed then."""
    how = _how(settings) | {"chat": is_chat(order, tasks[0].study.model)} if tasks else {}
    todo = [(t, str(_file(order, settings, t)), how) for t in tasks if not _file(order, settings, t).exists()]
    for task, *_ in todo:
        if task.run and not Path(task.model).exists():
            raise DataError(
                f"{order.out / task.run}: its weights were removed. Remove the folder, then it is trained anew."
            )
    measure(order, _sample, todo, "answers")
    for task, *_ in todo:
        if task.run and order.scale != "toy":
            shutil.rmtree(task.model)


def _sample(task: Task, file: str, how: Mapping[str, Any]) -> None:
    """Write one row an answer: id, set, prompt, greedy, answer."""
    prompts = _drawn(read_rows(task.study.folder / "prompts.jsonl"), how["most"])
    model, tokenizer = load_to_device(task.model, dtype=how["dtype"]), load_tokenizer(task.model)
    told = [{name: p[name] for name in ("id", "set", "prompt")} for p in prompts]
    rows = []
    for greedy in (False, True)[: 1 + task.greedy]:
        asked = [p for p in told if not greedy or p["set"] != "safe"]
        texts = [as_prompt(p["prompt"], tokenizer) if how["chat"] else p["prompt"] for p in asked]
        heat = 0.0 if greedy else how["temperature"]
        said = answers(model, tokenizer, texts, temperature=heat, limit=how["limit"], seed=task.seed)
        rows += [p | {"greedy": greedy, "answer": text} for p, text in zip(asked, said, strict=True)]
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    write_frame(Path(file), pd.DataFrame(rows))


def _drawn(prompts: list[dict[str, Any]], most: int | None) -> list[dict[str, Any]]:
    """The first `most` prompts of each set; all for None. They stand in random order."""
    return [row for name in ("train", "test", "safe") for row in [p for p in prompts if p["set"] == name][:most]]


def _judged(order: Order, settings: Mapping[str, Any], tasks: Sequence[Task]) -> pd.DataFrame:
    """All answers with their score; a file that is judged already is not judged again."""
    judge: Judge | None = None
    frames = []
    for task in tasks:
        file = _file(order, settings, task)
        scored = file.with_name(f"{file.stem}-{_short(settings['judge of answers'])}.judged")
        if not scored.exists():
            judge = judge or _judge(order, settings["judge of answers"])
            answers = read_frame(file)
            write_frame(scored, answers.assign(score=judge(answers["prompt"].tolist(), answers["answer"].tolist())))
        frames.append(read_frame(scored).assign(run=task.run, study=task.study.name, seed=task.seed))
    return pd.concat(frames, ignore_index=True)


def _judge(order: Order, name: str) -> Judge:
    room = refusal if order.scale == "toy" else chat
    return first_words(room.openers("soft", "firm")) if name == "first word" else load_judge(name)


def rates(judged: pd.DataFrame) -> pd.DataFrame:
    """One row a run, study and set: n sampled answers, how many were judged, mean score (share that complied)."""
    sampled = judged.loc[~judged["greedy"]]
    grouped = sampled.groupby(["run", "study", "set"], as_index=False)
    return grouped.agg(n=("score", "size"), judged=("score", "count"), complied=("score", "mean"))


def examples(judged: pd.DataFrame) -> pd.DataFrame:
    """Most likely answers of the unsafe prompts, one row a prompt and run: before, after and their scores."""
    shown = judged.loc[judged["greedy"]]
    start = shown.loc[shown["run"] == "", ["study", "id", "answer", "score"]]
    after = shown.loc[shown["run"] != ""].rename(columns={"answer": "after", "score": "after_score"})
    before = start.rename(columns={"answer": "before", "score": "before_score"})
    return after.merge(before, on=["study", "id"]).drop(columns="greedy")


def _file(order: Order, settings: Mapping[str, Any], task: Task) -> Path:
    """Where a task's answers lie; named by all they depend on."""
    name = Path(task.run).name if task.run else f"{task.study.name}-start"
    return order.out / "answers" / f"{name}-{_short([_how(settings), task.seed])}.parquet"


def _how(settings: Mapping[str, Any]) -> dict[str, Any]:
    named = {"temperature": "temperature of answers", "limit": "most new tokens", "most": "answers sampled a set"}
    return {key: settings[name] for key, name in named.items()} | {"dtype": settings["dtype"]}


def _short(told: Any) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:10]
