"""Per token of one response: what it lost between the first and the last time it was logged."""

import pandas as pd

from diagnostics.runlog import RunLog


def losses(run: RunLog, pair_id: str, side: str) -> pd.DataFrame:
    """position, token, before, after (logp in nats), change = after - before; empty where not logged."""
    columns = ["position", "token", "before", "after", "change"]
    if run.tokens.empty:
        return pd.DataFrame(columns=columns)
    rows = run.tokens.loc[(run.tokens["pair_id"] == pair_id) & (run.tokens["side"] == side)]
    if rows["step"].nunique() < 2:
        return pd.DataFrame(columns=columns)
    before = rows.loc[rows["step"] == rows["step"].min()].set_index("position")
    after = rows.loc[rows["step"] == rows["step"].max()].set_index("position")
    found = pd.DataFrame({"token": after["token"], "before": before["logp"], "after": after["logp"]})
    found["change"] = found["after"] - found["before"]
    return found.reset_index(names="position").sort_values("position", ignore_index=True).loc[:, columns]
