"""Tokenizing: preference pairs as token ids, with the prompt boundary exact. No torch.

Prompt and completion are tokenized apart and their ids joined, so that no token straddles the boundary: a joint
tokenization may merge "the sk" + "y blue" into the token " sky", and the completion then starts in the wrong place.
BOS (whatever the tokenizer puts in front) stands once at the start. The end stands once at the end: EOS for plain text,
for chat messages the end of the turn as the chat template writes it (diagnostics.templates).
Of an encoder-decoder model the prompt is a text of its own, with what the tokenizer puts behind it (EOS), and so is the
completion, which stands behind no prompt.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from diagnostics.errors import DataError, UserError
from diagnostics.media import Media
from diagnostics.pairs import PreferencePair, SkipRow, Text
from diagnostics.sequences import Example, pair_of
from diagnostics.templates import RenderedPair, Turn, find_turn, render_chat, render_prompt
from diagnostics.token_ids import TokenIds
from diagnostics.vision.placeholders import Family
from diagnostics.vision.prompts import expanded, placed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Truncation = Literal["drop", "keep_start", "keep_end", "error"]
Ids = list[int]


_ANCHOR = "\n"


@dataclass(frozen=True)
class SkippedPair:
    """A pair that cannot be used: a short code and the reason in words. Lengths in tokens, None where not known."""

    pair_id: str
    source_row: int
    code: str
    reason: str
    lengths: tuple[int, int, int] | None = None


def tokenize_pair(
    pair: PreferencePair,
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int | None,
    truncation: Truncation,
    append_eos: bool = True,
) -> Example | SkippedPair:
    """Tokenize one pair; see tokenize_pairs."""
    done = tokenize_pairs([pair], tokenizer, max_length=max_length, truncation=truncation, append_eos=append_eos)
    return done[0]


def tokenize_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    max_length: int | None,
    truncation: Truncation,
    append_eos: bool = True,
    where: Callable[[int], str] = "row {}".format,
    rendered: Sequence[RenderedPair | SkippedPair] | None = None,
) -> list[Example | SkippedPair]:
    """Tokenize pairs, in order; one that cannot be used becomes a SkippedPair with its reason.

    max_length: most tokens of prompt + completion, None for no limit. Over it, truncation decides:
        drop        skips the pair;
        keep_end    cuts the start of the prompt (BOS stays); skips the pair if a completion alone is too long, or if
                    placeholders of its media would be cut;
        keep_start  cuts the end of a completion, which then has no EOS; skips the pair if nothing of it is left;
        error       raises DataError naming the row.
    append_eos: end each completion, once: text in EOS, chat messages in the template's end of the turn (in EOS where it
    has none). Without, a completion stops where its own text does.
    where: names a source row in error messages. rendered: the pairs' texts where they are known (render_pairs).
    """
    _check_settings(max_length, truncation)
    rendered = render_pairs(pairs, tokenizer) if rendered is None else rendered
    texts = [t for r in rendered if isinstance(r, RenderedPair) for t in _texts(r, append_eos)]
    found = _encode(tokenizer, texts)
    encoded = iter(found if _encodes(tokenizer) else _without_added_space(tokenizer, texts, found))
    prefix, suffix = _around(tokenizer)
    written = {end for r in rendered if isinstance(r, RenderedPair) for end in r.ends}
    closing = {end: _closing_ids(end, tokenizer) for end in written}
    done: list[Example | SkippedPair] = []
    for pair, text in zip(pairs, rendered, strict=True):
        if isinstance(text, SkippedPair):
            done.append(text)
            continue
        ids = [next(encoded) for _ in range(5)]
        whole = _join(pair, ids, (prefix, suffix), text, closing, tokenizer, append_eos)
        shown = _shown(ids[0], text, tokenizer)
        done.append(
            whole if isinstance(whole, SkippedPair) else _fit(whole, prefix, shown, max_length, truncation, where)
        )
    return done


def tokenize_prompts(
    prompts: Sequence[Text],
    tokenizer: "PreTrainedTokenizerBase",
    media: Sequence[tuple[Media, ...] | None] | None = None,
) -> list[TokenIds]:
    """The ids of prompts, text or chat messages, exactly as they stand in a pair. DataError where one has none.

    media: what each is shown; the prompt holds its family's tag for each of them.
    """
    turn: Turn | None = None
    (prefix, suffix), found = _around(tokenizer), []
    family: Any = getattr(tokenizer, "family", None)
    for i, prompt in enumerate(prompts):
        chat = not isinstance(prompt, str)
        try:
            turn = turn or find_turn(tokenizer) if chat else turn
            text = render_prompt(prompt, tokenizer, turn or Turn()) if chat else prompt
        except SkipRow as skip:
            raise DataError(f"prompt {i} cannot be used: {skip.reason}.") from None
        if media and media[i]:
            text = family.expand(text, media[i])
        ids = _with_suffix(_with_prefix(_encode(tokenizer, [text])[0], prefix, chat)[0], suffix)
        if not ids:
            raise DataError(f"prompt {i} cannot be used: it has no tokens and the tokenizer adds no BOS.")
        found.append(TokenIds(ids))
    return found


def render_pairs(
    pairs: Sequence[PreferencePair], tokenizer: "PreTrainedTokenizerBase"
) -> list[RenderedPair | SkippedPair]:
    """The texts to tokenize: plain text as it is, chat messages through the tokenizer's chat template."""
    family: Family | None = getattr(tokenizer, "family", None)  # of a model that is shown media; see trainers.models
    turn: Turn | None = None
    found: list[RenderedPair | SkippedPair] = []
    for pair in pairs:
        chat = pair.chat_prompt or not isinstance(pair.prompt, str)
        turn = turn or find_turn(tokenizer) if chat and tokenizer.chat_template else turn
        try:
            found.append(_rendered(pair, tokenizer, family, turn))
        except SkipRow as skip:
            found.append(SkippedPair(pair.pair_id, pair.source_row, skip.code, skip.reason))
    return found


def _rendered(
    pair: PreferencePair, tokenizer: "PreTrainedTokenizerBase", family: Family | None, turn: Turn | None
) -> RenderedPair:
    """The texts of one pair. SkipRow where they cannot be made."""
    pair = placed(pair, family, chat=bool(tokenizer.chat_template), parts=bool(turn and turn.parts))
    if pair.chat_prompt and turn and isinstance(pair.prompt, str) and _ends_text(turn, tokenizer):
        sides = [[{"role": "assistant", "content": text}] for text in (pair.chosen, pair.rejected)]
        pair = replace(pair, prompt=pair.chat_prompt, chosen=sides[0], rejected=sides[1])
    if isinstance(pair.prompt, str):
        text = RenderedPair(pair.prompt, str(pair.chosen), str(pair.rejected), False)
    else:
        text = _render(pair, tokenizer, turn or find_turn(tokenizer))
    return expanded(text, pair, family) if family else text


def _render(pair: PreferencePair, tokenizer: "PreTrainedTokenizerBase", turn: Turn, tries: int = 3) -> RenderedPair:
    try:
        return render_chat(pair, tokenizer, turn)
    except SkipRow:
        if tries > 1 and "strftime_now" in str(tokenizer.chat_template):  # a second may have ended between two texts
            return _render(pair, tokenizer, turn, tries - 1)
        raise


def _ends_text(turn: Turn, tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the chat template ends a turn where the model stops: then text columns are read as a chat. A model stops
    at its tokenizer's EOS, and at what its generation_config.json names (stops_at; see trainers.models)."""
    stops: Any = tokenizer.convert_ids_to_tokens(list(getattr(tokenizer, "stops_at", ())))
    return any(end and turn.end.lstrip().startswith(str(end)) for end in (tokenizer.eos_token, *stops))


def render_pair(pair: PreferencePair, tokenizer: "PreTrainedTokenizerBase") -> RenderedPair | SkippedPair:
    """The texts of one pair; see render_pairs."""
    return render_pairs([pair], tokenizer)[0]


def end_ids(tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Ids that end an answer: EOS, and the token that ends a turn of the chat template."""
    return _closing_ids(find_turn(tokenizer).end if tokenizer.chat_template else "", tokenizer)


def _check_settings(max_length: int | None, truncation: str) -> None:
    if truncation not in get_args(Truncation):
        raise UserError(f"truncation is {truncation!r}. Choose one of {', '.join(get_args(Truncation))}.")
    if max_length is not None and max_length < 2:
        raise UserError(f"max_length is {max_length}. Give at least 2 tokens, or none for no limit.")


def _texts(text: RenderedPair, ended: bool) -> tuple[str, ...]:
    """The three parts, then both joint texts, which only serve to find merges over the boundary."""
    sides = (text.chosen, text.rejected)
    chosen, rejected = sides if ended else (s.removesuffix(end) for s, end in zip(sides, text.ends, strict=True))
    prompt = text.expanded or text.prompt
    return prompt, chosen, rejected, prompt + chosen, prompt + rejected


def _encode(tokenizer: "PreTrainedTokenizerBase", texts: list[str], special: bool = False) -> list[Ids]:
    if not texts:
        return []
    encoded: Any = tokenizer(texts, add_special_tokens=special, truncation=False, padding=False, verbose=False)
    return encoded["input_ids"]


def _without_added_space(tokenizer: "PreTrainedTokenizerBase", texts: list[str], encoded: list[Ids]) -> list[Ids]:
    """Completions without the space that SentencePiece tokenizers put in front of every text they are given.

    Such a completion is tokenized behind a line break whose ids are then taken off, as it stands behind its prompt.
    """
    (anchor,), (alone,), (behind,) = (_encode(tokenizer, [text]) for text in (_ANCHOR, "a", _ANCHOR + "a"))
    if behind[: len(anchor)] != anchor or behind[len(anchor) :] == alone:
        return encoded
    found = list(encoded)
    places = [i for i in range(len(texts)) if i % 5 in (1, 2) and texts[i - i % 5]]  # both completions of a prompt
    for i, ids in zip(places, _encode(tokenizer, [_ANCHOR + texts[i] for i in places]), strict=True):
        if ids[: len(anchor)] == anchor:
            found[i] = ids[len(anchor) :]
    return found


def token_offsets(tokenizer: "PreTrainedTokenizerBase", text: str, ids: Sequence[int]) -> list[tuple[int, int]]:
    """(first character, one behind the last) of each token of a completion in its text; EOS, which the text lacks,
    gets an empty place at the end. Raises DataError for a tokenizer that cannot say where its tokens stand."""
    for front in ("", _ANCHOR):  # see _without_added_space
        found: Any = _encode_places(tokenizer, front + text)
        skip = len(_encode(tokenizer, [front])[0]) if front else 0
        known, places = found["input_ids"][skip:], found["offset_mapping"][skip:]
        same = min(len(known), len(ids))
        if list(known[:same]) == list(ids[:same]) and len(ids) - same <= 1:
            starts = [(max(0, a - len(front)), max(0, b - len(front))) for a, b in places[:same]]
            return starts + [(len(text), len(text))] * (len(ids) - same)
    raise DataError(f"{tokenizer.name_or_path or 'the tokenizer'}: a text tokenizes differently each time.")


def _encode_places(tokenizer: "PreTrainedTokenizerBase", text: str) -> Any:
    if not tokenizer.is_fast:
        raise DataError(
            f"{tokenizer.name_or_path or 'the tokenizer'}: is not a fast tokenizer, which marked phrases and steps "
            "need. Use a model with a tokenizer.json."
        )
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, truncation=False, verbose=False)


def _encodes(tokenizer: "PreTrainedTokenizerBase") -> bool:
    """Whether the model's prompts go to an encoder (see trainers.models.load_tokenizer)."""
    return bool(getattr(tokenizer, "encodes", False))


def _around(tokenizer: "PreTrainedTokenizerBase") -> tuple[Ids, Ids]:
    """What the tokenizer puts in front of a text by itself (usually BOS or nothing), and, for an encoder, behind it
    (usually EOS). DataError where it would put something in front of what a decoder predicts too (BART)."""
    (plain,), (full,) = _encode(tokenizer, ["a"]), _encode(tokenizer, ["a"], special=True)
    bos: Any = tokenizer.bos_token_id
    starts = range(len(full) - len(plain) + 1)
    # where "a" is outside the vocabulary there is nothing to anchor on but BOS itself
    start = next((i for i in starts if full[i : i + len(plain)] == plain), 0) if plain else full.count(bos)
    if not _encodes(tokenizer):
        return full[:start], []
    if start:
        raise DataError(
            f"{tokenizer.name_or_path or 'the tokenizer'}: writes {tokenizer.decode(full[:start])!r} in front of every "
            "text, also of what the decoder predicts. Of encoder-decoder models, those of the T5 family are read."
        )
    return [], full[start + len(plain) :]


def _join(
    pair: PreferencePair,
    ids: list[Ids],
    around: tuple[Ids, Ids],
    text: RenderedPair,
    closing: dict[str, set[int]],
    tokenizer: "PreTrainedTokenizerBase",
    append_eos: bool,
) -> Example | SkippedPair:
    """The untruncated pair from its five encoded texts (see _texts). around: what stands around a prompt. closing: the
    ids that close a side, by its end."""
    body, *plain, joint_chosen, joint_rejected = ids
    merged = body + plain[0] != joint_chosen or body + plain[1] != joint_rejected
    merged = merged and not _encodes(tokenizer)  # there they are texts of their own
    prompt, doubts = _with_prefix(body, around[0], text.templated)
    prompt = _with_suffix(prompt, around[1])
    ends = [closing[end] for end in text.ends]
    sides = [
        _with_eos(side, tokenizer) if append_eos and not end else side
        for side, end in zip(plain, text.ends, strict=True)
    ]
    lengths = (len(prompt), len(sides[0]), len(sides[1]))
    for name, side, known in zip(("chosen", "rejected"), plain, ends, strict=True):
        if not side or (len(side) == 1 and side[0] in known):
            reason = f"{name} has no tokens of its own"
            return SkippedPair(pair.pair_id, pair.source_row, "zero_tokens", reason, lengths)
    if not prompt:
        reason = "the prompt has no tokens and the tokenizer adds no BOS, so nothing predicts the first token"
        return SkippedPair(pair.pair_id, pair.source_row, "no_context", reason, lengths)
    doubts = [*text.doubts, *doubts, *(["token_merge"] if merged else [])]
    chosen, rejected = sides
    ended = chosen[-1] in ends[0], rejected[-1] in ends[1]
    return pair_of(pair.pair_id, pair.source_row, prompt, chosen, rejected, ended, tuple(doubts), text.media or None)


def _shown(body: Ids, text: RenderedPair, tokenizer: "PreTrainedTokenizerBase") -> int:
    """Tokens of the prompt from the first placeholder on, with the special tokens right before it; 0 without media."""
    if not text.media:
        return 0
    start = len(_encode(tokenizer, [text.expanded[: text.lead]])[0])
    special = tokenizer.added_tokens_decoder
    while start and body[start - 1] in special:
        start -= 1
    return len(body) - start


def _closing_ids(end: str, tokenizer: "PreTrainedTokenizerBase") -> set[int]:
    """Ids that close a completion: EOS, and the token that the template's own end ends in, if it is one."""
    found = {i for i, token in tokenizer.added_tokens_decoder.items() if end.endswith(str(token))}
    eos: Any = tokenizer.eos_token_id
    return found if eos is None else found | {eos}


def _with_eos(side: Ids, tokenizer: "PreTrainedTokenizerBase") -> Ids:
    eos: Any = tokenizer.eos_token_id
    if eos is None:
        raise DataError(
            f"{tokenizer.name_or_path or 'the tokenizer'}: has no EOS token, so completions cannot be ended. "
            "Set eos_token in its tokenizer_config.json, or switch the appending of EOS off."
        )
    return side if side[-1:] == [eos] else [*side, eos]


def _with_prefix(ids: Ids, prefix: Ids, templated: bool) -> tuple[Ids, list[str]]:
    """The prompt with the tokenizer's prefix exactly once, whether or not its text already holds it."""
    size, repeats = len(prefix), 0
    if not size:
        return list(ids), []
    while ids[repeats * size : (repeats + 1) * size] == prefix:
        repeats += 1
    if repeats == 0:
        return [*prefix, *ids], ["missing_bos"] if templated else []
    return [*prefix, *ids[repeats * size :]], [] if templated and repeats == 1 else ["doubled_bos"]


def _with_suffix(ids: Ids, suffix: Ids) -> Ids:
    """The prompt with what the tokenizer puts behind it, once."""
    return ids if ids[len(ids) - len(suffix) :] == suffix else [*ids, *suffix]


def _fit(
    pair: Example,
    prefix: Ids,
    shown: int,
    max_length: int | None,
    truncation: Truncation,
    where: Callable[[int], str],
) -> Example | SkippedPair:
    """The pair within max_length, or skipped; every cut leaves a doubt."""
    lengths = (len(pair.prompt_ids), len(pair.chosen.completion_ids), len(pair.rejected.completion_ids))
    try:
        if max_length is not None and pair.longest > max_length:
            pair = _cut(pair, lengths, len(prefix), shown, max_length, truncation, where)
        if pair.chosen.completion_ids == pair.rejected.completion_ids:
            raise SkipRow("identical_completions", "chosen and rejected are the same tokens")
    except SkipRow as skip:
        return SkippedPair(pair.pair_id, pair.source_row, skip.code, skip.reason, lengths)
    one_side = pair.chosen.has_eos != pair.rejected.has_eos
    return replace(pair, doubts=(*pair.doubts, "eos_one_side")) if one_side else pair


def _cut(
    pair: Example,
    lengths: tuple[int, int, int],
    prefix: int,
    shown: int,
    max_length: int,
    truncation: Truncation,
    where: Callable[[int], str],
) -> Example:
    prompt, longest = lengths[0], max(lengths[1:])
    sizes = f"prompt of {prompt} tokens and longest completion of {longest} are over max_length {max_length}"
    if truncation == "error":
        raise DataError(
            f"{where(pair.source_row)}: {sizes}. Raise max_length, shorten the row, or choose the truncation "
            "drop, keep_start or keep_end."
        )
    if truncation == "keep_end":
        return _cut_prompt(pair, prefix, shown, max_length - longest, sizes)
    if prompt >= max_length:
        raise SkipRow("prompt_over_length", sizes)
    if truncation == "drop":
        raise SkipRow("over_length", sizes)
    return _cut_completions(pair, max_length - prompt)


def _cut_prompt(pair: Example, prefix: int, shown: int, room: int, sizes: str) -> Example:
    body = room - prefix
    if body < shown and room >= 1:
        raise SkipRow("media_cut", f"{sizes}, and the cut would take placeholders of the media out of the prompt")
    if room < 1 or body < 0:
        raise SkipRow("completion_over_length", f"{sizes}, and the completion alone leaves no room for a prompt")
    ids = TokenIds([*pair.prompt_ids[:prefix], *pair.prompt_ids[len(pair.prompt_ids) - body :]])
    rows = {name: replace(row, prompt_ids=ids) for name, row in pair.rows.items()}
    return replace(pair, rows=rows, doubts=(*pair.doubts, "prompt_truncated"))


def _cut_completions(pair: Example, room: int) -> Example:
    rows = {name: row.cut(room) for name, row in pair.rows.items()}
    return replace(pair, rows=rows, doubts=(*pair.doubts, "completion_truncated"))
