"""Samples that a denoiser draws while it trains, always from the same noise, and what a judge says of them."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diagnostics.diffusion.drawn import drawn, sampler_of
from diagnostics.diffusion.likelihood import NUMBERS, denoiser_of, in_wide
from diagnostics.diffusion.noise import generator
from diagnostics.diffusion.sample import Sample
from diagnostics.engine import device_of, evaluating
from diagnostics.errors import UserError
from diagnostics.sequences import Example
from diagnostics.vision import thumbs
from trainers.loop.columns import NAN, SCORE, mean

# samples (N, ...) as they are looked at, and what each was asked to be (a class, or a text) -> a score each, NaN where
# there is none
Judge = Callable[[np.ndarray, Sequence[str]], list[float]]


class Drawing:
    """Draws `count` samples at step 0, every `every` steps and at the last one: sample k is told what the chosen sample
    of probe pair k is (from the first again, where there are fewer), and begins from the noise of seed and k, so that
    only the weights differ from step to step.

    pairs: the probe pairs. among: the pairs between whose least and largest number the samples of DDIM are kept. said:
    by pair_id what a pair is told, in words. judge: None for pictures alone.
    """

    def __init__(
        self, pairs: Sequence[Example], among: Sequence[Example], *, every: int, count: int, seed: int,
        said: Mapping[str, str], judge: Judge | None = None,
    ) -> None:  # fmt: skip
        self.every, self.seed, self.judge = every, seed, judge
        shape = _last(pairs[0].chosen.media).shape
        if judge is None and len(shape) != 3:
            raise UserError(f"sample_every: samples of {shape} numbers are no pictures; give a sample_judge too.")
        self.pairs = [pairs[k % len(pairs)] for k in range(count)]
        self.asked = [_asked(pair, said) for pair in self.pairs]
        known = [_last(row.media) for pair in among for row in pair.rows.values()]
        self.bounds = min(float(v.min()) for v in known), max(float(v.max()) for v in known)
        self.drawn_at = -1  # the last step at which samples were drawn

    def at(self, model: nn.Module, step: int, *, last: bool = False) -> tuple[list[dict[str, Any]], dict[str, float]]:
        """Rows of the samples table and what of them stands in steps.jsonl, where this step's turn has come."""
        if step == self.drawn_at or (step % self.every and not last):
            return [], {}
        self.drawn_at, inner = step, denoiser_of(model)
        found = self.draw(model)
        scores = [float(score) for score in self.judge(found, self.asked)] if self.judge else [NAN] * len(found)
        if len(scores) != len(found):
            raise UserError(f"the judge of samples gave {len(scores)} scores for {len(found)} samples.")
        head = {"step": step, "round": 0, "sampler": sampler_of(inner), "seed": self.seed}
        rows = [
            head | {"prompt_id": pair.pair_id, "sample": k, "text": text, "score": score, "image": picture(values)}
            for k, (pair, text, score, values) in enumerate(zip(self.pairs, self.asked, scores, found, strict=True))
        ]
        judged = sum(not math.isnan(score) for score in scores)
        return rows, {SCORE: mean(scores), "samples/n": judged} if self.judge else {}

    def known(self, model: nn.Module) -> np.ndarray:
        """Some training samples (N, ...) as they are looked at."""
        values = np.stack([_last(pair.chosen.media) for pair in self.pairs[:8]])
        return denoiser_of(model).shown(torch.from_numpy(values)).float().cpu().numpy()

    def draw(self, model: nn.Module) -> np.ndarray:
        """(N, ...) float32 samples of the model as they are looked at. Nothing of it changes what comes after: not the
        model's mode, not the random states."""
        device, dtype = device_of(model), next(model.parameters()).dtype
        samples, inner = [pair.chosen.media for pair in self.pairs], denoiser_of(model)
        together, found = max(1, NUMBERS // _last(samples[0]).size), []

        def run(x_t: Tensor, times: Tensor, told: Any) -> Tensor:
            return in_wide(model(x_t.to(dtype), times, told))

        with evaluating(model):
            for first in range(0, len(samples), together):
                part = range(first, min(first + together, len(samples)))
                draws = [generator(self.seed, "new sample", k) for k in part]
                shapes = [_last(samples[k]).shape for k in part]
                noise = torch.stack([torch.randn(s, generator=d) for s, d in zip(shapes, draws, strict=True)])
                told = _told([samples[k] for k in part], device, dtype)
                made = drawn(inner, run, noise.to(device), told, draws, self.bounds)
                found.append(inner.shown(made).float().cpu().numpy())
        return np.concatenate(found)


def picture(values: np.ndarray) -> bytes | None:
    """A small PNG of a sample, None where its numbers are no picture."""
    kept = np.clip(values, -1, 1) if values.ndim == 3 and len(values) in (1, 3) else values
    found = thumbs.seen(Sample(kept))
    return found[1] if found else None


def _asked(pair: Example, said: Mapping[str, str]) -> str:
    """What the chosen sample is told, in words: its class, or what the audit says of the pair."""
    label = pair.chosen.media.condition.get("class_labels")
    return said.get(pair.pair_id, "") if label is None else str(int(label))


def _last(sample: Any) -> np.ndarray:
    """A sample's numbers; of a chain, those of its last point."""
    return sample.values[-1] if "times" in sample.condition else sample.values


def _told(samples: Sequence[Sample], device: torch.device, dtype: torch.dtype) -> dict[str, Tensor]:
    """The conditions of samples as a model is told them, without the times of chains."""
    found = {}
    for name in samples[0].condition.keys() - {"times"}:
        values = torch.from_numpy(np.stack([sample.condition[name] for sample in samples]))
        found[name] = values.to(device, dtype if values.is_floating_point() else values.dtype)
    return found
