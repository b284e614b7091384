"""BPO: worked values, where divergences meet, the limit k = 0, far away, gradient."""

from itertools import product
from typing import get_args

import pytest
import torch

from diagnostics.errors import UserError
from trainers import objectives
from trainers.objectives.bpo import Divergence, bpo
from trainers.objectives.dpo import dpo

DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)


def slopes(pair, **options) -> torch.Tensor:
    """Gradient of the summed losses in the chosen log-probs, 0 on padding."""
    return torch.autograd.grad(bpo(pair, **options).losses.sum(), pair.chosen.per_token_logps)[0]


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        ("lr", 0.554355244468527),
        ("kliep", 0.4408182206817179),
        ("lsif", -2.15090597905798),
        ("ba", -2.1109192588689245),
        ("sba", -0.23987718850783235),
    ],
)
def test_worked_values(worked, divergence, expected):
    """R = e^-0.3 = 0.7408182. lr log(1.7408182). kliep R - 0.3. lsif e^-0.6 - 2 e^0.3 = 0.5488116 - 2.6997176.

    k = 1.2: ba e^-0.66 - 2.2 / 1.2 * e^0.36 = 0.5168513 - 1.8333333 * 1.4333294; sba that / (4 * 2.2).
    """
    output = bpo(worked, divergence=divergence)
    assert output.losses.tolist() == pytest.approx([expected], abs=1e-13)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)


def test_lr_is_dpo_in_values_and_gradients(random_pair):
    values, others = bpo(random_pair, beta=0.3, divergence="lr"), dpo(random_pair, beta=0.3)
    torch.testing.assert_close(values.losses, others.losses, rtol=1e-14, atol=0)
    (gradient,) = torch.autograd.grad(others.losses.sum(), random_pair.chosen.per_token_logps)
    torch.testing.assert_close(slopes(random_pair, beta=0.3, divergence="lr"), gradient, rtol=1e-12, atol=0)


def test_ba_at_k_1_is_lsif_and_sba_is_ba_scaled(random_pair):
    lsif = bpo(random_pair, divergence="lsif").losses
    torch.testing.assert_close(bpo(random_pair, divergence="ba", k=1).losses, lsif, rtol=1e-12, atol=0)
    torch.testing.assert_close(bpo(random_pair, k=1, s=3).losses, lsif / 6, rtol=1e-12, atol=0)


def test_at_k_0_it_is_kliep_and_gradients_have_no_jump(random_pair):
    kliep = bpo(random_pair, divergence="kliep").losses
    assert bpo(random_pair, divergence="ba", k=0).losses.tolist() == kliep.tolist()
    torch.testing.assert_close(bpo(random_pair, k=0).losses, kliep / 4, rtol=1e-14, atol=0)
    for divergence in ("ba", "sba"):
        near, at = (slopes(random_pair, divergence=divergence, k=k) for k in (1e-8, 0))
        torch.testing.assert_close(near, at, rtol=1e-6, atol=0)


@pytest.mark.parametrize("k", [-0.5, 0, 0.7, 1.2])
def test_sba_has_the_slope_of_dpo_where_policy_is_the_reference(make_pair, k):
    """-beta / 2; dL/dR = (R^k + R^(-k - 1)) / 4 = 1/2 at R = 1."""
    pair = make_pair([[-1.0]], [[-2.0]], [[-1.0]], [[-2.0]])
    assert slopes(pair, beta=0.3, k=k).tolist()[0] == pytest.approx([-0.15], abs=1e-15)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("k", [-0.5, 1.2])
def test_gradient_check(random_pair, check_gradient, divergence, k):
    assert check_gradient(bpo, random_pair, beta=0.3, divergence=divergence, k=k)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("far", [-200.0, -1e4])
def test_finite_far_away(make_pair, divergence, far):
    rows = list(product([-1e-3, far], repeat=4))
    pair = make_pair(*([[row[side]] for row in rows] for side in range(4)))
    losses = bpo(pair, beta=1.0, divergence=divergence).losses
    gradients = torch.autograd.grad(losses.sum(), [pair.chosen.per_token_logps, pair.rejected.per_token_logps])
    assert losses.isfinite().all()
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_wrong_hyperparameters_are_refused_by_name(worked):
    for wrong in ({"beta": 0}, {"s": 0}, {"k": -1}, {"k": -2}, {"divergence": "kl"}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is "):
            objectives.load("bpo")(worked, **wrong)
