"""Tiny vision-language models with random weights, and examples whose prompts hold their placeholders."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from diagnostics.media import Kind, Media, of_frames
from diagnostics.sequences import Example, Sequence
from diagnostics.vision.placeholders import Qwen

NAMES = ("qwen25", "qwen3", "llava", "internvl", "smolvlm")
PLACEHOLDERS = (
    "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<image>", "<video>", "<IMG_CONTEXT>",
    "<img>", "</img>", "<fake_token_around_image>", "<global-img>",
)  # fmt: skip
QWEN = {"size": {"shortest_edge": 64, "longest_edge": 4096}}
TEXT = dict(
    vocab_size=512, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, max_position_embeddings=512, bos_token_id=1, eos_token_id=2, pad_token_id=0,
)  # fmt: skip
TOWER = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE trained on two sentences, with every family's placeholders."""
    words = Tokenizer(models.BPE())
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    text = ["which way does the square move ? it moves to the left , then up .", "a red circle stands still ."]
    special = ["<pad>", "<s>", "</s>", *PLACEHOLDERS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    words.train_from_iterator(
        text, trainers.BpeTrainer(vocab_size=380, special_tokens=special, initial_alphabet=alphabet)
    )  # pyright: ignore[reportCallIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>",
        extra_special_tokens=list(PLACEHOLDERS),
    )  # fmt: skip


def save(name: str, folder: Path, tokenizer: Any) -> Path:
    """A model folder as a hub's, in float32, with the processor files that it would have."""
    model_of(name, tokenizer).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return processor_files(folder, name)


def config_of(name: str, tokenizer: Any) -> Any:
    def ids(**tokens: str) -> dict[str, int]:
        return {k: tokenizer.convert_tokens_to_ids(v) for k, v in tokens.items()}

    qwen = dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=2, patch_size=4, spatial_merge_size=2)
    qwen |= dict(temporal_patch_size=2, out_hidden_size=32)
    tokens = ids(
        image_token_id="<|image_pad|>", video_token_id="<|video_pad|>", vision_start_token_id="<|vision_start|>",
        vision_end_token_id="<|vision_end|>",
    )  # fmt: skip
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    if name == "qwen25":
        text = TEXT | {"rope_parameters": rope | {"mrope_section": [1, 1, 2]}}
        vision = qwen | dict(window_size=16, fullatt_block_indexes=[1], tokens_per_second=2)
        return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, **tokens)
    if name == "qwen3":
        more = {"mrope_section": [2, 1, 1], "mrope_interleaved": True}
        text = TEXT | {"head_dim": 8, "rope_parameters": rope | more}
        vision = qwen | dict(num_position_embeddings=16, deepstack_visual_indexes=[0])
        return transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **tokens)
    if name == "llava":
        return transformers.LlavaOnevisionConfig(
            text_config={"model_type": "qwen2"} | TEXT, image_grid_pinpoints=[[32, 32], [32, 64], [64, 64]],
            vision_config={"model_type": "siglip_vision_model", "image_size": 32, "patch_size": 8}
            | TOWER | {"vision_use_head": False},
            **ids(image_token_index="<image>", video_token_index="<video>"),
        )  # fmt: skip
    if name == "internvl":
        return transformers.InternVLConfig(
            text_config={"model_type": "qwen2"} | TEXT, vision_config=TOWER | dict(image_size=32, patch_size=8),
            image_seq_length=4, **ids(image_token_id="<IMG_CONTEXT>"),
        )  # fmt: skip
    return transformers.SmolVLMConfig(
        text_config={"model_type": "llama"} | TEXT, vision_config=TOWER | dict(image_size=32, patch_size=8),
        scale_factor=2, pad_token_id=0, **ids(image_token_id="<image>"),
    )  # fmt: skip


def model_of(name: str, tokenizer: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.AutoModelForImageTextToText.from_config(config_of(name, tokenizer))
    for parameter in model.parameters():  # far from the small weights of a start, so that differences show
        torch.nn.init.normal_(parameter, std=0.2) if parameter.ndim > 1 else None
    return model.double().eval()


def processor_files(folder: Path, name: str) -> Path:
    said = {"qwen25": QWEN, "qwen3": QWEN, "smolvlm": {"do_image_splitting": False}}.get(name, {})
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    return folder


def media(seed: int, frames: int = 0, size: tuple[int, int] = (32, 32)) -> Media:
    """A clip, or with 0 frames an image, of random pixels."""
    kind: Kind = "video" if frames else "image"
    pixels = np.random.default_rng(seed).integers(0, 256, (max(1, frames), *size, 3), dtype=np.uint8)
    return of_frames(pixels, kind=kind)


def pair(name: str, family: Any, tokenizer: Any, shown: tuple[Media, ...], chosen: str, rejected: str) -> Example:
    """A pair whose prompt shows these media."""
    wrap = "<|vision_start|>{}<|vision_end|>" if isinstance(family, Qwen) else "{}"
    text = "".join(wrap.format(family.tags[m.kind]) for m in shown) + "which way does the square move ?"
    prompt = tokenizer(family.expand(text, shown))["input_ids"]
    rows = {}
    for side, answer in (("chosen", chosen), ("rejected", rejected)):
        rows[side] = Sequence(prompt, [*tokenizer(answer)["input_ids"], tokenizer.eos_token_id], media=shown or None)
    return Example(name, 0, rows)


def pairs(family: Any, tokenizer: Any) -> list[Example]:
    """Clips of two lengths, one clip twice, an image, two, a clip and an image together, and text alone."""
    clip, long = media(1, 2), media(2, 5)
    many = [(clip,), (long,), (media(3),), (), (clip,), (clip, media(4)), (media(5, size=(40, 24)), media(3))]
    answers = ["to the left", "up", "it moves to the left , then up", "still", "right", "down , then up", "a circle"]
    return [pair(f"p{i}", family, tokenizer, shown, answers[i], answers[-1 - i] + " ?") for i, shown in enumerate(many)]
