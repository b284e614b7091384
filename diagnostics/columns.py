"""What a column of a table is. A measure's file says it, manifest.json carries it, and whoever reads a log knows it
from there. No torch.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Column:
    """label: a few words for tables and figures. unit: of its values. meaning: one sentence without a full stop.

    prone: which of its values mean "prone to displacement", "highest" or "lowest"; "" where neither is known to.
    mean: the key of steps.jsonl under which its mean over rows stands; "" for none. flags: whether `chesboard flag`
    computes it for every pair. float32: whether it needs float32 weights.
    """

    label: str
    unit: str
    meaning: str
    prone: str = ""
    mean: str = ""
    flags: bool = False
    float32: bool = False


def described(columns: Mapping[str, Column]) -> dict[str, dict[str, Any]]:
    """The columns as manifest.json holds them."""
    kept = ("label", "unit", "meaning", "prone")
    return {name: {k: v for k, v in asdict(column).items() if k in kept} for name, column in columns.items()}
