"""One writer a folder: the second is named the first, and a dead one is never in the way."""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from diagnostics import folder as folders
from diagnostics.errors import UserError
from diagnostics.folder import LOCK, contents, release, set_aside, take

ROOT = Path(__file__).parents[2]
HOLDER = "import sys; from pathlib import Path; from diagnostics.folder import take; take(Path(sys.argv[1]), 'train'); "


def holder(place: Path, then: str) -> subprocess.Popen[str]:
    """A process that holds the folder and says so; then does as told."""
    command = [sys.executable, "-c", HOLDER + "print('held', flush=True); " + then, str(place)]
    process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    return process


def end(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_the_second_is_refused_by_pid_and_host_and_touches_nothing(tmp_path):
    process = holder(tmp_path / "run", "sys.stdin.read()")
    before = {p: p.read_bytes() for p in (tmp_path / "run").iterdir()}
    with pytest.raises(UserError) as refused:
        take(tmp_path / "run", "train")
    assert f"process {process.pid} on host {socket.gethostname()} (train, since" in str(refused.value)
    assert {p: p.read_bytes() for p in (tmp_path / "run").iterdir()} == before
    end(process)
    take(tmp_path / "run", "train")  # a killed holder is not in the way
    release(tmp_path / "run")


def test_a_lock_of_this_process_refuses_it_too(tmp_path):
    take(tmp_path, "train")
    with pytest.raises(UserError, match=f"process {os.getpid()} on host"):
        take(tmp_path, "flag")
    release(tmp_path)
    take(tmp_path, "flag")
    release(tmp_path)


def test_an_unlocked_file_left_behind_says_nothing(tmp_path):
    for left in ("", "{", "[]", json.dumps({"pid": 1, "host": "elsewhere"})):
        (tmp_path / LOCK).write_text(left)
        take(tmp_path, "train")
        release(tmp_path)


def write(place: Path, **changes: object) -> None:
    mine = {"pid": os.getppid(), "host": socket.gethostname(), "started": folders._started(os.getppid())}
    (place / LOCK).write_text(json.dumps(mine | changes))


@pytest.mark.parametrize("locks", [True, None], ids=["with locks", "a file system without"])
def test_a_living_process_is_known_by_its_start(tmp_path, monkeypatch, locks):
    monkeypatch.setattr(folders, "_flock", lambda file: locks)
    write(tmp_path)
    with pytest.raises(UserError, match=f"process {os.getppid()} on host"):
        take(tmp_path, "train")
    write(tmp_path, started="1")  # its number belongs to another by now
    take(tmp_path, "train")
    release(tmp_path)


def test_without_locks_another_host_is_believed_until_its_file_is_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(folders, "_flock", lambda file: None)
    write(tmp_path, host="elsewhere")
    with pytest.raises(UserError, match=r"on host elsewhere .* If it is gone, remove .*lock\.json"):
        take(tmp_path, "train")
    (tmp_path / LOCK).unlink()
    take(tmp_path, "train")
    release(tmp_path)


def test_a_forked_child_does_not_keep_the_lock(tmp_path):
    process = holder(tmp_path / "run", "import os; os.fork() or print('forked', flush=True); sys.stdin.read()")
    assert process.stdout
    assert process.stdout.readline() == "forked\n"
    process.kill()
    process.wait()
    take(tmp_path / "run", "train")  # while the child is there
    release(tmp_path / "run")
    process.communicate()


def test_folders_made_for_the_lock_go_with_it(tmp_path):
    take(tmp_path / "a" / "b", "train")
    release(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "mine").mkdir()
    take(tmp_path / "mine", "train")
    release(tmp_path / "mine")
    assert (tmp_path / "mine").is_dir()


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="file: this is a file"):
        take(tmp_path / "file", "train")


def test_set_aside_keeps_everything_and_counts(tmp_path):
    for text in ("first", "second"):
        (tmp_path / "config.json").write_text(text)
        (tmp_path / "pairs").mkdir()
        (tmp_path / "pairs" / "part").write_text(text)
        set_aside(tmp_path)
        assert contents(tmp_path) == []
    assert (tmp_path / "aside-1" / "pairs" / "part").read_text() == "first"
    assert (tmp_path / "aside-2" / "config.json").read_text() == "second"
    assert set_aside(tmp_path) is None


def test_set_aside_goes_on_after_a_kill(tmp_path, monkeypatch):
    for name in ("config.json", "steps.jsonl", "audit.parquet"):
        (tmp_path / name).write_text(name)
    real, calls = os.replace, []

    def dies(a, b):
        calls.append(a)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(a, b)

    monkeypatch.setattr(os, "replace", dies)
    with pytest.raises(KeyboardInterrupt):
        set_aside(tmp_path)
    assert (tmp_path / "config.json").exists()  # still a run
    set_aside(tmp_path)
    assert sorted(p.name for p in (tmp_path / "aside-1").iterdir()) == ["audit.parquet", "config.json", "steps.jsonl"]
    assert [p.name for p in tmp_path.iterdir()] == ["aside-1"]
