"""Rows that are shown images and clips, against a plain forward of one row by transformers, in float64."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import plain_vlms
import pytest
import torch

from diagnostics.batch import Batch, collate
from diagnostics.engine import Engine, engine_of, remember
from diagnostics.errors import DataError
from diagnostics.forward import run_sides
from diagnostics.gradients.pairs import FAST, all_alone, choose_way, one_by_one
from diagnostics.gradients.whole import pull_sides
from diagnostics.likelihood import pair_stats
from diagnostics.logits import logps
from diagnostics.media import Media, of_frames
from diagnostics.sampling import draw
from diagnostics.scoring import score
from diagnostics.sequences import Example
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.vision import encode
from diagnostics.vision.placeholders import Qwen, placeholder_ids


def wanted(model: Any, family: Any, examples: list[Example]) -> dict[tuple[str, str], torch.Tensor]:
    return {(e.pair_id, name): plain_vlms.logps(model, family, row) for e in examples for name, row in e.rows.items()}


def close(stats: Any, examples: Any, expected: Any) -> bool:
    for name, side in (("chosen", stats.chosen), ("rejected", stats.rejected)):
        for i, example in enumerate(examples):
            own = side.per_token_logps[i][side.completion_mask[i].bool()]
            if not torch.allclose(own, expected[example.pair_id, name], atol=1e-9, rtol=0):
                return False
    return True


def ways(model: Any, likelihood: TokenLikelihood) -> Any:
    """Padded the plain way, then as `prepare` finds it."""
    yield remember(model, Engine())
    yield likelihood.prepare(model)


def answered(model: Any, batch: Batch, family: Any) -> torch.Tensor:
    return logps(TokenLikelihood(0, family=family).run(model, batch))


def with_media(example: Example, **media: tuple[Media, ...]) -> Example:
    return replace(example, rows={k: replace(r, media=media.get(k, r.media)) for k, r in example.rows.items()})


def turned(item: Media) -> Media:
    return of_frames(item.frames()[::-1].copy(), kind=item.kind)


def test_a_batch_gives_every_row_what_it_gets_alone(made, examples):
    model, family = made
    expected, likelihood = wanted(model, family, examples), TokenLikelihood(0, family=family)
    for _ in ways(model, likelihood):
        for order in (examples, examples[::-1], examples[3:4] + examples[:1]):
            batch = likelihood.collate(order)
            with torch.no_grad():
                assert close(pair_stats(likelihood, batch, likelihood.run(model, batch)), order, expected)
        left = collate(examples, pad_token_id=0, padding_side="left", family=family)
        with torch.no_grad():
            assert close(pair_stats(likelihood, left, likelihood.run(model, left)), examples, expected)
    assert engine_of(model).shown
    for scored in score(model, examples, likelihood=likelihood, batch_tokens=150):
        assert close(scored.stats, scored.pairs, expected)


def test_kl_and_hidden_states_are_those_of_plain_forwards(made, examples):
    model, family = made
    likelihood, other = TokenLikelihood(0, family=family), copy.deepcopy(model)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(1.02)
    for m in (model, other):
        likelihood.prepare(m)
    batch = likelihood.collate(examples)
    with torch.no_grad():
        stats = pair_stats(likelihood, batch, likelihood.run(model, batch), likelihood.run(other, batch))
    seen: list[torch.Tensor] = []
    handle = model.lm_head.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    for i, row in enumerate(e.chosen for e in examples):
        own, ref = (plain_vlms.logits(m, family, row).log_softmax(-1) for m in (model, other))
        kl = (ref.exp() * (ref - own)).sum(-1)
        found = stats.chosen.per_token_kl[i][stats.chosen.completion_mask[i].bool()]
        assert torch.allclose(found, kl, atol=1e-9, rtol=0)
        hidden = seen.pop()[len(row.prompt_ids) - 1 : -1].sum(0)
        assert torch.allclose(stats.chosen.hidden_sum[i], hidden, atol=1e-9, rtol=0)
    handle.remove()


def test_the_frames_and_their_order_count(made, examples):
    model, family = made
    clip = examples[1]
    black = of_frames(np.zeros_like(clip.chosen.media[0].frames()))
    changed = [clip, *(with_media(clip, chosen=(m,), rejected=(m,)) for m in (turned(clip.chosen.media[0]), black))]
    found = [answered(model, collate([e], pad_token_id=0, family=family), family) for e in changed]
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (found[one] - found[other]).abs().max() > 1e-3


def test_rows_of_one_prompt_may_be_shown_different_clips(made, examples):
    """As where the rejected row is the same answer under another clip."""
    model, family = made
    likelihood = TokenLikelihood(0, family=family)
    mixed = [with_media(e, rejected=tuple(map(turned, e.chosen.media or ())) or None) for e in examples]
    expected = wanted(model, family, mixed)
    for _ in ways(model, likelihood):
        batch = likelihood.collate(mixed)
        with torch.no_grad():
            assert close(pair_stats(likelihood, batch, likelihood.run(model, batch)), mixed, expected)
        sides = run_sides(model, batch)
        assert torch.allclose(logps(sides.out), answered(model, batch, family), atol=1e-9, rtol=0)


def test_without_token_types_positions_would_be_wrong(made, examples):
    """The trap that these models set: what transformers does where mm_token_type_ids is left out."""
    model, family = made
    row = examples[1].chosen
    if not isinstance(family, Qwen):
        assert not hasattr(model.model, "get_rope_index")
    elif family.stamped:
        with pytest.raises(ValueError, match="mm_token_type_ids"):
            plain_vlms.logps(model, family, row, mm_token_type_ids=None)
    else:
        wrong = plain_vlms.logps(model, family, row, mm_token_type_ids=None)
        assert (wrong - plain_vlms.logps(model, family, row)).abs().max() > 1e-3


def test_what_a_model_keeps_between_calls_is_neither_read_nor_changed(made, examples):
    model, family = made
    if not isinstance(family, Qwen):
        return
    batch = collate(examples, pad_token_id=0, family=family)
    expected = answered(model, batch, family)
    kept = model.model.rope_deltas = torch.tensor([[-7]])
    try:
        assert torch.equal(answered(model, batch, family), expected)
        assert answers(model, family, examples) == answers(model, family, examples)
        assert model.model.rope_deltas is kept
    finally:
        model.model.rope_deltas = None


def test_measuring_leaves_the_model_as_it_was(made, examples):
    model, family = made
    row, parts = examples[5].chosen, [m for m in model.modules() if hasattr(m, "config")]
    before, attention = plain_vlms.logits(model, family, row), [m.config._attn_implementation for m in parts]
    weights = copy.deepcopy(model.state_dict())
    likelihood = TokenLikelihood(0, family=family)
    likelihood.prepare(model)
    logps(likelihood.run(model, likelihood.collate(examples)))
    answers(model, family, examples[:2])
    assert torch.equal(plain_vlms.logits(model, family, row), before)
    assert [m.config._attn_implementation for m in parts] == attention
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert not model.training


def test_each_clip_is_encoded_once_and_gradients_are_those_of_every_row_alone(made, examples, monkeypatch):
    model, family = made
    likelihood, tiles = TokenLikelihood(0, family=family), []
    once = encode.encode
    monkeypatch.setattr("diagnostics.forward.encode", lambda m, v: tiles.append(len(v.shown)) or once(m, v))
    parameters = list(model.parameters())
    expected = [torch.zeros_like(p) for p in parameters]
    for example in examples:
        for row in example.rows.values():
            given = plain_vlms.inputs(family, row)
            log_probs = model(**given).logits[0, len(row.prompt_ids) - 1 : -1].log_softmax(-1)
            total = log_probs.gather(-1, torch.tensor(row.completion_ids)[:, None]).sum()
            for into, g in zip(expected, torch.autograd.grad(total, parameters, allow_unused=True), strict=True):
                into += 0 if g is None else g
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    for _ in ways(model, likelihood):
        tiles.clear()
        batch = likelihood.collate(examples)
        found = torch.autograd.grad(logps(likelihood.run(model, batch)).sum(), parameters, allow_unused=True)
        assert tiles == [6]  # two clips, one of them also with an image, and three images more
        sides = run_sides(model, batch)
        ones = torch.ones(len(sides.out.hidden), dtype=torch.float64)
        chosen, rejected = pull_sides(sides, ones, parameters, keep=False)
        for g, one, other, want in zip(found, chosen, rejected, expected, strict=True):
            both = [x for x in (one, other) if x is not None]
            for got in (torch.zeros_like(want) if g is None else g, sum(both, torch.zeros_like(want))):
                # transformers' RMS norms compute in float32, whatever the model's dtype: 1e-7 in their backward pass
                assert (got - want).abs().max() <= 1e-6 * want.abs().max() + 1e-12


def test_pairs_gradients_of_the_language_model(made, examples):
    model, family = made
    likelihood = TokenLikelihood(0, family=family)
    likelihood.prepare(model)
    weights = [p for name, p in model.named_parameters() if "layers.1.self_attn" in name and "vision" not in name]
    assert choose_way(model, weights, head=False) == FAST
    batch = likelihood.collate(examples)
    fast, slow = all_alone(model, batch, weights), one_by_one(model, batch, weights)
    for one, other in zip(vars(fast).values(), vars(slow).values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-8)


def answers(model: Any, family: Any, examples: list[Example], **how: Any) -> list[tuple[int, ...]]:
    prompts, media = [e.prompt_ids for e in examples], [e.chosen.media for e in examples]
    return draw(model, prompts, 6, pad=0, ends=[2], media=media, family=family, **how)


def test_greedy_answers_are_those_of_plain_forwards(made, examples):
    model, family = made
    for example, said in zip(examples, answers(model, family, examples), strict=True):
        row = replace(example.chosen, completion_ids=(*said, 1))
        scores = plain_vlms.logits(model, family, row)[: len(said)]
        scores[:, placeholder_ids(family)] = -torch.inf
        assert tuple(scores.argmax(-1).tolist()) == said
        assert len(said) == 6 or said[-1] == 2


def test_prompts_that_do_not_fit_their_media_are_refused(made, examples):
    _, family = made
    likelihood = TokenLikelihood(0, family=family)
    short, long = examples[0], examples[1]
    with pytest.raises(DataError, match=r"pair_id p1, chosen: its prompt has \d+ placeholders"):
        likelihood.collate([short, with_media(long, chosen=short.chosen.media)])
    with pytest.raises(DataError, match="pair_id p3, rejected: its prompt has 0 placeholders"):
        likelihood.collate([with_media(examples[3], rejected=short.chosen.media)])
    token = placeholder_ids(family)[0]
    row = replace(short.chosen, completion_ids=(5, token, 2))
    with pytest.raises(DataError, match="its answer holds a placeholder"):
        likelihood.collate([replace(short, rows=dict(short.rows) | {"chosen": row})])
    with pytest.raises(DataError, match="pair_id p0 and others have images or clips"):
        TokenLikelihood(0).collate([short])
