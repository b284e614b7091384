"""What the data gives an objective besides the two answers: columns, phrases, steps, a third answer, a prefix."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from diagnostics import sequences, templates
from diagnostics.errors import DataError
from diagnostics.frames import FRAMES
from diagnostics.pairs import PairTable, PreferencePair, SkipRow, Text
from diagnostics.pairs.media import MediaReader, in_parts, media_of
from diagnostics.pairs.table import media_folder_of
from diagnostics.phrases import from_diff, from_tags, mark
from diagnostics.processes import tell
from diagnostics.sequences import Example
from diagnostics.tokenized import RenderedPair, render_pair, token_offsets, tokenize_pair
from trainers import objectives
from trainers.loop.ingredients import Given, Marks

Span = tuple[int, int]
Spans = tuple[list[Span], list[Span]]  # character spans in the texts of chosen and of rejected
SIDES = ("chosen", "rejected")
TAGGED = {"chosen": "answer_masked", "rejected": "pred_masked"}  # RRPO's rows: the answers once more, with their tags
PREFIXES = ("prefix", "initial_reason_steps")


def cleaned(table: PairTable, objective: str) -> tuple[PairTable, dict[int, Spans]]:
    """The pairs without <MASK> tags and with each prefix behind its prompt; also the tagged spans by source row."""
    pairs, spans, prefixed, lost = [], {}, "prefix" in objectives.needs(objective), 0
    for pair in table.pairs:
        texts, found = zip(*(_untagged(table, pair, side) for side in SIDES), strict=True)
        tagged = [table.shape == "rrpo" and "<MASK>" in str(pair.columns.get(TAGGED[side])) for side in SIDES]
        lost += any(tags and not marks for tags, marks in zip(tagged, found, strict=True))
        if any(found):
            spans[pair.source_row] = found
            pair = replace(pair, chosen=texts[0], rejected=texts[1])
        pairs.append(_prefixed(table, pair, objective) if prefixed else pair)
    if lost:
        tell(f"{table.source}: in {lost} rows a tagged answer says something else than the plain one: no phrase there.")
    return replace(table, pairs=pairs), spans


def gather(
    table: PairTable,
    kept: Sequence[Example],
    spans: dict[int, Spans],
    tokenizer: Any,
    objective: str,
    *,
    phrase_source: str,
    settings: dict[str, Any],
) -> Given:
    """Everything the objective reads of the kept pairs. A missing column or field ends in a DataError naming it.

    phrase_source: tags, diff, or auto (tags where any row has them). settings: max_length, truncation, append_eos.
    """
    needs, columns = objectives.needs(objective), objectives.columns(objective)
    perhaps = objectives.optional_columns(objective)
    rows = {(p.source_row, p.pair_id): p for p in table.pairs}
    tagged = bool(spans) if phrase_source == "auto" else phrase_source == "tags"
    given = Given()
    for pair in kept:
        row, place = rows[pair.source_row, pair.pair_id], table.where(pair.source_row)
        names = [*columns, *_there(row, perhaps)]
        given.columns[pair.pair_id] = {n: _number(row, n, f"{place}: objective '{objective}'") for n in names}
        if "phrases" in needs:
            given.phrases[pair.pair_id] = _phrases(row, pair, spans, tokenizer, tagged, place)
        if "steps" in needs:
            given.steps[pair.pair_id] = _steps(row, pair, tokenizer, place)
        if "gold" in needs:
            given.gold[pair.pair_id] = _gold(row, tokenizer, place, settings)
    _same_sizes(given, table, kept)
    return given


def further_rows(
    table: PairTable,
    kept: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    objective: str,
    settings: dict[str, Any],
    *,
    frames: int = FRAMES,
    media_folder: str | None = None,
) -> list[Example]:
    """The kept pairs with the further rows that the objective reads, from the text columns of their names: an answer to
    the pair's prompt, or to the text in `<row>_prompt` where that column is there, with what the pair shows, or with
    what `<row>_image`, `<row>_video` ... hold (of a clip at most so many frames). A further row is never cut.
    DataError naming the row and the column where one is missing or does not fit."""
    reader = MediaReader(media_folder_of(table.source, media_folder), frames)
    by_row = {p.source_row: p for p in table.pairs}
    optional = [n for n in objectives.optional_rows(objective) if any(_is_there(p, n) for p in by_row.values())]
    meanings = objectives.rows(objective) | {n: objectives.optional_rows(objective)[n] for n in optional}
    found = []
    for pair in kept:
        row, place = by_row[pair.source_row], table.where(pair.source_row)
        rows = {n: _row(row, pair, n, said, tokenizer, f"{place}: objective '{objective}'", settings, reader)
                for n, said in meanings.items()}  # fmt: skip
        found.append(replace(pair, rows={**pair.rows, **rows}) if rows else pair)
    return found


def score_gaps(table: PairTable, kept: Sequence[Example]) -> list[float]:
    """chosen_score - rejected_score of each kept pair, as a curriculum orders them."""
    rows, gaps = {(p.source_row, p.pair_id): p for p in table.pairs}, []
    for pair in kept:
        where = f"{table.where(pair.source_row)}: curriculum 'score_gap'"
        chosen, rejected = (_number(rows[pair.source_row, pair.pair_id], f"{side}_score", where) for side in SIDES)
        if isinstance(chosen, list) or isinstance(rejected, list):
            raise DataError(f"{where} reads chosen_score and rejected_score, which hold lists here. Give numbers.")
        gaps.append(chosen - rejected)
    return gaps


def _untagged(table: PairTable, pair: PreferencePair, side: str) -> tuple[Text, list[Span]]:
    """One side's text without its tags, and the spans they marked."""
    text: Text = getattr(pair, side)
    content = _content(text)
    masked = pair.columns.get(TAGGED[side]) if table.shape == "rrpo" else None
    marked = masked if isinstance(masked, str) else content
    if "<MASK>" not in marked and "</MASK>" not in marked:
        return text, []
    try:
        plain, spans = from_tags(marked)
    except ValueError as error:
        raise DataError(f"{table.where(pair.source_row)}: {side}: {error} Correct the tags of that row.") from None
    if marked is masked:  # what is trained on is the plain text
        return text, _moved(spans, plain, content)
    return plain if isinstance(text, str) else [text[0] | {"content": plain}, *text[1:]], spans


def _moved(spans: list[Span], plain: str, text: str) -> list[Span]:
    """Spans of a text in another that differs from it in white space at most; none where it says something else."""
    if plain == text:
        return spans
    ours, theirs = ([i for i, c in enumerate(t) if not c.isspace()] for t in (plain, text))
    if [plain[i] for i in ours] != [text[i] for i in theirs]:
        return []
    places = dict(zip(ours, theirs, strict=True))
    moved = [[places[i] for i in range(*span) if i in places] for span in spans]
    return [(inside[0], inside[-1] + 1) if inside else (0, 0) for inside in moved]


def _content(text: Text) -> str:
    """The answer's own text: of a chat, that of its first message, which is the one that is scored."""
    return text if isinstance(text, str) else templates.content(text[0])


def _prefixed(table: PairTable, pair: PreferencePair, objective: str) -> PreferencePair:
    found = next((pair.columns[name] for name in PREFIXES if isinstance(pair.columns.get(name), str)), None)
    if found is None or not isinstance(pair.prompt, str):
        raise DataError(
            f"{table.where(pair.source_row)}: objective '{objective}' reads the text field 'prefix' (the correct steps "
            "so far) and a prompt that is text. Add the field; it may be empty."
        )
    return replace(pair, prompt=pair.prompt + found, chat_prompt=None)


def _number(pair: PreferencePair, name: str, where: str) -> float | list[float]:
    """A data column as a number or a list of numbers."""
    value = next((pair.columns[n] for n in _spellings(name) if n in pair.columns), None)
    if value is None:
        raise DataError(f"{where} reads the column '{name}', which this row does not have. Add it to every row.")
    try:
        numbers = [float(v) for v in value] if isinstance(value, list) else [float(value)]
    except (TypeError, ValueError):
        numbers = []
    if not numbers or not all(map(math.isfinite, numbers)):
        raise DataError(f"{where} reads the column '{name}', which holds {str(value)[:40]!r} here. Give a number.")
    return numbers if isinstance(value, list) else numbers[0]


def _there(pair: PreferencePair, names: Sequence[str]) -> list[str]:
    """The columns that this row has."""
    return [name for name in names if any(n in pair.columns for n in _spellings(name))]


def _spellings(name: str) -> list[str]:
    """chosen_score is also written score_chosen."""
    side, _, rest = name.partition("_")
    return [name, f"{rest}_{side}"] if side in SIDES else [name]


def _same_sizes(given: Given, table: PairTable, kept: Sequence[Example]) -> None:
    """A column of lists must hold lists of one length, as a batch stacks them."""
    sizes: dict[str, tuple[int, int]] = {}
    every = {name for pair in kept for name in given.columns[pair.pair_id]}
    for pair in kept:
        if missing := sorted(every - set(given.columns[pair.pair_id])):
            raise DataError(f"{table.where(pair.source_row)}: the column '{missing[0]}' is missing here. Add it.")
        for name, value in given.columns[pair.pair_id].items():
            size = len(value) if isinstance(value, list) else 0
            first, row = sizes.setdefault(name, (size, pair.source_row))
            if size != first:
                raise DataError(
                    f"{table.where(pair.source_row)}: column '{name}' has {size or 'no list of'} numbers here, but "
                    f"{first or 'no list of'} in {table.where(row)}. Give every row as many."
                )


def _phrases(
    row: PreferencePair,
    pair: Example,
    spans: dict[int, Spans],
    tokenizer: PreTrainedTokenizerBase,
    tagged: bool,
    place: str,
) -> Marks:
    if not tagged:
        chosen, rejected = from_diff(pair.chosen.completion_ids, pair.rejected.completion_ids)
        return tuple(chosen), tuple(rejected)
    return _marks(row, pair, spans.get(row.source_row, ([], [])), tokenizer, place)


def _steps(row: PreferencePair, pair: Example, tokenizer: PreTrainedTokenizerBase, place: str) -> Marks:
    """Numbers of steps from the fields chosen_steps and rejected_steps: lists of texts that stand in the answer."""
    found: list[list[Span]] = []
    for side in SIDES:
        texts = row.columns.get(f"{side}_steps")
        spans = _places(_content(getattr(row, side)), texts if isinstance(texts, list) else [""])
        if not spans:
            raise DataError(
                f"{place}: the field '{side}_steps' must be a list of texts that stand in {side}, in this order."
            )
        found.append(spans)
    return _marks(row, pair, (found[0], found[1]), tokenizer, place)


def _places(answer: str, texts: Sequence[Any]) -> list[Span]:
    """Where texts stand in an answer, one behind the other; empty where one of them does not."""
    spans, at = [], 0
    for text in map(str, texts):
        start = answer.find(text, at)
        if start < 0 or not text:
            return []
        at = start + len(text)
        spans.append((start, at))
    return spans


def _marks(row: PreferencePair, pair: Example, spans: Spans, tokenizer: PreTrainedTokenizerBase, where: str) -> Marks:
    """Numbers of the tokens that stand in character spans of the two answers."""
    rendered = render_pair(row, tokenizer)
    assert isinstance(rendered, RenderedPair)  # the pair was kept
    made = []
    for side, each in zip(SIDES, spans, strict=True):
        text, content = getattr(rendered, side), _content(getattr(row, side))
        kept = content.strip() if content not in text else content  # chat templates may trim, and put things in front
        shift = text.rfind(kept) - content.find(kept)
        if each and kept not in text:
            raise DataError(f"{where}: {side}: the chat template changes the text, so that its marks have no place.")
        offsets = token_offsets(tokenizer, text, pair.rows[side].completion_ids)
        made.append(tuple(mark(offsets, [(a + shift, b + shift) for a, b in each])))
    return made[0], made[1]


def _is_there(pair: PreferencePair, name: str) -> bool:
    return pair.columns.get(name) is not None


def _row(
    row: PreferencePair,
    pair: Example,
    name: str,
    meaning: str,
    tokenizer: PreTrainedTokenizerBase,
    where: str,
    settings: dict[str, Any],
    reader: MediaReader,
) -> sequences.Sequence:
    """One further row: the text column `name`, after the pair's prompt or that of `<name>_prompt`; see further_rows."""
    chat = not isinstance(row.prompt, str)
    answer, asked = row.columns.get(name), row.columns.get(f"{name}_prompt")
    if not isinstance(answer, str) or not isinstance(asked, str | None):
        raise DataError(
            f"{where} reads the row '{name}' ({meaning}): give its answer as the text column '{name}' in every row, "
            f"and its prompt as the text column '{name}_prompt' where it is not the pair's."
        )
    other = next(text for text in (row.rejected, row.chosen) if _content(text) != answer)
    made = replace(row, chosen=[{"role": "assistant", "content": answer}] if chat else answer, rejected=other)
    own = {c.removeprefix(f"{name}_"): v for c, v in row.columns.items() if c.startswith(f"{name}_")}
    uncut: dict[str, Any] = settings | {"max_length": None}
    try:
        media = media_of(own, reader)
        made = replace(made, media=media or row.media)
        if asked is not None:
            asking: list[dict[str, Any]] = [{"role": "user", "content": asked}]
            asking = in_parts(asking, made.media) if made.media else asking
            made = replace(made, prompt=asking if chat else asked, chat_prompt=asking if row.chat_prompt else None)
    except SkipRow as skip:
        raise DataError(f"{where}: the row '{name}' cannot be used ({skip.reason}). Correct its columns.") from None
    found = tokenize_pair(made, tokenizer, **uncut)
    if not isinstance(found, Example):
        raise DataError(f"{where}: the row '{name}' cannot be used ({found.reason}). Correct its columns.")
    said = found.chosen
    if asked is None and not media:  # after the pair's own prompt, cut or not, with what is shown beside it
        said = replace(pair.chosen, completion_ids=said.completion_ids, has_eos=said.has_eos)
    if (most := settings["max_length"]) is not None and len(said) > most:
        raise DataError(
            f"{where}: the row '{name}' has {len(said)} tokens, over max_length {most}, and further rows are not cut. "
            "Shorten it, or raise max_length."
        )
    return said


def _gold(row: PreferencePair, tokenizer: PreTrainedTokenizerBase, place: str, settings: dict[str, Any]) -> Example:
    """The text field `gold` as an answer to the pair's prompt."""
    gold = row.columns.get("gold")
    if not isinstance(gold, str) or not isinstance(row.prompt, str):
        raise DataError(
            f"{place}: the objective reads the text field 'gold' (a third answer) and a prompt that is text, not chat "
            "messages. Add the field to every row."
        )
    other = row.rejected if row.rejected != gold else row.chosen
    found = tokenize_pair(replace(row, chosen=gold, rejected=other), tokenizer, **settings)
    if not isinstance(found, Example):
        raise DataError(f"{place}: gold cannot be used ({found.reason}). Shorten it, or raise max_length.")
    return replace(found, rows={"gold": found.chosen})
