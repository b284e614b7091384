"""Real processes, started by the ordinary launchers on a CPU: the same file whatever their number."""

import json
import os
import subprocess
import sys
from pathlib import Path

import forks
import pytest

import diagnostics.flag.flagging as flagging
from diagnostics.flag.flagging import flag
from trainers.models import load_model, load_tokenizer, model_limit

ROOT = Path(__file__).parents[2]
ACCELERATE = ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]

DRIVER = """
import os, pathlib, sys
import diagnostics.flag.flagging as flagging
from trainers.models import load_model, load_tokenizer, quiet
quiet()
data, lm, out = sys.argv[1:]
rows, seen = flagging.rows, []
flagging.rows = lambda pairs, *a: (seen.extend(p.pair_id for p in pairs), rows(pairs, *a))[1]
scores, *_ = flagging.flag(data, load_model(lm), load_tokenizer(lm), out, model_name=lm, batch_tokens=60)
assert len(scores) == 24
pathlib.Path(out, "rank" + os.environ["RANK"]).write_text(" ".join(seen))
"""


def launch(launcher: list[str], *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *launcher, *map(str, arguments)],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def test_two_processes_share_the_rest_of_a_stopped_job(lm_folder, pairs_file, tmp_path, monkeypatch):
    """Begun by one process, stopped, finished by two: each pair is scored once, and the file is the same."""
    one = [pairs_file, load_model(lm_folder), load_tokenizer(lm_folder)]
    flag(*one, tmp_path / "whole", model_name=lm_folder, batch_tokens=60)
    calls, rows = [], flagging.rows

    def few(pairs, *rest):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append([p.pair_id for p in pairs])
        return rows(pairs, *rest)

    monkeypatch.setattr(flagging, "rows", few)
    with pytest.raises(KeyboardInterrupt):
        flag(*one, tmp_path / "job", model_name=lm_folder, batch_tokens=60)
    driver = tmp_path / "driver.py"
    driver.write_text(DRIVER)
    done = forks.run(driver, pairs_file, lm_folder, tmp_path / "job", ranks=2)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "job" / "scores.parquet").read_bytes() == (tmp_path / "whole" / "scores.parquet").read_bytes()
    shares = [(tmp_path / "job" / f"rank{n}").read_text().split() for n in (0, 1)]
    assert min(map(len, shares)) >= 4
    everything = shares[0] + shares[1] + [i for batch in calls for i in batch]
    assert len(everything) == len(set(everything)) == 24


def test_the_front_door_under_accelerate(lm_folder, pairs_file, tmp_path):
    """More pairs than one batch holds, so that both processes have work; the first alone speaks."""
    rows = [json.loads(line) for line in Path(pairs_file).read_text().splitlines()]
    data = tmp_path / "many.jsonl"
    data.write_text(
        "".join(json.dumps(r | {"prompt": f"alpha {i} {r['prompt']}"}) + "\n" for i in range(40) for r in rows)
    )
    model = load_model(lm_folder)
    flag(str(data), model, load_tokenizer(lm_folder), tmp_path / "one", model_name=lm_folder,
         max_length=model_limit(model))  # fmt: skip
    done = launch(ACCELERATE, "-m", "chesboard", "flag", data, "--model", lm_folder, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "one" / "scores.parquet").read_bytes() == (tmp_path / "two" / "scores.parquet").read_bytes()
    assert done.stdout.count("960 pairs scored") == 1


def test_a_mistake_is_said_once_and_ends_all(lm_folder, tmp_path):
    out = tmp_path / "job"
    done = forks.run("chesboard.py", "flag", tmp_path / "none.jsonl", "--model", lm_folder, "--out", out, ranks=2)
    assert done.returncode != 0
    assert done.stderr.count("chesboard: ") == 1
    assert "none.jsonl: no such file" in done.stderr
    assert not out.exists()
