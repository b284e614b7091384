"""Does a diffusion model lose its winners under Diffusion-DPO? And do the guards against that keep them?

Diffusion-SDPO (arXiv:2511.03317) says that the denoising errors of both samples of a pair can rise while their margin
grows, and scales the loser's gradient; PG-DPO (arXiv:2511.19049) says that pairs of small reward margin have almost
the same gradient on both sides, which pushes both down. Trained here, on a denoiser of digits made on the spot: plain
Diffusion-DPO at two strengths, SDPO, a term of supervised training, and DPO-Shift, on samples of the model itself and
on close pairs. Pairs are scored before training on other draws of time and noise than they are measured on after it.
"""

from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from diagnostics.diffusion import measures
from diagnostics.diffusion.denoiser import Denoiser
from diagnostics.diffusion.likelihood import DenoisingLikelihood
from diagnostics.diffusion.read import read_samples
from diagnostics.likelihood import pair_stats
from diagnostics.scoring import score
from diagnostics.sequences import Example
from diagnostics.tables import MORE, Field
from trainers import objectives
from trainers.denoisers import load_denoiser
from trainers.loop.reference import LiveReference
from trainers.papers import RUNS, SEED, Setting
from trainers.studies.demo_runs import PLAIN_ADAM
from trainers.studies.paper_runs import Order, Trial, finished, keys, measured, train, worlds
from trainers.worlds import digits

SEEDS = 3
TUNED = range(16)
SCALES = ("toy",)
DATA = ""
KINDS = ("on-policy", "close")
OBJECTIVE = "diffusion_dpo"
_CODE, _SMALL = "2311.12908, code", "a denoiser of 0.11 million weights"
SETTINGS = (
    Setting("pre-training steps", None, "starts from SD 1.5 and SDXL", digits.STEPS, "made from scratch, one a seed"),
    Setting("pairs of a kind", None, "Pick-a-Pic, not counted here", digits.PAIRS, _SMALL),
    Setting("beta", 5000.0, _CODE, 2000.0, "2000 to 5000 are in use (DiffusionDPO issue 17)"),
    Setting("low beta", None, "ours", 200.0, "what a beta ten times too low does"),
    Setting("mu of SDPO", 0.9, "2511.03317, code, SD 1.5", 0.9),
    Setting("weight of the SFT term", None, "ours", 0.1, "times beta / 2"),
    Setting("factor of DPO-Shift", None, "ours", 0.9, "0.5 to 0.95 for language models (2502.07599)"),
    Setting("learning_rate", 2.048e-5, f"{_CODE}: 1e-8 times the batch", 1e-4, _SMALL),
    Setting("per_device_train_batch_size", 2048, _CODE, 32, _SMALL),
    Setting("max_steps", 2000, _CODE, 150, _SMALL),
    Setting("draws", None, "no trainer logs either side", 16, "stratified in time, the same at every measurement"),
    Setting("pairs trained alone", None, "ours", 64, "on-policy pairs, each from the start model"),
    Setting("updates of a pair alone", None, "ours", 20, "as many as show which errors rise"),
)
_KIND = Field(str, "the pairs: on-policy or close")
_PAIR = {"seed": SEED, "kind": _KIND, "pair": Field(str, "the pair's pair_id")}
TABLES = {
    "runs": RUNS | {"kind": _KIND, "method": Field(str, "a name of METHODS")},
    "use": {
        "seed": SEED,
        "kind": _KIND,
        "method": Field(str, "a name of METHODS"),
        "ink": Field(float, "mean ink of new samples, -1 to 1"),
        "ref_ink": Field(float, "the start model's, from the same noise"),
        "classes": Field(float, "share of new samples that are of the class asked for"),
        "ref_classes": Field(float, "the start model's, from the same noise"),
    },
    "scores": _PAIR
    | {
        "gap": Field(float, "the judge's margin: ink of the chosen minus ink of the rejected sample"),
        MORE: Field(float, "a column of diagnostics.diffusion.measures, at the start model"),
    },
    "alone": _PAIR | {"change": Field(float, "of the chosen sample's denoising error by training on this pair alone")},
}
# how a method trains: its guard, the setting that holds the guard's strength, and the one that holds beta
METHODS = {
    "plain": ("none", "", "beta"),
    "SDPO": ("sdpo", "mu of SDPO", "beta"),
    "SFT term": ("sft", "weight of the SFT term", "beta"),
    "DPO-Shift": ("dpo_shift", "factor of DPO-Shift", "beta"),
    "plain, low beta": ("none", "", "low beta"),
}


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Every method on both kinds of pairs at each seed; the pairs' scores before; and pairs trained alone."""
    places = _worlds(order, settings)
    runs = train(order, [_trial(*of, places, settings) for of in product(places, KINDS, METHODS)])
    ends = [(_labels(row), (places[row["seed"]], row["seed"], run)) for row, run in finished(order, runs)]
    pairs = [{"seed": seed, "kind": kind} for seed, kind in product(places, KINDS)]
    own = [{"seed": seed, "kind": "on-policy"} for seed in places]
    scored = [(digits.paths(places[p["seed"]], p["kind"]), p["seed"], settings["draws"]) for p in pairs]
    trained = [(digits.paths(place, "on-policy"), seed, dict(settings)) for seed, place in places.items()]
    return {
        "runs": runs,
        "use": measured(order, use, [task for _, task in ends], [labels for labels, _ in ends], "samples"),
        "scores": measured(order, scores, scored, pairs, "scores"),
        "alone": measured(order, alone, trained, own, "pairs alone"),
    }


def use(world: Path, seed: int, run: Path) -> list[dict[str, float]]:
    """What the samples of a run's model are good for, beside those of the start model from the same noise."""
    found: dict[str, float] = {}
    for head, folder in (("", run), ("ref_", world)):
        values, labels = digits.drawn(load_denoiser(str(folder / "model")), seed)
        found[f"{head}ink"] = float(digits.ink(values).mean())
        found[f"{head}classes"] = digits.accuracy(values, labels)
    return [found]


def scores(paths: Mapping[str, str], seed: int, draws: int) -> list[dict[str, Any]]:
    """The measures of every pair at the start model, and the judge's margin."""
    model = load_denoiser(paths["model"])
    pairs = read_samples(paths["data"], model).tokenized
    gaps = [float(p.chosen.media.values.mean() - p.rejected.media.values.mean()) for p in pairs]
    table = measures.measure(_other(draws, seed), model, pairs)
    rows = table.rename(columns={"pair_id": "pair"}).assign(gap=gaps).to_dict("records")
    return [{str(name): value for name, value in row.items()} for row in rows]


def alone(paths: Mapping[str, str], seed: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """How far the chosen error of a pair goes when the start model trains on this pair alone: a few updates of plain
    Diffusion-DPO by Adam. (A run folder for each pair would take ten times longer than they.)"""
    start = load_denoiser(paths["model"]).requires_grad_(False)
    pairs = read_samples(paths["data"], start).tokenized[: settings["pairs trained alone"]]
    likelihood = DenoisingLikelihood(settings["draws"], train_draws=settings["draws"], seed=seed)
    before, rows = _chosen_errors(start, pairs, likelihood), []
    for pair in pairs:
        model = load_denoiser(paths["model"])
        _descend(model, start, pair, likelihood, settings)
        change = _chosen_errors(model, [pair], likelihood)[pair.pair_id] - before[pair.pair_id]
        rows.append({"pair": pair.pair_id, "change": change})
    return rows


def _worlds(order: Order, settings: Mapping[str, Any]) -> dict[int, Path]:
    """The folder of each seed's denoiser and pairs."""
    steps, count = settings["pre-training steps"], settings["pairs of a kind"]
    names = {seed: f"digits-{steps}-{count}-seed{seed}" for seed in order.numbers}
    found = worlds(order, {name: (digits.build, (seed, steps, count)) for seed, name in names.items()})
    return {seed: found[name] for seed, name in names.items()}


def _trial(seed: int, kind: str, method: str, places: Mapping[int, Path], settings: Mapping[str, Any]) -> Trial:
    """The run of a method: what it measures are all pairs, before and after."""
    guard, strength, beta = METHODS[method]
    own = {"guard": guard, "guard_strength": settings[strength]} if strength else {}
    own |= {"beta": settings[beta], "seed": seed, "probe_pairs": settings["pairs of a kind"]}
    plain = PLAIN_ADAM | {
        "likelihood": "denoising", "objective": OBJECTIVE, "heldout_pairs": 0, "probe_every": 10**6, "tokens": "none",
        "save_strategy": "no",
    }  # fmt: skip
    labels = {"seed": seed, "kind": kind, "method": method}
    return Trial(labels, plain | keys(settings) | digits.paths(places[seed], kind) | own)


def _labels(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in ("seed", "kind", "method")}


def _other(draws: int, seed: int) -> DenoisingLikelihood:
    """Other draws than those that a run of this seed trains on and is measured on."""
    return DenoisingLikelihood(draws, seed=seed + 1000)


def _descend(
    model: Denoiser, start: Denoiser, pair: Example, likelihood: DenoisingLikelihood, settings: Mapping[str, Any]
) -> None:
    """A few updates on one pair, each on as many draws as a measurement has."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["learning_rate"])
    reference, objective = LiveReference(start, likelihood), objectives.load(OBJECTIVE)
    for step in range(settings["updates of a pair alone"]):
        batch = likelihood.drawn(likelihood.collate([pair]), step, model, reference)
        stats = pair_stats(likelihood, batch, likelihood.run(model, batch), reference(batch), kl=False)
        optimizer.zero_grad()
        objective(stats, beta=settings["beta"]).losses.mean().backward()
        optimizer.step()


def _chosen_errors(model: Denoiser, pairs: Sequence[Example], likelihood: DenoisingLikelihood) -> dict[str, float]:
    """The chosen samples' denoising errors by pair_id, on the fixed draws."""
    found: dict[str, float] = {}
    for scored in score(model, pairs, likelihood=likelihood):
        found |= zip((p.pair_id for p in scored.pairs), (-scored.stats.chosen.logps).tolist())
    return found
