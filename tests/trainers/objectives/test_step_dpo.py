"""Step-DPO: a worked value, DPO, what it needs from the data."""

import pytest

from diagnostics.errors import UserError
from trainers import objectives
from trainers.objectives.dpo import dpo
from trainers.objectives.step_dpo import step_dpo


def test_worked_value(worked):
    """beta 0.5 times margin 3: log(1 + e^-1.5) = 0.2014133."""
    output = step_dpo(worked)
    assert output.losses.tolist() == pytest.approx([0.2014132779827524], abs=1e-14)
    assert output.chosen_rewards.tolist() == [0.5]
    assert output.rejected_rewards.tolist() == [-1.0]


def test_is_dpo_with_its_own_default(random_pair):
    for value, other in zip(step_dpo(random_pair), dpo(random_pair, beta=0.5), strict=True):
        assert value.tolist() == other.tolist()


def test_the_data_give_a_prefix_and_end_without_eos():
    assert set(objectives.needs("step_dpo")) == {"reference", "no eos", "prefix"}


def test_a_beta_of_zero_is_refused_by_name(worked):
    with pytest.raises(UserError, match="beta is 0"):
        step_dpo(worked, beta=0)
