"""StepLikelihood: Gaussian log-probs of a denoiser's sampling steps, whose rows are chains of points."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.diffusion.batch import DenoisingBatch, Noised
from diagnostics.diffusion.denoiser import Denoiser
from diagnostics.diffusion.likelihood import Denoised, DenoisingLikelihood, denoiser_of, in_wide, named_rows, told_of
from diagnostics.diffusion.noise import shares
from diagnostics.diffusion.paths import parts_of
from diagnostics.diffusion.stats import DenoisingStats
from diagnostics.engine import evaluating
from diagnostics.errors import DataError
from diagnostics.sequences import Example
from diagnostics.stats import SequenceStats


@dataclass(frozen=True)
class StepLikelihood(DenoisingLikelihood):
    """A sample's values are a chain (L + 1, *S) of points as DDIM with eta 1 made them, and its `times` the L + 1
    times, falling; two children of one parent are chains of one step with the same first point. Nothing is drawn.

    The log-prob of a step from x_t to x_next is the mean over the sample's numbers of -(x_next - mu)^2 / (2 s^2) -
    log s - log sqrt(2 pi), mu and s those of DDIM (arXiv 2010.02502, Eq. 12 and 16 with eta 1): nats a number. The kl
    is the mean of (mu - mu_ref)^2 / (2 s^2), which for these Gaussians is the KL a number.
    """

    kind = "steps"

    def collate(self, examples: Any) -> DenoisingBatch:
        """See Likelihood. Raises DataError for a sample without times."""
        batch = super().collate(examples)
        if "times" not in batch.condition:
            raise DataError(f"pair_id {batch.pair_ids[0]}: a chain has no times; give each of its points its own.")
        mask = torch.ones(len(batch.samples), batch.samples.shape[1] - 1, dtype=torch.long)
        return replace(batch, completion_mask=mask)

    def drawn(self, batch: DenoisingBatch, step: int, model: nn.Module, reference: Any) -> DenoisingBatch:
        """The batch itself."""
        return batch

    def run(self, model: nn.Module, batch: DenoisingBatch) -> Denoised:
        """One forward pass over the first L points of every chain; output: mu of the next one, target: that point."""
        inner, dtype = denoiser_of(model), next(model.parameters()).dtype
        times, next_times = batch.condition["times"][:, :-1], batch.condition["times"][:, 1:]
        samples = batch.samples.to(torch.promote_types(batch.samples.dtype, dtype))
        x_t, x_next = samples[:, :-1].flatten(0, 1), samples[:, 1:].flatten(0, 1)
        told = {name: value for name, value in told_of(batch, times.shape[1], model).items() if name != "times"}
        with evaluating(model):
            output = in_wide(model(x_t.to(dtype), times.flatten(), told))
        mu, spread = ddim_step(inner, output, x_t, times.flatten(), next_times.flatten())
        alphas = shares(inner.target, inner.alphas, times)[0].square()
        noise = (x_next - mu.detach()) / _beside(spread, x_next)
        back = [v.unflatten(0, times.shape) for v in (x_t, x_next, noise)]
        found = Noised(*back, times=times, alphas=alphas)
        _, predicted = parts_of(inner, output, x_t, times.flatten())
        both = (part.unflatten(0, times.shape).flatten(2) for part in (mu, predicted))
        return Denoised(next(both), found, spread.view(times.shape), next(both))

    def stats(
        self, batch: DenoisingBatch, policy: Denoised, reference: Denoised | SequenceStats | None = None, *,
        kl: bool = True, kl_gradient: bool = False,
    ) -> tuple[dict[str, SequenceStats], dict[str, SequenceStats]]:  # fmt: skip
        """See Likelihood."""
        own = step_stats(batch, policy)
        if isinstance(reference, Denoised) and (kl or kl_gradient) and policy.spread is not None:
            apart = ((policy.output - reference.output) / policy.spread[..., None]).square().mean(-1) / 2
            kept = apart if kl_gradient else apart.detach()
            own = replace(own, per_token_kl=kept, per_token_kl_reverse=apart.detach())
        other = step_stats(batch, reference) if isinstance(reference, Denoised) else reference
        return named_rows(batch, own), named_rows(batch, other) if other is not None else {}

    def cost(self, model: nn.Module) -> Any:
        """The numbers that the model is given for it."""

        def numbers(example: Example, longest: int) -> int:
            return sum(row.media.values.size for row in example.rows.values())

        return numbers


def ddim_step(model: Denoiser, output: Tensor, x_t: Tensor, times: Tensor, next_times: Tensor) -> tuple[Tensor, Tensor]:
    """mu (N, *S) and s (N,) of DDIM's step with eta 1 from x_t at times to next_times, both (N,).

    Raises DataError for a flow, whose sampling steps have no noise, and for a step without noise or forward in time."""
    if model.target == "flow":
        raise DataError("the sampling steps of a flow have no noise, so no likelihood; choose likelihood denoising.")
    now, then = (shares(model.target, model.alphas, t)[0].square() for t in (times, next_times.clamp(min=0)))
    if bool((next_times < 0).any()) or bool((now >= then).any()):
        raise DataError("a chain's times do not fall, or its last step has no noise (the time after it is below 0).")
    spread = ((1 - then) / (1 - now) * (1 - now / then)).sqrt()
    x0, eps = parts_of(model, output, x_t, times)
    scale, lean = then.sqrt(), (1 - then - spread.square()).clamp(min=0).sqrt()
    return _beside(scale, x0) * x0 + _beside(lean, eps) * eps, spread.to(x_t.dtype)


def step_stats(batch: DenoisingBatch, run: Denoised) -> DenoisingStats:
    """DenoisingStats whose per_token_logps (N, L) are the steps' log-probs, and residual mu - x_next."""
    drawn, spread = run.noised, run.spread
    assert spread is not None
    target = drawn.target.flatten(2)
    residual = run.output - target
    logps = -(residual / spread[..., None]).square().mean(-1) / 2 - spread.log() - math.log(2 * math.pi) / 2
    return DenoisingStats(
        per_token_logps=logps, completion_mask=batch.completion_mask, residual=residual, target=target,
        noise=drawn.noise.flatten(2), times=drawn.times, alphas=drawn.alphas,
        predicted_noise=run.predicted,
    )  # fmt: skip


def _beside(values: Tensor, samples: Tensor) -> Tensor:
    return values.to(samples.dtype).view(-1, *[1] * (samples.ndim - 1))
