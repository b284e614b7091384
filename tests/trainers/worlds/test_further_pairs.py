"""VidChain's and MIA-DPO's pairs: the gap rule, layouts, and where the model looked, against transformers alone."""

import json
import math
from typing import Any

import numpy as np
import pandas as pd
import plain_vlms
import pytest
import torch
import vlms
from PIL import Image

import chesboard
from diagnostics.errors import UserError
from diagnostics.pairs import read_pairs
from diagnostics.sequences import Sequence
from diagnostics.vision import collage
from diagnostics.vision.attention import look
from diagnostics.vision.placeholders import family_of
from reports.sheet import write_sheet
from trainers.config import make_config
from trainers.run import train
from trainers.worlds import mia_pairs, points, vidchain_pairs

WORDS = ["up", "to the left", "still", "down , then up", "a red circle", "right"]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return vlms.tiny_tokenizer()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Six rows of one small image each."""
    folder = tmp_path_factory.mktemp("rows")
    lines = []
    for i, answer in enumerate(WORDS):
        Image.fromarray(vlms.media(i, size=(24 + 8 * i, 32)).frames()[0]).save(folder / f"{i}.png")
        lines.append({"id": f"r{i}", "image": f"{i}.png", "question": "<image>Which way ?", "answer": answer})
    (folder / "rows.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "rows.jsonl"


@pytest.fixture(scope="module", params=vlms.NAMES)
def folder(request: pytest.FixtureRequest, tokenizer: Any, tmp_path_factory: Any) -> Any:
    return vlms.save(request.param, tmp_path_factory.mktemp(request.param), tokenizer)


def lines(made: Any) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (made.path.parent / "answers.jsonl").read_text().splitlines()]


def run(monkeypatch: Any, *words: Any) -> None:
    monkeypatch.setattr("sys.argv", ["chesboard", *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        chesboard.main()
    assert not ended.value.code


# --- metrics ----------------------------------------------------------------------------------------------------


def test_points_of_words_and_of_times():
    assert points.words("The left , then up", "up the left") == pytest.approx(100 * 2 * 3 / (4 + 3))
    assert points.words("left", "right") == points.words("left", "") == 0
    assert points.spans("From 3 to 7 seconds , a man runs . 8.5 - 9s : he stops ; 7 to 3") == [(3, 7), (8.5, 9)]
    assert points.spans("0 to 4: he runs , at 5.5-6.25. Then") == [(0, 4), (5.5, 6.25)]
    assert points.spans("1:05 to 12:10 , 00:03 - 00:07 , 1.2.3 to 4 , " + "9" * 400 + " to " + "9" * 400) == []
    assert points.soda_d("he runs", "from 1 to 2") is None
    assert points.soda_d("from 1:05 to 12:10", "from 5 to 12") is None
    assert points.soda_d("from 0 to 4", "he runs") == 0


@pytest.mark.parametrize("seed", range(6))
def test_soda_d_is_the_best_matching_in_order(seed):
    """Against every matching that keeps the order, tried one by one."""
    draw = np.random.default_rng(seed)
    sides = [[sorted(map(float, draw.integers(0, 12, 2))) for _ in range(draw.integers(1, 5))] for _ in range(2)]
    wanted, given = ([(a, b + 1) for a, b in side] for side in sides)

    def best(i: int, j: int) -> float:
        if i == len(wanted) or j == len(given):
            return 0.0
        (a, b), (c, d) = wanted[i], given[j]
        shared = max(0.0, min(b, d) - max(a, c))
        own = shared / (b - a + d - c - shared)
        return max(own + best(i + 1, j + 1), best(i + 1, j), best(i, j + 1))

    texts = [" ; ".join(f"from {a} to {b} it moves" for a, b in side) for side in (wanted, given)]
    p, r = best(0, 0) / len(given), best(0, 0) / len(wanted)
    assert points.soda_d(*texts) == pytest.approx(100 * (2 * p * r / (p + r) if p + r else 0))


# --- VidChain ---------------------------------------------------------------------------------------------------


def test_every_two_answers_ten_points_apart_make_a_pair():
    pair = read_one({"id": "a", "question": "when ?", "chosen": "from 0 to 4", "rejected": "x"})
    line = {"answers": ["one", "two", "three"], "points": [50.0, 40.0, 45.0]}
    code, rows = vidchain_pairs._rows(pair, line, "words")
    assert code == "kept"
    assert [(r["id"], r["chosen"], r["rejected"], r["preference"]) for r in rows] == [("a-01", "one", "two", 10.0)]
    _, rows = vidchain_pairs._rows(pair, line | {"points": [0.0, 100.0, 20.0]}, "words")
    assert [(r["chosen"], r["rejected"]) for r in rows] == [("two", "one"), ("three", "one"), ("two", "three")]
    assert vidchain_pairs._rows(pair, line | {"points": [50.0, 40.1, 45.0]}, "words") == ("near", [])
    assert vidchain_pairs._rows(pair, line | {"points": [None, None, None]}, "soda_d") == ("unscored", [])
    assert vidchain_pairs._rows(pair, line | {"answers": ["one", " ", ""]}, "words") == ("empty", [])


def read_one(row: dict[str, Any]) -> Any:
    from diagnostics.pairs import PreferencePair

    return PreferencePair(row["id"], 0, row["question"], row["chosen"], row["rejected"])


@pytest.mark.parametrize("folder", ["llava"], indirect=True)
def test_vidchains_pairs_train(folder, data, tmp_path, monkeypatch, capsys):
    out = tmp_path / "v"
    monkeypatch.setattr(vidchain_pairs, "GAP", 1.0)  # random weights say next to no true word
    monkeypatch.setitem(points.METRICS, "words", lambda truth, answer: float(len(answer) % 7) * 5)
    run(monkeypatch, "pairs", "vidchain", data, "-m", folder, "--out", out, "--metric", "words", "--limit", 6)
    assert "rows gave a pair" in capsys.readouterr().out
    said = {line["row"]: line for line in map(json.loads, (out / "answers.jsonl").read_text().splitlines())}
    pairs = read_pairs(out / "pairs.jsonl").pairs
    assert len(pairs) > len({p.pair_id[:2] for p in pairs})  # more than one of a row
    for pair in pairs:
        line = said[int(pair.pair_id[1])]
        point = dict(zip(line["answers"], line["points"], strict=True))
        assert point[str(pair.chosen)] - point[str(pair.rejected)] >= 1
        assert pair.media[0].shape()[1] == 24 + 8 * int(pair.pair_id[1])
    sheet = (out / "sheet.html").read_text()
    shown = ", ".join(f"{p:.0f}" for p in said[int(pairs[0].pair_id[1])]["points"])
    assert f"{shown} of 100 by words; these two: {float(pairs[0].columns['preference']):.0f} apart" in sheet
    assert "<dt>true answer</dt>" in sheet
    assert "hint" not in sheet
    keys = {"model": str(folder), "data": str(out / "pairs.jsonl"), "output_dir": str(tmp_path / "run"), "max_steps": 1,
            "heldout_pairs": 0, "probe_pairs": 0, "report_to": "none"}  # fmt: skip
    train(make_config(keys))


def test_a_metric_must_be_named(folder, data, tmp_path):
    with pytest.raises(UserError, match="no metric 'soda_c'"):
        vidchain_pairs.vidchain(str(data), str(folder), tmp_path, metric="soda_c")


# --- where the model looks ----------------------------------------------------------------------------------------


def test_attention_is_that_of_an_eager_model(folder, tokenizer):
    """Against transformers' own output for the same row, of a model that was loaded with eager attention."""
    name = next(n for n in vlms.NAMES if n in folder.name)
    model = vlms.model_of(name, tokenizer)
    family: Any = family_of(model.config, str(folder))
    row = vlms.pair("a", family, tokenizer, (vlms.media(1), vlms.media(2, size=(64, 32))), "to the left", "up").chosen
    row = Sequence(row.prompt_ids, row.completion_ids[:-1], media=row.media)
    before = plain_vlms.logits(model, family, row)
    found = look(model, row.prompt_ids, row.completion_ids, row.media, family)
    assert torch.equal(plain_vlms.logits(model, family, row), before)  # what was switched is switched back
    model.set_attn_implementation("eager")
    with torch.no_grad():
        out = model(**plain_vlms.inputs(family, row), output_attentions=True)
    if hasattr(model.model, "rope_deltas"):
        model.model.rope_deltas = None
    token = model.config.image_token_id
    places = [i for i, t in enumerate(row.prompt_ids) if t == token]
    weights = out.attentions[1][0].mean(0)[len(row.prompt_ids) :, places].mean(0)
    assert torch.allclose(found.attention, weights.double(), atol=1e-6, rtol=0)  # its softmax is in float32
    assert sum(found.runs) == len(places)
    assert found.of_media()[1] == pytest.approx(float(weights[found.runs[0] :].mean()))
    assert torch.allclose(found.likeliest, before.log_softmax(-1).amax(-1), atol=1e-9)


def test_a_collages_cells_hold_its_images():
    for count in collage.COLUMNS:
        images = [vlms.media(i, size=(40, 20 + i)) for i in range(count)]
        whole = collage.collage(images).frames()[0]
        for item, (left, top, *_) in zip(images, collage.cells(count), strict=True):
            left, top = int(left), int(top)
            picture = Image.fromarray(item.frames()[0])
            scaled = picture.resize((int(picture.width * 448 / 40), 448), Image.Resampling.LANCZOS)
            inside = slice(left, left + scaled.width)
            assert np.array_equal(whole[top + 12 : top + 448, inside], np.asarray(scaled)[12:])  # under its letters
            assert (whole[top - 40 : top, left : left + 200] < 128).any()  # its name
        assert (whole[0:40, -20:] == 255).all()


def test_weights_in_a_grid_are_those_of_the_cell(tokenizer, tmp_path):
    """Weight on the tokens of one cell alone is that cell's."""
    from diagnostics.vision.attention import Looked

    vlms.save("qwen25", tmp_path, tokenizer)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"size": {"shortest_edge": 64, "longest_edge": 2**18}})
    )
    family: Any = family_of(vlms.config_of("qwen25", tokenizer), str(tmp_path))
    picture = collage.collage([vlms.media(i) for i in range(4)])
    _, high, wide = family.grid("image", 1, picture.shape()[1:])
    weights = torch.zeros(high // 2, wide // 2)
    weights[: high // 4, wide // 4 :] = 1  # the right upper quarter
    found = Looked(weights.flatten(), (weights.numel(),), torch.zeros(1))
    means = mia_pairs.of_cells(found, picture, family, 4)
    assert means[1] > 0.9
    assert max(means[0], means[2], means[3]) < 0.1


# --- MIA-DPO ------------------------------------------------------------------------------------------------------


def test_answers_that_looked_elsewhere_are_rejected(folder, data, tmp_path, monkeypatch):
    made = mia_pairs.mia(str(data), str(folder), tmp_path / "m", limit=6, seed=2)
    said = {line["row"]: line for line in lines(made)}
    audit = pd.read_parquet(tmp_path / "m" / "audit.parquet").set_index("source_row")["code"]
    limits = {2: 0.8, 3: 0.7, 4: 0.6, 5: 0.6}
    for row, line in said.items():
        assert line["rows"][line["place"]] == row
        assert len(set(line["rows"])) == len(line["rows"]) in limits
        if "share" in line:
            kept = line["share"] <= limits[len(line["rows"])] and line["perplexity"] > 1.1
            assert (audit[row] == "kept") == (kept and line["pred"].strip() != WORDS[row])
    pairs = read_pairs(made.path).pairs
    assert len(pairs) == made.counts["kept"] > 0
    for pair in pairs:
        line, record = said[int(pair.pair_id[1])], pair.columns["made"]
        heights = [m.shape()[1] for m in pair.media]
        assert heights == [24 + 8 * i for i in line["rows"]]
        assert str(pair.prompt).endswith(f"In Image{line['place'] + 1}, which way ?")
        assert str(pair.prompt).count("<image>") == len(heights)
        assert (pair.chosen, pair.rejected) == (WORDS[int(pair.pair_id[1])], line["pred"])
        assert record["share"] == line["share"]
        assert math.isclose(record["length_ratio"], len(line["pred"]) / len(str(pair.chosen)))
    sheet = write_sheet(made, 16).read_text()
    assert sheet.count("data:image/png") == sum(len(p.media) for p in pairs)
    assert f"{pairs[0].columns['made']['share']:.0%} of the images&#x27; attention on Image" in sheet
    keys = {"model": str(folder), "data": str(made.path), "output_dir": str(tmp_path / "run"), "max_steps": 1,
            "heldout_pairs": 0, "probe_pairs": 0, "report_to": "none"}  # fmt: skip
    train(make_config(keys))


def test_why_a_row_gives_no_pair():
    pair = read_one({"id": "a", "question": "who ?", "chosen": "a cat", "rejected": "x"})
    line = {"rows": [0, 1], "place": 0, "pred": "a dog", "share": 0.81, "perplexity": 1.2}
    tried = {
        "attended": {}, "sure": {"perplexity": 1.1, "share": 0.1}, "same": {"pred": "a cat "},
    }  # fmt: skip
    for code, changed in tried.items():
        assert mia_pairs._row(None, {}, pair, line | changed, "sequence") == (code, [])  # pyright: ignore[reportArgumentType]
    long = read_one({"id": "a", "question": "who ?", "chosen": "c" * 512, "rejected": "x"})
    assert mia_pairs._row(None, {}, long, line, "sequence") == ("long", [])  # pyright: ignore[reportArgumentType]


def test_grids_are_for_models_whose_tokens_have_a_place(folder, data, tmp_path):
    if "qwen" not in folder.name:
        with pytest.raises(UserError, match="Give --form sequence"):
            mia_pairs.mia(str(data), str(folder), tmp_path, form="grid")
        return
    (folder / "preprocessor_config.json").write_text(json.dumps({"size": {"shortest_edge": 64, "longest_edge": 2**13}}))
    made = mia_pairs.mia(str(data), str(folder), tmp_path / "g", form="grid", limit=6)
    for pair in read_pairs(made.path).pairs:
        (picture,) = pair.media
        count = len(pair.columns["made"]["rows"])
        assert picture.shape()[1:] == tuple(int(max(c[k] for c in collage.cells(count))) for k in (3, 2))
        assert 0 < pair.columns["made"]["share"] <= mia_pairs.MOST[count]


@pytest.mark.parametrize("folder", ["qwen25"], indirect=True)
def test_a_question_that_leaves_no_room_is_one_row_left_out(folder, data, tmp_path):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[2]["question"] = "which way " * 400
    (data.parent / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = mia_pairs.mia(str(data.parent / "long.jsonl"), str(folder), tmp_path / "m", limit=4)
    assert made.counts == {"kept": 5, "no_room": 1}
    assert "1 no_room (the prompt leaves the model no room to answer)" in made.said()
    audit = pd.read_parquet(tmp_path / "m" / "audit.parquet").set_index("source_row")
    assert "leaves a model of 512 no room to answer" in str(audit.loc[2, "reason"])


# --- frames that a model drops --------------------------------------------------------------------------------------


def test_a_clip_that_smolvlm_would_drop_is_left_out_with_a_reason(tokenizer, tmp_path):
    from trainers.worlds import video_pairs

    folder = vlms.save("smolvlm", tmp_path / "model", tokenizer)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_image_splitting": False, "do_normalize": False}))
    clips = [vlms.media(i, 3).frames() for i in range(3)]
    clips[1][2] = 0
    rows = []
    for i, clip in enumerate(clips):
        np.save(tmp_path / f"{i}.npy", clip)
        rows.append({"id": f"r{i}", "video": f"{i}.npy", "question": "which way ?", "answer": "up"})
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for kind in ("rrpo", "leanpo"):
        found = getattr(video_pairs, kind)(str(tmp_path / "rows.jsonl"), str(folder), tmp_path / kind, limit=4)
        audit = pd.read_parquet(tmp_path / kind / "audit.parquet").set_index("source_row")
        assert audit.loc[1, "code"] == "media_unseen"
        assert "all zeros" in str(audit.loc[1, "reason"])
        assert found.counts["media_unseen"] == 1
        assert sum(found.counts.values()) == 3
