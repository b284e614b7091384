"""What a run on a denoiser has in the place of a language model's parts: the model from its folder, its adapter and
its place in the manifest."""

import copy
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from diagnostics.audit import Audit
from diagnostics.columns import Column, described
from diagnostics.diffusion.denoiser import Denoiser, MLPDenoiser
from diagnostics.diffusion.likelihood import DenoisingLikelihood
from diagnostics.diffusion.pipelines import LORA, DiffusersDenoiser, load_pipeline
from diagnostics.diffusion.read import read_samples
from diagnostics.diffusion.steps import StepLikelihood
from diagnostics.engine import innermost
from diagnostics.errors import DataError, UserError
from diagnostics.files import read_json
from diagnostics.flag import samples
from trainers import objectives
from trainers.config import TrainConfig
from trainers.layouts import has_denoiser, net_of
from trainers.models import adapter_base, check_adapter
from trainers.weights import load_weights

ENGINE = "every draw of time and noise is a row"


def likelihood_of(config: TrainConfig) -> DenoisingLikelihood:
    """The likelihood as a config asks for it."""
    if config.likelihood == "steps":
        return StepLikelihood()
    path = objectives.path(config.objective) if config.path == "objective" else config.path
    return DenoisingLikelihood(draws=config.draws, train_draws=config.train_draws, seed=config.seed, path=path)


def load_denoiser(name: str, *, dtype: str = "float32", cache: Path | None = None) -> Denoiser:
    """A denoiser from its folder, in eval mode: one of ours (config.json names `denoiser`), or a folder of diffusers, a
    pipeline's or one model's; of an adapter, its base model with the adapter merged into it. Only safetensors are read.
    cache: a folder for latents of images. Raises DataError for a folder that cannot be loaded safely and whole."""
    if base := adapter_base(name):
        return _merged(name, load_denoiser(base, dtype=dtype, cache=cache))
    folder = Path(name)
    if not folder.is_dir():
        raise DataError(f"{name}: no such model folder. Give the folder of a denoiser, or of a diffusers pipeline.")
    config = read_json(folder / "config.json") if (folder / "config.json").exists() else {}
    if config.get("denoiser") == "mlp":
        model = _mlp(folder, config)
    elif "_class_name" in config or (folder / "model_index.json").exists():
        model = load_pipeline(folder)
    else:
        raise DataError(
            f"{name}: no denoiser (its config.json names no `denoiser`, and it is no folder of diffusers). A language "
            "model is trained with likelihood tokens."
        )
    model.cache = cache
    model.name_or_path = name  # type: ignore[assignment]  # an adapter names it as its base
    return model.to(getattr(torch, dtype)).eval()


def audit_samples(data: str, model: str, *, split: str | None = None, media_folder: str | None = None) -> Audit:
    """Every row of a data set, as a denoiser's folder reads it."""
    return read_samples(data, load_denoiser(model), split=split, folder=media_folder)


def check_checkpoint(name: str) -> None:
    """DataError for a folder that is no checkpoint of a denoiser, as far as that can be told without loading it."""
    if not Path(name).is_dir():
        raise DataError(f"{name}: no such folder. Give a checkpoint of a denoiser.")
    if not has_denoiser(Path(name)):
        raise DataError(
            f"{name}: no checkpoint of a denoiser: it holds neither {LORA}, nor a folder unet or transformer, nor a "
            "config.json, an adapter_config.json or a model_index.json."
        )


def load_checkpoint(name: str, base: Denoiser, *, dtype: str = "float32") -> Denoiser:
    """A trainer's checkpoint of `base`: a LoRA or a net as diffusers' scripts save them, put into the base's pipeline,
    or whatever load_denoiser reads. DataError where it predicts otherwise than the base, or takes other samples."""
    folder, whole = Path(name), (Path(name) / "model_index.json").exists()
    if not whole and (net_of(folder) or (folder / LORA).is_file()):
        if not isinstance(base, DiffusersDenoiser):
            raise DataError(f"{name}: is a checkpoint of diffusers, and the reference is none of its models.")
        model = base.with_weights(folder, net_of(folder))
    elif (folder / "trainer_state.json").exists() and not (folder / "adapter_config.json").exists():
        model = _with_state(folder, base)
    else:
        model = load_denoiser(name, dtype=dtype)
    if (model.target, model.shape) != (base.target, base.shape):
        ours, theirs = (f"{m.target} of {m.shape} numbers" for m in (model, base))
        raise DataError(f"{name}: predicts {ours}, and the reference {theirs}.")
    return model.to(getattr(torch, dtype)).eval()


def _with_state(folder: Path, base: Denoiser) -> Denoiser:
    """A copy of the base with all its weights from a checkpoint that a run of ours left to go on from."""
    if isinstance(base, DiffusersDenoiser):
        model: Denoiser = DiffusersDenoiser(copy.deepcopy(base.net), base.scheduler, base.parts)
    else:
        model = copy.deepcopy(base)
    load_weights(model, folder)
    return model


def _mlp(folder: Path, config: dict[str, Any]) -> MLPDenoiser:
    try:
        model = MLPDenoiser(**{k: v for k, v in config.items() if k != "denoiser"})
        model.load_state_dict(load_file(folder / "model.safetensors"))
    except (OSError, SafetensorError, TypeError, ValueError, RuntimeError) as error:
        raise DataError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:200]}).") from None
    return model


def _merged(name: str, base: Denoiser) -> Denoiser:
    import peft

    try:
        model: Any = peft.PeftModel(base, peft.PeftConfig.from_pretrained(name))  # pyright: ignore[reportArgumentType]
        found = model.load_adapter(name, "default")
    except Exception as error:  # whatever an adapter's files make peft raise, they cannot be used
        raise DataError(f"{name}: the adapter cannot be loaded ({' '.join(str(error).split())[:200]}).") from None
    check_adapter(name, found, "Name the model that it was trained on in adapter_config.json.")
    merged = model.merge_and_unload().eval().requires_grad_(True)
    merged.name_or_path = name
    return merged


def add_adapter(model: Denoiser, *, r: int, alpha: int, targets: str) -> Any:
    """The denoiser with a fresh LoRA adapter (peft); its reference is itself with the adapter off. `all-linear` is
    every linear layer but the last of the model."""
    import peft

    for words in ("Unable to fetch remote file", "Could not find a config file"):  # of a vocabulary, which it has none
        warnings.filterwarnings("ignore", message=words, module="peft")
    wanted: Any = [t.strip() for t in targets.split(",")]
    if targets == "all-linear":
        wanted = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][:-1]
    try:
        return peft.get_peft_model(model, peft.LoraConfig(r=r, lora_alpha=alpha, target_modules=wanted))  # type: ignore
    except ValueError as error:
        raise UserError(f"lora_targets '{targets}' does not fit this model ({str(error).splitlines()[0]}).") from None


def save_lora(policy: Any, folder: Path) -> None:
    """The adapter of a model of diffusers once more, as `pipe.load_lora_weights(folder)` reads it. That takes alpha for
    the rank, so the factor alpha / r is in the weights."""
    from peft import get_peft_model_state_dict

    if not isinstance(innermost(policy), DiffusersDenoiser):
        return
    config, (prefix, kept) = policy.peft_config["default"], ("base_model.model.net.", {})
    name = "unet" if innermost(policy).kind.startswith("UNet") else "transformer"
    for key, value in get_peft_model_state_dict(policy).items():
        scale = config.lora_alpha / config.r if ".lora_B." in key else 1.0
        kept[f"{name}.{key.removeprefix(prefix)}"] = (value.detach() * scale).contiguous().cpu()
    save_file(kept, folder / LORA)


def about(model: Denoiser, likelihood: DenoisingLikelihood) -> dict[str, Any]:
    """The likelihood for manifest.json."""
    kind = {"kind": likelihood.kind, "target": model.target, "times": model.steps}
    if likelihood.kind == "steps":
        return kind | {"sampler": "DDIM, eta 1"}
    kind |= {"path": likelihood.path}
    return kind | {"draws": likelihood.draws, "train_draws": likelihood.train_draws, "seed": likelihood.seed}


def conventions(kind: str) -> dict[str, str]:
    """What the manifest says of this kind of likelihood otherwise than of tokens."""
    return CONVENTIONS if kind == "denoising" else CONVENTIONS | STEPS


def columns(kind: str) -> dict[str, Any]:
    """What the columns of a denoiser's log are, as manifest.json holds them: those that it has."""
    if kind == "denoising":
        unit, what = "", "minus the denoising error"
        apart = ("deviation", "mean squared difference of the outputs of policy and reference")
    else:
        unit, what = "nats", "log-prob of the chain"
        apart = ("KL of the steps", "of both models' Gaussians, mean over numbers")
    found = {
        "common_mode": Column("common mode", unit, "mean of the two sides' changes since the reference"),
        "logratio_margin": Column("margin", unit, "change of the chosen side less that of the rejected one"),
    }
    for side in ("chosen", "rejected"):
        found[f"{side}_logratios"] = Column(f"change, {side}", unit, f"{what}: policy less reference")
        same = {"kl": "", "kl_reverse": "; the same number in both directions"}
        found |= {f"{side}_{key}": Column(f"{apart[0]}, {side}", unit, apart[1] + more) for key, more in same.items()}
    return described(found | samples.COLUMNS)


CONVENTIONS = {
    "logps": "minus the denoising error: the mean over the sample's numbers of (output - target)^2, averaged over the "
    "draws of time and noise; it has no unit and is no log-prob",
    "length": "1: a sample is one answer",
    "kl": "the deviation: the mean squared difference of the policy's and the reference's outputs, averaged over the "
    "draws; it is no KL and has no nats, and kl_reverse is the same number",
    "fell": "the denoising error rose by more than 1e-4 and by more than the noise at the start (parity): over the "
    "reference's in steps.jsonl, over that of step 0 on the pages",
    "rewards": "the objective's implicit rewards (beta / 2 * (reference - policy) errors for Diffusion-DPO)",
    "push_ratio": "NaN: a denoiser gives no probability",
    **dict.fromkeys(
        ("ches_score", "grad", "chosen_grad_norm", "slack", "grad_push_ratio"), "NaN: not measured of a denoiser"
    ),
    "train rows": "measured in the forward pass of update `step`, with the weights before that update and the draws of "
    "that update alone; probe and eval rows have the fixed draws",
}

STEPS = {
    "logps": "sum over sampling steps of the mean over the sample's numbers of the Gaussian log-prob of DDIM (eta 1): "
    "nats a number",
    "kl": "sum over steps of the KL of the two Gaussians, mean over the sample's numbers; kl_reverse is the same",
    "fell": "the log-prob is lower by more than 0.01 and by more than the noise at the start (parity): than the "
    "reference's in steps.jsonl, than at step 0 on the pages",
    "train rows": "measured in the forward pass of update `step`, with the weights before that update",
}
