"""When the probe measures and what it writes. It asks for a model and a step and knows no trainer."""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
from torch import nn

from diagnostics.outcomes import MIN_EFFECTS
from diagnostics.runlog import RunLogWriter
from trainers.loop.columns import NAN, ordered, summarise
from trainers.loop.drawing import Drawing
from trainers.loop.probe import Probe

Tokens = Literal["ends", "all", "none"]


class ProbeSchedule:
    """Measures at step 0, every so many steps (0: never between), and at the last one.

    tokens: on which of them a row a token (of a denoiser, a row a draw) is kept too (ends: at the first and the last).
    main: whether this process writes. noise: nats, a log-ratio within it is rounding (see outcomes.fell), NaN where it
    is unknown. drawing: the samples that a denoiser draws on the way, where it does.
    """

    def __init__(
        self, writer: RunLogWriter, probe: Probe, *, every: int, tokens: Tokens, main: bool = True, noise: float = NAN,
        drawing: Drawing | None = None,
    ) -> None:  # fmt: skip
        self.writer, self.probe, self.every, self.tokens, self.main = writer, probe, every, tokens, main
        self.noise, self.drawing = noise, drawing
        self.probed = -1  # the last step measured
        self.report: Callable[[dict[str, float]], None] = lambda values: None  # to a trainer's viewers

    @property
    def least(self) -> float:
        """What a change must exceed to be a movement, also where no noise was measured."""
        return float(np.fmax(self.noise, MIN_EFFECTS[self.probe.likelihood.kind]))

    @property
    def nats(self) -> bool:
        """Whether likelihoods are log-probs."""
        return self.probe.likelihood.kind == "tokens"

    def at(self, model: nn.Module, step: int, epoch: float, *, last: bool = False) -> dict[str, Any]:
        """Measure where this step's turn has come, and write; what of it stands in steps.jsonl, empty where it has not
        come. model: with the weights after `step` updates."""
        drawn = self._draw(model, step, last=last)
        if step and not last and not (self.every and step % self.every == 0):
            if drawn:
                self.report(drawn)
            return drawn
        keep = self.tokens == "all" or (self.tokens == "ends" and (step == 0 or last))
        found = self.probe.measure(model, step, epoch, tokens=keep, without=step == 0 or last)
        self.probed = step
        if self.main:
            self.writer.append("pairs", [ordered(row) for row in found.pairs])
            self.writer.append("mass", found.mass)
            self.writer.append("tokens", found.tokens)
            self.writer.append("samples", found.samples)
            self.writer.append("draws", found.draws)
        # before the first update a pair's margin is the rounding of four log-probs: a tie, which is no win
        tie = 2 * self.noise if step == 0 and self.noise > 0 else 0.0
        summary = summarise(found, self.least, nats=self.nats, tie=tie) | drawn
        self.report(summary)
        return summary

    def end(self, model: nn.Module, step: int, epoch: float) -> dict[str, Any]:
        """What a run that ends before its time still lacks: the probe, or the token rows of a probe made already."""
        if self.probed < step:
            return self.at(model, step, epoch, last=True)
        if self.tokens == "ends":
            found = self.probe.measure(model, step, epoch, tokens=True)
            if self.main:
                self.writer.append("tokens", found.tokens)
                self.writer.append("draws", found.draws)
        return self._draw(model, step, last=True)

    def _draw(self, model: nn.Module, step: int, *, last: bool) -> dict[str, float]:
        """Draw and write samples where their turn has come; what of them stands in steps.jsonl."""
        rows, said = self.drawing.at(model, step, last=last) if self.drawing else ([], {})
        if self.main:
            self.writer.append("samples", rows)
        return said
