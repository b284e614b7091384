"""Models of diffusers as denoisers: UNet2DModel, UNet2DConditionModel, DiT, SD3 and Flux, alone or in their pipeline.

diffusers is an optional extra (pip install 'chesboard[diffusion]') and takes seconds to import: only this file does.
"""

import copy
import hashlib
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from torch import Tensor, nn

from diagnostics.diffusion.denoiser import Condition, Denoiser, pixels
from diagnostics.diffusion.noise import FLOW_TIMES
from diagnostics.diffusion.sample import array_digest
from diagnostics.engine import device_of, evaluating
from diagnostics.errors import DataError, UserError
from diagnostics.files import read_json
from diagnostics.fingerprint import weights_hash

LORA = "pytorch_lora_weights.safetensors"  # as diffusers' scripts save an adapter
_UNREADABLE = (OSError, ValueError, TypeError, AttributeError, RuntimeError, KeyError, SafetensorError)
PREDICTED = {"epsilon": "eps", "v_prediction": "v", "sample": "x0", "flow_prediction": "flow"}


class DiffusersDenoiser(Denoiser):
    """A net of diffusers with the target and the times of its scheduler. parts: the pipeline that it stands in, for
    texts and images, or None; it is no part of what is trained."""

    scheduler: Any
    parts: Any

    def __init__(self, net: Any, scheduler: Any, parts: Any = None) -> None:
        super().__init__()
        self.net, self.kind = net, type(net).__name__
        if self.kind not in CALLS:
            raise DataError(f"{self.kind}: not one of {', '.join(CALLS)}, which Chesboard runs.")
        if getattr(net.config, "addition_embed_type", None):
            raise DataError(f"{self.kind}: it is told sizes beside the text (SDXL), which Chesboard does not run.")
        flow = type(scheduler).__name__.startswith("FlowMatch")
        self.target = "flow" if flow else PREDICTED[scheduler.config.get("prediction_type", "epsilon")]
        self.alphas = torch.zeros(0) if self.target == "flow" else scheduler.alphas_cumprod.double()
        object.__setattr__(self, "scheduler", scheduler)
        object.__setattr__(self, "parts", parts)  # outside of the modules: not trained
        self._texts: dict[str, dict[str, np.ndarray]] = {}
        self._vae_hash = ""
        self.shape = self._shape()
        texts = getattr(parts, "text_encoder", None) is not None
        self.labels = CLASSES[self.kind](net)
        self.told = "class" if self.labels else "text" if texts else ""

    def forward(self, x_t: Tensor, times: Tensor, condition: Condition) -> Tensor:
        """See Denoiser."""
        return CALLS[self.kind](self.net, x_t, times, dict(condition))

    def _shape(self) -> tuple[int, ...] | None:
        channels, size = self.net.config.in_channels, getattr(self.net.config, "sample_size", None)
        if self.kind == "FluxTransformer2DModel":
            channels, size = channels // 4, getattr(self.parts, "default_sample_size", None)
        if size is None:
            return None
        height, width = (size, size) if isinstance(size, int) else size
        return channels, height, width

    @property
    def vae(self) -> Any:
        """What makes latents of images; None where the net takes pixels."""
        return getattr(self.parts, "vae", None)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """See Denoiser; with a VAE, of the images that it encodes."""
        if self.vae is None or self.shape is None:
            return super().image_shape
        factor = 2 ** (len(self.vae.config.block_out_channels) - 1)
        return self.vae.config.in_channels, self.shape[1] * factor, self.shape[2] * factor

    def see(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        """See Denoiser; with a VAE, the latents: the mode of its posterior, shifted and scaled as its config says, made
        once and kept in the cache."""
        if self.vae is None:
            return super().see(images)
        return [self._latents(image) for image in images]

    @torch.no_grad()
    def shown(self, samples: Tensor) -> Tensor:
        """See Denoiser; with a VAE, what it decodes."""
        if self.vae is None:
            return samples
        found = samples / self.vae.config.scaling_factor + (getattr(self.vae.config, "shift_factor", None) or 0.0)
        with evaluating(self.vae):
            seen = self.vae.decode(found.to(device_of(self.vae), next(self.vae.parameters()).dtype)).sample
        return seen.clamp(-1, 1)

    @torch.no_grad()
    def _latents(self, image: np.ndarray) -> np.ndarray:
        self._vae_hash = self._vae_hash or weights_hash(self.vae)
        content = repr((array_digest(image), self.image_shape, self._vae_hash))
        file = (
            self.cache and self.cache / f"{hashlib.blake2b(content.encode(), digest_size=16).hexdigest()}.safetensors"
        )
        if file and file.exists():
            return load_file(file)["latents"]
        seen = torch.from_numpy(pixels(image, self.image_shape))[None]
        self.vae.eval()
        found = self.vae.encode(seen.to(device_of(self.vae), next(self.vae.parameters()).dtype)).latent_dist.mode()
        found = (found - (getattr(self.vae.config, "shift_factor", None) or 0.0)) * self.vae.config.scaling_factor
        latents = found[0].float().cpu().numpy()
        if file:
            file.parent.mkdir(parents=True, exist_ok=True)
            save_file({"latents": latents}, file)
        return latents

    def tell(self, said: Sequence[Any]) -> list[dict[str, np.ndarray]]:
        """See Denoiser; a text as its encoders give it, each once."""
        if self.told != "text":
            if self.kind not in ALONE and self.told != "class":
                raise DataError(f"{self.kind} is told texts: give the folder of its pipeline, with text encoders.")
            return super().tell(said)
        for text in {str(value) for value in said} - self._texts.keys():
            with torch.no_grad():
                found = ENCODED[self.kind](self.parts, text)
            self._texts[text] = {name: value[0].float().cpu().numpy() for name, value in found.items()}
        return [self._texts[str(value)] for value in said]

    def with_weights(self, folder: Path, net_folder: Path | None) -> "DiffusersDenoiser":
        """This denoiser with another net of its kind, from net_folder, or else with the LoRA in `folder` merged into a
        copy of its net. Raises DataError for weights that are not whole, or of another net."""
        try:
            net = self._net(net_folder) if net_folder else self._lora(folder / LORA)
        except _UNREADABLE as error:
            raise DataError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:200]}).") from None
        return DiffusersDenoiser(net, self.scheduler, self.parts)

    def _net(self, folder: Path) -> Any:
        kind = read_json(folder / "config.json").get("_class_name")
        if kind != self.kind:
            raise DataError(f"{folder}: holds a {kind}, and the reference is a {self.kind}.")
        return _whole(type(self.net), folder)

    def _lora(self, file: Path) -> Any:
        prefix, weights = "unet" if self.kind.startswith("UNet") else "transformer", load_file(file)
        other = [key for key in weights if not key.startswith(f"{prefix}.") or key.endswith(".alpha")]
        if other or not weights:
            raise DataError(f"{file}: holds {other[0] if other else 'nothing'}; only a LoRA of the {prefix} is read.")
        net = copy.deepcopy(self.net)
        net.load_lora_adapter(
            file.parent, prefix=prefix, weight_name=file.name, use_safetensors=True, local_files_only=True
        )
        put = sorted(float(p.detach().double().square().sum()) for n, p in net.named_parameters() if "lora_" in n)
        wanted = sorted(float((v.astype(float) ** 2).sum()) for v in weights.values())
        if len(put) != len(wanted) or not np.allclose(put, wanted, rtol=1e-2):
            raise DataError(f"{file}: not all of its weights have a place in the {self.kind} of the reference.")
        net.fuse_lora()
        net.unload_lora()
        return net

    def save(self, folder: str | Path) -> None:
        """As diffusers does, in safetensors: the whole pipeline, or the net with its scheduler."""
        if self.parts is not None:
            self.parts.save_pretrained(folder)
        else:
            self.net.save_pretrained(folder)
            self.scheduler.save_pretrained(folder)


def load_pipeline(folder: Path) -> DiffusersDenoiser:
    """The denoiser in a folder of diffusers: a pipeline's (model_index.json), or a net's config.json and safetensors
    with scheduler_config.json beside them. Raises DataError where it cannot be loaded safely and whole."""
    try:
        import diffusers as library
    except ImportError:
        raise UserError("models of diffusers need an extra: pip install 'chesboard[diffusion]'.") from None
    diffusers: Any = library
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning, module="diffusers")  # on settings of old folders
    how: Any = {"use_safetensors": True, "local_files_only": True}
    index = folder / "model_index.json"
    try:
        if index.exists():
            safety = {"safety_checker": None, "requires_safety_checker": False}
            extra = safety if "safety_checker" in read_json(index) else {}
            given = _models(folder, read_json(index))
            parts: Any = diffusers.DiffusionPipeline.from_pretrained(folder, **how, **(given | extra))
            net = getattr(parts, "unet", None) or getattr(parts, "transformer", None)
            return DiffusersDenoiser(net, parts.scheduler, parts)
        kind = read_json(folder / "config.json").get("_class_name")
        if kind not in CALLS:
            raise DataError(f"{folder}: holds a {kind}, and not one of {', '.join(CALLS)}.")
        if not (folder / "scheduler_config.json").exists():
            raise DataError(f"{folder}: has no scheduler_config.json, which says what the net predicts. Copy it there.")
        named = str(read_json(folder / "scheduler_config.json").get("_class_name"))
        return DiffusersDenoiser(
            _whole(getattr(diffusers, kind), folder), getattr(diffusers, named).from_pretrained(folder)
        )
    except _UNREADABLE as error:
        raise DataError(f"{folder}: cannot be loaded ({' '.join(str(error).split())[:200]}).") from None


def _models(folder: Path, index: dict[str, Any]) -> dict[str, Any]:
    """A pipeline's models, by their names there, which the pipeline itself would take without all of their weights."""
    found = {}
    for name, said in index.items():
        library, kind = said if isinstance(said, list) and len(said) == 2 else (None, None)
        cls = getattr(import_module(library), str(kind), None) if library in ("diffusers", "transformers") else None
        if isinstance(cls, type) and issubclass(cls, nn.Module) and (folder / name).is_dir():
            found[name] = _whole(cls, folder / name, old=library == "transformers")
    return found


def _whole(cls: Any, folder: Path, *, old: bool = False) -> Any:
    """A model of diffusers or transformers from its folder. DataError where its weights are not all there, which these
    libraries make up for with random ones, or others are there too.

    old: these may be, as text encoders' files hold positions that no version reads any more.
    """
    model, said = cls.from_pretrained(folder, use_safetensors=True, local_files_only=True, output_loading_info=True)
    left = [] if old else [*said["unexpected_keys"]]
    if wrong := [*said["missing_keys"], *left, *said["mismatched_keys"]]:
        raise DataError(f"{folder}: its weights are not those that its config.json describes ({wrong[0]}).")
    return model


def _unet(net: nn.Module, x_t: Tensor, times: Tensor, told: dict[str, Tensor]) -> Tensor:
    return net(x_t, times, **told).sample


def _dit(net: nn.Module, x_t: Tensor, times: Tensor, told: dict[str, Tensor]) -> Tensor:
    return net(x_t, timestep=times, **told).sample[:, : x_t.shape[1]]  # behind them: variances


def _sd3(net: nn.Module, x_t: Tensor, times: Tensor, told: dict[str, Tensor]) -> Tensor:
    return net(x_t, timestep=times.to(x_t.dtype), **told).sample


def _flux(net: Any, x_t: Tensor, times: Tensor, told: dict[str, Tensor]) -> Tensor:
    """Its tokens are squares of 2 x 2; it counts time from 0 to 1, and is told guidance 1 where it asks for one."""
    count, channels, height, width = x_t.shape
    tokens = x_t.view(count, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    places = torch.cartesian_prod(torch.arange(height // 2), torch.arange(width // 2))
    image_ids = torch.cat([torch.zeros(len(places), 1), places], 1).to(x_t)
    text_ids = torch.zeros(told["encoder_hidden_states"].shape[1], 3).to(x_t)
    guidance = torch.ones(count).to(x_t) if net.config.guidance_embeds else None
    found = net(
        tokens.reshape(count, len(places), channels * 4), timestep=times.to(x_t.dtype) / FLOW_TIMES, img_ids=image_ids,
        txt_ids=text_ids, guidance=guidance, **told,
    ).sample  # fmt: skip
    found = found.view(count, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return found.reshape(x_t.shape)


def _encode_unet(parts: Any, text: str) -> dict[str, Tensor]:
    return {"encoder_hidden_states": parts.encode_prompt(text, device_of(parts.text_encoder), 1, False)[0]}


def _encode_sd3(parts: Any, text: str) -> dict[str, Tensor]:
    found = parts.encode_prompt(text, text, text, do_classifier_free_guidance=False)
    return {"encoder_hidden_states": found[0], "pooled_projections": found[2]}


def _encode_flux(parts: Any, text: str) -> dict[str, Tensor]:
    found = parts.encode_prompt(text)
    return {"encoder_hidden_states": found[0], "pooled_projections": found[1]}


CALLS: dict[str, Callable[..., Tensor]] = {
    "UNet2DModel": _unet,
    "UNet2DConditionModel": _unet,
    "DiTTransformer2DModel": _dit,
    "SD3Transformer2DModel": _sd3,
    "FluxTransformer2DModel": _flux,
}
ENCODED = {
    "UNet2DConditionModel": _encode_unet,
    "SD3Transformer2DModel": _encode_sd3,
    "FluxTransformer2DModel": _encode_flux,
}
ALONE = ("UNet2DModel", "DiTTransformer2DModel")  # those that are told no text
# how many classes a net is told apart, with that of none; None where it is told no class
CLASSES: dict[str, Callable[[Any], int | None]] = {name: lambda net: None for name in CALLS}
CLASSES["UNet2DModel"] = lambda net: net.config.num_class_embeds
CLASSES["DiTTransformer2DModel"] = lambda net: net.config.num_embeds_ada_norm + 1
