"""What paper analyses are made of: an order, its runs and worlds, and the tables that they give. See trainers/papers/.

Worlds, data and runs lie beside the analyses in the order's folder and are found again by name, by whichever analysis.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from diagnostics.errors import DataError, UserError
from diagnostics.files import replace_text
from diagnostics.pairs import PreferencePair, Text, read_pairs, write_rows
from diagnostics.runlog import read_table
from diagnostics.sequences import Example
from diagnostics.tokenized import Truncation, tokenize_pairs
from trainers.config import make_config
from trainers.models import load_tokenizer
from trainers.studies.compare import build_whole, each, is_finished, train_all
from trainers.studies.demo_runs import FACTS, PLAIN_ADAM, REFUSALS, builders, world_paths
from trainers.worlds import chat_worlds

Scale = Literal["toy", "small", "paper"]
Form = Literal["chat", "raw"]
Build = Callable[..., Any]
SAVE_AFTER = 20  # updates between two checkpoints, at least: one of a large model takes as long as a few updates
# the standard runs of a given model: measured at both ends alone, for its passes take seconds
SMALL: dict[str, Any] = {
    "probe_every": 10**6, "response_types": 0, "learning_rate": 5e-5, "per_device_train_batch_size": 4,
    "num_train_epochs": 1.0,
}  # fmt: skip
# the phase that teaches a given model a world
TEACHING: dict[str, Any] = PLAIN_ADAM | {
    "objective": "sft", "reference": "none", "log_kl": False, "probe_pairs": 4, "heldout_pairs": 0, "response_types": 0,
    "probe_every": 10**6, "tokens": "none", "per_device_train_batch_size": 4, "lr_scheduler_type": "linear",
    "warmup_steps": 4, "max_grad_norm": 1.0, "save_model": True,
}  # fmt: skip


@dataclass(frozen=True)
class Order:
    """What was asked for. out: the folder of all analyses, their runs and worlds; changes: settings by name that
    differ from those of the scale (a seconds-long test, say); pool: processes to train in, None for this one; first:
    the first seed; form: the rows' form for a given model, chat or raw, None for its own (see `is_chat`)."""

    scale: Scale
    out: Path
    seeds: int | None = None
    model: str | None = None
    data: str | None = None
    pool: ProcessPoolExecutor | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    first: int = 0
    form: Form | None = None

    @property
    def own_worlds(self) -> bool:
        """Whether the pairs are the two small worlds': at toy scale, and at small scale without data."""
        return self.scale == "toy" or (self.scale == "small" and not self.data)

    @property
    def numbers(self) -> range:
        """The seeds."""
        return range(self.first, self.first + (self.seeds or 0))

    @property
    def given(self) -> dict[str, str]:
        """The given model and data, as keys of `chesboard train`."""
        return {key: value for key, value in (("model", self.model), ("data", self.data)) if value}

    def folder(self, name: str) -> Path:
        """Where an analysis of this scale lies."""
        return self.out / (name if self.scale == "toy" else f"{name}-{self.scale}")


@dataclass(frozen=True)
class Trial:
    """One run that an analysis needs. labels: what it is called there (seed, case ...): columns of the table of runs;
    keys: flat keys of `chesboard train` without output_dir."""

    labels: dict[str, Any]
    keys: dict[str, Any]

    def but(self, labels: Mapping[str, Any], **changed: Any) -> "Trial":
        """Another run: with these labels too, and these keys in place of its own."""
        return Trial(self.labels | dict(labels), self.keys | changed)

    def by(self, labels: Mapping[str, Any], objective: str, **changed: Any) -> "Trial":
        """The same by another objective; beta is the objective's own, so it is not taken over."""
        kept = {key: value for key, value in self.keys.items() if key != "beta"}
        return Trial(self.labels | dict(labels), kept | {"objective": objective} | changed)


def keys(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings that are keys of `chesboard train`: the names without a blank, where a value is set."""
    known = {name: value for name, value in settings.items() if name.isidentifier() and value is not None}
    return {name: value for name, value in known.items() if name != "entries"}  # objectives, as for `chesboard compare`


def worlds(order: Order, wanted: Mapping[str, tuple[Build, tuple]]) -> dict[str, Path]:
    """Build the small models and data sets that are not there yet; their folders by name.

    wanted: name -> (function, arguments); the function gets a new folder first and stands at a module's top. The name
    must say everything that the world depends on, since analyses share worlds by it.
    """
    found = {name: order.out / "worlds" / name for name in wanted}
    todo = [(found[name], *how) for name, how in wanted.items() if not found[name].exists()]
    each(order.pool, build_whole, todo, "worlds")
    return found


def train(order: Order, trials: Sequence[Trial]) -> pd.DataFrame:
    """Train what is not trained yet; one row a trial: its labels, `run` (folder, relative to the order's `out`), and
    `failed` (why it could not be finished, else empty). Trials with the same keys are one run."""
    if order.scale != "toy":
        trials = [trial.but({}, **checkpoints(trial.keys)) for trial in trials]
    folders = [_run_folder(order, trial.keys) for trial in trials]
    runs = {f: make_config(t.keys | {"output_dir": str(f)}) for f, t in zip(folders, trials)}
    said = train_all(order.pool, list(runs.values()), checkpoints=False)
    missing = {f for f, run in runs.items() if not is_finished(run)}
    if runs and len(missing) == len(runs):
        raise DataError(f"no run of the analysis could be finished. The first one said: {said[0]}")
    rows = [
        t.labels | {"run": f.relative_to(order.out).as_posix(), "failed": "could not be finished" * (f in missing)}
        for f, t in zip(folders, trials)
    ]
    return pd.DataFrame(rows)


def world_bases(order: Order, world: str, settings: Mapping[str, Any], **own: Any) -> list[Trial]:
    """The standard run of a small world ("facts", "refusal") at each seed, with the settings and with keys of its own:
    at toy scale of the tiny model made for it, at small scale of the given model, taught the world first. Labels: world
    and seed. Where no key differs it is the run that other analyses train too."""
    standard = {"facts": FACTS, "refusal": REFUSALS}[world] | keys(settings)
    if order.scale == "toy":
        places = worlds(order, builders(world, order.numbers, settings["SFT steps"])).values()
        paths = [world_paths(world, place) for place in places]
    else:
        sizes = {"probe_pairs": settings["pairs of a world"]}
        sizes |= {"heldout_pairs": chat_worlds.HELD_OUT if world == "facts" else 0}
        standard |= SMALL | sizes | keys(settings)
        paths = small_paths(order, world, settings)
    return [
        Trial({"world": world, "seed": seed}, standard | place | {"seed": seed} | own)
        for seed, place in zip(order.numbers, paths)
    ]


def small_paths(order: Order, world: str, settings: Mapping[str, Any]) -> list[dict[str, str]]:
    """At small scale the keys model, data, and heldout_data or track of each seed: the world's rows in the model's
    form, and the given model after a phase that taught it the world; one model for all seeds."""
    chat, count = is_chat(order, str(order.model)), settings["pairs of a world"]
    name = f"{world}-{'chat' if chat else 'raw'}{count}"
    wanted = {f"{name}-seed{seed}": (chat_worlds.build, (world, seed, count, chat)) for seed in order.numbers}
    model = taught(order, world, settings)
    return [{"model": model} | chat_worlds.paths(world, place) for place in worlds(order, wanted).values()]


def taught(order: Order, world: str, settings: Mapping[str, Any]) -> str:
    """The folder of the given model after a short supervised phase on a world's rows: one run, of the first seed."""
    chat, count, seed = is_chat(order, str(order.model)), settings[f"rows that teach {world}"], order.numbers[0]
    rows = chat_worlds.supervised(world, count, seed, chat)
    data = write_data(order, f"teach-{world}-{'chat' if chat else 'raw'}{count}-seed{seed}", rows)
    own = {"model": str(order.model), "data": data, "learning_rate": settings["rate of teaching"], "seed": seed}
    (row,) = train(order, [Trial({}, TEACHING | own)]).to_dict("records")
    return str(order.out / row["run"] / "model")


def given_bases(order: Order, settings: Mapping[str, Any], **own: Any) -> list[Trial]:
    """The run of the given model on the given data at each seed, at small and paper scale: the settings, and keys of
    its own. Text prompts become a user's turn where the model chats (see `in_form`). Labels: world (given) and seed."""
    base = keys(settings) | order.given | {"tokens": "none"} | own
    if base.get("data"):
        base |= in_form(order, base["data"], base.get("split"), str(base["model"]))
    return [Trial({"world": "given", "seed": seed}, base | {"seed": seed}) for seed in order.numbers]


def is_chat(order: Order, model: str) -> bool:
    """Whether rows are chats for this model: where asked for, else where its tokenizer has a chat template; never at
    toy scale. Raises UserError where a template is asked for that it has not."""
    if order.scale == "toy" or order.form == "raw":
        return False
    has = bool(load_tokenizer(model).chat_template)
    if order.form == "chat" and not has:
        raise UserError(f"{model}: its tokenizer has no chat template; leave out --prompt-form chat.")
    return has


def in_form(order: Order, data: str, split: str | None, model: str) -> dict[str, Any]:
    """The keys data and split of the same pairs in the order's form: as they are where every row has it, else a copy
    in out/data/ whose text prompts are a user's turn and answers an assistant's, or, raw, whose messages are texts."""
    chat, table = is_chat(order, model), read_pairs(data, split=split)
    if all(isinstance(pair.prompt, str) is not chat for pair in table.pairs):
        return {"data": data, "split": split}
    rows = [pair.columns | {"pair_id": pair.pair_id} | _formed(pair, chat) for pair in table.pairs]
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()[:12]
    name = f"{Path(data).name.split('.')[0]}-{'chat' if chat else 'raw'}-{digest}"
    return {"data": write_data(order, name, rows), "split": None}


def _formed(pair: PreferencePair, chat: bool) -> dict[str, Any]:
    """Prompt and answers of a pair as messages, or as text."""
    sides = {"prompt": pair.prompt, "chosen": pair.chosen, "rejected": pair.rejected}
    if not chat:
        return {name: plain(text) for name, text in sides.items()}
    roles = dict.fromkeys(sides, "assistant") | {"prompt": "user"}
    said = {n: [{"role": roles[n], "content": t}] if isinstance(t, str) else t for n, t in sides.items()}
    return said | ({"prompt": pair.chat_prompt} if pair.chat_prompt else {})


def plain(text: Text) -> str:
    """A text itself; of chat messages, their contents."""
    return text if isinstance(text, str) else "\n\n".join(str(message["content"]) for message in text)


def like(text: Text, change: Callable[[str], str]) -> Text:
    """A text with a change; of chat messages, in each of their contents."""
    if isinstance(text, str):
        return change(text)
    return [message | {"content": change(str(message["content"]))} for message in text]


def checkpoints(keys: Mapping[str, Any]) -> dict[str, Any]:
    """The keys by which a run of a given model can go on after a stop: a few checkpoints, of which the last is kept
    until it is finished; none in a run so short that it may as well start over."""
    count = updates(keys)
    if count <= SAVE_AFTER:
        return {"save_strategy": "no"}
    return {"save_strategy": "steps", "save_steps": max(SAVE_AFTER, -(-count // 4)), "save_total_limit": 1}


def updates(keys: Mapping[str, Any]) -> int:
    """How many updates a run makes, at most: rows that are too long are not known yet."""
    if keys.get("max_steps", -1) > 0:
        return int(keys["max_steps"])
    batch = keys.get("per_device_train_batch_size", 8) * keys.get("gradient_accumulation_steps", 1)
    return math.ceil(-(-_count(str(keys["data"]), keys.get("split")) // batch) * keys.get("num_train_epochs", 1.0))


@cache
def _count(data: str, split: str | None) -> int:
    return len(read_pairs(data, split=split).pairs)


def train_then(order: Order, first: Sequence[Trial], then: Callable[[Trial, Path], Sequence[Trial]]) -> pd.DataFrame:
    """Train runs, and then what each that was finished leads to: `then` is given the trial and its run's folder. One
    table of both."""
    done = train(order, first)
    after = [
        trial
        for one, row in zip(first, done.to_dict("records"))
        if not row["failed"]
        for trial in then(one, order.out / row["run"])
    ]
    return pd.concat([done, train(order, after)], ignore_index=True) if after else done


def finished(order: Order, runs: pd.DataFrame) -> list[tuple[dict[str, Any], Path]]:
    """The row and the folder of every finished run in a table of runs."""
    rows = runs.loc[runs["failed"] == ""].to_dict("records")
    return [({str(name): value for name, value in row.items()}, order.out / row["run"]) for row in rows]


def start_of(run: Path) -> pd.DataFrame:
    """A run's probed pairs before its first step, by pair_id."""
    pairs = read_table(run, "pairs")
    return pairs.loc[(pairs["split"] == "probe") & (pairs["step"] == 0)].set_index("pair_id")


def examples(
    pairs: Sequence[PreferencePair],
    tokenizer: Any,
    max_length: int | None = None,
    *,
    truncation: Truncation = "drop",
    append_eos: bool = True,
) -> list[Example]:
    """The pairs as token ids; those that cannot be, or are too long, are left out."""
    done = tokenize_pairs(pairs, tokenizer, max_length=max_length, truncation=truncation, append_eos=append_eos)
    return [pair for pair in done if isinstance(pair, Example)]


def subset(order: Order, name: str, data: str, pair_ids: Sequence[str], split: str | None = None) -> str:
    """Write some of a data set's pairs, in its own order and format, to out/data/; the path for the key `data`.

    name: says what the subset is; a run is found again by it, so it must name everything that it depends on.
    """
    table = read_pairs(data, split=split)
    rows = {p.pair_id: p.source_row for p in table.pairs}
    path = order.out / "data" / f"{name}.{table.raw.kind if table.raw.kind != 'hub' else 'jsonl'}"
    write_rows(table, sorted(rows[i] for i in pair_ids), path)
    return str(path)


def write_data(order: Order, name: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """Write rows to out/data/<name>.jsonl; the path for the key `data`. The name says what they depend on."""
    path = order.out / "data" / f"{name}.jsonl"
    write_lines(path, rows)
    return str(path)


def write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows as JSON lines."""
    replace_text(path, "".join(json.dumps(row) + "\n" for row in rows))


def measure(order: Order, call: Callable[..., Any], tasks: Sequence[tuple], name: str = "measurements") -> list[Any]:
    """Every task's result, in order, on as many processes as the order has; `call` stands at a module's top."""
    return each(order.pool, call, tasks, name)


def measured(
    order: Order,
    call: Callable[..., Any],
    tasks: Sequence[tuple],
    labels: Sequence[Mapping[str, Any]],
    name: str = "measurements",
) -> pd.DataFrame:
    """One table of the rows that `call` gives for every task, each with its task's labels."""
    found = zip(measure(order, call, tasks, name), labels, strict=True)
    return pd.concat([pd.DataFrame(rows).assign(**of) for rows, of in found], ignore_index=True)


def _run_folder(order: Order, given: Mapping[str, Any]) -> Path:
    """Named by objective, seed and a hash of everything else, with paths relative to the order's folder."""
    root = str(order.out)
    told = {k: str(v).replace(root, "") if isinstance(v, str | Path) else v for k, v in given.items()}
    short = hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()[:12]
    objective = re.sub(r"[^a-z0-9_]+", "-", str(given.get("objective", "dpo")))
    return order.out / "runs" / f"{objective}-seed{given.get('seed', 0)}-{short}"
