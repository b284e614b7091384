"""Builders of pairs from plain lists, so that each test shows its own numbers."""

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from diagnostics.diffusion.stats import DenoisingStats
from diagnostics.stats import PairStats, SequenceStats

Rows = list[list[float]]


def build_side(logps: Rows) -> SequenceStats:
    """SequenceStats of ragged rows of per-token log-probs, right-padded with NaN; the values take a gradient."""
    width = max(len(row) for row in logps)
    padded = [row + [torch.nan] * (width - len(row)) for row in logps]
    mask = [[1] * len(row) + [0] * (width - len(row)) for row in logps]
    return SequenceStats(torch.tensor(padded, dtype=torch.float64).requires_grad_(), torch.tensor(mask))


@pytest.fixture
def make_pair():
    """PairStats of per-token log-probs: chosen, rejected, and the reference's of both."""

    def make(chosen: Rows, rejected: Rows, ref_chosen: Rows | None = None, ref_rejected: Rows | None = None):
        references = [build_side(side) if side else None for side in (ref_chosen, ref_rejected)]
        return PairStats(build_side(chosen), build_side(rejected), references[0], references[1])

    return make


@pytest.fixture
def add_rows():
    """A pair with further rows: name = (per-token log-probs, those of the reference)."""

    def add(pair: PairStats, **rows: tuple[Rows, Rows]) -> PairStats:
        own, ref = ({name: build_side(each[i]) for name, each in rows.items()} for i in (0, 1))
        return replace(pair, extra=pair.extra | own, ref_extra=pair.ref_extra | ref)

    return add


@pytest.fixture
def same_rows():
    """A pair whose further rows of these names are its own sides: every <...>rejected is the rejected one."""

    def copy(pair: PairStats, names: Iterable[str]) -> PairStats:
        own = {n: pair.rejected if n.endswith("rejected") else pair.chosen for n in names}
        ref = {n: pair.ref_rejected if n.endswith("rejected") else pair.ref_chosen for n in names}
        return replace(pair, extra=own, ref_extra=ref)

    return copy


@pytest.fixture
def worked() -> PairStats:
    """The pair of every worked example, in nats.

    chosen -1 - 2 = -3, its reference -1.5 - 2.5 = -4: log-ratio u = 1, 2 tokens, mean log-prob -1.5.
    rejected -2 - 1 - 3 = -6, its reference -1 - 1 - 2 = -4: log-ratio v = -2, 3 tokens, mean log-prob -2.
    """
    return PairStats(
        build_side([[-1.0, -2.0]]),
        build_side([[-2.0, -1.0, -3.0]]),
        build_side([[-1.5, -2.5]]),
        build_side([[-1.0, -1.0, -2.0]]),
    )


@pytest.fixture
def random_pair() -> PairStats:
    """Four pairs of ragged random log-probs, with a reference."""
    generator = torch.Generator().manual_seed(0)

    def side(*lengths: int) -> SequenceStats:
        return build_side([(-3 * torch.rand(n, generator=generator)).tolist() for n in lengths])

    return PairStats(side(2, 5, 1, 3), side(4, 1, 1, 6), side(2, 5, 1, 3), side(4, 1, 1, 6))


@pytest.fixture
def check_gradient():
    """Compare the gradient of an objective's losses with finite differences, in float64."""

    def check(objective, pair: PairStats, **hyperparameters) -> bool:
        def losses(chosen: Tensor, rejected: Tensor) -> Tensor:
            first = SequenceStats(chosen, pair.chosen.completion_mask)
            second = SequenceStats(rejected, pair.rejected.completion_mask)
            return objective(PairStats(first, second, pair.ref_chosen, pair.ref_rejected), **hyperparameters).losses

        values = [side.per_token_logps.detach().nan_to_num(0.0) for side in (pair.chosen, pair.rejected)]
        return torch.autograd.gradcheck(losses, [value.requires_grad_() for value in values])

    return check


@pytest.fixture
def list_rows() -> list[tuple[int, int, int]]:
    """Rows of lists, (list, chosen answer, rejected answer).

    List 7: answers 0-3, 1 twice chosen and 3 also rejected; 3: three answers; 5: the same answer on both sides.
    """
    return [(7, 1, 0), (3, 0, 2), (7, 1, 3), (5, 0, 0), (7, 3, 2), (3, 0, 1)]


@pytest.fixture
def list_answers() -> dict[tuple[int, int], tuple[float, float, float]]:
    """(list, answer): log-prob, reference's log-prob, score (which is the relevance too)."""
    return {
        (7, 0): (-3.0, -2.0, 0.5),
        (7, 1): (-1.0, -2.5, 2.0),
        (7, 2): (-4.0, -3.0, 0.0),
        (7, 3): (-2.0, -2.5, 1.0),
        (3, 0): (-1.0, -0.5, 3.0),
        (3, 1): (-6.0, -4.0, 1.5),
        (3, 2): (-2.0, -4.0, 0.2),
        (5, 0): (-1.0, -1.5, 1.0),
    }


@pytest.fixture
def listed(make_pair, list_rows, list_answers):
    """Some of list_rows, in a given order, as a batch of one-token, one-step answers with all that lists have."""

    def make(order):
        rows = [list_rows[i] for i in order]
        sides = {side: [list_answers[r[0], r[k]] for r in rows] for k, side in ((1, "chosen"), (2, "rejected"))}
        columns = dict(zip(("list", "chosen_item", "rejected_item"), zip(*rows)))
        for side, answers in sides.items():
            columns |= {f"{side}_{name}": [a[2] for a in answers] for name in ("score", "relevance")}
            columns[f"{side}_proposal_logps"] = [p - 0.5 * score for p, _, score in answers]
        pair = make_pair(*([[answer[i]] for answer in side] for i in (0, 1) for side in sides.values()))
        steps = {"step_ids": torch.ones(len(rows), 1).long(), "step_similarity": torch.full((len(rows), 1), 0.3)}
        both = {side: replace(getattr(pair, side), **steps) for side in sides}
        return replace(pair, **both, columns={k: torch.tensor(v, dtype=torch.float64) for k, v in columns.items()})

    return make


@pytest.fixture
def check_lists(listed, list_rows, list_answers):
    """A list objective against plain Python; the order of rows and the other lists change nothing; one answer alone is
    finite."""

    def check(objective, by_hand) -> None:
        whole = objective(listed(range(6)))
        known = {name: by_hand([a for key, a in list_answers.items() if key[0] == name]) for name in (7, 3, 5)}
        assert len(set(known.values())) == 3
        assert whole.losses.tolist() == pytest.approx([known[row[0]] for row in list_rows], abs=1e-13)
        for order in ([5, 4, 3, 2, 1, 0], [4, 2, 0], [1, 5], [3]):
            for value, expected in zip(objective(listed(order)), whole, strict=True):
                torch.testing.assert_close(value, expected[order], rtol=0, atol=1e-13)
        alone = listed([3])
        leaves = [alone.chosen.per_token_logps, alone.rejected.per_token_logps]
        found = torch.autograd.grad(objective(alone).losses.sum(), leaves, allow_unused=True)
        assert all(g is None or g.isfinite().all() for g in found)

    return check


def build_denoised(residual: Any, **parts: Any) -> DenoisingStats:
    """DenoisingStats of residuals (B, K, P), which take the gradient; further parts as they are given."""
    values = torch.as_tensor(residual, dtype=torch.float64)
    values = values if values.requires_grad else values.requires_grad_()
    mask = torch.ones(values.shape[:2], dtype=torch.long)
    logps = -values.square().mean(-1) / values.shape[1]
    given = {name: torch.as_tensor(part) for name, part in parts.items()}
    return DenoisingStats(logps, mask, residual=values, **given)


@pytest.fixture
def make_denoised():
    """A pair from the residuals (B, K, P) of chosen, rejected, and the reference's of both; columns by name."""

    def make(chosen: Any, rejected: Any, ref_chosen: Any = None, ref_rejected: Any = None, **columns: Any) -> PairStats:
        references = [None if side is None else build_denoised(side) for side in (ref_chosen, ref_rejected)]
        values = {name: torch.tensor(column, dtype=torch.float64) for name, column in columns.items()}
        return PairStats(build_denoised(chosen), build_denoised(rejected), *references, columns=values)

    return make


@pytest.fixture
def denoised(make_denoised) -> PairStats:
    """The pair of every worked example of a denoiser: one draw, two numbers a sample.

    chosen (0.3^2 + 0.1^2) / 2 = 0.05, its reference (0.2^2 + 0.2^2) / 2 = 0.04: D_w = 0.01.
    rejected (0.4^2 + 0.2^2) / 2 = 0.1, its reference (0.3^2 + 0.2^2) / 2 = 0.065: D_l = 0.035. Both errors rose.
    """
    return make_denoised([[[0.3, 0.1]]], [[[0.4, 0.2]]], [[[0.2, 0.2]]], [[[0.3, 0.2]]])


@pytest.fixture
def many_denoised(make_denoised) -> PairStats:
    """Four pairs of three draws of five numbers, policy and reference 0.01 apart, with scores in [0, 1]."""
    generator = torch.Generator().manual_seed(3)
    reference, move = (torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    scores = torch.rand(2, 4, generator=generator).tolist()
    columns = {"chosen_score": scores[0], "rejected_score": scores[1]}
    return make_denoised(*(reference + 0.01 * move), *reference, **columns)


@pytest.fixture
def at_reference(many_denoised) -> PairStats:
    """The four pairs where the policy is the reference."""
    own = {"ref_chosen": many_denoised.chosen, "ref_rejected": many_denoised.rejected}
    return replace(
        many_denoised, **{name: build_denoised(side.residual.detach().clone()) for name, side in own.items()}
    )


@pytest.fixture
def slopes():
    """Gradients of the summed losses in the log-probs (B, K) of chosen and rejected; 0 where one is not read."""

    def of(losses: Tensor, pair: PairStats) -> list[Tensor]:
        sides = [side.per_token_logps for side in (pair.chosen, pair.rejected)]
        return list(torch.autograd.grad(losses.sum(), sides, materialize_grads=True))

    return of


@pytest.fixture
def steps(make_pair) -> PairStats:
    """Two steps of two chains: log-ratios 0.05 and 0.3 of the chosen one, -0.02 and -0.01 of the rejected one."""
    return make_pair([[1.05, 2.3]], [[0.98, 1.99]], [[1.0, 2.0]], [[1.0, 2.0]])
