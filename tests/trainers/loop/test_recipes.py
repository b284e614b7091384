"""Recipes that are not losses: their worked values, and small runs whose logs must show what they did."""

import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from diagnostics.errors import DataError, UserError
from diagnostics.flag.flagging import flag
from diagnostics.runlog import read_run
from trainers.config import make_config
from trainers.loop import recipes
from trainers.models import load_model, load_tokenizer
from trainers.run import train

FAST = {"learning_rate": 3e-3, "per_device_train_batch_size": 4, "heldout_pairs": 2, "probe_pairs": 4}


@pytest.fixture
def go(lm_folder, pairs_file, tmp_path):
    """Train with a few keys changed; returns the run log."""

    def run(name: str = "run", **keys):
        values = {"model": lm_folder, "data": pairs_file, "output_dir": str(tmp_path / name), "save_model": False}
        return read_run(train(make_config(values | FAST | keys)))

    return run


@pytest.fixture
def scores(lm_folder, pairs_file, tmp_path) -> str:
    """scores.parquet of the pairs."""
    tokenizer = load_tokenizer(lm_folder)
    flag(pairs_file, load_model(lm_folder), tokenizer, tmp_path / "flag", model_name=lm_folder)
    return str(tmp_path / "flag" / "scores.parquet")


@pytest.fixture
def scored_file(pairs_file) -> str:
    """The pairs with a score for each side; row i has gap 24 - i, under either spelling."""
    rows = [json.loads(line) for line in Path(pairs_file).read_text().splitlines()]
    for i, row in enumerate(rows):
        row |= (
            {"chosen_score": 24.0 - i, "rejected_score": 0.0}
            if i % 2
            else {"score_chosen": 1, "score_rejected": i - 23}
        )
    Path(pairs_file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return pairs_file


def visits(log) -> pd.DataFrame:
    """The training rows with their source_row."""
    rows = log.pairs[log.pairs["split"] == "train"]
    return rows.merge(log.audit[["pair_id", "source_row"]], on="pair_id", suffixes=("", "_audit"))


# --- CHES filter ---


def test_a_run_on_the_kept_file_trains_exactly_the_kept_pairs(go, lm_folder, pairs_file, tmp_path):
    kept = str(tmp_path / "kept.jsonl")
    table, *_ = flag(
        pairs_file, load_model(lm_folder), load_tokenizer(lm_folder), tmp_path / "flag", model_name=lm_folder,
        quantile=0.5, write_kept=kept,
    )  # fmt: skip
    rows = visits(go(data=kept, heldout_pairs=0))
    assert len(rows) == 12
    assert set(rows["pair_id"]) == set(table.loc[~table["flagged"], "pair_id"])


# --- weights ---


def test_weights_fall_with_the_rank_and_ties_share_theirs():
    """n = 4, ranks 2.5, 2.5, 4, 1: q = 0.5, 0.5, 0.875, 0.125 and w = 2 (1 - q)."""
    assert recipes.rank_weights(pd.Series([1.0, 1.0, 9.0, -3.0])).tolist() == [1.0, 1.0, 0.25, 1.75]
    random = recipes.rank_weights(pd.Series(np.random.default_rng(0).normal(size=101)))
    assert random.mean() == pytest.approx(1.0, abs=1e-12)
    assert random.min() == pytest.approx(1 / 101)


def test_only_the_training_pairs_are_ranked():
    table = pd.DataFrame({"pair_id": ["a", "x", "b", ""], "ches_score": [1.0, 1.5, 2.0, math.nan]})
    assert recipes.weights(table, "ches_score", ["b", "a"], "f") == {"b": 0.5, "a": 1.5}


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ({"pair_id": ["a", "b"]}, "no column 'ches_score'"),
        ({"pair_id": ["a"], "ches_score": [1.0]}, "no row for pair_id b"),
        ({"pair_id": ["a", "b"], "ches_score": [1.0, math.nan]}, "'ches_score' is NaN for pair_id b"),
        ({"pair_id": ["a", "b", "b"], "ches_score": [1.0, 2.0, 3.0]}, "more than one row for pair_id b"),
        ({"pair_id": ["a", "b"], "ches_score": ["x", "y"]}, "'ches_score' holds no numbers"),
    ],
)
def test_a_table_that_does_not_weigh_every_pair_is_refused(table, said):
    with pytest.raises(DataError, match=said):
        recipes.weights(pd.DataFrame(table), "ches_score", ["a", "b"], "f")


def test_weights_multiply_the_loss_that_is_trained_and_logged(go, scores):
    log = go(pair_weights=scores, weight_by="ches_score")
    rows = visits(log)
    measured = pd.read_parquet(scores).set_index("pair_id")["ches_score"][rows["pair_id"]]
    np.testing.assert_allclose(rows["weight"], 2 * (1 - (measured.rank() - 0.5) / 22), rtol=1e-12)
    dpo = np.logaddexp(0, rows["rejected_rewards"] - rows["chosen_rewards"])
    np.testing.assert_allclose(rows["loss"], rows["weight"] * dpo, rtol=1e-9)
    first = rows[rows["step"] == 1]
    np.testing.assert_allclose(first["chosen_incentive"], 0.1 / 2 * first["weight"], rtol=1e-6)  # beta sigmoid(0)
    assert log.steps["loss"][1] == pytest.approx(first["loss"].mean(), rel=1e-12)
    assert "column weight" in log.manifest["recipes"]["pair_weights"]
    assert len(log.manifest["hashes"]["pair_weights"]) == 64


def test_equal_weights_are_none(go, scores, tmp_path):
    table, own = pd.read_parquet(scores).assign(ln_ches_score=3.0), str(tmp_path / "own.parquet")
    table.to_parquet(own)
    plain, equal = go("plain"), go("equal", pair_weights=own)
    pd.testing.assert_frame_equal(plain.pairs, equal.pairs.drop(columns="weight"))
    pd.testing.assert_frame_equal(plain.steps, equal.steps)


def test_no_weights_file(go, tmp_path):
    with pytest.raises(UserError, match="no such file"):
        go(pair_weights=str(tmp_path / "none.parquet"))
    assert not (tmp_path / "run").exists()


# --- order ---


def test_rounds_spread_each_prompt_and_cut_the_single_pairs():
    """Prompt p has three pairs, q two; a to f one each, whose gaps are 6 .. 1."""
    prompts = [*"ppp", *"qq", *"abcdef"]
    gaps = [1.0, 3.0, 2.0, 5.0, 9.0, 6, 5, 4, 3, 2, 1]
    assert recipes.rounds(prompts, gaps, 3) == [2, 0, 1, 1, 0, 0, 0, 1, 1, 2, 2]
    assert recipes.rounds(prompts, gaps, 1) == [0] * 11


def test_rounds_come_one_after_the_other_and_are_shuffled_inside():
    of_round, gaps = [0, 1] * 20, list(range(40))
    found = recipes.sequence(of_round, gaps, passes=2, seed=0)
    parts = [found[:20], found[20:40], found[40:60], found[60:]]
    for part, number in zip(parts, (0, 0, 1, 1), strict=True):
        assert sorted(part) == [i for i in range(40) if i % 2 == number]
    assert len(set(map(tuple, parts))) == 4
    assert found == recipes.sequence(of_round, gaps, passes=2, seed=0)
    assert found != recipes.sequence(of_round, gaps, passes=2, seed=1)


def test_one_round_goes_strictly_from_easy_to_hard():
    assert recipes.sequence([0] * 4, [1.0, 4.0, 2.0, 3.0], passes=2, seed=0) == [1, 3, 2, 0] * 2


def test_a_round_begins_with_its_first_whole_update():
    """10 pairs in updates of 4, so 3 updates a pass; round two begins after 5 pairs, or after 10 with two passes."""
    prompts, gaps = list(range(10)), list(range(10))
    settings = {"count": 2, "update": 4, "seed": 0}
    assert recipes.curriculum(prompts, gaps, passes=1, **settings).starts == {2}
    assert recipes.curriculum(prompts, gaps, passes=2, **settings).starts == {3}
    assert recipes.curriculum(prompts, gaps, passes=3, **settings).starts == {5}  # 15 pairs: 3 updates, 4 + 1 pairs
    with pytest.raises(UserError, match="a round without an update"):
        recipes.curriculum(prompts, gaps, passes=1, **settings | {"count": 4})


@pytest.mark.parametrize("batch", [{}, {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}])
def test_a_curriculum_trains_easy_rounds_first_against_a_renewed_reference(go, scored_file, batch):
    """24 pairs in updates of 4: each round of 8 has two updates, and each pass of a round all of its pairs."""
    log = go(curriculum="score_gap", rounds=3, num_train_epochs=2, heldout_pairs=0, **batch)
    rows = visits(log)
    for number in range(3):
        mine = rows[rows["step"].between(4 * number + 1, 4 * number + 4)]
        assert sorted(mine["source_row"]) == sorted([*range(8 * number, 8 * number + 8)] * 2)
        assert mine[mine["step"] <= 4 * number + 2]["pair_id"].is_unique
    flagged = log.steps.set_index("step")["reference_renewed"]
    assert flagged[flagged == 1].index.tolist() == [5, 9]
    ratios = (rows["chosen_logps"] - rows["ref_chosen_logps"]).abs().groupby(rows["step"]).max()
    assert (ratios[[1, 5, 9]] == 0).all()
    assert (ratios.drop([1, 5, 9]) > 1e-3).all()
    assert log.manifest["recipes"]["curriculum"]["rounds_begin_after_step"] == [0, 4, 8]
    assert "recall" in log.manifest["recipes"]["reference_renewed"]


def test_one_round_needs_no_reference_of_its_own(go, scored_file):
    rows = visits(go(curriculum="score_gap", reference="precomputed", lora_r=2, heldout_pairs=0))
    assert (
        rows.groupby("step")["source_row"].agg(["min", "max"]).to_numpy() == [[4 * i, 4 * i + 3] for i in range(6)]
    ).all()


def test_a_curriculum_without_scores_names_the_column(go, tmp_path):
    with pytest.raises(DataError, match="line 1: curriculum 'score_gap' reads the column 'chosen_score'"):
        go(curriculum="score_gap", heldout_pairs=0)
    assert not (tmp_path / "run").exists()


# --- renewal ---


def test_the_reference_becomes_the_policy_every_so_many_steps(go):
    log = go(renew_reference=2, num_train_epochs=1, objective="dpo_nll", probe_every=1)
    steps = log.steps.set_index("step")
    assert steps["reference_renewed"].tolist()[1:] == [0, 0, 1, 0, 1, 0]
    rows = visits(log)
    ratios = (rows["chosen_logps"] - rows["ref_chosen_logps"]).abs().groupby(rows["step"]).max()
    assert (ratios[[1, 3, 5]] == 0).all()
    assert (ratios[[2, 4, 6]] > 1e-3).all()
    assert rows[rows["step"] == 3]["chosen_kl"].abs().max() == 0
    probe = log.pairs[log.pairs["split"] == "probe"].pivot(index="pair_id", columns="step")
    pd.testing.assert_series_equal(  # after step 3 the reference is the policy after step 2
        probe["ref_chosen_logps"][3], probe["chosen_logps"][2], check_names=False
    )
    assert (probe["ref_chosen_logps"][2] == probe["ref_chosen_logps"][0]).all()
    assert "after every 2 steps" in log.manifest["recipes"]["reference_renewed"]


def test_without_the_recipes_nothing_is_said(go):
    log = go()
    assert "reference_renewed" not in log.steps
    assert "weight" not in log.pairs
    assert log.manifest["recipes"] == {}


@pytest.mark.parametrize(
    ("keys", "saved"),
    [({"renew_reference": 5}, {6: True}), ({"curriculum": "score_gap", "rounds": 2}, {6: False, 9: True})],
    ids=["renewed", "curriculum"],
)
def test_a_resumed_run_has_the_right_reference_and_order(go, scored_file, tmp_path, keys, saved):
    """Round two begins after step 6: the reference is not renewed yet when that is saved. Step 9 is amid a pass."""
    keys = keys | {"save_strategy": "steps", "save_steps": 3, "num_train_epochs": 2, "probe_every": 4}
    whole = go("cut", **keys)
    for stop, expected in saved.items():
        folder = tmp_path / "cut" / "checkpoints" / f"checkpoint-{stop}"
        assert (folder / "reference.safetensors").exists() == expected
        resumed = go("cut", **keys, resume=str(folder))
        pd.testing.assert_frame_equal(whole.pairs, resumed.pairs)
        pd.testing.assert_frame_equal(whole.steps, resumed.steps)


def test_a_checkpoint_without_its_reference_is_refused(go, tmp_path):
    keys = {"save_strategy": "steps", "save_steps": 3, "max_steps": 3, "renew_reference": 2}
    go("cut", **keys)
    folder = tmp_path / "cut" / "checkpoints" / "checkpoint-3"
    (folder / "reference.safetensors").unlink()
    with pytest.raises(UserError, match=r"checkpoint-3 cannot be used \(reference\.safetensors is missing\)"):
        go("cut", **keys, resume=str(folder))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"rounds": 2}, "there is no curriculum"),
        ({"rounds": 0}, "1 or more"),
        ({"curriculum": "hard"}, "one of none, score_gap"),
        ({"renew_reference": 2, "reference": "precomputed"}, "set reference to live and lora_r to 0"),
        ({"renew_reference": 2, "lora_r": 2}, "set reference to live and lora_r to 0"),
        ({"curriculum": "score_gap", "rounds": 2, "reference_model": "other"}, "rounds gives the reference"),
        ({"curriculum": "score_gap", "num_train_epochs": 1.5}, "whole passes"),
        ({"curriculum": "score_gap", "max_steps": 5}, "whole passes"),
        ({"max_length_gap": "wide"}, "must be a whole number"),
    ],
)
def test_keys_that_do_not_fit_together_are_refused(go, tmp_path, keys, said):
    with pytest.raises(UserError, match=said):
        go(**keys)
    assert not (tmp_path / "run").exists()


# --- SFT first ---


def test_sft_first_is_two_runs_and_the_second_starts_from_the_first(go, tmp_path):
    keys = {"heldout_pairs": 0, "probe_pairs": 24}
    first = go("sft", objective="sft", save_model=True, **keys)
    rows = visits(first)
    np.testing.assert_allclose(rows["loss"], -rows["chosen_logps"] / rows["chosen_length"], rtol=1e-9)
    assert (rows["rejected_incentive"] == 0).all()
    probes = first.pairs[first.pairs["split"] == "probe"].pivot(index="pair_id", columns="step")
    assert probes["chosen_logps"][6].mean() > probes["chosen_logps"][0].mean()
    assert first.steps["probe/kl/chosen"][6] > 0  # the probe sees the reference all the same
    second = go("dpo", model=str(tmp_path / "sft" / "model"), objective="dpo", **keys)
    start = second.pairs[second.pairs["step"] == 0].set_index("pair_id")
    assert (start["chosen_logps"] == start["ref_chosen_logps"]).all()
    assert (start["rejected_logps"] == start["ref_rejected_logps"]).all()
    end = probes["chosen_logps"][6]
    np.testing.assert_allclose(start["chosen_logps"][end.index], end, rtol=1e-6)


# --- length ---


def test_pairs_whose_answers_differ_much_in_length_are_skipped_with_a_reason(go):
    free, log = go("free"), go("short", max_length_gap=2)
    gaps = (free.audit["chosen_length"] - free.audit["rejected_length"]).abs()
    assert 5 < (gaps > 2).sum() < 20
    assert len(log.audit) == 24
    assert ((log.audit["status"] == "skipped") == (gaps > 2)).all()
    wide = log.audit[gaps > 2]
    assert wide["reason"].str.fullmatch(r"length_gap: the answers differ by \d+ tokens, over 2").all()
    assert wide["reason"].str.extract(r"by (\d+)")[0].astype(float).tolist() == gaps[gaps > 2].tolist()
    seen = set(log.pairs["pair_id"])
    assert seen == set(log.audit.loc[gaps <= 2, "pair_id"])  # trained, probed or held out
    rows = log.pairs[log.pairs["split"] == "train"]
    assert ((rows["chosen_length"] - rows["rejected_length"]).abs() <= 2).all()


def test_no_pair_left_says_why(go, tmp_path):
    path = tmp_path / "wide.jsonl"
    path.write_text(json.dumps({"prompt": "a ?", "chosen": " alpha beta", "rejected": " alpha"}) + "\n")
    with pytest.raises(DataError, match=r"length_gap: the answers differ by .* All 1 rows are skipped"):
        go(max_length_gap=0, data=str(path))


def test_the_prone_weigh_least_whichever_end_of_the_measure_they_stand_at():
    scores = pd.DataFrame({"pair_id": ["a", "b"], "ches_score": [9.0, 1.0], "set_rate": [9.0, 1.0]})
    assert recipes.weights(scores, "ches_score", ["a", "b"], "x") == {"a": 0.5, "b": 1.5}
    assert recipes.weights(scores, "set_rate", ["a", "b"], "x") == {"a": 1.5, "b": 0.5}
