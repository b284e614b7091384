"""The audit: every row of a data set, kept or skipped, and what is doubtful about it. No torch, writes nothing.

Skipped are rows that cannot be trained on or scored at all: unreadable ones, empty or identical completions (no
preference to learn), completions without tokens, and rows over max_length where the truncation says so. All else is
kept with its doubts, since only a person can tell whether a duplicate, a cut or a special token is meant.
Pairs whose answers differ much in length are skipped only where a run asks for it.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from diagnostics.codes import DOUBTS, MEANINGS, OF_TEMPLATE, SKIPS
from diagnostics.errors import DataError
from diagnostics.pairs import PairTable, PreferencePair, Text
from diagnostics.pairs.media import TAG
from diagnostics.progress import Steps
from diagnostics.sequences import Example
from diagnostics.templates import RenderedPair, content
from diagnostics.tokenized import SkippedPair, Truncation, render_pairs, tokenize_pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SAMPLES = "samples"  # the shape of data whose rows hold no text to learn (diagnostics.diffusion.read)
CHUNK = 256  # pairs rendered and tokenized at a time: a tokenizer's own lists take a hundred times the ids

_SCORE = re.compile(r"score|rating|reward|quality")
_COLUMNS = ("pair_id", "source_row", "status", "reason", "doubts", "prompt", "chosen", "rejected")


@dataclass(frozen=True)
class Audit:
    """What was found.

    frame: one row per source row, the columns of audit.parquet (lengths NaN and EOS flags missing where not known).
    tokenized: the kept pairs, in source order. counts: code -> number of rows (codes: MEANINGS).
    scored, disagree: rows with a score for each side, and those whose scores prefer the rejected side.
    templated, plain: rows that go through the chat template, and rows of plain text.
    """

    table: PairTable
    frame: pd.DataFrame
    tokenized: list[Example]
    counts: dict[str, int]
    scored: int
    disagree: int
    templated: int = 0
    plain: int = 0

    def said(self) -> list[str]:
        """What every command prints: how the rows were read, and how many are kept, doubtful and skipped, and why."""
        kept = self.frame["status"] == "kept"
        doubtful = sum(bool({*doubts.split("; ")} - {"", *OF_TEMPLATE}) for doubts in self.frame["doubts"])
        own = {code: n for code, n in self.counts.items() if code not in OF_TEMPLATE}
        reasons = [f"{n} {code}" for code, n in sorted(own.items(), key=lambda item: -item[1])]
        rows = f"{kept.sum()} of {len(kept)} rows kept, {(~kept).sum()} skipped; {doubtful} of the kept are doubtful"
        rows += f" ({', '.join(reasons)})." if reasons else "."
        told = [f" {code} in {n} rows: {DOUBTS[code]}." for code in OF_TEMPLATE if (n := self.counts.get(code))]
        if 2 * self.disagree > self.scored:
            told.append(
                f" The scores prefer the rejected side in {self.disagree} of the {self.scored} rows that have them: "
                "the columns chosen and rejected are probably swapped."
            )
        return [self.table.reading.said(), f"{rows}{self._how()}{''.join(told)}"]

    def _how(self) -> str:
        """How texts became tokens; nothing of samples."""
        if self.table.shape == SAMPLES:
            return ""
        if not self.templated:
            return " All are tokenized as plain text." if self.plain else " None can be tokenized."
        part = "All" if self.templated == len(self.table.pairs) else str(self.templated)
        other = f", the other {self.plain} are plain text: the model is asked in two ways" * bool(self.plain)
        return f" {part} go through the chat template{other}."

    def record(self) -> dict[str, Any]:
        """The same for manifest.json and the pages."""
        return self.table.reading.record() | {"said": " ".join(self.said())}

    def require_kept(self) -> list[Example]:
        """The kept pairs, or DataError naming the first skipped row where there is none."""
        if not self.tokenized:
            first = self.frame.iloc[0]
            cut = "" if self.table.shape == SAMPLES else ", or change max_length or truncation"
            raise DataError(
                f"{self.table.where(int(first['source_row']))}: {first['reason']}. All {len(self.frame)} rows are "
                f"skipped (this is the first); correct the data{cut}."
            )
        return self.tokenized


def audit_pairs(
    table: PairTable,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int | None,
    truncation: Truncation,
    append_eos: bool = True,
) -> Audit:
    """Check and tokenize every row of a data set (max_length, truncation: see tokenized.tokenize_pairs)."""
    settings: dict[str, Any] = {"max_length": max_length, "truncation": truncation, "append_eos": append_eos}
    special, twins = _special_pattern(tokenizer), _twins(table.pairs)
    rows = [_problem_row(p.source_row, f"{p.code}: {p.reason}") for p in table.problems]
    kept: list[Example] = []
    scored = disagree = 0
    forms: Counter[bool] = Counter()  # whether the template made a row's texts
    for chunk in _chunks(table.pairs):
        texts = render_pairs(chunk, tokenizer)
        forms.update(text.templated for text in texts if isinstance(text, RenderedPair))
        for pair, text, result in zip(chunk, texts, _tokenized(chunk, texts, tokenizer, table, settings), strict=True):
            agree = _scores_agree(pair)
            scored, disagree = scored + (agree is not None), disagree + (agree is False)
            doubts = ""
            if isinstance(result, Example):
                kept.append(result)
                found = _doubts(pair, special) | twins.get(pair.source_row, set()) | set(result.doubts)
                found |= {"sides_swapped"} if agree is False else set()
                doubts = "; ".join(code for code in DOUBTS if code in found)
            rows.append(_pair_row(pair, text, result, doubts))
    frame = frame_of(sorted(rows, key=lambda row: row["source_row"]))
    return Audit(table, frame, kept, count_codes(frame), scored, disagree, forms[True], forms[False])


def _chunks(pairs: Sequence[PreferencePair]) -> Iterator[Sequence[PreferencePair]]:
    """CHUNK pairs at a time, with progress."""
    with Steps("audit", len(pairs), unit="row") as steps:
        for start in range(0, len(pairs), CHUNK):
            yield pairs[start : start + CHUNK]
            steps.add(min(CHUNK, len(pairs) - start))


def _tokenized(
    pairs: Sequence[PreferencePair],
    texts: Sequence[RenderedPair | SkippedPair],
    tokenizer: "PreTrainedTokenizerBase",
    table: PairTable,
    settings: dict[str, Any],
) -> list[Example | SkippedPair]:
    """A chunk's results, in order; pairs without a preference to learn are not tokenized."""
    found = [_unusable(pair) for pair in pairs]
    usable = [i for i, skipped in enumerate(found) if skipped is None]
    done = tokenize_pairs(
        [pairs[i] for i in usable], tokenizer, where=table.where, rendered=[texts[i] for i in usable], **settings
    )
    results = dict(zip(usable, done, strict=True))
    return [results[i] if skipped is None else skipped for i, skipped in enumerate(found)]


def skip_length_gaps(audit: Audit, most: int) -> Audit:
    """The audit with every kept pair skipped whose answers differ by more than `most` tokens."""
    frame = audit.frame.copy()
    gaps = (frame["chosen_length"] - frame["rejected_length"]).abs()
    wide = (frame["status"] == "kept") & (gaps > most)
    frame.loc[wide, ["status", "doubts"]] = ["skipped", ""]
    frame.loc[wide, ["chosen_has_eos", "rejected_has_eos"]] = pd.NA
    frame.loc[wide, "reason"] = [f"length_gap: the answers differ by {n:.0f} tokens, over {most}" for n in gaps[wide]]
    kept = set(frame.loc[frame["status"] == "kept", "source_row"])
    tokenized = [p for p in audit.tokenized if p.source_row in kept]
    return replace(audit, frame=frame, tokenized=tokenized, counts=count_codes(frame))


def counts_table(audit: Audit) -> pd.DataFrame:
    """One row per code found, commonest first: code, kind (skipped | doubt | template), n, first_rows (up to three
    places, as "line 3" in text files, else "row 2"), meaning. Empty where nothing is wrong."""
    found = sorted(audit.counts.items(), key=lambda item: (item[0] in DOUBTS, -item[1]))
    places: dict[str, list[str]] = {code: [] for code, _ in found}
    for source_row, codes in zip(audit.frame["source_row"], _codes(audit.frame)):
        for code in codes:
            if len(places[code]) < 3:
                places[code].append(audit.table.where(source_row).removeprefix(f"{audit.table.source}: "))
    rows = [
        (code, _kind(code), n, ", ".join(places[code]), MEANINGS[code] + _refusal(audit, code)) for code, n in found
    ]
    return pd.DataFrame(rows, columns=["code", "kind", "n", "first_rows", "meaning"])


def _refusal(audit: Audit, code: str) -> str:
    """Of rows that the template does not fit, its own words about the first."""
    if code != "template_failed":
        return ""
    first = next(str(reason) for reason in audit.frame["reason"] if str(reason).startswith(code))
    return f"; the first: {first.removeprefix(f'{code}: ')}"


def _kind(code: str) -> str:
    return "skipped" if code in SKIPS else "template" if code in OF_TEMPLATE else "doubt"


# --- checks on the text ----------------------------------------------------------------------------------------


def _unusable(pair: PreferencePair) -> SkippedPair | None:
    """Pairs without a preference to learn: an empty completion (of messages only the template knows), or two equal
    ones."""
    for name, side in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        if isinstance(side, str) and not side.strip():
            return SkippedPair(pair.pair_id, pair.source_row, "empty_completion", f"{name} is empty or blank")
    if pair.chosen == pair.rejected:
        reason = "chosen and rejected are the same text"
        return SkippedPair(pair.pair_id, pair.source_row, "identical_completions", reason)
    return None


def _plain(text: Text) -> str:
    """The text itself, without any template."""
    return text if isinstance(text, str) else "\n".join(content(message) for message in text)


def _doubts(pair: PreferencePair, special: re.Pattern[str] | None) -> set[str]:
    """Codes of what is doubtful about the pair's own texts."""
    asked = TAG.sub("", pair.prompt) if pair.media and isinstance(pair.prompt, str) else pair.prompt
    texts = (asked, pair.chosen, pair.rejected)
    found = {"prompt_repeated"} if _repeats_prompt(pair) else set()
    return found | ({"special_tokens"} if special and any(special.search(_plain(t)) for t in texts) else set())


def _twins(pairs: Sequence[PreferencePair]) -> dict[int, set[str]]:
    """source_row -> duplicate, contradiction: pairs that an earlier one repeats, or any other one contradicts."""
    known = [_key(p, p.chosen, p.rejected) for p in pairs]
    exchanged, seen, found = {_key(p, p.rejected, p.chosen) for p in pairs}, set(), {}
    for pair, key in zip(pairs, known, strict=True):
        codes = ({"duplicate"} if key in seen else set()) | ({"contradiction"} if key in exchanged else set())
        seen.add(key)
        if codes:
            found[pair.source_row] = codes
    return found


def _key(pair: PreferencePair, *sides: Text) -> bytes:
    told = [pair.prompt, *sides, pair.tools, pair.template_kwargs, repr(pair.media)]
    content = json.dumps(told, sort_keys=True, default=str)
    return hashlib.blake2b(content.encode(), digest_size=16).digest()


def _repeats_prompt(pair: PreferencePair) -> bool:
    """Whether both answers begin with the whole prompt (of messages: with the last one), and go on."""
    asked = (pair.prompt if isinstance(pair.prompt, str) else content(pair.prompt[-1])).strip()
    return bool(asked) and all(_opens_with(_plain(side).lstrip(), asked) for side in (pair.chosen, pair.rejected))


def _opens_with(text: str, start: str) -> bool:
    behind = text[len(start) : len(start) + 1]
    return text.startswith(start) and not (behind.isalnum() or behind == "_")


def _special_pattern(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str] | None:
    added = (str(t) for t in tokenizer.added_tokens_decoder.values() if t.special)
    family = getattr(tokenizer, "family", None)  # placeholders of media are counted where the prompt is made
    tokens = ({str(t) for t in tokenizer.all_special_tokens} | set(added)) - set(family.tags.values() if family else ())
    return re.compile("|".join(re.escape(t) for t in tokens)) if tokens else None


def _scores_agree(pair: PreferencePair) -> bool | None:
    """Whether the row's scores prefer the chosen side; None where it has no two scores, or they are equal.

    Scores are columns whose names differ only in chosen/rejected and hold score, rating, reward or quality
    (score_chosen and score_rejected, chosen-rating and rejected-rating ...); higher is taken as better.
    """
    for name, value in pair.columns.items():
        other = name.replace("chosen", "rejected")
        if other == name or other not in pair.columns or not _SCORE.search(name.lower()):
            continue
        chosen, rejected = _number(value), _number(pair.columns[other])
        if chosen != rejected and not math.isnan(chosen) and not math.isnan(rejected):
            return chosen > rejected
    return None


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan


# --- the frame -------------------------------------------------------------------------------------------------


def _problem_row(source_row: int, reason: str) -> dict[str, Any]:
    blank = dict.fromkeys(_COLUMNS, "")
    return blank | {"source_row": source_row, "status": "skipped", "reason": reason}


def _pair_row(
    pair: PreferencePair,
    text: RenderedPair | SkippedPair,
    result: Example | SkippedPair,
    doubts: str,
) -> dict[str, Any]:
    shown = pair if isinstance(text, SkippedPair) else text
    row: dict[str, Any] = {"pair_id": pair.pair_id, "source_row": pair.source_row, "doubts": doubts}
    row |= {side: _plain(getattr(shown, side)) for side in ("prompt", "chosen", "rejected")}
    if isinstance(result, SkippedPair):
        lengths = result.lengths or ()
        row |= {"status": "skipped", "reason": f"{result.code}: {result.reason}"}
    else:
        sides = result.chosen, result.rejected
        lengths = (len(result.prompt_ids), *(len(side.completion_ids) for side in sides))
        ends = {"chosen_has_eos": sides[0].has_eos, "rejected_has_eos": sides[1].has_eos}
        row |= {"status": "kept", "reason": ""} | ends
    return row | dict(zip(("prompt_length", "chosen_length", "rejected_length"), lengths))


def frame_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """The columns of audit.parquet, each of its type."""
    lengths = ("prompt_length", "chosen_length", "rejected_length")
    ends = ("chosen_has_eos", "rejected_has_eos")
    frame = pd.DataFrame(rows, columns=[*_COLUMNS, *lengths, *ends])
    return frame.astype(dict.fromkeys(lengths, "float64") | dict.fromkeys(ends, "boolean"))


def _codes(frame: pd.DataFrame) -> list[list[str]]:
    """Per row, its codes: the one it was skipped for, or its doubts."""
    return [
        [reason.split(":")[0]] if reason else doubts.split("; ") if doubts else []
        for reason, doubts in zip(frame["reason"], frame["doubts"])
    ]


def count_codes(frame: pd.DataFrame) -> dict[str, int]:
    """Code -> number of rows of an audit's frame that have it."""
    return dict(Counter(code for codes in _codes(frame) for code in codes))
