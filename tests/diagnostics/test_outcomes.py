"""One definition of a fall: beyond the noise, beyond the least effect; what was not measured stays so."""

import math

import numpy as np
import pandas as pd
import pytest

from diagnostics.outcomes import MIN_EFFECT, MIN_EFFECTS, fell, least, noise, rose

NAN = math.nan


@pytest.mark.parametrize(
    ("change", "noise", "expected"),
    [
        (-1.0, 0.0, 1.0),
        (-MIN_EFFECT, 0.0, 0.0),  # exactly the least effect is none
        (-0.0101, 0.0, 1.0),
        (-3.5e-5, 0.0, 0.0),  # rounding, even where no noise was measured
        (-0.1, 0.1, 0.0),
        (-0.11, 0.1, 1.0),
        (-0.02, NAN, 1.0),  # noise not measured: the least effect alone
        (1.0, 0.0, 0.0),
        (-math.inf, 0.1, 1.0),
        (NAN, 0.0, NAN),
    ],
)
def test_a_fall_exceeds_the_noise_and_the_least_effect(change, noise, expected):
    assert fell(change, noise) == pytest.approx(expected, nan_ok=True)
    assert rose(-change, noise) == pytest.approx(expected, nan_ok=True)


def test_arrays_series_and_frames_keep_their_shape_and_their_gaps():
    values = [-1.0, -0.001, NAN, 2.0]
    assert np.isnan(fell(np.array(values))[2])
    series = pd.Series(values, index=list("abcd"))
    assert fell(series).dropna().to_dict() == {"a": 1.0, "b": 0.0, "d": 0.0}
    assert fell(series).mean() == pytest.approx(1 / 3)  # of the three that were measured
    by_row = fell(series, pd.Series([2.0, 0.0, 0.0, NAN], index=list("abcd")))
    assert by_row.dropna().to_dict() == {"a": 0.0, "b": 0.0, "d": 0.0}
    assert fell(pd.DataFrame({"x": values, "y": values}))["y"].sum() == 1.0


@pytest.mark.parametrize(
    ("parity", "expected"),
    [
        (dict(noise_floor=1e-4, max_difference=0.0), 1e-4),
        (dict(noise_floor=1e-4, max_difference=2e-4), 2e-4),
        (dict(noise=3e-5, noise_floor=1.9, max_difference=0.0), 3e-5),  # bfloat16: the floor is a bound, not a noise
        (dict(noise=3e-6, noise_floor=1e-5, max_difference=14.0, passed=False), 3e-6),  # two models: no noise
        (dict(noise_floor=None, max_difference=NAN), 0.0),
        ({}, 0.0),
        (None, 0.0),
    ],
)
def test_the_noise_of_a_run_is_the_larger_of_floor_and_difference(parity, expected):
    assert noise(parity) == least(noise(parity)) == max(expected, MIN_EFFECT)
    assert noise(parity, "denoising") == least(noise(parity, "denoising")) == max(expected, MIN_EFFECTS["denoising"])
