"""Settings that cannot work together, refused before a run reads data or model; and batches that would all be empty."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import TrainingArguments

from diagnostics.errors import UserError
from diagnostics.sequences import Example
from trainers import objectives
from trainers.card import pair_for
from trainers.config import OWN, TrainConfig
from trainers.loop import guards, recipes
from trainers.loop.alarm import Alarms, parse
from trainers.loop.columns import PROBE_KEYS, SCORE, STEP_KEYS
from trainers.loop.ingredients import by_prompt

# keys of other likelihoods, by likelihood
_DRAWS = ("draws", "train_draws", "path")
_TEXT = (
    "max_length", "truncation", "append_eos", "max_length_gap", "phrase_source", "frames", "track", "response_types",
    "reward_model", "grad_parameters",
)  # fmt: skip
_SAMPLES = ("sample_every", "samples", "sample_judge")
OTHERS = {"tokens": (*_DRAWS, *_SAMPLES), "denoising": _TEXT, "steps": (*_TEXT, *_DRAWS)}
GRADIENT_KEYS = ("grad/", "grad_total/", "slack/", "grad_push_ratio/", "incentive_ratio/", "gradient_cosine/")


def check(config: TrainConfig) -> None:
    """Everything about a config that can be refused without reading data or model."""
    if config.training.get("max_steps") == 0:
        raise UserError("max_steps is 0; give 1 or more, or leave it out to train for num_train_epochs.")
    _check_likelihood(config)
    guards.check(config.objective, config.guard, config.guard_strength)
    _try_objective(config)
    recipes.check(config)
    alarms(config)


def alarms(config: TrainConfig) -> Alarms:
    """The run's alarms, none of which waits for what this run does not measure."""
    conditions = parse(config.alarm or "", probed=PROBE_KEYS, steps=(*STEP_KEYS, SCORE))
    unmeasured = [c.key for c in conditions if c.key.startswith(GRADIENT_KEYS) and not config.grad_every]
    if unmeasured:
        raise UserError(f"alarm: {unmeasured[0]} is measured only with grad_every; set it to 10, for example.")
    if any(c.key == SCORE for c in conditions) and not (config.sample_every and config.sample_judge):
        raise UserError(f"alarm: {SCORE} is measured only of denoisers, with sample_every and sample_judge; set both.")
    return Alarms(conditions, stop=config.alarm_action == "stop")


def _check_likelihood(config: TrainConfig) -> None:
    """An objective of another likelihood, and keys that mean nothing for this one, are refused by name."""
    objectives.require_likelihood(config.objective, config.likelihood)
    for key in OTHERS[config.likelihood]:
        if getattr(config, key) != OWN[key].default and (key, getattr(config, key)) != ("response_types", 0):
            raise UserError(f"{key} means nothing with likelihood {config.likelihood}: leave it out.")
    if config.likelihood == "tokens":
        return
    if config.sample_judge and not config.sample_every:
        raise UserError("sample_judge judges the samples drawn every sample_every steps: set that too.")
    if config.reference == "precomputed":
        raise UserError("an update of a denoiser draws time and noise anew: set reference to live (or none).")
    path = objectives.path(config.objective) if config.path == "objective" else config.path
    if path == "reference_inversion" and config.reference != "live":
        raise UserError("path reference_inversion needs the reference itself: set reference to live.")


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
    pair = pair_for(config.objective, config.hyperparameters)(0.0, 0.0)
    if config.reference != "live":
        stored = {name: replace(row, embeddings=None) for name, row in pair.ref_extra.items()}
        pair = replace(pair, ref_extra=stored)
    try:
        losses = objectives.load(config.objective)(pair, **config.hyperparameters).losses
    except (ArithmeticError, ValueError, TypeError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"objective '{config.objective}' cannot work with its hyperparameters ({reason}).") from None
    if not losses.isfinite().all():
        raise UserError(
            f"objective '{config.objective}' gives no finite loss with its hyperparameters: check "
            f"{', '.join(config.hyperparameters) or 'them'}."
        )


def check_embeddings(config: TrainConfig, pairs: Sequence[Example]) -> None:
    """An objective that reads embeddings is refused, by its own words, where a row shows images or clips: they are
    measured of rows of text alone."""
    shown = any(row.media is not None for pair in pairs for row in pair.rows.values())
    if not shown or "embeddings" not in objectives.needs(config.objective):
        return
    pair = pair_for(config.objective, config.hyperparameters)(0.0, 0.0)
    bare = {name: replace(row, embeddings=None) for name, row in pair.ref_extra.items()}
    chosen, rejected = (replace(side, embeddings=None) for side in (pair.chosen, pair.rejected))
    pair = replace(pair, chosen=chosen, rejected=rejected, ref_extra=bare)
    objectives.load(config.objective)(pair, **config.hyperparameters)


def check_batches(config: TrainConfig, arguments: TrainingArguments, pairs: Sequence[Example]) -> None:
    """UserError where every batch would be dropped for not being full."""
    batch = arguments.per_device_train_batch_size * arguments.world_size
    groups = len(by_prompt(pairs)) if "lists" in objectives.needs(config.objective) else len(pairs)
    if arguments.dataloader_drop_last and groups < batch:
        raise UserError(
            f"dataloader_drop_last drops every batch: {batch} to a batch, and {groups} to train on. Leave it out, or "
            "lower per_device_train_batch_size."
        )
