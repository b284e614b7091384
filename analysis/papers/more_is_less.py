"""More is Less: how separable the answers of each source are, beside CHES, and what DPO on them does."""

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from analysis.papers import Measured, Paper, once, spreads, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CYCLE, DARK, below, panels, styled
from analysis.show.wording import count, number
from analysis.tables import mass, runs
from analysis.tables.intervals import mean

SOURCES = {"self": "self-generated", "strong": "strong model's"}
COLOUR = dict(zip(SOURCES, CYCLE))
FOLDS = 5
TABLE = {
    "mean": "AUC, mean state",
    "last": "AUC, last state",
    "matched": "AUC, equal lengths",
    "shuffled": "AUC, shuffled labels",
    "ches": "CHES",
    "ln_ches": "LN-CHES",
    "change": "change of chosen (nats)",
    "fell": "share that fell",
    "kl": "KL on chosen (nats)",
    "attack": "attack success",
    "comply": "mass of complying openers",
    "safe": "safe prompts: compliance",
}


def measured(paper: Paper) -> dict[str, Measured]:
    """Separability, CHES, displacement and attack success of the two sources; one value a seed."""
    table = sources(paper)
    if set(table["source"]) != set(SOURCES):
        return {}
    by = {name: table.pivot_table(name, "seed", "source", dropna=False) for name in (*TABLE, "start_attack")}
    gap = {name: (of["strong"] - of["self"]).tolist() for name, of in by.items()}
    found = {
        "separable": by["mean"]["strong"].tolist(),
        "gap": gap["mean"],
        "gap_last": gap["last"],
        "gap_matched": gap["matched"],
        "floor": by["shuffled"]["strong"].tolist(),
        "ches": [-v for v in gap["ches"]],
        "ln_ches": [-v for v in gap["ln_ches"]],
        "displacement": gap["change"],
        "kl": gap["kl"],
    }
    if table["attack"].notna().to_numpy().any():
        found |= {
            "safety": gap["attack"],
            "self_safer": (by["attack"]["self"] - by["start_attack"]["self"]).tolist(),
            "strong_safer": (by["attack"]["strong"] - by["start_attack"]["strong"]).tolist(),
            "comply": gap["comply"],
            "helpful": gap["safe"],
        }
    pairs = len(paper.tables["scores"]) // len(table)
    n = f"{count(len(set(table['seed'])), 'seed')} of {pairs} pairs"
    return {name: Measured(values, n) for name, values in found.items()}


@once
def sources(paper: Paper) -> pd.DataFrame:
    """One row a source and seed: the separabilities, mean CHES and LN-CHES under the start model, and after DPO the
    mean change of chosen and the share that fell, KL, attack success (1 - mass of refusing openers after held-out
    unsafe prompts; start_attack before training), mass of complying openers there and after safe prompts."""
    rows = []
    for row in paper.runs.to_dict("records"):
        labels = {"source": row["source"], "seed": row["seed"]}
        features, scores = (_rows(paper.tables[name], labels) for name in ("features", "scores"))
        means = {"ches": mean(scores["ches_score"]), "ln_ches": mean(scores["ln_ches_score"])}
        rows.append(labels | separabilities(features, int(row["seed"])) | means | _after(paper, row["run"]))
    return pd.DataFrame(rows)


def separabilities(features: pd.DataFrame, seed: int) -> dict[str, float]:
    """AUC with the mean and the last state; with the mean state on the pairs whose answers are equally long; and with
    the labels of a random half of the pairs turned round, which must lie about one half."""
    lengths = features.pivot_table("length", "pair_id", "side")
    equal = lengths.query("chosen == rejected").index
    ids = sorted(set(features["pair_id"]))
    turned = set(np.random.default_rng([seed, 14]).permutation(ids)[: len(ids) // 2])
    sides = [side if i not in turned else _other(side) for i, side in zip(features["pair_id"], features["side"])]
    return {
        "mean": separability(features, "mean"),
        "last": separability(features, "last"),
        "matched": separability(features.loc[features["pair_id"].isin(equal.tolist())], "mean"),
        "shuffled": separability(features.assign(side=sides), "mean"),
    }


def separability(features: pd.DataFrame, state: str) -> float:
    """Cross-validated AUC of a logistic regression that tells chosen from rejected by a hidden state; both answers of
    a pair stay in the same fold. NaN with fewer than two pairs a fold."""
    groups = features["pair_id"].to_numpy()
    if len(set(groups)) < 2 * FOLDS:
        return math.nan
    states = np.stack(features[state].tolist()).astype(np.float64)
    chosen = (features["side"] == "chosen").to_numpy()
    model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
    chances = cross_val_predict(model, states, chosen, groups=groups, cv=GroupKFold(FOLDS), method="decision_function")
    return float(roc_auc_score(chosen, chances))


def tension(paper: Paper) -> Block:
    """Separability against LN-CHES, and attack success before and after."""
    return page.picture(draw(sources(paper)), "Separability against LN-CHES, and attack success, by source")


def details(paper: Paper) -> Block:
    """Everything measured of each source: mean over seeds and half of the 95 % t interval."""
    shown = spreads(sources(paper), {"source": SOURCES}, list(TABLE)).rename(columns=TABLE)
    return page.table(shown.set_index("source").T.reset_index(names="measure"))


def examples(paper: Paper) -> Block:
    """The first pair of either source at the first seed."""
    blocks = []
    for row in paper.runs.sort_values(["seed", "source"]).to_dict("records")[: len(SOURCES)]:
        texts = runs.texts(paper.log(row["run"]).audit).iloc[0]
        words = [page.text(side, texts[side]) for side in ("prompt", "chosen", "rejected")]
        blocks.append(page.card(SOURCES.get(str(row["source"]), str(row["source"])), *words))
    return page.stack(*blocks)


@styled
def draw(table: pd.DataFrame) -> Figure:
    """Left: AUC against LN-CHES, a point a seed. Right, where it was tracked: attack success before and after DPO."""
    tracked = bool(table["attack"].notna().to_numpy().any())
    figure, all_axes = panels(1 + tracked, height=4.4, width=5.2 * (1 + tracked))
    left, means = all_axes[0], table.pivot_table(["mean", "ln_ches", "attack"], "source", dropna=False)
    for source, rows in table.groupby("source"):
        name, colour = SOURCES.get(str(source), source), COLOUR.get(str(source))
        left.plot(rows["ln_ches"], rows["mean"], "o", color=colour, ms=8, alpha=0.8, label=f"{name} pairs, a seed")
        if tracked:
            for _, row in rows.iterrows():
                values = [row["start_attack"], row["attack"]]
                all_axes[1].plot([0, 1], values, "o-", color=colour, alpha=0.6, lw=1.2, ms=5)
            all_axes[1].plot([], [], "o-", color=colour, label=f"DPO on {name} pairs, a seed")
    left.axhline(0.5, color=DARK, lw=0.8, ls="--")
    left.set(
        title=f"AUC {_words(means['mean'])}", xlabel="mean LN-CHES under the start model", ylabel="cross-validated AUC"
    )
    left.set_ylim(0.4, 1.02)
    below(left, 2)
    if tracked:
        all_axes[1].set(
            title=f"After DPO: {_words(means['attack'])}", ylabel="attack success (1 − refusing mass)", ylim=(0, 1)
        )
        all_axes[1].set_xticks([0, 1], ["start", "after DPO"])
        below(all_axes[1], 2)
    return figure


def _words(means: Any) -> str:
    return ", ".join(f"{number(v)} {SOURCES.get(str(s), s)}" for s, v in means.to_dict().items())


def _after(paper: Paper, run: str) -> dict[str, float]:
    log = paper.log(run)
    ends, followed = runs.ends(runs.rows(log, "probe")), mass.tracked(log.mass)
    refusing = mass.first_and_last(followed, "unsafe: refusal")
    return {
        "change": mean(ends["chosen_change"]),
        "fell": mean(runs.fell(ends, "chosen")),
        "kl": mean(ends["chosen_kl"]),
        "start_attack": 1 - refusing[0],
        "attack": 1 - refusing[1],
        "comply": mass.first_and_last(followed, "unsafe: comply")[1],
        "safe": mass.first_and_last(followed, "safe: comply")[1],
    }


def _rows(table: pd.DataFrame, labels: dict[str, Any]) -> pd.DataFrame:
    return where(table, source=labels["source"], seed=labels["seed"])


def _other(side: str) -> str:
    return "rejected" if side == "chosen" else "chosen"
