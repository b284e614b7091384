"""Content hashes of a model's weights, of a tokenizer, and of a data set: equal content, equal hash."""

import hashlib
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

from diagnostics.manifest import file_hash
from diagnostics.pairs import PairTable
from diagnostics.sequences import Example


def weights_hash(model: nn.Module) -> str:
    """Content hash of all weights, the same for the same numbers wherever they were loaded from."""
    digest = hashlib.blake2b(digest_size=12)
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(_values(model, name, tensor).contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tokenizer_hash(tokenizer: Any) -> str:
    """Content hash of vocabulary, special tokens and chat template."""
    content = repr((sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map, tokenizer.chat_template))
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content += backend.to_str()
    return hashlib.blake2b(content.encode(), digest_size=12).hexdigest()


def data_hash(table: PairTable) -> str:
    """Content hash of a data set: of the file itself where it is one, else of its pairs (a folder or hub id)."""
    known = file_hash(table.source)
    if known:
        return known
    digest = hashlib.sha256()
    for p in table.pairs:
        told = (p.pair_id, p.source_row, p.prompt, p.chosen, p.rejected, p.tools, p.template_kwargs, p.columns)
        digest.update(repr(told).encode())
    digest.update(repr([(p.source_row, p.code, p.reason) for p in table.problems]).encode())
    return digest.hexdigest()


def rendered_hash(pairs: Iterable[Example]) -> str:
    """Content hash of what the model is given: every pair's ids, in order. It differs where a chat template, its
    arguments or the clock that it shows make another text of the same data."""
    digest = hashlib.sha256()
    for p in pairs:
        own = ([row.prompt_ids] if row.prompt_ids != p.prompt_ids else [] for row in p.rows.values())
        answers = ([*asked, row.completion_ids] for asked, row in zip(own, p.rows.values(), strict=True))
        for ids in (p.prompt_ids, *chain.from_iterable(answers)):
            digest.update(np.array([len(ids), *ids], dtype="<i8").tobytes())
    return digest.hexdigest()


def _values(model: nn.Module, name: str, tensor: Tensor) -> Tensor:
    """The tensor on the CPU, also where it is kept off the devices (device_map) until its layer runs."""
    if not tensor.is_meta:
        return tensor.detach().cpu()
    owner, _, leaf = name.rpartition(".")
    module = model.get_submodule(owner)
    with align_module_device(module, torch.device("cpu")):
        return getattr(module, leaf).detach().clone()
