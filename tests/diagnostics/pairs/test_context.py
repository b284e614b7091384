"""Which columns hold a prompt, by name and by value."""

from typing import Any

import pytest

from diagnostics.pairs.context import is_context, is_media, looks_like_content, plain_name, turns_of

TALK = ["What do gulls eat at sea?", "Where do terns breed in May?", "How far do swifts fly a day?"]


@pytest.mark.parametrize("name", ["question", "System Prompt", "userQuery", "chat-history", "problem_text", "messages"])
def test_names_of_prompts(name: str) -> None:
    assert is_context(name)


@pytest.mark.parametrize(
    "name", ["question_id", "prompt_source", "labelling_prompt", "system_fingerprint", "score", "model", "chosen_model"]
)
def test_names_about_a_row(name: str) -> None:
    assert not is_context(name)


def test_spellings_and_media() -> None:
    assert plain_name("userQuestion Text") == "user_question"
    assert is_media("image_path")
    assert not is_media("imagination")


@pytest.mark.parametrize(
    ("column", "values", "known_only", "expected"),
    [
        ("enquiry", TALK, False, True),
        ("enquiry", TALK, True, False),  # beside a question only the usual names count
        ("excerpt", TALK, True, True),
        ("rationale", TALK, False, False),
        ("source", TALK, False, True),
        ("source", ["gull notes of 1990", "tern notes of 1991"], False, False),
        ("enquiry", ["What do gulls eat at sea?"] * 3, False, False),  # the same in every row
        ("enquiry", ["gulls", "terns"], False, False),
        ("enquiry", [1, 2.5, None, "0.25"], False, False),
    ],
)
def test_content_of_columns_with_other_names(column: str, values: list[Any], known_only: bool, expected: bool) -> None:
    assert looks_like_content(column, values, words=4, known_only=known_only) is expected


def test_turns() -> None:
    user = {"role": "user", "content": "a"}
    assert turns_of([user]) == [user]
    assert turns_of([["a", "b"]]) == [user, {"role": "assistant", "content": "b"}]
    assert turns_of(["a", "b"]) is None
    assert turns_of([]) is None
