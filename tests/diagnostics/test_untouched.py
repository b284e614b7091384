"""Measuring never changes what is measured: the caller's model and every random state are as before; and a pair's
numbers never depend on what else was in the call."""

import copy
import random
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from diagnostics.engine import engine_of
from diagnostics.errors import DataError
from diagnostics.forward import run, run_sides
from diagnostics.prepare import prepare
from diagnostics.row_stats import pair_stats
from diagnostics.sampling import draw
from diagnostics.scoring import score
from diagnostics.sequences import pair_of
from diagnostics.token_likelihood import TokenLikelihood
from trainers.loop.probe import Probe
from trainers.loop.reference import LiveReference
from trainers.models import load_tokenizer

TOKENS = TokenLikelihood(0)

FIVE = ["llama", "gpt2", "qwen2", "gemma3", "mixtral"]
SWITCHING = {
    "longrope": {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.5, 4.0, 12.0, 30.0],
                 "original_max_position_embeddings": 12},
    "dynamic": {"rope_type": "dynamic", "factor": 4.0},
}  # fmt: skip


def state_of(model):
    """All that a caller can see of a model and of the random states."""
    modules = list(model.modules())
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_buffers")
    inside = [
        {k: v for k, v in vars(m).items() if not isinstance(v, (dict, list, set)) and not isinstance(v, torch.Tensor)}
        for m in modules
    ]
    return {
        "weights": {k: v.clone() for k, v in model.state_dict().items()},
        "buffers": {k: (id(v), v.clone()) for k, v in model.named_buffers()},
        "kinds": [(p.dtype, p.requires_grad, p.grad is None, id(p)) for p in model.parameters()],
        "modes": [m.training for m in modules],
        "hooks": [[list(vars(m)[h]) for h in hooks] for m in modules],
        "attributes": inside,
        "names": [sorted(vars(m)) for m in modules],
        "config": model.config.to_dict(),
        "attention": [m.config._attn_implementation for m in modules if hasattr(m, "config")],
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].copy(),  # noqa: NPY002 (the global state is what must stay)
        "torch": torch.get_rng_state(),
    }


def assert_same(one, other, place=""):
    assert type(one) is type(other), place
    if isinstance(one, dict):
        assert one.keys() == other.keys(), place
        for key in one:
            assert_same(one[key], other[key], f"{place}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), place
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            assert_same(a, b, f"{place}/{i}")
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, np.ndarray):
        assert (one == other).all(), place
    else:
        assert one is other or one == other, place


@pytest.mark.parametrize("name", FIVE)
def test_measuring_leaves_the_model_as_it_was(name, make_model, make_pairs, make_batch, lm_folder, tmp_path):
    reference, model, batch = make_model(name, seed=1), make_model(name), make_batch(make_pairs(4))
    model.train()
    model.get_decoder().eval()  # modes that differ from module to module
    ids = torch.tensor([[1, 5, 7, 9]])
    how = {"max_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    wanted, answer = model(input_ids=ids).logits.detach(), model.generate(ids, **how)
    model.zero_grad()
    before = state_of(model)

    def same(what):
        assert_same(before, state_of(model), what)
        assert torch.equal(model(input_ids=ids).logits, wanted), what
        assert torch.equal(model.generate(ids, **how), answer), what

    prepare(model)
    assert engine_of(model).packed
    same("prepare")
    with torch.no_grad():
        pair_stats(batch, run(model, batch))
    same("run")
    stats = pair_stats(batch, run(model, batch))
    stats.chosen.logps.sum().backward()
    model.zero_grad()
    run_sides(model, batch)
    same("run with a gradient")
    list(score(model, make_pairs(4), likelihood=TOKENS))
    draw(model, [(1, 5), (1, 6, 7)], [3, 3], pad=0, ends=(2,))
    same("score and greedy")
    probe = Probe(
        {"probe": make_pairs(4)}, load_tokenizer(lm_folder), likelihood=TOKENS,
        reference=LiveReference(reference, TOKENS), track=None, start=Path(tmp_path) / "start.safetensors", responses=2,
    )  # fmt: skip
    probe.measure(model, 0, 0.0, tokens=True)
    same("probe")


def test_a_checkpointed_model_is_left_alone_too(make_model, make_pairs, make_batch):
    model, batch = make_model("llama").train(), make_batch(make_pairs(4))
    model.gradient_checkpointing_enable()
    before = [vars(m).get("_gradient_checkpointing_func") for m in model.modules()]
    prepare(model)
    out = run(model, batch)
    assert [vars(m).get("_gradient_checkpointing_func") for m in model.modules()] == before
    pair_stats(batch, out).chosen.logps.sum().backward()
    assert model.config._attn_implementation == "eager"


@pytest.mark.parametrize("name", ["BertConfig", "RobertaConfig", "ElectraConfig", "XLNetConfig"])
def test_a_model_that_reads_both_ways_is_refused(name):
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
    if name == "XLNetConfig":
        size = {"d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48}
    model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, name)(vocab_size=61, **size)).eval()
    with pytest.raises(DataError, match="is no causal language model"):
        prepare(model)


def test_weights_that_are_not_numbers_are_not_called_a_model_that_reads_both_ways():
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=32, num_hidden_layers=1, num_attention_heads=4, vocab_size=61, intermediate_size=48
        )
    ).eval()
    with torch.no_grad():
        model.model.layers[0].self_attn.q_proj.weight[0, 0] = float("nan")
    with pytest.raises(DataError, match="gives logits that are not finite"):
        prepare(model)


def switching(kind, length=12):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=61, intermediate_size=48,
        max_position_embeddings=256 if kind == "longrope" else length,
        rope_parameters=SWITCHING[kind] | {"rope_theta": 10000.0},
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return model


def alone(kind, prompt, completion):
    """The log-prob by a model made anew, in a call of its own."""
    ids = torch.tensor([[*prompt, *completion]])
    with torch.no_grad():
        logps = switching(kind)(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
    return float(logps.gather(-1, ids[0, 1:, None])[len(prompt) - 1 :].sum())


@pytest.mark.parametrize("kind", SWITCHING)
def test_rotary_factors_are_those_of_the_row_alone(kind):
    """Sides of 5 to 40 tokens, around the border of 12; the model was used on a long row before."""
    model, ids = switching(kind), tuple(3 + (7 * k) % 50 for k in range(60))
    sizes = [(3, 2, 30), (5, 7, 6), (4, 8, 9), (2, 12, 3), (10, 25, 30), (6, 34, 1)]
    pairs = [
        pair_of(str(i), i, ids[i : i + n], ids[20 : 20 + c], ids[25 : 25 + r]) for i, (n, c, r) in enumerate(sizes)
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]))
    before = state_of(model)
    prepare(model)
    assert engine_of(model).switch == 12
    found = {p.pair_id: (c, r) for s in score(model, pairs, likelihood=TOKENS) for p, c, r in zip(
        s.pairs, s.stats.chosen.logps.tolist(), s.stats.rejected.logps.tolist(), strict=True)}  # fmt: skip
    assert_same(before, state_of(model))
    wanted = {
        p.pair_id: tuple(alone(kind, p.prompt_ids, c) for c in (p.chosen.completion_ids, p.rejected.completion_ids))
        for p in pairs
    }
    for key in wanted:
        assert found[key] == pytest.approx(wanted[key], abs=2e-4)
    spoiled = copy.deepcopy(model)  # never prepared: the plain way, all rows in one call
    (whole,) = score(spoiled, pairs, likelihood=TOKENS)
    assert max(abs(w[0] - c) for w, c in zip(
        [wanted[p.pair_id] for p in whole.pairs], whole.stats.chosen.logps.tolist(), strict=True)) > 2e-3  # fmt: skip


@pytest.mark.parametrize("kind", SWITCHING)
def test_gradients_of_sides_in_several_regimes(kind, make_batch):
    """The sides' own passes, one a regime, give what the ordinary pass gives; every token is told its pair."""
    model, ids = switching(kind), tuple(3 + (7 * k) % 50 for k in range(60))
    sizes = [(3, 2, 30), (5, 7, 6), (2, 20, 3)]
    batch = make_batch(
        [pair_of(str(i), i, ids[:n], ids[9 : 9 + c], ids[5 : 5 + r]) for i, (n, c, r) in enumerate(sizes)]
    )
    prepare(model)
    out, sides = run(model, batch), run_sides(model, batch)
    torch.testing.assert_close(sides.out.hidden, out.hidden)
    for side, hidden, at in ((0, sides.chosen, 0), (1, sides.rejected, 1)):
        for i, size in enumerate(sizes):
            count = sum(int((sides.pairs[p] == i).sum()) for p in sides.passes[side])
            assert count == size[0] + size[1 + at]
        assert hidden.requires_grad
    weight = model.model.layers[0].mlp.up_proj.weight
    (plain,) = torch.autograd.grad(out.hidden.sum(), weight)
    (apart,) = torch.autograd.grad(sides.chosen.sum() + sides.rejected.sum(), weight)
    torch.testing.assert_close(apart, plain, rtol=1e-4, atol=1e-3)


def test_own_answers_of_a_switching_model_do_not_depend_on_their_neighbours():
    model = switching("longrope")
    prepare(model)
    prompts = [tuple(range(3, 8)), tuple(range(3, 40))]
    together = draw(model, prompts, [5, 5], pad=0, ends=())
    assert together == [draw(model, [p], [5], pad=0, ends=())[0] for p in prompts]


def test_positions_are_passed_only_where_they_are_the_models_own(make_model, make_pairs, make_batch):
    """A model that counts its positions from 3, unless it is told them."""
    model, pairs = make_model("llama"), make_pairs(4)
    inner, plain = model.model, type(model.model).forward

    def counts(self, *args, **kwargs):
        if kwargs.get("position_ids") is None:
            ids = kwargs["input_ids"]
            kwargs["position_ids"] = (3 + 2 * torch.arange(ids.shape[1]))[None].expand(len(ids), -1)
        return plain(self, *args, **kwargs)

    inner.forward = counts.__get__(inner)
    engine = prepare(model)
    assert not engine.positions
    assert not engine.packed
    with torch.no_grad():
        stats = pair_stats(make_batch(pairs), run(model, make_batch(pairs)))
        for i, pair in enumerate(pairs):
            ids = torch.tensor([[*pair.prompt_ids, *pair.chosen.completion_ids]])
            logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])
            assert stats.chosen.logps[i].item() == pytest.approx(
                logps[len(pair.prompt_ids) - 1 :].sum().item(), abs=1e-4
            )


def test_router_logits_are_not_asked_for(make_model, make_pairs, make_batch):
    """Its own loss would count them against a mask that the packed rows do not have."""
    model, batch = make_model("mixtral"), make_batch(make_pairs(3))
    with torch.no_grad():
        plain = pair_stats(batch, run(model, batch))
        model.config.output_router_logits = True
        assert prepare(model).packed
        got = pair_stats(batch, run(model, batch))
    torch.testing.assert_close(got.chosen.logps, plain.chosen.logps, atol=1e-4, rtol=1e-4)
