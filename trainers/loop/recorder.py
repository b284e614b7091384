"""The recorder: turns what the trainer sees into rows of the run log."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm import tqdm
from transformers import TrainerCallback

from diagnostics.errors import DataError, printable
from diagnostics.processes import share
from diagnostics.progress import Steps
from diagnostics.scoring import numbers, rows
from diagnostics.stats import PairStats
from trainers.loop.alarm import Alarms
from trainers.loop.columns import NAN, UNMEASURED, mean, means, ordered
from trainers.loop.schedule import ProbeSchedule
from trainers.objectives import ObjectiveOutput


class Recorder(TrainerCallback):
    """Collects the pair rows of one update and writes them when the update is done; runs the probe on its steps.

    before: called once with the prepared model, before the first step; returns the noise, NaN where it is unknown, and
    whether policy and reference were found to be the same model.
    """

    def __init__(
        self,
        schedule: ProbeSchedule,
        *,
        before: Callable[[nn.Module], tuple[float, bool]],
        alarms: Alarms | None = None,
    ) -> None:
        self.schedule, self.before, self.alarms = schedule, before, alarms or Alarms()
        self.writer, self.main = schedule.writer, schedule.main
        self.same = False  # whether the first update sees the reference's own weights
        self.stopped = ""  # the alarm that ended the training
        self.model: Any = None  # set by the trainer: the model that is really run
        self.last_step: dict[str, Any] = {}
        self.notes: dict[str, Any] = {}  # what a recipe says about the update, into its row of steps.jsonl
        self._rows: list[dict[str, Any]] = []
        self._norms: dict[str, float] = {}
        self._gradients: dict[str, float] = {}
        self._learning_rate = NAN
        self._bar: Steps | None = None

    def add(
        self, pair_ids: Sequence[str], stats: PairStats, output: ObjectiveOutput, more: dict[str, Tensor] | None = None
    ) -> None:
        """Keep one micro-batch's rows. more: further columns, (B,) each. Raises DataError naming the pairs when a
        loss is not finite."""
        columns = {"loss": output.losses, "chosen_rewards": output.chosen_rewards}
        columns |= {"rejected_rewards": output.rejected_rewards} | (more or {})
        values = numbers(columns)
        new = [row | {name: v[i] for name, v in values.items()} for i, row in enumerate(rows(pair_ids, stats))]
        self._rows += new
        bad = [str(row["pair_id"]) for row in new if not math.isfinite(row["loss"])]
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
        """Step 0: the noise, the first probe, and whether every alarm has its key. A resumed run has had it."""
        self._bar = Steps("training", state.max_steps, before=state.global_step, show=self.main)
        if state.global_step == 0:
            self.schedule.noise, self.same = self.before(self.model)
            start = {"step": 0, "epoch": 0.0} | self.schedule.at(self.model, 0, 0.0, last=state.max_steps == 0)
            self._write_step(start)
            self.alarms.require(start)
        else:
            self.schedule.probed = state.global_step

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """The learning rate that the coming update takes."""
        self._learning_rate = kwargs["lr_scheduler"].get_last_lr()[0] if kwargs.get("lr_scheduler") else NAN

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Write the update's rows, probe where it is time, judge the alarms, and stop where one of them says so."""
        step, epoch = state.global_step, float(state.epoch or 0.0)
        summary = self.flush(step, epoch)
        last = step >= state.max_steps
        summary |= self.schedule.at(self.model, step, epoch, last=last)
        summary |= sounded(self.alarms, summary, main=self.main)
        if "alarm" in summary and self.alarms.stop and not last:
            self.stopped = summary["alarm"]
            control.should_training_stop = control.should_save = True
            summary |= self.schedule.end(self.model, step, epoch)
        self._write_step(summary)
        if self._bar is not None:
            share = summary["displacement/frac"]
            below = "" if math.isnan(share) else f", below_ref={share:.0%}"
            self._bar.add(note=f"loss={summary['loss']:.3f}{below}")

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Probe the last step where that was not done, and write it."""
        if self.schedule.probed < state.global_step:
            probed = self.schedule.at(self.model, state.global_step, float(state.epoch or 0.0), last=True)
            end = {"step": state.global_step, "epoch": state.epoch} | probed
            self._write_step(end | sounded(self.alarms, end, main=self.main))
        if self.main and state.global_step:
            say_unseen(self.alarms)

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
        # where the first update sees the reference's own weights, whatever the two differ by there is rounding
        noise = math.inf if step == 1 and self.same else self.schedule.least
        return (
            summary
            | means(everywhere, noise, nats=self.schedule.nats)
            | gradients
            | self.notes
            | {"n": len(everywhere)}
        )

    def _write_step(self, summary: dict[str, Any]) -> None:
        self.last_step = summary
        if self.main:
            self.writer.append_step(summary)


def sounded(alarms: Alarms, row: Mapping[str, Any], *, main: bool) -> dict[str, str]:
    """The alarms that set in at this row, said and ready to be logged; the first process decides for all."""
    found = share(lambda: alarms.judge(row)) if alarms.counts else []
    if not found:
        return {}
    text = "; ".join(found)
    if main:
        tqdm.write(printable(f"alarm: {text}"))
    return {"alarm": text}


def say_unseen(alarms: Alarms) -> None:
    """The alarms that could never set in."""
    for unseen in alarms.unseen():
        tqdm.write(printable(f"alarm '{unseen}' could not set in: its key was never measured."))
