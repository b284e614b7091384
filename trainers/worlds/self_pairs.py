"""Preference pairs that a model makes itself, as LeanPO makes them (arXiv 2506.05260), for text models.

The chosen answer is the model's own where the truth is known, the rejected one its own at a high temperature where it
is not. In the paper the truth is a hint in the prompt, and the rejected answer sees an augmented video: that has no
counterpart in text and is left out, as is the paper's second round, in which the model improves its first answer.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from diagnostics.errors import DataError
from diagnostics.pairs import PreferencePair, Text, read_pairs
from diagnostics.sampling import answers
from trainers.models import load_to_device, load_tokenizer
from trainers.worlds import facts

HOT = 1.2  # temperature of the rejected answer, without any cut of the distribution
DRAWS = 8  # answers drawn to a prompt until one says what it must
LONGEST, FACT, ROWS = 256, 48, 64  # tokens of an answer, and of one in the fact world; prompts answered at a time
HINT = "Here are some hints: {hint}\nPlease respond based on the given hints.\n{prompt}"
WORDS = {value for values in facts.VALUES.values() for value in values}


def build_facts(folder: Path, model: str, data: str, seed: int) -> None:
    """Write folder/pairs.jsonl on the fact world's own prompts, in the form of its data (text or chats).

    The small model cannot read hints, so its chosen answer is its greedy one, or else the first drawn one, that states
    the true value; the rejected one is the first drawn at temperature 1.2 that states another value. A prompt without
    both is left out.
    """
    given = [json.loads(line) for line in Path(data).read_text(encoding="utf-8").splitlines()]
    loaded, tokenizer = load_to_device(model), load_tokenizer(model)
    prompts = [row["prompt"] for row in given]

    def said(temperature: float, k: int) -> list[str]:
        """The answers of draw k."""
        how: Any = {"limit": FACT, "seed": 2 * DRAWS * seed + k, "together": ROWS}
        return answers(loaded, tokenizer, prompts, temperature=temperature, **how)

    calm = [said(0.0, 0), *(said(1.0, k) for k in range(DRAWS))]
    hot = [said(HOT, DRAWS + k) for k in range(DRAWS)]
    rows = []
    for k, row in enumerate(given):
        (true,) = stated(content(row["chosen"]))
        chosen = next((said[k] for said in calm if stated(said[k]) == {true}), None)
        rejected = next((said[k] for said in hot if len(stated(said[k])) == 1 and true not in stated(said[k])), None)
        if chosen and rejected:
            rows.append(row | {"chosen": like(row["chosen"], chosen), "rejected": like(row["chosen"], rejected)})
    _write(folder, rows)


def build_hinted(folder: Path, model: str, data: str, split: str | None, count: int, seed: int) -> None:
    """Write folder/pairs.jsonl: on prompts of the data, the model's greedy answer where the data's chosen answer stands
    in the prompt as a hint, against its own at temperature 1.2 without it. Equal and empty answers are left out."""
    pairs = read_pairs(data, split=split).pairs[:count]
    loaded, tokenizer = load_to_device(model), load_tokenizer(model)
    how: Any = {"limit": LONGEST, "seed": seed, "together": ROWS}
    chosen = answers(loaded, tokenizer, [hinted(pair) for pair in pairs], temperature=0.0, **how)
    rejected = answers(loaded, tokenizer, [pair.prompt for pair in pairs], temperature=HOT, **how)
    rows = [
        {
            "pair_id": pair.pair_id,
            "prompt": pair.prompt,
            "chosen": like(pair.chosen, one),
            "rejected": like(pair.chosen, other),
        }
        for pair, one, other in zip(pairs, chosen, rejected, strict=True)
        if one.strip() and other.strip() and one != other
    ]
    _write(folder, rows)


def stated(answer: str) -> set[str]:
    """The values of the fact world that an answer names."""
    return WORDS & set(answer.split())


def hinted(pair: PreferencePair) -> Text:
    """The prompt with the chosen answer as a hint before its last message."""
    hint = content(pair.chosen)
    if isinstance(pair.prompt, str):
        return HINT.format(hint=hint, prompt=pair.prompt)
    last = pair.prompt[-1]
    return [*pair.prompt[:-1], last | {"content": HINT.format(hint=hint, prompt=last["content"])}]


def like(text: Text, answer: str) -> Text:
    """An answer in the form of another one."""
    return answer if isinstance(text, str) else [{"role": "assistant", "content": answer}]


def content(text: Text) -> str:
    """A text, or what the last of its messages says."""
    return text if isinstance(text, str) else str(text[-1]["content"])


def _write(folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    if not rows:
        raise DataError("the model made no pair of its own: no answer said what it must. Train it longer.")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
