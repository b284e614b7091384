"""Tokenization: the boundary, BOS and EOS, chat templates, truncation."""

from dataclasses import replace
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from diagnostics.errors import DataError, UserError
from diagnostics.pairs import PreferencePair
from diagnostics.sequences import Example
from diagnostics.tokenized import RenderedPair, SkippedPair, render_pair, token_offsets, tokenize_pair, tokenize_pairs

SENTENCES = ["the sky is blue", "the sky is green", "look at the sky blue"] * 20
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHAT = PreferencePair(
    "c",
    0,
    [{"role": "user", "content": "sky"}],
    [{"role": "assistant", "content": "blue"}],
    [{"role": "assistant", "content": "green"}],
)


def build(*, bos: bool = True, eos: str | None = "</s>", template: str | None = None) -> Any:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<s>", "</s>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(SENTENCES, trainer)
    if bos:
        core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token=eos)
    tokenizer.chat_template = template
    return tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build()


def pair(prompt: Any = "the sky is", chosen: Any = " blue", rejected: Any = " green") -> PreferencePair:
    return PreferencePair("p", 4, prompt, chosen, rejected)


def run(tokenizer: Any, pair: PreferencePair, max_length: int | None = None, truncation: Any = "drop", **kw: Any):
    return tokenize_pair(pair, tokenizer, max_length=max_length, truncation=truncation, **kw)


def kept(*args: Any, **kwargs: Any) -> Example:
    done = run(*args, **kwargs)
    assert isinstance(done, Example), done
    return done


def skipped(*args: Any, **kwargs: Any) -> str:
    done = run(*args, **kwargs)
    assert isinstance(done, SkippedPair), done
    return done.code


def test_ids_are_bos_prompt_completion_eos(tokenizer: Any) -> None:
    done = kept(tokenizer, pair())
    assert tokenizer.decode(done.prompt_ids) == "<s>the sky is"
    assert tokenizer.decode(done.chosen.completion_ids) == " blue</s>"
    assert tokenizer.decode(done.rejected.completion_ids) == " green</s>"
    assert (done.pair_id, done.source_row, done.doubts) == ("p", 4, ())


def test_no_token_straddles_the_boundary(tokenizer: Any) -> None:
    """The prompt ends in "sk" and the completion starts with "y": apart, though " sky" is one token."""
    assert len(tokenizer(" sky", add_special_tokens=False)["input_ids"]) == 1
    done = kept(tokenizer, pair("look at the sk", "y blue", "y green"))
    assert tokenizer.decode(done.prompt_ids) == "<s>look at the sk"
    assert tokenizer.decode(done.chosen.completion_ids) == "y blue</s>"
    assert done.doubts == ("token_merge",)


def test_bos_follows_the_tokenizer(tokenizer: Any) -> None:
    done = kept(tokenizer, pair("<s>the sky is"))
    assert done.prompt_ids.count(tokenizer.bos_token_id) == 1
    assert done.doubts == ("doubled_bos",)
    without = build(bos=False)
    assert without.bos_token_id not in kept(without, pair()).prompt_ids


def test_eos_stands_once(tokenizer: Any) -> None:
    done = kept(tokenizer, pair(chosen=" blue</s>"))
    assert done.chosen.completion_ids == kept(tokenizer, pair()).chosen.completion_ids
    off = kept(tokenizer, pair(), append_eos=False)
    assert tokenizer.decode(off.chosen.completion_ids) == " blue"
    assert (off.chosen.has_eos, off.rejected.has_eos) == (False, False)
    one = kept(tokenizer, pair(chosen=" blue</s>"), append_eos=False)
    assert (one.chosen.has_eos, one.rejected.has_eos, one.doubts) == (True, False, ("eos_one_side",))


def test_what_cannot_be_predicted_is_skipped(tokenizer: Any) -> None:
    assert skipped(build(bos=False), pair("")) == "no_context"
    assert kept(tokenizer, pair("")).prompt_ids == (tokenizer.bos_token_id,)
    assert skipped(tokenizer, pair(chosen="")) == "zero_tokens"
    assert skipped(tokenizer, pair(rejected="</s>")) == "zero_tokens"
    assert skipped(tokenizer, pair(chosen=" green")) == "identical_completions"


def test_chat_template_that_ends_in_eos() -> None:
    """ChatML ends a turn in EOS and a newline: the newline is left out, EOS is not doubled."""
    tokenizer = build(bos=False, eos="<|im_end|>", template=CHATML)
    done = kept(tokenizer, CHAT)
    assert tokenizer.decode(done.prompt_ids) == "<|im_start|>user\nsky<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(done.chosen.completion_ids) == "blue<|im_end|>"
    assert (done.chosen.has_eos, done.doubts) == (True, ("text_after_end",))


def test_a_turn_end_that_is_not_eos_ends_the_answer() -> None:
    """No line break and no EOS behind it: the policy would never have to write them."""
    tokenizer = build(template="<s>" + CHATML)
    done = kept(tokenizer, CHAT)
    assert tokenizer.decode(done.chosen.completion_ids) == "blue<|im_end|>"
    assert (done.chosen.has_eos, done.rejected.has_eos) == (True, True)
    assert tokenizer.decode(done.prompt_ids).startswith("<s><|im_start|>")
    assert done.prompt_ids.count(tokenizer.bos_token_id) == 1
    assert done.doubts == ("eos_differs", "text_after_end")


def test_without_eos_a_chat_answer_has_no_turn_end_either() -> None:
    for eos in ("</s>", "<|im_end|>"):
        tokenizer = build(template="<s>" + CHATML, eos=eos)
        done = kept(tokenizer, CHAT, append_eos=False)
        assert tokenizer.decode(done.chosen.completion_ids) == "blue"
        assert (done.chosen.has_eos, done.rejected.has_eos) == (False, False)


def test_a_chat_without_turn_ends_gets_eos() -> None:
    tokenizer = build(template="<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}[assistant]")
    done = kept(tokenizer, CHAT)
    assert tokenizer.decode(done.chosen.completion_ids) == "blue</s>"
    assert (done.chosen.has_eos, done.doubts) == (True, ("no_turn_end",))
    assert tokenizer.decode(kept(tokenizer, CHAT, append_eos=False).chosen.completion_ids) == "blue"


def test_chat_template_that_lacks_or_doubles_bos() -> None:
    for start, doubt in (("", "missing_bos"), ("<s><s>", "doubled_bos")):
        tokenizer = build(template=start + CHATML)
        done = kept(tokenizer, CHAT)
        assert done.prompt_ids.count(tokenizer.bos_token_id) == 1
        assert doubt in done.doubts


def test_chat_templates_that_do_not_fit() -> None:
    assert skipped(build(template="{{ messages | length }}"), CHAT) == "template_failed"
    assert skipped(build(template="{{ raise_exception('no system role') }}"), CHAT) == "template_failed"
    with pytest.raises(DataError, match="no chat template"):
        run(build(), CHAT)


# --- truncation: "the sky is" is <s>, the, sky, is = 4 tokens; " blue" + EOS = 2; " blue is green" + EOS = 4


LONG = pair(chosen=" blue is green", rejected=" green")


def test_the_lengths_the_cuts_below_rest_on(tokenizer: Any) -> None:
    done = kept(tokenizer, LONG)
    assert (len(done.prompt_ids), len(done.chosen.completion_ids), len(done.rejected.completion_ids)) == (4, 4, 2)
    for truncation in ("drop", "keep_start", "keep_end", "error"):
        assert kept(tokenizer, LONG, 8, truncation) == done  # exactly max_length is not over it


def test_drop(tokenizer: Any) -> None:
    done = run(tokenizer, LONG, 7)
    assert isinstance(done, SkippedPair)
    assert (done.code, done.lengths) == ("over_length", (4, 4, 2))
    assert "max_length 7" in done.reason
    assert skipped(tokenizer, LONG, 4) == "prompt_over_length"


def test_keep_start_cuts_the_completion_and_its_eos(tokenizer: Any) -> None:
    done = kept(tokenizer, LONG, 6, "keep_start")
    assert tokenizer.decode(done.chosen.completion_ids) == " blue is"
    assert tokenizer.decode(done.rejected.completion_ids) == " green</s>"
    assert (done.chosen.has_eos, done.rejected.has_eos) == (False, True)
    assert done.doubts == ("completion_truncated", "eos_one_side")
    assert skipped(tokenizer, LONG, 4, "keep_start") == "prompt_over_length"
    same_start = pair(chosen=" blue is green", rejected=" blue is blue")
    assert skipped(tokenizer, same_start, 6, "keep_start") == "identical_completions"


def test_keep_end_cuts_the_prompt_after_bos(tokenizer: Any) -> None:
    done = kept(tokenizer, LONG, 6, "keep_end")
    assert tokenizer.decode(done.prompt_ids) == "<s> is"
    assert tokenizer.decode(done.chosen.completion_ids) == " blue is green</s>"
    assert done.doubts == ("prompt_truncated",)
    assert kept(tokenizer, LONG, 5, "keep_end").prompt_ids == (tokenizer.bos_token_id,)
    assert skipped(tokenizer, LONG, 4, "keep_end") == "completion_over_length"
    without = build(bos=False)
    assert without.decode(kept(without, LONG, 5, "keep_end").prompt_ids) == " is"
    assert skipped(without, LONG, 4, "keep_end") == "completion_over_length"


def test_error_names_the_row(tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"row 4: prompt of 4 tokens and longest completion of 4 .* max_length 7"):
        run(tokenizer, LONG, 7, "error")


def test_wrong_settings(tokenizer: Any) -> None:
    with pytest.raises(UserError, match="truncation is 'left'"):
        run(tokenizer, LONG, 7, "left")
    with pytest.raises(UserError, match="max_length is 0"):
        run(tokenizer, LONG, 0)
    with pytest.raises(DataError, match="no EOS token"):
        run(build(eos=None), pair())
    assert kept(build(eos=None), pair(), append_eos=False).chosen.has_eos is False


def test_a_batch_is_its_pairs_one_by_one(tokenizer: Any) -> None:
    pairs = [pair(), LONG, pair(chosen=""), pair("look at the sk", "y blue", "y green")]
    batch = tokenize_pairs(pairs, tokenizer, max_length=7, truncation="drop")
    assert batch == [run(tokenizer, p, 7) for p in pairs]


PIECES = ["<unk>", "</s>", "▁", "▁ask", "ask", "▁yes", "yes", ":", "\n", "▁no", "no"]


def sentencepiece(scheme: Any) -> Any:
    """A SentencePiece-like tokenizer: it writes each text with a leading space."""
    core = Tokenizer(models.Unigram([(piece, -1.0) for piece in PIECES], unk_id=0))
    core.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize("scheme", ["always", "first"])
@pytest.mark.parametrize("text", ["yes:no yes", " yes: no"])
def test_offsets_are_where_the_tokens_stand(scheme: str, text: str) -> None:
    """Each token's place holds its own text, whether or not the completion opens with a space; EOS has none."""
    tokenizer = sentencepiece(scheme)
    ids = kept(tokenizer, pair("ask:", text, " no")).chosen.completion_ids
    places = token_offsets(tokenizer, text, ids)
    words = [tokenizer.convert_ids_to_tokens(i).replace("▁", "") for i in ids[:-1]]
    assert [text[a:b].strip() for a, b in places[:-1]] == words
    assert places[-1] == (len(text), len(text))


@pytest.mark.parametrize("scheme", ["always", "first"])
def test_no_space_is_added_in_front_of_a_completion(scheme: str) -> None:
    """Behind a prompt there is none."""
    vocabulary = {piece: i for i, piece in enumerate(PIECES)}
    tokenizer = sentencepiece(scheme)
    found = kept(tokenizer, pair("ask:", "yes", " no"))
    assert found.prompt_ids == (vocabulary["▁ask"], vocabulary[":"])
    assert found.chosen.completion_ids == (vocabulary["yes"], vocabulary["</s>"])
    assert found.rejected.completion_ids == (vocabulary["▁no"], vocabulary["</s>"])
    assert "token_merge" not in found.doubts


ASKED = PreferencePair(
    "a", 0, "Be brief.\nsky", "blue", "green",
    chat_prompt=[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "sky"}],
)  # fmt: skip


@pytest.mark.parametrize(("eos", "template"), [("<|im_end|>", None), ("</s>", CHATML), (None, CHATML)])
def test_text_columns_are_lines_without_a_template_that_eos_ends(eos: str | None, template: str | None) -> None:
    text = render_pair(ASKED, build(eos=eos, template=template))
    assert isinstance(text, RenderedPair)
    assert (text.prompt, text.chosen, text.rejected, text.templated) == ("Be brief.\nsky", "blue", "green", False)


def test_text_columns_are_a_chat_where_eos_ends_the_templates_turn() -> None:
    tokenizer = build(eos="<|im_end|>", template=CHATML)
    messages = replace(
        ASKED, prompt=ASKED.chat_prompt, chat_prompt=None, chosen=[{"role": "assistant", "content": "blue"}],
        rejected=[{"role": "assistant", "content": "green"}],
    )  # fmt: skip
    assert render_pair(ASKED, tokenizer) == render_pair(messages, tokenizer)
    assert kept(tokenizer, ASKED).chosen.completion_ids == kept(tokenizer, messages).chosen.completion_ids
    other = build(eos="</s>", template=CHATML)  # the model stops at the turn's end, whatever its tokenizer's EOS
    other.stops_at = (other.convert_tokens_to_ids("</s>"), other.convert_tokens_to_ids("<|im_end|>"), 10**6)
    assert render_pair(ASKED, other) == render_pair(messages, other)
