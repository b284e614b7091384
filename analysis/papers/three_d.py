"""3D-properties: the probability of chosen, rejected and unseen answers under DPO, its kin and its controls."""

import math
from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.papers import EXACT, WORLDS, Measured, Paper, once, plus_minus, spreads, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CHOSEN, DARK, REJECTED, below, panels, styled
from analysis.show.wording import count, percent, signed
from analysis.tables import mass, runs
from analysis.tables.intervals import mean

MARGIN = 5.0  # nats between the changes of ln chosen and ln rejected, at which controls are compared
LOST, RISEN = 0.1, 0.9  # of the rejected probability is left; of chosen's rise is made
SOURCES = {"any": "any answers", "on": "on-policy", "off": "off-policy"}
OTHERS = ("half", "sgd", "rmsprop", "narrow")
UNSEEN = "#6b7280"
ROOM = "chosen rises from both; a likely answer has less room to rise"

Rows = pd.DataFrame
Statistic = Callable[[Rows], float]


def measured(paper: Paper) -> dict[str, Measured]:
    """The claims' values: exact ones, the toy model's by seed, the language model's by seed."""
    exact = paper.tables["exact"]
    found = {str(name): Measured([float(value)], EXACT) for name, value in zip(exact["name"], exact["value"])}
    return found | _toy(paper.tables["toy"]) | _properties(whole(paper)) | _milder_pairs(halves(paper))


def drop_time(rows: Rows) -> float:
    """Steps until rejected has a tenth of its probability left, over the steps until chosen made nine tenths of its
    rise to its highest; a time that is not reached is the whole run, and 0 steps count as one. rows: one run."""
    rejected = _first(rows, rows["rejected"] <= LOST * rows["rejected"].iloc[0])
    start, top = rows["chosen"].iloc[0], rows["chosen"].max()
    risen = _first(rows, (rows["chosen"] >= start + RISEN * (top - start)) & (rows["chosen"] > start))
    return rejected / risen


def end(name: str) -> Statistic:
    """A column's last value less its first."""
    return lambda rows: float(rows[name].iloc[-1] - rows[name].iloc[0])


def push_left(rows: Rows) -> float:
    """The push on ln chosen at the end, as a share of that at the start."""
    return float(rows["chosen_push"].iloc[-1] / rows["chosen_push"].iloc[0])


def at_margin(name: str) -> Statistic:
    """A column at the first step with the margin MARGIN, less its first value; NaN where it is never reached."""

    def value(rows: Rows) -> float:
        reached = rows.loc[rows["chosen_change"] - rows["rejected_change"] >= MARGIN, name]
        return float(reached.iloc[0] - rows[name].iloc[0]) if len(reached) else math.nan

    return value


def by_seed(toy: Rows, statistic: Statistic, source: str, objective: str = "dpo", optimizer: str = "adam") -> pd.Series:
    """The statistic of one case, by seed."""
    wanted = (toy["source"] == source) & (toy["objective"] == objective) & (toy["optimizer"] == optimizer)
    found = {seed: statistic(rows) for seed, rows in toy.loc[wanted].sort_values("step").groupby("seed")}
    return pd.Series(found, dtype=float)


@once
def halves(paper: Paper) -> pd.DataFrame:
    """world, seed, case (on, off): mean changes a token of chosen and rejected since the start, nats, at the end."""
    rows = []
    for row in paper.runs.query("case != 'all'").to_dict("records"):
        ends = runs.ends(runs.rows(paper.log(row["run"]), "probe"))
        moved = {side: mean(ends[f"{side}_change"] / ends[f"{side}_length"]) for side in ("chosen", "rejected")}
        rows.append({name: row[name] for name in ("world", "seed", "case")} | moved | {"pairs": len(ends)})
    return pd.DataFrame(rows, columns=["world", "seed", "case", "chosen", "rejected", "pairs"])


@once
def whole(paper: Paper) -> pd.DataFrame:
    """world, seed, step: the language model on all pairs. chosen_change, rejected_change: mean changes of summed
    log-probs (nats); chosen, rejected, unseen: probabilities where the two answers first differ."""
    frames = []
    for row in paper.runs.query("case == 'all'").to_dict("records"):
        log = paper.log(row["run"])
        table = mass.ledger(log.mass).rename(columns={"other": "unseen"})
        moved = runs.rows(log, "probe").pivot_table(["chosen_change", "rejected_change"], "step")
        joined = pd.concat([moved, table], axis=1).rename_axis("step").reset_index()
        frames.append(joined.assign(world=row["world"], seed=row["seed"], pairs=mass.probe_count(log)))
    return pd.concat(frames, ignore_index=True)


def curves(paper: Paper) -> Block:
    """Chosen, rejected and unseen probability on one axis, by source of the pairs."""
    return page.picture(draw_masses(paper.tables["toy"]), "Probability of chosen, rejected and unseen answers by step")


def pushes(paper: Paper) -> Block:
    """Chosen's own push, and how much steeper the loss is in the rejected probability."""
    return page.picture(draw_pushes(paper.tables["toy"]), "Chosen's push and the gradient ratio by step")


def variants(paper: Paper) -> Block:
    """Every objective on pairs of any answers: where the three probabilities ended."""
    toy = paper.tables["toy"]
    names = [str(name) for name in dict.fromkeys(toy["objective"])]
    return page.table(summary(toy, [("any", name, "adam") for name in names], "objective"))


def controls(paper: Paper) -> Block:
    """DPO by source of the two answers and by optimizer."""
    toy = paper.tables["toy"]
    toy = where(toy, objective="dpo")
    cases = dict.fromkeys(zip(toy["optimizer"], toy["source"]))
    return page.table(summary(toy, [(str(source), "dpo", str(how)) for how, source in cases], "case"))


def language_model(paper: Paper) -> Block:
    """Chosen, rejected and unseen probability in the language model where the two answers first differ."""
    return page.picture(draw_language_model(whole(paper)), "Probability at the first differing token by step")


def sources(paper: Paper) -> Block:
    """The halves of likely and of unlikely pairs: mean changes a token."""
    table = spreads(halves(paper), {"world": WORLDS, "case": _HALF}, runs.SIDES, sign=True)
    heads = {"case": "trained on"} | {side: f"{side}, nats a token" for side in runs.SIDES}
    return page.table(table, heads=heads) if len(table) else page.missing("The language model", "No run.")


_HALF = {"on": "half of pairs most likely to the reference", "off": "the other half"}
_HOW = {
    "adam": "Adam",
    "half": "Adam, half the rate",
    "sgd": "SGD",
    "rmsprop": "RMSprop",
    "narrow": "narrow network, Adam",
    "table": "no network, Adam",
}


def summary(toy: Rows, cases: list[tuple[str, str, str]], first: str) -> pd.DataFrame:
    """One row a case (source, objective, optimizer): changes from start to end and at the margin MARGIN, mean ± half
    of the 95 % interval over seeds."""
    wanted = {
        "ln chosen": end("chosen_change"),
        "ln rejected": end("rejected_change"),
        "unseen mass": end("unseen"),
        f"ln chosen at margin {MARGIN:g}": at_margin("chosen_change"),
        f"unseen mass at margin {MARGIN:g}": at_margin("unseen"),
    }
    rows = []
    for case in cases:
        found = {name: by_seed(toy, statistic, *case) for name, statistic in wanted.items()}
        label = _label(case[1]) if first == "objective" else f"{SOURCES.get(case[0], case[0])}; {_HOW[case[2]]}"
        said = {k: _mean(v) for k, v in found.items()}
        rows.append({first: label, "seeds": len(found["ln chosen"])} | said)
    return pd.DataFrame(rows)


@styled
def draw_masses(toy: pd.DataFrame) -> Figure:
    """One panel a source: mean over seeds, each seed faint. toy: rows of DPO with Adam and others."""
    figure, all_axes = panels(len(SOURCES), height=4.0, width=12.0)
    for axes, (source, title) in zip(all_axes, SOURCES.items()):
        rows = _standard(toy, source)
        for name, colour in (("chosen", CHOSEN), ("rejected", REJECTED), ("unseen", UNSEEN)):
            _lines(axes, rows, name, colour, name)
        change = [mean(by_seed(toy, end(name), source)) for name in ("chosen", "unseen")]
        axes.set(xscale="symlog", yscale="log", xlabel="step", ylim=(1e-9, 1.6), xlim=(0, rows["step"].max()))
        axes.set_title(f"{title}: chosen {signed(change[0])}, unseen {signed(change[1])}")
        below(axes, 3)
    all_axes[0].set_ylabel("probability, mean over prompts")
    return figure


@styled
def draw_language_model(table: pd.DataFrame) -> Figure:
    """One panel a world: mean over seeds of the probabilities at the first differing token. table: from `whole`."""
    names = [w for w in WORLDS if w in set(table["world"])]
    figure, all_axes = panels(len(names), height=3.8, width=7.5)
    for axes, world in zip(all_axes, names):
        rows = where(table, world=world)
        for name, colour in (("chosen", CHOSEN), ("rejected", REJECTED), ("unseen", UNSEEN)):
            _lines(axes, rows, name, colour, {"unseen": "all other tokens"}.get(name, name))
        ends = rows.loc[rows["step"] == rows["step"].max()]
        axes.set(xlabel="optimizer step", ylabel="probability, mean over pairs", yscale="log")
        axes.set_title(f"{WORLDS[world]}: ln chosen {signed(mean(ends['chosen_change']))} nats, rejected "
                       f"{signed(mean(ends['rejected_change']))}")  # fmt: skip
        below(axes, 3)
    return figure


@styled
def draw_pushes(toy: pd.DataFrame) -> Figure:
    """Left: the push on ln chosen as a share of its start. Right: log10 of pi_w / pi_l, the loss's steepness ratio."""
    figure, (left, right) = panels(2, height=3.8)
    rows = _standard(toy, "any").copy()
    first = rows.groupby("seed")["chosen_push"].transform("first")
    rows = rows.assign(share=rows["chosen_push"] / first, ratio=rows["log_ratio"] / np.log(10))
    _lines(left, rows, "share", CHOSEN, "chosen")
    _lines(right, rows, "ratio", REJECTED, "π_w / π_l")
    last = rows.loc[rows["step"] == rows["step"].max()]
    left.set(xlabel="step", ylabel="push on ln π_w, of its start", ylim=(0, 1.05))
    left.set_title(f"Chosen's push ends at {percent(mean(last['share']))} of its start")
    right.set(xlabel="step", ylabel="log₁₀ of |dL/dπ_l| / |dL/dπ_w|")
    right.set_title(f"The ratio ends at $10^{{{mean(last['ratio']):.0f}}}$")
    right.axhline(0, color=DARK, lw=0.8)
    return figure


def _toy(toy: Rows) -> dict[str, Measured]:
    values: dict[str, pd.Series] = {}
    for source in SOURCES:
        values[f"drop_{source}"] = by_seed(toy, drop_time, source)
        values[f"fall_{source}"] = by_seed(toy, end("chosen_change"), source)
        values[f"unseen_{source}"] = by_seed(toy, end("unseen"), source)
    values["size_any"] = (by_seed(toy, end("rejected_change"), "any") / values["fall_any"]).abs()
    values["push_any"] = by_seed(toy, push_left, "any")
    values |= _milder(toy) | _repaired(toy)
    for how in OTHERS:
        values[f"fall_{how}"] = by_seed(toy, at_margin("chosen_change"), "any", optimizer=how)
        values[f"unseen_{how}"] = by_seed(toy, at_margin("unseen"), "any", optimizer=how)
    values["table_fall"] = by_seed(toy, end("fell"), "any", optimizer="table")
    values["table_unseen"] = by_seed(toy, end("unseen"), "any", optimizer="table")
    rose = int(min(values["fall_on"].min(), values["fall_off"].min()) > 0)
    notes: dict[str, str] = dict.fromkeys(("milder_fall", "milder_fall_equal", "source_chosen"), ROOM * rose)
    return {
        name: Measured(of.tolist(), count(len(of), "seed"), note=notes.get(name, "")) for name, of in values.items()
    }


def _milder(toy: Rows) -> dict[str, pd.Series]:
    def gap(statistic: Statistic, one: str = "on", other: str = "off") -> pd.Series:
        return by_seed(toy, statistic, one) - by_seed(toy, statistic, other)

    chosen, both = end("chosen_change"), ("chosen on, rejected off", "chosen off, rejected on")
    return {
        "milder_drop": gap(end("rejected_change")),
        "milder_fall": gap(chosen),
        "milder_unseen": gap(end("unseen")),
        "milder_fall_equal": gap(at_margin("chosen_change")),
        "source_chosen": (gap(chosen, "on", both[1]) + gap(chosen, both[0], "off")) / 2,
        "source_rejected": (gap(chosen, "on", both[0]) + gap(chosen, both[1], "off")) / 2,
    }


def _repaired(toy: Rows) -> dict[str, pd.Series]:
    def gap(statistic: Statistic, objective: str) -> pd.Series:
        return by_seed(toy, statistic, "any", objective) - by_seed(toy, statistic, "any")

    return {
        "flex_drop": gap(end("rejected_change"), "Flex-DPO"),
        "flex_fall": gap(end("chosen_change"), "Flex-DPO"),
        "flex_sgd": _sgd_gap(toy),
        "flex_equal": gap(at_margin("chosen_change"), "Flex-DPO"),
        "sft_fall": gap(end("chosen_change"), "DPO + SFT"),
        "sft_unseen": gap(end("unseen"), "DPO + SFT"),
        "sft_equal": gap(at_margin("chosen_change"), "DPO + SFT"),
    }


def _sgd_gap(toy: Rows) -> pd.Series:
    one, other = (by_seed(toy, end("rejected_change"), "any", name, "sgd") for name in ("Flex-DPO", "dpo"))
    return one - other


def _properties(table: pd.DataFrame) -> dict[str, Measured]:
    found = {}
    for world, rows in table.groupby("world"):
        n = f"{count(len(set(rows['seed'])), 'seed')} of {max(rows['pairs'])} pairs"
        first, last = (getattr(rows.sort_values("step").groupby("seed"), name)() for name in ("first", "last"))
        values = {
            "size": last["rejected_change"] - last["chosen_change"],
            "fall": last["chosen_change"],
            "unseen": last["unseen"] - first["unseen"],
        }
        found |= {f"lm_{name}_{world}": Measured(of.tolist(), n) for name, of in values.items()}
    return found


def _milder_pairs(table: pd.DataFrame) -> dict[str, Measured]:
    found = {}
    for world, rows in table.groupby("world"):
        wide = rows.assign(rate=rows["chosen"] / (rows["chosen"] - rows["rejected"])).pivot(
            index="seed", columns="case"
        )
        n = f"{count(len(wide), 'seed')} of {max(rows['pairs'])} pairs a half"
        for claim, name in (("chosen", "chosen"), ("rejected", "rejected"), ("margin", "rate")):
            gap = wide[(name, "on")] - wide[(name, "off")]
            found[f"lm_{claim}_{world}"] = Measured(gap.tolist(), n)
    return found


def _standard(toy: Rows, source: str) -> Rows:
    return where(toy, source=source, objective="dpo", optimizer="adam")


def _lines(axes: Axes, rows: Rows, name: str, colour: str, label: str) -> None:
    for _, of in rows.groupby("seed"):
        axes.plot(of["step"], of[name], color=colour, alpha=0.25, lw=0.8)
    middle = rows.pivot_table(name, "step")
    axes.plot(middle.index, middle[name], color=colour, lw=2, label=label)


def _first(rows: Rows, reached: pd.Series) -> float:
    steps = rows.loc[reached, "step"].tolist()
    return max(1.0, float(steps[0] if steps else max(rows["step"])))


def _mean(values: pd.Series) -> str:
    return plus_minus(values, sign=True) if values.notna().any() else "never reached"


def _label(objective: str) -> str:
    return "DPO" if objective == "dpo" else objective
