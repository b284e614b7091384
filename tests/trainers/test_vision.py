"""A tiny vision-language model from its folder to a finished log: scores, training, the reference, the saved model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vlms

from diagnostics.runlog import read_run
from trainers.config import make_config
from trainers.run import train

KEYS = {
    "learning_rate": 1e-3, "per_device_train_batch_size": 3, "heldout_pairs": 2, "probe_pairs": 3, "report_to": "none",
    "max_steps": 2, "probe_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return vlms.save("qwen25", tmp_path_factory.mktemp("vlm"), vlms.tiny_tokenizer())


@pytest.fixture(scope="module")
def data(tmp_path_factory: Any) -> Path:
    """Eight pairs: six about a clip, one about an image, one of text alone."""
    place = tmp_path_factory.mktemp("data")
    rows: list[dict[str, Any]] = []
    for k in range(8):
        shown: dict[str, Any] = {"video": f"{k}.npy"} if k < 6 else {"image": f"{k}.png"} if k == 6 else {}
        if k < 6:
            np.save(place / f"{k}.npy", vlms.media(k, 2 + k % 2).frames())
        elif k == 6:
            from PIL import Image

            Image.fromarray(vlms.media(k).frames()[0]).save(place / f"{k}.png")
        rows.append({"prompt": f"which way {k} ?", "chosen": "to the left", "rejected": "up , then down"} | shown)
    path = place / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_run_with_every_instrument(folder, data, tmp_path):
    keys = {"model": str(folder), "data": str(data), "output_dir": str(tmp_path / "run")} | KEYS
    log = read_run(train(make_config(keys | {"objective": "rrpo", "grad_every": 1, "lora_r": 2, "response_types": 2})))
    print(log.pairs.T.to_string())
    print(log.steps.T.to_string())
