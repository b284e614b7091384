"""Unintentional unalignment: refusals before and after, kinds of pairs, change of chosen, and what else explains it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import papers
from analysis.papers import Measured, Paper, once, plus_minus, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CHOSEN, DARK, NEUTRAL, REJECTED, panels, styled
from analysis.show.wording import ABSENT, count, for_plot, number, percent
from analysis.tables import runs
from analysis.tables.columns import direction
from analysis.tables.intervals import auroc, deviation, finite, mean, spearman, wilson
from analysis.tables.mass import first_and_last, tracked

LOSSES = {"dpo": "DPO", "ipo": "IPO"}
SETS = {"train": "train prompts, refused", "test": "test prompts, refused", "safe": "safe prompts, answered"}
MAIN = ("original", "sft", "gold", "filtered")
CASES = {
    "original": "all pairs",
    "sft": "all + SFT term",
    "gold": "gold pairs",
    "filtered": "lowest LN-CHES",
    "filtered_more": "lowest LN-CHES, larger share",
    "random": "as many random pairs",
    "mixed": "mixed pairs only",
    "influence": "highest probe influence",
    "drop_top": "all but the highest LN-CHES",
    "filtered_steps": "lowest LN-CHES, full steps",
    "random_steps": "random pairs, full steps",
    "mixed_steps": "mixed pairs, full steps",
    "two_refusals": "two refusals only",
    "two_compliances": "two compliances only",
    "gold_rate": "gold pairs, the others' rate",
    "kl": "all + KL on chosen",
}
KINDS = {
    "two_refusals": ("two refusals", CHOSEN),
    "two_compliances": ("two compliances", "#b07d2b"),
    "mixed": ("one of each", REJECTED),
    "unknown": ("not judged", NEUTRAL),
}
COLOURS = ("#c9ccd2", "#7a5ea8", "#b07d2b", "#4aa3a3", "#3c8d5a")
SCORES = {
    "ln_ches_score": "LN-CHES",
    "ches_score": "CHES",
    "last_hidden_similarity": "last hidden state, inner product",
    "edit_similarity": "edit similarity",
    "probe_influence": "probe influence",
}
EXAMPLES = 2  # shown of each set


# --- compute ---------------------------------------------------------------------------------------------------


def measured(paper: Paper) -> dict[str, Measured]:
    """Every claim, one value a seed."""
    return refusal_claims(paper) | change_claims(paper) | pair_claims(paper)


def outcomes(paper: Paper) -> pd.DataFrame:
    """One row a run and set of prompts: study, seed, loss, case, weight, set, before, after, exact, sampled_before,
    sampled_after, n. Of train and test the refusal rate, of safe the share answered. Of the SFT runs every weight.

    before and after are exact (probability of the first words) where these are known, else of the judged answers.
    comply_before, comply_after: exact probability of answers that begin as compliance, NaN where it is not known.
    """
    return _read(paper)[0]


def changes(paper: Paper) -> pd.DataFrame:
    """One row a run and probed pair: labels, pair_id, chosen_change, margin_change (nats), trained (whether the run
    trained on it), original (whether it is one of the original pairs)."""
    return _read(paper)[1]


def picked(paper: Paper, table: pd.DataFrame) -> pd.DataFrame:
    """The table with the SFT runs of one weight for each loss: the one with the highest mean train refusal rate."""
    rows = outcomes(paper)
    keep = table["case"] != "sft"
    for loss in LOSSES:
        keep |= (table["loss"] == loss) & (table["weight"] == best_weight(rows, loss))
    return table.loc[keep]


def best_weight(rows: pd.DataFrame, loss: str) -> float:
    """The SFT weight of highest mean train refusal rate, as the paper tunes it; NaN without such runs."""
    of = where(rows, loss=loss, case="sft", set="train")
    found = of.groupby("weight")["after"].mean().dropna()
    return max(found.to_dict().items(), key=lambda of: of[1])[0] if len(found) else math.nan


def by_seed(table: pd.DataFrame, case: str, loss: str, column: str, among: str | None = None) -> pd.Series:
    """A column's value by seed for one case, mean over its rows; empty where there is none. among: a set of prompts."""
    rows = where(table, case=case, loss=loss)
    rows = where(rows, set=among) if among else rows
    return rows.groupby("seed")[column].mean().dropna()


def refusal_claims(paper: Paper) -> dict[str, Measured]:
    """The claims about rates: differences of two cases, or of a case and its start, by seed."""
    table = picked(paper, outcomes(paper))

    def rise(case: str, among: str, loss: str = "dpo") -> pd.Series:
        return by_seed(table, case, loss, "after", among) - by_seed(table, case, loss, "before", among)

    def lead(case: str, other: str, among: str, loss: str = "dpo") -> pd.Series:
        return by_seed(table, case, loss, "after", among) - by_seed(table, other, loss, "after", among)

    found = {
        "drop_train": -rise("original", "train"),
        "drop_test": -rise("original", "test"),
        "drop_ipo": -rise("original", "train", "ipo"),
        "two_refusals": -rise("two_refusals", "train"),
        "two_compliances": -rise("two_compliances", "train"),
        "sft": lead("sft", "original", "train"),
        "sft_ipo": lead("sft", "original", "train", "ipo"),
        "gold": lead("gold", "sft", "train"),
        "filtered_sft": lead("filtered", "sft", "train"),
        "filtered_sft_ipo": lead("filtered", "sft", "train", "ipo"),
        "filtered": lead("filtered", "original", "test"),
        "random": lead("filtered", "random", "test"),
        "random_steps": lead("filtered_steps", "random_steps", "test"),
        "start_steps": rise("filtered_steps", "test"),
        "trivial": lead("filtered", "mixed", "test"),
        "trivial_steps": lead("filtered_steps", "mixed_steps", "test"),
        "influence": lead("influence", "filtered", "test"),
        "drop_top": lead("drop_top", "original", "test"),
        "sft_safe": rise("sft", "safe"),
        "filtered_safe": lead("filtered", "sft", "safe"),
        "kl_refusal": lead("kl", "original", "test"),
        "kl_safe": lead("kl", "sft", "safe"),
    }
    if max(table["exact"]):
        end, start, seen = (
            by_seed(table, "original", "dpo", c, "test") for c in ("comply_after", "comply_before", "sampled_after")
        )
        lost = found["drop_test"]
        found["to_comply"] = ((end - start) / lost).where(lost > 0)  # a share of refusals only where some were lost
        found["judge"] = seen - by_seed(table, "original", "dpo", "after", "test")
    return {name: Measured(values.dropna().tolist(), _seeds(values)) for name, values in found.items()}


def change_claims(paper: Paper) -> dict[str, Measured]:
    """Mean change of ln pi(chosen) over what each run trained on, share of grown margins, and what orders the falls."""
    table = picked(paper, changes(paper))
    trained = table.loc[table["trained"]]
    found = {}
    for loss in LOSSES:
        for case in MAIN:
            values = by_seed(trained, case, loss, "chosen_change")
            pairs = len(where(trained, case=case, loss=loss)["pair_id"]) // max(1, len(values))
            found[f"change_{loss}_{case}"] = Measured(values.tolist(), f"{_seeds(values)} of {count(pairs, 'pair')}")
    grew = trained["margin_change"].gt(0).astype(float).where(trained["margin_change"].notna())
    healthy = by_seed(trained.assign(grew=grew), "original", "dpo", "grew")
    found["healthy"] = Measured(healthy.tolist(), _seeds(healthy))
    values = orders(paper, "ln_ches_score")
    found["which"] = Measured(values, _seeds(values))
    return found


def orders(paper: Paper, score: str) -> list[float]:
    """Spearman of a pair's score and how far its chosen answer fell after DPO on all pairs, by seed."""
    table = changes(paper)
    table = where(table, loss="dpo", case="original")
    joined = table.merge(paper.tables["pairs"][["study", "pair_id", score]], on=["study", "pair_id"])
    return [spearman(of[score], -of["chosen_change"]) for _, of in joined.groupby("seed")]


def pair_claims(paper: Paper) -> dict[str, Measured]:
    """How well scores tell pairs of one kind from mixed ones; at paper scale the share of two refusals."""
    pairs = paper.tables["pairs"]
    ln_ches, edit = (kind_auroc(pairs, name) for name in ("ln_ches_score", "edit_similarity"))
    studies = f"{count(len(ln_ches), 'set')} of pairs"
    found = {
        "kinds": Measured(ln_ches, studies),
        "edit": Measured([a - b for a, b in zip(ln_ches, edit, strict=True)], studies),
    }
    if paper.record["scale"] == "paper":
        known = pairs.loc[pairs["kind"].isin(["two_refusals", "two_compliances", "mixed"])]
        hits = int((known["kind"] == "two_refusals").sum())
        share = hits / len(known) if len(known) else math.nan
        found["share_two"] = Measured([share], count(len(known), "pair"), wilson(hits, len(known)))
    return found


def kind_auroc(pairs: pd.DataFrame, score: str) -> list[float]:
    """AUROC, by study, of a score for pairs of one kind (two refusals, two compliances) against mixed ones."""
    known = pairs.loc[pairs["kind"].isin(["two_refusals", "two_compliances", "mixed"])]
    return [
        auroc(of[score] * (direction(score) or 1), (of["kind"] != "mixed").to_numpy())
        for _, of in known.groupby("study")
    ]


@once
def _read(paper: Paper) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Outcomes and changes of every run; many sections ask for them, and the logs are many."""
    rates = paper.tables["answers"].set_index(["run", "study", "set"])
    original = {(row["study"], row["pair_id"]) for row in paper.tables["pairs"].to_dict("records")}
    rows, pairs = [], []
    for run in paper.runs.to_dict("records"):
        log = paper.log(run["run"])
        labels = {name: run[name] for name in ("study", "seed", "loss", "case", "weight")}
        exact = tracked(log.mass)
        rows += [
            labels | _outcome(run, name, rates, exact)
            for name in SETS
            if (run["run"], run["study"], name) in rates.index
        ]
        ends = runs.ends(runs.rows(log, "probe"))[["pair_id", "chosen_change", "margin_change"]]
        kept = set(where(log.audit, status="kept")["pair_id"])
        own = [(run["study"], i) in original for i in ends["pair_id"]]
        pairs.append(ends.assign(**labels, trained=[i in kept for i in ends["pair_id"]], original=own))
    return pd.DataFrame(rows), pd.concat(pairs, ignore_index=True)


def _outcome(run: dict[str, Any], name: str, rates: pd.DataFrame, exact: pd.DataFrame) -> dict[str, Any]:
    group = f"{name}: {'comply' if name == 'safe' else 'refusal'}"
    start, end = rates.loc[("", run["study"], name)], rates.loc[(run["run"], run["study"], name)]
    sampled = [float(v["complied"] if name == "safe" else 1 - v["complied"]) for v in (start, end)]
    known = group in exact
    before, after = first_and_last(exact, group) if known else sampled
    found = {"set": name, "before": before, "after": after, "exact": known}
    found |= dict(zip(("comply_before", "comply_after"), first_and_last(exact, f"{name}: comply")))
    return found | {"sampled_before": sampled[0], "sampled_after": sampled[1], "n": int(end["judged"])}


def _seeds(values: Sequence[float] | pd.Series) -> str:
    return count(len(finite(values)), "seed") if len(finite(values)) else "–"


# --- show ------------------------------------------------------------------------------------------------------


def refusals(paper: Paper) -> Block:
    """Figures 3 and 8, with safe prompts beside them, and the numbers."""
    table = picked(paper, outcomes(paper))
    table = table.loc[table["case"].isin(MAIN)]
    source = "exact probability of the first words" if min(table["exact"]) else "judged sampled answers"
    shown = page.picture(draw_refusals(table), "Refusal rates before and after, DPO and IPO, and safe prompts answered")
    known = page.note(f"Rates are the {source}. Bars: means over seeds; lines: lowest and highest seed; dots: seeds.")
    return page.stack(known, shown, page.table(_rates(table, MAIN)), page.note(_published_rates(), "quiet"))


def pair_kinds(paper: Paper) -> Block:
    """Figure 4: pairs ranked by LN-CHES and coloured by kind, with counts, and the AUROC of each score."""
    pairs = paper.tables["pairs"]
    rows = []
    for score, words in SCORES.items():
        values = kind_auroc(pairs, score)
        if len(finite(values)):
            rows.append({"score": words, "AUROC": plus_minus(values), "sets of pairs": len(finite(values))})
    told = (
        [page.table(pd.DataFrame(rows))]
        if rows
        else [page.missing("AUROC", "It needs mixed pairs and pairs of one kind.")]
    )
    figure = draw_kinds(pairs)
    return page.stack(
        page.picture(figure, "Pairs ranked by LN-CHES, coloured by kind"), page.table(_counts(pairs)), *told
    )


def change(paper: Paper) -> Block:
    """Tables 16 and 17: mean change of ln pi(chosen) over what was trained on, and over all original pairs."""
    table, given = picked(paper, changes(paper)), papers.published()["unalignment"]["tables"]["change"]
    rows = []
    for loss, name in LOSSES.items():
        for case in MAIN:
            trained, every = (
                by_seed(table.loc[table[which]], case, loss, "chosen_change") for which in ("trained", "original")
            )
            row = {
                "loss": name,
                "trained on": CASES[case],
                "change on these": _with_sd(trained),
                "on all original pairs": _with_sd(every),
            }
            row |= {"seeds": len(trained)} | {
                f"{m}, table {16 + (loss == 'ipo')}": _pm(*v) for m, v in given[loss][case].items()
            }
            rows.append(row)
    frame = pd.DataFrame(
        [{k.replace(", table 16", "").replace(", table 17", ""): v for k, v in row.items()} for row in rows]
    )
    weights = ", ".join(f"{LOSSES[loss]} {best_weight(outcomes(paper), loss):g}" for loss in LOSSES)
    note = page.note(
        f"Nats, mean ± SD over seeds, as in tables 16 (DPO) and 17 (IPO). Weight of the SFT term: {weights}."
    )
    return page.stack(note, page.table(frame))


def shown_examples(paper: Paper) -> Block:
    """Table 18: prompts refused before and not after, the most likely answer each time."""
    table = paper.tables["examples"]
    refused = where(table, before_score=0)
    turned = refused.loc[refused["after_score"] > 0.5]
    if refused.empty:
        return page.missing("Examples", "No prompt was refused before training.")
    few = f"{len(turned)} of {count(len(refused), 'prompt')} refused before are not refused after DPO on all pairs"
    said = f"{few} (most likely answers, all seeds)."
    cards = [
        page.card(
            f"{row['set']} prompt, seed {row['seed']}",
            *(page.text(k, row[k], 600) for k in ("prompt", "before", "after")),
        )
        for name in ("train", "test")
        for row in where(turned, set=name).sort_values(["seed", "id"]).head(EXAMPLES).to_dict("records")
    ]
    return page.stack(page.note(said), *cards)


def controls(paper: Paper) -> Block:
    """Every DPO run: refusals against compliance, and the numbers."""
    table = picked(paper, outcomes(paper))
    table = where(table, loss="dpo")
    cases = [case for case in CASES if case in set(table["case"])]
    frame = _rates(table, cases)
    chosen = picked(paper, changes(paper)).query("loss == 'dpo' and original")
    frame["change of chosen, all pairs (nats)"] = [
        "–",
        *(plus_minus(by_seed(chosen, c, "dpo", "chosen_change")) for c in cases),
    ]
    made = [page.table(frame.drop(columns="loss"))]
    if table["set"].eq("safe").any():
        made.insert(0, page.picture(draw_controls(table, cases), "Refusals against safe prompts answered, by case"))
    return page.stack(*made)


def sft_weights(paper: Paper) -> Block:
    """What each weight of the SFT term restores and costs; and sampled answers beside exact probabilities."""
    table = outcomes(paper)
    rows = []
    for loss, name in LOSSES.items():
        of = where(table, loss=loss, case="sft")
        for weight in sorted(set(of["weight"])):
            one = where(of, weight=weight)
            rates = {words: plus_minus(by_seed(one, "sft", loss, "after", s)) for s, words in SETS.items()}
            rows.append(
                {"loss": name, "weight": f"{weight:g}", "taken": "yes" * (weight == best_weight(table, loss))} | rates
            )
    return page.table(pd.DataFrame(rows))


def sampled(paper: Paper) -> Block:
    """Judged sampled answers beside the exact probabilities."""
    table = picked(paper, outcomes(paper))
    if not max(table["exact"]):
        return page.missing("Exact probabilities", "They need a world whose refusals have first words of their own.")
    rows = []
    for case in MAIN:
        for name, words in SETS.items():
            exact, drawn = (by_seed(table, case, "dpo", c, name) for c in ("after", "sampled_after"))
            n = mean(where(table, case=case, set=name)["n"])
            rows.append(
                {
                    "DPO on": CASES[case],
                    "set": words,
                    "exact": plus_minus(exact),
                    "judged": plus_minus(drawn),
                    "answers a seed": f"{n:.0f}",
                }
            )
    return page.table(pd.DataFrame(rows))


def _rates(table: pd.DataFrame, cases: Sequence[str]) -> pd.DataFrame:
    """Mean and 95 % half width over seeds, start first, by loss."""
    rows = []
    for loss in [k for k in LOSSES if k in set(table["loss"])]:
        row: dict[str, Any] = {
            "loss": LOSSES[loss],
            "trained on": "nothing: the start",
            "seeds": table["seed"].nunique(),
        }
        rows.append(row | {w: plus_minus(by_seed(table, "original", loss, "before", s)) for s, w in SETS.items()})
        for case in cases:
            seeds = by_seed(table, case, loss, "after", "train")
            if len(seeds):
                row = {"loss": LOSSES[loss], "trained on": CASES[case], "seeds": len(seeds)}
                rows.append(row | {w: plus_minus(by_seed(table, case, loss, "after", s)) for s, w in SETS.items()})
    return pd.DataFrame(rows)


def _counts(pairs: pd.DataFrame) -> pd.DataFrame:
    """Pairs of each kind, a column a study, beside the published ones."""
    given = papers.published()["unalignment"]["tables"]["kinds"]
    rows = []
    for kind, (words, _) in KINDS.items():
        found = [of["kind"].tolist().count(kind) for _, of in pairs.groupby("study")]
        if any(found) or kind in given:
            share = percent(sum(found) / len(pairs))
            rows.append(
                {
                    "kind": words,
                    "pairs, by set": ", ".join(map(str, found)),
                    "share": share,
                    "published (Llama, of 370)": given.get(kind, "–"),
                }
            )
    return pd.DataFrame(rows)


def _published_rates() -> str:
    given = papers.published()["unalignment"]["tables"]["refusal"]
    told = "; ".join(f"{model} {number(a, 3)} to {number(b, 3)}" for model, (a, b) in given.items())
    return f"Published, DPO on all pairs, train prompts: {told}. Figures 3 and 8 print no other numbers."


def _with_sd(values: pd.Series) -> str:
    return _pm(mean(values), deviation(values)) if len(finite(values)) else ABSENT


def _pm(value: float, spread: float) -> str:
    return number(value, 1) if np.isnan(spread) else f"{number(value, 1)} ± {number(spread, 1)}"


# --- draw ------------------------------------------------------------------------------------------------------


@styled
def draw_refusals(table: pd.DataFrame) -> Figure:
    """A row a loss, a column a set: bars of start and cases, lowest to highest seed, a dot a seed."""
    losses = [loss for loss in LOSSES if loss in set(table["loss"])]
    sets = [name for name in SETS if name in set(table["set"])]
    figure, all_axes = panels(len(losses) * len(sets), rows=len(losses), height=3.7, width=3.7 * len(sets))
    for k, axes in enumerate(all_axes):
        loss, name = losses[k // len(sets)], sets[k % len(sets)]
        bars = {"start": by_seed(table, "original", loss, "before", name)}
        bars |= {CASES[case]: by_seed(table, case, loss, "after", name) for case in MAIN}
        _bars(axes, bars)
        what = "answered" if name == "safe" else "refused"
        start, end = (mean(bars[label]) for label in ("start", CASES["original"]))
        axes.set_title(f"{LOSSES[loss]}, {name} prompts: {percent(start)} to {percent(end)}", fontsize=10)
        axes.set(ylabel=f"share {what}", ylim=(0, 1.05))
    return figure


def _bars(axes: Axes, bars: dict[str, pd.Series]) -> None:
    for i, values in enumerate(bars.values()):
        if not len(values):
            continue
        centre = mean(values)
        reach = [[centre - values.min()], [values.max() - centre]]
        axes.bar(i, centre, 0.72, color=COLOURS[i], yerr=reach, ecolor=DARK, capsize=4)
        axes.plot(
            np.full(len(values), i) + np.linspace(-0.16, 0.16, len(values)), values, "o", ms=3, color=DARK, mfc="white"
        )
    axes.set_xticks(range(len(bars)), [name.replace(" ", "\n", 1) for name in bars], fontsize=8)
    axes.grid(axis="x", visible=False)


@styled
def draw_kinds(pairs: pd.DataFrame) -> Figure:
    """LN-CHES of every pair by its rank, coloured by kind; the first study of pairs."""
    study = sorted(set(pairs["study"]))[0]
    rows = where(pairs, study=study).sort_values("ln_ches_score").reset_index(drop=True)
    figure, (axes,) = panels(1, height=4.2, width=9.0)
    for kind, (words, colour) in KINDS.items():
        of = where(rows, kind=kind)
        if len(of):
            axes.vlines(of.index, rows["ln_ches_score"].min(), of["ln_ches_score"], color=colour, lw=1, alpha=0.35)
            axes.plot(of.index, of["ln_ches_score"], "o", color=colour, ms=4, label=f"{words}: {len(of)}")
    value = kind_auroc(rows, "ln_ches_score")
    low = rows["kind"].head(max(1, len(rows) // 5)).eq("mixed").mean()
    share = (
        f"{percent(float(low))} of the lowest fifth are mixed, {percent(float(rows['kind'].eq('mixed').mean()))} of all"
    )
    axes.set_title(
        f"{share} (AUROC {number(value[0]) if value else ABSENT}, {len(rows)} pairs, seed {rows['seed'][0]})"
    )
    axes.set(xlabel="pairs, from lowest to highest LN-CHES", ylabel="LN-CHES")
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncol=4)
    axes.grid(axis="x", visible=False)
    return figure


@styled
def draw_controls(table: pd.DataFrame, cases: Sequence[str]) -> Figure:
    """Refusal of test prompts (left) and answers to safe ones (right) of every case: a dot a seed, a bar their mean."""
    figure, all_axes = panels(2, height=1.0 + 0.34 * (len(cases) + 1), width=11.0)
    lines: list[tuple[str, Callable[[str], pd.Series]]] = [
        ("the start", lambda name: by_seed(table, "original", "dpo", "before", name))
    ]
    lines += [(CASES[c], lambda name, c=c: by_seed(table, c, "dpo", "after", name)) for c in cases]
    for axes, name in zip(all_axes, ("test", "safe")):
        for i, (_, values) in enumerate(reversed(lines)):
            found = values(name)
            axes.plot(found, [i] * len(found), "o", color=CHOSEN if name == "test" else "#3c8d5a", alpha=0.45, ms=5)
            axes.plot([mean(found)], [i], "|", color=DARK, ms=14, mew=2.2)
        axes.axvline(mean(lines[0][1](name)), color=NEUTRAL, ls="--", lw=1)
        axes.set_yticks(range(len(lines)), [for_plot(words) for words, _ in reversed(lines)], fontsize=9)
        axes.set(xlim=(-0.02, 1.02), xlabel=f"share {'answered' if name == 'safe' else 'refused'}")
    best = max(cases, key=lambda c: mean(by_seed(table, c, "dpo", "after", "test")))
    all_axes[0].set_title(f"test prompts: most refused after {for_plot(CASES[best])}", fontsize=10)
    all_axes[1].set_title("safe prompts (bar: mean, dashed: start)", fontsize=10)
    all_axes[1].set_yticklabels([])
    return figure
