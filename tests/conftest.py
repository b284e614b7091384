"""Small models and batches built from scratch, shared by the tests."""

import gc
import json
import os
import random
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before the libraries read it: no test asks the network

import pytest
import tokenizers
import tokenizers.decoders
import tokenizers.models
import tokenizers.pre_tokenizers
import tokenizers.trainers
import torch
import transformers

from analysis.tables import columns
from diagnostics.batch import Batch, collate
from diagnostics.sequences import Example, pair_of

torch.set_num_threads(1)

# files and folders whose tests train, trace, start processes or run notebooks: left out by `make test-fast`
SLOW = (
    "analysis/test_words.py",
    "benchmarks/",
    "diagnostics/diffusion/test_pipelines.py",
    "diagnostics/flag/test_forecast.py",
    "diagnostics/flag/test_parts.py",
    "diagnostics/test_processes.py",
    "diagnostics/test_runlog_mutations.py",
    "reports/papers/",
    "reports/test_access.py",
    "reports/test_board.py",
    "reports/test_build.py",
    "reports/test_cards.py",
    "reports/test_notebooks.py",
    "reports/test_pages.py",
    "reports/test_papers.py",
    "reports/test_scorecard.py",
    "reports/test_site.py",
    "reports/test_tiny_run.py",
    "test_action.py",
    "test_chesboard.py",
    "test_ends.py",
    "trainers/loop/test_alarm.py",
    "trainers/loop/test_gradient_log.py",
    "trainers/loop/test_ingredients.py",
    "trainers/loop/test_recipes.py",
    "trainers/loop/test_reference.py",
    "trainers/loop/test_responses.py",
    "trainers/loop/test_rows.py",
    "trainers/studies/",
    "trainers/test_callback",
    "trainers/test_denoising",
    "trainers/test_encoder_decoder.py",
    "trainers/test_fsdp.py",
    "trainers/test_likelihood.py",
    "trainers/test_resume.py",
    "trainers/test_run.py",
    "trainers/test_trace.py",
    "trainers/test_trace_denoisers.py",
    "trainers/test_trl.py",
    "trainers/test_vision.py",
    "trainers/worlds/",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what SLOW names. Files with slow tests come first: two workers, which take a file at a time, then end
    together, and not the one long after the other."""
    here = Path(__file__).parent
    for item in items:
        if item.path.relative_to(here).as_posix().startswith(SLOW):
            item.add_marker(pytest.mark.slow)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """What the imports made is there for good: a collection, which every training starts with, need not look at it."""
    gc.freeze()


@pytest.fixture(autouse=True)
def unlearned(monkeypatch):
    """No test knows the columns that another one read of."""
    monkeypatch.setattr(columns, "_known", {})


VOCAB = 61
SMALL = dict(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, vocab_size=VOCAB)
GATED = dict(**SMALL, intermediate_size=48, num_key_value_heads=2, max_position_embeddings=128)
ARCHITECTURES = {
    "llama": ("LlamaConfig", GATED),
    "qwen2": ("Qwen2Config", GATED),
    "qwen3": ("Qwen3Config", dict(**GATED, head_dim=8)),
    "gemma3": ("Gemma3TextConfig", dict(**GATED, head_dim=8, sliding_window=6)),
    "gemma2": ("Gemma2Config", dict(**GATED, head_dim=8, final_logit_softcapping=5.0, sliding_window=6)),
    "cohere": ("CohereConfig", dict(**GATED, logit_scale=0.3)),
    "mistral": ("MistralConfig", dict(**GATED, sliding_window=5)),
    "mixtral": ("MixtralConfig", dict(**GATED, num_local_experts=4)),
    "gpt2": ("GPT2Config", dict(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=128)),
    "gptj": (
        "GPTJConfig",
        dict(n_embd=32, n_layer=2, n_head=4, vocab_size=VOCAB, n_positions=128, rotary_dim=4),
    ),
    "gpt_neox": ("GPTNeoXConfig", dict(**SMALL, intermediate_size=48, max_position_embeddings=128)),
    "opt": ("OPTConfig", dict(**SMALL, ffn_dim=48, max_position_embeddings=128, word_embed_proj_dim=16)),
    "bloom": ("BloomConfig", dict(hidden_size=32, n_layer=2, n_head=4, vocab_size=VOCAB)),
    "mamba": ("MambaConfig", dict(hidden_size=32, num_hidden_layers=2, vocab_size=VOCAB, state_size=4)),
}


def build_model(name: str, *, seed: int = 0, scale: float = 3.0) -> transformers.PreTrainedModel:
    """A tiny random causal LM in float32, with weights large enough that its answers differ."""
    torch.manual_seed(seed)
    config_name, settings = ARCHITECTURES[name]
    special = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)
    config = getattr(transformers, config_name)(**settings, **special)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(scale)
            elif parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.1)  # biases that count
    return model.eval()


def random_pairs(n: int, *, seed: int = 0, longest: int = 9) -> list[Example]:
    """n pairs of random ids with ragged lengths; completions end in EOS (id 2)."""
    generator = torch.Generator().manual_seed(seed)

    def ids(low: int, high: int) -> tuple[int, ...]:
        length = int(torch.randint(low, high + 1, (1,), generator=generator))
        return tuple(torch.randint(3, VOCAB, (length,), generator=generator).tolist())

    return [
        pair_of(f"pair{i}", i, (1, *ids(0, longest)), (*ids(0, longest), 2), (*ids(0, longest), 2)) for i in range(n)
    ]


@pytest.fixture
def make_model():
    """build_model as a fixture."""
    return build_model


@pytest.fixture
def make_pairs():
    """random_pairs as a fixture."""
    return random_pairs


@pytest.fixture
def make_batch():
    """Collate pairs with pad id 0."""

    def make(pairs: list[Example], padding_side: str = "right") -> Batch:
        return collate(pairs, pad_token_id=0, padding_side=padding_side)

    return make


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request) -> str:
    """Every architecture in turn."""
    return request.param


WORDS = "alpha beta gamma delta epsilon zeta eta theta iota kappa".split()


def write_pairs(path: Path, n: int = 24, *, seed: int = 0) -> Path:
    """A JSONL file of n random preference pairs."""
    rng = random.Random(seed)

    def text(low: int, high: int) -> str:
        return " ".join(rng.choices(WORDS, k=rng.randint(low, high)))

    rows = [{"prompt": text(2, 5) + " ?", "chosen": " " + text(1, 7), "rejected": " " + text(1, 7)} for _ in range(n)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def lm_folder(tmp_path_factory) -> str:
    """A tiny Llama and its byte-level BPE tokenizer, saved as users save theirs."""
    folder = tmp_path_factory.mktemp("lm")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([" " + w for w in WORDS] * 5, trainer)
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>", pad_token="<pad>")
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        **(GATED | {"vocab_size": len(fast)}), bos_token_id=None, eos_token_id=1, pad_token_id=0
    )
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def pairs_file(tmp_path) -> str:
    """24 random pairs."""
    return str(write_pairs(tmp_path / "pairs.jsonl"))
