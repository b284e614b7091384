"""The models that a run holds beside its policy, as its config asks for them: the reference, and a reward model."""

from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import TrainingArguments

from diagnostics.diffusion.denoiser import Denoiser
from diagnostics.diffusion.likelihood import denoiser_of
from diagnostics.engine import check_ids, engine_of
from diagnostics.errors import UserError
from diagnostics.likelihood import Likelihood
from trainers import objectives
from trainers.arguments import shards
from trainers.config import TrainConfig
from trainers.denoisers import load_denoiser
from trainers.loop.reference import LiveReference, precompute
from trainers.models import adapter_off, load_policy, weights_hash
from trainers.splits import Splits


def reference_of(
    config: TrainConfig,
    policy: Any,
    splits: Splits,
    arguments: TrainingArguments,
    likelihood: Likelihood,
    started: dict[str, Any],
) -> Any:
    """The reference as the config asks for it: the model, its log-probs from disk, or None."""
    if config.reference == "none":
        return None
    if config.reference == "live" and config.lora_r and not config.reference_model:
        return LiveReference(policy, likelihood, adapter=True)
    if config.reference == "live":
        load: Any = load_policy if config.likelihood == "tokens" else load_denoiser
        frozen = load(config.reference_model or config.model, dtype=config.dtype)
        if isinstance(frozen, Denoiser):
            _require_alike(config, policy, frozen)
        frozen.requires_grad_(False)
        return LiveReference(nn.Module.to(frozen, arguments.device), likelihood)
    model = load_policy(config.reference_model, dtype=config.dtype) if config.reference_model else policy
    cast = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "none"
    nn.Module.to(model, arguments.device)
    if not arguments.torch_compile and not shards():  # scored as the policy will be run, so that both round alike
        likelihood.prepare(model)
    weights = weights_hash(model) if config.reference_model else started["model"]
    key = {"model": weights, "tokenizer": started["tokenizer"], "dtype": config.dtype, "autocast": cast}
    key |= {"engine": engine_of(model).name}
    wanted = torch.bfloat16 if cast == "bf16" else torch.float16
    # the training pairs last: they may hold further rows, which the same pairs in the probe do not
    everything = {p.pair_id: p for p in (*splits.probe, *splits.heldout, *splits.train)}
    folder = config.reference_cache or str(Path(config.output_dir).parent / "ref_logps")
    with torch.autocast(arguments.device.type, dtype=wanted, enabled=cast != "none"), adapter_off(model):
        return precompute(model, list(everything.values()), likelihood=likelihood, folder=folder, key=key)


def _require_alike(config: TrainConfig, policy: Any, reference: Denoiser) -> None:
    """UserError where the reference predicts something else, or at other shares of noise: their errors at one draw
    would be of two things."""
    own = denoiser_of(policy)
    if own.target != reference.target or (own.target != "flow" and not torch.equal(own.alphas, reference.alphas)):
        raise UserError(
            f"{config.reference_model} predicts '{reference.target}' and {config.model} '{own.target}', or their noise "
            "schedules differ: a reference is a model of the same kind."
        )


def reward_model_of(config: TrainConfig, arguments: TrainingArguments, splits: Splits, likelihood: Likelihood) -> Any:
    """The already trained policy whose token rewards the objective reads, or None."""
    if "reward model" not in objectives.needs(config.objective) or not config.reward_model:
        return None
    model = load_policy(config.reward_model, dtype=config.dtype)
    check_ids(model, splits.train)
    model.requires_grad_(False)
    likelihood.prepare(nn.Module.to(model, arguments.device))
    return LiveReference(model, likelihood)
