"""Flagging: scores, ranks, flags, and the data set written back."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diagnostics.errors import UserError
from diagnostics.flag.flagging import check_by, check_rule, choose, flag, write_back
from diagnostics.scoring import batches
from diagnostics.token_likelihood import padded
from trainers.models import load_model, load_tokenizer


@pytest.fixture
def flagged(lm_folder, pairs_file, tmp_path):
    with open(pairs_file, "a") as f:
        f.write(json.dumps({"prompt": "alpha", "chosen": "", "rejected": " beta"}) + "\n")
    out = tmp_path / "flag"
    result = flag(pairs_file, load_model(lm_folder), load_tokenizer(lm_folder), out, model_name=lm_folder)
    return (*result, out)


def test_every_row_is_in_the_scores(flagged):
    scores, _, _, out = flagged
    assert len(scores) == 25
    assert scores["source_row"].tolist() == list(range(25))
    skipped = scores[scores["status"] == "skipped"]
    assert skipped["source_row"].tolist() == [24]
    assert skipped["reason"].iloc[0]
    assert skipped[["ches_score", "rank"]].isna().all().all()
    assert scores.loc[:23, ["chosen_logps", "ches_score", "edit_similarity", "shared_prefix"]].notna().all().all()
    pd.testing.assert_frame_equal(pd.read_parquet(out / "scores.parquet"), scores)
    assert {p.name for p in out.iterdir()} == {"scores.parquet", "audit.parquet", "config.json", "manifest.json"}


def test_how_the_rows_were_read_stands_in_the_manifest(flagged):
    reading = json.loads((flagged[3] / "manifest.json").read_text())["reading"]
    assert reading["used"]["prompt"] == ["prompt"]
    assert reading["said"] == " ".join(flagged[2].said())
    assert "24 of 25 rows kept, 1 skipped" in reading["said"]


def test_default_flags_the_top_tenth_by_ln_ches(flagged):
    scores = flagged[0]
    assert scores["flagged"].sum() == 2  # a tenth of 24, rounded
    best = scores.nlargest(2, "ln_ches_score")
    assert best["flagged"].all()
    assert sorted(best["rank"]) == [1, 2]
    assert best["flag_reason"].str.contains("top 10 % of pairs by ln_ches_score").all()


def test_batching_changes_no_score(lm_folder, pairs_file, tmp_path, flagged):
    small, *_ = flag(
        pairs_file,
        load_model(lm_folder),
        load_tokenizer(lm_folder),
        tmp_path / "small",
        model_name=lm_folder,
        batch_tokens=1,
    )
    a, b = small.loc[:23].select_dtypes("number"), flagged[0].loc[:23].select_dtypes("number")
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4)


def test_written_back_row_for_row(flagged, pairs_file, tmp_path):
    scores, table, _, _ = flagged
    write_back(table, scores, kept=str(tmp_path / "kept.jsonl"), flagged=str(tmp_path / "flagged.jsonl"))
    lines = Path(pairs_file).read_bytes().splitlines(keepends=True)
    wanted = [line for line, f in zip(lines[:24], scores["flagged"], strict=False) if not f]
    assert (tmp_path / "kept.jsonl").read_bytes() == b"".join(wanted)
    assert len((tmp_path / "flagged.jsonl").read_bytes().splitlines()) == 2


def frame(values):
    return pd.DataFrame({"ln_ches_score": values})


def test_choosing_by_quantile_count_and_value():
    values = [3.0, 1.0, np.nan, 2.0, 5.0]
    assert choose(frame(values), "ln_ches_score", quantile=0.5)["flagged"].tolist() == [True, False, False, False, True]
    assert choose(frame(values), "ln_ches_score", count=3)["flagged"].tolist() == [True, False, False, True, True]
    assert choose(frame(values), "ln_ches_score", above=2.0)["flagged"].tolist() == [True, False, False, False, True]
    ranked = choose(frame(values), "ln_ches_score")["rank"]
    assert ranked.tolist()[:2] == [2, 4]
    assert np.isnan(ranked[2])


@pytest.mark.parametrize("rule", [{"above": math.nan}, {"below": math.nan}])
def test_a_bound_that_is_no_number_is_refused(rule):
    with pytest.raises(UserError, match="is no number; it must be a value of ln_ches_score"):
        check_rule("ln_ches_score", **({"quantile": None, "count": None, "above": None} | rule))


def test_only_one_rule_at_a_time():
    with pytest.raises(UserError, match="only one of"):
        choose(frame([1.0]), "ln_ches_score", count=1, above=0.0)
    with pytest.raises(UserError, match="between 0 and 1"):
        choose(frame([1.0]), "ln_ches_score", quantile=90.0)


def test_an_unknown_measure_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'ches_score'"):
        check_by("ches_scor")


def test_scores_are_not_overwritten(flagged, lm_folder, pairs_file):
    with pytest.raises(UserError, match="holds scores already"):
        flag(pairs_file, load_model(lm_folder), load_tokenizer(lm_folder), flagged[3], model_name=lm_folder, count=1)


def test_batches_hold_every_pair_once_within_the_budget(make_pairs):
    pairs = make_pairs(40)
    groups = list(batches(pairs, 90, padded))
    assert sorted(p.pair_id for g in groups for p in g) == sorted(p.pair_id for p in pairs)
    assert all(len(g) == 1 or 2 * len(g) * max(p.longest for p in g) <= 90 for g in groups)
    assert [g[0].longest for g in groups] == sorted((g[0].longest for g in groups), reverse=True)
