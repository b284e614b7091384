"""World E: a small model that knows facts, and preference pairs whose sides differ in a short phrase.

The chosen answer states the true value, the rejected one a wrong value in the same sentence; in about three pairs
of eight the closing words differ too. A method that moves only what matters keeps the rest of the sentence where it
was, so the world shows how far a policy leaves its reference for the preference it learns. Held-out questions ask
about the same facts in words that were never used in training.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from trainers.worlds import lm

ENTITIES = tuple(
    "mila oren tavi suri belo kira dano lume ravi nesa polo zuri emil fara gino hale ivo jara kemo lysa".split()
)
VALUES = {
    "color": tuple("green blue red yellow purple orange white black".split()),
    "home": tuple("forest island desert valley harbor mountain village castle".split()),
    "food": tuple("bread honey rice soup cheese apples beans fish".split()),
    "job": tuple("baker sailor teacher painter farmer weaver doctor smith".split()),
}
QUESTIONS = (
    "what is the {attribute} of {entity} ?",
    "tell me the {attribute} of {entity} .",
    "do you know the {attribute} of {entity} ?",
    "i want to know what the {attribute} of {entity} is .",
)
HELD_OUT_QUESTION = "do you know what the {attribute} of {entity} is ?"
ANSWERS = (
    "the {attribute} of {entity} is {value} {filler} .",
    "{entity} has {value} as the {attribute} {filler} .",
    "i can say that {value} is the {attribute} of {entity} {filler} .",
)
FILLERS = (
    "as everyone in the old town knows very well",
    "and nobody here has ever said otherwise",
    "which the oldest books in our library also tell",
    "or so my neighbor told me on a long walk last summer",
)
SAMPLES, STEPS, BATCH = 8000, 700, 32
TRUE = 0.5  # of the supervised answers state the true value for sure, the others any value
PAIRS, HELD_OUT = 256, 160
OTHER_FILLER = 0.5  # of the pairs draw the rejected answer's filler anew


@dataclass(frozen=True)
class Fact:
    """One true statement of the world."""

    entity: str
    attribute: str
    value: str

    def ask(self, question: str) -> str:
        """The fact as a question."""
        return question.format(entity=self.entity, attribute=self.attribute)

    def answer(self, template: int, value: str, filler: int) -> str:
        """An answer that states `value`, true or not."""
        words = dict(entity=self.entity, attribute=self.attribute, value=value, filler=FILLERS[filler])
        return ANSWERS[template].format(**words)


def make_facts(seed: int) -> list[Fact]:
    """The 80 facts of a seed: a value for every entity and attribute."""
    rng = np.random.default_rng([seed, 0])
    return [Fact(entity, name, str(rng.choice(VALUES[name]))) for entity, name in product(ENTITIES, VALUES)]


def make_pairs(facts: Sequence[Fact], questions: Sequence[str], count: int, seed: int) -> list[dict[str, str]]:
    """`count` pairs on distinct (question, answer template); chosen: the true value, rejected: a wrong one."""
    rng = np.random.default_rng([seed, 1, len(questions)])
    every = list(product(facts, questions, range(len(ANSWERS))))
    pairs = []
    for k, i in enumerate(rng.permutation(len(every))[:count]):
        fact, question, template = every[i]
        wrong = str(rng.choice([v for v in VALUES[fact.attribute] if v != fact.value]))
        filler, again = (int(n) for n in rng.integers(len(FILLERS), size=2))
        other = again if rng.random() < OTHER_FILLER else filler
        chosen, rejected = fact.answer(template, fact.value, filler), fact.answer(template, wrong, other)
        pairs.append(dict(pair_id=f"p{k:03d}", prompt=fact.ask(question), chosen=chosen, rejected=rejected))
    return pairs


def train(
    facts: Sequence[Fact], seed: int, *, steps: int = STEPS
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """The small model that states the true value about half the time; its tokenizer, the loss (nats) of every step."""
    tokenizer = lm.word_tokenizer(vocabulary())
    model = lm.build_model(tokenizer, seed=seed)
    losses = lm.fit(model, _batches(facts, tokenizer, seed), steps=steps)
    return model, tokenizer, losses


def vocabulary() -> list[str]:
    """Every word of the world, sorted."""
    templates = [*QUESTIONS, HELD_OUT_QUESTION, *ANSWERS, *FILLERS]
    words = [w for t in templates for w in t.split() if not w.startswith("{")]
    return sorted({*words, *ENTITIES, *VALUES, *(v for values in VALUES.values() for v in values)})


def build(folder: Path, seed: int, *, steps: int = STEPS) -> dict[str, Path]:
    """Write the world and return its paths: model, data (256 pairs), heldout_data (160 pairs, unseen question)."""
    facts = make_facts(seed)
    model, tokenizer, _ = train(facts, seed, steps=steps)
    found = paths(folder)
    lm.save(model, tokenizer, found["model"])
    _write(found["data"], make_pairs(facts, QUESTIONS, PAIRS, seed))
    _write(found["heldout_data"], make_pairs(facts, [HELD_OUT_QUESTION], HELD_OUT, seed))
    return found


def paths(folder: Path) -> dict[str, Path]:
    """Where `build` writes what."""
    return dict(model=folder / "model", data=folder / "pairs.jsonl", heldout_data=folder / "heldout.jsonl")


def _write(path: Path, pairs: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs), encoding="utf-8")


def _batches(facts: Sequence[Fact], tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[lm.Batch]:
    """Endless batches from 8000 fixed samples of question + answer + EOS, in a new order each time round."""
    rng = np.random.default_rng([seed, 2])
    rows = tokenizer([_sample(facts, rng) for _ in range(SAMPLES)])["input_ids"]
    rows = [[*row, lm.eos_id(tokenizer)] for row in rows]
    for taken in lm.endless(SAMPLES, BATCH, rng):
        yield lm.lm_batch([rows[i] for i in taken], lm.pad_id(tokenizer))


def _sample(facts: Sequence[Fact], rng: np.random.Generator) -> str:
    fact = facts[int(rng.integers(len(facts)))]
    value = fact.value if rng.random() < TRUE else str(rng.choice(VALUES[fact.attribute]))
    question = QUESTIONS[int(rng.integers(len(QUESTIONS)))]
    template, filler = (int(rng.integers(len(forms))) for forms in (ANSWERS, FILLERS))
    return f"{fact.ask(question)} {fact.answer(template, value, filler)}"
