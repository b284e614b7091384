"""Samples that a denoiser draws while it trains: the same noise each time, and nothing of the training changed."""

import io
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from diagnostics.diffusion.denoiser import MLPDenoiser
from diagnostics.diffusion.drawn import drawn
from diagnostics.errors import DataError, UserError
from diagnostics.runlog import read_run
from trainers.config import make_config
from trainers.denoisers import load_denoiser
from trainers.run import train
from trainers.worlds.image_judges import Examples, load_image_judge

SIDE, CLASSES = 4, 3


@pytest.fixture
def world(tmp_path):
    """A denoiser's folder, a file of pairs, and one of examples of each class for the judge."""
    torch.manual_seed(0)
    MLPDenoiser(size=SIDE**2, classes=CLASSES, width=16, blocks=1, shape=(1, SIDE, SIDE)).save(tmp_path / "mlp")
    draw = np.random.default_rng(0)
    arrays = {side: draw.uniform(-1, 1, (30, 1, SIDE, SIDE)).astype(np.float32) for side in ("chosen", "rejected")}
    save_file(arrays | {"class_labels": np.arange(30) % CLASSES}, tmp_path / "pairs.safetensors")
    save_file({"image": arrays["chosen"], "class": np.arange(30) % CLASSES}, tmp_path / "real.safetensors")
    return tmp_path


def run(world, out, **changes):
    keys = {
        "likelihood": "denoising", "objective": "diffusion_dpo", "model": str(world / "mlp"), "beta": 200.0,
        "data": str(world / "pairs.safetensors"), "output_dir": str(world / out), "max_steps": 4, "draws": 4,
        "per_device_train_batch_size": 4, "learning_rate": 0.003, "probe_pairs": 6, "heldout_pairs": 2, "use_cpu": True,
        "disable_tqdm": True, "probe_every": 3,
    }  # fmt: skip
    return train(make_config(keys | changes))


def drawing(world) -> dict:
    return {"sample_every": 2, "samples": 8, "sample_judge": str(world / "real.safetensors")}


def pixels(rows) -> np.ndarray:
    return np.stack(
        [np.asarray(Image.open(io.BytesIO(png))).astype(int) for png in rows.sort_values("sample")["image"]]
    )


def test_training_is_the_same_to_the_bit_and_the_samples_stand_in_the_log(world):
    without, log = read_run(run(world, "without")), read_run(run(world, "with", **drawing(world)))
    assert without.samples.empty
    assert log.steps.drop(columns=["samples/score", "samples/n"]).equals(without.steps)
    assert log.pairs.equals(without.pairs)
    assert log.draws.equals(without.draws)
    ends = [load_file(world / name / "model" / "model.safetensors") for name in ("with", "without")]
    assert all(np.array_equal(ends[0][key], ends[1][key]) for key in ends[0])
    rows = log.samples
    assert rows.groupby("step").size().to_dict() == {0: 8, 2: 8, 4: 8}
    probed = log.pairs.query("split == 'probe' and step == 0")["pair_id"].tolist()
    first = rows.query("step == 0")
    assert set(first["prompt_id"]) == set(probed)
    assert first["prompt_id"].nunique() == 6
    asked = {f"row{k:06d}": str(k % CLASSES) for k in range(30)}
    assert first["text"].tolist() == [asked[name] for name in first["prompt_id"]]
    for step, scores in rows.groupby("step")["score"]:
        row = log.steps.set_index("step").loc[step]
        assert (row["samples/score"], row["samples/n"]) == (pytest.approx(scores.mean()), 8)
    assert log.steps.set_index("step")["samples/n"].notna().to_dict() == {
        0: True, 1: False, 2: True, 3: False, 4: True
    }  # fmt: skip


def test_samples_are_those_of_the_weights_of_their_step(world):
    """The samples at the end are what the saved model draws from the same noise; those of the start another's."""
    log = read_run(run(world, "run", **drawing(world)))
    again = read_run(run(world, "again", **drawing(world), model=str(world / "run" / "model")))
    first, last = again.samples.query("step == 0"), log.samples.query("step == 4")
    assert first["image"].tolist() == last["image"].tolist()
    assert first["score"].tolist() == last["score"].tolist()
    assert first["image"].tolist() != log.samples.query("step == 0")["image"].tolist()
    fewer = read_run(run(world, "fewer", **(drawing(world) | {"samples": 3}))).samples
    few, many = (pixels(made.query("step == 4")) for made in (fewer, log.samples))  # a batch of 3 rounds otherwise
    assert many.shape == (8, 72, 72, 3)
    assert np.abs(few - many[:3]).max() <= 3 < np.abs(many[0] - many[1]).max()


def test_a_run_that_was_killed_goes_on_with_the_same_samples(world):
    keys = drawing(world) | {"save_strategy": "steps", "save_steps": 2}
    whole = read_run(run(world, "run", **keys))
    file = world / "run" / "manifest.json"
    about = json.loads(file.read_text())
    del about["finished"]
    file.write_text(json.dumps(about))
    shutil.rmtree(world / "run" / "checkpoints" / "checkpoint-4")
    assert read_run(run(world, "run", resume="auto", **keys)).samples.equals(whole.samples)


def test_an_alarm_waits_for_the_judges_score(world):
    keys = drawing(world) | {"alarm": "samples/score <= 1 for 2", "alarm_action": "stop"}
    log = read_run(run(world, "run", **keys, max_steps=8))
    assert log.steps["step"].max() == 4  # samples of steps 2 and 4 alone count: not the start's, not other steps'
    assert log.steps.set_index("step")["alarm"].loc[4].startswith("samples/score <= 1 for 2 (step 4: ")
    assert sorted(set(log.samples["step"])) == [0, 2, 4]


def test_the_judge_says_a_score_for_every_sample(world, monkeypatch):
    from trainers import run as runs

    pairs = []
    kept = runs.Drawing
    monkeypatch.setattr(runs, "Drawing", lambda *a, **k: pairs.append(kept(*a, **k)) or pairs[-1])
    run(world, "run", sample_every=4, samples=3)
    pairs[0].judge, pairs[0].drawn_at = lambda samples, asked: [1.0], -1
    with pytest.raises(UserError, match="the judge of samples gave 1 scores for 3 samples"):
        pairs[0].at(load_denoiser(str(world / "mlp")), 0)


def test_chains_and_adapters_draw_too(world):
    draw = np.random.default_rng(2)
    arrays = {s: draw.normal(size=(20, 3, 1, SIDE, SIDE)).astype(np.float32) for s in ("chosen", "rejected")}
    arrays |= {"times": np.tile([900, 500, 100], (20, 1)), "class_labels": np.arange(20) % CLASSES}
    save_file(arrays, world / "chains.safetensors")
    keys = {"likelihood": "steps", "objective": "d3po", "beta": 10.0, "draws": 16, "lora_r": 2, "sample_every": 4}
    log = read_run(run(world, "chains", data=str(world / "chains.safetensors"), **keys))
    images = log.samples.groupby("step")["image"].agg(list)
    assert images.map(len).to_dict() == {0: 16, 4: 16}
    assert images[0] != images[4]
    assert log.samples["score"].isna().all()
    assert "samples/score" not in log.steps


@pytest.mark.parametrize("target", ["eps", "v", "x0", "flow"])
def test_a_denoiser_that_knows_its_one_sample_draws_it(target):
    """A model that always predicts by the same x0: DDIM, or Euler, ends at it, for every target."""
    goal = torch.linspace(-0.5, 0.5, 6)

    class Knows(MLPDenoiser):
        def forward(self, x_t, times, condition):
            from diagnostics.diffusion.noise import shares, wanted

            both = [v[:, None].to(x_t.dtype) for v in shares(self.target, self.alphas, times)]
            noise = (x_t - both[0] * goal) / both[1]
            return wanted(self.target, goal.expand_as(x_t), noise, (both[0], both[1]))

    model = Knows(size=6, target=target)
    found = drawn(model, lambda x, t, told: model(x, t, told), torch.randn(3, 6), {}, [], (-1.0, 1.0))
    assert torch.allclose(found, goal.expand(3, 6), atol=1e-4)


def test_the_judge_says_which_class_a_sample_is_of():
    draw = np.random.default_rng(0)
    means = np.eye(3)[:, :, None].repeat(2, 2)  # (3, 3, 2)
    classes = np.arange(60) % 3
    judge = Examples(means[classes] + 0.05 * draw.normal(size=(60, 3, 2)), classes)
    assert judge(means, ["0", "1", "0"]) == [1.0, 1.0, 0.0]
    assert np.isnan(judge(means[:2], ["a cat", "7"])).all()
    judge.check(means, ["0", "a cat"])
    for samples, asked, said in (
        (means[:, :2], ["0"], "images have 6 numbers, and a sample 4"),
        (2 * means - 1, ["0"], r"images have numbers from .* to 1\.\d+, and the samples from -1 to 1; give both"),
        (means / 255, ["0"], "give both on one scale"),
        (means, ["a cat", "7"], r"no sample is asked for a class that it has \(0, 1, 2 \.\.\.\)"),
    ):
        with pytest.raises(DataError, match=said):
            judge.check(samples, asked)


def test_a_judges_file_is_plain_arrays_of_images_and_classes(tmp_path):
    file, images, classes = tmp_path / "real.npz", np.ones((4, 2), dtype=np.float32), np.arange(4) % 2
    made = [
        {"image": np.array([{}, 1], dtype=object), "class": classes[:2]},  # pickled
        {"image": (images * 200).astype(np.uint8), "class": classes},
        {"image": images[:, :0], "class": classes},
        {"image": images * np.nan, "class": classes},
        {"image": images, "class": classes[:2]},
        {"image": images, "class": classes * 0},
    ]
    for arrays in made:
        np.savez(file, **arrays)
        with pytest.raises(DataError, match=r"sample_judge .*real.npz: needs"):
            load_image_judge(str(file))
    for content in (b"", b"PK\x03\x04 cut", b"\x80\x04N."):
        file.write_bytes(content)
        with pytest.raises(DataError, match=r"real.npz: needs arrays `image` and `class`"):
            load_image_judge(str(file))


def test_the_judge_of_digits_knows_the_real_ones():
    from trainers.worlds import digits

    values, classes = digits.images()
    asked = [str(int(k)) for k in classes[:200]]
    assert np.mean(load_image_judge("digits")(values[:200].numpy(), asked)) > 0.97


def test_what_cannot_work_is_refused_by_name(world):
    with pytest.raises(UserError, match="sample_every means nothing with likelihood tokens"):
        run(world, "no", likelihood="tokens", objective="dpo", draws=16, sample_every=2)
    with pytest.raises(UserError, match="sample_judge judges the samples drawn every sample_every"):
        run(world, "no", sample_judge="digits")
    with pytest.raises(DataError, match=r"sample_judge .*pairs.safetensors: needs arrays `image` and `class`"):
        run(world, "no", sample_every=2, sample_judge=str(world / "pairs.safetensors"))
    with pytest.raises(DataError, match=r"sample_judge: its images have 64 numbers, and a sample 16\."):
        run(world, "no", sample_every=2, sample_judge="digits")
    with pytest.raises(UserError, match="alarm: samples/score is measured only of denoisers, with sample_every and"):
        run(world, "no", sample_every=2, alarm="samples/score < 0.5")
    torch.manual_seed(0)
    MLPDenoiser(size=SIDE**2, classes=CLASSES, width=16, blocks=1).save(world / "flat")
    flat = {name: v.reshape(30, -1) for name, v in load_file(world / "pairs.safetensors").items() if v.ndim > 1}
    save_file(flat | {"class_labels": np.arange(30) % CLASSES}, world / "flat.safetensors")
    with pytest.raises(UserError, match=r"samples of \(16,\) numbers are no pictures; give a sample_judge"):
        run(world, "no", model=str(world / "flat"), data=str(world / "flat.safetensors"), sample_every=2)
    assert load_denoiser(str(world / "flat")).shape == (16,)
    assert not (world / "no").exists()
