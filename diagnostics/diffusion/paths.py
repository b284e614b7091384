"""Where x_t comes from other than forward noise: DDIM inversion of the sample, or the model's own way to a sample.

Both are walked without gradient on a grid of times, and give x_t and target at the grid's time nearest below each draw.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from diagnostics.diffusion.denoiser import Condition, Denoiser
from diagnostics.diffusion.noise import shares

PATHS = {
    "noise": "the sample mixed with drawn noise",
    "inversion": "the sample inverted by DDIM, by the policy as it is now (DDIM-InPO, arXiv 2503.18454)",
    "reference_inversion": "the sample inverted by DDIM, by the reference (Inversion-DPO)",
    "own": "the rejected side on the way of the policy from drawn noise to a sample of its own (Diffusion-DRO)",
}
GRID = 10  # steps, as DDIM-InPO has them

Run = Callable[[Tensor, Tensor, Condition], Tensor]


def inverted(
    model: Denoiser, run: Run, samples: Tensor, told: Condition, times: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """x_t (N, *S) of samples at times (N,) by DDIM inversion, the noise (N, *S) that the sample and x_t imply, and the
    grid's times at which they stand: (x_t - signal * x) / spread, which is no drawn noise. run: the model's forward."""
    grid = _grid(model, samples.device)
    places = _place(grid, times)
    x_t, found = samples, samples.clone()
    with torch.no_grad():
        for k, time in enumerate(grid):
            before = grid[k - 1] if k else None
            at = time if before is None else before
            x0, eps = parts_of(model, run(x_t, at.expand(len(samples)), told), x_t, at)
            x_t = mixed(model, x0 if k else samples, eps, time)  # before the first time there is no noise
            found = torch.where(_beside(places == k, found), x_t, found)
    signal, spread = (_beside(v, samples).to(samples.dtype) for v in shares(model.target, model.alphas, grid[places]))
    return found, (found - signal * samples) / spread, grid[places]


def own_way(
    model: Denoiser, run: Run, noise: Tensor, told: Condition, times: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same on the way of the model from noise (N, *S) at the last time to a sample of its own by DDIM (eta 0): x_t,
    that sample, the noise that the two imply, and the grid's times."""
    grid = _grid(model, noise.device)
    places = _place(grid, times)
    x_t, found = noise, noise.clone()
    with torch.no_grad():
        for k in range(len(grid) - 1, -1, -1):
            found = torch.where(_beside(places == k, found), x_t, found)
            x0, eps = parts_of(model, run(x_t, grid[k].expand(len(noise)), told), x_t, grid[k])
            x_t = mixed(model, x0, eps, grid[k - 1]) if k else x0
    signal, spread = (_beside(v, noise).to(noise.dtype) for v in shares(model.target, model.alphas, grid[places]))
    return found, x_t, (found - signal * x_t) / spread, grid[places]


def _grid(model: Denoiser, device: torch.device) -> Tensor:
    """GRID times, evenly spread up to the last."""
    found = (torch.arange(1, GRID + 1, dtype=torch.float64) * model.steps / GRID).to(device)
    return found * (1 - 1e-3) if model.target == "flow" else found.long() - 1


def _place(grid: Tensor, times: Tensor) -> Tensor:
    """(N,) the place on the grid of the last of its times that is not after each time, and 0 before the first."""
    return (torch.searchsorted(grid, times.to(grid), right=True) - 1).clamp(min=0)


def parts_of(model: Denoiser, output: Tensor, x_t: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """The sample and the noise that a model's output at x_t says. time: one for all, or (N,)."""
    both = (v.to(x_t.dtype) for v in shares(model.target, model.alphas, time))
    signal, spread = (v if v.ndim == 0 else _beside(v, x_t) for v in both)
    output = output.to(x_t.dtype)
    if model.target == "eps":
        return (x_t - spread * output) / signal, output
    if model.target == "x0":
        return output, (x_t - signal * output) / spread
    if model.target == "v":
        return signal * x_t - spread * output, spread * x_t + signal * output
    return x_t - spread * output, x_t + signal * output


def mixed(model: Denoiser, sample: Tensor, noise: Tensor, time: Tensor) -> Tensor:
    """The sample with so much noise as x_t has at one time."""
    signal, spread = (v.to(sample.dtype) for v in shares(model.target, model.alphas, time))
    return signal * sample + spread * noise


def _beside(values: Tensor, samples: Tensor) -> Tensor:
    return values.view(-1, *[1] * (samples.ndim - 1))
