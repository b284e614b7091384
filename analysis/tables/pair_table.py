"""Every probe pair at the end of a run, in one table; and its tokens, with the scale of their colours."""

import math

import numpy as np
import pandas as pd

from analysis.tables import displacement, runs, tokens
from diagnostics.runlog import RunLog

MEASURES = ("ches_score", "ln_ches_score")


def of_run(run: RunLog, split: str = "probe") -> pd.DataFrame:
    """One row a pair of a split, the one that lost most first:

    pair_id, source_row (-1 where not known), outcome, fell (1, 0 or NaN), chosen and rejected (change in nats),
    per_token (of the chosen answer), lengths, kl and rejected_kl (KL(reference || policy), nats), the measures before
    training, and place: 1 for the pair of the highest LN-CHES, which `flag` would put first.
    """
    ends = runs.ends(runs.rows(run, split))
    if ends.empty:
        return pd.DataFrame(columns=_COLUMNS)
    found = pd.DataFrame({"pair_id": ends["pair_id"]})
    audit = runs.audits(run)
    known = audit.drop_duplicates("pair_id") if len(audit) else pd.DataFrame({"pair_id": [], "source_row": []})
    sources = dict(zip(known["pair_id"], known["source_row"]))
    found["source_row"] = [int(sources.get(pair_id, -1)) for pair_id in found["pair_id"]]
    found["outcome"], found["fell"] = displacement.outcome(ends), runs.fell(ends, "chosen")
    for side in runs.SIDES:
        found[side] = runs.column(ends, f"{side}_change")
        found[f"{side}_length"] = runs.column(ends, f"{side}_length")
        found["kl" if side == "chosen" else "rejected_kl"] = runs.column(ends, f"{side}_kl")
    found["per_token"] = found["chosen"] / found["chosen_length"]
    for name in MEASURES:
        found[name] = runs.column(ends, f"start_{name}")
    found["place"] = found["ln_ches_score"].rank(ascending=False, method="min")
    return found.sort_values(["chosen", "pair_id"], ignore_index=True).loc[:, _COLUMNS]


_COLUMNS = ["pair_id", "source_row", "outcome", "fell", "chosen", "per_token", "rejected", "kl", "rejected_kl"]
_COLUMNS += ["chosen_length", "rejected_length", *MEASURES, "place"]


def whole_characters(table: pd.DataFrame) -> pd.DataFrame:
    """tokens.losses with the tokens that spell one character between them as one row: their log-probs add up."""
    group = (table["token"] != "").cumsum()
    joined = table.groupby(group, sort=True).agg(
        position=("position", "first"), token=("token", "first"), before=("before", "sum"), after=("after", "sum"),
        change=("change", "sum"), tokens=("token", "size"),
    )  # fmt: skip
    return joined.reset_index(drop=True)


def scale(run: RunLog, pair_ids: list[str]) -> float:
    """The change of a token's log-prob that has the full colour: the 95th percentile among the tokens of these pairs,
    in nats; NaN where none was logged."""
    found = [tokens.losses(run, i, side)["change"].abs().dropna() for i in pair_ids for side in runs.SIDES]
    every = np.concatenate([f.to_numpy() for f in found]) if found else np.array([])
    return float(np.quantile(every, 0.95)) if len(every) else math.nan
