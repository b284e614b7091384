"""One training run from config to finished log: read, audit, load, check, train, compact."""

import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from torch import nn
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from diagnostics import outcomes
from diagnostics.audit import Audit, audit_pairs, skip_length_gaps
from diagnostics.engine import check_ids, engine_of
from diagnostics.errors import DataError, UserError
from diagnostics.fingerprint import data_hash, rendered_hash
from diagnostics.folder import contents, set_aside
from diagnostics.likelihood import Likelihood
from diagnostics.manifest import file_hash, manifest
from diagnostics.pair_file import read_once
from diagnostics.pairs import read_pairs
from diagnostics.processes import hold, share, tell
from diagnostics.runlog import RunLogWriter, compact, drop_after, read_json, read_run, write_frame, write_json
from diagnostics.scoring import score
from diagnostics.sequences import Example
from diagnostics.token_likelihood import TokenLikelihood
from trainers import objectives, recipes
from trainers.alarm import Alarms, parse
from trainers.card import standard_pair
from trainers.checkpoint import is_last, newest, step_of
from trainers.config import TrainConfig, read_track, training_arguments
from trainers.given import cleaned, gather, score_gaps
from trainers.ingredients import Given, Ingredients, by_prompt
from trainers.models import (
    adapter_off,
    add_lora,
    load_policy,
    load_tokenizer,
    longest,
    make_savable,
    model_limit,
    quiet,
    tokenizer_hash,
    weights_hash,
)
from trainers.moved import moved, sample
from trainers.probe import Probe
from trainers.recorder import PROBE_KEYS, STEP_KEYS, Recorder
from trainers.reference import LiveReference, precompute
from trainers.trainer import PreferenceTrainer

PARITY_PAIRS = 8
GRADIENT_KEYS = ("grad/", "grad_total/", "slack/", "grad_push_ratio/", "incentive_ratio/", "gradient_cosine/")


@dataclass(frozen=True)
class Splits:
    """Which pairs train, which are probed (training pairs, unless probe_data says which), and which are held out."""

    train: list[Example]
    probe: list[Example]
    heldout: list[Example]
    given: Given
    gaps: list[float]  # score gaps of the training pairs; empty unless a curriculum orders them
    reading: dict[str, Any]  # how the data's rows were read


def train(config: TrainConfig) -> Path:
    """Run the whole job and return the run folder. Same config and seed, same log.

    Nothing is written before data, model and settings proved usable, and nothing while another process writes there.
    """
    quiet()
    check(config)
    arguments, run_dir = training_arguments(config), Path(config.output_dir)
    with hold(run_dir, "train"):
        checkpoint, finished = share(lambda: _look(config, run_dir, arguments.world_size))
        if not finished:
            _train(config, arguments, run_dir, checkpoint)
    return run_dir


def _train(config: TrainConfig, arguments: TrainingArguments, run_dir: Path, checkpoint: str | None) -> None:
    """Prepare everything, then train, from the checkpoint where there is one."""
    main = arguments.process_index == 0
    set_seed(config.seed)
    tokenizer = load_tokenizer(config.model)
    model = load_policy(config.model, dtype=config.dtype)
    if changed := make_savable(model):
        tell(changed)
    track = read_track(config.track) if config.track else None
    audits: dict[str, Any] = {}
    splits, hashes = _data_once(config, tokenizer, model_limit(model), run_dir, audits)
    everything = [*splits.train, *splits.probe, *splits.heldout]
    check_ids(model, everything)
    hashes["rendered"] = rendered_hash(everything)
    _check_batches(config, arguments, splits.train)
    recipe = recipes.recipe(config, arguments, splits.train, splits.gaps)
    started = {"model": weights_hash(model), "tokenizer": tokenizer_hash(tokenizer), **hashes}
    files = {"pair_weights": config.pair_weights, "track": config.track}
    started |= {name: file_hash(path) for name, path in files.items() if path}
    share(lambda: _open_folder(config, run_dir, checkpoint, audits, started))
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
    writer = RunLogWriter(run_dir)
    recorder = Recorder(
        writer,
        Probe(
            {"probe": splits.probe, "eval": splits.heldout}, tokenizer, likelihood=likelihood,
            reference=reference, track=track, start=run_dir / "probe_start.safetensors", resumed=bool(checkpoint),
            responses=config.response_types, seed=config.seed,
        ),
        probe_every=config.probe_every or max(1, _total_steps(arguments, len(ingredients.groups)) // 10),
        tokens=config.tokens,
        main=main,
        before=lambda model: _check_parity(config, arguments, model, reference, splits, likelihood),
        noise=_known_noise(run_dir, reference) if checkpoint else 0.0,
        alarms=_alarms(config),
    )  # fmt: skip
    trainer = _trainer(
        policy, arguments, pairs=splits.train, tokenizer=tokenizer, likelihood=likelihood,
        objective=config.objective, hyperparameters=config.hyperparameters, ingredients=ingredients,
        reference=reference, recorder=recorder, log_kl=config.log_kl, recipe=recipe,
        renewal=recipes.renewal(config, recipe, reference, recorder),
        grad_every=config.grad_every, grad_parameters=config.grad_parameters,
    )  # fmt: skip
    if main and not checkpoint:
        about = _manifest(config, arguments, splits, started, engine_of(policy).name)
        if config.grad_every:
            about |= {"gradients": {"parameters": config.grad_parameters, "pairs": trainer.gradients.way}}
        write_json(run_dir / "manifest.json", about | {"recipes": recipe.said})
    _fit(trainer, writer, config, checkpoint)


def _fit(trainer: PreferenceTrainer, writer: RunLogWriter, config: TrainConfig, checkpoint: str | None) -> None:
    """Train, close the log and save the weights; last, the manifest says that the run is finished."""
    run_dir, main = Path(config.output_dir), PartialState().is_main_process
    policy: Any = trainer.model
    start = sample(policy)
    with _one_sentence(run_dir):
        try:
            if checkpoint and is_last(Path(checkpoint)):
                trainer.load(checkpoint)  # stopped after its last step
            else:
                trainer.train(resume_from_checkpoint=checkpoint)
        finally:
            writer.close()
        if main:
            compact(run_dir)
        if config.save_model:
            trainer.save_model(str(run_dir / "model"))
    if main:
        (run_dir / "model" / "training_args.bin").unlink(missing_ok=True)  # a pickle; config.json says the same
        if not (trainer.is_fsdp_enabled or trainer.is_deepspeed_enabled):
            _note(run_dir, weights_moved=moved(start, policy))
        if not trainer.recorder.stopped:
            _note(run_dir, finished={"step": trainer.state.global_step})
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


def _look(config: TrainConfig, run_dir: Path, processes: int) -> tuple[str | None, bool]:
    """The checkpoint to go on from, if any, and whether the run is finished; nothing of the log is changed yet."""
    fresh = config.resume in (False, "auto")
    if fresh and not contents(run_dir):
        return None, False
    if fresh and _never_began(run_dir):
        tell(f"{run_dir}: a start that ended before it measured anything is set aside.")
        return None, False
    if not config.resume:
        raise UserError(
            f"{run_dir}: this run folder exists already. Choose another output_dir, or go on with --resume auto."
        )
    if not (run_dir / "config.json").exists():
        raise UserError(f"{run_dir}: no run to resume in this folder. Start one in an output_dir of its own.")
    _same_config(config, read_json(run_dir / "config.json"), run_dir)
    log = read_run(run_dir)
    last = int(max(log.steps["step"])) if len(log.steps) else -1
    finished = log.manifest.get("finished")
    if finished and finished.get("step") == last and config.resume in (True, "auto"):
        compact(run_dir)
        tell(f"{run_dir}: finished at step {last}; nothing is left to do.")
        return None, True
    return _checkpoint(config, run_dir, processes, last), False


def _never_began(run_dir: Path) -> bool:
    """Whether the folder is left of a start that ended before its manifest, so before anything was measured."""
    config = run_dir / "config.json"
    return config.exists() and not (run_dir / "manifest.json").exists() and "output_dir" in read_json(config)


def _checkpoint(config: TrainConfig, run_dir: Path, processes: int, last: int) -> str | None:
    """The checkpoint asked for, or the newest whole one (a kill while saving leaves one that is not); last: step of
    the log. Where there is none `resume: auto` starts over, and any other is refused."""
    given = config.resume not in (True, "auto")
    found = [Path(str(config.resume))] if given else list((run_dir / "checkpoints").glob("checkpoint-*"))
    checkpoint, wrong = newest(found, processes=processes, logged=last)
    why = "; ".join(wrong) or "it holds no checkpoint"
    if checkpoint:
        step = step_of(checkpoint)
        again = f"; steps {step + 1} to {last}, logged after it, are done again" if last > step else ""
        tell(f"{run_dir}: goes on from {checkpoint.name}{again}" + f" ({why})" * bool(wrong) + ".")
        return str(checkpoint)
    if config.resume == "auto":
        tell(f"{run_dir}: {why}, so the run starts over; what it has logged is set aside.")
        return None
    raise UserError(
        f"{run_dir}: no checkpoint to resume from ({why}). Start over with --resume auto, which sets the old log "
        "aside; save_strategy: steps and save_steps: N make checkpoints."
    )


def _open_folder(
    config: TrainConfig, run_dir: Path, checkpoint: str | None, audits: dict[str, Any], started: dict[str, Any]
) -> None:
    """Start a run folder, or take one back to its checkpoint. Nothing already written is lost before all is checked."""
    if checkpoint:
        about = read_json(run_dir / "manifest.json")
        _same_content(started, about.get("hashes", {}), run_dir)
        if about.pop("finished", None):
            write_json(run_dir / "manifest.json", about)
        drop_after(run_dir, step_of(Path(checkpoint)))
        return
    set_aside(run_dir)
    write_json(run_dir / "config.json", config.flat() | {"resume": False})
    for name, frame in audits.items():
        write_frame(run_dir / name, frame)


def _same_content(now: dict[str, Any], written: dict[str, Any], run_dir: Path) -> None:
    changed = sorted(k for k, v in now.items() if k in written and written[k] != v)
    if changed == ["rendered"]:
        changed = ["text of the prompts as the chat template renders it (does it show the date?)"]
    changed = [name for name in changed if name != "rendered"]  # it changed with the others
    if changed:
        raise UserError(
            f"{run_dir}: the {' and '.join(changed)} changed since this run was started, so its log would mix two. "
            "Restore what it was started with, or start anew in another output_dir."
        )


def _same_config(config: TrainConfig, written: dict[str, Any], run_dir: Path) -> None:
    changed = config.changed(written)
    if changed:
        raise UserError(
            f"{run_dir}: this run was started with other settings ({', '.join(changed)}). Resume with the run's own "
            "config.json, or start anew in another output_dir."
        )


def _data_once(
    config: TrainConfig,
    tokenizer: PreTrainedTokenizerBase,
    limit: int | None,
    run_dir: Path,
    audits: dict[str, Any],
) -> tuple[Splits, dict[str, str]]:
    """`_data`, read and tokenized once however many processes there are; only the first has the audits."""

    def read() -> tuple[list[Example], tuple[Splits, list[int], dict[str, str]]]:
        splits, found, hashes = _data(config, tokenizer, limit)
        audits.update(found)
        parts = (splits.train, splits.probe, splits.heldout)
        others = replace(splits, train=[], probe=[], heldout=[])
        return [pair for part in parts for pair in part], (others, [len(part) for part in parts], hashes)

    pairs, (splits, (train, probe, _), hashes) = read_once(read, run_dir / "pairs.arrow.tmp")
    sets = pairs[:train], pairs[train : train + probe], pairs[train + probe :]
    return replace(splits, train=sets[0], probe=sets[1], heldout=sets[2]), hashes


def _data(
    config: TrainConfig, tokenizer: PreTrainedTokenizerBase, limit: int | None
) -> tuple[Splits, dict[str, Any], dict[str, str]]:
    """Read, audit and split the pairs; also the audits by file name, in which every input row stands, and the hashes
    of what was read."""
    settings: Any = {"max_length": longest(config.max_length, limit), "truncation": config.truncation}
    settings["append_eos"] = config.append_eos
    raw = read_pairs(config.data, split=config.split)
    hashes = {"data": data_hash(raw)}
    table, spans = cleaned(raw, config.objective)
    audit = audit_pairs(table, tokenizer, **settings)
    if config.max_length_gap is not None:
        audit = skip_length_gaps(audit, config.max_length_gap)
    pairs = list(audit.require_kept())
    _say(config.data, audit)
    audits = {"audit.parquet": audit.frame}
    shuffled = random.Random(config.seed).sample(pairs, len(pairs))
    if config.heldout_data:
        raw = read_pairs(config.heldout_data)
        hashes["heldout_data"] = data_hash(raw)
        other = audit_pairs(cleaned(raw, config.objective)[0], tokenizer, **settings)
        _say(config.heldout_data, other)
        # both files may count their ids from 0: held-out ids say so
        kept = [replace(p, pair_id=f"heldout/{p.pair_id}") for p in other.require_kept()]
        audits["audit_heldout.parquet"] = other.frame.assign(pair_id="heldout/" + other.frame["pair_id"].astype(str))
        heldout = random.Random(config.seed).sample(kept, min(config.heldout_pairs, len(kept)))
    else:
        heldout = shuffled[: min(config.heldout_pairs, len(pairs) // 10)]
    _say_held_out(config, len(heldout), len(pairs))
    away = {p.pair_id for p in heldout}
    probe = [p for p in shuffled if p.pair_id not in away][: config.probe_pairs]
    if config.probe_data:
        raw = read_pairs(config.probe_data)
        hashes["probe_data"] = data_hash(raw)
        fixed = audit_pairs(cleaned(raw, config.objective)[0], tokenizer, **settings)
        _say(config.probe_data, fixed)
        audits["audit_probe.parquet"] = fixed.frame
        probe = list(fixed.require_kept())[: config.probe_pairs]
    train = [p for p in pairs if p.pair_id not in away]
    given = gather(
        table, train, spans, tokenizer, config.objective, phrase_source=config.phrase_source, settings=settings
    )
    gaps = score_gaps(table, train) if config.curriculum == "score_gap" else []
    return Splits(train, probe, heldout, given, gaps, audit.record()), audits, hashes


def _say(source: str, audit: Audit) -> None:
    """How a file's rows were read, and how many are used."""
    for line in audit.said():
        tell(f"{source}: {line}")


def _say_held_out(config: TrainConfig, held: int, pairs: int) -> None:
    """Where fewer pairs are held out than asked for: how many, and why."""
    if held >= config.heldout_pairs:
        return
    why = f"{config.heldout_data} holds no more" if config.heldout_data else f"a tenth of the {pairs} pairs at most"
    give = "" if config.heldout_data else "; heldout_data names a file of others"
    tell(f"held out: {held} of the {config.heldout_pairs} pairs asked for ({why}{give}).")


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


def _check_parity(
    config: TrainConfig,
    arguments: TrainingArguments,
    model: nn.Module,
    reference: Any,
    splits: Splits,
    likelihood: Likelihood,
) -> float:
    """Before the first step policy and reference must agree to the noise floor; the result goes to the manifest.

    Returns what a log-ratio must exceed to be more than rounding (outcomes.noise); NaN where it did not look.
    """
    if reference is None or config.reference_model or config.parity == "off":
        return math.nan
    cast = torch.bfloat16 if arguments.bf16 else torch.float16 if arguments.fp16 else getattr(torch, config.dtype)
    eps = max(torch.finfo(getattr(torch, config.dtype)).eps, torch.finfo(cast).eps)
    parity = measure_parity(model, reference, splits.train[:PARITY_PAIRS], likelihood, eps=eps)
    if PartialState().is_main_process:
        _note(Path(config.output_dir), parity=parity)
    said = (
        f"step 0: policy and reference differ by at most {parity['max_difference']:.3g} nats on {parity['n']} pairs "
        f"(noise floor {parity['noise_floor']:.3g})"
    )
    if parity["passed"]:
        tell(said)
        return outcomes.noise(parity)
    why = (
        f"{said}; worst is the {parity['side']} side of pair_id {parity['pair_id']}. They should be the same model: "
        "check reference_model, dtype, the adapter, and the cached log-probs (delete reference_cache to score them "
        "again), or set parity: warn."
    )
    if config.parity == "stop":
        raise DataError(why)
    tell(f"warning: {why}")
    return outcomes.noise(parity)


def _note(run_dir: Path, **found: Any) -> None:
    """What was found out about the run, into its manifest."""
    write_json(run_dir / "manifest.json", read_json(run_dir / "manifest.json") | found)


def _known_noise(run_dir: Path, reference: Any) -> float:
    """The noise that the run found at its start."""
    return outcomes.noise(read_json(run_dir / "manifest.json").get("parity")) if reference is not None else 0.0


def measure_parity(
    model: nn.Module, reference: Any, pairs: Sequence[Example], likelihood: Likelihood, *, eps: float
) -> dict[str, Any]:
    """Largest |policy - reference| log-prob in nats, beside the noise of scoring the policy in other batches.

    noise is four times what the two ways differ by, or one rounding step (eps) of an answer's tokens, as independent
    errors of its mean log-prob a token, where that is more (both ways may round alike); the floor is that, and never
    below one rounding step of the largest log-prob. A difference of the two ways of more than the square root of eps,
    in nats a token of a side, is no rounding: then no log-prob of this model is its own.
    """
    together = _logps(model, pairs, likelihood, reference)
    alone = {k: v for pair in pairs for k, v in _logps(model, [pair], likelihood, reference).items()}
    bad = [k[0] for k, values in together.items() if not all(map(math.isfinite, values))]
    if bad:
        raise DataError(
            f"the model's log-probs are not finite for pair_id {', '.join(dict.fromkeys(bad))}. Look for NaN or inf "
            "in its weights, or load it as float32."
        )
    tokens = {(p.pair_id, side): len(p.rows[side].completion_ids) for p in pairs for side in ("chosen", "rejected")}
    noisy = max(together, key=lambda k: abs(together[k][0] - alone[k][0]) / tokens[k])
    if abs(together[noisy][0] - alone[noisy][0]) > eps**0.5 * tokens[noisy]:
        raise DataError(
            f"the {noisy[1]} side of pair_id {noisy[0]} has log-prob {alone[noisy][0]:.6g} alone and "
            f"{together[noisy][0]:.6g} beside other pairs: more than rounding explains ({eps**0.5:.2g} nats a token). "
            "This model's log-probs depend on their neighbours; choose another model, or a wider dtype."
        )
    steps = [eps * abs(p) / tokens[k] ** 0.5 for k, (p, _) in together.items()]
    noise = max(*steps, *(4 * abs(together[k][0] - alone[k][0]) for k in together))
    floor = max(noise, eps * max(abs(p) for p, _ in together.values()))
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
    """(pair_id, side) -> (policy, reference) log-prob in nats."""
    found = {}
    for scored in score(model, pairs, likelihood=likelihood, reference=reference, batch_tokens=1 << 20):
        s = scored.stats
        for side, policy, ref in (("chosen", s.chosen, s.ref_chosen), ("rejected", s.rejected, s.ref_rejected)):
            assert ref is not None
            for pair, p, r in zip(scored.pairs, policy.logps.tolist(), ref.logps.tolist(), strict=True):
                found[pair.pair_id, side] = (p, r)
    return found


def _total_steps(arguments: TrainingArguments, pairs: int) -> int:
    if arguments.max_steps > 0:
        return arguments.max_steps
    batch = arguments.per_device_train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    return int(max(1, -(-pairs // batch)) * arguments.num_train_epochs)


def _manifest(
    config: TrainConfig, arguments: TrainingArguments, splits: Splits, started: dict[str, Any], engine: str
) -> dict[str, Any]:
    cast = "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "none"
    return manifest(
        device=str(arguments.device),
        dtypes={"weights": config.dtype, "autocast": cast, "reductions": "float64"},
        engine=engine,
        seeds={"seed": config.seed},
        hashes=started,
        reference={"kind": config.reference, "model": config.reference_model or config.model},
        objective={"name": config.objective, **config.hyperparameters},
        reading=splits.reading,
        pairs={"train": len(splits.train), "probe": len(splits.probe), "eval": len(splits.heldout)},
    )
