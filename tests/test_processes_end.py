"""Two processes by torchrun: they do one job, are refused as one, and the loss of one is a sentence of the other."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import forks
import pandas as pd
import pytest

from diagnostics.folder import release, take
from diagnostics.runlog import read_run

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.slow

# the front door, in which process 1 is killed as it writes or scores its n-th time
KILLED = """
import os, signal, sys
import chesboard
if os.environ["RANK"] == "1":
    from {module} import {owner} as owner
    real, calls = owner.{name}, []
    def dies(*a, **k):
        calls.append(1)
        if len(calls) == {at}:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*a, **k)
    owner.{name} = dies
chesboard.main()
"""


def launch(script: object, *arguments: object) -> subprocess.CompletedProcess[str]:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    return subprocess.run(
        [*launcher, *map(str, (script, *arguments))],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )


def sentences(done: subprocess.CompletedProcess[str]) -> list[str]:
    return [line for line in done.stderr.splitlines() if re.match(r"(\[.*\]:)?chesboard: ", line)]


@pytest.fixture
def train(lm_folder, pairs_file, tmp_path):
    """Arguments of a train of six steps with checkpoints."""
    keys = {
        "model": lm_folder, "data": pairs_file, "output_dir": str(tmp_path / "run"), "learning_rate": 3e-3,
        "per_device_train_batch_size": 2, "heldout_pairs": 2, "probe_pairs": 4, "save_model": False,
        "save_strategy": "steps", "save_steps": 1, "resume": "auto",
    }  # fmt: skip
    (tmp_path / "run.json").write_text(json.dumps(keys))
    return ["train", "--config", tmp_path / "run.json"]


def test_a_killed_process_is_said_by_the_other_and_the_run_goes_on(train, tmp_path):
    script = tmp_path / "killed.py"
    script.write_text(
        KILLED.format(module="trainers.loop.trainer", owner="PreferenceTrainer", name="compute_loss", at=3)
    )
    done = launch(script, *train)
    assert done.returncode != 0
    assert len(sentences(done)) == 1, done.stderr
    assert "another process of this job has ended" in done.stderr or "stopped by SIGTERM" in done.stderr
    assert "gloo" not in done.stderr
    assert "Traceback" not in done.stderr.split("torch/distributed")[0]
    done = forks.run("chesboard.py", *train, ranks=2)
    assert done.returncode == 0, done.stderr
    assert "goes on from checkpoint-" in done.stdout
    log = read_run(tmp_path / "run")
    assert log.steps["step"].tolist() == list(range(7))
    assert forks.run("chesboard.py", *train, ranks=2).stdout.count("nothing is left to do") == 1


def test_a_held_folder_refuses_both(train, tmp_path):
    take(tmp_path / "run", "train")
    done = forks.run("chesboard.py", *train, ranks=2)
    release(tmp_path / "run")
    assert done.returncode != 0
    (said,) = sentences(done)
    assert f"process {os.getpid()} on host" in said


def test_flag_goes_on_after_one_was_killed(lm_folder, pairs_file, tmp_path):
    rows = Path(pairs_file).read_text().splitlines()
    data = tmp_path / "many.jsonl"
    data.write_text("".join(json.dumps(json.loads(r) | {"id": f"{r[:0]}{i}-{k}"}) + "\n"
                            for i in range(40) for k, r in enumerate(rows)))  # fmt: skip
    script = tmp_path / "killed.py"
    script.write_text(KILLED.format(module="diagnostics", owner="flagging", name="rows", at=1))
    given = ["flag", data, "--model", lm_folder, "--out"]
    done = launch(script, *given, tmp_path / "f")
    assert done.returncode != 0
    assert len(sentences(done)) == 1, done.stderr
    for name in ("f", "whole"):
        assert forks.run("chesboard.py", *given, tmp_path / name, ranks=2).returncode == 0
    pd.testing.assert_frame_equal(
        pd.read_parquet(tmp_path / "f" / "scores.parquet"), pd.read_parquet(tmp_path / "whole" / "scores.parquet")
    )


def test_trace_by_two_is_one_trace(lm_folder, pairs_file, tmp_path):
    given = ["trace", pairs_file, "--reference", lm_folder, "--checkpoints", f"{lm_folder}/../{Path(lm_folder).name}"]
    done = launch("chesboard.py", *given, "--out", tmp_path / "t", "--pairs", 5)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 0 is the reference") == 1
    log = read_run(tmp_path / "t")
    assert log.steps["step"].tolist() == [0]
    assert len(log.pairs) == 5
