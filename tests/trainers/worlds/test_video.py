"""World V: clips show what their answers say, a seed fixes them, and the model learns from the first steps."""

import json

import numpy as np
import pytest

from diagnostics.pairs.rows import read_rows
from trainers.models import load_model, load_tokenizer
from trainers.worlds import lm, video


def places(frame: np.ndarray, colour: str) -> np.ndarray:
    """Rows and columns of the pixels of a colour."""
    return np.argwhere((frame == video.COLOURS[colour]).all(-1))


def test_a_seed_fixes_the_clips_and_parts_differ():
    one, same, other = (video.draw_clips(8, 0, part) for part in (1, 1, 2))
    assert all(np.array_equal(a.frames, b.frames) and a.answer == b.answer for a, b in zip(one, same))
    assert not any(np.array_equal(a.frames, b.frames) for a in one for b in other)
    assert [c.kind for c in one] == [*video.QUESTIONS] * 2


def test_clips_show_what_their_answers_say():
    seen = set()
    for clip in video.draw_clips(200, 3, 1):
        words = clip.answer.split()
        place = next((i for i, word in enumerate(words) if word in video.COLOURS), None)
        if clip.kind == "count":
            ink = next(c for c in video.COLOURS if len(places(clip.frames[0], c)))
            sizes = [len(places(f, ink)) for f in clip.frames]
            assert len(set(sizes)) == 1
            count = video.COUNTS.index(words[5]) + 1
            assert any(sizes[0] == count * m.sum() for m in video.SHAPES.values())
            continue
        assert place is not None
        colour, shape = words[place : place + 2]
        first, last = places(clip.frames[0], colour), places(clip.frames[-1], colour)
        if clip.kind == "order":
            other = words[8]
            assert len(first) == video.SHAPES[shape].sum()
            assert not len(last)
            assert not len(places(clip.frames[0], other))
            assert len(places(clip.frames[-1], other)) == video.SHAPES[words[9]].sum()
        elif clip.kind == "action":
            sizes = [len(places(f, colour)) for f in clip.frames]
            small, whole = 0 if words[3] in ("appears", "vanishes") else 4, video.SHAPES[shape].sum()
            assert {*sizes} == {small, whole}
            assert sizes == sorted(sizes, reverse=words[3] in ("vanishes", "shrinks"))
            seen.add(words[3])
        else:
            moved = (last.mean(0) - first.mean(0)) / (video.FRAMES - 1)
            assert tuple(moved) in [pytest.approx(step) for step in video.MOVES.values()]
    assert seen == {*video.ACTIONS}


def test_a_film_in_words_tells_what_its_frames_show():
    tokenizer = video.make_tokenizer(told=True)
    unknown = tokenizer.convert_tokens_to_ids(lm.UNKNOWN)
    for clip in video.draw_clips(80, 4, 1):
        for frame, words in zip(clip.frames, clip.seen):
            inks = {c for c in video.COLOURS if len(places(frame, c))}
            assert inks == {w for w in words.split() if w in video.COLOURS}
            drawn = 0 if words == video.NOTHING else len(words.split(" and "))
            size = {"dot": 4} | {name: int(mask.sum()) for name, mask in video.SHAPES.items()}
            assert sum(len(places(frame, c)) for c in inks) == drawn * size.get(words.split()[-1], 0)
        assert [words in clip.told for words in clip.seen[::2]] == [True] * 4
        assert unknown not in tokenizer(clip.told)["input_ids"]
        assert len(clip.told.split(" , ")) == 4


def test_the_film_backwards():
    assert video.turned("the red ring appears .") == "the red ring vanishes ."
    assert video.turned("first comes the red ring , then the blue cross .") == (
        "first comes the blue cross , then the red ring ."
    )


def test_shapes_can_be_told_apart():
    masks = list(video.SHAPES.values())
    assert len({m.tobytes() for m in masks}) == len(masks)
    assert all(m.shape == (video.SIZE, video.SIZE) and m.any(0).all() and m.any(1).all() for m in masks)


def test_every_word_has_a_token_of_its_own():
    tokenizer = video.make_tokenizer()
    unknown = tokenizer.convert_tokens_to_ids(lm.UNKNOWN)
    for clip in video.draw_clips(40, 0, 1):
        for text in (clip.answer, clip.question, video.HINT.format(hint=clip.answer, question=clip.question)):
            ids = tokenizer(text)["input_ids"]
            assert unknown not in ids
            assert tokenizer.decode(ids) == " ".join(lm.words_of(text))


def test_a_world_is_written_and_its_model_learns(tmp_path):
    found = video.build(tmp_path, 0, steps=8, rows=8, held_out=4)
    losses = json.loads(found["losses"].read_text())
    assert len(losses) == 8
    assert losses[-1] < losses[0] - 1
    rows = read_rows(str(found["data"])).rows
    assert [r["told"] for r in rows] == [c.told for c in video.draw_clips(8, 0, 1)]
    clips = video.draw_clips(8, 0, 1)
    assert [r["answer"] for r in rows] == [c.answer for c in clips]
    assert np.array_equal(np.load(tmp_path / rows[3]["video"]), clips[3].frames)
    model, tokenizer = load_model(str(found["model"])), load_tokenizer(str(found["model"]))
    again, _, same = video.train(tmp_path / "again", 0, steps=8)
    assert same == losses
    assert all((a == b).all() for a, b in zip(model.parameters(), again.parameters()))
    shares = video.measure(model, tokenizer, clips)
    assert {*shares} == {*video.QUESTIONS}
    assert all(0 <= share <= 1 for found in shares.values() for share in found.values())
