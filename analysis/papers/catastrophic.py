"""One pair, one token: how far the preferred answer falls, which tokens gain, and what the unembeddings foretell."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from analysis import papers
from analysis.demo import tables as demo
from analysis.papers import Measured, Paper, once, plus_minus, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CHOSEN, CYCLE, DARK, NEUTRAL, REJECTED, below, panels, styled
from analysis.show.wording import count, for_plot, number, percent, signed, visible
from analysis.tables import mass, runs
from analysis.tables.intervals import auroc, finite, mean, wilson
from diagnostics.outcomes import fell
from diagnostics.runlog import RunLog

CASES = {
    "yes_no": "Yes over No",
    "no_never": "No over Never",
    "sure_yes": "Sure over Yes",
    "no_yes": "No over Yes",
    "yes_absolutely": "Yes over Absolutely",
    "no_nope": "No over Nope",
}
PAPERS_OWN = ("yes_no", "no_never", "sure_yes")
PARTS = {("sft", "dpo"): "DPO after SFT", ("base", "dpo"): "DPO on the base", ("sft", "ipo"): "IPO after SFT"}
CONTROLS = {
    "": "Adam, all parameters",
    "rmsprop": "RMSProp, all parameters",
    "frozen_head": "Adam, head and embeddings frozen (LoRA)",
    "sgd": "plain SGD, all parameters",
}
MODELS = {"sft": "after SFT", "base": "base"}
WAYS = {
    "unembeddings": "largest <W_z, W+ − W−>",
    "weighed": "the same, weighed by π(z)",
    "likeliest": "largest π(z): no forecast",
}
STEPS, LAST, TOP = (5, 25, 100), 100, 3
ROSE = 0.05  # of probability: more counts as a rise of the other side
LABELS = ["phase", "seed", "case", "prompt"]
SIDE = {"same": "", "other": " (other side)", "neither": " (neither)", "": " (no answer)"}


def measured(paper: Paper) -> dict[str, Measured]:
    """The value of every claim that this rerun can give, one number a seed."""
    table = courses(paper)
    rates = {paper.record["settings"][f"{name} learning rate"] for name in ("DPO", "IPO")}
    found = _falls(table) | _tokens(paper, table) | _sides(table) | _before(paper, table)
    found |= _controls(table, same_rate=len(rates) == 1)
    claims = {name: Measured(values, count(len(values), "seed")) for name, values in found.items() if len(values)}
    return claims | ({"similar_top": _share(found["similar_top"])} if found["similar_top"] else {})


def _share(values: list[float]) -> Measured:
    """A share of runs, one or more a seed. Where every seed says all or none, it is one of so many seeds (Wilson)."""
    whole = set(values) <= {0.0, 1.0}
    interval = wilson(round(sum(values)), len(values)) if whole else None
    return Measured(values, count(len(values), "seed"), interval)


def largest_fall(values: ArrayLike) -> tuple[float, float, float]:
    """Largest fall between any two steps t < t', and the values at both; 0 where none is below an earlier one."""
    series = np.asarray(values, dtype=float)
    peaks = np.maximum.accumulate(series)
    last = int(np.argmax(peaks - series))
    return float(peaks[last] - series[last]), float(peaks[last]), float(series[last])


def rose(losses: ArrayLike) -> bool:
    """Whether the training loss ever rose from one step to the next; equal is no rise."""
    return bool((np.diff(np.asarray(losses, dtype=float)) > 0).any())


def side(token: str, chosen: str) -> str:
    """Whether a token answers as the chosen one does: same, other, neither, or "" where it is no answer. Spaces
    before it and capitals do not count."""
    sides = [{word.lower() for word in words} for words in demo.SIDES]
    word, own = token.strip(" _\u2581\u0120\"'").lower(), chosen.lower()
    if word in ("maybe", "perhaps"):
        return "neither"
    home = next((words for words in sides if word in words), None)
    return "" if home is None else "same" if own in home else "other"


def courses(paper: Paper) -> pd.DataFrame:
    """One row a run: its labels; p (probability of the chosen answer at records 0 to 100); fall, start, end (its
    largest fall), rose (whether the loss ever did); at margin 1.5 the changes chosen, own, opposite, junk and the top
    token; *_last: the changes at record 100."""
    return _read(paper)[0]


def gaining(paper: Paper) -> pd.DataFrame:
    """The tokens that gained most by each logged step, of every run: labels, step, rank, token, token_id, change."""
    return _read(paper)[1]


def top_tokens(table: pd.DataFrame, step: int) -> pd.DataFrame:
    """Of the runs given: token, side, in how many runs it is among the three that gained most by this step, and its
    mean increase there; most frequent first. table: rows of `gaining` with the column answer (the chosen one)."""
    rows = table.loc[(table["step"] == step) & (table["rank"] < TOP)]
    found = rows.groupby(["token", "answer"], as_index=False).agg(runs=("change", "size"), gained=("change", "mean"))
    found["side"] = [side(t, a) for t, a in zip(found["token"], found["answer"])]
    return found.sort_values(["runs", "gained"], ascending=False, ignore_index=True)


@once
def overlaps(paper: Paper) -> pd.DataFrame:
    """Of the ten predicted tokens, how many are among the ten that gained most: labels, way, step, overlap, chance."""
    predicted = paper.tables["predicted"]
    real = gaining(paper)
    real = real.loc[(real["objective"] == "dpo") & (real["control"] == "") & (real["change"] > 0)]
    both = predicted.merge(real[[*LABELS, "step", "token_id"]], on=[*LABELS, "token_id"])
    hits = both.groupby([*LABELS, "way", "step"], as_index=False).agg(overlap=("rank", "size"))
    runs_steps = real[[*LABELS, "step"]].drop_duplicates()
    ways = predicted.groupby([*LABELS, "way"], as_index=False).agg(
        tokens=("rank", "size"), size=("vocabulary", "first")
    )
    table = ways.merge(runs_steps, on=LABELS).merge(hits, on=[*LABELS, "way", "step"], how="left")
    return table.assign(overlap=table["overlap"].fillna(0.0), chance=table["tokens"] ** 2 / table["size"])


# --- the values of the claims ----------------------------------------------------------------------------------


def _falls(table: pd.DataFrame) -> dict[str, list[float]]:
    """Largest falls of the runs whose loss never rose."""
    kept = table.loc[~table["rose"]]
    names = {("sft", "dpo"): "dpo", ("base", "dpo"): "base", ("sft", "ipo"): "ipo"}
    return {
        f"{name}_{case}": _by_seed(_of(kept, phase, objective, case), "fall")
        for (phase, objective), name in names.items()
        for case in PAPERS_OWN
    }


def _tokens(paper: Paper, table: pd.DataFrame) -> dict[str, list[float]]:
    """Share of kept runs with an answer of the other side among the three that gain most at step 5, 25 or 100."""
    top = gaining(paper).merge(table[["run", "rose", "chosen_answer"]], on="run")
    top = top.loc[~top["rose"] & (top["rank"] < TOP) & top["step"].isin(STEPS) & (top["change"] > 0)]
    top["other"] = [float(side(t, a) == "other") for t, a in zip(top["token"], top["chosen_answer"])]
    by_run = top.groupby([*LABELS, "objective", "control", "run"], as_index=False)["other"].max()
    names = {"no_never": "catastrophic_no_never", "sure_yes": "catastrophic_sure_yes", "yes_no": "benign_yes_no"}
    return {name: _by_seed(_of(by_run, "sft", "dpo", case), "other") for case, name in names.items()}


def _sides(table: pd.DataFrame) -> dict[str, list[float]]:
    """Changes at equal margin on the base."""
    similar = _of(table, "base", "dpo", "no_never")
    dissimilar = table.loc[
        (table["phase"] == "base") & (table["control"] == "") & table["case"].isin(["no_yes", "yes_no"])
    ]
    found = {"similar_chosen": "chosen", "similar_opposite": "opposite", "similar_top": "top_is_opposite"}
    return {name: _by_seed(similar, column) for name, column in found.items()} | {
        "dissimilar_opposite": _by_seed(dissimilar, "opposite"),
        "dissimilar_own": _by_seed(dissimilar, "own"),
        "long_dissimilar": _by_seed(_of(table, "base", "dpo", "no_yes"), "chosen_last"),
    }


def _before(paper: Paper, table: pd.DataFrame) -> dict[str, list[float]]:
    """What is known before training: unembeddings, hidden states, forecasts."""
    shape = paper.tables["geometry"]
    after = shape.loc[(shape["phase"] == "sft") & shape["case"].isin(PAPERS_OWN)]
    ratio = after.assign(ratio=after["across"] / after["along"].abs()).pivot_table("ratio", "seed", "case")
    known = _forecast(table, shape)
    counted = overlaps(paper).query("step == 1").pivot_table("overlap", [*LABELS, "chance"], "way").reset_index()
    counted["lead"] = counted["unembeddings"] - counted["chance"]
    counted["beyond"] = counted["weighed"] - counted["likeliest"]
    found = {
        "orthogonal": finite(ratio.min(axis=1)).tolist(),
        "ches_zero": _by_seed(known, "ches", "max"),
        "prompts": _by_seed(paper.tables["prompts"], "positive", "min"),
        "cosine": _aurocs(known, "centred_cosine", known["opposite"].gt(ROSE).where(known["opposite"].notna())),
        "bracket": _aurocs(known.assign(falling=-known["features_rate"]), "falling", _fell(known)),
        "overlap": _by_seed(counted, "lead"),
        "overlap_likeliest": _by_seed(counted, "beyond"),
    }
    if {"no_never", "yes_no"} <= set(ratio):
        found["orthogonal_similar"] = (ratio["no_never"] / ratio["yes_no"]).tolist()
    return found


def _forecast(table: pd.DataFrame, shape: pd.DataFrame) -> pd.DataFrame:
    """The runs on the base with what was known before: geometry, and |CHES| over |h|^2."""
    known = where(table, phase="base", control="").merge(shape, on=LABELS)
    return known.assign(ches=known["ches"] / known["hidden_norm2"])


def _fell(known: pd.DataFrame) -> Any:
    """Whether p(chosen) had fallen at margin 1.5: its logarithm, as outcomes.fell says."""
    return fell(np.log1p(known["chosen"] / known["p"].str[0].astype(float)))


def _aurocs(known: pd.DataFrame, score: str, positive: Any) -> list[float]:
    """AUROC in each seed; NaN where all its runs went one way."""
    rows = known.assign(positive=positive.astype(float))
    return [auroc(of[score], of["positive"]) for _, of in rows.groupby("seed")]


def _controls(table: pd.DataFrame, same_rate: bool) -> dict[str, list[float]]:
    """Other optimizers and scopes, and IPO beside DPO where they have the same rate."""
    names = {"sgd_chosen": ("sgd", "chosen"), "sgd_opposite": ("sgd", "opposite")}
    names |= {"rmsprop": ("rmsprop", "opposite"), "frozen_head": ("frozen_head", "opposite")}
    found = {k: _by_seed(where(table, control=control), column) for k, (control, column) in names.items()}
    sft = where(table, phase="sft", control="")
    both = sft.pivot_table("p", LABELS, "objective", aggfunc="first")
    if {"dpo", "ipo"} <= set(both) and same_rate:
        both = both.dropna().reset_index()
        both["apart"] = [float(np.abs(np.subtract(*each)).max()) for each in zip(both["dpo"], both["ipo"])]
        found["ipo_is_dpo"] = _by_seed(both, "apart")
    return found


def _of(table: pd.DataFrame, phase: str, objective: str, case: str) -> pd.DataFrame:
    keep = (table["phase"] == phase) & (table["objective"] == objective) & (table["case"] == case)
    return table.loc[keep & (table["control"] == "")]


def _by_seed(table: pd.DataFrame, column: str, how: str = "mean") -> list[float]:
    """One number a seed: the mean (or max, min) of its rows."""
    return finite(table.assign(value=table[column].astype(float)).groupby("seed")["value"].agg(how)).tolist()


# --- one run ---------------------------------------------------------------------------------------------------


@once
def _read(paper: Paper) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`courses` and `gaining` of every run."""
    found = [(row, *_course(paper.log(row["run"]), row["run"])) for row in paper.runs.to_dict("records")]
    gained = [tokens.assign(**_labels(row)) for row, _, tokens in found]
    return pd.DataFrame([row | course for row, course, _ in found]), pd.concat(gained, ignore_index=True)


def _course(log: RunLog, run: str) -> tuple[dict[str, Any], pd.DataFrame]:
    """The run's row of `courses`, and its gaining tokens."""
    rows = runs.rows(log, "probe").query("step <= @LAST")
    p = np.exp(rows.sort_values("step")["chosen_logps"].to_numpy(dtype=float))
    fall, start, end = largest_fall(p)
    row = {k: v for k, v in demo.persona_row(log).items() if k not in ("run", "case", "seed", "prompt", "objective")}
    row |= {"fall": fall, "start": start, "end": end, "rose": rose(log.steps["loss"].dropna()), "p": p}
    row["chosen_last"] = float(p[-1] - p[0])
    gained = mass.of_kind(log.mass, ("gained",)).loc[:, ["step", "rank", "token", "token_id", "change"]]
    wanted = gained.loc[gained["step"].isin((1, *STEPS))].assign(run=run)
    return row | _last_groups(log), wanted


def _last_groups(log: RunLog) -> dict[str, float]:
    """Changes of the groups at record 100; junk is what no group holds."""
    table = mass.mean_by_step(mass.of_kind(log.mass, ("group",), split=None), "name")
    ends = [mass.first_and_last(table.loc[: float(LAST)], name) for name in table.columns]
    moved = {str(name): end - start for name, (start, end) in zip(table.columns, ends)}
    junk = -sum(moved.values()) if moved else math.nan
    return {f"{name}_last": moved.get(name, math.nan) for name in ("own", "opposite")} | {"junk_last": junk}


def _labels(row: dict) -> dict[str, Any]:
    return {name: row[name] for name in (*LABELS, "objective", "control", "run")}


# --- the sections ----------------------------------------------------------------------------------------------


def largest_falls(paper: Paper) -> Block:
    """Tables 1 to 3: the largest fall of p(chosen), runs whose loss rose apart, the published values beside."""
    table = courses(paper)
    picture = page.picture(draw_paths(table), "Probability of the preferred answer by step")
    rows = [_fall_row(table, *part, case) for part in PARTS for case in PAPERS_OWN if len(_of(table, *part, case))]
    return page.stack(picture, page.table(pd.DataFrame(rows)))


def _fall_row(table: pd.DataFrame, phase: str, objective: str, case: str) -> dict[str, str]:
    every = _of(table, phase, objective, case)
    kept, left = every.loc[~every["rose"]], every.loc[every["rose"]]
    return {
        "runs": PARTS[phase, objective],
        "pair": CASES[case],
        "kept": f"{len(kept)} of {len(every)}",
        "largest fall": _spread(kept, "fall"),
        "from → to": f"{number(mean(kept['start']))} → {number(mean(kept['end']))}",
        "loss rose": f"{len(left)}" + (f", fall {number(mean(left['fall']))}" if len(left) else ""),
        "published": _published_falls(phase, objective, case),
    }


def _published_falls(phase: str, objective: str, case: str) -> str:
    rows = papers.published()["catastrophic"]["tables"]["drops"]
    same = [r for r in rows if (r["phase"], r["objective"], r["case"]) == (phase, objective, case)]
    said = [f"{r['model']} {r['drop']:.2f} ({r['start']:.2f} → {r['end']:.2f})" for r in same]
    return "; ".join(said) + (f"; table {same[0]['table']}" if same else "")


def tokens(paper: Paper) -> Block:
    """Tables 4 to 12: the three tokens that gain most at steps 5, 25 and 100, measured and published."""
    answers = courses(paper).loc[lambda t: ~t["rose"], ["run", "chosen_answer"]]
    table = gaining(paper).merge(answers.rename(columns={"chosen_answer": "answer"}), on="run")
    blocks = []
    for case in PAPERS_OWN:
        rows = []
        for phase, objective in PARTS:
            mine = _of(table, phase, objective, case)
            if len(mine):
                head = f"{PARTS[phase, objective]}: these {mine['run'].nunique()} runs"
                rows.append({"runs": head} | _token_cells(mine))
            rows += _published_tokens(phase, objective, case)
        blocks += [page.heading(CASES[case]), page.table(pd.DataFrame(rows))]
    return page.stack(*blocks)


def _token_cells(table: pd.DataFrame) -> dict[str, str]:
    cells = {}
    for step in STEPS:
        top = top_tokens(table, step).head(4).to_dict("records")
        said = [f"{visible(r['token'])} {signed(r['gained'])} in {r['runs']}{SIDE[r['side']]}" for r in top]
        cells[f"step {step}"] = "; ".join(said)
    return cells


def _published_tokens(phase: str, objective: str, case: str) -> list[dict[str, str]]:
    rows = papers.published()["catastrophic"]["tables"]["tokens"]
    same = [r for r in rows if (r["phase"], r["objective"], r["case"]) == (phase, objective, case)]
    return [
        {"runs": f"table {r['table']}: {PARTS[phase, objective]}, {r['model']}, {r['kept']} runs"}
        | {f"step {step}": r[step] for step in STEPS}
        for r in same
    ]


def sides(paper: Paper) -> Block:
    """Who gains and who loses at equal margin, by pair, on the base; and at step 100."""
    table = courses(paper)
    table = where(table, phase="base", control="")
    rows = []
    for case in [c for c in CASES if c in set(table["case"])]:
        of = where(table, case=case)
        cells = {
            name: _spread(of, name) for name in ("chosen", "own", "opposite", "junk", "opposite_last", "junk_last")
        }
        rows.append({"pair": CASES[case], "runs": str(len(of)), "reached": percent(mean(of["reached"]))} | cells)
    heads = {"own": "its side", "opposite": "other side", "junk": "no answer", "reached": "reached margin 1.5"}
    heads |= {"opposite_last": "other side, step 100", "junk_last": "no answer, step 100"}
    return page.stack(
        page.picture(draw_sides(table), "Change of probability at equal margin"),
        page.table(pd.DataFrame(rows), heads=heads),
    )


def geometry(paper: Paper) -> Block:
    """Table 13 and appendix D.3: projection and orthogonal part, signs of products of prompts; the cosine."""
    shape = paper.tables["geometry"]
    shape = shape.assign(along=shape["along"].abs(), ratio=shape["across"] / shape["along"].abs())
    rows = []
    for phase, case in _models(shape):
        of = where(shape, phase=phase, case=case)
        cells = {name: _spread(of, name) for name in ("along", "across", "ratio")}
        said = [f"{r['model']} {r['along']:.2f}, {r['across']:.2f}" for r in _published_projections(case)]
        head = {"model": MODELS[phase], "pair": CASES[case]}
        rows.append(head | cells | {"published: along, across": "; ".join(said)})
    signs = paper.tables["prompts"]
    said = f"Products of the hidden states of two prompts: {percent(mean(signs['positive']))} above 0"
    said += f" ({count(sum(signs['pairs']), 'pair')} in {count(len(signs), 'model')})."
    known = _forecast(courses(paper), shape)
    blocks = [page.table(pd.DataFrame(rows)), page.note(said)]
    if len(finite(known["opposite"])):
        blocks.append(page.picture(draw_cosine(known), "Cosine of unembeddings against the other side's change"))
    return page.stack(*blocks)


def _models(table: pd.DataFrame) -> list[tuple[str, str]]:
    """Phase and case of what there is, in the order of the page."""
    there = set(zip(table["phase"], table["case"]))
    return [(phase, case) for phase in MODELS for case in CASES if (phase, case) in there]


def _published_projections(case: str) -> list[dict[str, Any]]:
    return [r for r in papers.published()["catastrophic"]["tables"]["projections"] if r["case"] == case]


def predicted(paper: Paper) -> Block:
    """How many of the ten predicted tokens are among the ten that gained most, by step; and which they are."""
    table = overlaps(paper)
    rows = []
    for way, name in WAYS.items():
        mine = where(table, way=way)
        cells = {f"step {s}": _spread(where(mine, step=s), "overlap") for s in (1, *STEPS)}
        rows.append({"ten tokens with the": name} | cells)
    chance = page.note(f"By chance: {number(mean(table['chance']))} of ten. {count(len(set(table['seed'])), 'seed')}.")
    return page.stack(page.table(pd.DataFrame(rows)), chance, page.table(_examples(paper)))


def _examples(paper: Paper) -> pd.DataFrame:
    """The first five predicted tokens of each pair in the first seed, by unembeddings alone and weighed."""
    table = paper.tables["predicted"]
    table = table.loc[(table["seed"] == table["seed"].min()) & (table["prompt"] == 0) & (table["rank"] < 5)]
    rows = []
    for phase, case in _models(table):
        of = where(table, phase=phase, case=case)
        words = {WAYS[w]: ", ".join(map(visible, where(of, way=w)["token"])) for w in ("unembeddings", "weighed")}
        rows.append({"model": MODELS[phase], "pair": CASES[case]} | words)
    return pd.DataFrame(rows)


def controls(paper: Paper) -> Block:
    """No over Never on the base with other optimizers and scopes, at equal margin, on the seeds that have them all."""
    table = courses(paper)
    table = where(table, phase="base", case="no_never")
    shared = set.intersection(*(set(of["seed"]) for _, of in table.groupby("control")), set(table["seed"]))
    if set(table["control"]) <= {""}:
        return page.missing("Other optimizers and scopes", "This rerun trains them at toy scale only.")
    rows = []
    for control, name in CONTROLS.items():
        of = table.loc[(table["control"] == control) & table["seed"].isin(shared)]
        cells = {column: _spread(of, column) for column in ("chosen", "own", "opposite", "junk")}
        steps = {"reached": percent(mean(of["reached"])), "at step": number(mean(of["step"]), 0)}
        rows.append({"trained with": name, "seeds": str(of["seed"].nunique())} | steps | cells)
    heads = {"reached": "reached margin 1.5", "own": "its side", "opposite": "other side", "junk": "no answer"}
    return page.table(pd.DataFrame(rows), heads=heads)


def _spread(rows: pd.DataFrame, column: str) -> str:
    """Mean ± half of the 95 % t interval over seeds."""
    return plus_minus(_by_seed(rows, column))


# --- the figures -----------------------------------------------------------------------------------------------


@styled
def draw_paths(table: pd.DataFrame) -> Figure:
    """p(chosen) by step: a panel a pair, a colour a kind of run, thin lines the runs, thick ones their mean."""
    cases = [c for c in PAPERS_OWN if c in set(table["case"])]
    figure, all_axes = panels(len(cases), height=3.9, width=3.7 * len(cases) + 0.6)
    top = 1.05 * max((float(np.max(p)) for p in where(table, control="")["p"]), default=1.0)
    for axes, case in zip(all_axes, cases):
        for (colour, line), (part, name) in zip(((CHOSEN, "-"), (NEUTRAL, "-"), (CYCLE[3], "--")), PARTS.items()):
            _paths(axes, _of(table, *part, case)["p"].tolist(), colour, line, name)
        fall = mean(_of(table, "sft", "dpo", case).loc[lambda t: ~t["rose"], "fall"])
        axes.set(
            title=f"{CASES[case]}: falls by {number(fall)}\n(DPO after SFT)",
            xlabel="optimizer step",
            ylim=(0, min(1.0, top)),
        )
    all_axes[0].set_ylabel("probability of the preferred answer")
    below(all_axes[len(cases) // 2], 3)
    return figure


def _paths(axes: Axes, lines: Sequence[np.ndarray], colour: str, style: str, name: str) -> None:
    for line in lines:
        axes.plot(line, color=colour, lw=0.7, alpha=0.3)
    size = min(map(len, lines), default=0)
    if size:
        axes.plot(np.mean([line[:size] for line in lines], axis=0), style, color=colour, lw=2.4, label=name)


@styled
def draw_sides(table: pd.DataFrame) -> Figure:
    """Change at equal margin of the chosen answer and of the other side: a dot a run, a bar the mean."""
    cases = [c for c in CASES if c in set(table["case"])]
    figure, (axes,) = panels(1, height=4.2, width=9.5)
    parts = (("chosen", "the preferred answer", CHOSEN), ("opposite", "answers of the other side", REJECTED))
    for shift, (column, name, colour) in zip((-0.17, 0.17), parts):
        for i, case in enumerate(cases):
            values = table.loc[table["case"] == case, column].astype(float)
            places = i + shift + np.linspace(-0.09, 0.09, len(values))
            axes.plot(places, values, "o", color=colour, ms=4, alpha=0.55, label=name if i == 0 else None)
            axes.plot([i + shift - 0.13, i + shift + 0.13], [mean(values)] * 2, color=DARK, lw=2)
    axes.axhline(0, color=DARK, lw=0.8)
    axes.set_xticks(range(len(cases)), [CASES[c].replace(" over ", "\nover ") for c in cases])
    axes.grid(axis="x", visible=False)
    axes.set(ylabel="change of probability at margin 1.5", title=_sides_title(table))
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2, fontsize=9)
    return figure


def _sides_title(table: pd.DataFrame) -> str:
    up = [name for case, name in CASES.items() if mean(where(table, case=case)["opposite"]) > ROSE]
    return (
        f"The other side gains over {ROSE:g} with " + (" and ".join(up) if len(up) < 3 else ", ".join(up))
        if up
        else (f"The other side gains over {ROSE:g} with none of the pairs")
    )


@styled
def draw_cosine(known: pd.DataFrame) -> Figure:
    """Centred cosine of the two unembeddings before training against the change of the other side, a dot a run."""
    figure, (axes,) = panels(1, height=4.0, width=8.5)
    for colour, case in zip(CYCLE, [c for c in CASES if c in set(known["case"])]):
        rows = where(known, case=case)
        axes.plot(
            rows["centred_cosine"], rows["opposite"], "o", color=colour, ms=5, alpha=0.75, label=for_plot(CASES[case])
        )
    axes.axhline(0, color=DARK, lw=0.8)
    told = auroc(known["centred_cosine"], known["opposite"] > ROSE)
    axes.set(
        title=f"A rise of the other side over {ROSE:g}, told by the cosine: AUROC {number(told)}, {len(known)} runs"
    )
    axes.set(xlabel="cosine of the two unembeddings, the answers' mean taken away", ylabel="change of the other side")
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize=9)
    return figure
