import numpy as np
import pytest

from analysis import papers as judged
from reports import papers
from trainers.papers import auxdpo


def test_all_claims_hold_and_the_page_says_so(tmp_path):
    papers.rerun(["auxdpo"], tmp_path, seeds=2, jobs=1, changes={"beta values": [1.0, 5.0]})
    paper = judged.load(tmp_path / "auxdpo")
    assert {c.verdict for c in judged.judge(paper)} == {"holds"}
    page = paper.path.with_name("auxdpo.html").read_text(encoding="utf-8")
    assert "9 claims: 9 hold, 0 do not hold, 0 cannot be said" in page
    assert "1.167" in page


@pytest.mark.parametrize(("count", "reward"), [(1, 1.167), (5, 0.961), (20, 0.863), (100, 0.846)])
def test_rewards_of_the_population_optimum_at_beta_one(count, reward):
    assert auxdpo.policy(auxdpo.dpo(count, 1.0)) @ auxdpo.TRUE == pytest.approx(reward, abs=6e-4)


def test_auxdpo_by_hand():
    # t = -1/2: weights e^-0.5 = 0.6065, e^0.5 = 1.6487, 1; Z = 3.2552; reward (0.6065 + 2 * 1.6487) / 3.2552
    weights = np.exp([-0.5, 0.5, 0.0])
    # with delta = (a, a, 0) the rewards t + a = 1, -t + a = 2, 0 fit exactly: t = -1/2, whatever the counts
    assert [auxdpo.auxdpo(n, 1.0) for n in (1, 7, 100)] == pytest.approx([-0.5] * 3, abs=1e-6)
    assert auxdpo.policy(-0.5) @ auxdpo.TRUE == pytest.approx((weights[0] + 2 * weights[1]) / weights.sum())


def test_dpo_optimum_has_no_gradient():
    def loss(t, n, beta):
        # pairs (1, 2), (2, 3), (3, 1): margins 2t, -t, -t of beta-scaled rewards; true margins -1, 2, -1
        margins, true = beta * np.array([2 * t, -t, -t]), np.array([-1.0, 2.0, -1.0])
        chance = 1 / (1 + np.exp(-true))
        return np.array([1, 1, n]) @ (chance * np.logaddexp(0, -margins) + (1 - chance) * np.logaddexp(0, margins))

    for n, beta in ((1, 1.0), (20, 2.0)):
        t = auxdpo.dpo(n, beta)
        assert (loss(t + 1e-5, n, beta) - loss(t - 1e-5, n, beta)) / 2e-5 == pytest.approx(0, abs=1e-6)
