"""What the denoising likelihood says: errors by hand, the same draws for all, and no number that depends on a batch."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from diagnostics.diffusion import noise
from diagnostics.diffusion.denoiser import Denoiser, MLPDenoiser
from diagnostics.diffusion.likelihood import DenoisingLikelihood
from diagnostics.diffusion.sample import Sample, sample_pair
from diagnostics.errors import DataError, UserError
from diagnostics.likelihood import pair_stats
from diagnostics.scoring import rows, score
from diagnostics.sequences import Example
from trainers.loop.reference import LiveReference, precompute
from trainers.objectives.dpo import dpo

SIZE, CLASSES = 6, 3


def mlp(seed: int = 0, **changes) -> MLPDenoiser:
    torch.manual_seed(seed)
    return MLPDenoiser(**{"size": SIZE, "classes": CLASSES, "width": 16, "blocks": 1} | changes)


def pairs(n: int = 5) -> list[Example]:
    draw = np.random.default_rng(0)

    def sample(k: int) -> Sample:
        values = draw.normal(size=(2, SIZE // 2)).astype(np.float32)
        return Sample(values, {"class_labels": np.array(k % CLASSES)})

    return [sample_pair(f"p{k}", k, {"chosen": sample(k), "rejected": sample(k)}) for k in range(n)]


def scored(model: nn.Module, some: list[Example], likelihood=None, reference=None, **how) -> dict[str, dict]:
    likelihood = likelihood or DenoisingLikelihood(draws=4)
    found = score(model, some, likelihood=likelihood, reference=reference, **how)
    return {row["pair_id"]: row for s in found for row in rows(s.pairs, s.stats)}


class Blind(Denoiser):
    """Predicts one number everywhere."""

    def __init__(self, target: str, says: float) -> None:
        super().__init__()
        self.target, self.alphas = target, noise.linear_alphas(100)
        self.says = nn.Parameter(torch.tensor(says, dtype=torch.float64))

    def forward(self, x_t, times, condition):
        return self.says.expand_as(x_t)


@pytest.mark.parametrize("target", noise.TARGETS)
def test_errors_are_those_of_the_formulas(target):
    likelihood, model, (pair,) = DenoisingLikelihood(draws=3, seed=5), Blind(target, 0.25), pairs(1)
    found = pair_stats(likelihood, batch := likelihood.collate([pair]), likelihood.run(model, batch))
    times = noise.fixed_times(target, model.steps, 3, 5)
    eps = noise.fixed_noise((2, SIZE // 2), 3, 5, "p0").double()
    for side, values in ((found.chosen, pair.chosen.media.values), (found.rejected, pair.rejected.media.values)):
        x = torch.from_numpy(values).double()
        for k, t in enumerate(times):
            a = (1 - t / 1000) ** 2 if target == "flow" else model.alphas[t]
            y = {
                "eps": eps[k],
                "x0": x,
                "v": a.sqrt() * eps[k] - (1 - a).sqrt() * x,
                "flow": eps[k] - x,
            }[target]
            assert side.errors[0, k].item() == pytest.approx((0.25 - y).square().mean().item(), rel=1e-12)
            assert side.alphas[0, k].item() == pytest.approx(float(a), rel=1e-12)
            assert side.times[0, k] == t
        assert side.logps.item() == pytest.approx(-side.errors.mean().item(), rel=1e-12)
        assert side.standard_error.item() == pytest.approx(side.errors[0].std().item() / 3**0.5, rel=1e-12)


@pytest.mark.parametrize("target", noise.TARGETS)
def test_the_true_target_has_no_error(target):
    """A model that is told sample and noise, and mixes them as its kind says, is right at every time."""
    likelihood, (pair,) = DenoisingLikelihood(draws=8), pairs(1)
    model = Blind(target, 0.0)
    drawn = likelihood.fixed(batch := likelihood.collate([pair]), model)
    signal, spread = noise.shares(target, model.alphas, drawn.times)
    x, (a, s) = batch.samples[:, None].double(), (v[..., None, None] for v in (signal, spread))
    assert torch.allclose(drawn.x_t, a * x + s * drawn.noise)
    if target == "v":  # then sample and noise follow from x_t and v
        assert torch.allclose(a * drawn.x_t - s * drawn.target, x.expand_as(drawn.x_t))
    if target == "flow":
        assert torch.allclose(drawn.x_t - s * drawn.target, x.expand_as(drawn.x_t))


def test_fixed_times_are_one_in_each_part():
    times = noise.fixed_times("eps", 1000, 10, seed=3)
    assert (times // 100).tolist() == list(range(10))
    assert noise.fixed_times("eps", 1000, 10, seed=4).tolist() != times.tolist()
    assert noise.fixed_times("flow", 1000, 10, seed=3).frac().abs().sum() > 0


def test_sides_models_and_later_measurements_see_the_same_draws():
    likelihood, model = DenoisingLikelihood(draws=4), mlp()
    batch = likelihood.collate(pairs())
    found = pair_stats(likelihood, batch, likelihood.run(model, batch), likelihood.run(mlp(1), batch))
    again = pair_stats(likelihood, batch, likelihood.run(model, batch))
    for name in ("noise", "times", "alphas"):
        sides = [getattr(s, name) for s in (found.chosen, found.rejected, found.ref_chosen, again.chosen)]
        assert all(torch.equal(sides[0], other) for other in sides[1:])
    assert not torch.equal(found.chosen.noise[0], found.chosen.noise[1])


def test_independent_noise_gives_another_number():
    """With noise of its own for each side a pair of twice the same sample has a margin, which is noise alone."""
    likelihood, model, (pair,) = DenoisingLikelihood(draws=4), mlp(), pairs(1)
    twin = replace(pair, rows={"chosen": pair.chosen, "rejected": pair.chosen})
    apart = replace(twin, rows={k: replace(r, media=replace(r.media, group=k)) for k, r in twin.rows.items()})
    batch = likelihood.collate([twin])
    shared = pair_stats(likelihood, batch, likelihood.run(model, batch))
    assert torch.equal(shared.chosen.logps, shared.rejected.logps)
    sides = [likelihood.collate([apart.only((name,))]) for name in ("chosen", "rejected")]
    found = [likelihood.stats(b, likelihood.run(model, b))[0].popitem()[1].logps.item() for b in sides]
    assert abs(found[0] - found[1]) > 1e-3


def test_at_the_reference_the_margin_is_nothing_and_the_loss_log_2():
    likelihood, model = DenoisingLikelihood(draws=4), mlp().double()
    batch = likelihood.collate(pairs())
    batch = likelihood.drawn(batch, 7, model, None)
    found = pair_stats(likelihood, batch, likelihood.run(model, batch), likelihood.run(model, batch))
    assert torch.equal(found.chosen.logps, found.ref_chosen.logps)
    assert dpo(found, beta=2500.0).losses.tolist() == [math.log(2)] * 5
    assert found.chosen.per_token_kl.sum() == 0


def test_no_number_depends_on_the_batch_or_its_order():
    model, reference = mlp().double(), LiveReference(mlp(1).double(), DenoisingLikelihood(draws=4))
    some = pairs()
    whole = scored(model, some, reference=reference)
    alone = {k: v for pair in some for k, v in scored(model, [pair], reference=reference).items()}
    turned = scored(model, some[::-1], reference=reference, batch_tokens=2 * 2 * 4 * SIZE)
    for pair_id, row in whole.items():
        for name, value in row.items():
            if isinstance(value, float) and value == value:
                assert alone[pair_id][name] == pytest.approx(value, rel=1e-12), name
                assert turned[pair_id][name] == pytest.approx(value, rel=1e-12), name


def test_an_update_draws_by_seed_step_and_pair():
    likelihood, model, some = DenoisingLikelihood(train_draws=2), mlp(), pairs()

    def drawn(step: int, those: list[Example], kind=likelihood):
        return kind.drawn(kind.collate(those), step, model, None).noised

    one, turned = drawn(3, some), drawn(3, some[::-1])
    assert one.times.shape == (10, 2)
    assert torch.equal(one.noise[:5], one.noise[5:])  # both sides
    assert torch.equal(one.noise[:5].flip(0), turned.noise[:5])
    assert torch.equal(one.times[:5].flip(0), turned.times[:5])
    others = (drawn(4, some), drawn(3, some, replace(likelihood, seed=1)))
    assert all(not torch.equal(one.noise, other.noise) for other in others)
    listed = [
        replace(p, rows={k: replace(r, media=replace(r.media, group="list")) for k, r in p.rows.items()}) for p in some
    ]
    assert torch.equal(drawn(3, listed).noise[0], drawn(3, listed).noise[1])


def test_deviation_is_the_mean_squared_difference_of_outputs():
    likelihood, (pair,) = DenoisingLikelihood(draws=4), pairs(1)
    batch = likelihood.collate([pair])
    one, other = (likelihood.run(Blind("eps", says), batch) for says in (0.5, 0.2))
    found = pair_stats(likelihood, batch, one, other)
    assert found.chosen.masked_sum(found.chosen.per_token_kl).item() == pytest.approx(0.09, rel=1e-12)


def test_gradients_are_right_to_float64():
    likelihood, model, some = DenoisingLikelihood(draws=2), mlp().double(), pairs(2)
    batch = likelihood.collate(some)

    def margin(weight: torch.Tensor) -> torch.Tensor:
        run = torch.func.functional_call
        found = likelihood.fixed(batch, model)
        told = {k: v.repeat_interleave(2, 0) for k, v in batch.condition.items()}
        output = run(model, {"head.weight": weight}, (found.x_t.flatten(0, 1), found.times.flatten(), told))
        residual = output.unflatten(0, (-1, 2)) - found.target
        errors = residual.square().flatten(2).mean((1, 2))
        return errors[2:].sum() - errors[:2].sum()

    weight = model.head.weight.detach().clone().requires_grad_()
    assert torch.autograd.gradcheck(margin, weight)
    found = pair_stats(likelihood, batch, likelihood.run(model, batch))
    (grad,) = torch.autograd.grad((found.chosen.logps - found.rejected.logps).sum(), model.head.weight)
    (hand,) = torch.autograd.grad(margin(weight), weight)
    assert torch.allclose(grad, hand, rtol=1e-12)


def test_half_precision_is_reduced_in_float32():
    likelihood, model = DenoisingLikelihood(draws=2), mlp().bfloat16()
    batch = likelihood.collate(pairs(2))
    found = pair_stats(likelihood, batch, likelihood.run(model, batch))
    assert found.chosen.errors.dtype == torch.float32
    assert found.chosen.target.dtype == torch.float32
    assert found.chosen.logps.dtype == torch.float64


def test_dropout_is_off():
    class Dropping(MLPDenoiser):
        def forward(self, x_t, times, condition):
            return nn.functional.dropout(super().forward(x_t, times, condition), 0.5, self.training)

    model = Dropping(size=SIZE, classes=CLASSES, width=8).train()
    likelihood = DenoisingLikelihood(draws=2)
    batch = likelihood.collate(pairs(2))
    assert torch.equal(likelihood.run(model, batch).output, likelihood.run(model, batch).output)
    assert model.training


def test_a_stored_reference_says_what_the_live_one_does(tmp_path):
    likelihood, some = DenoisingLikelihood(draws=4), pairs()
    stored = precompute(mlp(1), some, likelihood=likelihood, folder=tmp_path, key={"model": "m"})
    one, other = (scored(mlp(), some, reference=r) for r in (stored, LiveReference(mlp(1), likelihood)))
    for pair_id in one:
        assert one[pair_id]["ref_chosen_logps"] == pytest.approx(other[pair_id]["ref_chosen_logps"], rel=1e-6)


def test_content_is_known_by_its_numbers():
    (pair,), (other,) = pairs(1), pairs(1)
    assert pair == other
    assert repr(pair.chosen.media) != repr(pair.rejected.media)
    moved = replace(pair.chosen.media, values=pair.chosen.media.values + 1e-6)
    assert repr(moved) != repr(pair.chosen.media)


def test_what_does_not_fit_is_refused():
    likelihood, (one, *_) = DenoisingLikelihood(), pairs()
    wide = sample_pair("wide", 9, dict.fromkeys(("chosen", "rejected"), Sample(np.zeros(3, np.float32))))
    with pytest.raises(DataError, match=r"pair_id wide: a sample of \(3,\) numbers told \[\], others of \(2, 3\)"):
        likelihood.collate([one, wide])
    with pytest.raises(UserError, match="Linear is no Denoiser"):
        likelihood.prepare(nn.Linear(2, 2))
