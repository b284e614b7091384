"""Flagging: score every pair before training, rank them, and mark those most prone to displacement."""

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from diagnostics import margins, measures
from diagnostics.audit import Audit, audit_pairs
from diagnostics.columns import described
from diagnostics.diffusion import measures as denoising
from diagnostics.direction import direction
from diagnostics.engine import check_ids, engine_of
from diagnostics.errors import DataError, UserError, printable
from diagnostics.fingerprint import data_hash, tokenizer_hash, weights_hash
from diagnostics.flag import forecast
from diagnostics.flag.parts import Parts
from diagnostics.flag.probe_rows import read_probe
from diagnostics.flag.rates import Which
from diagnostics.frames import FRAMES
from diagnostics.likelihood import Likelihood
from diagnostics.manifest import file_hash, manifest
from diagnostics.names import nearest
from diagnostics.pair_file import read_once
from diagnostics.pairs import PairTable, read_pairs, write_rows
from diagnostics.pairs.write import media_left_behind
from diagnostics.processes import agree, hold, processes, share, tell
from diagnostics.progress import Progress
from diagnostics.runlog import list_table, read_frame, write_frame
from diagnostics.scoring import dealt, rows, score, score_batches
from diagnostics.sequences import Example
from diagnostics.stats import PairStats
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.tokenized import Truncation, end_ids
from diagnostics.vision import prior, thumbs

_FLAGS = {name: column for name, column in measures.columns().items() if column.flags}
MEASURES = tuple(name for name, column in _FLAGS.items() if column.prone)
DEFAULT = "ln_ches_score"
FIRST = ("pair_id", "source_row", "status", "reason", "prompt_length", "chosen_length", "rejected_length")
MOST, LEAST = 200, 20  # pairs, most and least prone, whose frames are kept for the page
LIKELIHOODS = ("chosen_logps", "rejected_logps")
SHOWN = tuple(name for name in _FLAGS if name not in MEASURES)  # beside the measures that pairs are flagged by
COLUMNS = ("pair_id", *LIKELIHOODS, *MEASURES, *SHOWN)
FURTHER = margins.COLUMNS | forecast.COLUMNS
CHOICES = (*MEASURES, *FURTHER)
# what a run or a score table may hold of a pair
EVERY = measures.columns() | FURTHER | prior.COLUMNS | denoising.COLUMNS


def flag(
    data: str,
    model: Any,
    tokenizer: Any,
    out: str | Path,
    *,
    model_name: str,
    by: str = DEFAULT,
    quantile: float | None = None,
    count: int | None = None,
    above: float | None = None,
    below: float | None = None,
    everything: bool = False,
    parameters: Which = "all",
    probe: str | None = None,
    split: str | None = None,
    frames: int = FRAMES,
    media_folder: str | None = None,
    max_length: int | None = None,
    truncation: Truncation = "drop",
    append_eos: bool = True,
    batch_tokens: int | None = None,
    write_kept: str | None = None,
    write_flagged: str | None = None,
) -> tuple[pd.DataFrame, PairTable, Audit]:
    """Score a data set and write scores.parquet, audit.parquet, config.json and manifest.json to a new folder.

    by: measure to rank by, most prone to displacement first (the measure says whether that is its highest or its
    lowest value); the flagged are the first tenth, or those past a quantile, the first `count`, or all with a value
    `above` or `below`. write_kept, write_flagged: files for the data's own rows (see write_back).
    The forecast's columns are measured where `by` names one, or all (`everything`); `parameters` says in which weights,
    `probe` is the file that probe_influence is about (see forecast).
    Interrupted and called again with the same arguments, it goes on where it was (finished, it stays as it is);
    several processes share the work.
    The table is the same either way: to the byte where each process uses as many threads, else up to rounding.
    Returns the scores (one row a source row), the pairs as read, and the audit (None in all processes but the first,
    which reads for all).
    """
    out, rule = Path(out), {"quantile": quantile, "count": count, "above": above, "below": below}
    cut: dict[str, Any] = {"max_length": max_length, "truncation": truncation, "append_eos": append_eos}
    shown: dict[str, Any] = {"frames": frames, "media_folder": media_folder}
    likelihood = TokenLikelihood.of(tokenizer)
    table: Any = None
    audit: Any = None

    def read() -> tuple[list[Example], int]:
        nonlocal table, audit
        check_by(by)
        check_rule(by, **rule)
        forecast.check(likelihood, model, further, parameters)
        table = read_pairs(data, split=split, **shown)
        audit = audit_pairs(table, tokenizer, **cut)
        rows = read_probe(probe, tokenizer, max_length=max_length, truncation=truncation) if probe else []
        check_ids(model, [*audit.require_kept(), *rows])
        return [*audit.tokenized, *rows], len(rows)

    def start() -> tuple[int, set[str] | None]:
        hashes = {"model": weights_hash(model), "tokenizer": tokenizer_hash(tokenizer), "data": data_hash(table)}
        hashes |= {"probe": file_hash(probe) or ""} if probe else {}
        asked = {"forecast": list(further), "parameters": parameters, "probe": probe} if further else {}
        settings = {"by": by, **rule, **asked, "split": split, **shown, **cut, "batch_tokens": batch_tokens}
        config = {"command": "flag", "model": model_name, "data": data, **settings}
        budget = batch_tokens or likelihood.budget(model, audit.tokenized)
        about = _about(model, hashes) | {"reading": audit.record(), "batch_tokens": budget}
        return parts.start(config, about, audit.frame)

    def finish() -> None:
        scored = parts.read().reindex(columns=list(COLUMNS))
        _require_all(audit, scored, out)
        if further:
            scored = scored.merge(forecast.read(job(), further), on="pair_id", how="left")
        scores = choose(_join(audit.frame, scored), by, **rule)
        for leaf, pictures in thumbs.tables(_looked_at(scores, audit.tokenized)).items():
            write_frame(out / leaf, pictures)
        write_frame(out / "scores.parquet", scores)
        list_table(out / "scores.parquet", len(scores))
        write_back(table, scores, kept=write_kept, flagged=write_flagged)
        parts.remove()

    def again() -> None:
        print(printable(f"{out}: holds the scores already; nothing is left to do."))
        write_back(table, read_frame(out / "scores.parquet"), kept=write_kept, flagged=write_flagged)

    def job() -> forecast.Job:
        return forecast.Job(model, pairs, parts, budget, likelihood, parameters, end_ids(tokenizer))

    with hold(out, "flag"):
        further = agree(lambda: forecast.wanted(by, everything=everything, probe=probe))
        every, asked = read_once(read, out / "pairs.arrow.tmp")
        pairs, probe_rows = every[: len(every) - asked], every[len(every) - asked :]
        parts = Parts(out)
        likelihood.prepare(model)
        budget, done = share(start)
        if done is not None:
            if further and not done:
                tell(f"{forecast.cost(further)}.")
            if forecast.takes_gradient(further):
                forecast.sum_set(job(), _scored, partial(_saving, parts, done))
                done = share(parts.done)
            agree(lambda: _score(model, pairs, parts, done, budget, likelihood))
            forecast.measure(job(), further, probe_rows)
        share(finish if done is not None else again)
    return read_frame(out / "scores.parquet"), table, audit


def scores_of(model: Any, audit: Audit, likelihood: Likelihood) -> pd.DataFrame:
    """The table of scores.parquet of audited pairs, ranked and flagged by DEFAULT; nothing is written."""
    likelihood.prepare(model)
    found: list[dict[str, Any]] = []
    with Progress("scoring", audit.tokenized) as bar:
        for scored in score(model, audit.tokenized, likelihood=likelihood):
            found += _scored(scored.pairs, scored.stats)
            bar.add(scored.pairs)
    return choose(_join(audit.frame, pd.DataFrame(found, columns=list(COLUMNS))), DEFAULT)


def choose(
    scores: pd.DataFrame,
    by: str,
    *,
    quantile: float | None = None,
    count: int | None = None,
    above: float | None = None,
    below: float | None = None,
) -> pd.DataFrame:
    """Add rank (1 = most prone), flagged and flag_reason. Ties rank in the order of the source."""
    check_rule(by, quantile=quantile, count=count, above=above, below=below)
    values, side = scores[by], prone(by)
    rank = values.rank(ascending=side == "lowest", method="first")
    if above is not None:
        flagged, why = values > above, f"{by} above {above:g}"
    elif below is not None:
        flagged, why = values < below, f"{by} below {below:g}"
    elif count is not None:
        flagged, why = rank <= count, f"among the {count} {side} by {by}"
    else:
        share, end = 1 - (0.9 if quantile is None else quantile), "top" if side == "highest" else side
        flagged, why = (
            rank <= round(share * values.notna().sum()),
            f"among the {end} {100 * share:.3g} % of pairs by {by}",
        )
    return scores.assign(rank=rank, flagged=flagged, flag_reason=np.where(flagged, why, ""))


def prone(by: str) -> str:
    """Which values of a measure are flagged, the "highest" or the "lowest": those that it says are prone to
    displacement; the lowest of one of which neither is known to be."""
    return EVERY[by].prone or "lowest"


def prone_end(name: str) -> str:
    """`prone` for any column of scores: of one that flag does not compute, by the words of its name.

    UserError where nothing is known of it: which pairs to leave out must not be a guess.
    """
    if name in CHOICES or (name in EVERY and EVERY[name].prone):
        return prone(name)
    if not direction(name):
        raise UserError(
            f"'{name}' is no measure of chesboard, so it is not known whether its high or its low values are prone to "
            f"displacement. Choose one of {', '.join(CHOICES)}, or name the column ..._rate (low) or ..._ches (high)."
        )
    return "highest" if direction(name) > 0 else "lowest"


def write_back(table: PairTable, scores: pd.DataFrame, *, kept: str | None = None, flagged: str | None = None) -> None:
    """Write the data's own rows back in its own format: those not flagged, those flagged. Skipped rows go nowhere."""
    usable = scores[scores["status"] == "scored"]
    for wanted, dest in ((~usable["flagged"], kept), (usable["flagged"], flagged)):
        if dest:
            write_rows(table, usable[wanted]["source_row"].tolist(), dest)
            if said := media_left_behind(table, dest):
                tell(said)


def check_by(by: str) -> None:
    """UserError naming the nearest measure when `by` is none of those that flag computes."""
    if by not in CHOICES:
        near = nearest(by, [*measures.names(), *CHOICES])
        hint = f"; did you mean '{near[0]}'?" if near and near[0] in CHOICES else "."
        raise UserError(f"--by '{by}' is not a measure that flag computes{hint} Choose one of {', '.join(CHOICES)}.")


def check_rule(
    by: str, *, quantile: float | None, count: int | None, above: float | None, below: float | None = None
) -> None:
    """UserError where the rule that says what is flagged is given twice, or makes no sense."""
    for name, bound in (("above", above), ("below", below)):
        if bound is not None and math.isnan(bound):
            raise UserError(f"--{name} is no number; it must be a value of {by}, such as 0.5.")
    if sum(x is not None for x in (quantile, count, above, below)) > 1:
        raise UserError("give only one of --quantile, --count, --above and --below.")
    if count is not None and count < 1:
        raise UserError(f"--count is {count}; it must be 1 or more.")
    if quantile is not None and not 0 <= quantile <= 1:
        raise UserError(f"--quantile is {quantile}; it must lie between 0 and 1 (0.9 flags the most prone tenth).")
    if (above if prone(by) == "lowest" else below) is not None:
        right = "--below" if prone(by) == "lowest" else "--above"
        raise UserError(f"the {prone(by)} values of {by} are prone to displacement: give {right}.")


def _about(model: Any, hashes: dict[str, str]) -> dict[str, Any]:
    """The manifest: what the numbers depend on."""
    return manifest(
        engine=engine_of(model).name,
        device=str(processes().device),
        dtypes={"weights": str(model.dtype).removeprefix("torch.")},
        hashes=hashes,
        columns=described(EVERY),
    )


@contextmanager
def _saving(parts: Parts, done: Collection[str]) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """A function that puts a batch's scores on disk, but of pairs that are done."""
    with parts.writer(processes().process_index) as write:
        yield lambda found: write([row for row in found if row["pair_id"] not in done])


def _scored(pairs: Sequence[Example], stats: PairStats) -> list[dict[str, Any]]:
    """A row of scores a pair."""
    return [{k: row[k] for k in COLUMNS} for row in rows(pairs, stats, (*MEASURES, *SHOWN))]


def _score(
    model: Any, pairs: Sequence[Example], parts: Parts, done: set[str], budget: int, likelihood: Likelihood
) -> None:
    """This process's share of the pairs that no earlier start has scored, each batch on disk before the next."""
    me = processes()
    mine = dealt(pairs, done, budget, likelihood.cost(model))
    todo = [p for g in mine for p in g]
    before = len(done) if me.num_processes == 1 else 0
    with (
        _saving(parts, done) as save,
        Progress("scoring", todo, before=before, show=me.is_main_process) as bar,
    ):
        for scored in score_batches(model, mine, likelihood=likelihood):
            save(_scored(scored.pairs, scored.stats))
            bar.add(scored.pairs)


def _require_all(audit: Audit, scored: pd.DataFrame, out: Path) -> None:
    missing = {p.pair_id for p in audit.tokenized} - set(scored["pair_id"])
    if missing:
        raise DataError(
            f"{out}: the scores of {len(missing)} pairs are not in this folder. Every process must see the same "
            "folder; run the command again to score what is missing."
        )


def _looked_at(scores: pd.DataFrame, pairs: Sequence[Example]) -> list[Example]:
    """The pairs whose frames a page shows: the most prone MOST, and the least prone LEAST."""
    ranked = scores.dropna(subset=["rank"]).sort_values("rank")["pair_id"]
    by_id = {pair.pair_id: pair for pair in pairs}
    return [by_id[i] for i in dict.fromkeys([*ranked.head(MOST), *ranked.tail(LEAST)])]


def _join(frame: pd.DataFrame, scored: pd.DataFrame) -> pd.DataFrame:
    status = frame["status"].replace("kept", "scored")
    joined = frame.assign(status=status)[list(FIRST)].merge(scored, on="pair_id", how="left")
    return margins.reference_margins(joined).sort_values("source_row", ignore_index=True)
