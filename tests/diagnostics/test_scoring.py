"""The size of a batch: found by itself, halved where memory does not suffice, and without effect on any number."""

import io
import sys

import pytest
import torch

import diagnostics.token_likelihood as token_likelihood
from diagnostics.engine import Engine
from diagnostics.errors import DataError
from diagnostics.prepare import prepare
from diagnostics.progress import Progress
from diagnostics.scoring import batches, rows, score
from diagnostics.token_likelihood import CPU_TOKENS, TokenLikelihood, cost_of

TOKENS = TokenLikelihood(0)


def scores(model, pairs, **options):
    found = [r for s in score(model, pairs, likelihood=TOKENS, **options) for r in rows(s.pairs, s.stats)]
    return {r["pair_id"]: r["chosen_logps"] for r in found}


@pytest.fixture
def small_memory(monkeypatch):
    """Run out of memory above so many pairs a batch; returns the sizes that were tried."""
    tried = []

    def limit(pairs: int, error: Exception):
        run = token_likelihood.run

        def check(model, batch, **options):
            tried.append(len(batch.pair_ids))
            if len(batch.pair_ids) > pairs:
                raise error
            return run(model, batch, **options)

        monkeypatch.setattr(token_likelihood, "run", check)
        return tried

    return limit


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 8 bytes."),
        MemoryError(),
    ],
    ids=["cuda", "linux", "windows", "python"],
)
def test_a_batch_that_does_not_fit_is_halved(error, small_memory, make_model, make_pairs):
    model, pairs = make_model("llama"), make_pairs(20)
    wanted = scores(model, pairs)
    tried = small_memory(3, error)
    assert scores(model, pairs) == pytest.approx(wanted, abs=1e-4)
    assert [n for n in tried if n > 3] == sorted((n for n in tried if n > 3), reverse=True)
    assert tried[0] == 20
    assert sum(n > 3 for n in tried) <= 4
    assert sum(n for n in tried if n <= 3) == 20


def test_later_batches_start_at_the_smaller_size(small_memory, make_model, make_pairs):
    model, pairs = make_model("llama"), make_pairs(40)
    budget = 8 * 2 * max(p.longest for p in pairs)
    tried = small_memory(4, torch.OutOfMemoryError("out of memory"))
    assert len(scores(model, pairs, batch_tokens=budget)) == 40
    assert sum(n > 4 for n in tried) < 4  # not once a batch


def test_a_pair_that_does_not_fit_alone_is_named(small_memory, make_model, make_pairs):
    small_memory(0, torch.OutOfMemoryError("out of memory"))
    longest = max(make_pairs(5), key=lambda p: (p.longest, -p.source_row))
    with pytest.raises(DataError, match=f"pair_id {longest.pair_id}: .*does not fit into memory even alone"):
        scores(make_model("llama"), make_pairs(5))


def test_other_errors_are_not_swallowed(small_memory, make_model, make_pairs):
    small_memory(0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="multiplied"):
        scores(make_model("llama"), make_pairs(2))


def test_a_batch_whose_tuples_a_loader_made_lists_of_is_the_same(make_pairs):
    """As torch's pinning of memory does it, which only happens with a GPU."""
    fields = vars(TOKENS.collate(make_pairs(3)))
    pinned = fields | {n: list(fields[n]) for n in ("pair_ids", "names")}
    pinned |= {n: [list(x) for x in fields[n]] for n in ("lengths", "first")}
    assert vars(TOKENS.batch(pinned)) == fields  # tensors are the very same


def test_the_budget_counts_tokens_as_the_engine_lays_them_out(make_pairs):
    pairs = make_pairs(60)
    packed, padded = Engine(packed=True), Engine()
    for pair in pairs:
        sizes = (len(pair.prompt_ids), len(pair.chosen.completion_ids), len(pair.rejected.completion_ids))
        assert cost_of(packed)(pair, 30) == sum(sizes) - 2
        assert cost_of(padded)(pair, 30) == 60
        assert cost_of(Engine(packed=True, longest=20))(pair, 30) == 60  # beyond the window rows are padded
    groups = list(batches(pairs, 90, cost_of(packed)))
    totals = [sum(cost_of(packed)(p, 0) for p in g) for g in groups]
    assert max(totals) <= 90
    assert min(totals[:-1]) > 90 - 2 * max(p.longest for p in pairs)  # full but for one more pair
    assert len(groups) < len(list(batches(pairs, 90, cost_of(padded))))


def test_on_a_gpu_the_budget_follows_free_memory(make_model, make_pairs, monkeypatch):
    model, pairs = make_model("llama"), make_pairs(4)
    assert TOKENS.budget(model, pairs) == CPU_TOKENS
    prepare(model)
    gpu = type("P", (), {"device": torch.device("cuda", 0), "element_size": lambda self: 4})()
    monkeypatch.setattr(model, "parameters", lambda: iter([gpu]))
    found = []
    for free in (1 << 20, 1 << 26, 1 << 27, 1 << 40):
        monkeypatch.setattr(token_likelihood, "_free_bytes", lambda device, free=free: free)
        found.append(TOKENS.budget(model, pairs))
    # a token needs 4 * (16 * 32 + 4 * 48) + 16 * 32 = 3,328 bytes; half of 2**26 holds 10,082, half of 2**27 20,164
    assert found == [2048, 8192, 16384, 65536]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_shown_on_a_terminal_only(make_pairs, monkeypatch):
    pairs = make_pairs(10)
    for stream in (io.StringIO(), Terminal()):
        monkeypatch.setattr(sys, "stderr", stream)
        with Progress("scoring", pairs[4:], before=4) as bar:
            bar.add(pairs[4:7])
            bar.add(pairs[7:])
        said = stream.getvalue()
        if not stream.isatty():
            assert said == ""
            continue
        last = said.split("\r")[-1]
        for wanted in ("scoring: 100%", "10/10 pairs", "pairs/s", "tokens/s", "00:00 left"):
            assert wanted in last
