"""Examples of one, two and more rows: equal to each sequence alone, in any batch, and nothing is computed twice."""

import pytest
import torch

from diagnostics.batch import collate
from diagnostics.engine import engine_of
from diagnostics.forward import run
from diagnostics.packing import pack
from diagnostics.prepare import prepare
from diagnostics.row_stats import by_name, row_stats, sequence_stats
from diagnostics.sequences import Example, Sequence, pair_of

PROMPT, OTHER = (1, 5, 6), (1, 4)
A, B, C = (7, 8, 2), (9, 2), (10, 11, 12, 2)


def alone(model, row: Sequence) -> torch.Tensor:
    """The log-prob of one sequence by a plain forward pass, without padding or packing."""
    ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
    logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return logps[-len(row.completion_ids) :].sum()


def examples(*rows: dict) -> list[Example]:
    return [
        Example(str(i), i, {name: Sequence(prompt, ids) for name, (prompt, ids) in row.items()})
        for i, row in enumerate(rows)
    ]


BATCHES = {
    "one row": examples({"answer": (PROMPT, A)}, {"answer": (OTHER, B)}, {"answer": (PROMPT, C)}),
    "three rows": examples(
        {"own": (PROMPT, A), "other": (PROMPT, B), "third": (PROMPT, C)},
        {"own": (OTHER, C), "other": (OTHER, A), "third": (OTHER, (3,))},
    ),
    "a list": [pair_of("ab", 0, PROMPT, A, B), pair_of("ac", 1, PROMPT, A, C), pair_of("cb", 2, PROMPT, C, B)],
    "rows of two prompts": examples({"chosen": (PROMPT, A), "rejected": (OTHER, A)}),
    "one of one token": examples({"answer": ((1,), (3,))}),
}


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize("padding", ["right", "left"])
@pytest.mark.parametrize("name", BATCHES)
def test_every_row_equals_its_sequence_alone(name, padding, packed, make_model):
    model = make_model("gpt2").double()
    assert not packed or prepare(model).packed
    batch = collate(BATCHES[name], pad_token_id=0, padding_side=padding)
    found = by_name(batch, sequence_stats(batch, run(model, batch)))
    assert list(found) == list(BATCHES[name][0].rows)
    for i, example in enumerate(BATCHES[name]):
        for side, row in example.rows.items():
            torch.testing.assert_close(found[side].logps[i], alone(model, row), rtol=1e-9, atol=1e-9)


def test_an_answer_that_stands_in_two_pairs_pulls_twice(make_model):
    """Computed once, it still counts in the gradient of each pair."""
    model = make_model("gpt2").double()
    prepare(model)
    weight, pairs = model.transformer.h[0].mlp.c_fc.weight, BATCHES["a list"]
    stats, _ = row_stats(batch := collate(pairs, pad_token_id=0), run(model, batch))
    scale = torch.tensor([0.3, -1.1, 0.7], dtype=torch.float64)
    (got,) = torch.autograd.grad(scale @ stats["chosen"].logps - scale @ stats["rejected"].logps, weight)
    terms = [s * (alone(model, p.chosen) - alone(model, p.rejected)) for s, p in zip(scale, pairs, strict=True)]
    (wanted,) = torch.autograd.grad(torch.stack(terms).sum(), weight)
    torch.testing.assert_close(got, wanted, rtol=1e-9, atol=1e-12)


def test_a_list_is_laid_out_with_one_prompt_and_each_answer_once(make_model):
    """Three pairs of three answers: 3 + (2 + 1 + 3) tokens, the last of each answer left off."""
    model, tokens = make_model("llama"), []
    prepare(model)
    assert engine_of(model).packed
    model.model.layers[0].register_forward_pre_hook(lambda module, args: tokens.append(args[0].shape[1]))
    run(model, batch := collate(BATCHES["a list"], pad_token_id=0))
    assert tokens == [9]
    layout = pack(batch.lengths or (), batch.first, batch.input_ids.shape[1], torch.device("cpu"))
    assert layout.segments == ((3, 2, 3, 1),)
    assert layout.positions.tolist() == [0, 1, 2, 3, 4, 3, 4, 5, 3]
    # chosen A, A, C; rejected B, C, B: each first token is predicted by the prompt's last
    assert layout.predicts.tolist() == [2, 3, 4, 2, 3, 4, 2, 5, 6, 7, 2, 8, 2, 5, 6, 7, 2, 8]


def test_what_is_shown_beside_the_tokens_keeps_prompts_apart():
    seen = [Sequence(PROMPT, A, media=object()) for _ in range(2)]
    batch = collate([Example("x", 0, {"one": seen[0], "two": seen[1]})], pad_token_id=0)
    assert batch.first == ((0, 0), (1, 1))


def test_a_cut_completion_has_no_end():
    row = Sequence(PROMPT, A)
    assert (row.cut(2).completion_ids, row.cut(2).has_eos) == ((7, 8), False)
    assert row.cut(3) == row
