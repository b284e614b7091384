"""Whether `chesboard flag` had flagged a run's pairs, from a score folder that is reported beside the run."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import quote

import pandas as pd

from analysis.flag import page as flag_page
from analysis.flag import tables as flags
from analysis.show.page import Cell
from analysis.tables import runs
from analysis.tables.columns import label
from diagnostics.runlog import RunLog


@dataclass(frozen=True)
class Flagged:
    """What a score folder said of a run's pairs. measure: label of the one that ranked them; name: the folder's;
    address: its page, "" for none; pairs: flagged (bool), rank (1 is the most prone, NaN for none) and listed (whether
    the page has a row of it), by pair_id."""

    measure: str
    name: str
    address: str
    pairs: pd.DataFrame

    @property
    def head(self) -> dict[str, str]:
        """The column's name, and what it means."""
        return {f"flagged by {self.measure}?": f"in the scores {self.name}, before training; rank 1 is the most prone"}

    def cell(self, pair_id: str) -> Cell:
        """Flagged or not, and the rank, with a link to the row of the scores' page where it has one."""
        if pair_id not in self.pairs.index:
            return Cell("not scored", math.nan)
        row = self.pairs.loc[pair_id].to_dict()
        words = "flagged" if row["flagged"] else "not flagged"
        words += f", rank {row['rank']:.0f}" if row["rank"] == row["rank"] else ""
        link = f"{self.address}#{quote(f'pair-{pair_id}')}" if self.address and row["listed"] else ""
        return Cell(words, row["rank"], link=link)


def of(run: RunLog, folders: Mapping[str, str]) -> Flagged | None:
    """The score folder that scored most of the run's pairs, None where none did. folders: paths of score folders, and
    the addresses of their pages. A pair is the same where its id and its texts are."""
    own = runs.texts(runs.audits(run))
    found = [_of(runs.load_flags(path), address, own) for path, address in folders.items()]
    found = [one for one in found if one is not None]
    return max(found, key=lambda one: len(one.pairs), default=None)


def _of(scores: runs.Flags, address: str, own: pd.DataFrame) -> Flagged | None:
    scored, theirs = flags.table(scores), runs.texts(scores.audit)
    if not {"flagged", "rank"} <= set(scored) or not flags.measures(scored):
        return None
    scored = scored.drop_duplicates("pair_id").set_index("pair_id")
    table = pd.DataFrame({"flagged": scored["flagged"].astype(bool), "rank": runs.column(scored, "rank")})
    listed = table.loc[table["flagged"]].sort_values("rank").head(flag_page.ROWS).index
    table["listed"] = table.index.isin(listed)
    ids = own.index.intersection(theirs.index).intersection(table.index)
    same = ids[(own.loc[ids] == theirs.loc[ids]).all(axis=1)]
    measure = label(flags.ordering(scored.reset_index()))
    return Flagged(measure, scores.name, address, table.loc[same]) if len(same) else None
