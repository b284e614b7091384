"""Models and pairs to measure on, and ways to score them: the two that people use today, written here for comparison,
and ours.

Every way is a function (model, reference, pairs) -> {pair_id: (numbers)}, so that equal work can be checked to be
equal: CHES where the way measures it, log-probs in nats where it measures them, NaN elsewhere.
"""

import copy
import gzip
import json
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil, gcd, nan
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from diagnostics.audit import audit_pairs
from diagnostics.batch import Batch, collate
from diagnostics.forward import Outputs, run
from diagnostics.pairs import read_pairs
from diagnostics.prepare import prepare
from diagnostics.scoring import rows as table_rows
from diagnostics.scoring import score
from diagnostics.sequences import Example, pair_of
from diagnostics.token_likelihood import TokenLikelihood
from trainers.models import load_policy, load_tokenizer

MAX_LENGTH = 1024  # tokens of prompt and completion
GIVEN_LENGTH = 256  # the same for a given model, whose training step has to fit into memory in every way
APART = 0.02  # how far a given model's reference stands off, in standard deviations of each weight
PADDED_PAIRS = 8  # pairs in one batch of the padded way
PAD, EOS = 0, 2


@dataclass(frozen=True)
class Size:
    """A random Llama with tied embeddings: 64 numbers a head, half as many key heads as query heads."""

    hidden: int
    inner: int
    layers: int


@dataclass(frozen=True)
class Scores:
    """What a way says about one pair; NaN where it does not measure it. kl: both directions, both sides, summed."""

    ches: float = nan
    chosen: float = nan
    rejected: float = nan
    kl: float = nan


@dataclass(frozen=True)
class Models:
    """The same weights twice, as loaded and prepared for our engine, and a prepared reference with other weights."""

    plain: Any
    ours: Any
    reference: Any

    def to_train(self, *, plain: bool) -> tuple[Any, Any]:
        """A policy to be trained, as loaded or prepared, and its reference: the same weights, which must stay."""
        policy = copy.deepcopy(self.plain)
        if plain:
            return policy, self.plain
        prepare(policy)
        return policy, self.ours


Way = Callable[[Models, Sequence[Example]], dict[str, Scores]]

SIZES = {"S": Size(256, 688, 6), "M": Size(512, 1376, 12)}  # 4.3 and 34.8 million parameters without the embedding
VOCABULARIES = {"32k": 32_000, "128k": 128_256}


@dataclass(frozen=True)
class Case:
    """What is measured on: a random model of a size and a vocabulary with random tokens of real lengths; or the model
    in a folder (or a hub id) with real pairs through its own chat template. pairs: how many."""

    size: str
    vocabulary: str
    pairs: int
    folder: str | None = None

    @property
    def name(self) -> str:
        """As the tables say it."""
        return Path(self.folder).name if self.folder else f"{self.size} {self.vocabulary}"

    def models(self) -> Models:
        """All models, in float32 and in eval mode."""
        if self.folder:
            found = Models(*(load_policy(self.folder) for _ in range(3)))
            _move(found.reference)
            return prepared(found)
        return make_models(SIZES[self.size], VOCABULARIES[self.vocabulary])

    def read(self, data: Path | None) -> list[Example]:
        """The pairs: evenly spaced places of the data's lengths, in random order."""
        if self.folder and data:
            return given_pairs(self.folder, data, self.pairs)
        vocabulary = load_tokenizer(self.folder).vocab_size if self.folder else VOCABULARIES[self.vocabulary]
        return make_pairs(data, self.pairs, vocabulary, GIVEN_LENGTH if self.folder else MAX_LENGTH)


def make_models(size: Size, vocabulary: int) -> Models:
    """All models of one size."""
    return prepared(Models(*(make_model(size, vocabulary, seed) for seed in (0, 0, 1))))


def prepared(models: Models) -> Models:
    """The same, ours and the reference prepared for our engine."""
    prepare(models.ours)
    prepare(models.reference)
    return models


@torch.no_grad()
def _move(model: nn.Module) -> None:
    """Weights a little apart from what they were, as after some training."""
    chance = torch.Generator().manual_seed(0)
    for weight in model.parameters():
        if weight.ndim > 1:
            weight.add_(torch.randn(weight.shape, generator=chance), alpha=APART * float(weight.std()))


def make_model(size: Size, vocabulary: int, seed: int) -> LlamaForCausalLM:
    """A random model, as loaded."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=size.hidden,
        intermediate_size=size.inner,
        num_hidden_layers=size.layers,
        num_attention_heads=size.hidden // 64,
        num_key_value_heads=size.hidden // 128,
        max_position_embeddings=2 * MAX_LENGTH,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config).eval()


def lengths_of(path: Path) -> list[tuple[int, int, int]]:
    """(prompt, chosen, rejected) lengths of hh-rlhf rows, a token being four characters, EOS included."""
    found = []
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        for line in lines:
            row = json.loads(line)
            prompt = row["chosen"].rfind("\n\nAssistant:") + len("\n\nAssistant:")
            sides = [ceil(len(row[side][prompt:]) / 4) + 1 for side in ("chosen", "rejected")]
            found.append((max(1, ceil(prompt / 4)), max(2, sides[0]), max(2, sides[1])))
    return found


def lengths_drawn(count: int) -> list[tuple[int, int, int]]:
    """The same without data: log-normal lengths fitted to hh-rlhf harmless-base (mean and spread of the logarithm)."""
    draw = random.Random(0).lognormvariate
    fits = ((4.33, 1.06), (3.36, 0.90), (3.55, 0.95))
    return [tuple(max(2, round(draw(mean, spread))) for mean, spread in fits) for _ in range(count)]  # type: ignore


def given_pairs(folder: str, data: Path, count: int) -> list[Example]:
    """Real pairs as this model is given them, those that are longer left out."""
    audit = audit_pairs(
        read_pairs(str(data)), load_tokenizer(folder), max_length=GIVEN_LENGTH, truncation="drop", append_eos=True
    )
    chance = random.Random(0)
    picked = spaced(sorted(audit.require_kept(), key=tokens), count)
    chance.shuffle(picked)
    return picked


def tokens(pair: Example) -> int:
    """Tokens that are run through a model: the prompt once, and both completions."""
    return len(pair.prompt_ids) + sum(len(row.completion_ids) for row in pair.rows.values())


def make_pairs(path: Path | None, count: int, vocabulary: int, longest: int = MAX_LENGTH) -> list[Example]:
    """Random tokens with real lengths: `count` evenly spaced places of the data's lengths, in random order."""
    picked = spaced(sorted(lengths_of(path) if path else lengths_drawn(2000), key=sum), count)
    chance = random.Random(0)
    chance.shuffle(picked)
    return [_pair(i, cut(*each, longest=longest), vocabulary, chance) for i, each in enumerate(picked)]


def spaced(ordered: Sequence[Any], count: int) -> list[Any]:
    """`count` of them at evenly spaced places."""
    return [ordered[int((i + 0.5) * len(ordered) / count)] for i in range(count)]


def cut(prompt: int, chosen: int, rejected: int, longest: int = MAX_LENGTH) -> tuple[int, int, int]:
    """Lengths within `longest`: completions at most half of it, the prompt what is left."""
    chosen, rejected = min(chosen, longest // 2), min(rejected, longest // 2)
    return min(prompt, longest - max(chosen, rejected)), chosen, rejected


def _pair(number: int, lengths: tuple[int, int, int], vocabulary: int, chance: random.Random) -> Example:
    prompt, chosen, rejected = (tuple(chance.choices(range(3, vocabulary), k=n)) for n in lengths)
    return pair_of(f"p{number}", number, prompt, (*chosen[:-1], EOS), (*rejected[:-1], EOS))


@torch.no_grad()
def script(models: Models, pairs: Sequence[Example]) -> dict[str, Scores]:
    """As the CHES paper's pipeline: one sequence at a time, every layer's states kept, full logits thrown away."""
    found = {}
    for pair in pairs:
        sums = [
            _last_layer_sum(models.plain, pair.prompt_ids, side)
            for side in (pair.chosen.completion_ids, pair.rejected.completion_ids)
        ]
        found[pair.pair_id] = Scores(ches=float(sums[0] @ sums[1] - sums[0] @ sums[0]))
    return found


def _last_layer_sum(model: nn.Module, prompt: Sequence[int], side: Sequence[int]) -> Tensor:
    output = model(input_ids=torch.tensor([[*prompt, *side]]), output_hidden_states=True, use_cache=False)
    return output.hidden_states[-1][0, len(prompt) - 1 : -1].sum(0, dtype=torch.float64)


@torch.no_grad()
def padded(models: Models, pairs: Sequence[Example]) -> dict[str, Scores]:
    """As trainers precompute reference log-probs: padded batches in data order, full logits, a gather."""
    found = {}
    for start in range(0, len(pairs), PADDED_PAIRS):
        batch = collate(pairs[start : start + PADDED_PAIRS], pad_token_id=PAD)
        both = padded_logps(models.plain, batch).view(2, -1)
        found |= {i: Scores(chosen=float(c), rejected=float(r)) for i, c, r in zip(batch.pair_ids, *both)}
    return found


def padded_logps(model: nn.Module, batch: Batch) -> Tensor:
    """(2B,) log-probs of all completions from full logits; one row at a time under the softmax, to save memory."""
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, use_cache=False).logits[:, :-1]
    targets = batch.input_ids[:, 1:]
    rows = zip(logits, targets[..., None], strict=True)
    logps = torch.stack([row.log_softmax(-1).gather(-1, target)[:, 0] for row, target in rows])
    return torch.where(batch.completion_mask[:, 1:].bool(), logps, 0.0).sum(-1)


def ours_ches(models: Models, pairs: Sequence[Example]) -> dict[str, Scores]:
    """CHES alone: the head is never applied."""
    return _ours(models.ours, pairs, head=False)


def ours_both(models: Models, pairs: Sequence[Example]) -> dict[str, Scores]:
    """CHES and log-probs."""
    return _ours(models.ours, pairs)


def ours_kl(models: Models, pairs: Sequence[Example]) -> dict[str, Scores]:
    """CHES, log-probs of two models, and the exact KL between them in both directions."""
    return _ours(models.ours, pairs, reference=lambda batch: run(models.reference, batch))


def _ours(
    model: nn.Module,
    pairs: Sequence[Example],
    reference: Callable[[Batch], Outputs] | None = None,
    head: bool = True,
) -> dict[str, Scores]:
    names = ["ches_score", "chosen_kl", "rejected_kl", "chosen_kl_reverse", "rejected_kl_reverse"]
    kept = names if reference else names[:1]
    found = {}
    for scored in score(model, pairs, likelihood=TokenLikelihood(PAD, head=head), reference=reference):
        for row in table_rows(scored.pairs, scored.stats, kept):
            kl = sum(row.get(name, nan) for name in names[1:])
            found[row["pair_id"]] = Scores(row["ches_score"], row["chosen_logps"], row["rejected_logps"], kl)
    return found


WAYS: dict[str, Way] = {
    "script": script,
    "padded": padded,
    "ours, CHES only": ours_ches,
    "ours, CHES and likelihoods": ours_both,
    "ours, KL both ways": ours_kl,
}


@dataclass(frozen=True)
class Work:
    """The floating-point operations that cannot be avoided: body and head, matrix products only."""

    body: float
    head: float


def useful_work(model: nn.Module, pairs: Sequence[Example]) -> Work:
    """Unique tokens through the body, completion tokens through the head; a last token itself predicts nothing."""
    completion = sum(len(p.chosen.completion_ids) + len(p.rejected.completion_ids) for p in pairs)
    unique = completion + sum(len(p.prompt_ids) - 2 for p in pairs)
    return Work(2.0 * sum(w.numel() for w in _body(model)) * unique, 2.0 * _head(model).numel() * completion)


def body_products(model: nn.Module, tokens: int = 2048) -> list[tuple[Tensor, Tensor]]:
    """Inputs and weights of every matrix product of one layer: shapes as often as the layers have them."""
    shapes = Counter(w.shape for w in _body(model) if w.ndim == 2)
    layers = gcd(*shapes.values())
    return [_product(shape, tokens) for shape, count in shapes.items() for _ in range(count // layers)]


def head_product(model: nn.Module, tokens: int = 256) -> tuple[Tensor, Tensor]:
    """Input and weight of the head."""
    return _product(_head(model).shape, tokens)


def _product(shape: torch.Size, tokens: int) -> tuple[Tensor, Tensor]:
    return torch.randn(tokens, shape[1]), torch.randn(shape)


def _head(model: Any) -> Tensor:
    return model.get_output_embeddings().weight


def _body(model: Any) -> list[Tensor]:
    """All weights but the embeddings."""
    embeddings = {id(_head(model)), id(model.get_input_embeddings().weight)}
    return [w for w in model.parameters() if id(w) not in embeddings]


def multiply(products: Sequence[tuple[Tensor, Tensor]]) -> float:
    """Do the products once; returns their floating-point operations."""
    for inputs, weight in products:
        nn.functional.linear(inputs, weight)
    return sum(2.0 * inputs.numel() * len(weight) for inputs, weight in products)


def agree(found: dict[str, dict[str, Scores]], *, relative: float = 1e-4) -> dict[str, float]:
    """Largest difference of each way from ours, relative to the largest value. Raises where it is above `relative`."""
    ours, worst = found["ours, KL both ways"], {}
    for way, scores in found.items():
        for name in ("ches", "chosen", "rejected"):
            values = [(getattr(scores[i], name), getattr(ours[i], name)) for i in ours]
            scale = max(abs(b) for _, b in values)
            gap: Any = max((abs(a - b) / scale for a, b in values if a == a), default=0.0)
            worst[way] = max(worst.get(way, 0.0), gap)
        if worst[way] > relative:
            raise AssertionError(f"{way} differs from ours by {worst[way]:.2g} of the largest value")
    return worst
