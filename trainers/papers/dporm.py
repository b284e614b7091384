"""Does the implicit reward of a DPO policy generalise worse than an explicit reward model? arXiv:2409.03650.

Both are trained on the same pairs from the same start model; their accuracy is taken on held-out pairs of the same
kind and on five shifted sets. Explicit: a linear head with all weights fine-tuned, and a linear or small non-linear
head on the start model's frozen states. The toy's shifts are in a synthetic world of facts: a question never asked, an
answer template, closing words and entities that no training pair holds, and longer answers.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from diagnostics.errors import DataError, UserError
from diagnostics.pairs import PreferencePair, read_pairs
from diagnostics.runlog import read_json, read_table
from diagnostics.tables import Field
from diagnostics.token_likelihood import TokenLikelihood
from trainers.explicit import RewardModel, fine_tune, linear_head, mlp_head, rewards, states
from trainers.models import load_to_device, load_tokenizer, model_limit
from trainers.papers import COMMON, RUNS, SEED, Setting
from trainers.studies.paper_runs import (
    Order,
    Trial,
    examples,
    finished,
    given_bases,
    measured,
    train,
    world_bases,
    write_data,
)
from trainers.worlds import facts

SEEDS = 5
TUNED = range(16)
DATA = ""
_OWN = "not read; a common choice"
SETTINGS = (
    *COMMON,
    Setting("num_train_epochs", 1.0, _OWN, 3.0, "48 updates, as all runs on this world"),
    Setting("model", None, "not read; give --model", None),
    Setting("data", None, "not read; give --data: pairs whose column `set` says train, test or a shifted set", None),
    Setting("SFT steps", None, "starts from a given model", 700, "the world's own start model"),
    Setting("pairs of each held-out set", None, "all that the data hold", 160, "quick"),
    Setting("fewer pairs", 0.25, "ours: the share that the second size has, in as many updates", 0.25),
    Setting("explicit learning rate", 5e-6, _OWN, 1e-3, "at DPO's rate and epochs it stays .25 behind in distribution"),
    Setting("explicit epochs", 1.0, _OWN, 20.0, "chosen by accuracy in distribution, on one seed"),
    Setting("linear head's penalty", 0.01, "ours", 0.01),
)
TRAIN, TEST = "train", "test"
TRAINED = {"entities": 14, "answers": 2, "fillers": 3}  # the first so many; the other ones are for the shifted sets
_SIZE = Field(str, "of the training pairs: all or fewer")
TABLES = {
    "runs": RUNS | {"size": _SIZE, "repeats": Field(float, "of the epochs, so that both sizes have as many updates")},
    "accuracy": {
        "seed": SEED,
        "size": _SIZE,
        "model": Field(str, "implicit, start, policy (margins of log-probs), fine-tuned, linear or mlp"),
        "set": Field(str, "the held-out set: test, or a shifted one"),
        "n": Field(int, "pairs of the set"),
        "accuracy": Field(float, "share of them whose chosen answer has the higher reward"),
    },
}


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """DPO on all pairs and on fewer, and the accuracy of every reward on every held-out set."""
    bases = _toy(order, settings) if order.scale == "toy" else _paper(order, settings)
    runs = train(order, [trial for base in bases for trial in _trials(order, base, settings)])
    done = finished(order, runs)
    heads = {k: settings[k] for k in ("explicit learning rate", "explicit epochs", "linear head's penalty")}
    tasks = [(run, heads, row["repeats"]) for row, run in done]
    labels = [{name: row[name] for name in ("seed", "size")} for row, _ in done]
    return {"runs": runs, "accuracy": measured(order, accuracy, tasks, labels)}


def fact_sets(seed: int, train_pairs: int, held_out: int) -> list[dict[str, Any]]:
    """The toy's pairs, each with its `set`: train, test, and the shifted question, answer, filler, entity, longer."""
    rng = np.random.default_rng([seed, 31])
    known = facts.make_facts(seed)
    names = list(dict.fromkeys(f.entity for f in known))[: TRAINED["entities"]]
    inside = [f for f in known if f.entity in names]
    outside = [f for f in known if f.entity not in names]
    answers, fillers = list(range(len(facts.ANSWERS))), list(range(len(facts.FILLERS)))
    usual = answers[: TRAINED["answers"]], fillers[: TRAINED["fillers"]]
    seen = list(product(inside, facts.QUESTIONS, usual[0]))
    order = [seen[i] for i in rng.permutation(len(seen))]
    cells = {
        TRAIN: (order[:train_pairs], usual[1]),
        TEST: (order[train_pairs:], usual[1]),
        "question": (list(product(inside, [facts.HELD_OUT_QUESTION], usual[0])), usual[1]),
        "answer": (list(product(inside, facts.QUESTIONS, answers[TRAINED["answers"] :])), usual[1]),
        "filler": (order[train_pairs:], fillers[TRAINED["fillers"] :]),
        "entity": (list(product(outside, facts.QUESTIONS, usual[0])), usual[1]),
        "longer": (order[train_pairs:], usual[1]),
    }
    rows = []
    for name, (every, closing) in cells.items():
        taken = rng.permutation(len(every))[: train_pairs if name == TRAIN else held_out]
        rows += [_pair(rng, name, k, every[i], closing) for k, i in enumerate(taken)]
    return rows


def _pair(
    rng: np.random.Generator, name: str, k: int, cell: tuple[facts.Fact, str, int], fillers: Sequence[int]
) -> dict[str, Any]:
    """One pair as the world makes them; a longer one has further closing words, the same on both sides."""
    fact, question, template = cell
    wrong = str(rng.choice([v for v in facts.VALUES[fact.attribute] if v != fact.value]))
    filler, again, more = (int(rng.choice(fillers)) for _ in range(3))
    other = again if rng.random() < facts.OTHER_FILLER else filler
    sides = [fact.answer(template, fact.value, filler), fact.answer(template, wrong, other)]
    if name == "longer":
        sides = [f"{side.removesuffix(' .')} {facts.FILLERS[more]} ." for side in sides]
    return dict(pair_id=f"{name}/{k:03d}", prompt=fact.ask(question), chosen=sides[0], rejected=sides[1], set=name)


def _toy(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """Each seed's run, with the data still whole."""
    found, count = [], settings["pairs of each held-out set"]
    for base in world_bases(order, "facts", settings, probe_pairs=0, response_types=0):
        seed = base.labels["seed"]
        data = write_data(order, f"dporm-{count}-seed{seed}", fact_sets(seed, facts.PAIRS, count))
        found.append(base.but({}, data=data))
    return found


def _paper(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """The same on the given model and data."""
    if len(order.given) < 2:
        raise UserError("paper dporm: at paper scale give --model, and --data: a file of pairs with a column `set`.")
    return given_bases(order, settings, save_model=False, probe_pairs=0, response_types=0)


def _trials(order: Order, base: Trial, settings: Mapping[str, Any]) -> list[Trial]:
    """DPO on all training pairs and on fewer, with the other sets held out; as many updates for both."""
    data, seed, share = base.keys["data"], base.labels["seed"], settings["fewer pairs"]
    sets, name = _sets(data), f"{Path(data).name.split('.')[0]}-seed{seed}"
    drawn = np.random.default_rng([seed, 32]).permutation(len(sets[TRAIN]))
    some = [sets[TRAIN][i] for i in sorted(drawn[: max(1, round(share * len(drawn)))])]
    held = [row for key, rows in sets.items() if key != TRAIN for row in rows]
    own = {"heldout_data": write_data(order, f"{name}-held", held), "heldout_pairs": len(held), "probe_every": 10**6}
    found = []
    for size, rows, more in (("all", sets[TRAIN], 1.0), ("fewer", some, len(drawn) / len(some))):
        own |= {"data": write_data(order, f"{name}-{size}-{share:g}", rows)}
        own |= {"num_train_epochs": base.keys["num_train_epochs"] * more}
        found.append(Trial({"seed": seed, "size": size, "repeats": more}, base.keys | own))
    return found


def _sets(data: str) -> dict[str, list[dict[str, Any]]]:
    """The pairs by their column `set`, which their ids say too."""
    found: dict[str, list[dict[str, Any]]] = {}
    for pair in read_pairs(data).pairs:
        name = str(pair.columns.get("set") or "")
        if not name:
            raise DataError(f"{data}: row {pair.source_row} has no `set`. Say train, test, or a shifted set's name.")
        found.setdefault(name, []).append(_row(pair, name))
    for name in (TRAIN, TEST):
        if name not in found:
            raise DataError(f"{data}: no row's column `set` is {name}.")
    return found


def _row(pair: PreferencePair, name: str) -> dict[str, Any]:
    said = {key: getattr(pair, key) for key in ("prompt", "chosen", "rejected")}
    return said | {"pair_id": f"{name}/{pair.pair_id.removeprefix(name + '/')}"}


def accuracy(run: Path, settings: Mapping[str, Any], repeats: float) -> pd.DataFrame:
    """model, set, n, accuracy of every reward on the run's held-out pairs."""
    return pd.concat([implicit_accuracy(run), explicit_accuracy(run, settings, repeats)], ignore_index=True)


def implicit_accuracy(run: Path) -> pd.DataFrame:
    """model, set, n, accuracy from a run's log: the implicit reward, the start model's and the last one's log-prob."""
    pairs = read_table(run, "pairs")
    held = pairs.loc[(pairs["split"] == "eval") & (pairs["step"] == pairs["step"].max())]
    own = held["chosen_logps"] - held["rejected_logps"]
    start = held["ref_chosen_logps"] - held["ref_rejected_logps"]
    margins = pd.DataFrame({"implicit": own - start, "start": start, "policy": own})
    return accuracies(margins, held["pair_id"].str.removeprefix("heldout/"))


def explicit_accuracy(run: Path, settings: Mapping[str, Any], repeats: float) -> pd.DataFrame:
    """The same of the explicit reward models (fine-tuned, linear, mlp) on the run's pairs; repeats: of the epochs."""
    config = read_json(run / "config.json")
    model, tokenizer = load_to_device(config["model"]), load_tokenizer(config["model"])
    likelihood, limit = TokenLikelihood.of(tokenizer), model_limit(model)
    known, held = (examples(read_pairs(config[key]).pairs, tokenizer, limit) for key in ("data", "heldout_data"))
    frozen = states(model, [*known, *held], likelihood=likelihood)
    inside, outside = (torch.stack([frozen[p.pair_id] for p in part]) for part in (known, held))
    found = {
        "linear": linear_head(inside, penalty=settings["linear head's penalty"])(outside),
        "mlp": mlp_head(inside, seed=config["seed"])(outside),
    }
    whole = RewardModel(model, inside.shape[-1])
    training = dict(learning_rate=settings["explicit learning rate"], seed=config["seed"])
    training |= dict(epochs=settings["explicit epochs"] * repeats, batch_size=config["per_device_train_batch_size"])
    fine_tune(whole, known, likelihood=likelihood, **training)
    found["fine-tuned"] = rewards(whole, held, likelihood=likelihood)
    margins = pd.DataFrame({name: (r[:, 0] - r[:, 1]).double().numpy() for name, r in found.items()})
    return accuracies(margins, pd.Series([p.pair_id for p in held]))


def accuracies(margins: pd.DataFrame, pair_ids: pd.Series) -> pd.DataFrame:
    """Share of margins above 0 by model (a column each) and set, which stands before the slash of the pair_id. n: the
    set's pairs; a margin that was not measured counts neither way."""
    right = margins.gt(0).astype(float).where(margins.notna())
    sets = pair_ids.str.split("/").str[0].to_numpy()
    rows = [
        dict(
            model=name,
            set=at,
            n=int((sets == at).sum()),
            accuracy=float(pd.Series(right[name].to_numpy()[sets == at]).mean()),
        )
        for name, at in product(margins, dict.fromkeys(sets))
    ]
    return pd.DataFrame(rows)
