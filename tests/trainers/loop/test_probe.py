"""The probe's names of tokens."""

from trainers.loop.probe import token_text
from trainers.models import load_tokenizer


def test_a_token_is_called_by_its_text_its_name_or_its_id(lm_folder):
    tokenizer = load_tokenizer(lm_folder)
    assert token_text(tokenizer, tokenizer.convert_tokens_to_ids("a")) == "a"
    part = tokenizer.convert_tokens_to_ids("Ã")  # the first byte of a letter of two
    assert token_text(tokenizer, part) == "Ã"
    assert token_text(tokenizer, len(tokenizer) + 3) == f"id {len(tokenizer) + 3}"  # a padded row of the embeddings
