"""The cache of reference log-probs: content decides, a stop loses little, wrong rows are noticed, runs can share it."""

import threading
from pathlib import Path

import forks
import pandas as pd
import peft
import pytest
import torch

from diagnostics.errors import DataError
from diagnostics.likelihood import pair_stats
from diagnostics.measures.logratios import chosen_logratios
from diagnostics.token_likelihood import TokenLikelihood
from trainers.loop import reference
from trainers.loop.reference import LiveReference, SummedReference, keep_start, precompute

TOKENS = TokenLikelihood(0)

ROOT = Path(__file__).parents[3]


@pytest.fixture
def scored(monkeypatch):
    """How many pairs went through the model, batch by batch."""
    sizes, score = [], reference.score

    def counted(model, pairs, **options):
        for result in score(model, pairs, **options):
            sizes.append(len(result.pairs))
            yield result

    monkeypatch.setattr(reference, "score", counted)
    return sizes


@pytest.fixture
def small_batches(monkeypatch):
    monkeypatch.setattr("diagnostics.token_likelihood.CPU_TOKENS", 80)


def fill(model, pairs, folder, **key):
    return precompute(model, pairs, likelihood=TOKENS, folder=folder, key={"model": "m"} | key).logps


def close(a, b, tolerance=1e-4):
    assert a.keys() == b.keys()
    for pair_id, sides in a.items():
        for one, other in zip(sides, b[pair_id], strict=True):
            assert one == pytest.approx(other, abs=tolerance)


def test_read_back_after_a_check_of_four(make_model, make_pairs, tmp_path, scored):
    model, pairs = make_model("llama"), make_pairs(12)
    first = fill(model, pairs, tmp_path)
    assert sum(scored) == 12
    scored.clear()
    assert fill(model, pairs, tmp_path) == first  # read, to the last bit
    assert sum(scored) == 8  # four pairs together, and each of them alone
    scored.clear()
    fill(model, pairs, tmp_path, dtype="bfloat16")
    assert sum(scored) == 12  # another key: other rows
    assert len(list(tmp_path.glob("*.parquet"))) == 2


def test_only_new_content_is_scored(make_model, make_pairs, tmp_path, scored):
    model, pairs = make_model("llama"), make_pairs(12)
    fill(model, pairs[:7], tmp_path)
    scored.clear()
    found = fill(model, pairs, tmp_path)
    assert sum(scored) == 8 + 5
    close(found, fill(model, pairs, tmp_path / "fresh"))


@pytest.mark.parametrize("size", [0.1, 0.01])
def test_wrong_rows_are_noticed_and_scored_again(make_model, make_pairs, tmp_path, capsys, size):
    model, pairs = make_model("llama"), make_pairs(12)
    first = fill(model, pairs, tmp_path)
    (file,) = tmp_path.glob("*.parquet")
    frame = pd.read_parquet(file)
    frame["chosen"] = frame["chosen"].map(lambda values: [v - size for v in values])
    frame.to_parquet(file)
    assert fill(model, pairs, tmp_path) == first
    said = capsys.readouterr().err
    assert f"differ from this model's by {size:g} nats on a token" in said
    assert "scored again now" in said
    assert fill(model, pairs, tmp_path) == first  # the cache holds the right rows now
    assert capsys.readouterr().err == ""


def test_rounding_is_no_reason(make_model, make_pairs, tmp_path, capsys):
    """Rows scored in other batches, and in half precision."""
    model, pairs = make_model("llama", scale=1.0).to(torch.bfloat16), make_pairs(12)
    for pair in pairs:
        fill(model, [pair], tmp_path)
    assert len(list(tmp_path.glob("*.parquet"))) == 12
    fill(model, pairs, tmp_path)
    assert capsys.readouterr().err == ""


def test_a_stopped_run_keeps_its_rows(make_model, make_pairs, tmp_path, scored, small_batches, monkeypatch):
    model, pairs = make_model("llama"), make_pairs(20)
    monkeypatch.setattr(reference, "SECONDS", 0.0)
    calls, rows = [], reference._rows

    def few(result):
        calls.append(len(result.pairs))
        if len(calls) > 3:
            raise KeyboardInterrupt
        return rows(result)

    with monkeypatch.context() as patch:
        patch.setattr(reference, "_rows", few)
        with pytest.raises(KeyboardInterrupt):
            fill(model, pairs, tmp_path)
    assert len(list(tmp_path.glob("*.parquet"))) == 3
    scored.clear()
    found = fill(model, pairs, tmp_path)
    assert sum(scored) == 8 + 20 - sum(calls[:3])
    close(found, fill(model, pairs, tmp_path / "fresh"))
    assert len(list((tmp_path / "fresh").glob("*.parquet"))) == 1  # its parts became one file


def test_a_damaged_file_is_only_a_cache(make_model, make_pairs, tmp_path, scored):
    model, pairs = make_model("llama"), make_pairs(8)
    first = fill(model, pairs[:4], tmp_path)
    (file,) = tmp_path.glob("*.parquet")
    file.write_bytes(file.read_bytes()[:50])
    scored.clear()
    assert fill(model, pairs[:4], tmp_path) == first
    assert sum(scored) == 4


def test_runs_that_share_a_cache_lose_no_row(make_model, make_pairs, tmp_path, small_batches, monkeypatch):
    """Four at once, with overlapping pairs and a part after every batch."""
    monkeypatch.setattr(reference, "SECONDS", 0.0)
    pairs, failures = make_pairs(24), []

    def work(start: int) -> None:
        try:
            fill(make_model("llama"), pairs[start : start + 15], tmp_path)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(start,)) for start in (0, 3, 6, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    keys = {k for path in Path(tmp_path).glob("*.parquet") for k in pd.read_parquet(path)["key"]}
    assert keys == {reference.content_key(p) for p in pairs}
    assert not list(tmp_path.glob("*.tmp"))


LATE = """
import os, sys, time
from accelerate import PartialState
from trainers.models import load_model, load_tokenizer, quiet
from trainers.loop.reference import precompute
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.audit import audit_pairs
from diagnostics.pairs import read_pairs
quiet()
data, lm, folder = sys.argv[1:]
state = PartialState(cpu=True)
pairs = audit_pairs(read_pairs(data), load_tokenizer(lm), max_length=None, truncation="drop").tokenized
time.sleep(3 * (state.process_index == 0))
stored = precompute(load_model(lm), pairs, likelihood=TokenLikelihood(0), folder=folder, key={"model": "m"})
assert len(stored.logps) == len(pairs) == 24
state.wait_for_everyone()
state.destroy_process_group()
"""


def test_a_process_that_comes_late_does_not_take_the_others_rows_for_an_old_cache(lm_folder, pairs_file, tmp_path):
    """Else one process would ask the other whether the cache is still good, who waits for the scores instead."""
    driver = tmp_path / "driver.py"
    driver.write_text(LATE)
    done = forks.run(driver, pairs_file, lm_folder, tmp_path / "cache", ranks=2)
    assert done.returncode == 0, done.stderr
    assert sorted(len(pd.read_parquet(path)) for path in (tmp_path / "cache").glob("*.parquet")) == [12, 12]


@pytest.mark.parametrize("adapter", [True, "ref"])
def test_an_adapter_that_is_switched_is_as_before(make_model, make_pairs, make_batch, adapter):
    """peft makes all of an adapter trainable on its way back. The reference is the base, or the adapter `ref`."""
    plain, batch = make_model("llama"), make_batch(make_pairs(3))
    settings = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = peft.get_peft_model(make_model("llama"), settings)
    model.add_adapter("ref", settings)
    frozen = [p for name, p in model.named_parameters() if "lora_A.default" in name]
    for parameter in frozen:
        parameter.requires_grad_(False)
    model.train()
    before = [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()], model.active_adapter
    stats = {}
    for name, run in (("policy", TOKENS.run), ("reference", LiveReference(model, TOKENS, adapter=adapter))):
        out = run(model, batch) if name == "policy" else run(batch)
        stats[name] = pair_stats(TOKENS, batch, out).chosen.logps
    assert before == (
        [p.requires_grad for p in model.parameters()], [m.training for m in model.modules()], model.active_adapter,
    )  # fmt: skip
    model.set_adapter("ref")
    wanted = pair_stats(TOKENS, batch, TOKENS.run(plain if adapter is True else model, batch)).chosen.logps
    torch.testing.assert_close(stats["reference"], wanted)
    assert (stats["policy"] - stats["reference"]).abs().min() > 1e-3


def test_sums_are_known_and_tokens_are_not(make_model, make_pairs, make_batch):
    pairs = make_pairs(3)
    logps = {pair.pair_id: (-1.5 - i, -20.25 - i) for i, pair in enumerate(pairs)}
    model, batch = make_model("llama"), make_batch(pairs[::-1])
    with torch.no_grad():
        stats = pair_stats(TOKENS, batch, TOKENS.run(model, batch), SummedReference(logps)(batch))
    assert stats.ref_chosen.logps.tolist() == [-3.5, -2.5, -1.5]
    assert stats.ref_rejected.logps.tolist() == [-22.25, -21.25, -20.25]
    assert stats.ref_chosen.per_token_logps.isnan().all()
    assert stats.chosen.per_token_kl is None
    assert torch.equal(chosen_logratios(stats), stats.chosen.logps - stats.ref_chosen.logps)


def test_the_start_is_the_reference_of_a_run_that_goes_on(make_model, make_pairs, tmp_path):
    pairs, path = make_pairs(5), tmp_path / "start.parquet"
    model, later = make_model("llama"), make_model("llama", seed=1)
    start = keep_start(model, pairs, likelihood=TOKENS, path=path, resumed=False)
    again = keep_start(later, pairs, likelihood=TOKENS, path=path, resumed=True)
    assert again.logps == start.logps
    for missing in (make_pairs(5, seed=3), [*pairs, *make_pairs(6, seed=9)]):
        with pytest.raises(DataError, match="does not hold the log-probs that the model gave these pairs at step 0"):
            keep_start(later, missing, likelihood=TOKENS, path=path, resumed=True)
    path.unlink()
    with pytest.raises(DataError, match="Restore this file, or start anew"):
        keep_start(later, pairs, likelihood=TOKENS, path=path, resumed=True)
