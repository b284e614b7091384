"""Score tables: what two measures have in common is counted at the end that each says is prone."""

import math

import numpy as np
import pandas as pd
import pytest

from analysis.flag import tables as flags

CHES = np.random.default_rng(0).permutation(30) / 10 - 1.0
SCORED = pd.DataFrame(
    dict(
        pair_id=[f"v{i:02d}" for i in range(30)],
        ln_ches_score=CHES,
        set_rate=-CHES,  # low is prone: the same pairs
        self_rate=2 - CHES,
        hidden_rate=CHES,  # prone where CHES is least so
        flat_a=0.0,
        flat_b=1.0,
    )
)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("ln_ches_score", "set_rate", 1.0),
        ("ln_ches_score", "self_rate", 1.0),
        ("set_rate", "self_rate", 1.0),
        ("ln_ches_score", "hidden_rate", 0.0),
        ("ln_ches_score", "ln_ches_score", 1.0),
        ("ln_ches_score", "flat_a", math.nan),
        ("flat_a", "flat_b", math.nan),
        ("flat_a", "flat_a", math.nan),
    ],
)
def test_the_most_prone_tenths_in_common_follow_each_measures_direction(one, other, expected):
    found = flags.overlap(SCORED, [one, other] if one != other else [one])
    assert found.loc[one, other] == pytest.approx(expected, nan_ok=True)


def test_the_page_shows_the_measure_that_the_flags_name():
    """set_rate ranks the pairs just as ln_ches_score does; the reason says which was asked for."""
    ranked = SCORED.assign(rank=SCORED["set_rate"].rank(), flag_reason="among the lowest 10 % of pairs by set_rate")
    assert flags.ordering(ranked) == "set_rate"
    assert flags.ordering(ranked.drop(columns="flag_reason")) in ("ln_ches_score", "set_rate")
