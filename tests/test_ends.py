"""How a command ends that was stopped, or that met a fault of ours: one sentence, a code, and a log that is whole."""

import errno
import os
import shutil
import signal
import sys

import pytest

import chesboard
from diagnostics.flag import flagging
from diagnostics.runlog import RunLogWriter, read_run
from trainers import run as runs

FAST = ["--learning_rate", "3e-3", "--per_device_train_batch_size", "4", "--save_model", "false"]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `chesboard ARGS`; returns (exit code, what it printed, what it complained)."""

    def run(*args: object):
        monkeypatch.setattr(sys, "argv", ["chesboard", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            chesboard.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def train(call, lm_folder, pairs_file, tmp_path):
    """`chesboard train` with further arguments, in the folder `run`."""
    given = ["train", "--model", lm_folder, "--data", pairs_file, "--output_dir", tmp_path / "run", *FAST]
    return lambda *more: call(*given, *more)


def sentence(complaint: str) -> str:
    (line,) = [line for line in complaint.splitlines() if line.startswith("chesboard: ")]
    assert "Traceback" not in complaint
    return line


def at_step(monkeypatch, step: int, act) -> None:
    real = RunLogWriter.append_step

    def append(self, row):
        real(self, row)
        if row["step"] == step:
            act()

    monkeypatch.setattr(RunLogWriter, "append_step", append)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_closes_the_log_and_says_how_to_go_on(train, tmp_path, monkeypatch, number, code):
    closed, close, before = [], RunLogWriter.close, signal.getsignal(number)
    monkeypatch.setattr(RunLogWriter, "close", lambda self: (closed.append(self.path), close(self)))
    with monkeypatch.context() as patch:
        at_step(patch, 3, lambda: os.kill(os.getpid(), number))
        ended, _, complaint = train("--save_strategy", "steps", "--save_steps", "1")
    said = sentence(complaint)
    assert ended == code
    assert f"stopped by {number.name}; what was logged is whole and kept. To go on: chesboard train --model" in said
    assert said.endswith("--save_strategy steps --save_steps 1 --resume auto")
    assert closed == [tmp_path / "run"]
    assert read_run(tmp_path / "run").steps["step"].tolist() == [0, 1, 2, 3]
    assert not (tmp_path / "run" / "lock.json").exists()
    assert signal.getsignal(number) is before
    ended, said, _ = train("--save_strategy", "steps", "--save_steps", "1", "--resume", "auto")
    assert (ended, "goes on from checkpoint-2" in said) == (0, True)


def test_the_same_command_goes_on_with_a_stopped_flag(call, lm_folder, pairs_file, tmp_path, monkeypatch):
    given = ["flag", pairs_file, "--model", lm_folder, "--out", tmp_path / "f"]
    with monkeypatch.context() as patch:
        patch.setattr(flagging, "rows", lambda *a: os.kill(os.getpid(), signal.SIGTERM))
        ended, _, complaint = call(*given)
    assert ended == 143
    assert sentence(complaint).endswith(f"To go on: chesboard flag {pairs_file} --model {lm_folder} --out {given[-1]}")
    assert call(*given)[0] == 0
    ended, said, _ = call(*given)
    assert (ended, "holds the scores already" in said) == (0, True)


def test_resume_may_stand_alone_or_say_auto(train):
    assert train("--resume", "auto")[0] == 0
    for more in (["--resume", "auto"], ["--resume"], ["--resume", "--seed", "0"], ["--resume=auto"]):
        ended, said, _ = train(*more)
        assert (ended, "finished at step 6; nothing is left to do" in said) == (0, True), more
    ended, _, complaint = train()
    assert (ended, "exists already" in sentence(complaint)) == (2, True)


def fails(error: BaseException):
    def act(*_, **__):
        raise error

    return act


def test_a_fault_of_ours_is_70_with_its_traceback_in_the_run_folder(train, tmp_path, monkeypatch):
    at_step(monkeypatch, 2, fails(AttributeError("no such thing")))
    ended, _, complaint = train()
    place = tmp_path / "run" / "fault.txt"
    assert ended == 70
    assert f"this is a fault of Chesboard: please report it with the file {place}" in sentence(complaint)
    assert "AttributeError: no such thing" in place.read_text()
    monkeypatch.undo()


def test_a_fault_without_a_run_folder_leaves_its_traceback_elsewhere(train, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "look", fails(KeyError("x")))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(chesboard.tempfile, "tempdir", None)
    ended, _, complaint = train()
    (place,) = tmp_path.glob("chesboard-*/fault.txt")
    assert ended == 70
    assert str(place) in sentence(complaint)
    assert "KeyError" in place.read_text()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("error", "wanted"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "x"), "No space left on device"),
        (MemoryError(), "out of memory"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), "out of memory"),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0"), "cannot write"),
        (RuntimeError("basic_ios::clear: iostream error"), "cannot write"),
    ],
)
def test_a_full_disk_or_memory_is_no_fault(train, monkeypatch, error, wanted):
    at_step(monkeypatch, 2, fails(error))
    ended, _, complaint = train()
    assert ended == 3
    assert wanted in sentence(complaint)


def test_a_host_that_cannot_be_reached_is_no_fault(train):
    ended, _, complaint = train("--push_to_hub", "true")
    assert ended == 3
    assert "a host that this run needs cannot be reached" in sentence(complaint)


def test_a_run_folder_removed_meanwhile_is_said(train, tmp_path, monkeypatch):
    def act():
        shutil.rmtree(tmp_path / "run")
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "model.safetensors")

    at_step(monkeypatch, 2, act)
    ended, _, complaint = train()
    assert ended == 3
    assert str(tmp_path / "run") in sentence(complaint)
    assert "removed" in sentence(complaint)
