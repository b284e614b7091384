"""Preference pairs about one of several images, from rows about one image, as MIA-DPO makes them (arXiv 2410.17637).

A row's image is put among others of the data, the question is asked about it by its number, and the model's own wrong
answer is rejected where it looked at the other images too much and was not sure of its words; the true answer is
chosen. Layouts, numbers of images and wording are those of the authors' released notebooks; limits and what the
attention is taken from are those of their code. Their limits on perplexity, length ratio and edit distance after that
are not known: a pair says these numbers, and none is left out by them.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rapidfuzz.distance import Levenshtein

from diagnostics.errors import DataError, UserError
from diagnostics.files import disk_errors
from diagnostics.frames import FRAMES
from diagnostics.media import Media
from diagnostics.pairs import PreferencePair
from diagnostics.processes import hold
from diagnostics.tokenized import tokenize_prompts
from diagnostics.vision import collage
from diagnostics.vision.attention import Looked, look
from diagnostics.vision.placeholders import Qwen
from trainers.worlds.asked import LONGEST, Asking, Made, question, row_seed, start, untagged

# how many images, and in which share of the rows: the authors' notebooks for COCO
COUNTS = {
    "sequence": {2: 0.64, 3: 0.12, 4: 0.12, 5: 0.12},
    "grid": {2: 0.49, 3: 0.14, 4: 0.14, 6: 0.11, 9: 0.12},
}
MOST = {2: 0.8, 3: 0.7, 4: 0.6, 5: 0.6, 6: 0.6, 9: 0.6}  # largest share of attention; of 6 and 9 it is not known: ours
SURE, LONG = 1.1, 512  # perplexity above which an answer is kept; characters below which a true answer is


def mia(
    data: str,
    model: str,
    out: Path,
    *,
    form: str = "sequence",
    seed: int = 0,
    limit: int = LONGEST,
    split: str | None = None,
    frames: int = FRAMES,
    media_folder: str | None = None,
) -> Made:
    """Write out/pairs.jsonl (question, chosen, rejected, images) of the rows of data (image, question, answer) whose
    image was not looked at enough among others.

    form: "sequence", two to five images one after another; "grid", two to nine in one (models of the Qwen family alone:
    of no others it is known which of a picture's tokens show which part). `made` of a pair says the rows that are
    shown, the place of its own, and share, perplexity, length_ratio (characters, rejected over chosen) and
    edit_distance (of characters, over the longer one).
    """
    if form not in COUNTS:
        raise UserError(f"there is no form '{form}'. Give one of {', '.join(COUNTS)}.")
    with hold(out, "pairs mia"):
        work = start(out, data, model, "mia", seed, limit, split, frames, media_folder, kinds=("image",))
        if form == "grid" and not isinstance(work.tokenizer.family, Qwen):
            raise UserError(f"{model}: a grid is for Qwen2-VL, Qwen2.5-VL and Qwen3-VL. Give --form sequence.")
        work.settings |= {"form": form}
        by_row = {pair.source_row: pair for pair in work.pairs}
        images = list({pair.media[0].digest: pair for pair in work.pairs}.values())
        if len(images) < 2:
            raise DataError(f"{data}: all rows that can be asked show one image; several are needed.")

        def answer(group: Sequence[PreferencePair], draw: int) -> list[dict[str, Any]]:
            drawn = [_draw(pair, images, form, row_seed(seed, pair.source_row)) for pair in group]
            shown = [_shown([by_row[i] for i in d["rows"]], form) for d in drawn]
            asked = [_asked(question(p), d["place"], len(m)) for p, d, m in zip(group, drawn, shown, strict=True)]
            said = work.say(group, asked, shown, 0.0, draw)
            rows = zip(group, drawn, asked, shown, said, strict=True)
            return [
                {"row": p.source_row, **d, "pred": text, **_looked(work, p, q, m, text, d)} for p, d, q, m, text in rows
            ]

        return work.finish(answer, lambda pair, line: _row(work, by_row, pair, line, form), "pairs.jsonl")


def _draw(pair: PreferencePair, images: Sequence[PreferencePair], form: str, seed: int) -> dict[str, Any]:
    """rows: source rows whose images are shown, in order; place: of the pair's own among them, from 0."""
    draw = np.random.default_rng(seed)
    others = [p.source_row for p in images if p.media[0].digest != pair.media[0].digest]
    counts = {n: share for n, share in COUNTS[form].items() if n <= len(others) + 1}
    shares = np.array([*counts.values()])
    count = int(draw.choice([*counts], p=shares / shares.sum()))
    rows = [int(i) for i in draw.permutation([pair.source_row, *draw.choice(others, count - 1, replace=False)])]
    return {"rows": rows, "place": rows.index(pair.source_row)}


def _shown(pairs: Sequence[PreferencePair], form: str) -> tuple[Media, ...]:
    images = tuple(pair.media[0] for pair in pairs)
    return images if form == "sequence" else (collage.collage(images),)


def _asked(text: str, place: int, pictures: int) -> str:
    """The question about the image at a place, behind the tags of so many pictures."""
    said = untagged(text)
    named = [f"Image{k + 1}:<image>\n" for k in range(pictures)] if pictures > 1 else ["<image>\n"]
    return f"{''.join(named)}In Image{place + 1}, {said[:1].lower()}{said[1:]}"


def _looked(
    work: Asking, pair: PreferencePair, asked: str, media: tuple[Media, ...], said: str, drawn: Mapping[str, Any]
) -> dict[str, float]:
    """share: of the attention, that on the asked image: its mean weight over the sum of all images' means; perplexity:
    of the likeliest tokens of the answer. Empty where there is no answer."""
    answer = work.tokenizer(said, add_special_tokens=False)["input_ids"] if said.strip() else []
    if not answer:
        return {}
    family = work.tokenizer.family
    (prompt,) = tokenize_prompts([work.prompt(pair, asked, media)], work.tokenizer, [media])
    found = look(work.model, prompt, answer, media, family)
    collaged = len(media) == 1
    means = of_cells(found, media[0], family, len(drawn["rows"])) if collaged else found.of_media()
    perplexity = math.exp(-float(found.likeliest.mean()))
    return {"share": means[drawn["place"]] / sum(means), "perplexity": perplexity}


def of_cells(found: Looked, picture: Media, family: Qwen, count: int) -> list[float]:
    """The mean weight on the tokens whose middle lies in each of a collage's cells."""
    _, height, width = picture.shape()
    _, high, wide = family.grid("image", 1, (height, width))
    merge = family.config.vision_config.spatial_merge_size
    rows, columns = high // merge, wide // merge
    weights = found.attention.reshape(rows, columns).numpy(force=True)
    down, across = ((np.arange(n) + 0.5) / n * side for n, side in ((rows, height), (columns, width)))
    means = []
    for left, top, right, bottom in collage.cells(count):
        inside = weights[(down >= top) & (down < bottom)][:, (across >= left) & (across < right)]
        if not inside.size:
            raise DataError("the model's processor files make a picture too small to tell its parts apart.")
        means.append(float(inside.mean()))
    return means


def _row(
    work: Asking, by_row: Mapping[int, PreferencePair], pair: PreferencePair, line: Mapping[str, Any], form: str
) -> tuple[str, list[dict[str, Any]]]:
    truth, pred = str(pair.chosen), line["pred"]
    if "share" not in line:
        return "empty", []
    if truth.strip() == pred.strip():
        return "same", []
    if len(truth) >= LONG:
        return "long", []
    if line["perplexity"] <= SURE:
        return "sure", []
    if line["share"] > MOST[len(line["rows"])]:
        return "attended", []
    pairs = [by_row[i] for i in line["rows"]]
    made = {
        "form": form, "rows": [p.pair_id for p in pairs], "place": line["place"], "share": line["share"],
        "perplexity": line["perplexity"], "length_ratio": len(pred) / len(truth),
        "edit_distance": Levenshtein.normalized_distance(truth, pred),
    }  # fmt: skip
    images = [work.path(p) for p in pairs] if form == "sequence" else [_write(work, pair, pairs)]
    asked = _asked(question(pair), line["place"], len(images))
    return "kept", [
        {"id": pair.pair_id, "question": asked, "chosen": truth, "rejected": pred, "images": images, "made": made}
    ]


def _write(work: Asking, pair: PreferencePair, pairs: Sequence[PreferencePair]) -> str:
    """The collage of these, as a file; its path from the folder of the pairs."""
    place = work.out / "images" / f"{pair.source_row:06d}.png"
    place.parent.mkdir(exist_ok=True)
    with disk_errors(place):
        Image.fromarray(_shown(pairs, "grid")[0].frames()[0]).save(place)
    return str(place.relative_to(work.out))
