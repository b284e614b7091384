"""Models are loaded safely, and what cannot be loaded is refused in one sentence."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model

from diagnostics.engine import engine_of
from diagnostics.errors import DataError, UserError
from diagnostics.fingerprint import tokenizer_hash, weights_hash
from diagnostics.forward import prepare
from diagnostics.scoring import rows, score
from trainers.models import add_lora, load_model, load_to_device, load_tokenizer


def test_missing_folder():
    with pytest.raises(DataError, match="no such model folder"):
        load_model("./nowhere")


def test_folder_without_config(tmp_path):
    with pytest.raises(DataError, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_folder_without_tokenizer(lm_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(lm_folder) / name, tmp_path)
    with pytest.raises(DataError, match="no tokenizer in this folder"):
        load_tokenizer(str(tmp_path))


def test_pickled_weights_are_refused(lm_folder, tmp_path):
    shutil.copy(Path(lm_folder) / "config.json", tmp_path)
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"only pickled weights \(pytorch_model.bin\)"):
        load_model(str(tmp_path))


def test_no_weights_at_all(lm_folder, tmp_path):
    shutil.copy(Path(lm_folder) / "config.json", tmp_path)
    with pytest.raises(DataError, match=r"no \*.safetensors"):
        load_model(str(tmp_path))


def test_damaged_weights(lm_folder, tmp_path):
    shutil.copy(Path(lm_folder) / "config.json", tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not a model")
    with pytest.raises(DataError, match="the model cannot be loaded"):
        load_model(str(tmp_path))


def test_hashes_follow_the_content(lm_folder):
    model, same = load_model(lm_folder), load_model(lm_folder)
    assert weights_hash(model) == weights_hash(same)
    with torch.no_grad():
        same.lm_head.weight[0, 0] += 1e-3
    assert weights_hash(model) != weights_hash(same)
    tokenizer = load_tokenizer(lm_folder)
    before = tokenizer_hash(tokenizer)
    tokenizer.add_tokens(["omega"])
    assert tokenizer_hash(tokenizer) != before


def test_dropout_is_off(lm_folder, tmp_path, make_model):
    model = make_model("gpt2")
    assert any(isinstance(m, torch.nn.Dropout) and m.p > 0 for m in model.modules())
    model.save_pretrained(tmp_path)
    assert all(m.p == 0 for m in load_model(str(tmp_path)).modules() if isinstance(m, torch.nn.Dropout))


def test_dropout_kept_as_a_number_is_off_too(lm_folder, tmp_path):
    shutil.copytree(lm_folder, tmp_path, dirs_exist_ok=True)
    config = json.loads((tmp_path / "config.json").read_text()) | {"attention_dropout": 0.5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load_model(str(tmp_path)).model.layers[0].self_attn.attention_dropout == 0.0


def test_lora_targets_that_do_not_fit(lm_folder):
    with pytest.raises(UserError, match="lora_targets 'nothing' does not fit"):
        add_lora(load_model(lm_folder), r=2, alpha=4, targets="nothing")


@pytest.mark.parametrize("device_map", ["auto", "cpu"])
def test_a_device_map_changes_no_score(lm_folder, make_pairs, device_map):
    spread, plain = load_to_device(lm_folder, device_map=device_map), load_to_device(lm_folder)
    assert weights_hash(spread) == weights_hash(plain)
    assert scores(spread, make_pairs(9)) == scores(plain, make_pairs(9))


def test_layers_that_are_kept_elsewhere_give_the_same_scores(lm_folder, make_pairs, tmp_path):
    """A layer and the head on disk until they run: accelerate moves data to them and back through its hooks."""
    here = ["model.embed_tokens", "model.layers.0", "model.norm", "model.rotary_emb"]
    places: Any = dict.fromkeys(here, "cpu") | {"model.layers.1": "disk", "lm_head": "disk"}
    plain = load_model(lm_folder)
    spread = dispatch_model(load_model(lm_folder), places, main_device="cpu", offload_dir=tmp_path, force_hooks=True)
    assert spread.lm_head.weight.is_meta
    # gradients of its two sides apart are for training, which an offloaded model cannot do
    assert replace(prepare(spread), apart=True) == prepare(plain)
    assert (engine_of(spread).packed, engine_of(spread).tiled) == (True, True)
    assert weights_hash(spread) == weights_hash(plain)
    assert scores(spread, make_pairs(9)) == scores(plain, make_pairs(9))


def scores(model, pairs):
    """pair_id, log-probs and CHES of each pair."""
    found = [r for s in score(model, pairs, pad_token_id=0) for r in rows(s.pairs, s.stats, ["ches_score"])]
    return [(r["pair_id"], r["chosen_logps"], r["rejected_logps"], r["ches_score"]) for r in found]
