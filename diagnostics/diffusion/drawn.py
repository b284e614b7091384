"""New samples of a denoiser: by the scheduler of its pipeline, or by DDIM."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diagnostics.diffusion.denoiser import Condition, Denoiser
from diagnostics.diffusion.paths import Run, mixed, parts_of

STEPS = 50


def sampler_of(model: Denoiser) -> str:
    """How `drawn` draws from this model, in words."""
    scheduler = getattr(model, "scheduler", None)
    return f"{type(scheduler).__name__ if scheduler is not None else 'DDIM, eta 0'}, {STEPS} steps"


def drawn(
    model: Denoiser, run: Run, noise: Tensor, told: Condition, draws: Sequence[torch.Generator],
    bounds: tuple[float, float],
) -> Tensor:  # fmt: skip
    """(N, *S) samples from noise (N, *S), each told its condition; without guidance. run: the model's forward.

    draws: one generator a sample, for schedulers that add noise on the way. bounds: what DDIM takes for the sample is
    clipped to them at every step (static thresholding, arXiv 2205.11487); a scheduler clips as its config says."""
    with torch.no_grad():
        if getattr(model, "scheduler", None) is not None:
            return _by_scheduler(model, run, noise, told, draws)
        return _by_ddim(model, run, noise, told, bounds)


def _by_ddim(model: Denoiser, run: Run, noise: Tensor, told: Condition, bounds: tuple[float, float]) -> Tensor:
    """DDIM without fresh noise (arXiv 2010.02502, equation 12 with sigma 0) on equal steps; of a flow, Euler's."""
    flow, last = model.target == "flow", model.steps if model.target == "flow" else model.steps - 1
    grid = torch.linspace(last, 0, STEPS + 1 if flow else STEPS, dtype=torch.float64, device=noise.device)
    grid = grid[:-1] if flow else grid.round().long()
    x_t = found = noise
    for k, time in enumerate(grid):
        output = run(x_t, time.expand(len(x_t)), told)
        if flow:  # at pure noise the output says nothing of the noise but itself
            found = x_t - (time / model.steps).to(x_t.dtype) * output
        else:
            found, _ = parts_of(model, output, x_t, time)
        found = found.clamp(*bounds)
        if k + 1 < len(grid):
            x_t = mixed(model, found, _noise(model, x_t, found, time), grid[k + 1])
    return found


def _noise(model: Denoiser, x_t: Tensor, found: Tensor, time: Tensor) -> Tensor:
    """The noise that goes with what is taken for the sample."""
    rest = x_t - mixed(model, found, torch.zeros_like(found), time)
    return rest / mixed(model, torch.zeros_like(found), torch.ones_like(found), time)


def _by_scheduler(model: Any, run: Run, noise: Tensor, told: Condition, draws: Sequence[torch.Generator]) -> Tensor:
    """As a pipeline of diffusers samples: by a copy of its scheduler, whose state is its own."""
    scheduler = copy.deepcopy(model.scheduler)
    more = {"mu": _shift(scheduler.config, noise)} if scheduler.config.get("use_dynamic_shifting") else {}
    scheduler.set_timesteps(STEPS, device=noise.device, **more)
    scale = getattr(scheduler, "scale_model_input", lambda x, time: x)
    takes = inspect.signature(scheduler.step).parameters
    how: dict[str, Any] = {"generator": list(draws)} if "generator" in takes else {}
    x_t = noise * getattr(scheduler, "init_noise_sigma", 1.0)
    for time in scheduler.timesteps:
        output = run(scale(x_t, time), time.expand(len(x_t)), told)
        x_t = scheduler.step(output, time, x_t, **how).prev_sample
    return x_t


def _shift(config: Any, noise: Tensor) -> float:
    """How far a flow's times are shifted for samples of this size: as the pipelines of SD3 and Flux do, on a line
    through two (tokens, shift); a token is 2 x 2 of a latent."""
    tokens = noise.shape[-2] * noise.shape[-1] / 4
    first, last = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    low, high = config.get("base_shift", 0.5), config.get("max_shift", 1.15)
    return low + (high - low) * (tokens - first) / (last - first)
