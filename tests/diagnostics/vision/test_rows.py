"""Rows that are shown images and clips, against a plain forward of one row by transformers, in float64."""

from typing import Any

import torch

from diagnostics.batch import collate
from diagnostics.engine import Engine, engine_of, innermost, remember
from diagnostics.likelihood import pair_stats
from diagnostics.scoring import score
from diagnostics.sequences import Example, Sequence
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.vision.placeholders import LlavaOnevision, Qwen, SmolVLM
from diagnostics.vision.tensors import prepare as prepared


def plain_inputs(family: Any, row: Sequence) -> dict[str, Any]:
    """What transformers' own processor would hand to the model's forward for one row."""
    ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
    found: dict[str, Any] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    media = row.media or ()
    shown = [prepared(family, m, sum(m.kind == o.kind for o in media) == 1) for m in media]
    for kind, name, grid in (
        ("image", "pixel_values", "image_grid_thw"),
        ("video", "pixel_values_videos", "video_grid_thw"),
    ):
        here = [s for s in shown if s.kind == kind]
        if not here:
            continue
        if isinstance(family, LlavaOnevision):
            found[name] = torch.stack([s.pixels for s in here]).double()
            if kind == "image":
                found["image_sizes"] = torch.tensor([s.size or (32, 32) for s in here])
                found["batch_num_images"] = [len(here)]
        else:
            found[name] = torch.cat([s.pixels for s in here])[None if isinstance(family, SmolVLM) else slice(None)]
            found[name] = found[name].double()
        if isinstance(family, Qwen):
            found[grid] = torch.tensor([s.grid for s in here])
    if isinstance(family, Qwen):
        config = family.config
        found["mm_token_type_ids"] = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    return found


def plain(model: Any, family: Any, row: Sequence) -> torch.Tensor:
    """(completion tokens,) log-probs of one row, alone and unpadded."""
    given = plain_inputs(family, row)
    with torch.no_grad():
        logits = model(**given).logits[0].log_softmax(-1)
    start, ids = len(row.prompt_ids), given["input_ids"][0]
    if innermost(model).model.__dict__.get("rope_deltas") is not None:
        innermost(model).model.rope_deltas = None
    return logits[torch.arange(start - 1, len(ids) - 1), ids[start:]]


def wanted(model: Any, family: Any, examples: list[Example]) -> dict[tuple[str, str], torch.Tensor]:
    return {(e.pair_id, name): plain(model, family, row) for e in examples for name, row in e.rows.items()}


def close(stats: Any, examples: Any, expected: Any) -> bool:
    for name, side in (("chosen", stats.chosen), ("rejected", stats.rejected)):
        for i, example in enumerate(examples):
            own = side.per_token_logps[i][side.completion_mask[i].bool()]
            if not torch.allclose(own, expected[example.pair_id, name], atol=1e-9, rtol=0):
                return False
    return True


def test_a_batch_gives_every_row_what_it_gets_alone(made, examples):
    model, family = made
    expected, likelihood = wanted(model, family, examples), TokenLikelihood(0, family=family)
    for engine in (Engine(), likelihood.prepare(model)):
        remember(model, engine)
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
