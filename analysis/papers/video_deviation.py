"""Deviation of a video model: how far each objective ends from the reference, and what it gains on held-out clips."""

import math

import pandas as pd
from matplotlib.figure import Figure

from analysis import papers
from analysis.compare import figures as board_figures
from analysis.papers import Measured, Paper, deviation, groups, once, per_seed, plus_minus, where
from analysis.papers.deviation import HEADS, WANTED, Runs, kl_at, published_points, ratio
from analysis.show import page
from analysis.show.page import Block
from analysis.show.units import TOKENS
from analysis.show.wording import number, percent, signed
from analysis.tables.intervals import mean, spearman

FIGURE = {"DPO": "DPO", "DDPO": "DDPO", "TDPO": "TDPO2", "DPA": "DPA", "RRPO": "RRPO"}  # published name: ours
ANSWERS = {
    "right": "right answers, held-out clips (%)",
    "perturbed": "right answers, the clips masked and shuffled (%)",
}
LOGGED = {"sampled": "probability of the chosen token (%)", "top": "chosen token is the likeliest (%)"}
KINDS = ("object", "action", "order", "count")


def measured(paper: Paper) -> dict[str, Measured]:
    """Every claim and control: ratios of KL, differences of accuracy, both at the larger rate unless they say else."""
    table = ends(paper)
    rates = sorted(set(table["rate"]))
    high, low = (Runs(where(table, rate=rate)) for rate in (rates[-1], rates[0]))
    rrpo, dpo, n = high.of("kl", "RRPO"), high.of("kl", "DPO"), high.n
    kls = {
        "kl_dpo": (dpo, rrpo),
        "kl_ddpo": (dpo, high.of("kl", "DDPO")),
        "kl_tdpo": (rrpo, high.of("kl", "TDPO2")),
        "kl_dpa": (rrpo, high.of("kl", "DPA")),
        "low_rate": (low.of("kl", "DPO"), low.of("kl", "RRPO")),
        "handicap": (low.of("kl", "DPO"), rrpo),
        "parts_kl": (high.of("kl", "RRPO w/o TKL"), high.of("kl", "RRPO w/o R*")),
        "simpo_kl": (high.of("kl", "SimPO"), rrpo),
    }
    found = {name: ratio(above, below, n) for name, (above, below) in kls.items()}
    return found | per_seed(_gains(high, low) | {"order": _order(high)}) | {"equal_margin": _equal(paper, n)}


@once
def ends(paper: Paper) -> pd.DataFrame:
    """One row a run: the columns of deviation.ends, and right, perturbed (points) and seen (nats) of what it answers on
    held-out clips, with their values before training as start_right ...; NaN where no clips were asked about."""
    table = deviation.ends(paper).assign(run=paper.runs["run"].to_numpy())
    answers = paper.tables["answers"].copy()
    answers[["right", "perturbed"]] *= 100
    start = where(answers, run="").drop(columns="run").set_index("seed").add_prefix("start_").reset_index()
    return table.merge(answers.drop(columns="seed"), "left", "run").merge(start, "left", "seed")


def _gains(high: Runs, low: Runs) -> dict[str, pd.Series]:
    """Differences of accuracy in points, and of what the frames add in nats, by seed."""
    right = {name: high.of("right", name) for name in set(high.table["method"])}
    rrpo, dpo = high.of("right", "RRPO"), high.of("right", "DPO")
    others = [right[name] for name in FIGURE.values() if name in right and name != "RRPO"]
    best = pd.concat(others, axis=1).max(axis=1) if others else pd.Series(dtype=float)
    seen_dpo = high.of("seen", "DPO")
    return {
        "gain_rrpo": rrpo - high.of("start_right", "RRPO"),
        "gain_dpo": dpo - high.of("start_right", "DPO"),
        "accuracy": rrpo - dpo,
        "best": rrpo - best,
        "ablation_kl": rrpo - high.of("right", "RRPO w/o TKL"),
        "ablation_spans": rrpo - high.of("right", "RRPO w/o R*"),
        "perturbed": high.of("perturbed", "RRPO") - high.of("perturbed", "DPO"),
        "handicap_accuracy": rrpo - low.of("right", "DPO"),
        "seen_dpo": seen_dpo - high.of("start_seen", "DPO"),
        "seen_rrpo": high.of("seen", "RRPO") - seen_dpo,
    }


def _order(high: Runs) -> pd.Series:
    """Spearman of the published and the measured KL of the figure's objectives, by seed; NaN where one is missing."""
    said = {FIGURE[row["method"]]: row["kl"] for row in papers.published()["deviation"]["tables"]["divergence"]}
    table = high.table.loc[high.table["method"].isin(list(said))].pivot_table("kl", "seed", "method")
    if len(table.columns) < len(said):
        return pd.Series(math.nan, index=table.index)
    return pd.Series({seed: spearman(pd.Series(said), of) for seed, of in table[list(said)].iterrows()})


def _equal(paper: Paper, n: str) -> Measured:
    """KL of DPO over that of RRPO where each first reaches the same margin, at the larger rate."""
    table = deviation.paths(paper)
    table = table.loc[table["rate"] == table["rate"].max()]
    pairs = []
    for _, rows in table.groupby("seed"):
        both = [where(rows, method=name) for name in ("DPO", "RRPO")]
        target = min(WANTED, *(of["margin"].max() for of in both))
        pairs.append([kl_at(of, target) for of in both])
    above, below = (pd.Series([pair[k] for pair in pairs], dtype=float) for k in (0, 1))
    return ratio(above, below, n)


def divergence(paper: Paper) -> Block:
    """KL against plain mean accuracy, every objective at every learning rate."""
    return page.picture(draw_divergence(ends(paper)), "Accuracy against KL, one mark an objective and rate")


def distances(paper: Paper) -> Block:
    """KL both ways and per token, right answers, what the frames add, and the share of chosen answers that fell, with
    the published points beside them."""
    names = {"kl": 2, "kl_reverse": 2, "kl_token": 3, "kl_reverse_token": 3, "right": 1, "perturbed": 1, "seen": 2}
    table = ends(paper)
    said, rows = published_points(Runs(table)), []
    for (name, rate), of in groups(table, "label", "rate"):
        cells = {k: plus_minus(of[k], digits) for k, digits in names.items()} | {"fell": percent(mean(of["fell"]))}
        rows.append({"objective": name, "rate": f"{float(rate):g}", "seeds": len(of)} | cells | said.get(str(name), {}))
    start = table.drop_duplicates("seed")
    before = {k: plus_minus(start[f"start_{k}"], names[k]) for k in ("right", "perturbed", "seen")}
    rows.insert(0, {"objective": "before training", "seeds": len(start)} | before)
    heads = HEADS | {"right": "right, %", "perturbed": "right on perturbed clips, %", "seen": "the frames add, nats"}
    return page.table(pd.DataFrame(rows).fillna("–"), heads=heads)


def ablation(paper: Paper) -> Block:
    """What each part of RRPO is worth: right answers gained over the start, KL and displaced share, larger rate."""
    table = ends(paper)
    table = table.loc[(table["rate"] == table["rate"].max()) & table["method"].str.match("DPO|RRPO")]
    means = {r["method"]: mean(r["scores"]) for r in papers.published()["deviation"]["tables"]["ablation"]}
    rows = []
    for (name,), of in groups(table, "method"):
        said = means.get(str(name))
        rows.append({"objective": name, "seeds": len(of),
                     "right answers gained, points": plus_minus(of["right"] - of["start_right"], 1, sign=True),
                     "held-out KL, nats": plus_minus(of["kl"], 2), "chosen fell": percent(mean(of["fell"])),
                     "published gain, points": signed(said - means["base"], 1) if said else "–"})  # fmt: skip
    return page.table(pd.DataFrame(rows))


def margins(paper: Paper) -> Block:
    """KL against margin over training: how far each objective goes for the preference it learns."""
    return deviation.margins(paper)


def start(paper: Paper) -> Block:
    """What the starting models read: right answers on the clips, on changed clips, and on the film in words."""
    table, rows = paper.tables["start"], []
    heads = {
        "clips": "the clip", "reversed": "reversed", "turned": "reversed: its own true answer", "grey": "grey frames",
        "others": "another clip", "told": "the film in words",
    }  # fmt: skip
    for kind in KINDS:
        of = where(table, kind=kind)
        cells = {words: percent(mean(of[name])) for name, words in heads.items()}
        rows += [{"question": kind, "seeds": len(of)} | cells] * bool(len(of))
    return (
        page.table(pd.DataFrame(rows)) if rows else page.note("Not measured: it needs clips whose answers are known.")
    )


def draw_divergence(table: pd.DataFrame) -> Figure:
    """One panel a kind of accuracy: KL (log) against points."""
    shown = table.rename(columns={"kl": "eval_kl"})
    labels, heights = (
        list(dict.fromkeys(shown["label"])),
        ANSWERS if table["right"].notna().to_numpy().any() else LOGGED,
    )
    starts = {name: mean(shown[f"start_{name}"]) for name in heights}
    figure = board_figures.frontier(shown, labels, heights, starts, TOKENS)
    last = shown.loc[shown["rate"] == shown["rate"].max()]
    far = {name: mean(of["eval_kl"]) for (name,), of in groups(last, "label")}
    first = next(iter(heights))
    best = {name: mean(of[first]) for (name,), of in groups(last, "label")}
    top, most = max(best, key=best.__getitem__), max(far, key=far.__getitem__)
    title = f"Farthest: {most} ({number(far[most])} nats); best: {top} ({number(best[top], 1)} %, at first "
    figure.suptitle(f"{title}{number(starts[first], 1)} %)", x=0.01, ha="left", fontweight="bold", fontsize=11)
    return figure
