"""Our objectives and our training run against TRL's own, where TRL is installed (`pip install -e '.[trl]'`).

TRL computes every loss inside its trainers, from the outputs of a model. So its real trainers are given, in place of
the model, one that says what log-probs it was told to say (`Said`), and their own compute_loss does the rest.
Value and gradient must agree to 1e-6, relative to the largest entry.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import Dataset, disable_progress_bars
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from diagnostics.audit import audit_pairs
from diagnostics.pairs import read_pairs
from diagnostics.runlog import read_run
from diagnostics.stats import PairStats, SequenceStats
from trainers import objectives, run
from trainers.config import make_config

trl = pytest.importorskip("trl", minversion="1.16.0", reason="TRL is optional: pip install -e '.[trl]'")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:You are importing from 'trl.experimental'")

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
        logps = torch.where(labels[:, 1:] == -100, zeros, logps)
        rest = {"entropy": zeros, "mean_logits": zeros, "is_top1": zeros.bool()}
        return SimpleNamespace(log_probs=logps, log_sum_sq_probs=self.collisions[input_ids[:, 0]], **rest)


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
        pair = PairStats(
            named["chosen", "policy"], named["rejected", "policy"],
            named["chosen", "reference"], named["rejected", "reference"],
            {"mismatched_logratios": self.mismatched()}, {"gold": named["gold", "policy"]},
        )  # fmt: skip
        return objectives.load(objective)(pair, **settings).losses.mean()

    def mismatched(self) -> Tensor:
        """(B,) log-ratios of the other prompts' answers, mean of chosen and rejected."""
        ratios = [self.side(g, self.policy).logps - self.side(g, self.reference).logps for g in GROUPS[3:]]
        return torch.stack(ratios).mean(0).detach()

    def slopes(self, loss: Tensor) -> tuple[Tensor, Tensor]:
        """Value, and gradient in every token's log-prob, of a loss."""
        return loss.detach().double(), torch.autograd.grad(loss, self.policy)[0].double()


def random_case(*, seed: int = 0, dtype: torch.dtype = torch.float64, free: bool = False, **rows: Any) -> Case:
    """Log-probs of -3 to 0 nats a token. free: the reference gives every answer log-prob 0, as if there were none."""
    generator = torch.Generator().manual_seed(seed)
    table = random_rows(generator, **rows)
    numbers = torch.rand((3, *table.ids[:, 1:].shape), generator=generator, dtype=torch.float64)
    policy, reference, collisions = (-0.05 - 2.9 * numbers).to(dtype)
    return Case(table, policy.requires_grad_(), reference * (not free), collisions)


def assert_agree(case: Case, ours: Tensor, theirs: Tensor) -> None:
    """Value and gradient, to 1e-6 of the largest entry; and both count."""
    for mine, other in zip(case.slopes(ours), case.slopes(theirs), strict=True):
        assert (mine - other).abs().max() <= 1e-6 * other.abs().max()
        assert other.abs().max() > 0


TrainerOf = Callable[..., Any]


@pytest.fixture(scope="module")
def trainer_of(lm_folder, tmp_path_factory) -> TrainerOf:
    """Build a TRL trainer with its settings; its data set is never read, batches are handed to it."""
    disable_progress_bars()
    row = {"prompt": "alpha", "chosen": " beta", "rejected": " gamma", "reference": " delta"}
    halves = [{"prompt": "alpha", "completion": " beta", "label": label} for label in (True, False)]
    model = AutoModelForCausalLM.from_pretrained(lm_folder)

    def build(trainer: Any, config: Any, reference: Said | None = None, **settings: Any) -> Any:
        plain = {"report_to": "none", "gradient_checkpointing": False, "bf16": False, "use_cpu": True}
        frozen = {} if reference is None else {"ref_model": AutoModelForCausalLM.from_pretrained(lm_folder)}
        made = trainer(
            model=model, args=config(str(tmp_path_factory.mktemp("trl")), **plain, **settings), **frozen,
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


DIFFER = {
    "alpha of the divergence": (
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7}, "fdpo",
        {"divergence": "alpha", "alpha": 0.7},
    ),
    "label_smoothing of sigmoid": ({"label_smoothing": 0.2}, "cdpo", {"label_smoothing": 0.2}),
    "ipo": ({"loss_type": "ipo"}, "ipo_sum", {"tau": 0.1}),
}  # fmt: skip


@pytest.mark.parametrize(("theirs", "name", "settings"), DIFFER.values(), ids=DIFFER)
def test_the_same_name_for_something_else(trainer_of, theirs, name, settings):
    """What our docstrings warn of: settings of equal name and value, and another loss."""
    case = random_case(dtype=torch.float32)
    difference = case.ours(name, settings) - dpo_loss(trainer_of, case, **theirs)
    assert difference.abs() > 1e-3


KTO = {
    "kto": ({"loss_type": "kto", "beta": 0.2}, "kto", {"beta": 0.2}),
    "kto, weights": (
        {"desirable_weight": 1.3, "undesirable_weight": 0.7}, "kto",
        {"desirable_weight": 1.3, "undesirable_weight": 0.7},
    ),
    "apo_zero_unpaired": (
        {"loss_type": "apo_zero_unpaired", "undesirable_weight": 0.7}, "apo_zero_unpaired", {"undesirable_weight": 0.7},
    ),
}  # fmt: skip


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(("theirs", "name", "settings"), KTO.values(), ids=KTO)
def test_kto_trainer(trainer_of, theirs, name, settings, seed):
    """Every loss type of KTOTrainer, on paired data: chosen answers desirable, rejected ones not.

    Both are given the same mismatched answers: TRL's own pick (the answer before, in its batch) is not ours (the
    next prompt's two answers). With seed 0 the KL estimate is cut at 0, with seed 1 it is above.
    """
    case = random_case(seed=seed)
    assert (case.mismatched().mean() > 0) == (seed == 1)
    rows, others = case.rows.of("chosen", "rejected"), case.rows.of("other_chosen", "other_rejected")
    trainer = trainer_of(trl.KTOTrainer, trl.KTOConfig, Said(case.reference), **theirs)
    inputs = {"input_ids": rows.ids, "attention_mask": rows.attention, "completion_mask": rows.completion}
    inputs |= {"KL_input_ids": others.ids, "KL_attention_mask": others.attention}
    inputs |= {"KL_completion_mask": others.completion, "label": torch.arange(2 * PAIRS) < PAIRS}
    loss = trainer.compute_loss(Said(case.policy), inputs)
    assert_agree(case, case.ours(name, settings), loss)


CPO = {
    "simpo, gamma for its ratio to beta": (
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.2, "cpo_alpha": 0.0}, "simpo", {"gamma_beta_ratio": 0.6},
    ),
    "simpo with cpo_alpha": (
        {"loss_type": "simpo", "beta": 2.0, "simpo_gamma": 1.2, "cpo_alpha": 0.4}, "cpo_simpo",
        {"beta": 2.0, "gamma_beta_ratio": 0.6, "alpha": 0.4},
    ),
    "alphapo": (
        {"loss_type": "alphapo", "beta": 2.5, "simpo_gamma": 0.1, "alpha": 0.25}, "alphapo",
        {"beta": 2.5, "gamma": 0.1, "alpha": 0.25},
    ),
    "sigmoid": ({"loss_type": "sigmoid", "beta": 0.2, "cpo_alpha": 0.7}, "cpo", {"beta": 0.2, "alpha": 0.7}),
    "hinge on summed log-probs": (
        {"loss_type": "hinge", "beta": 1.0, "cpo_alpha": 0.0}, "slic", {"delta": 1.0, "alpha": 0.0},
    ),
    "hinge, as against a reference": (
        {"loss_type": "hinge", "beta": 0.2, "cpo_alpha": 0.0}, "hinge", {"beta": 0.2},
    ),
    "ipo on means, as against a reference": (
        {"loss_type": "ipo", "beta": 0.4, "cpo_alpha": 0.0}, "ipo_mean", {"tau": 0.4},
    ),
    "sigmoid, smoothed, as against a reference": (
        {"loss_type": "sigmoid", "label_smoothing": 0.2, "cpo_alpha": 0.0}, "cdpo", {"label_smoothing": 0.2},
    ),
}  # fmt: skip


def batches(case: Case, *, whole: bool) -> list[Rows]:
    """All pairs as one batch, or each pair as a batch of its own; groups stand one below the other.

    TRL's likelihood term is one mean over all tokens of a batch: batch_token_mean, and any mean of one pair alone.
    """
    return [case.rows] if whole else [case.rows.pair(i) for i in range(PAIRS)]


def ours_in(case: Case, name: str, settings: dict[str, Any], *, whole: bool) -> Tensor:
    """Our mean loss, with the likelihood as these batches have it."""
    known = "normalization" in objectives.hyperparameters(name)
    normalization = {"normalization": "batch_token_mean" if whole else "sequence_mean"} if known else {}
    return case.ours(name, settings | normalization)


def sides_loss(trainer: Any, case: Case, *, whole: bool) -> Tensor:
    """The mean over batches of a CPO or ORPO trainer's loss."""
    losses = []
    for rows in batches(case, whole=whole):
        labels = rows.ids.masked_fill(rows.completion == 0, -100)
        parts = {"input_ids": rows.ids, "attention_mask": rows.attention, "labels": labels}
        groups = {key: part.chunk(len(GROUPS)) for key, part in parts.items()}
        inputs = {f"{side}_{key}": group[k] for k, side in enumerate(GROUPS[:2]) for key, group in groups.items()}
        losses.append(trainer.compute_loss(Said(case.policy), inputs))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("whole", [True, False], ids=["whole batch", "one by one"])
@pytest.mark.parametrize(("theirs", "name", "settings"), CPO.values(), ids=CPO)
def test_cpo_trainer(trainer_of, theirs, name, settings, whole):
    """Every loss type of CPOTrainer, which has no reference: where ours has one, it gives every answer log-prob 0."""
    from trl.experimental import cpo

    case = random_case(free=True)
    trainer = trainer_of(cpo.CPOTrainer, cpo.CPOConfig, **theirs)
    assert_agree(case, ours_in(case, name, settings, whole=whole), sides_loss(trainer, case, whole=whole))


@pytest.mark.parametrize("whole", [True, False], ids=["whole batch", "one by one"])
def test_orpo_trainer(trainer_of, whole):
    """TRL's NLL is of prompt and response, ours of the response: prompts of one token are where both agree."""
    from trl.experimental import orpo

    case = random_case(longest_prompt=1)
    trainer = trainer_of(orpo.ORPOTrainer, orpo.ORPOConfig, beta=0.3)
    assert_agree(case, ours_in(case, "orpo", {"beta": 0.3}, whole=whole), sides_loss(trainer, case, whole=whole))


TPO = {
    "sigmoid": ({"loss_type": "sigmoid", "beta": 0.2, "tpo_alpha": 0.6}, "triple_po", {"beta": 0.2, "alpha": 0.6}),
    "tpo-l": (
        {"loss_type": "tpo-l", "beta": 0.2, "tpo_alpha": 0.6, "tpo_l_gamma": 0.3}, "triple_po",
        {"beta": 0.2, "alpha": 0.6, "gamma": 0.3, "length_normalized": True},
    ),
    "hinge, as against a reference": ({"loss_type": "hinge", "beta": 0.2, "tpo_alpha": 0.0}, "hinge", {"beta": 0.2}),
    "ipo, as against a reference": ({"loss_type": "ipo", "beta": 0.4, "tpo_alpha": 0.0}, "ipo_mean", {"tau": 0.4}),
}  # fmt: skip


@pytest.mark.parametrize("whole", [True, False], ids=["whole batch", "one by one"])
@pytest.mark.parametrize(("theirs", "name", "settings"), TPO.values(), ids=TPO)
def test_tpo_trainer(trainer_of, theirs, name, settings, whole):
    """Every loss type of TPOTrainer, which has no reference: where ours has one, it gives every answer log-prob 0."""
    from trl.experimental import tpo

    case = random_case(free=True)
    trainer = trainer_of(tpo.TPOTrainer, tpo.TPOConfig, **theirs)
    losses = []
    for rows in batches(case, whole=whole):
        n = len(rows.ids) // len(GROUPS) * (3 if theirs["tpo_alpha"] else 2)
        inputs = {"input_ids": rows.ids[:n], "attention_mask": rows.attention[:n]}
        losses.append(trainer.compute_loss(Said(case.policy), inputs | {"completion_mask": rows.completion[:n]}))
    assert_agree(case, ours_in(case, name, settings, whole=whole), torch.stack(losses).mean())


STEPS = 3
SAME = {
    "learning_rate": 1e-3, "lr_scheduler_type": "linear", "max_steps": STEPS, "per_device_train_batch_size": 4,
    "train_sampling_strategy": "sequential", "logging_steps": 1, "report_to": "none", "seed": 0, "beta": 0.1,
    "weight_decay": 0.1, "max_grad_norm": 0.5,
}  # fmt: skip
LOGGED = [f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")]
LOGGED += ["logps/chosen", "logps/rejected", "grad_norm", "learning_rate"]


@dataclass(frozen=True)
class Trained:
    """A finished run: ids of its pairs, one row a step, and the weights it ended with."""

    ids: list[tuple[list[int], ...]]
    steps: pd.DataFrame
    weights: dict[str, Tensor]


def train_ours(folder: str, data: str, out: Path, **keys: Any) -> Trained:
    """By `chesboard train`'s own function."""
    settings = {"model": folder, "data": data, "output_dir": str(out), "heldout_pairs": 0, "probe_pairs": 1}
    log = read_run(run.train(make_config(settings | SAME | keys)))
    pairs = audit_pairs(
        read_pairs(data), AutoTokenizer.from_pretrained(folder), max_length=128, truncation="error"
    ).require_kept()
    ids = [(list(p.prompt_ids), list(p.chosen.completion_ids), list(p.rejected.completion_ids)) for p in pairs]
    steps = log.steps[log.steps["step"] > 0].reset_index(drop=True)
    return Trained(ids, steps, load_file(out / "model" / "model.safetensors"))


def train_theirs(model: Any, reference: Any, folder: str, data: str, out: Path, **keys: Any) -> Trained:
    """By TRL's DPOTrainer, which tokenises the same texts by itself."""

    losses: list[float] = []

    class Heard(trl.DPOTrainer):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            loss = super().compute_loss(*args, **kwargs)
            losses.append(loss.item())
            return loss

    rows = [json.loads(line) for line in Path(data).read_text().splitlines()]
    plain = {"gradient_checkpointing": False, "bf16": False, "use_cpu": True, "save_strategy": "no"}
    trainer = Heard(
        model, reference, trl.DPOConfig(str(out), **plain, **SAME, **keys), train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
    )  # fmt: skip
    trainer.train()
    ids = [tuple(row[key] for key in ("prompt_ids", "chosen_ids", "rejected_ids")) for row in trainer.train_dataset]
    steps = pd.DataFrame(trainer.state.log_history[:STEPS]).assign(loss=losses)
    return Trained(ids, steps, {k: v.detach() for k, v in trainer.model.state_dict().items()})


@pytest.mark.parametrize(("objective", "keys"), [("dpo", {}), ("wpo", {"use_weighting": True})])
def test_three_steps(lm_folder, pairs_file, tmp_path, objective, keys):
    """Same weights, texts, order and optimizer give the same tokens, losses, rewards, norms and final weights.

    In float32: losses to 1e-6, every weight tensor to 1e-5 of its norm, and to 1e-4 of the way it went.
    """
    start, reference = (AutoModelForCausalLM.from_pretrained(lm_folder, dtype=torch.float32) for _ in range(2))
    before = {name: weight.clone() for name, weight in start.state_dict().items()}
    ours = train_ours(lm_folder, pairs_file, tmp_path / "ours", objective=objective)
    theirs = train_theirs(start, reference, lm_folder, pairs_file, tmp_path / "theirs", **keys)
    assert ours.ids == theirs.ids
    assert all(answer[-1] == start.config.eos_token_id for row in theirs.ids for answer in row[1:])
    np.testing.assert_allclose(ours.steps["loss"], theirs.steps["loss"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(ours.steps[LOGGED], theirs.steps[LOGGED], rtol=1e-6, atol=1e-6)
    assert ours.steps["loss"].diff().abs()[1:].min() > 1e-3
    assert ours.weights.keys() == theirs.weights.keys()
    for name, weight in theirs.weights.items():
        gap = (ours.weights[name] - weight).norm()
        assert gap <= 1e-5 * weight.norm(), name
        assert gap <= 1e-4 * (weight - before[name]).norm(), name
