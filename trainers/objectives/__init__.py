"""Preference objectives, found by listing this folder: one file = one objective.

File name = function name = the name to configure. An objective is
`name(pair: PairStats, *, hyperparameters with defaults) -> ObjectiveOutput`, and its file says beside it

    NEEDS       what it reads besides the two sides' log-probs: words of WORDS below
    COLUMNS     names of the data columns it reads (only where there are any)
    OPTIONAL_COLUMNS  names of the data columns it reads where the data has them (only where there are any)
    ROWS        the further rows it reads besides chosen and rejected (other answers, prompts or pictures), in
                `pair.extra` and `pair.ref_extra`: name -> what the row is (only where there are any)
    OPTIONAL_ROWS  further rows it reads where the data has them: name -> what the row is (only where there are any)
    LIKELIHOOD  the kind of likelihood it is defined on: a word of LIKELIHOODS below (where there is none: tokens)
    PATH        where it takes its x_t from, a word of diagnostics.diffusion.paths.PATHS (where there is none: noise)
    AVERAGE     the decay of the moving average of the policy that it reads (only where it reads one)
    PROVENANCE  how sure its formula is: a word of PROVENANCES below

An objective that keeps statistics over batches has two more functions: `statistics(pair, previous, *,
hyperparameters)` gives the new statistics, a dict of numbers, from a batch and the ones before it (None at the
start); the objective takes them as its keyword `statistics` (None: from this batch alone).
"""

import inspect
import pkgutil
from collections.abc import Callable
from functools import cache
from importlib import import_module
from math import inf
from numbers import Real
from types import ModuleType
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from diagnostics.docstrings import summary
from diagnostics.errors import UserError
from diagnostics.measures.logratios import chosen_logratios, rejected_logratios
from diagnostics.names import unknown
from diagnostics.stats import PairStats, SequenceStats, wide

WORDS = {
    "reference": "log-probs of a reference model",
    "kl": "exact KL(ref || policy) over the vocabulary at each completion token (of a denoiser: the mean squared "
    "difference of its output from the reference's at each draw), with gradient",
    "phrases": "marked phrases: <MASK> tags in the data, or a token diff of chosen and rejected",
    "collision": "log sum of squared probabilities at each completion token",
    "mismatched": "log-ratios of the batch's prompts with other prompts' answers",
    "gold": "a third answer, the text field 'gold'",
    "reward model": "per-token log-probs of a second, already trained policy (key reward_model)",
    "lists": "whole lists: the rows that share a prompt stand in one batch",
    "steps": "reasoning steps: answers given as lists of texts",
    "embeddings": "token embeddings of rows of text alone, under the policy (with gradient) and the reference",
    "no eos": "completions without EOS",
    "prefix": "the text field 'prefix', put behind the prompt",
    "whole batch": "the whole batch at once: gradient accumulation and processes change its numbers",
    "residual": "a denoiser's output minus its target at each draw",
    "alphas": "alpha-bar at each draw of a denoiser",
    "segments": "the segment that each number of a sample belongs to",
    "weights": "an error map of each sample",
    "child noise": "the noise of each step's child, and the one predicted at its parent by the model and by a moving "
    "average of the policy",
}

PROVENANCES = {
    "code": "read in the authors' code",
    "TRL": "read in TRL 1.16 or 1.10",
    "paper": "read in the paper's text",
    "secondary": "secondary: a secondary source was read",
    "recall": "recall: the standard formula, its source was not read again",
    "derivation": "derivation: ours, no source gives this formula in readable form",
    "own": "own: made here, there is no source",
    "formula not found": "formula not found: a reconstruction",
}


LIKELIHOODS = {
    "tokens": "log-probs of a language model's tokens",
    "denoising": "minus the denoising error of a diffusion or flow model (diagnostics.diffusion.stats)",
    "steps": "Gaussian log-probs of a denoiser's sampling steps: of each step the mean over the sample's numbers",
}

NOT_BUILT = {
    "distillation_dpo": "Distillation-DPO (arXiv 2504.11447) is not built: its released loss of the student "
    "multiplies score differences, taken without gradient, by (noised sample - sample), which is the noise alone and "
    "does not depend on the student, so that the student's gradient is exactly 0. What must have been meant is the "
    "score difference times the sample itself. diffusion_dpo trains on the same pairs.",
}

_NO_REFERENCE = "this objective compares with a reference: set 'reference' to live or precomputed."


class ObjectiveOutput(NamedTuple):
    """losses (B,) with gradient, one a pair, to be averaged; chosen_rewards, rejected_rewards (B,) detached."""

    losses: Tensor
    chosen_rewards: Tensor
    rejected_rewards: Tensor


Objective = Callable[..., ObjectiveOutput]

Mean = Literal["sequence_mean", "batch_token_mean"]
Normalization = Literal[Mean, "sum"]


@cache
def names() -> tuple[str, ...]:
    """Every objective in this folder, sorted."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(__path__)))


def module(name: str) -> ModuleType:
    """The file of one objective. An unknown name raises UserError with the nearest known one; where it is what several
    are called (`ipo`), with what each of them is, for none of them can be meant without a choice; where it is one of
    NOT_BUILT, with the reason."""
    if name in NOT_BUILT:
        raise UserError(NOT_BUILT[name])
    if name not in names():
        kin = [import_module(f"{__name__}.{other}") for other in names() if other.startswith(f"{name}_")]
        said = [f" {file.__name__.rpartition('.')[2]}: {summary(file.__doc__).partition('. ')[0]}." for file in kin]
        raise UserError(f"{unknown('objective', name, names())}{''.join(said)}")
    return import_module(f"{__name__}.{name}")


def load(name: str) -> Objective:
    """The function of one objective."""
    return getattr(module(name), name)


def needs(name: str) -> tuple[str, ...]:
    """What the objective reads besides the two sides' log-probs: words of WORDS."""
    return module(name).NEEDS


def likelihood(name: str) -> str:
    """The kind of likelihood that the objective is defined on: a word of LIKELIHOODS."""
    return getattr(module(name), "LIKELIHOOD", "tokens")


def path(name: str) -> str:
    """Where a denoising objective takes its x_t from: a word of diagnostics.diffusion.paths.PATHS."""
    return getattr(module(name), "PATH", "noise")


def require_likelihood(name: str, kind: str) -> None:
    """UserError where the objective is defined on another kind of likelihood, with the right one."""
    wanted = likelihood(name)
    if wanted != kind:
        raise UserError(
            f"objective '{name}' is defined on {LIKELIHOODS[wanted]}: set likelihood to {wanted}, or choose an "
            f"objective of likelihood {kind}."
        )


def columns(name: str) -> tuple[str, ...]:
    """Names of the data columns that the objective reads."""
    return getattr(module(name), "COLUMNS", ())


def optional_columns(name: str) -> tuple[str, ...]:
    """Names of the data columns that the objective reads where the data has them."""
    return getattr(module(name), "OPTIONAL_COLUMNS", ())


def rows(name: str) -> dict[str, str]:
    """The further rows that the objective reads besides chosen and rejected: name -> what it is."""
    return getattr(module(name), "ROWS", {})


def optional_rows(name: str) -> dict[str, str]:
    """The further rows that the objective reads where the data has them: name -> what it is."""
    return getattr(module(name), "OPTIONAL_ROWS", {})


def hyperparameters(name: str) -> dict[str, Any]:
    """Names and defaults of the settings an objective takes."""
    return {p.name: p.default for p in _settings(name)}


def kinds(name: str) -> dict[str, Any]:
    """Names and annotated types of the settings an objective takes."""
    return {p.name: p.annotation for p in _settings(name)}


def _settings(name: str) -> list[inspect.Parameter]:
    parameters = inspect.signature(load(name)).parameters.values()
    return [p for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "statistics"]


def logratios(pair: PairStats) -> tuple[Tensor, Tensor]:
    """(B,) nats each: log-ratios of chosen and rejected, policy - reference, summed over completion tokens."""
    references(pair)
    return chosen_logratios(pair), rejected_logratios(pair)


def row(pair: PairStats, name: str) -> SequenceStats:
    """A further row under the policy."""
    if name not in pair.extra:
        raise UserError(f"this objective reads the row '{name}', which the data does not have.")
    return pair.extra[name]


def reference_row(pair: PairStats, name: str) -> SequenceStats:
    """A further row under the reference."""
    row(pair, name)
    if name not in pair.ref_extra:
        raise UserError(_NO_REFERENCE)
    return pair.ref_extra[name]


def logratio(pair: PairStats, name: str) -> Tensor:
    """(B,) nats: log-ratio of a further row, policy - reference, summed over completion tokens."""
    return row(pair, name).logps - reference_row(pair, name).logps


def column(pair: PairStats, name: str) -> Tensor:
    """(B,) or (B, K) float64 (float32 where the device has no wider one): a data column, without gradient."""
    if name not in pair.columns:
        raise UserError(f"this objective reads the data column '{name}', which the data does not have.")
    values = pair.columns[name].detach()
    return values.to(wide(values.device))


def part(sequence: SequenceStats, name: str) -> Tensor:
    """(B, T): an optional part of SequenceStats, such as per_token_kl or phrase_mask, that must be there; or a part of
    DenoisingStats, of its own shape."""
    values = getattr(sequence, name, None)
    if values is None:
        raise UserError(f"this objective reads {name}, which was not measured.")
    return values


def widened(values: Tensor) -> Tensor:
    """The same values in the dtype to reduce in."""
    return values.to(wide(values.device))


def references(pair: PairStats) -> tuple[SequenceStats, SequenceStats]:
    """Chosen and rejected under the reference."""
    if pair.ref_chosen is None or pair.ref_rejected is None:
        raise UserError(_NO_REFERENCE)
    return pair.ref_chosen, pair.ref_rejected


def nll(sequence: SequenceStats, normalization: Normalization) -> Tensor:
    """(B,) negative log-likelihood of an answer, P its log-prob (nats) summed over its n completion tokens.

    - sequence_mean: -P / n. Every answer weighs the same. NaN where n = 0.
    - batch_token_mean: -P * B / (sum of n over the batch). The mean over the B pairs is the mean over all tokens of the
      batch, so that every token weighs the same and long answers weigh more. It is batch-coupled: a pair's loss
      depends on its batch, and gradient accumulation changes it.
    - sum: -P.
    """
    require_choice(get_args(Normalization), normalization=normalization)
    if normalization == "sequence_mean":
        return -sequence.avg_logps
    if normalization == "batch_token_mean":
        return -sequence.logps * len(sequence.lengths) / sequence.lengths.sum()
    return -sequence.logps


def require_mean(normalization: str) -> None:
    """Raise UserError unless it is one of the two means, where no source has the sum."""
    require_choice(get_args(Mean), normalization=normalization)


def rewarded(losses: Tensor, chosen: Tensor, rejected: Tensor) -> ObjectiveOutput:
    """An ObjectiveOutput whose rewards are detached."""
    return ObjectiveOutput(losses, chosen.detach(), rejected.detach())


class Lists(NamedTuple):
    """The lists of a batch. A list is the rows that share a prompt; its items are their different answers.

    rows: (I,) where each item stands in the 2B sequences (chosen first, then rejected); list_of: (I,) its list,
    0 .. L-1; of_row: (B,) the list of each row of the batch.
    """

    rows: Tensor
    list_of: Tensor
    of_row: Tensor

    def items(self, chosen: Tensor, rejected: Tensor) -> Tensor:
        """(I,) the items' values from the (B,) values of both sides."""
        return torch.cat((chosen, rejected))[self.rows]

    def together(self) -> Tensor:
        """(I, I) True where two items are of one list."""
        return self.list_of[:, None] == self.list_of

    def log_softmax(self, values: Tensor) -> Tensor:
        """(I,) log-softmax of each item's value within its list."""
        return values - torch.where(self.together(), values, -torch.inf).logsumexp(-1)

    def ranks(self, values: Tensor) -> Tensor:
        """(I,) place of each item in its list by falling value, from 1; ties in the order of the items."""
        place = torch.arange(len(values), device=values.device)
        ahead = (values > values[:, None]) | ((values == values[:, None]) & (place < place[:, None]))
        return 1 + (ahead & self.together()).sum(-1, dtype=values.dtype)  # the log of integers would be float32

    def totals(self, terms: Tensor) -> Tensor:
        """(B,) for each row the sum of its list's (I,) terms."""
        return torch.where(self.of_row[:, None] == self.list_of, terms, 0.0).sum(-1)


def lists(pair: PairStats) -> Lists:
    """The lists of a batch, from its columns `list`, `chosen_item`, `rejected_item`: whole numbers that are equal
    where rows share a prompt, and where answers within a list are the same text. Without these columns each row is
    a list of two. Items stand in the order of their numbers, whatever the order of the rows."""
    size = len(pair.chosen.completion_mask)
    alone = torch.arange(size)
    of_row = pair.columns.get("list", alone).long()
    chosen = pair.columns.get("chosen_item", torch.zeros(size)).long()
    rejected = pair.columns.get("rejected_item", torch.ones(size)).long()
    number = {value: i for i, value in enumerate(dict.fromkeys(of_row.tolist()))}
    seen: dict[tuple[int, int], int] = {}
    for row, key in enumerate(zip([*of_row.tolist()] * 2, [*chosen.tolist(), *rejected.tolist()], strict=True)):
        seen.setdefault(key, row)
    device = pair.chosen.per_token_logps.device
    items = sorted(seen)
    return Lists(
        torch.tensor([seen[key] for key in items], device=device),
        torch.tensor([number[key[0]] for key in items], device=device),
        torch.tensor([number[value] for value in of_row.tolist()], device=device),
    )


def require_positive(**hyperparameters: float) -> None:
    """Raise UserError naming the first hyperparameter that is not a number above 0."""
    for name, value in hyperparameters.items():
        if not _number(value) or not 0 < value < inf:
            raise UserError(f"{name} is {value!r}; it must be a number above 0.")


def require_not_negative(**hyperparameters: float) -> None:
    """Raise UserError naming the first hyperparameter that is not a number of at least 0."""
    for name, value in hyperparameters.items():
        if not _number(value) or not 0 <= value < inf:
            raise UserError(f"{name} is {value!r}; it must be a number, 0 or more.")


def require_between(low: float, high: float, *, closed: bool = True, **hyperparameters: float) -> None:
    """Raise UserError naming the first hyperparameter outside low .. high (closed=False: high itself too)."""
    for name, value in hyperparameters.items():
        if not _number(value) or not (low <= value <= high if closed else low <= value < high):
            below = "to" if closed else "to below"
            raise UserError(f"{name} is {value!r}; it must be a number from {low:g} {below} {high:g}.")


def require_choice(allowed: tuple[str, ...], **hyperparameters: str) -> None:
    """Raise UserError naming the first hyperparameter that is none of the allowed words."""
    for name, value in hyperparameters.items():
        if value not in allowed:
            raise UserError(f"{name} is {value!r}; it must be one of {', '.join(allowed)}.")


def _number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)
