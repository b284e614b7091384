"""The sections of the demo report: each joins a table, its judgement and its figure, and returns a Block."""

import math
from collections.abc import Callable, Mapping

import pandas as pd

from analysis.demo import claims as judged
from analysis.demo import figures as demo_figures
from analysis.demo import tables
from analysis.demo.tables import Demo
from analysis.run import kept, overview
from analysis.show import page
from analysis.show.page import Block
from analysis.show.wording import ABSENT, number, percent, signed
from analysis.tables import mass, runs
from analysis.tables.columns import label
from analysis.tables.intervals import deviation, mean
from diagnostics.runlog import RunLog


def load(run_dirs: list[str], flag_dirs: list[str]) -> Demo:
    """Read every run and score folder of the demo."""
    runs.require(run_dirs=run_dirs)
    return tables.collect([runs.load(p) for p in run_dirs], [runs.load_flags(p) for p in flag_dirs])


def headline(demo: Demo) -> str:
    """One sentence: how many claims hold."""
    found = [c for c in judged.judge(demo) if c.holds is not None]
    held, seeds = sum(bool(c.holds) for c in found), max((len(c.values) for c in found), default=0)
    if not found:
        return "no claim was measured"
    return f"{held} of {len(found)} claims hold, over {seeds} {'seed' if seeds == 1 else 'seeds'}"


def claims(demo: Demo) -> Block:
    """Claim, target, value by seed with its spread, holds or does not."""
    found = judged.judge(demo)
    kind = {True: " good", False: " bad", None: ""}[judged.overall(found)]
    rows = [_claim(c) for c in found]
    return page.stack(page.note(headline(demo), f"verdict{kind}"), page.table(pd.DataFrame(rows)))


def persona(demo: Demo) -> Block:
    """The one-token world at matched margin."""
    table = demo.persona
    if table.empty:
        return page.missing("The one-token world", "None of these runs belongs to it.")
    names = list(_PERSONA_HEADS)
    columns = [*names, *(f"{n}_start" for n in names), "top_is_opposite"]
    summary = tables.by_case(table, tables.PERSONA, columns)
    shown = _mean_sd(summary, names, _change) | {"top gaining token": [_tops(table, c) for c in summary["case"]]}
    reached = [percent(mean(table.loc[table["case"] == c, "reached"])) for c in summary["case"]]
    shown |= {"reached the margin": reached}
    figure = demo_figures.persona(table, summary)
    made = page.table(pd.DataFrame(shown), heads=_PERSONA_HEADS)
    return page.stack(page.picture(figure, "Probability before and after, by case"), made)


_PERSONA_HEADS = {
    "chosen": "chosen answer",
    "own": "own side",
    "opposite": "opposite side",
    "neutral": "neither side",
    "junk": "other tokens",
}


def geometry(demo: Demo) -> Block:
    """Cosine of the answers' unembeddings against what the opposite side did."""
    shape = tables.geometry(demo)
    if shape.empty or demo.persona.empty:
        return page.missing("Unembedding geometry", "No geometry.json beside these runs or their model.")
    summary = tables.by_case(shape, tables.PERSONA, ["cosine", "inner"])
    figure = demo_figures.geometry(demo.persona, shape)
    shown = _mean_sd(summary, ["cosine", "inner"], _change)
    ches = page.note(f"Largest absolute CHES over all these pairs: {number(max(demo.persona['ches']))}.")
    return page.stack(ches, page.picture(figure, "Cosine against opposite change"), page.table(pd.DataFrame(shown)))


def refusal(demo: Demo) -> Block:
    """The refusal world: refusals and compliance before and after, displacement, accuracy, KL."""
    table = demo.refusal
    if table.empty:
        return page.missing("The refusal world", "None of these runs belongs to it.")
    names = ["refusal_start", "refusal", "comply_start", "comply", "fell", "mean", "accuracy", "kl"]
    summary = tables.by_case(table, tables.REFUSAL, names)
    shown = pd.DataFrame(_mean_sd(summary, names, _value))
    figure = demo_figures.refusal(table, summary)
    return page.stack(page.picture(figure, "Refusals and compliance by case"), page.table(shown, heads=_REFUSAL_HEADS))


_REFUSAL_HEADS = {
    "refusal_start": "refusals, before",
    "refusal": "refusals, after",
    "comply_start": "safe compliance, before",
    "comply": "safe compliance, after",
    "fell": "share that fell",
    "mean": "mean change, nats",
    "kl": "KL(reference || policy), nats per chosen response",
}


def pair_kinds(demo: Demo) -> Block:
    """AUROC of every measure for the kind of pair, by seed."""
    table = tables.pair_kinds(demo)
    if table.empty:
        return page.missing("Pair kinds", "No score folder with a `kind` column was given.")
    labels = {m: label(m) for m in dict.fromkeys(table["measure"])}
    rows = [_kind(labels[m], table.loc[table["measure"] == m, "auroc"]) for m in labels]
    figure = demo_figures.kinds(table, labels)
    return page.stack(page.picture(figure, "AUROC for the pair kind"), page.table(pd.DataFrame(rows)))


def every_run(demo: Demo, pages: Mapping[str, str] | None = None) -> Block:
    """One line a run: the same numbers for all of them. pages: addresses of the runs' own pages, by their folders."""
    return overview.each(demo.logs, [_line(run) for run in demo.logs], pages or {})


def _claim(claim: judged.Target) -> dict[str, str]:
    values = claim.values
    spread = f"{deviation(values):.2f}" if len(values) > 1 else "–"
    holds = {True: "holds", False: "does not hold", None: "not measured"}[claim.holds]
    return {
        "claim": claim.name,
        "what": claim.says,
        "target": claim.aim,
        "each seed": ", ".join(_value(v) for v in values) or "–",
        "mean": number(float(values.mean())) if len(values) else "–",
        "SD": spread,
        "met": f"{claim.met} of {len(values)}",
        "verdict": holds,
    }


def _mean_sd(summary: pd.DataFrame, names: list[str], form: Callable[[float], str]) -> dict[str, list]:
    shown: dict[str, list] = {"case": [tables.case_name(c) for c in summary["case"]], "seeds": list(summary["seeds"])}
    for name in names:
        pairs = zip(summary[name], summary[f"{name}_sd"])
        shown[name] = [form(m) if math.isnan(s) else f"{form(m)} ± {_value(s)}" for m, s in pairs]
    return shown


def _value(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _change(value: float) -> str:
    return f"{value:+.2f}".replace("-", "−")


def _tops(table: pd.DataFrame, case: str) -> str:
    counts = table.loc[table["case"] == case, "top_token"].value_counts().head(3)
    return ", ".join(f"{token or '?'} ({n})" for token, n in counts.items())


def _kind(label: str, values: pd.Series) -> dict[str, str]:
    return {
        "measure": label,
        "AUROC, mean over seeds": number(mean(values)),
        "SD": number(deviation(values)) if len(values) > 1 else "–",
        "each seed": ", ".join(number(float(v)) for v in values),
    }


def _line(run: RunLog) -> dict[str, str]:
    found = kept.verdict_of(run)
    value = {f.name: f.value for f in found}
    tracked = mass.tracked(run.mass)
    groups = {c: mass.first_and_last(tracked, c) for c in tracked}
    return {
        "case": tables.case_name(str(run.config.get("demo_case", ""))),
        "seed": str(run.config.get("demo_seed", "–")),
        "objective": str(run.config.get("objective", "–")),
        "lost chosen likelihood": f"{percent(value['displacement/frac'])} of {found[0].n}" if found[0].n else ABSENT,
        "mean change (nats)": signed(value["displacement/chosen"]),
        "accuracy": percent(value["accuracy"]),
        "KL(reference || policy), chosen": number(value["kl/chosen"]),
        "tracked, before to after": "; ".join(f"{k} {number(a)} to {number(b)}" for k, (a, b) in groups.items()) or "–",
    }
