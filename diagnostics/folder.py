"""A folder that one command at a time writes to: its lock, what lies in it, what is set aside. No torch.

The lock is a file that the operating system frees when its process dies, however it dies, so that a stale one never
stands in the way. It says who holds it, for the sentence with which every other process is refused.
"""

import json
import os
import socket
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from diagnostics.errors import UserError

try:
    import fcntl
except ImportError:  # Windows: who holds the lock is then told by its process alone
    fcntl = None

LOCK = "lock.json"
FAULT = "fault.txt"  # the traceback of a crash of ours
_HALF = "aside.tmp"


@dataclass
class _Held:
    """A lock of this process. made: folders that were made for it."""

    file: int
    made: list[Path]


_held: dict[Path, _Held] = {}
latest: list[Path] = []  # the folder that this process wrote to last, where a crash leaves its traceback


def take(folder: Path, command: str) -> None:
    """Hold the folder (made where missing) until `release`.

    UserError, and nothing is touched, where another process holds it: it is named, with its host.
    """
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: this is a file. Choose another folder.")
    made = [p for p in (folder, *folder.parents) if not p.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file, free = _open(folder / LOCK)
    if free is False or _lives(_read(folder / LOCK), free):
        holder = _patient_read(folder / LOCK)
        os.close(file)
        raise UserError(_refusal(folder, holder))
    here = {"pid": os.getpid(), "host": socket.gethostname(), "started": _started(os.getpid()), "command": command}
    os.ftruncate(file, 0)
    os.pwrite(file, json.dumps(here | {"since": f"{datetime.now():%Y-%m-%d %H:%M:%S}"}).encode(), 0)
    _held[folder] = _Held(file, made)
    latest[:] = [folder]


def release(folder: Path) -> None:
    """Let go of the folder, where this process holds it; a folder made for the lock and left empty goes with it."""
    held = _held.pop(folder, None)
    if held is None:
        return
    with suppress(OSError):
        (folder / LOCK).unlink(missing_ok=True)  # before it is free: whoever waits at this file looks for a new one
    os.close(held.file)
    with suppress(OSError):
        for made in held.made:
            made.rmdir()


def writer(folder: Path) -> dict[str, Any]:
    """Who holds the folder now (pid, host, command, since), as far as its lock tells; empty where nobody does. Only
    looks: whoever wants the folder meanwhile is not in the way."""
    holder = _read(folder / LOCK)
    mine = holder.get("pid") == os.getpid() and holder.get("host") == socket.gethostname()
    return holder if mine or _lives(holder, None) else {}


def contents(folder: Path) -> list[Path]:
    """What lies in the folder, but for its lock, halves of files, tracebacks and logs set aside."""
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [p for p in found if p.name not in (LOCK, FAULT) and p.suffix != ".tmp" and not is_aside(p)]


def is_aside(path: Path) -> bool:
    """Whether this is a log that was set aside: part of no report."""
    return path.name.startswith("aside-")


def set_aside(folder: Path) -> Path | None:
    """Move all that lies in the folder to a new aside-N in it; the place, or None where there was nothing.

    Cut by a kill and called again it goes on; config.json moves last, so that the folder is a run until then.
    """
    half = folder / _HALF
    found = sorted(contents(folder), key=lambda p: p.name == "config.json")
    if not found and not half.exists():
        return None
    half.mkdir(exist_ok=True)
    for path in found:
        os.replace(path, half / path.name)
    number = 1 + max((int(p.name[6:]) for p in folder.glob("aside-*") if p.name[6:].isdecimal()), default=0)
    return half.rename(folder / f"aside-{number}")


def _open(path: Path) -> tuple[int, bool | None]:
    """The lock's file, and whether this process has it now (see _flock)."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        free = _flock(file)
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                return file, free
        os.close(file)  # its holder left and took it away between the two


def _flock(file: int) -> bool | None:
    """Whether this process has the lock now; None where the file system knows no locks."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        return None
    return True


def _lives(holder: dict[str, Any], free: bool | None) -> bool:
    """Whether the process that wrote this may still be there, also where the file system cannot tell.

    Its number may be another's by now: only with the same start is it the same. One on another host lives until its
    file is removed by hand, unless the file system says that the lock is free.
    """
    if not holder or holder["pid"] == os.getpid():
        return False
    if holder.get("host") != socket.gethostname():
        return free is None
    started = _started(holder["pid"])
    if started:
        return started == holder.get("started")
    return free is None and _runs(holder["pid"])


def _runs(pid: int) -> bool:
    """Whether there is a process of this number; on Windows, where asking would end it, there may be."""
    if fcntl is None:
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _started(pid: int) -> str:
    """When the process was started, in the kernel's clock; empty where there is none, or it cannot be told."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[19]
    except (OSError, IndexError):
        return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and isinstance(found.get("pid"), int) else {}


def _patient_read(path: Path) -> dict[str, Any]:
    """Who holds the lock: it may have it for a moment before it says so."""
    for _ in range(40):
        if found := _read(path):
            return found
        time.sleep(0.05)
    return {}


def _refusal(folder: Path, holder: dict[str, Any]) -> str:
    who = "another process"
    if holder:
        who = f"process {holder['pid']} on host {holder.get('host')} ({holder.get('command')}, since "
        who += f"{holder.get('since')})"
    gone = f" If it is gone, remove {folder / LOCK}." if holder and holder.get("host") != socket.gethostname() else ""
    return f"{folder}: {who} is writing to this folder. Wait for it, stop it, or choose another folder.{gone}"


def _forget() -> None:
    """A forked child does not hold its parent's locks, and must not keep them alive."""
    for held in _held.values():
        with suppress(OSError):
            os.close(held.file)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
