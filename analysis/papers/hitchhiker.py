"""Hitchhiker's guide: quality, KL and length of DPO, LN-DPO and SimPO over a sweep of learning rate and beta."""

import math
from itertools import combinations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.papers import EXACT, Measured, Paper, once, plus_minus, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CYCLE, DARK, NEUTRAL, panels, styled
from analysis.show.wording import count, number, signed
from analysis.tables import runs
from analysis.tables.intervals import mean

METHODS = {"dpo": "DPO", "ln_dpo": "LN-DPO", "simpo": "SimPO"}
COLOUR = dict(zip(METHODS, CYCLE))
QUALITY = {"accuracy": "held-out accuracy", "true": "true greedy answers"}
SHOWN = QUALITY | {"kl": "KL on chosen (nats)", "kl_own": "KL on own answers (nats)", "tokens": "tokens of an answer"}
POINTS = 25  # places at which two methods are compared at equal KL or equal quality


def measured(paper: Paper) -> dict[str, Measured]:
    """Medians, spreads, bests, the two orders, lengths, and the comparisons at equal KL; one value a seed."""
    table = configurations(paper)
    plain, longer = (where(table, pairs=which) for which in ("plain", "longer"))
    middle, best = (by_seed(plain, how) for how in ("median", "max"))
    n = f"{count(len(middle['kl']), 'seed')} of {len(plain.drop_duplicates(SETTING))} configurations"
    found = {
        "close": _lead(middle["kl"]),
        "close_own": _lead(middle["kl_own"]),
        "long_plain": _gaps(plain),
        "ended_plain": _gaps(plain, ended=True),
        "moves_plain": _spans(plain),
    }
    for name in QUALITY:
        if _known(plain, name):
            found[f"peak_{name}"] = (best[name].max(axis=1) - best[name].min(axis=1)).tolist()
            found[f"robust_{name}"] = [-v for v in _lead(by_seed(plain, "std")[name])]
            found[f"quality_{name}"] = _lead(middle[name])
            found[f"order_{name}"] = [1 - v for v in alike(middle[name], best[name])]
            found[f"equal_{name}"] = _at_equal(plain, "kl", name, sign=-1)
            found[f"equal_order_{name}"] = alike(middle[name], _levels(plain, "kl", name))
    claims = {name: Measured(values, n) for name, values in found.items()} | {"steps": _steps(table)}
    return claims | (_longer(longer) if len(longer) else {})


SETTING = ["objective", "learning_rate", "beta"]


def _longer(table: pd.DataFrame) -> dict[str, Measured]:
    """The same lengths where every second pair prefers the longer answer."""
    n = f"{count(len(set(table['seed'])), 'seed')} of {len(table.drop_duplicates(SETTING))} configurations"
    found = {
        "long_longer": _gaps(table),
        "ended_longer": _gaps(table, ended=True),
        "moves_longer": _spans(table),
        "equal_quality_longer": _at_equal(table, "true", "tokens"),
        "equal_kl_longer": _at_equal(table, "kl", "tokens"),
    }
    return {name: Measured(values, n) for name, values in found.items()}


@once
def configurations(paper: Paper) -> pd.DataFrame:
    """One row a run: its labels, rank (0, 1, ...) of its beta, steps; and at the end

    accuracy: share of held-out pairs whose margin of log-probs (chosen - rejected) grew; kl: exact KL(start || policy)
    summed over their chosen answers, nats, mean; and means over its greedy answers to their prompts: tokens, ended,
    true, kl_own (exact KL(policy || start) summed over the answer, nats); moved: tokens minus those of the start.
    """
    written = paper.tables["answers"]
    own = written.pivot_table(["tokens", "ended", "true", "kl"], "run", dropna=False).rename(columns={"kl": "kl_own"})
    first = where(written, objective="start").groupby("seed")["tokens"].mean()
    table = pd.DataFrame([row | _ends(paper, row["run"]) for row in paper.runs.to_dict("records")])
    table = table.merge(own, left_on="run", right_index=True)
    ranked = table.groupby(["pairs", "seed", "objective", "learning_rate"])["beta"].rank(method="dense") - 1
    return table.assign(rank=ranked.astype(int), moved=table["tokens"] - table["seed"].map(first))


def by_seed(table: pd.DataFrame, how: str) -> dict[str, pd.DataFrame]:
    """For each measure the median, max or std over the configurations: seeds down, objectives across."""
    return {name: table.pivot_table(name, "seed", "objective", aggfunc=how, dropna=False) for name in SHOWN}


def alike(one: pd.DataFrame, other: pd.DataFrame) -> list[float]:
    """By seed: share of the pairs of methods that two tables (seeds down, methods across) put in the same order;
    a tie in one of them counts half."""
    found = []
    for seed in one.index:
        pairs = combinations(range(one.shape[1]), 2)
        rows = [table.loc[seed].to_numpy(float) for table in (one, other[one.columns])]
        signs = [[np.sign(row[a] - row[b]) for row in rows] for a, b in pairs]
        found.append(mean([1 - abs(x - y) / 2 for x, y in signs]))
    return found


def level(table: pd.DataFrame, on: str, value: str) -> pd.Series:
    """Each method's mean `value` at equal `on` (one seed): read off the line through its configurations, sorted by
    `on`, at POINTS places of the range that all methods reach; NaN where there is no such range."""
    whole = table.dropna(subset=[on, value])
    if whole.empty:
        return pd.Series(math.nan, index=_methods(table))
    lines = {m: where(whole, objective=m).sort_values(on) for m in _methods(whole)}
    low, high = max(min(line[on]) for line in lines.values()), min(max(line[on]) for line in lines.values())
    if not low < high:
        return pd.Series(math.nan, index=list(lines))
    places = np.geomspace(low, high, POINTS) if low > 0 else np.linspace(low, high, POINTS)
    return pd.Series({m: float(np.interp(places, line[on], line[value]).mean()) for m, line in lines.items()})


def robustness(paper: Paper) -> Block:
    """Every configuration a point, the median marked."""
    table = configurations(paper)
    return page.picture(draw_sweep(where(table, pairs="plain")), "Quality of every configuration by method")


def grid(paper: Paper) -> Block:
    """Quality by learning rate and beta."""
    table = configurations(paper)
    return page.picture(draw_grid(where(table, pairs="plain")), "Quality by learning rate and beta")


def lengths(paper: Paper) -> Block:
    """KL against length."""
    return page.picture(draw_lengths(configurations(paper)), "Change of length against KL for every configuration")


def ranking(paper: Paper) -> Block:
    """Median, best, spread and level at equal KL of every method: mean over seeds and half of the 95 % t interval."""
    table = configurations(paper)
    plain, rows = where(table, pairs="plain"), []
    tables = {how: by_seed(plain, how) for how in ("median", "max", "std")}
    for name, words in QUALITY.items():
        if _known(plain, name):
            found = [tables["median"][name], tables["max"][name], tables["std"][name], _levels(plain, "kl", name)]
            heads = ("median", "best", "SD over the sweep", "at equal KL")
            rows += [
                {"quality": words, "method": METHODS.get(m, m)} | {h: plus_minus(f[m]) for h, f in zip(heads, found)}
                for m in _methods(plain)
            ]
    return page.table(pd.DataFrame(rows))


def medians(paper: Paper) -> Block:
    """Medians over the sweep of KL and length, for either set of pairs."""
    table, rows = configurations(paper), []
    for which, of in table.groupby("pairs", sort=False):
        middle = by_seed(of, "median")
        rows += [
            {"pairs": which, "method": METHODS.get(m, m), "seeds": len(middle["kl"])}
            | {SHOWN[name]: plus_minus(middle[name][m]) for name in ("kl", "kl_own", "tokens")}
            for m in _methods(of)
        ]
    return page.table(pd.DataFrame(rows))


def examples(paper: Paper) -> Block:
    """What each method writes to the first held-out prompt, at the middle learning rate and beta of the first seed."""
    written, table = paper.tables["answers"], paper.runs
    seed = table["seed"].min()
    starts = where(written, objective="start", seed=seed)
    blocks = [page.text("start", starts["text"].iloc[0])]
    for (which, name), of in where(table, seed=seed).groupby(["pairs", "objective"], sort=False):
        middle = of.sort_values(["learning_rate", "beta"])["run"].iloc[len(of) // 2]
        label = f"{METHODS.get(str(name), name)}, {which} pairs"
        blocks.append(page.text(label, where(written, run=middle)["text"].iloc[0]))
    return page.stack(*blocks)


@styled
def draw_sweep(table: pd.DataFrame) -> Figure:
    """One panel a measure of quality: every configuration's mean over seeds by method, bar: median, diamond: best."""
    found = [name for name in QUALITY if _known(table, name)]
    figure, all_axes = panels(len(found), height=4.4, width=4.6 * len(found) + 1)
    for axes, name in zip(all_axes, found):
        points = table.pivot_table(name, SETTING).reset_index()
        for k, method in enumerate(_methods(table)):
            values = np.sort(points.loc[points["objective"] == method, name])
            spots = k + np.linspace(-0.22, 0.22, len(values))
            axes.plot(spots, values, "o", color=COLOUR.get(method, NEUTRAL), ms=7, alpha=0.75, mew=0)
            axes.plot([k - 0.32, k + 0.32], [np.median(values)] * 2, color=DARK, lw=2.5)
            axes.annotate(
                number(np.median(values)), (k + 0.34, np.median(values)), va="center", fontsize=9, fontweight="bold"
            )
        axes.set_xticks(range(len(_methods(table))), [METHODS.get(m, m) for m in _methods(table)])
        axes.set(
            title=_leader(points.pivot_table(name, "objective", aggfunc=["median", "max"], sort=False)),
            ylabel=f"{QUALITY[name]} (share)",
            xlim=(-0.5, len(_methods(table)) - 0.3),
        )
    seeds = count(len(set(table["seed"])), "seed")
    figure.suptitle(f"A point a configuration (mean of {seeds}), a bar their median", x=0.01, ha="left", fontsize=10)
    return figure


@styled
def draw_grid(table: pd.DataFrame) -> Figure:
    """One map a method: held-out accuracy, or true answers where they are known, by learning rate and beta."""
    name = "true" if _known(table, "true") else "accuracy"
    figure, all_axes = panels(len(_methods(table)), height=3.0, width=10.5)
    for axes, method in zip(all_axes, _methods(table)):
        cells = where(table, objective=method).pivot_table(name, "learning_rate", "beta")
        axes.imshow(cells, vmin=0, vmax=1, cmap="YlGnBu", aspect="auto")
        for (i, j), value in np.ndenumerate(cells.to_numpy()):
            axes.text(j, i, number(value), ha="center", va="center", color="white" if value > 0.6 else DARK)
        axes.set_xticks(range(cells.shape[1]), [f"{b:g}" for b in cells.columns])
        axes.set_yticks(range(cells.shape[0]), [f"{r:g}" for r in cells.index])
        axes.set(title=METHODS.get(method, method), xlabel="beta", ylabel="learning rate")
        axes.grid(visible=False)
    figure.suptitle(f"{QUALITY[name]} (share)", x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


@styled
def draw_lengths(table: pd.DataFrame) -> Figure:
    """One panel a set of pairs: a point a configuration (mean over seeds), its KL against its change of length."""
    sets = list(table["pairs"].unique())
    figure, all_axes = panels(len(sets), height=4.6, width=5.0 * len(sets) + 0.5)
    for axes, which in zip(all_axes, sets):
        rows = where(table, pairs=which)
        points = rows.groupby(SETTING)[["kl_own", "moved"]].mean()
        for method in _methods(rows):
            of, colour = points.loc[method].sort_values("kl_own"), COLOUR.get(method, NEUTRAL)
            axes.plot(of["kl_own"], of["moved"], "o", color=colour, ms=7, alpha=0.8, label=METHODS.get(method, method))
        _finish(axes, points.pivot_table("moved", "objective", aggfunc="median")["moved"].to_dict(), str(which))
    return figure


def _finish(axes: Axes, moved: dict[str, float], which: str) -> None:
    axes.axhline(0, color=DARK, lw=0.8)
    ends = (max(moved, key=lambda m: moved[m]), min(moved, key=lambda m: moved[m]))
    words = [f"{METHODS.get(m, m)} {signed(moved[m], 1)}" for m in ends]
    axes.set_title(f"{which} pairs: median {words[0]}, {words[1]} tokens")
    axes.set(xscale="log", xlabel="KL(policy ‖ start) along own answers (nats)", ylabel="change of length (tokens)")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=3)


def _leader(table: pd.DataFrame) -> str:
    """Who leads by median and who by best, in words. table: methods down, columns median and max."""
    middle, best = (_firsts(table[how].to_numpy().ravel(), list(table.index)) for how in ("median", "max"))
    return f"{middle} by median" + (" and by best" if middle == best else f", {best} by best")


def _firsts(values: np.ndarray, methods: list[str]) -> str:
    """The methods within half a percentage point of the highest value, in words."""
    lead = [METHODS.get(m, m) for m, value in zip(methods, values) if value >= values.max() - 0.005]
    if len(lead) == len(methods) > 1:
        return "all alike"
    return f"{lead[0]} leads" if len(lead) == 1 else f"{' and '.join(lead)} lead"


def _ends(paper: Paper, run: str) -> dict[str, float]:
    log = paper.log(run)
    held = runs.ends(runs.rows(log, "eval"))
    grew = (held["margin_change"] > 0).where(held["margin_change"].notna())
    return {"accuracy": mean(grew.astype(float)), "kl": mean(held["chosen_kl"]), "steps": float(max(log.steps["step"]))}


def _known(table: pd.DataFrame, name: str) -> bool:
    return bool(table[name].notna().to_numpy().any())


def _methods(table: pd.DataFrame) -> list[str]:
    there = set(table["objective"])
    return [m for m in METHODS if m in there]


def _lead(table: pd.DataFrame) -> list[float]:
    """LN-DPO minus DPO, by seed."""
    return (table["ln_dpo"] - table["dpo"]).tolist()


def _gaps(table: pd.DataFrame, *, ended: bool = False) -> list[float]:
    """Tokens that DPO's answers have more than LN-DPO's at the same learning rate and rank of beta, by seed; ended:
    only where every answer of both came to its end, since one that repeats itself for ever says nothing of style."""
    table = where(table, ended=1) if ended else table
    cells = table.pivot_table("tokens", ["seed", "learning_rate", "rank"], "objective")
    if not {"dpo", "ln_dpo"} <= set(cells):
        return []
    return (cells["dpo"] - cells["ln_dpo"]).unstack("seed").mean().tolist()


def _spans(table: pd.DataFrame) -> list[float]:
    """Between the first and the third quartile of the configurations' mean lengths (tokens), by seed."""
    return [float(np.subtract(*np.quantile(of["tokens"], [0.75, 0.25]))) for _, of in table.groupby("seed")]


def _levels(table: pd.DataFrame, on: str, value: str) -> pd.DataFrame:
    return pd.DataFrame({seed: level(of, on, value) for seed, of in table.groupby("seed")}).T


def _at_equal(table: pd.DataFrame, on: str, value: str, sign: int = 1) -> list[float]:
    """DPO minus LN-DPO (times sign) at equal `on`, by seed."""
    two = _levels(table.loc[table["objective"].isin(["dpo", "ln_dpo"])], on, value)
    return (sign * (two["dpo"] - two["ln_dpo"])).tolist()


def _steps(table: pd.DataFrame) -> Measured:
    counts = set(table["steps"])
    return Measured([float(len(counts) == 1)], EXACT, note=f"{number(max(counts), 0)} steps")
