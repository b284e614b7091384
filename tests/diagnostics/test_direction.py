"""Every measure says what it is; one end of it means displacement to whoever flags by it and to whoever judges it."""

import inspect

import pytest

from analysis.tables import columns
from diagnostics import margins, measures
from diagnostics.columns import Column, described
from diagnostics.direction import HIGHER, LOWER, direction
from diagnostics.flag import flagging, forecast
from diagnostics.flag.flagging import CHOICES, MEASURES, SHOWN, prone

EVERY = measures.columns() | forecast.COLUMNS | margins.COLUMNS


def test_every_measure_says_what_it_is_and_nothing_else_is_said():
    for column in EVERY.values():
        assert column.label
        assert column.unit
        assert not column.meaning.endswith(".")
        assert column.prone in ("", "highest", "lowest")
    for module in {inspect.getmodule(measures.load(name)) for name in measures.names()}:
        assert set(module.COLUMNS) <= set(measures.names())
    keys = [column.mean for column in EVERY.values() if column.mean]
    assert len(keys) == len(set(keys))


@pytest.mark.parametrize("name", [n for n in CHOICES if EVERY[n].prone])
def test_what_flag_takes_for_prone_the_pages_take_for_prone(name):
    columns.learn({"columns": described(EVERY)})
    assert columns.direction(name) == {"highest": HIGHER, "lowest": LOWER}[prone(name)]
    assert columns.label(name) == EVERY[name].label


def test_flag_computes_what_says_so():
    assert {*MEASURES, *SHOWN} == {n for n, c in measures.columns().items() if c.flags}
    assert set(SHOWN) == {n for n, c in measures.columns().items() if c.flags and not c.prone}


def test_without_a_manifest_the_words_of_the_name_decide():
    """Those of logs that were written before manifests described their columns; a newer one needs no such name."""
    lower = ("set_rate", "set_rate_sign", "last_layer_set_rate", "self_rate", "hidden_rate", "edit_distance")
    higher = ("ches_score", "ln_ches_score", "last_hidden_similarity", "edit_similarity", "length_difference")
    assert {direction(name) for name in lower} == {LOWER}
    assert {direction(name) for name in higher} == {HIGHER}
    assert direction("probe_influence") == direction("reference_margin") == direction("my_score") == 0


@pytest.mark.parametrize("said", [None, 3, [], {"columns": 1}, {"columns": {"a_rate": 5}}, {"columns": {"a_rate": {}}},
                                  {"columns": {"a_rate": {"label": 1, "prone": "highest"}}},
                                  {"columns": {"a_rate": {"label": " ", "prone": "highest"}}},
                                  {"columns": {"a_rate": {"label": "x", "prone": "up"}}}])  # fmt: skip
def test_a_manifest_that_describes_nothing_is_passed_over(said):
    columns.learn(said)
    assert columns.label("a_rate") == "a_rate"
    assert columns.direction("a_rate") == LOWER


def test_a_measure_of_ones_own_is_known_from_its_manifest_alone():
    own = Column("attention overlap", "share", "how much both answers look at the same tokens", "highest")
    columns.learn({"columns": described({"own_overlap": own})})
    assert (columns.label("own_overlap"), columns.direction("own_overlap")) == ("attention overlap", HIGHER)
    columns.learn({"columns": described({"own_overlap": Column("x", "share", "another", "lowest")})})
    assert (columns.label("own_overlap"), columns.direction("own_overlap")) == ("attention overlap", HIGHER)


def test_leaving_out_follows_the_measures_own_word(monkeypatch):
    monkeypatch.setitem(
        flagging.EVERY, "my_rate", Column("mine", "share", "a rate that is prone where high", "highest")
    )
    assert flagging.prone_end("my_rate") == "highest"
    assert flagging.prone_end("another_rate") == "lowest"
