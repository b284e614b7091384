"""The forecast: further columns of scores.parquet that say, from the start model alone, how training will move each
chosen log-prob. Each passes over the pairs again, so it is measured only where it is asked for.

    closed/            one forward pass: unembedding_rate, hidden_rate, features_rate (with the head's sum: one more)
    self_rate/         two backward passes over the data
    set/               one backward pass over the data, summed, on the forward pass that also scores the pairs; then
                       set_rate and set_rate_sign: for each, one forward pass over the chosen answers at either end of
                       a short step along the sum
    probe/             the same along the gradient of the probe's answers
    own_answer_gap/    one answer generated a pair (at most sampling.OWN_TOKENS tokens), then one forward pass

Every pass has a folder of its own in parts/ and goes on where it was stopped; processes share it. Sums over the data
are the same whatever the number of processes up to rounding.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from diagnostics import sequences
from diagnostics.columns import Column
from diagnostics.engine import device_of, innermost
from diagnostics.errors import DataError, UserError
from diagnostics.flag import rates
from diagnostics.flag.closed_forms import closed_forms, head_gradient
from diagnostics.flag.parts import Parts
from diagnostics.flag.sums import Sums
from diagnostics.likelihood import GIVES, Likelihood, pair_stats
from diagnostics.processes import agree, processes, share
from diagnostics.progress import Progress
from diagnostics.sampling import own_answers
from diagnostics.scoring import dealt, fitting, score_batches
from diagnostics.sequences import Example
from diagnostics.stats import PairStats

# a short step's difference drowns in the rounding of bfloat16: what is taken from one says so
RATE = "nats per unit of the loss's slope"
COLUMNS = {
    "set_rate": Column(
        "rate under the whole set",
        RATE,
        "rate of the chosen log-prob under the step that the whole data set takes",
        "lowest",
        float32=True,
    ),
    "set_rate_sign": Column(
        "rate under the whole set, sign",
        RATE,
        "set_rate under the sign of that step, as Adam and RMSProp take at first",
        "lowest",
        float32=True,
    ),
    "last_layer_set_rate": Column(
        "rate under the whole set, last layer",
        RATE,
        "set_rate in the head's weight alone; forward passes only",
        "lowest",
    ),
    "self_rate": Column(
        "rate of the pair alone",
        RATE,
        "rate of the chosen log-prob when the pair trains alone",
        "lowest",
    ),
    "hidden_rate": Column(
        "rate of the pair alone, last layer (V)",
        RATE,
        "self_rate in the head's weight alone (V): CHES weighted by prediction errors, negated",
        "lowest",
    ),
    "unembedding_rate": Column(
        "unembedding rate (U)",
        RATE,
        "self_rate if hidden states were free and the head fixed (U)",
        "lowest",
    ),
    "features_rate": Column(
        "rate of free hidden states and head (U + V)",
        RATE,
        "self_rate if hidden states and head were free (U + V)",
        "lowest",
    ),
    "probe_influence": Column(
        "influence on the named behaviour",
        RATE,
        "rate at which training on the pair alone raises the probe's answers",
        float32=True,
    ),
    "own_answer_gap": Column(
        "own answer − chosen, log-prob per token, start model",
        "nats per token",
        "log-prob per token of the model's own greedy answer minus the chosen one's: how far off-policy that is",
        "highest",
    ),
}
CLOSED = ("unembedding_rate", "hidden_rate", "features_rate")
SET = ("set_rate", "set_rate_sign")
NEEDS = dict.fromkeys((*CLOSED, "last_layer_set_rate"), ("hidden", "tokens")) | {"own_answer_gap": ("tokens",)}
Rated = list[dict[str, Any]]  # a row a pair
Score = Callable[[Sequence[Example], PairStats], Rated]
Saving = Callable[[], AbstractContextManager[Callable[[Rated], None]]]

# CPU time of each pass beyond the scoring pass, in epochs of DPO on the same pairs (a forward and a backward pass and
# AdamW); measured on a chat model of 135 million weights and pairs of 85 tokens, others differ by their shape. That of
# probe_influence is reckoned: two forward passes over both answers
EPOCHS = {
    "closed forms": 0.33,
    "sum of the head's gradient": 0.28,
    "self_rate": 1.1,
    "own_answer_gap": 0.7,
    "gradient of the whole set": 0.56,
    **dict.fromkeys(SET, 0.35),
    "probe_influence": 0.45,
}
ENDS = ("-ahead", "-back")  # passes at either end of a step, by the name of the step's column
NO_WEIGHTS = (*CLOSED, "last_layer_set_rate", "own_answer_gap")  # taken from forward passes alone


@dataclass(frozen=True)
class Job:
    """What every pass needs. parameters: which weights the gradients are taken in; ends: ids that end an own answer."""

    model: Any
    pairs: Sequence[Example]
    parts: Parts
    batch_tokens: int
    likelihood: Likelihood
    parameters: rates.Which = "all"
    ends: Collection[int] = ()

    @property
    def cost(self) -> Callable[[Example, int], int]:
        """What a pair adds to a batch."""
        return self.likelihood.cost(self.model)

    @property
    def gradient_tokens(self) -> int:
        """Tokens of a batch that is run with gradient: a backward pass needs what every layer made."""
        layers = getattr(innermost(self.model).config.get_text_config(), "num_hidden_layers", 1)
        return max(512, self.batch_tokens // layers)

    def collate(self, pairs: Sequence[Example]) -> Any:
        """A batch where the model takes it."""
        return self.likelihood.collate(pairs).to(device_of(self.model))


def wanted(by: str, *, everything: bool, probe: str | None) -> list[str]:
    """The columns to measure, in the order of COLUMNS; UserError where one of them lacks its probe."""
    if by == "probe_influence" and not probe:
        raise UserError("--by probe_influence needs --probe FILE: JSON lines with prompt and answer.")
    names = {by} if by in COLUMNS else set()
    names |= set(COLUMNS) - {"probe_influence"} if everything else set()
    names |= {"probe_influence"} if probe else set()
    names |= set(CLOSED) if names & {*CLOSED, "last_layer_set_rate"} else set()
    return [name for name in COLUMNS if name in names]


def check(likelihood: Likelihood, model: Any, names: Sequence[str], parameters: rates.Which) -> None:
    """UserError where the columns cannot be measured with this likelihood or these weights."""
    for name in names:
        lacks = [words for word, words in GIVES.items() if word in NEEDS.get(name, ()) and word not in likelihood.gives]
        if lacks:
            raise UserError(f"{name} needs {lacks[0]}, which {type(likelihood).__name__} does not give.")
    short = [n for n in names if COLUMNS[n].float32]
    if short and model.dtype.itemsize < 4:
        raise UserError(f"{short[0]} takes differences that are too small for {model.dtype}; give --dtype float32.")
    if set(names) - set(NO_WEIGHTS):
        rates.weights_of(model, parameters)


def cost(names: Collection[str]) -> str:
    """What measuring the columns costs beyond scoring, in epochs of DPO on the same pairs: about so much, and each
    pass's part."""
    passes = ["closed forms"] * bool(set(names) & {*CLOSED, "last_layer_set_rate"})
    passes += ["sum of the head's gradient"] * ("last_layer_set_rate" in names)
    passes += ["gradient of the whole set"] * takes_gradient(names)
    passes += [name for name in EPOCHS if name in names]
    parts = ", ".join(f"{name} {EPOCHS[name]:g}" for name in passes)
    return f"the forecast takes about as long as {sum(EPOCHS[p] for p in passes):.1f} epochs of DPO ({parts})"


def takes_gradient(names: Collection[str]) -> bool:
    """Whether the columns need the gradient of the whole data set: then `sum_set` goes first."""
    return bool(set(names) & set(SET))


def sum_set(job: Job, score: Score, saving: Saving) -> None:
    """The gradient of the whole data set. Each batch's stats, which its forward pass gives too, become rows by `score`,
    and go where `saving` says. Called by all processes together."""
    _total(job, "set", job.pairs, lambda job, groups: _differences(job, groups, score, saving))


def measure(job: Job, names: Sequence[str], probe: Sequence[Example] = ()) -> None:
    """Pass after pass until every column is in parts/, after `sum_set`. Called by all processes together."""
    if "last_layer_set_rate" in names:
        _total(job, "head", job.pairs, _head_sums)
    if set(names) & {*CLOSED, "last_layer_set_rate"}:
        head = _mean(job, "head", job.pairs)["head"] if "last_layer_set_rate" in names else None
        _rows(job, "closed", lambda groups: _closed(job, groups, head))
    if "self_rate" in names:
        _rows(job, "self_rate", lambda groups: _alone(job, groups), job.gradient_tokens)
    if "own_answer_gap" in names:
        _rows(job, "own_answer_gap", lambda groups: _own(job, groups))
    if takes_gradient(names):
        mean = _mean(job, "set", job.pairs)
        for name in SET:
            if name in names:
                _along(job, name, mean if name == "set_rate" else {n: v.sign() for n, v in mean.items()})
    if "probe_influence" in names:
        _total(job, "probe", probe, _answers)
        _along(job, "probe_influence", _mean(job, "probe", probe))


def read(job: Job, names: Sequence[str]) -> pd.DataFrame:
    """pair_id and the columns, once every pass is done."""
    ids = [p.pair_id for p in job.pairs]
    found = pd.DataFrame({"pair_id": ids})
    for name in ("closed", "self_rate", "own_answer_gap"):
        found = found.merge(job.parts.phase(name).read(), on="pair_id") if name in _passes(names) else found
    for name in names:
        if COLUMNS[name].float32:
            plus, minus = (job.parts.phase(name + end).read().set_index("pair_id").loc[ids] for end in ENDS)
            found[name] = rates.slope(plus["value"], minus["value"], plus["length"]).to_numpy()
    return found.loc[:, ["pair_id", *names]]


def _passes(names: Sequence[str]) -> set[str]:
    """The names of the passes whose rows hold columns as they are."""
    return {"closed" if n in CLOSED or n == "last_layer_set_rate" else n for n in names}


# --- passes that write a row a pair ---

Rows = Iterator[tuple[Sequence[Example], Mapping[str, Tensor]]]
Groups = Sequence[Sequence[Example]]


def _rows(job: Job, name: str, take: Callable[[Groups], Rows], tokens: int | None = None) -> None:
    """This process's share of a pass, each batch on disk before the next. take: batches to columns of each; tokens:
    of a batch, where that is not the job's."""
    part = job.parts.phase(name)
    done: set[str] = share(part.done)

    def work() -> None:
        me = processes()
        groups = dealt(job.pairs, done, tokens or job.batch_tokens, job.cost)
        todo = [p for g in groups for p in g]
        with part.writer(me.process_index) as write, Progress(name, todo, show=me.is_main_process) as bar:
            for pairs, columns in take(groups):
                values = {n: v.double().tolist() for n, v in columns.items()}
                write([{"pair_id": p.pair_id} | {n: v[i] for n, v in values.items()} for i, p in enumerate(pairs)])
                bar.add(pairs)

    agree(work)
    share(lambda: _require(job, job.pairs, part.done()))


def _closed(job: Job, groups: Groups, head: Tensor | None) -> Rows:
    head = None if head is None else head.to(device_of(job.model))
    for scored in score_batches(job.model, groups, likelihood=job.likelihood):
        yield scored.pairs, closed_forms(scored.batch, scored.policy, head)


def _alone(job: Job, groups: Groups) -> Rows:
    weights = rates.weights_of(job.model, job.parameters)
    together = rates.takes_all(job.likelihood, job.model, weights)

    def work(part: Sequence[Example]) -> dict[str, Tensor]:
        batch = job.collate(part)
        if together:
            return {"self_rate": rates.self_rates(job.model, batch, weights)}
        return {"self_rate": rates.self_rate(job.likelihood, job.model, batch, weights)}

    groups = groups if together else [[pair] for group in groups for pair in group]
    yield from fitting(job.model, groups, work, likelihood=job.likelihood)


def _own(job: Job, groups: Groups) -> Rows:
    """The own answer beside the chosen one, so that they are scored alike."""
    longest = max(p.longest for p in job.pairs)

    def work(part: Sequence[Example]) -> dict[str, Tensor]:
        how: dict[str, Any] = {"likelihood": job.likelihood, "ends": job.ends, "batch_tokens": job.batch_tokens}
        own = own_answers(job.model, part, longest=longest, **how)
        asked = [{"own": sequences.answer(p, own[p.pair_id]), "chosen": p.chosen} for p in part]
        batch = job.collate([replace(p, rows=rows) for p, rows in zip(part, asked, strict=True)])
        with torch.no_grad():
            stats, _ = job.likelihood.stats(batch, job.likelihood.run(job.model, batch))
        return {"own_answer_gap": stats["own"].avg_logps - stats["chosen"].avg_logps}

    yield from fitting(job.model, groups, work, likelihood=job.likelihood)


def _along(job: Job, name: str, direction: rates.Weights) -> None:
    """Log-probs at both ends of a step of rates.LENGTH along a direction."""
    weights, length = rates.weights_of(job.model, job.parameters), rates.norm(direction)
    step = rates.LENGTH / length if length else 0.0
    for end, signed in zip(ENDS, (step, -step)):
        with rates.moved(weights, direction, signed):
            _rows(job, name + end, lambda groups: _values(job, groups, length, margin=name == "probe_influence"))


def _values(job: Job, groups: Groups, length: float, *, margin: bool) -> Rows:
    """ln pi(y+), or with margin ln pi(y+) - ln pi(y-); the rejected answers are run only where they are needed."""

    def work(part: Sequence[Example]) -> dict[str, Tensor]:
        asked = part if margin else [replace(p, rows={"chosen": p.chosen}) for p in part]
        batch = job.collate(asked)
        with torch.no_grad():
            stats, _ = job.likelihood.stats(batch, job.likelihood.run(job.model, batch))
        value = stats["chosen"].logps - (stats["rejected"].logps if margin else 0)
        return {"value": value, "length": torch.full_like(value, length)}

    yield from fitting(job.model, groups, work, likelihood=job.likelihood)


# --- passes that add up ---

Adds = Iterator[tuple[Sequence[Example], Mapping[str, Tensor]]]


def _total(job: Job, name: str, pairs: Sequence[Example], take: Callable[[Job, Groups], Adds]) -> None:
    """This process's share of a sum over pairs."""
    sums = _sums(job, name)
    done: set[str] = share(sums.done)

    def work() -> None:
        me = processes()
        groups = dealt(pairs, done, job.gradient_tokens, job.cost)
        todo = [p for g in groups for p in g]
        with sums.writer(me.process_index) as add, Progress(name, todo, show=me.is_main_process) as bar:
            for part, values in take(job, groups):
                add([p.pair_id for p in part], values)
                bar.add(part)

    agree(work)
    share(lambda: _require(job, pairs, sums.done()))


def _mean(job: Job, name: str, pairs: Sequence[Example]) -> rates.Weights:
    return _sums(job, name).mean()


def _sums(job: Job, name: str) -> Sums:
    return Sums(job.parts.phase(name).folder)


def _differences(job: Job, groups: Groups, score: Score, saving: Saving) -> Adds:
    weights = rates.weights_of(job.model, job.parameters)

    def work(part: Sequence[Example]) -> tuple[Rated, rates.Weights]:
        batch = job.collate(part)
        stats = pair_stats(job.likelihood, batch, job.likelihood.run(job.model, batch))
        values = rates.difference(stats, weights)
        return score(part, stats), values

    with saving() as save:
        for part, (rows, values) in fitting(job.model, groups, work, likelihood=job.likelihood):
            save(rows)
            yield part, values


def _answers(job: Job, groups: Groups) -> Adds:
    weights = rates.weights_of(job.model, job.parameters)

    def work(part: Sequence[Example]) -> rates.Weights:
        return rates.answers_gradient(job.likelihood, job.model, job.collate(part), weights)

    yield from fitting(job.model, groups, work, likelihood=job.likelihood)


def _head_sums(job: Job, groups: Groups) -> Adds:
    for scored in score_batches(job.model, groups, likelihood=job.likelihood):
        yield scored.pairs, {"head": head_gradient(scored.batch, scored.policy)}


def _require(job: Job, pairs: Sequence[Example], found: Iterable[str]) -> None:
    missing = {p.pair_id for p in pairs} - set(found)
    if missing:
        raise DataError(
            f"{job.parts.out}: what {len(missing)} pairs add to the forecast is not in this folder. Every process must "
            "see the same folder; run the command again to measure what is missing."
        )
