"""The objective card: worked incentives, limits known in closed form, and a card for whatever the folder holds."""

import math
from functools import partial

import pytest
import torch

from diagnostics.errors import UserError
from trainers import objectives
from trainers.card import FAR, MARGINS, Push, argmin, card, common_fall, far_ratio, far_rejected, push, standard_pair


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0


def incentives(made) -> dict[float, tuple[float, float]]:
    return {p.at: (p.chosen, p.rejected) for p in made.margins}


# --- worked values: one standard pair, 10 tokens a side, -10 nats a side under the reference ---


def test_the_standard_pair_is_what_the_card_says():
    pair = standard_pair(5.0, -5.0)
    assert pair.chosen.logps.tolist() == pytest.approx([-5.0] * 4)
    assert pair.rejected.logps.tolist() == pytest.approx([-15.0] * 4)
    assert pair.ref_chosen is not None
    assert pair.ref_chosen.avg_logps.tolist() == pytest.approx([-1.0] * 4)
    assert (pair.chosen.per_token_logps < 0).all()


@pytest.mark.parametrize("beta", [0.1, 0.7])
def test_dpo_pushes_both_by_beta_sigmoid_of_minus_the_margin(beta):
    """L = -log sigmoid(beta m): -dL/dz_w = dL/dz_l = beta sigmoid(-beta m); at m = 0, beta 0.1: 0.05."""
    for m, (chosen, rejected) in incentives(card("dpo", beta=beta)).items():
        assert chosen == pytest.approx(beta * sigmoid(-beta * m), rel=1e-12)
        assert rejected == pytest.approx(chosen, rel=1e-12)


def test_ipo_pulls_back_beyond_its_target():
    """(m - 5)^2 with tau 0.1: both 2 (5 - m), 10 at 0 and -10 at 10. Per token (m/10 - 5)^2: both (5 - m/10) / 5."""
    made = incentives(card("ipo_sum", tau=0.1))
    assert [made[m] for m in MARGINS] == [pytest.approx((x, x)) for x in (30, 14, 10, 6, -10)]
    made = incentives(card("ipo_mean", tau=0.1))
    assert [made[m] for m in MARGINS] == [pytest.approx((x, x)) for x in (1.2, 1.04, 1.0, 0.96, 0.8)]


@pytest.mark.parametrize(("lengths", "ratio"), [((10, 10), 1.0), ((5, 10), 2.0), ((10, 2), 0.2)])
def test_simpo_pushes_the_shorter_side_more(lengths, ratio):
    """d_w = (beta / n_w) s and d_l = (beta / n_l) s with one s = sigmoid(-beta (p_w - p_l) + gamma)."""
    found = push(objectives.load("simpo"), standard_pair(0.0, 0.0, lengths=lengths))
    assert found.ratio == pytest.approx(ratio, rel=1e-12)
    assert found.chosen == pytest.approx(2.0 / lengths[0] * sigmoid(1.0), rel=1e-12)


def test_dpo_nll_pushes_the_chosen_more_and_at_last_alone():
    """NLL per token adds alpha / 10 = 0.1 to d_w: (0.1 + 0.05) / 0.05 = 3; d_l vanishes, so the ratio grows."""
    made = card("dpo_nll")
    assert made.margins[2].ratio == pytest.approx(3.0)
    assert (made.far_ratio.value, made.far_rejected.value) == (math.inf, 0.0)


# --- limits ---


def test_limits_known_in_closed_form():
    """DPO: ratio 1, d_l -> 0. IPO: ratio 1, d_l = 2 (5 - m) falls without bound. SimPO: as DPO."""
    dpo, ipo, simpo = (card(name) for name in ("dpo", "ipo_sum", "simpo"))
    assert (dpo.far_ratio.value, dpo.far_rejected.value) == (pytest.approx(1), 0)
    assert (ipo.far_ratio.value, ipo.far_rejected.value) == (pytest.approx(1), -math.inf)
    assert (simpo.far_ratio.value, simpo.far_rejected.value) == (pytest.approx(1), 0)
    assert ipo.far_rejected.words.startswith("no: ")
    assert "raises the rejected" in ipo.far_rejected.words


def pushes(chosen, rejected) -> list[Push]:
    """Made-up incentives at FAR: functions of the distance d = -v."""
    return [Push(v, 0.0, float(chosen(-v)), float(rejected(-v))) for v in FAR]


@pytest.mark.parametrize(
    ("rejected", "value", "words"),
    [
        (lambda d: 0.3 + 1 / d, 0.3, "yes: settles"),
        (lambda d: 0.0, 0.0, "yes: vanishes"),
        (lambda d: -0.02, -0.02, "yes: settles"),
        (lambda d: 1 / d, 0.0, "yes: vanishes"),
        (lambda d: math.exp(-d), 0.0, "yes: vanishes"),
        (lambda d: d, math.inf, "no: grows"),
        (lambda d: -d, -math.inf, "no: grows"),
        (lambda d: math.log(d), math.nan, "not settled"),
        (lambda d: math.nan, math.nan, "not measured"),
    ],
)
def test_whether_the_rejected_gradient_is_bounded(rejected, value, words):
    fact = far_rejected(pushes(lambda d: 1.0, rejected))
    assert fact.value == pytest.approx(value, abs=1e-3, nan_ok=True)
    assert fact.words.startswith(words)


@pytest.mark.parametrize(
    ("chosen", "rejected", "value", "words"),
    [
        (lambda d: 2.0, lambda d: 1.0, 2.0, "settles"),
        (lambda d: 2 * math.exp(-d / 10), lambda d: math.exp(-d / 10), 2.0, "settles"),  # to where both round to 0
        (lambda d: 1 - sigmoid(d / 10), lambda d: sigmoid(-d / 10), 1.0, "settles"),  # equal but for rounding
        (lambda d: 1.0, lambda d: 1 / d, math.inf, "grows"),
        (lambda d: 1 / d, lambda d: 1.0, 0.0, "vanishes"),
        (lambda d: 0.1, lambda d: 0.0, math.inf, "only the chosen"),
        (lambda d: float(d < 30), lambda d: float(d < 30), math.nan, "none: neither answer is pushed from v = -50 "),
        (lambda d: 0.0, lambda d: 0.0, math.nan, "not measured"),
        (lambda d: d - 100, lambda d: d - 100, 1.0, "settles"),  # passes 0, is not cut off
    ],
)
def test_the_limit_of_the_ratio(chosen, rejected, value, words):
    fact = far_ratio(pushes(chosen, rejected))
    assert fact.value == pytest.approx(value, nan_ok=True)
    assert fact.words.startswith(words)


# --- the absolute chosen likelihood ---


@pytest.mark.parametrize("name", ["dpo", "ipo_sum", "ipo_mean", "simpo"])
def test_what_sees_only_the_margin_does_not_feel_a_common_fall(name):
    assert card(name).common_fall.value == 0.0
    assert card(name).common_fall.words.startswith("no: ")


def test_dpo_nll_feels_a_common_fall():
    """5 nats over 10 tokens, alpha 1: the NLL grows by 0.5; with alpha 0 it is DPO."""
    assert card("dpo_nll").common_fall.value == pytest.approx(0.5)
    assert card("dpo_nll").common_fall.words.startswith("yes: ")
    assert card("dpo_nll", alpha=0.0).common_fall.value == 0.0


def test_incentives_that_move_count_though_the_loss_does_not():
    before, after = Push(0.0, 1.0, 0.5, 0.5), Push(0.0, 1.0, 0.6, 0.4)
    assert "d_w from 0.5 to 0.6, d_l from 0.5 to 0.4" in common_fall([before], [after]).words
    assert common_fall([before], [after]).words.startswith("yes: ")
    assert common_fall([before], [before]).words.startswith("no: ")
    rounding = Push(0.0, 1.0 + 1e-15, 0.5 - 1e-16, 0.5)
    assert common_fall([before], [rounding]).words.startswith("no: ")
    assert common_fall([Push(0.0, math.nan, 0.5, 0.5)], [before]).words.startswith("not measured")


# --- f-divergences ---


def test_argmin_of_the_reverse_kl_is_one_over_e():
    """f = t log t, f' = log t + 1 = 0."""
    fact = card("dpo").argmin
    assert fact.value == pytest.approx(math.exp(-1), abs=1e-6)
    assert fact.words.startswith("fails")


@pytest.mark.parametrize(
    ("f", "least"),
    [
        (lambda t: t.log() ** 2 / 2, 1.0),
        (lambda t: (t - 1) ** 2 / 2, 1.0),
        (lambda t: t * t.log() - (t + 1) * ((t + 1) / 2).log(), 1.0),
        (lambda t: -t.log(), math.inf),
        (lambda t: t, 0.0),
        (lambda t: (t.log() ** 2 - 1) ** 2 + t / 10, 0.3662),  # two valleys, the deeper at log t = -1 - 0.1 t / 8
        (lambda t: -((t - 1) ** 2), math.nan),
        (lambda t: t * math.nan, math.nan),
    ],
)
def test_argmin(f, least):
    assert argmin(f) == pytest.approx(least, abs=1e-3, nan_ok=True)


@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("squared_dpo", {}, 1.0),
        ("fdpo", {}, math.exp(-1)),
        ("fdpo", {"divergence": "js"}, 1.0),
        ("fdpo", {"divergence": "alpha", "alpha": 0.3}, 1.0),
        ("fdpo", {"divergence": "alpha", "alpha": 1.0}, 1.0),
        ("fdpo", {"divergence": "forward_kl"}, math.inf),
    ],
)
def test_argmin_of_the_objectives_that_name_their_f(name, settings, least):
    fact = card(name, **settings).argmin
    assert fact.value == pytest.approx(least, abs=1e-6)
    assert fact.words.startswith("fails" if least < 1 else "meets")


@pytest.mark.parametrize(
    "settings",
    [{"divergence": d} for d in ("forward_kl", "reverse_kl", "js")] + [{"divergence": "alpha", "alpha": 0.3}],
)
def test_the_f_of_fdpo_is_the_one_its_loss_uses(settings):
    """d_l / d_w at u = 0 is d f'(e^v)/dv over the same at v = 0, that is e^v f''(e^v) / f''(1)."""
    divergence = objectives.module("fdpo").divergence

    def slope(v: float) -> float:
        t = torch.tensor(math.exp(v), dtype=torch.float64, requires_grad=True)
        (first,) = torch.autograd.grad(divergence(t, **settings), t, create_graph=True)
        return math.exp(v) * float(torch.autograd.grad(first, t)[0])

    for v in (-2.0, 1.0):
        found = push(partial(objectives.load("fdpo"), **settings), standard_pair(0.0, v))
        assert found.rejected / found.chosen == pytest.approx(slope(v) / slope(0.0), rel=1e-9)


def test_a_file_without_an_f_divergence_says_so():
    assert math.isnan(card("simpo").argmin.value)
    assert card("simpo").argmin.words.startswith("not measured")


# --- every objective in the folder ---


@pytest.mark.parametrize("name", objectives.names())
def test_every_objective_has_a_card(name):
    made = card(name)
    assert made.summary
    assert made.formula.startswith(made.summary[:20])
    assert set(made.columns) == set(objectives.columns(name))
    assert [p.at for p in made.margins] == list(MARGINS), made.far_ratio.words
    assert [p.at for p in made.far] == list(FAR)
    assert all(p.measured for p in made.margins), "loss and incentives are numbers at every margin"
    assert any(p.chosen or p.rejected or p.others for p in made.margins), "it pushes something"
    for fact in (made.far_ratio, made.far_rejected, made.common_fall, made.argmin):
        told = ("not measured", "none", "not settled")
        assert math.isnan(fact.value) == fact.words.startswith(told), f"{fact}: no number, then a reason"


@pytest.mark.parametrize("name", objectives.names())
def test_a_card_does_not_depend_on_the_run_before(name):
    assert [p.chosen for p in card(name).margins] == [p.chosen for p in card(name).margins]


@pytest.mark.parametrize("beta", [200.0, 5000.0])
def test_a_denoisers_margins_are_in_units_that_move_its_sigmoid_as_nats_do(beta):
    """Diffusion-DPO: a unit is 0.2 / beta of the error, so a margin of 10 is a logit of 1 and pushes
    beta / 2 / (1 + e)."""
    made = card("diffusion_dpo", beta=beta)
    assert (made.likelihood, made.unit) == ("denoising", 0.2 / beta)
    assert made.margins[-1].loss == pytest.approx(math.log1p(math.exp(-1)), rel=1e-9)
    assert made.margins[-1].chosen == pytest.approx(beta / 2 / (1 + math.e), rel=1e-9)
    assert (made.far_ratio.value, made.far_rejected.value) == (pytest.approx(1), 0)
    assert made.common_fall.words == "no: where both answers lose 5 units, nothing changes"


def test_what_reads_outputs_is_pushed_through_its_errors():
    """One segment whose label is the chosen side's: DenseDPO pushes as Diffusion-DPO with twice the beta."""
    dense, plain = card("densedpo", beta=100.0), card("diffusion_dpo", beta=200.0)
    assert dense.margins[2].chosen == pytest.approx(plain.margins[2].chosen, rel=1e-9) == pytest.approx(50)
    assert dense.margins[2].rejected == pytest.approx(50, rel=1e-9)


def test_the_deviation_that_inversion_dpo_rewards_is_told():
    """Half of beta / 2, over 2 alpha-bar = 1, at the reference: chosen pushed away, rejected held."""
    made = card("inversion_dpo", beta=8.0)
    assert made.margins[2].others == pytest.approx({"KL of chosen": 2.0, "KL of rejected": -2.0})


def test_the_incentives_are_those_of_finite_differences():
    """d_w of dpo_nll at margin 2, by moving the whole chosen answer by 1e-6 nats either way."""
    objective = objectives.load("dpo_nll")
    up, down = (objective(standard_pair(1.0 + h, -1.0)).losses.mean() for h in (1e-6, -1e-6))
    found = push(objective, standard_pair(1.0, -1.0))
    assert found.chosen == pytest.approx(-float((up - down).detach()) / 2e-6, rel=1e-7)


def test_what_else_is_pushed_is_told():
    """A KL penalty of 0.3 on the chosen answer, and a gold answer's NLL per token."""

    def objective(pair):
        losses = 0.3 * pair.chosen.per_token_kl.sum(-1) - pair.extra["gold"].avg_logps - pair.chosen.logps
        return objectives.rewarded(losses, losses, losses)

    assert push(objective, standard_pair(0.0, 0.0)).others == pytest.approx({"KL of chosen": -0.3, "gold": 0.1})


def test_an_objective_that_refuses_the_pair_gives_its_reason(monkeypatch):
    def dpo(pair):
        """DPO."""
        raise UserError("this objective reads a crystal ball, which was not measured.")

    monkeypatch.setattr(objectives.module("dpo"), "dpo", dpo)
    made = card("dpo")
    assert made.margins == ()
    assert math.isnan(made.far_ratio.value)
    assert "crystal ball" in made.common_fall.words


@pytest.mark.parametrize(
    ("name", "settings", "wanted"),
    [("simpoo", {}, "did you mean 'simpo'"), ("dpo", {"bta": 1}, "'beta'"), ("dpo", {"beta": -1}, "above 0")],
)
def test_a_mistake_is_a_sentence(name, settings, wanted):
    if settings == {"beta": -1}:  # what the objective itself refuses is told on the card
        assert wanted in card(name, **settings).far_ratio.words
        return
    with pytest.raises(UserError, match=wanted):
        card(name, **settings)


def test_the_card_leaves_no_gradient_behind():
    pair = standard_pair(0.0, 0.0)
    push(objectives.load("dpo"), pair)
    assert pair.chosen.per_token_logps.grad is None
    assert pair.chosen.per_token_logps.dtype == torch.float64
