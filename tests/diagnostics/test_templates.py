"""Chat templates of the usual styles: what the prompt is, what an answer is, what is doubted."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from diagnostics import templates
from diagnostics.errors import DataError
from diagnostics.fingerprint import rendered_hash
from diagnostics.pairs import PreferencePair
from diagnostics.sequences import Example, pair_of
from diagnostics.tokenized import SkippedPair, end_ids, render_pair, tokenize_pair

FOLDER = Path(__file__).parents[1] / "data" / "templates"
TOKENS = ["<|im_start|>", "<|im_end|>", "<|begin_head|>", "<|end_head|>", "<|eot|>", "<start_of_turn>", "<end_of_turn>"]
TOKENS += ["<|user|>", "<|assistant|>", "<|system|>", "<|end|>", "<|User|>", "<|Assistant|>", "<think>", "</think>"]
TOKENS += ["<|turn|>", "<|/turn|>", "<|say|>", "<|/say|>", "<|eom|>", "<call>"]
ASK = [{"role": "user", "content": "Is ice warm?"}]
MADE = ("text_after_end",)


def build(template: str, eos: str = "</s>") -> Any:
    """One token a byte; EOS and the templates' tokens are added, not all of them special, as models have it."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(["<s>", "</s>", *TOKENS[::2]])
    core.add_tokens([AddedToken(t, normalized=False) for t in TOKENS[1::2]])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


def named(name: str, eos: str = "</s>") -> Any:
    return build((FOLDER / f"{name}.jinja").read_text(encoding="utf-8").rstrip("\n"), eos)


def says(text: Any, **more: Any) -> list[dict[str, Any]]:
    return [{"role": "assistant", "content": text, **more}]


def pair(prompt: Any = ASK, chosen: Any = None, rejected: Any = None, **more: Any) -> PreferencePair:
    sides = (says("No, cold.") if chosen is None else chosen, says("Yes.") if rejected is None else rejected)
    return PreferencePair("p", 3, prompt, *sides, {}, **more)


def run(tokenizer: Any, asked: PreferencePair, **settings: Any) -> Example | SkippedPair:
    return tokenize_pair(asked, tokenizer, max_length=None, truncation="drop", **settings)


def texts(tokenizer: Any, asked: PreferencePair, **settings: Any) -> list[str]:
    done = run(tokenizer, asked, **settings)
    assert isinstance(done, Example), done
    return [
        tokenizer.decode(ids) for ids in (done.prompt_ids, done.chosen.completion_ids, done.rejected.completion_ids)
    ]


def doubts(tokenizer: Any, asked: PreferencePair) -> tuple[str, ...]:
    done = run(tokenizer, asked)
    assert isinstance(done, Example), done
    return done.doubts


CHATML = "<|im_start|>user\nIs ice warm?<|im_end|>\n<|im_start|>assistant\n"


@pytest.mark.parametrize(
    ("name", "prompt", "opened", "end", "found"),
    [
        ("chatml", CHATML, "", "<|im_end|>", ("eos_differs", *MADE)),
        (
            "headers",
            "<s><|begin_head|>user<|end_head|>\n\nIs ice warm?<|eot|><|begin_head|>assistant<|end_head|>\n\n",
            "",
            "<|eot|>",
            ("eos_differs",),
        ),
        ("inst", "<s>[INST] Is ice warm? [/INST]", " ", "</s>", ()),
        (
            "no-system",
            "<s><start_of_turn>user\nIs ice warm?<end_of_turn>\n<start_of_turn>model\n",
            "",
            "<end_of_turn>",
            ("eos_differs", *MADE),
        ),
        (
            "end-and-eos",
            "<|user|>\nIs ice warm?<|end|>\n<|assistant|>\n",
            "",
            "<|end|>",
            ("eos_differs", *MADE),
        ),
        ("eos-turns", "<|user|>\nIs ice warm?</s>\n<|assistant|>\n", "", "</s>", MADE),
        ("opens-thought", "<s><|User|>Is ice warm?<|Assistant|>", "", "</s>", ("generation_prompt_differs",)),
        ("empty-thought", CHATML, "<think>\n\n</think>\n\n", "<|im_end|>", ("eos_differs", *MADE, "template_adds")),
        ("no-generation-prompt", CHATML, "", "<|im_end|>", ("no_generation_prompt", "eos_differs", *MADE)),
        ("always-asks", CHATML, "", "<|im_end|>", ("eos_differs", *MADE)),
        ("two-ends", "<|turn|><|user|>Is ice warm?<|/turn|><|turn|><|assistant|>", "<|say|>", "<|/say|><|/turn|>", ...),
        ("end-in-words", "### user:\nIs ice warm?\n### end\n\n### assistant:\n", "", "\n### end", ...),
        ("no-end", "user: Is ice warm?\n\nassistant:", " ", "</s>", ("no_turn_end",)),
    ],
)
def test_an_answer_to_the_letter(name: str, prompt: str, opened: str, end: str, found: Any) -> None:
    tokenizer = named(name)
    done = run(tokenizer, pair())
    assert isinstance(done, Example)
    assert texts(tokenizer, pair()) == [prompt, f"{opened}No, cold.{end}", f"{opened}Yes.{end}"]
    assert texts(tokenizer, pair(), append_eos=False) == [prompt, f"{opened}No, cold.", f"{opened}Yes."]
    assert found is ... or done.doubts == found
    in_a_token = name != "end-in-words"
    assert (done.chosen.has_eos, done.rejected.has_eos) == (in_a_token, in_a_token)
    assert not in_a_token or done.chosen.completion_ids[-1] in end_ids(tokenizer)


def test_the_end_of_a_turn_that_is_eos_is_no_doubt() -> None:
    assert doubts(named("chatml", eos="<|im_end|>"), pair()) == MADE


def test_tools_and_arguments_reach_prompt_and_answers() -> None:
    tool = {"type": "function", "function": {"name": "thermometer", "parameters": {}}}
    prompt = texts(named("calls"), pair(tools=[tool]))[0]
    assert prompt == f"<|im_start|>system\n{templates.json.dumps([tool])}<|im_end|>\n{CHATML}"
    quiet = texts(named("empty-thought"), pair(template_kwargs={"enable_thinking": False}))
    assert quiet == [CHATML + "<think>\n\n</think>\n\n", "No, cold.<|im_end|>", "Yes.<|im_end|>"]
    assert doubts(named("chatml"), pair(tools=[tool]))[0] == "template_dropped"


@pytest.mark.parametrize("name", ["tokenize", "add_generation_prompt", "chat_template", "messages", "tools"])
def test_arguments_that_are_ours_are_refused(name: str) -> None:
    done = run(named("chatml"), pair(template_kwargs={name: 1}))
    assert isinstance(done, SkippedPair)
    assert done.code == "template_failed"
    assert name in done.reason


@pytest.mark.parametrize("content", [{}, {"content": None}, {"content": ""}])
def test_a_call_is_an_answer_and_ends_in_its_own_token(content: dict[str, Any]) -> None:
    def call(place: str) -> list[dict[str, Any]]:
        function = {"name": "look", "arguments": {"at": place}}
        return [{"role": "assistant", "tool_calls": [{"type": "function", "function": function}], **content}]

    asked = pair(chosen=call("the lake\nnear by"), rejected=call("ice"))
    done = run(named("calls"), asked)
    assert isinstance(done, Example)
    assert texts(named("calls"), asked)[2] == '<call>look {"at": "ice"}<|eom|>'
    assert (done.chosen.has_eos, done.doubts) == (True, ("eos_differs",))


@pytest.mark.parametrize("empty", [{}, {"content": None}, {"content": " \n"}, {"content": []}])
@pytest.mark.parametrize("name", ["calls", "empty-thought"])
def test_an_answer_that_says_nothing_is_skipped(name: str, empty: dict[str, Any]) -> None:
    """Also where the template writes an empty thought into it, or refuses it."""
    done = run(named(name), pair(chosen=[{"role": "assistant", **empty}]))
    assert isinstance(done, SkippedPair)
    assert done.code in ("empty_completion", "template_failed")


def test_what_a_template_leaves_out_is_named() -> None:
    def notes(name: str, asked: PreferencePair) -> list[str]:
        done = render_pair(asked, named(name))
        assert isinstance(done, templates.RenderedPair)
        found = [note for note in done.notes if templates.NOT_SHOWN in note]
        assert bool(found) == ("template_dropped" in done.doubts)
        return [note.split(" ")[0] for note in found]

    thought = says("<think>It melts.</think>No, cold.")
    told = [{"role": "system", "content": "Is ice"}, *ASK]
    assert notes("opens-thought", pair(chosen=thought)) == ["chosen[0].content"]
    assert notes("chatml", pair(chosen=says("No.", reasoning_content="It melts."))) == ["chosen[0].reasoning_content"]
    assert notes("empty-thought", pair(chosen=says("No.", reasoning_content="It\n melts."))) == []
    assert notes("headers", pair(prompt=told, chosen=says("  No. \n"))) == []
    assert notes("inst", pair(prompt=told)) == []
    assert notes("inst", pair(prompt=[*told, *says("Hm?"), {"role": "user", "content": "Is that so?"}])) == []
    drops = build("{% for m in messages if m.role != 'system' %}{{ m.role + m.content }}{% endfor %}")
    dropped = render_pair(pair(prompt=told), drops)  # the user's turn holds the same words
    assert isinstance(dropped, templates.RenderedPair)
    assert [n.split(" ")[0] for n in dropped.notes] == ["prompt[0].content"]


def test_a_system_text_that_stands_in_the_last_turn_only_while_that_is_the_last() -> None:
    told = [{"role": "system", "content": "Be brief."}, *ASK]
    prompt = "<s>[INST] Be brief.\n\nIs ice warm? [/INST]"
    assert texts(named("inst"), pair(prompt=told)) == [prompt, " No, cold.</s>", " Yes.</s>"]
    assert doubts(named("inst"), pair(prompt=told)) == ("prompt_differs",)


def test_turns_behind_the_answer_are_cut_and_turns_within_it_skip_the_row() -> None:
    more = [*says("No, cold."), {"role": "user", "content": "Sure?"}]
    assert texts(named("chatml"), pair(chosen=more))[1] == "No, cold.<|im_end|>"
    assert doubts(named("chatml"), pair(chosen=more))[0] == "turns_cut"
    for role in ("user", "tool"):
        turn = {"role": role, "content": "Sure?"}
        done = run(named("chatml"), pair(rejected=[*says("Yes."), turn, *says("Very.")]))
        assert isinstance(done, SkippedPair)
        assert done.code == "several_turns"
        assert f"rejected holds a turn of the {role}" in done.reason


def test_a_prompt_that_ends_in_an_answer_is_continued() -> None:
    asked = pair(prompt=[*ASK, *says("I think")], chosen=says(" it is cold."), rejected=says(" so."))
    assert texts(named("chatml"), asked) == [CHATML + "I think", " it is cold.<|im_end|>", " so.<|im_end|>"]
    assert doubts(named("chatml"), asked)[0] == "prefilled"
    trimmed = pair(prompt=[*ASK, *says("I think ")], chosen=says("it is cold."), rejected=says("so."))
    assert texts(named("headers"), trimmed)[1:] == [" it is cold.<|eot|>", " so.<|eot|>"]


def test_the_end_stands_once_where_the_message_holds_it_already() -> None:
    assert texts(named("chatml"), pair(chosen=says("No.<|im_end|>")))[1] == "No.<|im_end|>"


@pytest.mark.parametrize("body", ["{{ 1 // 0 }}", "{{ range(10 ** 9) }}", "{{ messages.x.y }}", "{% for %}"])
def test_a_template_that_breaks_skips_the_row_with_a_reason(body: str) -> None:
    done = run(build(body), pair())
    assert isinstance(done, SkippedPair)
    assert done.code == "template_failed"


@pytest.mark.parametrize(
    "body",
    [
        "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ 'x' }}{% endfor %}{% endfor %}",
        "{% set n = namespace(t='xy') %}{% for a in range(60) %}{% set n.t = n.t ~ n.t %}{% endfor %}",
        "{{ 'x' * 10 ** 12 }}",
        "{{ messages[0].content * 5000000 }}",
    ],
)
def test_a_template_without_bounds_ends_in_one_sentence(body: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(templates, "SECONDS", 0.3)
    monkeypatch.setattr(templates, "MEMORY", 200 << 20)
    with pytest.raises(DataError, match=r"its chat template (does not come to an end|makes 20,000,000 characters)"):
        run(build(body), pair())
    assert texts(named("chatml"), pair())[0] == CHATML  # the bound is gone with it


def test_a_long_conversation_is_no_fault_of_the_template() -> None:
    long = pair(prompt=[{"role": "user", "content": "so " * 6_000_000}])
    done = render_pair(long, named("chatml"))
    assert isinstance(done, templates.RenderedPair)
    assert len(done.prompt) > templates.LARGEST


def test_the_hash_of_what_is_rendered_sees_the_clock_and_the_doubt_says_so() -> None:
    clock = "{{ strftime_now('%Y') }}" + (FOLDER / "chatml.jinja").read_text(encoding="utf-8")
    assert "clock" in doubts(build(clock), pair())
    given = "{% if not date %}" + clock[:24] + "{% endif %}" + clock[24:]
    assert "clock" not in doubts(build(given), pair(template_kwargs={"date": "today"}))

    def hashed(template: str, **arguments: Any) -> str:
        done = run(build(template), pair(template_kwargs=arguments))
        assert isinstance(done, Example)
        return rendered_hash([done])

    dated = "{{ date }}" + (FOLDER / "chatml.jinja").read_text(encoding="utf-8")
    assert hashed(dated, date="27 Nov") == hashed(dated, date="27 Nov") != hashed(dated, date="28 Nov")


def test_the_hash_knows_the_parts_apart() -> None:
    whole = pair_of("p", 0, (1, 2), (3,), (4,))
    others = [pair_of("p", 0, (1,), (2, 3), (4,)), pair_of("p", 0, (1, 2), (4,), (3,))]
    assert len({rendered_hash([p]) for p in (whole, *others)} | {rendered_hash([whole, whole])}) == 4
    assert rendered_hash([whole]) == rendered_hash([replace(whole, doubts=("clock",))])
