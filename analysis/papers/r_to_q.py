"""From r to Q*: implicit rewards of the reference's own answers, of chosen answers by start, and token by token."""

from html import escape

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.papers import WORLDS, Measured, Paper, once, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CHOSEN, CYCLE, DARK, NEUTRAL, SIDE, below, panels, styled
from analysis.show.wording import count, number, percent, signed, visible
from analysis.tables import runs
from analysis.tables.intervals import half_width, mean

STARTS = {"base": "base start", "sft": "SFT-on-chosen start"}
SHOWN = 4  # pairs of the heat map
NEAR = 8  # tokens on either side of the decisive one


def measured(paper: Paper) -> dict[str, Measured]:
    """The claims' values by seed: the identity, rewards by start, credit."""
    exact = paper.tables["exact"]
    exact = where(exact, start="base")
    error = pd.Series((exact["reward"] + exact["kl"]).abs() / exact["kl"])
    worst = [max(error[exact["seed"] == seed]) for seed in sorted(set(exact["seed"]))]
    n = f"{count(len(worst), 'seed')} of {exact['answers'].max():,.0f} answers"
    found = {"exact": Measured(worst, n)} if worst else {}
    found |= _identity(means(paper.tables["identity"]))
    found |= _starts(ends(curves(paper)))
    return found | _credit(tokens(paper))


def means(identity: pd.DataFrame) -> pd.DataFrame:
    """start, case, seed: mean reward and mean kl over the sampled answers, half of the 95 % interval of their
    difference, the largest |reward| or kl of any, and how many there are (n)."""
    rows = []
    for start, case, seed in sorted(set(zip(identity["start"], identity["case"], identity["seed"]))):
        keep = (identity["start"] == start) & (identity["case"] == case) & (identity["seed"] == seed)
        of = identity.loc[keep].assign(gap=identity["reward"] + identity["kl"])
        half = half_width(of.pivot_table("gap", "prompt")["gap"])  # answers to one prompt are not independent
        largest = float(np.abs(of[["reward", "kl"]].to_numpy()).max())
        values = {"reward": mean(of["reward"]), "kl": mean(of["kl"]), "half": half, "largest": largest, "n": len(of)}
        rows.append({"start": start, "case": case, "seed": seed} | values)
    return pd.DataFrame(rows)


@once
def curves(paper: Paper) -> pd.DataFrame:
    """world, start, seed, step: mean implicit reward of chosen and rejected over the probed pairs."""
    frames = []
    for row in paper.runs.to_dict("records"):
        log = paper.log(row["run"])
        probe = where(log.pairs, split="probe")
        table = pd.DataFrame({"step": probe["step"]})
        for side in runs.SIDES:
            table[side] = log.config["beta"] * (probe[f"{side}_logps"] - probe[f"ref_{side}_logps"])
        found = table.pivot_table(list(runs.SIDES), "step").reset_index()
        frames.append(found.assign(pairs=probe["pair_id"].nunique(), **{k: row[k] for k in ("world", "start", "seed")}))
    return pd.concat(frames, ignore_index=True)


def ends(table: pd.DataFrame) -> pd.DataFrame:
    """The last step of each run."""
    return table.sort_values("step").groupby(["world", "start", "seed"], as_index=False).last()


@once
def tokens(paper: Paper) -> pd.DataFrame:
    """One row a token of the runs from the base start: seed, pair_id, side, position, token, credit = beta (logp -
    ref_logp) at the end, start (the same before training), decisive (a value word), differs (see `differing`)."""
    frames = []
    for row in paper.runs.query("start == 'base'").to_dict("records"):
        log = paper.log(row["run"])
        if log.tokens.empty:
            continue
        credit = log.config["beta"] * (log.tokens["logp"] - log.tokens["ref_logp"])
        table = log.tokens.assign(credit=credit, seed=row["seed"], world=row["world"])
        names = ["pair_id", "side", "position"]
        first = where(table, step=0).set_index(names)["credit"].rename("start")
        last = table.loc[table["step"] == table["step"].max()].set_index(names)
        frames.append(differing(last.join(first).reset_index()))
    table = pd.concat(frames, ignore_index=True)
    words = set(paper.tables["decisive"]["token"])
    return table.assign(decisive=table["token"].str.strip().isin(words) & (table["world"] == "facts"))


def differing(table: pd.DataFrame) -> pd.DataFrame:
    """With a column `differs`: the token stands outside the beginning and the end that both answers share."""
    marks = []
    for _, pair in table.sort_values(["pair_id", "side", "position"]).groupby("pair_id"):
        sides = {side: of["token_id"].tolist() for side, of in pair.groupby("side")}
        left, right = shared(sides["chosen"], sides["rejected"])
        end = pair["side"].map(lambda side, sides=sides, right=right: len(sides[side]) - right)
        marks.append((pair["position"] >= left) & (pair["position"] < end))
    return table.assign(differs=pd.concat(marks))


def shared(one: list[int], other: list[int]) -> tuple[int, int]:
    """How many tokens two answers share at the beginning, and how many of the rest at the end."""
    short = min(len(one), len(other))
    left = next((k for k in range(short) if one[k] != other[k]), short)
    right = next((k for k in range(short - left) if one[-1 - k] != other[-1 - k]), short - left)
    return left, right


def lift(rows: pd.DataFrame, mark: str) -> float:
    """Share of the absolute credit on the tokens marked in a column, over their share of the tokens; 1 where it is
    spread evenly."""
    weight, marked = np.abs(rows["credit"].to_numpy()), rows[mark].to_numpy(dtype=bool)
    return float(weight[marked].sum() / weight.sum() / marked.mean())


def with_random(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """With a column `random`: true for one token of each answer, drawn by chance."""
    rows = rows.assign(chance=np.random.default_rng([seed, 5]).random(len(rows)))
    highest = rows.groupby(["pair_id", "side"])["chance"].transform("max")
    return rows.assign(random=rows["chance"] == highest)


def identity(paper: Paper) -> Block:
    """Mean reward of sampled answers against -beta KL along them."""
    return page.picture(draw_identity(means(paper.tables["identity"])), "Mean implicit reward against minus beta KL")


def identities(paper: Paper) -> Block:
    """The same numbers, seed by seed."""
    table = means(paper.tables["identity"])
    gap = [f"{signed(r + k, 4)} ± {number(h, 4)}" for r, k, h in zip(table["reward"], table["kl"], table["half"])]
    gap = ["–" if case == "policy" else said for case, said in zip(table["case"], gap)]  # the identity is not about it
    shown = table.assign(gap=gap, kl=-table["kl"]).drop(columns=["half", "largest"])
    heads = {"case": "drawn from", "n": "answers", "reward": "mean reward", "kl": "−β KL", "gap": "difference"}
    return page.table(shown, {k: lambda v: number(v, 4) for k in ("reward", "kl")}, heads)


def starts(paper: Paper) -> Block:
    """Implicit rewards of both sides over steps, by start."""
    return page.picture(draw_starts(curves(paper)), "Mean implicit reward of chosen and rejected by step and start")


def credit(paper: Paper) -> Block:
    """Mean credit by distance to the decisive token."""
    return page.picture(draw_credit(tokens(paper)), "Mean credit of a token by its distance to the decisive one")


def heat(paper: Paper) -> Block:
    """A few pairs of the first seed, both sides, each token coloured by its credit."""
    table = tokens(paper)
    table = table.loc[table["seed"] == table["seed"].min()]
    full = float(table["credit"].abs().quantile(0.99)) or 1.0
    said = f"Blue: credit above 0, red: below; full colour at {number(full)}. Decisive tokens are underlined."
    cards = [_card(where(table, pair_id=pair), full) for pair in sorted(set(table["pair_id"]))[:SHOWN]]
    return page.stack(page.note(said, "quiet"), *cards)


@styled
def draw_identity(table: pd.DataFrame) -> Figure:
    """A point a seed and start, with its interval; on the diagonal the identity holds. table: from `means`."""
    figure, (axes,) = panels(1, height=5.0, width=6.5)
    rows = where(table, case="reference")
    for colour, (start, name) in zip(CYCLE, STARTS.items()):
        of = where(rows, start=start)
        axes.errorbar(-of["kl"], of["reward"], yerr=of["half"], fmt="o", ms=5, color=colour, capsize=2, label=name)
    low = 1.15 * float(min((-rows["kl"]).min(), (rows["reward"] - rows["half"].fillna(0)).min()))
    axes.plot([low, 0], [low, 0], color=DARK, lw=0.8, ls="--", label="identity")
    far = float(((rows["reward"] + rows["kl"]).abs() / rows["kl"]).max())
    axes.set(xlabel="−β KL(ref‖π) along the sampled answers", ylabel="mean implicit reward of the same answers")
    axes.set_title(f"At most {percent(far)} apart in {len(rows)} policies")
    below(axes, 3)
    return figure


@styled
def draw_starts(table: pd.DataFrame) -> Figure:
    """One panel a world: chosen solid, rejected dotted; both starts. table: from `curves`."""
    names = [w for w in WORLDS if w in set(table["world"])]
    figure, all_axes = panels(len(names), height=4.0, width=5.2 * len(names))
    for axes, world in zip(all_axes, names):
        said = []
        for colour, start in ((CHOSEN, "base"), (CYCLE[2], "sft")):
            rows = where(table, world=world, start=start)
            for side, style in (("chosen", "-"), ("rejected", ":")):
                middle = rows.pivot_table(side, "step")
                axes.plot(middle.index, middle[side], style, color=colour, lw=2, label=f"{side}, {STARTS[start]}")
            last = rows.loc[rows["step"] == rows["step"].max()]
            said.append(f"{signed(mean(last['chosen']))} from {start.replace('sft', 'SFT')}")
        axes.axhline(0, color=DARK, lw=0.8)
        axes.set(title=f"{WORLDS[world]}: chosen ends at\n{', '.join(said)}", xlabel="optimizer step")
        axes.set_ylabel("mean implicit reward (β nats)")
        below(axes, 2)
    return figure


@styled
def draw_credit(table: pd.DataFrame) -> Figure:
    """Mean credit with its 95 % interval over seeds, by distance to the decisive token. table: from `tokens`."""
    figure, (axes,) = panels(1, height=4.0, width=9.0)
    placed = distances(table)
    for side in runs.SIDES:
        seeds = where(placed, side=side).pivot_table("credit", "distance", "seed")
        half = [half_width(row) for row in seeds.to_numpy()]
        axes.errorbar(
            seeds.index, seeds.mean(axis=1), yerr=half, fmt="o-", ms=4, capsize=2, color=SIDE[side], label=side
        )
    axes.axhline(0, color=DARK, lw=0.8)
    axes.axvline(0, color=NEUTRAL, lw=0.8, ls="--")
    marked = table.loc[_deciding(table)]
    found = {side: mean(where(marked, side=side)["credit"]) for side in runs.SIDES}
    axes.set_title(
        f"The decisive token earns {signed(found['chosen'])} in chosen, {signed(found['rejected'])} in rejected"
    )
    axes.set(xlabel="tokens from the decisive one (0)", ylabel="mean credit (β nats)")
    below(axes, 2)
    return figure


def distances(table: pd.DataFrame) -> pd.DataFrame:
    """side, seed, distance, credit: each token's distance to the first decisive one of its answer, at most NEAR."""
    names = ["seed", "pair_id", "side"]
    first = table.loc[_deciding(table)].groupby(names)["position"].min().rename("at")
    placed = table.join(first, on=names)
    placed = placed.assign(distance=placed["position"] - placed["at"])
    return placed.loc[placed["distance"].abs() <= NEAR, ["side", "seed", "distance", "credit"]]


def _deciding(table: pd.DataFrame) -> pd.Series:
    """The value words, or where none are known the tokens that differ."""
    return pd.Series(table["decisive"] if any(table["decisive"]) else table["differs"])


def _identity(table: pd.DataFrame) -> dict[str, Measured]:
    found: dict[str, Measured] = {}
    for start in STARTS:
        rows = where(table, start=start, case="reference")
        n = f"{count(len(rows), 'seed')} of {max(rows['n'], default=0):,} answers"
        found[f"reward_{start}"] = Measured(rows["reward"].tolist(), n)
        found[f"identity_{start}"] = Measured(((rows["reward"] + rows["kl"]) / rows["kl"]).tolist(), n)
    for case, value in (("untrained", "largest"), ("policy", "reward")):
        rows = where(table, start="base", case=case)
        found[case] = Measured(
            rows[value].tolist(), f"{count(len(rows), 'seed')} of {max(rows['n'], default=0):,} answers"
        )
    return found


def _starts(table: pd.DataFrame) -> dict[str, Measured]:
    found = {}
    for world in dict.fromkeys(table["world"]):
        rows = where(table, world=world)
        by_seed = rows.pivot_table("chosen", "seed", "start").dropna()
        n = f"{count(len(by_seed), 'seed')} of {max(rows['pairs'])} pairs"
        if {"base", "sft"} <= set(by_seed):
            values = {"sft": by_seed["sft"], "base": by_seed["base"], "gap": by_seed["sft"] - by_seed["base"]}
            found |= {f"{name}_{world}": Measured(of.tolist(), n) for name, of in values.items()}
    return found


def _credit(table: pd.DataFrame) -> dict[str, Measured]:
    by_seed = [of for _, of in table.groupby("seed")]
    n = f"{count(len(by_seed), 'seed')} of {max(len(set(of['pair_id'])) for of in by_seed)} pairs"
    values = {"credit_span": [lift(of, "differs") for of in by_seed]}
    values["credit_start"] = [max(np.abs(of["start"].to_numpy())) for of in by_seed]
    if any(table["decisive"]):
        chance = [lift(with_random(of, k), "random") for k, of in enumerate(by_seed)]
        both = [lift(of, "decisive") for of in by_seed]
        sides = {side: [where(of, side=side) for of in by_seed] for side in runs.SIDES}
        values |= {f"credit_{side}": [lift(of, "decisive") for of in rows] for side, rows in sides.items()}
        earned = [[mean(of.loc[of["decisive"], "credit"]) for of in sides[side]] for side in runs.SIDES]
        values["credit_sign"] = [one - other for one, other in zip(*earned)]
        values["credit_random"] = chance
        values["credit_lead"] = [a - b for a, b in zip(both, chance)]
    return {name: Measured(of, n) for name, of in values.items()}


def _card(table: pd.DataFrame, full: float) -> Block:
    sides = []
    for side in runs.SIDES:
        rows = where(table, side=side).sort_values("position")
        spans = " ".join(_token(row, full) for row in rows.head(400).to_dict("records"))
        label = f"{side}, reward {signed(float(rows['credit'].sum()))}"
        sides.append(
            Block(f'<div class="text"><span class="label">{escape(label)}</span><div class="words">{spans}</div></div>')
        )
    return page.card(f"pair {table['pair_id'].iloc[0]}", *sides)


def _token(row: dict, full: float) -> str:
    """One token, escaped, coloured by its credit."""
    credit = float(row["credit"])
    colour = f"rgba({'31,119,164' if credit > 0 else '209,73,91'},{min(1.0, abs(credit) / full) * 0.8:.2f})"
    style = f"background:{colour}" + ";text-decoration:underline" * bool(row["decisive"])
    shown = visible(row["token"])
    title = f"{shown}: credit {signed(credit, 3)}"
    return f'<span style="{style}" title="{escape(title)}">{escape(shown[1:-1]) or "∅"}</span>'
