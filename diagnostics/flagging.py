"""Flagging: score every pair before training, rank them, and mark those most prone to displacement."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from diagnostics import measures
from diagnostics.audit import Audit, audit_pairs
from diagnostics.errors import UserError
from diagnostics.forward import prepare
from diagnostics.manifest import file_hash, manifest
from diagnostics.pairs import PairTable, read_pairs, write_rows
from diagnostics.runlog import write_frame, write_json
from diagnostics.scoring import BATCH_TOKENS, rows, score
from diagnostics.tokenized import TokenizedPair, Truncation

MEASURES = ("ches_score", "ln_ches_score", "last_hidden_similarity", "edit_similarity")
DEFAULT = "ln_ches_score"
FIRST = ("pair_id", "source_row", "status", "reason", "prompt_length", "chosen_length", "rejected_length")
LIKELIHOODS = ("chosen_logps", "rejected_logps")


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
    split: str | None = None,
    max_length: int | None = None,
    truncation: Truncation = "drop",
    append_eos: bool = True,
    batch_tokens: int = BATCH_TOKENS,
) -> tuple[pd.DataFrame, PairTable, Audit]:
    """Score a data set and write scores.parquet, audit.parquet, config.json and manifest.json to a new folder.

    by: measure to rank by; the flagged are the top tenth, or those above a quantile, the first `count`, or all
    with a value `above`. Returns the scores (one row a source row), the pairs as read, and the audit.
    """
    out = Path(out)
    check_by(by)
    if (out / "scores.parquet").exists():
        raise UserError(f"{out}: holds scores already. Choose another --out folder, or remove this one.")
    table = read_pairs(data, split=split)
    audit = audit_pairs(table, tokenizer, max_length=max_length, truncation=truncation, append_eos=append_eos)
    audit.require_kept()
    settings = {"by": by, "quantile": quantile, "count": count, "above": above, "split": split}
    settings |= {"max_length": max_length, "truncation": truncation, "append_eos": append_eos}
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "config.json", {"command": "flag", "model": model_name, "data": data, **settings})
    write_json(
        out / "manifest.json",
        manifest(
            engine=prepare(model).name,
            device=str(next(model.parameters()).device),
            dtypes={"weights": str(model.dtype).removeprefix("torch.")},
            hashes={"data": file_hash(data)},
        ),
    )
    write_frame(out / "audit.parquet", audit.frame)
    scored = score_frame(
        model, audit.tokenized, pad_token_id=int(tokenizer.pad_token_id or 0), batch_tokens=batch_tokens
    )
    scores = choose(_join(audit.frame, scored), by, quantile=quantile, count=count, above=above)
    write_frame(out / "scores.parquet", scores)
    return scores, table, audit


def score_frame(model: Any, pairs: Sequence[TokenizedPair], *, pad_token_id: int, batch_tokens: int) -> pd.DataFrame:
    """Log-probs and every similarity measure, one row a pair, with a progress bar on a terminal."""
    found: list[dict[str, Any]] = []
    with tqdm(total=len(pairs), desc="scoring", unit="pair", disable=None) as bar:
        for scored in score(model, pairs, pad_token_id=pad_token_id, batch_tokens=batch_tokens):
            found += rows(scored.pairs, scored.stats, MEASURES)
            bar.update(len(scored.pairs))
    return pd.DataFrame(found, columns=["pair_id", *LIKELIHOODS, *MEASURES])


def choose(
    scores: pd.DataFrame,
    by: str,
    *,
    quantile: float | None = None,
    count: int | None = None,
    above: float | None = None,
) -> pd.DataFrame:
    """Add rank (1 = most prone), flagged and flag_reason. Ties rank in the order of the source."""
    if sum(x is not None for x in (quantile, count, above)) > 1:
        raise UserError("give only one of --quantile, --count and --above.")
    if quantile is not None and not 0 <= quantile <= 1:
        raise UserError(f"--quantile is {quantile}; it must lie between 0 and 1 (0.9 flags the top tenth).")
    values = scores[by]
    rank = values.rank(ascending=False, method="first")
    if above is not None:
        flagged, why = values > above, f"{by} above {above:g}"
    elif count is not None:
        flagged, why = rank <= count, f"among the {count} highest by {by}"
    else:
        share = 1 - (0.9 if quantile is None else quantile)
        flagged, why = rank <= round(share * values.notna().sum()), f"among the top {share:.3g} of pairs by {by}"
    return scores.assign(rank=rank, flagged=flagged, flag_reason=np.where(flagged, why, ""))


def write_back(table: PairTable, scores: pd.DataFrame, *, kept: str | None = None, flagged: str | None = None) -> None:
    """Write the data's own rows back in its own format: those not flagged, those flagged. Skipped rows go nowhere."""
    usable = scores[scores["status"] == "scored"]
    for wanted, dest in ((~usable["flagged"], kept), (usable["flagged"], flagged)):
        if dest:
            write_rows(table, usable[wanted]["source_row"].tolist(), dest)


def check_by(by: str) -> None:
    """UserError naming the nearest measure when `by` is none of those that flag computes."""
    if by not in MEASURES:
        near = difflib.get_close_matches(by, measures.names(), n=1)
        hint = f"; did you mean '{near[0]}'?" if near and near[0] in MEASURES else ""
        raise UserError(f"--by '{by}' is not a measure that flag computes{hint} Choose one of {', '.join(MEASURES)}.")


def _join(frame: pd.DataFrame, scored: pd.DataFrame) -> pd.DataFrame:
    status = frame["status"].replace("kept", "scored")
    joined = frame.assign(status=status)[list(FIRST)].merge(scored, on="pair_id", how="left")
    return joined.sort_values("source_row", ignore_index=True)
