"""`flag` on rows with clips: scored with what they show, and written back as they stand."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import vlms
from PIL import Image

from diagnostics.flag.flagging import flag
from diagnostics.runlog import read_frame
from trainers.models import load_model, load_tokenizer


def test_rows_with_clips_are_scored_and_written_back(tmp_path: Path) -> None:
    model = vlms.save("qwen25", tmp_path / "model", vlms.tiny_tokenizer())
    clip = vlms.media(0, 4).frames()
    for name, frames in (("a", clip), ("back", clip[::-1]), ("again", clip)):
        np.save(tmp_path / f"{name}.npy", frames)
    answers = {"chosen": "to the left", "rejected": "up , then down"}
    rows: list[dict[str, Any]] = [
        {"prompt": "which way ?", "video": f"{name}.npy", **answers} for name in ("a", "back", "again")
    ]
    rows += [{"prompt": "which way ?", "video": None, **answers}, {"prompt": "which ?", "video": "gone.npy", **answers}]
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    kept, flagged = tmp_path / "kept.jsonl", tmp_path / "flagged.jsonl"
    scores, _, audit = flag(
        str(data), load_model(str(model)), load_tokenizer(str(model)), tmp_path / "flag", model_name="m", count=1,
        write_kept=str(kept), write_flagged=str(flagged),
    )  # fmt: skip
    assert scores["status"].tolist() == ["scored"] * 4 + ["skipped"]
    assert scores["reason"][4].startswith("media_missing: the column 'video': gone.npy is not there")
    logps = scores["chosen_logps"].tolist()
    assert abs(logps[0] - logps[1]) > 1e-3  # the order of the frames counts
    assert abs(logps[0] - logps[2]) < 1e-4  # the same clip by another name
    assert abs(logps[0] - logps[3]) > 1e-3  # so does whether there is a clip at all
    assert audit.frame["prompt_length"].tolist()[0] == audit.frame["prompt_length"].tolist()[3] + 2 * 4 * 4
    frames = read_frame(tmp_path / "flag" / "frames.parquet").set_index("pair_id")
    assert set(frames.index) == set(scores["pair_id"][:3])  # row 3 shows nothing, row 4 was not read
    seen = np.asarray(Image.open(io.BytesIO(frames.loc[scores["pair_id"][1], "picture"])))
    assert (seen[0, ::74] == clip[::-1][:, 0, 0]).all()
    lines = data.read_bytes().splitlines(keepends=True)
    written = kept.read_bytes().splitlines(keepends=True)
    assert len(written) == 3
    assert sorted([*written, *flagged.read_bytes().splitlines(keepends=True)]) == sorted(lines[:4])
