"""How a model is run: the fastest way that gives its plain results, found by trying each on a small random batch."""

import ctypes
import os
import sys
from contextlib import suppress
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import nn

from diagnostics.batch import Batch, collate
from diagnostics.engine import (
    Engine,
    close,
    device_of,
    encodes,
    engine_of,
    evaluating,
    head_of,
    innermost,
    packable,
    remember,
    rotary_switch,
)
from diagnostics.errors import DataError
from diagnostics.forward import Outputs, read_at, run_apart, run_as
from diagnostics.logits import logps
from diagnostics.media import of_frames
from diagnostics.packing import windows_seen
from diagnostics.sequences import Example, pair_of
from diagnostics.token_ids import TokenIds
from diagnostics.vision import tensors

# glibc's numbers (malloc.h) of the size of a block, in bytes, up to which its memory is kept, and of how much is kept
_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
_OWN = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")


def prepare(model: nn.Module, family: Any = None) -> Engine:
    """Choose the fastest way that gives this model's plain results, by trying each on a small random batch.

    family: of a model that is shown media; then packing is tried on rows with media too. Nothing in the model is
    changed by it. Raises DataError for a model that is not causal, and for an encoder-decoder model that says another
    thing of a text beside a longer one.
    """
    if device_of(model).type == "cpu":
        keep_memory()
    inner = innermost(model)
    switch, growing = rotary_switch(inner)
    remember(model, Engine(switch=switch, growing=growing))
    if type(model).__name__ == "FullyShardedDataParallel":
        return engine_of(model)  # its weights are whole only inside its own forward
    batch = trial(inner)
    with torch.no_grad(), evaluating(model):
        check_causal(model)
        if encodes(model):
            check_padding(model)
        plain = remember(model, replace(engine_of(model), positions=_keeps_positions(model)))
        wanted = run_as(model, batch, head=True, packed=False, tiled=False)
        # an adapter on the head must be on or off as it was when the model ran, so such a head is applied at once
        tiled = not hasattr(head_of(model), "lora_A") and _tries(model, batch, wanted, packed=False, tiled=True)
        configs = packable(inner) if plain.positions and not encodes(model) else ()
        remember(model, replace(plain, configs=configs))
        windows_seen.clear()
        packed = bool(configs) and _tries(model, batch, wanted, packed=True, tiled=tiled)
        apart = packed and _tries_apart(model, batch, wanted)
        shown = packed and family is not None and _tries_shown(model, family, tiled=tiled, apart=apart)
    found = replace(
        plain, packed=packed, tiled=tiled, longest=_longest(inner), apart=apart, configs=configs, shown=shown
    )
    return remember(model, found)


@cache
def keep_memory() -> None:
    """Let the C library keep memory that was freed for what comes next, where it would give it back to the system.

    Measured with 135 million weights: a forward pass spent a fifth of its time on getting the same memory again, layer
    by layer, page by page. Only glibc has these settings, old ones with a lower limit; a user's own in the environment
    have the last word.
    """
    if sys.platform != "linux" or any(name in os.environ for name in _OWN):
        return
    with suppress(OSError, AttributeError):
        mallopt = ctypes.CDLL(None).mallopt
        if any(mallopt(_MMAP_THRESHOLD, size) for size in (128 << 20, 32 << 20)):
            mallopt(_TRIM_THRESHOLD, 512 << 20)


def check_causal(model: nn.Module) -> None:
    """DataError where a later token changes an earlier logit: then no answer has a log-prob. Likewise where one is NaN
    or inf."""
    rows = innermost(model).get_input_embeddings().weight.shape[0]
    ids = torch.arange(2 * 12, device=device_of(model)).view(2, 12) % rows
    ids[1, :6] = ids[0, :6]
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if encodes(model):  # one prompt for both rows
        given |= {"input_ids": ids[:1].expand_as(ids), "decoder_input_ids": ids}
    seen, _ = read_at(model, given, torch.arange(24))
    one, other = seen[:6], seen[12:18]
    if not torch.isfinite(seen).all():
        raise DataError(
            f"{type(innermost(model)).__name__} gives logits that are not finite. Look for NaN or inf in its weights, "
            "or load it as float32."
        )
    if not close(one, other, one.dtype):
        raise DataError(
            f"{type(innermost(model)).__name__} is no causal language model: what it says of a token changes with the "
            "tokens behind it, so no answer has a log-prob. Choose a model that reads from left to right."
        )


def check_padding(model: nn.Module) -> None:
    """DataError where an encoder-decoder model says another thing of a pair beside a longer one."""
    pairs = _trial_pairs(innermost(model))
    batches = [collate(some, pad_token_id=0).to(device_of(model)) for some in (pairs, *([p] for p in pairs))]
    together, *alone = (run_as(model, batch, head=False, packed=False, tiled=True) for batch in batches)
    for i, out in enumerate(alone):
        mine = together.hidden[together.rows % len(pairs) == i]
        if not close(out.hidden, mine, mine.dtype):
            raise DataError(
                f"{type(innermost(model)).__name__} says another thing of a text when a longer one stands beside it in "
                "the batch, so no log-prob of it can be trusted. Choose a model of the T5 family."
            )


def _keeps_positions(model: nn.Module) -> bool:
    """Whether positions that count from 0 are what the model counts itself."""
    ids = torch.arange(2, 11, device=device_of(model))[None] % innermost(model).get_input_embeddings().weight.shape[0]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    counted = {"position_ids": torch.arange(ids.shape[1], device=ids.device)[None]}
    try:
        own, given = (read_at(model, i, torch.arange(ids.shape[1]))[0] for i in (inputs, inputs | counted))
    except Exception:  # positions of another form
        return False
    return bool((own - given).float().norm() <= torch.finfo(own.dtype).eps ** 0.75 * own.float().norm())


def _tries_apart(model: nn.Module, batch: Batch, wanted: Outputs) -> bool:
    """Whether prompts may be run before their completions: the same hidden states."""
    try:
        return close(run_apart(model, batch).out.hidden, wanted.hidden, wanted.hidden.dtype)
    except Exception:  # as in _tries
        return False


def _tries_shown(model: nn.Module, family: Any, *, tiled: bool, apart: bool) -> bool:
    """Whether rows that are shown a clip or an image may be packed, in both ways."""
    try:
        batch = shown_trial(innermost(model), family)
        wanted = run_as(model, batch, head=True, packed=False, tiled=False)
    except Exception:  # then the first real batch says what is wrong
        return False
    return _tries(model, batch, wanted, packed=True, tiled=tiled) and (not apart or _tries_apart(model, batch, wanted))


def _tries(model: nn.Module, batch: Batch, wanted: Outputs, *, packed: bool, tiled: bool) -> bool:
    """Whether this way runs at all and agrees with the plain way in hidden states and log-probs."""
    try:
        got = run_as(model, batch, head=True, packed=packed, tiled=tiled)
        dtype = wanted.hidden.dtype
        return close(got.hidden, wanted.hidden, dtype) and close(logps(got), logps(wanted), dtype)
    except Exception:  # whatever a model does not support, the plain way does
        return False


def _longest(inner: Any) -> int | None:
    """A window or chunk in the config that no attention layer passed on in the trial."""
    config = inner.config.get_text_config()
    found = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return min((x for x in found if x and x not in windows_seen), default=None)


def trial(inner: Any) -> Batch:
    """A small random batch with ragged lengths."""
    return collate(_trial_pairs(inner), pad_token_id=0).to(device_of(inner))


def _trial_pairs(inner: Any) -> list[Example]:
    vocabulary = inner.get_input_embeddings().weight.shape[0]
    generator = torch.Generator().manual_seed(0)
    ids = [TokenIds(torch.randint(0, vocabulary, (n,), generator=generator).tolist()) for n in (5, 7, 4, 3, 1, 9)]
    return [pair_of("a", 0, ids[0], ids[1], ids[2]), pair_of("b", 1, ids[3], ids[4], ids[5])]


def shown_trial(inner: Any, family: Any) -> Batch:
    """The same of a clip, an image and no media: pairs whose prompts hold their placeholders."""
    tokens = {kind: getattr(inner.config, f"{kind}_token_id", None) for kind in ("image", "video")}
    words = [i for i in range(min(64, inner.get_input_embeddings().weight.shape[0])) if i not in tokens.values()]
    pixels = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    pairs = []
    for n, media in enumerate([(of_frames(pixels),), (of_frames(pixels[0], kind="image"),), None]):
        runs = [(s.kind, run) for m in media or () for s in [tensors.prepare(family, m, True)] for run in s.runs]
        prompt = [*words[: n + 1], *(t for kind, run in runs for t in (*[tokens[kind]] * run, words[n]))]
        made = pair_of(str(n), n, prompt, words[9 : 11 + n], words[20 + n : 24])
        pairs.append(replace(made, rows={k: replace(row, media=media) for k, row in made.rows.items()}))
    return collate(pairs, pad_token_id=0, family=family).to(device_of(inner))
