"""Do pairs whose two answers are almost equally likely to the reference displace most? And does leaving them out help?

ComPO (arXiv:2505.05465) says that likelihood displacement comes from pairs of small absolute reference margin, trains
DPO on the others and treats the small ones by a zeroth-order method of its own, which is not built here. Measured:
the change of the chosen log-prob by |log ref(chosen) - log ref(rejected)|, and DPO on the half of the pairs with the
largest margins beside DPO on a random half. (Its abstract speaks of the absolute margin; its code splits by the
signed one.)
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diagnostics.manifest import file_hash
from diagnostics.tables import Field
from trainers.papers import COMMON, MINUTES, RUNS, SMALL_WORLDS, WORLD, Setting
from trainers.studies.demo_runs import REFUSALS
from trainers.studies.paper_cost import Work, world_work
from trainers.studies.paper_runs import (
    Order,
    Trial,
    given_bases,
    keys,
    start_of,
    subset,
    train_then,
    world_bases,
    worlds,
)
from trainers.worlds import own_data

SEEDS = 5
TUNED = range(16)
SCALES = ("toy", "small", "paper")
DATA = "preference pairs (any file that `chesboard audit` reads): a third world, with a model made from their text"
_OWN = "not read; a common choice"
SETTINGS = (
    *COMMON,
    Setting("num_train_epochs", 1.0, _OWN, None, "3 on facts, 1 on refusals, as in their recipes"),
    Setting("model", "mistralai/Mistral-7B-Instruct-v0.2", "not read", None, "built from scratch, one a seed"),
    Setting("data", "HuggingFaceH4/ultrafeedback_binarized", "not read", None, "synthetic pairs of two worlds"),
    Setting("split", "train_prefs", "not read", None, "files have none"),
    Setting("probe_pairs", 1024, "ours", None, "every pair of the small worlds", 32, MINUTES),
    Setting("SFT steps", None, "starts from an instruct model", None, "700 on facts, 400 on refusals"),
    Setting("share kept", 0.5, "ours", 0.5),
    Setting("pairs drawn from given data", None, "ours", 400, "one model is made from their text at each seed"),
    *SMALL_WORLDS,
)
TABLES = {
    "runs": RUNS | {"world": WORLD, "case": Field(str, "trained on: all, large (margins) or as many random pairs")},
}


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """All pairs, the half of largest margin, and a random half."""
    first = _toy(order, settings) if order.own_worlds else given_bases(order, settings, heldout_pairs=0)
    halves = partial(_halves, order, settings["share kept"])
    return {"runs": train_then(order, [base.but({"case": "all"}) for base in first], halves)}


def work(order: Order, settings: Mapping[str, Any]) -> list[Work]:
    """Three runs a seed in each world."""
    return world_work(order, settings, given=3, facts=3, refusal=3)


def _toy(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """The runs on all pairs: two worlds, and the given data, at each seed."""
    given = _given(order, settings) if order.data else []  # first, so that data that cannot be read are found at once
    return world_bases(order, "facts", settings) + world_bases(order, "refusal", settings) + given


def _given(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """The same for pairs drawn from the given data."""
    data, size = str(order.data), settings["pairs drawn from given data"]
    # worlds are found again by name: another file of this name, or another draft of it, is another world
    name = f"{Path(data).name.split('.')[0]}-{(file_hash(data) or 'hub')[:12]}-{size}"
    places = worlds(order, {f"{name}-seed{s}": (own_data.build_drawn, (data, s, size)) for s in order.numbers})
    found = []
    for seed, place in zip(order.numbers, places.values()):
        own = {"model": str(place / "model"), "data": str(place / "pairs.jsonl"), "probe_pairs": size, "seed": seed}
        found.append(Trial({"world": "given", "seed": seed}, REFUSALS | keys(settings) | own))
    return found


def _halves(order: Order, share: float, whole: Trial, run: Path) -> list[Trial]:
    """The same run on the pairs of largest margin and on as many random ones, probed on the same pairs as the first."""
    margins, split, data = _margins(run), whole.keys.get("split"), whole.keys["data"]
    count, every = max(1, round(share * len(margins))), [str(i) for i in margins.index]
    drawn = np.random.default_rng([whole.labels["seed"], 11]).permutation(sorted(every))[:count]
    probed = subset(order, f"{run.name}-probed", data, every, split)
    trials = []
    for case, ids in {"large": [str(i) for i in margins.nlargest(count).index], "random": drawn.tolist()}.items():
        half = subset(order, f"{run.name}-{case}-{share:g}", data, ids, split)
        own = {"data": half, "probe_data": probed, "probe_pairs": len(margins), "split": None}
        trials.append(whole.but({"case": case}, **own))
    return trials


def _margins(run: Path) -> pd.Series:
    """|log ref(chosen) - log ref(rejected)| of every probed pair, nats, by pair_id."""
    start = start_of(run)
    return pd.Series((start["ref_chosen_logps"] - start["ref_rejected_logps"]).abs())
