"""Implicit rewards as token credits: what the reference's own answers earn, an SFT start, and where the credit lies.

From r to Q* (arXiv:2404.12358) reads DPO's policy as a token-level Q function. Answers drawn from the reference then
have the mean implicit reward E_ref[beta log(policy / ref)] = -beta KL(ref || policy), never above 0, so that after SFT
on the chosen answers, which makes them the reference's own, their rewards must fall below 0; and each token's beta
log(policy / ref) is its credit. Measured: the identity on sampled answers and on all answers of two tokens, DPO from
the base model and from one fine-tuned on the chosen answers, and the credit of the tokens that decide a pair.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from diagnostics import sequences
from diagnostics.engine import device_of
from diagnostics.errors import UserError
from diagnostics.forward import decode
from diagnostics.pairs import read_pairs
from diagnostics.sampling import draw
from diagnostics.scoring import score_rows
from diagnostics.sequences import Example
from diagnostics.tables import Field
from diagnostics.token_ids import TokenIds
from diagnostics.token_likelihood import TokenLikelihood
from trainers.loop.reference import LiveReference
from trainers.models import load_to_device, load_tokenizer
from trainers.papers import COMMON, MINUTES, RUNS, SEED, SMALL_WORLDS, WORLD, Setting
from trainers.studies.paper_cost import Work, world_work
from trainers.studies.paper_runs import Order, Trial, examples, finished, given_bases, measure, train, world_bases
from trainers.worlds import facts

SEEDS = 5
TUNED = range(16)
SCALES = ("toy", "small", "paper")
DATA = ""
_OWN = "not read; a common choice"
SETTINGS = (
    *COMMON,
    Setting("num_train_epochs", 1.0, _OWN, None, "3 on facts, 1 on refusals, as in their recipes"),
    Setting("probe_pairs", 256, "ours", None, "every pair of the small worlds", 32, MINUTES),
    Setting("SFT learning rate", 1e-6, _OWN, 3e-4, "as for DPO", 5e-5, "as for DPO"),
    Setting("SFT steps", None, "starts from a pretrained model", None, "700 on facts, 400 on refusals"),
    Setting("prompts to sample", 128, "ours", 128, "", 8, MINUTES),
    Setting("answers a prompt", 8, "ours", 8, "", 4, MINUTES),
    Setting("longest sampled answer", 128, "ours", 32, "no answer of the small worlds is longer than 20 tokens"),
    Setting("prompts to enumerate", 4, "ours", 4, "", 0, "all answers of two tokens are two thousand millions"),
    *SMALL_WORLDS,
)
_OF_RUN = {"world": WORLD, "seed": SEED, "start": Field(str, "base, or sft: fine-tuned on the chosen answers first")}
_REWARD = Field(float, "beta log(policy / reference)")
TABLES = {
    "runs": RUNS | _OF_RUN,
    "identity": _OF_RUN
    | {
        "case": Field(str, "drawn from: reference, policy, or untrained (the reference is the policy)"),
        "prompt": Field(str, "pair_id of the prompt's pair"),
        "tokens": Field(int, "of the answer"),
        "reward": _REWARD,
        "kl": Field(float, "beta times the exact KL(reference || policy) summed over the answer"),
    },
    "exact": _OF_RUN
    | {
        "reward": Field(float, "sum over all answers of two tokens of ref(answer) beta log(policy / reference)"),
        "kl": Field(float, "beta KL(reference || policy) over both tokens"),
        "answers": Field(float, "how many there are"),
    },
    "decisive": {"token": Field(str, "a word that states a fact's value")},
}


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """DPO from the base model and after SFT; the identity on sampled answers and on all short ones."""
    bases = _toy(order, settings) if order.own_worlds else _given(order, settings)
    sft = {"learning_rate": settings["SFT learning rate"], "save_model": True, "tokens": "none"}
    tuned = train(order, [base.by({}, "sft", **sft) for base in bases])
    trials = []
    for base, row in zip(bases, tuned.to_dict("records")):
        trials.append(base.but({"start": "base"}))
        if not row["failed"]:
            trials.append(base.but({"start": "sft"}, model=str(order.out / row["run"] / "model")))
    runs = train(order, trials)
    keys = {tuple(trial.labels.values()): trial.keys for trial in trials}
    tasks = [_task(row, run, keys, settings) for row, run in finished(order, runs) if row["world"] != "refusal"]
    tables = measure(order, measure_identity, tasks, "samples")
    words = pd.DataFrame({"token": [v for values in facts.VALUES.values() for v in values]})
    identity, exact = (pd.concat([of[k] for of in tables], ignore_index=True) for k in (0, 1))
    return {"runs": runs, "identity": identity, "exact": exact, "decisive": words}


def work(order: Order, settings: Mapping[str, Any]) -> list[Work]:
    """SFT, and DPO from either start, in each world."""
    return world_work(order, settings, given=3, facts=3, refusal=3)


def measure_identity(
    labels: dict[str, Any], start: str, trained: str, data: str, settings: Mapping[str, Any]
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Sample answers and enumerate short ones: identity (case `reference`: drawn from the reference; `policy`: drawn
    from the policy; `untrained`: drawn from the reference, which is the policy too), and exact."""
    reference, policy, tokenizer = load_to_device(start), load_to_device(trained), load_tokenizer(start)
    prompts = _prompts(data, tokenizer, labels["seed"], settings["prompts to sample"], settings.get("split"))
    how = dict(count=settings["answers a prompt"], limit=settings["longest sampled answer"], seed=labels["seed"])
    how |= dict(pad=TokenLikelihood.of(tokenizer).pad_token_id, eos=tokenizer.eos_token_id)
    own = sample(reference, prompts, **how)
    drawn = {
        "reference": (policy, own),
        "policy": (policy, sample(policy, prompts, **how)),
        "untrained": (reference, own),
    }
    frames = [
        rewards(model, reference, pairs, settings["beta"], how["pad"]).assign(case=case)
        for case, (model, pairs) in drawn.items()
    ]
    few = [p.prompt_ids for p in prompts[: settings["prompts to enumerate"]]]
    rows = [enumerate_two(policy, reference, p, settings["beta"]) for p in few]
    exact = pd.DataFrame(rows, columns=["reward", "kl", "answers"])
    return pd.concat(frames, ignore_index=True).assign(**labels), exact.assign(**labels)


def sample(
    model: nn.Module, prompts: Sequence[Example], *, count: int, limit: int, seed: int, pad: int, eos: Any
) -> list[Example]:
    """`count` answers to each prompt, drawn token by token at temperature 1 until EOS or the limit, each
    as the one row `drawn` of an example."""
    generator = torch.Generator(device=device_of(model)).manual_seed(seed)
    found = []
    for at in range(0, len(prompts), 32):
        part = prompts[at : at + 32]
        asked = [prompt.prompt_ids for prompt in part for _ in range(count)]
        answers = iter(draw(model, asked, limit, pad=pad, ends={eos}, temperature=1.0, generator=generator))
        for prompt in part:
            for k in range(count):
                ids = next(answers)
                row = sequences.Sequence(prompt.prompt_ids, TokenIds(ids), ids[-1] == eos)
                found.append(replace(prompt, pair_id=f"{prompt.pair_id}/{k}", rows={"drawn": row}))
    return found


def rewards(policy: nn.Module, reference: nn.Module, answers: Sequence[Example], beta: float, pad: int) -> pd.DataFrame:
    """One row an answer: prompt, tokens, reward = beta log(policy / ref), and kl = beta times the sum over its tokens
    of the exact KL(ref || policy) over the vocabulary. For answers drawn from the reference, E[reward] = -E[kl]."""
    frames, likelihood = [], TokenLikelihood(pad)
    live = LiveReference(reference, likelihood)
    for part, rows, refs in score_rows(policy, answers, likelihood=likelihood, reference=live):
        own, ref = rows["drawn"], refs["drawn"]
        assert own.per_token_kl is not None  # the reference was run
        values = {"reward": beta * (own.logps - ref.logps), "kl": beta * own.masked_sum(own.per_token_kl)}
        table = pd.DataFrame({name: of.tolist() for name, of in values.items()})
        names = [p.pair_id.rsplit("/", 1)[0] for p in part]
        frames.append(table.assign(prompt=names, tokens=own.lengths.tolist()))
    return pd.concat(frames, ignore_index=True)


def enumerate_two(policy: nn.Module, reference: nn.Module, prompt: Sequence[int], beta: float) -> dict[str, float]:
    """Over all V * V beginnings (a, b) of an answer: reward, the sum of ref(a, b) beta log(policy(a, b) / ref(a, b)),
    and kl = beta [KL at the first token + sum over a of ref(a) KL at the second after a], both KL(ref || policy)."""
    own, ref = (_two_steps(model, prompt) for model in (policy, reference))
    whole, ref_whole = (first[:, None] + second for first, second in (own, ref))
    reward = beta * (ref_whole.exp() * (whole - ref_whole)).sum()
    at_first = (ref[0].exp() * (ref[0] - own[0])).sum()
    at_second = (ref[0].exp() * (ref[1].exp() * (ref[1] - own[1])).sum(-1)).sum()
    return {"reward": float(reward), "kl": float(beta * (at_first + at_second)), "answers": float(whole.numel())}


def _two_steps(model: nn.Module, prompt: Sequence[int]) -> tuple[Tensor, Tensor]:
    """(V,) log-probs of the first token and (V, V) of the second after each first, float64."""
    ids = torch.tensor([list(prompt)], device=device_of(model))
    with torch.no_grad():
        first = decode(model, ids, torch.ones_like(ids))[0][0].double().log_softmax(-1)
        after = torch.cat([ids.expand(len(first), -1), torch.arange(len(first), device=ids.device)[:, None]], 1)
        second = [decode(model, part, torch.ones_like(part))[0].double().log_softmax(-1) for part in after.split(256)]
    return first, torch.cat(second)


def _prompts(data: str, tokenizer: Any, seed: int, count: int, split: str | None) -> list[Example]:
    """Some pairs of the data, one a prompt, for their prompts."""
    by_prompt = {p.prompt_ids: p for p in examples(read_pairs(data, split=split).pairs, tokenizer)}
    every = list(by_prompt.values())
    return [every[i] for i in np.random.default_rng([seed, 21]).permutation(len(every))[:count]]


def _toy(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """DPO from the base model. Facts keep tokens and weights; refusals are the shared run."""
    kept = world_bases(order, "facts", settings, tokens="ends", save_model=True)
    return kept + world_bases(order, "refusal", settings)


def _given(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    if len(order.given) < 2:
        raise UserError(
            "paper r_to_q: which model and data the paper takes is not known here; give --model and --data."
        )
    return given_bases(order, settings, tokens="ends", save_model=True)


def _task(row: Mapping[str, Any], run: Path, keys: Mapping[tuple, Mapping[str, Any]], settings: Mapping) -> tuple:
    """The arguments of `measure_identity` for a run. keys: of every run, by its labels."""
    labels = {name: row[name] for name in ("world", "seed", "start")}
    own = keys[tuple(labels.values())]
    return labels, own["model"], str(run / "model"), own["data"], dict(settings)
