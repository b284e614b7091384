"""Builders of pairs from plain lists, so that each test shows its own numbers."""

from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

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
