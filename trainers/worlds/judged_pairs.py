"""Preference pairs made from prompts alone: a model answers each twice, a judge prefers the answer that refuses more.

The data of "Unintentional Unalignment", section 6 (arXiv:2410.08847). Ties are broken at random: the paper asks a
reward model (PairRM), which transformers' ordinary loaders cannot read, and reports similar results for random ones.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from diagnostics.errors import DataError
from diagnostics.sampling import answers
from trainers.models import load_to_device, load_tokenizer
from trainers.worlds.judges import as_prompt, load_judge
from trainers.worlds.refusal_study import Rows, write_study

KINDS = {(0, 0): "two_refusals", (1, 1): "two_compliances", (0, 1): "mixed"}
INFLUENCE_PAIRS = 64  # whose refusals the probe of probe_influence protects


def build(folder: Path, model: str, data: str, judge: str, settings: Mapping[str, Any]) -> None:
    """The study of a model and a file of prompts (see `read_prompts`), as refusal_study's.

    settings: seed, test (share), temperature and limit (tokens) of the two answers, dtype, chat (else raw text).
    """
    rng = np.random.default_rng(settings["seed"])
    prompts = split(read_prompts(data), settings["test"], rng)
    train = [row for row in prompts if row["set"] == "train"]
    policy, tokenizer = load_to_device(model, dtype=settings["dtype"]), load_tokenizer(model)
    chat = settings["chat"]
    asked = [as_prompt(row["prompt"], tokenizer) if chat else row["prompt"] for row in train for _ in range(2)]
    how = {name: settings[name] for name in ("temperature", "limit", "seed")}
    said = answers(policy, tokenizer, asked, **how)
    del policy
    scores = load_judge(judge)([row["prompt"] for row in train for _ in range(2)], said)
    pairs = prefer(train, said, scores, rng)
    folder.mkdir(parents=True)
    shown = [_messages(row, chat) for row in pairs]
    gold = [_messages(row, chat) for row in gold_pairs(train)]
    protect = [
        {"prompt": row["prompt"], "answer": told["chosen"]}
        for row, told in zip(shown, pairs)
        if told["chosen_score"] == 0
    ]
    write_study(folder, model, prompts, shown, protect[:INFLUENCE_PAIRS], {"gold": gold})


def read_prompts(data: str) -> Rows:
    """Prompts of a JSON-lines file: {"prompt", "category"}, or SORRY-Bench's {"turns", "prompt_style"} (base style).

    category "safe" marks prompts that should be answered. gold_refusal and gold_compliance: texts a person judged so.
    Raises DataError naming the line that cannot be used.
    """
    path = Path(data)
    if not path.is_file():
        raise DataError(f"{data}: no such file. Give JSON lines with prompt (or turns) and, if known, category.")
    found = [_prompt(f"{data}: line {n}", line) for n, line in enumerate(path.read_text("utf-8").splitlines(), 1)]
    rows = [row for row in found if row]
    if sum(row["category"] != "safe" for row in rows) < 2:
        raise DataError(
            f"{data}: holds fewer than two prompts that should be refused, so there is nothing to train on."
        )
    return [row | {"id": f"q{k:04d}"} for k, row in enumerate(rows)]


def split(rows: Rows, share: float, rng: np.random.Generator) -> Rows:
    """Say of every prompt which set it is in: a random int(share * n) of the unsafe ones are test, the rest train."""
    unsafe = [row["id"] for row in rows if row["category"] != "safe"]
    test = {unsafe[i] for i in rng.permutation(len(unsafe))[: int(share * len(unsafe))]}
    return [
        row | {"set": "safe" if row["category"] == "safe" else "test" if row["id"] in test else "train"} for row in rows
    ]


def prefer(prompts: Rows, answers: Sequence[str], scores: Sequence[float], rng: np.random.Generator) -> Rows:
    """A pair a prompt of answers 2k and 2k + 1: the lower score is chosen, ties and missing scores at random.

    kind: two_refusals, two_compliances, mixed, or unknown where a score is missing. Equal answers make no pair.
    """
    rows = []
    for k, prompt in enumerate(prompts):
        both = [(answers[2 * k + i], scores[2 * k + i]) for i in range(2)]
        if rng.random() < 0.5:
            both.reverse()
        if both[0][0].strip() == both[1][0].strip():
            continue
        if both[1][1] < both[0][1]:  # not where one is missing
            both.reverse()
        (chosen, low), (rejected, high) = both
        missing = math.isnan(low) or math.isnan(high)
        kind = "unknown" if missing else KINDS.get((int(low > 0.5), int(high > 0.5)), "unknown")
        rows.append(
            dict(
                pair_id=prompt["id"],
                prompt=prompt["prompt"],
                chosen=chosen,
                rejected=rejected,
                kind=kind,
                chosen_score=low,
            )
        )
    return rows


def gold_pairs(prompts: Rows) -> Rows:
    """A pair for each prompt that has both gold answers."""
    return [
        dict(
            pair_id=f"gold-{p['id']}",
            prompt=p["prompt"],
            chosen=p["gold_refusal"],
            rejected=p["gold_compliance"],
            kind="gold",
        )
        for p in prompts
        if p["gold_refusal"] and p["gold_compliance"]
    ]


def _messages(row: dict[str, Any], chat: bool) -> dict[str, Any]:
    """The pair as chat messages where the model has a chat template. Scores stay out: an objective might read them."""
    kept = {name: value for name, value in row.items() if name != "chosen_score"}
    if not chat:
        return kept
    roles = {"prompt": "user", "chosen": "assistant", "rejected": "assistant"}
    return kept | {name: [{"role": role, "content": row[name]}] for name, role in roles.items()}


def _prompt(where: str, line: str) -> dict[str, Any] | None:
    if not line.strip():
        return None
    try:
        row = json.loads(line)
    except ValueError:
        raise DataError(f"{where} is not JSON. Correct or remove that line.") from None
    row = row if isinstance(row, dict) else {}
    turns = row.get("turns")
    text = turns[0] if isinstance(turns, list) and turns else row.get("prompt")
    if not isinstance(text, str) or not text.strip():
        raise DataError(f"{where}: needs prompt (text), or turns (a list of texts) as in SORRY-Bench.")
    if row.get("prompt_style", "base") != "base":
        return None
    told = {name: str(row.get(name) or "") for name in ("category", "gold_refusal", "gold_compliance")}
    return {"prompt": text} | told
