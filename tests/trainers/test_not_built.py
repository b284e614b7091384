"""What is not built, and why: the released loss of Distillation-DPO has no gradient to its student."""

import pytest
import torch
from torch import Tensor, nn

from diagnostics.errors import UserError
from trainers import objectives


@pytest.fixture
def parts():
    """A student, the teacher's score and the two critics', a noise for the student and one for the diffusion."""
    torch.manual_seed(0)
    nets = [nn.Linear(3, 3).double() for _ in range(4)]
    return nets, torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)


def released(student: nn.Module, scores: list[nn.Module], z: Tensor, noise: Tensor, *, meant: bool) -> Tensor:
    """mean of (teacher - better's critic)(b_t) * (b_t - b), less that of the worse sample; scores without gradient.
    b and w are the student's completions from z and 1.1 z; meant: times b itself."""
    total = torch.zeros((), dtype=torch.float64)
    for sign, critic, start in ((1, scores[1], z), (-1, scores[2], 1.1 * z)):
        sample = student(start)
        noised = sample + 0.6 * noise
        with torch.no_grad():
            difference = scores[0](noised) - critic(noised)
        total = total + sign * (difference * (sample if meant else noised - sample)).mean()
    return total


def test_the_released_loss_of_distillation_dpo_has_exactly_no_gradient_to_the_student(parts):
    """(b_t - b) is the noise: what reaches b by b_t goes back by -b."""
    (student, *scores), z, noise = parts
    loss = released(student, scores, z, noise, meant=False)
    found = torch.autograd.grad(loss, list(student.parameters()))
    assert loss.item() != 0
    assert all((gradient == 0).all() for gradient in found)


def test_the_form_that_must_have_been_meant_has_one(parts):
    (student, *scores), z, noise = parts
    found = torch.autograd.grad(released(student, scores, z, noise, meant=True), list(student.parameters()))
    assert all(gradient.abs().max() > 1e-3 for gradient in found)


def test_it_is_no_objective_and_its_name_says_why():
    assert not set(objectives.NOT_BUILT) & set(objectives.names())
    with pytest.raises(UserError, match=r"Distillation-DPO .* student's gradient is exactly 0"):
        objectives.load("distillation_dpo")
