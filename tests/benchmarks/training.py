"""Training steps on a batch of 8 pairs: today's naive DPO step, our engine bare, and ours with every log on."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from scoring import PAD, Models, padded_logps
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from diagnostics.batch import Batch, collate
from diagnostics.engine import device_of
from diagnostics.forward import Outputs, run, run_sides
from diagnostics.gradients.pairs import Activations, by_pair, from_activations
from diagnostics.gradients.whole import Gradient, cut, norms, pull_sides, side_gradients
from diagnostics.logits import logps
from diagnostics.row_stats import pair_stats
from diagnostics.runlog import RunLogWriter
from diagnostics.sequences import Example
from diagnostics.token_likelihood import TokenLikelihood
from trainers.loop.recorder import Recorder
from trainers.loop.schedule import ProbeSchedule
from trainers.loop.trainer import group_norms, layer_group
from trainers.objectives.dpo import dpo

PAIRS = 8
RATE = 1e-6
BETA = 0.1
CLIP = 1.0

Step = Callable[[], float]  # does one update, returns the loss before it


@dataclass(frozen=True)
class Trainee:
    """A policy with its optimizer, and the reference it is compared with. parts: the batch, 2 pairs at a time."""

    policy: nn.Module
    reference: nn.Module
    optimizer: torch.optim.Optimizer
    batch: Batch
    parts: Sequence[Batch]


def make_trainee(policy: nn.Module, reference: nn.Module, pairs: Sequence[Example], rate: float = RATE) -> Trainee:
    """AdamW over all weights; the reference is frozen."""
    reference.requires_grad_(False)
    device = device_of(policy)
    batch = collate(pairs, pad_token_id=PAD).to(device)
    parts = [collate(pairs[i : i + 2], pad_token_id=PAD).to(device) for i in range(0, len(pairs), 2)]
    optimizer = torch.optim.AdamW(policy.parameters(), lr=rate)
    return Trainee(policy.requires_grad_().train(), reference, optimizer, batch, parts)


def naive(trainee: Trainee) -> float:
    """Padded chosen and rejected through both models with full logits, 2 pairs at a time, gradients added up."""
    total = 0.0
    for batch in trainee.parts:
        policy = padded_logps(trainee.policy, batch)
        with torch.no_grad():
            reference = padded_logps(trainee.reference, batch)
        loss = _dpo_loss(policy, reference) / len(trainee.parts)
        loss.backward()
        total += float(loss.detach())
    _update(trainee)
    return total


def bare(trainee: Trainee) -> float:
    """Our engine, log-probs only."""
    batch = trainee.batch
    policy = _sums(run(trainee.policy, batch))
    with torch.no_grad():
        reference = _sums(run(trainee.reference, batch))
    loss = _dpo_loss(policy, reference)
    loss.backward()
    _update(trainee)
    return float(loss.detach())


def logged(trainee: Trainee, recorder: Recorder) -> float:
    """The same as PreferenceTrainer does it: every measure, exact KL both ways, norms per layer, rows written."""
    batch = trainee.batch
    with torch.no_grad():
        reference = run(trainee.reference, batch)
    stats = pair_stats(batch, run(trainee.policy, batch), reference)
    output = dpo(stats, beta=BETA)
    recorder.add(batch.pair_ids, stats, output)
    loss = output.losses.mean()
    loss.backward()
    _update(trainee, look=lambda: recorder.norms(group_norms(trainee.policy)))
    recorder.writer.append_step(recorder.flush(1, 0.0))
    return float(loss.detach())


def sides(trainee: Trainee, *, pairs: bool) -> float:
    """The gradients of chosen and rejected apart, their norms and cosine per layer; pairs: every pair's own too."""
    batch, names = trainee.batch, [n for n, _ in trainee.policy.named_parameters()]
    parameters = list(trainee.policy.parameters())
    with torch.no_grad():
        reference = run(trainee.reference, batch)
    seen = Activations(trainee.policy, parameters if pairs else [])
    with seen.watch():
        passes = run_sides(trainee.policy, batch)
    with torch.no_grad():
        stats = pair_stats(batch, passes.out, reference, kl=False)
    stats = cut(stats, kl=False)
    loss = dpo(stats, beta=BETA).losses.mean()

    def pull(weights: Tensor, keep: bool) -> tuple[Gradient, Gradient]:
        if not pairs:
            return pull_sides(passes, weights, parameters, keep=keep)
        return from_activations(passes, seen, parameters, by_pair(weights, passes.out), keep=keep)[1]

    arrows = side_gradients(loss, stats, passes, parameters, pull=pull)
    norms(arrows, [layer_group(name) for name in names])
    for parameter, gradient in zip(parameters, arrows.total(), strict=True):
        parameter.grad = gradient
    _update(trainee)
    return float(loss.detach())


def make_recorder(folder: Path) -> Recorder:
    """A recorder that writes to `folder` and is never asked to probe."""
    no_probe: Any = SimpleNamespace(likelihood=TokenLikelihood(0))
    return Recorder(
        ProbeSchedule(RunLogWriter(folder), no_probe, every=0, tokens="none"), before=lambda model: (math.nan, False)
    )


def make_steps(models: Models, pairs: Sequence[Example], folder: Path, *, share: bool = False) -> dict[str, Step]:
    """Every way, each with a policy of its own that starts from the same weights; or, share, all with one that never
    moves (a learning rate of 0), where so many would not fit into memory."""
    recorder = make_recorder(folder)
    ways: dict[str, Callable[[Trainee], float]] = {
        "naive": naive,
        "ours, bare": bare,
        "ours, logged": lambda trainee: logged(trainee, recorder),
        "ours, gradients of sides": lambda trainee: sides(trainee, pairs=False),
        "ours, gradients of pairs": lambda trainee: sides(trainee, pairs=True),
    }
    one = make_trainee(*models.to_train(plain=False), pairs, rate=0.0) if share else None

    def trainee(name: str) -> Trainee:
        return one or make_trainee(*models.to_train(plain=name == "naive"), pairs)

    return {name: partial(way, trainee(name)) for name, way in ways.items()}


def _sums(out: Outputs) -> Tensor:
    """(2B,) log-probs of all completions."""
    values = logps(out)
    return values.new_zeros(int(out.rows.max()) + 1).index_add(0, out.rows, values)


def _dpo_loss(policy: Tensor, reference: Tensor) -> Tensor:
    chosen, rejected = (policy - reference).chunk(2)
    return -logsigmoid(BETA * (chosen - rejected)).mean()


def _update(trainee: Trainee, look: Callable[[], None] | None = None) -> None:
    """Clip and step. look: looks at the gradients before they are used."""
    nn.utils.clip_grad_norm_(trainee.policy.parameters(), CLIP)
    if look is not None:
        look()
    trainee.optimizer.step()
    trainee.optimizer.zero_grad()
