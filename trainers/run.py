"""One training run from config to finished log: read, audit, load, check, train, compact."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

from accelerate import PartialState
from safetensors import SafetensorError
from transformers import TrainingArguments, set_seed

from diagnostics.columns import described
from diagnostics.diffusion.denoiser import Denoiser, is_denoiser
from diagnostics.engine import check_ids, engine_of
from diagnostics.errors import DataError, UserError
from diagnostics.fingerprint import rendered_hash
from diagnostics.flag.flagging import EVERY
from diagnostics.manifest import file_hash, now
from diagnostics.processes import hold, share, tell
from diagnostics.run_folder import RunFolder
from diagnostics.token_likelihood import TokenLikelihood
from trainers import denoisers
from trainers.arguments import training_arguments
from trainers.check import alarms, check, check_batches, check_embeddings
from trainers.checkpoint import is_last, step_of
from trainers.config import TrainConfig
from trainers.loop import recipes
from trainers.loop.drawing import Drawing
from trainers.loop.ingredients import Ingredients
from trainers.loop.moved import moved, sample
from trainers.loop.parity import check_parity
from trainers.loop.probe import Probe
from trainers.loop.recorder import Recorder
from trainers.loop.schedule import ProbeSchedule
from trainers.loop.trainer import PreferenceTrainer
from trainers.models import (
    add_lora,
    freeze_vision,
    load_policy,
    load_tokenizer,
    make_savable,
    model_limit,
    quiet,
    tokenizer_hash,
    warn_if_slow,
    weights_hash,
)
from trainers.references import reference_of, reward_model_of
from trainers.resume import look
from trainers.splits import Samples, Splits, data, read_splits
from trainers.track import read_track
from trainers.worlds.image_judges import DIGITS, load_image_judge

START = "probe_start.safetensors"  # the first probe's distributions, for a run that goes on from a checkpoint


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
    cast = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else config.dtype
    warn_if_slow(cast, arguments.device.type)
    track = read_track(config.track) if config.track else None
    audits: dict[str, Any] = {}
    begin = _language if config.likelihood == "tokens" else _denoising
    parts = begin(config, run, audits)
    model, tokenizer, likelihood, splits = parts.model, parts.tokenizer, parts.likelihood, parts.splits
    parts.hashes["rendered"] = rendered_hash([*splits.train, *splits.probe, *splits.heldout])
    check_batches(config, arguments, splits.train)
    check_embeddings(config, splits.train)
    recipe = recipes.recipe(config, arguments, splits.train, splits.gaps)
    started = {"model": weights_hash(model), **parts.hashes}
    files = {"pair_weights": config.pair_weights, "track": config.track}
    files["sample_judge"] = config.sample_judge if config.sample_judge != DIGITS else None
    started |= {name: file_hash(path) for name, path in files.items() if path}
    if checkpoint:
        share(lambda: run.go_on(step_of(Path(checkpoint)), started))
    else:
        share(lambda: run.begin(config.flat() | {"resume": False}, audits))
    audits.clear()  # they hold every text of the data

    policy = model
    if config.freeze_vision:
        freeze_vision(model)
    if config.lora_r:
        add = add_lora if config.likelihood == "tokens" else denoisers.add_adapter
        policy = add(model, r=config.lora_r, alpha=config.lora_alpha, targets=config.lora_targets)
    reference = reference_of(config, policy, splits, arguments, likelihood, started)
    ingredients = Ingredients(
        config.objective, splits.train, likelihood=likelihood, given=splits.given,
        reward_model=reward_model_of(config, arguments, splits, likelihood),
    )  # fmt: skip
    probe = Probe(
        {"probe": splits.probe, "eval": splits.heldout}, tokenizer, likelihood=likelihood, reference=reference,
        track=track, start=run.path / START, resumed=bool(checkpoint),
        responses=config.response_types, seed=config.seed,
    )  # fmt: skip
    schedule = ProbeSchedule(
        run.writer(), probe, tokens=config.tokens, main=main,
        every=config.probe_every or max(1, _total_steps(arguments, len(ingredients.groups)) // 10),
        noise=run.noise if checkpoint and reference is not None else 0.0,
        drawing=parts.drawing,
    )  # fmt: skip
    recorder = Recorder(
        schedule, alarms=alarms(config),
        before=lambda model: check_parity(config, arguments, model, reference, splits.train, likelihood, run),
    )  # fmt: skip
    trainer = _trainer(
        policy, arguments, pairs=splits.train, tokenizer=tokenizer, likelihood=likelihood,
        objective=config.objective, hyperparameters=config.hyperparameters, guard=config.guard,
        guard_strength=config.guard_strength, ingredients=ingredients,
        reference=reference, recorder=recorder, log_kl=config.log_kl, recipe=recipe,
        renewal=recipes.renewal(config, recipe, reference, recorder),
        grad_every=config.grad_every, grad_parameters=config.grad_parameters,
    )  # fmt: skip
    _say_whole(trainer)
    if main and not checkpoint:
        about = _about(config, arguments, splits, started, parts.engine or engine_of(policy).name) | parts.about
        if config.grad_every:
            about |= {"gradients": {"parameters": config.grad_parameters, "pairs": trainer.gradients.way}}
        run.describe(**about, recipes=recipe.said)
    _fit(trainer, run, config, checkpoint)


@dataclass(frozen=True)
class Prepared:
    """What depends on the kind of likelihood. engine, about: for the manifest; engine: "" for that of the model."""

    model: Any
    tokenizer: Any
    likelihood: Any
    splits: Splits
    hashes: dict[str, Any]
    engine: str = ""
    about: dict[str, Any] = field(default_factory=dict)
    drawing: Drawing | None = None


def _language(config: TrainConfig, run: RunFolder, audits: dict[str, Any]) -> Prepared:
    if is_denoiser(config.model):
        raise UserError(f"{config.model} is a denoiser: set likelihood to denoising, or to steps.")
    tokenizer = load_tokenizer(config.model)
    model = load_policy(config.model, dtype=config.dtype)
    if changed := make_savable(model):
        tell(changed)
    splits, hashes = read_splits(config, tokenizer, model_limit(model), run.path, audits)
    check_ids(model, [*splits.train, *splits.probe, *splits.heldout])
    hashes["tokenizer"] = tokenizer_hash(tokenizer)
    return Prepared(model, tokenizer, TokenLikelihood.of(tokenizer), splits, hashes)


def _denoiser(config: TrainConfig) -> Denoiser:
    cache = Path(config.output_dir).parent / "latents"
    return denoisers.load_denoiser(config.model, dtype=config.dtype, cache=cache)


def _denoising(config: TrainConfig, run: RunFolder, audits: dict[str, Any]) -> Prepared:
    model, likelihood = _denoiser(config), denoisers.likelihood_of(config)
    samples = Samples(config, model)
    splits, found, hashes = data(config, samples.audited, samples.given)
    audits |= found
    about = {"likelihood": denoisers.about(model, likelihood), "conventions": denoisers.conventions(likelihood.kind)}
    about["columns"] = denoisers.columns(likelihood.kind)
    told = dict(zip(found["audit.parquet"]["pair_id"], found["audit.parquet"]["prompt"], strict=True))
    drawing = _drawing(config, model, splits, told)
    return Prepared(model, None, likelihood, splits, hashes, denoisers.ENGINE, about, drawing)


def _drawing(config: TrainConfig, model: Denoiser, splits: Splits, told: dict[str, str]) -> Drawing | None:
    """The samples that the denoiser draws on the way, where the config asks for them."""
    if not config.sample_every:
        return None
    judge = load_image_judge(config.sample_judge) if config.sample_judge else None
    pairs, among = splits.probe or splits.train, [*splits.train, *splits.probe]
    found = Drawing(
        pairs, among, every=config.sample_every, count=config.samples, seed=config.seed, said=told, judge=judge
    )
    if judge:
        judge.check(found.known(model), found.asked)
    return found


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
            save(trainer, run_dir / "model")
    if main:
        (run_dir / "model" / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.json says the same
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            run.note(weights_moved=moved(start, policy))
        if not trainer.recorder.stopped:
            run.note(finished={"step": trainer.state.global_step, "at": now()})
            if not any((run_dir / "checkpoints").glob("checkpoint-*")):  # nothing to go on from
                (run_dir / START).unlink(missing_ok=True)
    if trainer.recorder.stopped:
        said = (
            f"stopped by its alarm: {trainer.recorder.stopped}. The log is whole and a checkpoint is saved; --resume "
        )
        tell(f"{said}goes on from it, with or without the alarm, and counts anew.")


def save(trainer: PreferenceTrainer, folder: Path) -> None:
    """The trained weights in the layout in which such a model is loaded."""
    if isinstance(trainer.model, Denoiser):
        if PartialState().is_main_process:
            trainer.model.save(folder)
    else:
        trainer.save_model(str(folder))
        if PartialState().is_main_process and hasattr(trainer.model, "peft_config"):
            denoisers.save_lora(trainer.model, folder)


def _trainer(policy: Any, arguments: TrainingArguments, **parts: Any) -> PreferenceTrainer:
    try:
        return PreferenceTrainer(policy, arguments, **parts)
    except (RuntimeError, ValueError, ImportError) as error:
        raise UserError(f"the training settings do not fit: {' '.join(str(error).split())[:300]}") from None


def _say_whole(trainer: PreferenceTrainer) -> None:
    """Where FSDP is asked for and not done: accelerate shards on accelerators alone, and says nothing of it."""
    if os.environ.get("ACCELERATE_USE_FSDP") == "true" and not trainer.is_fsdp_enabled:
        tell(
            "warning: FSDP was asked for, but accelerate does not shard on this kind of device: each process holds all "
            "weights.",
            file=sys.stderr,
        )


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
        given=config.given(),
        hashes=started,
        reference={"kind": config.reference, "model": config.reference_model or config.model},
        objective={"name": config.objective, **config.hyperparameters},
        reading=splits.reading,
        columns=described(EVERY),
        pairs={"train": len(splits.train), "probe": len(splits.probe), "eval": len(splits.heldout)},
    )
