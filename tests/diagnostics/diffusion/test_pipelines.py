"""Models of diffusers, tiny and random: each through its own forward, saved and loaded as diffusers does."""

import io
import json
import string

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from diagnostics.diffusion import noise
from diagnostics.diffusion.likelihood import DenoisingLikelihood
from diagnostics.diffusion.sample import Sample, sample_pair
from diagnostics.errors import DataError
from diagnostics.likelihood import pair_stats
from diagnostics.runlog import read_run
from trainers.config import make_config
from trainers.denoisers import add_adapter, load_denoiser
from trainers.run import train

diffusers = pytest.importorskip("diffusers")

UNET = {
    "sample_size": 8, "in_channels": 1, "out_channels": 1, "block_out_channels": (8, 16), "layers_per_block": 1,
    "norm_num_groups": 4,
}  # fmt: skip
ATTENTION = {"down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "cross_attention_dim": 16}
ATTENTION |= {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"), "attention_head_dim": 8}
NETS = {
    "UNet2DModel": UNET
    | {"down_block_types": ("DownBlock2D",) * 2, "up_block_types": ("UpBlock2D",) * 2, "num_class_embeds": 11},
    "UNet2DConditionModel": UNET | ATTENTION,
    "DiTTransformer2DModel": dict(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, sample_size=8, patch_size=2, in_channels=1,
        out_channels=2, norm_num_groups=4, num_embeds_ada_norm=11,
    ),
    "SD3Transformer2DModel": dict(
        num_attention_heads=4, attention_head_dim=8, num_layers=1, sample_size=8, patch_size=2, in_channels=1,
        out_channels=1, joint_attention_dim=16, caption_projection_dim=32, pooled_projection_dim=16,
        pos_embed_max_size=8,
    ),
    "FluxTransformer2DModel": dict(
        num_attention_heads=2, attention_head_dim=16, num_layers=1, num_single_layers=1, in_channels=4,
        joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
    ),
}  # fmt: skip
TOLD = {
    "UNet2DModel": {"class_labels": np.array(3)},
    "UNet2DConditionModel": {"encoder_hidden_states": np.ones((5, 16), np.float32)},
    "DiTTransformer2DModel": {"class_labels": np.array(3)},
}
TOLD |= dict.fromkeys(
    ("SD3Transformer2DModel", "FluxTransformer2DModel"),
    TOLD["UNet2DConditionModel"] | {"pooled_projections": np.ones(16, np.float32)},
)
FLOWS = ("SD3Transformer2DModel", "FluxTransformer2DModel")


def made(name: str, folder, **said):
    """A net's folder with its scheduler."""
    torch.manual_seed(0)
    net = getattr(diffusers, name)(**NETS[name])
    with torch.no_grad():  # a fresh net's last layer may be 0, which would hide all that comes before it
        for parameter in net.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    net.save_pretrained(folder)
    kind = "FlowMatchEulerDiscreteScheduler" if name in FLOWS else "DDPMScheduler"
    getattr(diffusers, kind)(**said).save_pretrained(folder)
    return net.eval()


@pytest.mark.parametrize("name", NETS)
def test_a_net_is_run_as_diffusers_runs_it(name, tmp_path):
    net, model = made(name, tmp_path / "net"), load_denoiser(str(made(name, tmp_path / "net") and tmp_path / "net"))
    draw, likelihood = np.random.default_rng(0), DenoisingLikelihood(draws=2)
    both = [Sample(draw.normal(size=(1, 8, 8)).astype(np.float32), TOLD[name]) for _ in range(2)]
    batch = likelihood.collate([sample_pair("p", 0, dict(zip(("chosen", "rejected"), both, strict=True)))])
    found = pair_stats(likelihood, batch, likelihood.run(model, batch))
    assert found.chosen.logps.isfinite().all()
    drawn = likelihood.fixed(batch, model)
    assert model.target == ("flow" if name in FLOWS else "eps")
    x_t, t = drawn.x_t[0, 1][None], drawn.times[0, 1][None]
    if name not in FLOWS:  # the same x_t as diffusers' own scheduler makes
        scheduler = diffusers.DDPMScheduler()
        own = scheduler.add_noise(batch.samples[:1], drawn.noise[0, 1][None], t)
        assert torch.allclose(own, x_t, atol=1e-6)
    told = {k: torch.from_numpy(v)[None] for k, v in TOLD[name].items()}
    with torch.no_grad():
        if name == "FluxTransformer2DModel":
            pipe = diffusers.FluxPipeline
            ids = pipe._prepare_latent_image_ids(1, 4, 4, "cpu", torch.float32)
            more = {"img_ids": ids, "txt_ids": torch.zeros(5, 3), "guidance": torch.ones(1)}
            packed = pipe._pack_latents(x_t, 1, 1, 8, 8)
            output = pipe._unpack_latents(net(packed, timestep=t.float() / 1000, **told, **more).sample, 8, 8, 1)
        else:
            output = net(x_t, timestep=t.float() if name in FLOWS else t, **told).sample[:, :1]
    assert torch.allclose(output.flatten() - drawn.target[0, 1].flatten(), found.chosen.residual[0, 1], atol=1e-5)


def test_a_net_comes_back_as_it_was_saved(tmp_path):
    made("DiTTransformer2DModel", tmp_path / "net", prediction_type="v_prediction")
    model = load_denoiser(str(tmp_path / "net"))
    assert (model.target, model.told, model.shape) == ("v", "class", (1, 8, 8))
    model.save(tmp_path / "again")
    again = diffusers.DiTTransformer2DModel.from_pretrained(tmp_path / "again", use_safetensors=True)
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), model.net.parameters(), strict=True))
    scheduler = diffusers.DDPMScheduler()
    x, eps, t = torch.randn(2, 1, 8, 8), torch.randn(2, 1, 8, 8), torch.tensor([10, 900])
    shares = [v.view(2, 1, 1, 1).float() for v in noise.shares("v", model.alphas, t)]
    assert torch.allclose(
        noise.wanted("v", x, eps, (shares[0], shares[1])), scheduler.get_velocity(x, eps, t), atol=1e-6
    )


def test_what_is_not_whole_or_not_safe_is_refused(tmp_path):
    made("DiTTransformer2DModel", tmp_path / "net")
    weights = tmp_path / "net" / "diffusion_pytorch_model.safetensors"
    torch.save({}, tmp_path / "net" / "diffusion_pytorch_model.bin")
    weights.rename(tmp_path / "away")
    with pytest.raises(DataError, match="cannot be loaded"):
        load_denoiser(str(tmp_path / "net"))
    (tmp_path / "away").rename(weights)
    (tmp_path / "net" / "scheduler_config.json").unlink()
    with pytest.raises(DataError, match=r"no scheduler_config\.json"):
        load_denoiser(str(tmp_path / "net"))
    (tmp_path / "net" / "config.json").write_text(json.dumps({"_class_name": "AutoencoderKL"}))
    with pytest.raises(DataError, match="holds a AutoencoderKL"):
        load_denoiser(str(tmp_path / "net"))


def without(file, ending):
    """Leave the first weight with this ending out of a file; its name."""
    weights = load_file(file)
    name = next(key for key in weights if key.endswith(ending))
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    return name


@pytest.mark.parametrize("part", ["", "unet", "vae", "text_encoder"])
def test_a_weight_that_is_missing_is_no_random_one(part, tmp_path):
    """diffusers and transformers would make it up."""
    if part:
        pipeline(tmp_path)
        leaf = "model.safetensors" if part == "text_encoder" else "diffusion_pytorch_model.safetensors"
        folder, file = tmp_path / "pipe", tmp_path / "pipe" / part / leaf
    else:
        made("UNet2DModel", tmp_path / "net")
        folder, file = tmp_path / "net", tmp_path / "net" / "diffusion_pytorch_model.safetensors"
    load_denoiser(str(folder))
    lost = without(file, "weight")
    with pytest.raises(DataError, match=lost.split(".", 1)[-1].replace(".", r"\.")):
        load_denoiser(str(folder))


def test_an_adapter_of_a_denoiser_is_merged_whole_or_not_at_all(tmp_path):
    made("UNet2DConditionModel", tmp_path / "net")
    adapted = add_adapter(load_denoiser(str(tmp_path / "net")), r=1, alpha=1, targets="all-linear")
    adapted.save_pretrained(tmp_path / "lora")
    load_denoiser(str(tmp_path / "lora"))
    lost = without(tmp_path / "lora" / "adapter_model.safetensors", "lora_B.weight")
    with pytest.raises(DataError, match=f"{lost.removesuffix('.weight')}.*is missing"):
        load_denoiser(str(tmp_path / "lora"))


def pipeline(folder):
    """A tiny random Stable Diffusion pipeline, saved as diffusers does."""
    transformers = pytest.importorskip("transformers")
    words = ["<|startoftext|>", "<|endoftext|>", *(c + end for c in string.ascii_lowercase for end in ("", "</w>"))]
    (folder / "words").mkdir(parents=True)
    (folder / "words" / "vocab.json").write_text(json.dumps({word: k for k, word in enumerate(words)}))
    (folder / "words" / "merges.txt").write_text("#version: 0.2\n")
    torch.manual_seed(0)
    text = transformers.CLIPTextConfig(
        vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    vae = diffusers.AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=4, latent_channels=4,
        up_block_types=("UpDecoderBlock2D",) * 2, sample_size=16, scaling_factor=0.2,
    )  # fmt: skip
    made = diffusers.StableDiffusionPipeline(
        vae=vae, text_encoder=transformers.CLIPTextModel(text),
        scheduler=diffusers.DDPMScheduler(steps_offset=1, clip_sample=False),
        tokenizer=transformers.CLIPTokenizer(
            str(folder / "words" / "vocab.json"), str(folder / "words" / "merges.txt"), model_max_length=8
        ),
        unet=diffusers.UNet2DConditionModel(**NETS["UNet2DConditionModel"] | {"in_channels": 4, "out_channels": 4}),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    made.save_pretrained(folder / "pipe")
    return made


def test_a_pipeline_is_trained_with_an_adapter_from_images_to_log(tmp_path):
    pipe, draw = pipeline(tmp_path), np.random.default_rng(0)

    def image() -> bytes:
        file = io.BytesIO()
        Image.fromarray(draw.integers(0, 255, size=(24, 20, 3), dtype=np.uint8)).save(file, "jpeg")
        return file.getvalue()

    rows = [
        {"jpg_0": image(), "jpg_1": image(), "label_0": float(k % 2), "caption": "a cat"[: k % 3 + 3]} for k in range(9)
    ]
    pd.DataFrame(rows).to_parquet(tmp_path / "pairs.parquet")
    keys = {
        "likelihood": "denoising", "objective": "diffusion_dpo", "model": str(tmp_path / "pipe"), "lora_r": 2,
        "lora_targets": "to_k,to_q,to_v,to_out.0", "data": str(tmp_path / "pairs.parquet"), "max_steps": 3, "draws": 2,
        "output_dir": str(tmp_path / "run"), "per_device_train_batch_size": 2, "learning_rate": 0.01, "use_cpu": True,
        "disable_tqdm": True, "heldout_pairs": 0, "probe_pairs": 4, "sample_every": 3, "samples": 2,
    }  # fmt: skip
    log = read_run(train(make_config(keys)))
    first, last = (log.pairs.query(f"split == 'probe' and step == {k}") for k in (0, 3))
    assert np.array_equal(first["chosen_logps"], first["ref_chosen_logps"])
    assert np.array_equal(first["ref_chosen_logps"], last["ref_chosen_logps"])
    assert not np.array_equal(last["chosen_logps"], last["ref_chosen_logps"])
    assert len(list((tmp_path / "latents").glob("*.safetensors"))) == 18  # each image once
    model = load_denoiser(str(tmp_path / "run" / "model"))
    assert model.told == "text"
    # a latent is the mode of the VAE's posterior, scaled; a text is what the pipeline itself makes of it
    seen = model.see([np.full((16, 16, 3), 255, np.uint8)])[0]
    own = pipe.vae.eval().encode(torch.ones(1, 3, 16, 16)).latent_dist.mode()[0] * 0.2
    assert torch.allclose(torch.from_numpy(seen), own, atol=1e-5)
    told = model.tell(["a cat"])[0]["encoder_hidden_states"]
    wanted = pipe.encode_prompt("a cat", torch.device("cpu"), 1, False)[0][0]
    assert torch.allclose(torch.from_numpy(told), wanted, atol=1e-6)
    model.save(tmp_path / "whole")
    diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "whole", use_safetensors=True)
    # new samples, decoded: those of the pipeline's own loop with this scheduler, and the adapter in the pipeline itself
    assert log.samples.groupby("step").size().to_dict() == {0: 2, 3: 2}
    assert set(log.samples["text"]) <= {"a c", "a ca", "a cat"}
    images = log.samples.sort_values(["step", "sample"])["image"].tolist()
    assert images[:2] != images[2:]
    pipe.load_lora_weights(tmp_path / "run" / "model")
    x, t, text = torch.randn(1, 4, 8, 8), torch.tensor([300]), torch.from_numpy(told)[None]
    with torch.no_grad():
        ours, plain = (load_denoiser(str(tmp_path / name)).net(x, t, text).sample for name in ("run/model", "pipe"))
        assert torch.allclose(pipe.unet(x, t, text).sample, ours, atol=1e-5)
    assert not torch.allclose(ours, plain, atol=1e-3)


def test_samples_are_those_of_the_pipelines_own_loop(tmp_path):
    from diagnostics.diffusion import drawn

    pipe = pipeline(tmp_path)
    model, steps = load_denoiser(str(tmp_path / "pipe")), 4
    noise = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    told = {"encoder_hidden_states": torch.from_numpy(model.tell(["a cat"])[0]["encoder_hidden_states"])[None]}
    before = drawn.STEPS
    drawn.STEPS = steps
    try:
        draws = [torch.Generator().manual_seed(5)]
        found = drawn.drawn(model, lambda x, t, c: model(x, t, c), noise, told, draws, (-1.0, 1.0))
    finally:
        drawn.STEPS = before
    pipe.set_progress_bar_config(disable=True)
    how = {"num_inference_steps": steps, "guidance_scale": 1.0, "generator": torch.Generator().manual_seed(5)}
    wanted = pipe("a cat", latents=noise, output_type="latent", height=16, width=16, **how).images
    assert torch.allclose(found, wanted, atol=1e-4 * float(wanted.abs().max()))
    seen = model.shown(found)
    own = pipe.vae.eval().decode(wanted / 0.2).sample.clamp(-1, 1)
    assert seen.shape == (1, 3, 16, 16)
    assert torch.allclose(seen, own, atol=1e-3)
