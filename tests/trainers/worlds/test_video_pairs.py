"""Pairs of a video model's own answers: what is recorded gives the clips again, what is done is kept, RRPO trains."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import chesboard
from diagnostics.errors import DataError, UserError
from diagnostics.media import of_frames
from diagnostics.pairs import PreferencePair, read_pairs
from diagnostics.phrases import from_tags
from diagnostics.runlog import read_run
from diagnostics.templates import find_turn
from diagnostics.tokenized import tokenize_pairs, tokenize_prompts
from reports.sheet import write_sheet
from trainers.config import make_config
from trainers.run import train
from trainers.worlds import asked, video, video_pairs


@pytest.fixture(scope="module")
def world(tmp_path_factory: Any) -> dict[str, Path]:
    """A model that has learned the answers' words and little of the clips."""
    return video.build(tmp_path_factory.mktemp("world"), 0, steps=40, rows=20, held_out=4)


@pytest.fixture(scope="module")
def made(world: dict[str, Path], tmp_path_factory: Any) -> asked.Made:
    out = tmp_path_factory.mktemp("made") / "rrpo"
    return video_pairs.rrpo(str(world["data"]), str(world["model"]), out, limit=16, seed=3)


def lines(made: asked.Made) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made.path.parent / "answers.jsonl").read_text().splitlines()]


def test_wrong_answers_become_rrpos_rows(world, made):
    rows = json.loads(made.path.read_text())
    truth = {r["id"]: r for r in map(json.loads, world["data"].read_text().splitlines())}
    assert sum(made.counts.values()) == 20
    assert len(rows) == made.counts["kept"] > 3
    for row in rows:
        assert row["answer"] == truth[row["sample_id"]]["answer"] != row["pred"]
        assert from_tags(row["answer_masked"])[0] == row["answer"]
        assert from_tags(row["pred_masked"])[0] == row["pred"]
        assert row["answer_masked"].count("<MASK>") == row["pred_masked"].count("<MASK>") > 0
    audit = pd.read_parquet(made.path.parent / "audit.parquet")
    assert audit["source_row"].tolist() == [*range(20)]
    assert audit["code"].value_counts().to_dict() == made.counts
    right = [line["row"] for line in lines(made) if line["right"]]
    assert audit.loc[audit["code"] == "right", "source_row"].tolist() == right


def test_pairs_train_on_the_clean_clip(world, made):
    shown = {p.columns["id"] if "id" in p.columns else p.pair_id: p.media[0] for p in read_pairs(made.path).pairs}
    for clip_id, medium in shown.items():
        clean = np.load(world["data"].parent / "rows" / f"{clip_id.split('-')[1]}.npy")
        assert np.array_equal(medium.frames(), clean)


def test_what_is_recorded_gives_the_perturbed_clip_again(made):
    """Grey where the recorded box says, in the recorded order of frames, nothing else."""
    for pair in read_pairs(made.path).pairs:
        record, clean = pair.columns["made"], pair.media[0].frames()
        box, order = record["view"]
        wide, tall, left, top = (int(n) for n in re.findall(r"box (\d+) x (\d+) at \((\d+), (\d+)\)", box)[0])
        expected = clean.copy()
        expected[:, top : top + tall, left : left + wide] = 128
        expected = expected[[int(n) for n in order.split("order ")[1].split()]]
        again = video_pairs.perturbed(pair.media[0], record["perturbations"], record["seed"])
        assert np.array_equal(again.frames(), expected)
        assert not np.array_equal(again.frames(), clean)


def test_a_start_goes_on_where_another_ended(world, made, tmp_path, monkeypatch):
    """A first group and half a line are kept; only the other rows are asked, and every byte is the same."""
    whole = made.path.parent / "answers.jsonl"
    kept = whole.read_text().splitlines(keepends=True)
    (tmp_path / "config.json").write_text((made.path.parent / "config.json").read_text())
    (tmp_path / "answers.jsonl").write_text("".join(kept[:18]) + kept[18][:20])
    counts = []
    plain = asked.answers
    monkeypatch.setattr(asked, "answers", lambda m, t, p, **how: counts.append(len(p)) or plain(m, t, p, **how))
    again = video_pairs.rrpo(str(world["data"]), str(world["model"]), tmp_path, limit=16, seed=3)
    assert counts == [20 - asked.TOGETHER]
    assert (tmp_path / "answers.jsonl").read_text() == whole.read_text()
    assert again.counts == made.counts
    with pytest.raises(UserError, match="another seed"):
        video_pairs.rrpo(str(world["data"]), str(world["model"]), tmp_path, limit=16, seed=4)


def test_rrpo_trains_on_them_from_ln_2(world, made, tmp_path):
    keys = {
        "model": str(world["model"]), "data": str(made.path), "output_dir": str(tmp_path / "run"), "objective": "rrpo",
        "learning_rate": 3e-4, "per_device_train_batch_size": 4, "heldout_pairs": 0, "probe_pairs": 0, "max_steps": 3,
        "alpha": 0.5, "beta": 0.1, "report_to": "none",
    }  # fmt: skip
    log = read_run(train(make_config(keys)))
    assert len(log.audit) == made.counts["kept"]
    assert (log.audit["status"] == "kept").all()
    seen = log.pairs[log.pairs["split"] == "train"]
    start, end = (seen[seen["step"] == step] for step in (1, 3))
    assert start["loss"].tolist() == pytest.approx([math.log(2)] * 4, abs=1e-6)
    assert start["chosen_kl"].tolist() == pytest.approx([0.0] * 4, abs=1e-9)
    margins = end["chosen_rewards"] - end["rejected_rewards"]
    expected = np.logaddexp(0, -margins) + 0.5 * end["chosen_kl"]  # -log sigmoid(margin) + alpha * KL
    assert end["loss"].tolist() == pytest.approx(expected.tolist(), rel=1e-5)
    assert (end["chosen_kl"] > 1e-4).all()


def test_leanpo_joins_hinted_and_augmented_answers(world, tmp_path):
    made = video_pairs.leanpo(str(world["data"]), str(world["model"]), tmp_path / "l", limit=16, seed=1)
    said, pairs = lines(made), read_pairs(made.path).pairs
    truth = [json.loads(line) for line in world["data"].read_text().splitlines()]
    by_id = {truth[line["row"]]["id"]: line for line in said}
    assert len(pairs) == made.counts["kept"]
    for pair in pairs:
        line = by_id[pair.pair_id]
        assert (pair.chosen, pair.rejected) == (line["chosen"], line["rejected"])
        assert pair.chosen != pair.rejected
        assert pair.prompt in video.QUESTIONS.values()  # neither hints nor the first reply are trained on
    left = [line for line in said if not line["rejected"].strip() or line["rejected"].strip() == line["chosen"].strip()]
    assert len(said) - len(left) == len(pairs)
    assert '<img alt="original' in write_sheet(made, 16).read_text()


def test_the_sheet_shows_both_clips_and_marks_phrases(made):
    page = write_sheet(made, 16).read_text()
    assert page.count("data:image/png") == 2 * min(24, made.counts["kept"])
    assert "<mark>" in page
    assert "&lt;MASK" not in page
    changed = made.path.with_name("other.json")
    rows = json.loads(made.path.read_text())
    rows[0]["made"]["seed"] += 1
    changed.write_text(json.dumps(rows))
    with pytest.raises(DataError, match="does not give the recorded clip"):
        write_sheet(asked.Made(changed, made.counts), 16)


def test_the_command_says_what_was_kept_and_why_not(world, made, tmp_path, monkeypatch, capsys):
    rows = [json.loads(line) for line in world["data"].read_text().splitlines()]
    rows[2]["video"] = "rows/none.npy"
    data = world["data"].with_name("one-missing.jsonl")
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for _ in range(2):  # the second finds all answers there
        words = ["pairs", "rrpo", data, "-m", world["model"], "--out", tmp_path, "--limit", 16, "--seed", 3]
        monkeypatch.setattr("sys.argv", ["chesboard", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            chesboard.main()
        assert not ended.value.code
        said = " ".join(capsys.readouterr().out.split())
        assert re.search(r"\d+ of 20 rows gave a pair; left out: .*1 media_missing", said)
        assert (tmp_path / "sheet.html").exists()
    audit = pd.read_parquet(tmp_path / "audit.parquet").set_index("source_row")
    assert audit.loc[2, "code"] == "media_missing"
    assert "none.npy" in str(audit.loc[2, "reason"])


def test_seeds_are_a_rows_own_and_augmentations_keep_small_frames():
    assert asked.row_seed(0, 5) == asked.row_seed(0, 5)
    assert len({asked.row_seed(a, b) for a in range(3) for b in range(50)}) == 150
    small = of_frames(np.zeros((2, 16, 24, 3), np.uint8))
    assert video_pairs.perturbed(small, ["augment"], 0).shape() == (2, 16, 16)


def test_what_cannot_be_asked_is_said(world, tmp_path):
    with pytest.raises(UserError, match="no perturbation 'blur'"):
        video_pairs.rrpo(str(world["data"]), str(world["model"]), tmp_path / "a", perturbations=["blur"])
    text = tmp_path / "text.jsonl"
    text.write_text(json.dumps({"question": "why ?", "answer": "so"}) + "\n")
    with pytest.raises(DataError, match="no row can be asked; of the first: it shows 0 images and clips"):
        video_pairs.rrpo(str(text), str(world["model"]), tmp_path / "b")


TEMPLATE = (
    "{% for m in messages %}{{ m.role }} : {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}"
    "{% if p.type == 'video' %}<|vision_start|><|video_pad|><|vision_end|>{% else %}{{ p.text }}{% endif %}{% endfor %}"
    "{% endif %}<eos>{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}"
)


@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_a_question_is_asked_as_it_is_trained_on(world, made, tmp_path, template):
    """The same ids, as plain text and through a chat template."""
    start = (str(world["data"]), str(world["model"]), "rrpo", 0, 16, None, 16, None)
    work = asked.start(tmp_path, *start)
    work.tokenizer.chat_template = template
    work.turn = find_turn(work.tokenizer) if template else None
    pairs = {p.pair_id: p for p in read_pairs(made.path).pairs}
    trained: Any = tokenize_pairs(list(pairs.values()), work.tokenizer, max_length=None, truncation="drop")
    trained = {e.pair_id: e for e in trained}
    for pair in work.pairs:
        if pair.pair_id in pairs:
            prompt = work.prompt(pair, str(pair.prompt), pair.media)
            (ids,) = tokenize_prompts([prompt], work.tokenizer, [pair.media])
            assert ids == trained[pair.pair_id].prompt_ids
            opened = work.tokenizer.convert_tokens_to_ids("<|vision_start|>") in list(ids)
            assert opened == bool(template)


def test_rows_that_cannot_be_asked_are_left_out_with_a_reason(world, tmp_path):
    """One row never stops the others: each of these once ended the command, or was left out for another reason."""
    good = json.loads(world["data"].read_text().splitlines()[0])
    good["video"] = str(world["data"].parent / good["video"])
    np.save(tmp_path / "thin.npy", np.full((2, 1, 300, 3), 9, np.uint8))
    rows = [
        good,
        good | {"id": "thin", "video": "thin.npy"},
        good | {"id": "blank", "answer": " "},
        good | {"id": "own", "answer": "left <|video_pad|>"},
        good | {"id": "tags", "answer": "<image> and <video> <video>"},  # quoted in LeanPO's prompts
    ]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    left = ["placeholders", "no_truth", "placeholders"]
    for kind in ("rrpo", "leanpo"):
        found = getattr(video_pairs, kind)(str(data), str(world["model"]), tmp_path / kind, limit=8)
        audit = pd.read_parquet(found.path.parent / "audit.parquet")
        assert audit["code"].tolist()[1:4] == left
        assert "more than 200 times" in audit["reason"][1]
        assert audit["code"][4] in ("kept", "same", "empty")
        assert sum(found.counts.values()) == 5


def test_an_answer_with_tags_is_no_answer_without_a_phrase():
    pair = PreferencePair("a", 0, "which way ?", "to the left", "x")
    line = {"pred": "to the <MASK> right </MASK>", "right": False, "seed": 0, "view": []}
    assert video_pairs._rrpo_row(pair, line, ()) == ("tags", [])
    assert video_pairs._rrpo_row(pair, line | {"pred": "to the left now"}, ()) == ("no_phrase", [])
