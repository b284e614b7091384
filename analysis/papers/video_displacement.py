"""Displacement with video: both answers' log-probs over training, with clips and with the same films in words."""

import math

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from analysis import papers
from analysis.papers import Measured, Paper, groups, leanpo, once, per_seed, plus_minus, where
from analysis.papers.deviation import kl_at
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CHOSEN, CYCLE, DARK, panels, styled
from analysis.show.wording import number, percent, signed
from analysis.tables import runs
from analysis.tables.intervals import mean
from diagnostics.outcomes import fell

PAIRS = {"rrpo": "RRPO's pairs", "leanpo": "LeanPO's pairs", "given": "given pairs"}
TOLD = {False: "clip", True: "in words"}
METHODS = {
    "DPO": "dpo",
    "TDPO2": "tdpo2",
    "DPA": "dpa",
    "DDPO": "ddpo",
    "RRPO": "rrpo",
    "SimPO": "simpo",
    "LeanPO": "leanpo",
}
WANTED = 4.0  # nats of margin gained at which clips and words are compared
SURE = -0.2  # log-prob of a chosen answer that the model is sure of, nats
IN_WORDS = "#b07d2b"


def measured(paper: Paper) -> dict[str, Measured]:
    """Every claim and control, one value a seed."""
    table, equal = ends(paper), at_equal_margin(paper)

    def of(name: str, method: str, pairs: str = "rrpo", told: bool = False) -> pd.Series:
        rows = where(table, pairs=pairs, method=method, told=told)
        return rows.set_index("seed")[name].astype(float)

    found = {
        "worse": of("chosen", "DPO") - of("chosen", "DPO", told=True),
        "worse_own": of("chosen", "DPO", "leanpo") - of("chosen", "DPO", "leanpo", True),
        "worse_fell": of("fell", "DPO") - of("fell", "DPO", told=True),
        "start": of("start", "DPO") - of("start", "DPO", told=True),
        "rrpo_higher": of("chosen", "RRPO") - of("chosen", "DPO"),
    }
    for kind in ("rrpo", "leanpo"):
        found |= {
            f"dpo_chosen_{kind}": of("chosen", "DPO", kind),
            f"dpo_rejected_{kind}": of("rejected", "DPO", kind),
            f"leanpo_chosen_{kind}": of("chosen_avg", "LeanPO", kind),
            f"leanpo_higher_{kind}": of("chosen", "LeanPO", kind) - of("chosen", "DPO", kind),
            f"simpo_chosen_{kind}": of("chosen_avg", "SimPO", kind),
        }
    for method, short in METHODS.items():
        found[f"equal_{short}"] = where(equal, pairs="rrpo", method=method).set_index("seed")["difference"]
    return per_seed(found)


def ends(paper: Paper) -> pd.DataFrame:
    """One row a run: pairs, told, method, seed; at its end, means over the probed training pairs: change of chosen and
    rejected (nats), chosen_avg and rejected_avg (nats a token), fell (share of chosen below their start), margin (nats
    gained), start and start_rejected (summed log-probs before training), length (tokens of the chosen answer)."""
    return _tables(paper)[0]


def curves(paper: Paper) -> pd.DataFrame:
    """The same at every measured step."""
    return _tables(paper)[1]


@once
def _tables(paper: Paper) -> tuple[pd.DataFrame, pd.DataFrame]:
    rows, steps = [], []
    for labels in paper.runs.to_dict("records"):
        log = paper.log(labels["run"])
        head = {k: labels[k] for k in ("pairs", "told", "method", "seed")}
        probe = runs.rows(log, "probe")
        path = leanpo.likelihoods(probe, probe.iloc[:0]).drop(columns="wrong")
        path["margin"] = path["chosen"] - path["rejected"]
        steps.append(path.assign(**head))
        first = where(probe, step=probe["step"].min())
        start = {"start": mean(first["chosen_logps"]), "start_rejected": mean(first["rejected_logps"])}
        rows.append(head | path.iloc[-1].to_dict() | start | {"length": mean(first["chosen_length"])})
    return pd.DataFrame(rows), pd.concat(steps, ignore_index=True)


@once
def at_equal_margin(paper: Paper) -> pd.DataFrame:
    """By pairs, method and seed: margin (nats gained, WANTED or the most that both runs reach), clip and words: the
    change of the chosen log-prob where each run first has that margin, and their difference, clip less words; n: pairs.
    An objective that widens no margin has none of these."""
    return _equal(_probes(paper))


@once
def among_sure(paper: Paper) -> pd.DataFrame:
    """The same of the pairs whose chosen answer was likely before training with the clip and in words (SURE)."""
    rows = _probes(paper)
    known = rows.loc[(rows["step"] == 0) & (rows["chosen_logps"] >= SURE)]
    asked = ["pairs", "method", "seed", "pair_id"]
    both = known.groupby(asked)["told"].nunique()
    return _equal(rows.merge(both.loc[both == 2].index.to_frame(index=False), on=asked))


@once
def _probes(paper: Paper) -> pd.DataFrame:
    """The probe rows of every run, with its labels."""
    names = ("pairs", "told", "method", "seed")
    found = paper.runs.to_dict("records")
    return pd.concat([runs.rows(paper.log(r["run"]), "probe").assign(**{k: r[k] for k in names}) for r in found])


def _equal(rows: pd.DataFrame) -> pd.DataFrame:
    found = []
    for (pairs, method, seed), of in groups(rows, "pairs", "method", "seed"):
        both = [_path(where(of, told=told)) for told in TOLD]
        if any(path.empty for path in both):
            continue
        target = min(WANTED, *(path["margin"].to_numpy().max() for path in both))
        clip, words = (kl_at(path, target, "chosen") if target > 0 else math.nan for path in both)
        row = {"pairs": pairs, "method": method, "seed": seed, "margin": target, "clip": clip, "words": words}
        found.append(row | {"difference": clip - words, "n": of["pair_id"].nunique()})
    return pd.DataFrame(found, columns=["pairs", "method", "seed", "margin", "clip", "words", "difference", "n"])


def _path(rows: pd.DataFrame) -> pd.DataFrame:
    """step, and there the means over pairs of chosen (change) and margin (gained)."""
    means = rows.pivot_table(["chosen_change", "margin_change"], "step", aggfunc="mean").reset_index()
    return means.rename(columns={"chosen_change": "chosen", "margin_change": "margin"})


def likelihood(paper: Paper) -> Block:
    """Both sides' log-probs over steps, each objective with clips and in words, on RRPO's pairs (or the given ones)."""
    table = curves(paper)
    first = table["pairs"].iloc[0]
    return page.picture(draw_curves(where(table, pairs=first)), f"Change of both log-probs over steps, {PAIRS[first]}")


def equal_margin(paper: Paper) -> Block:
    """What each objective took from the chosen answers on the way to one margin, with clips and in words; of all pairs,
    and of those that the model was sure of either way."""
    table = at_equal_margin(paper)
    if table.empty:
        return page.note("Not measured: it needs the same pairs with clips and in words.")
    picture = page.picture(draw_margins(curves(paper)), "Chosen log-prob against margin, by objective")
    words = (
        f"Only pairs whose chosen answer had a log-prob of at least {number(SURE)} nats before training, either way:"
    )
    return page.stack(picture, _equal_table(table), page.note(words), _equal_table(among_sure(paper)))


def _equal_table(table: pd.DataFrame) -> Block:
    rows = []
    for (kind, method), of in groups(table, "pairs", "method"):
        cells = {k: plus_minus(of[k], 2, sign=True) for k in ("margin", "clip", "words", "difference")}
        head = {
            "pairs": PAIRS[str(kind)],
            "objective": method,
            "seeds": len(of),
            "pairs a seed": f"{mean(of['n']):.0f}",
        }
        rows.append(head | cells)
    heads = {"margin": "margin gained, nats", "clip": "chosen with clips, nats", "words": "chosen in words, nats"}
    return page.table(pd.DataFrame(rows), heads=heads | {"difference": "clips less words"})


def methods(paper: Paper) -> Block:
    """Every objective at its end, on both kinds of pairs, with clips and in words."""
    rows = []
    for (kind, told, name), of in groups(ends(paper), "pairs", "told", "method"):
        changes = {k: plus_minus(of[k], 2, sign=True) for k in ("chosen", "rejected", "margin")}
        changes |= {k: plus_minus(of[k], 3, sign=True) for k in ("chosen_avg", "rejected_avg")}
        head = {"pairs": PAIRS[str(kind)], "content": TOLD[bool(told)], "objective": name, "seeds": len(of)}
        rows.append(head | {"start": plus_minus(of["start"], 2)} | changes | {"fell": percent(mean(of["fell"]))})
    heads = leanpo.HEADS | {"start": "chosen before, nats", "margin": "margin, nats"}
    return page.table(pd.DataFrame(rows), heads=heads)


def published(paper: Paper) -> Block:
    """The published VideoMME accuracies: no benchmark is run here."""
    return page.table(pd.DataFrame(papers.published()["leanpo"]["tables"]["videomme"]))


@styled
def draw_curves(table: pd.DataFrame) -> Figure:
    """One panel an objective: clips and words by colour, chosen solid, rejected dashed; bands are ranges of seeds."""
    names = [name for name in METHODS if name in set(table["method"])]
    figure, all_axes = panels(len(names), height=2.7, width=11, rows=2 if len(names) > 4 else 1)
    for axes, name in zip(all_axes, names):
        for told, colour in ((False, CHOSEN), (True, IN_WORDS)):
            for side, style in (("chosen", "-"), ("rejected", "--")):
                seeds = where(table, method=name, told=told).pivot_table(side, "step", "seed")
                axes.fill_between(seeds.index, seeds.min(axis=1), seeds.max(axis=1), color=colour, alpha=0.12, lw=0)
                axes.plot(seeds.mean(axis=1), style, color=colour, lw=1.8)
        axes.axhline(0, color=DARK, lw=0.8)
        axes.set(title=name, xlabel="optimizer step")
    all_axes[0].set_ylabel("change, nats an answer")
    handles = [
        Line2D([], [], color=colour, lw=2, label=words) for words, colour in zip(TOLD.values(), (CHOSEN, IN_WORDS))
    ]
    handles += [Line2D([], [], color=DARK, ls=ls, label=side) for side, ls in (("chosen", "-"), ("rejected", "--"))]
    figure.legend(handles=handles, loc="outside lower center", ncol=len(handles), fontsize=9)
    figure.suptitle(_both_fall(table), x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def _both_fall(table: pd.DataFrame) -> str:
    """Under which objectives both sides fell, in the mean over pairs and seeds."""
    last = table.loc[table["step"] == table["step"].max()]
    means = last.pivot_table(["chosen", "rejected"], ["told", "method"], aggfunc="mean")
    said = []
    for told, words in TOLD.items():
        there = [name for name in METHODS if (told, name) in means.index]
        names = [name for name in there if (fell(means.loc[(told, name)]) == 1).all()]
        said += [f"{', '.join(names) or 'nowhere'} ({words})"] * bool(there)
    return f"Both answers fall: {'; '.join(said)}"


@styled
def draw_margins(table: pd.DataFrame) -> Figure:
    """One panel a kind of pairs: change of chosen against the margin gained, mean over seeds at each measured step."""
    kinds = [kind for kind in PAIRS if kind in set(table["pairs"])]
    figure, all_axes = panels(len(kinds), height=4.0, width=11)
    for axes, kind in zip(all_axes, kinds):
        for k, name in enumerate(METHODS):
            for told, style in ((False, "-"), (True, ":")):
                of = where(table, pairs=kind, method=name, told=told)
                path = of.pivot_table(["margin", "chosen"], "step", aggfunc="mean")
                if len(path):
                    axes.plot(path["margin"], path["chosen"], style, marker="o", ms=3, color=CYCLE[k], lw=1.6)
        axes.axvline(WANTED, color=DARK, lw=0.8, ls="--")
        axes.axhline(0, color=DARK, lw=0.8)
        axes.set(title=PAIRS[kind], xlabel="margin gained (nats)", ylabel="change of chosen log-prob (nats)")
    there = [(k, name) for k, name in enumerate(METHODS) if name in set(table["method"])]
    handles = [Line2D([], [], color=CYCLE[k], lw=2, label=name) for k, name in there]
    handles += [Line2D([], [], color=DARK, ls=ls, label=words) for words, ls in zip(TOLD.values(), ("-", ":"))]
    figure.legend(handles=handles, loc="outside lower center", ncol=len(handles), fontsize=9)
    dpo = where(at_end(table), method="DPO", pairs=kinds[0])
    means = [signed(mean(where(dpo, told=told)["chosen"])) for told in TOLD]
    title = f"DPO's chosen answers at the end, {PAIRS[kinds[0]]}: {means[0]} nats with clips, {means[1]} in words"
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure


def at_end(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of the last measured step."""
    return table.loc[table["step"] == table["step"].max()]
