"""Perturbed clips: the same seed draws the same, what is said is what was done, and papers' numbers hold."""

import re

import numpy as np
import pytest

from diagnostics.media import Media, of_frames
from diagnostics.vision.perturb import FILL, augment, draw_augmentation, global_shuffle, local_shuffle, mask


def clip(frames: int = 8, height: int = 20, width: int = 30, seed: int = 0) -> Media:
    """Frames of noise below FILL; the first pixel of each holds its number."""
    pixels = np.random.default_rng(seed).integers(1, FILL, (frames, height, width, 3), dtype=np.uint8)
    pixels[:, 0, 0] = np.arange(frames)[:, None]
    return of_frames(pixels, source="clip")


def numbers(medium: Media) -> list[int]:
    return medium.frames()[:, 0, 0, 0].tolist()


@pytest.mark.parametrize("change", [mask, global_shuffle, local_shuffle, augment])
def test_a_seed_draws_the_same_and_the_view_says_it(change) -> None:
    one, again, other = change(clip(), seed=3), change(clip(), seed=3), change(clip(), seed=4)
    assert one == again
    assert (one.frames() == again.frames()).all()
    assert one.view != other.view
    assert one.view[0].startswith(
        ("mask: seed 3", "global shuffle: seed 3", "local shuffle: seed 3", "augment: seed 3")
    )
    assert one.digest == clip().digest
    assert one != clip()
    assert one.shape() == one.frames().shape[:3]
    assert (change(one, seed=3).view[0], len(change(one, seed=3).view)) == (one.view[0], 2)


def test_a_perturbed_clip_is_made_when_it_is_asked_for() -> None:
    lazy = Media("video", "0" * 16, size=(4, 20, 20))  # cannot be loaded at all
    for change in (mask, global_shuffle, local_shuffle, augment):
        with pytest.raises(ValueError, match="cannot be loaded"):
            change(lazy, seed=0).frames()


@pytest.mark.parametrize(("height", "width"), [(20, 30), (30, 20), (12, 200), (1, 1)])
def test_the_mask_is_one_box_in_all_frames(height: int, width: int) -> None:
    before = clip(3, height, width).frames()
    for seed in range(20):
        found = mask(clip(3, height, width), seed=seed)
        changed = (found.frames() != before).any(-1)
        wide, tall, left, top = map(int, re.findall(r"box (\d+) x (\d+) at \((\d+), (\d+)\)", found.view[0])[0])
        inside = np.zeros((height, width), bool)
        inside[top : top + tall, left : left + wide] = True
        assert (changed == inside).all()
        assert (found.frames()[:, inside] == FILL).all()
        if height == 20:
            assert abs(wide - tall) <= 1  # a square, but for rounding
            assert 0.22 < inside.mean() < 0.53


def test_the_masks_share_is_spread_between_a_quarter_and_a_half() -> None:
    still = clip(1, 200, 200)
    shares = [(mask(still, seed=s).frames()[..., 0] == FILL).mean() for s in range(1000)]
    assert 0.245 < min(shares) < 0.26
    assert 0.49 < max(shares) < 0.505
    assert abs(np.mean(shares) - 0.375) < 3 * 0.25 / np.sqrt(12 * 1000)  # the mean of U(.25, .5), three standard errors


def test_no_frame_becomes_zeros_when_it_is_normalised() -> None:
    black = of_frames(np.zeros((2, 8, 8, 3), np.uint8))
    values = mask(black, seed=0).frames() / 255
    for mean, std in ((0.5, 0.5), (np.array([0.48145466, 0.4578275, 0.40821073]), 0.27), (0.0, 1.0)):
        assert ((values - mean) / std != 0).any(axis=(1, 2, 3)).all()
    with pytest.raises(ValueError, match="grey"):
        mask(black, seed=0, fill=0)


def test_a_global_shuffle_permutes_all_frames() -> None:
    found = [numbers(global_shuffle(clip(), seed=s)) for s in range(60)]
    assert all(sorted(order) == [*range(8)] for order in found)
    assert {order[0] for order in found} == {*range(8)}
    shuffled = global_shuffle(clip(), seed=1)
    assert shuffled.view[0].endswith("order " + " ".join(map(str, numbers(shuffled))))


def test_a_local_shuffle_stays_in_its_stretch() -> None:
    found = [numbers(local_shuffle(clip(10), seed=s)) for s in range(60)]
    for order in found:
        assert [sorted(order[:4]), sorted(order[4:8]), sorted(order[8:])] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert len({tuple(order[:4]) for order in found}) > 12  # of 24
    assert numbers(local_shuffle(clip(), seed=0, window=1)) == [*range(8)]


def test_an_augmentation_is_one_draw_for_the_whole_clip() -> None:
    still = of_frames(np.repeat(clip(1).frames(), 4, axis=0))
    for seed in range(6):
        found = augment(still, seed=seed, side=16).frames()
        assert found.shape == (4, 16, 16, 3)
        assert (found == found[:1]).all()


def test_what_is_drawn_has_the_papers_shares() -> None:
    drawn = [draw_augmentation(240, 320, seed) for seed in range(2000)]
    areas = np.array([d.box[2] * d.box[3] for d in drawn]) / (240 * 320)
    assert 0.078 < areas.min()
    assert areas.max() < 0.302
    ratios = np.array([d.box[2] / d.box[3] for d in drawn])
    assert 0.72 < ratios.min()
    assert ratios.max() < 1.38
    for share, expected in (
        (np.mean([bool(d.factors) for d in drawn]), 0.8),
        (np.mean([d.grey for d in drawn]), 0.2),
        (np.mean([d.flip for d in drawn]), 0.5),
    ):
        assert abs(share - expected) < 4 * np.sqrt(expected * (1 - expected) / 2000)
    for name, middle, reach in (("brightness", 1, 0.4), ("contrast", 1, 0.4), ("saturation", 1, 0.2), ("hue", 0, 0.1)):
        values = np.array([d.factors[name] for d in drawn if d.factors]) - middle
        assert -reach < values.min() < -0.97 * reach
        assert 0.97 * reach < values.max() < reach
    assert 0.1 < min(d.radius for d in drawn) < max(d.radius for d in drawn) < 2
    assert len({tuple(d.factors) for d in drawn if d.factors}) == 24  # in every order


def test_a_grey_clip_has_no_colour_and_a_flip_is_a_mirror() -> None:
    seeds = range(40)
    drawn = {s: draw_augmentation(20, 30, s) for s in seeds}
    grey = next(s for s in seeds if drawn[s].grey)
    pixels = augment(clip(1), seed=grey).frames()
    assert (pixels == pixels[..., :1]).all()
    ramp = of_frames(
        np.broadcast_to(np.arange(0, 240, 8, dtype=np.uint8)[None, :, None], (20, 30, 3)).copy(), kind="image"
    )
    for s in seeds:
        left, right = augment(ramp, seed=s, side=32).frames()[0, 16, [2, -3], 0].astype(int)
        assert (left > right) == drawn[s].flip


def test_a_clip_too_narrow_for_any_crop_gives_its_middle() -> None:
    left, top, wide, tall = draw_augmentation(1000, 2, 0).box
    assert (left, wide) == (0, 2)
    assert top + tall / 2 == pytest.approx(500, abs=1)
