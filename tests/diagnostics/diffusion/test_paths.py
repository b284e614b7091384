"""x_t by inversion and along the model's own way: exact where the model is, and the same for both models."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from diagnostics.diffusion import noise, paths
from diagnostics.diffusion.denoiser import Denoiser
from diagnostics.diffusion.likelihood import DenoisingLikelihood
from diagnostics.diffusion.sample import Sample, sample_pair
from diagnostics.engine import evaluating
from diagnostics.likelihood import pair_stats

MEAN = 0.3


class Knowing(Denoiser):
    """Right about data that is always MEAN: every x_t then says its noise."""

    def __init__(self, target: str, shift: float = 0.0) -> None:
        super().__init__()
        self.target, self.alphas = target, noise.linear_alphas(100)
        self.shift = nn.Parameter(torch.tensor(MEAN + shift, dtype=torch.float64))

    def forward(self, x_t, times, condition):
        signal, spread = (v[:, None] for v in noise.shares(self.target, self.alphas, times))
        x0 = self.shift.expand_as(x_t)
        eps = (x_t - signal * x0) / spread
        return noise.wanted(self.target, x0, eps, (signal, spread))


@pytest.mark.parametrize("target", noise.TARGETS)
def test_the_own_way_of_a_model_that_knows_the_data_ends_at_them(target):
    model, eps = Knowing(target), torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([5, 30, 60, 99]) * (10 if target == "flow" else 1)
    x_t, sample, implied, grid = paths.own_way(model, model, eps, {}, times)
    assert torch.allclose(sample, torch.full_like(sample, MEAN))
    signal, spread = (v[:, None] for v in noise.shares(target, model.alphas, grid))
    assert torch.allclose(signal * sample + spread * implied, x_t)
    assert (grid <= times).all() or grid.min() == grid[0]
    again = paths.own_way(model, model, eps, {}, times)
    assert torch.equal(x_t, again[0])


@pytest.mark.parametrize("target", noise.TARGETS)
def test_inversion_is_where_ddim_comes_back_from(target):
    """Each step of the inversion, undone with the noise that it was made of, gives the point before."""
    model = Knowing(target)
    samples = torch.full((3, 2), 0.5, dtype=torch.float64)
    times = torch.tensor([25, 55, 95]) * (10 if target == "flow" else 1)
    x_t, implied, grid = paths.inverted(model, model, samples, {}, times)
    signal, spread = (v[:, None] for v in noise.shares(target, model.alphas, grid))
    assert torch.allclose(signal * samples + spread * implied, x_t)
    assert (grid <= times).all()
    assert len(set(grid.tolist())) == 3
    # by hand: the noise of each step is what the model says at the point before, at that point's time (first: its own);
    # the sample itself holds no noise
    x, all_times = samples[:1], paths._grid(model, samples.device)
    for k, time in enumerate(all_times[: paths._place(all_times, times[2:])[0] + 1]):
        at = all_times[max(k - 1, 0)]
        a, s = noise.shares(target, model.alphas, at[None])
        eps = (x - a * MEAN) / s
        a, s = noise.shares(target, model.alphas, time[None])
        x = a * (MEAN if k else x) + s * eps
    assert torch.allclose(x_t[2], x[0])


def test_the_first_step_of_an_inversion_adds_noise():
    """A model that always says the noise 1: x_t at the grid's first time is the sample under that noise."""
    model = Knowing("eps")
    samples, ones = torch.full((1, 2), 0.5, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
    x_t, implied, grid = paths.inverted(model, lambda x, t, told: torch.ones_like(x), samples, {}, torch.tensor([0]))
    signal, spread = noise.shares("eps", model.alphas, grid)
    assert torch.allclose(x_t, signal * samples + spread)
    assert torch.allclose(implied, ones)


def batch_of(likelihood, n=3):
    draw = np.random.default_rng(0)

    def pair(k):
        return sample_pair(
            f"p{k}", k, {side: Sample(draw.normal(size=2).astype("f4")) for side in ("chosen", "rejected")}
        )

    return likelihood.collate([pair(k) for k in range(n)])


@pytest.mark.parametrize("path", paths.PATHS)
def test_policy_and_reference_see_one_path(path):
    likelihood, model, other = DenoisingLikelihood(path=path, train_draws=2), Knowing("eps", 0.1), Knowing("eps")

    class Live(SimpleNamespace):
        def running(self):
            from contextlib import contextmanager

            @contextmanager
            def made():
                with evaluating(other):
                    yield other

            return made()

    batch = likelihood.drawn(batch_of(likelihood), 0, model, Live())
    found = pair_stats(likelihood, batch, likelihood.run(model, batch), likelihood.run(other, batch))
    for side, ref in ((found.chosen, found.ref_chosen), (found.rejected, found.ref_rejected)):
        assert torch.equal(side.target, ref.target)
        assert torch.equal(side.times, ref.times)
    plain = DenoisingLikelihood(train_draws=2).drawn(batch_of(likelihood), 0, model, None).noised
    changed = [not torch.equal(batch.noised.x_t[rows], plain.x_t[rows]) for rows in batch.rows.values()]
    assert changed == {"noise": [False, False], "own": [False, True]}.get(path, [True, True])
    by_reference = (
        DenoisingLikelihood(path="inversion", train_draws=2).drawn(batch_of(likelihood), 0, other, None).noised
    )
    assert torch.equal(batch.noised.x_t, by_reference.x_t) == (path == "reference_inversion")
    probe = pair_stats(likelihood, fixed := batch_of(likelihood), likelihood.run(model, fixed))
    assert torch.equal(probe.chosen.noise, likelihood.fixed(fixed, model).noise[:3].flatten(2))
