"""A trace of a run's own checkpoints says what the run's own log says."""

import json

import numpy as np
import pandas as pd
import pytest

from diagnostics.errors import UserError
from diagnostics.runlog import read_run
from trainers.config import make_config
from trainers.run import train
from trainers.trace import expand, steps_of, trace

SHARED = ["chosen_logps", "rejected_logps", "ref_chosen_logps", "chosen_kl", "rejected_kl_reverse", "ches_score"]


@pytest.fixture(params=[0, 2], ids=["full", "lora"])
def run(request, lm_folder, pairs_file, tmp_path):
    keys = {
        "model": lm_folder, "data": pairs_file, "output_dir": str(tmp_path / "run"), "learning_rate": 3e-3,
        "per_device_train_batch_size": 4, "save_strategy": "steps", "save_steps": 2, "probe_every": 2,
        "probe_pairs": 99,
        "lora_r": request.param, "heldout_pairs": 0,
    }  # fmt: skip
    return read_run(train(make_config(keys)))


def test_equals_the_runs_own_probe(run, lm_folder, pairs_file, tmp_path):
    out = trace(pairs_file, [lm_folder, str(run.path / "checkpoints")], tmp_path / "trace", reference=lm_folder)
    log = read_run(out)
    assert log.steps["step"].tolist() == [0, 2, 4, 6]
    own = run.pairs[run.pairs["split"] == "probe"].set_index(["step", "pair_id"])[SHARED].sort_index()
    traced = log.pairs.set_index(["step", "pair_id"])[SHARED].sort_index()
    pd.testing.assert_index_equal(own.index, traced.index)
    np.testing.assert_allclose(own, traced, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        run.steps.set_index("step").loc[[0, 2, 4, 6], "probe/displacement/chosen"],
        log.steps["probe/displacement/chosen"],
        atol=1e-4,
    )


def test_goes_on_after_the_last_whole_checkpoint(lm_folder, pairs_file, tmp_path):
    whole = read_run(trace(pairs_file, [lm_folder, lm_folder], tmp_path / "a", pairs=5))
    trace(pairs_file, [lm_folder, lm_folder], tmp_path / "b", pairs=5)
    steps = tmp_path / "b" / "steps.jsonl"
    steps.write_text(steps.read_text().splitlines(keepends=True)[0])  # killed before the second step's line
    again = read_run(trace(pairs_file, [lm_folder, lm_folder], tmp_path / "b", pairs=5))
    pd.testing.assert_frame_equal(whole.pairs, again.pairs)
    pd.testing.assert_frame_equal(whole.steps, again.steps)
    assert json.loads(steps.read_text().splitlines()[1])["step"] == 1


def test_other_settings_are_refused(lm_folder, pairs_file, tmp_path):
    trace(pairs_file, [lm_folder], tmp_path / "a", pairs=5)
    with pytest.raises(UserError, match="other settings"):
        trace(pairs_file, [lm_folder], tmp_path / "a", pairs=6)


def test_steps_come_from_names(tmp_path):
    for n in (10, 9, 100):
        (tmp_path / f"checkpoint-{n}").mkdir()
    assert [p.rsplit("-")[-1] for p in expand([str(tmp_path)])] == ["9", "10", "100"]
    assert list(steps_of(["base", "x/checkpoint-5", "x/checkpoint-10"])) == [0, 5, 10]
    assert list(steps_of(["Llama-3", "x/checkpoint-2", "x/checkpoint-10"])) == [0, 2, 10]
    assert list(steps_of(["a", "b", "c"])) == [0, 1, 2]
    with pytest.raises(UserError, match="no checkpoint given"):
        steps_of([])
