"""The forward pass against the slow way: one sequence at a time, whole logits, plain loops."""

import math

import pytest
import torch

from diagnostics.engine import head_of
from diagnostics.errors import UserError
from diagnostics.forward import run
from diagnostics.logits import _compare, collisions, compare, divergences, with_kl
from diagnostics.prepare import prepare
from diagnostics.row_stats import pair_stats, sequence_stats, spread
from diagnostics.sequences import pair_of


def slow_side(model, prompt, completion):
    """Log-probs, head inputs and logits of one completion: no batch, no padding, no hook of ours."""
    seen = []
    handle = head_of(model).register_forward_hook(lambda m, a, o: seen.append(a[0][0]))
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prompt, *completion]])).logits[0]
    handle.remove()
    at = [len(prompt) - 1 + k for k in range(len(completion))]
    logps = [float(logits[t].double().log_softmax(-1)[c]) for t, c in zip(at, completion)]
    return logps, seen[0][at].double(), logits[at].double()


@pytest.mark.parametrize("side", ["right", "left"])
def test_equals_one_sequence_at_a_time(architecture, side, make_model, make_pairs, make_batch):
    if side == "left" and architecture == "mamba":
        side = "right"  # a state-space model has no positions to skip: padding before the text is read as text
    model, pairs = make_model(architecture), make_pairs(5)
    batch = make_batch(pairs, side)
    with torch.no_grad():
        stats = pair_stats(batch, run(model, batch))
    for i, pair in enumerate(pairs):
        for got, ids in ((stats.chosen, pair.chosen.completion_ids), (stats.rejected, pair.rejected.completion_ids)):
            logps, hidden, _ = slow_side(model, pair.prompt_ids, ids)
            assert got.logps[i].item() == pytest.approx(sum(logps), abs=2e-4)
            assert got.lengths[i] == len(ids)
            torch.testing.assert_close(got.hidden_sum[i], hidden.sum(0), atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(got.last_hidden[i], hidden[-1], atol=2e-4, rtol=1e-4)
            assert got.text_ids[i][got.text_ids[i] >= 0].tolist() == list(ids[:-1])


def test_head_inputs_times_the_head_are_the_logits(make_model, make_pairs, make_batch):
    """The captured vectors are the ones the head multiplies: scale (Cohere) and soft-cap (Gemma-2) come after."""
    batch = make_batch(make_pairs(2))
    for name, after in (
        ("llama", lambda z, c: z),
        ("cohere", lambda z, c: z * c.logit_scale),
        ("gemma2", lambda z, c: torch.tanh(z / c.final_logit_softcapping) * c.final_logit_softcapping),
    ):
        model = make_model(name)
        with torch.no_grad():
            out = run(model, batch)
        plain = out.hidden @ model.get_output_embeddings().weight.T
        torch.testing.assert_close(out.logits(), after(plain, model.config))


def test_kl_is_exact_in_both_directions(make_model, make_pairs, make_batch):
    policy, reference = make_model("llama"), make_model("llama", seed=1)
    pairs = make_pairs(3)
    batch = make_batch(pairs)
    with torch.no_grad():
        stats = pair_stats(batch, run(policy, batch), run(reference, batch))
    for i, pair in enumerate(pairs):
        _, _, p = slow_side(policy, pair.prompt_ids, pair.chosen.completion_ids)
        _, _, r = slow_side(reference, pair.prompt_ids, pair.chosen.completion_ids)
        p, r = p.softmax(-1).tolist(), r.softmax(-1).tolist()
        forward = sum(b * math.log(b / a) for ps, rs in zip(p, r) for a, b in zip(ps, rs))
        reverse = sum(a * math.log(a / b) for ps, rs in zip(p, r) for a, b in zip(ps, rs))
        assert stats.chosen.masked_sum(stats.chosen.per_token_kl)[i].item() == pytest.approx(forward, rel=1e-5)
        assert stats.chosen.masked_sum(stats.chosen.per_token_kl_reverse)[i].item() == pytest.approx(reverse, rel=1e-5)


def test_kl_of_a_model_with_itself_is_zero(make_model, make_pairs, make_batch):
    model, batch = make_model("llama"), make_batch(make_pairs(3))
    with torch.no_grad():
        stats = pair_stats(batch, run(model, batch), run(model, batch))
    assert stats.chosen.per_token_kl.abs().max() == 0
    assert stats.rejected.per_token_kl_reverse.abs().max() == 0


def test_kl_with_a_token_that_one_model_rules_out():
    """KL(ref || policy) where ref = (1, 0) and policy = (1/2, 1/2): 1 * log 2 + 0; the reverse is infinite."""
    policy, reference = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, -math.inf]])
    _, _, forward, reverse = _compare(policy, reference, torch.tensor([0]))
    assert forward.item() == pytest.approx(math.log(2))
    assert reverse.item() == math.inf


def double_kl(policy, reference):
    """Both KL of logits (N, V) in float64, by terms that keep their digits near 0."""
    own, other = policy.double().log_softmax(-1), reference.double().log_softmax(-1)
    d = own - other
    return (other.exp() * (d.expm1() - d)).sum(-1), (own.exp() * ((-d).expm1() + d)).sum(-1)


@pytest.mark.parametrize("half", [1e-6, 1e-5, 1e-3, 0.1, 2.0])
def test_kl_near_zero_worked(half):
    """ref = (1/2, 1/2), policy's logits (h, -h), h = half: KL(ref || policy) = log cosh h = h^2/2 - h^4/12 + ..., and
    KL(policy || ref) = h tanh h - log cosh h. At h = 1e-6 that is 5e-13 nats each."""
    small = half**2 / 2 - half**4 / 12
    log_cosh = small if half < 1e-2 else math.log(math.cosh(half))
    back = half**2 / 2 - half**4 / 4 if half < 1e-2 else half * math.tanh(half) - math.log(math.cosh(half))
    _, _, forward, reverse = _compare(torch.tensor([[half, -half]]), torch.zeros(1, 2), torch.tensor([0]))
    assert forward.item() == pytest.approx(log_cosh, rel=1e-4)
    assert reverse.item() == pytest.approx(back, rel=1e-4)


@pytest.mark.parametrize("vocabulary", [5, 700, 20_000])
@pytest.mark.parametrize("shift", [0.0, -0.4, 20.0])
def test_kl_of_nearly_equal_models_is_exact(vocabulary, shift):
    """Logits that differ by 1e-7 to 10, with or without a common move that changes no probability."""
    generator = torch.Generator().manual_seed(vocabulary)

    def noise():
        return torch.randn(6, vocabulary, generator=generator)

    for size in (0.0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0):
        reference = 3 * noise()
        policy = reference + size * noise() + shift
        wanted = torch.stack(double_kl(policy, reference))
        got = torch.stack(_compare(policy, reference, torch.zeros(6, dtype=torch.long))[2:])
        assert (got >= 0).all()
        assert ((got - wanted).abs() <= 1e-3 * wanted + 1e-12).all(), (size, got, wanted)


def test_kl_counts_a_rare_token_that_moved_far():
    """All but one token of probability e^-25 are as before: the KL is about that probability times e^5 - 6."""
    reference = torch.zeros(1, 1000)
    reference[:, 0] = 25.0
    policy = reference.clone()
    policy[:, 5] += 5.0
    _, _, forward, _ = _compare(policy, reference, torch.tensor([0]))
    assert forward.item() == pytest.approx(math.exp(-25) * (math.exp(5) - 6), rel=1e-4)


def test_kl_in_all_ways_is_exact_near_zero(make_model, make_pairs, make_batch, monkeypatch):
    """Scoring, training without and with a gradient in the KL: one number, right to a thousandth at 1e-11 nats."""
    monkeypatch.setattr("diagnostics.forward.TILE_BYTES", 4 * 61 * 16)
    policy, reference = make_model("llama"), make_model("llama")
    with torch.no_grad():
        policy.lm_head.weight.add_(1e-6 * torch.randn_like(policy.lm_head.weight))
    batch = make_batch(make_pairs(6))
    prepare(policy)
    prepare(reference)
    with torch.no_grad():
        one, other = run(policy, batch), run(reference, batch)
        wanted = double_kl(one.logits(), other.logits())
        plain = compare(one, other)
    assert 1e-13 < wanted[0].median() < 1e-9
    training = run(policy, batch)
    for ways in (plain, compare(training, other), with_kl(training, other)):
        for got, expected in zip(ways[2:], wanted, strict=True):
            assert ((got - expected).abs() <= 1e-3 * expected + 1e-12).all()


@pytest.mark.parametrize("size", [1e-3, 0.3, 3.0])
def test_gradient_of_the_kl(size):
    """By finite differences in float64 on both sides of the border of the series; and it is policy - ref."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(3, 7, dtype=torch.float64, generator=generator)
    policy = (reference + size * torch.randn(3, 7, dtype=torch.float64, generator=generator)).requires_grad_()

    def kl(logits):
        return divergences(logits, reference, logits.logsumexp(-1) - reference.logsumexp(-1), reference.softmax(-1))[0]

    assert torch.autograd.gradcheck(kl, policy, eps=1e-7, atol=1e-7)
    (gradient,) = torch.autograd.grad(kl(policy).sum(), policy)
    torch.testing.assert_close(gradient, (policy.softmax(-1) - reference.softmax(-1)).detach(), rtol=1e-6, atol=1e-9)


def test_kl_where_both_models_rule_tokens_out():
    """Padded vocabularies: the same -inf in both changes nothing; where only the policy has it, KL(ref || .) is inf."""
    reference = torch.randn(4, 9, generator=torch.Generator().manual_seed(0))
    policy = reference + 1e-4
    policy[:, 0] += 1e-4
    wanted = double_kl(policy, reference)
    pad = torch.full((4, 2), -math.inf)
    got = _compare(torch.cat([policy, pad], 1), torch.cat([reference, pad], 1), torch.zeros(4, dtype=torch.long))[2:]
    for one, other in zip(got, wanted, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=0)
    policy[0, 3] = -math.inf
    forward, reverse = _compare(policy, reference, torch.zeros(4, dtype=torch.long))[2:]
    assert forward[0] == math.inf
    assert reverse.isfinite().all()


def test_without_head_nothing_of_vocabulary_size_is_made(make_model, make_pairs, make_batch):
    model, batch = make_model("llama"), make_batch(make_pairs(2))
    with torch.no_grad():
        out, full = run(model, batch, head=False), run(model, batch)
    assert out.whole is None
    torch.testing.assert_close(out.hidden, full.hidden, atol=0, rtol=0)
    assert sequence_stats(batch, out).logps.isnan().all()  # not measured, so not a number


def test_gradient_equals_the_plain_way(make_model, make_pairs, make_batch):
    """d logps / d weights through the hook equals that of full logits and a gather, in float64."""
    model, pairs = make_model("cohere").double(), make_pairs(3)
    batch = make_batch(pairs)
    pair_stats(batch, run(model, batch)).chosen.logps.sum().backward()
    ours = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    total = torch.zeros((), dtype=torch.float64)
    for pair in pairs:
        ids = torch.tensor([[*pair.prompt_ids, *pair.chosen.completion_ids]])
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
        total = total + logps[len(pair.prompt_ids) - 1 :].sum()
    total.backward()
    for a, p in zip(ours, model.parameters()):
        torch.testing.assert_close(a, p.grad, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("tile", [1, 1 << 30])
def test_kl_with_gradient_is_the_kl_and_its_gradient(tile, make_model, make_pairs, make_batch, monkeypatch):
    """Against whole logits and autograd in float64, in many tiles (computed again in the backward pass) and in one."""
    monkeypatch.setattr("diagnostics.forward.TILE_BYTES", tile)
    policy, reference = make_model("cohere").double(), make_model("cohere", seed=1).double()
    batch = make_batch(make_pairs(3))
    prepare(policy)
    with torch.no_grad():
        other = run(reference, batch)
        plain = pair_stats(batch, run(policy, batch), other)
    stats = pair_stats(batch, run(policy, batch), other, kl_gradient=True)
    for side in ("chosen", "rejected"):
        for name in ("per_token_logps", "per_token_kl", "per_token_kl_reverse"):
            got, expected = (getattr(getattr(s, side), name) for s in (stats, plain))
            torch.testing.assert_close(got.detach(), expected, rtol=1e-9, atol=1e-12)
    (stats.chosen.per_token_kl.sum() + stats.rejected.logps.sum()).backward()
    ours = [p.grad.clone() for p in policy.parameters()]
    policy.zero_grad()
    keys = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
    logps, refs = (m(**keys).logits[:, :-1].log_softmax(-1) for m in (policy, reference))
    mask = batch.completion_mask[:, 1:].bool()
    kl = (refs.detach().exp() * (refs.detach() - logps)).sum(-1)[:3][mask[:3]].sum()
    taken = logps.gather(-1, batch.input_ids[:, 1:, None])[..., 0][3:][mask[3:]].sum()
    (kl + taken).backward()
    for a, p in zip(ours, policy.parameters()):
        torch.testing.assert_close(a, p.grad, rtol=1e-6, atol=1e-9)


def test_collisions_are_the_log_of_summed_squares(make_model, make_pairs, make_batch):
    model, batch = make_model("llama"), make_batch(make_pairs(2))
    out = run(model, batch)
    expected = [math.log(sum(p * p for p in row)) for row in out.logits().double().softmax(-1).tolist()]
    assert collisions(out).tolist() == pytest.approx(expected, rel=1e-5)
    chosen, _ = spread(batch, out, collisions(out))
    assert chosen[batch.completion_mask[:2].bool()].tolist() == pytest.approx(expected[: int((out.rows < 2).sum())])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_sums_stay_finite(dtype, make_model, make_batch):
    """300 tokens with large hidden states: a float16 sum would overflow to inf (users met this)."""
    model = make_model("llama").to(dtype)
    model.model.norm.weight.data.fill_(60.0)
    long = tuple(3 + i % 50 for i in range(100))
    batch = make_batch([pair_of("a", 0, (1, 5), (*long, 2), (*long[::-1], 2))])
    with torch.no_grad():
        stats = pair_stats(batch, run(model, batch))
    ches = (stats.chosen.hidden_sum * (stats.rejected.hidden_sum - stats.chosen.hidden_sum)).sum(-1)
    assert ches.isfinite().all()
    assert ches.dtype == torch.float64
    assert stats.chosen.logps.isfinite().all()


def test_a_model_without_a_head_is_refused_in_one_sentence(make_model):
    with pytest.raises(UserError, match="no output embedding"):
        head_of(make_model("llama").model)
