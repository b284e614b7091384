"""What a model says itself: the most likely tokens, or draws from its whole distribution."""

import pytest
import torch

from diagnostics.errors import DataError
from diagnostics.sampling import answers, draw
from trainers.models import load_model, load_tokenizer
from trainers.worlds import lm

WORDS = "sorry no sure 0 1 INST [ ] / . ! ?".split()


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    tokenizer = lm.word_tokenizer(WORDS)
    folder = lm.save(lm.build_model(tokenizer, seed=1), tokenizer, tmp_path_factory.mktemp("sampling") / "lm")
    return load_model(str(folder)), load_tokenizer(str(folder))


@pytest.mark.parametrize("together", [1, 3])
def test_greedy_answers_are_the_most_likely_tokens_whatever_the_batch(loaded, together):
    model, tokenizer = loaded
    prompts = ["sorry ?", "no sure no sure !", "1"]
    expected = []
    for prompt in prompts:
        ids = tokenizer(prompt)["input_ids"]
        start = len(ids)
        while len(ids) < start + 6 and (len(ids) == start or ids[-1] != tokenizer.eos_token_id):
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        expected.append(tokenizer.decode(ids[start:], skip_special_tokens=True))
    assert answers(model, tokenizer, prompts, temperature=0, limit=6, together=together) == expected


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
def test_draws_follow_the_seed_and_the_whole_distribution(loaded, temperature):
    model, tokenizer = loaded
    model.generation_config.top_k, model.generation_config.repetition_penalty = 1, 9.0  # its own habits do not count
    ids = tokenizer("no ?")["input_ids"]

    def drawn(seed: int) -> list[tuple[int, ...]]:
        how = {"generator": torch.Generator().manual_seed(seed), "temperature": temperature}
        return draw(model, [ids] * 4000, 1, pad=0, ends=(), **how)

    first = drawn(3)
    assert first == drawn(3) != drawn(4)
    with torch.no_grad():
        wanted = (model(torch.tensor([ids])).logits[0, -1].double() / temperature).softmax(-1)
    share = torch.tensor([i for (i,) in first]).bincount(minlength=len(wanted)) / 4000
    assert ((share - wanted).abs() < 5 * (wanted * (1 - wanted) / 4000).sqrt() + 1e-3).all()


def test_an_answer_ends_at_its_end_or_its_limit(loaded):
    model, tokenizer = loaded
    rows = [tokenizer(p)["input_ids"] for p in ("no", "sure !")]
    free = draw(model, rows, [5, 2], pad=0, ends=())
    assert [len(a) for a in free] == [5, 2]
    ended = draw(model, rows, 5, pad=0, ends={free[0][1]})
    assert ended[0] == free[0][: free[0].index(free[0][1]) + 1]
    assert draw(model, rows[:1], 0, pad=0, ends=()) == [()]


def test_a_prompt_that_fills_the_model_is_refused_and_one_that_nearly_does_is_cut(loaded):
    model, tokenizer = loaded
    room = model.config.max_position_embeddings
    assert len(answers(model, tokenizer, ["no " * (room - 2)], temperature=1, limit=50)[0].split()) <= 2
    with pytest.raises(DataError, match="leaves this model no room"):
        answers(model, tokenizer, ["no " * room], temperature=0, limit=5)
