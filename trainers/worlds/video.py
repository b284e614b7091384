"""World V: small clips of moving shapes, questions about them, and a tiny video model trained on the spot to answer.

Four kinds of question: which object is shown (it moves), what it does (action), which of two comes first (order), how
many there are (count). What appears vanishes when the frames are reversed, and the first becomes the last, so action
and order can only be answered from the frames' order; `measure` says by numbers whether the model's answers depend on
it. (Which way something moves, a model of this size did not learn within 450 steps.)
The model is a Qwen2.5-VL of 0.2 million weights. It learns the two hinted forms of a question too (LeanPO's rounds,
trainers.worlds.video_pairs), of which it copies the hint. It can be taught to answer from the same film told in words
too, so that what training does to its answers can be compared with and without a clip.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from diagnostics import sequences
from diagnostics.logits import logps
from diagnostics.media import Media, of_frames
from diagnostics.progress import Steps
from diagnostics.sampling import answers
from diagnostics.token_ids import TokenIds
from diagnostics.token_likelihood import TokenLikelihood
from diagnostics.vision.placeholders import IMAGES, family_of
from trainers.worlds import lm
from trainers.worlds.video_pairs import HINT, REFLECT

COLOURS = {"red": (230, 40, 40), "green": (40, 200, 60), "blue": (50, 80, 240), "yellow": (235, 220, 50)}
SIZE = 6  # pixels of a shape's side
_inner, _middle = (np.isin(np.arange(SIZE), places) for places in ((1, 2, 3, 4), (2, 3)))
SHAPES = {
    "square": np.ones((SIZE, SIZE), bool),
    "cross": _middle[:, None] | _middle,
    "ring": ~(_inner[:, None] & _inner),
}
DOT = np.ones((2, 2), bool)  # what grows, and what is left of what shrinks
MOVES = {"left": (0, -1), "right": (0, 1), "up": (-1, 0), "down": (1, 0)}  # rows and columns of pixels a frame
ACTIONS = {"appears": "vanishes", "grows": "shrinks"}  # and what each becomes when the film runs backwards
ACTIONS |= {back: action for action, back in ACTIONS.items()}
COUNTS = ("one", "two", "three")
QUESTIONS = {
    "object": "what is shown ?",
    "action": "what does it do ?",
    "order": "which one comes first ?",
    "count": "what is the number of them ?",
}
ANSWERS = {
    "object": "the clip shows a {one} .",
    "action": "the {one} {action} .",
    "order": "first comes the {one} , then the {other} .",
    "count": "the number of them is {count} .",
}
FRAMES, SIDE = 8, 16  # of a clip; pixels of a frame's side
# redder to the right and greener to the bottom, so that a patch says where it is: the tower's positions are relative
_shade = np.linspace(0, 80, SIDE).astype(np.uint8)
GROUND = np.stack(np.broadcast_arrays(_shade, _shade[:, None], np.uint8(0)), -1)
STEPS, BATCH, RATE = 600, 32, 2e-3
TOLD = "Here are the frames in words : {film} . {question}"
NOTHING, SMALL = "nothing", "dot"  # what a film in words says of an empty frame, and of DOT
HINTED, REFLECTED = 0.05, 0.05  # shares of the supervised questions in the form of LeanPO's first and second round
ROWS, HELD_OUT, LONGEST = 320, 160, 16  # rows to make pairs of, and to measure on; tokens of an answer
PLACEHOLDERS = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")


@dataclass(frozen=True)
class Clip:
    """A clip with a question of a kind and its true answer. frames: (FRAMES, SIDE, SIDE, 3) uint8; seen: what each
    frame shows, in words."""

    kind: str
    frames: np.ndarray
    answer: str
    seen: tuple[str, ...]

    @property
    def question(self) -> str:
        """What is asked about it."""
        return QUESTIONS[self.kind]

    @property
    def told(self) -> str:
        """The question after every other frame in words: what is asked without the clip."""
        return TOLD.format(film=" , ".join(self.seen[::2]), question=self.question)

    def media(self) -> Media:
        """The clip as a model is shown it."""
        return of_frames(self.frames)


def draw_clip(kind: str, rng: np.random.Generator) -> Clip:
    """A clip of a kind: colours, shapes, places, action, number and the time of a change are drawn."""
    frames = GROUND + rng.integers(0, 20, (FRAMES, SIDE, SIDE, 3), dtype=np.uint8)
    (one, ink), (other, last) = ((f"{c} {s}", (c, s)) for c, s in zip(_two(COLOURS, rng), _two(SHAPES, rng)))
    seen = [one] * FRAMES
    said = {"one": one, "other": other, "action": str(rng.choice([*ACTIONS])), "count": str(rng.choice(COUNTS))}
    if kind == "count":
        seen = [" and ".join([one] * (1 + COUNTS.index(said["count"])))] * FRAMES
        for quarter in rng.permutation(4)[: COUNTS.index(said["count"]) + 1]:
            corner = SIDE // 2 * np.array(divmod(int(quarter), 2)) + rng.integers(0, 3, 2)
            for frame in frames:
                _paint(frame, *ink, corner)
    elif kind == "order":
        change = int(rng.integers(3, 6))
        seen = [one] * change + [other] * (FRAMES - change)
        for begin, end, which in ((0, change, ink), (change, FRAMES, last)):
            corner = rng.integers(0, SIDE - SIZE + 1, 2)
            for frame in frames[begin:end]:
                _paint(frame, *which, corner)
    elif kind == "action":
        change, corner = int(rng.integers(3, 6)), rng.integers(0, SIDE - SIZE + 1, 2)
        for k, frame in enumerate(frames):
            if (k >= change) == (said["action"] in ("appears", "grows")):
                _paint(frame, *ink, corner)
            elif said["action"] in ("grows", "shrinks"):
                seen[k] = f"{ink[0]} {SMALL}"
                _paint(frame, ink[0], SMALL, corner + 2)
            else:
                seen[k] = NOTHING
    else:
        step = np.array(MOVES[str(rng.choice([*MOVES]))])
        low, high = np.maximum(0, -step) * (FRAMES - 1), SIDE - SIZE - np.maximum(0, step) * (FRAMES - 1)
        corner = rng.integers(low, high + 1)
        for k, frame in enumerate(frames):
            _paint(frame, *ink, corner + k * step)
    return Clip(kind, frames, ANSWERS[kind].format(**said), tuple(seen))


def draw_clips(count: int, seed: int, part: int) -> list[Clip]:
    """`count` clips, of all kinds in turn. part: 0 to learn from, 1 to make pairs of, 2 held out."""
    rng, kinds = np.random.default_rng([seed, part]), [*QUESTIONS]
    return [draw_clip(kinds[k % len(kinds)], rng) for k in range(count)]


def build(
    folder: Path, seed: int, *, steps: int = STEPS, rows: int = ROWS, held_out: int = HELD_OUT, told: float = 0.0
) -> dict[str, Path]:
    """Write the world and return its paths: model, data (rows of video, question, answer, kind), heldout_data, losses.

    The losses (nats per answer token) are those of every step of the supervised training. told: see `train`.
    """
    found = paths(folder)
    model, tokenizer, losses = train(found["model"], seed, steps=steps, told=told)
    lm.save(model, tokenizer, found["model"])
    for name, count, part in (("data", rows, 1), ("heldout_data", held_out, 2)):
        write_rows(found[name], draw_clips(count, seed, part))
    found["losses"].write_text(json.dumps(losses), encoding="utf-8")
    return found


def paths(folder: Path) -> dict[str, Path]:
    """Where `build` writes what."""
    names = {"model": "model", "data": "rows.jsonl", "heldout_data": "heldout.jsonl", "losses": "losses.json"}
    return {name: folder / leaf for name, leaf in names.items()}


def write_rows(path: Path, clips: Sequence[Clip]) -> None:
    """Rows of id, video, question, answer, kind and told (the question after the film in words), and beside them a
    folder of clips as .npy."""
    place = path.with_suffix("")
    place.mkdir(parents=True, exist_ok=True)
    lines = []
    for k, clip in enumerate(clips):
        np.save(place / f"{k:04d}.npy", clip.frames)
        row = {"id": f"{path.stem}-{k:04d}", "video": f"{place.name}/{k:04d}.npy", "question": clip.question}
        lines.append(json.dumps(row | {"answer": clip.answer, "kind": clip.kind, "told": clip.told}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")


def train(
    folder: Path, seed: int, *, steps: int = STEPS, told: float = 0.0
) -> tuple[Qwen2_5_VLForConditionalGeneration, PreTrainedTokenizerFast, list[float]]:
    """The tiny video model after supervised training on fresh clips, its tokenizer, and the loss of every step.

    Minimises the mean negative log-prob of answer tokens, EOS included, with AdamW at lm's schedule; the vision tower
    is trained too. folder: where the processor file is written, from which the family reads how clips are prepared.
    told: the share of questions asked about the film in words, without the clip.
    """
    tokenizer = make_tokenizer(told=told > 0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / IMAGES).write_text(json.dumps({"size": {"shortest_edge": 64, "longest_edge": 4096}}), encoding="utf-8")
    model = make_model(tokenizer, seed)
    family: Any = family_of(model.config, str(folder))
    likelihood = TokenLikelihood(lm.pad_id(tokenizer), family=family)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lm.rate(step, steps))
    losses, batches = [], _batches(tokenizer, family, seed, told)
    model.train()
    with Steps("video model", steps) as counted:
        for _ in range(steps):
            batch = likelihood.collate(next(batches))
            loss = -logps(likelihood.run(model, batch)).mean()
            losses.append(lm.descend(model, loss, optimizer, schedule))
            counted.add(note=f"loss {losses[-1]:.3f}")
    return model.eval(), tokenizer, losses


def make_tokenizer(*, told: bool = False) -> PreTrainedTokenizerFast:
    """One token a word of the world, of its hints, and each placeholder; told: of its films in words too."""
    texts = [*QUESTIONS.values(), *ANSWERS.values(), HINT, REFLECT, *[TOLD, NOTHING, SMALL] * told]
    words = {w for text in texts for w in lm.words_of(text)} | {*COLOURS, *SHAPES, *ACTIONS, *COUNTS}
    tokenizer = lm.word_tokenizer(sorted(words))
    tokenizer.add_special_tokens({"additional_special_tokens": [*PLACEHOLDERS]})
    return tokenizer


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """A Qwen2.5-VL of two layers of text and two of vision, width 64, with random float32 weights.

    Matrices have a standard deviation of 1 / sqrt(inputs): with transformers' 0.02 at this width the answers read
    nothing from the clip for hundreds of steps. Rotary positions have base 10, so that a row or a column of patches
    turns them visibly.
    """
    text = {
        "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 512, "bos_token_id": None,
        "eos_token_id": lm.eos_id(tokenizer), "pad_token_id": lm.pad_id(tokenizer),
        "rope_parameters": {"rope_type": "default", "rope_theta": 10.0, "mrope_section": [2, 3, 3]},
    }  # fmt: skip
    vision = {
        "depth": 2, "hidden_size": 64, "intermediate_size": 128, "num_heads": 4, "patch_size": 4,
        "spatial_merge_size": 2, "temporal_patch_size": 2, "out_hidden_size": 64, "window_size": 16,
        "fullatt_block_indexes": [1], "tokens_per_second": 2,
    }  # fmt: skip
    names = ("vision_start_token_id", "vision_end_token_id", "image_token_id", "video_token_id")
    ids: dict[str, Any] = {name: tokenizer.get_vocab()[tag] for name, tag in zip(names, PLACEHOLDERS)}
    config = Qwen2_5_VLConfig(text_config=text, vision_config=vision, **ids)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Qwen2_5_VLForConditionalGeneration(config)
        for parameter in model.parameters():
            if parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
    return model


def measure(model: Any, tokenizer: Any, clips: Sequence[Clip]) -> dict[str, dict[str, float]]:
    """By kind of question, the share of greedy answers that are the true ones: on the clips, on the clips reversed, on
    grey frames and on another clip of the kind; and of action and order, the share that is true of the reversed film.
    """
    shown = {
        "clips": [c.frames for c in clips],
        "reversed": [c.frames[::-1] for c in clips],
        "grey": [np.full_like(c.frames, 20) for c in clips],
        "others": [_another(clips, k).frames for k in range(len(clips))],
    }
    found: dict[str, dict[str, float]] = {kind: {} for kind in QUESTIONS}
    for name, frames in shown.items():
        media = [(of_frames(np.ascontiguousarray(f)),) for f in frames]
        asked = [tokenizer.family.tags["video"] + c.question for c in clips]
        said = answers(model, tokenizer, asked, temperature=0.0, limit=LONGEST, media=media)
        for kind in QUESTIONS:
            rows = [(c, text) for c, text in zip(clips, said) if c.kind == kind]
            found[kind][name] = float(np.mean([text == c.answer for c, text in rows]))
            if name == "reversed" and kind in ("action", "order"):
                found[kind]["reversed, as reversed"] = float(np.mean([t == turned(c.answer) for c, t in rows]))
    return found


def turned(answer: str) -> str:
    """The true answer of an action or an order when the film runs backwards."""
    words = answer.split()
    if words[0] == "first":  # first comes the A , then the B .
        words[3:5], words[8:10] = words[8:10], words[3:5]
    return " ".join(ACTIONS.get(word, word) for word in words)


def _another(clips: Sequence[Clip], k: int) -> Clip:
    """The next clip of the same kind that has another answer."""
    others = (clips[(k + j) % len(clips)] for j in range(1, len(clips)))
    return next((c for c in others if c.kind == clips[k].kind and c.answer != clips[k].answer), clips[k])


def _batches(
    tokenizer: PreTrainedTokenizerFast, family: Any, seed: int, told: float
) -> Iterator[list[sequences.Example]]:
    """Endless batches of fresh clips with their true answers."""
    rng, kinds = np.random.default_rng([seed, 0]), [*QUESTIONS]
    while True:
        clips = [draw_clip(kinds[k % len(kinds)], rng) for k in range(BATCH)]
        yield [example(clip, *_asked(clip, rng, told), tokenizer, family) for clip in clips]


def _asked(clip: Clip, rng: np.random.Generator, told: float) -> tuple[str, tuple[Media, ...]]:
    """A question and what is shown with it: now and then in a hinted form, where what is quoted as the first reply is
    the answer to another clip, or after the film in words."""
    form, shown = rng.random(), (clip.media(),)
    if form < HINTED:
        return HINT.format(hint=clip.answer, question=clip.question), shown
    if form < HINTED + REFLECTED:
        reply = draw_clip(clip.kind, rng).answer
        return REFLECT.format(reply=reply, hint=clip.answer, question=clip.question), shown
    return (clip.told, ()) if form < HINTED + REFLECTED + told else (clip.question, shown)


def example(
    clip: Clip, asked: str, shown: tuple[Media, ...], tokenizer: Any, family: Any, name: str = ""
) -> sequences.Example:
    """The true answer of a clip to a question, with what is shown, as the row `answer`; name: its pair_id."""
    text = family.expand(family.tags["video"] + asked, shown) if shown else asked
    answer = TokenIds([*tokenizer(clip.answer)["input_ids"], lm.eos_id(tokenizer)])
    row = sequences.Sequence(TokenIds(tokenizer(text)["input_ids"]), answer, media=shown or None)
    return sequences.Example(name, 0, {"answer": row})


def _two(names: Any, rng: np.random.Generator) -> list[str]:
    """Two different names, drawn."""
    return [str(name) for name in rng.permutation([*names])[:2]]


def _paint(frame: np.ndarray, colour: str, shape: str, corner: Any) -> None:
    """Paint a shape into a frame; corner: its first row and column."""
    top, left = (int(n) for n in corner)
    drawn = SHAPES.get(shape, DOT)
    frame[top : top + len(drawn), left : left + len(drawn)][drawn] = COLOURS[colour]
