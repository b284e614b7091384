"""One end of a measure means displacement, to whoever flags by it and to whoever judges it afterwards."""

import pytest

from diagnostics import forecast, measures
from diagnostics.direction import HIGHER, LOWER, direction
from diagnostics.flagging import MEASURES


@pytest.mark.parametrize("name", [n for n in (*MEASURES, *forecast.COLUMNS) if n != "probe_influence"])
def test_what_flag_takes_for_prone_the_scorecard_takes_for_prone(name):
    end = forecast.COLUMNS[name].flagged if name in forecast.COLUMNS else measures.flagged(name)
    assert direction(name) == {"highest": HIGHER, "lowest": LOWER}[end]


def test_nothing_is_assumed_of_a_name_it_does_not_know():
    assert direction("probe_influence") == direction("reference_margin") == direction("my_score") == 0
