"""Images and clips of rows: where they stand, in which order, and what refuses a row."""

import base64
import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from diagnostics import frames
from diagnostics.errors import DataError
from diagnostics.fingerprint import data_hash
from diagnostics.pairs import PairTable, PreferencePair, read_pairs, write_rows
from diagnostics.pairs import media as media_module
from diagnostics.pairs.write import media_left_behind

BLUE = [{"role": "assistant", "content": "Blue."}]
RED = [{"role": "assistant", "content": "Red."}]
TEXT = {"chosen": "Blue.", "rejected": "Red."}
CHAT = {"chosen": BLUE, "rejected": RED}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images 0.png, 1.png, 2.png of these greys, a gif and two folders of frames."""
    for grey in range(3):
        Image.new("RGB", (4, 2), (grey,) * 3).save(tmp_path / f"{grey}.png")
    for name, count in (("clip", 3), ("long", 40)):
        (tmp_path / name).mkdir()
        for k in range(count):
            Image.new("RGB", (4, 2), (k,) * 3).save(tmp_path / name / f"f{k}.png")
    (tmp_path / "none").mkdir()
    stills = [Image.new("L", (4, 2), 50 * k) for k in range(3)]
    stills[0].save(tmp_path / "a.gif", save_all=True, append_images=stills[1:])
    np.save(tmp_path / "a.npy", np.full((3, 2, 4, 3), 9, np.uint8))
    (tmp_path / "bad.png").write_bytes((tmp_path / "0.png").read_bytes()[:-20])
    return tmp_path


def read(folder: Path, *rows: dict[str, Any], **how: Any) -> PairTable:
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return read_pairs(folder / "pairs.jsonl", **how)


def one(folder: Path, **row: Any) -> PreferencePair:
    return read(folder, row).pairs[0]


def greys(pair: PreferencePair) -> list[list[int]]:
    """The grey of every frame of every medium."""
    return [medium.frames()[:, 0, 0, 0].tolist() for medium in pair.media]


def kinds(pair: PreferencePair) -> list[str]:
    return [medium.kind for medium in pair.media]


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "user", "content": [{"type": "text", "text": p} if isinstance(p, str) else p for p in parts]}


IMAGE, VIDEO = {"type": "image"}, {"type": "video"}


def data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("image", "1.png", [("image", [1])]),
        ("images", ["1.png", "2.png"], [("image", [1]), ("image", [2])]),
        ("images", ["2.png", None], [("image", [2])]),
        ("images", [{"path": "1.png", "bytes": None}], [("image", [1])]),
        ("images", [[[[3, 3, 3]]], [[[4, 4, 4]]]], [("image", [3]), ("image", [4])]),
        ("image", [[[3, 3, 3]]], [("image", [3])]),
        ("image_path", "1.png", [("image", [1])]),
        ("video", "clip", [("video", [0, 1, 2])]),
        ("video", ["clip"], [("video", [0, 1, 2])]),
        ("videos", ["clip", "a.npy"], [("video", [0, 1, 2]), ("video", [9, 9, 9])]),
        ("video", ["2.png", "0.png"], [("video", [2, 0])]),
        ("videos", [["2.png", "0.png"], ["1.png"]], [("video", [2, 0]), ("video", [1])]),
        ("video", "a.gif", [("video", [0, 50, 100])]),
        ("video", [[[[3] * 3]], [[[4] * 3]]], [("video", [3, 4])]),
        ("videos", [[[[[3] * 3]], [[[4] * 3]]]], [("video", [3, 4])]),
        ("media_path", "clip", [("video", [0, 1, 2])]),
        ("media_path", "1.png", [("image", [1])]),
    ],
)
@pytest.mark.parametrize("kind", ["text", "chat"])
def test_columns(folder: Path, kind: str, column: str, value: Any, expected: list[tuple[str, list[int]]]) -> None:
    prompt = "Sky?" if kind == "text" else [{"role": "user", "content": "Sky?"}]
    table = read(folder, {"prompt": prompt, column: value} | (TEXT if kind == "text" else CHAT))
    pair = table.pairs[0]
    assert [*zip(kinds(pair), greys(pair))] == expected
    asked = [user(*({"type": k} for k, _ in expected), "Sky?")]  # as TRL: at the start of the user's first turn
    assert (pair.chat_prompt if kind == "text" else pair.prompt) == asked
    assert table.reading.used["media"] == (column,)
    assert f"media from {column}" in table.reading.said()
    assert column not in table.reading.ignored
    assert column not in pair.columns


def test_parts_hold_their_own_media_or_take_the_columns_in_order(folder: Path) -> None:
    own = [
        {"type": "image", "image": "0.png"},
        {"type": "image_url", "image_url": {"url": "1.png"}},
        {"type": "image_url", "image_url": data_url(folder / "2.png")},
        {"type": "image", "base64": base64.b64encode((folder / "1.png").read_bytes()).decode()},
        {"type": "video", "video": ["2.png", "1.png"]},
        {"type": "video", "video": "clip"},
    ]
    table = read(folder, {"prompt": [user(*own, "Sky?")], **CHAT})
    assert greys(table.pairs[0]) == [[0], [1], [2], [1], [2, 1], [0, 1, 2]]
    assert table.pairs[0].prompt == [user(*[IMAGE] * 4, VIDEO, VIDEO, "Sky?")]
    assert "media from prompt" in table.reading.said()
    later = [user("First?"), {"role": "assistant", "content": "Yes."}, user("And ", IMAGE, " and ", VIDEO, " here?")]
    pair = one(folder, prompt=later, images=["2.png"], video="clip", **CHAT)
    assert greys(pair) == [[2], [0, 1, 2]]
    assert pair.prompt == [
        {"role": "user", "content": "First?"},
        {"role": "assistant", "content": "Yes."},
        user("And ", IMAGE, " and ", VIDEO, " here?"),
    ]
    pair = one(
        folder, prompt=[user(VIDEO, IMAGE, {"type": "image", "path": "1.png"})], image="2.png", video="clip", **CHAT
    )
    assert (kinds(pair), greys(pair)) == (["video", "image", "image"], [[0, 1, 2], [2], [1]])
    whole = {"chosen": [user(IMAGE, "Sky?"), *BLUE], "rejected": [user(IMAGE, "Sky?"), *RED]}
    assert one(folder, images=["1.png"], **whole).prompt == [user(IMAGE, "Sky?")]


def test_tags_in_the_text_are_the_places(folder: Path) -> None:
    pair = one(folder, prompt="A <image> and <image>?", images=["0.png", "1.png"], **TEXT)
    assert pair.chat_prompt == [user("A ", IMAGE, " and ", IMAGE, "?")]
    assert pair.prompt == "A <image> and <image>?"
    pair = one(folder, prompt="<video>\n<image>\nSky?", images=["2.png"], video="clip", **TEXT)
    assert greys(pair) == [[0, 1, 2], [2]]
    turns = [
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Yes."},
        {"from": "human", "value": "<image>\nSky?"},
    ]
    pair = one(folder, conversations=turns, image="2.png", chosen="Blue.", rejected="Red.")
    assert pair.prompt[2] == user(IMAGE, "\nSky?")  # pyright: ignore[reportArgumentType]


def test_rrpos_rows(folder: Path) -> None:
    row = {"question": "<image>\nWhat?", "answer": "A cat runs.", "pred": "A dog runs.", "sample_id": "s1", "src": "x"}
    row |= {"answer_masked": "A <MASK> cat </MASK> runs.", "pred_masked": "A <MASK> dog </MASK> runs."}
    for column in ("video", "media_path"):
        table = read(folder, row | {column: "clip"})
        pair = table.pairs[0]
        assert (table.shape, pair.pair_id) == ("rrpo", "s1")
        assert (pair.prompt, pair.chosen, pair.rejected) == ("<image>\nWhat?", "A cat runs.", "A dog runs.")
        assert (kinds(pair), greys(pair)) == (["video"], [[0, 1, 2]])
        assert pair.chat_prompt == [user(VIDEO, "\nWhat?")]
        assert pair.columns == {k: row[k] for k in ("answer_masked", "pred_masked", "src")}
        assert "phrases from answer_masked + pred_masked" in table.reading.said()
        assert table.reading.ignored == ("src",)


def test_rows_without_media_stay_as_they_are(folder: Path) -> None:
    rows = [
        {"prompt": f"Sky {k}?", "images": value, **TEXT} for k, value in enumerate((["1.png"], [], None, ["2.png"]))
    ]
    plain = [{k: v for k, v in row.items() if k != "images"} for row in rows]
    table = read(folder, *rows)
    assert [len(pair.media) for pair in table.pairs] == [1, 0, 0, 1]
    found = [(p.pair_id, p.prompt, p.chat_prompt) for p in table.pairs[1:3]]
    assert found == [(p.pair_id, p.prompt, p.chat_prompt) for p in read(folder, *plain).pairs[1:3]]


@pytest.mark.parametrize(
    ("row", "code", "says"),
    [
        ({"image": "9.png"}, "media_missing", "the column 'image': 9.png is not there"),
        ({"image": "http://a.b/0.png"}, "media_missing", "http://a.b/0.png is an address on a network"),
        ({"image": "9\x1b[31m.png"}, "media_missing", r"9\x1b[31m.png is not there"),
        ({"image": "bad.png"}, "media_unreadable", "bad.png"),
        ({"image": "clip"}, "media_unreadable", "holds frames of a clip"),
        ({"image": 3}, "media_unreadable", "holds int"),
        ({"image": {"bytes": "no base64!"}}, "media_unreadable", "base64"),
        ({"video": "none"}, "media_unreadable", "none: holds no frames"),
        ({"video": ["0.png", "bad.png"]}, "media_unreadable", "bad.png"),
        ({"prompt": "<image> <image>?", "image": "0.png"}, "placeholders", "2 tags"),
        ({"prompt": "<image>?", "images": []}, "placeholders", "1 tags (<image> or <video>) for 0"),
        ({"prompt": "<image>?", "images": None}, "placeholders", "1 tags (<image> or <video>) for 0"),
        ({"prompt": [user(IMAGE, "?")], **CHAT}, "placeholders", "'image' more than there are images for it"),
        ({"prompt": [user(VIDEO, "?")], "image": "0.png", **CHAT}, "placeholders", "'video' more"),
        ({"prompt": [user(IMAGE, "?")], "images": ["0.png", "1.png"], **CHAT}, "placeholders", "no place for 1"),
        (
            {"prompt": [{"role": "system", "content": "?"}], "image": "0.png", **CHAT},
            "placeholders",
            "no turn of the user",
        ),
        (
            {"prompt": [user("?")], **CHAT, "rejected": [{"role": "assistant", "content": [IMAGE]}], "image": "0.png"},
            "media_in_answer",
            "rejected holds an image",
        ),
    ],
)
def test_what_refuses_a_row(folder: Path, row: dict[str, Any], code: str, says: str) -> None:
    table = read(folder, {"prompt": "?", **TEXT} | row, {"prompt": "?", **TEXT, "tag": 1})
    assert [(p.source_row, p.code) for p in table.problems] == [(0, code)]
    assert says in table.problems[0].reason
    assert "\x1b" not in table.problems[0].reason


def test_a_file_in_many_rows_is_looked_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    monkeypatch.setattr(media_module, "open_media", lambda *a, **k: looked.append(a[0]) or frames.open_media(*a, **k))
    table = read(folder, *[{"prompt": f"{k}?", "video": "clip", **TEXT} for k in range(5)])
    assert len(looked) == 1
    assert len({id(pair.media[0]) for pair in table.pairs}) == 1


def test_long_clips_are_cut_and_it_is_said(folder: Path) -> None:
    table = read(folder, {"prompt": "?", "video": "long", **TEXT}, {"prompt": "!", "video": "clip", **TEXT})
    assert greys(table.pairs[0]) == [[k * 40 // 16 for k in range(16)]]
    assert "clips of more than 16 frames: 1; of their N frames, 16 are taken" in " ".join(table.reading.notes)
    table = read(folder, {"prompt": "?", "video": "long", **TEXT}, frames=2)
    assert greys(table.pairs[0]) == [[0, 20]]


def test_ids_and_hashes_tell_clips_apart(folder: Path) -> None:
    rows = [{"prompt": "Sky?", "image": name, **TEXT} for name in ("0.png", "1.png", "0.png")]
    table = read(folder, *rows)
    ids = [pair.pair_id for pair in table.pairs]
    assert ids[2] == f"{ids[0]}-2"
    assert len(set(ids)) == 3
    before = data_hash(table)
    Image.new("RGB", (4, 2), (77,) * 3).save(folder / "1.png")
    again = read(folder, *rows)
    assert again.pairs[0].pair_id == ids[0]
    assert again.pairs[1].pair_id != ids[1]
    assert data_hash(again) != before


def test_parquet_with_images_of_the_datasets_library(folder: Path) -> None:
    content = (folder / "2.png").read_bytes()
    rows = [
        {"prompt": [user({"type": "image", "text": None}, {"type": "text", "text": "Sky?"})], **CHAT},
        {"prompt": [user({"type": "text", "text": "None?"})], **CHAT},
    ]
    for row, images in zip(rows, ([{"bytes": content, "path": None}], [])):
        row["images"] = images
    pq.write_table(pa.Table.from_pylist(rows), folder / "a.parquet")
    table = read_pairs(folder / "a.parquet")
    assert [greys(pair) for pair in table.pairs] == [[[2]], []]
    assert table.pairs[0].prompt == [user(IMAGE, "Sky?")]
    assert table.pairs[1].prompt == [{"role": "user", "content": "None?"}]
    only = [{"prompt": "?", "image": {"bytes": content, "path": None}, **TEXT}]
    pq.write_table(pa.Table.from_pylist(only), folder / "c.parquet")
    assert "nulls" not in read_pairs(folder / "c.parquet").reading.said()
    write_rows(table, [0], folder / "b.parquet")
    assert pq.read_table(folder / "b.parquet").to_pylist() == pq.read_table(folder / "a.parquet").to_pylist()[:1]


def test_a_folder_of_the_datasets_library(folder: Path) -> None:
    import datasets

    features = datasets.Features(
        {"prompt": datasets.Value("string"), "chosen": datasets.Value("string"), "rejected": datasets.Value("string")}
        | {"images": datasets.List(datasets.Image())}
    )
    rows = {
        "prompt": ["?"],
        "chosen": ["a"],
        "rejected": ["b"],
        "images": [[str(folder / "1.png"), str(folder / "2.png")]],
    }
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(folder / "saved")
    assert greys(read_pairs(folder / "saved").pairs[0]) == [[1], [2]]


def test_a_table_of_text_holds_a_list_as_text(folder: Path) -> None:
    file = io.StringIO()
    csv.writer(file).writerows([["prompt", "images", "chosen", "rejected"], ["?", '["1.png", "0.png"]', "a", "b"]])
    (folder / "a.csv").write_text(file.getvalue())
    assert greys(read_pairs(folder / "a.csv").pairs[0]) == [[1], [0]]


def test_rows_are_written_back_as_they_were(folder: Path) -> None:
    table = read(folder, {"prompt": "?", "video": ["clip"], **TEXT}, {"prompt": "!", "video": "a.gif", **TEXT})
    for place in (folder, folder / "elsewhere"):
        write_rows(table, [1], place / "kept.jsonl")
        assert (place / "kept.jsonl").read_bytes() == (folder / "pairs.jsonl").read_bytes().split(b"\n")[1] + b"\n"
        assert bool(media_left_behind(table, place / "kept.jsonl")) == (place != folder)
    assert greys(read_pairs(folder / "kept.jsonl").pairs[0]) == [[0, 50, 100]]
    moved = folder / "elsewhere" / "kept.jsonl"
    assert greys(read_pairs(moved, media_folder=folder).pairs[0]) == [[0, 50, 100]]
    with pytest.raises(DataError, match=r"a\.gif is not there"):
        read_pairs(moved)
    with pytest.raises(DataError, match="no such folder"):
        read_pairs(moved, media_folder=folder / "nowhere")


def test_transcripts_and_shared_starts_are_no_chat(folder: Path) -> None:
    row = {"chosen": "Q: sky? A: it is blue", "rejected": "Q: sky? A: it is black", "image": "1.png"}
    pair = one(folder, **row)
    assert pair.chat_prompt is None
    assert (pair.prompt, greys(pair)) == ("Q: sky? A: it is", [[1]])


def test_other_media_are_said_to_be_unseen(folder: Path) -> None:
    table = read(folder, {"prompt": "?", "audio": "a.wav", "image": "1.png", "images": ["2.png"], **TEXT})
    assert greys(table.pairs[0]) == [[2]]
    assert "No model is shown what audio, image holds" in table.reading.said()
    further = {"noisy_chosen_video": "1.png", "answer_audio": "a.wav"}
    said = read(folder, {"prompt": "?", "image": "1.png", **further, **TEXT}).reading.said()
    assert "No model is shown what answer_audio holds" in said
    assert "noisy_chosen_video holds is shown where the objective has a further row of that name" in said


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.floats(0, 1)
    | st.sampled_from(["", "0.png", "clip", "http://x/y", "\0"]),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.sampled_from(["type", "image", "url", "path", "bytes", "video", "text", "image_url"]), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=JSON, column=st.sampled_from(["image", "images", "video", "videos", "media_path"]))
def test_whatever_stands_there_is_read_or_refused(folder: Path, value: Any, column: str) -> None:
    part = {"role": "user", "content": [{"type": "text", "text": "?"}, {"type": "image", "image": value}]}
    rows = [{"prompt": "?", column: value, **TEXT}, {"prompt": [part], **CHAT}, {"prompt": "fine", **TEXT}]
    table = read(folder, rows[0], rows[2])
    assert len(table.pairs) + len(table.problems) == 2
    for pair in [*table.pairs, *read(folder, rows[1], {"prompt": [{"role": "user", "content": "?"}], **CHAT}).pairs]:
        for medium in pair.media:
            assert medium.frames().shape[:3] == medium.shape()


def test_deep_nesting_is_no_crash(folder: Path) -> None:
    deep: Any = "0.png"
    for _ in range(400):
        deep = [deep]
    assert read(folder, {"prompt": "?", "images": deep, **TEXT}, {"prompt": "!", **TEXT}).problems[0].source_row == 0


def test_a_file_of_which_no_medium_is_there_is_refused(folder: Path) -> None:
    with pytest.raises(DataError, match=r"line 1: the column 'image': 9\.png is not there"):
        read(folder, {"image": "9.png", "question": "Sky?", **TEXT})
