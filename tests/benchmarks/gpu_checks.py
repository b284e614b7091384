"""The checks of `make gpu`: our engine on the device against a plain forward pass, one row at a time, on the CPU in
float64; a card's memory; whole training runs.
"""

import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import scoring
import torch
import transformers
from gpu_lines import Line, Plan, at_most, holds, peak_bytes
from gpu_speed import big_model, big_pairs
from scipy.stats import spearmanr
from torch import Tensor, nn

import diagnostics.forward as forward_file
import diagnostics.token_likelihood as token_likelihood
from diagnostics.batch import Batch, collate
from diagnostics.engine import Engine, head_of
from diagnostics.forward import run, run_sides
from diagnostics.gradients.pairs import FAST, Activations, choose_way, from_activations, one_by_one
from diagnostics.prepare import prepare
from diagnostics.runlog import RunLog, RunLogWriter, read_run
from diagnostics.scoring import batches, rows, score
from diagnostics.sequences import Example, pair_of
from diagnostics.token_likelihood import TokenLikelihood
from trainers.config import make_config
from trainers.run import train

VOCABULARY, WINDOW = 512, 16
BODY: dict[str, Any] = dict(hidden_size=128, num_hidden_layers=3, num_attention_heads=4, vocab_size=VOCABULARY)
GATED: dict[str, Any] = dict(**BODY, intermediate_size=256, num_key_value_heads=2, max_position_embeddings=256)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", GATED),
    "qwen3": ("Qwen3Config", dict(**GATED, head_dim=32)),
    "gemma2": ("Gemma2Config", dict(**GATED, head_dim=32, final_logit_softcapping=5.0, sliding_window=WINDOW)),
    "mistral": ("MistralConfig", dict(**GATED, sliding_window=WINDOW)),
    "gpt2": ("GPT2Config", dict(n_embd=128, n_layer=3, n_head=4, vocab_size=VOCABULARY, n_positions=256)),
}

KLS = ("chosen_kl", "rejected_kl", "chosen_kl_reverse", "rejected_kl_reverse")
COLUMNS = ("chosen_logps", "rejected_logps", "ches_score", *KLS)
# Largest difference that is rounding, some ten times what a CPU shows, and less than TF32 would give in float32: of
# log-probs and KL relative to the largest one, of CHES relative to what cancels in it, |S+|^2 + |<S+, S->|, and of the
# pairs' gradients relative to their lengths. LEAST: rank correlation of CHES; two neighbours that swap give 0.993.
ROOM = {
    torch.float32: {"log-probs": 1e-5, "CHES": 1e-5, "KL": 1e-5, "gradients": 1e-5},
    torch.bfloat16: {"log-probs": 5e-3, "CHES": 2e-2, "KL": 1e-1, "gradients": 5e-2},
}
LEAST = {torch.float32: 0.999, torch.bfloat16: 0.97}
PAIRS = 12

Values = dict[str, np.ndarray]  # name -> (pairs,)


def build(name: str, dtype: torch.dtype, seed: int = 0) -> Any:
    """A tiny random model whose answers differ, on the CPU; the weights of all dtypes are those of bfloat16."""
    torch.manual_seed(seed)
    kind, settings = ARCHITECTURES[name]
    config = getattr(transformers, kind)(**settings, bos_token_id=1, eos_token_id=2, pad_token_id=0)
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0 if parameter.ndim > 1 else 1.0).copy_(parameter.bfloat16())
    found = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype)
    found.load_state_dict(model.state_dict())
    return found.eval()


def near(name: str, dtype: torch.dtype) -> Any:
    """A reference not far from the model of `build`."""
    model, other = (build(name, torch.float32, seed) for seed in (0, 1))
    with torch.no_grad():
        for mine, far in zip(model.parameters(), other.parameters(), strict=True):
            mine.lerp_(far, 0.1).copy_(mine.bfloat16())
    found = build(name, dtype)
    found.load_state_dict(model.state_dict())
    return found


def make_pairs(count: int = PAIRS) -> list[Example]:
    """Random ids with ragged lengths, beyond the window too."""
    chance = random.Random(0)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(chance.choices(range(3, VOCABULARY), k=chance.randint(low, high)))

    return [pair_of(f"p{i}", i, (1, *ids(2, 48)), (*ids(1, 32), 2), (*ids(1, 32), 2)) for i in range(count)]


@torch.no_grad()
def plain(model: nn.Module, reference: nn.Module, pairs: Sequence[Example]) -> Values:
    """COLUMNS by a plain forward pass of one row after the other, and under `scale` what cancels in CHES."""
    found: list[dict[str, float]] = []
    for pair in pairs:
        row, sums = {}, []
        for side in ("chosen", "rejected"):
            logps, hidden = _row(model, pair, side)
            other, _ = _row(reference, pair, side)
            targets = torch.tensor(list(pair.rows[side].completion_ids))
            row[f"{side}_logps"] = float(logps.gather(1, targets[:, None]).sum())
            row[f"{side}_kl"] = float((other.exp() * (other - logps)).sum())
            row[f"{side}_kl_reverse"] = float((logps.exp() * (logps - other)).sum())
            sums.append(hidden.sum(0))
        inner, square = float(sums[0] @ sums[1]), float(sums[0] @ sums[0])
        found.append(row | {"ches_score": inner - square, "scale": abs(inner) + square})
    return {name: np.array([row[name] for row in found]) for name in (*COLUMNS, "scale")}


def _row(model: nn.Module, pair: Example, side: str) -> tuple[Tensor, Tensor]:
    """(M, V) log-probs where the M completion tokens are predicted, and (M, D) inputs of the head there."""
    seen: list[Tensor] = []
    row = pair.rows[side]
    handle = head_of(model).register_forward_hook(lambda m, args, out: seen.append(args[0][0]))
    logits = model(input_ids=torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0]
    handle.remove()
    at = slice(len(row.prompt_ids) - 1, -1)
    return logits[at].double().log_softmax(-1), seen[0][at].double()


def measured(model: nn.Module, reference: nn.Module, pairs: Sequence[Example]) -> Values:
    """COLUMNS by our engine, on the device where the models are."""
    found: dict[str, dict[str, float]] = {}
    for scored in score(model, pairs, likelihood=TokenLikelihood(0), reference=lambda batch: run(reference, batch)):
        found |= {row["pair_id"]: row for row in rows(scored.pairs, scored.stats, COLUMNS[2:])}
    return {name: np.array([found[p.pair_id][name] for p in pairs]) for name in COLUMNS}


def errors(got: Values, wanted: Values) -> dict[str, float]:
    """The largest differences of log-probs, CHES and KL, relative as ROOM says, and the rank correlation of CHES."""

    def off(*names: str) -> float:
        return max(float(np.max(np.abs(got[n] - wanted[n])) / np.max(np.abs(wanted[n]))) for n in names)

    ches = float(np.max(np.abs(got["ches_score"] - wanted["ches_score"]) / wanted["scale"]))
    ranks: Any = spearmanr(got["ches_score"], wanted["ches_score"])
    return {"log-probs": off(*COLUMNS[:2]), "CHES": ches, "KL": off(*KLS), "ranks": float(ranks.statistic)}


def engines(plan: Plan) -> Iterator[Line]:
    """Five architectures in float32 and bfloat16, with the engine that `prepare` chose."""
    pairs = make_pairs()
    for name in ARCHITECTURES:
        wanted = plain(build(name, torch.float64), near(name, torch.float64), pairs)
        for dtype in ROOM:
            what = f"{name}, {_short(dtype)}"
            model, reference, chosen = _prepared(plan, name, dtype)
            fast = chosen.packed and chosen.tiled and chosen.apart
            yield Line(f"{what}: engine", chosen.name, "packed, tiles, prompts apart", fast)
            found = errors(measured(model, reference, pairs), wanted)
            for value in ("log-probs", "CHES", "KL"):
                yield at_most(f"{what}: error of {value}", found[value], ROOM[dtype][value])
            least = LEAST[dtype]
            yield Line(
                f"{what}: rank correlation of CHES", found["ranks"], f"at least {least:g}", found["ranks"] >= least
            )


def _prepared(plan: Plan, name: str, dtype: torch.dtype) -> tuple[nn.Module, nn.Module, Engine]:
    """A model and a reference on the device, and how the model is run."""
    model, reference = build(name, dtype).to(plan.device), near(name, dtype).to(plan.device)
    prepare(reference)
    return model, reference, prepare(model)


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def products(plan: Plan) -> Iterator[Line]:
    """float32 with TF32 off and on, and the head in tiles of another size, on the Llama."""
    pairs = make_pairs()
    wanted = plain(build("llama", torch.float64), near("llama", torch.float64), pairs)
    place, name, no, yes = _switch()
    found = getattr(torch.backends.cuda.matmul, name)
    yield Line("TF32 in products, as found", str(found), f"not {yes}", found != yes)
    for how in (yes, no):
        with _patched(place, name, how):
            model, reference, chosen = _prepared(plan, "llama", torch.float32)
            got = measured(model, reference, pairs)
        yield Line(f"TF32 ({how}): engine", chosen.name)
        for value, error in errors(got, wanted).items():
            yield Line(f"TF32 ({how}): {value}, error or rank correlation", error)
    with _patched(forward_file, "TILE_BYTES", 1), _patched(forward_file, "GPU_TILE_BYTES", 1):  # the fewest: 16 rows
        with torch.no_grad():
            tiles = len(run(model, collate(pairs, pad_token_id=0).to(plan.device)).tiles())
        small = measured(model, reference, pairs)
    yield Line("tiles of 16 rows", float(tiles), "more than 1", tiles > 1)
    for value in ("log-probs", "KL"):
        yield at_most(f"tiles of 16 rows: error of {value}", errors(small, wanted)[value], ROOM[torch.float32][value])


def _switch() -> tuple[Any, str, Any, Any]:
    """Where torch keeps whether float32 products are in TF32, and its words for no and yes."""
    if hasattr(torch.backends, "fp32_precision"):  # since torch 2.9, which refuses to mix it with the old one
        return torch.backends, "fp32_precision", "ieee", "tf32"
    return torch.backends.cuda.matmul, "allow_tf32", False, True


@contextmanager
def _patched(module: Any, name: str, value: Any) -> Iterator[None]:
    """A module's name with another value, for the time being."""
    before = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, before)


def gradients(plan: Plan) -> Iterator[Line]:
    """Every pair's |s_w|, |s_l| and <s_w, s_l> as grad_every takes them, and as it does where that does not work."""
    pairs = make_pairs(3 if plan.quick else 8)
    for name in ("llama", "gpt2"):  # gpt2: Conv1D, biases, LayerNorm
        wanted = _plain_gradients(build(name, torch.float64), pairs)
        scale = np.stack([wanted[0], wanted[1], wanted[0] * wanted[1]])
        for dtype, room in ROOM.items():
            what, (model, _, _) = f"{name}, {_short(dtype)}", _prepared(plan, name, dtype)
            parameters, batch = list(model.parameters()), collate(pairs, pad_token_id=0).to(plan.device)
            way = choose_way(model, parameters, head=False)
            yield Line(f"{what}: way", way, FAST, way == FAST)
            ways = {"at once": _fast(model, batch, parameters), "one by one": one_by_one(model, batch, parameters)}
            for how, found in ways.items():
                got = np.stack([v.cpu().numpy() for v in vars(found).values()])
                off = float(np.max(np.abs(got - wanted) / scale))
                yield at_most(f"{what}: error of the pairs' gradients, {how}", off, room["gradients"])


def _fast(model: nn.Module, batch: Batch, parameters: Sequence[Tensor]) -> Any:
    seen = Activations(model, parameters)
    with seen.watch():
        sides = run_sides(model, batch)
    slopes = torch.ones(2, len(batch.pair_ids), device=batch.input_ids.device)
    return from_activations(sides, seen, parameters, slopes, keep=False)[0]


def _plain_gradients(model: nn.Module, pairs: Sequence[Example]) -> np.ndarray:
    """(3, pairs): |s_w|, |s_l|, <s_w, s_l> by autograd on one row at a time."""
    found = []
    for pair in pairs:
        sides = []
        for side in ("chosen", "rejected"):
            logps, _ = _row(model, pair, side)
            total = logps.gather(1, torch.tensor(list(pair.rows[side].completion_ids))[:, None]).sum()
            sides.append(torch.cat([g.flatten() for g in torch.autograd.grad(total, list(model.parameters()))]))
        found.append([float(sides[0].norm()), float(sides[1].norm()), float(sides[0] @ sides[1])])
    return np.array(found).T


def memory(plan: Plan) -> Iterator[Line]:
    """What `budget` reckons for a batch against what it takes, and a batch that does not fit."""
    model, likelihood = big_model(plan), TokenLikelihood(scoring.PAD)
    pairs, cost = big_pairs(plan), likelihood.cost(model)
    group = next(batches(pairs, likelihood.budget(model, pairs), cost))
    tokens = sum(cost(p, group[0].longest) for p in group)
    reckoned = tokens * token_likelihood._token_bytes(model, group[0].longest)
    peak = peak_bytes(plan, partial(_score, model, group, tokens))
    room = reckoned + 4 * forward_file.GPU_TILE_BYTES
    yield Line("tokens that budget allows a batch", float(likelihood.budget(model, pairs)))
    yield Line("tokens of the first batch", float(tokens))
    yield Line("its memory as reckoned, MiB", reckoned / 2**20)
    wanted = f"at most {room / 2**20:.0f}, as reckoned and four tiles of logits"
    yield Line("its memory as measured, MiB", peak / 2**20, wanted, peak <= room if plan.card else None)
    yield from _halving(plan, model, group, tokens, peak)


def _halving(plan: Plan, model: nn.Module, group: Sequence[Example], tokens: int, peak: float) -> Iterator[Line]:
    """A batch in 60 % of the memory that it takes; on a CPU, which has enough, in 60 % of its tokens."""
    whole, ran, real = _score(model, group, tokens), list[int](), token_likelihood.run
    most = math.inf if plan.card else 0.6 * sum(len(row) for p in group for row in p.rows.values())

    def counted(model: nn.Module, batch: Batch, **how: bool) -> Any:
        ran.append(len(batch.pair_ids))
        if sum(map(sum, batch.lengths or ())) > most:
            raise torch.OutOfMemoryError("out of memory, as the check wants it")
        return real(model, batch, **how)

    with _patched(token_likelihood, "run", counted), _memory(plan, 0.6 * peak):
        halved = _score(model, group, tokens)
    what = "a batch in 60 % of its memory"
    yield Line(f"{what}: pairs of each try", " ".join(map(str, ran)), "several tries", len(ran) > 1)
    yield holds(f"{what}: every pair scored", halved.keys() == whole.keys(), f"{len(halved)} of {len(group)}")
    off = max(abs(halved[k] - whole[k]) for k in whole) / max(map(abs, whole.values()))
    yield at_most(f"{what}: log-probs differ by", off, ROOM[torch.bfloat16]["log-probs"])


@contextmanager
def _memory(plan: Plan, room: float) -> Iterator[None]:
    """So many bytes of a card above what is held now, for the time being."""
    if not plan.card:
        yield
        return
    torch.cuda.empty_cache()
    total = torch.cuda.mem_get_info(plan.device)[1]
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved(plan.device) + room) / total, plan.device)
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, plan.device)


def _score(model: nn.Module, group: Sequence[Example], tokens: int) -> dict[str, float]:
    """The chosen log-prob of every pair."""
    scored = score(model, group, likelihood=TokenLikelihood(scoring.PAD), batch_tokens=tokens)
    return {row["pair_id"]: row["chosen_logps"] for s in scored for row in rows(s.pairs, s.stats, ["ches_score"])}


def training(plan: Plan) -> Iterator[Line]:
    """Whole runs as `chesboard train` does them: every gradient instrument, stopped and resumed, LoRA, bfloat16."""
    with tempfile.TemporaryDirectory() as place:
        go: Callable[..., RunLog] = partial(_train, plan, Path(place), _model_and_data(Path(place)))
        whole = go("whole", grad_every=1)
        yield from _first_step("whole", whole, 1e-5)
        trained = whole.pairs.query("split == 'train'")
        yield _finite("whole: gradients of every pair", trained, "chosen_grad_norm", "rejected_grad_norm", "grad_inner")
        yield from _resumed(plan, whole, partial(go, "stopped", grad_every=1))
        half = {
            "LoRA, bfloat16 weights": go("lora", lora_r=4, grad_every=2, dtype="bfloat16"),
            "bfloat16 autocast": go("autocast", grad_every=2, bf16=True),
            "bfloat16 autocast, stored reference": go("stored", reference="precomputed", bf16=True),
        }
        for what, log in half.items():
            yield from _first_step(what, log, 1e-2)
            yield _finite(f"{what}: loss and gradient", log.steps.query("step > 0"), "loss", "grad_norm")
            yield _finite(f"{what}: log-probs", log.pairs, "chosen_logps", "rejected_logps")


def _first_step(what: str, log: RunLog, room: float) -> Iterator[Line]:
    """Policy and reference are the same in the first step, so its loss is log 2."""
    first = log.steps.query("step == 1").iloc[0]
    yield at_most(f"{what}: loss of step 1 off log 2 by", abs(float(first["loss"]) - math.log(2)), room)
    norm = float(first["grad_norm"])
    yield holds(f"{what}: gradient of step 1 is finite, not 0", 0 < norm < math.inf, f"{norm:.4g}")


def _finite(what: str, table: pd.DataFrame, *columns: str) -> Line:
    values = table[list(columns)].to_numpy(float)
    return holds(f"{what} are finite", len(values) > 0 and bool(np.isfinite(values).all()), f"{len(values)} rows")


def _resumed(plan: Plan, whole: RunLog, go: Callable[..., RunLog]) -> Iterator[Line]:
    """A run stopped after step 3 of 4 and resumed from checkpoint 2 against the one that nothing stopped."""
    real = RunLogWriter.append_step

    def dies(self: RunLogWriter, row: dict[str, Any]) -> None:
        real(self, row)
        if row["step"] == 3:
            raise KeyboardInterrupt

    with _patched(RunLogWriter, "append_step", dies):
        try:
            go()
        except KeyboardInterrupt:
            pass
    found, keys = go(resume=True), ["step", "split", "pair_id"]
    one, other = (log.pairs.sort_values(keys).reset_index(drop=True) for log in (whole, found))
    yield holds("resumed: the same rows", one[keys].equals(other[keys]), f"{len(other)} rows")
    names = ["chosen_logps", "rejected_logps"]
    off = float((one[names] - other[names]).abs().to_numpy().max() / one[names].abs().to_numpy().max())
    # a card adds up in no fixed order, so two runs differ by rounding there
    yield at_most("resumed: log-probs differ from the unbroken run's by", off, 1e-4 if plan.card else 0.0)


def _train(plan: Plan, place: Path, given: tuple[str, str], name: str, **keys: Any) -> RunLog:
    usual: dict[str, Any] = {
        "model": given[0], "data": given[1], "output_dir": str(place / name), "per_device_train_batch_size": 8,
        "learning_rate": 1e-3, "max_steps": 4, "save_strategy": "steps", "save_steps": 2, "heldout_pairs": 2,
        "probe_pairs": 4, "probe_every": 4, "response_types": 1, "save_model": False,
        "reference_cache": str(place / "cache"),
    }  # fmt: skip
    return read_run(train(make_config(usual | ({} if plan.card else {"use_cpu": True}) | keys)))


def _model_and_data(place: Path) -> tuple[str, str]:
    """A tiny Llama with a tokenizer of whole words, and a file of 36 pairs."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<pad>", "<eos>", "?", *(f"word{i}" for i in range(60))]
    whole = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<pad>"))
    whole.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=whole, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>"
    ).save_pretrained(place / "model")
    torch.manual_seed(0)
    sizes: dict[str, Any] = GATED | {"vocab_size": len(words)}
    config = transformers.LlamaConfig(**sizes, bos_token_id=None, eos_token_id=1, pad_token_id=0)
    transformers.LlamaForCausalLM(config).save_pretrained(place / "model")
    chance = random.Random(0)

    def text(low: int, high: int) -> str:
        return " ".join(chance.choices(words[3:], k=chance.randint(low, high)))

    path = place / "pairs.jsonl"
    texts = [(f"{text(2, 12)} ?", f" {text(1, 16)}", f" {text(1, 16)}") for _ in range(36)]
    lines = [json.dumps(dict(zip(("prompt", "chosen", "rejected"), row, strict=True))) + "\n" for row in texts]
    path.write_text("".join(lines), encoding="utf-8")
    return str(place / "model"), str(path)
