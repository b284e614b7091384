"""A named, typed table: which columns it has, of which type, and what they mean. Whoever writes it declares it, the
record beside it carries that, and whoever reads it holds the table against the record. No torch.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import pandas as pd
from pandas.api import types

MORE = "*"  # further columns, all of one kind, whose names are not known before: a column for each measure, say
_DTYPES = {str: "str", int: "int64", float: "float64", bool: "bool", list: "object"}
_IS = {str: types.is_string_dtype, int: types.is_integer_dtype, bool: types.is_bool_dtype, list: types.is_object_dtype}


class Field(NamedTuple):
    """One column. kind: str, int, float, bool or list (of numbers); meaning: a few words, with the unit."""

    kind: type
    meaning: str


Fields = dict[str, Field]


def typed(frame: pd.DataFrame, fields: Fields) -> pd.DataFrame:
    """The table as declared: whole numbers in a column of floats made float, and one without rows given its columns.

    Raises TypeError naming the column that is missing, not declared, or of another type.
    """
    named = {name: field for name, field in fields.items() if name != MORE}
    if frame.empty:
        return pd.DataFrame({name: pd.Series(dtype=_DTYPES[field.kind]) for name, field in named.items()})
    lost = missing(frame, fields)
    if lost:
        raise TypeError(f"lacks the column {lost[0]}")
    for name in frame.columns:
        field = fields.get(name, fields.get(MORE))
        if field is None:
            raise TypeError(f"has a column {name}, which is not declared")
        if not _IS.get(field.kind, _is_number)(pd.Series(frame[name])):
            raise TypeError(f"has {frame[name].dtype} in the column {name}, which is declared {field.kind.__name__}")
    return frame.astype({name: "float64" for name, field in named.items() if field.kind is float})


def described(tables: Mapping[str, Fields]) -> dict[str, dict[str, dict[str, str]]]:
    """The declared tables as a record holds them: by table and column, type and meaning."""
    return {
        table: {name: {"type": field.kind.__name__, "meaning": field.meaning} for name, field in fields.items()}
        for table, fields in tables.items()
    }


def missing(frame: pd.DataFrame, fields: Mapping[str, Any]) -> list[str]:
    """The declared columns that a table lacks. fields: as declared, or as a record holds them."""
    return [name for name in fields if name != MORE and name not in frame]


def _is_number(values: pd.Series) -> bool:
    return types.is_numeric_dtype(values) and not types.is_bool_dtype(values)
