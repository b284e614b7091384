"""One training run from config to finished log: read, audit, load, check, train, compact."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import nn
from transformers import TrainingArguments, set_seed

from diagnostics.columns import described
from diagnostics.engine import check_ids, engine_of
from diagnostics.errors import DataError, UserError
from diagnostics.fingerprint import rendered_hash
from diagnostics.flagging import EVERY
from diagnostics.likelihood import Likelihood
from diagnostics.manifest import file_hash
from diagnostics.processes import hold, share, tell
from diagnostics.run_folder import RunFolder
from diagnostics.sequences import Example
from diagnostics.token_likelihood import TokenLikelihood
from trainers import objectives
from trainers.arguments import training_arguments
from trainers.card import standard_pair
from trainers.checkpoint import is_last, step_of
from trainers.config import TrainConfig
from trainers.loop import recipes
from trainers.loop.alarm import Alarms, parse
from trainers.loop.columns import PROBE_KEYS, STEP_KEYS
from trainers.loop.ingredients import Ingredients, by_prompt
from trainers.loop.moved import moved, sample
from trainers.loop.parity import check_parity
from trainers.loop.probe import Probe
from trainers.loop.recorder import Recorder
from trainers.loop.reference import LiveReference, precompute
from trainers.loop.schedule import ProbeSchedule
from trainers.loop.trainer import PreferenceTrainer
from trainers.models import (
    adapter_off,
    add_lora,
    load_policy,
    load_tokenizer,
    make_savable,
    model_limit,
    quiet,
    tokenizer_hash,
    weights_hash,
)
from trainers.resume import look
from trainers.splits import Splits, read_splits
from trainers.track import read_track

GRADIENT_KEYS = ("grad/", "grad_total/", "slack/", "grad_push_ratio/", "incentive_ratio/", "gradient_cosine/")


def train(config: TrainConfig) -> Path:
    """Run the whole job and return the run folder. Same config and seed, same log.

    Nothing is written before data, model and settings proved usable, and nothing while another process writes there.
    """
    quiet()
    check(config)
    arguments, run = training_arguments(config), RunFolder(config.output_dir)
    with hold(run.path, "train"):
        checkpoint, finished = share(lambda: look(config, run, arguments.world_size))
        if not finished:
            _train(config, arguments, run, checkpoint)
    return run.path


def _train(config: TrainConfig, arguments: TrainingArguments, run: RunFolder, checkpoint: str | None) -> None:
    """Prepare everything, then train, from the checkpoint where there is one."""
    main = arguments.process_index == 0
    set_seed(config.seed)
    tokenizer = load_tokenizer(config.model)
    model = load_policy(config.model, dtype=config.dtype)
    if changed := make_savable(model):
        tell(changed)
    track = read_track(config.track) if config.track else None
    audits: dict[str, Any] = {}
    splits, hashes = read_splits(config, tokenizer, model_limit(model), run.path, audits)
    everything = [*splits.train, *splits.probe, *splits.heldout]
    check_ids(model, everything)
    hashes["rendered"] = rendered_hash(everything)
    _check_batches(config, arguments, splits.train)
    recipe = recipes.recipe(config, arguments, splits.train, splits.gaps)
    started = {"model": weights_hash(model), "tokenizer": tokenizer_hash(tokenizer), **hashes}
    files = {"pair_weights": config.pair_weights, "track": config.track}
    started |= {name: file_hash(path) for name, path in files.items() if path}
    if checkpoint:
        share(lambda: run.go_on(step_of(Path(checkpoint)), started))
    else:
        share(lambda: run.begin(config.flat() | {"resume": False}, audits))
    audits.clear()  # they hold every text of the data

    policy = model
    if config.lora_r:
        policy = add_lora(model, r=config.lora_r, alpha=config.lora_alpha, targets=config.lora_targets)
    likelihood = TokenLikelihood.of(tokenizer)
    reference = _reference(config, policy, splits, arguments, likelihood, started)
    ingredients = Ingredients(
        config.objective, splits.train, likelihood=likelihood, given=splits.given,
        reward_model=_reward_model(config, arguments, splits, likelihood),
    )  # fmt: skip
    probe = Probe(
        {"probe": splits.probe, "eval": splits.heldout}, tokenizer, likelihood=likelihood, reference=reference,
        track=track, start=run.path / "probe_start.safetensors", resumed=bool(checkpoint),
        responses=config.response_types, seed=config.seed,
    )  # fmt: skip
    schedule = ProbeSchedule(
        run.writer(), probe, tokens=config.tokens, main=main,
        every=config.probe_every or max(1, _total_steps(arguments, len(ingredients.groups)) // 10),
        noise=run.noise if checkpoint and reference is not None else 0.0,
    )  # fmt: skip
    recorder = Recorder(
        schedule, alarms=_alarms(config),
        before=lambda model: check_parity(config, arguments, model, reference, splits.train, likelihood, run),
    )  # fmt: skip
    trainer = _trainer(
        policy, arguments, pairs=splits.train, tokenizer=tokenizer, likelihood=likelihood,
        objective=config.objective, hyperparameters=config.hyperparameters, ingredients=ingredients,
        reference=reference, recorder=recorder, log_kl=config.log_kl, recipe=recipe,
        renewal=recipes.renewal(config, recipe, reference, recorder),
        grad_every=config.grad_every, grad_parameters=config.grad_parameters,
    )  # fmt: skip
    if main and not checkpoint:
        about = _about(config, arguments, splits, started, engine_of(policy).name)
        if config.grad_every:
            about |= {"gradients": {"parameters": config.grad_parameters, "pairs": trainer.gradients.way}}
        run.describe(**about, recipes=recipe.said)
    _fit(trainer, run, config, checkpoint)


def _fit(trainer: PreferenceTrainer, run: RunFolder, config: TrainConfig, checkpoint: str | None) -> None:
    """Train, close the log and save the weights; last, the manifest says that the run is finished."""
    run_dir, main = run.path, PartialState().is_main_process
    policy: Any = trainer.model
    start = sample(policy)
    with _one_sentence(run_dir):
        try:
            if checkpoint and is_last(Path(checkpoint)):
                trainer.load(checkpoint)  # stopped after its last step
            else:
                trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            trainer.recorder.writer.close()
        if main:
            run.compact()
        if config.save_model:
            trainer.save_model(str(run_dir / "model"))
    if main:
        (run_dir / "model" / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.json says the same
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            run.note(weights_moved=moved(start, policy))
        if not trainer.recorder.stopped:
            run.note(finished={"step": trainer.state.global_step})
    if trainer.recorder.stopped:
        said = (
            f"stopped by its alarm: {trainer.recorder.stopped}. The log is whole and a checkpoint is saved; --resume "
        )
        tell(f"{said}goes on from it, with or without the alarm, and counts anew.")


def check(config: TrainConfig) -> None:
    """Everything about a config that can be refused without reading data or model."""
    if config.training.get("max_steps") == 0:
        raise UserError("max_steps is 0; give 1 or more, or leave it out to train for num_train_epochs.")
    _try_objective(config)
    recipes.check(config)
    _alarms(config)


def _alarms(config: TrainConfig) -> Alarms:
    conditions = parse(config.alarm or "", probed=PROBE_KEYS, steps=STEP_KEYS)
    unmeasured = [c.key for c in conditions if c.key.startswith(GRADIENT_KEYS) and not config.grad_every]
    if unmeasured:
        raise UserError(f"alarm: {unmeasured[0]} is measured only with grad_every; set it to 10, for example.")
    return Alarms(conditions, stop=config.alarm_action == "stop")


def _try_objective(config: TrainConfig) -> None:
    """A wrong hyperparameter, and a reference of the wrong kind, are refused now, not at the first step."""
    needs = objectives.needs(config.objective)
    if "reference" in needs and config.reference == "none":
        raise UserError(f"objective '{config.objective}' needs a reference; set reference to live or precomputed.")
    for word in ("kl", "mismatched"):
        if word in needs and config.reference != "live":
            raise UserError(f"objective '{config.objective}' needs {objectives.WORDS[word]}: set reference to live.")
    if "reward model" in needs and not config.reward_model:
        raise UserError(f"objective '{config.objective}' needs {objectives.WORDS['reward model']}; set reward_model.")
    try:
        losses = objectives.load(config.objective)(standard_pair(0.0, 0.0), **config.hyperparameters).losses
    except (ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"objective '{config.objective}' cannot work with its hyperparameters ({reason}).") from None
    if not losses.isfinite().all():
        raise UserError(
            f"objective '{config.objective}' gives no finite loss with its hyperparameters: check "
            f"{', '.join(config.hyperparameters) or 'them'}."
        )


def _reward_model(config: TrainConfig, arguments: TrainingArguments, splits: Splits, likelihood: Likelihood) -> Any:
    """The already trained policy whose token rewards the objective reads, or None."""
    if "reward model" not in objectives.needs(config.objective) or not config.reward_model:
        return None
    model = load_policy(config.reward_model, dtype=config.dtype)
    check_ids(model, splits.train)
    model.requires_grad_(False)
    likelihood.prepare(nn.Module.to(model, arguments.device))
    return LiveReference(model, likelihood)


def _trainer(policy: Any, arguments: TrainingArguments, **parts: Any) -> PreferenceTrainer:
    try:
        return PreferenceTrainer(policy, arguments, **parts)
    except (RuntimeError, ValueError, ImportError) as error:
        raise UserError(f"the training settings do not fit: {' '.join(str(error).split())[:300]}") from None


@contextmanager
def _one_sentence(run_dir: Path) -> Iterator[None]:
    """A disk that fills up, or a checkpoint that holds pickled code, in one sentence; the log keeps its rows."""
    try:
        yield
    except UnpicklingError:
        raise DataError(
            f"{run_dir}: a checkpoint's file holds more than plain data, which could run code; it was not loaded. "
            "Remove that checkpoint, then go on with --resume auto."
        ) from None
    except (OSError, SafetensorError, RuntimeError) as error:
        said = " ".join(str(error).split())
        if isinstance(error, RuntimeError) and not any(word in said for word in _TORCH_SAVE):
            raise
        if not run_dir.is_dir():
            raise DataError(f"{run_dir}: this run folder was removed while the run was writing to it.") from None
        raise DataError(
            f"{run_dir}: cannot write ({said[:300]}). The log is kept; free some space, then go on with --resume auto."
        ) from None


_TORCH_SAVE = ("inline_container", "unexpected pos", "iostream error", "PytorchStreamWriter", "Parent directory")


def _check_batches(config: TrainConfig, arguments: TrainingArguments, pairs: Sequence[Example]) -> None:
    """UserError where every batch would be dropped for not being full."""
    batch = arguments.per_device_train_batch_size * arguments.world_size
    groups = len(by_prompt(pairs)) if "lists" in objectives.needs(config.objective) else len(pairs)
    if arguments.dataloader_drop_last and groups < batch:
        raise UserError(
            f"dataloader_drop_last drops every batch: {batch} to a batch, and {groups} to train on. Leave it out, or "
            "lower per_device_train_batch_size."
        )


def _reference(
    config: TrainConfig,
    policy: Any,
    splits: Splits,
    arguments: TrainingArguments,
    likelihood: Likelihood,
    started: dict[str, Any],
) -> Any:
    """The reference as the config asks for it."""
    if config.reference == "none":
        return None
    if config.reference == "live" and config.lora_r and not config.reference_model:
        return LiveReference(policy, likelihood, adapter=True)
    if config.reference == "live":
        frozen = load_policy(config.reference_model or config.model, dtype=config.dtype)
        frozen.requires_grad_(False)
        return LiveReference(nn.Module.to(frozen, arguments.device), likelihood)
    model = load_policy(config.reference_model, dtype=config.dtype) if config.reference_model else policy
    cast = "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "none"
    nn.Module.to(model, arguments.device)
    if not arguments.torch_compile:  # scored as the policy will be run, so that both round alike
        likelihood.prepare(model)
    key = {"model": weights_hash(model), "tokenizer": started["tokenizer"], "dtype": config.dtype, "autocast": cast}
    key |= {"engine": engine_of(model).name}
    wanted = torch.bfloat16 if cast == "bf16" else torch.float16
    everything = {p.pair_id: p for p in (*splits.train, *splits.probe, *splits.heldout)}
    folder = config.reference_cache or str(Path(config.output_dir).parent / "ref_logps")
    with torch.autocast(arguments.device.type, dtype=wanted, enabled=cast != "none"), adapter_off(model):
        return precompute(model, list(everything.values()), likelihood=likelihood, folder=folder, key=key)


def _total_steps(arguments: TrainingArguments, pairs: int) -> int:
    if arguments.max_steps > 0:
        return arguments.max_steps
    batch = arguments.per_device_train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    return int(max(1, -(-pairs // batch)) * arguments.num_train_epochs)


def _about(
    config: TrainConfig, arguments: TrainingArguments, splits: Splits, started: dict[str, Any], engine: str
) -> dict[str, Any]:
    cast = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "none"
    return dict(
        device=str(arguments.device),
        dtypes={"weights": config.dtype, "autocast": cast, "reductions": "float64"},
        engine=engine,
        seeds={"seed": config.seed},
        hashes=started,
        reference={"kind": config.reference, "model": config.reference_model or config.model},
        objective={"name": config.objective, **config.hyperparameters},
        reading=splits.reading,
        columns=described(EVERY),
        pairs={"train": len(splits.train), "probe": len(splits.probe), "eval": len(splits.heldout)},
    )
