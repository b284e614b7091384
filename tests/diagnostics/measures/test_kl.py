"""KL along each side: worked sums, a token-by-token oracle from two real models, missing inputs."""

import math
from dataclasses import replace

import pytest
import torch

from diagnostics import measures
from diagnostics.forward import run
from diagnostics.row_stats import pair_stats
from diagnostics.stats import PairStats

COLUMNS = ["chosen_kl", "rejected_kl", "chosen_kl_reverse", "rejected_kl_reverse"]


def slow_kl(first: list[float], second: list[float]) -> float:
    """KL(first || second) in nats of two distributions given as logits, one token of the vocabulary at a time."""
    log_sums = [math.log(sum(math.exp(z) for z in logits)) for logits in (first, second)]
    total = 0.0
    for a, b in zip(first, second, strict=True):
        log_p, log_q = a - log_sums[0], b - log_sums[1]
        total += math.exp(log_p) * (log_p - log_q)
    return total


def test_worked_sums_ignore_what_padding_holds(make_side):
    """Chosen 0.5 + 0.25 = 0.75 and 2; rejected 1 + 2 + 3 = 6 and 0.125; the reverse columns are told apart."""
    chosen, rejected = make_side([[0.0] * 2, [0.0]]), make_side([[0.0] * 3, [0.0]])
    nan, inf = math.nan, math.inf
    pair = PairStats(
        replace(
            chosen,
            per_token_kl=torch.tensor([[0.5, 0.25], [2.0, nan]]),
            per_token_kl_reverse=torch.tensor([[10.0, 0.5], [30.0, inf]]),
        ),
        replace(
            rejected,
            per_token_kl=torch.tensor([[1.0, 2.0, 3.0], [0.125, nan, inf]]),
            per_token_kl_reverse=torch.tensor([[4.0, 4.0, 4.0], [7.0, -inf, nan]]),
        ),
    )
    values = {name: measures.load(name)(pair).tolist() for name in COLUMNS}
    assert values == {
        "chosen_kl": [0.75, 2.0],
        "rejected_kl": [6.0, 0.125],
        "chosen_kl_reverse": [10.5, 30.0],
        "rejected_kl_reverse": [12.0, 7.0],
    }


@pytest.mark.parametrize("name", COLUMNS)
def test_nan_where_kl_was_not_measured(make_side, name):
    side = make_side([[-1.0, -2.0], [-3.0]])
    assert measures.load(name)(PairStats(side, side, side, side)).isnan().tolist() == [True, True]


def test_equals_the_token_by_token_oracle_of_two_models(make_model, make_pairs, make_batch):
    policy, reference, pairs = make_model("llama", seed=0), make_model("llama", seed=1), make_pairs(3, longest=4)
    batch = make_batch(pairs)
    with torch.no_grad():
        stats = pair_stats(batch, run(policy, batch), run(reference, batch))
        expected = [oracle(policy, reference, p) for p in pairs]
    for name in COLUMNS:
        values = measures.load(name)(stats).tolist()
        assert values == pytest.approx([row[name] for row in expected], rel=1e-4)
        assert min(values) > 0


def oracle(policy, reference, pair) -> dict[str, float]:
    """The four sums of one pair, each side run alone and unpadded."""
    result = {}
    for side, completion in (("chosen", pair.chosen.completion_ids), ("rejected", pair.rejected.completion_ids)):
        ids, start = torch.tensor([[*pair.prompt_ids, *completion]]), len(pair.prompt_ids) - 1
        p, r = (model(ids).logits[0, start:-1].tolist() for model in (policy, reference))
        result[f"{side}_kl"] = sum(slow_kl(b, a) for a, b in zip(p, r, strict=True))
        result[f"{side}_kl_reverse"] = sum(slow_kl(a, b) for a, b in zip(p, r, strict=True))
    return result


def test_zero_where_policy_is_the_reference(make_model, make_pairs, make_batch):
    model, batch = make_model("llama"), make_batch(make_pairs(3))
    with torch.no_grad():
        out = run(model, batch)
        stats = pair_stats(batch, out, out)
    for name in COLUMNS:
        assert measures.load(name)(stats).tolist() == [0.0, 0.0, 0.0]
