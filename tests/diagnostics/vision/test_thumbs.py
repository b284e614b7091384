"""Small pictures of clips, whatever their frames' shape."""

import io

import numpy as np
import pytest
import vlms
from PIL import Image

from diagnostics.vision.thumbs import HEIGHT, WIDTH, caption, strip


@pytest.mark.parametrize(
    ("size", "expected"),
    [((36, 36), (72, 72)), ((144, 36), (72, 18)), ((1, 4000), (1, 288)), ((4000, 1), (72, 1)), ((1, 1), (72, 72))],
)
def test_frames_fit_their_box_and_keep_their_shape(size, expected):
    clip = vlms.media(0, 3, size)
    seen = np.asarray(Image.open(io.BytesIO(strip(clip))))
    assert seen.shape == (expected[0], 3 * (expected[1] + 2), 3)
    assert seen.shape[0] <= HEIGHT
    assert expected[1] <= WIDTH
    assert (seen[:, expected[1] : expected[1] + 2] == 255).all()


def test_one_frame_and_many():
    assert caption(vlms.media(0, 1)) == "1 of 1 frames of the clip"
    assert caption(vlms.media(0, 20)) == "8 of 20 frames of the clip"
    assert Image.open(io.BytesIO(strip(vlms.media(0, 20)))).size == (8 * 74, 72)
