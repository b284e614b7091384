"""Messages in one form: roles, parts, text that is a list of messages, and what counts as the same."""

import pytest

from diagnostics.pairs.messages import SkipRow, alike, messages, opened, shared, without_nulls

USER = {"role": "user", "content": "Which?"}
REPLY = {"role": "assistant", "content": "This."}


@pytest.mark.parametrize(
    ("role", "usual"),
    [("Human", "user"), (" GPT ", "assistant"), ("bot", "assistant"), ("System", "system"), ("observation", "tool")],
)
def test_roles_get_their_usual_names(role: str, usual: str) -> None:
    assert messages([{"role": role, "content": "x"}], "prompt") == [{"role": usual, "content": "x"}]
    assert messages({"from": role, "value": "x"}, "prompt") == [{"role": usual, "content": "x"}]


def test_a_role_that_nobody_knows_stays() -> None:
    assert messages([{"role": "Narrator", "content": "x"}], "prompt")[0]["role"] == "Narrator"


def test_only_what_templates_use_is_kept() -> None:
    call = [{"function": {"name": "f", "arguments": {"n": None}}}]
    full = REPLY | {"tool_calls": call, "reasoning_content": "Hm.", "id": 3, "rating": None, "thinking": None}
    assert messages([full], "chosen") == [REPLY | {"tool_calls": call, "reasoning_content": "Hm."}]
    assert messages([REPLY | {"tool_calls": []}], "chosen") == [REPLY]  # as Parquet pads them


@pytest.mark.parametrize("content", [None, ""])
def test_a_call_is_a_whole_message(content: str | None) -> None:
    call = [{"function": {"name": "f", "arguments": {}}}]
    made = {"role": "assistant", "content": "", "tool_calls": call}
    assert messages([{"role": "assistant", "content": content, "tool_calls": call}], "chosen") == [made]
    assert messages([{"role": "assistant", "tool_calls": str(call)}], "chosen") == [made]


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ([{"role": "user", "content": [{"type": "audio", "url": "x"}]}], r"part of type 'audio'; only text"),
        ([{"role": "user", "content": 5}], r"'prompt\[0\].content' is int, not text"),
        ([{"role": "user"}], r"no field 'prompt\[0\].content'"),
        ([{"content": "x"}], r"no field 'prompt\[0\].role'"),
        ([{"role": "assistant", "content": "", "tool_calls": [3]}], "tool_calls' is not a list of calls"),
        ([{"role": "assistant", "content": "", "name": "\ud800"}], "half a character"),
        ([], "not a list of chat messages"),
        ("text", "not a list of chat messages"),
        (None, "no field 'prompt'"),
    ],
)
def test_what_cannot_be_read_is_named(value: object, says: str) -> None:
    with pytest.raises(SkipRow, match=says):
        messages(value, "prompt")


def test_text_of_a_list_is_opened_and_other_text_stays() -> None:
    for text in ('[{"role": "user", "content": "Which?"}]', "[{'content': 'Which?', 'role': 'user'}]"):
        assert opened(text) == [USER]
    assert opened("{'role': 'user', 'content': 'Which?'}") == USER
    for text in (
        "[1, 2]",
        '{"role": "mayor", "content": "x"}',
        "[the role: user]",
        '[{"role": "user"}]',
        "[{'role': 'user'",
    ):
        assert opened(text) == text


def test_the_same_by_role_content_and_calls_alone() -> None:
    assert alike([USER | {"name": "Ann"}], [USER])
    assert not alike([USER], [USER | {"content": "Who?"}])
    assert not alike([REPLY], [REPLY | {"tool_calls": [{}]}])
    assert shared([USER, REPLY], [USER | {"name": "Ann"}, REPLY]) == 1  # each side keeps its last


def test_nulls_go_at_any_depth_and_other_values_stay() -> None:
    padded = [{"a": None, "b": {"c": None, "d": [None, 0, {"e": None}]}, "f": ""}]
    assert without_nulls(padded) == [{"b": {"d": [None, 0, {}]}, "f": ""}]
