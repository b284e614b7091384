"""Whole runs at toy size: what the log must keep whatever happens."""

import json
import math
import shutil
import time
from pathlib import Path

import forks
import numpy as np
import pandas as pd
import pytest
import torch

from diagnostics.batch import collate
from diagnostics.errors import DataError, UserError
from diagnostics.forward import run
from diagnostics.row_stats import pair_stats
from diagnostics.runlog import read_run
from diagnostics.token_likelihood import TokenLikelihood
from trainers.config import make_config
from trainers.loop import reference
from trainers.loop.parity import measure_parity
from trainers.models import load_model
from trainers.run import train

TOKENS = TokenLikelihood(0)

ROOT = Path(__file__).parents[2]
FAST = {
    "learning_rate": 3e-3,
    "per_device_train_batch_size": 4,
    "heldout_pairs": 2,
    "probe_pairs": 4,
    "report_to": "none",
}
KEYS = ["step", "split", "pair_id"]


@pytest.fixture
def go(lm_folder, pairs_file, tmp_path):
    """Train with a few keys changed; returns the run log."""

    def run(name: str = "run", **keys):
        values = {"model": lm_folder, "data": pairs_file, "output_dir": str(tmp_path / name), "save_model": False}
        return read_run(train(make_config(values | FAST | keys)))

    return run


def numbers(log, *drop):
    """The numeric pair rows, sorted, with some columns left out."""
    frame = log.pairs.set_index(KEYS).sort_index().drop(columns=list(drop))
    return frame.astype(float)


def test_same_seed_same_log(go):
    first, second = go("a"), go("b")
    pd.testing.assert_frame_equal(first.pairs, second.pairs)
    pd.testing.assert_frame_equal(first.steps, second.steps)
    pd.testing.assert_frame_equal(first.mass, second.mass)
    third = go("c", seed=1)
    assert not first.pairs["pair_id"].equals(third.pairs["pair_id"])


def test_every_training_pair_is_logged_at_the_step_of_its_visit(go):
    log = go(num_train_epochs=2)
    rows = log.pairs[log.pairs["split"] == "train"]
    kept = set(log.audit[log.audit["status"] == "kept"]["pair_id"])
    held = set(log.pairs[log.pairs["split"] == "eval"]["pair_id"])
    assert len(held) == 2
    assert set(rows["pair_id"]) == kept - held
    assert (rows.groupby("pair_id").size() == 2).all()  # once an epoch
    assert log.pairs[log.pairs["split"] == "probe"].groupby("step").size().eq(4).all()
    assert log.steps["step"].tolist() == list(range(13))  # 22 pairs in batches of 4, twice; step 0 first


def test_the_step_is_the_mean_over_rows(go):
    log = go()
    row = log.steps.set_index("step").loc[6]  # the last step: 2 pairs left
    pairs = log.pairs[(log.pairs["split"] == "train") & (log.pairs["step"] == 6)]
    assert row["n"] == len(pairs) == 2
    assert row["loss"] == pytest.approx(pairs["loss"].mean(), rel=1e-12)
    assert row["logps/chosen"] == pytest.approx(pairs["chosen_logps"].mean(), rel=1e-12)
    assert row["displacement/chosen"] == pytest.approx((pairs["chosen_logps"] - pairs["ref_chosen_logps"]).mean())
    assert row["displacement/frac"] == (pairs["chosen_logps"] < pairs["ref_chosen_logps"]).mean()
    assert row["rewards/margins"] == pytest.approx(row["rewards/chosen"] - row["rewards/rejected"])


def test_dpo_starts_at_log_two_and_policy_equals_reference(go):
    log = go()
    assert log.steps.set_index("step").loc[1, "loss"] == pytest.approx(math.log(2), abs=1e-9)
    assert log.manifest["parity"]["passed"]
    assert log.manifest["parity"]["max_difference"] == 0
    assert log.manifest["reading"]["said"].startswith("Read as prompt: ")
    start = log.pairs[log.pairs["step"] == 0]
    assert (start["chosen_logps"] == start["ref_chosen_logps"]).all()
    assert start["chosen_kl"].abs().max() == 0


def test_accumulation_changes_nothing(go):
    """1 x 4 equals 4 x 1, the ragged last update included."""
    whole = go("whole", max_grad_norm=0)
    parts = go("parts", per_device_train_batch_size=1, gradient_accumulation_steps=4, max_grad_norm=0)
    a, b = numbers(whole), numbers(parts)
    np.testing.assert_allclose(a["chosen_logps"], b["chosen_logps"], atol=2e-4)
    np.testing.assert_allclose(whole.steps["grad_norm"], parts.steps["grad_norm"], rtol=1e-3)


def test_clipping_leaves_the_logged_norms_alone(go):
    """Step 1 has the same gradient clipped or not; groups add up to the total."""
    free, clipped = go("free", max_grad_norm=0).steps, go("clipped", max_grad_norm=1e-3).steps
    groups = [c for c in free if c.startswith("grad_norm/")]
    assert len(groups) == 5
    one, other = free.set_index("step").loc[1], clipped.set_index("step").loc[1]
    np.testing.assert_allclose(other[groups].astype(float), one[groups].astype(float), rtol=1e-4)
    assert math.sqrt((one[groups] ** 2).sum()) == pytest.approx(one["grad_norm"], rel=1e-4)


def test_stored_reference_equals_live(go, tmp_path):
    cache = str(tmp_path / "cache")
    live = go("live")
    stored = go("stored", reference="precomputed", reference_cache=cache)
    kl = ["chosen_kl", "rejected_kl", "chosen_kl_reverse", "rejected_kl_reverse"]
    np.testing.assert_allclose(numbers(live, *kl), numbers(stored, *kl), atol=2e-3)
    assert stored.pairs[kl].isna().all().all()  # no second distribution was there: not measured
    (file,) = Path(cache).glob("*.parquet")
    before = file.stat().st_mtime_ns
    again = go("again", reference="precomputed", reference_cache=cache)
    assert file.stat().st_mtime_ns == before  # read, not scored again
    pd.testing.assert_frame_equal(stored.pairs, again.pairs)


def test_a_wrong_reference_is_caught_before_the_first_step(go, tmp_path, monkeypatch):
    """The cache's own check (test_reference.py) is left out here, so that wrong numbers get through to the run."""
    monkeypatch.setattr(reference, "CHECKED", 0)
    cache = tmp_path / "cache"
    go("first", reference="precomputed", reference_cache=str(cache))
    (file,) = cache.glob("*.parquet")
    frame = pd.read_parquet(file)
    frame["chosen"] = frame["chosen"].map(lambda values: [v - 0.1 for v in values])
    frame.to_parquet(file)
    with pytest.raises(DataError, match="policy and reference differ by at most"):
        go("second", reference="precomputed", reference_cache=str(cache))
    log = read_run(tmp_path / "second")
    assert not log.manifest["parity"]["passed"]
    assert log.steps.empty


def test_lora_reference_is_the_base_with_the_adapter_off(go):
    full, lora = go("full"), go("lora", lora_r=2, learning_rate=3e-2)
    a, b = (x.pairs[(x.pairs["split"] == "probe")].set_index(["step", "pair_id"]).sort_index() for x in (full, lora))
    np.testing.assert_allclose(a["ref_chosen_logps"], b["ref_chosen_logps"], atol=1e-4)
    last = lora.pairs[lora.pairs["step"] == lora.pairs["step"].max()]
    assert (last["chosen_logps"] != last["ref_chosen_logps"]).all()  # the adapter did train
    assert last["chosen_kl"].min() > 0


def test_reference_free_objective_without_reference(go):
    log = go(objective="simpo", reference="none")
    assert log.pairs["ref_chosen_logps"].isna().all()
    assert log.steps["displacement/frac"].isna().all()
    assert log.steps.loc[1:, "loss"].notna().all()


def test_an_objective_that_needs_a_reference_says_so(go):
    with pytest.raises(UserError, match="'dpo' needs a reference"):
        go(reference="none")


def test_a_start_that_measured_nothing_is_no_run(go, tmp_path):
    """A wrong setting that only the Trainer finds leaves a folder; the corrected command works."""
    with pytest.raises(UserError, match="banana is not supported"):
        go("started", report_to="banana")
    run = go("started")
    assert run.steps["step"].max() > 0
    assert (tmp_path / "started" / "aside-1" / "config.json").exists()


def test_an_existing_run_folder_is_left_alone(go, tmp_path):
    go("a")
    before = (tmp_path / "a" / "steps.jsonl").read_bytes()
    with pytest.raises(UserError, match="exists already"):
        go("a")
    assert (tmp_path / "a" / "steps.jsonl").read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_pairs(go, tmp_path, monkeypatch):
    import trainers.objectives.dpo as dpo_file

    plain, calls = dpo_file.dpo, []

    def breaks_at_third(pair, **keys):
        calls.append(1)  # the first call only tries the hyperparameters
        output = plain(pair, **keys)
        return output._replace(losses=output.losses * (math.nan if len(calls) == 4 else 1.0))

    breaks_at_third.__kwdefaults__ = plain.__kwdefaults__
    monkeypatch.setattr(dpo_file, "dpo", breaks_at_third)
    config_keys = {"objective": "dpo"}
    with pytest.raises(DataError, match="loss is not finite for pair_id") as caught:
        go("bad", **config_keys)
    log = read_run(tmp_path / "bad")
    assert log.steps["step"].max() == 2  # the two good updates are kept
    rows = log.pairs[(log.pairs["split"] == "train") & (log.pairs["step"] == 3)]
    assert rows["loss"].isna().all()
    assert all(pair_id in str(caught.value) for pair_id in rows["pair_id"])


def test_killed_at_any_moment_the_log_is_readable(lm_folder, pairs_file, tmp_path):
    config = {"model": lm_folder, "data": pairs_file, "output_dir": str(tmp_path / "run"), "num_train_epochs": 500}
    (tmp_path / "run.yaml").write_text(json.dumps(config | FAST))
    process = forks.start("chesboard.py", "train", "--config", tmp_path / "run.yaml")
    steps = tmp_path / "run" / "steps.jsonl"
    while not steps.exists() or steps.read_text().count("\n") < 12:
        assert process.is_alive()
        time.sleep(0.02)
    process.kill()
    process.join()
    log = read_run(tmp_path / "run")
    train_rows = log.pairs[log.pairs["split"] == "train"]
    done = log.steps.loc[log.steps["step"] > 0, ["step", "n"]].set_index("step")["n"]
    assert len(done) >= 11
    logged = train_rows.groupby("step").size()
    assert (logged.reindex(done.index) == done).all()  # every step written has all its pairs


def test_log_probs_that_depend_on_their_neighbours_stop_the_run(lm_folder, make_pairs):
    """Here a row's hidden states take in the mean of all rows of its call."""
    model = load_model(lm_folder)
    model.lm_head.register_forward_pre_hook(lambda m, args: (args[0] + args[0].mean((0, 1)),))
    from trainers.loop.reference import LiveReference

    with pytest.raises(DataError, match=r"side of pair_id pair\d has log-prob .* alone and .* beside other pairs"):
        measure_parity(model, LiveReference(model, TOKENS), make_pairs(5), TOKENS, eps=1e-7)


@pytest.mark.parametrize(("keys", "share"), [({"learning_rate": 0.0}, 0.0), ({"learning_rate": 3e-3}, 1.0)])
def test_the_manifest_says_which_share_of_the_weights_moved(go, keys, share):
    found = go(max_steps=3, **keys).manifest["weights_moved"]
    assert found["n"] > 20_000
    assert found["share"] == 0 if share == 0 else 0.5 < found["share"] <= 1
    assert (found["largest"] > 0) == (share > 0)


def test_bfloat16_weights_that_hardly_move_are_counted(go):
    """A step of 5e-7 is below half a unit in the last place of nearly all weights."""
    assert go(max_steps=2, dtype="bfloat16", learning_rate=5e-7).manifest["weights_moved"]["share"] < 0.01


def test_gradients_of_bfloat16_weights_are_measured(go):
    log = go(max_steps=2, dtype="bfloat16", grad_every=1)
    steps = log.steps[log.steps["step"] > 0]
    assert (steps["grad/chosen"] > 0).all()
    assert log.manifest["gradients"]["pairs"] == "from activations and output gradients"


def test_an_adapter_is_trained_from_where_it_stands(go, lm_folder, tmp_path):
    """Merged into its base: policy and reference start as base with adapter, and the run agrees with itself."""
    go("lora", lora_r=2, learning_rate=3e-2, save_model=True, max_steps=4)
    log = go("again", model=str(tmp_path / "lora" / "model"), max_steps=2)
    assert log.manifest["parity"]["passed"]
    start = log.pairs[(log.pairs["step"] == 0) & (log.pairs["split"] == "probe")].set_index("pair_id")
    plain = go("plain", max_steps=1).pairs
    plain = plain[(plain["step"] == 0) & (plain["split"] == "probe")].set_index("pair_id")
    assert (start["chosen_logps"] - plain["chosen_logps"]).abs().max() > 1e-2


def test_parity_finds_another_model(lm_folder, make_pairs):
    model = load_model(lm_folder)
    other = load_model(lm_folder)
    with torch.no_grad():
        other.lm_head.weight.add_(0.01 * torch.randn_like(other.lm_head.weight))
    from trainers.loop.reference import LiveReference

    same = measure_parity(model, LiveReference(load_model(lm_folder), TOKENS), make_pairs(3), TOKENS, eps=1e-7)
    different = measure_parity(model, LiveReference(other, TOKENS), make_pairs(3), TOKENS, eps=1e-7)
    assert same["passed"]
    assert same["max_difference"] == 0
    assert not different["passed"]
    assert different["max_difference"] > 100 * different["noise_floor"]


def test_noise_is_no_less_than_a_rounding_step_of_the_tokens(lm_folder, make_pairs):
    """Also where both ways of scoring round alike, as small models in bfloat16 do."""
    from trainers.loop.reference import LiveReference

    model, pairs, eps = load_model(lm_folder), make_pairs(3), 2.0**-7
    found = measure_parity(model, LiveReference(model, TOKENS), pairs, TOKENS, eps=eps)
    with torch.no_grad():
        stats = pair_stats(batch := collate(pairs, pad_token_id=0), run(model, batch))
    steps = [(eps * side.logps.abs() / side.lengths.sqrt()).max() for side in (stats.chosen, stats.rejected)]
    assert found["noise"] == pytest.approx(float(max(steps)), rel=1e-4)
    assert found["noise"] < found["noise_floor"]


def test_tracked_groups_are_probabilities_after_the_prompt(go, tmp_path, lm_folder):
    from trainers.models import load_tokenizer

    track = {
        "prompts": [{"id": "p0", "set": "unsafe", "prompt": "alpha beta ?"}],
        "groups": {"a": ["Ġalpha"], "b": ["Ġbeta"]},
    }
    (tmp_path / "track.json").write_text(json.dumps(track))
    log = go(track=str(tmp_path / "track.json"))
    groups = log.mass[(log.mass["kind"] == "group") & (log.mass["step"] == 0)].set_index("name")
    tokenizer, model = load_tokenizer(lm_folder), load_model(lm_folder)
    with torch.no_grad():
        probs = model(torch.tensor([tokenizer("alpha beta ?")["input_ids"]])).logits[0, -1].softmax(-1)
    for name, token in (("a", "Ġalpha"), ("b", "Ġbeta")):
        assert groups.loc[name, "prob"] == pytest.approx(float(probs[tokenizer.convert_tokens_to_ids(token)]), rel=1e-5)
        assert log.steps.iloc[0][f"track/unsafe/{name}"] == pytest.approx(groups.loc[name, "prob"])
    last = log.mass[(log.mass["kind"] == "group") & (log.mass["step"] == log.mass["step"].max())]
    assert (last["prob_start"].to_numpy() == groups.loc[last["name"], "prob"].to_numpy()).all()


def test_mass_ledger_adds_up(go):
    log = go()
    last = log.mass[log.mass["step"] == log.mass["step"].max()]
    one = last[last["kind"].isin(["chosen", "rejected", "other"])].groupby(["split", "pair_id"])
    np.testing.assert_allclose(one["prob"].sum(), 1.0, atol=1e-6)
    np.testing.assert_allclose(one["change"].sum(), 0.0, atol=1e-6)
    gained = last[last["kind"] == "gained"].sort_values(["split", "pair_id", "rank"])
    assert (gained.groupby(["split", "pair_id"])["change"].diff().dropna() <= 0).all()
    assert (gained[gained["rank"] == 0]["change"] > 0).all()


def test_token_rows_sum_to_the_pair(go):
    log = go(tokens="all")
    sums = log.tokens[log.tokens["side"] == "chosen"].groupby(["step", "pair_id"])[["logp", "kl"]].sum()
    probe = log.pairs[log.pairs["split"] == "probe"].set_index(["step", "pair_id"]).sort_index()
    np.testing.assert_allclose(sums["logp"], probe["chosen_logps"], rtol=1e-9)
    np.testing.assert_allclose(sums["kl"], probe["chosen_kl"], rtol=1e-6, atol=1e-12)


def test_no_pickle_is_left_behind(go, tmp_path):
    go("saved", save_model=True)
    left = {p.suffix for p in (tmp_path / "saved").rglob("*") if p.is_file()}
    assert left <= {".json", ".jsonl", ".parquet", ".safetensors", ".jinja"}
    assert load_model(str(tmp_path / "saved" / "model"))


@pytest.mark.parametrize(
    "keys", [{}, {"lora_r": 4}, {"gradient_accumulation_steps": 2}], ids=["full", "lora", "accumulated"]
)
@pytest.mark.parametrize("reference", ["live", "precomputed"])
def test_mixed_precision_starts_neutral(go, keys, reference):
    """Policy and reference run under the same autocast and engine: loss log 2, no pair below its reference."""
    log = go(bf16=True, reference=reference, **keys)
    assert log.manifest["parity"]["passed"]
    assert log.steps.set_index("step").loc[1, "loss"] == pytest.approx(math.log(2), abs=1e-3)
    start = log.steps.set_index("step").loc[0]
    assert start["probe/displacement/frac"] == 0
    assert abs(start["probe/displacement/chosen"]) < 1e-2


def test_held_out_file_may_reuse_ids(go, tmp_path):
    """Both files count their ids from 0; the lengths differ, so a mix-up could not go unseen."""
    for name, word in (("a", "alpha"), ("b", "omega omega")):
        rows = [{"id": i, "prompt": f"{word} ?", "chosen": f" {word} x{i}", "rejected": " beta"} for i in range(12)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    keys = {"data": str(tmp_path / "a.jsonl"), "heldout_data": str(tmp_path / "b.jsonl"), "heldout_pairs": 5}
    live, stored = go("live", **keys), go("stored", reference="precomputed", **keys)
    assert set(live.pairs[live.pairs["split"] == "eval"]["pair_id"]) <= {f"heldout/{i}" for i in range(12)}
    a, b = (numbers(x)[["ref_chosen_logps", "ref_rejected_logps"]] for x in (live, stored))
    np.testing.assert_allclose(a, b, atol=1e-3)
    held = pd.read_parquet(tmp_path / "live" / "audit_heldout.parquet")
    assert held["pair_id"].tolist() == [f"heldout/{i}" for i in range(12)]


@pytest.mark.parametrize(
    "keys", [{"data": "missing.jsonl"}, {"beta": -1}, {"model": "./missing"}, {"track": "no.json"}]
)
def test_a_failed_start_leaves_no_folder(go, tmp_path, keys):
    with pytest.raises(UserError):
        go("run", **keys)
    assert not (tmp_path / "run").exists()


def test_every_probe_reaches_the_viewers(go, monkeypatch):
    from trainers.loop.trainer import Trainer

    seen = []
    plain = Trainer.log
    monkeypatch.setattr(Trainer, "log", lambda self, logs, *a: (seen.append(dict(logs)), plain(self, logs, *a)))
    log = go(probe_every=2, logging_steps=3)
    values = [entry["probe/logps/chosen"] for entry in seen if "probe/logps/chosen" in entry]
    assert values == log.steps["probe/logps/chosen"].dropna().tolist()
    assert any("kl/chosen" in entry and "loss" in entry for entry in seen)


def test_a_probe_takes_no_log_from_the_viewers(go, monkeypatch):
    """At a step that is probed and logged, both reach them."""
    from trainers.loop.trainer import Trainer

    seen, plain = [], Trainer.log
    monkeypatch.setattr(
        Trainer, "log", lambda self, logs, *a: (seen.append((self.state.global_step, set(logs))), plain(self, logs, *a))
    )
    go(probe_every=1, logging_steps=1)
    steps = {step for step, _ in seen}
    assert {step for step, keys in seen if "loss" in keys} == steps - {0}
    assert {step for step, keys in seen if "probe/n" in keys} == steps


def test_a_gradient_that_is_not_finite_stops_the_run_in_plain_words(go, monkeypatch):
    """A loss of 1e38 is finite; its gradient overflows, and clipping would make every update 0."""
    import trainers.objectives.dpo as dpo_file

    plain = dpo_file.dpo

    def steep(pair, **keys):
        output = plain(pair, **keys)
        return output._replace(losses=output.losses * 1e38)

    steep.__kwdefaults__ = plain.__kwdefaults__
    monkeypatch.setattr(dpo_file, "dpo", steep)
    with pytest.raises(DataError, match=r"the gradient is not finite: its norm is (inf|nan) at step 1") as caught:
        go(objective="dpo")
    assert "lower beta" in str(caught.value)


def test_at_the_first_update_policy_and_reference_are_the_same_weights(go):
    """Whatever way the batch is run: the gradient instruments take another one than the stored reference."""
    log = go(learning_rate=1e-9, grad_every=1, max_steps=2)
    first = log.steps.set_index("step").loc[1]
    assert (first["displacement/frac"], first["displacement/chosen"]) == (0.0, 0.0)


def test_a_model_with_nan_weights_is_named_before_training(go, lm_folder, tmp_path):
    broken = load_model(lm_folder)
    with torch.no_grad():
        broken.lm_head.weight[0] = math.nan
    broken.save_pretrained(tmp_path / "m")
    shutil.copy(Path(lm_folder) / "tokenizer.json", tmp_path / "m")
    shutil.copy(Path(lm_folder) / "tokenizer_config.json", tmp_path / "m")
    with pytest.raises(DataError, match="log-probs are not finite for pair_id"):
        go(model=str(tmp_path / "m"))


def test_a_tokenizer_with_more_tokens_than_the_model_is_refused(go, lm_folder, tmp_path):
    small = load_model(lm_folder)
    small.resize_token_embeddings(100)
    small.save_pretrained(tmp_path / "m")
    shutil.copy(Path(lm_folder) / "tokenizer.json", tmp_path / "m")
    shutil.copy(Path(lm_folder) / "tokenizer_config.json", tmp_path / "m")
    with pytest.raises(DataError, match="the model has only 100 embeddings"):
        go(model=str(tmp_path / "m"))


@pytest.mark.parametrize("kind", ["live", "precomputed"])
def test_two_processes_log_what_one_does(kind, lm_folder, pairs_file, tmp_path):
    """Same pairs, same first loss, whole log from both ranks; they share the scoring of a stored reference."""
    config = {"model": lm_folder, "data": pairs_file, "heldout_pairs": 0, "save_model": False, "max_grad_norm": 0.0}
    config |= {"learning_rate": 1e-4, "probe_pairs": 4, "reference": kind}
    logs = {}
    for n in (1, 2):
        run = config | {"output_dir": str(tmp_path / f"run{n}"), "per_device_train_batch_size": 4 // n}
        run |= {"reference_cache": str(tmp_path / f"cache{n}")}
        (tmp_path / f"{n}.json").write_text(json.dumps(run))
        done = forks.run("chesboard.py", "train", "--config", tmp_path / f"{n}.json", ranks=n)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("run: ") == 1
        logs[n] = read_run(tmp_path / f"run{n}")
    if kind == "precomputed":
        shares = [len(pd.read_parquet(path)) for path in (tmp_path / "cache2").glob("*.parquet")]
        assert sorted(shares) == [12, 12]
    one, two = (logs[n].pairs[logs[n].pairs["split"] == "train"] for n in (1, 2))
    assert set(one["pair_id"]) == set(two["pair_id"])
    assert logs[2].steps["n"].dropna().eq(4).all()
    assert logs[1].steps["loss"][1] == pytest.approx(logs[2].steps["loss"][1], abs=1e-9)
    assert logs[1].steps["probe/logps/chosen"][0] == pytest.approx(logs[2].steps["probe/logps/chosen"][0], rel=1e-6)


def test_an_adapter_on_the_head_is_off_in_the_reference(go):
    full = go("full", probe_every=6)
    lora = go("lora", lora_r=2, lora_targets="q_proj,lm_head", learning_rate=3e-2, probe_every=6)
    a, b = (x.pairs[x.pairs["split"] == "probe"].set_index(["step", "pair_id"]).sort_index() for x in (full, lora))
    np.testing.assert_allclose(a["ref_chosen_logps"], b["ref_chosen_logps"], atol=1e-4)
    last = lora.pairs[lora.pairs["step"] == 6]
    assert last["chosen_kl"].min() > 1e-6
    assert "at once" in lora.manifest["engine"]
