"""A small model for people who have preference data but no model at hand.

Tokenizer and model are made from the file's own text: a byte-level BPE, and a tiny Llama trained as a language
model on every prompt with its chosen and with its rejected completion. It knows the data's words and tone and
nothing else, which is enough to try the whole job; for conclusions about a real model, use that model.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerFast

from diagnostics.errors import DataError
from diagnostics.pairs import PreferencePair, Text, read_pairs
from diagnostics.sequences import Example
from diagnostics.tokenized import tokenize_pairs
from trainers.worlds import lm

VOCABULARY, STEPS, BATCH = 1500, 500, 16
PROMPT_CHARACTERS = 400  # of each prompt's end, for the tokenizer
PROMPT_TOKENS, COMPLETION_TOKENS = 48, 48  # of each prompt's end and each completion's start, for the model
SHORTEST_LIMIT = 256

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '\n\n' + message['role'] | capitalize + ': ' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


def build(folder: Path, pairs: Sequence[PreferencePair], seed: int, *, steps: int = STEPS) -> tuple[Path, list[float]]:
    """Train a tokenizer and a model on the pairs' text and save both; returns the folder and each step's loss (nats).

    The model's length limit is that of the longest pair, so that none has to be dropped; it was trained on the last
    48 prompt tokens and the first 48 completion tokens only.
    """
    tokenizer = lm.bpe_tokenizer([t for pair in pairs for t in _texts(pair)], VOCABULARY)
    tokenizer.chat_template = CHAT_TEMPLATE
    tokenized = _tokenize(pairs, tokenizer)
    longest = max(p.longest for p in tokenized)
    model = lm.build_model(tokenizer, seed=seed, positions=max(SHORTEST_LIMIT, longest))
    losses = lm.fit(model, _batches(training_rows(tokenized), tokenizer, seed), steps=steps)
    return lm.save(model, tokenizer, folder), losses


def build_drawn(folder: Path, data: str, seed: int, count: int) -> None:
    """Draw `count` pairs of the data by seed and train a model on their text: folder/pairs.jsonl, folder/model."""
    table = read_pairs(data)
    drawn = np.random.default_rng([seed, 1]).permutation(len(table.pairs))[:count]
    chosen = [table.pairs[i] for i in sorted(drawn)]
    build(folder / "model", chosen, seed)
    rows = [{k: getattr(p, k) for k in ("pair_id", "prompt", "chosen", "rejected")} for p in chosen]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def training_rows(pairs: Sequence[Example]) -> list[list[int]]:
    """Prompt + chosen and prompt + rejected of every pair, cut to the training window. A cut completion has no EOS."""
    return [
        [*pair.prompt_ids[-PROMPT_TOKENS:], *ids[:COMPLETION_TOKENS]]
        for pair in pairs
        for ids in (row.completion_ids for row in pair.rows.values())
    ]


def _tokenize(pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerFast) -> list[Example]:
    done = tokenize_pairs(pairs, tokenizer, max_length=None, truncation="drop")
    kept = [p for p in done if isinstance(p, Example)]
    if not kept:
        raise DataError("no pair of this data can be used to train a model; `chesboard audit` lists the reasons.")
    return kept


def _texts(pair: PreferencePair) -> tuple[str, str, str]:
    return _plain(pair.prompt)[-PROMPT_CHARACTERS:], _plain(pair.chosen), _plain(pair.rejected)


def _plain(text: Text) -> str:
    """The text itself, or the contents of chat messages with their roles, as the template writes them."""
    if isinstance(text, str):
        return text
    return "".join(f"\n\n{str(m['role']).capitalize()}: {m['content']}" for m in text)


def _batches(rows: list[list[int]], tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[lm.Batch]:
    """Endless batches of rows, in a new order each time round."""
    rng = np.random.default_rng([seed, 0])
    for taken in lm.endless(len(rows), BATCH, rng):
        yield lm.lm_batch([rows[i] for i in taken], lm.pad_id(tokenizer))
