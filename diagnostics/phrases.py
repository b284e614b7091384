"""Phrase numbers of tokenized answers, from <MASK> tags in the text or from a diff of the two answers. No torch.

A phrase number is 0 outside phrases and i > 0 on the tokens of the answer's i-th phrase. Tags are taken out before
the text is tokenized, and phrases found again by character offsets: the ids that are trained on are those of the
plain text, whatever is marked in it. Source: arXiv 2504.12083 (RRPO), with its tags and its diff.
"""

import re
from collections.abc import Sequence
from difflib import SequenceMatcher

_WORD = re.compile(r"\w+|[^\w\s]")

Span = tuple[int, int]  # first character, and the one behind the last

# the longer forms come first: a tag together with the space that pads it inside
_TAG = re.compile(r"""(?:(?<=[\s"'([{])|^)<MASK> |<MASK>| </MASK>(?=$|[\s.,;:!?)\]}"']|<MASK>)|</MASK>""")


def from_tags(text: str) -> tuple[str, list[Span]]:
    """The text without <MASK> and </MASK>, and where its phrases stand in that text.

    A space just inside a tag goes with the tag where it only pads it, so that "a <MASK> red </MASK> car." becomes
    "a red car.": behind <MASK> where the text begins, or whitespace or something opening stands before the tag, and
    before </MASK> where the text ends, or whitespace, something closing or another tag follows. Everything else is
    left as it is: "a<MASK> red</MASK> car." gives the same. An empty phrase keeps its place, so that the numbers of
    those after it stay.
    Raises ValueError for tags that are nested or have no counterpart.
    """
    plain, spans, done = "", [], 0
    opened: tuple[int, int] | None = None  # in the text, in the plain text
    for tag in _TAG.finditer(text):
        plain += text[done : tag.start()]
        done = tag.end()
        place = tag.start() + tag[0].index("<")
        if "/" not in tag[0]:
            if opened:
                raise ValueError(f"<MASK> at character {place} opens a phrase inside a phrase.")
            opened = place, len(plain)
        else:
            if not opened:
                raise ValueError(f"</MASK> at character {place} closes a phrase that was not opened.")
            spans.append((opened[1], len(plain)))
            opened = None
    if opened:
        raise ValueError(f"<MASK> at character {opened[0]} opens a phrase that is not closed.")
    return plain + text[done:], spans


def mark(offsets: Sequence[Span], spans: Sequence[Span]) -> list[int]:
    """Phrase number of each token, from the tokenizer's character offsets and the phrases' spans in the same text.

    A token belongs to a phrase that it shares a character with, to the first one where it shares with several. A
    token of no characters, such as EOS, belongs to none.
    """
    return [next((i for i, span in enumerate(spans, 1) if _overlap(token, span)), 0) for token in offsets]


def from_diff(chosen_ids: Sequence[int], rejected_ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Phrase numbers of both answers: a phrase is a span of tokens that stands in place of another span.

    The ids are those of the completions alone, without prompt and padding. Spans lie between blocks of equal tokens,
    of one token or more; what one answer merely has more than the other gets 0. The i-th phrases of both answers
    are each other's counterparts.
    """
    chosen, rejected = [0] * len(chosen_ids), [0] * len(rejected_ids)
    number = 0
    # autojunk would treat frequent tokens of an answer of 200 or more as if they never matched
    matcher = SequenceMatcher(None, chosen_ids, rejected_ids, autojunk=False)
    for kind, start, end, other_start, other_end in matcher.get_opcodes():
        if kind == "replace":
            number += 1
            chosen[start:end] = [number] * (end - start)
            rejected[other_start:other_end] = [number] * (other_end - other_start)
    return chosen, rejected


def tagged(chosen: str, rejected: str) -> tuple[str, str]:
    """Both texts with <MASK> </MASK> around the words of each that stand in place of words of the other.

    Words and marks are compared as from_diff compares tokens, so the two hold equally many phrases, none where one text
    only has more words than the other; from_tags gives each text back. Raises ValueError where one holds tags already.
    """
    if any("<MASK>" in text or "</MASK>" in text for text in (chosen, rejected)):
        raise ValueError("the text holds <MASK> or </MASK> already.")
    sides = [[m.span() for m in _WORD.finditer(text)] for text in (chosen, rejected)]
    words = [[text[a:b] for a, b in spans] for text, spans in zip((chosen, rejected), sides)]
    ids = {word: i for i, word in enumerate(dict.fromkeys(words[0] + words[1]))}
    one, other = from_diff(*([ids[word] for word in side] for side in words))
    return _with_tags(chosen, sides[0], one), _with_tags(rejected, sides[1], other)


def _with_tags(text: str, words: Sequence[Span], numbers: Sequence[int]) -> str:
    """The text with its numbered words in tags; a space inside each tag, as RRPO writes it, where that reads back."""
    spans = []
    for number in range(1, max(numbers, default=0) + 1):
        own = [span for span, n in zip(words, numbers) if n == number]
        spans.append((own[0][0], own[-1][1]))

    def written(form: str) -> str:
        made, done = "", 0
        for start, end in spans:
            made += text[done:start] + form.format(text[start:end])
            done = end
        return made + text[done:]

    spaced = written("<MASK> {} </MASK>")
    return spaced if from_tags(spaced) == (text, spans) else written("<MASK>{}</MASK>")


def _overlap(one: Span, other: Span) -> bool:
    return max(one[0], other[0]) < min(one[1], other[1])
