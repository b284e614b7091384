"""Recipes that are not losses: how much each pair weighs, in which order pairs train, when the reference is renewed.

The rest needs nothing here. CHES filter (arXiv 2410.08847, Section 6): train on the file that `chesboard flag
--write-kept` writes. Length-controlled subsets: `diagnostics.audit.skip_length_gaps`. Small-learning-rate SFT first
(arXiv 2507.00018): a run with objective `sft`, then one on its model.
"""

import math
import random
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
from accelerate.utils import extract_model_from_parallel
from safetensors import SafetensorError
from safetensors.torch import load_model, save_model
from torch import nn
from torch.utils.data import Sampler
from transformers import TrainerCallback, TrainingArguments

from diagnostics.errors import DataError, UserError
from diagnostics.flag.flagging import prone_end
from diagnostics.runlog import read_frame
from diagnostics.sequences import Example
from trainers import objectives
from trainers.config import TrainConfig
from trainers.loop.recorder import Recorder
from trainers.loop.reference import LiveReference


def check(config: TrainConfig) -> None:
    """UserError where keys of recipes do not fit together, or not the run."""
    ordered, renews = config.curriculum != "none", config.renew_reference or config.rounds > 1
    if config.rounds > 1 and not ordered:
        raise UserError(f"rounds is {config.rounds}, but there is no curriculum; set curriculum to score_gap.")
    if renews and (config.reference != "live" or config.reference_model or config.lora_r):
        key = "renew_reference" if config.renew_reference else "rounds"
        raise UserError(
            f"{key} gives the reference the policy's weights, so the reference must be a model of its own: set "
            "reference to live and lora_r to 0, and leave reference_model out."
        )
    if "lists" in objectives.needs(config.objective) and (ordered or config.pair_weights):
        key = "curriculum" if ordered else "pair_weights"
        raise UserError(f"{key} is about single pairs, but objective '{config.objective}' compares whole lists.")
    passes = config.training.get("num_train_epochs", 1.0)
    stops = config.training.get("max_steps", -1) > 0 or config.training.get("dataloader_drop_last")
    if ordered and (passes < 1 or passes != int(passes) or stops):
        raise UserError(
            "a curriculum goes through its pairs in whole passes: give num_train_epochs as a whole number, 1 or more, "
            "and leave max_steps and dataloader_drop_last out."
        )


# --- weights -----------------------------------------------------------------------------------------------------


def rank_weights(values: pd.Series) -> pd.Series:
    """A weight for each value that falls with its rank: w = 2 (1 - q), q = (rank - 0.5) / n.

    rank: 1 .. n by ascending value, ties at their mean rank; so w lies between 0 and 2 and its mean is 1. Source: own;
    soft down-weighting by LN-CHES is known from a reproduction of arXiv 2410.08847, whose formula was not found.
    """
    return 2 * (1 - (values.rank(method="average") - 0.5) / len(values))


def weights(scores: pd.DataFrame, by: str, pair_ids: Sequence[str], where: str) -> dict[str, float]:
    """pair_id -> weight: rank_weights of the training pairs' values in a table of `chesboard flag`; the pairs that the
    measure takes for prone to displacement weigh least, be it its highest or its lowest values.

    A table without the column, without one of the pairs, or with NaN for one ends in a DataError naming it.
    """
    for column in ("pair_id", by):
        if column not in scores:
            raise DataError(f"{where}: no column '{column}'. Give a scores.parquet of `chesboard flag`, and weight_by.")
    if not pd.api.types.is_numeric_dtype(scores[by]):
        raise DataError(f"{where}: the column '{by}' holds no numbers; set weight_by to a measure.")
    wanted, there = set(pair_ids), scores["pair_id"].tolist()
    known = {i: float(value) for i, value in zip(there, scores[by], strict=True) if i in wanted}
    twice = [i for i, times in Counter(there).items() if i in wanted and times > 1]
    missing = [i for i in pair_ids if i not in known]
    empty = [i for i, value in known.items() if math.isnan(value)]
    if twice or missing:
        said = f"more than one row for {_some(twice)}" if twice else f"no row for {_some(missing)}"
        raise DataError(f"{where}: {said}. Score the data of this run with `chesboard flag`.")
    if empty:
        raise DataError(
            f"{where}: '{by}' is NaN for {_some(empty)}; leave these pairs out, or choose another weight_by."
        )
    sign = -1 if prone_end(by) == "lowest" else 1
    found = rank_weights(pd.Series([sign * known[i] for i in pair_ids]))
    return dict(zip(pair_ids, found.tolist(), strict=True))


def read_weights(config: TrainConfig, pairs: Sequence[Example]) -> dict[str, float]:
    """The weights that the config asks for, by pair_id; empty where it asks for none."""
    if not config.pair_weights:
        return {}
    if not Path(config.pair_weights).is_file():
        raise UserError(f"{config.pair_weights}: no such file; pair_weights takes the scores.parquet of a flag folder.")
    ids = [p.pair_id for p in pairs]
    return weights(read_frame(config.pair_weights), config.weight_by, ids, config.pair_weights)


def _some(pair_ids: Sequence[str]) -> str:
    more = f" and {len(pair_ids) - 3} more" if len(pair_ids) > 3 else ""
    return f"pair_id {', '.join(pair_ids[:3])}{more}"


# --- order -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curriculum:
    """In which order pairs train: their indices over all passes, `size` a pass, `updates` updates a pass.

    starts: how many updates are done when a round after the first begins.
    """

    sequence: list[int]
    size: int
    updates: int
    starts: frozenset[int]


def rounds(prompts: Sequence[Hashable], gaps: Sequence[float], count: int) -> list[int]:
    """The round (0 .. count - 1) of each pair, from the largest score gap (easy) to the smallest. arXiv 2403.07230.

    Each prompt's pairs are spread over the rounds by their gap; those of prompts with one pair are cut, all together,
    into equal parts by gap. Equal gaps stay in the order of the data.
    """
    groups: dict[Hashable, list[int]] = {}
    for i, prompt in enumerate(prompts):
        groups.setdefault(prompt, []).append(i)
    alone = [group[0] for group in groups.values() if len(group) == 1]
    found = [0] * len(prompts)
    for group in [*(g for g in groups.values() if len(g) > 1), alone]:
        for place, i in enumerate(sorted(group, key=lambda i: -gaps[i])):
            found[i] = place * count // len(group)
    return found


def sequence(of_round: Sequence[int], gaps: Sequence[float], *, passes: int, seed: int) -> list[int]:
    """Indices of the pairs as they train: round after round, each `passes` times and shuffled anew in each.

    A single round is not shuffled but goes from the largest gap to the smallest, which would be no order otherwise.
    """
    draw, found = random.Random(seed), []
    for number in range(max(of_round) + 1):
        members = [i for i, r in enumerate(of_round) if r == number]
        easy_first = sorted(members, key=lambda i: -gaps[i])
        for _ in range(passes):
            found += draw.sample(members, len(members)) if max(of_round) else easy_first
    return found


def curriculum(
    prompts: Sequence[Hashable], gaps: Sequence[float], *, count: int, passes: int, update: int, seed: int
) -> Curriculum:
    """The order of a Curry-DPO run (arXiv 2403.07230) of `count` rounds, in updates of `update` pairs.

    An update that holds pairs of two rounds belongs to the earlier one: a round begins with its first whole update.
    """
    size, of_round = len(prompts), rounds(prompts, gaps, count)
    a_pass = -(-size // update)
    before = [passes * sum(r < number for r in of_round) for number in range(count)]  # pairs trained by then
    starts = {(n // size) * a_pass - (-(n % size) // update) for n in before}
    if len(starts) < count or max(starts) >= passes * a_pass:
        raise UserError(
            f"rounds is {count}, but {size} pairs in updates of {update} leave a round without an update of its own; "
            "lower rounds or the batch size."
        )
    return Curriculum(sequence(of_round, gaps, passes=passes, seed=seed), size, a_pass, frozenset(starts - {0}))


def order(
    config: TrainConfig, arguments: TrainingArguments, pairs: Sequence[Example], gaps: Sequence[float]
) -> Curriculum | None:
    """The order that the config asks for, or None."""
    if config.curriculum == "none":
        return None
    update = arguments.per_device_train_batch_size * arguments.world_size * arguments.gradient_accumulation_steps
    return curriculum(
        [p.prompt_ids for p in pairs], gaps, count=config.rounds, passes=int(arguments.num_train_epochs),
        update=update, seed=config.seed,
    )  # fmt: skip


class Ordered(Sampler):
    """Gives the indices of an order, pass by pass. step: how many updates are done (also in a resumed run)."""

    def __init__(self, order: Curriculum, step: Callable[[], int]) -> None:
        self.order, self.step = order, step

    def __len__(self) -> int:
        return self.order.size

    def __iter__(self) -> Iterator[int]:
        start = self.step() // self.order.updates * self.order.size
        return iter(self.order.sequence[start : start + self.order.size])


# --- renewal -----------------------------------------------------------------------------------------------------


class Renewal(TrainerCallback):
    """Now and then the reference becomes a copy of the policy, before an update's forward pass.

    every: after so many updates (0: never), as DNO compares with the policy of its last iteration (arXiv 2404.03715);
    starts: after these numbers of updates, the starts of Curry-DPO's rounds (arXiv 2403.07230; recall for this point).
    Every row of steps.jsonl gets `reference_renewed`: 1 where the log-ratios of its training rows restart from 0.
    """

    FILE = "reference.safetensors"

    def __init__(self, reference: LiveReference, recorder: Recorder, *, every: int, starts: frozenset[int]) -> None:
        self.reference, self.recorder, self.every, self.starts = reference, recorder, every, starts
        self.renewed = False

    def due(self, done: int) -> bool:
        """Whether the reference is renewed when so many updates are done."""
        return done in self.starts or bool(self.every and done and done % self.every == 0)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Renew where it is due, and say so in this update's row."""
        due = self.due(state.global_step)
        if due:
            self._whole().load_state_dict(_unwrapped(self.recorder.model).state_dict())
            self.renewed = True
        self.recorder.notes["reference_renewed"] = int(due)

    def write(self, folder: Path) -> None:
        """The renewed reference's weights into a checkpoint's folder."""
        if self.renewed:
            folder.mkdir(parents=True, exist_ok=True)
            save_model(self._whole(), str(folder / self.FILE))

    def read(self, folder: Path, done: int) -> None:
        """From the folder of a checkpoint made after so many updates, where the reference was renewed before it."""
        self.renewed = any(map(self.due, range(1, done)))
        if not self.renewed:
            return
        try:
            load_model(self._whole(), str(folder / self.FILE))
        except (OSError, RuntimeError, SafetensorError) as error:
            raise DataError(
                f"{folder / self.FILE}: the renewed reference cannot be read ({str(error).splitlines()[0]}). Resume "
                "from another checkpoint, or start anew in another output_dir."
            ) from None

    def _whole(self) -> nn.Module:
        return _unwrapped(self.reference.model)


def _unwrapped(model: nn.Module) -> nn.Module:
    """The model itself, without what runs it in many processes or compiled."""
    return extract_model_from_parallel(model, keep_torch_compile=False)


def renewal(config: TrainConfig, recipe: "Recipe", reference: Any, recorder: Recorder) -> Renewal | None:
    """The renewal that the config asks for, or None."""
    starts = recipe.order.starts if recipe.order else frozenset()
    if not config.renew_reference and not starts:
        return None
    return Renewal(reference, recorder, every=config.renew_reference, starts=starts)


# --- all of it ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recipe:
    """A run's recipe: factors of the losses by pair_id (empty: none), the order (None: random), and both in words."""

    weights: dict[str, float] = field(default_factory=dict)
    order: Curriculum | None = None
    said: dict[str, Any] = field(default_factory=dict)


def recipe(
    config: TrainConfig, arguments: TrainingArguments, pairs: Sequence[Example], gaps: Sequence[float]
) -> Recipe:
    """The recipe that the config asks for, for these training pairs and their score gaps."""
    found = order(config, arguments, pairs, gaps)
    return Recipe(read_weights(config, pairs), found, described(config, found))


def described(config: TrainConfig, order: Curriculum | None) -> dict[str, Any]:
    """For manifest.json: what each recipe that is on did, and what that means for the numbers."""
    said: dict[str, Any] = {}
    if config.pair_weights:
        said["pair_weights"] = (
            f"the loss, as trained and as logged, is the objective's times the pair's weight (column weight of pairs); "
            f"weight = 2 (1 - (rank - 0.5) / n) by ascending {config.weight_by} among the training pairs; source: own"
        )
    if order:
        said["curriculum"] = {"by": config.curriculum, "rounds": config.rounds, "source": "arXiv 2403.07230"}
        said["curriculum"] |= {"rounds_begin_after_step": sorted({0, *order.starts})}
    if config.renew_reference or (order and order.starts):
        when = [f"after every {config.renew_reference} steps"] if config.renew_reference else []
        when += ["at each round's start (recall)"] if order and order.starts else []
        said["reference_renewed"] = (
            f"the reference became a copy of the policy {' and '.join(when)}: log-ratios, rewards, KL and displacement "
            "are against the newest reference and restart from 0 in the steps whose reference_renewed is 1"
        )
    if config.max_length_gap is not None:
        said["max_length_gap"] = f"pairs whose answers differ by more than {config.max_length_gap} tokens are skipped"
    return said
