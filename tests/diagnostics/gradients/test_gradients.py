"""Gradients by side and by pair, against plain autograd with whole logits and against worked numbers."""

import math

import pytest
import torch

from diagnostics.batch import collate
from diagnostics.forward import run, run_sides
from diagnostics.gradients.pairs import (
    FAST,
    SLOW,
    Activations,
    by_pair,
    choose_way,
    from_activations,
    from_head,
    one_by_one,
)
from diagnostics.gradients.whole import Arrows, band, carry, cut, norms, pull_sides, side_gradients, slopes, trained
from diagnostics.prepare import prepare
from diagnostics.row_stats import pair_stats
from diagnostics.sequences import Example, pair_of
from trainers.objectives.dpo import dpo

PACKED = ["llama", "gpt2", "qwen3", "gemma2", "gemma3", "cohere", "gpt_neox"]


def shared_prompts(pairs: list[Example]) -> list[Example]:
    """The same pairs, the second with the first one's prompt, and one whose completions are single tokens."""
    short = pair_of("short", 9, (1, 5, 6), (7,), (8,))
    answers = [row.completion_ids for row in pairs[1].rows.values()]
    return [pairs[0], pair_of("twin", 1, pairs[0].prompt_ids, *answers), *pairs[2:], short]


def plain(model, prompt, completion):
    """Gradient of one completion's log-prob: one sequence, whole logits, no code of ours."""
    ids = torch.tensor([[*prompt, *completion]])
    logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    wanted = [p for p in model.parameters() if p.requires_grad]
    return torch.autograd.grad(logps[len(prompt) - 1 :].sum(), wanted, allow_unused=True)


def dot(one, other):
    return sum(float((a * b).sum()) for a, b in zip(one, other) if a is not None and b is not None)


def prepared(make_model, name, *, lora=False, packed=True, seed=0):
    """A model in float64, prepared in float32; lora: with an adapter whose B is small, not 0."""
    model = make_model(name, seed=seed)
    if lora:
        import peft

        kind = {"target_modules": "all-linear", "task_type": "CAUSAL_LM", "r": 2, "lora_dropout": 0.0}
        model = peft.get_peft_model(model, peft.LoraConfig(**kind))
        with torch.no_grad():
            for parameter_name, p in model.named_parameters():
                if "lora_B" in parameter_name:
                    p.normal_(std=0.05)
    if packed:
        assert prepare(model).apart == (name != "bloom")
    return model.double().eval()  # peft switches dropout on


def fast(model, batch, weights=None):
    """The fast way, on all trained parameters."""
    parameters = list(trained(model).values())
    seen = Activations(model, parameters)
    with seen.watch():
        sides = run_sides(model, batch)
    return from_activations(sides, seen, parameters, weights, keep=False)


# gemma3 only packed: transformers gives NaN in float64 for padded rows under a sliding window
WAYS = [("gemma3", True), *((n, packed) for n in ("llama", "gpt2", "qwen3", "bloom") for packed in (True, False))]


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(("name", "packed"), WAYS)
def test_pairs_equal_plain_autograd(name, lora, packed, make_model, make_pairs, make_batch):
    """Norms and inner products; gpt2, gemma3 and bloom tie their embeddings, gpt2 has Conv1D and biases."""
    model = prepared(make_model, name, lora=lora, packed=packed)
    pairs = shared_prompts(make_pairs(4))
    found, _ = fast(model, make_batch(pairs))
    for i, pair in enumerate(pairs):
        one, other = (
            plain(model, pair.prompt_ids, ids) for ids in (pair.chosen.completion_ids, pair.rejected.completion_ids)
        )
        assert found.chosen_norm[i].item() == pytest.approx(math.sqrt(dot(one, one)), rel=1e-5)
        assert found.rejected_norm[i].item() == pytest.approx(math.sqrt(dot(other, other)), rel=1e-5)
        size = math.sqrt(dot(one, one) * dot(other, other))
        assert found.inner[i].item() == pytest.approx(dot(one, other), abs=1e-5 * size)


def test_the_fast_way_is_taken_where_it_is_right(architecture, make_model):
    model = make_model(architecture)
    prepare(model)
    way = choose_way(model, list(trained(model).values()), head=False)
    assert way == (SLOW if architecture in ("mamba", "mixtral", "opt") else FAST)


def test_an_unknown_module_is_measured_pair_by_pair(make_model, make_pairs, make_batch):
    """Experts in one block of weights: the slow way, against plain autograd."""
    model = make_model("mixtral")
    pairs = make_pairs(2)
    found = one_by_one(model, make_batch(pairs), list(trained(model).values()))
    for i, pair in enumerate(pairs):
        one, other = (
            plain(model, pair.prompt_ids, ids) for ids in (pair.chosen.completion_ids, pair.rejected.completion_ids)
        )
        assert found.chosen_norm[i].item() == pytest.approx(math.sqrt(dot(one, one)), rel=1e-3)
        size = math.sqrt(dot(one, one) * dot(other, other))
        assert found.inner[i].item() == pytest.approx(dot(one, other), abs=1e-3 * size)


@pytest.mark.parametrize("tile", [1, 1 << 30])
def test_the_head_alone_is_the_rows_of_its_weight(tile, make_model, make_pairs, make_batch, monkeypatch):
    """An untied head: its part of plain autograd's gradient, in tiles smaller than a pair and in one."""
    monkeypatch.setattr("diagnostics.forward.TILE_BYTES", tile)
    model, pairs = prepared(make_model, "llama"), make_pairs(4, longest=30)
    with torch.no_grad():
        found = from_head(model, run(model, make_batch(pairs)))
    at = [p is model.lm_head.weight for p in model.parameters()].index(True)
    for i, pair in enumerate(pairs):
        sides = (
            plain(model, pair.prompt_ids, ids)[at] for ids in (pair.chosen.completion_ids, pair.rejected.completion_ids)
        )
        one, other = sides
        assert found.chosen_norm[i].item() == pytest.approx(float(one.norm()), rel=1e-6)
        assert found.inner[i].item() == pytest.approx(float((one * other).sum()), rel=1e-5)


@pytest.mark.parametrize("name", [*PACKED, "bloom"])
def test_sides_add_up_to_the_step(name, make_model, make_pairs, make_batch):
    """G_w + G_l + rest is the gradient of the loss, here with a KL term; both ways to the sides agree."""
    model, reference = prepared(make_model, name), prepared(make_model, name, seed=1)
    batch = make_batch(shared_prompts(make_pairs(3)))
    parameters = list(trained(model).values())

    def loss_of(stats):
        return dpo(stats, beta=0.1).losses.mean() + 0.05 * stats.chosen.masked_sum(stats.chosen.per_token_kl).mean()

    with torch.no_grad():
        other = run(reference, batch)
    whole = pair_stats(batch, run(model, batch), other, kl_gradient=True)
    wanted = torch.autograd.grad(loss_of(whole), parameters, allow_unused=True)
    for way in ("products", "activations"):
        seen = Activations(model, parameters)
        with seen.watch():
            sides = run_sides(model, batch)
        with torch.no_grad():
            stats = cut(pair_stats(batch, sides.out, other), kl=True)

        def pull(weights, keep, sides=sides, seen=seen):
            return from_activations(sides, seen, parameters, by_pair(weights, sides.out), keep=keep)[1]

        how = pull if way == "activations" else None
        arrows = side_gradients(loss_of(stats), stats, sides, parameters, other, pull=how)
        for got, value in zip(arrows.total(), wanted):
            if value is not None:
                torch.testing.assert_close(got, value, atol=1e-6, rtol=1e-5)
        lengths = norms(arrows, ["all"] * len(parameters))
        assert lengths["grad/rest"] > 0
        assert lengths["grad/chosen"] == pytest.approx(lengths["grad/chosen/all"])


def test_sides_equal_autograd(make_model, make_pairs, make_batch):
    """Each side alone: the gradient of sum(slope * log-prob), by plain autograd, one sequence at a time."""
    model = prepared(make_model, "gpt2")
    pairs = shared_prompts(make_pairs(3))
    batch = make_batch(pairs)
    parameters = list(trained(model).values())
    weights = torch.tensor([[0.5, -1.0, 2.0, 0.1], [1.0, 0.3, -0.7, 0.0]], dtype=torch.float64)
    _, (chosen, rejected) = fast(model, batch, weights)
    sides = run_sides(model, batch)
    products = pull_sides(sides, weights.flatten()[sides.out.rows], parameters, keep=False)
    for name, scale, one, other in (
        ("chosen", weights[0], chosen, products[0]),
        ("rejected", weights[1], rejected, products[1]),
    ):
        made = [plain(model, pair.prompt_ids, pair.rows[name].completion_ids) for pair in pairs]
        for k in range(len(parameters)):
            wanted = sum(float(w) * g[k] for w, g in zip(scale, made))
            torch.testing.assert_close(one[k], wanted, atol=1e-8, rtol=1e-5)
            torch.testing.assert_close(other[k], wanted, atol=1e-8, rtol=1e-5)


def test_slopes_that_differ_by_token_are_told(make_model, make_pairs, make_batch):
    model, batch = prepared(make_model, "llama"), make_batch(make_pairs(2))
    sides = run_sides(model, batch)
    with torch.no_grad():
        stats = cut(pair_stats(batch, sides.out), kl=False)
    even = slopes(stats.chosen.logps.sum() - 2 * stats.rejected.logps.sum(), stats, sides.out)
    assert by_pair(even, sides.out).tolist() == [[1, 1], [-2, -2]]
    uneven = slopes((stats.chosen.per_token_logps**2).sum(), stats, sides.out)
    assert by_pair(uneven, sides.out) is None


def test_worked_gradients_of_a_bigram_head():
    """Two tokens, hidden state h = 1, head weight (a, b) = (0, 0): p = 1/2. One-token answers, chosen a, rejected b.

    s_w = (1 - p, -(1 - p)) = (.5, -.5), s_l = (-.5, .5): lengths sqrt(.5), inner product -.5, cosine -1.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=2, hidden_size=2, intermediate_size=2, num_hidden_layers=1, num_attention_heads=1,
        bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.zero_()
        model.model.embed_tokens.weight.fill_(1.0)
        for layer in (model.model.layers[0].self_attn.o_proj, model.model.layers[0].mlp.down_proj):
            layer.weight.zero_()
    batch = collate([pair_of("a", 0, (0,), (0,), (1,))], pad_token_id=0)
    found = from_head(model, run(model, batch))  # h = (1, 1) after the norm: every length is sqrt(2) times that
    assert found.chosen_norm.item() == pytest.approx(1.0, abs=1e-5)
    assert found.rejected_norm.item() == pytest.approx(1.0, abs=1e-5)
    assert found.inner.item() == pytest.approx(-1.0, abs=1e-5)


def test_band_worked():
    """|s_w| = 2, |s_l| = 4, <s_w, s_l> = 4: rho = 1/2, log r* = log 2, band [0, 2 log 2].

    r = 1: on the edge, slack 0. r = 2: in the middle, slack log 2. r = 8: log 8 - 2 log 2 = log 2 outside.
    """
    made = band(*(torch.tensor(v) for v in ([1.0, 2.0, 8.0], [1.0] * 3, [2.0] * 3, [4.0] * 3, [4.0] * 3)))
    assert made["gradient_cosine"].tolist() == [0.5] * 3
    assert made["slack"].tolist() == pytest.approx([0.0, math.log(2), -math.log(2)], abs=1e-6)
    assert made["incentive_ratio"].tolist() == [1, 2, 8]
    assert made["grad_push_ratio"].tolist() == pytest.approx([2, 1, 0.25])


def test_slack_has_the_sign_of_the_first_order_change():
    """slack > 0 iff d_w |s_w|^2 > d_l <s_w, s_l> (chosen rises) and d_w <s_w, s_l> < d_l |s_l|^2 (rejected falls)."""
    torch.manual_seed(0)
    d = torch.rand(2, 500, dtype=torch.float64) + 0.01
    s = torch.randn(2, 500, 3, dtype=torch.float64)
    one, other, inner = s[0].norm(dim=-1), s[1].norm(dim=-1), (s[0] * s[1]).sum(-1)
    slack = band(d[0], d[1], one, other, inner)["slack"]
    holds = (d[0] * one**2 > d[1] * inner) & (d[0] * inner < d[1] * other**2)
    assert torch.equal(slack > 0, holds)
    assert slack[inner <= 0].isposinf().all()


def test_a_pair_that_is_not_pushed_has_no_band():
    values = band(*(torch.tensor([v]) for v in (0.0, 1.0, 1.0, 1.0, 0.5)))
    assert values["slack"].isnan().all()
    values = band(*(torch.tensor([v]) for v in (1.0, 1.0, 0.0, 1.0, 0.0)))
    assert values["slack"].isnan().all()
    assert values["gradient_cosine"].isnan().all()


def test_carry_hands_out_the_gradient_scaled():
    weight = torch.ones(2, requires_grad=True)
    unused = torch.ones(1, requires_grad=True)
    loss = carry(torch.tensor(3.0), [torch.tensor([1.0, 2.0]), None], [weight, unused])
    (loss / 2).backward()
    assert loss.item() == 3
    assert weight.grad.tolist() == [0.5, 1.0]
    assert unused.grad is None


def test_norms_by_group():
    arrows = Arrows([torch.tensor([3.0]), torch.tensor([0.0, 4.0])], [torch.tensor([-3.0]), None], [None, None])
    found = norms(arrows, ["a", "b"])
    assert found["grad/chosen"] == 5
    assert (found["grad/chosen/a"], found["grad/chosen/b"]) == (3, 4)
    assert (found["grad/rejected"], found["grad/cosine"]) == (3, pytest.approx(-9 / 15))
    assert found["grad/cosine/a"] == -1
    assert math.isnan(found["grad/cosine/b"])
    assert "grad/rest" not in found
