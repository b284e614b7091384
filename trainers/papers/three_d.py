"""Drastic drop, degradation, dispersion: where DPO puts the probability in a model small enough to enumerate.

3D-Properties (arXiv:2406.07327) says of DPO that the rejected answer's probability drops drastically, that the chosen
answer's own push vanishes with it until the chosen answer falls too, and that the mass goes to answers nobody has
seen; milder where both answers are the model's own. Measured here: a small network that maps each prompt to a
distribution over all answers, trained by the product's own objectives, every probability exact; the gradients by
autograd; and a language model on the pairs whose answers it finds most and least likely a token.
"""

from collections.abc import Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from diagnostics.errors import UserError
from diagnostics.outcomes import fell
from diagnostics.stats import PairStats, SequenceStats
from diagnostics.tables import Field
from trainers import objectives
from trainers.loop.trainer import incentives
from trainers.papers import COMMON, RUNS, SEED, WORLD, Setting
from trainers.studies.paper_runs import Order, Trial, given_bases, measure, start_of, subset, train_then, world_bases

SEEDS = 5
TUNED = range(16)
DATA = ""
_OWN = "not read; ours"
_PLAIN = "not read; a common choice"
SETTINGS = (
    Setting("prompts of the toy model", 8, _OWN, 8),
    Setting("answers of the toy model", 32, _OWN, 32),
    Setting("hidden width", 16, _OWN, 16),
    Setting("hidden width of the narrow network", 4, "ours, a control", 4),
    Setting("spread of the start's logits", 1.5, _OWN, 1.5),
    Setting("share of answers called likely", 0.25, _OWN, 0.25),
    Setting("toy steps", 200, _OWN, 200),
    Setting("toy learning rate (Adam)", 1e-2, _OWN, 1e-2),
    Setting("toy learning rate (SGD)", 1.0, "ours, a control", 1.0),
    Setting("toy learning rate (RMSprop)", 3e-3, "ours, a control", 3e-3),
    Setting("beta minus of Flex-DPO", 0.05, "not found; half of beta", 0.05),
    Setting("weight of the SFT term", 0.1, "not found", 0.1),
    *COMMON,
    Setting("num_train_epochs", 1.0, _PLAIN, 1.0),
    Setting("probe_pairs", 1024, "ours", None, "every pair of the refusal world"),
    Setting("SFT steps", None, "starts from an instruct model", None, "400, the refusal world's own"),
)
TABLES = {
    "exact": {"name": Field(str, "ratio, vanish or diverge"), "value": Field(float, "see exact")},
    "toy": {
        "seed": SEED,
        "source": Field(str, "which answers the pairs are drawn from, a name of SOURCES"),
        "objective": Field(str, "a name of VARIANTS"),
        "optimizer": Field(str, "adam, or a name of CONTROLS"),
        "step": Field(float, "full-batch updates made"),
        "chosen": Field(float, "probability of the chosen answer, mean over prompts as all that follow"),
        "rejected": Field(float, "probability of the rejected answer"),
        "unseen": Field(float, "probability of all others"),
        "chosen_change": Field(float, "of ln chosen since the start, nats"),
        "rejected_change": Field(float, "of ln rejected since the start, nats"),
        "chosen_push": Field(float, "-dL / d ln chosen"),
        "rejected_push": Field(float, "dL / d ln rejected"),
        "log_ratio": Field(float, "ln of chosen over rejected, the ratio of the two gradients"),
        "fell": Field(float, "share of prompts whose chosen answer fell"),
    },
    "runs": RUNS | {"world": WORLD, "case": Field(str, "trained on: all pairs, on (the likelier half) or off")},
}

# which answers a pair is drawn from, by the start model's rank: all, its likely ones, its unlikely ones
SOURCES = {
    "any": ("all", "all"),
    "on": ("likely", "likely"),
    "off": ("unlikely", "unlikely"),
    "chosen on, rejected off": ("likely", "unlikely"),
    "chosen off, rejected on": ("unlikely", "likely"),
}


CONTROLS = ("half", "sgd", "rmsprop", "narrow", "table")


class Case(NamedTuple):
    """One toy run. optimizer: adam, half (Adam at half its rate), sgd, rmsprop, narrow (Adam on a network so narrow
    that answers must share) or table (Adam on a logit for every prompt and answer: nothing is shared)."""

    source: str
    objective: str = "dpo"
    optimizer: str = "adam"


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """What autograd says of the loss, the toy model's runs step by step, and the language model's."""
    toy = measure(order, toy_runs, [(seed, dict(settings)) for seed in order.numbers], "toy models")
    return {"exact": exact(), "toy": pd.concat(toy, ignore_index=True), "runs": _language_model(order, settings)}


def exact(count: int = 1000) -> pd.DataFrame:
    """name, value: largest relative error of |dL/dpi_l| / |dL/dpi_w| = pi_w / pi_l over random pairs, and the power of
    pi_l with which each derivative goes as pi_l -> 0 at fixed pi_w (DPO, beta 0.1)."""
    rng = np.random.default_rng(0)
    chosen, rejected = (torch.from_numpy(rng.uniform(-12, 0, count)).exp() for _ in range(2))
    own, other = probability_gradients(chosen, rejected)
    error = (other / own * rejected / chosen - 1).abs().max()
    far = torch.tensor([1e-200, 1e-220], dtype=torch.float64)
    slopes = [_power(g, far) for g in probability_gradients(torch.full((2,), 0.1, dtype=torch.float64), far)]
    return pd.DataFrame({"name": ["ratio", "vanish", "diverge"], "value": [float(error), *slopes]})


def probability_gradients(chosen: Tensor, rejected: Tensor) -> tuple[Tensor, Tensor]:
    """(B,) each: |dL/dpi_w| and |dL/dpi_l| of DPO at the given probabilities; the reference has 0.1 for both."""
    leaves = [p.clone().requires_grad_() for p in (chosen, rejected)]
    start = torch.full_like(chosen, 0.1).log()
    loss = objectives.load("dpo")(_pair(leaves[0].log(), leaves[1].log(), start, start), beta=0.1).losses.sum()
    own, other = torch.autograd.grad(loss, leaves)
    return own.abs(), other.abs()


def cases() -> list[Case]:
    """Every toy run of a seed: DPO on each source, each other objective, and the controls."""
    found = [Case(source) for source in SOURCES] + [Case("any", name) for name in VARIANTS if name != "dpo"]
    return [*found, *(Case("any", "dpo", how) for how in CONTROLS), Case("any", "Flex-DPO", "sgd")]


def toy_runs(seed: int, settings: Mapping[str, Any]) -> pd.DataFrame:
    """All toy runs of a seed, from the same start model and, for each source, on the same pairs; the narrow network
    has a start and pairs of its own."""
    wide = _Toy(seed, settings, settings["hidden width"])
    narrow = _Toy(seed, settings, settings["hidden width of the narrow network"])
    frames = []
    for case in cases():
        rows = _train_toy(narrow if case.optimizer == "narrow" else wide, case, settings)
        frames.append(pd.DataFrame(rows).assign(seed=seed, **case._asdict()))
    return pd.concat(frames, ignore_index=True)


class _Toy:
    """A start model: network, prompts as one-hot rows, log-probs (prompts, answers), and the pairs of each source."""

    def __init__(self, seed: int, settings: Mapping[str, Any], width: int) -> None:
        prompts, answers = settings["prompts of the toy model"], settings["answers of the toy model"]
        self.inputs = torch.eye(prompts, dtype=torch.float64)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            logits = settings["spread of the start's logits"] * torch.randn(prompts, answers).double()
            hidden, head = nn.Linear(prompts, width), nn.Linear(width, answers)
        self.network = nn.Sequential(hidden, nn.Tanh(), head).double()
        _fit(self.network, self.inputs, logits.softmax(-1))
        self.logps = self.network(self.inputs).log_softmax(-1).detach()
        few = max(2, round(settings["share of answers called likely"] * answers))
        self.pairs = {source: draw_pairs(self.logps, source, few, seed) for source in SOURCES}


def _fit(network: nn.Module, inputs: Tensor, wanted: Tensor) -> None:
    """Bring the network near the wanted distributions, (prompts, answers)."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    for _ in range(500):
        optimizer.zero_grad()
        (-(wanted * network(inputs).log_softmax(-1)).sum(-1).mean()).backward()
        optimizer.step()


def draw_pairs(logps: Tensor, source: str, few: int, seed: int) -> Tensor:
    """(prompts, 2) numbers of the chosen and the rejected answer of each prompt, two different ones.

    few: how many of a prompt's answers are likely, and how many unlikely, by their (prompts, answers) log-probs.
    """
    rng = np.random.default_rng([seed, list(SOURCES).index(source)])
    pairs = []
    for row in logps:
        order = row.argsort(descending=True).tolist()
        groups = {"all": order, "likely": order[:few], "unlikely": order[-few:]}
        chosen, rejected = (groups[name] for name in SOURCES[source])
        first = int(rng.choice(chosen))
        pairs.append([first, int(rng.choice([a for a in rejected if a != first]))])
    return torch.tensor(pairs)


class Table(nn.Module):
    """A logit for every prompt and answer: nothing is shared between answers."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits.clone())

    def forward(self, inputs: Tensor) -> Tensor:
        """(prompts, answers) logits."""
        return inputs @ self.logits


VARIANTS = {
    "dpo": ("dpo", {}),
    "Flex-DPO": ("flex_dpo", {}),
    "DPO + SFT": ("dpo_nll", {}),
    "DPOP": ("dpop", {"penalty": 5.0}),
    "IPO": ("ipo_sum", {}),
    "cDPO": ("cdpo", {"label_smoothing": 0.1}),
    "NCA": ("nca_pair", {}),
    "SquaredPO": ("squared_dpo", {}),
}


def _objective(label: str, settings: Mapping[str, Any]) -> tuple[objectives.Objective, dict[str, Any]]:
    """The product's function and its hyperparameters, with the analysis' beta wherever it has one."""
    name, own = VARIANTS[label]
    beta, known = settings["beta"], objectives.hyperparameters(name)
    given = {"beta": beta, "beta_plus": beta, "tau": beta, "beta_minus": settings["beta minus of Flex-DPO"]}
    given |= {"alpha": settings["weight of the SFT term"]} | own
    return objectives.load(name), {k: v for k, v in given.items() if k in known}


def _train_toy(toy: _Toy, case: Case, settings: Mapping[str, Any]) -> list[dict[str, float]]:
    """Full-batch steps on one pair a prompt; the measurements."""
    model = Table(toy.logps) if case.optimizer == "table" else deepcopy(toy.network)
    function, hyper = _objective(case.objective, settings)
    optimizer, steps, rows = _optimizer(model, case.optimizer, settings), int(settings["toy steps"]), []
    before = toy.logps.gather(1, toy.pairs[case.source])
    for step in range(steps + 1):
        now = model(toy.inputs).log_softmax(-1).gather(1, toy.pairs[case.source])
        stats = _pair(now[:, 0], now[:, 1], before[:, 0], before[:, 1])
        losses = function(stats, **hyper).losses
        rows.append({"step": float(step)} | _measure(now.detach(), before, stats, losses))
        optimizer.zero_grad()
        losses.mean().backward()
        optimizer.step()
    return rows


def _measure(now: Tensor, before: Tensor, stats: PairStats, losses: Tensor) -> dict[str, float]:
    """Means over the prompts: probabilities of chosen, rejected and all others; changes of log-prob since the start
    (nats); pushes -dL/dlog pi_w and dL/dlog pi_l; log of the gradient ratio pi_w / pi_l; share of chosen that fell."""
    chances, moved, push = now.exp(), now - before, incentives(stats, losses)
    means = {
        "chosen": chances[:, 0],
        "rejected": chances[:, 1],
        "unseen": 1 - chances.sum(-1),
        "chosen_change": moved[:, 0],
        "rejected_change": moved[:, 1],
        "chosen_push": push["chosen_incentive"],
        "rejected_push": push["rejected_incentive"],
        "log_ratio": now[:, 0] - now[:, 1],
        "fell": torch.as_tensor(fell(moved[:, 0].numpy())),
    }
    return {name: float(values.mean()) for name, values in means.items()}


def _pair(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> PairStats:
    """Answers of one token each, by their (B,) log-probs."""
    sides = [
        SequenceStats(side[:, None], torch.ones_like(side, dtype=torch.long)[:, None])
        for side in (chosen, rejected, ref_chosen, ref_rejected)
    ]
    return PairStats(sides[0], sides[1], sides[2], sides[3])


def _optimizer(model: nn.Module, name: str, settings: Mapping[str, Any]) -> torch.optim.Optimizer:
    rate = settings["toy learning rate (Adam)"]
    if name == "sgd":
        return torch.optim.SGD(model.parameters(), lr=settings["toy learning rate (SGD)"])
    if name == "rmsprop":
        return torch.optim.RMSprop(model.parameters(), lr=settings["toy learning rate (RMSprop)"])
    return torch.optim.Adam(model.parameters(), lr=rate / 2 if name == "half" else rate)


def _power(gradients: Tensor, at: Tensor) -> float:
    """d log(gradient) / d log(probability) between two probabilities."""
    return float(gradients.log().diff() / at.log().diff())


def _language_model(order: Order, settings: Mapping[str, Any]) -> pd.DataFrame:
    """DPO on all pairs, on the half that the reference finds most likely a token, and on the other half."""
    toy = order.scale == "toy"
    if not toy and len(order.given) < 2:
        raise UserError(
            "paper three_d: which model and data the paper takes is not known here; give --model and --data."
        )
    bases = world_bases(order, "refusal", settings) if toy else given_bases(order, settings, heldout_pairs=0)
    return train_then(order, [base.but({"case": "all"}) for base in bases], partial(_halves, order))


def _halves(order: Order, whole: Trial, run: Path) -> list[Trial]:
    """The same run on either half of the probed pairs by the reference's log-prob a token, each probed on its own."""
    likely = likelihood(run).sort_values(ascending=False, kind="stable")
    count, trials = len(likely) // 2, []
    for case, ids in {"on": likely.index[:count], "off": likely.index[count:]}.items():
        name, every = f"{run.name}-{case}-policy", [str(i) for i in ids]
        data = subset(order, name, whole.keys["data"], every, whole.keys.get("split"))
        trials.append(whole.but({"case": case}, data=data, probe_pairs=len(every), split=None))
    return trials


def likelihood(run: Path) -> pd.Series:
    """Mean of the two answers' reference log-probs a token (nats) of every probed pair, by pair_id."""
    start = start_of(run)
    sides = [start[f"ref_{side}_logps"] / start[f"{side}_length"] for side in ("chosen", "rejected")]
    return pd.Series((sides[0] + sides[1]) / 2)
