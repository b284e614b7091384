"""Preference pairs that a video model makes of its own answers, as RRPO and as LeanPO make them.

RRPO (arXiv 2504.12083): the model answers on a perturbed clip; a wrong answer is rejected, the true one chosen, and the
phrases in which they differ are marked. LeanPO (arXiv 2506.05260): chosen is the model's own answer with the truth as a
hint, improved in a second round, rejected its own at a high temperature on an augmented clip. Both train on the clean
clip and the plain question. Neither paper's code has its wording of prompts that could be read: these words are ours.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from diagnostics.errors import UserError
from diagnostics.frames import FRAMES
from diagnostics.media import Media
from diagnostics.pairs import PreferencePair
from diagnostics.phrases import tagged
from diagnostics.processes import hold
from diagnostics.vision import perturb
from trainers.worlds.asked import LONGEST, Made, question, row_seed, start, untagged
from trainers.worlds.checkers import load_checker

HINT = "Here are some hints : {hint} Please respond based on the given hints and video content . {question}"
REFLECT = (
    "Your last reply was : {reply} It can be improved . Align it with this : {hint} Reflect what is given there as "
    "well as you can , and make the reply clear and complete . {question}"
)
HOT = 1.2  # temperature of LeanPO's rejected answer, without any cut of the distribution


def rrpo(
    data: str,
    model: str,
    out: Path,
    *,
    perturbations: Sequence[str] = ("mask", "local_shuffle"),
    checker: str = "rule",
    temperature: float = 0.0,
    seed: int = 0,
    limit: int = LONGEST,
    split: str | None = None,
    frames: int = FRAMES,
    media_folder: str | None = None,
) -> Made:
    """Write out/pairs.json, RRPO's rows (question, answer, pred and both with <MASK> tags, media_path), of the rows of
    data (media, question, answer) that the model answers wrongly on a perturbed clip.

    perturbations: names of PERTURBATIONS, applied in this order with one seed a row. checker: "rule" or a model
    (checkers). `made` of a row says perturbations, seed and what was drawn, every permutation too.
    """
    for name in perturbations:
        if name not in PERTURBATIONS:
            raise UserError(f"there is no perturbation '{name}'. Give one or more of {', '.join(PERTURBATIONS)}.")
    with hold(out, "pairs rrpo"):
        work = start(out, data, model, "rrpo", seed, limit, split, frames, media_folder)
        work.settings |= {"perturbations": [*perturbations], "checker": checker, "temperature": temperature}
        check = load_checker(checker)

        def answer(group: Sequence[PreferencePair], draw: int) -> list[dict[str, Any]]:
            seeds = [row_seed(seed, pair.source_row) for pair in group]
            shown = [perturbed(pair.media[0], perturbations, s) for pair, s in zip(group, seeds, strict=True)]
            said = work.say(group, [question(p) for p in group], [(m,) for m in shown], temperature, draw)
            right = check([question(p) for p in group], [str(p.chosen) for p in group], said)
            rows = zip(group, seeds, shown, said, right, strict=True)
            return [
                {"row": p.source_row, "seed": s, "view": [*m.view], "pred": text, "right": ok}
                for p, s, m, text, ok in rows
            ]

        return work.finish(answer, lambda pair, line: _rrpo_row(pair, line, perturbations), "pairs.json")


def leanpo(
    data: str,
    model: str,
    out: Path,
    *,
    seed: int = 0,
    limit: int = LONGEST,
    split: str | None = None,
    frames: int = FRAMES,
    media_folder: str | None = None,
) -> Made:
    """Write out/pairs.jsonl (question, chosen, rejected, media_path): chosen is the model's greedy answer to the
    question with the true answer as a hint, after a round in which it improves its first one; rejected is drawn at
    temperature 1.2 from an augmented clip. Equal and empty answers are left out.
    """
    with hold(out, "pairs leanpo"):
        work = start(out, data, model, "leanpo", seed, limit, split, frames, media_folder)

        def answer(group: Sequence[PreferencePair], draw: int) -> list[dict[str, Any]]:
            clean = [pair.media for pair in group]
            seeds = [row_seed(seed, pair.source_row) for pair in group]
            shown = [perturbed(m, ("augment",), s) for (m,), s in zip(clean, seeds, strict=True)]
            asked = [(untagged(question(p)), untagged(str(p.chosen))) for p in group]
            first = work.say(group, [HINT.format(hint=t, question=q) for q, t in asked], clean, 0.0, draw)
            again = [
                REFLECT.format(reply=untagged(r), hint=t, question=q) for (q, t), r in zip(asked, first, strict=True)
            ]
            chosen = work.say(group, again, clean, 0.0, draw)
            rejected = work.say(group, [question(p) for p in group], [(m,) for m in shown], HOT, draw)
            rows = zip(group, seeds, shown, first, chosen, rejected, strict=True)
            return [
                {"row": p.source_row, "seed": s, "view": [*m.view], "first": f, "chosen": c, "rejected": r}
                for p, s, m, f, c, r in rows
            ]

        return work.finish(answer, _leanpo_row, "pairs.jsonl")


def perturbed(medium: Media, names: Sequence[str], seed: int) -> Media:
    """A clip or an image after these perturbations, in this order, each with the same seed."""
    for name in names:
        medium = PERTURBATIONS[name](medium, seed)
    return medium


def _augment(medium: Media, seed: int) -> Media:
    """LeanPO's augmentation; frames that are smaller than its crops keep their shorter side."""
    return perturb.augment(medium, seed=seed, side=min(perturb.SIDE, *medium.shape()[1:]))


PERTURBATIONS: dict[str, Callable[[Media, int], Media]] = {
    "mask": lambda medium, seed: perturb.mask(medium, seed=seed),
    "local_shuffle": lambda medium, seed: perturb.local_shuffle(medium, seed=seed),
    "global_shuffle": lambda medium, seed: perturb.global_shuffle(medium, seed=seed),
    "augment": _augment,
}


# --- one row ----------------------------------------------------------------------------------------------------


def _rrpo_row(
    pair: PreferencePair, line: Mapping[str, Any], perturbations: Sequence[str]
) -> tuple[str, list[dict[str, Any]]]:
    """Why a row gives no pair (a code of REASONS), or "kept" and the pair without its medium."""
    answer, pred = str(pair.chosen), line["pred"]
    if not pred.strip():
        return "empty", []
    if line["right"] is not False:
        return ("right" if line["right"] else "unclear"), []
    if answer == pred:
        return "same", []
    try:
        masked = tagged(answer, pred)
    except ValueError:
        return "tags", []
    if masked == (answer, pred):
        return "no_phrase", []
    made = {"perturbations": [*perturbations], "seed": line["seed"], "view": line["view"]}
    row = {"sample_id": pair.pair_id, "question": question(pair), "answer": answer, "pred": pred}
    return "kept", [row | {"answer_masked": masked[0], "pred_masked": masked[1], "made": made}]


def _leanpo_row(pair: PreferencePair, line: Mapping[str, Any]) -> tuple[str, list[dict[str, Any]]]:
    chosen, rejected = line["chosen"], line["rejected"]
    if not chosen.strip() or not rejected.strip():
        return "empty", []
    if chosen.strip() == rejected.strip():
        return "same", []
    made = {"perturbations": ["augment"], "seed": line["seed"], "view": line["view"], "first": line["first"]}
    row = {"id": pair.pair_id, "question": question(pair), "chosen": chosen, "rejected": rejected}
    return "kept", [row | {"made": made | {"truth": str(pair.chosen)}}]
