"""What a run's likelihoods are counted in: the words of its pages, which way is worse, and the limits of its card.

A log holds likelihoods, where lower is worse. For a denoiser that is minus its denoising error, and pages show the
error itself. Whatever says or draws a likelihood asks the run's Unit (`of`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from analysis.show.wording import number, percent, signed
from diagnostics import outcomes
from diagnostics.finding import Finding
from diagnostics.runlog import RunLog

SIDES = ("chosen", "rejected")  # the changes that are turned where an error is shown; a margin stays


@dataclass(frozen=True)
class Limits:
    """From where on the verdict card speaks up. broken: mean fall of a chosen answer's likelihood; far: divergence of
    policy and reference on a chosen answer. relative: both are shares of the start's mean error."""

    broken: float
    far: float
    relative: bool = False


@dataclass(frozen=True)
class Unit:
    """What likelihoods are counted in. kind: as config.json names it; sign: of what is shown over what is logged, -1
    for an error, of which more is worse; digits: after the point; nats, bracketed: the unit behind a number and on an
    axis; by_token: whether answers have tokens. The others are words."""

    kind: str
    limits: Limits
    sign: int
    digits: int
    nats: str
    bracketed: str
    by_token: bool
    quantity: str
    answer: str
    response: str
    fell: str
    fallen: str
    monotone: str
    erring: str
    lost: str
    both: str
    went: str
    crossed: str
    mean: str
    change: str
    mean_change: str
    loss: str
    ranked: str
    reference_margin: str
    ratio: str
    ratios: str
    divergence: str
    divergences: Mapping[str, str]
    divergence_axis: str
    distance: str
    distance_axis: str
    side: str
    margin: str
    outcomes: Mapping[str, str]
    tiles: dict[str, str]
    alts: Mapping[str, str]
    terms: Mapping[str, str]
    glossary: tuple[tuple[str, str], ...]
    note: str = ""
    values: str = ""

    def shown(self, value: float) -> float:
        """A change of a likelihood as it is shown."""
        return self.sign * value

    def interval(self, ends: tuple[float, float] | None) -> tuple[float, float] | None:
        """The ends of an interval of such a change, as they are shown, the lower first."""
        return ends if ends is None or self.sign > 0 else (-ends[1], -ends[0])

    def finding(self, found: Finding) -> Finding:
        """A Finding of such a change, as it is shown."""
        return replace(found, value=self.shown(found.value), interval=self.interval(found.interval))

    def turned(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Pair rows (runs.rows) whose changes of both sides are as they are shown."""
        names = [name for side in SIDES if (name := f"{side}_change") in rows]
        return rows if self.sign > 0 else rows.assign(**{name: -rows[name] for name in names})

    def told(self, change: float, start: float) -> str:
        """A mean change of a likelihood in words. start: the mean likelihood that it started from."""
        words = f"{signed(self.shown(change), self.digits)}{self.nats}"
        return f"{words} ({self.share(change, start)})" if self.limits.relative else words

    def share(self, change: float, start: float) -> str:
        """A change as a share of the start's: `+620 % of the start's 0.10`."""
        if not (math.isfinite(start) and start):
            return "the start's was not measured"
        return f"{signed(100 * change / start, 0)} % of the start's {number(abs(start), self.digits)}"

    def broken(self, change: float, start: float) -> bool:
        """Whether a mean change of the chosen likelihood is a break."""
        return change <= -self.limits.broken * self._scale(start)

    def far(self, divergence: float, start: float) -> bool:
        """Whether a mean divergence on the chosen answers is far."""
        return divergence > self.limits.far * self._scale(start)

    def away(self, divergence: float, start: float) -> str:
        """How far the policy is from its reference, in words."""
        words = f"{number(divergence, self.digits)}{self.nats} per chosen {self.answer}"
        return f"{words}, {percent(divergence / abs(start))} of the start's error" if self.limits.relative else words

    def outcome(self, name: object) -> str:
        """What became of a pair (displacement.OUTCOMES), in words."""
        return self.outcomes.get(str(name), str(name))

    def _scale(self, start: float) -> float:
        return abs(start) if self.limits.relative else 1.0


# An answer that lost less than ln 2 is still more than half as likely as it was: a loss, but no break. Ten nats of KL
# are thin: on one real chat model the two runs that went further had 17 and 56 % of their held-out answers fall, and
# the run at the usual rate (0.9 nats) had none.
NATS = Limits(math.log(2), 10.0)
# An error that doubled. Thin: one small denoiser of digits, three seeds, pairs of two kinds (docs/diffusion.md). There
# the mean chosen error moved by -4 to +3 % with a guard or DPO-Shift, by +17 to +32 % under plain Diffusion-DPO at beta
# 2000, and by +134 to +269 % at a beta ten times lower: the limit parts the last two. It is no limit of use: samples
# were of the right class as often as before in all of them. Far is a deviation as large as the start's error: there it
# was 3 to 9 %, 22 to 38 % and 148 to 286 % of it.
ERROR = Limits(1.0, 1.0, relative=True)

_FELL = "Share of the pairs whose chosen answer is less likely than at the start, by more than 0.01 nats and more than "
_FELL += "the noise. Probe and held-out pairs apart."
_KL = "Exact divergence over the vocabulary, summed over the tokens of a chosen answer: how far the model moved."
_ACCURACY = "Share of pairs whose chosen answer gained more than the rejected one."
_LEAST = "the least movement (0.01 nats, or the noise where that is more)"
_DISPLACED = "the 95 % interval of the share that fell lies above one half, or that of the mean change lies wholly "
_DISPLACED += f"beyond {_LEAST}"
_PROBE = "training pairs that are measured again and again; held-out pairs are never trained on"

TOKENS = Unit(
    kind="tokens",
    limits=NATS,
    sign=1,
    digits=2,
    nats=" nats",
    bracketed=" (nats)",
    by_token=True,
    quantity="log-prob",
    answer="answer",
    response="response",
    fell="became less likely",
    fallen="fell",
    monotone="Monotone fall",
    erring="response had fallen",
    lost="lost chosen likelihood",
    both="both responses fell",
    went="answers fell",
    crossed="Pairs whose chosen answer falls only now: {}; that no longer falls: {}.",
    mean="mean",
    change="change of log-likelihood (nats)",
    mean_change="mean change",
    loss="likelihood lost (nats)",
    ranked="the nats lost",
    reference_margin="reference_margin",
    ratio="log-ratio",
    ratios="Log-ratios",
    divergence="KL",
    divergences={"kl": "KL(reference || policy)", "kl_reverse": "KL(policy || reference)"},
    divergence_axis="exact KL (nats per response)",
    distance="√KL(policy || reference)",
    distance_axis="√KL(policy || reference), KL in nats per response",
    side="rejected responses moved {} nats on average",
    margin="the chosen-rejected log-ratio margin is {} nats",
    outcomes={},
    tiles={"fell": "chosen answers that fell", "kl": "KL(reference || policy), chosen"},
    alts={
        "fell": "Share of pairs whose chosen answer fell, by step",
        "objectives": "Share of pairs whose chosen answer lost likelihood, by objective",
    },
    terms={
        "fell": _FELL,
        "change": "Change of the log-prob of a chosen answer since the start, mean over pairs; 1 nat is a factor of "
        "2.7.",
        "accuracy": _ACCURACY,
        "kl": _KL,
    },
    glossary=(
        ("chosen, rejected", "the preferred answer of a pair, and the other"),
        ("log-prob", "sum of the log-probabilities of an answer's tokens, its end included, in nats"),
        ("fell", _FELL),
        ("displaced", _DISPLACED),
        ("probe pairs", _PROBE),
        ("CHES", "how alike the hidden states of the two answers are, before training; high is prone "
         "(arXiv:2410.08847)"),
        ("KL", _KL),
        ("accuracy", _ACCURACY),
    ),
)  # fmt: skip

_CHAIN_KL = "KL of the Gaussians of both models, mean over a sample's numbers, summed over the steps of a chosen "
_CHAIN_KL += "chain: how far the model moved."
_CHAIN_FELL = _FELL.replace("answer", "chain")
# The limits of text, for want of runs to choose others by: thin.
STEPS = replace(
    TOKENS,
    kind="steps",
    by_token=False,
    answer="chain",
    response="chain",
    erring="chain had fallen",
    both="both chains fell",
    went="chains fell",
    crossed=TOKENS.crossed.replace("answer", "chain"),
    divergence_axis="KL of the steps' Gaussians (nats per chain)",
    distance_axis="√KL(policy || reference), KL in nats per chain",
    side="rejected chains moved {} nats on average",
    tiles=TOKENS.tiles | {"fell": "chosen chains that fell"},
    alts={name: words.replace("answer", "chain") for name, words in TOKENS.alts.items()},
    terms={
        "fell": _CHAIN_FELL,
        "change": "Change of the log-prob of a chosen chain since the start, mean over pairs: summed over its sampling "
        "steps, mean over a sample's numbers.",
        "accuracy": _ACCURACY.replace("answer", "chain"),
        "kl": _CHAIN_KL,
    },
    glossary=(
        ("chosen, rejected", "the preferred chain of sampling steps of a pair, and the other"),
        ("log-prob", "sum over sampling steps of the mean Gaussian log-prob of a sample's numbers, in nats"),
        ("fell", _CHAIN_FELL),
        ("displaced", _DISPLACED),
        ("probe pairs", _PROBE),
        ("KL", _CHAIN_KL),
        ("accuracy", _ACCURACY.replace("answer", "chain")),
    ),
    note="A denoiser is trained here on its sampling steps. A likelihood here is the sum over the steps of the mean "
    "Gaussian log-prob of a number, in nats. docs/diffusion.md says more.",
)

_ROSE = "Share of the pairs whose chosen sample has a higher denoising error than at the start, by more than "
_ROSE += f"{outcomes.MIN_EFFECTS['denoising']:g} and more than the noise. Probe and held-out pairs apart."
_DEVIATION = "Mean squared difference of the outputs of policy and reference on a chosen sample: how far the model "
_DEVIATION += "moved. It is no KL."
_APART = "Share of pairs whose rejected error rose more, or fell less, than the chosen one."
ERRORS = Unit(
    kind="denoising",
    limits=ERROR,
    sign=-1,
    digits=3,
    nats="",
    bracketed="",
    by_token=False,
    quantity="denoising error",
    answer="sample",
    response="sample",
    fell="got a higher denoising error",
    fallen="rose",
    monotone="Monotone rise",
    erring="error had risen",
    lost="had their chosen error rise",
    both="both errors rose",
    went="errors rose",
    crossed="Pairs whose chosen error rises only now: {}; that no longer rises: {}.",
    mean="mean change",
    change="change of the denoising error",
    mean_change="mean change of the error",
    loss="rise of the chosen error",
    ranked="the likelihood lost",
    reference_margin="error_margin",
    ratio="change of the error",
    ratios="Changes of the errors",
    divergence="Deviation",
    divergences=dict.fromkeys(("kl", "kl_reverse"), "deviation from the reference"),
    divergence_axis="deviation (mean squared\ndifference of outputs)",
    distance="√deviation",
    distance_axis="√deviation from the reference",
    side="the error of rejected samples moved by {} on average",
    margin="the margin of errors, rejected over chosen, moved by {}",
    tiles={"fell": "chosen samples whose error rose", "kl": "deviation from the reference, chosen"},
    alts={
        "fell": "Share of pairs whose chosen error rose, by step",
        "objectives": "Share of pairs whose chosen error rose, by objective",
    },
    outcomes={"both fell": "both errors rose", "neither fell": "neither error rose"},
    terms={
        "fell": _ROSE,
        "change": "Change of the denoising error of a chosen sample since the start, mean over pairs: above 0 it is "
        "denoised worse.",
        "accuracy": _APART,
        "kl": _DEVIATION,
    },
    glossary=(
        ("chosen, rejected", "the preferred sample of a pair, and the other"),
        ("denoising error", "mean squared error of the model's output on a noised sample, mean over its numbers and "
         "over the same draws of time and noise for both sides and both models; it has no unit"),
        ("likelihood", "minus the denoising error: so the run's log, report.json and gates hold it"),
        ("rose", _ROSE),
        ("displaced", "the 95 % interval of the share whose error rose lies above one half, or that of the mean change "
         f"lies wholly beyond the least movement ({outcomes.MIN_EFFECTS['denoising']:g}, or the noise where that is "
         "more)"),
        ("probe pairs", _PROBE),
        ("deviation", _DEVIATION),
        ("accuracy", _APART),
    ),
    note="A denoiser is trained here. What is said of a sample is its denoising error, over the same draws of time and "
    "noise for both sides and both models: a number without unit, of which more is worse. Where this page, report.json "
    "or a gate says likelihood, it is minus that error. docs/diffusion.md says more, and the table draws of the run "
    "log holds every draw's error.",
    values="Values are of likelihoods, minus the error, as report.json and gates have them: below 0 the error rose.",
)  # fmt: skip

KINDS = {unit.kind: unit for unit in (TOKENS, STEPS, ERRORS)}


def of(run: RunLog) -> Unit:
    """What a run's likelihoods are counted in."""
    return of_config(run.config)


def of_config(config: Mapping[str, Any]) -> Unit:
    """The same, from a config.json."""
    return KINDS.get(str(config.get("likelihood", "tokens")), TOKENS)
