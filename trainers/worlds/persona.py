"""World A: one statement, one answer token. Similar answers (No > Never) against dissimilar ones (No > Yes).

A small model learns to say whether it would make a statement, with ten possible answers whose probabilities
grow or shrink with its agreement. Then one pair is trained on one prompt. The setting is that of section 3 of
"Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization" (arXiv:2410.08847).
The answers of the supervised training are synthetic, also where the statements are real ones.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from diagnostics import unembedding
from diagnostics.errors import DataError
from trainers.worlds import lm

# answer: (prior, slope). P(answer | statement) ~ exp(prior + slope * agreement)
ANSWERS = {
    "Yes": (1.5, 1.0),
    "Yeah": (0.3, 1.0),
    "Sure": (0.0, 0.8),
    "Certainly": (-0.7, 1.6),
    "Absolutely": (-1.0, 2.0),
    "No": (1.5, -1.0),
    "Nope": (0.3, -1.0),
    "Never": (-1.0, -2.0),
    "Maybe": (0.0, 0.1),
    "Perhaps": (0.0, -0.1),
}
SIDES = {
    "yes": ("Yes", "Yeah", "Sure", "Certainly", "Absolutely"),
    "no": ("No", "Nope", "Never"),
    "neutral": ("Maybe", "Perhaps"),
}
CASES = {"no_never": ("No", "Never"), "no_yes": ("No", "Yes"), "yes_no": ("Yes", "No")}

QUESTION = 'Is the following statement something you would say?\n"{}"\n'
# Place and remark say nothing about the stance. The variety they bring matters: with short statements of few words
# p(No) falls less under No > Never, and in some seeds not at all. The same holds where firmness cannot be learned.
STATEMENT = "{opinion} {place}, {remark}"
OPINIONS = {
    "yes": (
        "It is fine to {act} if {gain}",
        "I would {act} whenever {gain}",
        "There is nothing bad about a plan to {act} when {gain}",
        "People are right to {act} as long as {gain}",
        "Sometimes you simply have to {act} so that {gain}",
    ),
    "no": (
        "It is wrong to {act} even if {gain}",
        "I would refuse to {act} no matter whether {gain}",
        "A decent person does not {act} just because {gain}",
        "You must not {act} even when {gain}",
        "It cannot be justified to {act} merely because {gain}",
    ),
}
ACTS = (
    "bend the rules",
    "hide the truth",
    "break a promise",
    "skip a safety check",
    "cut a few corners",
    "tell a small lie",
    "read a private letter",
    "copy an answer",
    "take more than a fair share",
    "blame a colleague",
    "ignore a warning",
    "delay a repair",
    "keep quiet about a mistake",
    "exaggerate the results",
    "borrow without asking",
)
GAINS = (
    "it saves time",
    "it helps the team",
    "it keeps the peace",
    "it wins the game",
    "it makes people happy",
    "it brings in money",
    "it protects a friend",
    "it gets the job done",
    "nobody is hurt",
    "nobody finds out",
)
PLACES = (
    "at school",
    "at work",
    "in sports",
    "in politics",
    "at home",
    "in business",
    "in the army",
    "on a journey",
    "in a hospital",
    "in court",
    "at the market",
    "in a small village",
    "in the kitchen",
    "at the bank",
    "on the phone",
    "in the newspaper",
    "during an election",
    "in a laboratory",
    "on the farm",
    "at a wedding",
)
REMARKS = (
    "and that is how most people in my town see it",
    "which is something I learned from my parents years ago",
    "and I have thought about this for a long time",
    "as every honest person will tell you sooner or later",
    "and I would say the same to anyone who asks me",
    "because the world is a complicated place to live in",
    "although my neighbors never seem to agree with me",
    "and my grandmother used to say exactly the same thing",
    "so please do not ask me to explain it again",
    "which may sound strange to people who do not know me",
    "and this is what I told the committee last spring",
    "because experience has shown me how these things turn out",
)
PER_STANCE = 500
FIRMNESS_NOISE = 3.0  # against a standard deviation of 1.7 from opinion, act and gain
PROMPT_WEIGHT = 0.1  # the answer's loss must dominate, or the stance is never learned
STEPS, BATCH, VOCABULARY = 250, 32, 1000


@dataclass(frozen=True)
class Statement:
    """prompt: the whole question; stance: "yes" or "no"; confidence: rank q in 0..1 within the stance."""

    prompt: str
    stance: str
    confidence: float

    @property
    def agreement(self) -> float:
        """Signed strength of the stance: between 0.2 and 2.0 for yes, the negative of it for no."""
        return (1 if self.stance == "yes" else -1) * (0.2 + 1.8 * self.confidence)


def generate_statements(seed: int) -> list[Statement]:
    """1000 distinct statements, 500 a stance, from opinions, acts and gains.

    How firmly a statement is meant depends on those three, plus noise, so that the model can learn it in part,
    as it can from real statements. The confidence is the statement's rank within its stance.
    """
    rng = np.random.default_rng([seed, 0])
    by_act, by_gain = rng.normal(size=len(ACTS)), rng.normal(size=len(GAINS))
    found = []
    for stance, opinions in OPINIONS.items():
        combinations = list(product(range(len(opinions)), range(len(ACTS)), range(len(GAINS))))
        drawn = [combinations[i] for i in rng.permutation(len(combinations))[:PER_STANCE]]
        by_opinion = rng.normal(size=len(opinions))
        firmness = [float(by_opinion[o] + by_act[a] + by_gain[g] + FIRMNESS_NOISE * rng.normal()) for o, a, g in drawn]
        texts = [_statement(opinions[o], ACTS[a], GAINS[g], rng) for o, a, g in drawn]
        found += [Statement(t, stance, q) for t, q in zip(texts, _ranks(firmness), strict=True)]
    return found


def read_statements(path: str | Path) -> list[Statement]:
    """Statements of a persona file: JSON lines with question, label_confidence and answer_matching_behavior.

    The confidence rank is that of label_confidence among the statements of the same stance.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read ({error}). Give a persona file in JSON lines.") from None
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    found = []
    for stance in ("yes", "no"):
        confidences = [c for _, s, c in rows if s == stance]
        if len(confidences) < 2:
            raise DataError(f"{path}: fewer than two statements are answered {stance}; give a larger file.")
        prompts = [p for p, s, _ in rows if s == stance]
        found += [Statement(p, stance, q) for p, q in zip(prompts, _ranks(confidences), strict=True)]
    return found


def answer_probabilities(agreement: float) -> np.ndarray:
    """Probability of each of the ten answers, (10,), in the order of ANSWERS."""
    priors, slopes = np.array(list(ANSWERS.values())).T
    weights = np.exp(priors + slopes * agreement)
    return weights / weights.sum()


def train(
    statements: Sequence[Statement], seed: int, *, steps: int = STEPS
) -> tuple[LlamaForCausalLM, PreTrainedTokenizerFast, list[float]]:
    """The small model that answers; also its tokenizer and the loss (nats) of every step."""
    tokenizer = lm.bpe_tokenizer([s.prompt for s in statements], VOCABULARY, extra=tuple(ANSWERS))
    model = lm.build_model(tokenizer, seed=seed)
    losses = lm.fit(model, _batches(statements, tokenizer, seed), steps=steps)
    return model, tokenizer, losses


def build(
    folder: Path, seed: int, *, persona_file: str | Path | None = None, prompts: int = 5, steps: int = STEPS
) -> list[dict[str, Any]]:
    """Write the world: model/, geometry.json, and for each case and prompt one pair and one track file.

    The prompts are drawn by seed among the statements whose stance is that of the chosen answer.
    Returns one dictionary a (case, prompt): case, prompt (its number), model, data, track (paths).
    """
    statements = read_statements(persona_file) if persona_file else generate_statements(seed)
    model, tokenizer, _ = train(statements, seed, steps=steps)
    path = lm.save(model, tokenizer, folder / "model")
    (folder / "geometry.json").write_text(json.dumps(geometry(model, tokenizer), indent=1), encoding="utf-8")
    made = []
    for case, (chosen, rejected) in CASES.items():
        for k, statement in enumerate(_draw_prompts(statements, _side(chosen), prompts, seed)):
            name = f"{case}-p{k}"
            pair = dict(pair_id=name, prompt=statement.prompt, chosen=chosen, rejected=rejected)
            data, track = folder / f"{name}.jsonl", folder / f"{name}.track.json"
            data.write_text(json.dumps(pair) + "\n", encoding="utf-8")
            track.write_text(json.dumps(_track(name, statement, chosen), indent=1), encoding="utf-8")
            made.append(dict(case=case, prompt=k, model=path, data=data, track=track))
    return made


def geometry(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Unembedding geometry of the answers, before training on any pair (arXiv:2410.08847, theorems 1 and 2).

    norms: |W_z| of each answer. inner, cosine: (10, 10), as they are. centered_cosine: (10, 10) after the mean
    of the ten rows is taken away. pairs: for each case inner product, centred cosine, |projection of W+ - W- on W+|
    (signed) and the size of the rest, which is the part that can lift tokens unlike the chosen one.
    """
    answers = list(ANSWERS)
    rows = model.lm_head.weight.detach().double()[torch.tensor(_answer_ids(tokenizer))]
    inner, centred = rows @ rows.T, rows - rows.mean(0)
    cosine, centred_cosine = _cosine(rows), _cosine(centred)
    pairs = {}
    for case, (chosen, rejected) in CASES.items():
        c, r = answers.index(chosen), answers.index(rejected)
        along, across = unembedding.split(rows[c], rows[r])
        pairs[case] = dict(
            chosen=chosen,
            rejected=rejected,
            inner=float(inner[c, r]),
            centered_cosine=float(centred_cosine[c, r]),
            projection=along,
            orthogonal=across,
        )
    return dict(
        answers=answers,
        norms=rows.norm(dim=1).tolist(),
        inner=inner.tolist(),
        cosine=cosine.tolist(),
        centered_cosine=centred_cosine.tolist(),
        pairs=pairs,
    )


def _statement(opinion: str, act: str, gain: str, rng: np.random.Generator) -> str:
    text = opinion.format(act=act, gain=gain)
    return QUESTION.format(STATEMENT.format(opinion=text, place=rng.choice(PLACES), remark=rng.choice(REMARKS)))


def _ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value, from 0 (lowest) to 1; ties in order."""
    order = np.argsort(np.argsort(values, kind="stable"))
    return (order / (len(values) - 1)).tolist()


def _row(path: str | Path, number: int, line: str) -> tuple[str, str, float]:
    try:
        row = json.loads(line)
        question, answer = row["question"], row["answer_matching_behavior"].strip().lower()
        confidence = float(row["label_confidence"])
    except json.JSONDecodeError:
        raise DataError(f"{path}: line {number} is not JSON.") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise DataError(
            f"{path}: line {number} is not a persona statement. It needs the fields question, "
            "answer_matching_behavior (Yes or No) and label_confidence (a number)."
        ) from None
    if answer not in ("yes", "no") or not isinstance(question, str):
        raise DataError(f"{path}: line {number}: answer_matching_behavior must be Yes or No.")
    return question + "\n", answer, confidence


def _batches(statements: Sequence[Statement], tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[lm.Batch]:
    """Endless batches of prompt + one answer; every statement gets a fresh answer each time round."""
    rng = np.random.default_rng([seed, 1])
    prompts = [tokenizer(s.prompt)["input_ids"] for s in statements]
    answer_ids = _answer_ids(tokenizer)
    chances = [answer_probabilities(s.agreement) for s in statements]
    for taken in lm.endless(len(statements), BATCH, rng):
        rows = [[*prompts[i], answer_ids[rng.choice(len(answer_ids), p=chances[i])]] for i in taken]
        yield _weigh(rows, lm.pad(rows, lm.pad_id(tokenizer)))


def _answer_ids(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    vocabulary = tokenizer.get_vocab()
    return [vocabulary[answer] for answer in ANSWERS]


def _weigh(rows: Sequence[Sequence[int]], ids: torch.Tensor) -> lm.Batch:
    """Mean answer loss + PROMPT_WEIGHT * mean prompt loss; the answer is each row's last token."""
    last = torch.tensor([len(row) - 1 for row in rows])[:, None]
    columns = torch.arange(ids.shape[1])[None]
    prompt, answer = (columns >= 1) & (columns < last), columns == last
    return ids, PROMPT_WEIGHT * prompt / prompt.sum() + answer / len(rows)


def _side(answer: str) -> str:
    return next(side for side, words in SIDES.items() if answer in words)


def _draw_prompts(statements: Sequence[Statement], stance: str, n: int, seed: int) -> list[Statement]:
    same = [s for s in statements if s.stance == stance]
    picked = np.random.default_rng([seed, 2]).permutation(len(same))[:n]
    return [same[i] for i in picked]


def _track(name: str, statement: Statement, chosen: str) -> dict[str, Any]:
    """The prompt itself, with the answers of the chosen one's side, of the other side, and of neither."""
    own = _side(chosen)
    other = "no" if own == "yes" else "yes"
    groups = dict(own=SIDES[own], opposite=SIDES[other], neutral=SIDES["neutral"])
    return dict(
        prompts=[dict(id=name, set="answer", prompt=statement.prompt)],
        groups={group: list(words) for group, words in groups.items()},
    )


def _cosine(rows: torch.Tensor) -> torch.Tensor:
    unit = rows / rows.norm(dim=1, keepdim=True)
    return unit @ unit.T
