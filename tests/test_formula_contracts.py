"""What every measure and every objective must keep, over whatever files the two folders hold."""

import importlib
import inspect
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from diagnostics import measures
from diagnostics.diffusion.stats import DenoisingStats
from diagnostics.errors import UserError
from diagnostics.stats import PairStats, SequenceStats
from trainers import objectives

ROOT = Path(__file__).parents[1]
SIDES = ("chosen", "rejected", "ref_chosen", "ref_rejected")
LENGTHS = {"chosen": [3, 1, 5, 2, 4], "rejected": [2, 6, 1, 3, 4]}
TOP = ("per_token_top_entropy", "per_token_top_mass")
PER_TOKEN = ("per_token_logps", "per_token_kl", "per_token_kl_reverse", "per_token_collision", "step_similarity", *TOP)
KL = "per_token_kl"
FURTHER = ("extra", "ref_extra")
MARKS = ("phrase_mask", "step_ids")
GARBAGE = (0.0, torch.nan, torch.inf, -torch.inf, 1e30)
HIDDEN = ("hidden_sum", "last_hidden")
PROMPT = 2  # tokens before the completion, where embeddings stand too

# an objective that says "whole batch" may let a pair's loss depend on the others; see its docstring
COUPLED = [name for name in objectives.names() if "whole batch" in objectives.needs(name)]
SINGLE = [(name, {}) for name in objectives.names() if name not in COUPLED] + [("dpo_nll", {"normalization": "sum"})]
ROWS = sorted({row for name in objectives.names() for row in objectives.rows(name) | objectives.optional_rows(name)})
DENOISING = [name for name in objectives.names() if objectives.likelihood(name) != "tokens"]  # and steps of denoisers
BATCH_COUPLED = [(name, {}) for name in COUPLED] + [
    (name, {"normalization": "batch_token_mean"})
    for name in objectives.names()
    if "normalization" in objectives.hyperparameters(name)
]
OF_TOKENS = [case for case in SINGLE + BATCH_COUPLED if case[0] not in DENOISING]
DRAWS, NUMBERS, SEGMENTS = 3, 6, 2  # of a sample of the denoisers' pairs


def random_side(lengths: list[int], seed: int) -> SequenceStats:
    """Everything one forward pass can say about len(lengths) rows, all of it random."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).long()

    def table(width: int) -> Tensor:
        return torch.rand(len(lengths), width, generator=generator, dtype=torch.float64)

    ids = torch.randint(0, 4, mask.shape, generator=generator)
    embeddings = torch.rand(len(lengths), PROMPT + max(lengths), 3, generator=torch.Generator().manual_seed(seed + 100))
    there = torch.arange(PROMPT + max(lengths)) < PROMPT + torch.tensor(lengths)[:, None]
    return SequenceStats(
        per_token_logps=(-3 * table(max(lengths))).requires_grad_(),
        completion_mask=mask,
        per_token_kl=table(max(lengths)),
        per_token_kl_reverse=table(max(lengths)),
        per_token_collision=-table(max(lengths)),
        phrase_mask=mask * torch.tensor([1, 1, 0, 2, 2, 0])[: max(lengths)],
        step_ids=mask * torch.tensor([1, 1, 2, 2, 3, 3])[: max(lengths)],
        step_similarity=table(max(lengths)),
        per_token_top_entropy=table(max(lengths)),
        per_token_top_mass=table(max(lengths)),
        hidden_sum=table(4) - 0.5,
        last_hidden=table(4) - 0.5,
        text_ids=torch.where(mask.bool(), ids, -1),
        embeddings=torch.where(there[..., None], embeddings.double(), torch.nan),
    )


def apply(pair: PairStats, change) -> PairStats:
    """The same change on every side and every further row that is there."""
    sides = {name: getattr(pair, name) for name in SIDES}
    further = {key: {n: change(s) for n, s in getattr(pair, key).items()} for key in FURTHER}
    return replace(pair, **further, **{name: change(side) for name, side in sides.items() if side is not None})


def pick(pair: PairStats, rows: list[int]) -> PairStats:
    """Some rows of a batch, in the given order."""
    pair = replace(pair, columns={name: values[rows] for name, values in pair.columns.items()})
    return apply(pair, lambda s: type(s)(**{k: v[rows] for k, v in vars(s).items() if v is not None}))


def pad(pair: PairStats, *, left: int, right: int, garbage: float) -> PairStats:
    """Further columns on either side, and garbage wherever the mask is 0."""

    def widen(values: Tensor, fill: float) -> Tensor:
        return torch.nn.functional.pad(values, (left, right), value=fill)

    def change(side: SequenceStats) -> SequenceStats:
        mask = widen(side.completion_mask, 0)
        per_token = {k: torch.where(mask.bool(), widen(getattr(side, k), 0.0), garbage) for k in PER_TOKEN}
        assert side.text_ids is not None
        marks = {k: widen(getattr(side, k), 0) for k in MARKS}
        widths = (0, 0, left, right)
        marks["embeddings"] = torch.nn.functional.pad(side.embeddings, widths, value=torch.nan)  # type: ignore[arg-type]
        return replace(side, completion_mask=mask, text_ids=widen(side.text_ids, -1), **per_token, **marks)

    return apply(pair, change)


def denoised(residual: Tensor, reference: Tensor, seed: int) -> DenoisingStats:
    """All that a denoiser says of B samples, whose errors and deviations follow from the two outputs (B, K, P)."""
    generator = torch.Generator().manual_seed(seed)

    def drawn(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    size, draws, numbers = residual.shape
    return DenoisingStats(
        per_token_logps=-residual.square().mean(-1) / draws,
        completion_mask=torch.ones(size, draws, dtype=torch.long),
        per_token_kl=(residual - reference).square().mean(-1) / draws,
        residual=residual,
        target=drawn(size, draws, numbers) - 0.5,
        noise=drawn(size, draws, numbers) - 0.5,
        times=1000 * drawn(size, draws),
        alphas=0.1 + 0.8 * drawn(size, draws),
        segments=(torch.arange(numbers) % SEGMENTS).expand(size, -1),
        weights=drawn(size, numbers),
        predicted_noise=residual + 0.5,
        ema_noise=drawn(size, draws, numbers) - 0.5,
    )


def denoisers_pair(residuals: list[Tensor]) -> PairStats:
    """The pair of a denoiser's outputs less targets: chosen, rejected, and the reference's."""
    own, ref = residuals[:2], residuals[2:]
    sides = [denoised(r, f, i) for i, (r, f) in enumerate(zip(own, ref, strict=True))]
    references = [denoised(f, f, i) for i, f in enumerate(ref)]
    generator, size = torch.Generator().manual_seed(7), len(own[0])
    found = {c for name in DENOISING for c in objectives.columns(name)}
    columns = {c: torch.rand(size, generator=generator, dtype=torch.float64) for c in sorted(found)}
    return PairStats(*sides, *references, columns=columns)


def near(size: int) -> list[Tensor]:
    """Residuals (B, K, P) of policy and reference: of the order of 1, and 1e-3 from each other."""
    generator = torch.Generator().manual_seed(8)
    shape = (2, size, DRAWS, NUMBERS)
    reference, move = (torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return [*(reference + 1e-3 * move), *reference]


@pytest.fixture
def pair(request) -> PairStats:
    """Five pairs of ragged lengths, with everything measured; of samples, for the objectives of denoisers."""
    if getattr(request.node, "callspec", None) and request.node.callspec.params.get("name") in DENOISING:
        residuals = near(5)
        return denoisers_pair([r.requires_grad_() for r in residuals[:2]] + residuals[2:])
    chosen, rejected = LENGTHS["chosen"], LENGTHS["rejected"]
    extra = {"gold": random_side(chosen, 4), "reward_chosen": random_side(chosen, 5)}
    extra["reward_rejected"] = random_side(rejected, 6)
    ends = {row: rejected if row.endswith("rejected") else chosen for row in ROWS}
    extra |= {row: random_side(lengths, 20 + i) for i, (row, lengths) in enumerate(ends.items())}
    ref_extra = {row: random_side(lengths, 60 + i) for i, (row, lengths) in enumerate(ends.items())}
    generator = torch.Generator().manual_seed(7)
    found = {c for name in objectives.names() for c in objectives.columns(name)} | {"mismatched_logratios"}
    columns = {c: torch.rand(5, generator=generator, dtype=torch.float64) for c in sorted(found)}
    columns |= {"tie": torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0])}
    sides = [random_side(lengths, i) for i, lengths in enumerate((chosen, rejected, chosen, rejected))]
    return PairStats(*sides, columns=columns, extra=extra, ref_extra=ref_extra)


def same(value: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-12)


# --- both registries ---


@pytest.mark.parametrize("folder", ["diagnostics/measures", "trainers/objectives"])
def test_every_file_has_a_test_of_its_own_and_every_test_a_file(folder):
    files = {p.stem for p in (ROOT / folder).glob("*.py")} - {"__init__"}
    tests = {p.stem.removeprefix("test_") for p in (ROOT / "tests" / folder).glob("test_*.py")}
    assert files == tests, f"each {folder}/<name>.py has a tests/{folder}/test_<name>.py and the other way round"


@pytest.mark.parametrize("registry", [measures, objectives], ids=["measures", "objectives"])
def test_names_are_sorted_and_docstrings_name_their_source(registry):
    assert list(registry.names()) == sorted(set(registry.names()))
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
        (objectives, "simppo", "simpo"),
        (objectives, "difusion_dpo", "diffusion_dpo"),
        (objectives, "ipo", "ipo_mean' or 'ipo_nll' or 'ipo_sum"),
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
    gone |= {k: None for k in TOP if "top" in kinds}
    pair = apply(pair, lambda s: replace(s, **gone))
    if "logps" in kinds:  # the forward pass without the head fills them with NaN
        pair = apply(pair, lambda s: replace(s, per_token_logps=torch.full_like(s.per_token_logps, torch.nan)))
    return pair


@pytest.mark.parametrize("name", measures.names())
def test_needs_says_exactly_what_a_measure_needs(name, pair):
    """Without any one of them it is NaN for every pair; without all the others it is what it was."""
    measure, needs = measures.load(name), measures.needs(name)
    kinds = {"hidden", "logps", "reference", "kl", "text", "top"}
    assert needs <= kinds  # none, where the completion masks alone are enough
    same(measure(strip(pair, kinds - needs)), measure(pair))
    for kind in needs:
        values = measure(strip(pair, {kind}))
        assert values.shape == (5,)
        assert values.isnan().all(), f"{name} without {kind} must be NaN, never a number"


# --- objectives ---


def policy_rows(pair: PairStats) -> dict[str, SequenceStats]:
    """Chosen, rejected and the further rows under the policy."""
    further = {row: pair.extra[row] for row in ROWS if row in pair.extra}
    return {"chosen": pair.chosen, "rejected": pair.rejected} | further


def gradients(objective, pair: PairStats, **options) -> list[Tensor]:
    """Gradients of the summed losses in the per-token log-probs of the policy's rows; 0 for a row not read."""
    rows = [row.per_token_logps for row in policy_rows(pair).values()]
    return list(torch.autograd.grad(objective(pair, **options).losses.sum(), rows, materialize_grads=True))


def reads(objective, pair: PairStats, side: str, **options) -> bool:
    """Whether the losses depend on the log-probs of a row."""
    values = policy_rows(pair)[side]
    lower = replace(values, per_token_logps=values.per_token_logps - 0.1)
    moved = replace(pair, **({"extra": pair.extra | {side: lower}} if side in ROWS else {side: lower}))
    return not torch.equal(objective(moved, **options).losses, objective(pair, **options).losses)


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


@pytest.mark.parametrize("name", objectives.names())
def test_every_file_says_what_it_needs_in_known_words_and_how_sure_it_is(name):
    module = objectives.module(name)
    assert set(module.NEEDS) <= set(objectives.WORDS)
    assert module.PROVENANCE in objectives.PROVENANCES
    doc = objectives.load(name).__doc__
    assert "losses = " in doc, "write the loss in the docstring: losses = ..."
    if module.PROVENANCE in ("recall", "derivation", "own", "secondary", "formula not found"):
        assert module.PROVENANCE in doc.lower(), f"say '{module.PROVENANCE}' in the docstring"
    if hasattr(module, "statistics"):
        assert "statistics" in inspect.signature(objectives.load(name)).parameters


@pytest.mark.parametrize(("name", "options"), SINGLE + BATCH_COUPLED)
def test_objective_is_one_loss_a_pair_with_detached_rewards(name, options, pair):
    output = objectives.load(name)(pair, **options)
    for values in output:
        assert values.shape == (5,)
        assert values.dtype == torch.float64
        assert values.isfinite().all()
        assert len(set(values.tolist())) > 1, "pairs differ, so their values must"
    assert output.losses.requires_grad
    assert not output.chosen_rewards.requires_grad
    assert not output.rejected_rewards.requires_grad


@pytest.mark.parametrize(("name", "options"), SINGLE + BATCH_COUPLED)
def test_the_order_of_pairs_changes_nothing(name, options, pair):
    order = [3, 0, 4, 2, 1]
    output, moved = (objectives.load(name)(p, **options) for p in (pair, pick(pair, order)))
    if name in COUPLED:  # sorting and sampling may pair them otherwise; the update's loss is the same
        same(moved.losses.mean(), output.losses.mean())
        return
    for value, expected in zip(moved, output, strict=True):
        same(value, expected[order])


@pytest.mark.parametrize(("name", "options"), SINGLE)
def test_objective_of_a_pair_does_not_depend_on_its_batch(name, options, pair):
    """So an update in micro-batches is the update at once."""
    objective = objectives.load(name)
    singles = [objective(pick(pair, [i]), **options) for i in range(5)]
    for i, values in enumerate(objective(pair, **options)):
        same(torch.cat([single[i] for single in singles]), values)


@pytest.mark.parametrize(("name", "options"), BATCH_COUPLED)
def test_a_batch_coupled_objective_says_so_and_is(name, options, pair):
    objective = objectives.load(name)
    singles = torch.cat([objective(pick(pair, [i]), **options).losses for i in range(5)])
    assert not torch.allclose(singles.mean(), objective(pair, **options).losses.mean(), rtol=1e-9, atol=0)


@pytest.mark.parametrize(("name", "options"), OF_TOKENS)
@pytest.mark.parametrize("garbage", GARBAGE)
def test_padding_changes_neither_losses_nor_gradients(name, options, garbage, pair):
    """NaN and inf under the mask too: multiplying by the mask would turn them into NaN gradients."""
    objective = objectives.load(name)
    plain = gradients(objective, fresh(pair), **options)
    for left, right in ((2, 0), (0, 3)):
        padded = fresh(pad(pair, left=left, right=right, garbage=garbage))
        for value, expected in zip(objective(padded, **options), objective(pair, **options), strict=True):
            same(value, expected)
        assert reads(objective, pair, "chosen", **options)
        rows = policy_rows(padded)
        for name, gradient, expected in zip(rows, gradients(objective, padded, **options), plain, strict=True):
            side = rows[name]
            same(gradient[:, left : left + expected.shape[1]], expected)
            assert (gradient[side.completion_mask == 0] == 0).all()
            moves = (gradient[side.completion_mask == 1] != 0).any()
            assert moves == reads(objective, pair, name, **options), "a gradient on each row that the loss reads"


@pytest.mark.parametrize(("name", "options"), OF_TOKENS)
def test_gradients_are_those_of_finite_differences(name, options, pair):
    """In float64, in the per-token log-probs and in the per-token KL; a formula with a stop-gradient is exempt. Of the
    further rows, in those that the objective names."""
    if "stop-gradient" in (objectives.load(name).__doc__ or "").lower():
        return
    leaves = [s.per_token_logps.detach().requires_grad_() for s in (pair.chosen, pair.rejected)]
    kls = [s.per_token_kl.detach().requires_grad_() for s in (pair.chosen, pair.rejected)]  # type: ignore
    rows = {row: pair.extra[row] for row in objectives.rows(name) | objectives.optional_rows(name)}
    further = [getattr(s, k).detach().requires_grad_() for s in rows.values() for k in ("per_token_logps", KL)]

    def losses(chosen: Tensor, rejected: Tensor, chosen_kl: Tensor, rejected_kl: Tensor, *further: Tensor) -> Tensor:
        first = replace(pair.chosen, per_token_logps=chosen, per_token_kl=chosen_kl)
        second = replace(pair.rejected, per_token_logps=rejected, per_token_kl=rejected_kl)
        moved = zip(rows.items(), further[::2], further[1::2], strict=True)
        extra = {row: replace(side, per_token_logps=logps, per_token_kl=kl) for (row, side), logps, kl in moved}
        changed = replace(pair, chosen=first, rejected=second, extra=pair.extra | extra)
        return objectives.load(name)(changed, **options).losses

    assert torch.autograd.gradcheck(losses, [*leaves, *kls, *further])


@pytest.mark.parametrize("name", DENOISING)
def test_gradients_of_denoisers_are_those_of_finite_differences(name):
    """In float64, in the outputs of both sides; a formula with a stop-gradient is exempt."""
    if "stop-gradient" in (objectives.load(name).__doc__ or "").lower():
        return
    chosen, rejected, *reference = near(5)

    def losses(chosen: Tensor, rejected: Tensor) -> Tensor:
        return objectives.load(name)(denoisers_pair([chosen, rejected, *reference])).losses

    assert torch.autograd.gradcheck(losses, [chosen.requires_grad_(), rejected.requires_grad_()])


@pytest.mark.parametrize("name", DENOISING)
@pytest.mark.parametrize("far", [1.0, 100.0, 1e4])
def test_losses_and_gradients_of_denoisers_stay_finite_far_away(name, far):
    """Every combination of errors of 1e-6 and far^2 of both sides under both models."""
    ends = torch.tensor([1e-3, far], dtype=torch.float64)
    table = torch.cartesian_prod(ends, ends, ends, ends).T[..., None, None].expand(-1, -1, DRAWS, NUMBERS)
    own = [side.clone().requires_grad_() for side in table[:2]]
    output = objectives.load(name)(denoisers_pair([*own, *table[2:]]))
    assert all(values.isfinite().all() for values in output)
    found = torch.autograd.grad(output.losses.sum(), own, materialize_grads=True)
    assert all(gradient.isfinite().all() for gradient in found)
    assert any(gradient.any() for gradient in found)


@pytest.mark.parametrize(("name", "options"), OF_TOKENS)
@pytest.mark.parametrize("far", [-200.0, -1e4])
def test_losses_and_gradients_stay_finite_far_away(name, options, far):
    """Every combination of almost 0 and -200 (-10,000) nats for the four log-probs."""
    ends = torch.tensor([-1e-3, far], dtype=torch.float64)
    table = torch.cartesian_prod(ends, ends, ends, ends)
    one = torch.ones(16, 1)
    zero = torch.zeros(16, 1, dtype=torch.float64)
    parts = {"per_token_kl": zero, "per_token_collision": zero, "step_similarity": zero}
    parts |= {"phrase_mask": one.long(), "step_ids": one.long(), "embeddings": zero[..., None] + 1}
    sides = [SequenceStats(c[:, None].contiguous(), one, **parts) for c in table.T]
    found = {c for each in objectives.names() for c in objectives.columns(each)} | {"mismatched_logratios"}
    columns = {c: torch.full((16,), 0.5, dtype=torch.float64) for c in found} | {"tie": torch.zeros(16)}
    extra = {"gold": sides[0], "reward_chosen": sides[2], "reward_rejected": sides[3]}
    extra |= {row: sides[row.endswith("rejected")] for row in ROWS}
    ref_extra = {row: sides[2 + row.endswith("rejected")] for row in ROWS}
    pair = fresh(PairStats(*sides, columns=columns, extra=extra, ref_extra=ref_extra))
    output = objectives.load(name)(pair, **options)
    assert all(values.isfinite().all() for values in output)
    assert all(g.isfinite().all() for g in gradients(objectives.load(name), pair, **options))


@pytest.mark.parametrize("name", objectives.names())
def test_needs_says_exactly_what_an_objective_reads(name, pair):
    """Without any one of them it is refused in a sentence; without all the others it is what it was."""
    objective, needs = objectives.load(name), objectives.needs(name)
    known: dict[str, dict[str, None]] = {
        "reference": {"ref_chosen": None, "ref_rejected": None},
        "kl": {"per_token_kl": None},
        "phrases": {"phrase_mask": None},
        "collision": {"per_token_collision": None},
    }
    if name in DENOISING:
        del known["phrases"], known["collision"]
        known |= {part: {part: None} for part in ("residual", "alphas", "segments", "weights")}
        known |= {"child noise": {"ema_noise": None}}
        known["reference"] |= {"per_token_kl": None}  # without a reference there is none
    bare = strip_parts(pair, {k: v for word, parts in known.items() if word not in needs for k, v in parts.items()})
    same(objective(bare).losses, objective(pair).losses)
    for word in set(needs) & set(known):
        with pytest.raises(UserError, match=r"reference|measured"):
            objective(strip_parts(pair, known[word]))
    rows = objectives.rows(name) | objectives.optional_rows(name)
    fewer = {key: {n: s for n, s in getattr(pair, key).items() if n not in ROWS or n in rows} for key in FURTHER}
    same(objective(replace(pair, **fewer)).losses, objective(pair).losses)
    for row in objectives.rows(name):
        with pytest.raises(UserError, match=f"the row '{row}'"):
            objective(replace(pair, extra={n: s for n, s in pair.extra.items() if n != row}))
    for column in objectives.columns(name):
        less = {k: v for k, v in pair.columns.items() if k != column}
        with pytest.raises(UserError, match=f"'{column}'"):
            objective(replace(pair, columns=less))


def strip_parts(pair: PairStats, gone: dict[str, None]) -> PairStats:
    """The pair without some of what a forward pass may say."""
    bare = replace(pair, **{k: None for k in gone if k in SIDES})
    bare = replace(bare, ref_extra={}) if bare.ref_chosen is None else bare
    return apply(bare, lambda s: replace(s, **{k: None for k in gone if k not in SIDES}))
