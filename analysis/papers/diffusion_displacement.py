"""Displacement in diffusion: both sides' denoising errors under Diffusion-DPO and its guards, what the samples are good
for, and which scores of a pair told where its winner would go."""

from dataclasses import replace
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from analysis.papers import Measured, Paper, groups, once, per_seed, plus_minus, spreads, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CYCLE, DARK, below, panels, styled
from analysis.show.wording import number, signed
from analysis.tables import runs
from analysis.tables.intervals import auroc, mean, spearman

KINDS = {"on-policy": "the model's own samples", "close": "close pairs"}
METHODS = {
    "plain": "Diffusion-DPO",
    "SDPO": "SDPO",
    "SFT term": "Diffusion-DPO + SFT term",
    "DPO-Shift": "DPO-Shift",
    "plain, low beta": "Diffusion-DPO, low beta",
}
COLUMNS = {
    "winner": "winner error, % of the start",
    "up": "winners whose error rose",
    "loser": "loser error, %",
    "accuracy": "implicit accuracy",
    "both": "both errors rose, margin grew",
    "ink": "ink gained",
    "classes": "right class",
    "class_change": "right class, gained",
}
SHOWN = list(COLUMNS)[:-1]
# scores of a pair before training: what it is called here, and whether low (-1) or high (1) values speak for a rise
SCORES = {
    "set_rate": ("G-set: the whole set's first step", -1),
    "set_rate_sign": ("G-set by sign: Adam's first step", -1),
    "denoising_ches": ("D-CHES: the pair alone, last layer", 1),
    "self_rate": ("G-self: the pair alone, all weights", -1),
    "error_norm_ratio": ("loser / winner gradient norm", 1),
    "feature_cosine": ("cosine of features", 1),
    "error_cosine": ("cosine of gradients", 1),
    "rejected_error_norm": ("loser gradient norm", 1),
    "gap": ("the judge's margin, small first", -1),
}


def measured(paper: Paper) -> dict[str, Measured]:
    """By kind of pairs (claims on close ones end in _close): errors, use and predictors, one value a seed."""
    found: dict[str, Any] = {}
    for kind, end in (("on-policy", ""), ("close", "_close")):
        found |= {f"{name}{end}": values for name, values in _of_kind(where(table(paper), kind=kind)).items()}
        rank = where(ranks(paper), kind=kind).set_index("seed")
        found[f"gset_rank{end}"] = rank["set_rate"]
        found[f"gset_lead{end}"] = rank["set_rate"] - rank["denoising_ches"]
        found[f"gap_rank{end}"] = rank["gap"]
        found[f"gap_cosine{end}"] = rank["gap and cosine"]
    found["closer"] = found["plain_winner_close"] - found["plain_winner"]
    single = where(alone(paper), score="denoising_ches").set_index("seed")
    found |= {"alone": single["auroc"], "alone_rank": single["spearman"]}
    rose = ", ".join(f"{rose} of {n}" for rose, n in zip(single["rose"], single["n"]))
    done = per_seed(found)
    return done | {"alone": replace(done["alone"], note=f"{rose} rose")}


@once
def table(paper: Paper) -> pd.DataFrame:
    """One row a run: seed, kind, method, and COLUMNS. Errors are means over pairs, in % of the start model's."""
    rows = [_run(pairs, row) for row, pairs in _ends(paper)]
    use = paper.tables["use"]
    found = pd.DataFrame(rows).merge(use, on=["seed", "kind", "method"])
    return found.assign(ink=found["ink"] - found["ref_ink"], class_change=found["classes"] - found["ref_classes"])


@once
def ranks(paper: Paper) -> pd.DataFrame:
    """One row a kind and seed: each score's Spearman with the rise of the winner's error under plain Diffusion-DPO, the
    score turned so that a rise is expected of high values; and of the judge's margin with the cosine of gradients."""
    rows = []
    for row, pairs in _ends(paper):
        if row["method"] == "plain":
            scored = where(paper.tables["scores"], seed=row["seed"], kind=row["kind"])
            both = scored.merge(pairs, left_on="pair", right_on="pair_id")
            found = {name: spearman(sign * both[name], both["winner"]) for name, (_, sign) in SCORES.items()}
            found["gap and cosine"] = spearman(both["gap"], both["error_cosine"])
            rows.append({"kind": row["kind"], "seed": row["seed"]} | found)
    return pd.DataFrame(rows)


@once
def alone(paper: Paper) -> pd.DataFrame:
    """One row a seed and score, of pairs trained alone: how many winners' errors rose of how many, and how well the
    score told it (Spearman with the change, AUROC for the risen)."""
    both = paper.tables["alone"].merge(paper.tables["scores"], on=["seed", "kind", "pair"])
    rows = []
    for (seed,), of in groups(both, "seed"):
        rose = of["change"].to_numpy(float) > 0
        for name, (_, sign) in SCORES.items():
            told = {"spearman": spearman(sign * of[name], of["change"]), "auroc": auroc(sign * of[name], rose)}
            rows.append({"seed": seed, "score": name, "rose": int(rose.sum()), "n": len(of)} | told)
    return pd.DataFrame(rows)


def outcomes(paper: Paper) -> Block:
    """Every method on both kinds of pairs, mean over seeds."""
    shown = spreads(table(paper), {"kind": KINDS, "method": METHODS}, SHOWN)
    return page.table(shown, heads={"kind": "pairs"} | COLUMNS)


def by_seed(paper: Paper) -> Block:
    """The same run by run."""
    rows = table(paper)
    shown = pd.concat([where(rows, kind=kind, method=method) for kind in KINDS for method in METHODS])
    shown = shown.loc[:, ["kind", "method", "seed", *SHOWN, "ref_classes"]]
    shown = shown.assign(kind=shown["kind"].map(KINDS), method=shown["method"].map(METHODS))
    forms = dict.fromkeys(("winner", "loser"), lambda v: signed(v, 1)) | {"ink": lambda v: signed(v, 3)}
    forms |= dict.fromkeys(("up", "accuracy", "both", "classes", "ref_classes"), number)
    return page.table(shown, forms, {"kind": "pairs", "ref_classes": "right class, start"} | COLUMNS)


def trade_off(paper: Paper) -> Block:
    """Ink gained against the winners' error."""
    return page.picture(
        draw(table(paper)), "Ink that new samples gained, by the change of the winners' denoising error"
    )


def predictors(paper: Paper) -> Block:
    """Each score's rank correlation with what then happened under training on the whole set, and where each pair was
    trained alone."""
    ranked, single = ranks(paper), alone(paper)
    rows = []
    for name, (label, _) in SCORES.items():
        found = {words: plus_minus(where(ranked, kind=kind)[name], sign=True) for kind, words in KINDS.items()}
        found["each pair alone"] = plus_minus(where(single, score=name)["spearman"], sign=True)
        rows.append({"score before training": label} | found)
    return page.table(pd.DataFrame(rows))


@styled
def draw(rows: pd.DataFrame) -> Figure:
    """One panel a kind of pairs, a point a run. rows: of `table`."""
    figure, all_axes = panels(len(KINDS), height=4.2, width=10.5)
    for axes, (kind, words) in zip(all_axes, KINDS.items()):
        for colour, (method, label) in zip(CYCLE, METHODS.items()):
            of = where(rows, kind=kind, method=method)
            axes.plot(of["winner"], of["ink"], "o", color=colour, ms=7, label=label)
        axes.axvline(0, color=DARK, lw=0.8)
        axes.axhline(0, color=DARK, lw=0.8)
        axes.set_xscale("symlog", linthresh=10)
        axes.set_xticks([-10, 0, 10, 100], ["−10", "0", "10", "100"])
        axes.set(title=words, xlabel="change of the winners' error, %", ylabel="ink gained by new samples")
        below(axes, 2)
    return figure


@once
def _ends(paper: Paper) -> list[tuple[dict, pd.DataFrame]]:
    """Each run's row and its pairs: both sides' errors at the start, and their change."""
    return [(row, _pairs(paper, row["run"])) for row in paper.runs.to_dict("records")]


def _pairs(paper: Paper, run: str) -> pd.DataFrame:
    ends = runs.ends(runs.rows(paper.log(run), "probe"))
    start = {"start_winner": -ends["start_chosen_logps"], "start_loser": -ends["start_rejected_logps"]}
    change = {"winner": -ends["chosen_change"], "loser": -ends["rejected_change"]}
    return pd.DataFrame({"pair_id": ends["pair_id"]} | start | change)


def _run(pairs: pd.DataFrame, row: dict) -> dict:
    labels = {name: row[name] for name in ("seed", "kind", "method")}
    winner, loser = pairs["winner"].to_numpy(float), pairs["loser"].to_numpy(float)
    return labels | {
        "winner": 100 * winner.mean() / mean(pairs["start_winner"]),
        "loser": 100 * loser.mean() / mean(pairs["start_loser"]),
        "up": (winner > 0).mean(),
        "accuracy": (winner < loser).mean(),
        "both": ((winner > 0) & (loser > 0) & (winner < loser)).mean(),
    }


def _by_method(of: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """By column of COLUMNS one row a seed and one column a method."""
    found = {name: of.pivot(index="seed", columns="method", values=name) for name in COLUMNS}
    return {name: wide.reindex(columns=list(METHODS)) for name, wide in found.items()}


def _of_kind(of: pd.DataFrame) -> dict[str, Any]:
    """Values by seed of the claims on one kind of pairs. of: its rows of `table`."""
    wide = _by_method(of)
    winner = wide["winner"]
    guards = winner[["SDPO", "SFT term"]].max(axis=1)
    return {
        "plain_winner": winner["plain"],
        "plain_up": wide["up"]["plain"],
        "plain_accuracy": wide["accuracy"]["plain"],
        "plain_ink": wide["ink"]["plain"],
        "plain_classes": wide["class_change"]["plain"],
        "both_rise": wide["both"]["plain"],
        "sdpo_winner": winner["SDPO"],
        "sdpo_kept": winner["SDPO"],
        "sft_winner": winner["SFT term"],
        "plain_shift": winner["plain"] - winner["DPO-Shift"],
        "shift_guards": winner["DPO-Shift"] - guards,
        "low_beta": winner["plain, low beta"] / winner["plain"],
        "guard_cost": wide["ink"][["SDPO", "SFT term"]].max(axis=1) - wide["ink"]["plain"],
    }
