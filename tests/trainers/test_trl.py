"""Our objectives and our training run against TRL's own, where TRL is installed (`pip install -e '.[trl]'`).

TRL computes every loss inside its trainers, from the outputs of a model. So its real trainers are given, in place of
the model, one that says what log-probs it was told to say (`Said`), and their own compute_loss does the rest.
Value and gradient must agree to 1e-6, relative to the largest entry.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from diagnostics.stats import PairStats, SequenceStats
from trainers import objectives

os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
trl = pytest.importorskip("trl", reason="TRL is optional: pip install -e '.[trl]'")

PAIRS, VOCABULARY, LONGEST = 5, 7, 9
GROUPS = ("chosen", "rejected", "gold", "other_chosen", "other_rejected")


@dataclass(frozen=True)
class Rows:
    """Five groups of B rows of T tokens: both answers, a gold one, and both answers of another prompt.

    The first token of a row is the row's number, so that Said knows it again. ids, attention, completion: (5B, T).
    """

    ids: Tensor
    attention: Tensor
    completion: Tensor

    def of(self, *groups: str) -> "Rows":
        """These groups, one below the other."""
        index = torch.cat([torch.arange(PAIRS) + PAIRS * GROUPS.index(group) for group in groups])
        return Rows(self.ids[index], self.attention[index], self.completion[index])

    def pair(self, i: int) -> "Rows":
        """The rows of pair i alone, one a group."""
        return Rows(self.ids[i::PAIRS], self.attention[i::PAIRS], self.completion[i::PAIRS])


def random_rows(generator: torch.Generator, *, longest_prompt: int = 3) -> Rows:
    """Rows of ragged prompts and answers, padded on the right."""

    def lengths(low: int, high: int, n: int) -> Tensor:
        return torch.randint(low, high + 1, (n,), generator=generator)

    prompts = lengths(1, longest_prompt, PAIRS).repeat(len(GROUPS))[:, None]
    ends = prompts + lengths(1, LONGEST - longest_prompt, len(prompts))[:, None]
    ids = torch.randint(VOCABULARY, (len(prompts), LONGEST), generator=generator)
    ids[:, 0] = torch.arange(len(ids))
    position = torch.arange(LONGEST)
    return Rows(ids, (position < ends).long(), ((position >= prompts) & (position < ends)).long())


class Said(nn.Module):
    """A model that gives token t + 1 of row r the log-prob logps[r, t], whatever row r is.

    collisions[r, t] is what it says of the log sum of squared probabilities there.
    """

    def __init__(self, logps: Tensor, collisions: Tensor | None = None) -> None:
        super().__init__()
        self.logps, self.collisions = logps, torch.zeros_like(logps) if collisions is None else collisions

    def forward(self, input_ids: Tensor, labels: Tensor | None = None, fused_lm_head: bool = False, **_: Any) -> Any:
        """TRL's fused head, or logits."""
        logps = self.logps[input_ids[:, 0]]
        if not fused_lm_head or labels is None:
            return SimpleNamespace(logits=logits_of(logps, input_ids))
        zeros = torch.zeros_like(logps)
        return SimpleNamespace(
            log_probs=torch.where(labels[:, 1:] == -100, zeros, logps), log_sum_sq_probs=self.collisions[input_ids[:, 0]],
            entropy=zeros, mean_logits=zeros, is_top1=zeros.bool(),
        )  # fmt: skip


def logits_of(logps: Tensor, ids: Tensor) -> Tensor:
    """(B, T, V) logits, normalised already, that give each next token its log-prob and all others the rest alike."""
    rest = torch.log(-torch.expm1(logps)) - torch.log(torch.tensor(VOCABULARY - 1.0))
    is_next = nn.functional.one_hot(ids[:, 1:], VOCABULARY).bool()
    logits = torch.where(is_next, logps[..., None], rest[..., None])
    return torch.cat([logits, torch.zeros_like(logits[:, :1])], 1)


@dataclass(frozen=True)
class Case:
    """Random rows, what policy and reference say of their tokens, and the policy's collisions."""

    rows: Rows
    policy: Tensor
    reference: Tensor
    collisions: Tensor

    def side(self, group: str, logps: Tensor) -> SequenceStats:
        """One group as our objectives take it."""
        first = PAIRS * GROUPS.index(group)
        part = slice(first, first + PAIRS)
        mask = self.rows.completion[part, 1:]
        return SequenceStats(logps[part], mask, per_token_collision=self.collisions[part])

    def ours(self, objective: str, settings: dict[str, Any]) -> Tensor:
        """The mean loss of our objective."""
        named = {(g, m): self.side(g, getattr(self, m)) for g in GROUPS for m in ("policy", "reference")}
        other = [named[g, "policy"].logps - named[g, "reference"].logps for g in GROUPS[3:]]
        pair = PairStats(
            named["chosen", "policy"], named["rejected", "policy"],
            named["chosen", "reference"], named["rejected", "reference"],
            {"mismatched_logratios": (other[0] + other[1]).detach() / 2}, {"gold": named["gold", "policy"]},
        )  # fmt: skip
        return objectives.load(objective)(pair, **settings).losses.mean()

    def slopes(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Value, and gradient in every token's log-prob, of a loss."""
        return loss.detach().double(), torch.autograd.grad(loss, self.policy)[0].double()


def random_case(*, seed: int = 0, dtype: torch.dtype = torch.float64, free: bool = False, **rows: Any) -> Case:
    """Log-probs of -3 to 0 nats a token. free: the reference gives every answer log-prob 0, as if there were none."""
    generator = torch.Generator().manual_seed(seed)
    table = random_rows(generator, **rows)
    shape = (3, *table.ids[:, 1:].shape)
    policy, reference, collisions = (-0.05 - 2.9 * torch.rand(shape, generator=generator, dtype=torch.float64)).to(
        dtype
    )
    return Case(table, policy.requires_grad_(), reference * (not free), collisions)


def assert_agree(case: Case, ours: Tensor, theirs: Tensor) -> None:
    """Value and gradient, to 1e-6 of the largest entry; and both count."""
    for mine, other in zip(case.slopes(ours), case.slopes(theirs), strict=True):
        assert (mine - other).abs().max() <= 1e-6 * other.abs().max()
        assert other.abs().max() > 0


TrainerOf = Callable[..., Any]


@pytest.fixture(scope="module")
def trainer_of(lm_folder) -> TrainerOf:
    """Build a TRL trainer with its settings; its data set is never read, batches are handed to it."""
    from datasets import Dataset, disable_progress_bars
    from transformers import AutoModelForCausalLM, AutoTokenizer

    disable_progress_bars()
    row = {"prompt": "alpha", "chosen": " beta", "rejected": " gamma", "reference": " delta"}
    halves = [{"prompt": "alpha", "completion": " beta", "label": label} for label in (True, False)]
    model = AutoModelForCausalLM.from_pretrained(lm_folder)

    def build(trainer: Any, config: Any, reference: Said | None = None, **settings: Any) -> Any:
        plain = {"report_to": "none", "gradient_checkpointing": False, "bf16": False, "use_cpu": True}
        frozen = {} if reference is None else {"ref_model": AutoModelForCausalLM.from_pretrained(lm_folder)}
        made = trainer(
            model=model, args=config(tempfile.mkdtemp(), **plain, **settings), **frozen,
            train_dataset=Dataset.from_list(halves if "KTO" in trainer.__name__ else [row]),
            processing_class=AutoTokenizer.from_pretrained(lm_folder),
        )  # fmt: skip
        if reference is not None:
            made.ref_model = reference
        return made

    return build


DPO = {
    # TRL's settings, our objective, our settings
    "sigmoid": ({"loss_type": "sigmoid", "beta": 0.3}, "dpo", {"beta": 0.3}),
    "sigmoid, which ignores label_smoothing": ({"loss_type": "sigmoid", "label_smoothing": 0.2}, "dpo", {}),
    "hinge": ({"loss_type": "hinge", "beta": 0.2}, "hinge", {"beta": 0.2}),
    "ipo, which is on means": ({"loss_type": "ipo", "beta": 0.4}, "ipo_mean", {"tau": 0.4}),
    "robust": ({"loss_type": "robust", "label_smoothing": 0.15}, "robust_dpo", {"label_smoothing": 0.15}),
    "exo_pair": ({"loss_type": "exo_pair", "label_smoothing": 0.01}, "exo_pair", {"label_smoothing": 0.01}),
    "nca_pair": ({"loss_type": "nca_pair", "beta": 0.2}, "nca_pair", {"beta": 0.2}),
    "bco_pair, without a shift": ({"loss_type": "bco_pair", "beta": 0.2}, "bco_pair", {"beta": 0.2}),
    "sppo_hard, twice the authors'": ({"loss_type": "sppo_hard", "beta": 1e-3}, "sppo_hard", {}),
    "aot, sorted within a device": (
        {"loss_type": "aot", "beta": 0.2, "label_smoothing": 0.1}, "aot", {"beta": 0.2, "label_smoothing": 0.1},
    ),
    "aot_unpaired, sorted within a device": (
        {"loss_type": "aot_unpaired", "beta": 0.2, "label_smoothing": 0.1}, "aot_unpaired",
        {"beta": 0.2, "label_smoothing": 0.1},
    ),
    "apo_zero": ({"loss_type": "apo_zero"}, "apo_zero", {}),
    "apo_down": ({"loss_type": "apo_down"}, "apo_down", {}),
    "discopop": ({"loss_type": "discopop", "beta": 0.05, "discopop_tau": 0.07}, "discopop", {"tau": 0.07}),
    "sigmoid_norm": ({"loss_type": "sigmoid_norm", "beta": 5.0}, "ln_dpo", {}),
    "sigmoid and sft": (
        {"loss_type": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}, "dpo_nll",
        {"alpha": 0.3, "normalization": "batch_token_mean"},
    ),
    "sigmoid, forward_kl": ({"f_divergence_type": "forward_kl"}, "fdpo", {"divergence": "forward_kl"}),
    "sigmoid, js": ({"f_divergence_type": "js_divergence"}, "fdpo", {"divergence": "js"}),
    "sigmoid, reverse_kl": ({"f_divergence_type": "reverse_kl"}, "fdpo", {"divergence": "reverse_kl"}),
    "sigmoid, alpha_divergence, whose coefficient is one minus the paper's alpha": (
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7}, "fdpo",
        {"divergence": "alpha", "alpha": 0.3},
    ),
    "sigmoid, ld_alpha": ({"ld_alpha": 0.4}, "ld_dpo", {"alpha": 0.4}),
    "sigmoid, weighted": ({"use_weighting": True}, "wpo", {"beta": 0.1}),
    "apo_zero, weighted": ({"loss_type": "apo_zero", "use_weighting": True}, "wpo", {"beta": 0.1, "base": "apo_zero"}),
    "nca_pair, weighted": ({"loss_type": "nca_pair", "use_weighting": True}, "wpo", {"beta": 0.1, "base": "nca_pair"}),
}  # fmt: skip


def dpo_loss(trainer_of: TrainerOf, case: Case, **settings: Any) -> Tensor:
    """What TRL's DPOTrainer makes of a case."""
    trainer = trainer_of(trl.DPOTrainer, trl.DPOConfig, Said(case.reference), **settings)
    rows = case.rows.of("chosen", "rejected")
    inputs = {"input_ids": rows.ids, "attention_mask": rows.attention, "completion_mask": rows.completion}
    return trainer.compute_loss(Said(case.policy, case.collisions), inputs)


@pytest.mark.parametrize(("theirs", "name", "settings"), DPO.values(), ids=DPO)
def test_dpo_trainer(trainer_of, theirs, name, settings):
    """Every loss type of DPOTrainer. TRL's alpha divergence takes float32 alone."""
    dtype = torch.float32 if "f_alpha_divergence_coef" in theirs else torch.float64
    case = random_case(dtype=dtype)
    assert_agree(case, case.ours(name, settings), dpo_loss(trainer_of, case, **theirs))
