"""Which columns of a row carry what the answers answer (questions, instructions, dialogues ...), by name and value."""

import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

from diagnostics.pairs.messages import is_message, is_messages

SYSTEM = {"system", "sys", "developer", "preamble", "meta_prompt"}
SYSTEM |= {
    f"{who}_{what}"
    for who in ("system", "sys", "developer")
    for what in ("prompt", "message", "msg", "instruction", "instructions", "role", "context")
}
INSTRUCTION = {"instruction", "instructions"}
ASKED = {"question", "query", "problem", "request", "input", "inputs", "prompt_input", "user_input"}
ASKED |= {"user_prompt", "user_query", "user_question", "user_message", "user_instruction", "user_request", "ask"}
TOLD = {"context", "contexts", "passage", "passages", "document", "documents", "article", "paragraph", "paragraphs"}
TOLD |= {"post", "history", "dialog", "dialogue", "dialogs", "dialogues", "conversation", "conversations", "messages"}
TOLD |= {"chat", "chats", "chat_history", "context_messages", "prompt_messages", "conversation_history", "turns"}
TOLD |= {"dialog_history", "dialogue_history", "message_history", "history_messages", "background", "story", "evidence"}
TOLD |= {"prompts", "input_messages", "previous_messages", "past_messages", "past_dialogue", "previous_turns"}
NAMES = {"prompt"} | SYSTEM | INSTRUCTION | ASKED | TOLD
PERHAPS = {
    "user",
    "human",
    "source",
    "src",
    "text",
    "title",
    "topic",
    "task",
    "body",
    "scenario",
    "premise",
    "claim",
    "statement",
}
PERHAPS |= {"choices", "options", "schema", "table", "hint", "persona", "situation", "facts", "knowledge"}
PERHAPS |= {"hypothesis", "sentence", "code", "snippet", "description", "excerpt", "abstract", "email", "review"}
MEDIA = {"image", "images", "picture", "pictures", "photo", "img", "video", "videos", "audio", "audios", "pixel"}
_DECORATION = {"text", "content", "body", "string", "str"}
_ABOUT = set(
    """
    annotation annotator answer answers author better candidate categories category chosen comment comments
    completion completions correction critique dataset date domain evaluation explanation feedback file filename
    generation generations gold hash id ids idx index info judge judgement judgment key kind kwargs label labels
    lang language license link locale margin meta metadata model name note notes origin original output outputs path
    preference prefix quality rank rating rationale raw reason reasoning reasons reference rejected response
    responses revision reward score solution source split status step steps subset tag tags target template time
    tools topic truth type uid url uuid version worse
    """.split()
)  # words of names that tell about a row
_VERSIONS = {"original", "raw", "reference", "gold", "source", "dataset"}  # of a thing, in its name
_NOTHING = {"nan", "none", "null", "<na>", "n/a", "<noinput>"}  # what stands for an empty cell
WORDS = 4  # of a text that looks like a sentence


@lru_cache(maxsize=4096)
def plain_name(column: str) -> str:
    """A column's name in one spelling: "userQuestion", "User Question" and "user-question-text" are user_question."""
    spaced = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", column)
    parts = [p for p in re.split(r"[^a-z0-9]+", spaced.lower()) if p]
    while len(parts) > 1 and parts[-1] in _DECORATION:
        parts.pop()
    return "_".join(parts)


def is_context(column: str) -> bool:
    """Whether the name says that the column holds a prompt or a part of one."""
    return plain_name(column) in NAMES


def is_blank(column: str, value: Any) -> bool:
    """Whether a column of the prompt holds only the word for an empty cell, as a data frame of text is written."""
    return isinstance(value, str) and value.strip().lower() in _NOTHING and is_context(column)


def is_media(column: str) -> bool:
    """Whether the name says that the column holds pictures, films or sounds, or where they are."""
    return bool(MEDIA & set(plain_name(column).split("_")))


def turns_of(value: Any) -> list[dict[str, Any]] | None:
    """The messages in a column, written as messages or as [[question, answer], ...]; None for anything else."""
    if is_messages(value) or is_message(value):
        return value if isinstance(value, list) else [value]
    exchanges = isinstance(value, list) and value and all(_is_exchange(v) for v in value)
    return [{"role": r, "content": t} for v in value for r, t in zip(("user", "assistant"), v)] if exchanges else None


def has_content(value: Any) -> bool:
    """Whether there is any text in a value, or a message with an image or a video."""
    return any(t.strip() for t in texts(value)) or any(map(_shows, value if isinstance(value, list) else [value]))


def texts(value: Any) -> Iterator[str]:
    """Every text in a value; of messages, what was not said by the assistant."""
    if isinstance(value, str):
        yield value
    elif is_message(value):
        role = str(value.get("role") or value.get("from")).lower()
        if role not in ("assistant", "gpt", "model", "bot"):
            content = next((value[k] for k in ("content", "value") if value.get(k) is not None), "")
            yield from ([content] if isinstance(content, str) else _part_texts(content))
    elif isinstance(value, dict) and set(value) == {"input", "output"}:  # a turn of the user and its answer
        yield from texts(value["input"])
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from texts(inner)


def squeezed(text: str) -> str:
    """The text with every run of white space as one space."""
    return " ".join(text.split())


def looks_like_content(column: str, values: list[Any], *, words: int, known_only: bool) -> bool:
    """Whether a column of no known name holds texts of so many words that differ from row to row, as a prompt does.

    known_only: only for names that are sometimes a prompt's (source, text, title ...), else for all but those that
    tell about the row (ids, models, categories, rationales ...). Of those that do either (source, topic), the texts
    must be sentences.
    """
    name = plain_name(column)
    parts = name.split("_")
    about = bool(_ABOUT & set(parts)) and "_".join(p for p in parts if p not in _VERSIONS) not in NAMES
    if is_media(column) or (name not in PERHAPS and (known_only or about)):
        return False
    said = [v for v in (squeezed(" ".join(texts(v))) for v in values) if re.search(r"[^\W\d_]{2}", v)]
    wordy = [s for s in said if s.count(" ") + 1 >= words]
    wordy = [s for s in wordy if s[-1] in ".?!:。" or not about]
    return 2 * len(wordy) > len(said) and 2 * len(set(wordy)) >= len(wordy)


def _is_exchange(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(t, str) for t in value)


def _shows(message: Any) -> bool:
    """Whether a message has a part that is an image or a video."""
    content = message.get("content") if is_message(message) else None
    kinds = [str(part.get("type")) for part in content if isinstance(part, dict)] if isinstance(content, list) else []
    return any("image" in kind or "video" in kind for kind in kinds)


def _part_texts(content: Any) -> Iterator[str]:
    for part in content if isinstance(content, list) else [content]:
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            yield part["text"]
        elif isinstance(part, str):
            yield part
