"""TARS: worked values of both parts, its gradients, DPO, spectra by hand, what is missing."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers.objectives.dpo import dpo
from trainers.objectives.tars import tars


@pytest.fixture
def noisy(worked, add_rows) -> PairStats:
    """The worked pair as perturbed rows, h = 1 and -2, with h(m_noise, y_w) = -3 + 2.5 = -0.5."""
    return add_rows(worked, noisy_chosen=([[-1.0, -2.0]], [[-1.5, -1.0]]))


def embed(pair: PairStats, own, chosen, rejected) -> PairStats:
    """The pair with embeddings (S, D) of its perturbed chosen row and of both clean rows under the reference."""

    def side(values):
        return replace(pair.chosen, embeddings=torch.tensor([values], dtype=torch.float64))

    clean = {"clean_chosen": side(chosen), "clean_rejected": side(rejected)}
    ref = pair.ref_extra | clean
    return replace(pair, chosen=side(own), extra=pair.extra | clean, ref_extra=ref)


def test_worked_value_and_gradients_without_spectra(noisy):
    """log(1 + e^-0.3) + log(1 + e^-0.15) = 0.5543552 + 0.6209570; slopes -0.1 / (1 + e^0.3) and -0.1 / (1 + e^0.15)."""
    output = tars(noisy, spectral=0)
    assert output.losses.tolist() == pytest.approx([1.1753122922580592], abs=1e-14)
    assert output.chosen_rewards.tolist() == pytest.approx([0.1], abs=1e-15)
    assert output.rejected_rewards.tolist() == pytest.approx([-0.2], abs=1e-15)
    rows = [noisy.chosen, noisy.rejected, noisy.extra["noisy_chosen"]]
    found = torch.autograd.grad(output.losses.sum(), [row.per_token_logps for row in rows])
    answers, pictures = 0.1 / (1 + math.exp(0.3)), 0.1 / (1 + math.exp(0.15))
    for gradient, value in zip(found, [-answers - pictures, answers, pictures], strict=True):
        assert gradient.flatten().tolist() == pytest.approx([value] * gradient.numel(), abs=1e-15)


def test_worked_value_of_the_spectral_term(noisy):
    """Two tokens of one number (a, b) have the spectrum (|a + b|, |a - b|).

    Perturbed (2, 1): (3, 1); clean chosen (1, 1): (2, 0), squared differences 1 and 1, mean 1; clean rejected (3, 1):
    (4, 2), mean 1 too: S = 0.5. With (3, -1), (2, 4), they are 1 and 9, mean 5: S = max(0, 1 - 5 + 0.5) = 0. With
    margin 6: 2. Phases do not count: (1, 2) is (2, 1).
    """
    plain = tars(noisy, spectral=0).losses
    for rejected, margin, expected in (([3, 1], 0.5, 0.5), ([3, -1], 0.5, 0.0), ([3, -1], 6.0, 2.0)):
        for own in ([2, 1], [1, 2]):
            rows = ([[float(x)] for x in row] for row in (own, [1, 1], rejected))
            found = tars(embed(noisy, *rows), margin=margin).losses
            assert (found - plain).tolist() == pytest.approx([0.1 * expected], abs=1e-14)


def test_shorter_rows_are_filled_with_zeros_and_padding_is_none_of_them(noisy):
    """(2, 1, 0) and (1, 0, 0) beside three tokens; a NaN row is no token, on either side."""
    long = [[1.0], [2.0], [4.0]]
    filled = tars(embed(noisy, [[2.0], [1.0], [0.0]], [[1.0], [0.0], [0.0]], long), margin=20.0).losses
    nan = [[math.nan]]
    short = tars(embed(noisy, [[2.0], [1.0], *nan], [*nan, [1.0]], [*nan, *long]), margin=20.0).losses
    assert short.tolist() == pytest.approx(filled.tolist(), abs=1e-14)
    other = tars(embed(noisy, [[2.0], [1.0]], [[1.0], [3.0]], long), margin=20.0).losses
    assert abs(other - filled).item() > 0.01


def test_gradient_check_of_the_spectral_term_in_the_policys_embeddings(noisy):
    generator = torch.Generator().manual_seed(0)
    own, chosen, rejected = (torch.rand(4, 3, generator=generator, dtype=torch.float64) for _ in range(3))
    pair = embed(noisy, own.tolist(), chosen.tolist(), rejected.tolist())

    def losses(embeddings):
        return tars(replace(pair, chosen=replace(pair.chosen, embeddings=embeddings)), margin=5.0).losses

    assert torch.autograd.gradcheck(losses, [own[None].requires_grad_()])


def test_a_noisy_picture_that_changes_nothing_adds_log_2_to_dpo(random_pair, same_rows):
    found, plain = tars(same_rows(random_pair, ["noisy_chosen"]), beta=0.4, spectral=0), dpo(random_pair, beta=0.4)
    assert (found.losses - plain.losses).tolist() == pytest.approx([math.log(2)] * 4, abs=1e-14)
    assert found.chosen_rewards.tolist() == plain.chosen_rewards.tolist()


def test_wrong_hyperparameters_and_what_is_missing_are_refused_by_name(noisy, worked):
    for wrong in ({"beta": 0}, {"spectral": -1}, {"margin": -1}):
        with pytest.raises(UserError, match=f"{next(iter(wrong))} is "):
            tars(noisy, **wrong)
    with pytest.raises(UserError, match="the row 'noisy_chosen', which the data does not have"):
        tars(worked, spectral=0)
    with pytest.raises(UserError, match=r"embeddings, .* with a live reference: set spectral to 0"):
        tars(noisy)
    whole = embed(noisy, [[1.0]], [[1.0]], [[2.0]])
    bare = {n: replace(side, embeddings=None) for n, side in whole.ref_extra.items()}
    with pytest.raises(UserError, match="with a live reference"):
        tars(replace(whole, ref_extra=bare))
    with pytest.raises(UserError, match="the row 'clean_rejected'"):
        tars(replace(whole, extra={n: s for n, s in whole.extra.items() if n != "clean_rejected"}))
    with pytest.raises(UserError, match="'reference'"):
        tars(replace(whole, ref_extra=noisy.ref_extra))
