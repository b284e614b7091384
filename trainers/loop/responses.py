"""Response types: one prompt, several answers followed side by side, to see which of them gain what the others lose.

Of a probe pair: its chosen and rejected answer, the model's own answer at the start, another prompt's chosen answer,
and the chosen answer with its tokens shuffled. After arXiv 2407.10490 (squeezing: all of them fall, and only what the
model already held most likely rises).
"""

import random
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from diagnostics import sequences
from diagnostics.sampling import own_answers
from diagnostics.scoring import score_rows
from diagnostics.sequences import Example
from diagnostics.token_likelihood import TokenLikelihood


class Responses:
    """The further answers to a few probe pairs and their log-probs (chosen and rejected are scored with the pair).

    ends: ids that end the own answer. seed: of the shuffling. An answer is cut where it and its prompt would
    be longer than the longest pair, which the model is known to take.
    """

    def __init__(
        self, pairs: Sequence[Example], *, likelihood: TokenLikelihood, ends: Collection[int], seed: int
    ) -> None:
        self.pairs, self.likelihood, self.ends = pairs, likelihood, ends
        self.longest = max((p.longest for p in pairs), default=0)
        self.known = {"other": others(pairs), "shuffled": {p.pair_id: shuffled(p, seed) for p in pairs}}

    def measure(self, model: nn.Module, own: dict[str, Tensor]) -> list[tuple[str, str, float]]:
        """(pair_id, type, mean log-prob a token) of every answer that a pair has; no reference is run.

        own: the own answers by pair_id, kept by the caller; where it holds none they are generated with this model.
        """
        missing = [p for p in self.pairs if p.pair_id not in own]
        made = own_answers(model, missing, longest=self.longest, likelihood=self.likelihood, ends=self.ends)
        own |= {pair_id: torch.tensor(ids) for pair_id, ids in made.items()}
        answers = self.known | {"own": {p.pair_id: tuple(own[p.pair_id].tolist()) for p in self.pairs}}
        found = []
        for examples in self._asked(answers):
            for part, rows, _ in score_rows(model, examples, likelihood=self.likelihood):
                for name, stats in rows.items():
                    values = zip(part, stats.avg_logps.tolist(), strict=True)
                    found += [(pair.pair_id, name, value) for pair, value in values]
        return found

    def _asked(self, answers: Mapping[str, Mapping[str, Sequence[int]]]) -> Iterable[list[Example]]:
        """Each pair's prompt with the answers that it has; those that have the same ones together."""
        asked: dict[tuple[str, ...], list[Example]] = {}
        for pair in self.pairs:
            mine = {name: ids for name, by_pair in answers.items() if (ids := by_pair[pair.pair_id])}
            room = self.longest - len(pair.prompt_ids)
            rows = {name: sequences.answer(pair, ids).cut(room) for name, ids in mine.items()}
            if rows:
                asked.setdefault(tuple(rows), []).append(replace(pair, rows=rows))
        return asked.values()


def others(pairs: Sequence[Example]) -> dict[str, Sequence[int]]:
    """For each pair the chosen answer of the next one with another prompt; empty where all prompts are the same."""
    found = {}
    for i, pair in enumerate(pairs):
        rest = (*pairs[i + 1 :], *pairs[:i])
        found[pair.pair_id] = next((p.chosen.completion_ids for p in rest if p.prompt_ids != pair.prompt_ids), ())
    return found


def shuffled(pair: Example, seed: int) -> tuple[int, ...]:
    """The chosen answer's tokens in another order, EOS kept at its end; empty where there is no other order."""
    ids = list(pair.chosen.completion_ids)
    end = ids[-1:] if pair.chosen.has_eos else []
    text = ids[: len(ids) - len(end)]
    if len(set(text)) < 2:
        return ()
    rng = random.Random(f"{seed}/{pair.pair_id}")
    mixed = list(text)
    while mixed == text:
        rng.shuffle(mixed)
    return (*mixed, *end)
