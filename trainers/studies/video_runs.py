"""What the two analyses on video have in common: their worlds, their runs, and how right a model's answers are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from diagnostics.errors import UserError
from diagnostics.sampling import answers
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.vision.prior import language_prior
from trainers.models import load_model, load_tokenizer, quiet
from trainers.studies.demo_runs import FACTS
from trainers.studies.paper_runs import Order, Trial, keys, worlds
from trainers.worlds import video, video_sets
from trainers.worlds.video_pairs import perturbed, row_seed

MASKED = ("mask", "local_shuffle")  # the perturbation of the clips that pairs are made of
# the standard run of the video world: equal keys, equal run
VIDEO: dict[str, Any] = FACTS | {
    "num_train_epochs": 1.0, "probe_pairs": 32, "heldout_pairs": 32, "probe_every": 3, "response_types": 0,
    "save_model": True,
}  # fmt: skip


def video_worlds(order: Order, settings: Mapping[str, Any]) -> list[Path]:
    """The world of each seed, with the pairs of both pipelines."""
    sizes = [settings[name] for name in ("SFT steps", "rows of clips", "clips held out", "share told in words")]
    name = "video-seed{}-" + "-".join(map(str, sizes))
    wanted = {name.format(seed): (video_sets.build, (seed, *sizes)) for seed in order.numbers}
    return list(worlds(order, wanted).values())


def video_bases(
    order: Order, settings: Mapping[str, Any], places: Sequence[Path], pipeline: str = "rrpo", *, told: bool = False
) -> list[Trial]:
    """The standard run on a pipeline's pairs, with their clips or told in words, at each seed."""
    standard = VIDEO | keys(settings)
    return [
        Trial({"seed": seed}, standard | video_sets.paths(place, pipeline, told=told) | {"seed": seed})
        for seed, place in zip(order.numbers, places, strict=True)
    ]


def given_videos(order: Order, settings: Mapping[str, Any]) -> list[Trial]:
    """The run of the given model on the given pairs, at each seed; a share of the pairs is held out."""
    if not order.data:
        raise UserError("at paper scale this analysis needs --data: pairs with their clips, in RRPO's shape or TRL's.")
    size = settings["pairs probed"]
    own = {"tokens": "none", "save_model": False, "probe_pairs": size, "heldout_pairs": size, "response_types": 0}
    base = keys(settings) | order.given | own
    return [Trial({"seed": seed}, base | {"seed": seed}) for seed in order.numbers]


def answered(model: str, seed: int, count: int) -> list[dict[str, float]]:
    """How a model answers the questions on `count` held-out clips of a world: right and perturbed, the shares of greedy
    answers that are the true ones on the clips, and on the clips masked and shuffled; seen: what the frames add to the
    true answers (language_prior, nats an answer, mean)."""
    policy, tokenizer, clips = *_loaded(model), video.draw_clips(count, seed, 2)
    clean = [clip.media() for clip in clips]
    shown = {"right": clean, "perturbed": [perturbed(m, MASKED, row_seed(seed, k)) for k, m in enumerate(clean)]}
    asked = [tokenizer.family.tags["video"] + clip.question for clip in clips]
    found = {name: _share(policy, tokenizer, asked, clips, [(m,) for m in media]) for name, media in shown.items()}
    rows = [
        video.example(clip, clip.question, (m,), tokenizer, tokenizer.family, str(k))
        for k, (clip, m) in enumerate(zip(clips, clean, strict=True))
    ]
    prior = language_prior(policy, rows, likelihood=TokenLikelihood.of(tokenizer), row="answer")
    return [found | {"seen": float(prior["seen"].to_numpy().mean())}]


def started(model: str, seed: int, count: int) -> pd.DataFrame:
    """What the model of a world can do before training, a row a kind of question: the shares of video.measure (`turned`
    is that of the reversed film's true answer), and told, the share that is right of the films in words."""
    policy, tokenizer, clips = *_loaded(model), video.draw_clips(count, seed, 2)
    shares = video.measure(policy, tokenizer, clips)
    rows = []
    for kind, found in shares.items():
        of = [clip for clip in clips if clip.kind == kind]
        told = _share(policy, tokenizer, [clip.told for clip in of], of, None)
        rows.append({"turned": float("nan")} | _named(found) | {"kind": kind, "told": told})
    return pd.DataFrame(rows)


def _named(shares: Mapping[str, float]) -> dict[str, float]:
    return {"turned" if name == "reversed, as reversed" else name: share for name, share in shares.items()}


def _share(policy: Any, tokenizer: Any, asked: list[str], clips: Sequence[video.Clip], media: Any) -> float:
    said = answers(policy, tokenizer, asked, temperature=0.0, limit=video.LONGEST, media=media)
    return sum(text == clip.answer for text, clip in zip(said, clips, strict=True)) / len(clips)


def _loaded(model: str) -> tuple[Any, Any]:
    quiet()
    return load_model(model), load_tokenizer(model)
