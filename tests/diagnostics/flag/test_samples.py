"""`chesboard flag --likelihood denoising`: the measures as a table that pages and scorecard read."""

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import save_file

from analysis.flag import page as flag_page
from analysis.flag import tables as flags
from analysis.tables import runs
from diagnostics.diffusion.denoiser import MLPDenoiser
from diagnostics.diffusion.likelihood import DenoisingLikelihood
from diagnostics.diffusion.measures import measure
from diagnostics.diffusion.read import read_samples
from diagnostics.errors import UserError
from diagnostics.flag.samples import flag


@pytest.fixture
def world(tmp_path):
    torch.manual_seed(0)
    draw = np.random.default_rng(0)
    rows = [{side: draw.normal(size=4).tolist() for side in ("chosen", "rejected")} | {"class": 1} for _ in range(10)]
    rows[3]["rejected"] = rows[3]["chosen"]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path, MLPDenoiser(size=4, classes=2, width=8, blocks=1)


def test_the_table_holds_the_measures_and_flags_by_the_whole_sets_step(world, capsys):
    folder, model = world
    how: Any = {"model_name": "m", "draws": 4, "count": 2}
    scores: Any = flag(
        str(folder / "pairs.jsonl"), model, folder / "flag", write_kept=str(folder / "kept.jsonl"), **how
    )[0]
    assert "measuring 9 pairs through 4 draws" in capsys.readouterr().out
    assert scores["status"].tolist() == ["scored"] * 3 + ["skipped"] + ["scored"] * 6
    likelihood = DenoisingLikelihood(draws=4)
    pairs = list(read_samples(str(folder / "pairs.jsonl"), model).require_kept())
    own: Any = measure(likelihood, model, pairs).set_index("pair_id")
    found = scores[scores["status"] == "scored"].set_index("pair_id")
    pd.testing.assert_frame_equal(found[own.columns], own.loc[found.index])
    assert set(found[found["flagged"]].index) == set(own["set_rate"].nsmallest(2).index)
    assert (found["chosen_logps"] < 0).all()
    assert len((folder / "kept.jsonl").read_text().splitlines()) == 7
    before = (folder / "flag" / "scores.parquet").read_bytes()
    flag(str(folder / "pairs.jsonl"), model, folder / "flag", **how)
    assert "nothing is left to do" in capsys.readouterr().out
    assert (folder / "flag" / "scores.parquet").read_bytes() == before
    with pytest.raises(UserError, match="another draws"):
        flag(str(folder / "pairs.jsonl"), model, folder / "flag", **how | {"draws": 5})

    read = runs.load_flags(folder / "flag")
    assert flags.measures(flags.table(read))[0] == "set_rate"
    said = flag_page.summary(read).html
    rises = int((own["set_rate"] < 0).sum())
    assert f"raises the denoising error of the chosen sample in {100 * rises / 9:.0f} % of 9 pairs" in said
    assert "nats" not in said
    assert "denoising error chosen" in flag_page.extremes(read, 2).html
    assert flag_page.length_confounds(read).html == ""


def test_what_cannot_be_ranked_or_written_is_refused(world):
    folder, model = world
    with pytest.raises(UserError, match="did you mean 'denoising_ches'"):
        flag(str(folder / "pairs.jsonl"), model, folder / "flag", model_name="m", by="denoising_chess")
    draw = np.random.default_rng(0)
    arrays = {side: draw.normal(size=(4, 4)).astype(np.float32) for side in ("chosen", "rejected")}
    save_file(arrays | {"class": np.ones(4)}, folder / "a.safetensors")
    with pytest.raises(UserError, match="holds arrays"):
        flag(str(folder / "a.safetensors"), model, folder / "f", model_name="m", write_kept=str(folder / "k.jsonl"))
    rows = [{"images": np.eye(3, 4).tolist(), "scores": [3, 2, 1], "class": 1}]
    (folder / "l.jsonl").write_text(json.dumps(rows[0]) + "\n")
    with pytest.raises(UserError, match="a row holds several pairs"):
        flag(str(folder / "l.jsonl"), model, folder / "f", model_name="m", write_flagged=str(folder / "k.jsonl"))
    assert not (folder / "f").exists()
