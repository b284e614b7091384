"""Sample: what stands in a row of a denoiser's pair, in `Sequence.media`: its numbers and their condition."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from diagnostics.sequences import Example, Sequence
from diagnostics.token_ids import TokenIds


@dataclass(frozen=True, eq=False)
class Sample:
    """values: float32 of any shape S, as the denoiser takes them (images in [-1, 1], or latents). condition: by name,
    what the denoiser is told. segments: (P,) integers 0 .. S - 1, the segment of each number. weights: (P,) in [0, 1],
    an error map. group: samples of one group are noised alike in a training step; empty: those of one pair. load: gives
    the image (H, W, 3) uint8 that the values were made of, where there is one; no part of what a sample is."""

    values: np.ndarray
    condition: Mapping[str, np.ndarray] = field(default_factory=dict)
    segments: np.ndarray | None = None
    weights: np.ndarray | None = None
    group: str = ""
    load: Callable[[], np.ndarray] | None = field(default=None, repr=False, compare=False)

    def __repr__(self) -> str:
        """All of the content, arrays by dtype, shape and hash."""
        parts = {"values": self.values, **dict(sorted(self.condition.items()))}
        parts |= {"segments": self.segments, "weights": self.weights}
        said = [f"{name}={array_digest(value)}" for name, value in parts.items() if value is not None]
        return f"Sample({', '.join(said)}, group={self.group!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sample) and (self is other or repr(self) == repr(other))

    def __hash__(self) -> int:
        return hash(repr(self))


def sample_row(sample: Sample) -> Sequence:
    """A row of an example: its prompt says group and condition, its completion the values, as two numbers of a hash
    each, so that lists, and the same sample in several pairs, are known as such."""
    told = repr((sample.group, [(name, array_digest(value)) for name, value in sorted(sample.condition.items())]))
    ids = TokenIds(_numbers(told)), TokenIds(_numbers(array_digest(sample.values)))
    return Sequence(*ids, has_eos=False, media=sample)


def sample_pair(pair_id: str, source_row: int, samples: Mapping[str, Sample]) -> Example:
    """An example of samples by name; a pair has `chosen` and `rejected`."""
    return Example(pair_id, source_row, {name: sample_row(sample) for name, sample in samples.items()})


def array_digest(values: np.ndarray) -> str:
    """Type, shape and a hash of the numbers."""
    values = np.ascontiguousarray(values)
    return f"{values.dtype}{values.shape} {hashlib.blake2b(values.tobytes(), digest_size=16).hexdigest()}"


def _numbers(text: str) -> tuple[int, int]:
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    first, second = (int.from_bytes(part, "little") & 0x7FFFFFFF for part in (digest[:4], digest[4:]))
    return first, second
