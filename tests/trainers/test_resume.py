"""Runs that were stopped: they go on to the same log, start over, or are refused in one sentence."""

import json
import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch

from diagnostics.errors import DataError, UserError
from diagnostics.folder import release, take
from diagnostics.runlog import RunLog, RunLogWriter, read_run
from trainers.checkpoint import newest, seal
from trainers.config import make_config
from trainers.models import load_model
from trainers.run import train

KEYS = {
    "learning_rate": 3e-3, "per_device_train_batch_size": 8, "heldout_pairs": 2, "probe_pairs": 3, "probe_every": 3,
    "num_train_epochs": 2, "save_strategy": "steps", "save_steps": 2, "save_model": False, "response_types": 1,
}  # fmt: skip
LAST = 6  # 22 pairs in batches of 8, twice


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> str:
    """24 pairs, the same file for all runs."""
    words, path = "alpha beta gamma delta".split(), tmp_path_factory.mktemp("data") / "pairs.jsonl"
    answers = [(" ".join(words[: 1 + i % 4]), " ".join(words[i % 3 :])) for i in range(24)]
    rows = [{"prompt": f"{i} ?", "chosen": f" {i} {a}", "rejected": f" {b} {i}"} for i, (a, b) in enumerate(answers)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def run(lm_folder: str, data: str, folder: Path, **keys) -> RunLog:
    return read_run(train(make_config({"model": lm_folder, "data": data, "output_dir": str(folder)} | KEYS | keys)))


def stop(at: int, *given, **keys) -> Path:
    """A run that is stopped after it has logged a step; returns its folder."""
    real = RunLogWriter.append_step

    def dies(self, row):
        real(self, row)
        if row["step"] == at:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLogWriter, "append_step", dies)
        with pytest.raises(KeyboardInterrupt):
            run(*given, **keys)
    return given[-1]


@pytest.fixture(scope="session")
def whole_run(lm_folder, data, tmp_path_factory) -> RunLog:
    """A run that nothing stopped, with its weights."""
    return run(lm_folder, data, tmp_path_factory.mktemp("whole") / "run", save_model=True)


@pytest.fixture(scope="session")
def stopped_run(lm_folder, data, tmp_path_factory) -> Path:
    """A run stopped at step 5, with checkpoints 2 and 4."""
    return stop(5, lm_folder, data, tmp_path_factory.mktemp("stopped") / "run")


@pytest.fixture
def stopped(stopped_run, tmp_path) -> Path:
    """A copy of it that may be spoiled."""
    return Path(shutil.copytree(stopped_run, tmp_path / "run"))


@pytest.fixture
def whole(whole_run, tmp_path) -> Path:
    """A copy of the finished one."""
    return Path(shutil.copytree(whole_run.path, tmp_path / "run"))


@pytest.fixture
def go(lm_folder, data, tmp_path):
    """Train, or go on, in `run`; returns the run log."""
    return partial(run, lm_folder, data, tmp_path / "run")


def same(one, other) -> None:
    for table in ("pairs", "steps", "mass", "tokens"):
        pd.testing.assert_frame_equal(getattr(one, table), getattr(other, table))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("at", [3, LAST])
def test_a_stopped_run_goes_on_to_the_same_log(go, lm_folder, data, tmp_path, whole_run, at):
    stop(at, lm_folder, data, tmp_path / "run")
    same(whole_run, go(resume=True))
    assert not list((tmp_path / "run").glob("aside*"))


def test_what_is_done_again_is_said(go, stopped, whole_run, capsys):
    same(whole_run, go(resume="auto"))
    assert "run: goes on from checkpoint-4; steps 5 to 5, logged after it, are done again." in capsys.readouterr().out


@pytest.mark.parametrize("at", [0, 2])
def test_stopped_before_its_first_checkpoint_a_run_starts_over(go, lm_folder, data, tmp_path, whole_run, capsys, at):
    """Step 2 was logged, its checkpoint not yet saved."""
    folder = stop(at, lm_folder, data, tmp_path / "run")
    before = files(folder)
    with pytest.raises(UserError, match=r"no checkpoint to resume from .* Start over with --resume auto"):
        go(resume=True)
    assert files(folder) == before
    same(whole_run, go(resume="auto"))
    assert "it holds no checkpoint, so the run starts over; what it has logged is set aside." in capsys.readouterr().out
    assert read_run(folder / "aside-1").steps["step"].max() == at


def test_without_checkpoints_a_stopped_run_starts_over_each_time(go, lm_folder, data, tmp_path, whole_run):
    for at in (3, 1):
        stop(at, lm_folder, data, tmp_path / "run", save_strategy="no", resume="auto")
    same(whole_run, go(save_strategy="no", resume="auto"))
    assert [read_run(tmp_path / "run" / f"aside-{n}").steps["step"].max() for n in (1, 2)] == [3, 1]


def test_a_given_checkpoint_is_gone_on_from(go, whole, whole_run, capsys):
    resumed = go(resume=str(whole / "checkpoints" / "checkpoint-4"))
    assert "goes on from checkpoint-4; steps 5 to 6, logged after it, are done again." in capsys.readouterr().out
    same(whole_run, resumed)
    assert resumed.manifest["finished"]["step"] == LAST


def test_auto_starts_a_run(go, whole_run):
    log = go(resume="auto")
    same(whole_run, log)
    assert log.config["resume"] is False


@pytest.mark.parametrize("how", [True, "auto"])
def test_a_finished_run_stays_as_it_is(go, whole, whole_run, capsys, how):
    """So that a loop may repeat one command for ever."""
    before = files(whole)
    same(whole_run, go(resume=how, save_model=True))
    assert f"run: finished at step {LAST}; nothing is left to do." in capsys.readouterr().out
    assert files(whole) == before


def unfinish(folder: Path) -> None:
    """As if killed before it could say that it was finished."""
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest.pop("finished")
    (folder / "manifest.json").write_text(json.dumps(manifest))


def test_a_run_is_not_trained_past_its_last_step(go):
    """max_steps cuts an epoch, where transformers would train one more."""
    keys = {"max_steps": 2, "save_steps": 2}
    whole = go(**keys)
    unfinish(whole.path)
    same(whole, go(**keys, resume="auto"))


def test_killed_before_its_model_was_saved_a_run_saves_it(go, whole, whole_run):
    shutil.rmtree(whole / "model")
    unfinish(whole)
    same(whole_run, go(save_model=True, resume="auto"))
    again, weights = (load_model(str(p / "model")).state_dict() for p in (whole, whole_run.path))
    assert all(torch.equal(again[name], weights[name]) for name in weights)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("sealed", [True, False], ids=["with its list", "without"])
@pytest.mark.parametrize("harm", [Path.unlink, cut, flip])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"]
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_taken(stopped, name, harm, sealed):
    """Without the list of its files, as in a kill just before it was written, a flipped bit may go unseen."""
    found = [stopped / "checkpoints" / f"checkpoint-{n}" for n in (2, 4)]
    assert newest(found, processes=1, logged=5) == (found[1], [])
    harm(found[1] / name)
    if not sealed:
        (found[1] / "files.json").unlink()
        assert harm is flip or newest(found, processes=1, logged=5)[0] == found[0]
        return
    took, (said,) = newest(found, processes=1, logged=5)
    assert took == found[0]
    assert said == f"checkpoint-4 cannot be used ({name} is {'missing' if harm is Path.unlink else 'damaged'})"


def test_a_run_goes_on_from_the_newest_whole_checkpoint(go, stopped, whole_run, capsys):
    cut(stopped / "checkpoints" / "checkpoint-4" / "optimizer.pt")
    same(whole_run, go(resume=True))
    said = "goes on from checkpoint-2; steps 3 to 5, logged after it, are done again (checkpoint-4 cannot be used"
    assert said in capsys.readouterr().out


def test_where_no_checkpoint_is_whole_nothing_is_changed(go, stopped):
    for n in (2, 4):
        (stopped / "checkpoints" / f"checkpoint-{n}" / "scheduler.pt").unlink()
    before = files(stopped)
    with pytest.raises(UserError, match=r"\(checkpoint-4 cannot be used \(scheduler.pt is missing\); checkpoint-2"):
        go(resume=True)
    assert files(stopped) == before


def test_a_checkpoint_of_other_processes_is_refused(go, stopped):
    newest = stopped / "checkpoints" / "checkpoint-4"
    for n in (0, 1):
        shutil.copy(newest / "rng_state.pth", newest / f"rng_state_{n}.pth")
    (newest / "rng_state.pth").unlink()
    with pytest.raises(UserError, match="checkpoint-4: was written by 2 processes and not by 1"):
        go(resume="auto")


def test_a_log_that_ends_before_the_checkpoint_is_taken_further_back(go, stopped, whole_run, capsys):
    """As after a power cut, which may take the last rows of the log."""
    steps = stopped / "steps.jsonl"
    steps.write_text("".join(steps.read_text().splitlines(keepends=True)[:4]))
    same(whole_run, go(resume="auto"))
    assert "checkpoint-4 cannot be used (the log ends before it, at step 3)" in capsys.readouterr().out


def test_a_spoiled_line_is_a_sentence_before_anything_is_rewritten(go, stopped):
    lines = (stopped / "steps.jsonl").read_text().splitlines(keepends=True)
    (stopped / "steps.jsonl").write_text("".join([*lines[:3], "{\n", *lines[4:]]))
    before = files(stopped)
    for how in (True, "auto"):
        with pytest.raises(DataError, match=r"steps\.jsonl"):
            go(resume=how)
    assert files(stopped) == before


def test_without_its_start_a_run_is_not_gone_on_with(go, stopped):
    (stopped / "probe_start.safetensors").unlink()
    with pytest.raises(DataError, match=r"probe_start\.safetensors: the start of this run cannot be read"):
        go(resume=True)


def test_other_settings_are_refused(go, stopped):
    for how in (True, "auto"):
        with pytest.raises(UserError, match=r"other settings \(beta\)"):
            go(beta=0.5, resume=how)


@pytest.mark.parametrize(("key", "kind"), [("data", "file"), ("data", "folder"), ("heldout_data", "folder")])
def test_changed_data_are_noticed(lm_folder, data, tmp_path, key, kind):
    (tmp_path / "d").mkdir()
    file = Path(shutil.copy(data, tmp_path / "d" / "data.jsonl"))
    keys = {"data": data, "save_steps": 1, key: str(file if kind == "file" else file.parent)}
    given = (lm_folder, keys.pop("data"), tmp_path / "run")
    before = files(stop(2, *given, **keys))
    file.write_text(file.read_text().replace("alpha", "omega"))
    with pytest.raises(UserError, match=f"the {key} changed since this run was started"):
        run(*given, resume="auto", **keys)
    assert files(tmp_path / "run") == before


def test_a_live_run_is_not_touched(go, stopped):
    take(stopped, "train")
    before = files(stopped)
    for how in (False, True, "auto"):
        with pytest.raises(UserError, match=r"run: process \d+ on host .* is writing to this folder"):
            go(resume=how)
    assert files(stopped) == before
    release(stopped)


def test_a_folder_of_other_things_is_left_alone(go, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="no run to resume in this folder"):
        go(resume="auto")
    assert files(tmp_path / "run") == {"notes.txt": b"mine"}


def test_no_steps_are_refused_and_no_epochs_train_none(go):
    with pytest.raises(UserError, match="max_steps is 0"):
        go(max_steps=0)
    log = go(num_train_epochs=0)
    assert log.steps["step"].tolist() == [0]
    assert log.manifest["finished"]["step"] == 0


def test_batches_that_are_never_full_are_refused(go, tmp_path):
    with pytest.raises(UserError, match="dataloader_drop_last drops every batch: 32 to a batch, and 22 to train on"):
        go(per_device_train_batch_size=32, dataloader_drop_last=True)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("given", [False, True], ids=["of the data", "a file of their own"])
def test_fewer_held_out_than_asked_for_is_said(go, data, capsys, given):
    log = go(heldout_pairs=99, max_steps=1, **({"heldout_data": data} if given else {}))
    held = log.pairs[log.pairs["split"] == "eval"]["pair_id"].nunique()
    why = f"{data} holds no more" if given else "a tenth of the 24 pairs at most; heldout_data names a file"
    assert f"held out: {held} of the 99 pairs asked for ({why}" in capsys.readouterr().out
    assert held == (24 if given else 2)


class Runs:
    """A pickle of this would call what it names when loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_checkpoint_with_pickled_code_is_refused_and_the_code_not_run(lm_folder, data, tmp_path):
    folder = stop(3, lm_folder, data, tmp_path / "run")
    checkpoint = folder / "checkpoints" / "checkpoint-2"
    torch.save({"a": Runs(tmp_path / "ran")}, checkpoint / "rng_state.pth")
    seal(checkpoint)
    with pytest.raises(DataError, match="holds more than plain data"):
        run(lm_folder, data, folder, resume=True)
    assert not (tmp_path / "ran").exists()
