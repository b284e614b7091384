"""What an analysis of a given model will cost, said before it starts: its runs, their updates, and how fast this
machine is with that model."""

import math
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any, NamedTuple

import torch

from diagnostics.engine import device_of
from diagnostics.pairs import read_pairs
from diagnostics.progress import duration
from trainers.models import load_to_device, load_tokenizer
from trainers.studies.paper_runs import TEACHING, Order, is_chat, keys, plain, updates
from trainers.worlds import chat_worlds

TIMED = (4, 64)  # sequences and tokens of the update that is timed
SAMPLE = 32  # pairs whose tokens are counted


class Work(NamedTuple):
    """Runs alike, or, with no update, passes over pairs. count: how many; updates: each; pairs: of an update; probed:
    pairs measured at both ends; tokens: a pair's, prompt and both answers; reference: whether one is run beside."""

    count: int
    updates: int
    pairs: int
    probed: int
    tokens: float
    reference: bool = True


class Speed(NamedTuple):
    """Of this machine with a model. load: s; forward, both: tokens/s forward, and forward and backward; step: s of the
    optimizer."""

    load: float
    forward: float
    both: float
    step: float


def world_work(order: Order, settings: Mapping[str, Any], *, given: int, **counts: int) -> list[Work]:
    """The work of an analysis whose runs are the standard ones: so many a seed in each small world (facts, refusal), or
    on given data. At small scale each world is taught first."""
    own, seeds = keys(settings), order.seeds or 0
    batch = own.get("per_device_train_batch_size", 8) * own.get("gradient_accumulation_steps", 1)
    if not order.own_worlds:
        own |= order.given
        tokens = tokens_of(order, plain_rows(own["data"], own.get("split")))
        length = min(tokens, 2 * (own.get("max_length") or math.inf))
        probed = int(settings.get("probe_pairs") or settings.get("pairs probed") or 64)
        return [Work(given * seeds, updates(own), int(batch), probed, length)]
    size, found = int(settings["pairs of a world"]), []
    for world, count in counts.items():
        found += teaching(order, settings, world)
        tokens = tokens_of(order, chat_worlds.pairs(world, SAMPLE, 0))
        each = settings.get("max_steps") or math.ceil(-(-size // batch) * own.get("num_train_epochs", 1.0))
        found.append(Work(count * seeds, int(each), int(batch), size, tokens))
    return found


def teaching(order: Order, settings: Mapping[str, Any], world: str) -> list[Work]:
    """The phase that teaches a world, once for all seeds."""
    rows, batch = settings[f"rows that teach {world}"], TEACHING["per_device_train_batch_size"]
    tokens = tokens_of(order, [row | {"rejected": ""} for row in chat_worlds.supervised(world, SAMPLE, 0, False)])
    return [Work(1, -(-rows // batch), batch, 0, tokens, reference=False)]


def plain_rows(data: str, split: str | None = None) -> list[dict[str, str]]:
    """The first pairs of a data set as text."""
    names = ("prompt", "chosen", "rejected")
    return [{name: plain(getattr(p, name)) for name in names} for p in read_pairs(data, split=split).pairs[:SAMPLE]]


def tokens_of(order: Order, rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean tokens of a pair's prompt and answers as the order's model reads them."""
    tokenizer: Any = load_tokenizer(str(order.model))
    names = ("prompt", "chosen", "rejected")
    texts = ["\n".join(str(row[name]) for name in names) for row in rows]
    around = ""
    if is_chat(order, str(order.model)):
        asked = [{"role": "user", "content": ""}]
        around = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    counts = [len(tokenizer(around + text)["input_ids"]) for text in texts]
    return sum(counts) / max(1, len(counts))


@cache
def speed(model: str, dtype: str = "float32") -> Speed:
    """Timed on one update of a few sequences, the second time that the model does it: the first warms it up."""
    began = time.perf_counter()
    policy = load_to_device(model, dtype=dtype)
    load, device = time.perf_counter() - began, device_of(policy)
    ids = torch.randint(1000, TIMED, generator=torch.Generator().manual_seed(0)) % policy.config.vocab_size
    ids = ids.to(device)
    optimizer = torch.optim.AdamW(policy.parameters(), lr=0.0)

    def forward() -> None:
        with torch.no_grad():
            policy(input_ids=ids)

    def both() -> None:
        policy(input_ids=ids, labels=ids).loss.backward()

    took = [_second(call, device) for call in (forward, both, optimizer.step)]
    return Speed(load, ids.numel() / took[0], ids.numel() / took[1], took[2])


def _second(call: Any, device: torch.device) -> float:
    """Seconds of a call's second time."""
    call()
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - began


def seconds(work: Work, of: Speed) -> float:
    """What the work takes: of every run the start, the updates (with the reference's pass), and both probes."""
    passes = 2 if work.reference else 1
    update = work.pairs * work.tokens * (1 / of.both + (passes - 1) / of.forward) + of.step
    probes = (2 * passes if work.updates else 1) * work.probed * work.tokens / of.forward
    return work.count * (2 * of.load + work.updates * update + probes)


def said(works: Sequence[Work], of: Speed, jobs: int = 1) -> str:
    """One sentence: how many runs, of how many updates, how long they will take here."""
    trained = [work for work in works if work.updates]
    runs = sum(work.count for work in trained)
    mean = sum(work.count * work.updates for work in trained) / max(1, runs)
    minutes = math.ceil(sum(seconds(work, of) for work in works) / 60 / jobs)
    return (
        f"{runs} runs, about {mean:.0f} updates each; on this machine about {duration(60 * minutes)} "
        f"(measured: {of.both:.0f} tokens/s); what is there already takes no time"
    )
