"""What CHES identifies: the change of the chosen answers in subsets around the percentiles of each measure, and what
else could explain it (length, chance, a better forecast)."""

from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analysis import papers
from analysis.papers import Measured, Paper, once, plus_minus, spreads, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CYCLE, DARK, NEUTRAL, below, panels, styled
from analysis.show.wording import count, number, signed
from analysis.tables import runs
from analysis.tables.columns import direction
from analysis.tables.intervals import auroc, mean, spearman
from diagnostics import outcomes

WORLDS = {
    "refusal": "refusals (all answers of one length)",
    "facts": "facts",
    "facts_equal": "facts, answers cut to one length",
    "given": "given data",
    "given_equal": "given data, answers cut to one length",
}
NAMES = {
    "ches_score": "CHES",
    "edit_similarity": "minus edit distance",
    "last_hidden_similarity": "last hidden product",
    "ln_ches_score": "LN-CHES",
    "length_difference": "length difference",
    "hidden_rate": "minus hidden_rate",
    "self_rate": "minus self_rate",
    "last_layer_set_rate": "minus last_layer_set_rate",
    "set_rate": "minus set_rate",
    "random": "random",
}
COLOURS = dict(zip(NAMES, (CYCLE[1], CYCLE[0], CYCLE[2], CYCLE[3], CYCLE[4], CYCLE[5], CYCLE[7], *CYCLE[2:4], NEUTRAL)))
LOSSES = {"dpo": "DPO", "ipo_sum": "IPO"}
RARE = 0.05  # an AUROC where fewer than so many fell, or did not, tells nothing


# --- compute ---


def measured(paper: Paper) -> dict[str, Measured]:
    """Every claim that these runs and scores can decide, one value a seed."""
    table, found = changes(paper), {}
    for world in ("refusal", "facts", "given"):
        if world in set(table["world"]):
            values = (
                _subsets(table, world) | _lengths(paper, table, world) | _forecast(paper, world) | _signs(paper, world)
            )
            found |= {f"{name}_{world}": value for name, value in values.items()}
    return found | _refusals(table) | _equal_forecast(paper)


@once
def changes(paper: Paper) -> pd.DataFrame:
    """One row a run: its labels, n, mean change (nats), mean change per token, share that fell, mean CHES before and
    after, their rank correlation, and the refusal rate before and after."""
    ends = paper.tables["ends"].copy()
    ends["change"] = ends["end_chosen_logps"] - ends["start_chosen_logps"]
    ends["per_token"] = ends["change"] / ends["start_chosen_length"]
    ends["fell"] = _fell(ends)
    by_run = ends.groupby("run")
    wanted = ["change", "per_token", "fell", "start_ches_score", "end_ches_score", "start_refusal", "end_refusal"]
    found = pd.DataFrame(by_run[wanted].mean())
    found["n"] = by_run.size()
    found["rank"] = by_run[["start_ches_score", "end_ches_score"]].apply(
        lambda t: spearman(t["start_ches_score"], t["end_ches_score"])
    )
    return paper.runs.merge(found.reset_index(), on="run")


def trend(table: pd.DataFrame, world: str, name: str, objective: str = "dpo", value: str = "change") -> list[float]:
    """By seed: Spearman of a measure's percentile and a value of its subsets."""
    return [spearman(of["percentile"], of[value]) for of in _by_seed(table, world, name, objective)]


def span(table: pd.DataFrame, world: str, name: str) -> np.ndarray:
    """By seed: the change at the measure's lowest percentile minus that at its highest, nats, under DPO."""
    return at(table, world, name, 0) - at(table, world, name, -1)


def at(table: pd.DataFrame, world: str, name: str, which: int) -> np.ndarray:
    """By seed: the change of one subset, counted from the lowest percentile."""
    return np.array([of.sort_values("percentile")["change"].iloc[which] for of in _by_seed(table, world, name)])


def aurocs(paper: Paper, world: str) -> pd.DataFrame:
    """One row a seed and measure: its AUROC for "this chosen answer fell", mean over the random subsets, with the mean
    share that fell. NaN where under 5 % or over 95 % did."""
    trained, names = paper.runs, [n for n in NAMES if n in paper.tables["scores"]]
    random = where(trained, world=world, measure="random")
    of = random.merge(paper.tables["ends"].assign(fell=_fell(paper.tables["ends"])), on="run")
    of = of.loc[:, ["world", "seed", "run", "pair_id", "fell"]]
    rows = of.merge(paper.tables["scores"], on=["world", "seed", "pair_id"])
    found = []
    for (seed, run), part in rows.groupby(["seed", "run"]):
        told = RARE <= part["fell"].mean() <= 1 - RARE
        for name in names:
            value = auroc((direction(name) or 1) * part[name], part["fell"]) if told else np.nan
            found.append({"seed": seed, "run": run, "measure": name, "auroc": value, "fell": part["fell"].mean()})
    columns = ["seed", "run", "measure", "auroc", "fell"]
    by_seed = pd.DataFrame(found, columns=columns).groupby(["seed", "measure"])
    return pd.DataFrame(by_seed[["auroc", "fell"]].mean()).reset_index()


def _fell(ends: pd.DataFrame) -> Any:
    """Whether each pair's chosen answer fell, as outcomes.fell says. ends: chosen log-probs, and each run's noise."""
    return outcomes.fell(ends["end_chosen_logps"] - ends["start_chosen_logps"], runs.column(ends, "noise"))


def _by_seed(table: pd.DataFrame, world: str, name: str, objective: str = "dpo") -> list[pd.DataFrame]:
    of = where(table, world=world, measure=name, objective=objective)
    return [rows for _, rows in of.groupby("seed")]


def _has(table: pd.DataFrame, world: str, *names: str) -> bool:
    return all(_by_seed(table, world, name) for name in names)


def _n(table: pd.DataFrame, world: str) -> str:
    of = where(table, world=world, objective="dpo", measure="ches_score")
    seeds, sizes = of["seed"].nunique(), sorted(set(of["n"]))
    size = f"{sizes[0]}" if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
    return f"{count(seeds, 'seed')}, {len(of) // seeds} subsets of {size} pairs"


def _subsets(table: pd.DataFrame, world: str) -> dict[str, Measured]:
    """What the paper claims of the subsets, and the noise."""
    told = partial(Measured, n=_n(table, world))
    ches = span(table, world, "ches_score")
    found = {
        "ches_trend": told(trend(table, world, "ches_score")),
        "ches_low": told(at(table, world, "ches_score", 0)),
        "ches_high": told(at(table, world, "ches_score", -1)),
    }
    others = ("edit_similarity", "last_hidden_similarity")
    for name, other in zip(("ches_edit", "ches_hidden"), others):
        found |= {name: told(ches - span(table, world, other))} if _has(table, world, other) else {}
    if _has(table, world, *others):
        rows = [pd.concat(of)["change"] for of in zip(*(_by_seed(table, world, name) for name in others))]
        found["others_rise"] = told([mean(outcomes.rose(of)) for of in rows])
    if _by_seed(table, world, "ches_score", "ipo_sum"):
        found["ipo_trend"] = told(trend(table, world, "ches_score", "ipo_sum"))
    if _has(table, world, "random"):
        spread = [np.ptp(of["change"].to_numpy()) for of in _by_seed(table, world, "random")]
        found["noise"] = told(ches - np.array(spread))
        found["again"] = told([mean(of["rank"]) for of in _by_seed(table, world, "random")])
    if world == "refusal" and _has(table, world, "hidden_rate"):
        found["rate_trend"] = told(trend(table, world, "hidden_rate"))
    return found


def _lengths(paper: Paper, table: pd.DataFrame, world: str) -> dict[str, Measured]:
    """The controls for length; none where all answers are equally long."""
    if not _has(table, world, "length_difference"):
        return {}
    told, ches, equal = partial(Measured, n=_n(table, world)), span(table, world, "ches_score"), f"{world}_equal"
    scores = paper.tables["scores"]
    pools = [of for _, of in where(scores, world=world).groupby("seed")]
    n = f"{count(len(pools), 'seed')} of {mean([len(of) for of in pools]):.0f} pairs"
    found = {
        "ln_trend": told(trend(table, world, "ln_ches_score")),
        "length_corr": Measured([spearman(of["ches_score"], of["length_difference"]) for of in pools], n),
        "over_length": told(ches - span(table, world, "length_difference")),
        "per_token_trend": told(trend(table, world, "ches_score", value="per_token")),
    }
    if _has(table, equal, "ches_score"):
        found["equal_trend"] = told(trend(table, equal, "ches_score"))
        found["equal_share"] = told(span(table, equal, "ches_score") / ches)
        for name, rate in (("rate_trend", "hidden_rate"), ("self_trend", "self_rate")):
            found |= {name: told(trend(table, equal, rate))} if _has(table, equal, rate) else {}
    return found


def _forecast(paper: Paper, world: str) -> dict[str, Measured]:
    """The lead of set_rate over CHES where both were measured."""
    table = aurocs(paper, world)
    if "set_rate" not in set(table["measure"]):
        return {}
    wide, fell = table.pivot_table("auroc", "seed", "measure", dropna=False), mean(table["fell"])
    n = f"{count(len(wide), 'seed')}, five random subsets; {number(100 * fell, 0)} % fell"
    return {"forecast": Measured((wide["set_rate"] - wide["ches_score"]).tolist(), n)}


def _equal_forecast(paper: Paper) -> dict[str, Measured]:
    found = _forecast(paper, "given_equal")
    return {"forecast_equal_given": found["forecast"]} if found else {}


def _signs(paper: Paper, world: str) -> dict[str, Measured]:
    rows = paper.tables["signs"]
    rows = where(rows, world=world)
    n = f"{count(len(rows), 'model')}, {rows['n'].iloc[0]} pairs each"
    alphas = (rows["chosen_alpha"] + rows["rejected_alpha"]) / 2
    return {"alphas": Measured(alphas.tolist(), n), "products": Measured(rows["hidden"].tolist(), n)}


def _refusals(table: pd.DataFrame) -> dict[str, Measured]:
    """The order of the refusal rate afterwards by CHES, and against edit distance."""
    if not _has(table, "refusal", "ches_score", "edit_similarity"):
        return {}
    ches, edit = (np.array(trend(table, "refusal", m, value="end_refusal")) for m in ("ches_score", "edit_similarity"))
    n = _n(table, "refusal")
    return {"refusals_ches": Measured(ches, n), "refusals_edit": Measured(ches - edit, n)}


# --- show ---


def by_percentile(paper: Paper) -> Block:
    """A figure for each world: the change in each subset under DPO and IPO."""
    table, found = changes(paper), []
    for world in _worlds(table):
        rows = where(table, world=world)
        found += [
            page.heading(WORLDS[world]),
            page.picture(draw_change(rows), f"Change by percentile, {WORLDS[world]}"),
        ]
    return page.stack(*found)


def similar_pairs(paper: Paper) -> Block:
    """The pairs of highest and lowest CHES of seed 0 as text, after their lengths beside the published ones."""
    table = paper.tables["examples"]
    found = [page.table(_example_lengths(table), heads={"chosen_length": "chosen", "rejected_length": "rejected"})]
    for world in _worlds(table):
        for end in ("highest", "lowest"):
            rows = where(table, world=world, end=end)
            ordered = rows.sort_values("ches_score", ascending=end == "lowest").head(3)
            found.append(page.heading(f"{WORLDS[world]}: {end} CHES, 3 of {len(rows)} kept"))
            found += [_example(row) for row in ordered.to_dict("records")]
    return page.stack(*found)


def signs(paper: Paper) -> Block:
    """Shares of positive products in each world, mean over its models with the half width of the interval."""
    rows = []
    for world, of in paper.tables["signs"].groupby("world", sort=False):
        said = {name: plus_minus(of[name]) for name in ("chosen_alpha", "rejected_alpha", "hidden")}
        rows.append({"world": WORLDS[str(world)], "models": len(of), "pairs each": of["n"].iloc[0]} | said)
    heads = {"chosen_alpha": "alpha+ > 0", "rejected_alpha": "alpha− > 0", "hidden": "<h+, h−> > 0"}
    return page.table(pd.DataFrame(rows), heads=heads)


def lengths(paper: Paper) -> Block:
    """CHES beside length difference and LN-CHES, summed and per token, and with all answers cut to one length."""
    table, found = changes(paper), []
    for world in ("facts", "given"):
        if _has(table, world, "length_difference"):
            rows = table.loc[table["world"].isin([world, f"{world}_equal"]) & (table["objective"] == "dpo")]
            figure = draw_lengths(rows, world)
            found += [page.heading(WORLDS[world]), page.picture(figure, f"What length explains, {WORLDS[world]}")]
    return page.stack(*found) if found else page.missing("Length", "All answers are equally long.")


def again(paper: Paper) -> Block:
    """Mean CHES before and after training in each CHES subset, and the rank correlation inside the subset."""
    table = where(changes(paper), objective="dpo")
    table = table.loc[table["measure"].isin(["ches_score", "random"])]
    kinds = table["measure"].map({"ches_score": "percentile ", "random": "random, "})
    table = table.assign(subset=kinds + table["percentile"].map("{:g}".format))
    heads = {"start_ches_score": "CHES before", "end_ches_score": "CHES after", "rank": "Spearman of both"}
    return page.table(spreads(table, {"world": WORLDS, "subset": {}}, list(heads)), heads=heads)


def refusals(paper: Paper) -> Block:
    """The refusal rate after training in each subset of the refusal world."""
    table = changes(paper)
    rows = where(table, world="refusal", objective="dpo")
    if rows["end_refusal"].isna().all():
        return page.missing("Refusals", "Only the refusal world follows them.")
    return page.picture(draw_refusals(rows), "Refusal rate after training by percentile")


def forecasts(paper: Paper) -> Block:
    """AUROC of each measure for a chosen answer that fell, in the random subsets."""
    tables = {world: aurocs(paper, world) for world in WORLDS}
    tables = {world: table for world, table in tables.items() if len(table)}
    if not tables:
        return page.missing("Forecasts", "No random subsets were trained on.")
    return page.picture(draw_aurocs(tables), "AUROC of each measure in random subsets")


def _worlds(table: pd.DataFrame) -> list[str]:
    """Those that are there; the ones cut to one length are controls, shown elsewhere."""
    return [world for world in WORLDS if world in set(table["world"]) and not world.endswith("_equal")]


def _example_lengths(table: pd.DataFrame) -> pd.DataFrame:
    """Mean lengths of the kept pairs at both ends, below the published ones (three pairs each)."""
    published = papers.published()["ches_subsets"]["tables"]["examples"]
    ours = table.groupby(["world", "end"], sort=False)[["chosen_length", "rejected_length"]]
    rows = pd.DataFrame(published["rows"]).groupby("end", sort=False)
    parts = [(f"published: {published['where']}", end, of) for end, of in rows]
    parts += [(WORLDS[str(key[0])], key[1], of) for key, of in ours]  # pyright: ignore[reportIndexIssue]
    return pd.DataFrame([
        {"pairs of": of_what, "CHES": end, "n": len(of)}
        | {c: f"{of[c].mean():.0f} tokens" for c in ("chosen_length", "rejected_length")}
        for of_what, end, of in parts
    ])  # fmt: skip


def _example(row: dict) -> Block:
    head = (
        f"CHES {number(row['ches_score'], 0)}, LN-CHES {number(row['ln_ches_score'])}; "
        f"chosen {row['chosen_length']:.0f} tokens, rejected {row['rejected_length']:.0f}"
    )
    return page.card(head, *(page.text(side, row[side], 500) for side in ("prompt", "chosen", "rejected")))


# --- draw ---


@styled
def draw_change(table: pd.DataFrame) -> Figure:
    """One panel a loss, one line a measure; points are means over seeds, bars reach from the least to the most."""
    losses = [loss for loss in LOSSES if loss in set(table["objective"])]
    figure, all_axes = panels(len(losses), height=4.2, width=5.2 * len(losses) + 1)
    for axes, loss in zip(all_axes, losses):
        rows = where(table, objective=loss)
        _bars(axes, rows, "change")
        ches = where(rows, measure="ches_score").groupby("percentile")["change"].mean().tolist()
        ends = f"{signed(ches[0])} to {signed(ches[-1])} nats"
        axes.set(title=f"{LOSSES[loss]}: by CHES {ends}", xlabel="percentile (100: most prone)")
        axes.set_ylabel(
            f"change of ln π(chosen), nats\n(n = {rows['n'].min():g} pairs, {rows['seed'].nunique()} seeds)"
        )
        below(axes, 3)
    return figure


@styled
def draw_lengths(table: pd.DataFrame, world: str) -> Figure:
    """Summed change, change per token, and the summed change at equal lengths, by percentile."""
    equal = table["world"] != world
    parts: list[tuple[pd.DataFrame, str, str, str]] = [
        (table.loc[~equal], "change", "as they are", "change of ln π(chosen), nats"),
        (table.loc[~equal], "per_token", "per token", "change per token, nats"),
        (table.loc[equal], "change", "cut to one length", "change of ln π(chosen), nats"),
    ]
    parts = [part for part in parts if len(part[0])]
    figure, all_axes = panels(len(parts), height=4.2, width=4.4 * len(parts))
    for axes, (rows, value, title, label) in zip(all_axes, parts):
        names = ("ches_score", "length_difference", "ln_ches_score", "hidden_rate", "self_rate")
        _bars(axes, rows.loc[rows["measure"].isin(names)], value)
        size = _rho(rows, value)
        axes.set(title=f"{title}: CHES {size}", xlabel="percentile", ylabel=label)
        below(axes, 2)
    return figure


def _rho(rows: pd.DataFrame, value: str) -> str:
    """Mean Spearman of CHES percentile and a value over seeds, in words."""
    of = where(rows, measure="ches_score")
    return f"ρ = {signed(mean([spearman(t['percentile'], t[value]) for _, t in of.groupby('seed')]))}"


@styled
def draw_refusals(table: pd.DataFrame) -> Figure:
    """Refusal rate after training by percentile; the dashed line is where it was before."""
    figure, (axes,) = panels(1, height=4.0, width=8.0)
    _bars(axes, table, "end_refusal")
    start = mean(table["start_refusal"])
    axes.axhline(start, color=DARK, lw=1, ls="--", label=f"before training: {number(start)}")
    ches = where(table, measure="ches_score").groupby("percentile")["end_refusal"].mean()
    axes.set(
        title=f"Trained on the lowest CHES it refuses {number(ches.iloc[0])}, on the highest {number(ches.iloc[-1])}"
    )
    axes.set(xlabel="percentile (100: most prone)", ylabel="probability of refusing\nunsafe held-out prompts")
    below(axes, 4)
    return figure


@styled
def draw_aurocs(tables: dict[str, pd.DataFrame]) -> Figure:
    """One panel a world; a point is the mean over seeds, the bar reaches from the least to the most."""
    figure, all_axes = panels(len(tables), height=3.8, width=max(6.0, 4.4 * len(tables)))
    for axes, (world, table) in zip(all_axes, tables.items()):
        found = pd.DataFrame(table.groupby("measure")["auroc"].agg(["mean", "min", "max"])).sort_values("mean")
        places = np.arange(len(found))
        axes.hlines(places, found["min"], found["max"], color=[COLOURS[n] for n in found.index], lw=2)
        axes.scatter(found["mean"], places, color=[COLOURS[n] for n in found.index], s=40, zorder=3)
        axes.axvline(0.5, color=DARK, lw=0.8, ls="--")
        axes.set_yticks(places, [NAMES[n] for n in found.index])
        fell = f"{100 * mean(table['fell']):.0f} % fell"
        axes.set(title=f"{WORLDS[world].split(' (')[0]}\n{fell}", xlabel="AUROC for “its chosen answer fell”")
    return figure


def _bars(axes: Axes, table: pd.DataFrame, value: str) -> None:
    """A line a measure, a little aside of each other, with bars from the least to the most seed."""
    names = [name for name in NAMES if name in set(table["measure"])]
    for k, name in enumerate(names):
        found = where(table, measure=name).groupby("percentile")[value].agg(["mean", "min", "max"])
        reach = [found["mean"] - found["min"], found["max"] - found["mean"]]
        places = found.index.to_numpy(float) + 1.6 * (k - (len(names) - 1) / 2)
        thick = 2.4 if name == "ches_score" else 1.3
        axes.errorbar(places, found["mean"], yerr=reach, fmt="o-", color=COLOURS[name], lw=thick, ms=4, capsize=2,
                      label=NAMES[name])  # fmt: skip
    axes.axhline(0, color=DARK, lw=0.8)
    axes.set_xticks(sorted(set(table["percentile"])))
