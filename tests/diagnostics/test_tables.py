import pandas as pd
import pytest

from diagnostics.tables import MORE, Field, described, missing, typed

FIELDS = {
    "name": Field(str, "a word"),
    "seed": Field(int, "its number"),
    "value": Field(float, "nats"),
    "right": Field(bool, "whether"),
    "state": Field(list, "numbers"),
}


def table(**columns):
    found = {"name": ["a", "b"], "seed": [0, 1], "value": [0.5, 1.5], "right": [True, False], "state": [[1.0], [2.0]]}
    return pd.DataFrame(found | columns)


def test_a_table_as_declared_is_as_it_was():
    assert typed(table(), FIELDS).equals(table())


def test_whole_numbers_of_a_float_column_become_float():
    assert typed(table(value=[1, 2]), FIELDS)["value"].tolist() == [1.0, 2.0]
    assert typed(table(value=[1, 2]), FIELDS)["value"].dtype == "float64"


def test_a_table_without_rows_has_its_columns():
    empty = typed(pd.DataFrame([]), FIELDS)
    assert list(empty) == list(FIELDS)
    assert (len(empty), empty["seed"].dtype, empty["value"].dtype) == (0, "int64", "float64")


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"name": [1, 2]}, "has int64 in the column name, which is declared str"),
        ({"seed": [0.5, 1.0]}, "has float64 in the column seed, which is declared int"),
        ({"value": ["x", "y"]}, "in the column value, which is declared float"),
        ({"value": [True, False]}, "has bool in the column value"),
        ({"right": [0, 1]}, "has int64 in the column right, which is declared bool"),
        ({"state": [1.0, 2.0]}, "has float64 in the column state, which is declared list"),
        ({"more": [1, 2]}, "has a column more, which is not declared"),
    ],
)
def test_a_column_of_another_type_is_named(changed, says):
    with pytest.raises(TypeError, match=says):
        typed(table(**changed), FIELDS)


def test_a_missing_column_is_named():
    with pytest.raises(TypeError, match="lacks the column seed"):
        typed(table().drop(columns="seed"), FIELDS)
    assert missing(table().drop(columns=["seed", "state"]), FIELDS) == ["seed", "state"]


def test_further_columns_are_all_of_one_kind():
    fields = {"name": Field(str, "a word"), MORE: Field(float, "a measure")}
    frame = pd.DataFrame({"name": ["a"], "one": [0.5], "two": [1]})
    assert typed(frame, fields).equals(frame)
    assert missing(frame, fields) == []
    with pytest.raises(TypeError, match="in the column two, which is declared float"):
        typed(frame.assign(two="b"), fields)


def test_described_is_what_a_record_holds():
    assert described({"t": {"seed": FIELDS["seed"]}}) == {"t": {"seed": {"type": "int", "meaning": "its number"}}}
