"""Sums over a data set that is passed over batch by batch, kept on disk as they grow: a stopped job goes on.

    FOLDER/sum-00000-r0.safetensors   what process 0 added in the first start, with the pair_ids that are in it

The total is the sum of all files, whatever process or start wrote them; nothing is sent between processes.
"""

import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

SAVE_EVERY = 300.0  # seconds: a sum is as large as the model, so it is not written with every batch

Add = Callable[[Iterable[str], Mapping[str, Tensor]], None]


class Sums:
    """Named tensors summed over pairs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def done(self) -> set[str]:
        """The pair_ids that are in a sum on disk."""
        return {i for path in self._files() for i in _ids(path)}

    def mean(self) -> dict[str, Tensor]:
        """The total over all pairs, divided by their number, on the CPU."""
        total: dict[str, Tensor] = {}
        for path in self._files():
            with safe_open(path, "pt") as file:
                for name in file.keys():
                    value = file.get_tensor(name)
                    total[name] = total[name] + value if name in total else value
        count = len(self.done())
        return {name: value / count for name, value in total.items()}

    @contextmanager
    def writer(self, rank: int) -> Iterator[Add]:
        """A function that adds pairs' tensors; on disk every few minutes and at the end, also when interrupted."""
        self.folder.mkdir(parents=True, exist_ok=True)
        number = 1 + max((int(p.name.split("-")[1]) for p in self._files()), default=-1)
        path = self.folder / f"sum-{number:05d}-r{rank}.safetensors"
        ids: list[str] = []
        total: dict[str, Tensor] = {}
        saved = time.monotonic()

        def add(pair_ids: Iterable[str], values: Mapping[str, Tensor]) -> None:
            nonlocal saved
            total.update({n: total[n].add_(v) if n in total else v.clone() for n, v in values.items()})
            ids.extend(pair_ids)
            if time.monotonic() - saved >= SAVE_EVERY:
                _save(path, total, ids)
                saved = time.monotonic()

        try:
            yield add
        finally:
            if ids:
                _save(path, total, ids)

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob("sum-*.safetensors"))


def _save(path: Path, total: Mapping[str, Tensor], ids: list[str]) -> None:
    """In one move, so that no half file is ever seen."""
    part = path.with_suffix(".tmp")
    save_file({n: v.cpu().contiguous() for n, v in total.items()}, part, {"pair_ids": json.dumps(ids)})
    os.replace(part, path)


def _ids(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()["pair_ids"])
