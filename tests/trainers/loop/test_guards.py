"""Guards: SDPO's scale and what it promises, the SFT term, the shift; what they are refused for."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from diagnostics.diffusion.stats import DenoisingStats
from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers import objectives
from trainers.check import check
from trainers.config import GUARDS, make_config
from trainers.loop.guards import guarded, rejected_scale
from trainers.objectives.diffusion_dpo import diffusion_dpo
from trainers.objectives.dpo_shift import dpo_shift as shifted_dpo

REFUSED = ("dpo", "awm", "densedpo", "patchdpo", "inversion_dpo", "rankdpo", "diffusion_kto", "tkto", "d3po", "gradspo")
TAKEN = sorted({n for n in objectives.names() if objectives.likelihood(n) == "denoising"} - set(REFUSED))


def side(residual: Tensor) -> DenoisingStats:
    logps = -residual.square().mean(-1) / residual.shape[1]
    return DenoisingStats(logps, torch.ones(residual.shape[:2], dtype=torch.long), residual=residual)


def pair_of(chosen: Tensor, rejected: Tensor) -> PairStats:
    """The reference's residuals are 0.9 and 1.05 times the policy's; scores and similarities for who reads them."""
    ref = side(chosen.detach() * 0.9), side(rejected.detach() * 1.05)
    values = {"chosen_score": 0.8, "rejected_score": 0.3, "similarity": 0.6}
    columns = {name: torch.full((len(chosen),), value, dtype=torch.float64) for name, value in values.items()}
    return PairStats(side(chosen), side(rejected), *ref, columns=columns)


@pytest.fixture
def residuals() -> list[Tensor]:
    """(B, K, P) of both sides; the rejected one leans towards the chosen one and is longer."""
    draw = torch.Generator().manual_seed(0)
    chosen, own = (0.1 * torch.randn(4, 2, 6, generator=draw, dtype=torch.float64) for _ in range(2))
    return [chosen.requires_grad_(), (1.5 * chosen.detach() + own).requires_grad_()]


def gradients(objective, residuals: list[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(objective(pair_of(*residuals)).losses.mean(), residuals, materialize_grads=True))


def test_the_scale_by_hand():
    """g_w = (1, 0), g_l = (2, 1): |g_w|^2 = 1, inner product 2: (1 - mu) / 2. Half as long, (0.25, 0): at most 1."""
    g = torch.tensor([[[1.0, 0.0]]], dtype=torch.float64)
    assert rejected_scale(pair_of(g, torch.tensor([[[2.0, 1.0]]]).double()), 0.2).item() == pytest.approx(0.4)
    assert rejected_scale(pair_of(g, torch.tensor([[[0.25, 0.0]]]).double()), 0.2).item() == 1
    assert rejected_scale(pair_of(g, torch.tensor([[[-2.0, 1.0]]]).double()), 0.2).item() == 1
    assert rejected_scale(pair_of(g, torch.zeros(1, 1, 2).double()), 0.2).item() == 1


def test_the_scale_is_of_the_batch():
    """Two pairs (1, 0) against (2, 1) and (0, 3) against (1, 1): (1 + 9) / (2 + 3), at mu 0.75 a half."""
    chosen, rejected = ([[[1.0, 0.0]], [[0.0, 3.0]]], [[[2.0, 1.0]], [[1.0, 1.0]]])
    pair = pair_of(*(torch.tensor(v, dtype=torch.float64) for v in (chosen, rejected)))
    assert rejected_scale(pair, 0.75).item() == pytest.approx(0.5)


def test_sdpo_changes_gradients_of_the_rejected_side_alone(residuals):
    plain, held = (guarded("diffusion_dpo", {"beta": 90.0}, g, s) for g, s in (("none", None), ("sdpo", 0.6)))
    for value, other in zip(held(pair_of(*residuals)), plain(pair_of(*residuals)), strict=True):
        assert value.tolist() == other.tolist()
    scale = rejected_scale(pair_of(*residuals), 0.6).item()
    assert 0 < scale < 1
    (w, x), (w2, x2) = gradients(plain, residuals), gradients(held, residuals)
    torch.testing.assert_close(w2, w, rtol=1e-14, atol=0)
    torch.testing.assert_close(x2, scale * x, rtol=1e-12, atol=1e-16)


def test_mu_1_stops_the_rejected_gradient_where_both_point_one_way_and_nothing_elsewhere(residuals):
    held = guarded("diffusion_dpo", {}, "sdpo", 1.0)
    assert not gradients(held, residuals)[1].any()
    against = [residuals[0], (-residuals[1]).detach().requires_grad_()]
    assert gradients(held, against)[1].tolist() == gradients(diffusion_dpo, against)[1].tolist()


@pytest.mark.parametrize("mu", [0.0, 0.5, 0.9])
def test_where_both_outputs_move_as_one_the_chosen_error_does_not_rise_to_first_order(residuals, mu):
    """The promise itself, with equal weights (beta near 0, so that each pair's slope is beta / 4): along minus the
    gradient the chosen error changes by -(beta / 4) * mu * |its gradient|^2; plain Diffusion-DPO raises it."""
    step = torch.zeros(4, 2, 6, dtype=torch.float64, requires_grad=True)
    moved = [residual.detach() + step for residual in residuals]
    (own,) = torch.autograd.grad(-side(moved[0]).logps.mean(), step, retain_graph=True)

    def change(guard: str, strength: float | None) -> float:
        losses = guarded("diffusion_dpo", {"beta": 1e-6}, guard, strength)(pair_of(*moved)).losses
        (gradient,) = torch.autograd.grad(losses.mean(), step, retain_graph=True)
        return -(gradient * own).sum().item()

    assert change("none", None) > 0
    assert change("sdpo", mu) == pytest.approx(-1e-6 / 4 * mu * own.square().sum().item(), rel=1e-5, abs=1e-18)


def test_sft_adds_the_chosen_error_times_half_beta(residuals):
    pair = pair_of(*residuals)
    plain, more = diffusion_dpo(pair, beta=90.0), guarded("diffusion_dpo", {"beta": 90.0}, "sft", 0.1)(pair)
    expected = plain.losses + 0.1 * 45 * pair.chosen.errors.mean(-1)
    torch.testing.assert_close(more.losses, expected, rtol=1e-13, atol=0)
    assert more.chosen_rewards.tolist() == plain.chosen_rewards.tolist()
    dro = guarded("diffusion_dro", {"margin": 9.0}, "sft", 0.5)(pair).losses  # without a beta: the error itself
    expected = guarded("diffusion_dro", {"margin": 9.0}, "none")(pair).losses + 0.5 * pair.chosen.errors.mean(-1)
    torch.testing.assert_close(dro, expected, rtol=1e-13, atol=0)


def test_dpo_shift_is_that_of_language_models_on_the_errors(residuals):
    pair = pair_of(*residuals)
    found = guarded("diffusion_dpo", {"beta": 60.0}, "dpo_shift", 0.7)(pair)
    for value, expected in zip(found, shifted_dpo(pair, beta=30.0, shift=0.7), strict=True):
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-14)
    same = guarded("diffusion_dpo", {"beta": 60.0}, "dpo_shift", 1.0)(pair)
    torch.testing.assert_close(same.losses, diffusion_dpo(pair, beta=60.0).losses, rtol=1e-12, atol=0)


@pytest.mark.parametrize("guard", sorted(GUARDS))
@pytest.mark.parametrize("objective", TAKEN)
def test_every_contrast_of_two_errors_takes_every_guard(objective, guard, residuals):
    """With its default strength; in the log-prob's own direction the rejected side is pushed no harder."""
    plain, held = (guarded(objective, {}, g) for g in ("none", guard))
    pushes = []
    for loss in (plain, held):
        pair = pair_of(*residuals)
        leaves = [pair.chosen.per_token_logps, pair.rejected.per_token_logps]
        pushes.append(torch.autograd.grad(loss(pair).losses.sum(), leaves, materialize_grads=True))
    (chosen, rejected), (chosen2, rejected2) = pushes
    assert chosen2.isfinite().all()
    assert rejected2.isfinite().all()
    differs = not (torch.equal(chosen, chosen2) and torch.equal(rejected, rejected2))
    assert differs == bool(guard == "sft" or rejected.any())


@pytest.mark.parametrize("objective", REFUSED)
def test_other_objectives_are_refused(objective):
    with pytest.raises(UserError, match=f"guard sdpo goes with objectives .* '{objective}' is none"):
        guarded(objective, {}, "sdpo", 0.5)


@pytest.mark.parametrize(
    ("guard", "strength", "said"),
    [
        ("sdpo", 1.5, "guard_strength is 1.5"),
        ("sft", -1, "guard_strength is -1"),
        ("dpo_shift", 0, "guard_strength is 0"),
        ("none", 0.5, "guard_strength is set, but guard is none"),
    ],
)
def test_a_strength_that_cannot_be_is_refused_by_name(guard, strength, said):
    with pytest.raises(UserError, match=said):
        guarded("diffusion_dpo", {}, guard, strength)


def test_a_config_says_the_guard_and_a_wrong_one_is_refused_before_anything_is_read():
    values = {"model": "m", "data": "d", "output_dir": "o", "objective": "diffusion_dpo", "guard": "sft"}
    config = make_config(values)
    assert (config.flat()["guard"], config.flat()["guard_strength"]) == ("sft", None)
    with pytest.raises(UserError, match="guard is 'sfd'"):
        make_config(values | {"guard": "sfd"})
    with pytest.raises(UserError, match="guard sft goes with objectives"):
        check(make_config(values | {"objective": "dpo"}))


def test_a_single_rounding_of_float32_errors_does_not_move_the_shifted_margin():
    """D of 1e-7 beside errors near 1 in float32: the shift is taken in float64."""
    chosen = torch.ones(1, 1, 4)
    pair = pair_of(chosen, chosen)
    ref = replace(pair.ref_rejected, per_token_logps=torch.tensor([[-1.0]]))
    own = replace(pair.rejected, per_token_logps=torch.tensor([[-1.0 + 2**-20]]))
    pair = replace(pair, rejected=own, ref_rejected=ref, ref_chosen=pair.chosen)
    loss = guarded("diffusion_dpo", {"beta": 2.0**21}, "dpo_shift", 0.9)(pair).losses.item()
    assert loss == pytest.approx(math.log1p(math.exp(0.9)), rel=1e-9)
