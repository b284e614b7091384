"""The video world with the pairs that analyses train on: those of both pipelines, with clips and told in words.

Told in words, a pair has the same two answers, token by token; the question comes after the film in words, and nothing
is shown. So a run on either differs in nothing but where the content comes from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainers.worlds import video, video_pairs

SETS = {"rrpo": "pairs.json", "leanpo": "pairs.jsonl"}  # by pipeline the file it writes


def build(folder: Path, seed: int, steps: int, rows: int, held_out: int, told: float) -> None:
    """The world (video.build) and, of its rows and its held-out rows, the pairs of both pipelines in words too."""
    found = video.build(folder, seed, steps=steps, rows=rows, held_out=held_out, told=told)
    for name in ("data", "heldout_data"):
        in_words = {row["id"]: row["told"] for row in _lines(found[name])}
        for pipeline, make in (("rrpo", video_pairs.rrpo), ("leanpo", video_pairs.leanpo)):
            place = folder / pipeline / name
            made = make(str(found[name]), str(found["model"]), place, seed=seed, limit=video.LONGEST)
            pairs = json.loads(made.path.read_text(encoding="utf-8")) if pipeline == "rrpo" else _lines(made.path)
            told_rows = [_told(pair, in_words) for pair in pairs]
            _told_path(place).write_text("".join(json.dumps(row) + "\n" for row in told_rows), encoding="utf-8")


def paths(folder: Path, pipeline: str, *, told: bool) -> dict[str, str]:
    """The keys model, data and heldout_data of `chesboard train`. pipeline: rrpo or leanpo; told: in words."""
    places = {name: folder / pipeline / name for name in ("data", "heldout_data")}
    found = {name: _told_path(place) if told else place / SETS[pipeline] for name, place in places.items()}
    return {"model": str(folder / "model")} | {name: str(path) for name, path in found.items()}


def _told(pair: Mapping[str, Any], in_words: Mapping[str, str]) -> dict[str, str]:
    """A pair in words; where the pipeline marks phrases, its answers carry the marks."""
    if "sample_id" not in pair:
        return {
            "id": pair["id"],
            "prompt": in_words[pair["id"]],
            "chosen": pair["chosen"],
            "rejected": pair["rejected"],
        }
    answers = {"chosen": pair["answer_masked"], "rejected": pair["pred_masked"]}
    return {"id": pair["sample_id"], "prompt": in_words[pair["sample_id"]]} | answers


def _told_path(place: Path) -> Path:
    return place / "told.jsonl"


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
