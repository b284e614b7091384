"""Killed at its file operations and started again, every command leaves what an unbroken one does (see kills.py)."""

import json
import os
import shutil
from pathlib import Path

import forks
import pytest
import yaml

ROOT = Path(__file__).parents[1]
POINTS = {"train": 4, "flag": 4, "trace": 4, "compare": 1, "report": 1}  # of 40 to 300 operations
if "CHESBOARD_KILLS" in os.environ:  # so many of each command instead; 0 for every one
    POINTS = dict.fromkeys(POINTS, int(os.environ["CHESBOARD_KILLS"]))


@pytest.mark.slow
@pytest.mark.parametrize("command", POINTS)
def test_a_kill_anywhere_changes_nothing(command, lm_folder, pairs_file, tmp_path):
    place = tmp_path / "kills"
    place.mkdir()
    for n in (1, 2):
        shutil.copytree(lm_folder, place / f"copy{n}")
    base = {"model": lm_folder, "data": pairs_file, "max_steps": 1, "per_device_train_batch_size": 8}
    (place / "base.yaml").write_text(yaml.safe_dump(base | {"probe_pairs": 2, "response_types": 0, "tokens": "none"}))
    if command == "report":
        shutil.copytree(ROOT / "tests" / "data" / "tiny_run", place / "ready" / "run")
    limit = None if "CHESBOARD_KILLS" in os.environ else 900
    done = forks.run("tests/kills.py", command, POINTS[command], place, lm_folder, pairs_file, limit=limit)
    assert done.returncode == 0, done.stderr
    print(done.stdout.splitlines()[-1])
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["killed"] >= POINTS[command]
