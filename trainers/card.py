"""The card of an objective: what its file says, and how it pushes the two answers, computed from the function itself.

A pairwise loss acts on the model through two numbers, the incentives d_w = -dL/dz_w and d_l = dL/dz_l, with z the
summed log-prob of the chosen and of the rejected answer (nats). To first order in a small step the chosen answer rises
only if d_w / d_l > <s_w, s_l> / |s_w|^2, and the rejected one falls only if d_w / d_l < |s_l|^2 / <s_w, s_l>, where s
is the gradient of z in the weights and <s_w, s_l> > 0 (arXiv 2604.18239, arXiv 2410.13828). So d_w / d_l says how an
objective leans before any model is looked at. All of it is taken by autograd on one standard pair. For a denoiser z is
minus the denoising error, which has no nats: margins and distances are in a card's `unit` of it, so that they push as
nats do.
"""

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cache, partial
from math import exp, inf, isfinite, nan
from typing import Any

import torch
from torch import Tensor

from diagnostics.diffusion.stats import DenoisingStats
from diagnostics.docstrings import sources, summary
from diagnostics.errors import UserError
from diagnostics.names import unknown
from diagnostics.stats import PairStats, SequenceStats
from trainers import objectives

TOKENS = 10  # completion tokens of either side
COPIES = 4  # rows of the standard batch, all the same pair, so that batch statistics exist
MARGINS = (-10.0, -2.0, 0.0, 2.0, 10.0)  # nats between the log-ratios, half on either side
# log-ratios of the rejected answer, nats
FAR = (-1.0, -2.0, -5.0, -10.0, -20.0, -50.0, -100.0, -200.0, -500.0, -1e3, -2e3, -5e3, -1e4)
FALL = 5.0  # nats that both answers lose together
NUMBERS = 4  # of the standard denoised sample
COLUMNS = {  # values of data columns in the standard pair; the others stand at 0.5
    "tie": 0.0,
    "mismatched_logratios": 0.0,
    "chosen_score": 1.0,  # equal scores would ask for no preference
    "rejected_score": 0.0,
    "chosen_relevance": 1.0,
    "rejected_relevance": 0.0,
    "chosen_source_logps": -1.0,  # as the reference: a mean log-prob
    "rejected_source_logps": -1.0,
    "chosen_proposal_logps": -1.0 * TOKENS,  # as the reference: a summed log-prob
    "rejected_proposal_logps": -1.0 * TOKENS,
    "segment_labels": 1.0,
    "chosen_advantage": 1.0,
    "rejected_advantage": -1.0,
}
_LISTS = {"list", "chosen_item", "rejected_item"}  # without them each row is a list of its own two answers


@dataclass(frozen=True)
class Push:
    """The incentives at one point. chosen: d_w = -dL/dz_w, above 0 raises the chosen answer; rejected: d_l = dL/dz_l,
    above 0 lowers the rejected one. others: -dL/d of what else has a gradient (summed KL, a gold answer, further rows).

    A loss may treat tokens differently, so each is the mean over the side's tokens of the derivative in a token's
    log-prob, which is dL/dz where it treats them alike. at: margin or log-ratio in nats.
    """

    at: float
    loss: float
    chosen: float
    rejected: float
    others: dict[str, float] = field(default_factory=dict)

    @property
    def ratio(self) -> float:
        """d_w / d_l; infinite where only the chosen answer is pushed, NaN where neither is."""
        if self.rejected:
            return self.chosen / self.rejected
        return self.chosen * inf if self.chosen else nan

    @property
    def measured(self) -> bool:
        """Whether loss and incentives are numbers."""
        return isfinite(self.loss) and isfinite(self.chosen) and isfinite(self.rejected)


@dataclass(frozen=True)
class Property:
    """A number and what it means. NaN: not measured, and the words say why; infinite: it has no bound."""

    value: float
    words: str


@dataclass(frozen=True)
class Card:
    """One objective. margins: pushes at MARGINS; far: pushes at FAR, the chosen answer as the reference has it.

    far_ratio: limit of d_w / d_l as the rejected answer's probability goes to 0; far_rejected: that of d_l.
    common_fall: how much the loss changes where both answers lose FALL nats, so that their margin stays: whether the
    absolute likelihood enters. argmin: the ratio t = policy / reference where the f of its f-divergence is least,
    with f as the papers write it: c (t - 1) more would be the same divergence and another argmin.
    columns: the data columns it reads and the values they had here. rows: the further rows it reads, and what each is.
    likelihood: the kind it is defined on; unit: what a margin of 1 is in it.
    """

    name: str
    summary: str
    formula: str
    needs: tuple[str, ...]
    provenance: str
    defaults: dict[str, Any]
    papers: tuple[str, ...]
    columns: dict[str, float]
    rows: dict[str, str]
    likelihood: str
    unit: float
    margins: tuple[Push, ...]
    far: tuple[Push, ...]
    far_ratio: Property
    far_rejected: Property
    common_fall: Property
    argmin: Property


def card(name: str, **hyperparameters: Any) -> Card:
    """The card of one objective, with its defaults or the given hyperparameters."""
    function = objectives.load(name)
    defaults = objectives.hyperparameters(name)
    for key in hyperparameters:
        if key not in defaults:
            raise unknown(f"{name} hyperparameter", key, defaults)
    settings = defaults | hyperparameters
    return Card(
        name=name,
        summary=summary(function.__doc__),
        formula=inspect.getdoc(function) or "",
        needs=objectives.needs(name),
        provenance=objectives.module(name).PROVENANCE,
        defaults=settings,
        papers=tuple(sources(function)),
        columns={c: _column(c) for c in objectives.columns(name)},
        rows=objectives.rows(name) | {n: f"{s}; optional" for n, s in objectives.optional_rows(name).items()},
        likelihood=objectives.likelihood(name),
        unit=unit(name, settings),
        argmin=_argmin(name, settings),
        **_in_units(_pushes(partial(function, **hyperparameters), pair_for(name, settings)), name),
    )


def unit(name: str, settings: dict[str, Any]) -> float:
    """What takes the place of a nat for an objective: of a denoising error what moves (beta / 2) * D by 0.1, as a nat
    does beta * z at the usual beta of 0.1, and 0.001 where beta is none of this or not there; of a chain 0.1, within
    every clip."""
    kind, other = objectives.likelihood(name), {"kl", "residual"} & set(objectives.needs(name))
    if kind == "denoising":
        return 0.2 / settings["beta"] if settings.get("beta") and not other else 1e-3
    return {"tokens": 1.0, "steps": 0.1}[kind]


def pair_for(name: str, settings: dict[str, Any]) -> Callable[[float, float], PairStats]:
    """The standard pair of the kind of likelihood that an objective is defined on, from two log-ratios in its unit."""
    if objectives.likelihood(name) == "tokens":
        return standard_pair
    scale = unit(name, settings)
    return lambda chosen, rejected: denoising_pair(chosen * scale, rejected * scale)


def _pushes(objective: objectives.Objective, pair: Callable[[float, float], PairStats]) -> dict[str, Any]:
    """The facts that are taken by autograd; where the objective refuses the standard pair, its reason."""
    try:
        margins = tuple(push(objective, pair(m / 2, -m / 2), m) for m in MARGINS)
        far = tuple(push(objective, pair(0.0, v), v) for v in FAR)
        fallen = tuple(push(objective, pair(m / 2 - FALL, -m / 2 - FALL), m) for m in MARGINS)
    except UserError as error:
        reason = Property(nan, f"not measured: {error}")
        return {"margins": (), "far": (), "far_ratio": reason, "far_rejected": reason, "common_fall": reason}
    return {
        "margins": margins,
        "far": far,
        "far_ratio": far_ratio(far),
        "far_rejected": far_rejected(far),
        "common_fall": common_fall(margins, fallen),
    }


def _in_units(facts: dict[str, Any], name: str) -> dict[str, Any]:
    """The same facts, in words that fit what the objective's likelihood is counted in."""
    if objectives.likelihood(name) == "tokens":
        return facts
    properties = {key: fact for key, fact in facts.items() if isinstance(fact, Property)}
    return facts | {key: replace(fact, words=fact.words.replace(" nats", " units")) for key, fact in properties.items()}


# --- compute ---


def standard_pair(chosen: float, rejected: float, *, lengths: tuple[int, int] = (TOKENS, TOKENS)) -> PairStats:
    """COPIES rows of one pair whose log-ratios are `chosen` and `rejected` nats, spread evenly over the tokens.

    The reference gives either side a mean log-prob of -1 (tokens from -0.7 to -1.3). All else an objective may read
    is there and neutral: all tokens are one phrase and one step, their embeddings are all 1, KL is 0, the reward policy
    is the reference, the gold answer and every further row are as likely as the reference's chosen answer, squared
    probabilities sum to e^-1, data columns are as in COLUMNS. Rows that are read only where the data has them are not
    there.
    """
    first, second = (_side(n) for n in lengths)
    rows = sorted({row for name in objectives.names() for row in objectives.rows(name)})
    columns = {c: torch.full((COPIES,), _column(c), dtype=torch.float64) for c in _named()}
    extra = {"gold": _side(lengths[0]), "reward_chosen": first, "reward_rejected": second}
    extra |= {row: _side(lengths[0]) for row in rows}
    sides = (_side(lengths[0], chosen), _side(lengths[1], rejected))
    return PairStats(*sides, first, second, columns=columns, extra=extra, ref_extra=dict.fromkeys(rows, first))


def denoising_pair(chosen: float, rejected: float) -> PairStats:
    """COPIES rows of one pair of samples of NUMBERS numbers whose log-ratios, minus D, are `chosen` and `rejected`,
    the same at each of TOKENS draws. Under the reference the error is 1 (or the log-prob of a step -1). All else is
    neutral: alpha-bar 1/2, one segment, an error map of 1/2, a moving average that is the reference, no deviation."""
    first, second = _denoised(0.0), _denoised(0.0)
    columns = {c: torch.full((COPIES,), _column(c), dtype=torch.float64) for c in _named()}
    return PairStats(_denoised(chosen, -1.0), _denoised(rejected, 1.0), first, second, columns=columns)


@cache
def _named() -> tuple[str, ...]:
    """Every data column that some objective reads."""
    named = {c for name in objectives.names() for c in objectives.columns(name)} | set(COLUMNS)
    return tuple(sorted(named - _LISTS))


def _column(name: str) -> float:
    return COLUMNS.get(name, 0.5)


def _side(tokens: int, logratio: float = 0.0) -> SequenceStats:
    """One side of COPIES equal rows, its log-probs and its KL ready to take a gradient."""
    reference = torch.linspace(-0.7, -1.3, tokens, dtype=torch.float64).repeat(COPIES, 1)
    ones, zeros = torch.ones(COPIES, tokens, dtype=torch.long), torch.zeros_like(reference)
    return SequenceStats(
        (reference + logratio / tokens).requires_grad_(),
        ones,
        per_token_kl=zeros.clone().requires_grad_(),
        per_token_collision=zeros - 1,
        phrase_mask=ones,
        step_ids=ones,
        step_similarity=zeros,
        embeddings=ones[..., None].double(),
    )


def _denoised(logratio: float, child: float = 0.0) -> DenoisingStats:
    """One side; its outputs follow from its log-probs, so that a loss of either has its gradient in them."""
    logps = torch.full((COPIES, TOKENS), (logratio - 1) / TOKENS, dtype=torch.float64, requires_grad=True)
    ones = torch.ones(COPIES, TOKENS, NUMBERS, dtype=torch.float64)
    error = -logps * TOKENS
    return DenoisingStats(
        logps,
        ones[..., 0].long(),
        per_token_kl=torch.zeros_like(logps).requires_grad_(),
        residual=error.abs().sqrt()[..., None] * ones,
        target=torch.zeros_like(ones),
        noise=child * ones,
        alphas=ones[..., 0] / 2,
        times=ones[..., 0] * 500,
        segments=torch.zeros(COPIES, NUMBERS).long(),
        weights=ones[:, 0] / 2,
        predicted_noise=error.abs().sqrt()[..., None] * ones,
        ema_noise=ones,
    )


def push(objective: objectives.Objective, pair: PairStats, at: float = 0.0) -> Push:
    """The incentives of a batch's mean loss, by autograd, for rows of one length a side."""
    further = {name: side for name, side in pair.extra.items() if not name.startswith("reward_")}
    sides = {"chosen": pair.chosen, "rejected": pair.rejected} | further
    leaves = {name: side.per_token_logps for name, side in sides.items()}
    leaves |= {f"KL of {name}": s.per_token_kl for name, s in sides.items() if s.per_token_kl is not None}
    loss = objective(pair).losses.mean()
    gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    found = {
        name: 0.0 if gradient is None else -float(gradient.sum()) / leaf.shape[1]
        for (name, leaf), gradient in zip(leaves.items(), gradients, strict=True)
    }
    chosen, rejected = found.pop("chosen"), -found.pop("rejected")
    return Push(at, float(loss.detach()), chosen, rejected, {k: v for k, v in found.items() if v})


def argmin(f: Callable[[Tensor], Tensor]) -> float:
    """Where f(t), t > 0, is least: the root of f' with the lowest f, to about 1e-12 of t. 0 or infinite where f only
    rises or only falls between t = e^-12 and e^12; NaN where f' is no number or it turns without a least value."""
    grid = torch.linspace(-12, 12, 480, dtype=torch.float64).tolist()
    slopes = [_slope(f, x) for x in grid]
    if not all(map(isfinite, slopes)):
        return nan
    roots = [_root(f, a, b) for a, b, s, r in zip(grid, grid[1:], slopes, slopes[1:]) if s < 0 <= r]
    if roots:
        return exp(min(roots, key=lambda x: f(torch.tensor(exp(x), dtype=torch.float64)).item()))
    return 0.0 if min(slopes) > 0 else inf if max(slopes) < 0 else nan


def _slope(f: Callable[[Tensor], Tensor], x: float) -> float:
    """f' at t = e^x."""
    t = torch.tensor(exp(x), dtype=torch.float64, requires_grad=True)
    return float(torch.autograd.grad(f(t), t)[0])


def _root(f: Callable[[Tensor], Tensor], low: float, high: float) -> float:
    """log t where f' turns from below 0 to above it, by halving."""
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _slope(f, middle) < 0 else (low, middle)
    return (low + high) / 2


# --- judge ---


def far_ratio(far: Sequence[Push]) -> Property:
    """The limit of d_w / d_l as the rejected answer's log-ratio falls, from pushes at growing distance."""
    found = [p for p in far if p.measured and (p.chosen or p.rejected)]
    if not found:
        return Property(nan, "not measured: neither answer is pushed at any distance probed")
    last, scale = found[-1], max(map(_size, found))
    silent = [p.at for p in far if p.measured and not _size(p) and p.at < last.at]
    if silent and _size(last) > 1e-6 * scale:  # an exponential that rounds to 0 is smaller the probe before
        return Property(nan, f"none: neither answer is pushed from v = {silent[0]:g} nats on")
    finite = [p for p in found if isfinite(p.ratio) and not _rounded(p, scale)]
    if len(finite) < 2:
        return Property(last.ratio, "only the chosen answer is pushed")
    return _limit([p.ratio for p in finite], finite[-1].at)


def _size(p: Push) -> float:
    return max(abs(p.chosen), abs(p.rejected))


def _rounded(p: Push, scale: float) -> bool:
    """Whether the incentives may be what rounding leaves: of 1 - 1, nothing or some 1e-17. Two exponentials smaller
    than that are real numbers."""
    exponentials = p.chosen and p.rejected and _size(p) < 1e-20 * scale
    return _size(p) < 1e-12 * scale and not exponentials


def far_rejected(far: Sequence[Push]) -> Property:
    """Whether d_l stays bounded as the rejected answer's log-ratio falls: it vanishes, settles or grows."""
    found = [p for p in far if p.measured]
    if not found:
        return Property(nan, "not measured: the loss is no number there")
    limit = _limit([p.rejected for p in found], found[-1].at)
    bounded = "" if limit.value != limit.value else "yes: " if isfinite(limit.value) else "no: "
    upward = ", which raises the rejected answer" if limit.value < 0 else ""
    return Property(limit.value, f"{bounded}{limit.words}{upward}")


def _limit(values: Sequence[float], at: float) -> Property:
    """The limit of a series taken at distances that about double, judged from its last two values."""
    if len(values) < 2:
        return Property(nan, f"not measured: only one number, {values[-1]:.4g}")
    before, last = abs(values[-2]), abs(values[-1])
    where = f"{values[-1]:.4g} at v = {at:g} nats"
    if last <= 1e-12 * max(map(abs, values)) or last < 0.7 * before:
        return Property(0.0, f"vanishes ({where})")
    if last > 1.4 * before or last > 1e12:
        return Property(inf if values[-1] > 0 else -inf, f"grows without bound ({where})")
    if abs(last - before) < 0.02 * before:
        return Property(values[-1], f"settles ({where})")
    return Property(nan, f"not settled: {where}, {values[-2]:.4g} at the probe before")


def common_fall(margins: Sequence[Push], fallen: Sequence[Push]) -> Property:
    """Whether it matters where both answers stand, not only how far apart: the same margins after both have lost FALL
    nats. The value is the change of the loss, at the smallest margin where it changes."""
    both = [(a, b) for a, b in zip(margins, fallen, strict=True) if a.measured and b.measured]
    if not both:
        return Property(nan, "not measured: the loss is no number there")
    moved = [(a, b) for a, b in both if _differ(a.loss, b.loss)]
    moved = moved or [(a, b) for a, b in both if _differ(a.chosen, b.chosen) or _differ(a.rejected, b.rejected)]
    if not moved:
        return Property(0.0, f"no: where both answers lose {FALL:g} nats, nothing changes")
    a, b = min(moved, key=lambda pair: abs(pair[0].at))
    told = f"the loss changes by {b.loss - a.loss:+.4g}, d_w from {a.chosen:.4g} to {b.chosen:.4g}"
    told += f", d_l from {a.rejected:.4g} to {b.rejected:.4g} (margin {a.at:g})"
    return Property(b.loss - a.loss, f"yes: where both answers lose {FALL:g} nats, {told}")


def _differ(a: float, b: float) -> bool:
    """Whether two numbers differ by more than rounding."""
    return abs(a - b) > 1e-9 * max(abs(a), abs(b)) + 1e-13


def _argmin(name: str, settings: dict[str, Any]) -> Property:
    """argmin f where the objective's file defines `divergence(t)`, and what it says on displacement."""
    f = getattr(objectives.module(name), "divergence", None)
    if f is None:
        return Property(nan, "not measured: its file names no f-divergence")
    taken = {k: settings[k] for k in inspect.signature(f).parameters if k in settings}
    least = argmin(partial(f, **taken))
    if least != least:
        return Property(nan, "not measured: no root of f' was found")
    condition = "the condition for resisting displacement, argmin f >= 1 (arXiv 2602.06788)"
    return Property(least, f"{'meets' if least > 1 - 1e-6 else 'fails'} {condition}")
