"""The sections of the flag report: each joins a table, its judgement and its figure, and returns a Block."""

import pandas as pd

from analysis.flag import figures as flag_figures
from analysis.flag import tables as flags
from analysis.show import page
from analysis.show.page import Block, Cell
from analysis.show.wording import ABSENT, clip, correlation, count, number, percent, span
from analysis.tables import runs
from analysis.tables.columns import label
from analysis.tables.runs import Flags, Pictures


def load(flag_dir: str) -> Flags:
    """Read the scores that this report is about; of "", see runs.load_scores."""
    return runs.load_flags(flag_dir or runs.newest(runs.is_flags, "score folder"))


def headline(found: Flags) -> str:
    """One sentence: how many pairs were read, scored and flagged, and by what."""
    scored = flags.table(found)
    flagged = sum(scored["flagged"].astype(bool)) if "flagged" in scored else 0
    words = f"{count(flagged, 'pair')} of {len(scored):,} flagged"
    if flagged and "flag_reason" in scored:
        words += f" ({scored.loc[scored['flagged'].astype(bool), 'flag_reason'].iloc[0]})"
    skipped = len(found.scores) - len(scored)
    return f"{words}; {count(skipped, 'row')} skipped, each with its reason in audit.parquet" if skipped else words


def summary(found: Flags) -> Block:
    """What was read and flagged, skipped rows by reason, kept rows by doubt, pairs that start the wrong way."""
    scored = flags.table(found)
    made = [page.note(headline(found), "verdict"), *([page.note(found.reading, "quiet")] if found.reading else [])]
    margin = runs.column(scored, flags.MARGIN).dropna()
    if len(margin):
        share = percent(float((margin < 0).mean()))
        words = f"In {share} of {len(margin):,} pairs the start model gives the rejected response more probability."
        made.append(page.note(words))
    if flags.denoising(scored) and len(scored):
        lower = runs.column(scored, "rejected_logps") > runs.column(scored, "chosen_logps")
        words = f"In {percent(float(lower.mean()))} of {len(scored):,} pairs the start model's denoising error is lower"
        made.append(page.note(f"{words} on the rejected sample."))
    made += [page.note(words) for words in flags.forecast_words(scored)]
    made += _forecast(scored)
    reasons = flags.reasons(found.audit)
    reasons = reasons.assign(reason=[clip(r, 120) for r in reasons["reason"]]).head(15)
    made.append(page.table(reasons) if len(reasons) else page.missing("Audit", "The folder has no audit.parquet."))
    doubts = flags.doubts(found.audit)
    made.append(page.table(doubts) if len(doubts) else page.note("No kept row carries a doubt.", "quiet"))
    remarks = flags.remarks(found.audit)
    made += [page.table(remarks)] if len(remarks) else []
    return page.stack(*made)


def flagged(found: Flags, text: bool = True) -> Block:
    """Every flagged pair, the most prone first, with its score, the reason and its text."""
    scored = flags.table(found)
    marked = scored.loc[scored["flagged"].astype(bool)] if "flagged" in scored else scored.head(0)
    if marked.empty:
        return page.missing("Flagged pairs", "None was flagged.")
    name, texts = flags.ordering(scored), runs.texts(found.audit)
    ordered = marked.assign(_rank=runs.column(marked, "rank")).sort_values(["_rank", "pair_id"])
    shown = runs.pictures(found.path, ordered["pair_id"].head(ROWS)) if text else Pictures()
    texts = texts if text else texts.head(0)
    rows = [_flagged_row(row, name, texts, shown) for row in ordered.head(ROWS).to_dict("records")]
    heads = {"pair": "", label(name): "the measure that ranked them", "rank": "1: the most prone"}
    heads |= {"errors" if flags.denoising(scored) else "tokens": "chosen / rejected", "why": ""}
    left = len(marked) - ROWS
    said = [page.note(f"{left:,} more, less prone, stand in scores.parquet.", "quiet")] if left > 0 else []
    said += page.not_shown(shown)
    return page.stack(page.note(f"Ranked by {label(name)}."), page.sortable(heads, rows, name="pairs"), *said)


ROWS = 1000  # pairs in the table of a page


def _flagged_row(row: dict, name: str, texts: pd.DataFrame, pictures: Pictures) -> list[Cell]:
    source, place = (float(row.get(c, float("nan"))) for c in ("source_row", "rank"))
    body = page.EMPTY
    if row["pair_id"] in texts.index:
        found = texts.loc[row["pair_id"]]
        said = (page.text(part, found[part], 600) for part in ("prompt", *runs.SIDES))
        body = page.fold("read", *page.shown(pictures, row["pair_id"]), *said)
    lengths = [float(row.get(f"{side}_length", float("nan"))) for side in runs.SIDES]
    words = " / ".join(ABSENT if n != n else f"{n:.0f}" for n in lengths)
    if "denoising_ches" in row:
        lengths = [-float(row[f"{side}_logps"]) for side in runs.SIDES]
        words = " / ".join(map(number, lengths))
    where = "" if source != source else f"row {source:.0f}"
    return [
        Cell(str(row["pair_id"]), source, f"pair-{row['pair_id']}", where, body),
        Cell(number(row[name]), row[name]),
        Cell("" if place != place else f"{place:.0f}", place),
        Cell(words, lengths[0]),
        Cell(str(row.get("flag_reason") or "")),
    ]


def distributions(found: Flags) -> Block:
    """A histogram of every measure."""
    scored = flags.table(found)
    names = flags.measures(scored)
    if not names:
        return page.missing("Distributions", "No pair was scored.")
    figure = flag_figures.distributions(scored, {m: label(m) for m in names})
    return page.stack(page.picture(figure, "Histogram of every measure"), page.table(_spread(scored, names), _FORMS))


def agreement(found: Flags) -> Block:
    """Rank correlation between measures, and the overlap of their most prone tenths."""
    scored = flags.table(found)
    names = flags.measures(scored)
    if len(names) < 2 or len(scored) < 3:
        return page.missing("Agreement", "It needs at least two measures and three scored pairs.")
    labels = [label(m) for m in names]
    figure = flag_figures.agreement(flags.agreement(scored, names), flags.overlap(scored, names), labels)
    return page.picture(
        figure, "Rank correlation of every two measures, and how many of their most prone tenths they have in common"
    )


def length_confounds(found: Flags) -> Block:
    """How closely each measure follows the lengths."""
    scored = flags.table(found)
    if flags.denoising(scored):
        return page.EMPTY
    table = flags.length_confounds(scored)
    if not len(table):
        return page.missing("Length", "No pair was scored.")
    if len(scored["length_difference"].dropna().unique()) < 2:
        return page.missing("Length", "The lengths of the two answers differ by the same in every pair.")
    figure = flag_figures.length(scored, table, {m: label(m) for m in table["measure"]})
    intervals = [span(i, correlation) for i in zip(table["low"], table["high"])]
    shown = table.assign(measure=[label(m) for m in table["measure"]], low=intervals).drop(columns="high")
    heads = {"spearman": "with length difference", "low": "95 % interval", "chosen": "with chosen length"}
    heads |= {"rejected": "with rejected length"}
    forms = {"spearman": correlation, "chosen": correlation, "rejected": correlation}
    return page.stack(page.picture(figure, "Measures against the length difference"), page.table(shown, forms, heads))


def extremes(found: Flags, shown: int, text: bool = True) -> Block:
    """The pairs at both ends of the measure the flags were ranked by, with their text."""
    scored = flags.table(found)
    if not flags.measures(scored):
        return page.missing("Pairs", "No pair was scored.")
    name = flags.ordering(scored)
    low = flags.lowest_first(scored, name)
    ordered = scored.dropna(subset=[name]).sort_values([name, "pair_id"], ascending=[low, True])
    texts = runs.texts(found.audit) if text else runs.texts(pd.DataFrame())
    shown = min(shown, max(1, len(ordered) // 2))
    first, last = ordered.head(shown), ordered.tail(shown).iloc[::-1]
    pictures = runs.pictures(found.path, [*first["pair_id"], *last["pair_id"]]) if text else Pictures()
    made = [page.heading(f"Most displacement-prone by {label(name)}")]
    made += [_pair(row, name, texts, pictures) for row in first.to_dict("records")]
    made += [page.heading(f"Least displacement-prone by {label(name)}")]
    made += [_pair(row, name, texts, pictures) for row in last.to_dict("records")]
    return page.stack(*made, *page.not_shown(pictures))


_FORMS = {"smallest": number, "median": number, "largest": number}


def _forecast(scored: pd.DataFrame) -> list[Block]:
    """The share of chosen answers that each rate says will fall."""
    table = flags.forecast(scored)
    intervals = [span(i, percent) for i in zip(table["low"], table["high"])]
    shown = table.assign(measure=[label(m) for m in table["measure"]], low=intervals).drop(columns="high")
    falls = "chosen error forecast to rise" if flags.denoising(scored) else "chosen forecast to fall"
    heads = {"falls": falls, "low": "95 % interval"}
    return [page.table(shown, {"falls": percent}, heads)] if len(shown) else []


def _spread(scored: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    rows = [(label(m), scored[m].notna().sum(), *scored[m].quantile([0, 0.5, 1])) for m in names]
    return pd.DataFrame(rows, columns=["measure", "n", "smallest", "median", "largest"])


def _pair(row: dict, name: str, texts: pd.DataFrame, pictures: Pictures) -> Block:
    if "denoising_ches" in row:
        errors = [number(-row[f"{side}_logps"]) for side in runs.SIDES]
        head = f"{label(name)} {number(row[name])}; denoising error chosen {errors[0]}, rejected {errors[1]}; "
    else:
        head = f"{label(name)} {number(row[name])}; chosen {row.get('chosen_length', float('nan')):.0f} tokens, "
        head += f"rejected {row.get('rejected_length', float('nan')):.0f}; "
    head += f"source_row {row.get('source_row', '?')}, pair {row['pair_id']}"
    if row["pair_id"] not in texts.index:
        body = [page.note("No text of this pair is shown.", "quiet")]
    else:
        said = [page.text(part, texts.loc[row["pair_id"], part]) for part in ("prompt", *runs.SIDES)]
        body = [said[0], *page.shown(pictures, row["pair_id"]), *said[1:]]
    return page.card(head, *body)
