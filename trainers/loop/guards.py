"""Guards: what keeps the chosen sample's denoising error down, around any objective that compares two samples' errors.

Each takes an objective and gives one of the same kind. The logged chosen and rejected likelihoods are the model's own;
the loss is the guarded one.
"""

from dataclasses import replace
from functools import partial
from typing import Any, Literal

from torch import Tensor

from diagnostics.errors import UserError
from diagnostics.stats import PairStats
from trainers import objectives
from trainers.config import GUARDS
from trainers.objectives import Objective, ObjectiveOutput, part, references, widened

Guard = Literal["none", "sdpo", "sft", "dpo_shift"]
# what an objective reads besides errors of two sides that are compared with each other
_OTHERWISE = {"kl", "lists", "segments", "weights", "whole batch"}


def guarded(objective: str, settings: dict[str, Any], guard: Guard, strength: float | None = None) -> Objective:
    """An objective with its settings, and with a guard unless it is "none". strength: mu of sdpo, the weight of sft,
    the factor of dpo_shift; None is that of config.GUARDS. Raises UserError where the two do not go together."""
    check(objective, guard, strength)
    loss = partial(objectives.load(objective), **settings)
    if guard == "none":
        return loss
    how = {"sdpo": sdpo, "sft": partial(sft, beta=settings.get("beta", 2.0)), "dpo_shift": dpo_shift}[guard]
    return how(loss, GUARDS[guard] if strength is None else strength)


def check(objective: str, guard: Guard, strength: float | None) -> None:
    """UserError where a guard does not go with an objective, or its strength is none."""
    if guard == "none":
        if strength is not None:
            raise UserError("guard_strength is set, but guard is none; set guard to sdpo, sft or dpo_shift.")
        return
    if objectives.likelihood(objective) != "denoising" or _OTHERWISE & set(objectives.needs(objective)):
        raise UserError(
            f"guard {guard} goes with objectives that compare the denoising errors of two samples, such as "
            f"diffusion_dpo; '{objective}' is none."
        )
    if strength is None:
        return
    if guard == "sft":
        objectives.require_not_negative(guard_strength=strength)
    else:
        objectives.require_between(0, 1, guard_strength=strength)
    if guard == "dpo_shift":
        objectives.require_positive(guard_strength=strength)


def sdpo(objective: Objective, mu: float) -> Objective:
    """Scale the rejected sample's gradient so that a step does not raise the chosen errors. arXiv 2511.03317 (SDPO).

    By lambda = clip((1 - mu) * |g_w|^2 / <g_w, g_l>, 0, 1) where <g_w, g_l> > 0, else 1; g = output - target, over all
    numbers, draws and pairs of the batch, so it is batch-coupled: gradient accumulation changes it. Losses and rewards
    are unchanged. The guarantee is to first order, in the outputs. mu 1 stops the rejected gradient wherever it opposes
    the chosen one; the authors' mu is 0.9 for SD 1.5, 0.6 for SDXL and 0.2 with dspo. Read in their code.
    """

    def loss(pair: PairStats, **kept: Any) -> ObjectiveOutput:
        values = widened(pair.rejected.per_token_logps)
        still = values.detach()
        return objective(_with_rejected(pair, still + rejected_scale(pair, mu) * (values - still)), **kept)

    return loss


def rejected_scale(pair: PairStats, mu: float) -> Tensor:
    """() lambda of a batch; see sdpo."""
    chosen, rejected = (widened(part(side, "residual").detach()) for side in (pair.chosen, pair.rejected))
    square, inner = chosen.square().sum(), (chosen * rejected).sum()
    cap = ((1 - mu) * square / inner.where(inner > 0, 1.0)).clamp(0, 1)
    return cap.where(inner > 0, 1.0)


def sft(objective: Objective, weight: float, *, beta: float) -> Objective:
    """Add weight * (beta / 2) * e_w, e_w the chosen sample's denoising error; beta that of the objective (2 where it
    has none). Derivation, after Reg-DPO (arXiv 2511.01450) and MaPO (arXiv 2406.06424), which add the chosen
    likelihood."""

    def loss(pair: PairStats, **kept: Any) -> ObjectiveOutput:
        output = objective(pair, **kept)
        return output._replace(losses=output.losses - weight * beta / 2 * pair.chosen.logps)

    return loss


def dpo_shift(objective: Objective, factor: float) -> Objective:
    """Multiply the rejected sample's log-ratio by a factor above 0 and at most 1. arXiv 2502.07599 (DPO-Shift), there
    of language models; derivation for denoising errors. Rewards are unchanged. A factor of 1 changes nothing."""

    def loss(pair: PairStats, **kept: Any) -> ObjectiveOutput:
        own, ref = widened(pair.rejected.per_token_logps), widened(references(pair)[1].per_token_logps)
        output = objective(_with_rejected(pair, ref + factor * (own - ref)), **kept)
        return output._replace(rejected_rewards=output.rejected_rewards / factor)

    return loss


def _with_rejected(pair: PairStats, logps: Tensor) -> PairStats:
    """The pair with other rejected log-probs."""
    return replace(pair, rejected=replace(pair.rejected, per_token_logps=logps))
