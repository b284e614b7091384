"""Score tables: which measures there are, how they agree, what length explains. Tables only."""

import math

import pandas as pd

from analysis.scorecard.predictors import measures as measure_columns
from analysis.show.wording import percent, span
from analysis.tables import runs
from analysis.tables.columns import direction
from analysis.tables.intervals import auroc, finite, spearman, spearman_interval, wilson
from diagnostics.codes import DOUBTS, OF_TEMPLATE

MARGIN = "reference_margin"
TOP = 0.1  # the share of the pairs, most prone first, that two measures are compared by
RATES = ("set_rate", "set_rate_sign", "last_layer_set_rate", "self_rate", "hidden_rate", "unembedding_rate")
RATES += ("features_rate",)
LIMIT = (
    "A rate is a first-order forecast: it holds for short training. On a chat model of 135 million weights set_rate "
    "told who fell with AUROC 1.00, .45 and .99 in three runs on pairs of two refusals, and ranked the nats lost with "
    "Spearman .62 and .16 in two on hh-rlhf: a guess, which the first probe in training turns into a measurement. On "
    "tiny models its AUROC was .86 where 33 % fell, but .68 where 84 % fell. The scorecard says how far to trust it on "
    "your data."
)
DENOISING_LIMIT = (
    "A rate is a first-order forecast, and how far to trust it on your data the scorecard says. On a small denoiser of "
    "digits, trained on its own samples, set_rate ranked the rise of the chosen errors with Spearman .64 to .68, "
    "and D-CHES with .20 to .26; of pairs trained alone D-CHES did with .80 to .82 (`chesboard paper "
    "diffusion_displacement`)."
)
WHOLE_SET = ("set_rate", "set_rate_sign", "last_layer_set_rate")


def denoising(scores: pd.DataFrame) -> bool:
    """Whether these are scores of a denoiser, whose samples have no length and whose likelihoods are minus errors."""
    return "denoising_ches" in scores


def table(flags: runs.Flags) -> pd.DataFrame:
    """The scored rows, with length_difference (rejected - chosen, tokens) and reference_margin (nats) added, where
    answers are of tokens."""
    scored = flags.scores.loc[flags.scores["status"] == "scored"].reset_index(drop=True)
    if denoising(scored):
        return scored
    length = runs.column(scored, "rejected_length") - runs.column(scored, "chosen_length")
    margin = runs.column(scored, "chosen_logps") - runs.column(scored, "rejected_logps")
    return scored.assign(**{"length_difference": length, MARGIN: margin})


def measures(scored: pd.DataFrame) -> list[str]:
    """Names of the measures that hold at least one number: the known ones first, then whatever else was scored."""
    return [name for name in measure_columns(scored) if len(scored[name].dropna())]


def agreement(scored: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Spearman rank correlation of every two measures; NaN where one of them does not vary."""
    rows = [[spearman(scored[a], scored[b]) for b in names] for a in names]
    return pd.DataFrame(rows, index=names, columns=names)


def overlap(scored: pd.DataFrame, names: list[str]) -> pd.DataFrame:
    """Share of pairs that the most prone TOP of two measures have in common; by chance it would be TOP.

    Prone is the end that the measure's own direction says, the highest where nothing is known of it. NaN for a measure
    that does not vary, which singles out no pair; of ties the earlier rows go first.
    """
    count = max(1, round(TOP * len(scored)))
    varies = {name: len(set(scored[name].dropna())) > 1 for name in names}
    tops = {name: _prone(scored, name, count) for name in names}
    rows = [[len(tops[a] & tops[b]) / count if varies[a] and varies[b] else math.nan for b in names] for a in names]
    return pd.DataFrame(rows, index=names, columns=names)


def _prone(scored: pd.DataFrame, name: str, count: int) -> set[str]:
    """pair_id of the `count` pairs most prone by a measure."""
    order = runs.column(scored, name) * (direction(name) or 1)
    return set(scored.loc[order.sort_values(ascending=False, kind="stable").index[:count], "pair_id"])


def length_confounds(scored: pd.DataFrame) -> pd.DataFrame:
    """measure, n, Spearman with the length difference and its interval, with each side's length."""
    found = []
    for name in [m for m in measures(scored) if m != "length_difference"]:
        x, length = scored[name], scored["length_difference"]
        sides = [spearman(x, runs.column(scored, f"{side}_length")) for side in runs.SIDES]
        found.append((name, len(x.dropna()), spearman(x, length), *spearman_interval(x, length), *sides))
    return pd.DataFrame(found, columns=["measure", "n", "spearman", "low", "high", "chosen", "rejected"])


def forecast(scored: pd.DataFrame) -> pd.DataFrame:
    """measure, n, falls (share of pairs whose chosen log-prob is forecast to fall) and its 95 % interval: the rates."""
    found = []
    for name in [r for r in RATES if r in scored]:
        values = finite(scored[name])
        falls = int((values < 0).sum())
        found.append((name, len(values), falls / len(values) if len(values) else math.nan, *wilson(falls, len(values))))
    return pd.DataFrame(found, columns=["measure", "n", "falls", "low", "high"])


def forecast_words(scored: pd.DataFrame) -> list[str]:
    """What the whole set's step is forecast to do, and where a first-order forecast fails; nothing without one."""
    table = forecast(scored).set_index("measure")
    names = [name for name in WHOLE_SET if name in table.index and table.loc[name, "n"]]
    if not names:
        return []
    row = table.loc[names[0]]
    if denoising(scored):
        words = f"By {names[0]}, the first step on the whole data raises the denoising error of the chosen sample in "
        words += f"{percent(row['falls'])} of {row['n']:,.0f} pairs (95 % interval "
        return [words + f"{span((row['low'], row['high']), percent)}).", DENOISING_LIMIT]
    words = f"By {names[0]}, the first step on the whole data lowers the chosen answer in {percent(row['falls'])} of "
    words += f"{row['n']:,.0f} pairs (95 % interval {span((row['low'], row['high']), percent)})."
    return [words, LIMIT]


def ordering(scored: pd.DataFrame) -> str:
    """The measure the flags were ranked by: the one that the ranks follow most closely, of several the one that
    flag_reason names; the first measure where there are no ranks."""
    names, ranks = measures(scored), runs.column(scored, "rank")
    follows = {name: abs(spearman(scored[name], ranks)) for name in names}
    best = max((rho for rho in follows.values() if not math.isnan(rho)), default=math.nan)
    closest = [name for name in names if follows[name] > best - 1e-9] or names
    reasons = set(" ".join(map(str, scored["flag_reason"])).split()) if "flag_reason" in scored else set()
    return next((name for name in closest if name in reasons), closest[0])


def lowest_first(scored: pd.DataFrame, name: str) -> bool:
    """Whether low values of the measure were ranked most prone, as the ranks tell it (rates, not CHES)."""
    return spearman(scored[name], runs.column(scored, "rank")) > 0


def reasons(audit: pd.DataFrame) -> pd.DataFrame:
    """status, reason, rows: every input row counted once."""
    if audit.empty:
        return pd.DataFrame(columns=["status", "reason", "rows"])
    counted = audit.fillna({"reason": ""}).groupby(["status", "reason"]).agg(rows=("pair_id", "size"))
    return counted.reset_index().sort_values("rows", ascending=False, ignore_index=True)


def doubts(audit: pd.DataFrame) -> pd.DataFrame:
    """doubt, rows, meaning: kept rows by each doubt they carry; a row with two doubts counts in both. Without what is
    true of nearly every template (`remarks`), as the audit counts them."""
    return _codes(audit, "doubt", of_template=False)


def remarks(audit: pd.DataFrame) -> pd.DataFrame:
    """remark on the template, rows, meaning: kept rows by what their chat template does, which is no doubt of a row."""
    return _codes(audit, "remark on the template", of_template=True)


def _codes(audit: pd.DataFrame, head: str, *, of_template: bool) -> pd.DataFrame:
    if audit.empty or "doubts" not in audit:
        return pd.DataFrame(columns=[head, "rows", "meaning"])
    codes = audit["doubts"].fillna("").str.split("; ").explode()
    counted = codes[(codes != "") & (codes.isin(OF_TEMPLATE) == of_template)].value_counts()
    meanings = [DOUBTS.get(str(code), "") for code in counted.index]
    return pd.DataFrame({head: counted.index, "rows": counted.to_numpy(), "meaning": meanings})


def kind_auroc(flags: runs.Flags, positive: str) -> pd.DataFrame:
    """AUROC of every measure for telling pairs of kind `positive` from the others; needs a `kind` column. A measure
    whose low values mean displacement is turned round."""
    scored = table(flags)
    if "kind" not in scored and "kind" in flags.audit:
        scored = scored.merge(
            flags.audit.loc[:, ["pair_id", "kind"]].drop_duplicates("pair_id"), on="pair_id", how="left"
        )
    if "kind" not in scored or not len(scored):
        return pd.DataFrame(columns=["measure", "n", "auroc"])
    is_kind = (scored["kind"] == positive).to_numpy()
    rows = [(m, len(scored), auroc(scored[m] * (direction(m) or 1), is_kind)) for m in measures(scored)]
    return pd.DataFrame(rows, columns=["measure", "n", "auroc"])
