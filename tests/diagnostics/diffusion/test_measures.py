"""The measures of a denoiser's pairs against plain autograd, pair by pair, in float64."""

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from diagnostics.columns import described
from diagnostics.diffusion import measures
from diagnostics.diffusion.denoiser import MLPDenoiser
from diagnostics.diffusion.likelihood import DenoisingLikelihood
from diagnostics.diffusion.noise import fixed_noise, fixed_times
from diagnostics.diffusion.sample import Sample, sample_pair
from diagnostics.errors import UserError
from diagnostics.sequences import Example

SIZE, DRAWS = 6, 4


@pytest.fixture
def model() -> MLPDenoiser:
    torch.manual_seed(0)
    return MLPDenoiser(size=SIZE, classes=2, width=8, blocks=1).double()


@pytest.fixture
def pairs() -> list[Example]:
    draw = np.random.default_rng(0)

    def sample(k: int) -> Sample:
        return Sample(draw.normal(size=SIZE).astype(np.float32), {"class_labels": np.array(k % 2)})

    return [sample_pair(f"p{k}", k, {"chosen": sample(k), "rejected": sample(k)}) for k in range(7)]


@pytest.fixture
def found(model, pairs) -> pd.DataFrame:
    return measures.measure(DenoisingLikelihood(draws=DRAWS), model, pairs).set_index("pair_id")


def error(model: MLPDenoiser, pair: Example, side: str) -> torch.Tensor:
    """The mean error over the fixed draws, written out once more."""
    times = fixed_times("eps", model.steps, DRAWS, 0)
    eps = fixed_noise((SIZE,), DRAWS, 0, pair.pair_id).double()
    x = torch.from_numpy(pair.rows[side].media.values).double()
    a = model.alphas[times][:, None]
    label = torch.from_numpy(pair.rows[side].media.condition["class_labels"]).expand(DRAWS)
    said = model(a.sqrt() * x + (1 - a).sqrt() * eps, times, {"class_labels": label})
    return (said - eps).square().mean()


def gradient(model: MLPDenoiser, pair: Example, side: str, only: nn.Module | None = None) -> torch.Tensor:
    """All of it as one vector."""
    parameters = list((only or model).parameters())
    return torch.cat([g.flatten() for g in torch.autograd.grad(error(model, pair, side), parameters)])


def test_rates_of_the_whole_set(model, pairs, found):
    own = {p.pair_id: gradient(model, p, "chosen") for p in pairs}
    mean = torch.stack([own[p.pair_id] - gradient(model, p, "rejected") for p in pairs]).mean(0)
    for pair_id, row in found.iterrows():
        assert row["set_rate"] == pytest.approx(float(own[pair_id] @ mean), rel=1e-3)
        assert row["set_rate_sign"] == pytest.approx(float(own[pair_id] @ mean.sign()), rel=1e-3)


def test_a_low_rate_is_a_chosen_error_that_rises_with_the_first_step(model, pairs, found):
    """One small step of plain descent on the mean contrast of errors, e_w - e_l."""
    before = {p.pair_id: error(model, p, "chosen").item() for p in pairs}
    loss = torch.stack([error(model, p, "chosen") - error(model, p, "rejected") for p in pairs]).mean()
    step = 1e-5
    with torch.no_grad():
        for weight, slope in zip(model.parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True):
            weight -= step * slope
    for pair in pairs:
        change = error(model, pair, "chosen").item() - before[pair.pair_id]
        assert change == pytest.approx(-step * found.loc[pair.pair_id, "set_rate"], rel=1e-3)


def test_measures_of_a_pair_alone(model, pairs, found):
    for pair in pairs:
        row, (w, r) = found.loc[pair.pair_id], (gradient(model, pair, side) for side in ("chosen", "rejected"))
        assert row["self_rate"] == pytest.approx(float(w @ w - w @ r), rel=1e-9)
        assert row["error_cosine"] == pytest.approx(float(w @ r / (w.norm() * r.norm())), rel=1e-9)
        assert row["chosen_error_norm"] == pytest.approx(float(w.norm()), rel=1e-9)
        assert row["rejected_error_norm"] == pytest.approx(float(r.norm()), rel=1e-9)
        assert row["error_norm_ratio"] == pytest.approx(float(r.norm() / w.norm()), rel=1e-9)
        head_w, head_l = (gradient(model, pair, side, model.head) for side in ("chosen", "rejected"))
        assert row["denoising_ches"] == pytest.approx(float(head_w @ head_l - head_w @ head_w), rel=1e-9)


def test_feature_cosine_is_taken_draw_by_draw(model, pairs, found):
    for pair in pairs:
        seen = []
        handle = model.head.register_forward_hook(lambda module, args, output, seen=seen: seen.append(args[0]))
        error(model, pair, "chosen"), error(model, pair, "rejected")
        handle.remove()
        wanted = torch.cosine_similarity(*seen, dim=-1).mean().item()
        assert found.loc[pair.pair_id, "feature_cosine"] == pytest.approx(wanted, rel=1e-9)


def test_a_pair_of_twice_the_same_sample_moves_nothing(model, pairs):
    twin = sample_pair("twin", 0, dict.fromkeys(("chosen", "rejected"), pairs[0].chosen.media))
    row = measures.measure(DenoisingLikelihood(draws=DRAWS), model, [twin]).iloc[0]
    assert row[["set_rate", "self_rate", "denoising_ches"]].tolist() == pytest.approx([0, 0, 0], abs=1e-12)
    assert row["error_cosine"] == pytest.approx(1)
    assert row["feature_cosine"] == pytest.approx(1)


def test_weights_and_mode_are_what_they_were(model, pairs):
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    measures.measure(DenoisingLikelihood(draws=DRAWS), model, pairs)
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_no_number_depends_on_the_order_or_the_other_pairs(model, pairs, found):
    turned = measures.measure(DenoisingLikelihood(draws=DRAWS), model, pairs[::-1]).set_index("pair_id")
    pd.testing.assert_frame_equal(turned.loc[found.index], found, rtol=1e-9)
    alone = measures.measure(DenoisingLikelihood(draws=DRAWS), model, pairs[:1]).iloc[0]
    for name in found.columns.drop(["set_rate", "set_rate_sign"]):  # of a set, which the others are
        assert alone[name] == pytest.approx(found.loc["p0", name], rel=1e-9)
    assert alone["set_rate"] == pytest.approx(alone["self_rate"], rel=1e-3)  # of a set of one


def test_every_column_is_described(found):
    assert set(described(measures.COLUMNS)) == set(found.columns)


def test_a_model_without_a_linear_layer_is_refused():
    with pytest.raises(UserError, match="Flatten has no linear layer"):
        measures.last_layer(nn.Flatten())
