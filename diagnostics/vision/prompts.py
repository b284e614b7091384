"""A pair with images or clips as text: a placeholder for each in its prompt, or as many as a model wants. No torch."""

from dataclasses import replace
from typing import Any

from diagnostics.errors import DataError, printable
from diagnostics.pairs import PreferencePair, SkipRow
from diagnostics.pairs.media import TAG
from diagnostics.pairs.messages import Message
from diagnostics.templates import RenderedPair
from diagnostics.vision.placeholders import Family


def placed(pair: PreferencePair, family: Family | None, *, chat: bool, parts: bool) -> PreferencePair:
    """The pair as its texts can be made: a placeholder stands in the prompt for each of its media.

    Where there is a chat template (chat), a text prompt becomes a chat, unless it holds the model's own placeholders.
    parts: the template writes the placeholders itself, from contents in parts. SkipRow for a model that sees no media.
    """
    if family is None:
        if pair.media:
            kinds = " and ".join(dict.fromkeys(m.kind for m in pair.media))
            said = (
                f"the row shows the model {kinds} ({printable(pair.media[0].source)}), and this model reads text alone"
            )
            raise SkipRow("media_unseen", said + "; take a vision-language model, or drop the column")
        return pair
    unknown = next((m.kind for m in pair.media if m.kind not in family.tags), None)
    if unknown:
        raise SkipRow("media_unseen", f"the row shows the model {unknown}, which models of this family are not shown")
    own = [tag for tag in family.tags.values() if not TAG.fullmatch(tag)]
    if pair.media and isinstance(pair.prompt, str) and not any(tag in pair.prompt for tag in own):
        if not (chat and pair.chat_prompt):
            return replace(pair, prompt=_tagged(pair.prompt, pair, family), chat_prompt=None)
        sides = [[{"role": "assistant", "content": text}] for text in (pair.chosen, pair.rejected)]
        pair = replace(pair, prompt=pair.chat_prompt, chosen=sides[0], rejected=sides[1])
    if pair.media and isinstance(pair.prompt, str):
        return replace(pair, chat_prompt=None)
    if isinstance(pair.prompt, str) or parts:
        return pair
    return replace(pair, prompt=[_as_text(turn, family) for turn in pair.prompt])


def expanded(text: RenderedPair, pair: PreferencePair, family: Family) -> RenderedPair:
    """The rendered pair with all the placeholders that the model wants. SkipRow where their number is not that of the
    media, or where an answer holds one."""
    tags = list(family.tags.values())
    for name, side in (("chosen", text.chosen), ("rejected", text.rejected)):
        found = next((tag for tag in tags if tag in side), None)
        if found:
            raise SkipRow("placeholders", f"{name} holds {found!r}, which stands for an image or a video in a prompt")
    try:
        whole = family.expand(text.prompt, pair.media)
    except DataError as error:
        raise SkipRow(getattr(error, "code", "placeholders"), str(error).removesuffix(".")) from None
    if not pair.media:
        return text
    lead = min(place for tag in tags if (place := text.prompt.find(tag)) >= 0)
    return replace(text, media=pair.media, expanded=whole, lead=lead)


def written(text: RenderedPair, family: Family) -> list[str]:
    """What the family writes for each of the media, in order."""
    tags = [family.tags[m.kind] for m in text.media]
    return family.expand("\0".join(tags), text.media).split("\0") if tags else []


def _tagged(prompt: str, pair: PreferencePair, family: Family) -> str:
    """A text prompt with the family's placeholders in place of the tags <image> and <video>, else at its start."""
    tags = [family.tags[m.kind] for m in pair.media]
    if not TAG.search(prompt):
        return "".join(tags) + prompt
    rest = iter(tags)
    return TAG.sub(lambda _: next(rest), prompt)


def _as_text(turn: Message, family: Family) -> Message:
    said: Any = turn["content"]
    if isinstance(said, str):
        return turn
    return turn | {"content": "".join(p["text"] if p["type"] == "text" else family.tags[p["type"]] for p in said)}
