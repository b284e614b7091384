"""Which way a model is run: packed or padded rows, head in tiles or at once. The plain way is always right.

A way is taken only if it gives, on a small random batch, what the plain padded batch gives.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from diagnostics.errors import DataError, UserError
from diagnostics.packing import NAME
from diagnostics.sequences import Example


@dataclass
class Engine:
    """packed: rows are packed, prompts shared. tiled: the head is applied in tiles.

    longest: pairs with more tokens on a side take the plain way, because the model only attends within a window that
    its attention layers do not pass on. apart: packed prompts may be run before their completions. positions: whether
    positions that count from a row's first token are the model's own. switch: longest sequence with the usual rotary
    factors, where a model has others for longer ones (longrope, dynamic NTK); growing: others for every length.
    configs: those that name the packed attention while it is on. shown: whether rows that have media may be packed.
    """

    packed: bool = False
    tiled: bool = False
    longest: int | None = None
    apart: bool = False
    positions: bool = True
    switch: int | None = None
    growing: bool = False
    configs: tuple[Any, ...] = field(default=(), compare=False, repr=False)
    shown: bool = False

    @property
    def name(self) -> str:
        """In words, for the manifest."""
        body = "packed rows, prompt shared" if self.packed else "padded rows"
        return f"{body}; head {'in tiles' if self.tiled else 'at once'}, on completion tokens only"

    def regime(self, length: int) -> int:
        """Sequences of one regime have the same rotary factors; 0: the usual ones."""
        if self.switch is None or length <= self.switch:
            return 0
        return length if self.growing else 1


_ENGINES: WeakKeyDictionary[nn.Module, Engine] = WeakKeyDictionary()  # of models that were prepared


class _Body:
    """A body's output of which only the last hidden state is there."""

    def __init__(self, hidden: Tensor) -> None:
        self.last_hidden_state = hidden

    def __getitem__(self, key: Any) -> Any:
        return self.last_hidden_state if key == 0 else ()

    def __getattr__(self, name: str) -> None:
        return None


def unwrap(model: nn.Module) -> Any:
    """The model inside DistributedDataParallel, torch.compile and the like."""
    while isinstance(inner := getattr(model, "module", None) or getattr(model, "_orig_mod", None), nn.Module):
        model = inner
    return model


def innermost(model: nn.Module) -> Any:
    """The transformers model itself, under data-parallel and adapter wrappers."""
    inner = unwrap(model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def head_of(model: nn.Module) -> nn.Module:
    """The module whose input is the last hidden state: the model's output embedding."""
    head = unwrap(model).get_output_embeddings()
    if head is None:
        name = type(unwrap(model)).__name__
        raise UserError(f"{name} has no output embedding. Use a causal language model (AutoModelForCausalLM).")
    return head


def encodes(model: nn.Module) -> bool:
    """Whether a model's prompts go to an encoder, and its decoder predicts the completions."""
    return bool(getattr(getattr(innermost(model), "config", None), "is_encoder_decoder", False))


def device_of(model: nn.Module) -> torch.device:
    """Where a batch is put: the device of the first weights that are on one (device_map may keep others elsewhere)."""
    devices = (p.device for p in model.parameters() if not p.is_meta)
    return next(devices, torch.device("cpu"))


def engine_of(model: nn.Module) -> Engine:
    """How this model is run. `prepare` may have found something faster than the plain way."""
    return _ENGINES.get(innermost(model)) or Engine()


def remember(model: nn.Module, engine: Engine) -> Engine:
    """Keep the choice for this model; nothing is written into it."""
    _ENGINES[innermost(model)] = engine
    return engine


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for the time being; each module gets its own mode back."""
    before = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            module.training = training


def packable(inner: Any) -> tuple[Any, ...]:
    """The configs that name the attention of a transformers model where it can be the packed one; () where not.

    Of a vision-language model, those of its language model.
    """
    language = inner if inner.config.get_text_config() is inner.config else inner.get_decoder()
    own = configs_of(language)
    before = [(c, c._attn_implementation_internal) for c in configs_of(inner).values()]
    try:
        inner.set_attn_implementation(NAME)
        changed = tuple(c for c in own.values() if c._attn_implementation_internal == NAME)
    finally:
        for config, name in before:
            config._attn_implementation_internal = name
    return changed if any(c is language.config for c in changed) else ()


def configs_of(inner: nn.Module) -> dict[int, Any]:
    """Every config of a model's modules, and those inside them, by id."""
    found: dict[int, Any] = {}
    waiting: list[Any] = [m.config for m in inner.modules() if isinstance(getattr(m, "config", None), PreTrainedConfig)]
    while waiting:
        config = waiting.pop()
        if id(config) not in found:
            found[id(config)] = config
            waiting += [c for n in config.sub_configs if (c := getattr(config, n, None)) is not None]
    return found


@contextmanager
def packed_attention(model: nn.Module) -> Iterator[None]:
    """The packed attention while open; outside, the attention is the caller's.

    A layer that is checkpointed runs again in the backward pass, then too with the packed attention.
    """
    inner, configs = innermost(model), engine_of(model).configs

    def bound(around: Any) -> Any:
        def run(function: Any, *args: Any, **kwargs: Any) -> Any:
            def again(*a: Any, **k: Any) -> Any:
                with attention_named(configs, NAME):
                    return function(*a, **k)

            return around(again, *args, **kwargs)

        return run

    modules = inner.modules() if torch.is_grad_enabled() else ()
    checkpoints = [(m, getattr(m, "_gradient_checkpointing_func", None)) for m in modules]
    layers: list[tuple[Any, Any]] = [(m, around) for m, around in checkpoints if around is not None]
    with attention_named(configs, NAME):
        for module, around in layers:
            module._gradient_checkpointing_func = bound(around)
        try:
            yield
        finally:
            for module, around in layers:
                module._gradient_checkpointing_func = around


@contextmanager
def attention_named(configs: Sequence[Any], attention: str) -> Iterator[None]:
    """An attention's name in these configs while open; afterwards what they had."""
    before = [c._attn_implementation_internal for c in configs]
    for config in configs:
        config._attn_implementation_internal = attention
    try:
        yield
    finally:
        for config, name in zip(configs, before, strict=True):
            config._attn_implementation_internal = name


def rotary_switch(inner: nn.Module) -> tuple[int | None, bool]:
    """Length from which on rotary factors depend on the longest row of a call, and whether on its very length."""
    lengths, growing = [], False
    for module, kinds in _switching(inner):
        for kind, settings in kinds:
            growing |= "dynamic" in kind
            length = settings.get("original_max_position_embeddings") if kind == "longrope" else None
            lengths.append(int(length or getattr(module, "original_max_seq_len", 0)))
    return min(lengths, default=None), growing


@contextmanager
def fresh_factors(model: nn.Module) -> Iterator[None]:
    """Rotary factors as in a model just loaded, which some keep from call to call; afterwards as they were."""
    with ExitStack() as stack:
        for module, _ in _switching(innermost(model)) if engine_of(model).switch is not None else ():
            stack.enter_context(_fresh(module))
        yield


@contextmanager
def _fresh(module: Any) -> Iterator[None]:
    attributes, buffers = dict(vars(module)), dict(module._buffers)
    for name, value in {**attributes, **buffers}.items():
        if name.endswith("original_inv_freq") and isinstance(value, Tensor):
            other = name.replace("original_inv_freq", "inv_freq")
            if other in module._buffers:
                module._buffers[other] = value.clone().to(module._buffers[other].device)
        elif name.endswith("max_seq_len_cached"):
            setattr(module, name, module.original_max_seq_len)
    try:
        yield
    finally:
        module._buffers.clear()
        module._buffers.update(buffers)
        for name in set(vars(module)) - set(attributes):
            delattr(module, name)
        vars(module).update(attributes)


def _switching(inner: nn.Module) -> list[tuple[Any, list[tuple[str, dict[str, Any]]]]]:
    """Modules with rotary factors that switch, with the kind and the settings of each set of them."""
    found = []
    for module in inner.modules():
        kind = getattr(module, "rope_type", None)
        settings = getattr(getattr(module, "config", None), "rope_parameters", None) or {}
        sets = [(k, settings.get(n) or {}) for n, k in kind.items()] if isinstance(kind, dict) else [(kind, settings)]
        sets = [(k, s) for k, s in sets if isinstance(k, str) and ("dynamic" in k or k == "longrope")]
        if sets:
            found.append((module, sets))
    return found


def apply_head(model: nn.Module, hidden: Tensor) -> Tensor:
    """Logits (N, V) of hidden states (N, D) that the head takes: the model's own forward with its body stubbed.

    So bias, scale, soft-cap and mixed precision are the model's, with no list of models here. T5 scales what its
    decoder gives before the head: there the head is given the hidden states themselves.
    """
    body = innermost(model).get_decoder()
    output = _Body(hidden.unsqueeze(0))
    before = vars(body).get("forward")
    body.forward = lambda *args, **kwargs: output
    one = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
    given, hook = {"input_ids": one}, None
    if encodes(model):
        given = {"encoder_outputs": (output.last_hidden_state,), "decoder_input_ids": one}
        hook = head_of(model).register_forward_pre_hook(lambda _, args: (output.last_hidden_state, *args[1:]))
    try:
        return unwrap(model)(**accepted(model, given)).logits[0]
    finally:
        if hook is not None:
            hook.remove()
        del body.forward
        if before is not None:
            body.forward = before


def accepted(model: nn.Module, inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs that this model's forward takes, without a cache and without what only its own loss reads.

    Positions (B, T) that count tokens only where they are the model's own; (3, B, T) are by its own rule.
    """
    inner = innermost(model)
    known, own = inspect.signature(inner.forward).parameters, engine_of(model).positions
    taken = {k: v for k, v in inputs.items() if k != "position_ids" or (k in known and (own or v.ndim == 3))}
    passed = ("use_cache",) if inner.config.get_text_config() is not inner.config else ()  # on to its language model
    return taken | {k: False for k in ("use_cache", "output_router_logits") if k in known or k in passed}


def check_ids(model: nn.Module, examples: Sequence[Example]) -> None:
    """DataError where the tokenizer gives ids that the model has no embedding for."""
    rows = innermost(model).get_input_embeddings().weight.shape[0]
    for example in examples:
        largest = max(max(ids) for row in example.rows.values() for ids in (row.prompt_ids, row.completion_ids))
        if largest >= rows:
            raise DataError(
                f"the tokenizer gives token id {largest} (pair_id {example.pair_id}), but the model has only {rows} "
                "embeddings. Use the model's own tokenizer, or resize the model's embeddings and save it."
            )


def close(got: Tensor, plain: Tensor, dtype: torch.dtype) -> bool:
    """Whether a faster way gives the plain result up to the rounding of the model's dtype, by norms."""
    if got.shape != plain.shape or not got.isfinite().all():
        return False
    # measured: rounding gives up to 1e-2 in bfloat16 and 3e-7 in float32, a pair that sees its neighbours 0.1 to 0.7
    allowed = 0.25 * torch.finfo(dtype).eps ** 0.5
    return bool((got - plain).float().norm() <= allowed * plain.float().norm())
