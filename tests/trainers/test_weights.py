"""A checkpoint's weights, put back into its model: all of them under whatever names they were saved, or an error."""

from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
import vlms
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from diagnostics.errors import DataError
from trainers.weights import left_out, load_weights

MIXTRAL: dict[str, Any] = {k: v for k, v in vlms.TEXT.items() if k != "pad_token_id"}
MIXTRAL |= {"num_local_experts": 2, "vocab_size": 64}


def model(name: str, seed: int, *, tied: bool = False, dtype: torch.dtype = torch.float32) -> Any:
    """A tiny model of a family whose weights are saved under other names than its own, all but smolvlm's."""
    torch.manual_seed(seed)
    if name == "mixtral":
        made: Any = MixtralForCausalLM(MixtralConfig(**MIXTRAL))
    else:
        config = vlms.config_of(name, vlms.tiny_tokenizer())
        config.tie_word_embeddings = config.get_text_config().tie_word_embeddings = tied
        made = transformers.AutoModelForImageTextToText.from_config(config)
    return made.to(dtype)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(v, other.state_dict()[k]) for k, v in one.state_dict().items())


@pytest.mark.parametrize(
    ("name", "how", "shard"),
    [
        ("qwen25", {}, "60KB"), ("qwen25", {"tied": True}, "1GB"), ("qwen25", {"dtype": torch.bfloat16}, "40KB"),
        ("llava", {}, "1GB"), ("internvl", {"tied": True}, "60KB"), ("smolvlm", {}, "60KB"), ("mixtral", {}, "1GB"),
    ],
)  # fmt: skip
def test_all_weights_come_back_under_whatever_names_they_were_saved(name, how, shard, tmp_path):
    saved, other = model(name, 0, **how), model(name, 1, **how)
    saved.save_pretrained(tmp_path, max_shard_size=shard)
    assert (len(list(tmp_path.glob("*.safetensors"))) > 1) == (shard != "1GB")
    assert not same(other, saved)
    dtypes = {p.dtype for p in other.parameters()}
    load_weights(other, tmp_path)
    assert same(other, saved)
    assert {p.dtype for p in other.parameters()} == dtypes
    assert bool(left_out(other, tmp_path)) == (name != "smolvlm")


@pytest.mark.parametrize(("name", "change"), [("qwen25", "missing"), ("smolvlm", "missing"), ("smolvlm", "left over")])
def test_a_checkpoint_of_other_weights_is_refused(name, change, tmp_path):
    saved, other = model(name, 0), model(name, 1)
    saved.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights |= {"another.weight": torch.zeros(2)} if change == "left over" else {}
    lost = next(k for k in weights if k.endswith("o_proj.weight"))
    if change == "missing":
        weights.pop(lost)
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(DataError, match=f"1 {change}"):
        load_weights(other, tmp_path)


def test_a_pickled_checkpoint_is_refused(tmp_path):
    saved = model("smolvlm", 0)
    saved.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    torch.save(saved.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"only pickled weights \(pytorch_model.bin\)"):
        load_weights(model("smolvlm", 1), tmp_path)


def adapted(seed: int) -> Any:
    config = peft.LoraConfig(r=2, target_modules=r".*language_model.*q_proj", task_type="CAUSAL_LM")
    made = peft.get_peft_model(model("qwen25", 0), config)
    torch.manual_seed(seed)
    for parameter in made.parameters():
        nn.init.normal_(parameter) if parameter.requires_grad else None
    return made


@pytest.mark.parametrize("change", ["", "missing", "left over"])
def test_an_adapters_weights_come_back_whole_or_not_at_all(change, tmp_path):
    saved, other = adapted(1), adapted(2)
    saved.save_pretrained(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    weights = load_file(file)
    first = next(iter(weights))
    if change == "missing":
        del weights[first]
    if change == "left over":
        weights[first.replace("q_proj", "k_proj")] = weights[first].clone()
    save_file(weights, file, metadata={"format": "pt"})
    if change:
        with pytest.raises(DataError, match=f"k_proj.*is {change}|lora_A.*is {change}"):
            load_weights(other, tmp_path)
        return
    load_weights(other, tmp_path)
    assert same(other, saved)
    assert {n for n, p in other.named_parameters() if p.requires_grad} == set(_trained(saved))


def _trained(made: nn.Module) -> list[str]:
    return [n for n, p in made.named_parameters() if p.requires_grad]


def test_a_folder_without_the_weights_of_the_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"has no adapter_model\.safetensors"):
        load_weights(adapted(1), tmp_path)


def test_a_module_of_its_own_kind_takes_exactly_its_weights(tmp_path: Path) -> None:
    saved, other = nn.Linear(2, 3), nn.Linear(2, 3)
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    load_weights(other, tmp_path)
    assert same(other, saved)
    save_file({"weight": saved.weight.detach()}, tmp_path / "model.safetensors")
    with pytest.raises(DataError, match="Missing key"):
        load_weights(other, tmp_path)
