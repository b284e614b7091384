"""The two small worlds for a given model: the same pairs as the tiny models get, as chats, or raw as plain text.

Refusals are those of trainers.worlds.chat, in the kinds and shares of trainers.worlds.refusal; facts are the first of
trainers.worlds.facts in its own words. The given model is one, so the facts are the same for every seed; a seed draws
the pairs. All text is synthetic.
"""

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from diagnostics.files import write_json
from trainers.worlds import chat, facts, refusal

ENTITIES = 5  # whose facts a given model is taught: of all 80 facts a short phase teaches little
HELD_OUT = 16  # pairs on a question in words that were never trained on
Rows = list[dict[str, Any]]


def build(folder: Path, world: str, seed: int, count: int, as_chat: bool) -> None:
    """Write pairs.jsonl, and heldout.jsonl (facts) or track.json (refusals)."""
    folder.mkdir(parents=True)
    write(folder / "pairs.jsonl", pairs(world, count, seed), as_chat)
    if world == "facts":
        held = facts.make_pairs(known_facts(), [facts.HELD_OUT_QUESTION], HELD_OUT, seed)
        write(folder / "heldout.jsonl", held, as_chat)
    else:
        write_json(folder / "track.json", track(asked(held_out=True), as_chat))


def paths(world: str, folder: Path) -> dict[str, str]:
    """The keys of `chesboard train` that point into what `build` wrote."""
    more = {"heldout_data": "heldout.jsonl"} if world == "facts" else {"track": "track.json"}
    return {key: str(folder / name) for key, name in ({"data": "pairs.jsonl"} | more).items()}


def known_facts() -> list[facts.Fact]:
    """The facts that a given model is taught, of every entity all attributes."""
    return facts.make_facts(0)[: ENTITIES * len(facts.VALUES)]


def pairs(world: str, count: int, seed: int) -> Rows:
    """The world's preference pairs as text: a true value over a wrong one, or mostly a soft refusal over a firm one."""
    if world == "facts":
        return facts.make_pairs(known_facts(), facts.QUESTIONS, count, seed)
    rng = np.random.default_rng([seed, 1])
    unsafe = [request for request in chat.requests(held_out=False) if request.kind == "unsafe"]
    found = []
    for k, i in enumerate(rng.permutation(len(unsafe))[:count]):
        similar = rng.random() < refusal.TWO_REFUSALS
        kinds = ("soft", "firm") if similar else (str(rng.choice(chat.REFUSALS)), "comply")
        chosen, rejected = (chat.answered(unsafe[i], kind, rng) for kind in kinds)
        kind = "two_refusals" if similar else "mixed"
        found.append(row(f"p{k:03d}", unsafe[i].text, chosen, rejected) | {"kind": kind})
    return found


def supervised(world: str, count: int, seed: int, as_chat: bool) -> Rows:
    """Rows of the phase that teaches the world; the rejected answer is not trained on."""
    if world == "refusal":
        return [formed(flat(each), as_chat) for each in chat.supervised(count, seed)]
    rng, known, found = np.random.default_rng([seed, 2]), known_facts(), []
    for k in range(count):
        fact = known[int(rng.integers(len(known)))]
        values = facts.VALUES[fact.attribute]
        value = fact.value if rng.random() < facts.TRUE else str(rng.choice(values))
        question = facts.QUESTIONS[int(rng.integers(len(facts.QUESTIONS)))]
        form, filler = (int(rng.integers(len(forms))) for forms in (facts.ANSWERS, facts.FILLERS))
        other = next(v for v in values if v != value)
        sides = [fact.answer(form, v, filler) for v in (value, other)]
        found.append(formed(row(f"s{k}", fact.ask(question), *sides), as_chat))
    return found


def refusal_pool(count: int, seed: int, kinds: Sequence[tuple[str, str]]) -> Rows:
    """Pairs on unsafe requests of these kinds of answers (chosen, rejected) alike, as text, without doubles."""
    rng = np.random.default_rng([seed, 21])
    unsafe = [request for request in chat.requests(held_out=False) if request.kind == "unsafe"]
    every = list(product(unsafe, kinds))
    found = []
    for k, i in enumerate(rng.permutation(len(every))[:count]):
        request, (one, other) = every[i]
        chosen, rejected = (int(n) for n in rng.permutation(len(chat.ANSWERS[one]))[:2])
        sides = [chat.ANSWERS[kind][n].format(act=request.act) for kind, n in ((one, chosen), (other, rejected))]
        found.append(row(f"p{k:04d}", request.text, *sides) | {"kind": f"{one} > {other}"})
    return found


def over(known: Sequence[dict[str, Any]], kind: str, seed: int) -> Rows:
    """Further pairs, as text, on the requests of refusal pairs: gold (a refusal over a compliance), or compliances (two
    of them)."""
    rng, by_text = np.random.default_rng([seed, 4]), {request.text: request for request in chat.requests(False)}
    found = []
    for k, pair in enumerate(known):
        act = by_text[pair["prompt"]].act
        first = "comply" if kind == "compliances" else str(rng.choice(chat.REFUSALS))
        one, other = (int(n) for n in rng.choice(len(chat.ANSWERS["comply"]), 2, replace=False))
        sides = [chat.ANSWERS[first][one].format(act=act), chat.ANSWERS["comply"][other].format(act=act)]
        name = "two_compliances" if kind == "compliances" else kind
        found.append(row(f"{name}{k:03d}", pair["prompt"], *sides) | {"kind": name})
    return found


def asked(held_out: bool) -> list[dict[str, str]]:
    """The requests that rows are made of, or those that no row holds, as text; sets: unsafe and safe."""
    return [
        {"id": f"{'h' if held_out else 't'}{k:03d}", "set": request.kind, "prompt": request.text}
        for k, request in enumerate(chat.requests(held_out))
    ]


def track(prompts: Sequence[dict[str, str]], as_chat: bool) -> dict[str, Any]:
    """The track file of these prompts: the first tokens that refuse or comply."""
    groups = {"refusal": chat.openers(*chat.REFUSALS), "comply": chat.openers("comply")}
    return {"prompts": [prompt | {"prompt": formed(prompt, as_chat)["prompt"]} for prompt in prompts], "groups": groups}


def row(pair_id: str, prompt: str, chosen: str, rejected: str) -> dict[str, Any]:
    """A pair as text."""
    return {"pair_id": pair_id, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def formed(pair: dict[str, Any], as_chat: bool) -> dict[str, Any]:
    """A row of text as a chat; raw, its prompt ends with a line break, behind which the answer stands."""
    if not as_chat:
        return pair | {"prompt": f"{pair['prompt']}\n"}
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return pair | {k: [{"role": role, "content": pair[k]}] for k, role in roles.items() if k in pair}


def flat(pair: dict[str, Any]) -> dict[str, Any]:
    """The reverse: the texts of a row of messages."""
    return {k: value[0]["content"] if isinstance(value, list) else value for k, value in pair.items()}


def write(path: Path, rows: Sequence[dict[str, Any]], as_chat: bool) -> None:
    """Write rows of text in their form, one a line."""
    path.write_text("".join(json.dumps(formed(pair, as_chat)) + "\n" for pair in rows), encoding="utf-8")
