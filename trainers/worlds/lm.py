"""Tiny language models from scratch: tokenizers, a small Llama, and the supervised training that comes first.

What is made here is only a starting point. It is saved in the ordinary format (safetensors, tokenizer.json),
and everything afterwards reaches it through from_pretrained, like any other model.
"""

import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

PAD, EOS, UNKNOWN = "<pad>", "<eos>", "<unk>"
WARMUP, FLOOR = 20, 0.05  # optimizer steps; share of the learning rate that is left at the end

Batch = tuple[Tensor, Tensor]  # input_ids (B, T) and the weight (B, T) of each token's loss


def word_tokenizer(words: Sequence[str]) -> PreTrainedTokenizerFast:
    """One token a word or punctuation mark; spaces are not kept. Unknown words become <unk>."""
    vocabulary = {word: i for i, word in enumerate([PAD, EOS, UNKNOWN, *words])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    return _wrap(tokenizer, unk_token=UNKNOWN)


def bpe_tokenizer(texts: Sequence[str], vocab_size: int, extra: Sequence[str] = ()) -> PreTrainedTokenizerFast:
    """Byte-level BPE learned from texts; each word of `extra` is one token of its own."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_tokens([AddedToken(word, single_word=True, normalized=False) for word in extra])
    return _wrap(tokenizer)


def words_of(text: str) -> list[str]:
    """The words and marks that `word_tokenizer` cuts a text into, without what stands in braces."""
    return [piece for piece, _ in pre_tokenizers.Whitespace().pre_tokenize_str(re.sub(r"{.*?}", " ", text))]


def build_model(tokenizer: PreTrainedTokenizerFast, *, seed: int, positions: int = 256) -> LlamaForCausalLM:
    """A Llama of 2 layers and width 64 with random float32 weights and an output embedding of its own."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=positions,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=eos_id(tokenizer),
        pad_token_id=pad_id(tokenizer),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def endless(n: int, size: int, rng: np.random.Generator) -> Iterator[list[int]]:
    """Batches of row numbers out of n, for ever; every row comes once before any comes again."""
    order: list[int] = []
    while True:
        while len(order) < size:
            order += rng.permutation(n).tolist()
        taken, order = order[:size], order[size:]
        yield taken


def pad_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Id of the padding token."""
    return tokenizer.get_vocab()[PAD]


def eos_id(tokenizer: PreTrainedTokenizerFast) -> int:
    """Id of the token that ends a completion."""
    return tokenizer.get_vocab()[EOS]


def pad(rows: Sequence[Sequence[int]], pad_token_id: int) -> Tensor:
    """Rows of ids as one (B, T) tensor, padded on the right; causal attention then needs no mask."""
    width = max(len(row) for row in rows)
    return torch.tensor([[*row, *[pad_token_id] * (width - len(row))] for row in rows])


def lm_batch(rows: Sequence[Sequence[int]], pad_token_id: int) -> Batch:
    """Full-sequence language modelling: every predicted token of the batch weighs the same, weights sum to 1."""
    ids = pad(rows, pad_token_id)
    lengths = torch.tensor([len(row) for row in rows])[:, None]
    columns = torch.arange(ids.shape[1])[None]
    weights = ((columns >= 1) & (columns < lengths)).float()
    return ids, weights / weights.sum()


def fit(model: LlamaForCausalLM, batches: Iterator[Batch], *, steps: int) -> list[float]:
    """Minimise the weighted cross-entropy (nats) with AdamW; one loss a step, in order.

    Warm-up over 20 steps, then a cosine down to 5 %; gradients clipped at norm 1. Batches are drawn one a step.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, steps))
    losses = []
    for _ in range(steps):
        ids, weights = next(batches)
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        nll = F.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (nll * weights[:, 1:]).sum()
        losses.append(descend(model, loss, optimizer, schedule))
    model.eval()
    return losses


def descend(model: Any, loss: Tensor, optimizer: Any, schedule: Any) -> float:
    """One update down the gradient of a loss, clipped to norm 1; the loss."""
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    schedule.step()
    return loss.item()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    """Write model (safetensors) and tokenizer to a folder that from_pretrained reads."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def rate(step: int, steps: int) -> float:
    """What the learning rate of a step is multiplied by: warm-up over 20 steps, then a cosine down to 5 %."""
    warm = min(1.0, (step + 1) / WARMUP)
    progress = max(0, step - WARMUP) / max(1, steps - WARMUP)
    return warm * (FLOOR + (1 - FLOOR) * 0.5 * (1 + math.cos(math.pi * progress)))


def _wrap(tokenizer: Tokenizer, **special: str) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=EOS,
        pad_token=PAD,
        clean_up_tokenization_spaces=False,
        **special,
    )
