"""A run's TrainingArguments of transformers, tried before anything is read or trained."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments, get_scheduler

from diagnostics.errors import UserError
from trainers.config import TrainConfig
from trainers.values import shown


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """transformers' TrainingArguments for a run, whose optimizer and schedule were tried on one number; what does not
    work ends in a UserError that names it."""
    values = dict(config.training)
    values.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    values.setdefault("use_cpu", not torch.accelerator.is_available())
    values["output_dir"] = str(Path(config.output_dir) / "checkpoints")
    fixed = {"seed": config.seed, "remove_unused_columns": False, "eval_strategy": "no", "disable_tqdm": True}
    try:
        arguments = TrainingArguments(**(values | fixed))
        _try_optimizer(arguments)
    except Exception as error:  # whatever a library makes of a setting, the setting is the user's
        raise UserError(_does_not_fit(values, error)) from None
    if arguments.torch_compile and arguments.device.type == "cpu":
        raise UserError("torch_compile: no run on a CPU is compiled (none came to its first step). Leave it out.")
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs: one process each, by `accelerate launch`
    return arguments


def shards() -> bool:
    """Whether accelerate's launcher asks for weights in parts: then a model is whole only inside its own forward, and
    is run in the plain way."""
    return any(os.environ.get(f"ACCELERATE_USE_{kind}") == "true" for kind in ("FSDP", "DEEPSPEED"))


def _try_optimizer(arguments: TrainingArguments) -> None:
    """Make optimizer and schedule for a single weight and take three steps. Some optimizers need the model itself."""
    if arguments.optim_target_modules or str(getattr(arguments.optim, "value", arguments.optim)).endswith("lomo"):
        return
    kind, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = kind([weight], **settings)
    schedule = get_scheduler(
        arguments.lr_scheduler_type, optimizer, num_warmup_steps=arguments.get_warmup_steps(3), num_training_steps=3,
        scheduler_specific_kwargs=arguments.lr_scheduler_kwargs,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    if isinstance(schedule, torch.optim.lr_scheduler.LambdaLR):
        for _ in range(3):
            optimizer.step()
            schedule.step()


def _does_not_fit(values: dict[str, Any], error: Exception) -> str:
    """Why the settings cannot be used, and the first key that cannot be used even alone."""
    key = next((f"{key} is {shown(values[key])}; " for key in values if not _works_alone(key, values[key])), "")
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"the training settings do not fit: {key}{reason}"


def _works_alone(key: str, value: Any) -> bool:
    try:
        _try_optimizer(TrainingArguments(**{"output_dir": "unused", "use_cpu": True} | {key: value}))
    except Exception:
        return False
    return True
