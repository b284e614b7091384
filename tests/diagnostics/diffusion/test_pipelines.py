"""Models of diffusers, tiny and random: each through its own forward, saved and loaded as diffusers does."""

import json

import numpy as np
import pytest
import torch

from diagnostics.diffusion import noise
from diagnostics.diffusion.likelihood import DenoisingLikelihood
from diagnostics.diffusion.sample import Sample, sample_pair
from diagnostics.errors import DataError
from diagnostics.likelihood import pair_stats
from trainers.denoisers import load_denoiser

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
