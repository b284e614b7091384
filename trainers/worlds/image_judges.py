"""Judges of a denoiser's samples: whether a sample is of the class that was asked for, by real examples of each class.

A logistic regression on the examples' numbers, trained on the spot: enough for small images, such as the digits.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file
from sklearn.linear_model import LogisticRegression

from diagnostics.errors import DataError
from trainers.loop.drawing import Judge
from trainers.worlds import digits

DIGITS = "digits"


def load_image_judge(name: str) -> Judge:
    """The judge by examples: `digits` (scikit-learn's), or a .safetensors or .npz file with arrays `image` (N, ...), in
    the numbers of the samples, and `class` (N,) whole numbers. DataError where that cannot be read."""
    if name == DIGITS:
        values, classes = (part.numpy() for part in digits.images())
    else:
        values, classes = _read(Path(name))
    return by_examples(values, classes)


def by_examples(values: np.ndarray, classes: np.ndarray) -> Judge:
    """1 where the regression takes a sample for the class that was asked for, 0 where for another; NaN where none was
    asked for that it knows. values: (N, ...) of as many numbers as a sample; classes: (N,)."""
    flat = values.reshape(len(values), -1).astype(np.float64)
    model = LogisticRegression(max_iter=1000).fit(flat, classes)
    known = set(classes.tolist())

    def judge(samples: np.ndarray, asked: Sequence[str]) -> list[float]:
        found = samples.reshape(len(samples), -1).astype(np.float64)
        if found.shape[1] != flat.shape[1]:
            raise DataError(f"the judge's examples have {flat.shape[1]} numbers, and a sample {found.shape[1]}.")
        wanted = [_number(text) for text in asked]
        said = model.predict(found).tolist()
        return [float(s == w) if w in known else float("nan") for s, w in zip(said, wanted, strict=True)]

    return judge


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")


def _read(file: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        arrays = dict(np.load(file, allow_pickle=False)) if file.suffix == ".npz" else load_file(file)
        values, classes = np.asarray(arrays["image"], dtype=np.float64), np.asarray(arrays["class"])
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        said = " ".join(str(error).split())[:120]
        raise DataError(f"sample_judge {file}: needs arrays `image` and `class` ({said}).") from None
    whole = classes.shape == values.shape[:1] and classes.dtype.kind in "iu" and len(np.unique(classes)) > 1
    if not whole or not np.isfinite(values).all():
        raise DataError(f"sample_judge {file}: needs finite images, each with a class, of two classes or more.")
    return values, classes
