"""Probe rows: prompts and the answers that a person wants to protect, one JSON object a line."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diagnostics.errors import DataError
from diagnostics.pairs import PreferencePair
from diagnostics.sequences import Example
from diagnostics.tokenized import Truncation, tokenize_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def read_probe(
    path: str | Path, tokenizer: "PreTrainedTokenizerBase", *, max_length: int | None, truncation: Truncation
) -> list[Example]:
    """Rows {"prompt": text or chat messages, "answer": text}, tokenized, with the one row `answer`.

    No EOS is added, nor the end of a turn, so that an answer may be only the start of one ("Sorry, I"). DataError
    naming the line where a row cannot be used: a probe is short, and one that lost rows silently would protect
    something else.
    """
    pairs = [_pair(f"{path}: line {n}", n, line) for n, line in _lines(Path(path))]
    done = tokenize_pairs(pairs, tokenizer, max_length=max_length, truncation=truncation, append_eos=False)
    for pair, found in zip(pairs, done, strict=True):
        if not isinstance(found, Example):
            raise DataError(f"{path}: line {pair.source_row}: {found.reason.replace('chosen', 'answer')}.")
    kept = [p for p in done if isinstance(p, Example)]
    return [replace(p, rows={"answer": p.chosen}, doubts=()) for p in kept]


def _lines(path: Path) -> list[tuple[int, str]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file. Give JSON lines with prompt and answer.") from None
    except UnicodeDecodeError:
        raise DataError(f"{path}: not UTF-8 text. Give JSON lines with prompt and answer.") from None
    found = [(n, line) for n, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise DataError(f"{path}: holds no rows. Give at least one JSON line with prompt and answer.")
    return found


def _pair(where: str, number: int, line: str) -> PreferencePair:
    try:
        row: Any = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"{where} is not JSON. Correct or remove that line.") from None
    row = row if isinstance(row, dict) else {}
    prompt, answer = row.get("prompt"), row.get("answer")
    chat = isinstance(prompt, list) and prompt and all(_is_message(m) for m in prompt)
    if not isinstance(answer, str) or not (isinstance(prompt, str) or chat):
        raise DataError(f"{where}: needs prompt (text or chat messages) and answer (text).")
    other = "." if answer.strip() != "." else "!"  # a pair has two different sides
    chosen, rejected = ([{"role": "assistant", "content": text}] if chat else text for text in (answer, other))
    return PreferencePair(f"probe{number}", number, prompt, chosen, rejected)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(value.get(k), str) for k in ("role", "content"))
