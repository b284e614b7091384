"""Does a diffusion model lose its winners under Diffusion-DPO? And do the guards against that keep them?

Diffusion-SDPO (arXiv:2511.03317) says that the denoising errors of both samples of a pair can rise while their margin
grows, and scales the loser's gradient; PG-DPO (arXiv:2511.19049) says that pairs of small reward margin have almost
the same gradient on both sides, which pushes both down. Trained here, on a denoiser of digits made on the spot: plain
Diffusion-DPO at two strengths, SDPO, a term of supervised training, and DPO-Shift, on samples of the model itself and on
close pairs. Every number is taken on draws of time and noise that nothing was trained or predicted on.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import torch
from transformers import TrainingArguments

from diagnostics.columns import described
from diagnostics.diffusion import measures
from diagnostics.diffusion.likelihood import DenoisingLikelihood
from diagnostics.flag.flagging import EVERY
from diagnostics.likelihood import pair_stats
from diagnostics.manifest import manifest
from diagnostics.runlog import RunLogWriter, compact, write_frame, write_json
from diagnostics.scoring import score
from diagnostics.sequences import Example
from diagnostics.tables import MORE, Field
from trainers import objectives
from trainers.loop.probe import Probe
from trainers.loop.recorder import Recorder
from trainers.loop.reference import LiveReference
from trainers.loop.schedule import ProbeSchedule
from trainers.loop.trainer import PreferenceTrainer
from trainers.papers import RUNS, SEED, Setting
from trainers.studies.compare import build_whole, each
from trainers.studies.demo_runs import PLAIN_ADAM
from trainers.studies.paper_runs import Order, measured, worlds
from trainers.worlds import digits

SEEDS = 3
TUNED = range(16)
SCALES = ("toy",)
DATA = ""
KINDS = ("on-policy", "close")
OBJECTIVE = "diffusion_dpo"
_CODE = "2311.12908, code"
_SMALL = "a denoiser of 0.11 million weights"
SETTINGS = (
    Setting("pre-training steps", None, "starts from SD 1.5 and SDXL", digits.STEPS, "made from scratch, one a seed"),
    Setting("pairs of a kind", 851293, "2311.12908 (Pick-a-Pic v2)", digits.PAIRS, _SMALL),
    Setting("beta of the objective", 5000.0, _CODE, 2000.0, "2000 is their value for SD 1.5; see DiffusionDPO issue 17"),
    Setting("low beta", None, "ours", 200.0, "what a beta ten times too low does"),
    Setting("mu of SDPO", 0.9, "2511.03317, code, SD 1.5", 0.9),
    Setting("weight of the SFT term", None, "ours", 0.1, "times beta / 2"),
    Setting("factor of DPO-Shift", None, "ours", 0.9, "2502.07599 has 0.5 to 0.95 for language models"),
    Setting("rate of learning", 2.048e-5, f"{_CODE}: 1e-8 times the batch", 1e-4, _SMALL),
    Setting("pairs of an update", 2048, _CODE, 32, _SMALL),
    Setting("updates", 2000, _CODE, 150, _SMALL),
    Setting("draws of a measurement", None, "no trainer logs either side", 16, "stratified in time, fixed"),
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
    "scores": _PAIR | {"gap": Field(float, "the judge's margin: ink of the chosen minus ink of the rejected sample"),
                       MORE: Field(float, "a column of diagnostics.diffusion.measures, at the start model")},
    "alone": _PAIR | {"change": Field(float, "the chosen sample's denoising error after training on the pair alone, "
                                             "minus before")},
}  # fmt: skip


class Method(NamedTuple):
    """How a run trains. beta: the setting that holds it; guard, strength: the guard and the setting of its strength."""

    beta: str = "beta of the objective"
    guard: str = "none"
    strength: str = ""


METHODS = {
    "plain": Method(),
    "SDPO": Method(guard="sdpo", strength="mu of SDPO"),
    "SFT term": Method(guard="sft", strength="weight of the SFT term"),
    "DPO-Shift": Method(guard="dpo_shift", strength="factor of DPO-Shift"),
    "plain, low beta": Method(beta="low beta"),
}
# seeds of the fixed draws: what pairs are scored on before training, and what is measured while it goes on
SCORED, MEASURED = 0, 1


def make(order: Order, settings: Mapping[str, Any]) -> dict[str, pd.DataFrame]:
    """Every method on both kinds of pairs at each seed; the pairs' scores before; and pairs trained alone."""
    steps, count = settings["pre-training steps"], settings["pairs of a kind"]
    names = {seed: f"digits-{steps}steps-{count}pairs-seed{seed}" for seed in order.numbers}
    found = worlds(order, {name: (digits.build, (seed, steps, count)) for seed, name in names.items()})
    places = {seed: found[name] for seed, name in names.items()}
    runs = _train(order, settings, places)
    rows = [{name: row[name] for name in ("seed", "kind", "method")} for row in runs.to_dict("records")]
    tasks = [(places[s], s, order.out / run) for s, run in zip(runs["seed"], runs["run"], strict=True)]
    pairs = [{"seed": seed, "kind": kind} for seed in places for kind in KINDS]
    draws = settings["draws of a measurement"]
    return {
        "runs": runs,
        "use": measured(order, use, tasks, rows, "samples"),
        "scores": measured(order, scores, [(places[p["seed"]], p["kind"], draws) for p in pairs], pairs, "scores"),
        "alone": measured(order, alone, [(places[s], settings, s) for s in places],
                          [{"seed": seed, "kind": "on-policy"} for seed in places], "pairs alone"),
    }  # fmt: skip


def use(world: Path, seed: int, run: Path) -> list[dict[str, Any]]:
    """What the samples of a run's model are good for, beside those of the start model from the same noise."""
    found: dict[str, float] = {}
    for head, path in (("", run / digits.MODEL), ("ref_", world / digits.MODEL)):
        values, labels = digits.drawn(digits.load(path), seed)
        found[f"{head}ink"] = float(digits.ink(values).mean())
        found[f"{head}classes"] = digits.accuracy(values, labels)
    return [found]


def scores(world: Path, kind: str, draws: int) -> list[dict[str, Any]]:
    """The measures of every pair at the start model, and the judge's margin."""
    pairs = digits.load_pairs(world, kind)
    table = measures.measure(DenoisingLikelihood(draws, seed=SCORED), digits.load(world / digits.MODEL), pairs.examples())
    gap = digits.ink(pairs.chosen) - digits.ink(pairs.rejected)
    return table.rename(columns={"pair_id": "pair"}).assign(gap=gap.tolist()).to_dict("records")


def alone(world: Path, settings: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """How far a pair's chosen error goes when the start model trains on this pair alone."""
    start = digits.load(world / digits.MODEL).requires_grad_(False)
    pairs = digits.load_pairs(world, "on-policy").examples()[: settings["pairs trained alone"]]
    draws = settings["draws of a measurement"]
    likelihood, fresh = (DenoisingLikelihood(draws, seed=s) for s in (seed, MEASURED))
    before = _errors(start, pairs, fresh)
    found = []
    for pair in pairs:
        model = digits.load(world / digits.MODEL)
        _descend(model, start, pair, likelihood, settings)
        change = _errors(model, [pair], fresh)[pair.pair_id] - before[pair.pair_id]
        found.append({"pair": pair.pair_id, "change": change})
    return found


def _descend(
    model: torch.nn.Module, start: torch.nn.Module, pair: Example, likelihood: DenoisingLikelihood, settings: Mapping
) -> None:
    """A few updates of plain Diffusion-DPO by Adam on one pair: a run folder for each would take longer than they."""
    optimizer = torch.optim.Adam(model.parameters(), lr=settings["rate of learning"])
    reference, objective = LiveReference(start, likelihood), objectives.load(OBJECTIVE)
    for step in range(settings["updates of a pair alone"]):
        batch = likelihood.drawn(likelihood.collate([pair]), step, model, reference)
        stats = pair_stats(likelihood, batch, likelihood.run(model, batch), reference(batch), kl=False)
        optimizer.zero_grad()
        objective(stats, beta=settings["beta of the objective"]).losses.mean().backward()
        optimizer.step()


def _errors(model: torch.nn.Module, pairs: list[Example], likelihood: DenoisingLikelihood) -> dict[str, float]:
    """The chosen samples' denoising errors by pair_id."""
    return {
        pair.pair_id: -value
        for scored in score(model, pairs, likelihood=likelihood)
        for pair, value in zip(scored.pairs, scored.stats.chosen.logps.tolist())
    }


def _train(order: Order, settings: Mapping[str, Any], places: Mapping[int, Path]) -> pd.DataFrame:
    """The table of runs, each trained where it is not there yet."""
    rows, todo = [], []
    for seed, world in places.items():
        for kind in KINDS:
            for name, method in METHODS.items():
                told = {"seed": seed, "kind": kind, "guard": method.guard, "world": world.name}
                told |= {"beta": settings[method.beta], "strength": settings.get(method.strength)}
                told |= {key: settings[key] for key in ("rate of learning", "pairs of an update", "updates")}
                told |= {"draws": settings["draws of a measurement"]}
                digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:12]
                folder = order.out / "runs" / f"{OBJECTIVE}-{kind}-seed{seed}-{digest}"
                rows.append({"seed": seed, "kind": kind, "method": name, "run": f"runs/{folder.name}", "failed": ""})
                todo += [(folder, train_run, (world, told))] if not folder.exists() else []
    each(order.pool, build_whole, todo, "runs")
    return pd.DataFrame(rows)


def train_run(folder: Path, world: Path, told: Mapping[str, Any]) -> None:
    """One run by the ordinary trainer, its log, and the weights that it ends with."""
    arguments = TrainingArguments(
        str(folder), **PLAIN_ADAM, max_steps=told["updates"], per_device_train_batch_size=told["pairs of an update"],
        learning_rate=told["rate of learning"], seed=told["seed"], report_to=[], use_cpu=True, save_strategy="no",
        disable_tqdm=True, remove_unused_columns=False,
    )  # fmt: skip
    pairs, model = digits.load_pairs(world, told["kind"]), digits.load(world / digits.MODEL)
    examples, start = pairs.examples(), digits.load(world / digits.MODEL).requires_grad_(False)
    likelihood, fresh = (DenoisingLikelihood(told["draws"], seed=seed) for seed in (told["seed"], MEASURED))
    writer = RunLogWriter(folder)
    probe = Probe(
        {"probe": examples}, None, likelihood=fresh, reference=LiveReference(start, fresh), track=None,
        start=folder / "probe_start.safetensors",
    )  # fmt: skip
    schedule = ProbeSchedule(writer, probe, every=0, tokens="none")
    trainer = PreferenceTrainer(
        model, arguments, pairs=examples, tokenizer=None, likelihood=likelihood, objective=OBJECTIVE,
        hyperparameters={"beta": told["beta"]}, guard=told["guard"], guard_strength=told["strength"],
        reference=LiveReference(start, likelihood), recorder=Recorder(schedule, before=lambda model: 0.0),
    )  # fmt: skip
    trainer.train()
    writer.close()
    digits.save(model, folder / digits.MODEL)
    _record(folder, pairs, told, likelihood.kind)
    compact(folder)


def _record(folder: Path, pairs: digits.Pairs, told: Mapping[str, Any], kind: str) -> None:
    """What a run folder says of itself."""
    config = {"objective": OBJECTIVE, "likelihood": kind, "model": f"{told['world']}/{digits.MODEL}"}
    write_json(folder / "config.json", config | {"data": told["kind"]} | dict(told))
    said = {"device": "cpu", "engine": "denoiser", "reference": {"kind": "live", "model": config["model"]}}
    said |= {"objective": {"name": OBJECTIVE, "beta": told["beta"]}, "dtypes": {"weights": "float32"}, "hashes": {}}
    write_json(folder / "manifest.json", manifest(**said, columns=described(EVERY), finished={"step": told["updates"]}))
    kept = {"status": "kept", "reason": "", "doubts": "", "chosen_length": 1, "rejected_length": 1}
    inks = zip(digits.ink(pairs.chosen).tolist(), digits.ink(pairs.rejected).tolist(), pairs.chosen_labels.tolist())
    rows = [
        {"pair_id": f"d{k:03d}", "source_row": k, "prompt": f"a {label}", "chosen": f"an image of ink {w:.3f}",
         "rejected": f"an image of ink {r:.3f}"} | kept
        for k, (w, r, label) in enumerate(inks)
    ]  # fmt: skip
    write_frame(folder / "audit.parquet", pd.DataFrame(rows))
