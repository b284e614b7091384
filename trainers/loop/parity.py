"""Before the first step policy and reference are the same model: by how much their log-probs differ is rounding."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState
from torch import nn
from transformers import TrainingArguments

from diagnostics import outcomes
from diagnostics.errors import DataError
from diagnostics.likelihood import Likelihood
from diagnostics.processes import tell
from diagnostics.run_folder import RunFolder
from diagnostics.scoring import likelihoods, score
from diagnostics.sequences import Example
from trainers.config import TrainConfig
from trainers.loop.reference import LiveReference, SummedReference

PARITY_PAIRS = 8
SUM_EPS = torch.finfo(torch.float32).eps


def check_parity(
    config: TrainConfig,
    arguments: TrainingArguments,
    model: nn.Module,
    reference: Any,
    pairs: Sequence[Example],
    likelihood: Likelihood,
    run: RunFolder,
) -> tuple[float, bool]:
    """Before the first step policy and reference must agree to the noise floor; the result goes to the manifest.

    Returns what a log-ratio must exceed to be more than rounding (outcomes.noise), NaN where it did not look; and
    whether the two were found to be the same model.
    """
    if reference is None or config.reference_model or config.parity == "off":
        return math.nan, False
    cast = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else None
    eps = rounding(getattr(torch, config.dtype), cast)
    parity, said = look(model, reference, pairs, likelihood, run, eps=eps)
    if parity["passed"]:
        tell(said)
        return outcomes.noise(parity, likelihood.kind), True
    why = (
        f"{said} They should be the same model: check reference_model, dtype, the adapter, and the cached log-probs "
        "(delete reference_cache to score them again), or set parity: warn."
    )
    if config.parity == "stop":
        raise DataError(why)
    tell(f"warning: {why}")
    return outcomes.noise(parity, likelihood.kind), False


def look(
    model: nn.Module, reference: Any, pairs: Sequence[Example], likelihood: Likelihood, run: RunFolder, *, eps: float
) -> tuple[dict[str, Any], str]:
    """The parity of a few pairs, also into the manifest, and the sentence that says it."""
    parity = measure_parity(model, reference, pairs[:PARITY_PAIRS], likelihood, eps=eps)
    if isinstance(reference, LiveReference):
        reference.exact = parity["max_difference"] == 0
    if PartialState().is_main_process:
        run.note(parity=parity)
    unit = "of denoising error" if likelihood.kind == "denoising" else "nats"
    said = (
        f"step 0: policy and reference differ by at most {parity['max_difference']:.3g} {unit} on {parity['n']} pairs "
        f"(noise floor {parity['noise_floor']:.3g})"
    )
    worst = f"; worst is the {parity['side']} side of pair_id {parity['pair_id']}."
    return parity, said if parity["passed"] else said + worst


def rounding(weights: torch.dtype, cast: torch.dtype | None) -> float:
    """One rounding step of what is computed with: of the weights, or of the mixed precision where that is coarser."""
    return max(torch.finfo(weights).eps, torch.finfo(cast or weights).eps)


def measure_parity(
    model: nn.Module, reference: Any, pairs: Sequence[Example], likelihood: Likelihood, *, eps: float
) -> dict[str, Any]:
    """Largest |policy - reference| log-prob in nats, beside the noise of scoring the policy in other batches.

    noise is four times what the two ways differ by, or one rounding step (eps) of an answer's tokens, as independent
    errors of its mean log-prob a token, where that is more (both ways may round alike); the floor is that, and never
    below one rounding step of the largest log-prob; where the reference is sums that another program took in float32,
    nor below what adding up in it may lose. A difference of the two ways of more than the square root of eps,
    in nats a token of a side, is no rounding: then no log-prob of this model is its own.
    """
    together = _logps(model, pairs, likelihood, reference)
    alone = {k: p for pair in pairs for k, (p, _) in _logps(model, [pair], likelihood, None).items()}
    bad = [k[0] for k, values in together.items() if not all(map(math.isfinite, values))]
    if bad:
        raise DataError(
            f"the model's log-probs are not finite for pair_id {', '.join(dict.fromkeys(bad))}. Look for NaN or inf "
            "in its weights, or load it as float32."
        )
    tokens = {(p.pair_id, side): len(p.rows[side].completion_ids) for p in pairs for side in ("chosen", "rejected")}
    noisy = max(together, key=lambda k: abs(together[k][0] - alone[k]) / tokens[k])
    if abs(together[noisy][0] - alone[noisy]) > eps**0.5 * tokens[noisy]:
        raise DataError(
            f"the {noisy[1]} side of pair_id {noisy[0]} has log-prob {alone[noisy]:.6g} alone and "
            f"{together[noisy][0]:.6g} beside other pairs: more than rounding explains ({eps**0.5:.2g} nats a token). "
            "This model's log-probs depend on their neighbours; choose another model, or a wider dtype."
        )
    steps = [eps * abs(p) / tokens[k] ** 0.5 for k, (p, _) in together.items()]
    noise = max(*steps, *(4 * abs(together[k][0] - alone[k]) for k in together))
    floor = max(noise, eps * max(abs(p) for p, _ in together.values()))
    if isinstance(reference, SummedReference):
        floor = max(floor, *(SUM_EPS * tokens[k] * abs(p) for k, (p, _) in together.items()))
    differences = {k: abs(p - r) for k, (p, r) in together.items()}
    worst = max(differences, key=lambda k: differences[k])
    return {
        "noise": noise,
        "noise_floor": floor,
        "max_difference": differences[worst],
        "pair_id": worst[0],
        "side": worst[1],
        "n": len(pairs),
        "passed": differences[worst] <= floor,
    }


def _logps(
    model: nn.Module, pairs: Sequence[Example], likelihood: Likelihood, reference: Any
) -> dict[tuple[str, str], tuple[float, float]]:
    """(pair_id, side) -> (policy, reference) log-prob in nats; NaN without a reference."""
    found = {}
    for scored in score(model, pairs, likelihood=likelihood, reference=reference, batch_tokens=1 << 20):
        values = {name: column.tolist() for name, column in likelihoods(scored.stats).items()}
        for side in ("chosen", "rejected"):
            for pair, p, r in zip(scored.pairs, values[f"{side}_logps"], values[f"ref_{side}_logps"], strict=True):
                found[pair.pair_id, side] = (p, r)
    return found
