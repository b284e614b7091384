"""Rows with media by transformers alone: a plain forward of one row, as its own processor would prepare it."""

from typing import Any

import torch

from diagnostics.sequences import Sequence
from diagnostics.vision.placeholders import LlavaOnevision, Qwen, SmolVLM
from diagnostics.vision.tensors import prepare as prepared


def inputs(family: Any, row: Sequence) -> dict[str, Any]:
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


def logits(model: Any, family: Any, row: Sequence, **changed: Any) -> torch.Tensor:
    """(completion tokens, V) logits of one row, alone and unpadded."""
    given = inputs(family, row) | changed
    with torch.no_grad():
        found = model(**given).logits[0]
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None  # Qwen keeps them from call to call
    return found[len(row.prompt_ids) - 1 : -1]


def logps(model: Any, family: Any, row: Sequence, **changed: Any) -> torch.Tensor:
    """(completion tokens,) log-probs of one row, alone and unpadded."""
    found = logits(model, family, row, **changed).log_softmax(-1)
    return found.gather(-1, torch.tensor(row.completion_ids)[:, None])[:, 0]
