"""What a vision-language model makes of media, and how rows of tokens take it in.

Each image or clip of a batch is encoded once, however many rows are shown it, by the model's own `get_image_features`
and `get_video_features`; its features have their gradient. Positions are the model's own (`get_rope_index`) where it
has rules of its own for media: Qwen counts them in time, height and width.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.engine import innermost
from diagnostics.errors import UserError
from diagnostics.vision.placeholders import InternVL, LlavaOnevision, Qwen, SmolVLM, family_class
from diagnostics.vision.tensors import Shown, Visual

Features = Sequence[tuple[Tensor, ...]]  # of each of Visual.shown: (n, D), and of Qwen3-VL (n, D) for early layers too


@dataclass(frozen=True)
class Encoded:
    """What the models' forward reads of `mm_encoder_outputs`, in their words."""

    pooler_output: Any
    deepstack_features: Any = None


def encode(model: nn.Module, visual: Visual) -> Features:
    """What the model makes of each image or clip, with its gradient where there is one."""
    if type(model).__name__ == "FullyShardedDataParallel":
        raise UserError("images and clips cannot be used with FSDP, whose weights are whole only inside a forward.")
    inner = innermost(model)
    made = _ENCODE[family_class(inner.config)]
    found: dict[int, tuple[Tensor, ...]] = {}
    for alike in _alike(visual.shown):
        for place, features in zip(alike, made(inner.model, [visual.shown[i] for i in alike]), strict=True):
            found[place] = features
    return [found[i] for i in range(len(visual.shown))]


def inputs(model: nn.Module, ids: Tensor, mask: Tensor, visual: Visual, features: Features) -> dict[str, Any]:
    """What a forward pass over padded rows takes beside ids and mask, (B, T) both, whose rows are those of visual."""
    placed = positions(model, ids, mask, visual)
    return taken(model, visual, features) | ({} if placed is None else {"position_ids": placed})


def taken(model: nn.Module, visual: Visual, features: Features) -> dict[str, Any]:
    """The features in the order in which rows of tokens, one after another, have placeholders for them."""
    whole = family_class(innermost(model).config)
    found: dict[str, Encoded] = {}
    for kind in ("image", "video"):
        here = [features[i] for row in visual.rows for i in row if visual.shown[i].kind == kind]
        if here:
            first, *deep = zip(*here, strict=True)
            flat = whole is InternVL or (whole is LlavaOnevision and kind == "video")
            found[kind] = Encoded(torch.cat(first)[None] if flat else first, deep)
    return {"mm_encoder_outputs": found} if found else {}


def positions(model: nn.Module, ids: Tensor, mask: Tensor, visual: Visual) -> Tensor | None:
    """(3, B, T) positions by the model's own rule, 0 on padding; None for a model that counts tokens only."""
    inner = innermost(model)
    rule = getattr(inner.model, "get_rope_index", None)
    if rule is None:
        return None
    types = (ids == inner.config.image_token_id).int() + 2 * (ids == inner.config.video_token_id).int()
    grids = {kind: [g for row in visual.rows for i in row if (g := _grid(visual.shown[i], kind))] for kind in _GRIDS}
    given: dict[str, Any] = {
        _GRIDS[kind]: torch.tensor(grid, device=ids.device) for kind, grid in grids.items() if grid
    }
    if "second_per_grid_ts" in signature(rule).parameters and grids["video"]:
        seconds = inner.config.vision_config.temporal_patch_size / Qwen.fps
        given["second_per_grid_ts"] = [seconds] * len(grids["video"])
    return rule(ids, mm_token_type_ids=types, attention_mask=mask, **given)[0]


class Seen:
    """What prompts are shown while they are answered token by token; encoded once."""

    def __init__(self, model: nn.Module, visual: Visual) -> None:
        self.visual, self.features = visual, encode(model, visual)
        self.later: Tensor | None = None  # (B, 1): by how much the positions of an answer differ from the tokens' count

    def inputs(self, model: nn.Module, ids: Tensor, mask: Tensor, counted: Tensor, *, first: bool) -> dict[str, Any]:
        """What a pass takes beside ids (B, T) and mask. counted: (B, T) positions that count tokens; first: whether ids
        begin with the prompts."""
        if not first:
            return {} if self.later is None else {"position_ids": (counted + self.later).expand(3, -1, -1)}
        given = inputs(model, ids, mask, self.visual, self.features)
        if "position_ids" in given:
            self.later = given["position_ids"].amax((0, 2))[:, None] - counted[:, -1:]
        return given


_GRIDS = {"image": "image_grid_thw", "video": "video_grid_thw"}


def _grid(shown: Shown, kind: str) -> tuple[int, int, int] | None:
    return shown.grid if shown.kind == kind else None


def _alike(shown: Sequence[Shown]) -> list[list[int]]:
    """Places of what can be encoded in one call: of one kind, and where frames are tiles, of one number."""
    groups: dict[Any, list[int]] = {}
    for i, one in enumerate(shown):
        groups.setdefault((one.kind, one.grid is None and (len(one.pixels), one.size is None)), []).append(i)
    return list(groups.values())


def _qwen(body: Any, shown: Sequence[Shown]) -> list[tuple[Tensor, ...]]:
    pixels = torch.cat([s.pixels for s in shown])
    grid = torch.tensor([s.grid for s in shown], device=pixels.device)
    of = body.get_image_features if shown[0].kind == "image" else body.get_video_features
    out = of(pixels, grid, return_dict=True)
    return list(zip(out.pooler_output, *(getattr(out, "deepstack_features", None) or ()), strict=True))


def _llava(body: Any, shown: Sequence[Shown]) -> list[tuple[Tensor, ...]]:
    pixels = torch.stack([s.pixels for s in shown]).to(body.dtype)
    if shown[0].kind == "video":
        return [(one,) for one in body.get_video_features(pixels, return_dict=True).pooler_output]
    cut = shown[0].size is not None
    sizes = torch.tensor([s.size or (1, 1) for s in shown], device=pixels.device)
    together = None if cut else [max(2, len(shown))]  # more than one in a prompt: not cut
    out = body.get_image_features(pixels, sizes, batch_num_images=together, return_dict=True)
    return [(one,) for one in out.pooler_output]


def _internvl(body: Any, shown: Sequence[Shown]) -> list[tuple[Tensor, ...]]:
    out = body.get_image_features(torch.cat([s.pixels for s in shown]), return_dict=True).pooler_output
    return [(part.flatten(0, 1),) for part in out.split([len(s.pixels) for s in shown])]


def _smolvlm(body: Any, shown: Sequence[Shown]) -> list[tuple[Tensor, ...]]:
    """Each tile as an image of its own, so that none is padding."""
    pixels = torch.cat([s.pixels for s in shown])[:, None]
    found = torch.stack(tuple(body.get_image_features(pixels, return_dict=True).pooler_output))
    return [(part.flatten(0, 1),) for part in found.split([len(s.pixels) for s in shown])]


_ENCODE: dict[Any, Callable[[Any, Sequence[Shown]], list[tuple[Tensor, ...]]]] = {
    Qwen: _qwen,
    LlavaOnevision: _llava,
    InternVL: _internvl,
    SmolVLM: _smolvlm,
}
