"""Which predictor to trust on a run: judged from the scorecard by one rule. Thresholds live here."""

import math
from typing import Any

import pandas as pd
from scipy.stats import norm

from analysis.scorecard.predictors import BASELINE, FEWEST
from analysis.show.wording import correlation, count, number, percent, span
from analysis.tables.columns import label
from analysis.tables.intervals import mean
from diagnostics.finding import Finding

USEFUL = 0.7  # an AUROC of less tells too little to choose pairs by
CHANCE = {"auroc": 0.5, "spearman": 0.0}
WORDS = {"auroc": "AUROC for “fell”", "spearman": "Spearman with the likelihood lost"}
FORMS = {"auroc": number, "spearman": correlation}


def judge(card: pd.DataFrame) -> Finding:
    """The predictor to trust: that of the best AUROC among those that are above chance and above the length difference
    alone (either way round), at the 5 % level shared among all predictors tried. passed: whether there is one.

    None is trusted where AUROC is refused, since almost none or almost all fell: the best rank correlation is shown;
    where it is below USEFUL, however certain; and where fewer than five pairs fell or held. A measure whose direction
    was read off the same data is shown, but not judged.
    """
    by = "auroc" if len(card["auroc"].dropna()) else "spearman"
    plain = card.loc[(card["given"] == "") & card[by].notna()]
    length = _only(plain.loc[plain["measure"] == BASELINE, by])
    known = ~plain["direction"].str.endswith("?")
    tried = plain.loc[known & (plain["measure"] != BASELINE)].sort_values(by, ascending=False)
    if tried.empty:
        return Finding(
            "predictor", math.nan, 0, None, CHANCE[by], None, "No predictor of known direction was measured."
        )
    if tried[f"{by}_low"].isna().all():
        few = "Too few pairs were measured to say which predictor to trust."
        return Finding("predictor", math.nan, int(tried["n"].max()), None, CHANCE[by], None, few)
    length = length if math.isnan(length) else CHANCE[by] + abs(length - CHANCE[by])  # it may tell the other way round
    bar = max(CHANCE[by], length) if not math.isnan(length) else CHANCE[by]
    good = tried.loc[_lowest(tried, by) > bar]
    best = (good if len(good) else tried).iloc[0].to_dict()
    trusted = bool(len(good)) and by == "auroc" and best[by] >= USEFUL and best["fewest"] >= FEWEST
    said = _sentence(best, by, length, len(tried), bool(len(good))) + _refused(card, by)
    interval = (best[f"{by}_low"], best[f"{by}_high"])
    return Finding(
        f"predictor/{best['measure']}",
        best[by],
        int(best["told_n" if by == "auroc" else "n"]),
        interval,
        bar,
        trusted,
        said,
    )


def under_way(early: pd.DataFrame) -> str:
    """What the first measurement of training told of the end, in one sentence; empty where there was none. early: see
    predictors.under_way."""
    known = early.loc[early["spearman"].notna()]
    if known.empty:
        return ""
    steps = known[["step", "last"]].drop_duplicates()
    one = len(steps) == 1
    at = f"by step {steps['step'].iloc[0]} of {steps['last'].iloc[0]}" if one else "by the first measurement"
    told = known["auroc"].dropna()
    fell = f", AUROC for “fell” {number(mean(told))} ({count(len(told), 'run')})" if len(told) else ""
    return (
        f"Once in training: the losses of the pairs {at} rank those at the end with Spearman "
        f"{correlation(mean(known['spearman']))} ({count(len(known), 'run')}){fell}. That is no forecast: these steps "
        "are paid for by then."
    )


def _lowest(tried: pd.DataFrame, by: str) -> pd.Series:
    """The lower ends at the level of 5 % shared by all tried (Bonferroni), from the 95 % intervals as if normal."""
    wider = norm.ppf(1 - 0.025 / len(tried)) / norm.ppf(0.975)
    middle, low = (tried[name].to_numpy(dtype=float) for name in (by, f"{by}_low"))
    return pd.Series(middle - wider * (middle - low), index=tried.index)


def _sentence(best: dict[str, Any], by: str, length: float, tried: int, good: bool) -> str:
    form, chance = FORMS[by], FORMS[by](CHANCE[by])
    interval = span((best[f"{by}_low"], best[f"{by}_high"]), form)
    rows, runs = ("told_n", "told") if by == "auroc" else ("n", "runs")
    over = f"n = {best[rows]:,}, {count(int(best[runs]), 'run')}"
    numbers = f"{WORDS[by]} {form(best[by])} (95 % interval {interval}; {over})"
    name = label(best["measure"]) + (f", {best['direction'][:-1]} is worse" if best["direction"].endswith("?") else "")
    alone = "" if math.isnan(length) else f" and the length difference alone ({form(length)})"
    if good and by == "spearman":
        ranks = f"{name} ranks the likelihood lost better than chance ({chance}){alone}: {numbers}"
        return f"{ranks}. Whether it tells which pairs fall cannot be said here. {_many(tried)}"
    if good and best["fewest"] < FEWEST:
        few = f"only {int(best['fewest'])} fell, or held, too few to trust it"
        return f"{name} is above chance ({chance}){alone}, but {few}: {numbers}. {_many(tried)}"
    if good and best[by] < USEFUL:
        return f"{name} is above chance ({chance}){alone}, but weak: {numbers}. {_many(tried)}"
    if good:
        return f"Trust {name} here: {numbers}, above chance ({chance}){alone}. {_many(tried)}"
    if by == "auroc" and best["fewest"] < FEWEST:
        beside = "" if math.isnan(length) else f"; the length difference alone has {form(length)}"
        few = f"Only {count(int(best['fewest']), 'pair')} fell, or held: none can be trusted ({FEWEST} are needed)"
        return f"{few}. The best is {name}, {numbers}{beside}. {_many(tried)}"
    if best[f"{by}_low"] > CHANCE[by]:
        return f"None clearly beats both chance ({chance}){alone}: the best is {name}, {numbers}. {_many(tried)}"
    return f"None of {count(tried, 'predictor')} beats chance ({chance}) here; the best is {name}, {numbers}."


def _many(tried: int) -> str:
    if tried == 1:
        return "It is the only predictor tried."
    return f"It is the best of {tried} predictors of known direction: the verdict shares its 5 % among them."


def _refused(card: pd.DataFrame, by: str) -> str:
    runs, told = (max(card[name].tolist()) for name in ("runs", "told"))
    if by == "auroc" and told == runs:
        return ""
    which = "the runs" if by == "spearman" else f"{runs - told} of {runs} runs"
    fell = percent(mean(card["fell"]))
    few = "under 5 % or over 95 % fell"
    return f" AUROC, precision and lift are left out for {which} in which {few} (mean: {fell})."


def _only(values: pd.Series) -> float:
    return float(values.iloc[0]) if len(values) else math.nan
