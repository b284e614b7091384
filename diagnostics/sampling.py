"""Sampling: answers of a language model, token by token, many prompts at once. The one loop for all that a model says
itself: own answers of the probe and of the forecast, judged and hinted pairs, the papers' samples.
"""

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from diagnostics.engine import device_of, engine_of, evaluating, innermost
from diagnostics.errors import DataError
from diagnostics.forward import caches, decode
from diagnostics.media import Media
from diagnostics.pairs import Text
from diagnostics.scoring import batches
from diagnostics.sequences import Example
from diagnostics.stats import wide
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.tokenized import end_ids, tokenize_prompts
from diagnostics.vision.encode import Seen
from diagnostics.vision.placeholders import placeholder_ids
from diagnostics.vision.tensors import visual

OWN_TOKENS = 32  # an own answer is cut here
TOGETHER = 32  # prompts answered at a time


def draw(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    limits: int | Sequence[int],
    *,
    pad: int,
    ends: Collection[int],
    temperature: float = 0.0,
    generator: torch.Generator | None = None,
    media: Sequence[tuple[Media, ...] | None] | None = None,
    family: Any = None,
) -> list[tuple[int, ...]]:
    """One answer (token ids) to each prompt (token ids): until one of `ends` (kept) or its limit of tokens.

    temperature: 0 takes the most likely token each time; else tokens are drawn from the whole distribution of
    logits / temperature by generator, in float64 wherever the device has it. Nothing else that the model's
    generation_config says has a say. media, of a family: what each prompt is shown; such a model never says a
    placeholder.
    """
    limits = [limits] * len(prompts) if isinstance(limits, int) else list(limits)
    media = media or [None] * len(prompts)
    how: dict[str, Any] = {"pad": pad, "ends": ends, "temperature": temperature, "generator": generator}
    if engine_of(model).switch is not None and len(prompts) > 1:  # a row's rotary factors are to be its own
        each = zip(prompts, limits, media, strict=True)
        return [draw(model, [p], [limit], media=[m], family=family, **how)[0] for p, limit, m in each]
    width, device = max(map(len, prompts)), device_of(model)
    ids = torch.tensor([[pad] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    answers: list[tuple[int, ...]] = [()] * len(prompts)
    new, past = ids, None
    shown = visual(family, media) if family is not None else None
    never = placeholder_ids(family) if family is not None else []
    with torch.no_grad(), evaluating(model):
        seen = Seen(model, shown.to(device)) if shown is not None else None
        while any(_goes_on(a, limit, ends) for a, limit in zip(answers, limits, strict=True)):
            logits, past = decode(model, new, mask, past, seen)
            logits[:, never] = -torch.inf
            tokens = _next(logits, temperature, generator)
            for i, token in enumerate(tokens[:, 0].tolist()):
                answers[i] += (token,) if _goes_on(answers[i], limits[i], ends) else ()
            ids, mask = torch.cat([ids, tokens], 1), torch.cat([mask, torch.ones_like(tokens)], 1)
            new = ids if past is None else tokens
    return answers


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
    for group in batches(pairs, budget, lambda _, longest: longest):
        limits = [min(OWN_TOKENS, longest - len(p.prompt_ids)) for p in group]
        shown: dict[str, Any] = {"media": [p.chosen.media for p in group], "family": likelihood.family}
        asked = [p.prompt_ids for p in group]
        answers = draw(model, asked, limits, pad=likelihood.pad_token_id, ends=ends, **shown)
        found |= {p.pair_id: ids for p, ids in zip(group, answers, strict=True)}
    return found


def answers(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[Text],
    *,
    temperature: float,
    limit: int,
    seed: int = 0,
    together: int = TOGETHER,
    media: Sequence[tuple[Media, ...] | None] | None = None,
) -> list[str]:
    """One answer as text, without its end, to each prompt (text, or chat messages through the chat template).

    At most `limit` tokens, fewer where the model has no room for more. Raises DataError where a prompt leaves no room.
    media: what each prompt is shown; it holds the family's tag for each of them.
    """
    rows = tokenize_prompts(prompts, tokenizer, media)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    most = room(model)
    if rows and len(rows[order[-1]]) >= most:
        raise DataError(
            f"a prompt of {len(rows[order[-1]])} tokens leaves this model no room to answer. Leave such prompts out."
        )
    pad = TokenLikelihood.of(tokenizer).pad_token_id
    generator = torch.Generator(device=device_of(model)).manual_seed(seed)
    ends = {*end_ids(tokenizer), *_stops(model)}
    found: dict[int, str] = {}
    together = together if caches(model) else 1  # without a cache one at a time, free of padding
    for k in range(0, len(order), together):
        part = order[k : k + together]
        limits = [min(limit, most - len(rows[i])) for i in part]
        how: dict[str, Any] = {"pad": pad, "ends": ends, "temperature": temperature, "generator": generator}
        how |= {"media": [media[i] for i in part] if media else None, "family": getattr(tokenizer, "family", None)}
        said = draw(model, [rows[i] for i in part], limits, **how)
        found |= {i: str(tokenizer.decode(list(ids), skip_special_tokens=True)) for i, ids in zip(part, said)}
    return [found[i] for i in range(len(rows))]


def room(model: nn.Module) -> int:
    """How many tokens a model has positions for; a very large number where its config does not say."""
    return getattr(innermost(model).config.get_text_config(), "max_position_embeddings", None) or 10**9


def _next(logits: Tensor, temperature: float, generator: torch.Generator | None) -> Tensor:
    if not temperature:
        return logits.argmax(-1, keepdim=True)
    return torch.multinomial((logits.to(wide(logits.device)) / temperature).softmax(-1), 1, generator=generator)


def _goes_on(answer: tuple[int, ...], limit: int, ends: Collection[int]) -> bool:
    return len(answer) < limit and (not answer or answer[-1] not in ends)


def _stops(model: nn.Module) -> set[int]:
    """Tokens at which the model's own generation_config stops: chat models have one for the turn beside EOS."""
    config = getattr(innermost(model), "generation_config", None)
    known = getattr(config, "eos_token_id", None)
    return {i for i in (known if isinstance(known, list) else [known]) if isinstance(i, int)}
