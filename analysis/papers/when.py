"""When does a real model displace? Every cell of the map is one run; the share of its chosen answers that fell is read
where the mean margin has grown by as much in all of them."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.papers import Measured, Paper, groups, once, per_seed, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CHOSEN, CYCLE, DARK, below, panels, styled
from analysis.show.wording import correlation, count, number, percent, span
from analysis.tables import runs
from analysis.tables.intervals import mean, share_interval, spearman
from diagnostics import outcomes

MARGIN = 4.0  # nats by which the mean margin has grown where the cells are compared
CHANCE = 0.5  # balanced accuracy of what always says the same
MOST = 0.5  # a cell displaces where more than this share of its chosen answers fell
STARTS = {"instruct": "the model as it is", "sft": "after SFT on chosen answers"}
SOURCES = {"own": "two own answers", "near": "own answer, one word more", "given": "the data's answers"}
WINNERS = {"learnable": "can be learned", "random": "by a coin"}
KEYS = ["seed", "start", "source", "winner"]
# what is known of a set of pairs before training, each turned so that high should mean prone
PREDICTORS = {
    "negative": "share of pairs with set_rate below 0",
    "pull": "minus mean set_rate over mean |set_rate|",
    "ches": "mean LN-CHES",
    "edit": "mean similarity of the two answers (edit distance)",
    "on_policy": "log-prob per token of the chosen answers, less that of the model's own",
    "longer": "mean log of rejected over chosen length",
}


def measured(paper: Paper) -> dict[str, Measured]:
    """Every claim, one value a seed."""
    table, found = cells(paper), {}
    instruct, after = where(table, start="instruct"), where(table, start="sft")
    high = after["rate"].max()
    own = instruct.loc[instruct["source"] != "given"]
    found["random"] = _difference(own, "winner", "random", "learnable")
    found["given"] = where(instruct, source="given", winner="learnable").groupby("seed")["fell"].mean()
    found["own"] = _difference(instruct.loc[instruct["source"] != "near"], "source", "own", "given")
    found["near"] = _difference(own, "source", "near", "own")
    found["rate"] = _difference(instruct, "rate", instruct["rate"].max(), instruct["rate"].min())
    given = table.loc[(table["source"] == "given") & (table["rate"] == high)]
    found["sft"] = _difference(given, "start", "sft", "instruct")
    law = rule(paper)
    held = {seed: of for (seed,), of in groups(after, "seed")}
    found["ranks"] = pd.Series({s: spearman(of[law.name], of["fell"]) for s, of in held.items()}, dtype=float)
    found["right"] = pd.Series({s: law.right(of) for s, of in held.items()}, dtype=float)
    return per_seed(found)


@once
def cells(paper: Paper) -> pd.DataFrame:
    """One row a cell: its labels, n (pairs), fell (share at MARGIN; NaN where it was not reached), fell_end, chosen and
    margin (mean changes at the end, nats), reached, and every predictor of its pairs."""
    before, rows = predictors(paper), []
    for labels in paper.runs.to_dict("records"):
        if labels["source"] != "sft":
            kept = {name: labels[name] for name in (*KEYS, "rate")}
            rows.append(kept | _outcome(runs.rows(paper.log(str(labels["run"])), "probe")))
    return pd.DataFrame(rows).merge(before, on=KEYS, how="left")


@once
def predictors(paper: Paper) -> pd.DataFrame:
    """One row a set of pairs: seed, start, source, winner and PREDICTORS."""
    scores, rows = paper.tables["scores"], []
    scores = scores.assign(token=scores["chosen_logps"] / scores["chosen_length"])
    own = where(scores, source="own").groupby(["seed", "start"])["token"].mean()
    for key, of in groups(scores, *KEYS):
        rate = of["set_rate"]
        rows.append(
            dict(zip(KEYS, key, strict=True))
            | {
                "negative": mean(rate < 0),
                "pull": -mean(rate) / mean(rate.abs()),
                "ches": mean(of["ln_ches_score"]),
                "edit": mean(of["edit_similarity"]),
                "on_policy": mean(of["token"]) - float(own[key[:2]]),
                "longer": mean(np.log(of["rejected_length"] / of["chosen_length"])),
            }
        )
    return pd.DataFrame(rows)


@dataclass(frozen=True)
class Rule:
    """More than MOST of the chosen answers fall where a predictor lies above a bound (NaN: there is no rule); rho: its
    rank correlation with the share that fell, over the cells that it was made from."""

    name: str
    bound: float
    rho: float

    def right(self, table: pd.DataFrame) -> float:
        """Balanced accuracy: the mean of the shares that it says right of cells in which most fell, and of the others;
        .5 is what always saying the same gets. NaN without a rule, or without cells of either kind."""
        return _balanced(table, self.name, self.bound)


@once
def rule(paper: Paper) -> Rule:
    """The predictor of the highest rank correlation over the cells of the model as it is, and the bound of the highest
    balanced accuracy there; no bound where none is above chance, or in no cell, or in all, more than MOST fell."""
    made_from = where(cells(paper), start="instruct")
    rhos = {name: spearman(made_from[name], made_from["fell"]) for name in PREDICTORS}
    name = max(rhos, key=lambda n: rhos[n] if math.isfinite(rhos[n]) else -2)
    values = np.sort(made_from[name].dropna().unique())
    scored = {float(bound): _balanced(made_from, name, bound) for bound in (values[1:] + values[:-1]) / 2}
    known = {bound: score for bound, score in scored.items() if score > CHANCE}
    return Rule(name, max(known, key=lambda bound: known[bound]) if known else math.nan, rhos[name])


def law(paper: Paper) -> Block:
    """The rule in words, and how it did on the cells that it was not made from."""
    found, after = rule(paper), where(cells(paper), start="sft")
    made_from = where(cells(paper), start="instruct")
    if math.isnan(found.bound):
        words = (
            f"There is no rule: nothing known before tells the cells in which more than {percent(MOST)} fell. The best"
        )
        rho = correlation(found.rho)
        return page.note(f"{words} predictor is {PREDICTORS[found.name]} (Spearman {rho}).", "verdict")
    said = (
        f"Best of {len(PREDICTORS)} on the {count(len(made_from), 'cell')} of the model as it is: "
        f"{PREDICTORS[found.name]} (Spearman {correlation(found.rho)}). Rule: more than {percent(MOST)} of the chosen "
        f"answers fall where it is above {number(found.bound)}. Its balanced accuracy is "
        f"{number(found.right(made_from))} on these cells (.5 is chance)"
    )
    if after.empty:
        return page.note(f"{said}; there are no others to try it on.", "verdict")
    ranks = correlation(spearman(after[found.name], after["fell"]))
    return page.note(
        f"{said}, and {number(found.right(after))} on the {count(len(after), 'cell')} after SFT, from which it was not "
        f"made (Spearman there {ranks}).",
        "verdict",
    )


def chart(paper: Paper) -> Block:
    """The map: share of chosen answers that fell, by source, winner, start and rate."""
    table, rows = cells(paper), []
    for (start, source, winner, rate), of in groups(table, "start", "source", "winner", "rate"):
        interval = share_interval(of["fell"], of["n"])
        rows.append(
            {
                "start": STARTS[start],
                "answers": SOURCES[source],
                "winner": WINNERS[winner],
                "rate": f"{rate:g}",
                "seeds": len(of),
                "fell": f"{percent(mean(of['fell']))} ({span(interval, percent)})",
                "fell at the end": percent(mean(of["fell_end"])),
                "chosen, nats": number(mean(of["chosen"]), 1),
                "margin, nats": number(mean(of["margin"]), 1),
                "margin reached": f"{of['reached'].sum():.0f} of {len(of)}",
            }
        )
    return page.stack(
        page.picture(draw(table), "Share of chosen answers that fell in every cell of the map"),
        page.table(pd.DataFrame(rows)),
    )


def told(paper: Paper) -> Block:
    """Every predictor's rank correlation with the share that fell: on the cells that the rule was made from, and on the
    others."""
    table, rows = cells(paper), []
    for name, words in PREDICTORS.items():
        row = {"known before training": words}
        for start, said in STARTS.items():
            of = where(table, start=start)
            row[said] = f"{correlation(spearman(of[name], of['fell']))} ({count(len(of), 'cell')})"
        rows.append(row)
    return page.stack(
        page.picture(draw_rule(table, rule(paper)), "The best predictor and the share that fell"),
        page.table(pd.DataFrame(rows)),
    )


@styled
def draw(table: pd.DataFrame) -> Figure:
    """One panel a start; one row a source and winner; a point a run, its colour the rate."""
    figure, all_axes = panels(len(STARTS), height=4.2, width=10.5)
    names = [(source, winner) for source in SOURCES for winner in WINNERS]
    colours = dict(zip(sorted(table["rate"].unique()), CYCLE))
    for axes, (start, said) in zip(all_axes, STARTS.items()):
        for y, (source, winner) in enumerate(names):
            for k, (rate, colour) in enumerate(colours.items()):
                of = where(table, start=start, source=source, winner=winner, rate=rate)
                axes.plot(of["fell"], [y + 0.18 * (k - 0.5)] * len(of), "o", color=colour, ms=5, alpha=0.8,
                          label=f"rate {rate:g}" if y == 0 else None)  # fmt: skip
        axes.set(title=said, xlim=(-0.05, 1.05), xlabel=f"share of chosen answers that fell, margin +{MARGIN:g} nats")
        axes.set_yticks(range(len(names)), [f"{SOURCES[s]},\nwinner {WINNERS[w]}" for s, w in names])
        axes.invert_yaxis()
        axes.axvline(MOST, color=DARK, lw=0.8, ls="--")
    all_axes[-1].set_yticklabels([])
    below(all_axes[0])
    return figure


@styled
def draw_rule(table: pd.DataFrame, law: Rule) -> Figure:
    """Predictor against share; filled: the cells that the rule was made from; the lines: its bound and MOST."""
    figure, (axes,) = panels(1, height=3.8, width=6.5)
    for start, said in STARTS.items():
        of = where(table, start=start)
        axes.plot(of[law.name], of["fell"], "o", mfc=CHOSEN if start == "instruct" else "none", mec=CHOSEN, label=said)
    axes.axvline(law.bound, color=DARK, lw=0.8, ls="--")
    axes.axhline(MOST, color=DARK, lw=0.8, ls="--")
    axes.set(xlabel=PREDICTORS[law.name], ylabel="share that fell", ylim=(-0.05, 1.05))
    below(axes)
    return figure


def _balanced(table: pd.DataFrame, name: str, bound: float) -> float:
    known = table.loc[table[name].notna() & table["fell"].notna()]
    said, most = (known[name] > bound).to_numpy(), (known["fell"] > MOST).to_numpy()
    return (
        math.nan if math.isnan(bound) or most.all() or not most.any() else (mean(said[most]) + mean(~said[~most])) / 2
    )


def _difference(table: pd.DataFrame, name: str, one: object, other: object) -> pd.Series:
    """By seed: mean share that fell where a label has one value, less where it has the other."""
    one_side, other_side = (where(table, **{name: value}).groupby("seed")["fell"].mean() for value in (one, other))
    return pd.Series(one_side - other_side)


def _outcome(rows: pd.DataFrame) -> dict[str, float]:
    """Of a run's probed pairs, see `cells`."""
    steps = [of.set_index("pair_id") for _, of in rows.groupby("step")]
    margins = [mean(of["margin_change"]) for of in steps]
    at = next((k for k, m in enumerate(margins) if m >= MARGIN), None)
    change = steps[-1]["chosen_change"]
    if at:
        share = (MARGIN - margins[at - 1]) / (margins[at] - margins[at - 1])
        change = (1 - share) * steps[at - 1]["chosen_change"] + share * steps[at]["chosen_change"]
    return {
        "n": len(change),
        "fell": math.nan if at is None else mean(outcomes.fell(change, steps[-1]["noise"])),
        "fell_end": mean(outcomes.fell(steps[-1]["chosen_change"], steps[-1]["noise"])),
        "chosen": mean(steps[-1]["chosen_change"]),
        "margin": margins[-1],
        "reached": float(at is not None),
    }
