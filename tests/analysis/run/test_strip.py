"""What a denoiser drew while it trained, on its page: scores with intervals, pictures by sample and step."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from analysis.run import strip
from analysis.tables.intervals import mean_interval, paired_share_interval, wilson
from diagnostics.runlog import RunLog


def png(shade: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((72, 72, 3), shade, np.uint8)).save(file, "png")
    return file.getvalue()


def log(scores: dict[int, list[float]], *, images: bool = True) -> RunLog:
    rows = [
        {"step": step, "round": 0, "sampler": "s", "seed": 0, "prompt_id": f"p{9 - k}", "sample": k, "text": "$a <b>"}
        | {"score": score, "image": png(15 * k + step) if images else None}
        for step, mine in scores.items()
        for k, score in enumerate(mine)
    ]
    pairs = [
        {"step": step, "split": split, "pair_id": "x", "chosen_logps": -0.1 * (step + 1), "rejected_logps": -0.3}
        for step in scores
        for split in ("probe", "train")
    ]
    empty, pair_rows = pd.DataFrame(), pd.DataFrame(pairs)
    pair_rows.loc[pair_rows["split"] == "train", "chosen_logps"] = -99.0
    return RunLog(
        path=Path(), config={"likelihood": "denoising"}, manifest={}, steps=empty, pairs=pair_rows, mass=empty,
        tokens=empty, audit=empty, samples=pd.DataFrame(rows),
    )  # fmt: skip


def test_scores_are_means_over_the_samples_with_their_interval():
    run = log({0: [1, 1, 1, 0], 4: [1, 0, 0, np.nan], 6: [np.nan] * 4})
    table = strip.scores(run.samples).set_index("step")
    assert table["n"].to_dict() == {0: 4, 4: 3}
    assert table["mean"].tolist() == pytest.approx([3 / 4, 1 / 3])
    assert table.loc[0, ["low", "high"]].tolist() == pytest.approx(wilson(3, 4))
    other = strip.scores(log({0: [0.2, 0.4, 0.9]}).samples)
    assert other.loc[0, ["low", "high"]].tolist() == pytest.approx(mean_interval([0.2, 0.4, 0.9]))


def test_the_words_compare_the_samples_that_were_judged_at_both_ends():
    said = strip.said(log({0: [1, 1, 1, 0], 4: [1, 0, 0, np.nan], 6: [np.nan] * 4}).samples)
    low, high = (100 * end for end in paired_share_interval(1, 2, 0, 0))
    assert said == (
        f"Of the class asked for: 100 % at step 0, 33 % at step 4 (95 % interval of the change: −{-low:.0f} to "
        f"+{high:.0f} points; 3 samples, from the same noise)"
    )
    changed = strip.said(log({0: [0.2, 0.4], 4: [0.5, 0.7], 9: [0.7, 0.8]}).samples)
    assert changed.startswith("The judge's mean score: 0.30 at step 0, 0.75 at step 9 (95 % interval of the change: ")
    assert strip.said(log({0: [1, 0]}).samples) == "Of the class asked for: 50 % at step 0 (2 samples)"


def test_errors_are_of_the_probe_pairs():
    table = strip.by_step(log({0: [1.0], 4: [1.0]})).set_index(["step", "side"])["value"]
    assert table.to_dict() == pytest.approx(
        {(0, "chosen"): 0.1, (0, "rejected"): 0.3, (4, "chosen"): 0.5, (4, "rejected"): 0.3}
    )


def test_pictures_stand_by_sample_and_step_and_go_without_text():
    run = log({step: [1.0] * 12 for step in range(0, 44, 2)})
    rows = strip.chosen(run.samples)
    assert sorted(set(rows["sample"])) == list(range(8))
    steps = sorted(set(rows["step"]))
    assert (len(steps), steps[0], steps[-1]) == (10, 0, 42)
    small = log({0: [1, 0], 4: [0, 0.5]})
    axes = strip.pictures(strip.chosen(small.samples)).axes
    shades = [int(np.asarray(axis.images[0].get_array())[0, 0, 0]) for axis in axes]
    assert shades == [0, 4, 15, 19]  # a row a sample, a column a step
    assert [axis.get_xlabel() for axis in axes] == ["✔", "✖", "✖", "0.50"]
    assert strip.drew(small, text=True).html.count("data:image/") == 2
    assert strip.drew(small, text=False).html.count("data:image/") == 1


def test_a_run_that_drew_nothing_has_no_section():
    run = log({0: [1.0]})
    assert strip.drew(RunLog(**(vars(run) | {"samples": pd.DataFrame()}))).html == ""
    unseen = log({0: [np.nan], 4: [np.nan]}, images=False)
    assert "no pictures, and none was judged" in strip.drew(unseen).html
