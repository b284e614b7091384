"""Preference pairs of a video model's own answers by a metric, as VidChain makes them (arXiv 2501.06761, AAAI 2025).

Of three answers that are drawn for a row, every two whose points differ by ten of a hundred or more make a pair; the
better one is chosen. So the authors' code does it, with SODA's F-measure c (overlap in time times METEOR) of dense
captions. METEOR, their tasks' data and prompts, and the temperature of their samples are not here: the metric is named
by who asks for pairs, and what is asked are the data's own questions.
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

from diagnostics.errors import UserError
from diagnostics.frames import FRAMES
from diagnostics.pairs import PreferencePair
from diagnostics.processes import hold
from trainers.worlds.asked import LONGEST, Made, question, row_seed, start
from trainers.worlds.points import METRICS

SAMPLES, GAP = 3, 10.0  # answers drawn for a row; points of 100 by which two of them must differ
HEAT = 1.0  # temperature of the samples: ours


def vidchain(
    data: str,
    model: str,
    out: Path,
    *,
    metric: str,
    temperature: float = HEAT,
    seed: int = 0,
    limit: int = LONGEST,
    split: str | None = None,
    frames: int = FRAMES,
    media_folder: str | None = None,
) -> Made:
    """Write out/pairs.jsonl (question, chosen, rejected, media_path): every two of three drawn answers to a row's
    question whose points by `metric` (a word of METRICS) differ by ten or more. `made` of a pair says all answers and
    points."""
    if metric not in METRICS:
        raise UserError(f"there is no metric '{metric}'. Give one of {', '.join(METRICS)}.")
    with hold(out, "pairs vidchain"):
        work = start(out, data, model, "vidchain", seed, limit, split, frames, media_folder)
        work.settings |= {"metric": metric, "temperature": temperature}

        def answer(group: Sequence[PreferencePair], draw: int) -> list[dict[str, Any]]:
            asked, shown = [question(p) for p in group], [p.media for p in group]
            drawn = [work.say(group, asked, shown, temperature, row_seed(draw, k)) for k in range(SAMPLES)]
            rows = zip(group, zip(*drawn, strict=True), strict=True)
            return [
                {"row": p.source_row, "answers": [*said], "points": [METRICS[metric](str(p.chosen), a) for a in said]}
                for p, said in rows
            ]

        return work.finish(answer, lambda pair, line: _rows(pair, line, metric), "pairs.jsonl")


def _rows(pair: PreferencePair, line: Mapping[str, Any], metric: str) -> tuple[str, list[dict[str, Any]]]:
    answers, points, rows = line["answers"], line["points"], []
    if sum(p is not None for p in points) < 2:
        return "unscored", []
    if sum(bool(a.strip()) for a in answers) < 2:
        return "empty", []
    for two in combinations(range(SAMPLES), 2):
        if any(points[k] is None or not answers[k].strip() for k in two):
            continue
        low, high = sorted(two, key=points.__getitem__)
        if points[high] - points[low] >= GAP:
            made = {"metric": metric, "answers": answers, "points": points, "truth": str(pair.chosen)}
            sides = {"chosen": answers[high], "rejected": answers[low]}
            row = {"id": f"{pair.pair_id}-{two[0]}{two[1]}", "question": question(pair)}
            rows.append(row | sides | {"preference": points[high] - points[low], "made": made})
    return ("kept" if rows else "near"), rows
