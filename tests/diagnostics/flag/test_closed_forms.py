"""U, V and the head's set rate: a one-token pair by hand, autograd over free hidden states and head, invariances."""

import math

import pytest
import torch

from diagnostics.engine import head_of
from diagnostics.flag.closed_forms import closed_forms, head_gradient, product_signs
from diagnostics.forward import Outputs, run
from diagnostics.measures.ches import ches_score
from diagnostics.prepare import prepare
from diagnostics.row_stats import pair_stats
from diagnostics.sequences import pair_of

NAMES = ("unembedding_rate", "hidden_rate", "features_rate")


def outputs(model, batch) -> Outputs:
    with torch.no_grad():
        return run(model, batch)


def prepared(model):
    prepare(model)
    return model


@pytest.fixture
def shared_start():
    """Pairs whose answers share 0, 2 and 3 first tokens; in the last one chosen is the start of rejected."""
    return [
        pair_of("a", 0, (1, 5, 6), (7, 8, 2), (9, 2)),
        pair_of("b", 1, (1, 4), (7, 8, 9, 2), (7, 8, 30, 31, 2)),
        pair_of("c", 2, (1, 4, 4), (7, 8, 9), (7, 8, 9, 2)),
    ]


def free(model, pairs, out: Outputs):
    """Each pair's two log-probs as functions of leaves: one hidden state a context (a shared context is one leaf) and
    the head's weight. The leaves' values are written back into `out`: models round rotary tables to float32, so that
    two rows may differ in one context by that much."""
    weight, made, position = head_of(model).weight.detach().clone().requires_grad_(), {}, iter(range(len(out.hidden)))
    totals = {}
    for side in ("chosen", "rejected"):
        for i, pair in enumerate(pairs):
            ids, total = pair.rows[side].completion_ids, torch.zeros((), dtype=torch.float64)
            for k, target in enumerate(ids):
                at = next(position)
                leaf = made.setdefault((i, ids[:k]), out.hidden[at].clone().requires_grad_())
                out.hidden[at] = leaf.detach()
                total = total + (weight @ leaf).log_softmax(-1)[target]
            totals[i, side] = total
    return (
        [(totals[i, "chosen"], totals[i, "rejected"]) for i in range(len(pairs))],
        list(made.values()),
        weight,
    )


def product(first, second) -> float:
    return sum(float((a * b).sum()) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["llama", "gpt2"])
@pytest.mark.parametrize("tile", [1, 31 << 20])
def test_u_and_v_are_the_rate_with_free_hidden_states_and_head(
    name, tile, make_model, make_batch, shared_start, monkeypatch
):
    """Against autograd in float64, to 1e-8; tiles of 16 positions and one tile."""
    model = prepared(make_model(name).double())
    monkeypatch.setattr("diagnostics.forward.TILE_BYTES", tile)
    long = pair_of("d", 3, (1, 3), (*range(3, 43), 2), (*range(3, 23), *range(50, 60), 2))
    pairs = [*shared_start, long]
    batch = make_batch(pairs)
    out = outputs(model, batch)
    totals, leaves, weight = free(model, pairs, out)
    got = closed_forms(batch, out)
    for i, (chosen, rejected) in enumerate(totals):
        u, v = [], []
        for total in (chosen, chosen - rejected):
            *h, w = torch.autograd.grad(total, [*leaves, weight], retain_graph=True, materialize_grads=True)
            u.append(h)
            v.append([w])
        assert got["unembedding_rate"][i].item() == pytest.approx(product(*u), rel=1e-8)
        assert got["hidden_rate"][i].item() == pytest.approx(product(*v), rel=1e-8)
        assert got["features_rate"][i].item() == pytest.approx(product(*u) + product(*v), rel=1e-8)


def test_a_pair_of_one_token_by_hand(make_model, make_batch):
    """Theorem 1: rate = m - (1 - p+ + p-) <W+, W-> - sum over other z of p_z <W_z, W+ - W->, with
    m = (1 - p+) |W+|^2 + p- |W-|^2 + (1 - p+ + p-) |h|^2; the |h|^2 term is V, the rest is U."""
    model = prepared(make_model("llama").double())
    pair = pair_of("a", 0, (1, 5, 6), (7,), (9,), (False, False))
    batch = make_batch([pair])
    out = outputs(model, batch)
    w, h = head_of(model).weight.detach(), out.hidden[0]
    p = (w @ h).softmax(-1)
    plus, minus, q = w[7], w[9], 1 - p[7] + p[9]
    others = sum(p[z] * (w[z] @ (plus - minus)) for z in range(len(p)) if z not in (7, 9))
    u = (1 - p[7]) * plus @ plus + p[9] * minus @ minus - q * plus @ minus - others
    got = closed_forms(batch, out)
    assert got["unembedding_rate"].item() == pytest.approx(u.item(), rel=1e-10)
    assert got["hidden_rate"].item() == pytest.approx((q * h @ h).item(), rel=1e-10)


def test_numbers_of_a_one_token_pair(make_model, make_batch):
    """With a head of zeros all 61 tokens have p = 1/61, so a+ and a- differ in two places and q = 1 - p + p = 1:
    V = |h|^2 and U = 0."""
    model = make_model("llama").double()
    head_of(model).weight.data.zero_()
    batch = make_batch([pair_of("a", 0, (1, 5, 6), (7,), (9,), (False, False))])
    out = outputs(prepared(model), batch)
    got = closed_forms(batch, out)
    assert got["unembedding_rate"].item() == 0.0
    assert got["hidden_rate"].item() == pytest.approx(float(out.hidden[0] @ out.hidden[0]), rel=1e-12)


@pytest.mark.parametrize("tile", [1, 31 << 20])
def test_signs_of_products_by_hand(tile, make_model, make_batch, monkeypatch):
    """With a head of zeros p = 1/61 everywhere, so <a, a'> = [same token] - 1/61: positive for equal tokens only. Of
    3 x 3 chosen products the 3 on the diagonal, of 3 x 2 mixed ones that of the token 7 with itself."""
    monkeypatch.setattr("diagnostics.forward.TILE_BYTES", tile)
    model = make_model("llama").double()
    head_of(model).weight.data.zero_()
    pairs = [
        pair_of("a", 0, (1, 5, 6), (7, 8, 2), (7, 9), (True, False)),
        pair_of("b", 1, (1, 4), (7,), (9,), (False, False)),
    ]
    batch = make_batch(pairs)
    out = outputs(prepared(model), batch)
    got = product_signs(batch, out)
    assert got["chosen_alpha"].tolist() == [3 / 9, 1.0]
    assert got["rejected_alpha"].tolist() == [1 / 6, 0.0]
    rejected = out.hidden[4:6]  # rows: a's chosen 0 to 2, b's 3, a's rejected 4 and 5
    assert got["hidden"][0] == (out.hidden[:3] @ rejected.T > 0).double().mean()
    assert got["hidden"][1] == 1.0  # both are the prompt's last hidden state


def test_ches_is_minus_hidden_rate_where_every_alpha_is_one(make_model, make_batch, make_pairs, monkeypatch):
    model, batch = prepared(make_model("llama").double()), make_batch(make_pairs(4))
    out = outputs(model, batch)

    def ones(out, index, **_):
        hidden = out.hidden[index]
        return torch.ones(len(hidden), 1, dtype=hidden.dtype), hidden

    monkeypatch.setattr("diagnostics.flag.closed_forms._errors", ones)
    got = closed_forms(batch, out)["hidden_rate"]
    torch.testing.assert_close(got, -ches_score(pair_stats(batch, out)), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["llama", "cohere", "gemma2", "gptj", "opt"])
def test_last_layer_is_the_gradient_in_the_heads_weight(name, make_model, make_batch, make_pairs):
    """For scaled, soft-capped and biased heads too; tied heads are untied first: autograd must see the head only."""
    model, pairs = make_model(name), make_pairs(4)
    exact = name != "gemma2"  # its attention gives NaN on padding in float64 (transformers)
    model, close = (model.double(), 1e-8) if exact else (model, 1e-3)
    head = head_of(model)
    head.weight = torch.nn.Parameter(head.weight.detach().clone())
    prepare(model)
    batch = make_batch(pairs)
    stats = pair_stats(batch, run(model, batch))
    grads = [
        [torch.autograd.grad(v, head.weight, retain_graph=True)[0] for v in side.logps]
        for side in (stats.chosen, stats.rejected)
    ]
    total = sum(c - r for c, r in zip(*grads, strict=True))
    out = outputs(model, batch)
    torch.testing.assert_close(head_gradient(batch, out), total, rtol=close, atol=1e-10 if exact else 1e-3)
    got = closed_forms(batch, out, total / 4)
    for i, (chosen, rejected) in enumerate(zip(*grads, strict=True)):
        assert got["hidden_rate"][i].item() == pytest.approx(product([chosen], [chosen - rejected]), rel=close)
        assert got["last_layer_set_rate"][i].item() == pytest.approx(
            product([chosen], [total / 4]), rel=close, abs=close
        )


def test_order_padding_and_batching_change_nothing(make_model, make_batch, make_pairs):
    model, pairs = prepared(make_model("llama")), make_pairs(5)
    direction = torch.randn(head_of(model).weight.shape, generator=torch.Generator().manual_seed(0))

    def rates(pairs, side="right"):
        batch = make_batch(pairs, side)
        return closed_forms(batch, outputs(model, batch), direction)

    whole, order = rates(pairs), [3, 0, 4, 2, 1]
    moved, left = rates([pairs[i] for i in order]), rates(pairs, "left")
    alone = [rates([p]) for p in pairs]
    assert set(whole) == {*NAMES, "last_layer_set_rate"}
    for name, values in whole.items():
        assert values.isfinite().all()
        assert len(set(values.tolist())) == 5
        torch.testing.assert_close(moved[name], values[order], rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(left[name], values, rtol=1e-4, atol=1e-3)
        torch.testing.assert_close(torch.cat([a[name] for a in alone]), values, rtol=1e-4, atol=1e-3)


def test_identical_answers_never_move(make_model, make_batch):
    model = prepared(make_model("llama").double())
    batch = make_batch([pair_of("a", 0, (1, 5), (7, 8, 2), (7, 8, 2))])
    for values in closed_forms(batch, outputs(model, batch)).values():
        assert values.item() == pytest.approx(0.0, abs=1e-12)


def test_nan_where_the_head_cannot_be_applied_alone(make_model, make_batch, make_pairs):
    batch = make_batch(make_pairs(2))
    got = closed_forms(batch, outputs(make_model("llama"), batch))  # not prepared: the head is applied at once
    assert all(math.isnan(v) for values in got.values() for v in values.tolist())
