"""DisplacementCallback: the run log of `chesboard train`, written while somebody else's trainer trains.

    trainer = trl.DPOTrainer(...)
    trainer.add_callback(DisplacementCallback(trainer, out="runs/x", every=50))
    trainer.train()

Any Trainer of transformers will do. Nothing of it is changed: weights, gradients, modes, attention, random states, what
it logs and when. It is asked for its attributes only, so TRL need not be there.
"""

import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from accelerate import PartialState
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedTokenizerBase, Trainer, TrainerCallback

from diagnostics import folder, outcomes
from diagnostics.columns import described
from diagnostics.engine import check_ids, device_of, engine_of, unwrap
from diagnostics.errors import DataError, UserError
from diagnostics.fingerprint import rendered_hash, tokenizer_hash, weights_hash
from diagnostics.flag.flagging import EVERY
from diagnostics.processes import share, tell
from diagnostics.run_folder import RunFolder
from diagnostics.runlog import RunLogWriter, read_table
from diagnostics.scoring import likelihoods, score
from diagnostics.token_likelihood import TokenLikelihood
from trainers.loop.alarm import Alarms, parse
from trainers.loop.columns import PROBE_KEYS, STEP_KEYS
from trainers.loop.moved import moved, sample
from trainers.loop.parity import PARITY_PAIRS, look, rounding
from trainers.loop.probe import Probe
from trainers.loop.recorder import say_unseen, sounded
from trainers.loop.reference import LiveReference, SummedReference, keep_start
from trainers.loop.schedule import ProbeSchedule
from trainers.loop.trainer import group_norms
from trainers.loop.viewers import show
from trainers.models import noted
from trainers.theirs import IDS, PairSet, read_set
from trainers.weights import left_out

RESPONSES = 16  # pairs of which further answers are followed
START, START_LOGPS = "probe_start.safetensors", "start_logps.parquet"  # what a run that goes on compares with

KINDS = {
    "ref_model": "the trainer's ref_model",
    "moving": "the trainer's ref_model, which sync_ref_model moves: log-ratios and KL are to where it stands then",
    "ref": "the policy with its adapter named ref",
    "off": "the policy with its adapter off",
    "sums": "the trainer's precomputed sums of log-probs, so there is no KL",
    "start": "the policy as it was at step 0, by its log-probs then, so there is no KL",
}


class Writer(RunLogWriter):
    """Of a log that a training does not depend on: what cannot be written is warned of once, and nothing is written
    from then on."""

    broken = False
    taken = False  # whether another training of this process has begun or gone on in the folder

    def append_step(self, row: Mapping[str, Any]) -> None:
        """See RunLogWriter."""
        self._or_give_up(lambda: super(Writer, self).append_step(row))

    def append(self, table: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """See RunLogWriter."""
        self._or_give_up(lambda: super(Writer, self).append(table, rows))

    def close(self) -> None:
        """See RunLogWriter."""
        self._or_give_up(super().close)

    def give_up(self, error: Exception) -> None:
        """Warn, and write nothing any more."""
        if not self.broken:
            tell(f"warning: the training goes on, and its log ends here. {error}")
        self.broken = True

    def _or_give_up(self, write: Callable[[], None]) -> None:
        try:
            if self.taken:
                raise DataError(f"{self.path}: another training of this process writes to this folder now.")
            if not self.broken:
                write()
        except DataError as error:
            self.give_up(error)


_writers: dict[Path, Writer] = {}  # by folder, of the trainings of this process that have not come to their end


class DisplacementCallback(TrainerCallback):
    """Measures probe pairs (of the trainer's train set) and held-out pairs (of its eval set) at step 0, every so many
    steps and at the end, and writes a run folder for `chesboard report` and `gate`.

    out: the run folder, of its own. every: steps between two probes, 0 for none between start and end. pairs, heldout:
    pairs to measure (file, hub id, list of rows or data set) where the trainer's data sets are not pairs of token ids,
    as those of TRL's DPOTrainer are. probe_pairs, heldout_pairs: how many. tokenizer: where the trainer has none.
    alarm, alarm_action: as in `chesboard train`, `displacement/frac > 0.8 for 3` and warn or stop.

    The reference is the trainer's own: its ref_model, the adapter named ref, the adapter off, or precomputed sums; in a
    trainer without one, the policy at step 0. A trainer that resumes from a checkpoint goes on in the same folder.
    """

    def __init__(
        self,
        trainer: Trainer,
        out: str | Path,
        *,
        every: int = 50,
        pairs: Any = None,
        heldout: Any = None,
        probe_pairs: int = 64,
        heldout_pairs: int = 64,
        tokenizer: PreTrainedTokenizerBase | None = None,
        alarm: Any = None,
        alarm_action: Literal["warn", "stop"] = "warn",
    ) -> None:
        self.trainer: Any = trainer
        self.run, self.every = RunFolder(out), every
        _check(trainer, self.run.path, alarm_action)
        for name, value, least in (
            ("every", every, 0),
            ("probe_pairs", probe_pairs, 1),
            ("heldout_pairs", heldout_pairs, 0),
        ):
            if type(value) is not int or value < least:
                raise UserError(f"{name} is {value!r}. Give a whole number of {least} or more.")
        conditions = parse(alarm or "", probed=PROBE_KEYS, steps=STEP_KEYS)
        self._alarms = partial(Alarms, conditions, stop=alarm_action == "stop")
        self.tokenizer = noted(tokenizer or _tokenizer(trainer), trainer.model)
        with random_states_kept():
            self.probed = read_set(trainer, pairs, trainer.train_dataset, self.tokenizer, probe_pairs)
            self.heldout = read_set(
                trainer, heldout, trainer.eval_dataset, self.tokenizer, heldout_pairs, name="heldout/"
            )
        if not self.probed.pairs:
            raise UserError(
                f"{type(trainer).__name__}'s train set holds no pairs as token ids ({', '.join(IDS)}). Give the pairs "
                "to measure: pairs= a file, a hub id, or rows with prompt, chosen and rejected."
            )
        self.sharded = bool(_has(trainer, "is_fsdp_enabled") or _has(trainer, "is_deepspeed_enabled"))
        self._begin(0)

    def _begin(self, step: int) -> None:
        """Nothing is known yet of a training that starts or goes on here."""
        self.schedule: Any = None
        self.alarms, self.stopped = self._alarms(), ""  # stopped: by which of them
        self._logged = self._written = step or -1  # the last step whose log was kept, and that has a line of any kind
        self._norms: tuple[int, dict[str, float]] = (-1, {})
        self._ended = step  # the step for which the log has all that it has of a last one
        self._before: dict[str, torch.Tensor] | None = None
        self._after: dict[str, torch.Tensor] | None = None  # of the last step, where the trainer exchanges its weights
        self._moved: dict[str, Any] | None = None

    def on_train_begin(self, args, state, control, **kwargs) -> None:
        """Step 0: folder, reference, parity and the first probe; of a trainer that resumes, the log's end."""
        step = state.global_step
        self._check_alone()
        self._begin(step)
        share(lambda: self._open(args, step))
        self._say_left_out(Path(str(args.output_dir)) / f"checkpoint-{step}")
        with left_alone(*self._models()):
            self._start(args, step)

    def on_pre_optimizer_step(self, args, state, control, **kwargs) -> None:
        """Gradient norms of the layer groups on the steps that are probed. They are clipped by now: what the trainer
        logs as grad_norm, which is before clipping, says by how much."""
        step = state.global_step + 1
        if not self.sharded and self.every and step % self.every == 0:
            self._norms = (step, group_norms(self._model()))

    def on_step_end(self, args, state, control, **kwargs) -> None:
        """Probe where it is time, judge the alarms, and stop where one of them says so."""
        if self.schedule is None:
            return
        step, last = state.global_step, state.global_step >= state.max_steps
        row = self._probe(state, last=last)
        if last:
            self._at_end(step)
        if not row:
            return
        row |= sounded(self.alarms, {"step": step} | row, main=self._main)
        if "alarm" in row and self.alarms.stop and not last:
            self._stop(row["alarm"], control)
            row |= self._last(state)
        self._write(state, row)

    def on_log(self, args, state, control, logs=None, **kwargs) -> None:
        """What the trainer logs of its training, under its own names and of its own meaning, once a step. Its
        train_loss is its last word, before it exchanges its weights for the best ones."""
        step = state.global_step
        if logs and "train_loss" in logs:
            self._end(state)
        if not logs or "loss" not in logs or step <= self._logged or self.schedule is None:
            return
        self._logged = step
        row: dict[str, Any] = {
            k: float(v) for k, v in logs.items() if isinstance(v, int | float) and k not in ("step", "epoch")
        }
        row |= self._unclipped(step, row.get("grad_norm", float("nan")))
        row |= sounded(self.alarms, {"step": step} | row, main=self._main)
        if "alarm" in row and self.alarms.stop and not self.stopped and step < state.max_steps:
            self._stop(row["alarm"], control)
        self._write(state, row)

    def on_epoch_end(self, args, state, control, **kwargs) -> None:
        """Where the training ends before its time: the last probe, with the weights of its last step."""
        if control.should_training_stop:
            self._end(state)
        if self.schedule is not None and args.load_best_model_at_end and not self.sharded:
            self._after = sample(self._model())

    def on_evaluate(self, args, state, control, **kwargs) -> None:
        """As on_epoch_end: early stopping may end the training here."""
        if control.should_training_stop:
            self._end(state)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        """Close the log."""
        if self.schedule is None:
            return
        self._end(state)
        share(lambda: self._close(args, state))
        self.schedule = None

    def _end(self, state: Any) -> None:
        """What the log of a training that ends at this step still lacks, where its weights are still in the model."""
        step = state.global_step
        if self.schedule is None or self._ended == step == self.schedule.probed or self._exchanged():
            return
        row = self._last(state)
        if row:
            row |= sounded(self.alarms, {"step": step} | row, main=self._main)
            self._write(state, row)

    def _last(self, state: Any) -> dict[str, Any]:
        with left_alone(*self._models()):
            row = self.schedule.end(self._model(), state.global_step, _epoch(state))
        self._at_end(state.global_step)
        return row

    def _at_end(self, step: int) -> None:
        """The weights of the last step are in the model now."""
        self._ended = step
        if self._before is not None:
            self._moved = moved(self._before, unwrap(self.trainer.model))

    def _exchanged(self) -> bool:
        """Whether the model has other weights than those of its last step (load_best_model_at_end)."""
        return self._after is not None and moved(self._after, self._model()).get("share", 0) > 0

    @property
    def _main(self) -> bool:
        return PartialState().is_main_process

    def _model(self) -> Any:
        """The model to run: a sharded one as it is wrapped, on all processes at once; any other without wrapping."""
        return self.trainer.model_wrapped if self.sharded else unwrap(self.trainer.model)

    def _models(self) -> list[Any]:
        """What a probe runs."""
        frozen = getattr(self.trainer, "ref_model", None)
        return [self._model(), *([frozen] if frozen is not None else [])]

    def _check_alone(self) -> None:
        """UserError where another callback of this trainer, or this one added again, writes to the same folder."""
        every = [c for c in self.trainer.callback_handler.callbacks if isinstance(c, DisplacementCallback)]
        place = self.run.path.resolve()
        if sum(callback.run.path.resolve() == place for callback in every) > 1:
            raise UserError(
                f"{self.run.path}: two DisplacementCallbacks of this trainer write to this folder. Add one alone, or "
                "give each an `out` of its own."
            )

    def _open(self, args: Any, step: int) -> None:
        """Hold the folder, and begin the log or take it back to the step from which the trainer goes on."""
        run = self.run
        if earlier := _writers.pop(run.path.resolve(), None):  # of a training that broke off in this process
            earlier.taken = True
        folder.release(run.path)
        folder.take(run.path, "callback")
        if not run.empty and (not run.is_run or run.config.get("command") != "callback"):
            raise UserError(f"{run.path}: holds something else than a log of this callback. Choose another `out`.")
        if step:
            if run.empty:
                raise UserError(
                    f"the trainer goes on from step {step}, but {run.path} holds no log of its start. Give the `out` "
                    "that the run was started with, or measure its checkpoints with `chesboard trace`."
                )
            run.check(self._hashes())
            now, then = self._kind(), run.about["reference"]["kind"]
            if now != then:
                self._refuse(f"it is {KINDS[now]}; it was {KINDS[then]}")
            return
        if not run.empty:
            tell(f"{run.path}: the log of an earlier training is set aside.")
        run.begin(self._settings(args), {"audit.parquet": self.probed.frame} | self._heldout_audit())

    def _heldout_audit(self) -> dict[str, Any]:
        return {"audit_heldout.parquet": self.heldout.frame} if self.heldout.pairs else {}

    def _start(self, args: Any, step: int) -> None:
        """Everything up to the first probe, which a run that goes on has made already."""
        model, tokens, pairs = self._model(), TokenLikelihood.of(self.tokenizer), self.probed.pairs
        everything = [*pairs, *self.heldout.pairs]
        check_ids(model, everything)
        if not self.sharded:
            tokens.prepare(model)
            self._before = None if step else sample(model)
        kind = self._kind()
        reference = self._reference(kind, model, tokens, resumed=step > 0)
        if step:
            found = self._of_reference(model, reference, tokens)
            share(lambda: self._go_on(step, kind, found))
        elif self._main:
            self._describe(args, model, kind)
        probe = Probe(
            {"probe": pairs, "eval": self.heldout.pairs}, self.tokenizer, likelihood=tokens, reference=reference,
            track=None, start=self.run.path / START, resumed=step > 0, responses=RESPONSES, seed=args.seed,
        )  # fmt: skip
        writer = _writers[self.run.path.resolve()] = Writer(self.run.path)
        self.schedule = ProbeSchedule(writer, probe, every=self.every, tokens="ends", main=self._main)
        self.schedule.report = partial(show, self.trainer)
        if step:
            self.schedule.noise, self.schedule.probed = self.run.noise, self.run.probed
            return
        floats = (p.dtype for p in unwrap(model).parameters() if p.is_floating_point())
        eps = rounding(next(floats, torch.float32), _cast(self.trainer))
        parity, said = look(model, reference, pairs, tokens, self.run, eps=eps)
        warning = "" if parity["passed"] else "warning: the reference is not the model that this training starts from. "
        tell(f"{warning}{said.removesuffix('.')}. The reference is {KINDS[kind]}.")
        self.schedule.noise = outcomes.noise(parity)
        row = self.schedule.at(model, 0, 0.0)
        self._write(self.trainer.state, row)
        self.alarms.require({"step": 0} | row)

    def _kind(self) -> str:
        """Which of KINDS the reference is."""
        trainer, inner = self.trainer, unwrap(self._model())
        if getattr(trainer, "ref_model", None) is not None:
            return "moving" if _has(trainer.args, "sync_ref_model") else "ref_model"
        if hasattr(trainer, "ref_model") and hasattr(inner, "disable_adapter"):
            return "ref" if "ref" in inner.peft_config else "off"
        # ld_alpha weighs the tokens, so that its sums are no log-probs
        known = all(p.pair_id in self._sums for p in [*self.probed.pairs, *self.heldout.pairs])
        return "sums" if known and not _has(trainer, "ld_alpha") else "start"

    @property
    def _sums(self) -> dict[str, tuple[float, float]]:
        return self.probed.sums | self.heldout.sums

    def _reference(self, kind: str, model: Any, tokens: TokenLikelihood, *, resumed: bool) -> Any:
        """The trainer's own reference."""
        if kind in ("moving", "ref_model"):
            frozen = self.trainer.ref_model if self.sharded else unwrap(self.trainer.ref_model)
            if not self.sharded:
                tokens.prepare(frozen)
            return LiveReference(frozen, tokens)
        if kind in ("ref", "off"):
            return LiveReference(model, tokens, adapter="ref" if kind == "ref" else True)
        if kind == "sums":
            return SummedReference(self._sums)
        pairs, path = [*self.probed.pairs, *self.heldout.pairs], self.run.path / START_LOGPS
        return keep_start(model, pairs, likelihood=tokens, path=path, resumed=resumed)

    def _of_reference(self, model: Any, reference: Any, tokens: TokenLikelihood) -> dict[tuple[str, str], float]:
        """The reference's log-probs of the pairs that parity looked at, in nats, by pair_id and side."""
        found = {}
        for scored in score(model, self.probed.pairs[:PARITY_PAIRS], likelihood=tokens, reference=reference):
            values = {name: column.tolist() for name, column in likelihoods(scored.stats).items()}
            for side in ("chosen", "rejected"):
                ids = [pair.pair_id for pair in scored.pairs]
                found |= {(i, side): v for i, v in zip(ids, values[f"ref_{side}_logps"], strict=True)}
        return found

    def _go_on(self, step: int, kind: str, found: Mapping[tuple[str, str], float]) -> None:
        """Take the log back to a step; UserError, and nothing is touched, where the reference's log-probs are not those
        of the start: by more than four times the noise floor found then. One that moves stands elsewhere by now."""
        if kind != "moving":
            pairs: Any = read_table(self.run.path, "pairs")
            limit = 4 * self.run.about["parity"]["noise_floor"]
            start = pairs[(pairs["step"] == 0) & (pairs["split"] == "probe")].set_index("pair_id")
            sides = ("chosen", "rejected")
            then = {(str(i), side): float(v) for side in sides for i, v in start[f"ref_{side}_logps"].items()}
            far = max(abs(value - then.get(key, np.inf)) for key, value in found.items())
            if not far <= limit:
                self._refuse(f"its log-probs differ by {far:.3g} nats, and rounding explains {limit:.3g}")
        self.run.go_on(step, {})

    def _refuse(self, how: str) -> NoReturn:
        raise UserError(
            f"{self.run.path}: the reference is not the one that this run was started with ({how}), so its log would "
            "mix two. Give the trainer that reference again, or start anew in another folder."
        )

    def _probe(self, state: Any, *, last: bool) -> dict[str, Any]:
        with left_alone(*self._models()):
            return self.schedule.at(self._model(), state.global_step, _epoch(state), last=last)

    def _stop(self, alarm: str, control: Any) -> None:
        self.stopped = alarm
        control.should_training_stop = control.should_save = True

    def _unclipped(self, step: int, logged: float) -> dict[str, float]:
        """The layer groups' norms before clipping: as they stood, times the logged norm over the one that they have."""
        taken, groups = self._norms
        total = sum(v * v for v in groups.values()) ** 0.5
        if taken != step or not total > 0 or not np.isfinite(logged):
            return {}
        return {f"grad_norm/{name}": norm * logged / total for name, norm in groups.items()}

    def _write(self, state: Any, row: Mapping[str, Any]) -> None:
        """A line of steps.jsonl; the reader puts the lines of one step together."""
        step = state.global_step
        head = {"step": step} if step == self._written else {"step": step, "epoch": _epoch(state)}
        self._written = step
        if self._main:
            self.schedule.writer.append_step(head | dict(row))

    def _close(self, args: Any, state: Any) -> None:
        writer: Writer = self.schedule.writer
        try:
            writer.close()
            if not writer.broken:
                self._finish(args, state)
        except (DataError, OSError) as error:  # what was trained is not lost for its log
            writer.give_up(error)
        say_unseen(self.alarms)
        if not writer.taken:
            _writers.pop(self.run.path.resolve(), None)
            folder.release(self.run.path)

    def _finish(self, args: Any, state: Any) -> None:
        """The log's last form, and what is known of the run now."""
        step = state.global_step
        self.run.compact()
        if self._moved is not None:
            self.run.note(weights_moved=self._moved)
        best = getattr(state, "best_global_step", None) if args.load_best_model_at_end else None
        if best and best != step:
            self.run.note(returned={"step": best, "said": "the trainer loaded its best checkpoint after the last step"})
            tell(f"the trainer returns the weights of step {best} (load_best_model_at_end); the log ends at {step}.")
            self._say_left_out(Path(state.best_model_checkpoint))
        if self.stopped:
            tell(f"stopped by its alarm: {self.stopped}. The log is whole.")
        elif self.schedule.probed < step:
            tell(f"warning: the weights of step {step} were exchanged before they could be measured.")
        else:
            self.run.note(finished={"step": step})
        if not any(Path(args.output_dir).glob("checkpoint-*")):  # nothing to go on from
            (self.run.path / START).unlink(missing_ok=True)
            (self.run.path / START_LOGPS).unlink(missing_ok=True)

    def _say_left_out(self, checkpoint: Path) -> None:
        """A warning where the trainer loaded a checkpoint without all of its weights."""
        names = [] if self.sharded else left_out(self._model(), checkpoint)
        if names:
            tell(
                f"warning: transformers' Trainer loads {checkpoint} by name and left {len(names)} of its weights out "
                f"({names[0]} ...), which this model has under other names: what it trains or returns is not that "
                "checkpoint. Load it with from_pretrained.",
                file=sys.stderr,
            )

    def _hashes(self) -> dict[str, str]:
        pairs = [*self.probed.pairs, *self.heldout.pairs]
        return {"tokenizer": tokenizer_hash(self.tokenizer), "pairs": rendered_hash(pairs)}

    def _settings(self, args: Any) -> dict[str, Any]:
        """config.json: the trainer's arguments, and this callback's."""
        theirs = json.loads(json.dumps(args.to_dict(), default=str))
        if not isinstance(theirs.get("beta"), int | float):
            theirs.pop("beta", None)
        own = {"command": "callback", "trainer": type(self.trainer).__name__, "objective": _objective(self.trainer)}
        own |= {"model": _name(self.trainer.model), "output_dir": str(self.run.path)}
        own |= {"trainer_output_dir": str(args.output_dir), "probe_every": self.every}
        return theirs | own | {"probe_pairs": len(self.probed.pairs), "heldout_pairs": len(self.heldout.pairs)}

    def _describe(self, args: Any, model: Any, kind: str) -> None:
        hashes = self._hashes() | ({} if self.sharded else {"model": weights_hash(model)})
        cast = str(_cast(self.trainer) or "none").removeprefix("torch.")
        dtypes = {str(p.dtype).removeprefix("torch.") for p in unwrap(model).parameters()}
        beta = getattr(self.trainer, "beta", None)
        self.run.describe(
            device=str(device_of(model)),
            dtypes={"weights": ", ".join(sorted(dtypes)), "autocast": cast, "reductions": "float64"},
            engine=engine_of(model).name,
            seeds={"seed": args.seed},
            hashes=hashes,
            reference={"kind": kind, "said": KINDS[kind]},
            objective={"name": _objective(self.trainer)} | ({"beta": beta} if isinstance(beta, int | float) else {}),
            reading={"said": _said(self.probed, self.heldout)},
            columns=described(EVERY),
            pairs=({} if self.probed.rows is None else {"train": self.probed.rows})
            | {"probe": len(self.probed.pairs), "eval": len(self.heldout.pairs)},
            probe_pairs_are="given" if self.probed.given else "trained on",
            steps="loss, grad_norm, learning_rate, rewards/*, logps/* and all else that stands without probe/ or eval/ "
            "is the trainer's own log, under its names: it may be a mean over several updates (logging_steps), and of "
            "means over batches; grad_norm/<layer group> is before clipping, on steps that are probed and logged",
        )


@contextmanager
def left_alone(*models: Any) -> Iterator[None]:
    """Random states as they were, and the weights of sharded models (FSDP2) in parts again."""
    with random_states_kept():
        try:
            yield
        finally:
            for module in (m for model in models for m in model.modules()):
                if isinstance(module, FSDPModule):
                    module.reshard()


@contextmanager
def random_states_kept() -> Iterator[None]:
    """Python's, NumPy's and torch's random states are afterwards what they were, on the CPU and on every GPU."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 (the global state is what must stay)
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _check(trainer: Trainer, out: Path, alarm_action: str) -> None:
    theirs = Path(str(trainer.args.output_dir)).resolve()
    if out.resolve() in (theirs, *theirs.parents):
        raise UserError(
            f"{out}: the trainer writes into this folder. Give an `out` of its own, {theirs / 'chesboard'}."
        )
    if alarm_action not in ("warn", "stop"):
        raise UserError(f"alarm_action is {alarm_action!r}. Give warn or stop.")


def _cast(trainer: Any) -> torch.dtype | None:
    """The dtype that the trainer really computes in where it is not that of the weights: accelerate casts nothing for
    float16 on a CPU; under DeepSpeed, which casts by itself, what was asked for."""
    accelerator, args = trainer.accelerator, trainer.args
    if not (accelerator.native_amp or _has(trainer, "is_deepspeed_enabled")):
        return None
    return torch.bfloat16 if args.bf16 else torch.float16 if args.fp16 else None


def _tokenizer(trainer: Any) -> PreTrainedTokenizerBase:
    found = getattr(trainer, "processing_class", None)
    found = getattr(found, "tokenizer", found)
    if not isinstance(found, PreTrainedTokenizerBase):
        raise UserError("the trainer has no tokenizer. Give it: DisplacementCallback(..., tokenizer=tokenizer).")
    return found


def _said(probed: PairSet, heldout: PairSet) -> str:
    return f"Probe: {probed.said}" + (f" Held out: {heldout.said}" if heldout.pairs else "")


def _objective(trainer: Any) -> str:
    """The trainer's class and what it says of its loss."""
    kinds = getattr(trainer.args, "loss_type", None) or []
    return " ".join(
        [type(trainer).__name__, "+".join(map(str, kinds)) if isinstance(kinds, list) else str(kinds)]
    ).strip()


def _name(model: Any) -> str:
    return str(getattr(getattr(unwrap(model), "config", None), "_name_or_path", "") or type(unwrap(model)).__name__)


def _epoch(state: Any) -> float:
    return float(state.epoch or 0.0)


def _has(owner: Any, name: str) -> bool:
    """Whether an attribute is there and set."""
    return getattr(owner, name, None) not in (None, False)
