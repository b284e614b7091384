"""The shapes that preference rows have in the world, and how each is read. No torch.

A shape says where the two answers stand, and where the prompt stands; each row is read by the shape that most rows of
its file have. Where the answers stand (the first that fits):
    persona          question, answer_matching_behavior (chosen), answer_not_matching_behavior (rejected).
    alpacafarm       instruction, input, output_1, output_2, preference (1 or 2: which output is chosen).
    rrpo             question, answer (chosen), pred (rejected), answer_masked and pred_masked with <MASK> tags.
    ranked           a list of answers with a `rank` each (NeMo-RL, Nectar): the best against the worst.
    two-responses    two answers and which is better (PKU-SafeRLHF, HelpSteer2 and 3, SHP, arenas ...).
    ms-swift         `messages` that end in the chosen answer, with rejected_response or rejected_messages.
    chosen-rejected  two columns: chosen and rejected, chosen_response and rejected_response (answers.ANSWERS).
Where the prompt stands, if the answers are text:
    prompt           the column `prompt`, as plain text (TRL's explicit prompt), behind the text of a system column.
    prompt-columns   columns like question, instruction, input, context (see context.py), system text first,
                     joined by single line breaks; where a user asks (question ...), also as a chat.
    hh-rlhf          transcripts "\\n\\nHuman: ...\\n\\nAssistant: ...", split after the last "\\n\\nAssistant:".
    implicit-prompt  in the answers' shared start.
and if messages stand in any of them:
    conversational   `prompt`, `messages`, `conversations` ..., or the answers' shared leading messages. Text beside
                     messages is a message; a system column is the system message.
    ultrafeedback    as conversational, with a `prompt` text that repeats the user turn and is not used.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from diagnostics.media import Media
from diagnostics.pairs.answers import KINDS, PERSONA, Answers, Row, Used, column_wanted
from diagnostics.pairs.context import (
    ASKED,
    INSTRUCTION,
    SYSTEM,
    has_content,
    is_blank,
    is_context,
    plain_name,
    turns_of,
)
from diagnostics.pairs.messages import (
    Message,
    SkipRow,
    Text,
    alike,
    checked,
    every_text,
    is_message,
    is_messages,
    looks_like_messages,
    messages,
    opened,
    parsed,
    shared,
)

TOOLS = ("tools", "functions", "available_tools", "tool_schemas", "tool_definitions", "function_definitions")
TEMPLATE = ("chat_template_kwargs", "template_kwargs")
SWITCHES = ("enable_thinking", "thinking")  # arguments of chat templates that stand in a column of their own
MARKER = "\n\nAssistant:"


@dataclass(frozen=True)
class Parsed:
    """A row's three texts. chat_prompt: the prompt as a chat, where its columns are what a user asks. used: role ->
    columns. note: what else is to be said of the reading. digest: 16 hex digits of a hash of the content. media: images
    and clips in the order of their places in the prompt (see pairs.media)."""

    prompt: Text
    chosen: Text
    rejected: Text
    used: Used = field(default_factory=dict)
    chat_prompt: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] = field(default_factory=dict)
    note: str = ""
    digest: str = ""
    media: tuple[Media, ...] = ()


def view(row: Any) -> Row:
    """The row with text that is a list of messages opened, and OpenAI's `input` taken apart; empty columns left out."""
    if not isinstance(row, dict):
        what = "has more or fewer fields than the header" if isinstance(row, list) else "is not an object with fields"
        raise SkipRow("unreadable", f"the row {what}")
    seen = {k: opened(v) for k, v in row.items() if v is not None and not is_blank(k, v)}
    inner = seen.get("input")
    if isinstance(inner, dict) and turns_of(inner.get("messages")):
        seen |= {"input": inner["messages"]} | ({"tools": inner["tools"]} if inner.get("tools") else {})
    return seen


def shape_of(row: Row) -> tuple[str, str] | None:
    """Where the answers and where the prompt of a row stand, or None where it has no known shape.

    SkipRow where the shape is known and the row's values do not fit it.
    """
    kind = next((name for name, (fits, _) in KINDS.items() if fits(row)), None)
    if kind in ("persona", "alpacafarm"):
        return kind, ""
    if kind is None:
        return None
    family = _family(row, KINDS[kind][1](row))
    return (kind, family) if family else None


def parse(row: Row, shape: tuple[str, str]) -> Parsed:
    """Read one row by a shape. SkipRow, with its reason, where the row does not fit."""
    kind, family = shape
    if kind in _WHOLE:
        return _WHOLE[kind](row)
    fits, take = KINDS[kind]
    if not fits(row):
        names = column_wanted(kind, row)
        raise SkipRow("missing_field", f"no field {names!r}", names)
    found = take(row)
    done = _FAMILIES[family](row, found)
    return _with_tools(row, done)


def name_of(shape: tuple[str, str]) -> str:
    """The shape's one name: that of the prompt for plain chosen and rejected columns, else that of the answers."""
    kind, family = shape
    return family if kind == "chosen-rejected" else kind


# --- where the prompt stands -----------------------------------------------------------------------------------


def _family(row: Row, found: Answers) -> str | None:
    both = (found.chosen, found.rejected)
    if not all(isinstance(a, str | list) or is_message(a) for a in both):
        return None
    prompt = row.get("prompt")
    if not all(isinstance(a, str) for a in both):
        whole = is_messages(found.chosen) and messages_role(found.chosen[0]) != "assistant"
        return "ultrafeedback" if isinstance(prompt, str) and whole else "conversational"
    if isinstance(prompt, str) and prompt.strip():
        return "prompt"
    if any(turns_of(row[c]) for c in _context_columns(row, found)):
        return "conversational"
    if all(map(_is_transcript, both)):
        return "hh-rlhf"
    if any(isinstance(row[c], str) for c in _context_columns(row, found) if plain_name(c) not in SYSTEM):
        return "prompt-columns"
    return "prompt" if prompt is not None else "implicit-prompt"


def _context_columns(row: Row, found: Answers) -> list[str]:
    """The columns with content that may hold the prompt or a part of it, in the row's order."""
    answers = {c for columns in found.used.values() for c in columns}
    return [c for c in row if c not in answers and is_context(c) and has_content(row[c])]


def _system(row: Row, found: Answers, rest: str) -> tuple[str, tuple[str, ...]]:
    """The text of the row's system column and its name, where it has any that the rest does not repeat."""
    for column in _context_columns(row, found):
        if plain_name(column) in SYSTEM and isinstance(row[column], str) and row[column] not in rest:
            return _text(row, column), (column,)
    return "", ()


def _from_prompt(row: Row, found: Answers) -> Parsed:
    """`prompt` as it is, behind the system text."""
    prompt, chosen, rejected = _text(row, "prompt"), *_text_answers(found)
    system, column = _system(row, found, prompt)
    used = {"system": column, "prompt": ("prompt",), **found.used}
    return Parsed("\n".join(t for t in (system, prompt) if t), chosen, rejected, used, note=found.note)


def _from_columns(row: Row, found: Answers) -> Parsed:
    """The system text and the columns that make up the prompt, in the row's order (input after instruction)."""
    chosen, rejected = _text_answers(found)
    taken = _prompt_columns(row, found)
    if not taken:
        raise SkipRow("missing_field", "no prompt: the columns that hold it are empty here", "prompt")
    said = "\n".join(_text(row, c) for c in taken)
    system, column = _system(row, found, said)
    used = {"system": column, "prompt": tuple(taken), **found.used}
    chat = None
    if any(plain_name(c) in ASKED | INSTRUCTION for c in taken):
        chat = [{"role": "system", "content": system}] if system else []
        chat.append({"role": "user", "content": said})
    return Parsed("\n".join(t for t in (system, said) if t), chosen, rejected, used, chat, note=found.note)


def _prompt_columns(row: Row, found: Answers) -> list[str]:
    """At most one column each of what is asked, instructed and told; one that repeats another is not taken twice."""
    taken: dict[str, str] = {}
    for column in _context_columns(row, found):
        name, value = plain_name(column), row[column]
        if name in SYSTEM or not isinstance(value, str) or any(value in row[c] for c in taken.values()):
            continue
        part = "instruction" if name in INSTRUCTION else "asked" if name in ASKED else "told"
        taken.setdefault(part, column)
    order = [c for c in row if c in taken.values()]
    if {"instruction", "asked"} <= set(taken) and order.index(taken["asked"]) < order.index(taken["instruction"]):
        order.remove(taken["asked"])
        order.insert(order.index(taken["instruction"]) + 1, taken["asked"])
    return order


def _from_transcript(row: Row, found: Answers) -> Parsed:
    """Completions keep the space after the marker, as the transcripts have it."""
    sides = []
    for side, text in zip(("chosen", "rejected"), _text_answers(found)):
        head, marker, completion = text.rpartition(MARKER)
        if not marker:
            raise SkipRow("not_a_transcript", f'{side} has no "Assistant:" turn to split at', side)
        sides.append((head + marker, completion))
    (prompt, chosen), (other, rejected) = sides
    if prompt != other:
        raise SkipRow("prompts_differ", "chosen and rejected answer different prompts", "chosen")
    return Parsed(prompt, chosen, rejected, {"prompt": found.used["chosen"], **found.used}, note=found.note)


def _is_transcript(text: str) -> bool:
    return text.lstrip("\n").startswith("Human:") and MARKER in text


def _from_shared_start(row: Row, found: Answers) -> Parsed:
    chosen, rejected = _text_answers(found)
    cut = shared_start(chosen, rejected)
    used = {"prompt": found.used["chosen"], **found.used}
    return Parsed(chosen[:cut], chosen[cut:], rejected[cut:], used, note=found.note)


def shared_start(chosen: str, rejected: str) -> int:
    """Characters of the shared start, cut back so that no word is split and a space opens the completions."""
    most = max(0, min(len(chosen), len(rejected)) - 1)
    cut = next((i for i in range(most) if chosen[i] != rejected[i]), most)
    while cut and any(_inside_word(t, cut) for t in (chosen, rejected)):
        cut -= 1
    return cut - (chosen[cut - 1 : cut] == " ")


def _inside_word(text: str, cut: int) -> bool:
    return text[cut - 1].isalnum() and text[cut : cut + 1].isalnum()


def _from_messages(row: Row, found: Answers) -> Parsed:
    """Messages, from wherever they stand."""
    sides = [_turns(v, found.used[s][0]) for s, v in (("chosen", found.chosen), ("rejected", found.rejected))]
    head, columns = _head(row, found, sides)
    (start, chosen), (other, rejected) = (_split(side, head) for side in sides)
    if not start and not other:
        cut = shared(chosen, rejected)
        start, chosen, rejected = chosen[:cut], chosen[cut:], rejected[cut:]
        columns = found.used["chosen"]
    elif not start or not other:
        start = start or other
    elif not alike(start, other):
        raise SkipRow("prompts_differ", "chosen and rejected answer different prompts", "chosen")
    for name, side in (("chosen", chosen), ("rejected", rejected)):
        if side[0]["role"] != "assistant":
            raise SkipRow("prompts_differ", _other_start(name, side[0]["role"], bool(start)), name)
    if not start:
        start, columns = _text_head(row, found)
    system, column = ("", ()) if start[0]["role"] == "system" else _system(row, found, "")
    start = [{"role": "system", "content": system}, *start] if system else start
    return Parsed(start, chosen, rejected, {"system": column, "prompt": columns, **found.used}, note=found.note)


def _other_start(name: str, role: str, after: bool) -> str:
    said = "after the prompt" if after else "the prompts differ, for"
    return f"{said} {name} begins with a turn of {role[:40]!r}, not of the assistant"


def _turns(value: Any, name: str) -> list[Message]:
    """An answer as messages: text is one message of the assistant."""
    if isinstance(value, str):
        return [{"role": "assistant", "content": _plain_text(value, name)}]
    return messages(value, name)


def _head(row: Row, found: Answers, sides: list[list[Message]]) -> tuple[list[Message], tuple[str, ...]]:
    """The prompt's messages and their column. Beside answers that hold their own prompt only `prompt` must fit it;
    another column that does not is no prompt (whether it adds anything is asked afterwards)."""
    columns = [c for c in _context_columns(row, found) if turns_of(row[c])]
    for column in sorted(columns, key=lambda c: c != "prompt"):
        head = messages(turns_of(row[column]), column)
        if all(s[0]["role"] == "assistant" for s in sides):
            for side in sides:  # the whole conversation, its answer included
                if len(head) > len(side) and alike(head[-len(side) :], side):
                    head = head[: -len(side)]
            asked = _prompt_columns(row, found)
            if head[-1]["role"] != "assistant":
                return head, (column,)
            if not asked and column != "prompt":
                reason = (
                    f"{column!r} ends in a turn of the assistant that is neither answer; take that turn out, or name "
                    "the column prompt if both answers go on with it"
                )
                raise SkipRow("context_unread", reason, column)
            if asked:  # earlier turns, then a question
                head = [*head, {"role": "user", "content": "\n".join(_text(row, c) for c in asked)}]
            return head, (column, *asked)
        if all(_split(s, head)[0] for s in sides) or column == "prompt":
            return head, (column,)
    return [], ()


def _split(side: list[Message], head: list[Message]) -> tuple[list[Message], list[Message]]:
    """An answer's messages without the prompt that they repeat, with or without its system messages."""
    if not head or side[0]["role"] == "assistant":
        return head, side
    bare = [m for i, m in enumerate(head) if m["role"] != "system" or any(n["role"] != "system" for n in head[:i])]
    lead = next((i for i, m in enumerate(side) if m["role"] != "system"), 0)
    for prompt, begin in ((head, 0), (bare, 0), (head, lead)):
        end = begin + len(prompt)
        if prompt and end < len(side) and alike(side[begin:end], prompt):
            return (side[:end] if begin else head), side[end:]
    return [], side


def _text_head(row: Row, found: Answers) -> tuple[list[Message], tuple[str, ...]]:
    """A prompt in text columns as one message of the user."""
    prompt = row.get("prompt")
    columns = ["prompt"] if prompt and not isinstance(prompt, list) else _prompt_columns(row, found)
    if not columns:
        raise SkipRow("missing_field", "no prompt, neither in `prompt` nor as shared leading messages", "prompt")
    return [{"role": "user", "content": "\n".join(_text(row, c) for c in columns)}], tuple(columns)


_FAMILIES: dict[str, Callable[[Row, Answers], Parsed]] = {
    "prompt": _from_prompt,
    "prompt-columns": _from_columns,
    "hh-rlhf": _from_transcript,
    "implicit-prompt": _from_shared_start,
    "conversational": _from_messages,
    "ultrafeedback": _from_messages,
}


# --- shapes that are read whole --------------------------------------------------------------------------------


def _from_alpacafarm(row: Row) -> Parsed:
    texts = [_text(row, f) for f in ("instruction", "output_1", "output_2")]
    context = _text(row, "input") if row.get("input") is not None else ""
    preference = row.get("preference")
    if isinstance(preference, bool) or str(preference).strip() not in ("1", "2", "1.0", "2.0"):
        raise SkipRow("no_preference", f"preference is {str(preference)[:40]!r}, not 1 or 2", "preference")
    first = str(preference).strip().startswith("1")
    chosen, rejected = texts[1:] if first else texts[:0:-1]
    used = {"prompt": ("instruction", "input") if context else ("instruction",), "preference": ("preference",)}
    used |= dict.fromkeys(("chosen", "rejected"), ("output_1", "output_2"))
    return Parsed(texts[0] + ("\n" + context if context else ""), chosen, rejected, used)


def _from_persona(row: Row) -> Parsed:
    """Prompt = question and a newline; answers are stripped, since after a newline the answer is "Yes", not " Yes"
    (Razin et al. 2024, appendix H.1: answers are single tokens looked up without the leading space)."""
    question, matching, other = (_text(row, f) for f in PERSONA)
    used: Used = dict(zip(("prompt", "chosen", "rejected"), ((f,) for f in PERSONA)))
    return Parsed(question + "\n", matching.strip(), other.strip(), used)


_WHOLE: dict[str, Callable[[Row], Parsed]] = {"persona": _from_persona, "alpacafarm": _from_alpacafarm}


# --- fields ----------------------------------------------------------------------------------------------------


def messages_role(message: dict[str, Any]) -> str:
    """A message's role in its usual name."""
    return messages(message, "chosen")[0]["role"]


def _text(row: Row, name: str) -> str:
    return _plain_text(row.get(name), name)


def _plain_text(value: Any, name: str) -> str:
    if looks_like_messages(value):
        reason = f"field {name!r} is a list of messages written as text that cannot be read; write it as JSON"
        raise SkipRow("not_text", reason, name)
    return checked(value, name)


def _text_answers(found: Answers) -> tuple[str, str]:
    return _plain_text(found.chosen, found.used["chosen"][0]), _plain_text(found.rejected, found.used["rejected"][-1])


def _with_tools(row: Row, done: Parsed) -> Parsed:
    """The row's tools and arguments for the chat template, where a chat template is used at all.

    With tools, a prompt that could be a chat is one: plain text has no place for them. A switch of the template that
    stands in a column of its own decides nothing of that, and is not used in plain text.
    """
    tools_column = next((c for c in TOOLS if row.get(c)), None)
    kwargs_column = next((c for c in TEMPLATE if row.get(c)), None)
    tools = _objects(row[tools_column], tools_column) if tools_column else []
    kwargs = _object(row[kwargs_column], kwargs_column) if kwargs_column else {}
    text = isinstance(done.prompt, str)
    switches = {} if text and done.chat_prompt is None else _switches(row, kwargs)
    if not tools_column and not kwargs_column and not switches:
        return done
    used = done.used | ({"tools": (tools_column,)} if tools_column and tools else {})
    named = (*((kwargs_column,) if kwargs_column and kwargs else ()), *switches)
    used |= {"template arguments": named} if named else {}
    if not tools and not kwargs:
        return replace(done, used=used, template_kwargs=switches)
    prompt, chosen, rejected = done.prompt, done.chosen, done.rejected
    if text:
        if done.chat_prompt is None:
            column = str(tools_column if tools else kwargs_column)
            reason = f"{column!r} is for a chat template, but the row is plain text; give chat messages, or drop it"
            raise SkipRow("context_unread", reason, column)
        prompt, chosen, rejected = (
            done.chat_prompt,
            *([{"role": "assistant", "content": a}] for a in (chosen, rejected)),
        )
    return Parsed(prompt, chosen, rejected, used, None, tools or None, switches | kwargs, done.note)


def _switches(row: Row, kwargs: dict[str, Any]) -> dict[str, bool]:
    """The row's switches for the template: truth values, or the words for them; anything else is none."""
    words = {True: True, False: False, "true": True, "false": False}
    said = {c: row[c].strip().lower() if isinstance(row[c], str) else row[c] for c in SWITCHES if c in row}
    found = {c: words[v] for c, v in said.items() if isinstance(v, bool | str) and v in words}
    for column, value in found.items():
        if kwargs.get(column, value) != value:
            raise SkipRow(
                "context_unread", f"{column!r} is {value}, but the template's arguments say otherwise", column
            )
    return found


def _objects(value: Any, name: str) -> list[dict[str, Any]]:
    """A list of objects, or JSON text of one, or a list of JSON texts."""
    value = parsed(value) if isinstance(value, str) else value
    value = [value] if isinstance(value, dict) else value
    found: Any = [parsed(v) if isinstance(v, str) else v for v in value] if isinstance(value, list) else None
    if found is None or not all(isinstance(v, dict) for v in found):
        raise SkipRow("not_text", f"field {name!r} is not a list of tools, nor JSON text of one", name)
    every_text(found, name)
    return found


def _object(value: Any, name: str) -> dict[str, Any]:
    found = parsed(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise SkipRow("not_text", f"field {name!r} is not an object of arguments, nor JSON text of one", name)
    every_text(found, name)
    return found
