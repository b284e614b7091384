"""The digits: a denoiser that draws them, pairs of four kinds, a judge and a check of classes; all by the seed."""

import pytest
import torch
from safetensors.torch import load_file

from diagnostics.diffusion.read import read_samples
from diagnostics.errors import UserError
from trainers.denoisers import load_denoiser
from trainers.worlds import digits

COUNT = 12


@pytest.fixture(scope="module")
def model():
    """Half trained: a fifth of a second."""
    return digits.train(0, steps=60)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "world"
    digits.build(folder, 3, steps=2, pairs=COUNT)
    return folder


def test_the_denoiser_has_the_stated_size():
    assert sum(p.numel() for p in digits.make_model(0).parameters()) == 109_632


def test_training_lowers_the_error(model):
    real, classes = digits.images()
    draw = torch.Generator().manual_seed(9)
    times, noise = torch.randint(1000, (len(real),), generator=draw), torch.randn(real.shape, generator=draw)

    def error(one) -> float:
        with torch.no_grad():
            said = one(digits.noised(one, real, noise, times), times, {"class_labels": classes})
        return float((said - noise).square().mean())

    assert error(model) < 0.6 * error(digits.make_model(0))


def test_a_world_is_what_its_seed_says_and_comes_back_from_disk(folder, tmp_path):
    digits.build(tmp_path / "again", 3, steps=2, pairs=COUNT)
    digits.build(tmp_path / "other", 4, steps=2, pairs=COUNT)
    places = (folder, tmp_path / "again", tmp_path / "other")
    weights = [load_denoiser(str(place / "model")).head.weight for place in places]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    for kind in digits.KINDS:
        first, again, other = (load_file(digits.paths(place, kind)["data"]) for place in places)
        assert all(torch.equal(value, again[name]) for name, value in first.items())
        assert not all(torch.equal(value, other[name]) for name, value in first.items())


def test_of_two_samples_the_one_with_more_ink_wins(model):
    for kind in ("on-policy", "close"):
        pairs = digits.make_pairs(kind, model, 0, count=COUNT)
        assert (digits.ink(pairs.chosen) > digits.ink(pairs.rejected)).all()
        assert torch.equal(pairs.chosen_labels, pairs.rejected_labels)
        assert (pairs.chosen.abs() <= 1 + 1e-5).all()


def test_close_pairs_are_closer_than_two_samples(model):
    apart = {}
    for kind in ("on-policy", "close"):
        pairs = digits.make_pairs(kind, model, 0, count=32)
        apart[kind] = (pairs.chosen - pairs.rejected).norm(dim=1).mean()
    assert apart["close"] < 0.9 * apart["on-policy"]


def test_corrupt_pairs_and_condition_pairs(model):
    corrupt, condition = (digits.make_pairs(kind, model, 0, count=COUNT) for kind in ("corrupt", "condition"))
    noise = corrupt.rejected - corrupt.chosen
    assert noise.std() == pytest.approx(digits.CORRUPTION, rel=0.1)
    assert torch.equal(condition.chosen, condition.rejected)
    assert (condition.chosen_labels != condition.rejected_labels).all()
    for pairs in (corrupt, condition):  # winners are real images under their own class
        real, classes = digits.images()
        rows = [int((real == x).all(1).nonzero()[0]) for x in pairs.chosen]
        assert torch.equal(classes[rows], pairs.chosen_labels)


def test_a_perfect_denoiser_gives_the_image_back():
    """One image: the model that knows it says (x_t - sqrt(a) x) / sqrt(1 - a), and every step lands on it."""
    image = digits.images()[0][:1]

    class Knows(digits.MLPDenoiser):
        def forward(self, x_t, times, condition):
            a = self.alphas[times].to(x_t)[:, None]
            return (x_t - a.sqrt() * image) / (1 - a).sqrt()

    model, draw = Knows(size=digits.POINTS, classes=digits.CLASSES), torch.Generator().manual_seed(1)
    again = digits.samples(model, torch.zeros(1, dtype=torch.long), draw)
    assert torch.allclose(again, image, atol=1e-4)


def test_the_check_of_classes_knows_real_images_and_no_noise():
    real, classes = digits.images()
    assert digits.accuracy(real, classes) > 0.98
    noise = torch.randn(500, digits.POINTS, generator=torch.Generator().manual_seed(0))
    assert digits.accuracy(noise, classes[:500]) < 0.25


def test_new_samples_start_from_the_same_noise_for_every_model(model):
    values, labels = digits.drawn(model, 5, each=2)
    again, _ = digits.drawn(model, 5, each=2)
    assert torch.equal(values, again)
    assert labels.bincount().tolist() == [2] * digits.CLASSES


@pytest.mark.parametrize("kind", digits.KINDS)
def test_pairs_are_read_as_any_data_of_samples(kind, model, folder):
    made = digits.make_pairs(kind, load_denoiser(str(folder / "model")), 3, count=COUNT)
    audit = read_samples(digits.paths(folder, kind)["data"], model)
    assert len(audit.tokenized) == COUNT
    for k, pair in enumerate(audit.tokenized):
        for side, values, labels in (
            (pair.chosen, made.chosen, made.chosen_labels),
            (pair.rejected, made.rejected, made.rejected_labels),
        ):
            assert side.media.values.shape == (1, 8, 8)
            assert side.media.values.flatten().tolist() == values[k].tolist()
            assert int(side.media.condition["class_labels"]) == int(labels[k])


def test_an_unknown_kind_is_named(model):
    with pytest.raises(UserError, match="no pairs of kind 'far'; choose one of on-policy, close"):
        digits.make_pairs("far", model, 0)
