"""Which way a model is run: packed or padded rows, head in tiles or at once. The plain way is always right.

A way is taken only if it gives, on a small random batch, what the plain padded batch gives.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.errors import DataError, UserError
from diagnostics.packing import NAME
from diagnostics.tokenized import TokenizedPair

_ATTRIBUTE = "_chesboard_engine"


@dataclass
class Engine:
    """packed: rows are packed, prompts shared. tiled: the head is applied in tiles. plain: the attention used else.

    longest: pairs with more tokens on a side take the plain way, because the model only attends within a window that
    its attention layers do not pass on. apart: packed prompts may be run before their completions.
    """

    packed: bool = False
    tiled: bool = False
    plain: str = "eager"
    longest: int | None = None
    apart: bool = False

    @property
    def name(self) -> str:
        """In words, for the manifest."""
        body = "packed rows, prompt shared" if self.packed else "padded rows"
        return f"{body}; head {'in tiles' if self.tiled else 'at once'}, on completion tokens only"


class _Body:
    """A body's output of which only the last hidden state is there."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, key: Any) -> Any:
        return self.last_hidden_state if key == 0 else ()

    def __getattr__(self, name: str) -> None:
        return None


def unwrap(model: nn.Module) -> Any:
    """The model inside DistributedDataParallel, torch.compile and the like."""
    while isinstance(inner := getattr(model, "module", None) or getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    return model


def innermost(model: nn.Module) -> Any:
    """The transformers model itself, under data-parallel and adapter wrappers."""
    inner = unwrap(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def head_of(model: nn.Module) -> nn.Module:
    """The module whose input is the last hidden state: the model's output embedding."""
    head = unwrap(model).get_output_embeddings()
    if head is None:
        name = type(unwrap(model)).__name__
        raise UserError(f"{name} has no output embedding. Use a causal language model (AutoModelForCausalLM).")
    return head


def device_of(model: nn.Module) -> torch.device:
    """Where a batch is put: the device of the first weights that are on one (device_map may keep others elsewhere)."""
    devices = (p.device for p in model.parameters() if not p.is_meta)
    return next(devices, torch.device("cpu"))


def engine_of(model: nn.Module) -> Engine:
    """How this model is run. `prepare` may have found something faster than the plain way."""
    return getattr(innermost(model), _ATTRIBUTE, None) or Engine()


def remember(model: nn.Module, engine: Engine) -> Engine:
    """Keep the choice with the model; a packed model keeps the packed attention (checkpointing runs it again later)."""
    inner = innermost(model)
    object.__setattr__(inner, _ATTRIBUTE, engine)
    inner.set_attn_implementation(NAME if engine.packed else engine.plain)
    return engine


def apply_head(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits (N, V) of hidden states (N, D) that the head takes: the model's own forward with its body stubbed.

    So bias, scale, soft-cap and mixed precision are the model's, with no list of models here.
    """
    body = innermost(model).get_decoder()
    output = _Body(hidden.unsqueeze(0))
    before = vars(body).get("forward")
    body.forward = lambda *args, **kwargs: output
    try:
        return unwrap(model)(input_ids=torch.zeros(1, 1, dtype=torch.long, device=hidden.device)).logits[0]
    finally:
        del body.forward
        if before is not None:
            body.forward = before


def check_ids(model: nn.Module, pairs: Sequence[TokenizedPair]) -> None:
    """DataError where the tokenizer gives ids that the model has no embedding for."""
    rows = innermost(model).get_input_embeddings().weight.shape[0]
    for pair in pairs:
        largest = max(map(max, (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids)))
        if largest >= rows:
            raise DataError(
                f"the tokenizer gives token id {largest} (pair_id {pair.pair_id}), but the model has only {rows} "
                "embeddings. Use the model's own tokenizer, or resize the model's embeddings and save it."
            )


def close(got: Tensor, plain: Tensor, dtype: torch.dtype) -> bool:
    """Whether a faster way gives the plain result up to the rounding of the model's dtype, by norms."""
    if got.shape != plain.shape or not got.isfinite().all():
        return False
    # measured: rounding gives up to 1e-2 in bfloat16 and 3e-7 in float32, a pair that sees its neighbours 0.1 to 0.7
    allowed = 0.25 * torch.finfo(dtype).eps ** 0.5
    return bool((got - plain).float().norm() <= allowed * plain.float().norm())
