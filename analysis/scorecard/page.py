"""The sections of the scorecard: each joins a table, its judgement and its figure, and returns a Block."""

import pandas as pd

from analysis.scorecard import figures as scorecard_figures
from analysis.scorecard import predictors, trust
from analysis.scorecard.predictors import STATISTICS, Scorecard
from analysis.show import page
from analysis.show.page import Block
from analysis.show.wording import correlation, count, number, percent, span
from analysis.tables import runs
from analysis.tables.columns import label
from diagnostics.errors import DataError

FORMS = dict.fromkeys(STATISTICS, number) | dict.fromkeys(("spearman", "per_token"), correlation)
HEADS = {
    "measure": "measure (before training)",
    "direction": "displaced where",
    "n": "n",
    "spearman": "Spearman with the likelihood lost",
    "per_token": "… with that per token",
    "auroc": "AUROC for “fell”",
    "average_precision": "average precision",
    "precision": "fell of the flagged tenth",
    "lift": "lift over random",
    "with_length": "measure with length difference",
}
NOTHING = "It needs at least three pairs whose measures and displacement both vary."


def load(run_dirs: str | list[str], scores: str | list[str] | None = None) -> Scorecard:
    """Read the runs and the scores of their pairs: none, one for all runs, or one for each."""
    if not _paths(run_dirs):
        raise DataError("run_dirs names no run folder. Give one that `chesboard train` wrote, or several seeds of it.")
    return predictors.collect([runs.load(p) for p in _paths(run_dirs)], [_scores(p) for p in _paths(scores)])


def _paths(given: str | list[str] | None) -> list[str]:
    """One path may stand without brackets, None is none."""
    return [given] if isinstance(given, str) else list(given or [])


def _scores(path: str) -> pd.DataFrame:
    found = runs.read_scores(path)
    if not predictors.measures(found):
        raise DataError(f"{path}: holds no measure of a pair. Give the scores.parquet that `chesboard flag` wrote.")
    return found


def verdict(found: Scorecard) -> Block:
    """The sentence, which pairs it is about, how many fell."""
    if not predictors.has_numbers(found.card):
        return page.missing("Predictors", NOTHING)
    judged = trust.judge(found.card)
    rate = predictors.base_rate(found.tables)
    over = f"{count(len(found.tables), 'run')}; {percent(rate)} of the pairs fell (mean over runs)."
    return page.stack(
        page.note(judged.meaning, f"verdict {'good' if judged.passed else 'note'}"),
        page.note(f"Measured on {'; '.join(found.says)}. {over}", "quiet"),
        *([page.note(said, "quiet")] if (said := trust.under_way(found.early)) else []),
    )


def forest(found: Scorecard) -> Block:
    """Every measure's rank correlation and AUROC with intervals."""
    if not predictors.has_numbers(found.card):
        return page.missing("Intervals", NOTHING)
    return page.picture(scorecard_figures.forest(found.card, found.unit), "Predictors with 95 % intervals")


def numbers(found: Scorecard, *, matched: bool = False) -> Block:
    """All statistics with intervals; matched: with the length difference held fixed, which is nothing where answers
    have no lengths."""
    if matched and not found.unit.by_token:
        return page.EMPTY
    rows = found.card.loc[found.card["given"] == ("length" if matched else "")] if len(found.card) else found.card
    if rows.empty:
        return page.missing("Numbers", NOTHING)
    shown = shaped(rows.sort_values("spearman", ascending=False))
    with_length = [] if matched or rows["with_length"].isna().to_numpy().all() else ["with_length"]
    lengths = ["per_token", *with_length] if found.unit.by_token else []
    ranked = shown.loc[:, ["measure", "direction", "n", "spearman", *lengths]]
    known = [
        name for name in STATISTICS[2:] if rows[name].notna().to_numpy().any()
    ]  # the verdict says why there may be none
    fell = [page.table(shown.loc[:, ["measure", *known]], {}, HEADS)] if known else []
    return page.stack(page.table(ranked, {}, HEADS), *fell)


def shaped(card: pd.DataFrame) -> pd.DataFrame:
    """The card as a person reads it: each statistic with its interval in one cell."""
    shown = pd.DataFrame({"measure": [label(m) for m in card["measure"]]})
    shown["direction"] = [d.replace("?", " (as found here)") for d in card["direction"]]
    shown["n"] = [f"{n:,}" for n in card["n"]]
    for name, form in FORMS.items():
        cells = zip(card[name], card[f"{name}_low"], card[f"{name}_high"])
        shown[name] = [form(v) + (f" ({span((a, b), form)})" if a == a else "") for v, a, b in cells]
    return shown.assign(with_length=[correlation(v) for v in card["with_length"]])


def section(found: Scorecard) -> Block:
    """All of it in one, as the run report shows it."""
    made = [verdict(found), forest(found), numbers(found)]
    if found.unit.by_token:
        made += [page.heading("At equal length difference"), numbers(found, matched=True)]
    return page.stack(*made)
