"""Response types: one prompt, several answers followed side by side, to see which of them gain what the others lose.

Of a probe pair: its chosen and rejected answer, the model's own answer at the start, another prompt's chosen answer,
and the chosen answer with its tokens shuffled. After arXiv 2407.10490 (squeezing: all of them fall, and only what the
model already held most likely rises).
"""

import random
from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from diagnostics.greedy import own_answers
from diagnostics.scoring import score, width
from diagnostics.tokenized import TokenizedPair


class Responses:
    """The further answers to a few probe pairs and their log-probs (chosen and rejected are scored with the pair).

    ends: ids that end the own answer. seed: of the shuffling. An answer is cut where it and its prompt would
    be longer than the longest pair, which the model is known to take.
    """

    def __init__(self, pairs: Sequence[TokenizedPair], *, pad_token_id: int, ends: Collection[int], seed: int) -> None:
        self.pairs, self.pad_token_id, self.ends = pairs, pad_token_id, ends
        self.longest = max(map(width, pairs), default=0)
        self.rooms = {p.pair_id: self.longest - len(p.prompt_ids) for p in pairs}
        self.known = {"other": others(pairs), "shuffled": {p.pair_id: shuffled(p, seed) for p in pairs}}

    def measure(self, model: nn.Module, own: dict[str, Tensor]) -> list[tuple[str, str, float]]:
        """(pair_id, type, mean log-prob a token) of every answer that a pair has; no reference is run.

        own: the own answers by pair_id, kept by the caller; where it holds none they are generated with this model.
        """
        missing = [p for p in self.pairs if p.pair_id not in own]
        made = own_answers(model, missing, longest=self.longest, pad=self.pad_token_id, ends=self.ends)
        own |= {pair_id: torch.tensor(ids) for pair_id, ids in made.items()}
        answers = self.known | {"own": {p.pair_id: tuple(own[p.pair_id].tolist()) for p in self.pairs}}
        asked = self._asked(answers)
        found = []
        for scored in score(model, list(asked), pad_token_id=self.pad_token_id):
            for side, stats in enumerate((scored.stats.chosen, scored.stats.rejected)):
                for pair, value in zip(scored.pairs, stats.avg_logps.tolist(), strict=True):
                    found += [(pair.pair_id, name, value) for name in asked[pair][side : side + 1]]
        return found

    def _asked(self, answers: dict[str, dict[str, tuple[int, ...]]]) -> dict[TokenizedPair, list[str]]:
        """The answers, two by two as the sides of pairs, so that they share their prompt; with the names of the sides.

        A last single answer stands beside its own first token, which nobody asked for.
        """
        asked = {}
        for pair in self.pairs:
            room = self.rooms[pair.pair_id]
            mine = [(name, ids[:room]) for name, by_pair in answers.items() if (ids := by_pair[pair.pair_id])]
            for k in range(0, len(mine), 2):
                first, second = mine[k], (*mine, ("", mine[k][1][:1]))[k + 1]
                names = [name for name, _ in mine[k : k + 2]]
                asked[replace(pair, source_row=k, chosen_ids=first[1], rejected_ids=second[1])] = names
        return asked


def others(pairs: Sequence[TokenizedPair]) -> dict[str, tuple[int, ...]]:
    """For each pair the chosen answer of the next one with another prompt; empty where all prompts are the same."""
    found = {}
    for i, pair in enumerate(pairs):
        rest = (*pairs[i + 1 :], *pairs[:i])
        found[pair.pair_id] = next((p.chosen_ids for p in rest if p.prompt_ids != pair.prompt_ids), ())
    return found


def shuffled(pair: TokenizedPair, seed: int) -> tuple[int, ...]:
    """The chosen answer's tokens in another order, EOS kept at its end; empty where there is no other order."""
    ids, end = list(pair.chosen_ids), [pair.chosen_ids[-1]] if pair.chosen_has_eos else []
    text = ids[: len(ids) - len(end)]
    if len(set(text)) < 2:
        return ()
    rng = random.Random(f"{seed}/{pair.pair_id}")
    mixed = list(text)
    while mixed == text:
        rng.shuffle(mixed)
    return (*mixed, *end)
