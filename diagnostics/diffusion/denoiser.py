"""Denoiser: what a diffusion or flow model must be; and a small one (MLP) that needs no further library."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from diagnostics.diffusion.noise import FLOW_TIMES, linear_alphas
from diagnostics.errors import DataError, UserError
from diagnostics.files import read_json

Condition = Mapping[str, Tensor]  # by name, (N, ...) each; empty where a model has none


class Denoiser(nn.Module):
    """A model with `forward(x_t, times, condition)`: (N, *S) noised samples and (N,) times to (N, *S) predictions of
    `target`. Wrapped (data-parallel, adapters), it is called as the wrapper is.

    target: a word of noise.TARGETS. alphas: (T,) float64 alpha-bar, the squared share of the sample in x_t at t = 0 ..
    T - 1; it is no buffer, for a cast of the weights must not cast it. Of a flow it is not read: there t = 1000 s.
    shape: S, of a sample that is data for it; None: any. told: what a data row tells it: "text", "class" or "".
    labels: how many numbers a class may be, from 0 on; None: not known.
    cache: a folder in which samples made of images are kept, where making them is work.
    """

    target: str = "eps"
    alphas: Tensor
    shape: tuple[int, ...] | None = None
    told: str = ""
    labels: int | None = None
    cache: Path | None = None

    def forward(self, x_t: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See above."""
        raise NotImplementedError

    @property
    def steps(self) -> int:
        """T, the number of times; of a flow 1000."""
        return FLOW_TIMES if self.target == "flow" else len(self.alphas)

    def tell(self, said: Sequence[Any]) -> list[dict[str, np.ndarray]]:
        """The condition of each row as it stands in a Sample, from its text or class. DataError for a class that the
        model does not have."""
        if not self.told:
            return [{} for _ in said]
        return [{"class_labels": np.array(_class(value, self.labels))} for value in said]

    def see(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """(H, W, 3) uint8 images as samples of its shape (C, H, W), in [-1, 1]."""
        return [pixels(image, self.image_shape) for image in images]

    def shown(self, samples: Tensor) -> Tensor:
        """(N, *S) samples as they are looked at: themselves, or the pixels in [-1, 1] that latents are of."""
        return samples

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images that it sees. DataError for one that sees none."""
        if self.shape is None or len(self.shape) != 3 or self.shape[0] not in (1, 3):
            raise DataError(f"{type(self).__name__}: takes samples of {self.shape} numbers, which are no image.")
        return self.shape[0], self.shape[1], self.shape[2]

    def save(self, folder: str | Path) -> None:
        """Into a folder from which it is loaded again."""
        raise NotImplementedError


def is_denoiser(name: str | Path) -> bool:
    """Whether a folder holds a denoiser: one of ours, or of diffusers."""
    folder = Path(name)
    try:
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    except DataError:
        return False
    ours = isinstance(config, dict) and {"denoiser", "_class_name"} & config.keys()
    return bool(ours) or (folder / "model_index.json").is_file()


def refuse(name: str | Path, command: str) -> None:
    """UserError where a command that reads language models is given a denoiser."""
    if is_denoiser(name):
        how = "reads language models" if command == "show" else "wants --likelihood denoising for one"
        raise UserError(f"{name} is a denoiser: `chesboard {command}` {how} (see docs/diffusion.md).")


def pixels(image: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """(C, H, W) float32 in [-1, 1] of an image (h, w, 3) uint8: its middle, cut to the sides' ratio, then resized. The
    same for both images of a pair: nothing is drawn."""
    from PIL import Image

    channels, height, width = shape
    found = Image.fromarray(image)
    scale = min(found.width / width, found.height / height)
    w, h = width * scale, height * scale
    left, top = (found.width - w) / 2, (found.height - h) / 2
    found = found.convert("L" if channels == 1 else "RGB")
    found = found.resize((width, height), Image.Resampling.BICUBIC, box=(left, top, left + w, top + h))
    values = np.asarray(found, dtype=np.float32).reshape(height, width, channels).transpose(2, 0, 1)
    return np.ascontiguousarray(values / 127.5 - 1)


def _class(value: Any, labels: int | None) -> int:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not number.is_integer():
        raise DataError(f"the class is {str(value)[:60]!r}; give a whole number.")
    if number < 0 or (labels is not None and number >= labels):
        last = "" if labels is None else f" to {labels - 1}"
        raise DataError(f"the class is {number:g}, and the model has 0{last or ' and more'}.")
    return int(number)


class MLPDenoiser(Denoiser):
    """A residual network on flat samples, conditioned on a class. condition: `class_labels` (N,), 0 .. classes - 1, and
    `classes` for none.

    size: P numbers of a sample; shape: S, (P,) where it is not given; samples of any shape of P numbers are taken.
    width: of the hidden layers. blocks: residual blocks. betas run from first_beta to
    last_beta in `train_steps` equal steps.
    """

    WAVES = 32  # sines and cosines of the time, each

    def __init__(
        self, *, size: int, classes: int = 0, width: int = 128, blocks: int = 2, target: str = "eps",
        train_steps: int = 1000, first_beta: float = 1e-4, last_beta: float = 0.02,
        shape: Sequence[int] | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        self.settings: dict[str, Any] = {"size": size, "classes": classes, "width": width, "blocks": blocks}
        self.settings |= {"target": target, "train_steps": train_steps}
        self.settings |= {"first_beta": first_beta, "last_beta": last_beta, "shape": list(shape or (size,))}
        self.shape, self.told = tuple(self.settings["shape"]), "class" if classes else ""
        self.labels = classes + 1
        if math.prod(self.shape) != size:
            raise ValueError(f"shape {self.shape} does not hold {size} numbers")
        self.target, self.alphas = target, linear_alphas(train_steps, first_beta, last_beta)
        self.enter = nn.Linear(size, width)
        self.time = nn.Sequential(nn.Linear(2 * self.WAVES, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
            for _ in range(blocks)
        )
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.SiLU())
        self.head = nn.Linear(width, size)

    def forward(self, x_t: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See Denoiser."""
        labels = condition.get("class_labels")
        if labels is None:
            labels = torch.full_like(times, self.settings["classes"], dtype=torch.long)
        hidden = self.enter(x_t.flatten(1)) + self.time(self._waves(times).to(x_t.dtype)) + self.label(labels.long())
        for block in self.blocks:
            hidden = hidden + block(hidden)
        return self.head(self.leave(hidden)).view_as(x_t)

    def _waves(self, times: Tensor) -> Tensor:
        """(N, 2 * WAVES) sines and cosines of the times at frequencies from 1 down to 1/10000."""
        speeds = torch.exp(-math.log(10_000) * torch.arange(self.WAVES, device=times.device) / self.WAVES)
        angles = times.float()[:, None] * speeds
        return torch.cat([angles.sin(), angles.cos()], -1)

    def save(self, folder: str | Path) -> None:
        """model.safetensors and config.json."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous().cpu() for k, v in self.state_dict().items()}, Path(folder) / "model.safetensors")
        text = json.dumps({"denoiser": "mlp"} | self.settings, indent=2)
        (Path(folder) / "config.json").write_text(text + "\n", encoding="utf-8")
