"""Encoder-decoder models (T5): the prompt goes to the encoder, and the decoder predicts the completion.

A batch is laid out as for any other model; only what the model is called with differs. The decoder's first token is the
model's own (decoder_start_token_id), and each of its positions predicts the completion token that stands next.
"""

from typing import Any

from torch import Tensor, nn

from diagnostics.batch import Batch
from diagnostics.engine import innermost
from diagnostics.errors import DataError

IGNORED = -100  # a label that is none, in the words of transformers


def inputs(model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """What an encoder-decoder model is called with. All rows begin at the first column, whatever the batch's padding:
    positions of some models count it."""
    ids, mask = to_front(batch.input_ids, batch.attention_mask - batch.completion_mask)
    labels, predicted = to_front(batch.input_ids, batch.completion_mask)
    labels = labels.masked_fill(predicted == 0, IGNORED)
    return {"input_ids": ids, "attention_mask": mask, "decoder_input_ids": decoder_ids(model, labels)}


def places(batch: Batch, rows: Tensor, columns: Tensor) -> Tensor:
    """(N,) where the decoder's flattened output predicts the tokens at rows, columns of the batch."""
    mask = batch.completion_mask
    return rows * int(mask.sum(-1).max()) + mask.cumsum(-1)[rows, columns] - 1


def to_front(ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """(R, longest) ids under the mask, each row's from the first column on, and where they are; 0 behind them."""
    order = mask.argsort(dim=-1, descending=True, stable=True)[:, : int(mask.sum(-1).max())]
    moved = mask.gather(-1, order)
    return ids.gather(-1, order) * moved, moved


def decoder_ids(model: nn.Module, labels: Tensor) -> Tensor:
    """Labels (R, T) as the decoder reads them, by the model's own rule: its start token first, the last one not."""
    inner = innermost(model)
    try:
        return inner.prepare_decoder_input_ids_from_labels(labels=labels)
    except (AttributeError, TypeError, ValueError):
        raise DataError(
            f"{type(inner).__name__} does not say what its decoder starts with. Set decoder_start_token_id and "
            "pad_token_id in its config.json."
        ) from None


def decode(model: nn.Module, ids: Tensor, mask: Tensor, past: Any) -> tuple[dict[str, Any], Any]:
    """The call for the next token of each row, without the decoder's cache, and what to keep for the one after it.

    past: None at first, when ids and mask are the prompts; then what was kept, and ids are the decoder's last tokens.
    """
    if past is None:
        ids, mask = to_front(ids, mask)
        states = innermost(model).get_encoder()(input_ids=ids, attention_mask=mask)[0]
        ids = decoder_ids(model, ids[:, :1])
        past = states, mask
    states, mask = past
    return {"encoder_outputs": (states,), "attention_mask": mask, "decoder_input_ids": ids}, past
