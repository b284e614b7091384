"""Scores of pairs under a model that is in memory already, for one's own notebook."""

from typing import Any

import pandas as pd
from torch import nn
from transformers import PreTrainedTokenizerBase

from diagnostics.audit import audit_pairs
from diagnostics.engine import check_ids
from diagnostics.errors import UserError
from diagnostics.flag.flagging import scores_of
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.tokenized import Truncation
from trainers.models import longest, model_limit, noted
from trainers.theirs import check_media, table_of


def score_pairs(
    model: Any,
    tokenizer: Any,
    pairs: Any,
    *,
    max_length: int | None = None,
    truncation: Truncation = "drop",
    append_eos: bool = True,
) -> pd.DataFrame:
    """Score preference pairs under a causal language model, without gradient: what `chesboard flag` measures.

    pairs: a file, a hub id, a data set, a DataFrame or a list of rows with prompt, chosen and rejected (or any shape
    that `chesboard audit` reads). max_length: longest prompt + completion in tokens; longer ones are dropped, or cut
    as `truncation` says (keep_start, keep_end, error). append_eos: end every completion.

    Returns the table of scores.parquet, one row an input row, in their order: pair_id, source_row, status (scored, or
    skipped with its reason), lengths in tokens, chosen_logps and rejected_logps (sums over completion tokens in nats,
    end included), one column a measure (NaN where not measured), rank (1 is most prone to displacement by
    ln_ches_score), flagged (the first tenth) and flag_reason. Weights, mode and attention of the model stay as they
    are. Raises DataError where no pair can be scored, UserError where model or tokenizer is none.
    """
    if not isinstance(model, nn.Module):
        raise UserError(f"score_pairs: {_words(model)} is no model. Give one that is loaded, as from_pretrained does.")
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise UserError(
            f"score_pairs: {_words(tokenizer)} is no tokenizer. "
            "Give the model's own, as AutoTokenizer.from_pretrained does."
        )
    table = table_of(pairs)
    tokenizer = noted(tokenizer, model)
    check_media(model, table, tokenizer)
    most = longest(max_length, model_limit(model))
    audit = audit_pairs(table, tokenizer, max_length=most, truncation=truncation, append_eos=append_eos)
    check_ids(model, audit.require_kept())
    return scores_of(model, audit, TokenLikelihood.of(tokenizer))


def _words(given: Any) -> str:
    """What was given, in short."""
    return repr(given)[:80] if given is None or isinstance(given, str) else f"a {type(given).__name__}"
