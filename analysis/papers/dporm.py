"""Implicit against explicit reward models: accuracy on held-out pairs of the same kind and on shifted sets."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.papers import Measured, Paper, per_seed, spreads, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CHOSEN, CYCLE, DARK, NEUTRAL, REJECTED, panels, styled
from analysis.show.wording import count, for_plot, signed
from analysis.tables.intervals import half_width, mean

TEST = "test"
MODELS = {
    "implicit": "implicit reward of DPO",
    "fine-tuned": "explicit, all weights",
    "linear": "explicit, linear head",
    "mlp": "explicit, MLP head",
    "policy": "log-prob margin of the DPO policy",
    "start": "log-prob margin of the start model",
}
COLOURS = dict(zip(MODELS, (CHOSEN, REJECTED, CYCLE[3], CYCLE[4], CYCLE[2], NEUTRAL)))


def measured(paper: Paper) -> dict[str, Measured]:
    """One value a seed: differences of accuracy, on the test set or the mean over the shifted sets."""
    table = paper.tables["accuracy"]
    return per_seed(differences(table), words(table))


def differences(table: pd.DataFrame) -> dict[str, pd.Series]:
    """The claims' values by seed. table: columns seed, size, model, set, accuracy."""
    whole, fewer = (_lead(where(table, size=size), "fine-tuned") for size in ("all", "fewer"))
    every = where(table, size="all")
    sets = _ordered(table)[1:]
    worst = min(sets, key=lambda name: mean(whole[name]))
    rest = {name: _mean(_lead(every, name), sets) for name in ("linear", "mlp", "start", "policy")}
    return {
        "in_distribution": pd.Series(whole[TEST]),
        "mean_drop": _mean(whole, sets),
        "max_drop": pd.Series(whole[worst]),
        "extra_loss": _mean(whole, sets) - whole[TEST],
        "linear": rest["linear"],
        "mlp": rest["mlp"],
        "start": rest["start"],
        "policy": -rest["policy"],
        "fewer": _mean(fewer, sets) - _mean(whole, sets),
    }


def words(table: pd.DataFrame) -> str:
    """`5 seeds, 5 shifted sets of up to 160 pairs`."""
    sets, largest = count(len(_ordered(table)) - 1, "shifted set"), count(int(np.max(table["n"])), "pair")
    return f"{count(len(set(table['seed'])), 'seed')}, {sets} of up to {largest}"


def by_set(paper: Paper) -> Block:
    """Accuracy of every model on every set."""
    table = paper.tables["accuracy"]
    figure = draw(over_seeds(where(table, size="all")), words(table))
    return page.picture(figure, "Accuracy of each reward by set")


def by_size(paper: Paper) -> Block:
    """Implicit minus explicit on every set, for all training pairs and for fewer."""
    table = paper.tables["accuracy"]
    parts = []
    for size in ("all", "fewer"):
        lead = _lead(where(table, size=size), "fine-tuned")[_ordered(table)].reset_index()
        parts.append(lead.melt("seed", var_name="set", value_name="accuracy").assign(size=size, model="lead"))
    figure = draw_lead(over_seeds(pd.concat(parts)), words(table))
    return page.picture(figure, "Implicit minus explicit accuracy by set")


def numbers(paper: Paper) -> Block:
    """Every accuracy: mean over seeds ± half of its 95 % interval."""
    table = paper.tables["accuracy"]
    wide = table.pivot_table("accuracy", ["size", "model", "seed"], "set").reset_index()
    sizes = {"all": "all", "fewer": "fewer"}
    shown = spreads(wide, {"size": sizes, "model": MODELS}, list(dict.fromkeys(table["set"])))
    return page.table(shown, heads={"size": "training pairs", "model": "reward"})


def over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Mean accuracy over seeds with half of its 95 % interval, by size, model and set in their own order."""
    groups = table.groupby(["size", "model", "set"], sort=False)["accuracy"]
    return pd.DataFrame({"accuracy": groups.mean(), "half": groups.agg(half_width)}).reset_index()


@styled
def draw(table: pd.DataFrame, n: str) -> Figure:
    """One row of points a set, one colour a reward, bars 95 % over seeds. table: over_seeds of one size."""
    sets = _ordered(table)
    figure, (axes,) = panels(1, height=1.6 + 0.62 * len(sets))
    for k, model in enumerate(model for model in MODELS if model in set(table["model"])):
        rows = where(table, model=model).set_index("set").reindex(sets)
        places = [len(sets) - 1 - i + 0.3 - 0.12 * k for i in range(len(sets))]
        label = MODELS[model]
        axes.errorbar(rows["accuracy"], places, xerr=rows["half"].fillna(0), fmt="o", ms=5, color=COLOURS[model],
                      capsize=2, lw=1.2, label=label)  # fmt: skip
    axes.set_yticks(range(len(sets))[::-1], [_name(s) for s in sets])
    axes.axvline(0.5, color=DARK, lw=0.8, ls="--")
    mean_of = table.loc[table["set"] != TEST].groupby("model")["accuracy"].mean()
    gap = 100 * (mean_of["implicit"] - mean_of["fine-tuned"])
    axes.set_title(f"On the shifted sets: implicit − explicit accuracy {signed(gap, 1)} points")
    axes.set_xlabel(f"accuracy, dashed: chance ({n})")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    return figure


@styled
def draw_lead(table: pd.DataFrame, n: str) -> Figure:
    """Implicit minus explicit by set, one colour a number of training pairs. table: over_seeds of the leads."""
    sets = _ordered(table)
    figure, (axes,) = panels(1, height=1.2 + 0.45 * len(sets), width=8.5)
    for k, (size, rows) in enumerate(table.groupby("size")):
        rows = rows.set_index("set").reindex(sets)
        places = [len(sets) - 1 - i + 0.12 - 0.24 * k for i in range(len(sets))]
        label = f"trained on {size} pairs"
        axes.errorbar(100 * rows["accuracy"], places, xerr=100 * rows["half"].fillna(0), fmt="o", color=CYCLE[k],
                      capsize=3, label=label)  # fmt: skip
    axes.set_yticks(range(len(sets))[::-1], [_name(s) for s in sets])
    axes.axvline(0, color=DARK, lw=0.8)
    lowest = table.loc[table["accuracy"].idxmin()]
    axes.set_title(
        f"Lowest: {signed(100 * lowest['accuracy'], 1)} points on {_name(lowest['set'])}, {lowest['size']} pairs"
    )
    axes.set_xlabel(f"implicit − explicit accuracy, points ({n})")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=9)
    return figure


def _lead(table: pd.DataFrame, model: str) -> pd.DataFrame:
    """Accuracy of the implicit reward minus that of another model: seeds by sets."""
    both = [where(table, model=name).pivot_table("accuracy", "seed", "set") for name in ("implicit", model)]
    return both[0] - both[1]


def _mean(lead: pd.DataFrame, sets: list[str]) -> pd.Series:
    return pd.Series(lead[sets].mean(axis=1))


def _ordered(table: pd.DataFrame) -> list[str]:
    return [TEST, *(s for s in dict.fromkeys(table["set"]) if s != TEST)]


def _name(name: object) -> str:
    return "in distribution" if name == TEST else f"shifted: {for_plot(name, 24)}"
