"""Where the two answers of a row stand, and which of them is the better one. No torch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diagnostics.pairs.messages import SkipRow, is_message, is_messages

Row = dict[str, Any]
Used = dict[str, tuple[str, ...]]  # role -> columns

ANSWERS = (
    ("chosen", "rejected"),
    ("chosen_response", "rejected_response"),
    ("chosen_answer", "rejected_answer"),
    ("chosen_output", "rejected_output"),
    ("chosen_completion", "rejected_completion"),
    ("chosen_messages", "rejected_messages"),
    ("preferred_output", "non_preferred_output"),
    ("preferred_response", "dispreferred_response"),
    ("preferred", "dispreferred"),
    ("response", "rejected_response"),
    ("response_j", "response_k"),
)
RANKED, RANKED_TEXT = ("completions", "answers", "responses"), ("completion", "answer", "response", "text", "content")
ENDS = (("0", "1"), ("1", "2"), ("a", "b"))
STEMS = ("response_{}", "response{}", "answer_{}", "completion_{}", "output_{}", "human_ref_{}", "conversation_{}")
SIGNED = ("overall_preference", "preference_strength")
NAMED = ("better_response_id", "labels", "label", "preference", "winner", "better", "choice", "preferred")
PERSONA = ("question", "answer_matching_behavior", "answer_not_matching_behavior")
RRPO = ("question", "answer", "pred", "answer_masked", "pred_masked")
ALPACA = ("instruction", "output_1", "output_2", "preference")


@dataclass(frozen=True)
class Answers:
    """The two answers of a row as they stand there, and the columns they came from."""

    chosen: Any
    rejected: Any
    used: Used
    note: str = ""


def _fits_pair(row: Row) -> bool:
    return _pair_columns(row) is not None


def _pair_columns(row: Row) -> tuple[str, str] | None:
    return next((pair for pair in ANSWERS if all(c in row for c in pair)), None)


def _take_pair(row: Row) -> Answers:
    chosen, rejected = _pair_columns(row) or ANSWERS[0]
    return Answers(row.get(chosen), row.get(rejected), {"chosen": (chosen,), "rejected": (rejected,)})


def _fits_swift(row: Row) -> bool:
    return "chosen" not in row and is_messages(row.get("messages")) and _swift_rejected(row) is not None


def _swift_rejected(row: Row) -> str | None:
    return next((c for c in ("rejected_response", "rejected_messages") if c in row), None)


def _take_swift(row: Row) -> Answers:
    rejected = _swift_rejected(row) or "rejected_response"
    whole = row["messages"]
    other = row[rejected]
    if isinstance(other, str) or is_message(other):
        other = [*whole[:-1], other if is_message(other) else {"role": "assistant", "content": other}]
    return Answers(whole, other, {"prompt": ("messages",), "chosen": ("messages",), "rejected": (rejected,)})


def _ranked_column(row: Row) -> tuple[str, str] | None:
    """The list of ranked answers, and the key in which each has its text."""
    for column in RANKED:
        items = row.get(column)
        if isinstance(items, list) and items and all(isinstance(i, dict) and "rank" in i for i in items):
            for key in RANKED_TEXT:
                if all(i.get(key) is not None for i in items):
                    return column, key
    return None


def _take_ranked(row: Row) -> Answers:
    column, key = _ranked_column(row) or ("completions", "completion")
    items = row[column]
    ranks = [_number(i["rank"]) for i in items]
    if None in ranks or min(ranks) == max(ranks):
        raise SkipRow("no_preference", f"the ranks in {column!r} do not put one answer above another", column)
    best, worst = (items[ranks.index(f(ranks))][key] for f in (min, max))
    note = "of each row's ranked answers, the best is chosen and the worst rejected" if len(items) > 2 else ""
    return Answers(best, worst, {"chosen": (column,), "rejected": (column,)}, note)


def _number(value: Any) -> Any:
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return number if number == number else None


def _two_columns(row: Row) -> tuple[str, str, str, str, str] | None:
    """Both answers' columns, the ends of their names, and the column that says which is better."""
    verdict = next((c for c in (*SIGNED, *NAMED) if c in row), None)
    if verdict is None:
        return None
    for stem in STEMS:
        for ends in ENDS:
            for case in (str.lower, str.upper):
                first, second = (stem.format(case(e)) for e in ends)
                if first in row and second in row:
                    return first, second, *ends, verdict
    return None


def _take_two(row: Row) -> Answers:
    found = _two_columns(row)
    if found is None:
        raise SkipRow("missing_field", "no two responses with a preference")
    first, second, low, high, verdict = found
    better = _better(row[verdict], first, second, (low, high), verdict)
    chosen, rejected = (first, second) if better == first else (second, first)
    used = {"chosen": (first, second), "rejected": (first, second), "preference": (verdict,)}
    return Answers(row[chosen], row[rejected], used)


def _better(value: Any, first: str, second: str, ends: tuple[str, str], verdict: str) -> str:
    """Which column a verdict names: by sign (below 0 the first), or by the end of the column's name. SHP's `labels` is
    1 where human_ref_A is better and 0 where human_ref_B is."""
    number = _number(value) if not isinstance(value, bool) else None
    if verdict in SIGNED:
        if number:
            return first if number < 0 else second
    elif first.startswith("human_ref") and number in (0, 1):
        return first if number == 1 else second
    else:
        said = str(int(number) if number is not None and number == int(number) else value).strip().lower()
        for column, end in zip((first, second), ends):
            if said in {end, column.lower(), f"model_{end}", f"response_{end}"} and not isinstance(value, bool):
                return column
    raise SkipRow("no_preference", f"{verdict} is {str(value)[:40]!r}, which names neither answer", verdict)


def numbering(row: Row) -> tuple[str, tuple[int, int], int] | None:
    """The column that says by a number which of two answers is better, the answers' numbers, and the row's own; None
    where there is no such number."""
    found = (*ALPACA[1:3], "1", "2", ALPACA[3]) if _fits_alpaca(row) else _two_columns(row)
    if found is None or found[4] in SIGNED or not found[2].isdigit() or isinstance(row[found[4]], bool):
        return None
    number = _number(row[found[4]])
    return (found[4], (int(found[2]), int(found[3])), int(number)) if number in (0, 1, 2) else None


def _fits_rrpo(row: Row) -> bool:
    return all(c in row for c in RRPO)


def _take_rrpo(row: Row) -> Answers:
    """arXiv 2504.12083: `answer` is preferred; the tagged forms of both say where their phrases are."""
    return Answers(row["answer"], row["pred"], {"chosen": ("answer",), "rejected": ("pred",)})


def _fits_persona(row: Row) -> bool:
    return all(c in row for c in PERSONA)


def _fits_alpaca(row: Row) -> bool:
    return all(c in row for c in ALPACA)


# name -> whether a row has its answers so, and they; the first that fits counts
KINDS: dict[str, tuple[Callable[[Row], bool], Callable[[Row], Answers]]] = {
    "persona": (_fits_persona, _take_pair),
    "alpacafarm": (_fits_alpaca, _take_pair),
    "rrpo": (_fits_rrpo, _take_rrpo),
    "ms-swift": (_fits_swift, _take_swift),
    "chosen-rejected": (_fits_pair, _take_pair),
    "ranked": (lambda row: _ranked_column(row) is not None, _take_ranked),
    "two-responses": (lambda row: _two_columns(row) is not None, _take_two),
}


def column_wanted(kind: str, row: Row) -> str:
    """The first field that a row lacks for its shape."""
    if kind == "rrpo":
        return next((c for c in RRPO if c not in row), "answer")
    if kind != "chosen-rejected":
        return {"ranked": "completions", "ms-swift": "rejected_response"}.get(kind, "preference")
    return next((b if a in row else a for a, b in ANSWERS if a in row or b in row), "chosen")
