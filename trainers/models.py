"""Loading models and tokenizers: local folders or hub ids, safetensors only, no remote code, clear errors.

What is loaded is what the files say: weights that are missing, left over or of another shape end in one sentence,
never in a model that was partly filled with chance numbers. An adapter is put on the base model that it names.
"""

import copy
import functools
import json
import re
import shutil
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import file_exists
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)  # fmt: skip
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)
from transformers.utils.hub import cached_file

from diagnostics.engine import encodes, unwrap
from diagnostics.errors import DataError, UserError
from diagnostics.fingerprint import tokenizer_hash as tokenizer_hash
from diagnostics.fingerprint import weights_hash as weights_hash
from diagnostics.processes import processes, tell
from diagnostics.vision.placeholders import FILES, Family, family_of

_WRITERS = (AutoModelForCausalLM, AutoModelForImageTextToText, AutoModelForSeq2SeqLM)
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_ADAPTER, _ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# a file that is not there is no error yet: loading the model says what is wrong
_QUIET: dict[str, Any] = {
    f"_raise_exceptions_for_{what}": False for what in ("missing_entries", "gated_repo", "connection_errors")
}
# buffers that older versions of transformers saved (causal masks) and no model reads any more
_HARMLESS = re.compile(r"\.(attn|attention)(\.attention)?\.(bias|masked_bias)$")
_OTHER = re.compile(r"Classification|Regression|Reward|QuestionAnswering|MaskedLM|(?<!Head)Model$")
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "tekken.json")
# settings of sampling; without sampling they say nothing, and transformers refuses to save them
_SAMPLING = ("temperature", "top_p", "min_p", "top_h", "top_k", "typical_p", "epsilon_cutoff", "eta_cutoff")


def load_model(name: str, *, dtype: str = "float32", device_map: str | None = None) -> Any:
    """A causal language model, also one that is shown media, or an encoder-decoder model, in eval mode; of an adapter,
    its base model with the adapter on it (a PeftModel).

    Raises DataError for a folder that cannot be loaded safely and whole.
    device_map: spreads the layers over all devices ("auto"; see from_pretrained); None leaves them on the CPU.
    """
    base = adapter_base(name)
    if base is None:
        model = load_whole(_kind(name), name, dtype=dtype, device_map=device_map)
    else:
        model = _with_adapter(name, base, dtype, device_map)
    _no_dropout(model)
    return model.eval()


def load_policy(name: str, *, dtype: str = "float32", device_map: str | None = None) -> PreTrainedModel:
    """load_model as one model to train or to refer to: an adapter is merged into its base."""
    model = load_model(name, dtype=dtype, device_map=device_map)
    if not hasattr(model, "merge_and_unload"):
        return model
    model = model.merge_and_unload().eval().requires_grad_(True)
    model.name_or_path = name  # an adapter trained on this model has this one as its base, not the base below it
    model.config._name_or_path = name
    return model


def load_whole(kind: Any, name: str, *, dtype: str = "float32", device_map: str | None = None) -> Any:
    """A model of an Auto class of transformers. Raises DataError where its weights are not all there, and only they."""
    _check_folder(name)
    config = load_config(name)
    _check_weights(name, config)
    try:
        model, found = kind.from_pretrained(
            name, config=config, dtype=getattr(torch, dtype), use_safetensors=True, trust_remote_code=False,
            device_map=device_map, output_loading_info=True, ignore_mismatched_sizes=True,
        )  # fmt: skip
    except Exception as error:  # whatever a model's files make the loaders raise, the files cannot be used
        raise DataError(f"{name}: the model cannot be loaded ({_first_line(error)}).") from None
    _check_loaded(name, config, found, text=kind in _WRITERS)
    return model


def _kind(name: str) -> Any:
    """The Auto class of a model folder or hub id: by the class that it was saved as."""
    said = _read_json(name, "config.json") or {}
    saved = set(said.get("architectures") or [])
    if said.get("is_encoder_decoder") and saved & set(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES.values()):
        return AutoModelForSeq2SeqLM
    seeing = saved & set(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.values())
    seeing -= set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return AutoModelForImageTextToText if seeing else AutoModelForCausalLM


def load_config(name: str) -> Any:
    """The config of a model folder or hub id, without what would fetch code: attention from the hub."""
    _check_folder(name, weights=False)
    said = _read_json(name, "config.json") or {}
    if not said and not Path(name).is_dir() and not _reachable(name):
        raise DataError(
            f"{name}: no such model folder, and the hub does not answer for this id. Give a folder with config.json "
            "and *.safetensors, or a hub id that was fetched before."
        )
    kernel = next(_hub_code(said), None)
    if kernel:
        raise DataError(
            f"{name}: config.json asks for {kernel[0]} '{kernel[1]}', which is code from the hub. Chesboard runs no "
            f"code of a model: take {kernel[0]} out of config.json."
        )
    if said.get("quantization_config"):
        method = (
            said["quantization_config"].get("quant_method") if isinstance(said["quantization_config"], dict) else ""
        )
        raise DataError(
            f"{name}: its weights are quantised ({method or 'quantization_config in config.json'}). Chesboard reads "
            "plain weights only: dequantise the model and save it with save_pretrained."
        )
    try:
        config: Any = AutoConfig.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        why = "it needs Python code of its own (auto_map)" if "trust_remote_code" in str(error) else _first_line(error)
        raise DataError(f"{name}: the model's config cannot be read ({why}).") from None
    config._attn_implementation = None  # also in its parts: the attention is chosen here
    return config


def check_model(name: str) -> None:
    """What can be told of a model without loading it: that its config, of an adapter its base's, can be read, and that
    its files of weights are there and plain. Raises DataError."""
    base = adapter_base(name)
    if base is not None:
        return check_model(_next_base(name, base))
    _check_folder(name)
    _check_weights(name, load_config(name))


def adapter_base(name: str) -> str | None:
    """The base model that an adapter names, or None for what is no adapter. Raises DataError for a broken one."""
    if not isinstance(name, str):
        raise UserError(f"the model is {name!r}; give a model folder or a hub id.")
    settings = _read_json(name, _ADAPTER)
    if settings is None:
        return None
    if _file(name, _WEIGHTS) or _file(name, _INDEX):
        raise DataError(
            f"{name}: holds a whole model and an adapter ({_ADAPTER}). Put them into folders of their own and name one."
        )
    base = settings.get("base_model_name_or_path")
    if not isinstance(base, str) or not base.strip():
        raise DataError(
            f"{name}: {_ADAPTER} names no base model. Write its folder or hub id there as base_model_name_or_path."
        )
    beside = Path(name).parent / base  # where the two folders were moved together
    return str(beside) if Path(name).is_dir() and not Path(base).is_dir() and beside.is_dir() else base


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id; a missing pad token becomes EOS (masks rule, not the pad id).

    An adapter that was saved without one has its base model's. stops_at: ids at which the model stops beside EOS.
    family: how the model is shown images and clips (diagnostics.vision), None for one that reads text alone.
    encodes: whether its prompts go to an encoder.
    """
    base = adapter_base(name)
    if base is not None and not has_tokenizer(name):
        return load_tokenizer(_next_base(name, base))
    if base is None:
        _check_folder(name, weights=False)
        if Path(name).is_dir() and not _has_tokenizer(Path(name)):
            raise DataError(
                f"{name}: no tokenizer in this folder. Save it there with tokenizer.save_pretrained('{name}')."
            )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except Exception as error:
        raise DataError(f"{name}: the tokenizer cannot be loaded ({_first_line(error)}).") from None
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is not None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.stops_at, tokenizer.family = _stops_at(name, base), _family(name, base)
    tokenizer.encodes = _lowest_kind(name, base) is AutoModelForSeq2SeqLM
    return tokenizer


def noted(tokenizer: Any, model: Any) -> Any:
    """The tokenizer of a model that others loaded, or a copy, with what load_tokenizer notes at one: where the model
    stops beside EOS, how it is shown images and clips, and whether it has an encoder."""
    inner = unwrap(model)
    ids = getattr(getattr(inner, "generation_config", None), "eos_token_id", None)
    stops = {i for i in (ids if isinstance(ids, list) else [ids]) if i is not None} - {tokenizer.eos_token_id}
    notes = {"family": family_of(getattr(inner, "config", None)), "stops_at": tuple(sorted(stops))}
    missing = {k: v for k, v in (notes | {"encodes": encodes(model)}).items() if v and not getattr(tokenizer, k, None)}
    if not missing:
        return tokenizer
    found = copy.copy(tokenizer)
    vars(found).update(missing)
    return found


def has_tokenizer(name: str) -> bool:
    """Whether a model folder or hub id has a tokenizer of its own."""
    return any(_file(name, leaf) for leaf in _TOKENIZERS)


def _family(name: str, base: str | None) -> Family | None:
    """How a model, or the base of an adapter, is shown images and clips."""
    if base is not None:
        below = _next_base(name, base)
        return _family(below, adapter_base(below))
    said = _read_json(name, "config.json") or {}
    return family_of(load_config(name), name) if "vision_config" in said else None


def _lowest_kind(name: str, base: str | None) -> Any:
    """The Auto class of a model, or of the base of an adapter."""
    if base is None:
        return _kind(name)
    below = _next_base(name, base)
    return _lowest_kind(below, adapter_base(below))


def _stops_at(name: str, base: str | None) -> tuple[int, ...]:
    """Ids at which generation_config.json says that the model stops; of an adapter without one, its base's file."""
    said = _read_json(name, "generation_config.json")
    if said is None and base is not None:
        below = _next_base(name, base)
        return _stops_at(below, adapter_base(below))
    ids = (said or {}).get("eos_token_id")
    return tuple(i for i in (ids if isinstance(ids, list) else [ids]) if type(i) is int and i >= 0)


def model_limit(model: Any) -> int | None:
    """Longest sequence the model was built for, or None where its config does not say."""
    return _limit(model.config)


def longest(asked: int | None, limit: int | None) -> int | None:
    """Longest sequence to use: what was asked for, but never more than the model was built for."""
    return min((x for x in (asked, limit) if x), default=None)


def config_limit(name: str) -> int | None:
    """The same from a model folder or hub id, without loading the weights."""
    base = adapter_base(name)
    return _limit(load_config(name)) if base is None else config_limit(_next_base(name, base))


def load_to_device(name: str, *, dtype: str = "float32", device_map: str | None = None) -> Any:
    """load_model on this process's GPU where there is one, or spread over all devices by a device_map."""
    quiet()
    if dtype not in ("float32", "bfloat16", "float16"):
        raise UserError(f"--dtype is '{dtype}'; it must be float32, bfloat16 or float16.")
    if device_map and processes().num_processes > 1:
        raise UserError("--device-map spreads one model over all devices: start one process, or leave it out.")
    if not device_map:
        warn_if_slow(dtype, str(processes().device))
    model = load_model(name, dtype=dtype, device_map=device_map)
    if not device_map:
        nn.Module.to(model, processes().device)
    return model


def warn_if_slow(dtype: str, device: str) -> None:
    """Says, once a process, that this processor has no units for a dtype (measured with 135 million weights on one that
    has none, in bfloat16: scoring 6.6 times and training 16 times slower than in float32)."""
    if device == "cpu" and not _has_units(dtype):
        _say_slow(dtype)


@functools.cache
def _say_slow(dtype: str) -> None:
    tell(
        f"warning: this processor has no units for {dtype}, in which everything is about 7 to 16 times slower "
        "than in float32. Use float32 here.",
        file=sys.stderr,
    )


def _has_units(dtype: str) -> bool:
    """Whether torch has fast products of this dtype on this processor; True where it does not say."""
    short = {"bfloat16": "bf16", "float16": "fp16"}.get(dtype)
    try:
        return short is None or bool(getattr(torch.ops.mkldnn, f"_is_mkldnn_{short}_supported")())
    except (AttributeError, RuntimeError):  # a build without oneDNN
        return True


def add_lora(model: PreTrainedModel, *, r: int, alpha: int, targets: str) -> Any:
    """The model with a fresh LoRA adapter (peft); its reference is itself with the adapter off.

    Of a model that is shown media only the language model has one, not its vision tower and projector.
    """
    import peft

    wanted = targets if targets == "all-linear" else [t.strip() for t in targets.split(",")]
    settings = peft.LoraConfig(
        r=r, lora_alpha=alpha, target_modules=wanted, lora_dropout=0.0, task_type=_task(model),
        exclude_modules=_outside(model),
    )  # fmt: skip
    try:
        return peft.get_peft_model(model, settings)
    except ValueError as error:
        raise UserError(f"lora_targets '{targets}' does not fit this model ({_first_line(error)}).") from None


def freeze_vision(model: Any) -> None:
    """Leave only the weights of the language model and its head to be trained. UserError where there are no others."""
    text = getattr(model.config, "get_text_config", None)  # a denoiser has none
    if text is None or text() is model.config:
        raise UserError("freeze_vision: this model is shown no images or clips; leave it out.")
    inside = {id(p) for m in (model.get_decoder(), model.get_output_embeddings()) for p in m.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in inside:
            parameter.requires_grad_(False)


def _task(model: nn.Module) -> str:
    """The kind of model in peft's words."""
    return "SEQ_2_SEQ_LM" if encodes(model) else "CAUSAL_LM"


def _outside(model: Any) -> str | None:
    """A pattern for the modules outside of a language model and its head; None where there is nothing outside."""
    if model.config.get_text_config() is model.config:
        return None
    names = {module: name for name, module in model.named_modules()}
    inside, head = (re.escape(names[m]) for m in (model.get_decoder(), model.get_output_embeddings()))
    return rf"(?!{inside}\.|{head}$).*"


def keep_processor(model: Any, folder: str | Path) -> None:
    """Copy the files that say how media are prepared from a model's own folder to another that it is saved in."""
    name = model.config._name_or_path
    while name and (base := adapter_base(name)):
        name = _next_base(name, base)
    for leaf in FILES if name else ():
        path = _file(name, leaf)
        if path and path.resolve() != (Path(folder) / leaf).resolve():
            shutil.copyfile(path, Path(folder) / leaf)


def make_savable(model: Any) -> str | None:
    """Make sure, before anything is trained, that the model's settings can be saved; says what was changed for it.

    Some models come with settings of sampling in generation_config.json that do not sample: they change nothing, but
    transformers refuses to save them, after the training. They are left out. Raises DataError where that is not enough.
    """
    inner: Any = model.get_base_model() if hasattr(model, "get_base_model") else model
    name, known = inner.config._name_or_path, getattr(inner, "generation_config", None)
    with tempfile.TemporaryDirectory() as folder:
        try:
            inner.config.save_pretrained(folder)
            if known is None:
                return None
            why = _unsavable(known, folder)
            if not why:
                return None
            kept = {k: v for k, v in known.to_diff_dict().items() if k not in _SAMPLING}
            inner.generation_config = GenerationConfig(**kept)
            still = _unsavable(inner.generation_config, folder)
        except Exception as error:
            raise DataError(
                f"{inner.config._name_or_path}: its config cannot be saved ({_first_line(error)})."
            ) from None
    if still:
        raise DataError(
            f"{name}: generation_config.json cannot be saved, and the trained weights neither ({still}). Mend or "
            "remove it."
        )
    return (
        f"{name}: generation_config.json has settings of sampling but does not sample; they are left out of what is "
        "saved."
    )


@contextmanager
def adapter_off(model: Any) -> Iterator[None]:
    """The base model, for the time being."""
    with model.disable_adapter() if hasattr(model, "disable_adapter") else nullcontext():
        yield


@contextmanager
def adapter_switched(model: Any, to: bool | str) -> Iterator[None]:
    """The policy's reference weights, for the time being: its adapter off (True), or the one of that name in its place.
    Which weights are trained stays as it was, which peft changes on its way back."""
    inner = unwrap(model)
    trained = [(p, p.requires_grad) for p in inner.parameters()]
    active = inner.base_model.active_adapter
    try:
        if to is True:
            with inner.disable_adapter():
                yield
        else:
            inner.base_model.set_adapter(to)
            yield
    finally:
        if to is not True:
            inner.base_model.set_adapter(active)
        for parameter, before in trained:
            parameter.requires_grad_(before)


def quiet() -> None:
    """Keep transformers' own notices and loading bars out of our output, and peft's use of a name on its way out."""
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _with_adapter(name: str, base: str, dtype: str, device_map: str | None) -> Any:
    """The base model with its adapter. Says which base that is: the adapter's file decides it, not the user."""
    import peft

    base = _next_base(name, base)
    processes()
    tell(f"{name} is an adapter; its base model is {base}, as its {_ADAPTER} says.", file=sys.stderr)
    weights = _file(name, _ADAPTER_WEIGHTS)
    if weights is None:
        found = [p.name for pattern in _PICKLED for p in Path(name).glob(pattern)]
        why = f"only pickled weights ({', '.join(found)}), which can run code" if found else f"no {_ADAPTER_WEIGHTS}"
        raise DataError(f"{name}: {why}. Save the adapter with save_pretrained, which writes safetensors.")
    below = load_policy(base, dtype=dtype, device_map=device_map)
    folder = str(weights.parent)
    try:
        settings: Any = peft.PeftConfig.from_pretrained(folder)
        kind = settings.task_type or _task(below)
        if settings.is_prompt_learning or settings.is_adaption_prompt or kind != _task(below):
            raise ValueError(f"adapters of the kind {settings.peft_type} for {kind} are not read")
        if getattr(settings, "megatron_config", None):
            raise ValueError("it asks for megatron's code")
        settings.inference_mode = True
        model = peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING[kind](below, settings)
        found = model.load_adapter(folder, "default", torch_device=None if device_map else "cpu")
    except Exception as error:
        raise DataError(
            f"{name}: the adapter does not fit its base model {base} ({_first_line(error)}). Name the base that it was "
            f"trained on, as it was then, in {_ADAPTER}."
        ) from None
    check_adapter(name, found, f"Name the base that it was trained on, which is not {base}, in {_ADAPTER}.")
    return model


def check_adapter(name: str, found: Any, advice: str) -> None:
    """DataError where an adapter's file has not all of its weights, or others. found: what peft's load_adapter says."""
    wrong = [*(f"{k} is missing" for k in found.missing_keys), *(f"{k} is left over" for k in found.unexpected_keys)]
    if wrong:
        raise DataError(f"{name}: the adapter's weights do not fit its model ({_some(wrong)}). {advice}")


def _next_base(name: str, base: str) -> str:
    """The base of an adapter, which may be an adapter itself; DataError where that goes round in a circle."""
    seen, at = {_place(name)}, base
    while at is not None:
        if _place(at) in seen:
            raise DataError(f"{name}: {_ADAPTER} names a base model that has this adapter as its own base ({at}).")
        seen.add(_place(at))
        at = adapter_base(at)
    return base


def _place(name: str) -> str:
    return str(Path(name).resolve()) if Path(name).is_dir() else name


def _check_folder(name: str, *, weights: bool = True) -> None:
    folder = Path(name)
    if not folder.is_dir():
        if not _is_hub_id(name):
            raise DataError(
                f"{name}: no such model folder. Give a folder with config.json and *.safetensors, or a hub id."
            )
        return  # a hub id: from_pretrained says what is wrong with it
    if not (folder / "config.json").exists():
        raise DataError(f"{name}: no config.json in this folder, so it is not a model. Use model.save_pretrained.")
    if weights and not list(folder.glob("*.safetensors")):
        found = [p.name for pattern in _PICKLED for p in folder.glob(pattern)]
        why = f"only pickled weights ({', '.join(found)}), which can run code" if found else "no *.safetensors"
        raise DataError(f"{name}: {why}. Save the model with model.save_pretrained, which writes safetensors.")


def _check_weights(name: str, config: Any) -> None:
    """DataError where the weights' list, or the config, leads to files that are no safetensors."""
    asked = getattr(config, "transformers_weights", None)
    index = str(asked) if str(asked).endswith(".index.json") else _INDEX
    parts = (_read_json(name, index) or {}).get("weight_map", {}) if asked or not _file(name, _WEIGHTS) else {}
    if not isinstance(parts, dict):
        raise DataError(f"{name}: {index} has no weight_map of names and files. Save the model anew.")
    files = [*parts.values(), *([asked] if asked and index != asked else [])]
    wrong = sorted({str(f) for f in files if not str(f).endswith(".safetensors") or Path(str(f)).name != str(f)})
    if wrong:
        raise DataError(
            f"{name}: its weights are to be read from {_some(wrong)}, which is no .safetensors file of this model. "
            "Save the model with model.save_pretrained, which writes safetensors."
        )
    if Path(name).is_dir():
        files = files or [_WEIGHTS] * (Path(name) / _WEIGHTS).is_file()
        _check_files(sorted({Path(name) / str(file) for file in files}))


def _check_files(files: Collection[Path]) -> None:
    """DataError for a file of weights that is missing, cut or no safetensors, or holds weights as whole numbers: these
    are quantised, and the scale that makes them weights is not known here. Reads the files' heads alone."""
    for file in files:
        if not file.is_file():
            raise DataError(f"{file}: missing, and the list of the model's weights names it. Copy it there.")
        try:
            with safe_open(file, "pt") as opened:
                kinds = {key: opened.get_slice(key).get_dtype() for key in opened.keys()}
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"{file}: not readable as safetensors ({_first_line(error)}). Copy or save it anew."
            ) from None
        whole = sorted(key for key, kind in kinds.items() if key.endswith("weight") and kind[0] in "IU")
        if whole:
            raise DataError(
                f"{file}: its weights are quantised ({_some(whole)}: {kinds[whole[0]]}). Chesboard reads plain weights "
                "only: dequantise the model and save it with save_pretrained."
            )


def _check_loaded(name: str, config: Any, found: dict[str, Any], *, text: bool) -> None:
    """DataError for weights that the files lack, have too many, or in another shape. text: a model to write text."""
    missing = sorted(found["missing_keys"])
    left = sorted(k for k in found["unexpected_keys"] if not _HARMLESS.search(k))
    shapes = [f"{k} {tuple(got)} for {tuple(wanted)}" for k, got, wanted in sorted(found["mismatched_keys"])]
    said = [
        f"{len(keys)} {what} ({_some(keys)})"
        for keys, what in ((missing, "missing"), (shapes, "of another shape"), (left, "left over"))
        if keys
    ]
    if not said:
        return
    kind = str(next(iter(getattr(config, "architectures", None) or []), ""))
    other = f" It was saved as {kind}, not as a causal language model." if text and _OTHER.search(kind) else ""
    raise DataError(
        f"{name}: its weights are not those of the model that config.json describes: {'; '.join(said)}.{other} Save "
        "the whole model with model.save_pretrained."
    )


def _hub_code(said: Any) -> Iterator[tuple[str, str]]:
    """Places in a config that name attention, experts or kernels of the hub: `owner/name`."""
    items = said.items() if isinstance(said, dict) else enumerate(said) if isinstance(said, list) else ()
    for key, value in items:
        if "_implementation" in str(key) or "kernel_config" in str(key):
            yield from ((str(key), text) for text in _texts(value) if "/" in text)
        else:
            yield from _hub_code(value)


def _texts(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [t for v in (*value.keys(), *value.values()) for t in _texts(v)]
    return (
        [t for v in value for t in _texts(v)] if isinstance(value, list) else [value] if isinstance(value, str) else []
    )


def _limit(config: Any) -> int | None:
    config = config.get_text_config()
    limit = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    return int(limit) if limit else None


def _file(name: str, leaf: str) -> Path | None:
    """A file of a model folder or hub id, or None where there is none (or no way to it)."""
    if Path(name).is_dir():
        path = Path(name) / leaf
        return path if path.is_file() else None
    if not _is_hub_id(name):
        return None
    found = cached_file(name, leaf, local_files_only=not _reachable(name), **_QUIET)
    return Path(found) if found else None


def _is_hub_id(name: str) -> bool:
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


@functools.cache
def _reachable(name: str) -> bool:
    """Whether the hub answers for this id; where it does not, only what was fetched before is looked at."""
    try:
        file_exists(name, "config.json")
    except HfHubHTTPError:  # it answers, with a no
        return True
    except Exception:  # offline, or no such id: each library between here and there has errors of its own
        return False
    return True


def _read_json(name: str, leaf: str) -> dict[str, Any] | None:
    """A JSON object of a model folder or hub id; None where there is no such file."""
    path = _file(name, leaf)
    if path is None:
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: {leaf} is not readable as JSON ({_first_line(error)}). Save it anew.") from None
    if not isinstance(found, dict):
        raise DataError(f"{name}: {leaf} holds no JSON object. Save it anew.")
    return found


def _unsavable(settings: GenerationConfig, folder: str) -> str:
    """Why these settings cannot be saved, or nothing; the trainer writes the tokenizer's ends into them first, and
    settings that were changed since they were read are held to all rules."""
    try:
        settings.validate(strict=True)
        settings.save_pretrained(folder)
    except ValueError as error:
        return _first_line(error)
    return ""


def _some(names: Collection[str]) -> str:
    shown = list(names)[:4]
    return ", ".join(shown) + (f" and {len(names) - len(shown)} more" if len(names) > len(shown) else "")


def _has_tokenizer(folder: Path) -> bool:
    return any((folder / n).exists() for n in _TOKENIZERS)


def _no_dropout(model: nn.Module) -> None:
    """Dropout would make policy and reference differ, and the log noisy; some layers keep its rate as a number."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines[: 2 if lines[0].endswith(":") else 1])[:300]
