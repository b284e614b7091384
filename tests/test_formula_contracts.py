"""What every measure and every objective must keep, over whatever files the two folders hold."""

import importlib
import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diagnostics import measures
from diagnostics.errors import UserError
from diagnostics.stats import PairStats, SequenceStats
from trainers import objectives

ROOT = Path(__file__).parents[1]
SIDES = ("chosen", "rejected", "ref_chosen", "ref_rejected")
LENGTHS = {"chosen": [3, 1, 5, 2, 4], "rejected": [2, 6, 1, 3, 4]}
PER_TOKEN = ("per_token_logps", "per_token_kl", "per_token_kl_reverse")
GARBAGE = (0.0, torch.nan, torch.inf, -torch.inf, 1e30)
HIDDEN = ("hidden_sum", "last_hidden")

# what an objective's loss may depend on beside its own pair; see its docstring
OPTIONS = [(name, {}) for name in objectives.names()] + [("dpo_nll", {"normalization": "sum"})]
BATCH_COUPLED = [("dpo_nll", {"normalization": "batch_token_mean"})]


def random_side(lengths: list[int], seed: int) -> SequenceStats:
    """Everything one forward pass can say about len(lengths) rows, all of it random."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()

    def table(width: int) -> Tensor:
        return torch.rand(len(lengths), width, generator=generator, dtype=torch.float64)

    ids = torch.randint(0, 4, mask.shape, generator=generator)
    return SequenceStats(
        per_token_logps=(-3 * table(max(lengths))).requires_grad_(),
        completion_mask=mask,
        per_token_kl=table(max(lengths)),
        per_token_kl_reverse=table(max(lengths)),
        hidden_sum=table(4) - 0.5,
        last_hidden=table(4) - 0.5,
        text_ids=torch.where(mask.bool(), ids, -1),
    )


def apply(pair: PairStats, change) -> PairStats:
    """The same change on every side that is there."""
    sides = {name: getattr(pair, name) for name in SIDES}
    return replace(pair, **{name: change(side) for name, side in sides.items() if side is not None})


def pick(pair: PairStats, rows: list[int]) -> PairStats:
    """Some rows of a batch, in the given order."""
    return apply(pair, lambda s: SequenceStats(**{k: v[rows] for k, v in vars(s).items() if v is not None}))


def pad(pair: PairStats, *, left: int, right: int, garbage: float) -> PairStats:
    """Further columns on either side, and garbage wherever the mask is 0."""

    def widen(values: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(values, (left, right), value=fill)

    def change(side: SequenceStats) -> SequenceStats:
        mask = widen(side.completion_mask, 0)
        per_token = {k: torch.where(mask.bool(), widen(getattr(side, k), 0.0), garbage) for k in PER_TOKEN}
        assert side.text_ids is not None
        return replace(side, completion_mask=mask, text_ids=widen(side.text_ids, -1), **per_token)

    return apply(pair, change)


@pytest.fixture
def pair() -> PairStats:
    """Five pairs of ragged lengths, with everything measured."""
    chosen, rejected = LENGTHS["chosen"], LENGTHS["rejected"]
    return PairStats(random_side(chosen, 0), random_side(rejected, 1), random_side(chosen, 2), random_side(rejected, 3))


def same(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


# --- both registries ---


@pytest.mark.parametrize("folder", ["diagnostics/measures", "trainers/objectives"])
def test_every_file_has_a_test_of_its_own_and_every_test_a_file(folder):
    files = {p.stem for p in (ROOT / folder).glob("*.py")} - {"__init__"}
    tests = {p.stem.removeprefix("test_") for p in (ROOT / "tests" / folder).glob("test_*.py")}
    assert files == tests


@pytest.mark.parametrize("registry", [measures, objectives], ids=["measures", "objectives"])
def test_names_are_sorted_and_docstrings_name_their_source(registry):
    assert registry.names() == sorted(set(registry.names()))
    for name in registry.names():
        doc = registry.load(name).__doc__ or ""
        assert "arXiv" in doc or "Source: own" in doc, f"{name}: name the paper, or write 'Source: own'"


@pytest.mark.parametrize(
    ("registry", "wrong", "nearest"),
    [
        (measures, "ches_scores", "ches_score"),
        (measures, "ches", "ches_score"),
        (measures, "chosen_kl_revers", "chosen_kl_reverse"),
        (objectives, "DPO", "dpo"),
        (objectives, "ipo_means", "ipo_mean"),
        (objectives, "sinpo", "simpo"),
        (objectives, "ipo", "ipo_mean' or 'ipo_sum"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(registry, wrong, nearest):
    with pytest.raises(UserError, match=f"'{wrong}': did you mean '{nearest}'"):
        registry.load(wrong)
    for wild in ("", "zzz", "../../x", "__init__"):
        with pytest.raises(UserError, match="none is similar"):
            registry.load(wild)


# --- measures ---


def test_the_measures_are_the_columns_of_the_tables():
    assert set(measures.names()) >= {
        "ches_score",
        "ln_ches_score",
        "last_hidden_similarity",
        "edit_similarity",
        "chosen_logratios",
        "rejected_logratios",
        "logratio_margin",
        "chosen_kl",
        "rejected_kl",
        "chosen_kl_reverse",
        "rejected_kl_reverse",
    }


def test_every_measure_file_offers_a_measure_under_a_name_of_its_own():
    """Two files with one function name would hide one another in the registry."""
    public = []
    for path in (ROOT / "diagnostics/measures").glob("[a-z]*.py"):
        module = importlib.import_module(f"diagnostics.measures.{path.stem}")
        own = [n for n, f in vars(module).items() if getattr(f, "__module__", "") == module.__name__ and n[0] != "_"]
        assert own, f"{path.name} defines no measure"
        public += own
    assert sorted(public) == measures.names()


@pytest.mark.parametrize("name", measures.names())
def test_measure_is_one_finite_float64_a_pair_whatever_order_padding_and_batching(name, pair):
    measure = measures.load(name)
    values = measure(pair)
    assert values.shape == (5,)
    assert values.dtype == torch.float64
    assert values.isfinite().all()
    assert len(set(values.tolist())) > 1, "pairs differ, so their values must"
    order = [3, 0, 4, 2, 1]
    same(measure(pick(pair, order)), values[order])
    same(torch.cat([measure(pick(pair, [i])) for i in range(5)]), values)
    for garbage in GARBAGE:
        same(measure(pad(pair, left=2, right=0, garbage=garbage)), values)
        same(measure(pad(pair, left=0, right=3, garbage=garbage)), values)


def strip(pair: PairStats, kinds: set[str]) -> PairStats:
    """The pair as it looks where these kinds were not measured."""
    if "reference" in kinds:
        pair = replace(pair, ref_chosen=None, ref_rejected=None)
    gone = {k: None for k in HIDDEN if "hidden" in kinds}
    gone |= {k: None for k in ("per_token_kl", "per_token_kl_reverse") if "kl" in kinds}
    gone |= {"text_ids": None} if "text" in kinds else {}
    pair = apply(pair, lambda s: replace(s, **gone))
    if "logps" in kinds:  # the forward pass without the head fills them with NaN
        pair = apply(pair, lambda s: replace(s, per_token_logps=torch.full_like(s.per_token_logps, torch.nan)))
    return pair


@pytest.mark.parametrize("name", measures.names())
def test_needs_says_exactly_what_a_measure_needs(name, pair):
    """Without any one of them it is NaN for every pair; without all the others it is what it was."""
    measure, needs = measures.load(name), measures.needs(name)
    kinds = {"hidden", "logps", "reference", "kl", "text"}
    assert needs
    assert needs <= kinds
    same(measure(strip(pair, kinds - needs)), measure(pair))
    for kind in needs:
        values = measure(strip(pair, {kind}))
        assert values.shape == (5,)
        assert values.isnan().all(), f"{name} without {kind} must be NaN, never a number"


# --- objectives ---


def gradients(objective, pair: PairStats, **options) -> list[Tensor]:
    """Gradients of the summed losses in the per-token log-probs of chosen and rejected."""
    sides = [pair.chosen.per_token_logps, pair.rejected.per_token_logps]
    return list(torch.autograd.grad(objective(pair, **options).losses.sum(), sides))


def fresh(pair: PairStats) -> PairStats:
    """The same values as new leaves of the graph."""
    return apply(pair, lambda s: replace(s, per_token_logps=s.per_token_logps.detach().clone().requires_grad_()))


def test_every_file_holds_the_objective_of_its_name_with_defaults():
    """File name = function name, and everything but the pair is a keyword with a default."""
    assert {"dpo", "dpo_nll", "ipo_mean", "ipo_sum", "simpo"} <= set(objectives.names())
    for name in objectives.names():
        function = objectives.load(name)
        first, *others = inspect.signature(function).parameters.values()
        assert (function.__name__, first.name) == (name, "pair")
        assert all(p.kind is p.KEYWORD_ONLY and p.default is not p.empty for p in others)


@pytest.mark.parametrize(("name", "options"), OPTIONS + BATCH_COUPLED)
def test_objective_is_one_loss_a_pair_with_detached_rewards_in_any_order(name, options, pair):
    objective = objectives.load(name)
    output = objective(pair, **options)
    order = [3, 0, 4, 2, 1]
    reordered = objective(pick(pair, order), **options)
    for values, moved in zip(output, reordered, strict=True):
        assert values.shape == (5,)
        assert values.dtype == torch.float64
        assert values.isfinite().all()
        assert len(set(values.tolist())) == 5, "pairs differ, so their values must"
        same(moved, values[order])
    assert output.losses.requires_grad
    assert not output.chosen_rewards.requires_grad
    assert not output.rejected_rewards.requires_grad


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_objective_of_a_pair_does_not_depend_on_its_batch(name, options, pair):
    objective = objectives.load(name)
    singles = [objective(pick(pair, [i]), **options) for i in range(5)]
    for i, values in enumerate(objective(pair, **options)):
        same(torch.cat([single[i] for single in singles]), values)


@pytest.mark.parametrize(("name", "options"), OPTIONS + BATCH_COUPLED)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_changes_neither_losses_nor_gradients(name, options, garbage, pair):
    """NaN and inf under the mask too: multiplying by the mask would turn them into NaN gradients."""
    objective = objectives.load(name)
    plain = gradients(objective, fresh(pair), **options)
    for left, right in ((2, 0), (0, 3)):
        padded = fresh(pad(pair, left=left, right=right, garbage=garbage))
        for value, expected in zip(objective(padded, **options), objective(pair, **options), strict=True):
            same(value, expected)
        for side, gradient, expected in zip(
            (padded.chosen, padded.rejected), gradients(objective, padded, **options), plain, strict=True
        ):
            same(gradient[:, left : left + expected.shape[1]], expected)
            assert (gradient[side.completion_mask == 0] == 0).all()
            assert (gradient[side.completion_mask == 1] != 0).all()


@pytest.mark.parametrize(("name", "options"), OPTIONS + BATCH_COUPLED)
def test_losses_and_gradients_stay_finite_at_ten_thousand_nats(name, options):
    """Every combination of 0 and -10,000 nats for the four log-probs."""
    ends = torch.tensor([0.0, -1e4], dtype=torch.float64)
    table = torch.cartesian_prod(ends, ends, ends, ends)
    chosen, rejected, ref_chosen, ref_rejected = (SequenceStats(c[:, None], torch.ones(16, 1)) for c in table.T)
    pair = fresh(PairStats(chosen, rejected, ref_chosen, ref_rejected))
    output = objectives.load(name)(pair, **options)
    assert all(values.isfinite().all() for values in output)
    assert all(g.isfinite().all() for g in gradients(objectives.load(name), pair, **options))


@pytest.mark.parametrize("name", objectives.names())
def test_needs_reference_says_whether_the_reference_matters(name, pair):
    objective = objectives.load(name)
    bare = PairStats(pair.chosen, pair.rejected)
    if objectives.needs_reference(name):
        moved = replace(pair, ref_chosen=random_side(LENGTHS["chosen"], 99))
        assert (objective(moved).losses != objective(pair).losses).all()
        with pytest.raises(UserError, match="reference"):
            objective(bare)
    else:
        same(objective(bare).losses, objective(pair).losses)
