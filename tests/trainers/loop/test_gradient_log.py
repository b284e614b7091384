"""Gradient instruments in whole runs: they change nothing, add up over micro-batches and survive a resume."""

import json
from pathlib import Path

import forks
import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from diagnostics.errors import UserError
from diagnostics.runlog import read_run
from trainers.config import make_config
from trainers.run import train

ROOT = Path(__file__).parents[3]
FAST = {
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 4,
    "heldout_pairs": 2,
    "probe_pairs": 4,
    "report_to": "none",
    "max_steps": 5,
}
BAND = ["chosen_grad_norm", "rejected_grad_norm", "grad_inner", "incentive_ratio", "gradient_cosine", "slack"]


@pytest.fixture
def go(lm_folder, pairs_file, tmp_path):
    """Train with a few keys changed; returns the run log."""

    def run(name: str = "run", **keys):
        values = {"model": lm_folder, "data": pairs_file, "output_dir": str(tmp_path / name), "save_model": False}
        return read_run(train(make_config(values | FAST | keys)))

    return run


def grads(log, *names):
    """Some columns of the updates, by step."""
    return log.steps[log.steps["step"] > 0].set_index("step")[list(names)].astype(float)


@pytest.mark.parametrize(
    "keys",
    [{}, {"lora_r": 2}, {"bf16": True}, {"objective": "tdpo2"}, {"grad_parameters": "head"}],
    ids=["full", "lora", "bf16", "kl", "head"],
)
def test_measuring_changes_no_weights(go, tmp_path, keys):
    """The same training to rounding, measured in every update or never."""
    off, on = go("off", save_model=True, **keys), go("on", save_model=True, grad_every=1, **keys)
    name = "adapter_model.safetensors" if "lora_r" in keys else "model.safetensors"
    a, b = (load_file(tmp_path / run / "model" / name) for run in ("off", "on"))
    moved = sum((a[k] - b[k]).float().norm() ** 2 for k in a) ** 0.5 / sum(a[k].float().norm() ** 2 for k in a) ** 0.5
    assert moved < (1e-2 if "bf16" in keys else 1e-5)
    np.testing.assert_allclose(grads(off, "grad_norm"), grads(on, "grad_norm"), rtol=0.05 if "bf16" in keys else 2e-3)
    assert grads(on, "grad/chosen", "grad/rejected", "grad/cosine").notna().all().all()
    assert grads(off, "grad/chosen", "grad/rejected", "grad/cosine").isna().all().all()


def test_the_sides_add_up_to_the_gradient(go):
    """|G_w + G_l|^2 = |G_w|^2 + |G_l|^2 + 2 cos |G_w| |G_l| in total and in every layer group."""
    steps = go(grad_every=1).steps
    steps = steps[steps["step"] > 0]
    groups = [c.removeprefix("grad_norm") for c in steps if c.startswith("grad_norm")]
    assert len(groups) == 6
    for group in groups:
        one, other, cosine = (steps[f"grad/{k}{group}"] for k in ("chosen", "rejected", "cosine"))
        both = np.sqrt(one**2 + other**2 + 2 * cosine * one * other)
        np.testing.assert_allclose(both, steps[f"grad_norm{group}"], rtol=1e-3)
    assert "grad/rest" not in steps


def test_a_kl_term_is_the_third_arrow(go):
    steps = go(grad_every=2, objective="tdpo2").steps.set_index("step")
    assert steps.loc[[3, 5], "grad/rest"].gt(0).all()  # at step 1 policy and reference are one: KL has no slope
    assert steps.loc[[2, 4], "grad/rest"].isna().all()


def test_cadence_and_totals(go):
    log = go(grad_every=2)
    found = grads(log, "grad/chosen", "grad_total/chosen", "grad_total/rejected", "grad/rejected")
    assert found["grad/chosen"].notna().tolist() == [True, False, True, False, True]
    for side in ("chosen", "rejected"):
        measured = found.loc[[1, 3, 5]]
        np.testing.assert_allclose(measured[f"grad_total/{side}"], measured[f"grad/{side}"].cumsum(), rtol=1e-12)


def test_accumulation_equals_one_batch(go):
    """The sides' gradients are added up over micro-batches before their norms are taken."""
    names = ["grad/chosen", "grad/rejected", "grad/cosine"]
    whole = go("whole", grad_every=1)
    parts = go("parts", grad_every=1, per_device_train_batch_size=1, gradient_accumulation_steps=4)
    np.testing.assert_allclose(grads(whole, *names), grads(parts, *names), rtol=1e-3)


def test_totals_survive_a_resume(go, tmp_path):
    keys = {"save_strategy": "steps", "save_steps": 2, "grad_every": 1}
    whole = go("whole", **keys)
    go("cut", **keys)
    resumed = go("cut", **keys, resume=str(tmp_path / "cut" / "checkpoints" / "checkpoint-2"))
    pd.testing.assert_frame_equal(whole.steps, resumed.steps)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"grad_parameters": "head", "lora_r": 2}, "the head is not trained"),
        ({"torch_compile": True}, "torch_compile"),
        ({"grad_parameters": "tail"}, "it must be one of all, head"),
    ],
)
def test_what_cannot_be_measured_is_refused(go, keys, said):
    with pytest.raises(UserError, match=said):
        go(grad_every=1, **keys)


@pytest.mark.parametrize(
    "keys",
    [
        {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}},
        {"lora_r": 2, "lora_targets": "q_proj,lm_head", "learning_rate": 3e-2},
    ],
    ids=["checkpointing", "adapter on the head"],
)
def test_other_ways_to_train_give_the_same_gradient(go, keys):
    """|G_w + G_l| is the norm that the trainer finds, in every update."""
    steps = go(grad_every=1, **keys).steps.set_index("step").loc[1:]
    one, other, cosine = (steps[f"grad/{k}"].astype(float) for k in ("chosen", "rejected", "cosine"))
    both = np.sqrt(one**2 + other**2 + 2 * cosine * one * other)
    np.testing.assert_allclose(both, steps["grad_norm"].astype(float), rtol=2e-3)


def test_pairs_of_a_run(go):
    """First update of DPO: r = 1 for every pair, and columns that follow from one another."""
    log = go(grad_every=2)
    rows = log.pairs[log.pairs["split"] == "train"].set_index("step")
    assert log.manifest["gradients"] == {"parameters": "all", "pairs": "from activations and output gradients"}
    assert rows.loc[[1, 3, 5], BAND].notna().all().all()
    assert rows.loc[[2, 4], BAND].isna().all().all()
    first = rows.loc[1]
    assert first["incentive_ratio"].to_numpy() == pytest.approx(1.0)
    lengths = first["chosen_grad_norm"] * first["rejected_grad_norm"]
    np.testing.assert_allclose(first["gradient_cosine"], first["grad_inner"] / lengths)
    np.testing.assert_allclose(first["grad_push_ratio"], first["rejected_grad_norm"] / first["chosen_grad_norm"])
    mean = log.steps.set_index("step").loc[1]
    assert mean["gradient_cosine/mean"] == pytest.approx(first["gradient_cosine"].mean())
    assert mean["slack/frac"] == (first["slack"] < 0).mean()


def test_a_small_step_does_what_the_slack_says(go, lm_folder, pairs_file, tmp_path):
    """One plain gradient step on one pair at a time: the chosen answer moves as d_w |s_w|^2 - d_l <s_w, s_l> says."""
    right = 0
    rows = pd.read_json(pairs_file, lines=True).head(6)
    for i in range(len(rows)):
        data = tmp_path / f"{i}.jsonl"
        rows.iloc[[i]].to_json(data, orient="records", lines=True)
        keys = {"data": str(data), "heldout_pairs": 0, "max_steps": 1, "optim": "sgd", "max_grad_norm": 0}
        log = go(f"one{i}", grad_every=1, learning_rate=1e-3, **keys)
        row = log.pairs[log.pairs["split"] == "train"].iloc[0]
        rate = row["chosen_incentive"] * row["chosen_grad_norm"] ** 2 - row["rejected_incentive"] * row["grad_inner"]
        probe = log.pairs[log.pairs["split"] == "probe"].set_index("step")["chosen_logps"]
        right += probe[1] - probe[0] == pytest.approx(1e-3 * rate, rel=0.05, abs=1e-5)
    assert right == len(rows)


def test_two_processes_measure_what_one_does(lm_folder, pairs_file, tmp_path):
    """The same update in halves: equal norms and cosine, and equal weights after it."""
    steps = {}
    for n in (1, 2):
        run = {"model": lm_folder, "data": pairs_file, "output_dir": str(tmp_path / f"run{n}"), "grad_every": 1}
        run |= {"per_device_train_batch_size": 4 // n, "heldout_pairs": 0, "max_steps": 2, "optim": "sgd"}
        (tmp_path / f"{n}.json").write_text(json.dumps(run | {"max_grad_norm": 0.0, "learning_rate": 1e-2}))
        done = forks.run("chesboard.py", "train", "--config", tmp_path / f"{n}.json", ranks=n)
        assert done.returncode == 0, done.stderr
        steps[n] = read_run(tmp_path / f"run{n}").steps.set_index("step")
    for name in ("grad/chosen", "grad/rejected", "grad/cosine", "grad_norm"):
        assert steps[1].loc[1, name] == pytest.approx(steps[2].loc[1, name], rel=1e-4)
    end = "probe/logps/chosen"
    assert steps[1].loc[2, end] == pytest.approx(steps[2].loc[2, end], rel=1e-3)
