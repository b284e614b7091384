"""A whole training under FSDP2, by `accelerate launch` and the example config, on two CPU processes with gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file

from diagnostics.engine import engine_of
from diagnostics.runlog import read_run
from diagnostics.token_likelihood import TokenLikelihood
from trainers.arguments import training_arguments
from trainers.config import make_config
from trainers.loop.given import Given
from trainers.models import load_model, load_policy
from trainers.references import reference_of
from trainers.run import train
from trainers.splits import Splits

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
KEYS = ["step", "split", "pair_id"]
ROUNDING = {"rtol": 1e-5, "atol": 1e-5}  # float32: the order of sums differs; measured 1e-6 nats, and 4e-5 of CHES 727


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_accelerate_reads_the_example(path):
    found = load_config_from_file(str(path))
    said = yaml.safe_load(path.read_text())
    assert str(found.distributed_type.value) == said["distributed_type"]


@pytest.mark.parametrize("reference", ["live", "precomputed"])
def test_the_log_of_two_shards_is_that_of_one_process(lm_folder, pairs_file, tmp_path, reference):
    values = {
        "model": lm_folder, "data": pairs_file, "learning_rate": 3e-3, "max_steps": 3, "probe_pairs": 4,
        "heldout_pairs": 2, "report_to": "none", "reference": reference,
    }  # fmt: skip
    one = train(make_config(values | {"per_device_train_batch_size": 4, "output_dir": str(tmp_path / "one")}))
    two = tmp_path / "two"
    words = [f"--{k}={v}" for k, v in (values | {"per_device_train_batch_size": 2, "output_dir": two}).items()]
    launcher = ["accelerate.commands.launch", "--config_file", str(ROOT / "examples" / "fsdp2.yaml")]
    launcher += ["--num_processes", "2", "--mixed_precision", "no", "--main_process_port", "0"]
    done = subprocess.run(
        [sys.executable, "-m", *launcher, str(ROOT / "tests" / "fsdp_on_cpu.py"), "train", *words],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WITNESS": str(tmp_path / "share")},
        capture_output=True, text=True, cwd=ROOT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    shares = [float((tmp_path / f"share{rank}").read_text()) for rank in (0, 1)]
    assert sum(shares) == pytest.approx(1)
    assert max(shares) < 0.51  # each process held its half
    logs = [read_run(run) for run in (one, two)]
    tables = [log.pairs.set_index(KEYS).sort_index() for log in logs]
    pd.testing.assert_frame_equal(*tables, **ROUNDING)
    pd.testing.assert_frame_equal(*(log.steps for log in logs), **ROUNDING)
    moved = tables[0].loc[3]["chosen_logps"] - tables[0].loc[3]["ref_chosen_logps"]
    assert moved.abs().gt(1e-3).all()  # it went somewhere
    ends = [load_model(str(run / "model")).state_dict() for run in (one, two)]
    for name, weight in ends[0].items():
        torch.testing.assert_close(ends[1][name], weight, atol=1e-5, rtol=0)


def test_a_model_that_will_be_sharded_is_scored_in_the_plain_way(
    lm_folder, pairs_file, make_pairs, tmp_path, monkeypatch
):
    """Prepared for packed rows, it would still be run so when its weights lie in parts: torch crashed there."""
    values = {"model": lm_folder, "data": pairs_file, "output_dir": str(tmp_path / "run"), "reference": "precomputed"}
    config = make_config(values | {"objective": "dpo", "learning_rate": 1e-6})
    arguments, likelihood = training_arguments(config), TokenLikelihood(0)
    for asked, packed in (("true", False), ("false", True)):
        monkeypatch.setenv("ACCELERATE_USE_FSDP", asked)
        policy = load_policy(lm_folder)
        splits = Splits([], make_pairs(2), [], Given(), [], {})
        reference_of(config, policy, splits, arguments, likelihood, {"model": asked, "tokenizer": ""})
        assert engine_of(policy).packed == packed


def test_fsdp_that_accelerate_does_not_do_is_warned_of(lm_folder, pairs_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    values = {"model": lm_folder, "data": pairs_file, "output_dir": str(tmp_path / "run"), "learning_rate": 1e-4}
    train(make_config(values | {"max_steps": 1, "probe_pairs": 2, "report_to": "none"}))
    assert "FSDP was asked for, but accelerate does not shard" in capsys.readouterr().err
