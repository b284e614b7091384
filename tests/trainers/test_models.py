"""Models are loaded safely, and what cannot be loaded is refused in one sentence."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from accelerate import dispatch_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification

from diagnostics.engine import engine_of
from diagnostics.errors import DataError, UserError
from diagnostics.fingerprint import tokenizer_hash, weights_hash
from diagnostics.prepare import prepare
from diagnostics.scoring import rows, score
from diagnostics.token_likelihood import TokenLikelihood
from trainers.models import (
    adapter_base,
    add_lora,
    check_model,
    config_limit,
    load_config,
    load_model,
    load_policy,
    load_to_device,
    load_tokenizer,
    load_whole,
    make_savable,
)

TOKENS = TokenLikelihood(0)

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("dtype", "short"), [("bfloat16", "bf16"), ("float16", "fp16")])
def test_a_dtype_without_units_is_said_once(lm_folder, monkeypatch, capsys, dtype, short):
    """In one sentence on a processor without them; nothing where it has them, on a GPU, or where torch does not say."""
    from trainers import models

    monkeypatch.setattr(models, "_say_slow", models._say_slow.__wrapped__)
    asked = f"_is_mkldnn_{short}_supported"
    monkeypatch.setattr(torch.ops.mkldnn, asked, lambda: True, raising=False)
    models.warn_if_slow(dtype, "cpu")
    monkeypatch.setattr(torch.ops.mkldnn, asked, lambda: False, raising=False)
    models.warn_if_slow(dtype, "cuda")
    models.warn_if_slow("float32", "cpu")
    assert not capsys.readouterr().err
    models.warn_if_slow(dtype, "cpu")
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert f"no units for {dtype}" in said
    assert "Use float32" in said
    monkeypatch.undo()
    models._say_slow.cache_clear()
    monkeypatch.setattr(torch.ops.mkldnn, asked, lambda: False, raising=False)
    for _ in range(2):
        load_to_device(lm_folder, dtype=dtype)
    assert capsys.readouterr().err.count("no units") == (0 if torch.cuda.is_available() else 1)


@pytest.mark.parametrize("name", ["./nowhere", "my model", "models/größe 7", "a/b/c", "x" * 200, "M--x"])
def test_missing_folder(name):
    for read in (load_model, load_tokenizer):
        with pytest.raises(DataError, match="no such model folder"):
            read(name)


def test_a_name_that_is_no_folder_and_no_known_id():
    for read in (load_model, config_limit):
        with pytest.raises(DataError, match="nowhere: no such model folder, and the hub does not answer"):
            read("nowhere")


def test_folder_without_config(tmp_path):
    with pytest.raises(DataError, match=r"no config\.json"):
        load_model(str(tmp_path))


def test_folder_without_tokenizer(lm_folder, tmp_path):
    for name in ("config.json", "model.safetensors"):
        shutil.copy(Path(lm_folder) / name, tmp_path)
    with pytest.raises(DataError, match="no tokenizer in this folder"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(("said", "stops"), [([2, 5], (2, 5)), (3, (3,)), (None, ())])
def test_where_a_model_stops_is_read_with_its_tokenizer(lm_folder, tmp_path, said, stops):
    shutil.copytree(lm_folder, tmp_path / "m")
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps({"eos_token_id": said}))
    assert load_tokenizer(str(tmp_path / "m")).stops_at == stops
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "m"}))
    assert load_tokenizer(str(tmp_path / "a")).stops_at == stops
    for file in (tmp_path / "m").glob("*token*"):
        shutil.copy(file, tmp_path / "a")
    assert load_tokenizer(str(tmp_path / "a")).stops_at == stops


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
    with pytest.raises(DataError, match=r"model\.safetensors: not readable as safetensors"):
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
    found = [r for s in score(model, pairs, likelihood=TOKENS) for r in rows(s.pairs, s.stats, ["ches_score"])]
    return [(r["pair_id"], r["chosen_logps"], r["rejected_logps"], r["ches_score"]) for r in found]


@pytest.fixture
def copied(lm_folder, tmp_path):
    """A copy of the model folder to break, a way to change its config, and one to rename or drop its weights."""
    folder = tmp_path / "copied"
    shutil.copytree(lm_folder, folder)

    def config(**keys):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | keys))

    def weights(change):
        path = folder / "model.safetensors"
        kept = {change(k): v for k, v in load_file(path).items() if change(k)}
        save_file(kept, path, metadata={"format": "pt"})

    return folder, config, weights


def without(part):
    return lambda name: None if part in name else name


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (without("lm_head"), "1 missing (lm_head.weight)"),
        (without(".layers.1."), "9 missing (model.layers.1."),
        (without("layers.0.mlp.up_proj"), "1 missing (model.layers.0.mlp.up_proj.weight)"),
        (lambda name: "module." + name, "left over (module.lm_head.weight"),
        (lambda name: name.replace("lm_head", "v_head"), "1 left over (v_head.weight)"),
    ],
)
def test_weights_that_are_not_there_are_named(copied, change, named):
    """Such a weight would be filled with chance numbers, another one in each process."""
    folder, _, weights = copied
    weights(change)
    with pytest.raises(DataError) as error:
        load_model(str(folder))
    assert named in str(error.value)
    assert error.value.exit_code == 3


@pytest.mark.parametrize("device_map", [None, "cpu"])
@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"num_hidden_layers": 3}, "9 missing (model.layers.2."),
        ({"num_hidden_layers": 1}, "9 left over (model.layers.1."),
        ({"intermediate_size": 40}, "6 of another shape (model.layers.0.mlp.down_proj.weight (32, 48) for (32, 40)"),
        ({"attention_bias": True}, "8 missing (model.layers.0.self_attn.k_proj.bias"),
    ],
)
def test_weights_that_the_config_does_not_describe_are_named(copied, keys, named, device_map):
    folder, config, _ = copied
    config(**keys)
    with pytest.raises(DataError, match="not those of the model that config") as error:
        load_model(str(folder), device_map=device_map)
    assert named in str(error.value)


def test_a_body_and_a_reward_model_are_named_as_what_they_are(lm_folder, tmp_path):
    load_model(lm_folder).model.save_pretrained(tmp_path / "body")
    with pytest.raises(DataError, match=r"lm_head\.weight.*saved as LlamaModel, not as a causal language model"):
        load_model(str(tmp_path / "body"))
    AutoModelForSequenceClassification.from_pretrained(lm_folder, num_labels=1).save_pretrained(tmp_path / "reward")
    with pytest.raises(DataError, match=r"lm_head\.weight.*saved as LlamaForSequenceClassification"):
        load_model(str(tmp_path / "reward"))
    with pytest.raises(DataError, match=r"score\.weight"):  # nor is a language model a classifier
        load_whole(AutoModelForSequenceClassification, lm_folder)


def test_tied_embeddings_and_buffers_of_old_checkpoints_are_no_fault(lm_folder, copied, make_model, tmp_path):
    folder, config, weights = copied
    config(tie_word_embeddings=True)
    weights(without("lm_head"))
    tied = load_model(str(folder))
    assert tied.lm_head.weight is tied.model.embed_tokens.weight
    make_model("gptj").save_pretrained(tmp_path / "old")
    path = tmp_path / "old" / "model.safetensors"
    more = {f"transformer.h.0.attn.{n}": torch.ones(1) for n in ("bias", "masked_bias")}
    save_file(load_file(path) | more, path, metadata={"format": "pt"})
    assert load_model(str(tmp_path / "old"))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "../other/model.safetensors"])
def test_an_index_that_leads_elsewhere_is_refused(copied, name):
    folder, _, _ = copied
    names = dict.fromkeys(load_file(folder / "model.safetensors"), name)
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    with pytest.raises(DataError, match=r"to be read from .*, which is no \.safetensors file of this model"):
        load_model(str(folder))


def test_weights_as_whole_numbers_are_quantised(copied):
    """Without their scale, which no quantization_config names, they would be taken for weights of up to 127."""
    folder, _, _ = copied
    path = folder / "model.safetensors"
    weights = load_file(path)
    name = next(k for k in weights if "up_proj" in k)
    save_file(weights | {name: (weights[name] * 100).to(torch.int8)}, path, metadata={"format": "pt"})
    for read in (load_model, check_model):
        with pytest.raises(DataError, match=rf"its weights are quantised \({name}: I8\)"):
            read(str(folder))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (Path.unlink, "missing, and the list of the model's weights names it"),
        (lambda p: p.write_bytes(p.read_bytes()[:-9]), "not readable as saf"),
    ],
)
def test_a_shard_that_is_missing_or_cut_is_named(copied, spoil, said):  # fmt: skip
    folder, _, _ = copied
    weights = load_file(folder / "model.safetensors")
    halves = {f"model-0000{i + 1}-of-00002.safetensors": list(weights)[i::2] for i in range(2)}
    for leaf, keys in halves.items():
        save_file({k: weights[k] for k in keys}, folder / leaf, metadata={"format": "pt"})
    names = {k: leaf for leaf, keys in halves.items() for k in keys}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": names}))
    (folder / "model.safetensors").unlink()
    assert load_model(str(folder))
    check_model(str(folder))
    spoil(folder / "model-00002-of-00002.safetensors")
    for read in (load_model, check_model):
        with pytest.raises(DataError, match=rf"model-00002-of-00002\.safetensors: {said}"):
            read(str(folder))


def test_a_decoy_beside_pickles_is_not_enough(copied):
    folder, _, _ = copied
    (folder / "model.safetensors").rename(folder / "decoy.safetensors")
    torch.save({}, folder / "pytorch_model.bin")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_model(str(folder))


def test_a_config_that_names_pickled_weights_is_refused(copied):
    folder, config, _ = copied
    torch.save({}, folder / "adapter_model.bin")
    config(transformers_weights="adapter_model.bin")
    with pytest.raises(DataError, match=r"to be read from adapter_model\.bin"):
        load_model(str(folder))


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"attn_implementation": "someone/kernel"}, "attn_implementation 'someone/kernel', which is code from the hub"),
        ({"_attn_implementation": {"": "someone/kernel"}}, "which is code from the hub"),
        ({"text_config": {"attn_implementation": "a/b@main:c"}}, "attn_implementation 'a/b@main:c'"),
        ({"experts_implementation": "someone/experts"}, "experts_implementation 'someone/experts'"),
        ({"quantization_config": {"quant_method": "mxfp4"}}, "quantised"),
        ({"model_type": "own", "auto_map": {"AutoConfig": "code.Config"}}, "Python code of its own"),
        ({"model_type": "none such"}, "config cannot be read"),
        ({"num_attention_heads": 0}, "cannot be"),
        ({"num_hidden_layers": "two"}, "cannot be"),
    ],
)
def test_a_config_that_wants_code_or_makes_no_sense_is_one_sentence(copied, keys, said):
    folder, config, _ = copied
    (folder / "code.py").write_text("raise SystemExit('this code ran')")
    config(**keys)
    for read in (load_model, config_limit):
        if read is load_model or "cannot be" not in said:
            with pytest.raises(DataError) as error:
                read(str(folder))
            assert said in str(error.value)
            assert "trust_remote_code" not in str(error.value)


def test_the_attention_is_not_the_files_choice(copied):
    folder, config, _ = copied
    config(attn_implementation="flash_attention_2")
    assert load_config(str(folder))._attn_implementation is None
    assert load_model(str(folder)).config._attn_implementation in ("sdpa", "eager")


@pytest.fixture
def adapter(lm_folder, tmp_path):
    """An adapter that changes the numbers, on the model folder."""
    model = add_lora(load_model(lm_folder), r=2, alpha=4, targets="all-linear")
    with torch.no_grad():
        for i, (name, weight) in enumerate(sorted(model.named_parameters())):
            if "lora_" in name:
                weight.copy_(0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(i)))
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter", model.eval()


def change_json(path, **keys):
    path.write_text(json.dumps(json.loads(path.read_text()) | keys))


def test_an_adapter_is_loaded_on_its_base_and_says_which(adapter, lm_folder, make_pairs, capsys):
    folder, model = adapter
    shutil.copy(Path(lm_folder) / "config.json", folder)  # as some trainers leave it
    wanted, plain = scores(model, make_pairs(4)), scores(load_model(lm_folder), make_pairs(4))
    assert adapter_base(str(folder)) == lm_folder
    got = scores(load_model(str(folder)), make_pairs(4))
    assert f"its base model is {lm_folder}" in capsys.readouterr().err
    assert got == wanted
    merged = scores(load_policy(str(folder)), make_pairs(4))
    for one, two, other in zip(got, merged, plain, strict=True):
        assert one[1:3] == pytest.approx(two[1:3], abs=1e-4)
        assert abs(one[1] - other[1]) > 1e-2
    assert all(p.requires_grad for p in load_policy(str(folder)).parameters())
    assert load_tokenizer(str(folder)).get_vocab() == load_tokenizer(lm_folder).get_vocab()
    assert config_limit(str(folder)) == 128


def test_an_adapter_trained_on_an_adapter_has_both(adapter, tmp_path, make_pairs):
    """Its base is the adapter below it, never the bare model, which would lose that adapter without a word."""
    folder, _ = adapter
    policy = load_policy(str(folder))
    second = add_lora(policy, r=2, alpha=4, targets="q_proj")
    second.save_pretrained(tmp_path / "second")
    assert adapter_base(str(tmp_path / "second")) == str(folder)
    for one, two in zip(scores(load_model(str(tmp_path / "second")), make_pairs(3)), scores(second, make_pairs(3))):
        assert one[1:3] == pytest.approx(two[1:3], abs=1e-5)


def test_a_base_that_moved_with_its_adapter_is_found_beside_it(adapter, lm_folder, tmp_path):
    folder, _ = adapter
    shutil.copytree(lm_folder, tmp_path / "base")
    change_json(folder / "adapter_config.json", base_model_name_or_path="base")
    assert adapter_base(str(folder)) == str(tmp_path / "base")


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"r": 8}, "does not fit its base model"),
        ({"r": "two"}, "does not fit its base model"),
        ({"target_modules": ["q_proj"]}, "is left over"),
        ({"target_modules": ["no_such"]}, "does not fit its base model"),
        ({"base_model_name_or_path": None}, "names no base model"),
        ({"base_model_name_or_path": "./nowhere"}, "no such model folder"),
        ({"task_type": "SEQ_CLS"}, "adapters of the kind"),
        ({"peft_type": "PROMPT_TUNING", "num_virtual_tokens": 2}, "does not fit"),
        ({"peft_type": "UNHEARD"}, "does not fit its base model"),
    ],
)
def test_an_adapter_that_does_not_fit_is_one_sentence(adapter, keys, said):
    folder, _ = adapter
    change_json(folder / "adapter_config.json", **keys)
    with pytest.raises(DataError, match=said) as error:
        load_model(str(folder))
    assert "\n" not in str(error.value)


def test_an_adapter_on_another_base_is_one_sentence(adapter, copied):
    folder, _ = adapter
    other, config, weights = copied
    config(num_hidden_layers=1)
    weights(without(".layers.1."))
    change_json(folder / "adapter_config.json", base_model_name_or_path=str(other))
    with pytest.raises(DataError, match="is left over"):
        load_model(str(folder))


def test_a_broken_adapter_config_is_one_sentence(adapter):
    folder, _ = adapter
    for text, said in (("{", "is not readable as JSON"), ("[1]", "holds no JSON object")):
        (folder / "adapter_config.json").write_text(text)
        for read in (load_model, load_tokenizer, config_limit):
            with pytest.raises(DataError, match=said):
                read(str(folder))


def test_an_adapter_with_pickled_weights_is_refused_beside_a_decoy_too(adapter):
    folder, _ = adapter
    (folder / "adapter_model.safetensors").rename(folder / "decoy.safetensors")
    torch.save({}, folder / "adapter_model.bin")
    with pytest.raises(DataError, match=r"only pickled weights \(adapter_model\.bin\)"):
        load_model(str(folder))


def test_adapters_in_a_circle_and_adapters_with_a_whole_model_are_refused(adapter, lm_folder):
    folder, _ = adapter
    change_json(folder / "adapter_config.json", base_model_name_or_path=str(folder))
    for read in (load_model, load_tokenizer, config_limit):
        (folder / "tokenizer.json").unlink(missing_ok=True)
        with pytest.raises(DataError, match="has this adapter as its own base"):
            read(str(folder))
    shutil.copy(Path(lm_folder) / "model.safetensors", folder)
    with pytest.raises(DataError, match="holds a whole model and an adapter"):
        load_model(str(folder))


def test_an_adapter_of_resized_embeddings_is_one_sentence(lm_folder, tmp_path):
    model = load_model(lm_folder)
    model.resize_token_embeddings(model.config.vocab_size + 8)
    settings = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"])
    peft.get_peft_model(model, settings).save_pretrained(tmp_path)
    with pytest.raises(DataError, match=r"does not fit its base model .*size mismatch"):
        load_model(str(tmp_path))


def test_settings_that_cannot_be_saved_are_found_before_training(copied):
    """Sampling settings without sampling change nothing, and would make saving fail after the training."""
    folder, _, _ = copied
    settings = {"do_sample": False, "temperature": 0.6, "top_p": 0.9, "eos_token_id": [1, 5], "max_length": 99}
    (folder / "generation_config.json").write_text(json.dumps(settings))
    model = load_model(str(folder))
    assert "settings of sampling" in str(make_savable(model))
    model.save_pretrained(folder / "saved")
    saved = json.loads((folder / "saved" / "generation_config.json").read_text())
    assert (saved["eos_token_id"], saved["max_length"]) == ([1, 5], 99)
    assert "temperature" not in saved
    assert make_savable(load_model(str(folder / "saved"))) is None
    model.generation_config.num_return_sequences = 3  # of greedy search: no setting of sampling
    with pytest.raises(DataError, match="cannot be saved"):
        make_savable(model)


def test_a_folder_that_is_not_there_is_said_at_once_where_no_hub_answers():
    """One question to the hub, and no retries."""
    code = "from trainers.models import load_config; load_config('out/checkpoint-9')"
    env = os.environ | {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "out/checkpoint-9: no such model folder, and the hub does not answer" in done.stderr.splitlines()[-1]
    assert "Retrying" not in done.stderr
