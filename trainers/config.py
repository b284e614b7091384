"""TrainConfig: everything needed to repeat a run, as one flat set of keys.

A key is a field of TrainConfig, a hyperparameter of the chosen objective, or a field of transformers'
TrainingArguments. Anything else is refused with the nearest name, and a value that cannot work by its key, before
anything is read or trained. `config.json` in the run folder holds them all; `chesboard train --help` shows them.

Importing this file loads no torch: an objective's keys, and transformers' own, are looked up when a config is made.
"""

import json
from dataclasses import MISSING, Field, asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml

from diagnostics.errors import UserError
from diagnostics.names import nearest
from diagnostics.plain_yaml import parse_plain, read_plain
from trainers.loop.alarm import parse
from trainers.values import checked

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

# guards of a denoising objective, and how strong each is where nothing is said
GUARDS = {"sdpo": 0.9, "sft": 0.1, "dpo_shift": 0.9}

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

# the smallest and largest number a key takes; of all others 0 and LARGEST
LARGEST = 2**31 - 1
ONE_OR_MORE = (
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "eval_accumulation_steps",
    "max_length",
    "frames",
    "rounds",
    "draws",
    "train_draws",
    "save_total_limit",
    "torch_empty_cache_steps",
    "dataloader_prefetch_factor",
    "ddp_timeout",
    "lora_alpha",
)
RANGES: dict[str, tuple[float, float]] = {
    **dict.fromkeys(ONE_OR_MORE, (1, LARGEST)),
    "max_steps": (-1, LARGEST),
    "local_rank": (-1, LARGEST),
    "samples": (1, 10_000),  # each is a picture in the log, every time
    "seed": (0, 2**32 - 1),
    "data_seed": (0, 2**32 - 1),
    "lora_r": (0, 2**14),
    "num_train_epochs": (0, 1e6),
    "label_smoothing_factor": (0, 1),
    "adam_beta1": (0, 1),
    "adam_beta2": (0, 1),
}

# what other trainers call a key: ours, the first of them that this run has
USUAL = {
    "adapter": "lora_r", "algorithm": "objective", "base_model": "model", "batch": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size", "bs": "per_device_train_batch_size", "clip_grad": "max_grad_norm",
    "cutoff_len": "max_length", "data_path": "data", "dataset": "data", "dataset_name": "data", "datasets": "data",
    "dpo_alpha": "alpha", "dpo_beta": "beta", "epochs": "num_train_epochs", "eval_data": "heldout_data",
    "eval_dataset": "heldout_data", "eval_every": "probe_every", "eval_file": "heldout_data",
    "eval_steps": "probe_every", "file": "data", "grad_accum": "gradient_accumulation_steps",
    "grad_clip": "max_grad_norm", "gradient_accumulation": "gradient_accumulation_steps",
    "gradient_clipping": "max_grad_norm", "gradient_clip_val": "max_grad_norm", "inverse_temperature": "beta",
    "kl_beta": "beta", "kl_coef": "beta", "kl_coeff": "beta", "kl_coefficient": "beta", "kl_penalty": "beta",
    "kl_weight": "beta", "lora_rank": "lora_r", "lora_target": "lora_targets",
    "lora_target_modules": "lora_targets", "loss": "objective", "loss_type": "objective", "lr": "learning_rate",
    "lr_scheduler": "lr_scheduler_type", "max_completion_length": "max_length", "max_epochs": "num_train_epochs",
    "max_grad": "max_grad_norm", "max_len": "max_length", "max_prompt_length": "max_length",
    "max_seq_len": "max_length", "max_seq_length": "max_length", "max_sequence_length": "max_length",
    "max_train_steps": "max_steps", "method": "objective", "micro_batch_size": "per_device_train_batch_size",
    "model_name": "model", "model_name_or_path": "model", "model_path": "model", "n_epochs": "num_train_epochs",
    "nll_coef": "alpha", "nll_weight": "alpha", "num_epochs": "num_train_epochs", "num_steps": "max_steps",
    "optimizer": "optim", "out": "output_dir", "out_dir": "output_dir", "output": "output_dir",
    "policy": "model", "pref_loss": "objective", "r": "lora_r", "random_seed": "seed", "rank": "lora_r",
    "ref_model": "reference_model", "ref_model_name_or_path": "reference_model", "reference_free": "reference",
    "rpo_alpha": "alpha", "save_dir": "output_dir", "save_every": "save_steps", "scheduler": "lr_scheduler_type",
    "sequence_len": "max_length", "sft_weight": "alpha", "steps": "max_steps", "target_modules": "lora_targets",
    "temperature": "beta", "torch_dtype": "dtype", "total_steps": "max_steps", "train_batch_size":
    "per_device_train_batch_size", "train_data": "data", "train_file": "data", "train_steps": "max_steps",
    "trainer": "objective", "val_data": "heldout_data", "validation_file": "heldout_data",
    "warmup": "warmup_steps", "warmup_ratio": "warmup_steps", "wd": "weight_decay",
}  # fmt: skip


def _key(group: str, words: str, default: Any = MISSING) -> Any:
    """A field with its group and its line of help."""
    return field(default=default, metadata={"group": group, "help": words})


@dataclass(frozen=True)
class TrainConfig:
    """One training run. Every field says what it is in its own line; `chesboard train --help` prints them."""

    model: str = _key("model", "local folder or hub id of a causal language model, or the folder of a denoiser")
    data: str = _key("data", "preference file, folder or hub id")
    output_dir: str = _key("run", "the run folder; must not exist, except with resume")
    objective: str = _key("objective", "a file in trainers/objectives; its hyperparameters are keys beside it", "dpo")
    likelihood: Literal["tokens", "denoising", "steps"] = _key(
        "objective",
        "tokens: log-probs of a language model; denoising: minus the error of a diffusion or flow model; "
        "steps: Gaussian log-probs of a denoiser's sampling steps",
        "tokens",
    )
    draws: int = _key("measuring", "denoising: fixed draws of time and noise at which a pair is measured", 16)
    path: Literal["objective", "noise", "inversion", "reference_inversion", "own"] = _key(
        "objective",
        "denoising: where an update's x_t comes from: forward noise, DDIM inversion by the policy or by the reference, "
        "the policy's own sampling (rejected side); objective is what the objective is defined on",
        "objective",
    )
    train_draws: int = _key("objective", "denoising: fresh draws of time and noise for each pair of an update", 1)
    reference: Literal["live", "precomputed", "none"] = _key(
        "reference", "live (exact KL is logged), precomputed (log-probs cached on disk, no KL), or none", "live"
    )
    reference_model: str | None = _key(
        "reference", "another model as the reference; default is the model as it starts", None
    )
    reference_cache: str | None = _key(
        "reference", "folder for precomputed log-probs; default is ref_logps beside the run folder", None
    )
    reward_model: str | None = _key(
        "objective", "a policy trained before, whose token rewards some objectives read (same tokenizer)", None
    )
    phrase_source: Literal["auto", "tags", "diff"] = _key(
        "data",
        "phrases that some objectives compare: <MASK> ... </MASK> tags in the answers, a token diff of chosen and "
        "rejected, or auto (tags where any row has them); tags are never trained on",
        "auto",
    )
    log_kl: bool = _key("measuring", "take the KL in every step, also where the objective does not need it", True)
    split: str | None = _key("data", "split of a hub data set", None)
    frames: int = _key("data", "most frames that are taken of a clip, evenly spread", 16)
    media_folder: str | None = _key(
        "data", "folder that paths of images and clips are relative to; default is the data's own", None
    )
    heldout_data: str | None = _key("data", "a second file to hold out; default is a share of data", None)
    probe_data: str | None = _key(
        "data", "a file of the pairs to probe, trained on or not; default is a draw of the training pairs", None
    )
    max_length: int | None = _key("data", "longest prompt + completion in tokens; default is the model's limit", None)
    truncation: Literal["drop", "keep_start", "keep_end", "error"] = _key(
        "data", "what to do with a longer pair; never silent", "drop"
    )
    append_eos: bool = _key("data", "end every completion with EOS", True)
    dtype: Literal["float32", "bfloat16", "float16"] = _key("model", "of the loaded weights", "float32")
    lora_r: int = _key("model", "rank of a LoRA adapter, 0 for full fine-tuning", 0)
    lora_alpha: int = _key("model", "scale of the adapter, as in peft", 16)
    lora_targets: str = _key("model", "modules that get an adapter, as in peft, separated by commas", "all-linear")
    freeze_vision: bool = _key(
        "model",
        "train the language model alone: of a model that is shown media, not its vision tower and projector",
        False,
    )
    probe_pairs: int = _key(
        "measuring", "training pairs measured at step 0, every probe_every steps and at the end", 64
    )
    heldout_pairs: int = _key("measuring", "held-out pairs measured at the same steps", 64)
    probe_every: int = _key("measuring", "steps between two probes; 0 is about ten times in the run", 0)
    response_types: int = _key(
        "measuring",
        "of how many probe pairs further answers are followed at every probe: the model's own at the start, another "
        "prompt's chosen, the chosen with its tokens shuffled; 0 is none",
        16,
    )
    sample_every: int = _key(
        "measuring",
        "denoisers: at the start, every so many steps and at the end, draw samples from noise that is always the same, "
        "for what the first probe pairs are told; 0 is never",
        0,
    )
    samples: int = _key("measuring", "denoisers: how many samples are drawn each time", 16)
    sample_judge: str | None = _key(
        "measuring",
        "denoisers: the share of the drawn samples that are of the class asked for, by a logistic regression on real "
        "ones: `digits` (scikit-learn's), or a .safetensors or .npz file with arrays image and class",
        None,
    )
    grad_every: int = _key(
        "measuring",
        "measure the gradients of chosen and rejected apart, of the update and of every pair, in updates 1, "
        "1 + grad_every, ...; 0 is never",
        0,
    )
    grad_parameters: Literal["all", "head"] = _key(
        "measuring", "in all trainable parameters (LoRA's, if it is LoRA), or the head's", "all"
    )
    tokens: Literal["ends", "all", "none"] = _key(
        "measuring", "per-token log of the probe pairs: at both ends, at all probe steps, or none", "ends"
    )
    track: str | None = _key("measuring", "JSON file of prompts and token groups whose probability is followed", None)
    max_length_gap: int | None = _key(
        "recipe",
        "train only on pairs whose two answers differ by at most so many tokens; the others stand in audit.parquet "
        "as skipped (length_gap), and a held-out share is drawn from what is left",
        None,
    )
    # source of the weights: own, `recipes.rank_weights`
    pair_weights: str | None = _key(
        "recipe",
        "a scores.parquet of `chesboard flag`: each pair's loss is multiplied by a weight of mean 1 that falls the "
        "more prone to displacement the pair is among the training pairs; the logged loss is the loss as trained",
        None,
    )
    weight_by: str = _key("recipe", "the column of pair_weights", "ln_ches_score")
    # arXiv 2403.07230
    curriculum: Literal["none", "score_gap"] = _key(
        "recipe",
        "score_gap trains from easy (largest chosen_score - rejected_score) to hard, none in random order",
        "none",
    )
    # recall
    rounds: int = _key(
        "recipe",
        "rounds of the curriculum, each num_train_epochs times, shuffled inside, from a renewed reference; with 1, "
        "strictly by gap",
        1,
    )
    # DNO, arXiv 2404.03715
    renew_reference: int = _key(
        "recipe",
        "after every so many steps the live reference becomes a copy of the policy (reference_renewed in steps.jsonl "
        "is 1, and log-ratios restart from 0); 0 is never",
        0,
    )
    # arXiv 2511.03317, 2502.07599
    guard: Literal["none", "sdpo", "sft", "dpo_shift"] = _key(
        "recipe",
        "keeps the chosen sample's denoising error down: sdpo scales the rejected gradient by the batch's geometry, "
        "sft adds the chosen error to the loss, dpo_shift weighs the rejected error less",
        "none",
    )
    guard_strength: float | None = _key(
        "recipe",
        f"mu of sdpo (default {GUARDS['sdpo']}), weight of sft ({GUARDS['sft']}, times beta / 2), factor of dpo_shift "
        f"({GUARDS['dpo_shift']})",
        None,
    )
    alarm: str | list | None = _key(  # noqa: RUF009 (the same helper as everywhere here)
        "run",
        "conditions on logged keys, several separated by ;: `displacement/frac > 0.8 for 3` means at three evaluations "
        "in a row; a key that the probe measures means probe/KEY, and a resumed run counts anew",
        None,
    )
    alarm_action: Literal["warn", "stop"] = _key(
        "run", "warn says it and logs it; stop also saves and ends the training", "warn"
    )
    parity: Literal["stop", "warn", "off"] = _key(
        "reference", "what to do when policy and reference differ at step 0", "stop"
    )
    save_model: bool = _key("run", "keep the trained weights", True)
    seed: int = _key("run", "of the order, the draws and the initial LoRA weights", 0)
    resume: bool | str = _key(
        "run", "true: go on from the newest whole checkpoint; auto: start, go on or end; or a path", False
    )
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    extras: dict[str, Any] = field(default_factory=dict)  # further keys kept in config.json for whoever reads the run

    def flat(self) -> dict[str, Any]:
        """All keys on one level, as config.json holds them."""
        own = asdict(self)
        nested = [own.pop(name) for name in NESTED]
        return own | nested[0] | nested[1] | nested[2]

    def given(self) -> list[str]:
        """Keys whose value is another than the default, as they would stand on a command line."""
        from trainers import objectives

        defaults = {n: f.default for n, f in OWN.items()} | DEFAULTS | objectives.hyperparameters(self.objective)
        known = {k: v for k, v in self.flat().items() if k not in self.extras and k != "resume"}
        return [k for k, v in known.items() if k not in defaults or v != defaults[k]]

    def changed(self, written: dict[str, Any]) -> list[str]:
        """Keys whose value is another than in a config.json; where a run lies and what it reports to does not count.
        A key that the file lacks, because the run is older than the key, has its default."""
        now = json.loads(json.dumps(self.flat(), default=str))
        written = {n: f.default for n, f in OWN.items() if f.default is not MISSING} | written
        free = {"resume", "output_dir", "report_to", "save_model", "alarm", "alarm_action"}
        return sorted(k for k in now.keys() | written.keys() if k not in free and now.get(k) != written.get(k))


NESTED = ("hyperparameters", "training", "extras")
OWN = {f.name: f for f in fields(TrainConfig) if f.name not in NESTED}


@cache
def arguments() -> dict[str, Field]:
    """The fields of transformers' TrainingArguments that are keys too. The first call imports it: seconds."""
    from transformers import TrainingArguments

    return {f.name: f for f in fields(TrainingArguments) if f.init and f.name not in (*DECIDED, *OWN)}


def make_config(values: dict[str, Any], *, extras: dict[str, Any] | None = None) -> TrainConfig:
    """Check flat keys and sort them into a TrainConfig. Raises UserError naming the key and the nearest known one."""
    from trainers import objectives

    name = str(values.get("objective", "dpo"))
    hyper = objectives.hyperparameters(name)
    kinds = {f.name: f.type for f in OWN.values()} | objectives.kinds(name)
    if not values.keys() <= kinds.keys():
        kinds = {f.name: f.type for f in arguments().values()} | kinds
    for key in values:
        if key not in kinds:
            raise UserError(
                f"unknown key '{key[:80]}'{_hint(key, kinds, hyper)} `chesboard train --help` lists all keys."
            )
    for key in ("model", "data", "output_dir"):
        if values.get(key) in (None, ""):
            raise UserError(f"'{key}' is missing. Give it in the config file or as --{key}.")
    values = {key: checked(key, value, kinds[key], _limits(key, hyper)) for key, value in values.items()}
    values = _with_alarm(_without_eos(values, objectives.needs(name)))
    return TrainConfig(
        **{k: v for k, v in values.items() if k in OWN},
        hyperparameters=hyper | {k: v for k, v in values.items() if k in hyper},
        training=DEFAULTS | {k: v for k, v in values.items() if k not in OWN and k not in hyper},
        extras=extras or {},
    )


def _limits(key: str, hyper: dict[str, Any]) -> tuple[float, float]:
    """The smallest and largest number that a key takes; what an objective's own key takes, the objective says."""
    return (-LARGEST, LARGEST) if key in hyper and key not in OWN else RANGES.get(key, (0, LARGEST))


def _without_eos(values: dict[str, Any], needs: tuple[str, ...]) -> dict[str, Any]:
    """Some objectives are defined on completions that do not end."""
    if "no eos" not in needs:
        return values
    if values.get("append_eos"):
        raise UserError(
            f"append_eos is true, but objective '{values['objective']}' is defined without EOS; leave append_eos out."
        )
    return values | {"append_eos": False}


def _with_alarm(values: dict[str, Any]) -> dict[str, Any]:
    """The alarm as one text, which can be read."""
    if not values.get("alarm"):
        return values | {"alarm": None}
    from trainers.loop.columns import PROBE_KEYS, SCORE, STEP_KEYS

    conditions = parse(values["alarm"], probed=PROBE_KEYS, steps=(*STEP_KEYS, SCORE))
    return values | {"alarm": "; ".join(map(str, conditions))}


def read_config(path: str | Path) -> dict[str, Any]:
    """Flat keys of a YAML (or JSON) file."""
    values = read_plain(Path(path))
    if not isinstance(values, dict) or not all(isinstance(k, str) for k in values):
        raise UserError(f"{path}: must hold one 'key: value' a line.")
    return values


def parse_flags(args: list[str]) -> dict[str, Any]:
    """--key value and --key=value pairs, values read as YAML (so 3 is a number and true is a boolean)."""
    values: dict[str, Any] = {}
    rest = list(args)
    while rest:
        flag, equals, value = rest.pop(0).partition("=")
        if not flag.startswith("--"):
            raise UserError(f"'{flag[:80]}' stands alone; write --key value.")
        if not equals:
            if not rest:
                raise UserError(f"{flag[:80]} has no value; write {flag[:80]} VALUE.")
            value = rest.pop(0)
        key = flag[2:].replace("-", "_")
        values[key] = value if _is_text(key) else _value(value)
    return values


def _is_text(key: str) -> bool:
    """Whether a key takes nothing but text: a folder may be called 007 or true."""
    return key in OWN and OWN[key].type in (str, str | None)


def _value(text: str) -> Any:
    """One value of the command line, read as YAML; what is no plain YAML is text."""
    try:
        return parse_plain(text)
    except yaml.YAMLError:
        return text


def _hint(key: str, known: dict[str, Any], hyper: dict[str, Any]) -> str:
    """Which key was meant: by the names that other trainers use, as a part of a hyperparameter's name, by spelling."""
    from trainers import objectives

    plain = key.lower().replace("-", "_")
    whole = sorted((name for name in hyper if plain in name.split("_")), key=len)
    for meant in (plain, *whole, USUAL.get(plain, "")):
        if meant in known:
            return f"; did you mean '{meant}'?"
    theirs = [name for name in objectives.names() if plain in objectives.hyperparameters(name)]
    if theirs:
        return f": it belongs to objective {', '.join(theirs[:5])}{' ...' if len(theirs) > 5 else ''}."
    near = nearest(plain, hyper) or nearest(plain, known)
    near = near or [name for name in hyper if set(name.split("_")) & set(plain.split("_"))]
    return f"; did you mean '{near[0]}'?" if near else "."
