"""Digits: scikit-learn's hand-written digits, a small denoiser trained on the spot to draw them, and preference pairs.

1,797 images of 8 x 8 points in ten classes, scaled to [-1, 1]. The denoiser is an MLP of 0.11 million weights that is
told the class. The judge is the mean of an image's points ("ink"): of two images the one with more ink wins. Whether a
sample still is what was asked for says a logistic regression trained on the real images. Pairs are

    on-policy  two samples of the denoiser, of one class
    close      one real image, noised to time 300 twice and denoised again (the form of DenseDPO's pairs)
    corrupt    a real image against itself with noise
    condition  one real image under its own class against itself under another

Whatever is drawn depends on the seed alone.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from torch import Tensor
from torch.nn import functional as F

from diagnostics.diffusion.denoiser import Denoiser, MLPDenoiser
from diagnostics.errors import UserError
from diagnostics.progress import Steps

SIDE, POINTS, CLASSES = 8, 64, 10  # of an image
DROPPED = 0.1  # share of the images of which the class is not told
STEPS, BATCH, RATE = 2500, 128, 2e-3
KINDS = ("on-policy", "close", "corrupt", "condition")
PAIRS = 256
SAMPLING_STEPS = 50
CLOSE_TIME, CLOSE_STEPS = 300, 20
CORRUPTION = 0.5  # standard deviation of the noise on a corrupt image


@dataclass(frozen=True)
class Pairs:
    """N pairs. chosen, rejected: (N, 64) images; their classes (N,), as the denoiser is told them."""

    chosen: Tensor
    rejected: Tensor
    chosen_labels: Tensor
    rejected_labels: Tensor

    def columns(self, kind: str) -> dict[str, Tensor]:
        """The pairs as the columns of a data file of samples (diagnostics.diffusion.read)."""
        if kind == "condition":
            found = {"image": self.chosen, "condition_w": self.chosen_labels, "condition_l": self.rejected_labels}
        else:
            found = {"chosen": self.chosen, "rejected": self.rejected, "class": self.chosen_labels}
        return {name: values.contiguous() for name, values in found.items()}


@cache
def images() -> tuple[Tensor, Tensor]:
    """The real images, (1797, 64) float32 in [-1, 1], and their classes (1797,)."""
    found: Any = load_digits()
    return torch.tensor(found["data"] / 8 - 1, dtype=torch.float32), torch.tensor(found["target"])


def build(folder: Path, seed: int, steps: int = STEPS, pairs: int = PAIRS) -> None:
    """Write the trained denoiser and a data file of pairs of each kind; see paths."""
    folder.mkdir(parents=True, exist_ok=True)
    model = train(seed, steps=steps)
    model.save(folder / "model")
    for kind in KINDS:
        save_file(make_pairs(kind, model, seed, count=pairs).columns(kind), paths(folder, kind)["data"])


def paths(folder: Path, kind: str) -> dict[str, str]:
    """The keys model and data of a run on a world's pairs of a kind."""
    return {"model": str(folder / "model"), "data": str(folder / f"{kind}.safetensors")}


def make_model(seed: int) -> MLPDenoiser:
    """The denoiser with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return MLPDenoiser(size=POINTS, classes=CLASSES, shape=(1, SIDE, SIDE))


def train(seed: int, *, steps: int = STEPS) -> MLPDenoiser:
    """The denoiser after so many steps of Adam, with a cosine schedule, on the mean squared error of the noise; every
    image of a batch has a time and a noise of its own."""
    model, draw = make_model(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    real, classes = images()
    with Steps("denoiser", steps) as counted:
        for _ in range(steps):
            row = torch.randint(len(real), (BATCH,), generator=draw)
            times = torch.randint(model.steps, (BATCH,), generator=draw)
            noise = torch.randn(BATCH, POINTS, generator=draw)
            dropped = torch.rand(BATCH, generator=draw) < DROPPED
            labels = classes[row].masked_fill(dropped, CLASSES)
            loss = F.mse_loss(model(noised(model, real[row], noise, times), times, _told(labels)), noise)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            counted.add(note=f"error {loss.item():.3f}")
    return model.eval()


def noised(model: Denoiser, values: Tensor, noise: Tensor, times: Tensor) -> Tensor:
    """(B, 64) sqrt(a) x + sqrt(1 - a) eps, a the alpha-bar of times (B,)."""
    share = model.alphas[times].to(values)[:, None]
    return share.sqrt() * values + (1 - share).sqrt() * noise


@torch.no_grad()
def denoised(model: Denoiser, start: Tensor, labels: Tensor, *, time: int, steps: int) -> Tensor:
    """(B, 64) images of the classes `labels` (B,), from `start` (B, 64), which is noised to `time`.

    DDIM without fresh noise (arXiv 2010.02502, equation 12 with sigma 0) on equal steps. What the model takes for the
    image is clipped to [-1, 1], and its noise is the one that goes with that.
    """
    grid = torch.linspace(time, 0, steps).round().long()
    shares = [*model.alphas[grid].tolist(), 1.0]
    here = start
    for at, share, after in zip(grid, shares, shares[1:]):
        noise = model(here, at.expand(len(here)), _told(labels))
        image = ((here - (1 - share) ** 0.5 * noise) / share**0.5).clamp(-1, 1)
        noise = (here - share**0.5 * image) / (1 - share) ** 0.5
        here = after**0.5 * image + (1 - after) ** 0.5 * noise
    return here


def samples(model: Denoiser, labels: Tensor, draw: torch.Generator) -> Tensor:
    """(B, 64) new images of the classes `labels` (B,)."""
    start = torch.randn(len(labels), POINTS, generator=draw)
    return denoised(model, start, labels, time=model.steps - 1, steps=SAMPLING_STEPS)


def make_pairs(kind: str, model: Denoiser, seed: int, *, count: int = PAIRS) -> Pairs:
    """Pairs of one of KINDS."""
    if kind not in KINDS:
        raise UserError(f"there are no pairs of kind '{kind}'; choose one of {', '.join(KINDS)}.")
    draw = _stream(seed, KINDS.index(kind))
    real, classes = images()
    row = torch.randint(len(real), (count,), generator=draw)
    image, label = real[row], classes[row]
    if kind == "on-policy":
        return judged(samples(model, label, draw), samples(model, label, draw), label)
    if kind == "close":
        times, noises = torch.full((count,), CLOSE_TIME), torch.randn(2, count, POINTS, generator=draw)
        starts = [noised(model, image, noise, times) for noise in noises]
        one, other = (denoised(model, x, label, time=CLOSE_TIME, steps=CLOSE_STEPS) for x in starts)
        return judged(one, other, label)
    if kind == "corrupt":
        return Pairs(image, image + CORRUPTION * torch.randn(count, POINTS, generator=draw), label, label)
    return Pairs(image, image, label, (label + torch.randint(1, CLASSES, (count,), generator=draw)) % CLASSES)


def judged(one: Tensor, other: Tensor, labels: Tensor) -> Pairs:
    """Pairs of two images each, the one with more ink chosen."""
    first = (ink(one) >= ink(other))[:, None]
    return Pairs(torch.where(first, one, other), torch.where(first, other, one), labels, labels)


def ink(values: Tensor) -> Tensor:
    """(B,) the judge's score of images (B, 64): the mean of their points, -1 (white) to 1 (black)."""
    return values.mean(-1)


def accuracy(values: Tensor, labels: Tensor) -> float:
    """The share of images (B, 64) whose class is the one asked for, by a logistic regression on the real images."""
    said = _classifier().predict(values.double().numpy())
    return float((torch.as_tensor(said) == labels).double().mean())


def drawn(model: Denoiser, seed: int, *, each: int = 10) -> tuple[Tensor, Tensor]:
    """New images and the classes asked for, `each` of every class; the noise is the same for every model."""
    labels = torch.arange(CLASSES).repeat(each)
    return samples(model, labels, _stream(seed, len(KINDS))), labels


def _stream(seed: int, part: int) -> torch.Generator:
    """Random numbers of a seed for one of its parts; the training's are those of the seed itself."""
    return torch.Generator().manual_seed(1000 * (seed + 1) + part)


def _told(labels: Tensor) -> dict[str, Tensor]:
    return {"class_labels": labels}


@cache
def _classifier() -> LogisticRegression:
    real, classes = images()
    return LogisticRegression(max_iter=1000).fit(real.double().numpy(), classes.numpy())
