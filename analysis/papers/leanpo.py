"""LeanPO: the likelihoods of both answers over training, by objective, on given and on the model's own pairs."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import papers
from analysis.compare import board
from analysis.compare import figures as board_figures
from analysis.compare.figures import Dots
from analysis.papers import Measured, Paper, groups, once, per_seed, plus_minus, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CHOSEN, CYCLE, DARK, panels, styled
from analysis.show.wording import percent, signed
from analysis.tables import runs
from analysis.tables.intervals import mean
from diagnostics.outcomes import fell

PAIRS = {"given": "given pairs", "own": "own pairs"}
DRAWN = ("DPO", "SimPO", "LeanPO", "LeanPO, no SFT term")
UNSMOOTHED = "LeanPO, no smoothing"  # drawn as open marks, since it hides LeanPO itself otherwise
SMOOTHED = ("LeanPO", "LeanPO, fixed smoothing", UNSMOOTHED)
OWN = "#b07d2b"
HEADS = {
    "chosen": "chosen, nats",
    "rejected": "rejected, nats",
    "chosen_avg": "chosen, nats a token",
    "rejected_avg": "rejected, nats a token",
    "fell": "chosen below start",
}


def measured(paper: Paper) -> dict[str, Measured]:
    """Every claim and control, one value a seed."""
    table = ends(paper)

    def of(name: str, pairs: str, method: str) -> pd.Series:
        rows = where(table, pairs=pairs, method=method)
        return rows.set_index("seed")[name].astype(float)

    found = {
        "simpo_chosen_given": of("chosen_avg", "given", "SimPO"),
        "own_fell": of("fell", "own", "DPO") - of("fell", "given", "DPO"),
        "own_change": of("chosen_avg", "own", "DPO") - of("chosen_avg", "given", "DPO"),
        "own_start": of("start_avg", "own", "DPO") - of("start_avg", "given", "DPO"),
        "accuracy": of("sampled", "own", "LeanPO") - of("sampled", "given", "DPO"),
        "same_pairs": of("sampled", "given", "LeanPO") - of("sampled", "given", "DPO"),
        "smoothing_given": of("chosen_avg", "given", "LeanPO") - of("chosen_avg", "given", "LeanPO, no smoothing"),
        "fixed_given": of("chosen_avg", "given", "LeanPO") - of("chosen_avg", "given", "LeanPO, fixed smoothing"),
        "dpo_sft_given": of("chosen_avg", "given", "DPO + SFT term"),
        "reward_given": of("chosen_avg", "given", "LeanPO") - of("chosen_avg", "given", "DPO + SFT term"),
    }
    for kind in PAIRS:
        found |= {
            f"dpo_chosen_{kind}": of("chosen", kind, "DPO"),
            f"dpo_rejected_{kind}": of("rejected", kind, "DPO"),
            f"leanpo_chosen_{kind}": of("chosen_avg", kind, "LeanPO"),
            f"leanpo_fell_{kind}": of("fell", kind, "LeanPO") - of("fell", kind, "DPO"),
            f"smoothed_{kind}": of("wrong", kind, "LeanPO"),
            f"no_sft_{kind}": of("chosen_avg", kind, "LeanPO, no SFT term"),
        }
    return per_seed(found)


def ends(paper: Paper) -> pd.DataFrame:
    """One row a run: pairs, method, seed; on the probed training pairs mean change of chosen, rejected (nats),
    chosen_avg, rejected_avg (nats a token), fell (share of chosen below their start), start_avg (chosen, nats a token);
    wrong: share of training rows that the policy ranked the wrong way by average log-prob; sampled: held-out
    probability of the true value, points."""
    return _tables(paper)[0]


def curves(paper: Paper) -> pd.DataFrame:
    """The same changes at every measured step, and `wrong` of the training rows since the step measured before."""
    return _tables(paper)[1]


@once
def _tables(paper: Paper) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, steps = [], []
    for labels in paper.runs.to_dict("records"):
        log = paper.log(labels["run"])
        head = {k: labels[k] for k in ("pairs", "method", "seed")}
        by_step = likelihoods(runs.rows(log, "probe"), runs.rows(log, "train"))
        steps.append(by_step.assign(**head))
        held = board.with_ratios(runs.rows(log, "eval"))
        sampled = board.measured(log, held.loc[held["step"] == held["step"].max()], "eval")["sampled"]
        last = by_step.iloc[-1].to_dict()
        every = mean(wrong(runs.rows(log, "train")))
        rows.append(head | last | {"start_avg": by_step["level"].iloc[0], "wrong": every, "sampled": 100 * sampled})
    return pd.DataFrame(rows), pd.concat(steps, ignore_index=True)


def likelihoods(probe: pd.DataFrame, train: pd.DataFrame) -> pd.DataFrame:
    """By measured step: chosen, rejected, chosen_avg, rejected_avg (changes), fell, level (chosen average), wrong."""
    probe = probe.copy()
    for side in runs.SIDES:
        probe[side] = probe[f"{side}_change"]
        probe[f"{side}_avg"] = probe[side] / probe[f"{side}_length"]
    probe["fell"] = runs.fell(probe, "chosen")
    probe["level"] = probe["chosen_logps"] / probe["chosen_length"]
    names = ["chosen", "rejected", "chosen_avg", "rejected_avg", "fell", "level"]
    table = probe.pivot_table(names, "step", aggfunc="mean").reset_index()
    edges = [-1, *table["step"]]
    since = pd.cut(train["step"], edges, labels=table["step"]) if len(train) else pd.Series(dtype=float)
    return table.assign(wrong=[mean(wrong(train.loc[since == step])) for step in table["step"]])


def wrong(rows: pd.DataFrame) -> pd.Series:
    """1 where the rejected answer has the higher average log-prob, else 0: the pairs that dynamic smoothing acts on."""
    gap = rows["chosen_logps"] / rows["chosen_length"] - rows["rejected_logps"] / rows["rejected_length"]
    return pd.Series((gap < 0).astype(float).where(gap.notna()))


def likelihood(paper: Paper) -> Block:
    """Both sides' log-probs over steps, summed and average, on given and own pairs."""
    return page.picture(draw_curves(curves(paper)), "Change of chosen and rejected log-probs over steps")


def methods(paper: Paper) -> Block:
    """Every objective at its end, on both kinds of pairs."""
    rows = []
    for (kind, name), of in groups(ends(paper), "pairs", "method"):
        changes = {k: plus_minus(of[k], 2, sign=True) for k in ("chosen", "rejected")}
        changes |= {k: plus_minus(of[k], 3, sign=True) for k in ("chosen_avg", "rejected_avg")}
        shares = {k: percent(mean(of[k])) for k in ("fell", "wrong")}
        row = {"pairs": kind, "objective": name, "seeds": len(of)} | changes | shares
        rows.append(row | {"sampled": plus_minus(of["sampled"], 1)})
    heads = HEADS | {"wrong": "ranked the wrong way in training", "sampled": "true value held out, points"}
    return page.table(pd.DataFrame(rows).sort_values("pairs", kind="stable"), heads=heads)


def controls(paper: Paper) -> Block:
    """What holds the chosen answers: every part of LeanPO left out, and its SFT term in DPO and alone."""
    return page.picture(draw_controls(ends(paper)), "Change of chosen answers by objective, given and own pairs")


def smoothing(paper: Paper) -> Block:
    """Share of training pairs on which dynamic smoothing acts, over steps."""
    table = curves(paper)
    return page.picture(draw_smoothing(table.loc[table["method"].isin(SMOOTHED)]), "Share of wrongly ranked pairs")


def pairs(paper: Paper) -> Block:
    """How many pairs of each kind, how likely they are before training, and what DPO does to them."""
    sizes, table, rows = paper.tables["sources"], ends(paper), []
    for kind, name in PAIRS.items():
        of = where(table, pairs=kind, method="DPO")
        n = where(sizes, pairs=kind)["n"]
        rows.append({"pairs": name, "seeds": len(of), "pairs a seed": f"{n.min()} to {n.max()}",
                     "chosen at the start, nats a token": plus_minus(of["start_avg"], 3),
                     "after DPO: chosen, nats": plus_minus(of["chosen"], 2, sign=True),
                     "rejected, nats": plus_minus(of["rejected"], 2, sign=True),
                     "chosen below start": percent(mean(of["fell"]))})  # fmt: skip
    return page.table(pd.DataFrame(rows))


def published(paper: Paper) -> Block:
    """The published VideoMME accuracies; video models are not loaded here."""
    return page.table(pd.DataFrame(papers.published()[paper.name]["tables"]["videomme"]))


@styled
def draw_curves(table: pd.DataFrame) -> Figure:
    """Rows: given and own pairs; columns: summed and average. A line is the mean over seeds, its band their range."""
    figure, all_axes = panels(4, height=3.3, width=10.5, rows=2)
    spots = [(kind, end) for kind in PAIRS for end in ("", "_avg")]
    for axes, (kind, end) in zip(all_axes, spots):
        of = where(table, pairs=kind)
        for k, name in enumerate(DRAWN):
            for side, style in (("chosen", "-"), ("rejected", "--")):
                seeds = where(of, method=name).pivot_table(f"{side}{end}", "step", "seed")
                axes.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=CYCLE[k], alpha=0.1, lw=0)
                axes.plot(seeds.mean(axis=1), style, color=CYCLE[k], lw=1.8)
        for side in runs.SIDES:
            seeds = where(of, method=UNSMOOTHED).pivot_table(f"{side}{end}", "step", "seed")
            axes.plot(seeds.mean(axis=1), "o", color=DARK, mfc="none", ms=6)
        axes.axhline(0, color=DARK, lw=0.8)
        axes.set(title=f"{PAIRS[kind]}: {'average' if end else 'sum'}", xlabel="optimizer step")
        axes.set_ylabel("nats a token" if end else "nats an answer")
    handles = [Line2D([], [], color=CYCLE[k], lw=2, label=name) for k, name in enumerate(DRAWN)]
    handles += [Line2D([], [], color=DARK, ls=ls, label=side) for side, ls in (("chosen", "-"), ("rejected", "--"))]
    handles.append(Line2D([], [], color=DARK, ls="", marker="o", mfc="none", label=UNSMOOTHED))
    figure.legend(handles=handles, loc="outside lower center", ncol=len(handles), fontsize=8.5)
    falls = _both_fall(table)
    figure.suptitle(f"Both answers fall: {falls}", x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def _both_fall(table: pd.DataFrame) -> str:
    """The drawn objectives under which both sides fell, in the mean over pairs and seeds."""
    last = table.loc[table["step"] == table["step"].max()]
    means = last.pivot_table(["chosen", "rejected"], ["pairs", "method"], aggfunc="mean")
    said = []
    for kind, words in PAIRS.items():
        names = [n for n in DRAWN if (kind, n) in means.index and (fell(means.loc[(kind, n)]) == 1).all()]
        said.append(f"{' / '.join(names) or 'nowhere'} ({words})")
    return "; ".join(said)


def draw_controls(table: pd.DataFrame) -> Figure:
    """One line an objective: dots are seeds, the filled mark their mean; both kinds of pairs."""
    names = list(dict.fromkeys(table["method"]))
    wide = table.pivot_table(["chosen_avg", "fell"], ["method", "seed"], "pairs").reset_index()
    wide.columns = ["_".join(filter(None, map(str, c))) for c in wide.columns]
    wide = wide.assign(label=wide["method"], rate=0.0)
    shown = {
        "change of chosen, nats a token": _columns(wide, "chosen_avg"),
        "share of chosen below their start": _columns(wide, "fell"),
    }
    figure = board_figures.dots(wide, [(name, 0.0) for name in names], names, shown)
    means = {n: mean(where(table, method=n, pairs="given")["chosen_avg"]) for n in names}
    words = [f"{name}: {signed(means[name])}" for name in ("LeanPO", "LeanPO, no SFT term", "SimPO") if name in means]
    title = f"Change of chosen on given pairs, nats a token. {'; '.join(words)}"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def _columns(wide: pd.DataFrame, name: str) -> list[Dots]:
    colours = {"given": CHOSEN, "own": OWN}
    return [Dots(f"{name}_{k}", colours[k], words) for k, words in PAIRS.items() if f"{name}_{k}" in wide]


@styled
def draw_smoothing(table: pd.DataFrame) -> Figure:
    """One panel a kind of pairs: share ranked the wrong way by average log-prob since the last measured step."""
    figure, all_axes = panels(2, height=3.4, width=10)
    for axes, (kind, words) in zip(all_axes, PAIRS.items()):
        of = table.loc[(table["pairs"] == kind) & (table["step"] > 0)]
        for k, name in enumerate(SMOOTHED):
            seeds = where(of, method=name).pivot_table("wrong", "step", "seed")
            axes.plot(seeds.mean(axis=1), "o-", color=CYCLE[k], ms=4, lw=1.6, label=name)
            axes.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=CYCLE[k], alpha=0.12, lw=0)
        first, last = (mean(where(of, step=s)["wrong"]) for s in (of["step"].min(), of["step"].max()))
        axes.set(title=f"{words}: {percent(first)} at first, {percent(last)} at the end", xlabel="optimizer step")
        axes.set_ylim(0, max(0.05, 1.1 * float(of["wrong"].max() or 0)))
    all_axes[0].set_ylabel("share of training pairs ranked wrong")
    handles, names = all_axes[0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncol=3, fontsize=9)
    return figure
