"""LightGen: Diffusion-DPO of each pair."""

from trainers.objectives.diffusion_dpo import diffusion_dpo
from trainers.objectives.lightgen import lightgen


def test_is_diffusion_dpo(many_denoised):
    assert lightgen(many_denoised).losses.tolist() == diffusion_dpo(many_denoised).losses.tolist()
    for value, other in zip(lightgen(many_denoised, beta=9.0), diffusion_dpo(many_denoised, beta=9.0), strict=True):
        assert value.tolist() == other.tolist()


def test_is_not_the_sigmoid_of_a_mean(many_denoised):
    """What the authors' head would give: the loss of the mean margin, smaller by convexity."""
    output = lightgen(many_denoised, beta=200.0)
    margin = (output.chosen_rewards - output.rejected_rewards).mean()
    assert output.losses.mean().item() > margin.neg().exp().log1p().item() + 1e-3
