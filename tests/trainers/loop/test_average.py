"""The moving average that gradspo reads: its value, what it changes, resuming, batching."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from diagnostics.diffusion.denoiser import MLPDenoiser
from diagnostics.diffusion.read import read_samples
from diagnostics.diffusion.steps import StepLikelihood
from diagnostics.errors import DataError
from diagnostics.runlog import read_run
from trainers.config import make_config
from trainers.denoisers import load_denoiser
from trainers.loop.average import MovingAverage
from trainers.loop.ingredients import Ingredients
from trainers.objectives.gradspo import gradspo
from trainers.run import train

SIDE, CLASSES = 4, 3


@pytest.fixture
def world(tmp_path):
    """A denoiser's folder and children of one parent each, in pairs."""
    torch.manual_seed(0)
    MLPDenoiser(size=SIDE**2, classes=CLASSES, width=16, blocks=1).save(tmp_path / "mlp")
    draw = np.random.default_rng(0)
    parent, spread = draw.normal(size=(24, 1, SIDE**2)), 0.3
    arrays = {
        side: np.concatenate([parent, parent + spread * draw.normal(size=parent.shape)], 1).astype(np.float32)
        for side in ("chosen", "rejected")
    }
    arrays |= {"times": np.tile([500, 400], (24, 1)), "class_labels": np.arange(24) % CLASSES}
    save_file(arrays, tmp_path / "children.safetensors")
    return tmp_path


def run(world, out, **changes):
    keys = {
        "likelihood": "steps", "objective": "gradspo", "model": str(world / "mlp"), "use_cpu": True,
        "data": str(world / "children.safetensors"), "output_dir": str(world / out), "max_steps": 4,
        "per_device_train_batch_size": 8, "learning_rate": 0.003, "probe_pairs": 4, "heldout_pairs": 0,
        "disable_tqdm": True, "probe_every": 4, "lr_scheduler_type": "constant",
    }  # fmt: skip
    return train(make_config(keys | changes))


def test_the_average_follows_the_updates_and_the_weights_come_back():
    model = nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    average = MovingAverage(model, 0.9)
    for value in (2.0, 4.0):
        model.weight.data.fill_(value)
        average.on_step_end(None, None, None)
    # 0.9 * (0.9 * 1 + 0.1 * 2) + 0.1 * 4
    x = torch.ones(1, 1)
    loss = (model(x) * 3).sum()  # a graph that is made before the weights are exchanged
    with average.running() as other:
        assert float(other(x).detach()) == pytest.approx(1.39)
        assert not other(x).requires_grad
        assert not other.training
    assert float(model.weight.detach()) == 4.0
    assert model.training
    loss.backward()
    assert model.weight.grad.item() == 3.0


def test_what_the_objective_gets_is_the_averages_prediction(world):
    likelihood, model = StepLikelihood(), load_denoiser(str(world / "mlp")).double()
    pairs = read_samples(str(world / "children.safetensors"), model, chains=True).tokenized[:3]
    given = Ingredients("gradspo", pairs, likelihood=likelihood)
    given.average, start = MovingAverage(model, 0.9), load_denoiser(str(world / "mlp")).double()
    with torch.no_grad():
        model.head.weight.mul_(1.5)
    batch = likelihood.collate(pairs)
    from diagnostics.likelihood import pair_stats

    policy, reference = likelihood.run(model, batch), likelihood.run(start, batch)
    stats = given.complete(pair_stats(likelihood, batch, policy, reference), batch, policy, model, None)
    told = {"class_labels": batch.condition["class_labels"][:3]}
    with torch.no_grad():  # the average is the start, as no update was made; an eps model predicts the noise itself
        wanted = start(batch.samples[:3, 0].double(), batch.condition["times"][:3, 0], told)
    assert torch.allclose(stats.chosen.ema_noise[:, 0], wanted, atol=1e-12)
    assert torch.allclose(stats.chosen.predicted_noise, stats.rejected.predicted_noise)  # one parent
    assert not torch.allclose(stats.chosen.ema_noise, stats.chosen.predicted_noise)
    # within the clamp the average cancels: -2 scale sqrt(1 - a) mean((f - f_ref) (n_w - n_l))
    loss = gradspo(stats, clip=0.99, beta=2.0).losses
    apart = (stats.chosen.predicted_noise - stats.ref_chosen.predicted_noise) * (
        stats.chosen.noise - stats.rejected.noise
    )
    margin = -2 * 0.5 * (1 - stats.chosen.alphas[:, :1]).sqrt()[..., None] * apart.mean(-1, keepdim=True)
    assert torch.allclose(loss, -nn.functional.logsigmoid(2.0 * margin[:, 0, 0]), atol=1e-10)
    (slope,) = torch.autograd.grad(loss.sum(), model.head.bias)
    for k in (0, 5):  # float64, central differences; the mean of the step moves with the weights, the noise's is cut
        values, fixed = [], stats
        for by in (1e-6, -1e-6):
            with torch.no_grad():
                model.head.bias[k] += by
                moved = likelihood.stats(batch, likelihood.run(model, batch))[0]
                from dataclasses import replace

                sides = {n: replace(getattr(fixed, n), predicted_noise=moved[n].predicted_noise) for n in moved}
                values.append(float(gradspo(replace(fixed, **sides), clip=0.99, beta=2.0).losses.sum()))
                model.head.bias[k] -= by
        assert float(slope[k]) == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-5, abs=1e-9)


def test_a_run_starts_at_log_2_goes_on_as_if_it_had_not_stopped_and_is_the_same_in_small_batches(world):
    keys = {"save_strategy": "steps", "save_steps": 2}
    whole = read_run(run(world, "run", **keys))
    assert whole.steps["loss"].iloc[1] == pytest.approx(np.log(2), rel=1e-6)
    assert whole.steps["loss"].iloc[-1] < whole.steps["loss"].iloc[1]
    end = load_file(world / "run" / "checkpoints" / "checkpoint-4" / MovingAverage.FILE)
    file = world / "run" / "manifest.json"
    about = json.loads(file.read_text())
    del about["finished"]
    file.write_text(json.dumps(about))
    shutil.rmtree(world / "run" / "checkpoints" / "checkpoint-4")
    again = read_run(run(world, "run", resume="auto", **keys))
    assert again.steps["loss"].equals(whole.steps["loss"])
    resumed = load_file(world / "run" / "checkpoints" / "checkpoint-4" / MovingAverage.FILE)
    assert all(np.array_equal(end[name], resumed[name]) for name in end)
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    parts = read_run(run(world, "parts", **small))
    assert parts.steps["loss"].tolist()[1:] == pytest.approx(whole.steps["loss"].tolist()[1:], rel=1e-5)


def test_an_average_of_another_model_is_refused(world, tmp_path):
    average = MovingAverage(nn.Linear(2, 2), 0.9)
    with pytest.raises(DataError, match="moving average cannot be read"):
        average.read(tmp_path)
    MovingAverage(nn.Linear(3, 2), 0.9).write(tmp_path)
    with pytest.raises(DataError, match="of another model"):
        average.read(tmp_path)
