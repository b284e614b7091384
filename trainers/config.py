"""TrainConfig: everything needed to repeat a run, as one flat set of keys.

A key is a field of TrainConfig, a hyperparameter of the chosen objective, or a field of transformers'
TrainingArguments. Anything else is refused with the nearest name. `config.json` in the run folder holds them all.
"""

import difflib
import json
import math
import re
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic import BaseModel, Field, ValidationError
from transformers import TrainingArguments

from diagnostics.errors import DataError, UserError
from trainers import objectives
from trainers.alarm import parse
from trainers.recorder import PROBE_KEYS, STEP_KEYS

# what a DPO run needs other than transformers' own defaults
DEFAULTS: dict[str, Any] = {
    "learning_rate": 1e-6,
    "per_device_train_batch_size": 8,
    "num_train_epochs": 1.0,
    "logging_steps": 10,
    "save_strategy": "no",
    "report_to": "none",
    "ddp_find_unused_parameters": False,
}

# keys of TrainingArguments that the run folder or the probes decide
DECIDED = (
    "output_dir",
    "logging_dir",
    "do_train",
    "do_eval",
    "do_predict",
    "eval_strategy",
    "eval_steps",
    "remove_unused_columns",
    "resume_from_checkpoint",
    "label_names",
)

TEXTS = (
    "model",
    "data",
    "output_dir",
    "reference_model",
    "reward_model",
    "reference_cache",
    "heldout_data",
    "probe_data",
    "split",
    "track",
    "pair_weights",
    "weight_by",
)

CHOICES = {
    "reference": ("live", "precomputed", "none"),
    "truncation": ("drop", "keep_start", "keep_end", "error"),
    "parity": ("stop", "warn", "off"),
    "tokens": ("ends", "all", "none"),
    "phrase_source": ("auto", "tags", "diff"),
    "alarm_action": ("warn", "stop"),
    "dtype": ("float32", "bfloat16", "float16"),
    "curriculum": ("none", "score_gap"),
    "grad_parameters": ("all", "head"),
}


@dataclass(frozen=True)
class TrainConfig:
    """One training run.

    model: local folder or hub id of a causal language model; data: preference file, folder or hub id.
    output_dir: the run folder; must not exist, except with resume.
    objective: name of a file in trainers/objectives; its hyperparameters are keys beside it.
    reference: live (exact KL is logged), precomputed (log-probs cached on disk, no KL), or none.
    reference_model: another model as the reference; default is the model as it starts.
    reference_cache: folder for precomputed log-probs; default is `ref_logps` beside the run folder.
    reward_model: a policy trained before, whose token rewards some objectives read (same tokenizer).
    phrase_source: where phrases come from that some objectives compare: <MASK> ... </MASK> tags in the answers,
        a token diff of chosen and rejected, or auto (tags where any row has them). Tags are never trained on.
    log_kl: take the KL over the vocabulary in every step, also where the objective does not need it.
    split: split of a hub data set. heldout_data: a second file to hold out; default is a share of data.
    probe_data: a file of the pairs to probe, trained on or not; default is a draw of the training pairs.
    max_length: longest prompt + completion in tokens (None: the model's limit); truncation: what to do beyond it.
    append_eos: end every completion with EOS. dtype: of the loaded weights.
    lora_r: rank of a LoRA adapter, 0 for full fine-tuning; lora_alpha, lora_targets as in peft.
    probe_pairs, heldout_pairs: how many training and held-out pairs are measured at step 0, every
        probe_every steps and at the end. probe_every 0: about ten times in the run.
    response_types: of how many probe pairs further answers are followed at every probe: the model's own at the start,
        another prompt's chosen, the chosen with its tokens shuffled. 0: none.
    grad_every: measure the gradients of chosen and rejected apart, of the update and of every pair, in updates 1,
        1 + grad_every, ...; 0 for never. grad_parameters: in all trainable ones (LoRA's, if it is LoRA), or the head's.
    tokens: per-token log of the probe pairs: at both ends, at all probe steps, or none.
    track: JSON file of prompts and token groups whose probability is followed.
    max_length_gap: train only on pairs whose two answers differ by at most so many tokens; the others stand in
        audit.parquet as skipped (length_gap), and a held-out share is drawn from what is left.
    pair_weights: a scores.parquet of `chesboard flag`; each pair's loss is multiplied by a weight of mean 1 that falls
        the more prone to displacement the pair is among the training pairs by the column weight_by (source: own,
        `recipes.rank_weights`).
        The logged loss is the loss as trained, and the column `weight` of pairs says the factor.
    curriculum: score_gap trains from easy (largest chosen_score - rejected_score) to hard (arXiv 2403.07230), none in
        random order. rounds: how many rounds it has, one after the other, each num_train_epochs times and shuffled
        inside; each begins with the reference renewed (recall). With 1 round, strictly by gap.
    renew_reference: after every so many steps the live reference becomes a copy of the policy (DNO, arXiv 2404.03715);
        0 never. Log-ratios restart from 0 then: `reference_renewed` in steps.jsonl is 1. Checkpoints hold its weights.
    alarm: conditions on logged keys, judged whenever they are measured: "displacement/frac > 0.8 for 3" means at three
        evaluations in a row (several: separated by ;). A key that the probe measures means probe/KEY; after --resume
        the count starts anew. alarm_action: warn says it and logs it; stop also saves and ends the training.
    parity: what to do when policy and reference differ at step 0. save_model: keep the trained weights.
    resume: go on from the run folder's last checkpoint (or a given one).
    extras: further keys kept in config.json for whoever reads the run.
    """

    model: str
    data: str
    output_dir: str
    objective: str = "dpo"
    reference: str = "live"
    reference_model: str | None = None
    reference_cache: str | None = None
    reward_model: str | None = None
    phrase_source: str = "auto"
    log_kl: bool = True
    split: str | None = None
    heldout_data: str | None = None
    probe_data: str | None = None
    max_length: int | None = None
    truncation: str = "drop"
    append_eos: bool = True
    dtype: str = "float32"
    lora_r: int = 0
    lora_alpha: int = 16
    lora_targets: str = "all-linear"
    probe_pairs: int = 64
    heldout_pairs: int = 64
    probe_every: int = 0
    response_types: int = 16
    grad_every: int = 0
    grad_parameters: str = "all"
    tokens: str = "ends"
    track: str | None = None
    max_length_gap: int | None = None
    pair_weights: str | None = None
    weight_by: str = "ln_ches_score"
    curriculum: str = "none"
    rounds: int = 1
    renew_reference: int = 0
    alarm: str | None = None
    alarm_action: str = "warn"
    parity: str = "stop"
    save_model: bool = True
    seed: int = 0
    resume: bool | str = False
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)

    def flat(self) -> dict[str, Any]:
        """All keys on one level, as config.json holds them."""
        own = asdict(self)
        nested = [own.pop(name) for name in ("hyperparameters", "training", "extras")]
        return own | nested[0] | nested[1] | nested[2]

    def changed(self, written: dict[str, Any]) -> list[str]:
        """Keys whose value is another than in a config.json; where a run lies and what it reports to does not count."""
        now = json.loads(json.dumps(self.flat(), default=str))
        free = {"resume", "output_dir", "report_to", "save_model", "alarm", "alarm_action"}
        return sorted(k for k in now.keys() | written.keys() if k not in free and now.get(k) != written.get(k))


def make_config(values: dict[str, Any], *, extras: dict[str, Any] | None = None) -> TrainConfig:
    """Check flat keys and sort them into a TrainConfig. Raises UserError naming the key and the nearest known one."""
    own_names = {f.name for f in fields(TrainConfig)} - {"hyperparameters", "training", "extras"}
    hyper = objectives.hyperparameters(str(values.get("objective", "dpo")))
    arguments = {f.name for f in fields(TrainingArguments) if f.init} - set(DECIDED)
    known = own_names | set(hyper) | arguments
    for key in values:
        if key not in known:
            raise UserError(
                f"unknown key '{key}'{_nearest(key, known)} Known keys are listed by `chesboard train --help`."
            )
    for key in ("model", "data", "output_dir"):
        if not values.get(key):
            raise UserError(f"'{key}' is missing. Give it in the config file or as --{key}.")
    values = values | {key: str(values[key]) for key in TEXTS if values.get(key) is not None}
    _check_choices(values)
    for key in hyper.keys() & values.keys():
        _check_type(key, values[key], bool if isinstance(hyper[key], bool) else None)
    values = _with_alarm(_without_eos(values))
    return TrainConfig(
        **{k: v for k, v in values.items() if k in own_names},
        hyperparameters=hyper | {k: v for k, v in values.items() if k in hyper},
        training=DEFAULTS | {k: v for k, v in values.items() if k in arguments - own_names - set(hyper)},
        extras=extras or {},
    )


def _without_eos(values: dict[str, Any]) -> dict[str, Any]:
    """Some objectives are defined on completions that do not end."""
    name = str(values.get("objective", "dpo"))
    if "no eos" not in objectives.needs(name):
        return values
    if values.get("append_eos"):
        raise UserError(f"append_eos is true, but objective '{name}' is defined without EOS; leave append_eos out.")
    return values | {"append_eos": False}


def _with_alarm(values: dict[str, Any]) -> dict[str, Any]:
    """The alarm as one text, which can be read."""
    if not values.get("alarm"):
        return values | {"alarm": None}
    conditions = parse(values["alarm"], probed=PROBE_KEYS, steps=STEP_KEYS)
    return values | {"alarm": "; ".join(map(str, conditions))}


def read_config(path: str | Path) -> dict[str, Any]:
    """Flat keys of a YAML (or JSON) file."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Yaml)
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file.") from None
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{path}: not readable as YAML ({' '.join(str(error).split())}).") from None
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        raise UserError(f"{path}: must hold one 'key: value' a line.")
    return values


def parse_flags(args: list[str]) -> dict[str, Any]:
    """--key value and --key=value pairs, values read as YAML (so 3 is a number and true is a boolean)."""
    values: dict[str, Any] = {}
    rest = list(args)
    while rest:
        flag, _, value = rest.pop(0).partition("=")
        if not flag.startswith("--"):
            raise UserError(f"'{flag}' stands alone; write --key value.")
        if not value:
            if not rest:
                raise UserError(f"{flag} has no value; write {flag} VALUE.")
            value = rest.pop(0)
        key = flag[2:].replace("-", "_")
        values[key] = _value(value)
    return values


class _Yaml(yaml.SafeLoader):
    """YAML in which only true and false are truth values (no and off are words) and 1e-6 is a number."""


_Yaml.yaml_implicit_resolvers = {
    first: [(tag, rule) for tag, rule in rules if tag not in ("tag:yaml.org,2002:bool", "tag:yaml.org,2002:float")]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver("tag:yaml.org,2002:bool", re.compile(r"^(?:[Tt]rue|TRUE|[Ff]alse|FALSE)$"), list("tTfF"))
_Yaml.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?$|^[-+]?\.(?:inf|Inf|INF)$|^\.(?:nan|NaN|NAN)$"),
    list("-+0123456789."),
)


def _value(text: str) -> Any:
    """One value of the command line, read as YAML; what is no YAML is text."""
    try:
        return yaml.load(text, Loader=_Yaml)
    except yaml.YAMLError:
        return text


def training_arguments(config: TrainConfig) -> TrainingArguments:
    """transformers' TrainingArguments for a run; wrong values end in a UserError that names them."""
    values = dict(config.training)
    values.setdefault("dataloader_pin_memory", torch.cuda.is_available())
    values.setdefault("use_cpu", not torch.accelerator.is_available())
    values["output_dir"] = str(Path(config.output_dir) / "checkpoints")
    try:
        arguments = TrainingArguments(
            **values, seed=config.seed, remove_unused_columns=False, eval_strategy="no", disable_tqdm=True
        )
    except (ValueError, TypeError, ImportError) as error:
        raise UserError(f"the training settings do not fit: {' '.join(str(error).split())}") from None
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several GPUs: one process each, by `accelerate launch`
    return arguments


class TrackedPrompt(BaseModel):
    """A prompt after which token groups are followed; `set` names the prompts it is averaged with."""

    id: str
    set: str
    prompt: str


class Track(BaseModel):
    """A track file: prompts, and groups of tokens by name."""

    prompts: list[TrackedPrompt] = Field(min_length=1)
    groups: dict[str, list[str]] = Field(min_length=1)


def read_track(path: str | Path) -> dict[str, Any]:
    """A track file: {"prompts": [{"id", "set", "prompt"}], "groups": {name: [token, ...]}}."""
    try:
        return Track.model_validate_json(Path(path).read_bytes()).model_dump()
    except OSError as error:
        raise UserError(f"{path}: the track file cannot be read ({error.strerror}).") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path}: {where}: {first['msg']}. It must hold prompts (a list of objects with the text fields id, set "
            "and prompt) and groups (lists of tokens by name)."
        ) from None


def _check_choices(values: dict[str, Any]) -> None:
    for key, allowed in CHOICES.items():
        if key in values and values[key] not in allowed:
            raise UserError(f"{key} is '{values[key]}'; it must be one of {', '.join(allowed)}.")
    kinds = {f.name: f.type for f in (*fields(TrainingArguments), *fields(TrainConfig))}
    for key, value in values.items():
        kind = kinds.get(key)
        _check_type(key, value, int if kind == int | None and value is not None else kind)


def _check_type(key: str, value: Any, kind: Any) -> None:
    """A value of the wrong kind is refused here, by name, and not deep inside a library."""
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if kind is bool and not isinstance(value, bool):
        raise UserError(f"{key} is '{value}'; it must be true or false.")
    if kind is float and not number:
        raise UserError(f"{key} is '{value}'; it must be a number.")
    if kind is int and not (number and value == int(value)):
        raise UserError(f"{key} is '{value}'; it must be a whole number.")
    least = 1 if key in ("per_device_train_batch_size", "gradient_accumulation_steps", "max_length", "rounds") else 0
    if number and value < least and (least or key in {f.name for f in fields(TrainConfig)}):
        raise UserError(f"{key} is '{value}'; it must be a whole number, {least} or more.")


def _nearest(key: str, known: set[str]) -> str:
    near = difflib.get_close_matches(key, known, n=1)
    return f"; did you mean '{near[0]}'?" if near else "."
