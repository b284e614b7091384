"""Judges of a denoiser's samples: whether a sample is of the class that was asked for, by real examples of each class.

A logistic regression on the examples' numbers, trained on the spot: enough for small images, such as the digits.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression

from diagnostics.errors import DataError
from trainers.worlds import digits

DIGITS = "digits"


class Examples:
    """A Judge: 1 where the regression takes a sample for the class that was asked for, 0 where for another; NaN where
    none was asked for that it knows. values: (N, ...) of as many numbers as a sample; classes: (N,)."""

    def __init__(self, values: np.ndarray, classes: np.ndarray) -> None:
        flat = values.reshape(len(values), -1).astype(np.float64)
        self.numbers, self.low, self.high = flat.shape[1], float(flat.min()), float(flat.max())
        self.known = set(classes.tolist())
        self.model = LogisticRegression(max_iter=1000).fit(flat, classes)

    def __call__(self, samples: np.ndarray, asked: Sequence[str]) -> list[float]:
        """See Judge."""
        found = samples.reshape(len(samples), -1).astype(np.float64)
        wanted, said = [_number(text) for text in asked], self.model.predict(found).tolist()
        return [float(s == w) if w in self.known else float("nan") for s, w in zip(said, wanted, strict=True)]

    def check(self, samples: np.ndarray, asked: Sequence[str]) -> None:
        """DataError where it cannot judge such samples (N, ...), as they are looked at: they have as many numbers, on
        the same scale (images in [0, 1] or [0, 255] are not on that of [-1, 1]), and a class that it knows is asked
        for."""
        if samples[0].size != self.numbers:
            raise DataError(f"sample_judge: its images have {self.numbers} numbers, and a sample {samples[0].size}.")
        low, high, width = float(samples.min()), float(samples.max()), self.high - self.low
        outside = low < self.low - 0.4 * width or high > self.high + 0.4 * width
        if outside or width > 10 * (high - low):
            raise DataError(
                f"sample_judge: its images have numbers from {self.low:g} to {self.high:g}, and the samples from "
                f"{low:g} to {high:g}; give both on one scale."
            )
        if not any(_number(text) in self.known for text in asked):
            some = ", ".join(f"{k}" for k in sorted(self.known)[:5])
            raise DataError(f"sample_judge: no sample is asked for a class that it has ({some} ...); leave it out.")


def load_image_judge(name: str) -> Examples:
    """The judge by examples: `digits` (scikit-learn's), or a .safetensors or .npz file with arrays `image` (N, ...), in
    the numbers of the samples, and `class` (N,) whole numbers. DataError where that cannot be read."""
    if name == DIGITS:
        return Examples(*(part.numpy() for part in digits.images()))
    return Examples(*_read(Path(name)))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        arrays = dict(np.load(file, allow_pickle=False)) if file.suffix == ".npz" else load_file(file)
        values, classes = arrays["image"], arrays["class"]
    except Exception as error:  # whatever a damaged file makes of its reader
        said = " ".join(str(error).split())[:120]
        raise DataError(f"sample_judge {file}: needs arrays `image` and `class` ({said}).") from None
    whole = classes.shape == values.shape[:1] and classes.dtype.kind in "iu" and len(np.unique(classes)) > 1
    if not whole or values.dtype.kind != "f" or not values.size or not np.isfinite(values).all():
        raise DataError(
            f"sample_judge {file}: needs finite images of decimal numbers, each with a class, of two classes or more."
        )
    return values, classes
