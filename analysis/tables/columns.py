"""What the columns of the tables read are called, and which end of them means displacement: as the manifests of the
folders that were read say it (`learn`), else by the words of their names.
"""

from collections.abc import Iterable
from typing import Any

from analysis.show.wording import clip
from diagnostics.direction import HIGHER, LOWER
from diagnostics.direction import direction as by_words
from diagnostics.errors import printable

PRONE = {"highest": HIGHER, "lowest": LOWER, "": 0}
_OWN = {  # computed here, from lengths and log-probs
    "reference_margin": ("log-prob margin (chosen − rejected, start model)", 0),
    "error_margin": ("error margin at the start, rejected − chosen", 0),
    "length_difference": ("length difference (rejected − chosen)", HIGHER),
}
_known: dict[str, tuple[str, int]] = {}


def learn(manifest: Any) -> None:
    """Take the columns that a manifest describes and none before it did; whatever is no description is passed over."""
    columns = manifest.get("columns") if isinstance(manifest, dict) else None
    for name, said in columns.items() if isinstance(columns, dict) else ():
        label, prone = (said.get("label"), said.get("prone")) if isinstance(said, dict) else (None, None)
        if isinstance(label, str) and label.strip() and isinstance(prone, str) and prone in PRONE:
            _known.setdefault(name, (clip(printable(label), 60), PRONE[prone]))


def label(name: str) -> str:
    """What a column is called on a page."""
    return (_OWN.get(name) or _known.get(name) or (name, 0))[0]


def direction(name: str) -> int:
    """HIGHER where higher values predict displacement, LOWER where lower ones do, 0 where nothing is known."""
    found = _OWN.get(name) or _known.get(name)
    return found[1] if found else by_words(name)


def ordered(names: Iterable[str]) -> list[str]:
    """Those of which a direction is known first, as they stand; those that are computed here last."""
    names = list(names)
    return sorted(names, key=lambda name: (name in _OWN, not direction(name)))
