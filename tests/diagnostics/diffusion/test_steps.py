"""Log-probs of sampling steps: those of the Gaussian that DDIM draws from."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from diagnostics.diffusion.denoiser import MLPDenoiser
from diagnostics.diffusion.sample import Sample, sample_pair
from diagnostics.diffusion.steps import StepLikelihood, ddim_step
from diagnostics.errors import DataError
from diagnostics.likelihood import pair_stats
from trainers.objectives.d3po import d3po

SIZE, TIMES = 4, np.array([900, 500, 100])


def mlp(seed=0, **changes):
    torch.manual_seed(seed)
    return MLPDenoiser(**{"size": SIZE, "width": 8, "blocks": 1} | changes).double()


def pairs(n=3, times=TIMES):
    draw = np.random.default_rng(0)

    def chain():
        return Sample(draw.normal(size=(len(times), SIZE)).astype(np.float32), {"times": times})

    return [sample_pair(f"p{k}", k, {"chosen": chain(), "rejected": chain()}) for k in range(n)]


@pytest.mark.parametrize("target", ["eps", "v", "x0"])
def test_a_step_is_drawn_from_the_gaussian_of_ddim(target):
    likelihood, model, (pair,) = StepLikelihood(), mlp(target=target), pairs(1)
    batch = likelihood.collate([pair])
    found = pair_stats(likelihood, batch, likelihood.run(model, batch))
    chain = torch.from_numpy(pair.chosen.media.values).double()
    for k, (t, u) in enumerate(pairwise(TIMES)):
        a, b = model.alphas[t], model.alphas[u]
        output = model(chain[k][None], torch.tensor([t]), {})[0]
        x0, eps = {
            "eps": ((chain[k] - (1 - a).sqrt() * output) / a.sqrt(), output),
            "v": (a.sqrt() * chain[k] - (1 - a).sqrt() * output, (1 - a).sqrt() * chain[k] + a.sqrt() * output),
            "x0": (output, (chain[k] - a.sqrt() * output) / (1 - a).sqrt()),
        }[target]
        s = ((1 - b) / (1 - a)).sqrt() * (1 - a / b).sqrt()
        mu = b.sqrt() * x0 + (1 - b - s**2).sqrt() * eps
        wanted = torch.distributions.Normal(mu, s).log_prob(chain[k + 1]).mean()
        assert found.chosen.per_token_logps[0, k].item() == pytest.approx(wanted.item(), rel=1e-9)


def test_it_is_what_diffusers_samples_by():
    scheduler = pytest.importorskip("diffusers").DDIMScheduler(clip_sample=False, steps_offset=1)
    model = mlp(first_beta=1e-4)
    scheduler.set_timesteps(20)
    t = int(scheduler.timesteps[4])
    x_t, output = torch.randn(2, SIZE, dtype=torch.float64), torch.randn(2, SIZE, dtype=torch.float64)
    mu, spread = ddim_step(model, output, x_t, torch.tensor([t] * 2), torch.tensor([t - 50] * 2))
    nothing = torch.zeros_like(x_t)
    step = scheduler.step(output, t, x_t, eta=1.0, variance_noise=nothing).prev_sample
    assert torch.allclose(step, mu, atol=1e-5)
    assert scheduler._get_variance(t, t - 50).sqrt().item() == pytest.approx(spread[0].item(), rel=1e-4)


def test_the_reference_against_itself_has_loss_log_2_and_a_kl_of_0():
    likelihood, model = StepLikelihood(), mlp()
    batch = likelihood.drawn(likelihood.collate(pairs()), 3, model, None)
    found = pair_stats(likelihood, batch, likelihood.run(model, batch), likelihood.run(model, batch))
    assert d3po(found).losses.tolist() == pytest.approx([np.log(2)] * 3, rel=1e-12)
    assert found.chosen.per_token_kl.abs().sum() == 0
    other = pair_stats(likelihood, batch, likelihood.run(mlp(1), batch), likelihood.run(model, batch))
    assert (other.chosen.per_token_kl > 0).all()
    assert d3po(other).losses.tolist() != d3po(found).losses.tolist()


def test_what_has_no_likelihood_is_refused():
    likelihood = StepLikelihood()
    with pytest.raises(DataError, match="a flow have no noise"):
        likelihood.run(mlp(target="flow"), likelihood.collate(pairs()))
    with pytest.raises(DataError, match="times do not fall"):
        likelihood.run(mlp(), likelihood.collate(pairs(times=TIMES[::-1].copy())))
    plain = [sample_pair("p", 0, dict.fromkeys(("chosen", "rejected"), Sample(np.zeros((2, SIZE), np.float32))))]
    with pytest.raises(DataError, match="a chain has no times"):
        likelihood.collate(plain)
