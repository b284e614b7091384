"""Do pairs whose two answers are almost equally likely to the reference displace most? And does leaving them out help?

ComPO (arXiv:2505.05465) says that likelihood displacement comes from pairs of small absolute reference margin, trains
DPO on the others and treats the small ones by a zeroth-order method of its own, which is not built here. Measured:
the change of the chosen log-prob by |log ref(chosen) - log ref(rejected)|, and DPO on the half of the pairs with the
largest margins beside DPO on a random half. (Its abstract speaks of the absolute margin; its code splits by the
signed one.)
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diagnostics.manifest import file_hash
from diagnostics.runlog import read_table
from trainers.papers import Order, Setting, Trial, keys, subset, train, worlds
from trainers.studies.demo_runs import FACTS, REFUSALS, builders, world_paths
from trainers.worlds import own_data

SEEDS = 5
TUNED = range(16)
DATA = "preference pairs (any file that `chesboard audit` reads): a third world, with a model made from their text"
_OWN = "not read; a common choice"
SETTINGS = (
    Setting("objective", "dpo", "abstract", "dpo"),
    Setting("beta", 0.1, _OWN, 0.1),
    Setting("learning_rate", 5e-7, _OWN, 3e-4, "models of under a million weights do not move at 5e-7"),
    Setting("optim", "adamw_torch", _OWN, "adamw_torch"),
    Setting("per_device_train_batch_size", 16, _OWN, 16),
    Setting("num_train_epochs", 1.0, _OWN, None, "3 on facts, 1 on refusals, as in their recipes"),
    Setting("model", "mistralai/Mistral-7B-Instruct-v0.2", "not read", None, "built from scratch, one a seed"),
    Setting("data", "HuggingFaceH4/ultrafeedback_binarized", "not read", None, "synthetic pairs of two worlds"),
    Setting("split", "train_prefs", "not read", None, "files have none"),
    Setting("probe_pairs", 1024, "ours", None, "every pair of the small worlds"),
    Setting("SFT steps", None, "starts from an instruct model", None, "700 on facts, 400 on refusals"),
    Setting("share kept", 0.5, "ours", 0.5),
    Setting("pairs drawn from given data", None, "ours", 400, "one model is made from their text at each seed"),
)


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """runs: world, seed and case (all pairs, the half of largest margin, a random half)."""
    bases = _toy(order, settings) if order.scale == "toy" else _paper(order, settings)
    everything = train(order, [Trial(labels | {"case": "all"}, base) for labels, base in bases])
    trials = []
    for (labels, base), row in zip(bases, everything.to_dict("records")):
        if not row["failed"]:
            trials += _halves(order, labels, base, row["run"], settings["share kept"])
    return {"runs": pd.concat([everything, train(order, trials)], ignore_index=True)}


def _toy(order: Order, settings: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Labels and keys of the runs on all pairs: two worlds, and the given data, at each seed."""
    given = _given(order, settings) if order.data else []  # first, so that data that cannot be read are found at once
    found = []
    for world, standard in (("facts", FACTS), ("refusal", REFUSALS)):
        places = worlds(order, builders(world, order.numbers, settings["SFT steps"]))
        for seed, place in zip(order.numbers, places.values()):
            base = standard | keys(settings) | world_paths(world, place) | {"seed": seed}
            found.append(({"world": world, "seed": seed}, base))
    return found + given


def _given(order: Order, settings: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """The same for pairs drawn from the given data."""
    data, size = str(order.data), settings["pairs drawn from given data"]
    # worlds are found again by name: another file of this name, or another draft of it, is another world
    name = f"{Path(data).name.split('.')[0]}-{(file_hash(data) or 'hub')[:12]}-{size}"
    places = worlds(order, {f"{name}-seed{s}": (own_data.build_drawn, (data, s, size)) for s in order.numbers})
    labels = [{"world": "given", "seed": seed} for seed in order.numbers]
    own = [{"model": str(p / "model"), "data": str(p / "pairs.jsonl"), "probe_pairs": size} for p in places.values()]
    return [(of, REFUSALS | keys(settings) | paths | {"seed": of["seed"]}) for of, paths in zip(labels, own)]


def _paper(order: Order, settings: Mapping[str, Any]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """One run a seed on the given model and data."""
    given = {k: v for k, v in (("model", order.model), ("data", order.data)) if v}
    base = keys(settings) | given | {"tokens": "none", "heldout_pairs": 0}
    return [({"world": "given", "seed": seed}, base | {"seed": seed}) for seed in order.numbers]


def _halves(order: Order, labels: dict[str, Any], base: dict[str, Any], run: str, share: float) -> list[Trial]:
    """The same run on the pairs of largest margin and on as many random ones, probed on the same pairs as the first."""
    margins, split = _margins(order.out / run), base.get("split")
    count = max(1, round(share * len(margins)))
    drawn = np.random.default_rng([labels["seed"], 11]).permutation(sorted(map(str, margins.index)))[:count]
    probe = subset(order, f"{Path(run).name}-probed", base["data"], list(map(str, margins.index)), split)
    fixed = {"probe_data": probe, "probe_pairs": len(margins), "split": None}
    trials = []
    for case, ids in {"large": list(map(str, margins.nlargest(count).index)), "random": drawn.tolist()}.items():
        data = subset(order, f"{Path(run).name}-{case}-{share:g}", base["data"], ids, split)
        trials.append(Trial(labels | {"case": case}, base | fixed | {"data": data}))
    return trials


def _margins(run: Path) -> pd.Series:
    """|log ref(chosen) - log ref(rejected)| of every probed pair, nats, by pair_id."""
    pairs = read_table(run, "pairs")
    start = pairs.loc[(pairs["split"] == "probe") & (pairs["step"] == 0)].set_index("pair_id")
    return (start["ref_chosen_logps"] - start["ref_rejected_logps"]).abs()
