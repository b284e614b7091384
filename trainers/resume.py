"""Whether a run starts, goes on from a checkpoint, or is finished."""

from pathlib import Path

from diagnostics.errors import UserError
from diagnostics.processes import tell
from diagnostics.run_folder import RunFolder
from diagnostics.runlog import read_run
from trainers.checkpoint import newest, step_of
from trainers.config import TrainConfig


def look(config: TrainConfig, run: RunFolder, processes: int) -> tuple[str | None, bool]:
    """The checkpoint to go on from, if any, and whether the run is finished; nothing of the log is changed yet."""
    fresh = config.resume in (False, "auto")
    if fresh and run.empty:
        return None, False
    if fresh and run.never_began:
        tell(f"{run.path}: a start that ended before it measured anything is set aside.")
        return None, False
    if not config.resume:
        raise UserError(
            f"{run.path}: this run folder exists already. Choose another output_dir, or go on with --resume auto."
        )
    if not run.is_run:
        raise UserError(f"{run.path}: no run to resume in this folder. Start one in an output_dir of its own.")
    _same_config(config, run)
    log = read_run(run.path)
    last = int(max(log.steps["step"])) if len(log.steps) else -1
    finished = log.manifest.get("finished")
    if finished and finished.get("step") == last and config.resume in (True, "auto"):
        run.compact()
        tell(f"{run.path}: finished at step {last}; nothing is left to do.")
        return None, True
    return _checkpoint(config, run.path, processes, last), False


def _checkpoint(config: TrainConfig, run_dir: Path, processes: int, last: int) -> str | None:
    """The checkpoint asked for, or the newest whole one (a kill while saving leaves one that is not); last: step of
    the log. Where there is none `resume: auto` starts over, and any other is refused."""
    given = config.resume not in (True, "auto")
    found = [Path(str(config.resume))] if given else list((run_dir / "checkpoints").glob("checkpoint-*"))
    checkpoint, wrong = newest(found, processes=processes, logged=last)
    why = "; ".join(wrong) or "it holds no checkpoint"
    if checkpoint:
        step = step_of(checkpoint)
        again = f"; steps {step + 1} to {last}, logged after it, are done again" if last > step else ""
        tell(f"{run_dir}: goes on from {checkpoint.name}{again}" + f" ({why})" * bool(wrong) + ".")
        return str(checkpoint)
    if config.resume == "auto":
        tell(f"{run_dir}: {why}, so the run starts over; what it has logged is set aside.")
        return None
    raise UserError(
        f"{run_dir}: no checkpoint to resume from ({why}). Start over with --resume auto, which sets the old log "
        "aside; save_strategy: steps and save_steps: N make checkpoints."
    )


def _same_config(config: TrainConfig, run: RunFolder) -> None:
    changed = config.changed(run.config)
    if changed:
        raise UserError(
            f"{run.path}: this run was started with other settings ({', '.join(changed)}). Resume with the run's own "
            "config.json, or start anew in another output_dir."
        )
