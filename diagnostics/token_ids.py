"""Token ids kept small: four bytes an id, where a tuple of Python's numbers takes 36. No torch."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np


class TokenIds(Sequence[int]):
    """A fixed sequence of token ids. Equal to, and hashed as, the tuple of the same numbers."""

    __slots__ = ("_values",)

    def __init__(self, ids: "Iterable[int] | np.ndarray") -> None:
        if isinstance(ids, TokenIds):
            self._values: np.ndarray = ids._values
        else:
            self._values = np.asarray(ids if isinstance(ids, np.ndarray | Sequence) else list(ids), dtype=np.int32)

    def __len__(self) -> int:
        return len(self._values)

    def __iter__(self) -> Iterator[int]:
        return iter(self._values.tolist())

    @overload
    def __getitem__(self, place: int) -> int: ...

    @overload
    def __getitem__(self, place: slice) -> "TokenIds": ...

    def __getitem__(self, place: int | slice) -> "int | TokenIds":
        return TokenIds(self._values[place]) if isinstance(place, slice) else int(self._values[place])

    def __eq__(self, other: object) -> bool:
        if isinstance(other, TokenIds):
            return self._values is other._values or np.array_equal(self._values, other._values)
        return tuple(self) == other

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self._values, dtype=dtype, copy=copy)
