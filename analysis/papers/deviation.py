"""Deviation: how far each objective ends from the reference, what it gains, and what RRPO's gradient bound is worth."""

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import papers
from analysis.compare import board
from analysis.compare import figures as board_figures
from analysis.papers import Measured, Paper, groups, once, per_seed, plus_minus, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CHOSEN, CYCLE, DARK, REJECTED, panels, styled
from analysis.show.units import TOKENS
from analysis.show.wording import count, for_plot, number, percent, signed
from analysis.tables import runs
from analysis.tables.intervals import geometric_mean, mean, spearman

FAMILY = ("DPO", "TDPO1", "TDPO2")  # of TDPO's figure
WEIGHTED = ("TDPO2", "RRPO", "RRPO w/o R*")  # their names are shown with their alpha
WORLDS = {"facts": "facts, held out", "refusal": "refusals, trained on", "given": "given data, held out"}
WANTED = 1.0  # nats of margin at which objectives are compared
HEADS = {
    "rate": "learning rate",
    "kl": "KL(ref || policy), nats",
    "kl_reverse": "KL(policy || ref), nats",
    "kl_token": "KL(ref || policy) a token",
    "kl_reverse_token": "KL(policy || ref) a token",
    "fell": "chosen fell",
}
HALF = 0.5  # TDPO2's alpha in its authors' default
POINTS = {"sampled": "probability of the true value", "top": "true value is the likeliest token"}


def measured(paper: Paper) -> dict[str, Measured]:
    """Every claim: the divergence figure and ablation, the recipe's targets, TDPO's plots, the gradient bound."""
    everything = ends(paper)
    table, apart = everything.loc[everything["world"] != "refusal"], where(everything, world="refusal")
    rates = sorted(set(table["rate"]))
    high, low = (Runs(where(table, rate=rate)) for rate in (rates[-1], rates[0]))
    other = {f"{k}_refusal": v for k, v in _tdpo(Runs(apart)).items()} if len(apart) else {}
    return _divergence(high, low) | _recipe(high) | _tdpo(high) | other | _equal(paper, high) | _bounds(paper)


class Runs:
    """The runs of one learning rate: values by seed."""

    def __init__(self, table: pd.DataFrame) -> None:
        self.table = table
        alphas = sorted(set(where(table, method="RRPO")["alpha"]))
        self.published, self.largest = (alphas[0], alphas[-1]) if alphas else (math.nan, math.nan)
        self.n = count(len(set(table["seed"])), "seed")

    def of(self, name: str, method: str, alpha: float | None = None) -> pd.Series:
        """One column of one objective, by seed."""
        rows = where(self.table, method=method)
        rows = rows if alpha is None else where(rows, alpha=alpha)
        return rows.set_index("seed")[name].astype(float)


def ratio(above: pd.Series, below: pd.Series, n: str) -> Measured:
    """One over the other, seed by seed; NaN where there is no ratio of two amounts above 0."""
    return Measured((above.where(above > 0) / below.where(below > 0)).tolist(), n, geometric=True)


def ends(paper: Paper) -> pd.DataFrame:
    """One row a run: world, label, method, alpha, rate, seed; at its end fell (share of the probed training pairs).

    On held-out pairs (refusals: the probed ones): kl, kl_reverse, kl_token, kl_reverse_token, rejected_kl, gap (nats),
    sampled and top in points, also before training as start_sampled and start_top.
    """
    return _tables(paper)[0]


def paths(paper: Paper) -> pd.DataFrame:
    """One row a run and measured step: world, label, method, alpha, rate, seed, step, and means over the same pairs of
    kl, rejected_kl, their absolute difference gap (nats an answer), and margin (nats)."""
    return _tables(paper)[1]


@once
def _tables(paper: Paper) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, steps = [], []
    for labels in paper.runs.to_dict("records"):
        log = paper.log(labels["run"])
        head = {k: labels[k] for k in ("world", "method", "alpha", "rate", "seed")} | {"label": label(labels)}
        held = board.with_ratios(runs.rows(log, "probe" if labels["world"] == "refusal" else "eval"))
        for name in ("chosen_kl", "rejected_kl"):
            held[name] = runs.column(held, name)
        by_step = _means(held, "step", ["chosen_kl", "rejected_kl", "margin"]).reset_index()
        by_step["gap"] = (by_step["chosen_kl"] - by_step["rejected_kl"]).abs()
        steps.append(by_step.rename(columns={"chosen_kl": "kl"}).assign(**head))
        rows.append(head | _end(log, held))
    return pd.DataFrame(rows), pd.concat(steps, ignore_index=True)


def _end(log: runs.RunLog, held: pd.DataFrame) -> dict[str, float]:
    last, first = (where(held, step=step) for step in (held["step"].max(), held["step"].min()))
    end, start = (board.measured(log, rows, "eval") for rows in (last, first))
    found = {k: end[k] for k in ("kl", "kl_reverse", "kl_token", "kl_reverse_token")}
    found |= {name: 100 * end[name] for name in POINTS} | {f"start_{name}": 100 * start[name] for name in POINTS}
    found["rejected_kl"] = mean(last["rejected_kl"])
    probed = runs.ends(runs.rows(log, "probe"))
    return found | {"fell": mean(runs.fell(probed, "chosen")), "gap": abs(found["kl"] - found["rejected_kl"])}


def label(row: dict) -> str:
    """The method, with its alpha where several are compared."""
    return f"{row['method']} {row['alpha']:g}" if row["method"] in WEIGHTED else str(row["method"])


def _divergence(high: Runs, low: Runs) -> dict[str, Measured]:
    rrpo = high.of("kl", "RRPO", high.published)
    dpo, n = high.of("kl", "DPO"), high.n
    gains = {"accuracy": "DPO", "ablation_kl": "RRPO w/o TKL"}
    found = {k: high.of("sampled", "RRPO", high.published) - high.of("sampled", other) for k, other in gains.items()}
    found["ablation_spans"] = high.of("sampled", "RRPO", high.published) - high.of(
        "sampled", "RRPO w/o R*", high.published
    )
    return per_seed(found, n) | {
        "kl_dpo": ratio(dpo, rrpo, n),
        "kl_ddpo": ratio(dpo, high.of("kl", "DDPO"), n),
        "kl_tdpo": ratio(rrpo, high.of("kl", "TDPO2", HALF), n),
        "kl_dpa": ratio(rrpo, high.of("kl", "DPA"), n),
        "low_rate": ratio(low.of("kl", "DPO"), low.of("kl", "RRPO", low.published), n),
        "handicap": ratio(low.of("kl", "DPO"), rrpo, n),
    }


def _recipe(high: Runs) -> dict[str, Measured]:
    dpo, n = high.of("kl", "DPO"), high.n
    best, weak = high.of("kl", "RRPO", high.largest), high.of("kl", "RRPO", high.published)
    plain = {
        "e1_fell": high.of("fell", "DPO"),
        "e1_accuracy": high.of("sampled", "DPO") - high.of("start_sampled", "DPO"),
        "e1_kl": dpo,
        "e2_kl": best,
        "e2_fell": high.of("fell", "RRPO", high.largest),
        "e2_accuracy": high.of("sampled", "RRPO", high.largest) - high.of("start_sampled", "RRPO", high.largest),
        "spans_fell": high.of("fell", "RRPO w/o TKL"),
    }
    without = high.of("kl", "RRPO w/o R*", high.published)
    return per_seed(plain, n) | {
        "e2_ratio": ratio(dpo, best, n),
        "e3": ratio(high.of("kl", "RRPO w/o R*", high.largest), best, n),
        "e3_published": ratio(without, weak, n),
        "spans_kl": ratio(high.of("kl", "RRPO w/o TKL"), without, n),
    }


def _tdpo(high: Runs) -> dict[str, Measured]:
    names = {"sw": "kl", "sl": "rejected_kl", "gap": "gap"}
    rows = high.table.loc[high.table["method"].isin(("DPO", "TDPO2"))].fillna({"alpha": 0.0})
    by_seed = [of for _, of in rows.groupby("seed")]
    found = {f"{k}_alpha": Measured([spearman(of["alpha"], of[v]) for of in by_seed], high.n) for k, v in names.items()}
    ones = {f"tdpo1_{k}": ratio(high.of(v, "TDPO1"), high.of(v, "DPO"), high.n) for k, v in names.items()}
    return found | ones


def _equal(paper: Paper, high: Runs) -> dict[str, Measured]:
    table = _main(paths(paper))
    table = table.loc[table["rate"] == table["rate"].max()]
    wanted = {"equal_margin": ("RRPO", high.published), "tdpo_margin": ("TDPO2", HALF)}
    found = {}
    for claim, (method, alpha) in wanted.items():
        pairs = [_at_equal_margin(of, method, alpha) for _, of in table.groupby("seed")]
        above, below = (pd.Series([pair[k] for pair in pairs], dtype=float) for k in (0, 1))
        found[claim] = ratio(above, below, high.n)
    return found


def _at_equal_margin(rows: pd.DataFrame, method: str, alpha: float) -> tuple[float, float]:
    """KL of DPO and of another objective where each first reaches the same margin; rows: one seed and rate."""
    one = where(rows, method="DPO")
    other = where(rows, method=method, alpha=alpha)
    target = min(WANTED, one["margin"].max(), other["margin"].max())
    return kl_at(one, target), kl_at(other, target)


def kl_at(path: pd.DataFrame, margin: float, column: str = "kl") -> float:
    """KL (or another column) where a run first reaches a margin, on the straight line between two measurements; NaN
    where it never does."""
    rows = path.sort_values("step")
    there = np.flatnonzero(rows["margin"].to_numpy() >= margin)
    if not len(there):
        return math.nan
    k = max(int(there[0]), 1)
    near = rows.iloc[k - 1 : k + 1]
    return float(np.interp(margin, near["margin"], near[column]))


def _bounds(paper: Paper) -> dict[str, Measured]:
    rows = paper.tables["bounds"]
    seeds = len(set(rows["seed"]))
    n = f"{count(seeds, 'seed')} of {count(len(rows) // seeds, 'pair')}"
    rows = rows.assign(
        rrpo=rows["rrpo_norm"] / rows["phrase_bound"],
        dpo=rows["dpo_norm"] / rows["dpo_bound"],
        cross=rows["rrpo_norm"] / rows["dpo_bound"],
        below=rows["phrase_bound"] < rows["dpo_bound"],
        norms=rows["rrpo_norm"] / rows["dpo_norm"],
    )
    largest = rows.pivot_table(["rrpo", "dpo", "cross"], "seed", aggfunc="max")
    means = rows.assign(below=rows["below"].astype(float)).pivot_table(["below", "norms"], "seed", aggfunc="mean")
    found = {f"bound_{name}": Measured(largest[name].to_numpy(), n) for name in largest}
    return found | {
        "bound_smaller": Measured(means["below"].to_numpy(), n),
        "norms": Measured(means["norms"].to_numpy(), n),
    }


def divergence(paper: Paper) -> Block:
    """KL against plain mean accuracy, every objective at every learning rate."""
    return page.picture(
        draw_divergence(_main(ends(paper))), "Held-out accuracy against KL, one mark an objective and rate"
    )


def distances(paper: Paper) -> Block:
    """KL both ways and per token, accuracy and displaced share, with the published points beside them."""
    names = {"kl": 2, "kl_reverse": 2, "kl_token": 3, "kl_reverse_token": 3, "sampled": 1, "top": 1}
    table = _main(ends(paper))
    said = published_points(Runs(table))
    rows = []
    for (name, rate), of in groups(table, "label", "rate"):
        cells = {k: plus_minus(of[k], digits) for k, digits in names.items()} | {"fell": percent(mean(of["fell"]))}
        rows.append({"objective": name, "rate": f"{float(rate):g}", "seeds": len(of)} | cells | said.get(str(name), {}))
    heads = HEADS | {"sampled": "true value, points", "top": "likeliest, points"}
    return page.table(pd.DataFrame(rows).fillna("–"), heads=heads)


def published_points(shown: Runs) -> dict[str, dict[str, str]]:
    """By label: the published KL and plain mean accuracy; RRPO's stand beside its smallest alpha."""
    tables = papers.published()["deviation"]["tables"]
    means = {str(row["method"]): mean(row["scores"]) for row in tables["ablation"]}
    found = {
        str(row["method"]): {"published KL": f"{row['kl']:g}", "published y axis": f"{row['drawn']:.2f}"}
        for row in tables["divergence"]
    }
    for name, value in means.items():
        found.setdefault(name, {})["published mean, %"] = f"{value:.2f}"
    names = {"TDPO": f"TDPO2 {HALF:g}"} | {name: f"{name} {shown.published:g}" for name in ("RRPO", "RRPO w/o R*")}
    return {names[name] if name in names else name: cells for name, cells in found.items()}


def ablation(paper: Paper) -> Block:
    """What each part of RRPO is worth: accuracy gained over the start, KL and displaced share, largest rate."""
    table = _main(ends(paper))
    table = table.loc[(table["rate"] == table["rate"].max()) & table["method"].str.match("DPO|RRPO")]
    means = {r["method"]: mean(r["scores"]) for r in papers.published()["deviation"]["tables"]["ablation"]}
    rows = []
    for (name,), of in groups(table, "label"):
        gain = of["sampled"] - of["start_sampled"]
        said = means.get(of["method"].iloc[0])
        rows.append({"objective": name, "seeds": len(of), "true value gained, points": plus_minus(gain, 1, sign=True),
                     "likeliest gained, points": plus_minus(of["top"] - of["start_top"], 1, sign=True),
                     "held-out KL, nats": plus_minus(of["kl"], 2), "chosen fell": percent(mean(of["fell"])),
                     "published gain, points": signed(said - means["base"], 1) if said else "–"})  # fmt: skip
    return page.table(pd.DataFrame(rows))


def margins(paper: Paper) -> Block:
    """KL against margin over training: how far each objective goes for the preference it learns."""
    table = _main(paths(paper))
    picture = draw_margins(table.loc[table["rate"] == table["rate"].max()])
    return page.picture(picture, "Held-out KL against held-out margin along training")


def growth(paper: Paper) -> Block:
    """S_w, S_l and |S_w - S_l| over steps for DPO, TDPO1 and TDPO2, and TDPO's end values."""
    table = paths(paper)
    table = table.loc[(table["rate"] == table["rate"].max()) & table["method"].isin(FAMILY)]
    published = {str(r["method"]): r for r in papers.published()["deviation"]["tables"]["tdpo"]}
    names = {"kl": ("S_w", "chosen"), "rejected_kl": ("S_l", "rejected"), "gap": ("|S_w − S_l|", "gap")}
    rows = []
    for (world, name), path in groups(table, "world", "label"):
        of = path.loc[path["step"] == path["step"].max()]
        cells = {head: plus_minus(of[column], 2) for column, (head, _) in names.items()}
        said = published.get(str(name), {})
        cells |= {f"published {head}": f"{said[k]:g}" if k in said else "–" for head, k in names.values()}
        rows.append({"pairs": WORLDS[str(world)], "objective": name, "seeds": len(of)} | cells)
    pictures = [page.picture(draw_growth(of), f"KL over steps, {WORLDS[w]}") for (w,), of in groups(table, "world")]
    return page.stack(*pictures, page.table(pd.DataFrame(rows)))


def bounds(paper: Paper) -> Block:
    """RRPO's bound beside DPO's, and the gradients themselves."""
    return page.picture(draw_bounds(paper.tables["bounds"]), "Gradient bounds and gradient norms, one mark a pair")


def draw_divergence(table: pd.DataFrame) -> Figure:
    """One panel a kind of accuracy: KL (log) against points."""
    shown = table.rename(columns={"kl": "eval_kl"})
    labels = list(dict.fromkeys(shown["label"]))
    starts = {name: mean(shown[f"start_{name}"]) for name in POINTS}
    figure = board_figures.frontier(shown, labels, {k: f"{v} (%)" for k, v in POINTS.items()}, starts, TOKENS)
    far = {name: mean(of["eval_kl"]) for (name,), of in groups(shown, "label")}
    title = f"Farthest from the reference: {max(far, key=far.__getitem__)}; nearest: {min(far, key=far.__getitem__)}"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


@styled
def draw_margins(table: pd.DataFrame) -> Figure:
    """One line an objective, mean over seeds at each measured step."""
    figure, (axes,) = panels(1, height=4.6, width=9.5)
    costs, seeds = {}, count(len(set(table["seed"])), "seed")
    for k, ((name,), of) in enumerate(groups(table, "label")):
        path = _means(of, "step", ["margin", "kl"]).reset_index()
        colour, mark = board_figures.COLOURS[k % len(board_figures.COLOURS)], board_figures.MARKS[k % 7]
        # the row without phrases lies on top of RRPO's: dotted, so that both are seen
        style = ":" if "R*" in str(name) else "-"
        axes.plot(path["margin"], path["kl"], style, marker=mark, ms=5, color=colour, lw=1.6, label=for_plot(name))
        costs[str(name)] = kl_at(path, WANTED)
    axes.axvline(WANTED, color=DARK, lw=0.8, ls="--")
    shown = [name for name in costs if name == "DPO" or name.startswith("RRPO 0")]
    said = ", ".join(f"{name}: {number(costs[name])}" for name in shown)
    axes.set_title(f"KL on reaching a margin of {WANTED:g} nat (mean of {seeds}): {said}")
    axes.set(xlabel="held-out margin of log-ratios (nats)", ylabel="KL(reference || policy) (nats)")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    return figure


@styled
def draw_growth(table: pd.DataFrame) -> Figure:
    """Three panels over steps; a line is the mean over seeds, its band their range."""
    figure, all_axes = panels(3, height=3.9, width=11)
    heads = {"kl": "S_w, chosen", "rejected_kl": "S_l, rejected", "gap": "|S_w − S_l|"}
    for axes, (column, head) in zip(all_axes, heads.items()):
        lasts = {}
        for k, ((name,), of) in enumerate(groups(table, "label")):
            seeds = of.pivot_table(column, "step", "seed")
            axes.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=CYCLE[k], alpha=0.12, lw=0)
            axes.plot(seeds.mean(axis=1), color=CYCLE[k], lw=1.8, label=name)
            lasts[str(name)] = float(seeds.mean(axis=1).iloc[-1])
        axes.set(title=f"{head}: most by {max(lasts, key=lasts.__getitem__)}", xlabel="optimizer step")
    all_axes[0].set_ylabel("exact KL(reference || policy),\nnats an answer")
    world, seeds = WORLDS[str(table["world"].iloc[0])], count(len(set(table["seed"])), "seed")
    figure.suptitle(f"{world}, {seeds}", x=0.01, ha="left", fontsize=11)
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncol=len(names), fontsize=9)
    return figure


@styled
def draw_bounds(rows: pd.DataFrame) -> Figure:
    """Left: the two bounds of each pair. Right: the actual norms of each pair. Diagonals are equality."""
    figure, (left, right) = panels(2, height=4.2, width=10)
    below = rows["phrase_bound"] < rows["dpo_bound"]
    left.scatter(rows["dpo_bound"], rows["phrase_bound"], s=24, c=[CHOSEN if b else REJECTED for b in below], lw=0)
    left.set(xscale="log", yscale="log", xlabel="DPO: β M (|y+| + |y−|)", ylabel="RRPO: β M 2NL")
    left.set_title(f"RRPO's bound is lower on {percent(mean(below))} of {len(rows)} pairs")
    right.scatter(rows["dpo_norm"], rows["rrpo_norm"], s=24, color=CHOSEN, lw=0)
    share = geometric_mean(rows["rrpo_norm"] / rows["dpo_norm"])
    right.set(xlabel="DPO: gradient norm at the start", ylabel="RRPO's rank term: gradient norm at the start")
    right.set_title(f"The gradients themselves: RRPO's is {number(share)} of DPO's")
    for axes in (left, right):
        _diagonal(axes)
    return figure


def _diagonal(axes: Axes) -> None:
    low = min(axes.get_xlim()[0], axes.get_ylim()[0])
    high = max(axes.get_xlim()[1], axes.get_ylim()[1])
    axes.plot([low, high], [low, high], color=DARK, lw=0.8, ls="--")


def _main(table: pd.DataFrame) -> pd.DataFrame:
    """Without the refusals, on which TDPO's objectives alone are trained."""
    return table.loc[table["world"] != "refusal"]


def _means(rows: pd.DataFrame, by: str, columns: list[str]) -> pd.DataFrame:
    return rows.pivot_table(columns, by, aggfunc="mean", dropna=False)
