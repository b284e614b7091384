"""What to do next, from what this very run shows. A rule is a function here; its docstring is its reason.

A rule gives None where it does not apply. Where the evidence behind a rule is thin, its caveat says so.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from analysis.run import card
from analysis.run.card import BROKEN, State
from analysis.run.verdict import HALF, by_name
from analysis.scorecard import predictors, trust
from analysis.show import units
from analysis.show.wording import percent
from analysis.tables import curves, displacement, runs
from diagnostics.finding import Finding
from diagnostics.runlog import RunLog

SLOWER = 5  # the usual step down of a learning rate, and that between the measured runs of `lower_the_rate`
GUARDED = ("diffusion_dpo", "flow_dpo")  # the plain contrast of two errors, which the guards were measured on
USUAL_BETA = 2000.0  # of Diffusion-DPO's users 2000 to 5000; more than 2000 was not measured here
MANY = 64  # pairs from which on the 95 % interval of a share is 25 points wide at most
KEPT = 0.9  # of the accuracy at the end: an earlier stop that keeps less is not offered


@dataclass(frozen=True)
class Advice:
    """One thing to do. command: as a person types it, or ""; caveat: how much to trust it."""

    what: str
    command: str = ""
    caveat: str = ""


def advise(run: RunLog, state: State, found: Sequence[Finding]) -> list[Advice]:
    """Every rule that applies, in the order of RULES."""
    return [advice for rule in RULES if (advice := rule(run, state, found))]


def go_on(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """A run that was killed before its first measurement has no answer yet. With a checkpoint it goes on from there,
    without one `--resume auto` begins anew (trainers/resume.py)."""
    if state.cause != "unmeasured":
        return None
    if run.config.get("command") == "trace":
        return Advice("Trace a later checkpoint too.")
    if not run.pairs.empty and not runs.column(runs.rows(run, "probe"), "chosen_change").notna().any():
        return Advice("Train again with probe pairs.", _train(run, probe_pairs=64))
    command = _train(run, same_folder=True, resume="auto")
    saved = [int(n) for p in run.path.glob("checkpoints/checkpoint-*") if (n := p.name.rpartition("-")[2]).isdigit()]
    if saved:
        return Advice("Go on with this run.", command, f"It goes on from its checkpoint of step {max(saved)}.")
    caveat = "It has no checkpoint to go on from: the old log is set aside."
    return Advice("Start this run over, from step 0.", command, caveat)


def train_something(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """Where no weight moved, or none enough to change a log-prob, the learning rate is the first suspect."""
    if state.cause not in ("nothing", "still"):
        return None
    rate = run.config.get("learning_rate")
    words = f"Look at learning_rate (it was {rate}) and at which weights are trained; nothing else can be read here."
    return Advice(words, _train(run, learning_rate=1e-6) if _rate(run) < 1e-7 else "")


def right_reference(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """Rewards, loss and KL count from the reference: from another model than the start they mean something else, which
    is meant where rounds of training share one reference."""
    if by_name(found, "parity").passed is not False:
        return None
    what = "If that is not meant, take the model that training began from as the reference."
    return Advice(what, _train(run, reference_model=None))


def finite_loss(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """A loss that is no number stays so: the weights are lost from there on."""
    if state.cause != "loss":
        return None
    return Advice("Go back to a checkpoint before that step and lower the rate.", _slower(run))


def stop_earlier(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """Displacement often sets in after the preference is learned: an earlier stop then keeps the accuracy alone. Not
    offered where the pairs were not clearly held by then."""
    onset = by_name(found, "onset").value
    if state.cause != "displaced" or math.isnan(onset):
        return None
    rows = runs.rows(run, "probe")
    table = curves.frontier(rows)
    before = [int(s) for s in sorted(set(rows["step"])) if 0 < s < onset]
    if not before or table.empty:
        return None
    accuracy = table.set_index("step")["accuracy"]
    shares = displacement.by_step(rows.loc[rows["step"] == before[-1]])
    if displacement.state(shares) != displacement.HELD:
        return None
    then, end = (float(accuracy.reindex([step]).iloc[0]) for step in (before[-1], accuracy.index[-1]))
    if not then >= KEPT * end:
        return None
    words = f"Stop before step {onset:.0f}: at step {before[-1]} the preference accuracy was already {percent(then)}"
    return Advice(f"{words} (at the end {percent(end)}).", _train(run, max_steps=before[-1]), "One run, one seed.")


def filter_pairs(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """A measure taken before training that told which pairs would fall can choose which to leave out. No filter did
    better than leaving out as many at random on a real chat model, though (docs/real.md)."""
    if state.cause != "displaced" or "probe" not in state.displaced:
        return None
    scored = predictors.collect([run]).card
    best = trust.judge(scored) if predictors.has_numbers(scored) else None
    if best is None or not best.passed:
        return None
    name, kind = best.name.partition("/")[2], units.of(run).kind
    of_kind = "" if kind == "tokens" else f" --likelihood {kind}"
    data, model = (_word(run.config.get(key)) for key in ("data", "model"))
    flag = f"chesboard flag {data}{of_kind} --model {model} --out runs/flag"
    caveat = (
        f"{best.meaning} Compare with as many left out at random: on one chat model no filter did better than that."
    )
    return Advice(
        f"Leave out the pairs that {name} calls most prone.", f"{flag} --by {name} --write-kept kept.jsonl", caveat
    )


def sft_term(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """A term for the likelihood of the chosen answers holds them up directly: on pairs of two refusals the share that
    fell was 23 % with it and 73 % without (docs/real.md)."""
    if state.cause != "displaced" or run.config.get("objective") != "dpo" or "probe" not in state.displaced:
        return None
    caveat = "Weak evidence: one run of one small chat model."
    return Advice("Add an SFT term on the chosen answers.", _train(run, objective="dpo_nll"), caveat)


def guard(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """What scales down the rejected sample's gradient, or holds the chosen error directly, kept the chosen errors of a
    small denoiser below the start's in three seeds on pairs of two kinds, where they rose by 17 to 32 % without."""
    if (
        state.cause != "displaced"
        or run.config.get("objective") not in GUARDED
        or run.config.get("guard") not in (None, "none")
    ):
        return None
    caveat = "Measured on a small denoiser of digits alone; it gave up more than half of what was asked for."
    return Advice("Add a guard (sdpo, or sft) that holds the chosen error.", _train(run, guard="sdpo"), caveat)


def raise_beta(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """At a tenth of beta the chosen errors of the same denoiser rose by 134 to 269 %. Of a run whose errors rose
    less than they doubled that says nothing."""
    beta = run.config.get("beta")
    if state.word != BROKEN or state.cause != "displaced" or run.config.get("objective") not in GUARDED:
        return None
    if not isinstance(beta, int | float) or not 0 < beta < USUAL_BETA:
        return None
    caveat = "Measured on a small denoiser of digits alone, between 200 and 2000."
    return Advice(f"Raise beta from {beta:g} to {USUAL_BETA:g}.", _train(run, beta=USUAL_BETA), caveat)


def check_labels(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """Held-out answers that fall while those trained on rise are the sign of swapped labels, of other data, or of
    training too far. With labels swapped, a run on a real chat model looked like this (docs/real.md)."""
    clearly = state.cause in ("held", "unclear", "far") and _turned(run)
    if state.displaced != ("eval",) and not clearly:
        return None
    where = "Read held-out beside training pairs (the two tables below)"
    return Advice(f"{where}: are they of one kind, with chosen and rejected the same way round?")


def lower_the_rate(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """A rate above the usual moves answers that nothing was said about: 17 and 56 % of the held-out answers of a real
    chat model fell at 1e-4 and 2e-4, none at 2e-5 (docs/real.md). Where the held-out accuracy is below one half the
    labels come first: a lower rate learns the wrong way round too."""
    if state.cause not in ("displaced", "far", "unclear") or not _slower(run):
        return None
    if card.heldout_accuracy(run)[0] < HALF:
        return None
    caveat = "Weak evidence: one small chat model, one run at each rate."
    words = f"Lower the learning rate from {_rate(run):g} to {_lower(run):g}."
    return Advice(words, _slower(run), caveat if units.of(run).by_token else "Not measured on denoisers.")


def learn_more(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """A preference learned on the pairs trained on alone: few held-out pairs leave it open, and one epoch may be too
    short. That more training helps was not measured here, and displacement may set in by it."""
    if state.cause != "held" or card.carried_over(run) or _turned(run):
        return None
    n, epochs = card.heldout_accuracy(run)[1], run.config.get("num_train_epochs")
    more = f" and hold out more than {n}" if n < MANY else ""
    caveat = "Not measured here: watch that no answers fall."
    if not isinstance(epochs, int | float) or _steps(run) > 0:
        return Advice(f"For held-out pairs, train longer{more}.", caveat=caveat)
    words = f"For held-out pairs, train {2 * epochs:g} epochs instead of {epochs:g}{more}."
    return Advice(words, _train(run, num_train_epochs=2 * epochs), caveat)


def more_pairs(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """With few probe pairs the interval stays wide."""
    n = by_name(found, "displacement/frac").n
    if state.cause != "unclear" or n >= MANY:
        return None
    return Advice(f"Measure {max(MANY, 4 * n)} probe pairs instead of {n}.", _train(run, probe_pairs=max(MANY, 4 * n)))


def train_longer(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """A preference that is not learned yet, or learned the wrong way round."""
    if state.cause != "accuracy":
        return None
    return Advice("Check that chosen and rejected are the right way round, then train longer or at a higher rate.")


def nothing(run: RunLog, state: State, found: Sequence[Finding]) -> Advice | None:
    """What holds needs no cure."""
    held = state.cause == "held" and by_name(found, "parity").passed is not False
    return Advice("Nothing to do about displacement.") if held and not _turned(run) else None


RULES = (
    go_on, train_something, right_reference, finite_loss, stop_earlier, filter_pairs, sft_term, guard, raise_beta,
    check_labels, lower_the_rate, more_pairs, train_longer, nothing, learn_more,
)  # fmt: skip


def repeat(run: RunLog) -> str:
    """The command that makes this run again, in a folder beside it: the settings that differ from the defaults, where
    the log says which."""
    return _train(run, output_dir=f"{run.config.get('output_dir')}-again")


def changed(run: RunLog) -> dict[str, Any]:
    """The settings that differ from the defaults (`given` in manifest.json); all that are set where it does not say."""
    given = run.manifest.get("given")
    names = given if isinstance(given, list) else [k for k, v in run.config.items() if v not in (None, False, "")]
    return {k: run.config[k] for k in names if k in run.config}


def _train(run: RunLog, *, same_folder: bool = False, **other: Any) -> str:
    """`chesboard train` with this run's settings but for some; "" for what no `train` command made."""
    if run.config.get("command") not in (None, "train") or not {"model", "data", "output_dir"} <= run.config.keys():
        return ""
    settings = {k: v for k, v in changed(run).items() if k not in ("resume", "output_dir", "command")}
    folder = str(run.config["output_dir"])
    name = folder if same_folder else "-".join([folder, *other])  # one folder for each piece of advice
    settings = {**settings, "output_dir": name, **other}
    words = [f"--{k} {_word(v)}" for k, v in settings.items() if v is not None]
    return " ".join(["chesboard train", *words])


def _turned(run: RunLog) -> bool:
    """Whether held-out pairs clearly prefer their rejected answers."""
    return card.heldout_accuracy(run)[2][1] < HALF


def _slower(run: RunLog) -> str:
    return _train(run, learning_rate=_lower(run)) if _rate(run) > 0 else ""


def _lower(run: RunLog) -> float:
    return float(f"{_rate(run) / SLOWER:.2g}")


def _steps(run: RunLog) -> int:
    given = run.config.get("max_steps")
    return given if isinstance(given, int) else 0


def _rate(run: RunLog) -> float:
    rate = run.config.get("learning_rate")
    return float(rate) if isinstance(rate, int | float) else math.nan


def _word(value: object) -> str:
    """A setting as a shell reads it."""
    return shlex.quote(str(value).lower() if isinstance(value, bool) else str(value))
