"""A tiny vision-language model from its folder to a finished log: scores, training, the reference, the saved model."""

import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plain_vlms
import pytest
import vlms
from PIL import Image

from diagnostics.errors import UserError
from diagnostics.flag.flagging import flag
from diagnostics.media import Media, of_frames
from diagnostics.runlog import read_frame, read_run
from diagnostics.sampling import answers
from diagnostics.sequences import Sequence
from diagnostics.vision.placeholders import FILES
from diagnostics.vision.thumbs import caption
from trainers.config import make_config
from trainers.loop.trainer import layer_group
from trainers.models import add_lora, freeze_vision, load_model, load_tokenizer, model_limit
from trainers.run import train
from trainers.trace import trace
from trainers.worlds import lm

CHOSEN, REJECTED, PROMPT = "to the left", "up , then down", "which way {} ?"
KEYS = {
    "learning_rate": 1e-3, "per_device_train_batch_size": 3, "heldout_pairs": 0, "probe_pairs": 3, "report_to": "none",
    "max_steps": 2, "probe_every": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return vlms.save("qwen25", tmp_path_factory.mktemp("vlm"), vlms.tiny_tokenizer())


def shown(k: int) -> tuple[Media, ...]:
    """Row k: of six a clip, then an image, then nothing."""
    return (vlms.media(k, 2 + k % 2),) if k < 6 else (vlms.media(k),) if k == 6 else ()


@pytest.fixture(scope="module")
def data(tmp_path_factory: Any) -> Path:
    place = tmp_path_factory.mktemp("data")
    rows: list[dict[str, Any]] = []
    for k in range(8):
        row = {"id": f"row{k}", "prompt": PROMPT.format(k), "chosen": CHOSEN, "rejected": REJECTED}
        for item in shown(k):
            if item.kind == "video":
                np.save(place / f"{k}.npy", item.frames())
            else:
                Image.fromarray(item.frames()[0]).save(place / f"{k}.png")
            row |= {"video": f"{k}.npy"} if item.kind == "video" else {"image": f"{k}.png"}
        rows.append(row)
    path = place / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def run(folder: Path, data: Path, tmp_path_factory: Any) -> Any:
    def go(name: str, **keys: Any) -> Any:
        values = {"model": str(folder), "data": str(data), "output_dir": str(tmp_path_factory.mktemp("runs") / name)}
        return read_run(train(make_config(values | KEYS | keys)))

    return go


def prompt(tokenizer: Any, k: int) -> str:
    return "".join(tokenizer.family.tags[m.kind] for m in shown(k)) + PROMPT.format(k)


def plain(model: Any, tokenizer: Any, k: int, answer: str, media: tuple[Media, ...] = ()) -> float:
    """Summed log-prob of row k's answer, with its media or others, by transformers' own forward alone."""

    ids = tokenizer(tokenizer.family.expand(prompt(tokenizer, k), shown(k)))["input_ids"]
    row = Sequence(ids, [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id], media=media or shown(k) or None)
    return float(plain_vlms.logps(model, tokenizer.family, row).sum())


def test_scores_are_a_plain_forwards(folder, data, tmp_path):
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    assert model_limit(model) == 512
    scores, _, _ = flag(str(data), model, tokenizer, tmp_path / "f", model_name=str(folder), everything=True)
    assert scores[[c for c in scores if c.endswith("rate")]].notna().all(axis=None)
    exact = load_model(str(folder)).double()
    for row in scores.itertuples():
        assert row.chosen_logps == pytest.approx(plain(exact, tokenizer, row.source_row, CHOSEN), abs=1e-3)
        assert row.rejected_logps == pytest.approx(plain(exact, tokenizer, row.source_row, REJECTED), abs=1e-3)


def test_a_run_with_lora_in_the_language_model(run, folder):
    log = run("lora", objective="rrpo", grad_every=1, lora_r=2, response_types=2)
    steps = log.steps.set_index("step")
    assert steps.loc[0, "probe/kl/chosen"] == 0
    assert steps.loc[2, "probe/kl/chosen"] > 0
    assert steps.loc[2, "probe/logps/chosen"] > steps.loc[0, "probe/logps/chosen"]
    assert {c.split("/")[-1] for c in steps if c.startswith("grad_norm/")} == {"layer_00", "layer_01"}
    assert log.pairs.loc[log.pairs["split"] == "train", "grad_inner"].notna().all()
    probe = log.pairs[log.pairs["split"] == "probe"].set_index(["pair_id", "step"])
    tokenizer, start = load_tokenizer(str(folder)), load_model(str(folder)).double()
    for name, step in probe.index:
        k, value = int(name.removeprefix("row")), probe.loc[(name, step), "chosen_grey_logps"]
        assert np.isnan(value) == (not shown(k))
        if step == 0 and shown(k):
            grey = tuple(of_frames(np.full_like(m.frames(), 128), kind=m.kind) for m in shown(k))
            assert value == pytest.approx(plain(start, tokenizer, k, CHOSEN, grey), abs=1e-3)
    frames = read_frame(log.path / "frames.parquet").set_index("pair_id")
    assert set(frames.index) == {name for name in {n for n, _ in probe.index} if shown(int(name.removeprefix("row")))}
    for name, line in frames.iterrows():
        (medium,) = shown(int(str(name).removeprefix("row")))
        seen = np.asarray(Image.open(io.BytesIO(line["picture"])))
        assert seen.shape == (72, 74 * len(medium.frames()), 3)
        assert (seen[0, ::74] == medium.frames()[:, 0, 0]).all()
        assert line["words"] == caption(medium)
    own = log.mass[(log.mass["kind"] == "response") & (log.mass["name"] == "own")]
    assert len(own) == 4  # two pairs, twice
    adapted = load_model(str(log.path / "model"))
    trained = [name for name, _ in adapted.named_parameters() if "lora_" in name]
    assert len(trained) == 2 * 2 * 7  # A and B of seven linear layers in each of two layers
    assert all(".language_model.layers." in name for name in trained)


def test_a_run_of_all_weights_and_its_saved_model(run, folder, data, tmp_path):
    log = run("full", objective="tdpo2", grad_every=1, gradient_checkpointing=True, save_strategy="steps", save_steps=1)
    steps = log.steps.set_index("step")
    for kind in ("grad_norm", "grad/chosen", "grad/rejected"):
        groups = {c.removeprefix(f"{kind}/") for c in steps if c.startswith(f"{kind}/")}
        assert groups == {"embed", "layer_00", "layer_01", "head", "vision", "projector", "other"}
    whole = steps.loc[1, [c for c in steps if c.startswith("grad_norm/")]].pow(2).sum() ** 0.5
    assert whole == pytest.approx(steps.loc[1, "grad_norm"], rel=1e-5)
    saved, checkpoints = log.path / "model", log.path / "checkpoints"
    for place in (saved, checkpoints / "checkpoint-1"):
        assert [leaf for leaf in FILES if (place / leaf).exists()] == ["preprocessor_config.json"]
    again, tokenizer = load_model(str(saved)).double(), load_tokenizer(str(saved))
    probe = log.pairs[(log.pairs["split"] == "probe") & (log.pairs["step"] == 2)]
    for row in probe.itertuples():
        k = int(row.pair_id.removeprefix("row"))
        assert row.chosen_logps == pytest.approx(plain(again, tokenizer, k, CHOSEN), abs=1e-3)
    traced = read_run(trace(str(data), [str(checkpoints)], tmp_path / "trace", reference=str(folder), pairs=3))
    last = traced.pairs[(traced.pairs["step"] == 2)].set_index("pair_id")
    for row in last.itertuples():
        k = int(row.Index.removeprefix("row"))
        assert row.chosen_logps == pytest.approx(plain(again, tokenizer, k, CHOSEN), abs=1e-3)


@pytest.mark.parametrize("keys", [{}, {"lora_r": 2}])
def test_a_run_that_goes_on_from_a_checkpoint_is_the_unbroken_one(run, tmp_path, keys):
    """transformers saves this family's weights under other names than its own, and its Trainer loads by name."""
    keys = keys | {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "learning_rate": 1e-2}
    whole = run("whole", **keys)
    shutil.copytree(whole.path, tmp_path / "again")
    for step in (2, 3):
        shutil.rmtree(tmp_path / "again" / "checkpoints" / f"checkpoint-{step}")
    manifest = json.loads((tmp_path / "again" / "manifest.json").read_text())
    (tmp_path / "again" / "manifest.json").write_text(json.dumps({k: manifest[k] for k in manifest if k != "finished"}))
    again = run("again", output_dir=str(tmp_path / "again"), resume="auto", **keys)
    for name in ("steps", "pairs"):
        one, other = (getattr(log, name) for log in (whole, again))
        order = ["step"] if name == "steps" else ["step", "split", "pair_id"]
        one, other = (frame.sort_values(order, ignore_index=True) for frame in (one, other))
        pd.testing.assert_frame_equal(one, other, check_like=True, rtol=0, atol=0)
    weights = [sorted((log.path / "model").glob("*.safetensors")) for log in (whole, again)]
    assert weights[0]
    assert [p.read_bytes() for p in weights[0]] == [p.read_bytes() for p in weights[1]]


def test_an_objective_that_reads_embeddings_is_refused_before_anything_is_computed(run, data, tmp_path):
    with pytest.raises(UserError, match="set spectral to 0 to leave them out"):
        run("tars", objective="tars", data=str(rows_of_tars(data, tmp_path)), output_dir=str(tmp_path / "t"))
    assert not (tmp_path / "t" / "steps.jsonl").exists()
    log = run("tars0", objective="tars", spectral=0, data=str(tmp_path / "tars.jsonl"))
    assert log.steps["step"].max() == 2


def rows_of_tars(data: Path, place: Path) -> Path:
    """The rows with a clip, with the further rows that tars reads."""
    found = []
    for line in data.read_text().splitlines()[:6]:
        row = json.loads(line)
        row["video"] = str(data.parent / row["video"])
        more = {"noisy_chosen": CHOSEN, "clean_chosen": CHOSEN, "clean_rejected": REJECTED}
        found.append(row | more | {"noisy_chosen_video": row["video"]})
    path = place / "tars.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in found))
    return path


def test_a_frozen_tower_stays_and_the_language_model_is_trained(run, folder):
    start = dict(load_model(str(folder)).named_parameters())
    end = dict(load_model(str(run("frozen", objective="dpo", freeze_vision=True).path / "model")).named_parameters())
    moved = {name for name, p in end.items() if not p.equal(start[name])}
    assert {layer_group(name) for name in moved} >= {"embed", "layer_00", "layer_01", "head"}
    assert not {layer_group(name) for name in moved} & {"vision", "projector"}
    with pytest.raises(UserError, match="freeze_vision: this model is shown no images or clips"):
        freeze_vision(lm.build_model(lm.word_tokenizer(["a"]), seed=0))


def test_a_reference_from_disk_is_the_live_one(run):
    live, stored = (run(kind, objective="dpo", reference=kind, max_steps=1).pairs for kind in ("live", "precomputed"))
    names = ["chosen_logps", "rejected_logps", "ref_chosen_logps", "ref_rejected_logps", "loss"]
    np.testing.assert_allclose(live[names], stored[names], rtol=1e-5)


@pytest.mark.parametrize("name", vlms.NAMES)
def test_parts_of_a_model(name):
    model = vlms.model_of(name, vlms.tiny_tokenizer())
    groups = {layer_group(n) for n, _ in model.named_parameters()}
    assert groups >= {"embed", "layer_00", "layer_01", "vision", "projector", "other"}
    inside = [n for n, _ in model.named_parameters() if layer_group(n).startswith("layer_")]
    assert all("language_model.layers" in n or "text_model.layers" in n for n in inside)
    for targets in ("all-linear", "q_proj,v_proj"):
        adapted = add_lora(vlms.model_of(name, vlms.tiny_tokenizer()), r=2, alpha=4, targets=targets)
        trained = [n for n, p in adapted.named_parameters() if p.requires_grad]
        assert len(trained) == 2 * 2 * (7 if targets == "all-linear" else 2)
        assert {layer_group(n) for n in trained} == {"layer_00", "layer_01"}


def test_answers_to_texts_with_media(folder):
    model, tokenizer = load_model(str(folder)), load_tokenizer(str(folder))
    rows = [0, 6, 7]
    asked, media = [prompt(tokenizer, k) for k in rows], [shown(k) or None for k in rows]
    how: dict[str, Any] = {"temperature": 1.0, "limit": 4, "seed": 3}
    said = answers(model, tokenizer, asked, media=media, **how)
    assert said == answers(model, tokenizer, asked, media=media, **how)
    other = [(vlms.media(50, 2),), (vlms.media(51),), None]
    assert said != answers(model, tokenizer, asked, media=other, **how)
