"""A denoiser's run page: errors by time from the draws, and the samples of a pair as small pictures."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.run import samples
from analysis.tables import draws, runs
from diagnostics.diffusion.sample import Sample, sample_pair
from diagnostics.runlog import RunLog
from diagnostics.vision import thumbs


def log(tmp_path: Path) -> RunLog:
    """Two pairs through two draws: the chosen errors of 0.1 and 0.3 at time 200 end at 0.2 and 0.4."""
    moved = {"chosen": {200: 0.1, 700: 0.0}, "rejected": {200: -0.05, 700: 0.2}}
    rows = [
        {"step": step, "split": "probe", "pair_id": pair, "side": side, "draw": k, "time": time}
        | {"error": start + (step > 0) * by, "ref_error": start, "deviation": 0.0}
        for step in (0, 4)
        for pair, start in (("a", 0.1), ("b", 0.3))
        for side, times in moved.items()
        for k, (time, by) in enumerate(times.items())
    ]
    frame = pd.DataFrame(rows)
    empty = pd.DataFrame()
    return RunLog(
        path=tmp_path, config={"likelihood": "denoising"}, manifest={}, steps=empty, pairs=empty, mass=empty,
        tokens=empty, audit=empty, draws=frame,
    )  # fmt: skip


def test_errors_by_time_are_means_over_the_pairs(tmp_path):
    table = draws.ends(log(tmp_path)).set_index(["side", "time"])
    row = table.loc[("chosen", 200.0)]
    assert row[["pairs", "start", "end", "change"]].tolist() == pytest.approx([2, 0.2, 0.3, 50])
    assert row[["low", "high"]].tolist() == pytest.approx([50, 50])  # both moved alike
    assert table.loc[("rejected", 200.0), "change"] == pytest.approx(-25)
    alone = draws.ends(log(tmp_path), "probe", ["b"]).set_index(["side", "time"])
    assert alone.loc[("chosen", 200.0), ["pairs", "start", "end"]].tolist() == pytest.approx([1, 0.3, 0.4])
    assert draws.ends(log(tmp_path), "eval").empty
    said = samples.by_time(log(tmp_path)).html
    assert "The chosen error rose at 1 of 2 times; most it moved at 200, by +50.0 %" in said
    once = log(tmp_path)
    assert "not measured" in samples.by_time(replace(once, draws=once.draws.query("step == 0"))).html
    assert samples.by_time(replace(once, config={})).html == ""


def test_a_pairs_samples_stand_beside_its_errors_and_not_without_text(tmp_path):
    image = np.full((20, 30, 3), (255, 0, 0), np.uint8)
    latents = np.arange(32, dtype=np.float32).reshape(4, 2, 4)
    both = {"chosen": Sample(latents, load=lambda: image), "rejected": Sample(latents + 1)}
    found = thumbs.tables([sample_pair("a", 0, both)])["frames.parquet"]
    assert found["words"].tolist() == ["chosen", "rejected (mean of 4 channels, black 13 to white 20)"]
    first, second = (np.asarray(Image.open(io.BytesIO(png))) for png in found["picture"])
    assert first.shape == (thumbs.HEIGHT, 108, 3)
    assert (first == (255, 0, 0)).all()
    assert (second[0, 0] == 0).all()
    assert (second[-1, -1] == 255).all()
    pixel = thumbs.seen(Sample(np.full((1, 2, 2), -1, np.float32)))
    assert pixel is not None
    assert (np.asarray(Image.open(io.BytesIO(pixel[1]))) == 0).all()
    assert thumbs.seen(Sample(np.zeros(4, np.float32))) is None

    found.to_parquet(tmp_path / "frames.parquet")
    run = log(tmp_path)
    row = {
        "pair_id": "a",
        "source_row": 0,
        "outcome": "both fell",
        "fell": 1,
        "chosen": -0.1,
        "rejected": 0.05,
        "kl": 0.0,
    }
    table, texts = pd.DataFrame([row]), runs.texts(pd.DataFrame())
    told = texts.copy()
    told.loc["a"] = ["a <cat>", "", ""]
    said = samples.pairs(run, table, table.head(0), told, 1, "probe", text=True).html
    assert 'alt="chosen: a &lt;cat&gt;"' in said
    assert "change of the denoising error: chosen +0.100, rejected −0.050" in said
    assert said.count("data:image/") == 3
    bare = samples.pairs(run, table, table.head(0), texts, 1, "probe", text=False).html
    assert bare.count("data:image/") == 1
    assert "cat" not in bare
