"""DenoisingBatch: pairs of samples as tensors, and the draws of time and noise that they are seen through."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diagnostics.diffusion.sample import Sample
from diagnostics.errors import DataError
from diagnostics.sequences import Example


@dataclass(frozen=True)
class Noised:
    """K draws for each of N rows: x_t, target, noise (N, K, *S) and times, alphas (N, K)."""

    x_t: Tensor
    target: Tensor
    noise: Tensor
    times: Tensor
    alphas: Tensor

    def to(self, device: torch.device | str) -> "Noised":
        """The same on another device."""
        return Noised(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True)
class DenoisingBatch:
    """B examples with the same R names as N = R * B rows, those of the first name first.

    samples: (N, *S) float32. condition: by name, (N, ...) each. completion_mask: (N, K) ones, one a draw. groups: B
    strings, pairs of one group are noised alike. segments, weights: (N, P), see DenoisingStats. noised: what an update
    drew; None: the fixed draws.
    """

    samples: Tensor
    condition: dict[str, Tensor]
    completion_mask: Tensor
    pair_ids: tuple[str, ...]
    names: tuple[str, ...]
    groups: tuple[str, ...]
    segments: Tensor | None = None
    weights: Tensor | None = None
    noised: Noised | None = field(default=None)

    @property
    def rows(self) -> dict[str, slice]:
        """Where the rows of each name stand."""
        n = len(self.pair_ids)
        return {name: slice(k * n, (k + 1) * n) for k, name in enumerate(self.names)}

    def to(self, device: torch.device | str) -> "DenoisingBatch":
        """The same batch on another device."""
        moved: dict[str, Any] = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor | Noised)}
        return replace(self, condition={k: v.to(device) for k, v in self.condition.items()}, **moved)


def collate(examples: Sequence[Example], draws: int) -> DenoisingBatch:
    """Samples of one shape as a batch that is seen through so many draws. Raises DataError where shapes or conditions
    differ."""
    names = tuple(examples[0].rows)
    rows: list[Sample] = [example.rows[name].media for name in names for example in examples]
    ids = tuple(e.pair_id for e in examples)
    first = rows[0]
    for i, row in enumerate(rows):
        if row.values.shape != first.values.shape or row.condition.keys() != first.condition.keys():
            raise DataError(
                f"pair_id {ids[i % len(ids)]}: a sample of {row.values.shape} numbers told {sorted(row.condition)}, "
                f"others of {first.values.shape} told {sorted(first.condition)}. Samples of one run are alike in both."
            )
    parts: dict[str, Any] = {name: _stack([getattr(row, name) for row in rows]) for name in ("segments", "weights")}
    return DenoisingBatch(
        samples=torch.from_numpy(np.stack([row.values for row in rows])).float(),
        condition={name: torch.from_numpy(np.stack([r.condition[name] for r in rows])) for name in first.condition},
        completion_mask=torch.ones(len(rows), draws, dtype=torch.long),
        pair_ids=ids, names=names, groups=tuple(e.rows[names[0]].media.group or e.pair_id for e in examples), **parts,
    )  # fmt: skip


def _stack(values: list[Any]) -> Tensor | None:
    """(N, P), or None where no row has any."""
    known = [v for v in values if v is not None]
    if known and len(known) < len(values):
        raise DataError("some samples of a batch have segments or weights and others have none; give them to all.")
    return torch.from_numpy(np.stack([v.reshape(-1) for v in known])) if known else None
