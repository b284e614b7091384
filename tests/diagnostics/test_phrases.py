"""Phrases: tags taken out of texts, spans found in tokens, diffs of ids; long answers, answers without a shared end."""

import random
import subprocess
import sys
from difflib import SequenceMatcher

import pytest
from transformers import AutoTokenizer

from diagnostics.phrases import from_diff, from_tags, mark, tagged

# --- tags ---


@pytest.mark.parametrize(
    ("tagged", "plain", "phrases"),
    [
        ("This is a <MASK> correct </MASK> or <MASK> preferred </MASK> answer.", None, ["correct", "preferred"]),
        ("This is a <MASK>correct</MASK> or <MASK>preferred</MASK> answer.", None, ["correct", "preferred"]),
        ("This is a<MASK> correct</MASK> or<MASK> preferred</MASK> answer.", None, [" correct", " preferred"]),
        ("<MASK> Yes </MASK>, a <MASK> red car </MASK>.", "Yes, a red car.", ["Yes", "red car"]),
        ("He sat,<MASK> then </MASK>ran", "He sat, then ran", [" then "]),
        ("<MASK> a </MASK><MASK> b </MASK>", "a b", ["a", " b"]),
        ('say "<MASK> b </MASK>" or (<MASK> c </MASK>) now', 'say "b" or (c) now', ["b", "c"]),
        ("<MASK>a</MASK><MASK>b</MASK>", "ab", ["a", "b"]),
        ("two <MASK>  lines \n\n </MASK>\nend", "two  lines \n\n\nend", [" lines \n\n"]),
        ("a <MASK></MASK> b <MASK>c</MASK>", "a  b c", ["", "c"]),
        ("<MASK>all of it</MASK>", "all of it", ["all of it"]),
        ("é <MASK> über </MASK> 漢字", "é über 漢字", ["über"]),
        ("nothing  marked, <mask> is no tag ", "nothing  marked, <mask> is no tag ", []),
        ("", "", []),
    ],
)
def test_tags_are_taken_out_and_phrases_found(tagged, plain, phrases):
    """The first three are the published example in its own way of writing and in two others."""
    text, spans = from_tags(tagged)
    assert text == (plain if plain is not None else "This is a correct or preferred answer.")
    assert [text[start:end] for start, end in spans] == phrases


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a <MASK> b <MASK> c </MASK>", "<MASK> at character 11 opens a phrase inside a phrase"),
        ("a <MASK> b", "<MASK> at character 2 opens a phrase that is not closed"),
        ("a </MASK> b", "</MASK> at character 2 closes a phrase that was not opened"),
        ("<MASK>a</MASK></MASK>", "</MASK> at character 14 closes a phrase that was not opened"),
    ],
)
def test_unbalanced_and_nested_tags_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        from_tags(text)


# --- offsets ---


def test_a_token_belongs_to_the_phrase_it_shares_a_character_with():
    """ "a red car." with phrase "red" (2-5); tokens "a", " red", " c", "ar", ".", EOS."""
    offsets = [(0, 1), (1, 5), (5, 7), (7, 9), (9, 10), (10, 10)]
    assert mark(offsets, [(2, 5)]) == [0, 1, 0, 0, 0, 0]
    assert mark(offsets, [(2, 5), (8, 10)]) == [0, 1, 0, 2, 2, 0]
    assert mark(offsets, [(4, 6)]) == [0, 1, 1, 0, 0, 0]
    assert mark(offsets, [(3, 3), (9, 10)]) == [0, 0, 0, 0, 2, 0]
    assert mark([(0, 2), (2, 4)], [(0, 1), (1, 3)]) == [1, 2]
    assert mark(offsets, []) == [0] * 6
    assert mark([], [(0, 1)]) == []


def test_tags_change_no_id_and_mark_the_tokens_of_their_words(lm_folder):
    """With a byte-level BPE tokenizer, whose tokens hold the space before a word."""
    tokenizer = AutoTokenizer.from_pretrained(lm_folder)
    plain, spans = from_tags(" alpha <MASK> beta gamma </MASK> delta <MASK>eta</MASK>")
    assert plain == " alpha beta gamma delta eta"
    encoded = tokenizer(plain, return_offsets_mapping=True, add_special_tokens=False)
    numbers = mark(encoded["offset_mapping"], spans)
    for number, words in ((1, "beta gamma"), (2, "eta"), (0, "alpha delta")):
        ids = [i for i, n in zip(encoded["input_ids"], numbers, strict=True) if n == number]
        assert tokenizer.decode(ids).split() == words.split()


# --- diff ---


def test_worked_diff():
    """3 -> 7 and (5, 6) -> (8) are replaced; 9 is only inserted, 2 only deleted."""
    chosen, rejected = [1, 2, 3, 4, 5, 6, 10], [1, 7, 4, 8, 10, 9]
    assert from_diff([1, 3, 4, 5, 6, 10], rejected) == ([0, 1, 0, 2, 2, 0], [0, 1, 0, 2, 0, 0])
    assert from_diff(chosen, rejected) == ([0, 1, 1, 0, 2, 2, 0], [0, 1, 0, 2, 0, 0])
    assert from_diff([1, 2, 4], [1, 4]) == ([0, 0, 0], [0, 0])
    assert from_diff([1, 4], [1, 4, 9]) == ([0, 0], [0, 0, 0])


def test_answers_that_are_equal_disjoint_or_empty():
    assert from_diff([1, 2, 3], [1, 2, 3]) == ([0] * 3, [0] * 3)
    assert from_diff([1, 2], [3, 4, 5]) == ([1, 1], [1, 1, 1])
    assert from_diff([], [1, 2]) == ([], [0, 0])
    assert from_diff([], []) == ([], [])


def test_differing_ends_without_a_shared_eos_end_with_the_answers():
    """Of unequal lengths: no number stands for padding, as no padding goes in."""
    assert from_diff([1, 2, 3, 4, 5], [1, 2, 9]) == ([0, 0, 1, 1, 1], [0, 0, 1])


def test_one_changed_token_among_hundreds_is_one_phrase():
    """300 tokens out of 5 different ones: each is frequent, and autojunk would throw all of them away."""
    chosen = random.Random(0).choices(range(5), k=300)
    rejected = [*chosen[:150], 99, *chosen[151:]]
    expected = [0] * 150 + [1] + [0] * 149
    assert from_diff(chosen, rejected) == (expected, expected)
    assert (
        SequenceMatcher(None, chosen, rejected).ratio() < 0.9 < SequenceMatcher(None, chosen, rejected, False).ratio()
    )


@pytest.mark.parametrize("seed", range(20))
def test_phrases_are_spans_and_both_answers_have_the_same_ones_in_the_same_order(seed):
    rng = random.Random(seed)
    chosen, rejected = (rng.choices(range(8), k=rng.randint(0, 40)) for _ in range(2))
    numbers = from_diff(chosen, rejected)
    assert [len(n) for n in numbers] == [len(chosen), len(rejected)]
    firsts = [list(dict.fromkeys(x for x in n if x)) for n in numbers]
    assert firsts[0] == firsts[1] == list(range(1, len(firsts[0]) + 1))
    for marks in numbers:
        for number in firsts[0]:
            first, last = marks.index(number), len(marks) - 1 - marks[::-1].index(number)
            assert set(marks[first : last + 1]) == {number}


def test_no_torch_is_loaded():
    code = "import sys, diagnostics.phrases; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("chosen", "rejected", "found"),
    [
        # one word in place of one; the spaces inside the tags are padding
        ("it is red .", "it is blue .", ("it is <MASK> red </MASK> .", "it is <MASK> blue </MASK> .")),
        # two phrases, the second of two words for one; a mark that follows is no part of it
        (
            "The red car turns left.",
            "The blue car goes far right.",
            (
                "The <MASK> red </MASK> car <MASK> turns left </MASK>.",
                "The <MASK> blue </MASK> car <MASK> goes far right </MASK>.",
            ),
        ),
        ("it is red", "it is very red", ("it is red", "it is very red")),  # one merely has more
        ("same", "same", ("same", "same")),
        # where a padding space would not read back, there is none
        ("is-red", "is-blue", ("is-<MASK>red</MASK>", "is-<MASK>blue</MASK>")),
    ],
)  # fmt: skip
def test_words_that_differ_are_tagged(chosen, rejected, found):
    assert tagged(chosen, rejected) == found
    assert [from_tags(text)[0] for text in found] == [chosen, rejected]


def test_long_answers_are_tagged_without_autojunk():
    words = ["the"] * 300
    one, other = tagged(" ".join([*words, "red", "."]), " ".join([*words, "blue", "."]))
    assert one.endswith("the <MASK> red </MASK> .")
    assert one.count("<MASK>") == other.count("<MASK>") == 1


def test_tags_in_an_answer_are_refused():
    with pytest.raises(ValueError, match="already"):
        tagged("it is red", "it is <MASK>")
