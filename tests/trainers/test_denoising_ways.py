"""A denoiser's run in other ways that must give the same: small batches, two processes, a trace of its checkpoints."""

import json
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from diagnostics.diffusion.denoiser import MLPDenoiser
from diagnostics.runlog import read_run
from trainers.config import make_config
from trainers.run import train
from trainers.trace import trace

CHESBOARD = Path(__file__).parents[2] / "chesboard.py"
SIZE, CLASSES = 6, 3
KINDS = {"denoising": {"objective": "diffusion_dpo", "draws": 4}, "steps": {"objective": "d3po"}}


@pytest.fixture
def world(tmp_path):
    """A denoiser's folder, a file of pairs of samples and one of chains."""
    torch.manual_seed(0)
    MLPDenoiser(size=SIZE, classes=CLASSES, width=16, blocks=1).save(tmp_path / "mlp")
    draw = np.random.default_rng(0)
    for name, points in (("denoising", ()), ("steps", (3,))):
        shape = (24, *points, SIZE)
        arrays = {side: draw.normal(size=shape).astype(np.float32) for side in ("chosen", "rejected")}
        arrays |= {"times": np.tile([900, 500, 100], (24, 1))} if points else {}
        save_file(arrays | {"class_labels": np.arange(24) % CLASSES}, tmp_path / f"{name}.safetensors")
    return tmp_path


def keys(world, kind: str, out: str, **changes) -> dict[str, Any]:
    given = {
        "likelihood": kind, "model": str(world / "mlp"), "beta": 20.0, "data": str(world / f"{kind}.safetensors"),
        "output_dir": str(world / out), "max_steps": 4, "per_device_train_batch_size": 8, "learning_rate": 0.01,
        "probe_pairs": 99, "heldout_pairs": 0, "probe_every": 2, "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    return given | KINDS[kind] | changes


def same(one, other, rtol: float = 1e-4) -> None:
    """The same pairs in the same steps, and the same numbers of all of them."""
    key, but = ["step", "split", "pair_id"], ["epoch"]
    tables = [log.pairs.set_index(key).sort_index().drop(columns=but) for log in (one, other)]
    large = max(float(table["chosen_logps"].abs().max()) for table in tables)
    pd.testing.assert_frame_equal(*tables, rtol=rtol, atol=max(1e-5, 1e-6 * large))  # of float32 sums that large
    np.testing.assert_allclose(one.steps["loss"], other.steps["loss"], rtol=rtol)
    np.testing.assert_allclose(one.steps["grad_norm"], other.steps["grad_norm"], rtol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
def test_small_batches_and_two_processes_give_the_same_log(world, kind):
    whole = read_run(train(make_config(keys(world, kind, "whole"))))
    small = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    same(whole, read_run(train(make_config(keys(world, kind, "small", **small)))))
    two = keys(world, kind, "two", per_device_train_batch_size=4, sample_every=4, samples=2)
    if kind == "denoising":
        np.savez(
            world / "real.npz", **{"image": np.random.default_rng(1).normal(size=(9, SIZE)), "class": np.arange(9) % 3}
        )
        two["sample_judge"] = str(world / "real.npz")
    else:
        two |= {"sample_every": 0, "samples": 16}
    (world / "two.yaml").write_text(json.dumps(two))
    done = forks.run(CHESBOARD, "train", "--config", world / "two.yaml", ranks=2)
    assert done.returncode == 0, done.stdout
    log = read_run(world / "two")
    same(whole, log)
    if kind == "denoising":
        assert log.samples.groupby("step").size().to_dict() == {0: 2, 4: 2}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("lora_r", [0, 2])
def test_a_trace_of_its_checkpoints_equals_the_runs_own_probe(world, kind, lora_r):
    saved = {"save_strategy": "steps", "save_steps": 2, "lora_r": lora_r}
    own: Any = read_run(train(make_config(keys(world, kind, "run", **saved))))
    probed = own.pairs[own.pairs["split"] == "probe"]
    first, last = (probed[probed["step"] == step].set_index("pair_id") for step in (0, 4))
    assert first["ref_chosen_logps"].equals(last["ref_chosen_logps"])
    assert first["chosen_logps"].equals(first["ref_chosen_logps"])
    assert not last["chosen_logps"].equals(first["chosen_logps"])
    how: Any = {"likelihood": kind, "reference": str(world / "mlp")} | ({"draws": 4} if kind == "denoising" else {})
    log: Any = read_run(
        trace(str(world / f"{kind}.safetensors"), [str(world / "run" / "checkpoints")], world / "t", **how)
    )
    shared = ["chosen_logps", "rejected_logps", "ref_chosen_logps", "chosen_kl", "rejected_kl"]
    key = ["step", "pair_id"]
    theirs = log.pairs[log.pairs["split"] == "probe"].set_index(key)[shared].sort_index()
    np.testing.assert_allclose(probed.set_index(key)[shared].sort_index(), theirs, rtol=1e-4, atol=1e-6)
