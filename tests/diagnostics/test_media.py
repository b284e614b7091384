"""Media: what they are is their pixels and what was done to them, not where they lie."""

import numpy as np
import pytest

from diagnostics.media import Media, of_frames


def test_equal_pixels_are_equal_media_wherever_they_come_from() -> None:
    frames = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    one, same = of_frames(frames, source="a.gif"), of_frames(frames.copy(), source="b.gif")
    assert one == same
    assert repr(one) == repr(same)
    assert one != of_frames(frames[::-1])
    assert (one.frames() == frames).all()


def test_an_image_is_one_frame() -> None:
    assert of_frames(np.zeros((5, 4, 3), np.uint8), kind="image").frames().shape == (1, 5, 4, 3)


def test_what_is_no_pixels_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        of_frames(np.zeros((2, 4, 4, 3)))
    with pytest.raises(ValueError, match=r"gone\.png"):
        Media("image", "00", source="gone.png").frames()
