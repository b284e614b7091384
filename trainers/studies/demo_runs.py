"""The embedded default's runs: what the product's own trainer is to train on each world.

A run is a flat dictionary: the keys of TrainConfig, TrainingArguments and the objective, plus demo_world,
demo_case, demo_seed and demo_prompt, which only label it. The worlds lie in root/worlds/, the runs beside them.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from trainers.worlds import facts, persona, refusal

KEPT = 0.2  # share of the pairs that a filter keeps
PLAIN_ADAM = dict(
    optim="adamw_torch", weight_decay=0.0, lr_scheduler_type="constant", warmup_steps=0, max_grad_norm=0.0
)
# how the paper analyses train and measure on the two worlds unless they ask for something else; equal keys, equal run
FACTS = dict(
    PLAIN_ADAM,
    objective="dpo",
    beta=0.1,
    learning_rate=3e-4,
    num_train_epochs=3.0,
    per_device_train_batch_size=16,
    probe_pairs=facts.PAIRS,
    heldout_pairs=facts.HELD_OUT,
    probe_every=12,
    tokens="none",
    save_model=False,
    save_strategy="no",
)
REFUSALS = FACTS | dict(num_train_epochs=1.0, probe_pairs=refusal.PAIRS, heldout_pairs=0, probe_every=4)
COMMON = dict(PLAIN_ADAM, beta=0.1, heldout_pairs=0, save_model=False, save_strategy="no")


def persona_runs(root: Path, seed: int, persona_file: str | Path | None = None) -> list[dict[str, Any]]:
    """Build world A and list its 15 runs: three pairs of answers on five prompts each, 100 steps on one pair."""
    world = root / "worlds" / f"persona-seed{seed}"
    return [_persona_run(root, seed, made) for made in persona.build(world, seed, persona_file=persona_file)]


def refusal_world(root: Path, seed: int) -> dict[str, Path]:
    """Build world D; paths of model, data and track. Score the data with the model before asking for the runs."""
    return refusal.build(root / "worlds" / f"refusal-seed{seed}", seed)


def builders(world: str, seeds: Sequence[int], steps: int | None = None) -> dict[str, tuple[Callable[..., Any], tuple]]:
    """How to build a world ("facts" or "refusal") for each seed: by its folder's name, the function and its arguments.

    steps: of the supervised training, where they are not the world's own.
    """
    room = {"facts": facts, "refusal": refusal}[world]
    end = "" if steps in (None, room.STEPS) else f"-{steps}steps"
    return {f"{world}-seed{seed}{end}": (_build, (world, seed, steps or room.STEPS)) for seed in seeds}


def _build(folder: Path, world: str, seed: int, steps: int) -> None:
    {"facts": facts, "refusal": refusal}[world].build(folder, seed, steps=steps)


def world_paths(world: str, folder: Path) -> dict[str, str]:
    """The keys of `chesboard train` that point into a built world: model, data, and heldout_data or track."""
    found = {"facts": facts.paths, "refusal": refusal.paths}[world](folder)
    return {key: str(path) for key, path in found.items()}


def refusal_runs(root: Path, seed: int, world: dict[str, Path], ln_ches: pd.Series) -> list[dict[str, Any]]:
    """World D's four runs: DPO on all pairs, on the 20 % of lowest LN-CHES, on a random 20 %, and DPO+NLL on all.

    ln_ches: LN-CHES under the world's model, indexed by pair_id (column ln_ches_score of scores.parquet).
    """
    pairs = [json.loads(line) for line in world["data"].read_text(encoding="utf-8").splitlines()]
    count = round(KEPT * len(pairs))
    lowest = set(ln_ches.sort_values(kind="stable").index[:count])
    drawn = np.random.default_rng([seed, 3]).permutation([p["pair_id"] for p in pairs])[:count]
    chosen = dict(keep_ln_ches=lowest, keep_random=set(drawn.tolist()))
    runs = [_refusal_run(root, seed, world, "dpo_all", "dpo")]
    for case, ids in chosen.items():
        kept = dict(world, data=world["data"].with_name(f"{case}.jsonl"))
        refusal.write_pairs(kept["data"], [p for p in pairs if p["pair_id"] in ids])
        runs.append(_refusal_run(root, seed, kept, case, "dpo"))
    return [*runs, _refusal_run(root, seed, world, "dpo_nll", "dpo_nll")]


def _persona_run(root: Path, seed: int, made: dict[str, Any]) -> dict[str, Any]:
    case, prompt = made["case"], made["prompt"]
    return COMMON | dict(
        _paths(made, root / f"persona-{case}-p{prompt}-seed{seed}"),
        objective="dpo",
        append_eos=False,
        learning_rate=3e-5,
        max_steps=100,
        per_device_train_batch_size=1,
        probe_every=1,
        probe_pairs=1,
        seed=seed,
        demo_world="persona",
        demo_case=case,
        demo_seed=seed,
        demo_prompt=prompt,
    )


def _refusal_run(root: Path, seed: int, world: dict[str, Path], case: str, objective: str) -> dict[str, Any]:
    return COMMON | dict(
        _paths(world, root / f"refusal-{case}-seed{seed}"),
        objective=objective,
        append_eos=True,
        learning_rate=3e-4,
        num_train_epochs=1.0,
        per_device_train_batch_size=16,
        probe_every=2,
        probe_pairs=refusal.PAIRS,
        seed=seed,
        demo_world="refusal",
        demo_case=case,
        demo_seed=seed,
        demo_prompt=None,
    )


def _paths(world: dict[str, Any], output_dir: Path) -> dict[str, str]:
    return dict({k: str(world[k]) for k in ("model", "data", "track")}, output_dir=str(output_dir))
