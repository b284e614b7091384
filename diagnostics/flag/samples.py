"""Flagging pairs of samples before a denoiser is trained on them: the table of scores that the pages, the scorecard and
ablate read, as `flagging` makes it of language models. It is written whole at the end; one process makes it."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from diagnostics.audit import Audit
from diagnostics.columns import described
from diagnostics.diffusion import measures
from diagnostics.diffusion.denoiser import Denoiser
from diagnostics.diffusion.likelihood import DenoisingLikelihood
from diagnostics.diffusion.read import read_samples
from diagnostics.engine import device_of
from diagnostics.errors import UserError
from diagnostics.fingerprint import data_hash, weights_hash
from diagnostics.flag.flagging import FIRST, LIKELIHOODS, check_rule, choose, write_back
from diagnostics.flag.parts import Parts
from diagnostics.manifest import manifest
from diagnostics.names import nearest
from diagnostics.pairs import PairTable
from diagnostics.processes import hold, tell
from diagnostics.runlog import list_table, read_frame, write_frame
from diagnostics.scoring import score
from diagnostics.sequences import Example

DEFAULT = "set_rate"
CHOICES = tuple(name for name, column in measures.COLUMNS.items() if column.prone)
COLUMNS = measures.COLUMNS | {
    name: replace(
        measures.COLUMNS[name],
        unit=measures.SQUARED,
        meaning=measures.COLUMNS[name].meaning.replace("log-prob", "side's likelihood, minus its denoising error,"),
    )
    for name in measures.RATES
}


def flag(
    data: str,
    model: Denoiser,
    out: str | Path,
    *,
    model_name: str,
    by: str = DEFAULT,
    quantile: float | None = None,
    count: int | None = None,
    above: float | None = None,
    below: float | None = None,
    split: str | None = None,
    media_folder: str | None = None,
    draws: int = 16,
    seed: int = 0,
    write_kept: str | None = None,
    write_flagged: str | None = None,
) -> tuple[pd.DataFrame, PairTable, Audit]:
    """As flagging.flag, of a denoiser: scores.parquet holds minus both sides' errors over `draws` fixed draws of time
    and noise, made from seed, and the columns of diffusion.measures, taken in all weights. A finished folder stays as
    it is; a stopped start begins anew."""
    out, rule = Path(out), {"quantile": quantile, "count": count, "above": above, "below": below}
    check_by(by)
    check_rule(by, **rule)
    likelihood = DenoisingLikelihood(draws=draws, seed=seed)
    with hold(out, "flag"):
        audit = read_samples(data, model, split=split, folder=media_folder)
        pairs = list(audit.require_kept())
        if write_kept or write_flagged:
            _check_rows(audit)
        config = {"command": "flag", "likelihood": "denoising", "model": model_name, "data": data, "by": by, **rule}
        config |= {"split": split, "media_folder": media_folder, "draws": draws, "seed": seed}
        hashes = {"model": weights_hash(model), "data": data_hash(audit.table)}
        weights = str(next(model.parameters()).dtype).removeprefix("torch.")
        about = manifest(
            device=str(device_of(model)), dtypes={"weights": weights}, hashes=hashes, columns=described(COLUMNS),
            reading=audit.record(), batch_tokens=likelihood.budget(model, pairs),
        )  # fmt: skip
        if Parts(out).start(config, about, audit.frame)[1] is None:
            tell(f"{out}: holds the scores already; nothing is left to do.")
            scores = read_frame(out / "scores.parquet")
        else:
            tell(cost(len(pairs), draws))
            scores = choose(scores_of(model, audit, pairs, likelihood), by, **rule)
            write_frame(out / "scores.parquet", scores)
            list_table(out / "scores.parquet", len(scores))
        write_back(audit.table, scores, kept=write_kept, flagged=write_flagged)
        if write_kept or write_flagged:
            tell("paths of samples in the rows written stay relative to the data's own folder (media_folder).")
    return scores, audit.table, audit


def scores_of(model: Denoiser, audit: Audit, pairs: Sequence[Example], likelihood: DenoisingLikelihood) -> pd.DataFrame:
    """A row an input row: what the audit says of it, minus both sides' errors, and the measures."""
    errors: list[dict[str, Any]] = []
    for scored in score(model, pairs, likelihood=likelihood):
        sides = [getattr(scored.stats, name.removesuffix("_logps")).logps.tolist() for name in LIKELIHOODS]
        ids = [pair.pair_id for pair in scored.pairs]
        errors += [{"pair_id": i} | dict(zip(LIKELIHOODS, both, strict=True)) for i, *both in zip(ids, *sides)]
    found = pd.DataFrame(errors).merge(measures.measure(likelihood, model, pairs), on="pair_id")
    frame = audit.frame.assign(status=audit.frame["status"].replace("kept", "scored"))
    return frame[list(FIRST)].merge(found, on="pair_id", how="left").sort_values("source_row", ignore_index=True)


def cost(pairs: int, draws: int) -> str:
    """What measuring takes, with a backward pass counted as two forward ones: 7 + 3 * 2 passes over all draws, where
    an epoch of training takes 4 (one with gradient, one of the reference) over one draw."""
    return (
        f"measuring {pairs} pairs through {draws} draws: three backward and seven forward passes over each, by their "
        f"number as much as {13 * draws / 4:.0f} epochs of training with one draw."
    )


def _check_rows(audit: Audit) -> None:
    """UserError for data whose rows cannot be written apart: arrays, and lists that hold several pairs."""
    if audit.table.raw.kind in ("safetensors", "npz"):
        raise UserError(
            f"{audit.table.source}: holds arrays, which are not written again. Take the rows from scores.parquet "
            "(source_row, flagged), or give the data as JSONL or Parquet."
        )
    kept = audit.frame.loc[audit.frame["status"] == "kept", "source_row"]
    if kept.duplicated().any():
        raise UserError(
            f"{audit.table.source}: a row holds several pairs, some flagged and some not, so rows cannot be left out. "
            "Take the pairs from scores.parquet."
        )


def check_by(by: str) -> None:
    """UserError naming the nearest measure when `by` is none that pairs of samples are flagged by."""
    if by not in CHOICES:
        near = nearest(by, CHOICES)
        hint = f"; did you mean '{near[0]}'?" if near else "."
        raise UserError(f"--by '{by}' is not a measure of denoisers{hint} Choose one of {', '.join(CHOICES)}.")
