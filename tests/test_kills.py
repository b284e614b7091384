"""Killed at its file operations and started again, every command leaves what an unbroken one does (see kills.py)."""

import json
import os
import shutil
from pathlib import Path

import forks
import numpy as np
import pytest
import vlms
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
    _kill(command, place, lm_folder, pairs_file)


@pytest.mark.slow
def test_a_kill_anywhere_in_a_training_on_clips_changes_nothing(tmp_path):
    """Log, weights and the frames that the report shows, of a tiny Qwen2.5-VL."""
    model, place, rows = vlms.save("qwen25", tmp_path / "model", vlms.tiny_tokenizer()), tmp_path / "kills", []
    place.mkdir()
    for k in range(24):
        np.save(tmp_path / f"{k}.npy", vlms.media(k, 2 + k % 2).frames())
        answers = {"chosen": "to the left" if k % 2 else "up", "rejected": "a circle"}
        rows.append({"id": f"row{k}", "prompt": f"which way {k} ?", "video": f"{k}.npy"} | answers)
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    _kill("train", place, model, data)


def _kill(command, place, model, data):
    limit = None if "CHESBOARD_KILLS" in os.environ else 900
    done = forks.run("tests/kills.py", command, POINTS[command], place, model, data, limit=limit)
    assert done.returncode == 0, done.stderr
    print(done.stdout.splitlines()[-1])
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["killed"] >= POINTS[command]
