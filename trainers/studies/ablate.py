"""Does leaving out the flagged pairs help, or would leaving out any pairs do? Trains on both and on all.

For each seed the pairs are split once: held-out pairs that no run trains on, and the pairs that the full run trains
on, some of which are probed in every run. For each share there are a run without the flagged pairs and one without as
many random ones, each with the full run's epochs and again with as many optimizer steps as the full run. All are
ordinary run folders; `ablate_arm`, `ablate_by`, `ablate_drop` and `ablate_equal_steps` in config.json say which.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from diagnostics.errors import DataError, UserError
from diagnostics.flag.flagging import prone_end
from diagnostics.names import unknown
from diagnostics.pairs import PairTable, read_pairs, write_rows
from diagnostics.pairs.rows import folder_of
from diagnostics.runlog import read_frame, read_json
from trainers.check import check
from trainers.config import TrainConfig, make_config, read_config
from trainers.studies.compare import RECORD, is_finished, train_all, workers

HELD_OUT, PROBED = 64, 256  # where the config does not say


@dataclass(frozen=True)
class Subset:
    """One training set. arm: full, flagged or random, by what is left out; share: of the pairs left out."""

    name: str
    arm: str
    share: float
    pair_ids: list[str]


@dataclass(frozen=True)
class Seed:
    """One seed: the flat keys that all its runs share, its training sets, the full one first, and their files."""

    base: dict[str, Any]
    subsets: list[Subset]
    files: dict[str, str]


def ablate(
    config: Path, scores: Path, out: Path, *, by: str, drops: Sequence[float], seeds: int, jobs: int
) -> tuple[list[Path], list[str]]:
    """Train what is not trained yet; returns the finished run folders, and what failed, in sentences.

    config: flat YAML of the full run. scores: scores.parquet with the column `by`. drops: shares to leave out.
    seeds: how many, counted from the config's own; a seed decides the split, the random subsets and the training.
    """
    base: dict[str, Any] = {"save_model": False, "seed": 0} | read_config(config)
    make_config(base | {"output_dir": str(out)})
    shown = {key: base[key] for key in ("frames", "media_folder") if key in base}
    order, table = flagged_first(scores, by), read_pairs(base["data"], split=base.get("split"), **shown)
    if any(pair.media for pair in table.pairs):  # the arms' files stand elsewhere
        base = {"media_folder": str(folder_of(base["data"]))} | base
    cut = [cut_data(table, order, base | {"seed": base["seed"] + k}, out, by, drops) for k in range(seeds)]
    once = [run for seed in cut for run in plan(seed, out, by)]
    check(once[0])
    with workers(jobs) as pool:
        failed = train_all(pool, once)
        again = [run for seed in cut if (steps := _full_steps(seed, out, by)) for run in plan(seed, out, by, steps)]
        failed += train_all(pool, again)
    done = [Path(run.output_dir) for run in (*once, *again) if is_finished(run)]
    if not done:
        raise DataError(f"no run could be finished. The first one said: {failed[0]}")
    return done, failed


def parse_drops(text: str) -> list[float]:
    """Shares separated by commas, each above 0 and below 1."""
    try:
        drops = [float(part) for part in text.split(",")]
    except ValueError:
        drops = []
    if not drops or not all(0 < d < 1 for d in drops) or len(set(drops)) < len(drops):
        raise UserError(f"--drop is '{text}'; write shares between 0 and 1, each once, for example 0.05,0.1,0.2.")
    return drops


def flagged_first(scores: Path, by: str) -> list[str]:
    """Ids of the scored pairs, the most displacement-prone by `by` first; those without a value last."""
    path = scores / "scores.parquet" if scores.is_dir() else scores
    if not path.is_file():
        raise DataError(f"{path}: no such file. Give the scores.parquet that `chesboard flag` wrote.")
    frame = read_frame(path)
    names = [c for c in frame if pd.api.types.is_numeric_dtype(frame[c]) and c not in ("source_row", "rank", "flagged")]
    if by not in names or "pair_id" not in frame:
        raise UserError(f"{path}: {unknown('column', by, names)}")
    scored = frame.loc[frame["status"] == "scored"] if "status" in frame else frame
    ordered = scored.sort_values(by, ascending=prone_end(by) == "lowest", kind="stable", na_position="last")
    return ordered["pair_id"].tolist()


def cut_data(
    table: PairTable, order: Sequence[str], base: dict[str, Any], out: Path, by: str, drops: Sequence[float]
) -> Seed:
    """Split one seed's pairs and write them to out/data: held out, probed, and trained on by each arm.

    The probe is a draw of the full set, so that it is the same in all runs whatever they leave out.
    """
    ids = {p.pair_id for p in table.pairs}
    known = [i for i in order if i in ids]
    if not known:
        raise DataError(f"{base['data']}: none of its pairs is in the scores. Flag this very file, then ablate it.")
    held = [] if base.get("heldout_data") else _held_out(known, base)
    full = [i for i in known if i not in set(held)]
    sets = subsets(full, by, drops, base["seed"])
    count = min(int(base.get("probe_pairs", PROBED)), len(full))
    probe = random.Random(f"probe {base['seed']}").sample(sorted(full), count)  # the same whatever ranks the pairs
    parts = {s.name: s.pair_ids for s in sets} | {"heldout": held, "probe": probe}
    folder = out / "data" / f"seed{base['seed']}"
    files = {name: _write(table, folder, name, chosen) for name, chosen in parts.items() if chosen}
    fixed = {"probe_data": files.get("probe"), "probe_pairs": len(probe), "split": None}
    if not base.get("heldout_data"):
        fixed |= {"heldout_data": files.get("heldout"), "heldout_pairs": len(held)}
    return Seed(base | fixed, sets, files)


def subsets(full: Sequence[str], by: str, drops: Sequence[float], seed: int) -> list[Subset]:
    """The full set, and for each share the set without its flagged pairs and one without as many random pairs.

    full: ids, the most displacement-prone first. Raises UserError where a share leaves out no pair, or all.
    """
    by_chance = random.Random(f"subset {seed}").sample(sorted(full), len(full))  # the same whatever ranks the pairs
    found = [Subset("full", "full", 0.0, list(full))]
    for share in drops:
        count = round(share * len(full))
        if not 0 < count < len(full):
            raise UserError(f"--drop {share:g} of {len(full)} pairs leaves out {count}; choose another share.")
        found.append(Subset(f"{by}-{share:g}", "flagged", share, list(full[count:])))
        found.append(Subset(f"random-{share:g}", "random", share, by_chance[count:]))
    return found


def plan(seed: Seed, out: Path, by: str, steps: int | None = None) -> list[TrainConfig]:
    """The runs of one seed; with steps, those of the smaller sets, each for as many optimizer steps."""
    runs = []
    for subset in seed.subsets[1:] if steps else seed.subsets:
        name = f"{subset.name}{'-steps' if steps else ''}-seed{seed.base['seed']}"
        keys = {"data": seed.files[subset.name], "output_dir": str(out / name)}
        keys |= {"max_steps": steps} if steps else {}
        label = {"ablate_arm": subset.arm, "ablate_by": by if subset.arm == "flagged" else None}
        label |= {"ablate_drop": subset.share, "ablate_equal_steps": bool(steps)}
        runs.append(make_config(seed.base | keys, extras=label))
    return runs


def _held_out(known: Sequence[str], base: dict[str, Any]) -> list[str]:
    count = min(int(base.get("heldout_pairs", HELD_OUT)), len(known) // 10)
    return random.Random(f"held out {base['seed']}").sample(sorted(known), count)


def _full_steps(seed: Seed, out: Path, by: str) -> int | None:
    """Optimizer steps of the finished full run; None where it could not be finished."""
    run = plan(seed, out, by)[0]
    return int(read_json(Path(run.output_dir) / RECORD)["steps"]) if is_finished(run) else None


def _write(table: PairTable, folder: Path, name: str, pair_ids: Sequence[str]) -> str:
    """Some rows in the order of the source, as JSON lines or in the data's own format."""
    rows = {p.pair_id: p.source_row for p in table.pairs}
    kind = table.raw.kind if table.raw.kind != "hub" else "jsonl"
    path = folder / f"{name}.{kind}"
    write_rows(table, sorted(rows[i] for i in pair_ids), path)
    return str(path)
