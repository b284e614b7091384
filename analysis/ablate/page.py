"""The sections of the ablation: each joins a table, its judgement and its figure, and returns a Block."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd

from analysis.ablate import figures as ablate_figures
from analysis.ablate import tables
from analysis.ablate.tables import Ablation
from analysis.run import overview
from analysis.show import page
from analysis.show.page import Block
from analysis.show.wording import count, number, percent, signed, span
from analysis.tables import runs
from analysis.tables.columns import label
from diagnostics.finding import Finding

_SHORT = {"eval": "held-out", "common": "common", "own": "own"}
FORMS: dict[str, Callable[[float], str]] = {"chosen": signed, "fell": percent, "implicit": percent, "kl": number}


def load(run_dirs: list[str]) -> Ablation:
    """Read every run of the ablation."""
    runs.require(run_dirs=run_dirs)
    return tables.collect([runs.load(p) for p in run_dirs])


def findings(found: Ablation) -> list[Finding]:
    """For each measure, share and length of training: does leaving out the flagged pairs keep more chosen likelihood
    than leaving out random ones? passed: the 95 % interval over seeds of the difference lies above 0 (None: it holds
    0, or there is one seed). On held-out pairs; where there are none, on those that every run trained on."""
    name, which = f"{found.sets[0]}_chosen", tables.SETS[found.sets[0]].split(",")[0]
    made = _compared(found, name, f"the chosen log-prob of {which}", " nats")
    words = {None: "not told apart from chance", True: "better than chance", False: "worse than chance"}
    return [replace(f, meaning=f"{f.meaning}: {words[f.passed]}.") for f in made]


def moved(found: Ablation) -> list[Finding]:
    """The same for the probability of each tracked group, where the interval of the difference leaves out 0."""
    made = [f for name in found.tracked for f in _compared(found, name, f"P({name})", "")]
    words = {True: "higher than by chance", False: "lower than by chance"}
    told = [(f, words[f.passed]) for f in made if f.passed is not None]
    return [replace(f, passed=None, meaning=f"{f.meaning}: {words}.") for f, words in told]


def _compared(found: Ablation, name: str, what: str, unit: str) -> list[Finding]:
    """Flagged minus random; passed: whether the interval lies above 0 (False: below; None: it holds 0)."""
    made = []
    for row in tables.against_random(found.runs, [name]).to_dict("records"):
        if math.isnan(row[name]):
            continue  # no seed measured both
        value, half, seeds = row[name], row[f"{name}_half"], int(row[f"{name}_seeds"])
        interval = None if math.isnan(half) else (value - half, value + half)
        passed = None if interval is None or interval[0] <= 0 <= interval[1] else interval[0] > 0
        said = f"Without the {percent(row['drop'])} flagged by {label(str(row['by']))}, {_length(row)}, {what} ends "
        said += f"{signed(value)}{unit} from where it ends without as many random pairs "
        said += f"(95 % interval {span(interval, signed)}, n = {count(seeds, 'seed')})"
        key = f"ablate/{name}/{row['by']}/{row['drop']:g}{'/equal steps' if row['equal_steps'] else ''}"
        made.append(Finding(key, value, seeds, interval, 0.0, passed, said))
    return made


def headline(found: Ablation) -> str:
    """How many of the comparisons with random subsets the flags win."""
    judged = findings(found)
    won, lost = (sum(f.passed is verdict for f in judged) for verdict in (True, False))
    over = f"chosen log-prob of {_SHORT[found.sets[0]]} pairs, {count(len(found.seeds), 'seed')}"
    said = f"{', '.join(label(m) for m in found.measures)}: of {count(len(judged), 'comparison')} with random subsets "
    said += f"of the same size, leaving out the flagged pairs is better in {won}, worse in {lost}, "
    return said + f"and not told apart in {len(judged) - won - lost} ({over})"


def verdict(found: Ablation) -> Block:
    """How many comparisons with chance are told apart, each of those in a sentence, and what is missing."""
    quiet = [page.note(f"Left out, not finished: {name}", "quiet") for name in found.unfinished]
    first = page.note(headline(found), "verdict")
    told = [f for f in findings(found) if f.passed is not None]
    return page.stack(first, *(page.note(f.meaning) for f in (*told, *moved(found))), *quiet)


def curves(found: Ablation) -> Block:
    """The four measures, and the tracked groups, by the share left out."""
    which = found.sets[0]
    columns = {f"{which}_{k}": f"{words}, {_SHORT[which]}" for k, words in tables.MEASURES.items()}
    columns |= {name: f"P({name})" for name in found.tracked}
    made = []
    for by in found.measures:
        rows = found.runs.loc[found.runs["by"].isin(["", by])]
        made += [page.heading(f"Flagged by {label(by)}"), page.picture(ablate_figures.shares(rows, columns), by)]
    return page.stack(*made)


def numbers(found: Ablation, pairs: str) -> Block:
    """One row an arm on one of SETS: the four measures, mean over seeds and 95 % interval."""
    head = page.heading(tables.SETS[pairs].capitalize())
    if pairs not in found.sets:
        return page.stack(head, page.missing("These pairs", "There are none."))
    columns = {f"{pairs}_{k}": (words, FORMS[k]) for k, words in tables.MEASURES.items()}
    plain = {f"{pairs}_n": "pairs", "trained": "trained on", "steps": "steps"}
    return page.stack(head, _table(tables.summary(found.runs, [*plain, *columns]), columns, plain))


def tracked(found: Ablation) -> Block:
    """Probability of the tracked groups before and after."""
    if not found.tracked:
        return page.note("No tracked prompts in these runs (config key `track`).", "quiet")
    before = {f"start_{name}": (f"{name}, before", number) for name in found.tracked}
    after = {name: (f"{name}, after", number) for name in found.tracked}
    columns = dict(sorted((before | after).items(), key=lambda c: c[0].removeprefix("start_")))
    return _table(tables.summary(found.runs, list(columns)), columns, {})


def gaps(found: Ablation) -> Block:
    """The flagged arm minus the random one, seed by seed, on everything measured."""
    shared = [name for name in found.sets if name != "own"]
    columns = {f"{s}_{k}": (f"{w}, {_SHORT[s]}", signed) for s in shared for k, w in tables.MEASURES.items()}
    columns |= {name: (name, signed) for name in found.tracked}
    table = tables.against_random(found.runs, list(columns)).assign(arm="flagged")
    if table.empty:
        return page.missing("Differences", "There are no two runs of the same share and seed.")
    return _table(table, columns, {})


def every_run(found: Ablation, pages: Mapping[str, str] | None = None) -> Block:
    """One line a finished run. pages: addresses of the runs' own pages, by their folders."""
    logs = [log for log in found.logs if log.name not in found.unfinished]
    return overview.each(logs, [_line(tables.head(log)) for log in logs], pages or {})


def _line(head: dict[str, Any]) -> dict[str, str]:
    return {"without": _arm(head), "training": _length(head), "seed": str(head["seed"])}


def setting(found: Ablation) -> Block:
    """What all runs share."""
    config = found.logs[0].config
    rows = {
        "model": config.get("model"),
        "objective": config.get("objective"),
        "learning rate": config.get("learning_rate"),
        "batch size": config.get("per_device_train_batch_size"),
        "seeds": ", ".join(map(str, found.seeds)),
        "runs": len(found.runs),
    }
    return page.table(pd.DataFrame([{"what": k, "value": str(v)} for k, v in rows.items()]))


def _table(table: pd.DataFrame, columns: dict[str, tuple[str, Callable]], plain: dict[str, str]) -> Block:
    shown = pd.DataFrame({"without": [_arm(row) for row in table.to_dict("records")]})
    shown["training"] = [_length(row) for row in table.to_dict("records")]
    shown["seeds"] = table["seeds"].to_numpy()
    for name, words in plain.items():
        shown[words] = [f"{v:.0f}" for v in table[name]]
    for name, (words, form) in columns.items():
        shown[words] = [_with_interval(row, name, form) for row in table.to_dict("records")]
    return page.table(shown)


def _with_interval(row: dict[Any, Any], name: str, form: Callable[[float], str]) -> str:
    """A mean over seeds: of a share with both ends of its interval, else ± half of it."""
    value, half = row[name], row[f"{name}_half"]
    limits = (row.get(f"{name}_low", math.nan), row.get(f"{name}_high", math.nan))
    if not math.isnan(value) and not any(map(math.isnan, limits)):
        return f"{form(value)} ({span(limits, form)})"
    return form(value) if math.isnan(value) or math.isnan(half) else f"{form(value)} ± {number(half)}"


def _arm(row: dict[Any, Any]) -> str:
    if row["arm"] == "full":
        return "nothing (all pairs)"
    which = "random" if row["arm"] == "random" else f"flagged by {label(str(row['by']))}"
    return f"{percent(row['drop'])} {which}"


def _length(row: dict[Any, Any]) -> str:
    return "equal steps" if row["equal_steps"] else "same epochs"
