"""Squeezing: answers of several types followed through DPO, the argmax confidence, and the exact one-step law."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis.papers import EXACT, WORLDS, Measured, Paper, once, spreads, where
from analysis.run.curve_figures import TYPE
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CHOSEN, CYCLE, DARK, REJECTED, below, panels, styled
from analysis.show.wording import ABSENT, count, signed
from analysis.tables.intervals import half_width, mean
from analysis.tables.mass import RESPONSES, of_kind

CASES = {
    "dpo": "DPO",
    "off": "DPO, unlikely rejected",
    "random": "DPO, another pair's rejected",
    "sft_term": "DPO + SFT term",
    "sgd": "DPO, plain SGD",
    "after_chosen": "DPO after SFT on chosen",
    "after_both": "DPO after SFT on both",
    "sft_chosen": "SFT on chosen",
    "sft_both": "SFT on both",
}
LABELS = ["world", "seed", "case"]
MEASURES = {
    "chosen": "chosen answer",
    "argmax": "argmax confidence, ln max p",
    "rest": "everything else, ln (1 − max p)",
}


def measured(paper: Paper) -> dict[str, Measured]:
    """The exact law, and for the runs of each world one value a seed: a change, or its difference between cases."""
    table, found = ends(paper), {}
    for world in (w for w in WORLDS if w in set(table["world"])):
        for name, values in changes(where(table, world=world)).items():
            n = seeds_of_pairs(paper, world)
            found |= {f"{name}_{world}": Measured(values.dropna().tolist(), n)} if len(values.dropna()) else {}
    return {name: Measured([value], EXACT) for name, value in exact(paper.tables["law"]).items()} | found


def changes(table: pd.DataFrame) -> dict[str, pd.Series]:
    """The claims' values by seed, of one world's ends."""

    def of(case: str, name: str) -> pd.Series:
        rows = where(table, case=case, name=name)
        return rows.set_index("seed")["change"]

    found = {name: of("dpo", name) for name in ("chosen", "rejected", "other", "shuffled", "first")}
    found |= {"confidence": of("dpo", "argmax"), "everything_else": of("dpo", "rest")}
    found |= {"own": of("dpo", "own") - found["chosen"], "gap": found["chosen"] - found["other"]}
    found |= {"leak": of("sft_chosen", "other"), "extend_plain": of("after_both", "chosen") - found["chosen"]}
    found |= {
        "term_chosen": of("sft_term", "chosen"),
        "term_confidence": of("sft_term", "argmax") - of("dpo", "argmax"),
    }
    for side, name in (("chosen", "chosen"), ("confidence", "argmax")):
        found[f"off_{side}"] = of("off", name) - of("dpo", name)
        found[f"extend_{side}"] = of("after_both", name) - of("after_chosen", name)
        found |= {f"{case}_{side}": of(case, name) for case in ("random", "sgd")}
    return found


def exact(law: pd.DataFrame) -> dict[str, float]:
    """The exact rows: shares of the sweep, and the largest spread."""
    return {
        "law_rejected": mean(law["rejected"] < 0),
        "law_argmax": mean(law["argmax"] > 0),
        "law_rich": mean(law["ordered"]),
        "law_peaky": _falling(law, "exponent"),
        "law_tail": _falling(law.assign(tail=-law["p"]), "tail", ["entries", "exponent", "rate"]),
        "law_pair": float(np.max(law["pair_spread"])),
        "law_pair_chosen": mean(law["pair_chosen"] > 0),
    }


@once
def responses(paper: Paper) -> pd.DataFrame:
    """Mean change since the start by world, seed, case, name and step, nats per token.

    name: the answer types, and `first`, the argmax where chosen and rejected first differ.
    """
    found = []
    for row in paper.runs.to_dict("records"):
        rows = of_kind(paper.log(row["run"]).mass, ("response", "argmax"))
        rows = rows.assign(name=rows["name"].where(rows["kind"] == "response", "first"), logp=np.log(rows["prob"]))
        start = rows.loc[rows["step"] == rows["step"].min()].set_index(["name", "pair_id"])["logp"]
        rows = rows.join(start.rename("start"), on=["name", "pair_id"])
        found.append(rows.assign(change=rows["logp"] - rows["start"], **{name: row[name] for name in LABELS}))
    groups = pd.concat(found, ignore_index=True).groupby([*LABELS, "name", "step"])["change"]
    return pd.DataFrame({"change": groups.mean()}).reset_index()


def ends(paper: Paper) -> pd.DataFrame:
    """Change from start to end (nats per token) by world, seed, case and name: `responses`, argmax and rest."""
    steps = responses(paper)
    last = steps.loc[steps["step"] == steps.groupby(LABELS)["step"].transform("max")]
    of_argmax = confidence(paper.tables["confidence"])
    return pd.concat([last.drop(columns="step"), of_argmax], ignore_index=True)


def confidence(table: pd.DataFrame) -> pd.DataFrame:
    """Change of argmax and rest by world, seed and case, mean over pairs and both sides. Column change."""
    long = table.melt([*LABELS, "when"], ["argmax", "rest"], var_name="name")
    means = long.pivot_table("value", [*LABELS, "name"], "when")
    return pd.DataFrame({"change": means["end"] - means["start"]}).reset_index()


def seeds_of_pairs(paper: Paper, world: str) -> str:
    """`5 seeds of 64 pairs`."""
    table = paper.tables["confidence"]
    table = where(table, world=world)
    seeds, pairs = table["seed"].nunique(), table.groupby(LABELS)["pair_id"].nunique().max()
    return f"{count(int(seeds), 'seed')} of {count(int(pairs), 'pair')}"


def types(paper: Paper) -> Block:
    """The answer types over steps, under DPO and under SFT on the chosen answers."""
    table = over_seeds(responses(paper).query("name != 'first'"), ["world", "case", "name", "step"])
    return _each_world(paper, table, draw_types, "Change of each answer type over steps, DPO and SFT")


def by_case(paper: Paper) -> Block:
    """Chosen answer, argmax confidence and everything else at the end of every case."""
    table = over_seeds(ends(paper), ["world", "case", "name"])
    return _each_world(paper, table, draw_cases, "Change of chosen, argmax and rest by case")


def starts(paper: Paper) -> Block:
    """The chosen answer over steps: by rejected answers, and by start model."""
    table = over_seeds(responses(paper).query("name == 'chosen'"), ["world", "case", "step"])
    return _each_world(paper, table, draw_starts, "Change of the chosen answer by case over steps")


def one_step(paper: Paper) -> Block:
    """The exact step: by rank of the entry, and over the sweep."""
    figure = draw_law(paper.tables["entries"], paper.tables["law"])
    return page.picture(figure, "Log change of the entries of a softmax by one negative gradient step")


def numbers(paper: Paper) -> Block:
    """Every change of every case, mean over seeds ± half of its 95 % interval."""
    names = [*RESPONSES, "first", "argmax", "rest"]
    wide = ends(paper).pivot_table("change", LABELS, "name").reindex(columns=names).reset_index()
    shown = spreads(wide, {"world": WORLDS, "case": CASES}, names, sign=True).replace(ABSENT, "–")
    heads = RESPONSES | MEASURES | {"first": "ln max p where the sides first differ"}
    return page.table(shown, heads=heads)


def over_seeds(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Mean of change over seeds with half of its 95 % interval (NaN for one seed): columns by, change, half, n."""
    groups = table.groupby(by)["change"]
    return pd.DataFrame({"change": groups.mean(), "half": groups.agg(half_width), "n": groups.size()}).reset_index()


@styled
def draw_types(table: pd.DataFrame, n: str) -> Figure:
    """One panel a case, one line an answer type. table: over_seeds by case, name and step."""
    cases = [case for case in ("dpo", "sft_chosen") if case in set(table["case"])]
    figure, all_axes = panels(len(cases), height=4.6)
    for axes, case in zip(all_axes, cases):
        rows = where(table, case=case)
        for name in (name for name in RESPONSES if name in set(rows["name"])):
            _line(axes, where(rows, name=name), TYPE[name], RESPONSES[name])
        last = rows.loc[rows["step"] == rows["step"].max()]
        fell = f"{(last['change'] < 0).sum()} of {len(last)} answer types end lower"
        _frame(axes, f"{CASES[case]}: {fell}")
        below(axes, 1)
    figure.suptitle(f"Mean of {n}; bands: 95 % over seeds", x=0.01, ha="left", fontsize=10)
    return figure


@styled
def draw_cases(table: pd.DataFrame, n: str) -> Figure:
    """One panel a measure, one point a case with its interval. table: over_seeds by case and name."""
    cases = [case for case in CASES if case in set(table["case"])]
    figure, all_axes = panels(len(MEASURES), height=4.0)
    places = range(len(cases))[::-1]
    for axes, (name, label), colour in zip(all_axes, MEASURES.items(), (CHOSEN, CYCLE[2], CYCLE[3])):
        rows = where(table, name=name).set_index("case").reindex(cases)
        axes.errorbar(rows["change"], list(places), xerr=rows["half"].fillna(0), fmt="o", color=colour, capsize=3)
        axes.axvline(0, color=DARK, lw=0.8)
        axes.set_yticks(list(places), [CASES[case] if axes is all_axes[0] else "" for case in cases])
        axes.set_title(label, fontsize=10)
        axes.set_xlabel("change (nats per token)")
    rise = where(table, case="dpo", name="argmax")["change"].iloc[0]
    title = f"Change of the argmax confidence under DPO: {signed(rise)} nats per token"
    figure.suptitle(f"{title} ({n})", x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


@styled
def draw_starts(table: pd.DataFrame, n: str) -> Figure:
    """Lines of the chosen answer over steps. table: over_seeds by case and step."""
    sets = {"by rejected answers": ("dpo", "off", "random"), "by start model": ("dpo", "after_chosen", "after_both")}
    figure, all_axes = panels(2, height=4.2)
    for axes, (title, cases) in zip(all_axes, sets.items()):
        for colour, case in zip((CHOSEN, REJECTED, CYCLE[2]), cases):
            _line(axes, where(table, case=case), colour, CASES[case])
        _frame(axes, title)
        below(axes, 1)
    last = table.sort_values("step").groupby("case").tail(1).query("case != 'sft_chosen' and case != 'sft_both'")
    lowest = last.loc[last["change"].idxmin(), "case"]
    figure.suptitle(f"Chosen answers end lowest with {CASES[lowest]} ({n})", x=0.01, ha="left", fontweight="bold")
    return figure


@styled
def draw_law(entries: pd.DataFrame, law: pd.DataFrame) -> Figure:
    """Left: log change by rank for three softmaxes. Right: that of the rest over the sweep at 100 entries, step 1."""
    figure, (left, right) = panels(2, height=4.2)
    for colour, (exponent, rows) in zip(CYCLE, entries.groupby("exponent")):
        left.plot(
            rows["rank"],
            rows["change"],
            "o-",
            ms=3,
            color=colour,
            label=f"p ∝ rank^−{exponent:g}" if exponent else "flat",
        )
    left.axhline(0, color=DARK, lw=0.8)
    left.set_title("The likeliest gains, the rest pays", fontsize=11)
    left.set(xlabel="rank of the entry, most likely first", ylabel="change of ln p (nats)", xticks=[1, 5, 10, 15, 19])
    below(left, 3)
    shown = law.loc[(law["entries"] == law["entries"].unique()[len(law["entries"].unique()) // 2])]
    shown = shown.loc[shown["rate"] == shown["rate"].unique()[len(shown["rate"].unique()) // 2]]
    for colour, exponent in zip(CYCLE, sorted(shown["exponent"].unique())[:: max(1, shown["exponent"].nunique() // 4)]):
        rows = where(shown, exponent=exponent).sort_values("p")
        right.plot(
            rows["p"], rows["rest"], "o-", ms=3, color=colour, label=f"rank^−{exponent:g}" if exponent else "flat"
        )
    right.axhline(0, color=DARK, lw=0.8)
    right.set_xscale("log")
    right.set_title("More so when the rejected entry is unlikely", fontsize=11)
    right.set(xlabel="p of the rejected entry", ylabel="mean change of ln p of the rest (nats)")
    below(right, 3)
    return figure


def _each_world(paper: Paper, table: pd.DataFrame, draw: Callable[[pd.DataFrame, str], Figure], alt: str) -> Block:
    worlds = [world for world in WORLDS if world in set(table["world"])]
    drawn = [
        page.picture(draw(where(table, world=w), f"{WORLDS[w]}, {seeds_of_pairs(paper, w)}"), f"{alt}: {w}")
        for w in worlds
    ]
    return page.stack(*drawn)


def _line(axes: Axes, rows: pd.DataFrame, colour: str, label: str) -> None:
    low, high = rows["change"] - rows["half"], rows["change"] + rows["half"]
    axes.fill_between(rows["step"], low, high, color=colour, alpha=0.15, lw=0)
    axes.plot(rows["step"], rows["change"], "o-", ms=3, color=colour, label=label)


def _frame(axes: Axes, title: str) -> None:
    axes.axhline(0, color=DARK, lw=0.8)
    axes.set_title(title, fontsize=11)
    axes.set(xlabel="optimizer step", ylabel="change of log-likelihood\n(nats per token)")


def _falling(law: pd.DataFrame, along: str, groups: list[str] | None = None) -> float:
    """Share of neighbouring points along one axis of the sweep at which the rest falls further."""
    by = groups or ["entries", "p", "rate"]
    steps = law.sort_values(along).groupby(by)["rest"].diff().dropna()
    return mean(steps < 0)
