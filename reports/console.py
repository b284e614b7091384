"""What the commands print: short tables and sentences for a terminal.

Untrusted text is printed as plain text, never as markup, and control characters in it are written out. No torch here:
`chesboard gate` is called often.
"""

import json
import shlex
from collections.abc import Hashable, Mapping, Sequence
from math import inf, isnan
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console

from analysis.flag import tables as flags
from analysis.run import kept, verdict
from analysis.scorecard import trust
from analysis.scorecard.predictors import Scorecard
from analysis.tables import runs
from reports.tables import add, say
from reports.tables import table as new_table

SHOWN = 10  # rows of the flag table


def show_run(path: Path) -> None:
    """A run that is done: where it is, how it went, and what to do next."""
    findings = kept.keep(runs.load(path))
    say(f"run: {path}", f"verdict: {verdict.headline(findings)}", f"next: chesboard report {shlex.quote(str(path))}")


def show_counts(counts: pd.DataFrame, path: Path) -> None:
    """The audit: how many rows each code concerns, and where to look."""
    table = new_table("code", "kind", "rows", "first rows", "meaning")
    for row in counts.to_dict("records"):
        add(table, row["code"], row["kind"], row["n"], row["first_rows"], row["meaning"])
    if len(counts):
        Console().print(table)
    say(f"every row and its reason: {path}")


def show_flagged(scores: pd.DataFrame, by: str, prone: str, out: Path) -> None:
    """The most displacement-prone pairs and what was written. prone: which values of the measure are, in a word."""
    done = scores.query("status == 'scored'")
    errors = flags.denoising(done)
    of = "error" if errors else "tokens"
    table = new_table("rank", "pair_id", "source row", by, f"chosen {of}", f"rejected {of}", "flagged")
    for row in done.sort_values("rank").head(SHOWN).to_dict("records"):
        sides = [number(-row[f"{s}_logps"]) if errors else _whole(row[f"{s}_length"]) for s in runs.SIDES]
        mark = "yes" if row["flagged"] else ""
        add(table, _whole(row["rank"]), row["pair_id"], row["source_row"], number(row[by]), *sides, mark)
    Console().print(table)
    unranked = done["rank"].isna().tolist().count(True)
    say(
        f"{len(done)} pairs scored, {len(scores) - len(done)} skipped, "
        f"{done['flagged'].tolist().count(True)} flagged by {by} (the {prone} values are most prone).",
        *([f"{by} is no number for {unranked} of them: they have no rank."] if unranked else []),
        *flags.forecast_words(done),
        f"all scores: {out / 'scores.parquet'}   pages: chesboard report {shlex.quote(str(out))}",
    )


def show_scorecard(found: Scorecard) -> None:
    """Every predictor with its intervals, then the sentence that says which to trust."""
    heads = ("Spearman, likelihood lost", "AUROC, fell", "AP", "top 10 %", "lift")
    table = new_table("measure", "n", *heads, title="predictors; 95 % intervals; ↑ high is worse, ↓ low is worse")
    table.columns[0].no_wrap, table.box = True, SIMPLE
    plain = found.card.loc[found.card["given"] == ""].sort_values("spearman", ascending=False)
    for row in plain.to_dict("records"):
        arrow = row["direction"].replace("higher", "↑").replace("lower", "↓")
        short = [number(round(row[name], 2)) for name in ("average_precision", "precision", "lift")]
        add(table, f"{row['measure']} {arrow}", row["n"], _estimate(row, "spearman"), _estimate(row, "auroc"), *short)
    Console().print(table)
    say(*found.says, *filter(None, [trust.under_way(found.early), trust.judge(found.card).meaning]))


def _estimate(row: Mapping[Hashable, Any], name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    return number(round(row[name], 2)) + ("" if isnan(low) else f" [{low:.2f}, {high:.2f}]")


def show_papers(rows: Sequence[Sequence[str]]) -> None:
    """The paper analyses there are."""
    table = new_table("analysis", "what it reruns", "paper", "claims", "--data at toy scale")
    for row in rows:
        add(table, *row)
    Console().print(table)


def show_ledger(page: Path, only: tuple[str, str] | None) -> None:
    """The claims of one analysis, by name and scale, or how many of all hold, and where the pages are."""
    ledger = json.loads(page.with_name("ledger.json").read_text(encoding="utf-8"))
    heads = ("verdict", "measured (95 % interval)", "claim")
    table = new_table(*heads)
    for column in table.columns[:2]:
        column.no_wrap = True
    mine = [row for row in ledger["claims"] if only == (row["analysis"], row["scale"])]
    for row in mine:
        add(table, *(row[name] for name in heads))
    if only:
        Console().print(table)
    name = only[0] if only else ""
    say(*(sentence for of in ledger["carried"] if of["name"] == name for sentence in of["says"]))
    shown = f"page: {page.with_name(mine[0]['page'])}   " if mine else ""
    say(f"all analyses in {page.parent}: {ledger['summary']}", f"{shown}ledger of all claims: {page}")


def _whole(value: float) -> str:
    return "-" if isnan(value) else f"{value:.0f}"


def number(value: float) -> str:
    """A number for a terminal, to four digits; a dash for NaN."""
    value += 0.0  # -0 is 0
    return "-" if value != value else "infinite" if value == inf else "-infinite" if value == -inf else f"{value:.4g}"
