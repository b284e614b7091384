"""Tokens as a person reads them, alone and as pieces of an answer."""

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

BEFORE = 4  # tokens before a piece that decide how it is written: whether it begins with a space


def token_text(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    """A token as a person reads it; its vocabulary name where it is only part of a character, and its id where it has
    none (rows of the embeddings beyond the vocabulary)."""
    text = str(tokenizer.decode([token_id]))
    name = tokenizer.convert_ids_to_tokens(token_id)
    return text if text and "\ufffd" not in text else f"id {token_id}" if name is None else str(name)


def token_texts(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of an answer; joined, they are the decoded answer.

    A character that several tokens spell stands whole at the first of them, and the others are "".
    """
    found, start = [""] * len(ids), 0
    while start < len(ids):
        end = start + 1
        piece = _piece(tokenizer, ids, start, end)
        while piece.endswith("\ufffd") and end < len(ids) and end - start < BEFORE:
            end += 1
            longer = _piece(tokenizer, ids, start, end)
            if not longer.endswith("\ufffd"):
                piece = longer
                break
        else:
            end = start + 1  # no character comes of it: the token stands for itself
        found[start] = piece if "\ufffd" not in piece else token_text(tokenizer, ids[start])
        start = end
    return found


def _piece(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int], start: int, end: int) -> str:
    """The text that the tokens from start to end add to those before them."""
    before = list(ids[max(0, start - BEFORE) : start])
    left, whole = (_decode(tokenizer, part) for part in (before, [*before, *ids[start:end]]))
    follows = whole.startswith(left) and not left.endswith("\ufffd")
    return whole[len(left) :] if follows else _decode(tokenizer, list(ids[start:end]))


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, clean_up_tokenization_spaces=False)) if ids else ""
