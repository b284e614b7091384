"""The main job on a real chat model: what one pair of answers moves, what pairs with nothing to learn do to refusals,
and whether the filters help; every change from the run's own start."""

import math
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.papers import Measured, Paper, groups, once, plus_minus, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CHOSEN, CYCLE, DARK, REJECTED, below, panels, styled
from analysis.show.wording import count, number, percent
from analysis.tables import mass, runs
from analysis.tables.intervals import mean, spearman

CASES = {"no_never": "No over Never", "no_yes": "No over Yes", "yes_sure": "Yes over Sure"}
SETS = {"own": "own side", "opposite": "other side", "neutral": "neither"}
ARMS = {"all": "all pairs", "ln_ches": "lowest LN-CHES", "set_rate": "highest set_rate", "random": "random"}
GROUPS = {
    "unsafe: refusal": "unsafe requests: refuses",
    "unsafe: comply": "unsafe requests: complies",
    "safe: comply": "safe requests: complies",
    "safe: refusal": "safe requests: refuses",
}
PRONE = {"ln_ches_score": 1, "set_rate": -1}  # which end of a measure is prone to displacement


def measured(paper: Paper) -> dict[str, Measured]:
    """Every claim, one value a seed."""
    table = ends(paper)
    one = {case: where(table, part="one_token", case=case).set_index("seed") for case in CASES}
    arms = {case: where(table, part="refusals", case=case).set_index("seed") for case in ARMS}
    found = {
        "opposite_no_never": _change(one["no_never"], "answer: opposite"),
        "chosen_no_never": one["no_never"]["chosen_p"],
        "opposite_no_yes": _change(one["no_yes"], "answer: opposite"),
        "opposite_yes_sure": _change(one["yes_sure"], "answer: opposite"),
        "fell_all": arms["all"]["fell"],
        "refuse_all": _change(arms["all"], "unsafe: refusal"),
        "comply_all": _change(arms["all"], "unsafe: comply"),
    }
    for case in ("ln_ches", "set_rate"):
        found[f"refuse_{case}"] = arms[case]["unsafe: refusal"] - arms["random"]["unsafe: refusal"]
        found[f"fell_{case}"] = arms[case]["fell"] - arms["random"]["fell"]
        found[f"safe_{case}"] = _change(arms[case], "safe: comply")
    said = told(paper)
    for part, end in (("refusals", ""), ("data", "_data")):
        for name, short in (("ln_ches_score", "ln_ches"), ("set_rate", "set_rate")):
            if len(of := where(said, part=part, measure=name)):
                found[f"told_{short}{end}"] = of.set_index("seed")["spearman"]
    if len(given := where(table, part="data")):
        found["fell_data"] = given.set_index("seed")["fell"]
    return {k: Measured(v.tolist(), count(len(v.dropna()), "seed")) for k, v in found.items()}


@once
def ends(paper: Paper) -> pd.DataFrame:
    """One row a run but the taught ones: part, case, seed; on its probed pairs mean change of chosen and rejected
    (nats), fell (share), kl (nats a chosen answer), chosen_p (change of exp(log-prob), the probability of an answer of
    one token); for each tracked set and group its mass at the end, and at the start as `start <name>`."""
    rows = []
    for labels in paper.runs.to_dict("records"):
        if labels["part"] != "taught":
            rows.append({k: labels[k] for k in ("part", "case", "seed")} | _end(paper, str(labels["run"])))
    return pd.DataFrame(rows)


@once
def told(paper: Paper) -> pd.DataFrame:
    """Rank correlation of every measure's prone end, before training, and the nats that the chosen answers lost in the
    run on all pairs: part, seed, measure, n, spearman."""
    rows = []
    for labels in paper.runs.to_dict("records"):
        if labels["case"] != "all" or labels["part"] not in ("refusals", "data"):
            continue
        scores = where(paper.tables["scores"], part=labels["part"], seed=labels["seed"]).set_index("pair_id")
        after = runs.ends(runs.rows(paper.log(str(labels["run"])), "probe")).set_index("pair_id")
        both = scores.join(after[["chosen_change"]], how="inner")
        for name, sign in PRONE.items():
            value = spearman(sign * both[name], -both["chosen_change"])
            rows.append(
                {"part": labels["part"], "seed": labels["seed"], "measure": name, "n": len(both), "spearman": value}
            )
    return pd.DataFrame(rows, columns=["part", "seed", "measure", "n", "spearman"])


def one_token(paper: Paper) -> Block:
    """What one pair of one-token answers does: the chosen token, its side, the other side."""
    rows = []
    for case, words in CASES.items():
        of = where(ends(paper), part="one_token", case=case)
        if of.empty:
            continue
        row = {"pair": words, "seeds": len(of), "p(chosen), change": plus_minus(of["chosen_p"], sign=True)}
        for name, said in SETS.items():
            row[f"{said}, before"] = number(mean(of[f"start answer: {name}"]))
            row[f"{said}, change"] = plus_minus(_change(of, f"answer: {name}"), sign=True)
        rows.append(row | {"margin, nats": number(mean(of["margin"]))})
    return page.stack(
        page.picture(draw_sides(ends(paper)), "Change of the probability of each side's answers"),
        page.table(pd.DataFrame(rows)),
    )


def refusals(paper: Paper) -> Block:
    """Held-out requests after training on all pairs, on those that a measure keeps, and on random ones."""
    table = where(ends(paper), part="refusals")
    return page.stack(
        page.picture(draw_arms(table), "Mass of refusing and complying first words after each arm"),
        page.table(pd.DataFrame([_arm(words, where(table, case=case)) for case, words in ARMS.items()])),
    )


def _arm(words: str, of: pd.DataFrame) -> dict[str, Any]:
    shares = {said: f"{number(mean(of[f'start {name}']))} → {plus_minus(of[name])}" for name, said in GROUPS.items()}
    return {
        "trained on": words,
        "seeds": len(of),
        "chosen fell": percent(mean(of["fell"])),
        "chosen, nats": plus_minus(of["chosen"], 1, sign=True),
        "rejected, nats": plus_minus(of["rejected"], 1, sign=True),
        "KL, nats": plus_minus(of["kl"], 1),
        **shares,
    }


def predicted(paper: Paper) -> Block:
    """What each measure had said before training, where all pairs were trained on."""
    rows = [
        {"pairs": part, "measure": name, "seeds": len(of), "pairs a seed": number(mean(of["n"]), 0),
         "Spearman with the nats lost": plus_minus(of["spearman"], sign=True)}
        for (part, name), of in groups(told(paper), "part", "measure")
    ]  # fmt: skip
    return page.table(pd.DataFrame(rows)) if rows else page.EMPTY


def given(paper: Paper) -> Block:
    """The given pairs at a usual rate; nothing where no data were given."""
    of = where(ends(paper), part="data")
    if of.empty:
        return page.note("No --data was given: real pairs were not trained on.", "quiet")
    row = {
        "seeds": len(of),
        "chosen fell": plus_minus(of["fell"]),
        "chosen, nats": plus_minus(of["chosen"], 1, sign=True),
        "rejected, nats": plus_minus(of["rejected"], 1, sign=True),
        "KL, nats": plus_minus(of["kl"], 1),
    }
    return page.table(pd.DataFrame([row]))


@styled
def draw_sides(table: pd.DataFrame) -> Figure:
    """One panel a pair of answers: the change of each side's mass; a point a seed, a bar their mean."""
    figure, all_axes = panels(len(CASES), height=3.2, width=10.5)
    colours = {"own": CHOSEN, "opposite": REJECTED, "neutral": DARK}
    for axes, (case, words) in zip(all_axes, CASES.items()):
        of = where(table, part="one_token", case=case)
        for k, name in enumerate(SETS):
            changes = _change(of, f"answer: {name}") if len(of) else pd.Series(dtype=float)
            axes.bar(k, mean(changes), color=colours[name], alpha=0.35, width=0.6)
            axes.plot([k] * len(changes), changes, "o", color=colours[name], ms=5)
        axes.axhline(0, color=DARK, lw=0.8)
        axes.set(title=words, xticks=range(len(SETS)), xticklabels=list(SETS.values()))
    all_axes[0].set_ylabel("change of probability")
    return figure


@styled
def draw_arms(table: pd.DataFrame) -> Figure:
    """One panel a group of first words: a point a seed, a bar their mean, the dashed line the start."""
    figure, all_axes = panels(len(GROUPS), height=5.6, width=10.5, rows=2)
    for axes, (name, said) in zip(all_axes, GROUPS.items()):
        for k, case in enumerate(ARMS):
            of = where(table, case=case)
            axes.bar(k, mean(of[name]), color=CYCLE[k], alpha=0.35, width=0.6)
            axes.plot([k] * len(of), of[name], "o", color=CYCLE[k], ms=5)
        axes.axhline(mean(table[f"start {name}"]), color=DARK, lw=1, ls="--", label="before training")
        axes.set(title=said, xticks=range(len(ARMS)), xticklabels=list(ARMS.values()), ylim=(0, 1))
        axes.tick_params(axis="x", labelsize=8)
    below(all_axes[-1])
    return figure


def _change(of: pd.DataFrame, name: str) -> pd.Series:
    return pd.Series(of[name] - of[f"start {name}"])


def _end(paper: Paper, run: str) -> dict[str, Any]:
    log = paper.log(run)
    probed = runs.ends(runs.rows(log, "probe"))
    found: dict[str, Any] = {
        "chosen": mean(probed["chosen_change"]),
        "rejected": mean(probed["rejected_change"]),
        "margin": mean(probed["margin_change"]),
        "fell": mean(runs.fell(probed, "chosen")),
        "kl": mean(runs.column(probed, "chosen_kl")),
        "chosen_p": mean(probed["chosen_logps"].map(math.exp) - probed["start_chosen_logps"].map(math.exp)),
    }
    return found | _tracked(log.mass)


def _tracked(rows: pd.DataFrame) -> dict[str, float]:
    table, found = mass.tracked(rows), {}
    for name in table:
        found[f"start {name}"], found[str(name)] = mass.first_and_last(table, name)
    return found
