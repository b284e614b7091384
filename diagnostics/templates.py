"""Chat templates: what a template writes around an answer, and a row of chat messages as the text it becomes. No torch.

An answer is what the policy would have had to generate: the assistant's own text up to and including the end of its
turn as the template writes it, and nothing behind that (ChatML's line break, an EOS that ends the whole text).
A template is code of the model's author: it runs in transformers' sandbox, under a bound on time, memory and size.
"""

import inspect
import json
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from diagnostics.errors import DataError
from diagnostics.media import Media
from diagnostics.pairs import Message, PreferencePair, SkipRow

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

SECONDS = 5.0  # of processor time for one rendering, which usually takes a thousandth
MEMORY = 2 << 30  # bytes that one rendering may take beyond what the process has
LARGEST = 16_000_000  # characters of one rendered conversation, beside four times what its row holds

_ASKED, _ANSWER = "qzvk", "xjqw"  # letters that no template writes by itself
_OWN_ARGUMENTS = {"documents", "kwargs"}  # of apply_chat_template: these may come from a row
_REASONING = ("reasoning_content", "thinking", "reasoning")


@dataclass(frozen=True)
class Turn:
    """How a chat template writes an answer; empty where the template cannot be asked.

    header: what stands between the prompt (without generation prompt) and the answer. lacks_prompt: the template has no
    generation prompt, so that the header is not asked for. opened: what it writes in front of an answer behind the
    generation prompt, None where it writes something else instead of that. end: what closes the answer, up to and
    including its end token; rest: what is written behind.
    tokens: finds the tokens of the vocabulary that are no ordinary text (as <|im_end|>).
    parts: it takes contents as lists of parts, as the templates of vision-language models do; wants_parts: no others.
    """

    header: str = ""
    lacks_prompt: bool = False
    opened: str | None = None
    end: str = ""
    rest: str = ""
    tokens: re.Pattern[str] | None = None
    known: bool = False
    parts: bool = False
    wants_parts: bool = False


@dataclass(frozen=True)
class RenderedPair:
    """The three texts that are tokenized. templated: they come from the tokenizer's chat template.

    ends: what closes chosen and rejected, a part of these texts; "" where nothing does, and EOS has to.
    doubts: codes (diagnostics.codes.DOUBTS). notes: in words, what of the row, or of what the template writes, was left
    out of these texts. media: what the model is shown; the prompt has one placeholder for each of them, and `expanded`
    is the prompt that is tokenized then, with as many as the model wants, of which `lead` characters stand before the
    first.
    """

    prompt: str
    chosen: str
    rejected: str
    templated: bool
    ends: tuple[str, str] = ("", "")
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    media: tuple[Media, ...] = ()
    expanded: str = ""
    lead: int = 0


def find_turn(tokenizer: "PreTrainedTokenizerBase") -> Turn:
    """What the template writes around an answer, seen in a conversation of two made-up turns."""
    found = _find_turn(tokenizer, _ASKED, _ANSWER)
    if found.known:
        return found
    of_parts = _find_turn(tokenizer, as_parts(_ASKED), as_parts(_ANSWER))
    return replace(of_parts, parts=True, wants_parts=True) if of_parts.known else found


def _find_turn(tokenizer: "PreTrainedTokenizerBase", question: Any, answer: Any) -> Turn:
    tokens = _tokens(tokenizer)
    asked = [{"role": "user", "content": question}]
    answered = [*asked, {"role": "assistant", "content": answer}]
    try:
        bare, prompt, whole = (
            apply_template(tokenizer, messages, add_generation_prompt=ask)
            for messages, ask in ((asked, False), (asked, True), (answered, False))
        )
    except SkipRow:
        return Turn(tokens=tokens)
    before, found, tail = whole.rpartition(_ANSWER)
    if not found:
        return Turn(tokens=tokens)
    end = _end(tail, _tail_within(tokenizer, answered, asked), tokens)
    header = before[len(bare) :] if before.startswith(bare) else ""
    lacks = prompt == bare and bool(header.strip())
    opened = before[len(prompt) :] if before.startswith(prompt) else None
    return Turn(header, lacks, opened, end, tail[len(end) :], tokens, True, _takes_parts(tokenizer, bare))


def _takes_parts(tokenizer: "PreTrainedTokenizerBase", bare: str) -> bool:
    """Whether the template writes a content of text parts as it writes their text."""
    try:
        return apply_template(tokenizer, [{"role": "user", "content": as_parts(_ASKED)}]) == bare
    except SkipRow:
        return False


def as_parts(said: Any) -> Any:
    """A content as parts."""
    return [{"type": "text", "text": said}] if isinstance(said, str) else said


def _tail_within(tokenizer: "PreTrainedTokenizerBase", answered: list[Message], asked: list[Message]) -> str:
    """What follows an answer that is not the last turn."""
    try:
        return apply_template(tokenizer, [*answered, *asked]).rpartition(_ANSWER)[2]
    except SkipRow:
        return ""


def _end(tail: str, within: str, tokens: re.Pattern[str] | None) -> str:
    """The start of what follows the last answer that closes it: up to its first token that is no ordinary text, and
    those directly behind that also follow an answer in the middle of a conversation. Without any, its text, if that
    follows there too."""
    first = tokens.search(tail) if tokens else None
    if tokens is None or first is None:
        return tail.rstrip() if within.startswith(tail.rstrip()) else ""
    stop = first.end()
    while (further := tokens.match(tail, stop)) and within.startswith(tail[: further.end()]):
        stop = further.end()
    return tail[:stop]


def _tokens(tokenizer: "PreTrainedTokenizerBase") -> re.Pattern[str] | None:
    names = {str(t) for t in tokenizer.all_special_tokens} | {str(t) for t in tokenizer.added_tokens_decoder.values()}
    longest_first = sorted((name for name in names if name.strip()), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first))) if names else None


# --- a pair of answers ------------------------------------------------------------------------------------------


def render_chat(pair: PreferencePair, tokenizer: "PreTrainedTokenizerBase", turn: Turn) -> RenderedPair:
    """A pair of chat messages as texts. Raises SkipRow where the template cannot say it exactly.

    A prompt that ends in a turn of the assistant is continued by the answers: their text follows its own without a
    space. Turns behind the assistant's last one are left out; other turns between two of the assistant make a skip.
    """
    assert isinstance(pair.prompt, list)
    options = _options(pair, tokenizer)
    notes: list[str] = []
    answers = [_answer(name, getattr(pair, name), notes) for name in ("chosen", "rejected")]
    doubts = ["turns_cut"] if notes else []
    prompt, completions, found = _parts(pair.prompt, answers, tokenizer, turn, options)
    doubts += found
    parts = [_cut_end(text, turn, str(tokenizer.eos_token or "")) for text in completions]
    for name, answer, (body, _, rest) in zip(("chosen", "rejected"), answers, parts, strict=True):
        if not body.strip() or not _said([answer], name):
            raise SkipRow("empty_completion", f"{name} is empty or blank")
        notes += _missing(_said([answer], name), body)
        notes += [f"{name}: {rest!r}, which the chat template writes behind the end, is left out"] if rest else []
    notes += _missing(_said(pair.prompt, "prompt") + _tool_names(pair), prompt)
    doubts += ["template_dropped"] if any(NOT_SHOWN in note for note in notes) else []
    doubts += _doubts_of_ends(parts, turn, tokenizer)
    doubts += ["clock"] if _shows_clock(tokenizer, pair.prompt, options) else []
    (chosen, end, _), (rejected, other, _) = parts
    return RenderedPair(prompt, chosen + end, rejected + other, True, (end, other), tuple(doubts), tuple(notes))


def render_prompt(prompt: list[Message], tokenizer: "PreTrainedTokenizerBase", turn: Turn) -> str:
    """A prompt of chat messages as the model is asked, whatever the answer. SkipRow where that cannot be said."""
    return _parts(prompt, [{"role": "assistant", "content": _ANSWER}], tokenizer, turn, {})[0]


def _parts(
    prompt: list[Message], answers: Sequence[Message], tokenizer: "PreTrainedTokenizerBase", turn: Turn, options: Any
) -> tuple[str, list[str], list[str]]:
    """The prompt as the model is asked, what the template writes behind it for each answer, and doubts about both."""
    probe: Message = {"role": "assistant", "content": _ANSWER}
    if turn.wants_parts:
        prompt, answers, (probe,) = (
            [m | {"content": as_parts(m["content"])} for m in turns] for turns in (prompt, answers, [probe])
        )
    if prompt and prompt[-1].get("role") == "assistant":
        asked = apply_template(tokenizer, prompt, continue_final_message=True, **options)
        wholes = [apply_template(tokenizer, _continued(prompt, a), **options) for a in answers]
        return asked, _behind(asked, wholes), ["prefilled"]
    asked = apply_template(tokenizer, prompt, add_generation_prompt=True, **options)
    wholes = [apply_template(tokenizer, [*prompt, a], **options) for a in answers]
    if turn.lacks_prompt and all(w.startswith(asked + turn.header) for w in wholes):
        return asked + turn.header, _behind(asked + turn.header, wholes), ["no_generation_prompt"]
    if all(w.startswith(asked) for w in wholes):
        return asked, _behind(asked, wholes), []
    if turn.opened is None:  # it asks in another way than it writes an answer
        asked = apply_template(tokenizer, prompt, **options) + turn.header
        return asked, _behind(asked, wholes), ["generation_prompt_differs"]
    answered = [*prompt, probe]  # it writes the prompt in another way then
    before = apply_template(tokenizer, answered, **options).rpartition(_ANSWER)[0]
    return asked, [turn.opened + text for text in _behind(before, wholes)], ["prompt_differs"]


def _behind(start: str, wholes: Sequence[str]) -> list[str]:
    if not start or not all(w.startswith(start) for w in wholes):
        raise SkipRow("template_failed", "the chat template renders the prompt differently once a response follows")
    return [w[len(start) :] for w in wholes]


def _options(pair: PreferencePair, tokenizer: "PreTrainedTokenizerBase") -> dict[str, Any]:
    """What the row gives the template beside its messages."""
    taken = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages"} - _OWN_ARGUMENTS
    wrong = sorted(taken.intersection(pair.template_kwargs))
    if wrong:
        raise SkipRow("template_failed", f"the row's arguments for the chat template hold {wrong[0]!r}, which is ours")
    return {"tools": pair.tools, **pair.template_kwargs}


def _answer(name: str, messages: Any, notes: list[str]) -> Message:
    """The one turn of the assistant that is scored; the turns behind it are noted."""
    roles = [str(m.get("role")) for m in messages]
    last = max((i for i, role in enumerate(roles) if role == "assistant"), default=-1)
    if last != 0:
        other = next((role for role in roles if role != "assistant"), "assistant")
        whose = f"a turn of the {other}" if other != "assistant" else "several turns of the assistant"
        raise SkipRow(
            "several_turns", f"{name} holds {whose}; only one turn of the assistant can be scored, so split the row"
        )
    notes += [f"{name}: the turn of the {role} behind the answer is left out" for role in roles[1:]]
    return messages[0]


def _continued(prompt: Sequence[Message], answer: Message) -> list[Message]:
    said: Any = content(prompt[-1]) + content(answer)
    if isinstance(prompt[-1].get("content"), list):
        said = [part for part in prompt[-1]["content"] if part["type"] != "text"] + as_parts(said)
    return [*prompt[:-1], {**prompt[-1], **answer, "content": said}]


def _cut_end(completion: str, turn: Turn, eos: str) -> tuple[str, str, str]:
    """A completion as (own text, what closes it, what the template writes behind)."""
    tail = turn.end + turn.rest
    if turn.known and completion.endswith(tail):
        body, end, rest = completion[: len(completion) - len(tail)], turn.end, turn.rest
        while end and body.endswith(end):  # the message held it already
            body = body[: -len(end)]
        return body, end, rest
    text = completion.rstrip()  # a turn of another kind (a tool call) may end in another token
    found = list(turn.tokens.finditer(text)) if turn.tokens else []
    if found and found[-1].end() == len(text):
        return text[: found[-1].start()], found[-1].group(), completion[len(text) :]
    end = eos if eos and text.endswith(eos) else ""
    return text.removesuffix(end) if end else completion, end, completion[len(text) :] if end else ""


def _doubts_of_ends(
    parts: Sequence[tuple[str, str, str]], turn: Turn, tokenizer: "PreTrainedTokenizerBase"
) -> list[str]:
    ends = [end for _, end, _ in parts]
    eos = str(tokenizer.eos_token) if tokenizer.eos_token else None
    opened = turn.opened if turn.opened and turn.opened.strip() and not turn.lacks_prompt else None
    found = {
        "no_turn_end": not all(ends),
        "eos_differs": any(end and (eos is None or not end.endswith(eos)) for end in ends),
        "text_after_end": any(end and rest for _, end, rest in parts),
        "template_adds": any(opened and body.startswith(opened) for body, _, _ in parts),
    }
    return [code for code, is_so in found.items() if is_so]


# --- what a template drops --------------------------------------------------------------------------------------

NOT_SHOWN = "is not in the text that the chat template made"


def content(message: Message) -> str:
    """A message's content as text: itself, its parts of text, or nothing where it has none (a tool call)."""
    found = message.get("content")
    if isinstance(found, list):
        return "".join(str(part.get("text") or "") for part in found if isinstance(part, dict))
    return found if isinstance(found, str) else ""


def _said(messages: Sequence[Message], name: str) -> list[tuple[str, str]]:
    """(place, text) of all that the messages say: contents, reasoning, and what tool calls hold."""
    found: list[tuple[str, str]] = []
    for i, message in enumerate(messages):
        place = f"{name}[{i}]"
        parts = message.get("content")
        texts = [content({"content": [part]}) for part in parts] if isinstance(parts, list) else [content(message)]
        found += [(f"{place}.content", text) for text in texts]
        reasons = {key: message[key] for key in _REASONING if isinstance(message.get(key), str)}
        found += [(f"{place}.{key}", text) for key, text in reasons.items()]
        found += [(f"{place}.tool_calls", text) for text in _leaves(message.get("tool_calls"))]
    return [(place, text) for place, text in found if text.strip()]


def _leaves(calls: Any) -> list[str]:
    """Names and arguments of tool calls, one text each."""
    found: list[str] = []
    for call in calls if isinstance(calls, list) else []:
        function = call.get("function", call) if isinstance(call, dict) else {}
        given = function.get("arguments") if isinstance(function, dict) else None
        try:
            arguments = json.loads(given) if isinstance(given, str) else given
        except ValueError:
            arguments = given
        found += [str(function.get("name") or "")] if isinstance(function, dict) else []
        found += _flat(arguments)
    return found


def _flat(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for key, item in value.items() for text in (str(key), *_flat(item))]
    if isinstance(value, list):
        return [text for item in value for text in _flat(item)]
    return [] if value is None or isinstance(value, bool) else [str(value)]


def _tool_names(pair: PreferencePair) -> list[tuple[str, str]]:
    functions = [tool.get("function", tool) for tool in pair.tools or [] if isinstance(tool, dict)]
    names = [f.get("name") for f in functions if isinstance(f, dict)]
    return [("tools", name) for name in names if isinstance(name, str) and name.strip()]


def _missing(said: Sequence[tuple[str, str]], rendered: str) -> list[str]:
    """A note for each text that does not stand in the rendered one, blanks aside. Each has a place of its own there,
    so that a dropped "Be brief." is not found in the next turn, which says it too."""
    page, at = _unspaced(rendered), 0
    for _, text in said:  # the usual case: all of them, one behind the other
        word = _unspaced(text)
        at = page.find(word, at)
        if at < 0:
            break
        at += len(word)
    else:
        return []
    notes = []
    for place, text in sorted(said, key=lambda item: -len(item[1])):
        forms = (text, json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1])
        found = next((form for form in map(_unspaced, forms) if form in page), None)
        notes += [f"{place} {NOT_SHOWN}: {text!r}"] if found is None else []
        page = page if found is None else page.replace(found, "\0", 1)
    return notes


def _unspaced(text: str) -> str:
    return "".join(text.split())


def _shows_clock(tokenizer: "PreTrainedTokenizerBase", messages: Any, options: dict[str, Any]) -> bool:
    """Whether the template asks for the time: without a clock the same messages give an error or another text."""
    if "strftime_now" not in str(tokenizer.chat_template):
        return False
    try:
        return apply_template(tokenizer, messages, **options) != apply_template(
            tokenizer, messages, **{**options, "strftime_now": "no clock"}
        )
    except SkipRow:
        return True


# --- rendering --------------------------------------------------------------------------------------------------


def apply_template(tokenizer: "PreTrainedTokenizerBase", messages: Any, **options: Any) -> str:
    """Messages through the chat template. SkipRow where it refuses them; DataError where it does not come to an end."""
    name = tokenizer.name_or_path or "the tokenizer"
    if tokenizer.chat_template is None:
        raise DataError(
            f"{name}: has no chat template, but the data holds chat messages. "
            "Use a model with a chat template, or give prompt, chosen and rejected as text."
        )
    try:
        with _bounded():
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
    except (_Endless, MemoryError):
        raise DataError(
            f"{name}: its chat template does not come to an end (stopped after {SECONDS:g} s of work or "
            f"{MEMORY >> 30} GB of memory). Use a model with another chat template."
        ) from None
    except Exception as error:  # a template may raise anything
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise SkipRow("template_failed", f"the chat template refuses the messages ({reason[:200]})") from None
    if len(text) > LARGEST and len(text) > LARGEST + 4 * len(str((messages, options))):
        raise DataError(
            f"{name}: its chat template makes {len(text):,} characters of one conversation. "
            "Use a model with another chat template."
        )
    return text


class _Endless(Exception):
    """The template took too long."""


@contextmanager
def _bounded() -> Iterator[None]:
    """At most SECONDS of processor time and MEMORY more bytes, where the system can say so: time is kept in the main
    thread on Unix, memory on Linux."""
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "setitimer"):
        yield
        return
    with _less_memory():
        before = signal.signal(signal.SIGVTALRM, _stop)
        signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
            signal.signal(signal.SIGVTALRM, before)


def _stop(*_: Any) -> None:
    raise _Endless


@contextmanager
def _less_memory() -> Iterator[None]:
    import resource

    try:
        with open("/proc/self/statm", "rb") as file:
            room = int(file.read().split()[0]) * resource.getpagesize() + MEMORY
    except OSError:
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    bounds = [b for b in (soft, hard, room) if b != resource.RLIM_INFINITY]
    resource.setrlimit(resource.RLIMIT_AS, (min(bounds), hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
