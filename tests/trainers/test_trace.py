"""A trace of a run's own checkpoints says what the run's own log says."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from diagnostics.errors import DataError, UserError
from diagnostics.folder import release, take
from diagnostics.runlog import RunLogWriter, read_run
from trainers.config import make_config
from trainers.layouts import expand, steps_of
from trainers.loop.probe import Probe
from trainers.models import load_model
from trainers.run import train
from trainers.trace import trace

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


@pytest.fixture
def checkpoints(lm_folder, tmp_path) -> str:
    """Three models that differ, as checkpoints 1 to 3; the start is not among them."""
    for n in (1, 2, 3):
        folder = shutil.copytree(lm_folder, tmp_path / "out" / f"checkpoint-{n}")
        model = load_model(str(folder))
        with torch.no_grad():
            model.lm_head.weight += 0.1 * n * torch.randn_like(model.lm_head.weight)
        model.save_pretrained(folder)
    return str(tmp_path / "out")


def same(one, other) -> None:
    for table in ("pairs", "mass", "tokens", "steps"):
        pd.testing.assert_frame_equal(getattr(one, table), getattr(other, table))


def test_a_checkpoint_that_is_no_model_is_found_before_anything_is_measured(lm_folder, pairs_file, tmp_path):
    (tmp_path / "step_9").mkdir()
    with pytest.raises(DataError, match=r"step_9: no config\.json in this folder"):
        trace(pairs_file, [str(tmp_path / "step_9")], tmp_path / "t", reference=lm_folder, pairs=5)
    assert not (tmp_path / "t").exists()


def test_the_reference_is_measured_as_step_0(lm_folder, pairs_file, checkpoints, tmp_path, capsys):
    """So that every change has one start, though it is not among the checkpoints."""
    log = read_run(trace(pairs_file, [checkpoints], tmp_path / "t", reference=lm_folder, pairs=5))
    assert log.steps["step"].tolist() == [0, 1, 2, 3]
    start = log.mass[log.mass["step"] == 0]
    assert (start["change"] == 0).all()
    keys = ["pair_id", "kind", "name", "token_id"]
    probs = start[start["kind"].isin(["chosen", "rejected", "response"])].set_index(keys)["prob"]
    for _, rows in log.mass[log.mass["kind"].isin(["chosen", "rejected", "response"])].groupby("step"):
        found = rows.set_index(keys)["prob_start"]
        np.testing.assert_array_equal(found, probs.loc[found.index])
    first = log.pairs[log.pairs["step"] == 0]
    assert (first["chosen_logps"] == first["ref_chosen_logps"]).all()
    assert f"step 0 is the reference, {lm_folder}; the checkpoints are of step 1, 2, 3." in capsys.readouterr().out


def test_stopped_at_any_checkpoint_it_goes_on_to_the_same_tables(
    lm_folder, pairs_file, checkpoints, tmp_path, monkeypatch, capsys
):
    given = {"reference": lm_folder, "pairs": 5}
    whole = read_run(trace(pairs_file, [checkpoints], tmp_path / "whole", **given))
    real = RunLogWriter.append_step
    for at in (0, 1, 3):

        def dies(self, row, at=at):
            if row["step"] == at:  # its rows are there, its line is not
                raise KeyboardInterrupt
            real(self, row)

        with monkeypatch.context() as patch:
            patch.setattr(RunLogWriter, "append_step", dies)
            with pytest.raises(KeyboardInterrupt):
                trace(pairs_file, [checkpoints], tmp_path / "t", **given)
    same(whole, read_run(trace(pairs_file, [checkpoints], tmp_path / "t", **given)))
    before = {p: p.read_bytes() for p in (tmp_path / "t").rglob("*") if p.is_file()}
    trace(pairs_file, [checkpoints], tmp_path / "t", **given)
    assert "all 4 checkpoints are measured; nothing is left to do." in capsys.readouterr().out
    assert {p: p.read_bytes() for p in (tmp_path / "t").rglob("*") if p.is_file()} == before


def test_a_start_that_measured_nothing_begins_anew_and_a_log_without_its_manifest_is_left_alone(
    lm_folder, pairs_file, tmp_path, monkeypatch, capsys
):
    out, given = tmp_path / "t", {"reference": lm_folder, "pairs": 5}
    link = tmp_path / "other"
    shutil.copytree(lm_folder, link)
    with monkeypatch.context() as patch:
        patch.setattr(Probe, "measure", lambda *a, **k: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trace(pairs_file, [f"{link}=1"], out, **given)
    Path(pairs_file).write_text(Path(pairs_file).read_text().replace("alpha", "omega"))
    log = read_run(trace(pairs_file, [f"{link}=1"], out, **given))
    assert set(log.steps["step"]) == {0, 1}
    assert capsys.readouterr().out.count("a start that ended before it measured anything is set aside") == 1
    (out / "manifest.json").unlink()
    lines = (out / "steps.jsonl").read_text().splitlines(keepends=True)
    (out / "steps.jsonl").write_text(lines[0])  # as if stopped after the first
    before = sorted(out.rglob("*"))
    with pytest.raises(DataError, match=r"manifest\.json"):
        trace(pairs_file, [f"{link}=1"], out, **given)
    assert sorted(out.rglob("*")) == before


def test_without_its_start_or_with_other_data_it_does_not_go_on(lm_folder, pairs_file, tmp_path, monkeypatch):
    link = tmp_path / "other"
    shutil.copytree(lm_folder, link)
    real, out = RunLogWriter.append_step, tmp_path / "t"

    def dies(self, row):
        real(self, row)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(RunLogWriter, "append_step", dies)
        with pytest.raises(KeyboardInterrupt):
            trace(pairs_file, [f"{link}=1"], out, reference=lm_folder, pairs=5)
    whole = Path(pairs_file).read_text()
    Path(pairs_file).write_text(whole.replace("alpha", "omega"))
    with pytest.raises(UserError, match="the data changed since this run was started"):
        trace(pairs_file, [f"{link}=1"], out, reference=lm_folder, pairs=5)
    Path(pairs_file).write_text(whole)
    (out / "probe_start.safetensors").unlink()
    with pytest.raises(DataError, match=r"probe_start\.safetensors: the start of this run cannot be read"):
        trace(pairs_file, [f"{link}=1"], out, reference=lm_folder, pairs=5)


def test_other_settings_and_another_writer_are_refused(lm_folder, pairs_file, tmp_path):
    trace(pairs_file, [lm_folder], tmp_path / "a", pairs=5)
    with pytest.raises(UserError, match="other settings"):
        trace(pairs_file, [lm_folder], tmp_path / "a", pairs=6)
    take(tmp_path / "a", "trace")
    with pytest.raises(UserError, match=r"process \d+ on host .* \(trace, since"):
        trace(pairs_file, [lm_folder], tmp_path / "a", pairs=5)
    release(tmp_path / "a")


def test_a_start_that_fails_leaves_no_folder(lm_folder, tmp_path):
    with pytest.raises(UserError):
        trace(str(tmp_path / "none.jsonl"), [lm_folder], tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("names", "steps"),
    [
        (["base", "x/checkpoint-5", "x/checkpoint-10"], [0, 5, 10]),
        (["base", "x/checkpoint-10", "x/checkpoint-9"], [0, 9, 10]),
        (["Llama-3", "x/global_step2_hf", "x/global_step100_hf"], [0, 2, 100]),
        (["base", "x/global_step_20/actor/huggingface"], [0, 20]),
        (["base", "x/step_100", "x/200", "x/iter-300", "x/epoch=3-step=400"], [0, 100, 200, 300, 400]),
        (["base", "x/epoch_1", "x/epoch_2"], [0, 1, 2]),
        (["phi-1", "phi-1-dpo=30", "phi-1-ipo=7"], [0, 7, 30]),
        (["x/checkpoint-100"], [0]),
    ],
)
def test_steps_come_from_names(names, steps):
    found = steps_of(names)
    assert list(found) == steps
    assert found[0] == names[0]


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ([], "no checkpoint given"),
        (["base", "phi-1"], "phi-1: of which step is this?"),
        (["base", "x/step-1", "x/final"], "x/final: of which step is this?"),
        (["base", "x/step-1", "x/epoch-2"], "x/epoch-2: of which step is this?"),
        (["base", "a/step-1", "b/step-1"], "b/step-1 and a/step-1 are both of step 1"),
        (["base", "a/step-0"], "Step 0 is the reference, base"),
    ],
)
def test_where_a_name_says_no_step_it_is_asked_for(names, said):
    with pytest.raises(UserError) as error:
        steps_of(names)
    assert said in str(error.value)


def test_the_trainers_own_word_comes_before_the_name(tmp_path):
    for name in ("final", "checkpoint-9"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
    (tmp_path / "final" / "trainer_state.json").write_text('{"global_step": 12}')
    (tmp_path / "notes").mkdir()
    assert list(steps_of(expand([str(tmp_path)]), "base")) == [0, 9, 12]
    both = [str(tmp_path / "final"), str(tmp_path / "checkpoint-9")]
    assert list(steps_of(both, "base")) == [0, 9, 12]
    assert list(steps_of([*both, "base"], "base")) == [0, 9, 12]  # the reference is not measured twice
    (tmp_path / "checkpoint-9").rename(tmp_path / "step-9")
    assert sorted(expand([str(tmp_path)])) == [str(tmp_path / "final"), str(tmp_path / "step-9")]
    (tmp_path / "a=5").mkdir()
    with pytest.raises(UserError, match="a=5: of which step"):
        steps_of(["base", str(tmp_path / "a=5")])  # a folder of that name
