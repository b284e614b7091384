"""Columns of the run log: the order of a pair's row, and the means over rows that steps.jsonl holds."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from diagnostics import measures
from diagnostics.outcomes import fell, is_strong, log_push_ratio

NAN = float("nan")

# name in steps.jsonl -> column of pairs whose mean over rows it is; those of measures are said in their files
MEANS = {
    "rewards/chosen": "chosen_rewards",
    "rewards/rejected": "rejected_rewards",
    "rewards/margins": "reward_margins",
    "rewards/accuracies": "reward_accuracies",
    "logps/chosen": "chosen_logps",
    "logps/rejected": "rejected_logps",
    "logps_mean/chosen": "chosen_avg_logps",
    "logps_mean/rejected": "rejected_avg_logps",
    "incentive/chosen": "chosen_incentive",
    "incentive/rejected": "rejected_incentive",
    "incentive_ratio/mean": "finite_incentive_ratio",
    "gradient_cosine/mean": "gradient_cosine",
    "slack/mean": "finite_slack",
    "slack/frac": "outside_band",
    "grad_push_ratio/mean": "finite_grad_push_ratio",
    "push_ratio/log_mean": "log_push_ratio",
    "push_ratio/over_100": "strong_push",
    "displacement/chosen": "moved",
    "displacement/frac": "chosen_fell",
    "quadrant/separated": "separated",
    "quadrant/both_fell": "both_fell",
    "quadrant/neither_fell": "neither_fell",
    "quadrant/inverted": "inverted",
} | {column.mean: name for name, column in measures.columns().items() if column.mean}
# order of the columns of pairs; other measures follow in alphabetical order
FIRST = (
    *("step", "epoch", "split", "pair_id", "loss", "chosen_logps", "rejected_logps"),
    *("ref_chosen_logps", "ref_rejected_logps", "chosen_length", "rejected_length", "chosen_rewards"),
    *("rejected_rewards", "chosen_kl", "rejected_kl", "chosen_kl_reverse", "rejected_kl_reverse"),
    *("ches_score", "ln_ches_score", "chosen_grad_norm", "rejected_grad_norm", "grad_inner"),
    *("incentive_ratio", "gradient_cosine", "slack", "grad_push_ratio"),
)
NO_NATS = {"log_push_ratio": NAN, "strong_push": NAN}
# what only a training row has; what else a step has; what every probe measures. All can be given an alarm
TRAINED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "incentive/chosen", "incentive/rejected")
TRAINED += ("incentive_ratio/mean", "gradient_cosine/mean", "slack/mean", "slack/frac", "grad_push_ratio/mean")
STEP_KEYS = ("loss", "grad_norm", "learning_rate", "n", *TRAINED)
PROBE_KEYS = tuple(name for name in MEANS if name not in TRAINED)
SCORE = "samples/score"  # of the samples that a denoiser draws, the mean of what their judge says
# measured by the gradient instruments on their steps; on all others they stand in steps.jsonl and hold nothing
UNMEASURED = ("grad/chosen", "grad/rejected", "grad/cosine", "grad_total/chosen", "grad_total/rejected")


@dataclass
class ProbeRows:
    """What one probe adds to the run log."""

    pairs: list[dict[str, Any]] = field(default_factory=list)
    mass: list[dict[str, Any]] = field(default_factory=list)
    tokens: list[dict[str, Any]] = field(default_factory=list)
    samples: list[dict[str, Any]] = field(default_factory=list)
    draws: list[dict[str, Any]] = field(default_factory=list)


def summarise(found: ProbeRows, noise: float = 0.0, *, nats: bool = True, tie: float = 0.0) -> dict[str, Any]:
    """probe/<key>, eval/<key>: means over the probed rows; track/<set>/<group>: mean probability mass;
    probe/response/<type>: mean log-prob a token of the followed answers."""
    out: dict[str, Any] = {}
    for split in dict.fromkeys(row["split"] for row in found.pairs):
        chosen = [row for row in found.pairs if row["split"] == split]
        out |= {f"{split}/{k}": v for k, v in means(chosen, noise, nats=nats, tie=tie).items() if not math.isnan(v)}
        out[f"{split}/n"] = len(chosen)
    groups: dict[str, list[float]] = {}
    for row in found.mass:
        if row["kind"] == "group":
            groups.setdefault(f"track/{row['split']}/{row['name']}", []).append(row["prob"])
        elif row["kind"] == "response":
            logp = math.log(row["prob"]) if row["prob"] else -math.inf
            groups.setdefault(f"{row['split']}/response/{row['name']}", []).append(logp)
    return out | {name: mean(values) for name, values in groups.items()}


def means(
    pair_rows: Sequence[dict[str, Any]], noise: float = 0.0, *, nats: bool = True, tie: float = 0.0
) -> dict[str, float]:
    """Means over rows, never over batch means, of every column in MEANS; NaN where nothing was measured, and where a
    column is made of probabilities and the likelihoods are no nats. tie: a margin must exceed it to be a win."""
    derived = [row | _derive(row, noise, tie) | ({} if nats else NO_NATS) for row in pair_rows]
    return {name: mean([row.get(column, NAN) for row in derived]) for name, column in MEANS.items()}


def mean(values: Sequence[float]) -> float:
    """Mean of the values that were measured; NaN if none was."""
    measured = [v for v in values if not math.isnan(v)]
    return math.fsum(measured) / len(measured) if measured else NAN


def ordered(row: dict[str, Any]) -> dict[str, Any]:
    """The row in the table's column order, NaN where this kind of row does not measure."""
    return {name: row.get(name, NAN) for name in FIRST} | dict(sorted((k, v) for k, v in row.items() if k not in FIRST))


def _derive(row: dict[str, Any], noise: float, tie: float) -> dict[str, float]:
    """Columns that follow from a pair's row: margins, accuracy (a tie is not a win), fall, per-token log-probs."""
    # a probe row has no objective, so its preference is judged on log-ratios, of which DPO's rewards are a multiple
    chosen, rejected = row.get("chosen_rewards", NAN), row.get("rejected_rewards", NAN)
    if math.isnan(chosen):
        chosen, rejected = row["chosen_logratios"], row["rejected_logratios"]
    margin, ratio = chosen - rejected, row["chosen_logratios"]
    return (
        {
            "reward_margins": row.get("chosen_rewards", NAN) - row.get("rejected_rewards", NAN),
            "reward_accuracies": NAN if math.isnan(margin) else float(margin > tie),
            "chosen_fell": float(fell(ratio, noise)),
            "moved": 0.0 if math.isinf(noise) and not math.isnan(ratio) else ratio,
            "chosen_avg_logps": row["chosen_logps"] / (row["chosen_length"] or NAN),
            "rejected_avg_logps": row["rejected_logps"] / (row["rejected_length"] or NAN),
        }
        | quadrant(row["chosen_logratios"], row["rejected_logratios"], noise)
        | _derive_push(row)
        | _derive_band(row)
    )


def quadrant(chosen: float, rejected: float, noise: float = 0.0) -> dict[str, float]:
    """1 for what became of a pair, 0 for the other three, by the signs of its log-ratios; NaN without a reference.

    separated: chosen held or rose, rejected fell. both_fell. neither_fell: both held or rose. inverted: chosen fell,
    rejected held or rose. Whether a side fell says outcomes.fell: a log-ratio within the noise has not moved.
    """
    names = ("separated", "both_fell", "neither_fell", "inverted")
    if math.isnan(chosen + rejected):
        return dict.fromkeys(names, NAN)
    chosen_fell, rejected_fell = bool(fell(chosen, noise)), bool(fell(rejected, noise))
    fallen = "both_fell" if rejected_fell else "inverted"
    held = "separated" if rejected_fell else "neither_fell"
    return dict.fromkeys(names, 0.0) | {fallen if chosen_fell else held: 1.0}


def _derive_push(row: dict[str, Any]) -> dict[str, float]:
    """The push ratio in probability space, which needs no gradient: its log, and whether it is above 100."""
    log_ratio = log_push_ratio(row["chosen_logps"], row["rejected_logps"])
    strong = NAN if math.isnan(log_ratio) else float(is_strong(log_ratio))
    return {"log_push_ratio": log_ratio if math.isfinite(log_ratio) else NAN, "strong_push": strong}


def _derive_band(row: dict[str, Any]) -> dict[str, float]:
    """Band columns of which a mean makes sense: their finite values, and whether the pair stands outside its band."""
    finite = {f"finite_{k}": row.get(k, NAN) for k in ("incentive_ratio", "slack", "grad_push_ratio")}
    slack = row.get("slack", NAN)
    outside = NAN if math.isnan(slack) else float(slack < 0)
    return {k: v if math.isfinite(v) else NAN for k, v in finite.items()} | {"outside_band": outside}
