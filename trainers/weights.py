"""The weights of a checkpoint, put into the model that made it: all of them, and no others."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import PreTrainedModel

from diagnostics.engine import innermost
from diagnostics.errors import DataError
from trainers.models import check_adapter, load_whole

ADAPTER, WHOLE = "adapter_model.safetensors", "model.safetensors"


def load_weights(model: Any, folder: Path) -> None:
    """Put a checkpoint's weights into the model, or the adapter, that it was saved of. DataError where one of them is
    missing, or the checkpoint has another.

    transformers saves some models under other names than their own, so its models are read as from_pretrained reads
    them.
    """
    inner = innermost(model)
    try:
        if hasattr(model, "peft_config"):
            if not (folder / ADAPTER).is_file():
                raise DataError(f"{folder}: has no {ADAPTER}, and the run trains an adapter.")
            found = model.load_adapter(str(folder), model.active_adapters[0], is_trainable=True)
            check_adapter(str(folder), found, "Go on from another checkpoint, or start anew.")
        elif isinstance(inner, PreTrainedModel):
            kind = str(inner.dtype).removeprefix("torch.")
            inner.load_state_dict(load_whole(type(inner), str(folder), dtype=kind).state_dict())
        else:
            inner.load_state_dict(load_file(folder / WHOLE))
    except (OSError, SafetensorError, RuntimeError, ValueError) as error:
        said = " ".join(str(error).split())[:200]
        raise DataError(f"{folder}: its weights are not those of the model ({said}).") from None


def left_out(model: torch.nn.Module, folder: Path) -> list[str]:
    """The weights of a checkpoint that have none of the model's own names: transformers' Trainer, which loads by name,
    leaves them out, with no error, where it goes on from a checkpoint or returns its best one."""
    own, names = innermost(model).state_dict().keys(), set()
    for file in folder.glob("model*.safetensors"):
        with safe_open(file, "pt") as weights:
            names |= {*weights.keys()}
    return sorted(names - own)
