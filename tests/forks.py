"""Start Python programs as processes of their own without paying for their imports each time.

A server imports torch, transformers and our rooms once a test process, and forks for each start: a start takes a
fraction of a second where a fresh interpreter takes several. What is about the launchers themselves is started by them.
"""

import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

torch.set_num_threads(1)  # here for the server: the processes that it forks are as many as the cores
ROOT = Path(__file__).parents[1]
ROOMS = ["chesboard", "trainers.run", "trainers.trace", "reports.build", "reports.console", "peft", "datasets"]
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["forks", *ROOMS])


def start(*argv: object, env: Mapping[str, str] | None = None, said: Path | None = None) -> Any:
    """A process that runs the script argv[0] with the rest as its arguments. said: file for all that it prints."""
    words = [str(word) for word in argv]
    process = SERVER.Process(target=_run, args=(words, dict(env or {}), str(said or os.devnull)))
    process.start()
    return process


def run(*argv: object, ranks: int = 1, limit: float | None = 300) -> subprocess.CompletedProcess[str]:
    """Run it to its end in as many processes as there are ranks, which find each other as torchrun's do. stdout is what
    all printed, to both streams. limit: seconds after which a process counts as hanging and is killed."""
    with tempfile.TemporaryDirectory() as place:
        places = [Path(place) / f"rank{rank}" for rank in range(ranks)]
        port = str(_port())
        started = [start(*argv, env=_rank(rank, ranks, port), said=said) for rank, said in enumerate(places)]
        for process in started:
            process.join(limit)
            process.kill()
            process.join()
        said = "".join(path.read_text() for path in places)
        codes = [process.exitcode for process in started]
    return subprocess.CompletedProcess(
        [str(word) for word in argv], next((c for c in codes if c), codes[0]), said, said
    )


def _rank(rank: int, ranks: int, port: str) -> dict[str, str]:
    """What torchrun tells each of its processes."""
    if ranks == 1:
        return {}
    told = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_PORT": port}
    return {k: str(v) for k, v in told.items()} | {"MASTER_ADDR": "127.0.0.1"}


def _port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _run(argv: list[str], env: dict[str, str], said: str) -> None:
    """In the fork: become the program."""
    file = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
    os.environ.update(env)
    os.chdir(ROOT)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")
