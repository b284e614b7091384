"""Runs that were stopped: they go on to the same log, start over, or are refused in one sentence."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

from diagnostics.errors import DataError, UserError
from diagnostics.folder import release, take
from diagnostics.runlog import RunLogWriter, read_run
from trainers.config import make_config
from trainers.models import load_model
from trainers.run import train

KEYS = {
    "learning_rate": 3e-3, "per_device_train_batch_size": 4, "heldout_pairs": 2, "probe_pairs": 4, "probe_every": 3,
    "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "save_model": False,
}  # fmt: skip
LAST = 12  # 22 pairs in batches of 4, twice


@pytest.fixture
def go(lm_folder, pairs_file, tmp_path):
    """Train; returns the run log."""

    def run(name: str = "run", **keys):
        values = {"model": lm_folder, "data": pairs_file, "output_dir": str(tmp_path / name)}
        return read_run(train(make_config(values | KEYS | keys)))

    return run


@pytest.fixture
def stopped(go, monkeypatch, tmp_path):
    """A run that was stopped after it had logged a step; returns its folder."""

    def stop(at: int, name: str = "run", **keys) -> Path:
        real = RunLogWriter.append_step

        def dies(self, row):
            real(self, row)
            if row["step"] == at:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(RunLogWriter, "append_step", dies)
            with pytest.raises(KeyboardInterrupt):
                go(name, **keys)
        return tmp_path / name

    return stop


def same(one, other) -> None:
    for table in ("pairs", "steps", "mass", "tokens"):
        pd.testing.assert_frame_equal(getattr(one, table), getattr(other, table))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("at", [0, 2, 5, LAST])
@pytest.mark.parametrize("how", [True, "auto"])
def test_a_stopped_run_goes_on_to_the_same_log(go, stopped, capsys, at, how):
    whole, folder = go("whole"), stopped(at)
    if at < 3 and how is True:  # step 2 was logged, its checkpoint not yet saved
        with pytest.raises(UserError, match="no checkpoint to resume from .* Start over with --resume auto"):
            go(resume=True)
        return
    same(whole, go(resume=how))
    said = capsys.readouterr().out
    if at == 5:
        assert "goes on from checkpoint-4; steps 5 to 5, logged after it, are done again." in said
    if at < 3:
        assert "it holds no checkpoint, so the run starts over; what it has logged is set aside." in said
        assert read_run(folder / "aside-1").steps["step"].max() == at
    else:
        assert not list(folder.glob("aside*"))


def test_a_given_checkpoint_is_gone_on_from(go, tmp_path, capsys):
    whole = go("cut")
    resumed = go("cut", resume=str(tmp_path / "cut" / "checkpoints" / "checkpoint-4"))
    assert "goes on from checkpoint-4; steps 5 to 12, logged after it, are done again." in capsys.readouterr().out
    same(whole, resumed)
    assert resumed.manifest["finished"] == {"step": LAST}


def test_auto_starts_a_run_and_ends_at_a_finished_one(go, tmp_path, capsys):
    """So that a loop may repeat one command for ever."""
    whole = go(resume="auto", save_model=True)
    assert whole.config["resume"] is False
    before = files(whole.path)
    for how in ("auto", True):
        same(whole, go(resume=how, save_model=True))
        assert f"run: finished at step {LAST}; nothing is left to do." in capsys.readouterr().out
    assert files(whole.path) == before


def test_a_finished_run_is_not_trained_past_its_last_step(go, capsys):
    """max_steps cuts an epoch, where transformers would train one more."""
    keys = {"max_steps": 5, "save_steps": 5}
    whole = go(**keys)
    manifest = json.loads((whole.path / "manifest.json").read_text())
    assert manifest.pop("finished") == {"step": 5}
    (whole.path / "manifest.json").write_text(json.dumps(manifest))  # killed before it could say so
    same(whole, go(**keys, resume="auto"))


def test_killed_before_its_model_was_saved_a_run_saves_it(go, tmp_path):
    whole = go(save_model=True)
    weights = load_model(str(whole.path / "model")).state_dict()
    shutil.rmtree(whole.path / "model")
    manifest = json.loads((whole.path / "manifest.json").read_text())
    del manifest["finished"]
    (whole.path / "manifest.json").write_text(json.dumps(manifest))
    same(whole, go(save_model=True, resume="auto"))
    again = load_model(str(whole.path / "model")).state_dict()
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def test_without_checkpoints_a_stopped_run_starts_over_each_time(go, stopped, tmp_path):
    whole = go("whole", save_strategy="no")
    for at in (4, 3, 5):
        stopped(at, save_strategy="no", resume="auto")
    same(whole, go(save_strategy="no", resume="auto"))
    asides = [read_run(tmp_path / "run" / f"aside-{n}").steps["step"].max() for n in (1, 2, 3)]
    assert asides == [4, 3, 5]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("sealed", [True, False], ids=["with its list", "without"])
@pytest.mark.parametrize("harm", [Path.unlink, cut])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(go, stopped, capsys, name, harm, sealed):
    whole, folder = go("whole", num_train_epochs=1), stopped(5, num_train_epochs=1)
    newest = folder / "checkpoints" / "checkpoint-4"
    harm(newest / name)
    if not sealed:
        (newest / "files.json").unlink()
    same(whole, go(num_train_epochs=1, resume=True))
    said = capsys.readouterr().out
    assert "goes on from checkpoint-2; steps 3 to 5, logged after it, are done again (checkpoint-4 cannot be" in said
    if sealed or harm is Path.unlink:
        assert f"{name} is {'missing' if harm is Path.unlink else 'damaged'}" in said


def test_a_flipped_bit_in_a_checkpoint_is_found(go, stopped, capsys):
    folder = stopped(5)
    flip(folder / "checkpoints" / "checkpoint-4" / "optimizer.pt")
    go(resume=True)
    assert "(checkpoint-4 cannot be used (optimizer.pt is damaged))" in capsys.readouterr().out


def test_where_no_checkpoint_is_whole_nothing_is_changed(go, stopped):
    folder = stopped(5)
    for n in (2, 4):
        (folder / "checkpoints" / f"checkpoint-{n}" / "scheduler.pt").unlink()
    before = files(folder)
    with pytest.raises(UserError, match=r"\(checkpoint-4 cannot be used \(scheduler.pt is missing\); checkpoint-2"):
        go(resume=True)
    assert files(folder) == before


def test_a_checkpoint_of_other_processes_is_refused(go, stopped):
    folder = stopped(5)
    newest = folder / "checkpoints" / "checkpoint-4"
    for n in (0, 1):
        shutil.copy(newest / "rng_state.pth", newest / f"rng_state_{n}.pth")
    (newest / "rng_state.pth").unlink()
    with pytest.raises(UserError, match="checkpoint-4: was written by 2 processes and not by 1"):
        go(resume="auto")


def test_a_log_that_ends_before_the_checkpoint_is_taken_further_back(go, stopped, capsys):
    """As after a power cut, which may take the last rows of the log."""
    whole, folder = go("whole"), stopped(7)
    steps = folder / "steps.jsonl"
    steps.write_text("".join(steps.read_text().splitlines(keepends=True)[:6]))
    same(whole, go(resume="auto"))
    assert "checkpoint-6 cannot be used (the log ends before it, at step 5)" in capsys.readouterr().out


@pytest.mark.parametrize("line", ["7", "[]", '{"loss": 0.5}', '{"step": "three"}', "{"])
def test_a_spoiled_line_is_a_sentence_before_anything_is_rewritten(go, stopped, line):
    folder = stopped(5)
    lines = (folder / "steps.jsonl").read_text().splitlines(keepends=True)
    (folder / "steps.jsonl").write_text("".join([*lines[:3], line + "\n", *lines[4:]]))
    before = files(folder)
    for how in (True, "auto"):
        with pytest.raises(DataError, match=r"steps\.jsonl"):
            go(resume=how)
    assert files(folder) == before


def test_without_its_start_a_run_is_not_gone_on_with(go, stopped):
    folder = stopped(5)
    (folder / "probe_start.safetensors").unlink()
    with pytest.raises(DataError, match=r"probe_start\.safetensors: the start of this run cannot be read"):
        go(resume=True)


def test_other_settings_are_refused(go, stopped):
    stopped(5)
    for how in (True, "auto"):
        with pytest.raises(UserError, match=r"other settings \(beta\)"):
            go(beta=0.5, resume=how)


def folder_of(place: Path, file: Path) -> str:
    place.mkdir()
    shutil.copy(file, place / "data.jsonl")
    return str(place)


@pytest.mark.parametrize("key", ["data", "heldout_data", "probe_data"])
@pytest.mark.parametrize("kind", ["file", "folder"])
def test_changed_data_are_noticed(go, stopped, pairs_file, tmp_path, key, kind):
    given = Path(pairs_file)
    place = folder_of(tmp_path / "d", given) if kind == "folder" else str(shutil.copy(given, tmp_path / "d.jsonl"))
    before = files(stopped(5, **{key: place}))
    changed = tmp_path / "d" / "data.jsonl" if kind == "folder" else tmp_path / "d.jsonl"
    changed.write_text(changed.read_text().replace("alpha", "omega"))
    with pytest.raises(UserError, match=f"the {key} changed since this run was started"):
        go(resume="auto", **{key: place})
    assert files(tmp_path / "run") == before


def test_a_live_run_is_not_touched(go, tmp_path, stopped):
    folder = stopped(5)
    take(folder, "train")
    before = files(folder)
    for how in (False, True, "auto"):
        with pytest.raises(UserError, match=r"run: process \d+ on host .* is writing to this folder"):
            go(resume=how)
    assert files(folder) == before
    release(folder)


def test_a_folder_of_other_things_is_left_alone(go, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no run to resume in this folder"):
        go(resume="auto")
    assert files(tmp_path / "run") == {"notes.txt": b"mine"}


def test_no_steps_are_refused_and_no_epochs_train_none(go):
    with pytest.raises(UserError, match="max_steps is 0"):
        go(max_steps=0)
    log = go("none", num_train_epochs=0)
    assert log.steps["step"].tolist() == [0]
    assert log.manifest["finished"] == {"step": 0}


def test_batches_that_are_never_full_are_refused(go, tmp_path):
    with pytest.raises(UserError, match="dataloader_drop_last drops every batch: 32 to a batch, and 22 to train on"):
        go(per_device_train_batch_size=32, dataloader_drop_last=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [False, True], ids=["of the data", "a file of their own"])
def test_fewer_held_out_than_asked_for_is_said(go, pairs_file, capsys, given):
    log = go(heldout_pairs=99, max_steps=1, **({"heldout_data": pairs_file} if given else {}))
    held = log.pairs[log.pairs["split"] == "eval"]["pair_id"].nunique()
    why = f"{pairs_file} holds no more" if given else "a tenth of the 24 pairs at most; heldout_data names a file"
    assert f"held out: {held} of the 99 pairs asked for ({why}" in capsys.readouterr().out
    assert held == (24 if given else 2)
