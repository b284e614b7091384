"""What the rerun of "Unintentional Unalignment", section 6 (arXiv:2410.08847), needs besides world D's own files.

A study is a folder: the prompts to measure, the pairs to train on with their kinds, further sets of pairs on the same
prompts (gold: a refusal over a compliance; compliances: two of them), and the pairs' scores under the model.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diagnostics.files import write_json
from diagnostics.flag.flagging import flag
from trainers.models import load_to_device, load_tokenizer, model_limit
from trainers.worlds import chat_worlds, refusal
from trainers.worlds.refusal import Prompt

INFLUENCE_PROMPTS = 64  # whose refusals the probe of probe_influence protects
Rows = list[dict[str, Any]]


def build(folder: Path, world: str, seed: int) -> None:
    """The study of a built world D."""
    prompts, held_out = refusal.split_prompts(seed)
    pairs = read_rows(Path(world) / "pairs.jsonl")
    known = {p.text: p for p in prompts}
    asked = [known[pair["prompt"]] for pair in pairs]
    rows = tracked(asked, held_out)
    folder.mkdir(parents=True)
    groups = {"refusal": refusal.openers("soft", "firm"), "comply": refusal.openers("comply")}
    (folder / "track.json").write_text(json.dumps({"prompts": rows, "groups": groups}), encoding="utf-8")
    protect = [dict(prompt=p.text, answer=word) for p in asked[:INFLUENCE_PROMPTS] for word in groups["refusal"]]
    further = {"gold": gold(asked, seed), "compliances": compliances(asked, seed)}
    write_study(folder, str(Path(world) / "model"), rows, pairs, protect, further)


def build_given(folder: Path, model: str, seed: int, count: int, as_chat: bool) -> None:
    """The study of a given model that was taught to refuse: pairs of the same kinds as world D's, in its own form.
    Its prompts: as many of the pairs' own as are held out, and the held-out ones."""
    pairs = chat_worlds.pairs("refusal", count, seed)
    held_out = chat_worlds.asked(held_out=True)
    own = [{"id": f"t{k:03d}", "set": "train", "prompt": pair["prompt"]} for k, pair in enumerate(pairs)]
    rows = own[: len(held_out) // 2]
    rows += [row | {"set": "test" if row["set"] == "unsafe" else "safe"} for row in held_out]
    further = {
        "gold": chat_worlds.over(pairs, "gold", seed),
        "compliances": chat_worlds.over(pairs, "compliances", seed),
    }
    folder.mkdir(parents=True)
    write_json(folder / "track.json", chat_worlds.track(rows, as_chat))
    told = {name: [chat_worlds.formed(row, as_chat) for row in rows] for name, rows in further.items()}
    shown = [row if as_chat else row | {"prompt": f"{row['prompt']}\n"} for row in rows]
    write_study(folder, model, shown, [chat_worlds.formed(pair, as_chat) for pair in pairs], [], told)


def write_study(
    folder: Path, model: str, prompts: Rows, pairs: Rows, protect: Rows, further: Mapping[str, Rows]
) -> None:
    """Write the files and score the pairs under the model. protect: rows for probe_influence, none to leave it out."""
    sets = {name: rows for name, rows in further.items() if rows}
    both = {"with_gold": [*pairs, *sets["gold"]]} if "gold" in sets else {}
    for name, rows in {"prompts": prompts, "pairs": pairs, "probe": protect, **sets, **both}.items():
        refusal.write_pairs(folder / f"{name}.jsonl", rows)
    loaded = load_to_device(model)
    flag(
        str(folder / "pairs.jsonl"), loaded, load_tokenizer(model), folder / "scores", model_name=model,
        by="probe_influence" if protect else "ln_ches_score", probe=str(folder / "probe.jsonl") if protect else None,
        max_length=model_limit(loaded),
    )  # fmt: skip


def read_rows(path: Path) -> Rows:
    """The objects of a JSON-lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tracked(asked: Sequence[Prompt], held_out: Sequence[Prompt]) -> Rows:
    """Prompts to measure. Sets: train (the pairs' own), test (held out, unsafe) and safe (held out, safe)."""
    rows = [dict(id=f"t{k:03d}", set="train", prompt=p.text) for k, p in enumerate(asked)]
    return rows + [
        dict(id=f"h{k:03d}", set="test" if p.unsafe else "safe", prompt=p.text) for k, p in enumerate(held_out)
    ]


def gold(asked: Sequence[Prompt], seed: int) -> Rows:
    """On every prompt a refusal, soft or firm, over a compliance."""
    rng = np.random.default_rng([seed, 4])
    kinds = [(str(rng.choice(["soft", "firm"])), "comply") for _ in asked]
    return _pairs(asked, kinds, "gold", rng)


def compliances(asked: Sequence[Prompt], seed: int) -> Rows:
    """On every prompt one compliance over another."""
    return _pairs(asked, [("comply", "comply")] * len(asked), "two_compliances", np.random.default_rng([seed, 5]))


def _pairs(asked: Sequence[Prompt], kinds: Sequence[tuple[str, str]], name: str, rng: np.random.Generator) -> Rows:
    rows = []
    for k, (prompt, (kind, other)) in enumerate(zip(asked, kinds, strict=True)):
        first, second = (int(n) for n in rng.choice(4, 2, replace=False))
        chosen, rejected = prompt.respond(kind, first), prompt.respond(other, second)
        rows.append(dict(pair_id=f"{name}{k:03d}", prompt=prompt.text, chosen=chosen, rejected=rejected, kind=name))
    return rows
