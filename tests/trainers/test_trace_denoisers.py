"""A trace of denoisers: of a run's own adapters it says what the run says; diffusers' layouts are read as diffusers
reads them."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file, save_file

from diagnostics.diffusion.denoiser import MLPDenoiser
from diagnostics.errors import DataError, UserError
from diagnostics.runlog import read_run
from tests.diagnostics.diffusion.test_pipelines import NETS, pipeline
from trainers.config import make_config
from trainers.denoisers import load_denoiser
from trainers.layouts import expand
from trainers.run import train
from trainers.trace import trace

TARGETS = ["to_k", "to_q", "to_v", "to_out.0"]  # of diffusers' train_diffusion_dpo.py


def test_equals_the_runs_own_probe(tmp_path):
    torch.manual_seed(0)
    MLPDenoiser(size=4, classes=2, width=8, blocks=1).save(tmp_path / "mlp")
    draw = np.random.default_rng(0)
    data = tmp_path / "pairs.safetensors"
    arrays = {side: draw.normal(size=(12, 4)).astype(np.float32) for side in ("chosen", "rejected")}
    save_file(arrays | {"class_labels": np.arange(12) % 2}, data)
    keys = {
        "likelihood": "denoising", "objective": "diffusion_dpo", "model": str(tmp_path / "mlp"), "data": str(data),
        "output_dir": str(tmp_path / "run"), "max_steps": 4, "draws": 4, "learning_rate": 0.01, "lora_r": 2,
        "probe_pairs": 99, "heldout_pairs": 0, "probe_every": 2, "save_strategy": "steps", "save_steps": 2,
        "use_cpu": True, "disable_tqdm": True,
    }  # fmt: skip
    own: Any = read_run(train(make_config(keys)))
    how: Any = {"likelihood": "denoising", "draws": 4}
    log: Any = read_run(trace(str(data), [str(tmp_path / "run" / "checkpoints")], tmp_path / "t", **how))
    assert log.steps["step"].tolist() == [0, 2, 4]
    shared = ["chosen_logps", "rejected_logps", "ref_chosen_logps", "chosen_kl", "rejected_kl"]
    ours, theirs = (
        table[table["split"] == "probe"].set_index(["step", "pair_id"])[shared].sort_index()
        for table in (own.pairs, log.pairs)
    )
    pd.testing.assert_index_equal(ours.index, theirs.index)
    np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    key = ["step", "pair_id", "side", "draw"]
    ours, theirs = (table.query("split == 'probe'").set_index(key).sort_index() for table in (own.draws, log.draws))
    np.testing.assert_allclose(ours["error"], theirs["error"], rtol=1e-4)
    assert (ours["time"] == theirs["time"]).all()
    assert log.manifest["likelihood"] == own.manifest["likelihood"]
    with pytest.raises(UserError, match="no tokens: leave tokenizer out"):
        trace(str(data), [str(tmp_path / "mlp")], tmp_path / "u", tokenizer="x", **how)
    (tmp_path / "checkpoint-9").mkdir()
    with pytest.raises(DataError, match="checkpoint-9: no checkpoint of a denoiser"):
        trace(str(data), [str(tmp_path / "checkpoint-9")], tmp_path / "u", reference=str(tmp_path / "mlp"), **how)


@pytest.fixture
def script(tmp_path):
    """The output folder of diffusers' train_diffusion_dpo.py: a LoRA in each checkpoint beside accelerate's states, the
    last one in the folder itself; and one more checkpoint, a folder unet, as scripts without an adapter write it."""
    diffusers, peft = pytest.importorskip("diffusers"), pytest.importorskip("peft")
    pipe = pipeline(tmp_path)
    pipe.unet.add_adapter(peft.LoraConfig(r=2, lora_alpha=2, init_lora_weights="gaussian", target_modules=TARGETS))
    out, wanted = tmp_path / "out", {}
    for step in (10, 20):
        folder = out / f"checkpoint-{step}"
        with torch.no_grad():
            for name, parameter in pipe.unet.named_parameters():
                if "lora_" in name:
                    parameter += 0.3 * torch.randn_like(parameter)
        layers = diffusers.utils.convert_state_dict_to_diffusers(peft.get_peft_model_state_dict(pipe.unet))
        for where in (folder, out):
            pipe.save_lora_weights(where, unet_lora_layers=layers, text_encoder_lora_layers=None)
        for name in ("optimizer.bin", "scheduler.bin", "random_states_0.pkl"):
            (folder / name).write_bytes(b"not read")
        wanted[step] = output(pipe.unet)
    whole = diffusers.UNet2DConditionModel(**NETS["UNet2DConditionModel"] | {"in_channels": 4, "out_channels": 4})
    whole.save_pretrained(out / "checkpoint-30" / "unet")
    whole.save_pretrained(out / "checkpoint-30" / "unet_ema")
    return out, wanted | {30: output(whole)}


X, T, TOLD = torch.linspace(-1, 1, 256).view(1, 4, 8, 8), torch.tensor([300]), torch.ones(1, 5, 16)


def output(unet) -> np.ndarray:
    with torch.no_grad():
        return unet.eval()(X, T, TOLD).sample.numpy()


def test_the_checkpoints_of_diffusers_script(script, tmp_path):
    from trainers.denoisers import load_checkpoint

    out, wanted = script
    assert [p.rpartition("-")[2] for p in expand([str(out)])] == ["10", "20", "30"]
    base = load_denoiser(str(tmp_path / "pipe"))
    start = output(base.net)
    for step, own in wanted.items():
        found = load_checkpoint(str(out / f"checkpoint-{step}"), base)
        assert np.allclose(output(found.net), own, atol=1e-5)
        assert np.abs(own - start).max() > 0.01
    assert np.array_equal(output(base.net), start)  # the reference is untouched
    draw = np.random.default_rng(0)
    rows = {side: draw.normal(size=(6, 256)).astype(np.float32).tolist() for side in ("chosen", "rejected")}
    pd.DataFrame(rows | {"prompt": "a cat"}).to_json(tmp_path / "pairs.jsonl", orient="records", lines=True)
    how: Any = {"reference": str(tmp_path / "pipe"), "likelihood": "denoising", "draws": 3, "pairs": 4}
    log: Any = read_run(trace(str(tmp_path / "pairs.jsonl"), [str(out)], tmp_path / "t", **how))
    assert log.steps["step"].tolist() == [0, 10, 20, 30]
    assert log.pairs.groupby("step").size().tolist() == [4, 4, 4, 4]
    assert (log.pairs.query("step == 0")["chosen_kl"] == 0).all()
    assert (log.pairs.query("step > 0")["chosen_kl"] > 0).all()
    assert log.draws.groupby("step").size().to_dict() == {0: 24, 30: 24}


def test_a_lora_that_is_not_wholly_the_nets_is_refused(script, tmp_path):
    from trainers.denoisers import load_checkpoint

    file = script[0] / "checkpoint-10" / "pytorch_lora_weights.safetensors"
    base, weights = load_denoiser(str(tmp_path / "pipe")), load_file(file)
    key = next(iter(weights))
    for added in (key.replace("unet.", "text_encoder."), key.replace("to_", "to_nowhere_")):
        save_file(weights | {added: weights[key]}, file)
        with pytest.raises(DataError, match=r"pytorch_lora_weights\.safetensors: (holds text_encoder|not all)"):
            load_checkpoint(str(file.parent), base)
    file.write_bytes(b"cut")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_checkpoint(str(file.parent), base)
