"""Forward noise: how much of a sample and of noise a noised sample holds, what a denoiser is to predict, and which
(time, noise) draws are made."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

TARGETS = {
    "eps": "the noise",
    "v": "sqrt(a) noise - sqrt(1 - a) sample",
    "x0": "the sample",
    "flow": "noise - sample, on straight lines between the two (rectified flow)",
}
FLOW_TIMES = 1000  # of a flow t = 1000 s


def linear_alphas(steps: int = 1000, first: float = 1e-4, last: float = 0.02) -> Tensor:
    """(T,) float64 alpha-bar of linear betas (DDPM, arXiv 2006.11239, section 4)."""
    return (1 - torch.linspace(first, last, steps, dtype=torch.float64)).cumprod(0)


def shares(target: str, alphas: Tensor, times: Tensor) -> tuple[Tensor, Tensor]:
    """How much of the sample and of the noise x_t holds at these times, float64: sqrt(a) and sqrt(1 - a), and of a
    flow 1 - s and s. alphas: (T,), not read for a flow."""
    if target == "flow":
        s = times.to(torch.float64) / FLOW_TIMES
        return 1 - s, s
    a = alphas.to(times.device)[times]
    return a.sqrt(), (1 - a).sqrt()


def wanted(target: str, sample: Tensor, noise: Tensor, shares: tuple[Tensor, Tensor]) -> Tensor:
    """What a denoiser of this kind is to predict; shares as in `shares`, broadcast against the sample."""
    signal, spread = shares
    values = {
        "eps": lambda: noise,
        "v": lambda: signal * noise - spread * sample,
        "x0": lambda: sample,
        "flow": lambda: noise - sample,
    }
    return values[target]()


def fixed_times(target: str, steps: int, draws: int, seed: int) -> Tensor:
    """(K,) times, one drawn in each of K equal parts of 0 .. T - 1 (of a flow: of 0 .. 1000), always the same."""
    share = torch.rand(draws, generator=generator(seed, "times"), dtype=torch.float64)
    return _times(target, steps, (torch.arange(draws) + share) / draws)


def fixed_noise(shape: Sequence[int], draws: int, seed: int, group: str) -> Tensor:
    """(K, *shape) normal noise for the group, always the same."""
    return torch.randn(draws, *shape, generator=generator(seed, "noise", group))


def fresh_draws(
    target: str, steps: int, shape: Sequence[int], draws: int, seed: int, step: int, group: str
) -> tuple[Tensor, Tensor]:
    """(K,) times anywhere and (K, *shape) noise for the group in the update after `step` updates."""
    draw = generator(seed, "step", step, group)
    share = torch.rand(draws, generator=draw, dtype=torch.float64)
    return _times(target, steps, share), torch.randn(draws, *shape, generator=draw)


def _times(target: str, steps: int, share: Tensor) -> Tensor:
    return share * FLOW_TIMES if target == "flow" else (share * steps).long().clamp(max=steps - 1)


def generator(*key: object) -> torch.Generator:
    """A generator of its own for each key, the same in every process and whatever was drawn before."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=7).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little"))
