"""Where a vision-language model looks while it answers: its attention from the answer's tokens to images' tokens."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.engine import accepted, attention_named, configs_of, device_of, evaluating, innermost
from diagnostics.media import Media
from diagnostics.stats import wide
from diagnostics.vision.encode import encode, inputs
from diagnostics.vision.placeholders import placeholder_ids
from diagnostics.vision.tensors import visual

EAGER = "eager"  # the attention of transformers that gives its weights


@dataclass(frozen=True)
class Looked:
    """Of one answer. attention: (P,) mean weight from the answer's tokens on each of the prompt's placeholders, in
    order; runs: how many placeholders each of the media has; likeliest: (N,) nats, the log-probability of the likeliest
    token where each of the answer's tokens is predicted."""

    attention: Tensor
    runs: tuple[int, ...]
    likeliest: Tensor

    def of_media(self) -> list[float]:
        """The mean weight on a placeholder of each of the media."""
        return [float(part.mean()) for part in self.attention.split(self.runs)]


def look(
    model: nn.Module, prompt: Sequence[int], answer: Sequence[int], media: tuple[Media, ...], family: Any
) -> Looked:
    """Run one prompt and its answer (token ids, no end token), with the eager attention.

    The weights are those of the layer in the middle (16 of 32, counted from 0), the mean over its heads and over the
    answer's tokens as queries.
    """
    ids = torch.tensor([[*prompt, *answer]], device=device_of(model))
    mask, shown = torch.ones_like(ids), visual(family, [media])
    assert shown is not None
    shown = shown.to(ids.device)
    with torch.no_grad(), evaluating(model):
        given = {"input_ids": ids, "attention_mask": mask}
        given |= inputs(model, ids, mask, shown, encode(model, shown))
        with attention_named([*configs_of(innermost(model)).values()], EAGER), _middle(model) as kept:
            out = model(**accepted(model, given))
    weights = kept[0][0].to(wide(ids.device)).mean(0)
    places = torch.isin(ids[0], torch.tensor(placeholder_ids(family), device=ids.device)).nonzero()[:, 0]
    scores = out.logits[0, len(prompt) - 1 : -1].to(wide(ids.device)).log_softmax(-1)
    runs = tuple(sum(shown.shown[i].runs) for i in shown.rows[0])
    return Looked(weights[len(prompt) :, places].mean(0), runs, scores.amax(-1))


@contextmanager
def _middle(model: nn.Module) -> Iterator[list[Tensor]]:
    """The (1, heads, T, T) weights of the middle layer of what is run while open; all layers' would be too many to
    keep."""
    kept: list[Tensor] = []
    layers = innermost(model).get_decoder().layers
    hook = layers[len(layers) // 2].self_attn.register_forward_hook(lambda _, given, out: kept.append(out[1]))
    try:
        yield kept
    finally:
        hook.remove()
