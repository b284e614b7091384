"""Checkers: whether an answer to a question about a clip is right, by a rule on words or by a model that is asked."""

import re
import unicodedata
from collections.abc import Callable, Sequence

from diagnostics import sampling
from diagnostics.pairs import Text
from trainers.models import load_to_device, load_tokenizer
from trainers.worlds.judges import as_prompt

# (questions, true answers, given answers) -> right, wrong, or None where no verdict was given
Checker = Callable[[Sequence[str], Sequence[str], Sequence[str]], list[bool | None]]

ARTICLES = {"a", "an", "the"}
VERDICT_TOKENS = 8
QUESTION = """Judge whether the given answer to a question about a video is right, by the true answer. \
Answer with yes or no and nothing else.

Question: {question}

True answer: {truth}

Given answer: {answer}

Is the given answer right?"""  # the wording is ours


def rule(questions: Sequence[str], truths: Sequence[str], answers: Sequence[str]) -> list[bool | None]:
    """For short answers: right where the true answer's words stand in the given one, next to each other and in order.

    Case, marks and articles do not count. It knows no negation ("not red" holds "red") and no synonyms.
    """
    return [_holds(truth, answer) for truth, answer in zip(truths, answers, strict=True)]


def load_checker(name: str) -> Checker:
    """ "rule", or a language model (folder or hub id), which is asked greedily and whose first word is read."""
    return rule if name == "rule" else _asked(name)


def normal(text: str) -> list[str]:
    """A text's words in lower case, without marks."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())


def verdict(text: str) -> bool | None:
    """Yes or no as the first word of an answer, else None."""
    return {"yes": True, "no": False}.get(next(iter(normal(text)), ""))


def _holds(truth: str, answer: str) -> bool:
    """An article counts where the truth is nothing else: the letter of an option."""
    wanted, given = normal(truth), normal(answer)
    if set(wanted) - ARTICLES:
        wanted, given = ([w for w in words if w not in ARTICLES] for words in (wanted, given))
    return bool(wanted) and any(given[i : i + len(wanted)] == wanted for i in range(len(given) - len(wanted) + 1))


def _asked(name: str) -> Checker:
    tokenizer, model = load_tokenizer(name), load_to_device(name)

    def check(questions: Sequence[str], truths: Sequence[str], answers: Sequence[str]) -> list[bool | None]:
        rows = zip(questions, truths, answers, strict=True)
        asked = [QUESTION.format(question=q, truth=t, answer=a) for q, t, a in rows]
        prompts: list[Text] = [as_prompt(text, tokenizer) for text in asked]
        return [
            verdict(said) for said in sampling.answers(model, tokenizer, prompts, temperature=0, limit=VERDICT_TOKENS)
        ]

    return check
