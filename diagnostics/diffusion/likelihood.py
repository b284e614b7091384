"""DenoisingLikelihood: a diffusion or flow model, whose rows are samples and whose likelihood of one is minus the
denoising error (the ELBO up to a weighting by t; no nats)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.diffusion import noise, paths
from diagnostics.diffusion.batch import DenoisingBatch, Noised, collate
from diagnostics.diffusion.denoiser import Denoiser
from diagnostics.diffusion.stats import DenoisingStats
from diagnostics.engine import evaluating, innermost
from diagnostics.errors import UserError
from diagnostics.sequences import Example
from diagnostics.stats import SequenceStats

NUMBERS = 1 << 20  # numbers that a model is given at once


@dataclass(frozen=True)
class Denoised:
    """What a model predicted: output (N, K, P), in float32 at least, of what was drawn. spread: (N, K) standard
    deviations, and predicted: (N, K, P) the noise that the output says, of sampling steps."""

    output: Tensor
    noised: Noised
    spread: Tensor | None = None
    predicted: Tensor | None = None


@dataclass(frozen=True)
class DenoisingLikelihood:
    """See diagnostics.likelihood, and DenoisingStats for what its numbers are.

    A pair's sides, the policy and the reference see the same draws of time and noise. Outside of training these are
    `draws` fixed ones, stratified in time, so that every measurement can be compared with every other. An update has
    `train_draws` fresh ones, made from seed, step and group (the pair, if its sample names none): order, batching and
    resuming change no number. Dropout is off: the two models differ by their weights alone. path: where the x_t of an
    update comes from, a word of paths.PATHS; the fixed draws are always of forward noise.
    """

    draws: int = 16
    train_draws: int = 1
    seed: int = 0
    path: str = "noise"
    kind = "denoising"
    gives = frozenset({"kl"})

    def prepare(self, model: nn.Module) -> None:
        """Raises UserError for a model that is no denoiser."""
        denoiser_of(model)

    def collate(self, examples: Sequence[Example]) -> DenoisingBatch:
        """See batch.collate."""
        return collate(examples, self.draws)

    def batch(self, fields: dict[str, Any]) -> DenoisingBatch:
        """See Likelihood. A data loader that pins memory makes lists of tuples."""
        found = DenoisingBatch(**fields)
        return replace(found, **{name: tuple(getattr(found, name)) for name in ("pair_ids", "names", "groups")})

    def drawn(self, batch: DenoisingBatch, step: int, model: nn.Module, reference: Any) -> DenoisingBatch:
        """The batch with the draws of the update after `step` updates."""
        inner, shape = denoiser_of(model), batch.samples.shape[1:]
        how = inner.target, inner.steps, shape, self.train_draws, self.seed, step
        times, noises = zip(*(noise.fresh_draws(*how, group) for group in batch.groups))
        mask = batch.completion_mask.new_ones(len(batch.samples), self.train_draws)
        found = noised(inner, batch, torch.stack(times), torch.stack(noises))
        found = found if self.path == "noise" else self._walked(batch, found, model, reference)
        return replace(batch, completion_mask=mask, noised=found)

    def _walked(self, batch: DenoisingBatch, found: Noised, model: nn.Module, reference: Any) -> Noised:
        """The draws with the x_t of a path in the place of forward noise: on all rows, or of `own` on the rejected."""
        inner, draws = denoiser_of(model), found.times.shape[1]
        told, dtype = told_of(batch, draws, model), next(model.parameters()).dtype
        eps, times = found.noise.flatten(0, 1), found.times.flatten()
        samples = batch.samples.to(eps.dtype).repeat_interleave(draws, 0)
        with reference.running() if self.path == "reference_inversion" else evaluating(model) as other:

            def run(x_t: Tensor, times: Tensor, told: Any) -> Tensor:
                return in_wide((other or model)(x_t.to(dtype), times, told))

            if self.path == "own":
                x_t, samples, eps, times = paths.own_way(inner, run, eps, told, times)
            else:
                x_t, eps, times = paths.inverted(inner, run, samples, told, times)
        signal, spread = (_beside(v, eps[:, None])[:, 0] for v in noise.shares(inner.target, inner.alphas, times))
        target = noise.wanted(inner.target, samples, eps, (signal, spread))
        walked = (x_t, target, eps, times, noise.shares(inner.target, inner.alphas, times)[0].square())
        rows = torch.ones(len(batch.samples), dtype=torch.bool)
        if self.path == "own":
            rows = torch.zeros_like(rows)
            rows[batch.rows["rejected"]] = True
        parts = {}
        for name, new in zip(("x_t", "target", "noise", "times", "alphas"), walked, strict=True):
            old = getattr(found, name)
            parts[name] = torch.where(_beside(rows.to(old.device), old), new.unflatten(0, (-1, draws)).to(old), old)
        return Noised(**parts)

    def fixed(self, batch: DenoisingBatch, model: nn.Module) -> Noised:
        """The draws that are always the same."""
        inner, shape = denoiser_of(model), batch.samples.shape[1:]
        times = noise.fixed_times(inner.target, inner.steps, self.draws, self.seed)
        noises = [noise.fixed_noise(shape, self.draws, self.seed, group) for group in batch.groups]
        return noised(inner, batch, times.expand(len(noises), -1), torch.stack(noises))

    def run(self, model: nn.Module, batch: DenoisingBatch) -> Denoised:
        """One forward pass over all draws of all rows."""
        found = batch.noised or self.fixed(batch, model)
        draws, dtype = found.times.shape[1], next(model.parameters()).dtype
        with evaluating(model):
            output = model(found.x_t.flatten(0, 1).to(dtype), found.times.flatten(), told_of(batch, draws, model))
        return Denoised(in_wide(output).unflatten(0, (-1, draws)).flatten(2), found)

    def stats(
        self, batch: DenoisingBatch, policy: Denoised, reference: Denoised | SequenceStats | None = None, *,
        kl: bool = True, kl_gradient: bool = False,
    ) -> tuple[dict[str, SequenceStats], dict[str, SequenceStats]]:  # fmt: skip
        """See Likelihood; the kl is the deviation E|f - f_ref|^2 of the outputs, which is no nats."""
        own = denoising_stats(batch, policy)
        if isinstance(reference, Denoised) and (kl or kl_gradient):
            apart = (policy.output - reference.output).square().mean(-1) / policy.output.shape[1]
            own = replace(
                own, per_token_kl=apart if kl_gradient else apart.detach(), per_token_kl_reverse=apart.detach()
            )
        other = denoising_stats(batch, reference) if isinstance(reference, Denoised) else reference
        return named_rows(batch, own), named_rows(batch, other) if other is not None else {}

    def cost(self, model: nn.Module) -> Callable[[Example, int], int]:
        """The numbers that the model is given for it."""
        return lambda example, longest: self.draws * sum(row.media.values.size for row in example.rows.values())

    def budget(self, model: nn.Module, examples: Sequence[Example]) -> int:
        """See Likelihood; a constant, and where it is too high, batches are halved."""
        return NUMBERS


def denoiser_of(model: nn.Module) -> Denoiser:
    """The denoiser under data-parallel and adapter wrappers. Raises UserError where there is none."""
    inner = innermost(model)
    if not isinstance(inner, Denoiser) or inner.target not in noise.TARGETS:
        raise UserError(f"{type(inner).__name__} is no Denoiser: wrap the model (diagnostics.diffusion.denoiser).")
    return inner


def noised(inner: Denoiser, batch: DenoisingBatch, times: Tensor, noises: Tensor) -> Noised:
    """The batch's samples under forward noise. times: (B, K), noises: (B, K, *S), the same for every row of a pair."""
    samples, count = batch.samples[:, None], len(batch.names)
    dtype = torch.promote_types(samples.dtype, next(inner.parameters()).dtype)
    samples, eps = samples.to(dtype), noises.to(samples.device, dtype).repeat(count, *[1] * (noises.ndim - 1))
    times = times.to(samples.device).repeat(count, 1)
    signal, spread = noise.shares(inner.target, inner.alphas, times)
    both = _beside(signal, eps), _beside(spread, eps)
    x_t = both[0] * samples + both[1] * eps
    target = noise.wanted(inner.target, samples, eps, both).expand_as(eps)
    return Noised(x_t, target, eps, times, signal.square())


def denoising_stats(batch: DenoisingBatch, run: Denoised) -> DenoisingStats:
    """DenoisingStats of all rows of a batch."""
    drawn, draws = run.noised, run.output.shape[1]
    target = drawn.target.flatten(2)
    residual = run.output - target
    return DenoisingStats(
        per_token_logps=-residual.square().mean(-1) / draws, completion_mask=batch.completion_mask, residual=residual,
        target=target, noise=drawn.noise.flatten(2), times=drawn.times, alphas=drawn.alphas, segments=batch.segments,
        weights=batch.weights,
    )  # fmt: skip


def named_rows(batch: DenoisingBatch, stats: SequenceStats) -> dict[str, SequenceStats]:
    """The rows of each name."""
    values = {name: value for name, value in vars(stats).items() if value is not None}
    return {name: type(stats)(**{k: v[at] for k, v in values.items()}) for name, at in batch.rows.items()}


def _beside(values: Tensor, samples: Tensor) -> Tensor:
    """(N, K) values, or (N,), to be beside (N, K, *S) samples; numbers in the dtype of these."""
    values = values if values.dtype == torch.bool else values.to(samples.dtype)
    return values.view(*values.shape, *[1] * (samples.ndim - values.ndim))


def told_of(batch: DenoisingBatch, draws: int, model: nn.Module) -> dict[str, Tensor]:
    """The condition of every draw of every row."""
    dtype = next(model.parameters()).dtype
    return {name: _cast(value, dtype).repeat_interleave(draws, 0) for name, value in batch.condition.items()}


def _cast(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def in_wide(value: Tensor) -> Tensor:
    """A model's output in float32 at least."""
    return value.to(torch.promote_types(value.dtype, torch.float32))
