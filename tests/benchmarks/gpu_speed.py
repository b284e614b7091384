"""The speeds of `make gpu`: scoring and training steps of a random Llama in bfloat16, as tokens a second and as a share
of what large matrix products reach, with TRL's own beside them where it is installed.
"""

import copy
import statistics
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import scoring
import torch
import training
import trl_ways
from gpu_lines import Line, Plan, seconds
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from diagnostics.engine import device_of
from diagnostics.prepare import prepare
from diagnostics.scoring import batches
from diagnostics.sequences import Example
from diagnostics.token_likelihood import TokenLikelihood

SHARE, LOGGED = 0.45, 1.10  # aims on an H100: of the nominal peak in scoring; of the bare step
# makers' data sheets, dense bfloat16 products with sums in float32, by words of the name that torch gives the card
NOMINAL = {
    "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989e12, "H200 NVL": 835e12, "H200": 989e12, "A100": 312e12,
    "L40S": 362e12, "L4": 121e12,
}  # fmt: skip
SIZE: dict[str, Any] = dict(
    hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8,
    vocab_size=128_256,
)  # fmt: skip
QUICK_SIZE: dict[str, Any] = dict(
    hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
    vocab_size=256,
)  # fmt: skip


@lru_cache(maxsize=1)
def big_model(plan: Plan) -> LlamaForCausalLM:
    """The model of all speeds: 1.2 thousand million parameters (quick: a tiny one), tied embeddings, prepared."""
    torch.manual_seed(0)
    sizes = QUICK_SIZE if plan.quick else SIZE
    config = LlamaConfig(**sizes, max_position_embeddings=2 * scoring.MAX_LENGTH, tie_word_embeddings=True)
    with plan.device:  # made where it is used: a CPU would take a minute
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).eval()
    prepare(model)
    return model


@lru_cache(maxsize=1)
def big_pairs(plan: Plan) -> list[Example]:
    """Pairs with real lengths, or with lengths drawn like them."""
    vocabulary = int(big_model(plan).config.vocab_size)
    return scoring.make_pairs(plan.data, 12 if plan.quick else 4000, vocabulary)


def nominal(name: str) -> float | None:
    """The data sheet's bfloat16 peak of a card by its name, in operations a second; None for a part of one (MIG)."""
    said = name.replace("-", " ").split()
    known = (peak for words, peak in NOMINAL.items() if all(word in said for word in words.split()))
    return None if "MIG" in said else next(known, None)


@lru_cache(maxsize=1)
def peaks(plan: Plan) -> dict[str, float]:
    """Operations a second of large bfloat16 products: as measured now, and as the card's data sheet has it."""
    size = 256 if plan.quick else 8192
    one, other = (torch.randn(size, size, device=plan.device, dtype=torch.bfloat16) for _ in range(2))
    times = 4 if plan.quick else 50
    took = min(seconds(plan, lambda: [one @ other for _ in range(times)]) for _ in range(3))  # the first sets up
    found = {"measured": 2.0 * size**3 * times / took}
    sheet = nominal(torch.cuda.get_device_name(plan.device)) if plan.card else None
    return found | ({"nominal": sheet} if sheet else {})


def flag(plan: Plan) -> Iterator[Line]:
    """Scoring: CHES alone, and CHES with the likelihoods."""
    model, pairs = big_model(plan), big_pairs(plan)
    models, work = scoring.Models(model, model, model), scoring.useful_work(model, pairs)
    for name, peak in peaks(plan).items():
        yield Line(f"bfloat16 peak, {name}, TFLOP/s", peak / 1e12)
    yield Line("pairs", float(len(pairs)))
    out = _one_batch(model, pairs)
    yield Line("rows of a tile of logits", float(out.tiles()[0].stop))
    yield Line("tiles of the first batch", float(len(out.tiles())))
    for name, way in {"CHES only": scoring.ours_ches, "CHES and likelihoods": scoring.ours_both}.items():
        way(models, pairs[: len(pairs) // 8 + 1])  # first calls set up the libraries
        took = _median(plan, partial(way, models, pairs))
        operations = work.body + (0 if way is scoring.ours_ches else work.head)
        yield Line(f"{name}: tokens/s", _unique(pairs) / took)
        yield from _shares(plan, name, operations / took, aim=SHARE)


def steps(plan: Plan) -> Iterator[Line]:
    """A training step of DPO with AdamW, bare and with every log on, in turn on one policy."""
    for count in (2,) if plan.quick else (8, 32):
        pairs = scoring.make_pairs(plan.data, count, int(big_model(plan).config.vocab_size))
        work = scoring.useful_work(big_model(plan), pairs)
        with tempfile.TemporaryDirectory() as folder:
            trainee, recorder = _trainee(plan, pairs), training.make_recorder(Path(folder))
            ways: dict[str, Callable[[], float]] = {
                "bare": partial(training.bare, trainee),
                "logged": partial(training.logged, trainee, recorder),
                "gradients of sides": partial(training.sides, trainee, pairs=False),
                "gradients of pairs": partial(training.sides, trainee, pairs=True),
            }
            took = _in_turn(plan, ways)
            del trainee, ways  # before the next one is made
        for name, each in took.items():
            yield Line(f"{count} pairs, {name}: seconds", each)
            yield Line(f"{count} pairs, {name}: tokens/s", _unique(pairs) / each)
        # the policy forward and, twice as much, backward; the reference forward
        yield from _shares(plan, f"{count} pairs, bare", 4 * (work.body + work.head) / took["bare"])
        for name in list(took)[1:]:
            ratio, aim = took[name] / took["bare"], name == "logged" and not plan.quick
            wanted = f"at most {LOGGED:g}" if aim else ""
            yield Line(f"{count} pairs, {name}: over bare", ratio, wanted, ratio <= LOGGED if aim else None, aim)


def trl(plan: Plan) -> Iterator[Line]:
    """TRL's reference pass and training step on the same pairs, with ours beside them."""
    if not trl_ways.installed():
        yield Line("TRL", f"{trl_ways.VERSION} is not installed, so not measured: pip install -e '.[trl]'")
        return
    model = big_model(plan)
    pairs = scoring.make_pairs(plan.data, 4 if plan.quick else 256, int(model.config.vocab_size))
    models = scoring.Models(model, model, model)
    for name, way in ({"ours": scoring.ours_both} | trl_ways.ways()).items():
        way(models, pairs[:2])
        yield Line(f"likelihoods, {name}: tokens/s", _unique(pairs) / _median(plan, partial(way, models, pairs)))
    few = pairs[: 2 if plan.quick else training.PAIRS]
    trainee = _trainee(plan, few)
    ways: dict[str, Callable[[], float]] = {"ours, bare": partial(training.bare, trainee)}
    ways |= trl_ways.steps(copy.deepcopy(trainee.policy), trainee.reference, few)
    for name, took in _in_turn(plan, ways).items():
        yield Line(f"step of {len(few)} pairs, {name}: seconds", took)


def _trainee(plan: Plan, pairs: Sequence[Example]) -> training.Trainee:
    """A policy of its own beside the big model as the reference."""
    model = big_model(plan)
    policy = copy.deepcopy(model)
    prepare(policy)
    return training.make_trainee(policy, model, pairs)


def _one_batch(model: Any, pairs: Sequence[Example]) -> Any:
    likelihood = TokenLikelihood(scoring.PAD)
    group = next(batches(pairs, likelihood.budget(model, pairs), likelihood.cost(model)))
    with torch.no_grad():
        return likelihood.run(model, likelihood.collate(group).to(device_of(model)))


def _unique(pairs: Sequence[Example]) -> int:
    """Tokens with the prompt counted once."""
    return sum(len(p.prompt_ids) + sum(len(row.completion_ids) for row in p.rows.values()) for p in pairs)


def _median(plan: Plan, work: Callable[[], Any]) -> float:
    return statistics.median(seconds(plan, work) for _ in range(1 if plan.quick else 3))


def _in_turn(plan: Plan, ways: dict[str, Callable[[], Any]]) -> dict[str, float]:
    """Median seconds of each way, all in turn, after a first time that is not counted."""
    for way in ways.values():
        way()
    rounds = [{name: seconds(plan, way) for name, way in ways.items()} for _ in range(2 if plan.quick else 10)]
    return {name: statistics.median(each[name] for each in rounds) for name in ways}


def _shares(plan: Plan, what: str, rate: float, aim: float | None = None) -> Iterator[Line]:
    """Share of either peak; the aim holds for a card whose nominal peak is known."""
    for name, peak in peaks(plan).items():
        judged = aim if name == "nominal" else None
        wanted = f"at least {judged:g}" if judged else ""
        right = rate / peak >= judged if judged else None
        yield Line(f"{what}: share of {name} peak", rate / peak, wanted, right, judged is not None)
