"""The fast way against the slow way: packed rows, shared prompts and tiled heads change no number."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import diagnostics.forward as forward_file
import diagnostics.packing as packing_file
from diagnostics.engine import engine_of
from diagnostics.forward import run, run_sides
from diagnostics.prepare import prepare
from diagnostics.row_stats import pair_stats
from diagnostics.sequences import Example, pair_of

PACKED = {"llama", "qwen2", "qwen3", "gemma2", "gemma3", "cohere", "mistral", "mixtral", "gpt2", "gpt_neox", "opt"}


def stats_of(model, batch, reference=None):
    with torch.no_grad():
        return pair_stats(batch, run(model, batch), run(reference, batch) if reference else None)


def same(a, b, **tolerance):
    for side in ("chosen", "rejected"):
        one, two = getattr(a, side), getattr(b, side)
        for name in ("logps", "hidden_sum", "last_hidden", "lengths"):
            torch.testing.assert_close(getattr(one, name), getattr(two, name), **tolerance)
        if one.per_token_kl is not None:
            torch.testing.assert_close(one.per_token_kl, two.per_token_kl, **tolerance)
            torch.testing.assert_close(one.per_token_kl_reverse, two.per_token_kl_reverse, **tolerance)


def edge_pairs() -> list[Example]:
    """A prompt of one token, completions of one token, identical completions, and ragged ones."""
    return [
        pair_of("one", 0, (1,), (2,), (5, 6, 2)),
        pair_of("single", 1, (1, 4, 7), (9,), (8,), (False, False)),
        pair_of("same", 2, (1, 3), (5, 6, 2), (5, 6, 2)),
        pair_of("long", 3, tuple(range(3, 40)), tuple(range(5, 45)), (2,)),
    ]


def test_packed_equals_padded(architecture, make_model, make_pairs, make_batch, monkeypatch):
    monkeypatch.setattr(forward_file, "TILE_BYTES", 4 * 61 * 16)  # tiles of 16 positions
    model, reference = make_model(architecture), make_model(architecture, seed=1)
    batch = make_batch([*make_pairs(6), *edge_pairs()])
    plain = stats_of(model, batch, reference)
    for each in (model, reference):
        engine = prepare(each)
        assert engine.packed == (architecture in PACKED), engine.name
        assert engine.tiled
    same(stats_of(model, batch, reference), plain, atol=3e-4, rtol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_near_float32(dtype, architecture, make_model, make_pairs, make_batch):
    """One pair at a time in float32 against the engine in half precision: off by its rounding, and finite."""
    batch = make_batch([*make_pairs(6), *edge_pairs()])
    wanted = stats_of(make_model(architecture, scale=1.0), batch)
    model = make_model(architecture, scale=1.0).to(dtype)
    engine = prepare(model)
    got = stats_of(model, batch)
    if architecture in PACKED - {"mixtral"}:  # a router may send a token elsewhere when it rounds otherwise
        assert engine.packed
    room = 0.02 if dtype is torch.float16 else 0.1
    for side in ("chosen", "rejected"):
        one, two = getattr(wanted, side), getattr(got, side)
        torch.testing.assert_close(two.logps, one.logps, atol=10 * room, rtol=room)
        assert two.hidden_sum.isfinite().all()


def test_gradients_equal_the_plain_step(architecture, make_model, make_pairs, make_batch, monkeypatch):
    monkeypatch.setattr(forward_file, "TILE_BYTES", 4 * 61 * 16)
    model, batch = make_model(architecture), make_batch([*make_pairs(5), *edge_pairs()])

    def gradients():
        model.zero_grad()
        stats = pair_stats(batch, run(model, batch))
        torch.nn.functional.softplus(-0.1 * (stats.chosen.logps - stats.rejected.logps)).mean().backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    plain = gradients()
    prepare(model)
    fast = gradients()
    assert plain.keys() == fast.keys()
    scale = max(float(g.abs().max()) for g in plain.values())
    for name in plain:
        torch.testing.assert_close(fast[name], plain[name], atol=2e-5 * scale, rtol=1e-4)


ON_GPU = [("llama", 1 << 29), ("gemma2", 1), ("gemma2", 1 << 29), ("mistral", 1 << 29), ("gpt2", 1 << 29)]


@pytest.mark.parametrize(("architecture", "room"), ON_GPU)
def test_attention_as_on_a_gpu_gives_the_same(architecture, room, make_model, make_pairs, make_batch, monkeypatch):
    """Sequences side by side instead of one by one: log-probs, hidden states, and the gradients through both sides of
    the shared prompt and of prompts run before. Grouped keys, soft-cap (one at a time, or all), window."""
    monkeypatch.setattr(packing_file, "SCORES_BYTES", room)
    model, batch = make_model(architecture), make_batch([*make_pairs(6), *edge_pairs()])
    assert prepare(model).apart

    def gradients():
        stats, sides = pair_stats(batch, run(model, batch)), run_sides(model, batch)
        totals = stats.chosen.logps.sum(), sides.chosen.square().sum(), sides.rejected.square().sum()
        return [torch.autograd.grad(total, weight, retain_graph=True)[0] for total in totals]

    weight = next(p for n, p in model.named_parameters() if "k_proj.weight" in n or "c_attn.weight" in n)
    wanted, slopes = stats_of(model, batch), gradients()
    monkeypatch.setattr(packing_file, "LOOPS", ())
    monkeypatch.delattr(packing_file, "_in_turn")
    assert prepare(model).apart
    same(stats_of(model, batch), wanted, atol=3e-4, rtol=1e-4)
    for got, expected in zip(gradients(), slopes, strict=True):
        torch.testing.assert_close(got, expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-4)


def test_sequences_side_by_side_worked():
    """Prompts of 2 and 1 with completions of 3 and 1, and of 2 (as laid out): tokens 0-5 and 6-8. Sequences 01 234,
    01 5 and 6 78; the two short ones are more than half as long as the long one, so all stand together."""
    found = packing_file.side_by_side(((2, 3, 1), (1, 2)), False, torch.device("cpu"))
    assert [t.tolist() for t in found.takes] == [[[0, 1, 2, 3, 4], [0, 1, 5, 5, 5], [6, 7, 8, 8, 8]]]
    assert found.takes[0].flatten()[found.back].tolist() == list(range(9))


def test_sequences_after_their_prompts_worked():
    """The row holds both prompts (0-4), then completions of 1 and of none; the prompts are not asked back."""
    found = packing_file.side_by_side(((4, 1), (1, 0)), True, torch.device("cpu"))
    assert [t.tolist() for t in found.takes] == [[[0, 1, 2, 3, 5]], [[4]]]
    assert found.back.tolist() == [4]


def test_gradient_checkpointing_keeps_the_packed_attention(make_model, make_pairs, make_batch):
    """Layers that are run again in the backward pass must be run packed again."""
    model, batch = make_model("llama"), make_batch(make_pairs(5))
    prepare(model)
    found = []
    for again in (False, True):
        model.zero_grad()
        model.train()
        if again:
            model.gradient_checkpointing_enable()
        pair_stats(batch, run(model, batch)).chosen.logps.sum().backward()
        found.append(model.model.layers[0].self_attn.q_proj.weight.grad.clone())
    torch.testing.assert_close(found[0], found[1])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.tuples(*[st.integers(1, 12)] * 3), min_size=1, max_size=7),
    order=st.randoms(use_true_random=False),
)
def test_a_pair_never_feels_its_neighbours(lengths, order, make_model, make_batch):
    """Scores of a pair are the same alone, with others, and in any order."""
    model = _MODELS.setdefault("llama", make_model("llama"))
    if not engine_of(model).packed:
        prepare(model)
    pairs = [pair_of(str(i), i, ids(n, i), ids(c, 2 * i), ids(r, 3 * i + 1)) for i, (n, c, r) in enumerate(lengths)]
    shuffled = order.sample(pairs, len(pairs))
    together = stats_of(model, make_batch(shuffled))
    for i, pair in enumerate(shuffled):
        alone = stats_of(model, make_batch([pair]))
        for side in ("chosen", "rejected"):
            a, b = getattr(together, side), getattr(alone, side)
            torch.testing.assert_close(a.logps[i], b.logps[0], atol=1e-4, rtol=1e-5)
            torch.testing.assert_close(a.hidden_sum[i], b.hidden_sum[0], atol=1e-4, rtol=1e-5)


_MODELS: dict = {}


def ids(length: int, start: int) -> tuple[int, ...]:
    """Some token ids."""
    return tuple(3 + (start + 7 * k) % 50 for k in range(length))


def test_left_padded_batches_take_the_plain_way_on_a_prepared_model(make_model, make_pairs, make_batch):
    model, pairs = make_model("llama"), make_pairs(4)
    plain = stats_of(model, make_batch(pairs))
    assert prepare(model).packed
    same(stats_of(model, make_batch(pairs, "left")), plain, atol=1e-4, rtol=1e-4)


def test_a_way_that_gives_other_numbers_is_not_taken(make_model, monkeypatch):
    monkeypatch.setattr(forward_file, "apply_head", lambda model, hidden: hidden @ model.lm_head.weight.T * 1.1)
    engine = prepare(make_model("llama"))
    assert not engine.tiled
    assert engine.packed


def test_the_saved_config_does_not_name_the_packed_attention(make_model, tmp_path):
    model = make_model("llama")
    prepare(model)
    model.save_pretrained(tmp_path)
    assert "chesboard" not in (tmp_path / "config.json").read_text()


def test_a_window_that_attention_layers_do_not_pass_on_sends_long_pairs_the_plain_way(make_model, make_batch):
    """Here the config names a window that only the model's own mask would apply."""
    model = make_model("llama")
    model.config.attention_chunk_size = 6
    engine = prepare(model)
    assert (engine.packed, engine.longest) == (True, 6)
    assert prepare(make_model("mistral")).longest is None
    calls = []
    model.model.layers[0].register_forward_pre_hook(
        lambda m, args, kwargs: calls.append("segments" in kwargs), with_kwargs=True
    )
    stats_of(model, make_batch([pair_of("short", 0, (1, 4), (5, 2), (6, 2))]))
    stats_of(model, make_batch([pair_of("long", 0, (1, 4), (5, 6, 7, 8, 9, 2), (6, 2))]))
    assert calls == [True, False]


def test_attention_that_adds_to_its_scores_is_not_packed(make_model, monkeypatch):
    model = make_model("llama")
    plain = type(model.model.layers[0]).forward
    monkeypatch.setattr(
        type(model.model.layers[0]), "forward", lambda self, *a, **k: plain(self, *a, **k, s_aux=torch.ones(4))
    )
    assert not prepare(model).packed
