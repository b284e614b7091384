"""`chesboard train --likelihood denoising`: from a model folder and files of samples to a log, and on again."""

import io
import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from diagnostics.diffusion.denoiser import MLPDenoiser
from diagnostics.errors import DataError, UserError
from diagnostics.runlog import read_run
from trainers import objectives
from trainers.config import make_config
from trainers.denoisers import load_denoiser
from trainers.run import train

SIDE, CLASSES = 4, 3


@pytest.fixture
def world(tmp_path):
    """A denoiser's folder and a file of pairs of samples."""
    torch.manual_seed(0)
    MLPDenoiser(size=SIDE**2, classes=CLASSES, width=16, blocks=1, shape=(1, SIDE, SIDE)).save(tmp_path / "mlp")
    draw = np.random.default_rng(0)
    arrays = {side: draw.normal(size=(30, 1, SIDE, SIDE)).astype(np.float32) for side in ("chosen", "rejected")}
    save_file(arrays | {"class_labels": np.arange(30) % CLASSES}, tmp_path / "pairs.safetensors")
    return tmp_path


def run(world, out="run", **changes):
    keys = {
        "likelihood": "denoising", "objective": "diffusion_dpo", "model": str(world / "mlp"), "beta": 200.0,
        "data": str(world / "pairs.safetensors"), "output_dir": str(world / out), "max_steps": 4, "draws": 4,
        "per_device_train_batch_size": 4, "learning_rate": 0.003, "probe_pairs": 6, "heldout_pairs": 2, "use_cpu": True,
        "disable_tqdm": True, "probe_every": 2,
    }  # fmt: skip
    return train(make_config(keys | changes))


def test_a_run_from_folder_to_log(world):
    log = read_run(run(world))
    assert log.manifest["likelihood"] == {
        "kind": "denoising", "target": "eps", "times": 1000, "draws": 4, "train_draws": 1, "seed": 0, "path": "noise"
    }  # fmt: skip
    assert "no nats" in log.manifest["conventions"]["kl"]
    assert log.manifest["parity"]["max_difference"] == 0
    known = log.manifest["columns"]
    assert known["chosen_kl"]["label"] == "deviation, chosen"
    assert known["set_rate"]["prone"] == "lowest"
    assert not [c for c in known.values() if "nats" in c["unit"] or "token" in c["meaning"] + c["unit"]]
    assert "ches_score" not in known
    assert "tokenizer" not in log.manifest["hashes"]
    assert log.pairs.query("split == 'eval'").groupby("step").size().to_dict() == {0: 2, 2: 2, 4: 2}
    assert log.draws.groupby("step").size().to_dict() == {0: 8 * 2 * 4, 4: 8 * 2 * 4}
    assert (log.audit["status"] == "kept").all()
    trained, start = load_denoiser(str(world / "run" / "model")), load_denoiser(str(world / "mlp"))
    assert not torch.equal(trained.head.weight, start.head.weight)
    assert trained.settings == start.settings


def test_an_adapter_is_trained_and_its_reference_is_the_base(world):
    log = read_run(run(world, lora_r=2))
    probed = log.pairs.query("split == 'probe'")
    first, last = probed.query("step == 0"), probed.query("step == 4")
    assert np.array_equal(first["chosen_logps"], first["ref_chosen_logps"])
    assert np.array_equal(first["ref_chosen_logps"], last["ref_chosen_logps"])
    assert not np.array_equal(last["chosen_logps"], last["ref_chosen_logps"])
    merged, start = load_denoiser(str(world / "run" / "model")), load_denoiser(str(world / "mlp"))
    assert not torch.equal(merged.blocks[0][1].weight, start.blocks[0][1].weight)
    assert torch.equal(merged.head.weight, start.head.weight)


def test_a_run_goes_on_as_if_it_had_not_stopped(world):
    whole = read_run(run(world, "whole"))
    keys = {"save_strategy": "steps", "save_steps": 2}
    run(world, "broken", **keys)
    model = load_file(world / "broken" / "model" / "model.safetensors")
    about = json.loads((world / "broken" / "manifest.json").read_text())
    del about["finished"]
    (world / "broken" / "manifest.json").write_text(json.dumps(about))
    import shutil

    shutil.rmtree(world / "broken" / "checkpoints" / "checkpoint-4")
    again = read_run(run(world, "broken", resume="auto", **keys))
    assert again.steps["loss"].tolist()[1:] == whole.steps["loss"].tolist()[1:]
    resumed = load_file(world / "broken" / "model" / "model.safetensors")
    assert all(np.array_equal(model[k], resumed[k]) for k in model)


def test_what_cannot_work_is_refused_by_name(world):
    with pytest.raises(UserError, match=r"'dpo' is defined on log-probs .* set likelihood to tokens"):
        run(world, objective="dpo", beta=0.1)
    with pytest.raises(
        UserError, match=r"'diffusion_dpo' is defined on minus the denoising .* likelihood to denoising"
    ):
        run(world, likelihood="tokens")
    with pytest.raises(UserError, match="set reference to live"):
        run(world, reference="precomputed")
    with pytest.raises(UserError, match="grad_every needs the gradients"):
        run(world, grad_every=1)
    with pytest.raises(DataError, match="no such model folder"):
        run(world, model=str(world / "nowhere"))


@pytest.mark.parametrize("name", [n for n in objectives.names() if objectives.likelihood(n) == "denoising"])
def test_every_objective_of_denoisers_is_tried_before_anything_is_read(world, name):
    from trainers.check import check

    keys = {"likelihood": "denoising", "objective": name, "model": "m", "data": "d", "output_dir": str(world / "no")}
    check(make_config(keys))


def test_chains_of_sampling_steps_are_trained_on(world):
    draw = np.random.default_rng(2)
    arrays = {s: draw.normal(size=(20, 3, 1, SIDE, SIDE)).astype(np.float32) for s in ("chosen", "rejected")}
    arrays |= {"times": np.tile([900, 500, 100], (20, 1)), "class_labels": np.arange(20) % CLASSES}
    save_file(arrays, world / "chains.safetensors")
    keys = {
        "likelihood": "steps",
        "objective": "d3po",
        "beta": 10.0,
        "draws": 16,
        "data": str(world / "chains.safetensors"),
    }
    log = read_run(run(world, **keys))
    assert log.steps["loss"].iloc[1] == pytest.approx(np.log(2), rel=1e-6)
    assert log.draws.empty
    last = log.pairs.query("split == 'probe' and step == 4")
    assert (last["chosen_kl"] > 0).all()
    assert "nats a number" in log.manifest["conventions"]["logps"]


def test_lists_with_scores_and_two_conditions(world):
    draw = np.random.default_rng(3)
    scores = ([3.0, 1.0, 2.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0])
    rows = [{"images": draw.normal(size=(3, 16)).tolist(), "scores": s, "class": k} for k, s in enumerate(scores)]
    (world / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {"heldout_pairs": 0, "max_steps": 2, "beta": 50.0}
    log = read_run(run(world, "lists", data=str(world / "lists.jsonl"), objective="rankdpo", **keys))
    first, last = (
        {f"row00000{k}/{p}" for p in those} for k, those in ((0, ("0-1", "0-2", "2-1")), (2, ("1-0", "2-0")))
    )
    assert set(log.audit["pair_id"]) == {"", *first, *last}
    rows = [
        {"sample": draw.normal(size=16).tolist(), "condition_w": k % 3, "condition_l": (k + 1) % 3} for k in range(9)
    ]
    rows[0]["condition_l"] = rows[0]["condition_w"]
    (world / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = read_run(run(world, "two", data=str(world / "two.jsonl"), objective="cpo_condition", **keys))
    assert log.audit["reason"].str.startswith("identical_completions").tolist() == [True] + [False] * 8
    first = log.pairs.query("split == 'probe' and step == 0")
    assert (first["chosen_logps"] != first["rejected_logps"]).all()


def png(values: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values.astype(np.uint8)).save(file, "png")
    return file.getvalue()


def test_images_as_pick_a_pic_has_them(world):
    draw = np.random.default_rng(1)
    images = [png(draw.integers(0, 255, size=(9, 12, 3))) for _ in range(12)]
    rows = [
        {"jpg_0": images[k], "jpg_1": images[(k + 1) % 12], "label_0": (1.0, 0.0, 0.5)[k % 3], "class_label": k % 3}
        for k in range(12)
    ]
    rows[0]["jpg_1"] = b"no image"
    rows[1]["jpg_1"] = rows[1]["jpg_0"]
    rows[3]["jpg_1"] = png(np.full((20, 5, 3), 7))
    pd.DataFrame(rows).to_parquet(world / "pick.parquet")
    log = read_run(run(world, data=str(world / "pick.parquet"), heldout_pairs=0))
    audit = log.audit.set_index("source_row")
    codes = audit["reason"].str.partition(":")[0].to_dict()
    assert codes == {
        k: "tie" if k % 3 == 2 else {0: "media_unreadable", 1: "identical_completions"}.get(k, "") for k in range(12)
    }
    assert audit["doubts"].to_dict()[3] == "sizes_differ"
    assert "4 tie" in log.manifest["reading"]["said"]
    assert set(log.pairs["pair_id"]) == {f"row{k:06d}" for k in (3, 4, 6, 7, 9, 10)}


def test_keys_of_another_likelihood_are_refused(world):
    for key, value in {"max_length": 9, "append_eos": False, "response_types": 3, "truncation": "error"}.items():
        with pytest.raises(UserError, match=f"{key} means nothing with likelihood denoising"):
            run(world, **{key: value})
    with pytest.raises(UserError, match="draws means nothing with likelihood steps"):
        run(world, likelihood="steps", objective="d3po")
    with pytest.raises(UserError, match="is a denoiser: set likelihood to denoising"):
        run(world, likelihood="tokens", objective="dpo", draws=16)


def test_an_objective_is_refused_before_anything_is_trained_where_something_it_reads_is_not_there(world):
    with pytest.raises(DataError, match="row 0: objective 'patchdpo' reads weights, which this row does not have"):
        train(make_config({
            "likelihood": "denoising", "objective": "patchdpo", "model": str(world / "mlp"), "use_cpu": True,
            "data": str(world / "pairs.safetensors"), "output_dir": str(world / "no"),
        }))  # fmt: skip
    assert not (world / "no").exists()


def test_a_reference_of_another_kind_is_refused(world):
    MLPDenoiser(size=SIDE**2, classes=CLASSES, width=16, blocks=1, target="flow", shape=(1, SIDE, SIDE)).save(
        world / "flow"
    )
    with pytest.raises(UserError, match="reference is a model of the same kind"):
        run(world, reference_model=str(world / "flow"))


def test_arrays_hold_what_an_objective_reads_of_each_segment(world):
    arrays = load_file(world / "pairs.safetensors")
    arrays |= {"segments": np.tile(np.arange(16) // 8, (30, 1)), "segment_labels": np.tile([1.0, -1.0], (30, 1))}
    save_file(arrays, world / "pairs.safetensors")
    log = read_run(run(world, objective="densedpo"))
    assert log.steps["loss"].iloc[1] == pytest.approx(np.log(2), rel=1e-6)


def test_commands_say_errors_where_they_mean_errors(world):
    from analysis.run import card, kept
    from analysis.run.page import tiles_of
    from analysis.tables import runs

    log = runs.load(run(world))
    found = kept.keep(log)
    said = [f.meaning for f in found] + [card.state(log, found).says]
    said += [text for tile in tiles_of(log, found) for text in (tile.label, tile.meaning, tile.value, *tile.below)]
    said.append((world / "run" / "verdict.json").read_text())
    assert not [text for text in said if any(word in text for word in ("nats", "KL(", "token,", " a token"))]
    assert any("deviation from the reference" in text for text in said)


@pytest.mark.parametrize("objective", ["rankdpo", "diffusion_dpo"])
def test_a_list_stands_on_one_side_of_the_held_out_split(world, objective):
    """12 lists of 3 samples are 36 pairs; 3 of them may be held out: one whole list."""
    draw = np.random.default_rng(3)
    rows = [{"images": draw.normal(size=(3, 16)).tolist(), "scores": [3, 1, 2], "class": k % 3} for k in range(12)]
    (world / "lists.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for seed in range(3):
        keys = {"heldout_pairs": 3, "probe_pairs": 40, "max_steps": 1, "beta": 50.0, "seed": seed, "probe_every": 9}
        log = read_run(run(world, f"run{seed}", data=str(world / "lists.jsonl"), objective=objective, **keys))
        rows_of = log.audit.set_index("pair_id")["source_row"]
        held, seen = (
            {int(rows_of[name]) for name in log.pairs.query(f"split == '{split}'")["pair_id"]}
            for split in ("eval", "probe")
        )
        assert len(held) == 1
        assert not held & seen
        assert len(held | seen) == 12
        assert log.manifest["pairs"] == {"train": 33, "probe": 33, "eval": 3}
