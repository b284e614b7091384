"""Rates by gradients: plain autograd, central differences of a real parameter step, weights restored to the bit."""

from dataclasses import replace

import pytest
import torch

from diagnostics.errors import UserError
from diagnostics.flag.rates import (
    LENGTH,
    answers_gradient,
    difference,
    moved,
    norm,
    self_rate,
    self_rates,
    slope,
    takes_all,
    weights_of,
)
from diagnostics.forward import run
from diagnostics.prepare import prepare
from diagnostics.row_stats import pair_stats
from diagnostics.token_ids import TokenIds
from diagnostics.token_likelihood import TokenLikelihood
from trainers.models import add_lora

TOKENS = TokenLikelihood(0)


def tied(make_model):
    """A Llama whose head is its input embedding."""
    model = make_model("llama")
    model.config.tie_word_embeddings = True
    model.lm_head.weight = model.model.embed_tokens.weight
    return model


def lora(make_model):
    """Adapters whose second factors are no longer zero, as in the middle of training."""
    model = add_lora(make_model("llama"), r=2, alpha=4, targets="q_proj,v_proj,up_proj")
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            p.data.normal_(std=0.2)
    return model


MODELS = {
    "llama": lambda make: make("llama"),
    "gpt2": lambda make: make("gpt2"),
    "tied": tied,
    "lora": lora,
}


@pytest.fixture(params=MODELS)
def model(request, make_model):
    """In float64, run the fastest way that gives its plain results."""
    made = MODELS[request.param](make_model).double()
    prepare(made)
    return made


def plain_logp(model, prompt, ids) -> torch.Tensor:
    """ln pi(ids | prompt) with whole logits: no batch, no packing, no tiles."""
    row = torch.tensor([[*prompt, *ids]])
    logits = model(input_ids=row).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(-1)[torch.arange(len(ids)), torch.tensor(ids)].sum()


def plain_gradients(model, pair, weights):
    """g+ and g- of one pair as flat vectors."""
    found = []
    for ids in (pair.chosen.completion_ids, pair.rejected.completion_ids):
        value = plain_logp(model, pair.prompt_ids, ids)
        grads = torch.autograd.grad(value, list(weights.values()), materialize_grads=True)
        found.append(torch.cat([g.flatten() for g in grads]))
    return found


def set_gradient(model, batch, weights):
    """The batch's g+ - g-, summed."""
    return difference(pair_stats(batch, run(model, batch)), weights)


def flat(direction) -> torch.Tensor:
    return torch.cat([d.flatten() for d in direction.values()])


@pytest.mark.parametrize("which", ["all", "head"])
def test_self_rate_is_plain_autograd(model, which, make_pairs, make_batch):
    if which == "head" and hasattr(model, "peft_config"):
        with pytest.raises(UserError, match="no trainable weights"):
            weights_of(model, which)
        return
    weights = weights_of(model, which)
    for pair in make_pairs(3):
        chosen, rejected = plain_gradients(model, pair, weights)
        got = self_rate(TOKENS, model, make_batch([pair]), weights)
        assert got.dtype == torch.float64
        assert got.item() == pytest.approx(float(chosen @ (chosen - rejected)), rel=1e-5)


@pytest.mark.parametrize("which", ["all", "head"])
def test_all_pairs_at_once_are_each_alone(model, which, make_pairs, make_batch):
    """In any order, beside pairs of other lengths, one of them long enough for the other way to its products."""
    if which == "head" and hasattr(model, "peft_config"):
        return
    weights, pairs = weights_of(model, which), make_pairs(4)
    longer = TokenIds([*pairs[0].chosen.completion_ids] * 12)
    pairs.append(
        replace(
            pairs[0], pair_id="long", rows=pairs[0].rows | {"chosen": replace(pairs[0].chosen, completion_ids=longer)}
        )
    )
    assert takes_all(TOKENS, model, weights)
    alone = torch.cat([self_rate(TOKENS, model, make_batch([pair]), weights) for pair in pairs])
    torch.testing.assert_close(self_rates(model, make_batch(pairs), weights), alone, rtol=1e-5, atol=1e-6)
    back = self_rates(model, make_batch(pairs[::-1]), weights).flip(0)
    torch.testing.assert_close(back, alone, rtol=1e-5, atol=1e-6)


def test_self_rate_is_what_a_real_step_does(model, make_pairs, make_batch):
    """(ln pi(y+) after a step of +h along g+ - g-, minus after -h) / 2h, in float64."""
    weights = weights_of(model)
    for pair in make_pairs(3, seed=1):
        direction = set_gradient(model, make_batch([pair]), weights)
        ends = []
        for h in (1e-3, -1e-3):
            with moved(weights, direction, h / norm(direction)), torch.no_grad():
                ends.append(float(plain_logp(model, pair.prompt_ids, pair.chosen.completion_ids)))
        real = (ends[0] - ends[1]) / 2e-3 * norm(direction)
        assert self_rate(TOKENS, model, make_batch([pair]), weights).item() == pytest.approx(real, rel=1e-3)


def test_head_only_is_the_closed_form_where_the_head_is_not_tied(make_model, make_pairs, make_batch):
    from diagnostics.flag.closed_forms import closed_forms

    model = make_model("llama").double()
    prepare(model)
    batch = make_batch(make_pairs(1))
    with torch.no_grad():
        closed = closed_forms(batch, run(model, batch))["hidden_rate"]
    torch.testing.assert_close(self_rate(TOKENS, model, batch, weights_of(model, "head")), closed, rtol=1e-8, atol=0)


def test_one_batched_backward_pass_is_the_sum_of_the_pairs(model, make_pairs, make_batch):
    weights, pairs = weights_of(model), make_pairs(5)
    grads = [plain_gradients(model, pair, weights) for pair in pairs]
    total, chosen = sum(c - r for c, r in grads), sum(c for c, _ in grads)
    alone = make_batch([replace(p, rows={"answer": p.chosen}) for p in pairs])
    torch.testing.assert_close(flat(answers_gradient(TOKENS, model, alone, weights)), chosen, rtol=1e-4, atol=1e-5)
    for batch in (make_batch(pairs), make_batch(pairs[::-1])):
        torch.testing.assert_close(flat(set_gradient(model, batch, weights)), total, rtol=1e-4, atol=1e-5)


def test_slope_is_the_exact_product(model, make_pairs, make_batch):
    """ln pi(y+) at both ends of a step of LENGTH along the set's direction, against g+ . D of every pair."""
    weights, pairs = weights_of(model), make_pairs(6)
    batch, direction = make_batch(pairs), set_gradient(model, make_batch(pairs), weights)
    size, ends = norm(direction), []
    for sign in (1, -1):
        with moved(weights, direction, sign * LENGTH / size), torch.no_grad():
            ends.append(pair_stats(batch, run(model, batch)).chosen.logps)
    exact = torch.stack([plain_gradients(model, p, weights)[0] @ flat(direction) for p in pairs])
    torch.testing.assert_close(slope(*ends, size), exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))


def test_weights_come_back_to_the_bit(make_model):
    """Adding and subtracting would not: 0.1 + 0.7 - 0.7 is not 0.1 in float32."""
    model = make_model("llama")
    weights = weights_of(model)
    before = {name: w.detach().clone() for name, w in weights.items()}
    direction = {name: torch.randn_like(w) for name, w in weights.items()}
    moving = moved(weights, direction, 0.7)
    moving.__enter__()
    assert not any(torch.equal(w, before[name]) for name, w in weights.items())
    with pytest.raises(KeyboardInterrupt):
        moving.gen.throw(KeyboardInterrupt())
    assert all(torch.equal(w, before[name]) for name, w in weights.items())
    assert all(w.requires_grad for w in weights.values())


def test_lora_takes_its_adapters_and_a_frozen_model_is_refused(make_model):
    assert all("lora_" in name for name in weights_of(lora(make_model)))
    with pytest.raises(UserError, match="no trainable weights"):
        weights_of(make_model("llama").requires_grad_(False))
