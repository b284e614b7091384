"""The recorder: turns what the trainer sees into rows of the run log."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm
from transformers import TrainerCallback

from diagnostics.errors import DataError, printable
from diagnostics.outcomes import fell, is_strong, log_push_ratio
from diagnostics.processes import share
from diagnostics.progress import Steps
from diagnostics.runlog import RunLogWriter
from diagnostics.scoring import rows
from diagnostics.stats import PairStats
from trainers.alarm import Alarms
from trainers.objectives import ObjectiveOutput
from trainers.probe import Probe, ProbeRows

NAN = float("nan")

# name in steps.jsonl -> column of pairs whose mean over rows it is
MEANS = {
    "rewards/chosen": "chosen_rewards",
    "rewards/rejected": "rejected_rewards",
    "rewards/margins": "reward_margins",
    "rewards/accuracies": "reward_accuracies",
    "logps/chosen": "chosen_logps",
    "logps/rejected": "rejected_logps",
    "logps_mean/chosen": "chosen_avg_logps",
    "logps_mean/rejected": "rejected_avg_logps",
    "kl/chosen": "chosen_kl",
    "kl/rejected": "rejected_kl",
    "kl_reverse/chosen": "chosen_kl_reverse",
    "kl_reverse/rejected": "rejected_kl_reverse",
    "ches/mean": "ches_score",
    "ln_ches/mean": "ln_ches_score",
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
    "displacement/frac": "displaced",
    "common_mode": "common_mode",
    "differential_mode": "logratio_margin",
    "quadrant/separated": "separated",
    "quadrant/both_fell": "both_fell",
    "quadrant/neither_fell": "neither_fell",
    "quadrant/inverted": "inverted",
    "topk_entropy/chosen": "chosen_topk_entropy",
    "topk_entropy/rejected": "rejected_topk_entropy",
    "topk_mass/chosen": "chosen_topk_mass",
    "topk_mass/rejected": "rejected_topk_mass",
}
# order of the columns of pairs; other measures follow in alphabetical order
FIRST = (
    *("step", "epoch", "split", "pair_id", "loss", "chosen_logps", "rejected_logps"),
    *("ref_chosen_logps", "ref_rejected_logps", "chosen_length", "rejected_length", "chosen_rewards"),
    *("rejected_rewards", "chosen_kl", "rejected_kl", "chosen_kl_reverse", "rejected_kl_reverse"),
    *("ches_score", "ln_ches_score", "chosen_grad_norm", "rejected_grad_norm", "grad_inner"),
    *("incentive_ratio", "gradient_cosine", "slack", "grad_push_ratio"),
)
# what only a training row has; what else a step has; what every probe measures. All can be given an alarm
TRAINED = ("rewards/chosen", "rewards/rejected", "rewards/margins", "incentive/chosen", "incentive/rejected")
TRAINED += ("incentive_ratio/mean", "gradient_cosine/mean", "slack/mean", "slack/frac", "grad_push_ratio/mean")
STEP_KEYS = ("loss", "grad_norm", "learning_rate", "n", *TRAINED)
PROBE_KEYS = tuple(name for name in MEANS if name not in TRAINED)
# measured by the gradient instruments on their steps; on all others they stand in steps.jsonl and hold nothing
UNMEASURED = ("grad/chosen", "grad/rejected", "grad/cosine", "grad_total/chosen", "grad_total/rejected")


class Recorder(TrainerCallback):
    """Collects the pair rows of one update and writes them when the update is done; runs the probe on its steps."""

    def __init__(
        self,
        writer: RunLogWriter,
        probe: Probe,
        *,
        probe_every: int,
        tokens: str,
        main: bool,
        before: Callable[[nn.Module], float],
        noise: float = NAN,
        alarms: Alarms | None = None,
    ) -> None:
        self.alarms = alarms or Alarms()
        self.stopped = ""  # the alarm that ended the training
        self.before = (
            before  # called once with the prepared model, before the first step; returns the noise, NaN if unknown
        )
        self.noise = noise  # nats; a log-ratio within it is rounding (see outcomes.fell)
        self.report: Callable[[dict[str, float]], None] = lambda values: None  # set by the trainer: to its viewers
        self.writer, self.probe, self.tokens, self.main = writer, probe, tokens, main
        self.probe_every = probe_every
        self.model: Any = None  # set by the trainer: the model that is really run
        self.last_step: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}  # what a recipe says about the update, into its row of steps.jsonl
        self._rows: list[dict[str, Any]] = []
        self._norms: dict[str, float] = {}
        self._gradients: dict[str, float] = {}
        self._learning_rate = NAN
        self._probed = -1
        self._bar: Steps | None = None

    def add(
        self, pair_ids: Sequence[str], stats: PairStats, output: ObjectiveOutput, more: dict[str, Tensor] | None = None
    ) -> None:
        """Keep one micro-batch's rows. more: further columns, (B,) each. Raises DataError naming the pairs when a
        loss is not finite."""
        columns = {"loss": output.losses, "chosen_rewards": output.chosen_rewards}
        columns |= {"rejected_rewards": output.rejected_rewards} | (more or {})
        values = {name: column.detach().double().tolist() for name, column in columns.items()}
        new = [row | {name: v[i] for name, v in values.items()} for i, row in enumerate(rows(pair_ids, stats))]
        self._rows += new
        bad = [row["pair_id"] for row in new if not math.isfinite(row["loss"])]
        if bad:
            raise DataError(
                f"the loss is not finite for pair_id {', '.join(bad[:8])}{' ...' if len(bad) > 8 else ''}. The run "
                "stopped before this update and its log is kept; look these pairs up in audit.parquet, lower the "
                "learning rate, or train in bfloat16 or float32."
            )

    def norms(self, values: dict[str, float]) -> None:
        """Gradient norms before clipping: grad_norm and grad_norm/<layer group>."""
        self._norms = values

    def gradients(self, values: dict[str, float]) -> None:
        """What the gradient instruments found in this update: grad/... and grad_total/..."""
        self._gradients |= values

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        self._bar = Steps("training", state.max_steps, before=state.global_step, show=self.main)
        if state.global_step == 0:
            self.noise = self.before(self.model)
            start = {"step": 0, "epoch": 0.0} | self._run_probe(0, 0.0, last=state.max_steps == 0)
            self._write_step(start)
            self.alarms.require(start)
        else:
            self._probed = state.global_step

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        self._learning_rate = kwargs["lr_scheduler"].get_last_lr()[0] if kwargs.get("lr_scheduler") else NAN

    def on_step_end(self, args, state, control, **kwargs) -> None:
        step, epoch = state.global_step, float(state.epoch or 0.0)
        summary = self.flush(step, epoch)
        last = step >= state.max_steps
        if last or (self.probe_every and step % self.probe_every == 0):
            summary |= self._run_probe(step, epoch, last=last)
        summary |= self._alarm(summary)
        if "alarm" in summary and self.alarms.stop and not last:
            self.stopped = summary["alarm"]
            control.should_training_stop = control.should_save = True
            summary |= self._last_probe(step, epoch)
        self._write_step(summary)
        if self._bar is not None:
            share = summary["displacement/frac"]
            below = "" if math.isnan(share) else f", below_ref={share:.0%}"
            self._bar.add(note=f"loss={summary['loss']:.3f}{below}")

    def on_train_end(self, args, state, control, **kwargs) -> None:
        if self._probed < state.global_step:
            probed = self._run_probe(state.global_step, float(state.epoch or 0.0), last=True)
            end = {"step": state.global_step, "epoch": state.epoch} | probed
            self._write_step(end | self._alarm(end))
        if self.main and state.global_step:
            for unseen in self.alarms.unseen():
                tqdm.write(printable(f"alarm '{unseen}' could not set in: its key was never measured."))

    def close(self) -> None:
        """The end of the progress, also of a run that broke off."""
        if self._bar is not None:
            self._bar.close()

    def flush(self, step: int, epoch: float) -> dict[str, Any]:
        """Write the collected pair rows under `step`; returns the step's means over all processes' rows."""
        everywhere = gather_object(self._rows)
        head = {"step": step, "epoch": epoch, "split": "train"}
        if self.main:
            self.writer.append("pairs", [ordered(head | row) for row in everywhere])
        self._rows = []
        summary = {"step": step, "epoch": epoch, "loss": mean([r["loss"] for r in everywhere])}
        summary |= {"grad_norm": NAN} | self._norms | {"learning_rate": self._learning_rate}
        gradients, self._gradients = dict.fromkeys(UNMEASURED, NAN) | self._gradients, {}
        # the first update sees the reference's own weights: whatever policy and reference differ by there is rounding
        noise = math.inf if step == 1 and not math.isnan(self.noise) else self.noise
        return summary | means(everywhere, noise) | gradients | self.notes | {"n": len(everywhere)}

    def _run_probe(self, step: int, epoch: float, *, last: bool) -> dict[str, Any]:
        keep = self.tokens == "all" or (self.tokens == "ends" and (step == 0 or last))
        found = self.probe.measure(self.model, step, epoch, tokens=keep)
        self._probed = step
        if self.main:
            self.writer.append("pairs", [ordered(row) for row in found.pairs])
            self.writer.append("mass", found.mass)
            self.writer.append("tokens", found.tokens)
        summary = summarise(found, self.noise)
        self.report(summary)
        return summary

    def _last_probe(self, step: int, epoch: float) -> dict[str, Any]:
        """What a run that ends before its time still lacks: the probe, or the token rows of a probe made already."""
        if self._probed < step:
            return self._run_probe(step, epoch, last=True)
        if self.tokens == "ends":
            found = self.probe.measure(self.model, step, epoch, tokens=True)
            if self.main:
                self.writer.append("tokens", found.tokens)
        return {}

    def _alarm(self, row: dict[str, Any]) -> dict[str, str]:
        """The alarms that set in at this row, said and ready to be logged; the first process decides for all."""
        found = share(lambda: self.alarms.judge(row)) if self.alarms.counts else []
        if not found:
            return {}
        text = "; ".join(found)
        if self.main:
            tqdm.write(printable(f"alarm: {text}"))
        return {"alarm": text}

    def _write_step(self, summary: dict[str, Any]) -> None:
        self.last_step = summary
        if self.main:
            self.writer.append_step(summary)


def summarise(found: ProbeRows, noise: float = 0.0) -> dict[str, Any]:
    """probe/<key>, eval/<key>: means over the probed rows; track/<set>/<group>: mean probability mass;
    probe/response/<type>: mean log-prob a token of the followed answers."""
    out: dict[str, Any] = {}
    for split in dict.fromkeys(row["split"] for row in found.pairs):
        chosen = [row for row in found.pairs if row["split"] == split]
        out |= {f"{split}/{k}": v for k, v in means(chosen, noise).items() if not math.isnan(v)}
        out[f"{split}/n"] = len(chosen)
    groups: dict[str, list[float]] = {}
    for row in found.mass:
        if row["kind"] == "group":
            groups.setdefault(f"track/{row['split']}/{row['name']}", []).append(row["prob"])
        elif row["kind"] == "response":
            logp = math.log(row["prob"]) if row["prob"] else -math.inf
            groups.setdefault(f"{row['split']}/response/{row['name']}", []).append(logp)
    return out | {name: mean(values) for name, values in groups.items()}


def means(pair_rows: Sequence[dict[str, Any]], noise: float = 0.0) -> dict[str, float]:
    """Means over rows, never over batch means, of every column in MEANS; NaN where nothing was measured."""
    derived = [row | _derive(row, noise) for row in pair_rows]
    return {name: mean([row.get(column, NAN) for row in derived]) for name, column in MEANS.items()}


def mean(values: Sequence[float]) -> float:
    """Mean of the values that were measured; NaN if none was."""
    measured = [v for v in values if not math.isnan(v)]
    return math.fsum(measured) / len(measured) if measured else NAN


def ordered(row: dict[str, Any]) -> dict[str, Any]:
    """The row in the table's column order, NaN where this kind of row does not measure."""
    return {name: row.get(name, NAN) for name in FIRST} | dict(sorted((k, v) for k, v in row.items() if k not in FIRST))


def _derive(row: dict[str, Any], noise: float) -> dict[str, float]:
    """Columns that follow from a pair's row: margins, accuracy (a tie is not a win), displaced, per-token log-probs."""
    # a probe row has no objective, so its preference is judged on log-ratios, of which DPO's rewards are a multiple
    chosen, rejected = row.get("chosen_rewards", NAN), row.get("rejected_rewards", NAN)
    if math.isnan(chosen):
        chosen, rejected = row["chosen_logratios"], row["rejected_logratios"]
    margin, ratio = chosen - rejected, row["chosen_logratios"]
    return (
        {
            "reward_margins": row.get("chosen_rewards", NAN) - row.get("rejected_rewards", NAN),
            "reward_accuracies": NAN if math.isnan(margin) else float(margin > 0),
            "displaced": float(fell(ratio, noise)),
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
