"""A tiny vision-language model from its folder to a finished log: scores, training, the reference, the saved model."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vlms
from PIL import Image

from diagnostics.flag.flagging import flag
from diagnostics.media import Media
from diagnostics.runlog import read_run
from trainers.config import make_config
from trainers.models import load_model, load_tokenizer, model_limit
from trainers.run import train

CHOSEN, REJECTED, PROMPT = "to the left", "up , then down", "which way {} ?"
KEYS = {
    "learning_rate": 1e-3, "per_device_train_batch_size": 3, "heldout_pairs": 0, "probe_pairs": 3, "report_to": "none",
    "max_steps": 2, "probe_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return vlms.save("qwen25", tmp_path_factory.mktemp("vlm"), vlms.tiny_tokenizer())


def shown(k: int) -> tuple[Media, ...]:
    """Row k: of six a clip, then an image, then nothing."""
    return (vlms.media(k, 2 + k % 2),) if k < 6 else (vlms.media(k),) if k == 6 else ()


@pytest.fixture(scope="module")
def data(tmp_path_factory: Any) -> Path:
    place = tmp_path_factory.mktemp("data")
    rows: list[dict[str, Any]] = []
    for k in range(8):
        row = {"id": f"row{k}", "prompt": PROMPT.format(k), "chosen": CHOSEN, "rejected": REJECTED}
        for item in shown(k):
            if item.kind == "video":
                np.save(place / f"{k}.npy", item.frames())
            else:
                Image.fromarray(item.frames()[0]).save(place / f"{k}.png")
            row |= {"video": f"{k}.npy"} if item.kind == "video" else {"image": f"{k}.png"}
        rows.append(row)
    path = place / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(folder: Path, data: Path, tmp_path_factory: Any) -> Any:
    def go(name: str, **keys: Any) -> Any:
        values = {"model": str(folder), "data": str(data), "output_dir": str(tmp_path_factory.mktemp("runs") / name)}
        return read_run(train(make_config(values | KEYS | keys)))

    return go


def plain(model: Any, tokenizer: Any, k: int, answer: str) -> float:
    """Summed log-prob of row k's answer, by transformers' own forward alone."""
    from plain_vlms import logps

    from diagnostics.sequences import Sequence

    text = "".join(tokenizer.family.tags[m.kind] for m in shown(k)) + PROMPT.format(k)
    ids = tokenizer(tokenizer.family.expand(text, shown(k)))["input_ids"]
    row = Sequence(ids, [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id], media=shown(k) or None)
    return float(logps(model, tokenizer.family, row).sum())


def test_scores_are_a_plain_forwards(folder, data, tmp_path):
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    assert model_limit(model) == 512
    scores, _, _ = flag(str(data), model, tokenizer, tmp_path / "f", model_name=str(folder), everything=True)
    print(scores.T.to_string())
    exact = load_model(str(folder)).double()
    for row in scores.itertuples():
        assert row.chosen_logps == pytest.approx(plain(exact, tokenizer, row.source_row, CHOSEN), abs=1e-3)
        assert row.rejected_logps == pytest.approx(plain(exact, tokenizer, row.source_row, REJECTED), abs=1e-3)
