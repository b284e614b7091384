"""Do chosen and rejected pull on the same weights: tables from the gradient columns of measured updates."""

import numpy as np
import pandas as pd

from analysis.tables import runs
from analysis.tables.intervals import finite, mean, mean_interval, wilson
from diagnostics.outcomes import is_strong, log_push_ratio

PUSHES = ("chosen_incentive", "rejected_incentive", "chosen_grad_norm", "rejected_grad_norm", "grad_inner")


def measured(run_pairs: pd.DataFrame) -> pd.DataFrame:
    """Train rows whose gradients were measured, with the band of arXiv 2604.18239 in nats:

    log_ratio = log(d_w / d_l); lower, upper = log(|s_l| / |s_w|) +- log(cosine), infinite where the cosine is not
    positive, missing where an incentive is not; rises: whether a small step on the pair alone would raise its chosen
    answer, d_w |s_w|^2 > d_l <s_w, s_l>.
    """
    if run_pairs.empty or "grad_inner" not in run_pairs:
        return pd.DataFrame()
    rows = run_pairs.loc[(run_pairs["split"] == "train") & run_pairs["grad_inner"].notna()].reset_index(drop=True)
    up, down, chosen, rejected, inner = (runs.column(rows, name) for name in PUSHES)
    with np.errstate(divide="ignore", invalid="ignore"):
        middle, cosine = np.log(rejected / chosen), np.log((inner / (chosen * rejected)).clip(lower=0))
        ratio = np.log((up / down).where((up > 0) & (down > 0)))
    edges = {"log_ratio": ratio, "lower": middle + cosine, "upper": middle - cosine}
    rises = (up * chosen**2 > down * inner).where((up * chosen**2 + down * inner).notna())
    return rows.assign(**edges, rises=rises)


def by_step(rows: pd.DataFrame) -> pd.DataFrame:
    """Per measured step: n; medians over pairs of log_ratio, lower and upper (missing where infinite); the share of
    pairs outside their band with its 95 % interval."""
    found = []
    for step, group in rows.groupby("step"):
        slack = runs.column(group, "slack").dropna()
        outside, n = int((slack < 0).sum()), len(slack)
        middles = [group[c].median() for c in ("log_ratio", "lower", "upper")]
        finite = [m if np.isfinite(m) else np.nan for m in middles]
        found.append((step, n, *finite, outside / n if n else np.nan, *wilson(outside, n)))
    return pd.DataFrame(found, columns=["step", "n", "log_ratio", "lower", "upper", "share", "low", "high"])


def first_slack(rows: pd.DataFrame) -> pd.Series:
    """Slack of the pairs of the first measured update, in nats."""
    first = rows.loc[rows["step"] == rows["step"].min()] if len(rows) else rows
    return runs.column(first, "slack").dropna()


def realised(rows: pd.DataFrame, run_pairs: pd.DataFrame) -> pd.DataFrame:
    """Each pair's first measured row, with chosen_moved: nats its chosen answer moved from there to its next
    measurement, a probe or its next visit, whichever comes first; missing where there is none."""
    first = rows.sort_values("step").drop_duplicates("pair_id")
    later = run_pairs.loc[run_pairs["split"].isin(["probe", "train"]), ["pair_id", "split", "step", "chosen_logps"]]
    # updates that the weights of a row have seen: a visit is measured before its own update
    later = later.assign(updates=later["step"] - (later["split"] == "train"))
    joined = first[["pair_id", "step"]].merge(later, on="pair_id", suffixes=("", "_later"))
    after = joined.loc[joined["updates"] >= joined["step"]].sort_values("updates").drop_duplicates("pair_id")
    end = first["pair_id"].map(after.set_index("pair_id")["chosen_logps"])
    return first.assign(chosen_moved=end - first["chosen_logps"])


def agreement(table: pd.DataFrame, noise: float = 0.0) -> pd.DataFrame:
    """predicted (rises, falls, either): n, how many moved that way, their share with its 95 % interval. A pair whose
    chosen answer moved by no more than the noise (nats) is left out."""
    known = table.dropna(subset=["rises", "chosen_moved"])
    known = known.loc[known["chosen_moved"].abs() > noise]
    rises, rose = known["rises"].astype(bool), known["chosen_moved"] > 0
    found = []
    for name, picked in (("rises", rises), ("falls", ~rises), ("either", rises | True)):
        n, right = int(picked.sum()), int((rises == rose)[picked].sum())
        found.append((name, n, right, right / n if n else np.nan, *wilson(right, n)))
    return pd.DataFrame(found, columns=["predicted", "n", "right", "share", "low", "high"])


def sides(steps: pd.DataFrame) -> pd.DataFrame:
    """By measured step (index): chosen, rejected (gradient norms), cosine, and both norms' sums so far."""
    names = {"chosen": "grad/chosen", "rejected": "grad/rejected", "cosine": "grad/cosine"}
    names |= {"chosen_total": "grad_total/chosen", "rejected_total": "grad_total/rejected"}
    if steps.empty:
        return pd.DataFrame(columns=list(names))
    table = pd.DataFrame({label: runs.column(steps, name) for label, name in names.items()})
    return table.set_index(steps["step"]).dropna(how="all")


def push_by_step(rows: pd.DataFrame) -> pd.DataFrame:
    """How much harder the rejected answers are pushed than the chosen ones, in probability space (outcomes.py).

    By step: n, mean log ratio with its 95 % interval (low, high), share of pairs in which the ratio is above 100 with
    its own (share_low, share_high). rows: from runs.rows; steps without a measured pair are left out.
    """
    found = []
    for step in sorted(set(rows["step"])):
        group = rows.loc[rows["step"] == step]
        values = finite(log_push_ratio(runs.column(group, "chosen_logps"), runs.column(group, "rejected_logps")))
        if n := len(values):
            strong = int(is_strong(values).sum())
            found.append((step, n, mean(values), *mean_interval(values), strong / n, *wilson(strong, n)))
    return pd.DataFrame(found, columns=["step", "n", "mean", "low", "high", "share", "share_low", "share_high"])
