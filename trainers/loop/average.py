"""A moving average of the policy, for objectives that read one."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import extract_model_from_parallel
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import TrainerCallback

from diagnostics.engine import evaluating
from diagnostics.errors import DataError


class MovingAverage(TrainerCallback):
    """average <- decay * average + (1 - decay) * policy after every update, over what is trained, in float32 at least;
    at the start it is the policy. So it depends on the updates alone, not on how their batches were cut.

    model: the policy before it is prepared; its parameters stay the same objects.
    """

    FILE = "moving_average.safetensors"

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model, self.decay = model, decay
        self.values: dict[str, Tensor] = {name: _wide(p) for name, p in self._trained()}

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """To where the policy is now."""
        self.values = {name: self.values[name].to(p.device) for name, p in self._trained()}

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Follow the update."""
        for name, parameter in self._trained():
            self.values[name].lerp_(_wide(parameter), 1 - self.decay)

    @contextmanager
    def running(self) -> Iterator[nn.Module]:
        """The policy's model with the average as its weights, in eval mode and without gradient. Data alone is
        exchanged: a graph that was made before stays whole, and the weights come back to the bit."""
        own = {name: parameter.data for name, parameter in self._trained()}
        try:
            for name, parameter in self._trained():
                parameter.data = self.values[name].to(parameter.dtype)
            with torch.no_grad(), evaluating(self.model):
                yield self.model
        finally:
            for name, parameter in self._trained():
                parameter.data = own[name]
            torch.clear_autocast_cache()  # it may hold casts of the average

    def write(self, folder: Path) -> None:
        """Into a checkpoint's folder."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file({name: value.contiguous().cpu() for name, value in self.values.items()}, folder / self.FILE)

    def read(self, folder: Path) -> None:
        """From a checkpoint's folder. DataError where it is not there, or of another model."""
        try:
            found = load_file(folder / self.FILE)
        except (OSError, SafetensorError) as error:
            raise DataError(f"{folder / self.FILE}: the moving average cannot be read ({error}).") from None
        if {n: v.shape for n, v in found.items()} != {n: v.shape for n, v in self.values.items()}:
            raise DataError(f"{folder / self.FILE}: is the moving average of another model.")
        self.values = found

    def _trained(self) -> list[tuple[str, nn.Parameter]]:
        inner = extract_model_from_parallel(self.model, keep_torch_compile=False)
        return [(name, p) for name, p in inner.named_parameters() if p.requires_grad]


def _wide(parameter: Tensor) -> Tensor:
    return parameter.detach().to(torch.promote_types(parameter.dtype, torch.float32), copy=True)
