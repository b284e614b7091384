"""Pairs on the same prompts whose answers come from different places, each once with a winner that can be learned and
once with one by a coin: what a map of when chosen answers fall is made of (trainers/papers/when.py).

    own    first sentences of two answers that the model draws itself: on-policy, and unlike each other
    near   one of them beside itself with one word more: on-policy, and alike
    given  the data's own two answers: off-policy
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diagnostics.errors import DataError
from diagnostics.pairs import PreferencePair, read_pairs
from diagnostics.sampling import answers
from trainers.models import load_to_device, load_tokenizer
from trainers.worlds.self_pairs import content, like

SOURCES = ("own", "near", "given")
WINNERS = ("learnable", "random")
TOKENS = 40  # of an answer that the model draws, of which the first sentence is kept
SENTENCE = re.compile(r".*?[.!?](?=\s|$)", re.DOTALL)
MORE = "really"  # the word that near puts in


def build(folder: Path, model: str, data: str, rows: Sequence[int], count: int, seed: int) -> None:
    """Write folder/<source>-<winner>.jsonl, `count` pairs each, on the first prompts that have all six.

    model: a folder or hub id, which answers at temperature 1; data: pairs; rows: which of its source rows, in order.
    Learnable: of own the answer of fewer tokens wins, of near the one without the word, of given the chosen one. An
    answer of which no sentence ended within TOKENS is left out: cut, its end would not be the model's own.
    """
    table = {pair.source_row: pair for pair in read_pairs(data).pairs}
    pairs = [table[row] for row in rows]
    loaded, tokenizer = load_to_device(model), load_tokenizer(model)
    prompts = [pair.prompt for pair in pairs]
    how: dict[str, Any] = {"temperature": 1.0, "limit": TOKENS}
    drawn = [answers(loaded, tokenizer, prompts, seed=2 * seed + k, **how) for k in (0, 1)]
    rng, found = np.random.default_rng([seed, 6]), dict[str, list[dict[str, Any]]]()
    for pair, one, other in zip(pairs, *drawn, strict=True):
        if len(found.get("own-random", [])) == count:
            break
        said = [(_first(text), len(tokenizer(_first(text))["input_ids"])) for text in (one, other)]
        answered = _answered(pair, said, rng)
        if said[0][1] != said[1][1] and all(
            chosen and rejected and chosen != rejected for chosen, rejected in answered.values()
        ):
            _add(found, pair, answered, rng)
    if len(found.get("own-random", [])) < count:
        raise DataError(
            f"{data}: the model answered only {len(found.get('own-random', []))} prompts, not {count}. Give more."
        )
    folder.mkdir(parents=True, exist_ok=True)
    for name, lines in found.items():
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _first(text: str) -> str:
    """The first sentence; empty where none ended, or a character was cut."""
    found = SENTENCE.match(text.strip())
    return found.group() if found and "\ufffd" not in found.group() else ""


def _answered(
    pair: PreferencePair, said: Sequence[tuple[str, int]], rng: np.random.Generator
) -> dict[str, tuple[str, str]]:
    """By source: the winner that can be learned, and the loser. said: two own answers, each with its tokens."""
    one = said[0][0]
    words = one.split(" ")
    place = int(rng.integers(len(words)))
    (short, _), (long, _) = sorted(said, key=lambda each: each[1])
    return {
        "own": (short, long),
        "near": (one, " ".join([*words[:place], MORE, *words[place:]])),
        "given": (content(pair.chosen).strip(), content(pair.rejected).strip()),
    }


def _add(
    found: dict[str, list[dict[str, Any]]],
    pair: PreferencePair,
    answered: Mapping[str, tuple[str, str]],
    rng: np.random.Generator,
) -> None:
    for source, both in answered.items():
        for winner in WINNERS:
            swap = winner == "random" and rng.random() < 0.5
            chosen, rejected = both[::-1] if swap else both
            row = {
                "pair_id": pair.pair_id,
                "prompt": pair.prompt,
                "chosen": like(pair.prompt, chosen),
                "rejected": like(pair.prompt, rejected),
            }
            found.setdefault(f"{source}-{winner}", []).append(row)
