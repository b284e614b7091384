"""A model's own answer to a prompt: greedy decoding, many prompts at once."""

from collections.abc import Collection, Sequence

import torch
from torch import nn

from diagnostics.engine import device_of, engine_of, evaluating
from diagnostics.forward import caches, decode
from diagnostics.scoring import batches
from diagnostics.sequences import Example
from diagnostics.token_likelihood import TokenLikelihood, padded

OWN_TOKENS = 32  # an own answer is cut here


def own_answers(
    model: nn.Module,
    pairs: Sequence[Example],
    *,
    longest: int,
    likelihood: TokenLikelihood,
    ends: Collection[int],
    batch_tokens: int | None = None,
) -> dict[str, tuple[int, ...]]:
    """The model's own answer to each pair's prompt, by pair_id: greedy, until one of `ends` (tokenized.end_ids),
    OWN_TOKENS tokens, or until prompt and answer have `longest` tokens, which the model is known to take."""
    budget = batch_tokens or likelihood.budget(model, pairs)
    budget = budget if caches(model) else 1  # without a cache one at a time, free of padding
    found = {}
    for group in batches(pairs, budget, padded):
        limits = [min(OWN_TOKENS, longest - len(p.prompt_ids)) for p in group]
        answers = greedy(model, [p.prompt_ids for p in group], limits, pad=likelihood.pad_token_id, ends=ends)
        found |= {p.pair_id: ids for p, ids in zip(group, answers, strict=True)}
    return found


def greedy(
    model: nn.Module, prompts: Sequence[Sequence[int]], limits: Sequence[int], *, pad: int, ends: Collection[int]
) -> list[tuple[int, ...]]:
    """After each prompt the most likely token, again and again, until one of `ends` (kept) or the row's limit."""
    if engine_of(model).switch is not None and len(prompts) > 1:  # a row's rotary factors are to be its own
        single = zip(prompts, limits, strict=True)
        return [greedy(model, [p], [limit], pad=pad, ends=ends)[0] for p, limit in single]
    width, device = max(map(len, prompts)), device_of(model)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    answers: list[tuple[int, ...]] = [()] * len(prompts)
    new, past = ids, None
    with torch.no_grad(), evaluating(model):
        while any(_goes_on(a, limit, ends) for a, limit in zip(answers, limits, strict=True)):
            logits, past = decode(model, new, mask, past)
            tokens = logits.argmax(-1, keepdim=True)
            for i, token in enumerate(tokens[:, 0].tolist()):
                answers[i] += (token,) if _goes_on(answers[i], limits[i], ends) else ()
            ids, mask = torch.cat([ids, tokens], 1), torch.cat([mask, torch.ones_like(tokens)], 1)
            new = ids if past is None else tokens
    return answers


def _goes_on(answer: tuple[int, ...], limit: int, ends: Collection[int]) -> bool:
    return len(answer) < limit and (not answer or answer[-1] not in ends)
