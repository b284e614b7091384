"""Mistyped names: the nearest known one, how alike it must be, and the sentence of a registry."""

import re
from pathlib import Path

from diagnostics.names import nearest, unknown

ROOT = Path(__file__).parents[2]


def test_the_nearest_comes_first_and_may_be_none():
    assert nearest("lerning_rate", ["learning_rate", "seed"]) == ["learning_rate"]
    assert nearest("xyz", ["learning_rate", "seed"]) == []
    assert nearest("sead", {"seed": 1, "send": 2, "beta": 3}, n=2) == ["send", "seed"]
    assert nearest("linear", ["constant", "cosine"], cutoff=0) != []


def test_a_registry_names_what_the_name_begins_or_the_nearest():
    known = ("run_report", "run_board", "flags")
    assert "did you mean 'run_board' or 'run_report'?" in str(unknown("notebook", "run", known))
    assert "did you mean 'flags'?" in str(unknown("notebook", "Flag", known))
    assert str(unknown("notebook", "zzz", known)).endswith(
        "none is similar. The notebooks are flags, run_board, run_report."
    )
    assert "There are 300 measures" in str(unknown("measure", "", [f"m{i}" for i in range(300)]))


def test_every_such_sentence_asks_this_file():
    """typer's own options aside."""
    sources = [p for room in ("diagnostics", "trainers", "analysis", "reports") for p in (ROOT / room).rglob("*.py")]
    asks = [p.relative_to(ROOT).as_posix() for p in sources if re.search(r"get_close_matches", p.read_text("utf-8"))]
    assert sorted(asks) == ["diagnostics/names.py"]
