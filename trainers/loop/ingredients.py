"""Ingredients: what an objective reads of each pair besides the log-probs of its two answers.

They are made ready from the data before training (`trainers.loop.given`) and put beside every batch's statistics here.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from diagnostics.batch import Batch
from diagnostics.engine import innermost
from diagnostics.errors import UserError
from diagnostics.forward import Outputs
from diagnostics.likelihood import Likelihood, pair_stats
from diagnostics.logits import collisions
from diagnostics.row_stats import spread
from diagnostics.sequences import Example
from diagnostics.stats import PAIR, PairStats, SequenceStats, wide
from diagnostics.token_ids import TokenIds
from trainers import objectives
from trainers.loop.average import MovingAverage
from trainers.loop.reference import LiveReference
from trainers.models import adapter_switched

Marks = tuple[tuple[int, ...], tuple[int, ...]]  # a number for each token of chosen and of rejected


@dataclass(frozen=True)
class Given:
    """What the data gives for each pair, by pair_id; empty where the objective does not read it.

    columns: name -> number or list of numbers. phrases, steps: numbers of tokens, 0 outside. gold: a third answer
    to the same prompt, alone.
    """

    columns: dict[str, dict[str, Any]] = field(default_factory=dict)
    phrases: dict[str, Marks] = field(default_factory=dict)
    steps: dict[str, Marks] = field(default_factory=dict)
    gold: dict[str, Example] = field(default_factory=dict)


class Ingredients:
    """Completes a batch's PairStats with what the objective needs.

    groups: the training pairs in the groups that must stay in one batch. reward_model: runs the reward policy.
    """

    def __init__(
        self,
        objective: str,
        pairs: Sequence[Example],
        *,
        likelihood: Likelihood,
        given: Given | None = None,
        reward_model: Callable[[Any], Any] | None = None,
    ) -> None:
        self.needs = frozenset(objectives.needs(objective))
        pairs = with_rows(objective, pairs)
        self.further = tuple(name for name in next((p.rows for p in pairs), ()) if name not in PAIR)
        self.pairs = {p.pair_id: p for p in pairs}
        self.given, self.reward_model, self.likelihood = given or Given(), reward_model, likelihood
        self.average: MovingAverage | None = None  # of the policy; the trainer keeps it, where the objective reads it
        self.groups = by_prompt(pairs) if "lists" in self.needs else [[p] for p in pairs]
        self.partners = mismatched(pairs) if "mismatched" in self.needs else {}

    def complete(
        self, stats: PairStats, batch: Any, policy: Any, model: nn.Module, reference: Callable[..., Any] | None
    ) -> PairStats:
        """The batch's statistics with everything that the objective reads."""
        pairs = [self.pairs[i] for i in batch.pair_ids]
        columns = self._columns(pairs, batch.completion_mask.device)
        if "mismatched" in self.needs and reference is not None:
            columns["mismatched_logratios"] = self._mismatched(pairs, model, reference)
        stats = replace(stats, columns=columns, extra=stats.extra | self._extra(pairs, batch, model))
        sides: dict[str, list[Tensor]] = {}
        if "collision" in self.needs:
            sides["per_token_collision"] = list(spread(batch, policy, collisions(policy)))
        if "phrases" in self.needs:
            sides["phrase_mask"] = list(marked(batch, self.given.phrases))
        if "steps" in self.needs:
            sides["step_ids"] = list(marked(batch, self.given.steps))
            similarity = step_similarity(stats, policy, torch.cat(sides["step_ids"]))
            sides["step_similarity"] = list(spread(batch, policy, similarity))
        both = [{name: halves[i] for name, halves in sides.items()} for i in (0, 1)]
        stats = replace(stats, chosen=replace(stats.chosen, **both[0]), rejected=replace(stats.rejected, **both[1]))
        if self.average is not None:
            stats = self._averaged(stats, batch)
        return self._embedded(stats, pairs, model, reference) if "embeddings" in self.needs else stats

    def _averaged(self, stats: PairStats, batch: Any) -> PairStats:
        """The same stats with the noise that the moving average predicts, without gradient."""
        assert self.average is not None
        with self.average.running() as model:
            found, _ = self.likelihood.stats(batch, self.likelihood.run(model, batch), kl=False)
        sides: dict[str, Any] = {name: getattr(stats, name) for name in PAIR}
        said = {name: getattr(found[name], "predicted_noise", None) for name in PAIR}
        return replace(stats, **{name: replace(side, ema_noise=said[name]) for name, side in sides.items()})

    def part(self, batch: Any, names: Sequence[str]) -> Any:
        """Some of the rows of a batch, as a batch of their own."""
        return self._collate([self.pairs[i].only(names) for i in batch.pair_ids], batch.completion_mask.device)

    def _columns(self, pairs: Sequence[Example], device: torch.device) -> dict[str, Tensor]:
        """(B,) or (B, K) float64 each."""
        rows = [self.given.columns.get(p.pair_id, {}) for p in pairs]
        columns = {n: torch.tensor([row[n] for row in rows], dtype=wide(device), device=device) for n in rows[0]}
        return columns | (numbered(pairs) if "lists" in self.needs else {})

    def _extra(self, pairs: Sequence[Example], batch: Any, model: nn.Module) -> dict[str, SequenceStats]:
        extra: dict[str, SequenceStats] = {}
        if "gold" in self.needs:
            gold = self._collate([self.given.gold[p.pair_id] for p in pairs], batch.completion_mask.device)
            (extra["gold"],) = self.likelihood.stats(gold, self.likelihood.run(model, gold))[0].values()
        if self.reward_model is not None:
            both, _ = self.likelihood.stats(batch, self.reward_model(batch))
            extra |= {f"reward_{name}": stats for name, stats in both.items()}
        return extra

    def _embedded(self, stats: PairStats, pairs: Sequence[Example], model: nn.Module, reference: Any) -> PairStats:
        """The same stats with the token embeddings of every row, where all rows are text alone; those of the reference
        where it is live."""
        if any(row.media is not None for pair in pairs for row in pair.rows.values()):
            return stats
        batch = self._collate(pairs, next(model.parameters()).device)
        own = embeddings(model, batch)
        sides = {name: replace(getattr(stats, name), embeddings=own[name]) for name in PAIR}
        extra = {name: replace(side, embeddings=own.get(name)) for name, side in stats.extra.items()}
        stats = replace(stats, **sides, extra=extra)
        if not isinstance(reference, LiveReference):
            return stats
        with (
            torch.no_grad(),
            adapter_switched(reference.model, reference.adapter) if reference.adapter else nullcontext(),
        ):
            ref = embeddings(reference.model, batch)
        further = {name: replace(side, embeddings=ref[name]) for name, side in stats.ref_extra.items()}
        return replace(stats, ref_extra=further)

    def _mismatched(self, pairs: Sequence[Example], model: nn.Module, reference: Callable[..., Any]) -> Tensor:
        """(B,) nats: log-ratio of each prompt with another prompt's answers, mean of its two answers; no gradient."""
        batch = self._collate([self.partners[p.pair_id] for p in pairs], next(model.parameters()).device)
        with torch.no_grad():
            policy = self.likelihood.run(model, batch)
            stats = pair_stats(self.likelihood, batch, policy, reference(batch), kl=False)
        sides = objectives.logratios(stats)
        return (sides[0] + sides[1]) / 2

    def _collate(self, pairs: Sequence[Example], device: torch.device) -> Any:
        return self.likelihood.collate(pairs).to(device)


def with_rows(objective: str, pairs: Sequence[Example]) -> list[Example]:
    """The pairs with the rows that the objective reads, and no others: chosen and rejected first. UserError where a
    pair lacks one, or where some pairs alone have a row that is read where it is there."""
    optional = [n for n in objectives.optional_rows(objective) if any(n in p.rows for p in pairs)]
    meanings = objectives.rows(objective) | objectives.optional_rows(objective)
    wanted = (*PAIR, *objectives.rows(objective), *optional)
    for pair in pairs:
        for name in wanted:
            if name not in pair.rows:
                raise UserError(
                    f"pair_id {pair.pair_id}: objective '{objective}' reads the row '{name}' of every example "
                    f"({meanings.get(name, 'one of the two answers')}), which this one does not have."
                )
    return [pair.only(wanted) for pair in pairs]


def by_prompt(pairs: Sequence[Example]) -> list[list[Example]]:
    """The lists of a data set: pairs that share a prompt, in the order of their first pair."""
    groups: dict[TokenIds, list[Example]] = {}
    for pair in pairs:
        groups.setdefault(pair.prompt_ids, []).append(pair)
    return list(groups.values())


def numbered(pairs: Sequence[Example]) -> dict[str, Tensor]:
    """Columns `list`, `chosen_item`, `rejected_item`: equal numbers where prompts, or answers to one prompt, are."""
    prompts = {ids: i for i, ids in enumerate(dict.fromkeys(p.prompt_ids for p in pairs))}
    answers = (row.completion_ids for p in pairs for row in p.rows.values())
    items = {ids: i for i, ids in enumerate(dict.fromkeys(answers))}
    return {
        "list": torch.tensor([prompts[p.prompt_ids] for p in pairs]),
        "chosen_item": torch.tensor([items[p.chosen.completion_ids] for p in pairs]),
        "rejected_item": torch.tensor([items[p.rejected.completion_ids] for p in pairs]),
    }


def mismatched(pairs: Sequence[Example]) -> dict[str, Example]:
    """By pair_id: the pair's prompt with the answers of the next pair in the data that has another prompt.

    Answers are cut so that no row is longer than the longest of the data. Raises UserError for a single prompt.
    """
    groups = by_prompt(pairs)
    if len(groups) < 2:
        raise UserError("this objective compares with other prompts' answers, but all the data has one prompt.")
    longest = max(p.longest for p in pairs)
    found: dict[str, Example] = {}
    for group, other in zip(groups, [*groups[1:], groups[0]], strict=True):
        for i, pair in enumerate(group):
            answers, room = other[i % len(other)], longest - len(pair.prompt_ids)
            rows = {name: replace(row.cut(room), prompt_ids=pair.prompt_ids) for name, row in answers.rows.items()}
            found[pair.pair_id] = replace(answers, pair_id=pair.pair_id, rows=rows)
    return found


def marked(batch: Batch, marks: dict[str, Marks]) -> tuple[Tensor, Tensor]:
    """(B, T) each: the numbers of chosen and rejected tokens where those tokens stand in the batch, 0 elsewhere."""
    sides = [batch.completion_mask[batch.rows[name]] for name in PAIR]
    for i, mask in enumerate(sides):
        numbers = [n for pair_id in batch.pair_ids for n in marks[pair_id][i]]
        sides[i] = torch.zeros_like(mask)
        sides[i][mask.bool()] = torch.tensor(numbers, device=mask.device, dtype=mask.dtype)
    return sides[0], sides[1]


def embeddings(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """(B, T, D) what the embedding layer gives the tokens of each row, by its name; NaN on padding."""
    values = innermost(model).get_input_embeddings()(batch.input_ids)
    values = torch.where(batch.attention_mask.bool()[..., None], values, torch.nan)
    return {name: values[at] for name, at in batch.rows.items()}


def step_similarity(stats: PairStats, policy: Outputs, step_ids: Tensor) -> Tensor:
    """(N,) for each predicted token the cosine between the mean hidden vector of its step and that of the same step
    in the list's best answer (highest chosen_score or rejected_score); -1 where that one has no such step, so that
    the step weighs nothing, and 0 outside steps."""
    steps = step_ids[policy.rows, policy.columns]
    most = int(step_ids.max()) + 1
    hidden = policy.hidden.detach().to(wide(policy.hidden.device))
    sums = hidden.new_zeros(len(step_ids) * most, hidden.shape[1])
    means = torch.nn.functional.normalize(sums.index_add(0, policy.rows * most + steps, hidden), dim=-1)
    means = means.unflatten(0, (-1, most))
    best = _best(stats)[policy.rows]
    cosine = torch.linalg.vecdot(means[policy.rows, steps], means[best, steps])
    there = torch.zeros_like(means[..., 0], dtype=torch.bool)
    there[policy.rows, steps] = True
    return torch.where(steps > 0, torch.where(there[best, steps], cosine, -1.0), 0.0)


def _best(stats: PairStats) -> Tensor:
    """(2B,) for each sequence the row of the best-scored sequence of its list."""
    scores = torch.cat([stats.columns["chosen_score"], stats.columns["rejected_score"]])
    of_row = objectives.lists(stats).of_row.repeat(2)
    same = of_row[:, None] == of_row
    return torch.where(same, scores, -torch.inf).argmax(-1)
