"""Where trainers put their checkpoints: found in any output folder, told their steps, and named a converter where they
are not weights that can be read. What the folders are called was read in each tool's code and documentation.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from diagnostics.diffusion.pipelines import LORA
from diagnostics.errors import DataError, UserError
from diagnostics.processes import tell
from trainers.imported import read_theirs, whole
from trainers.models import adapter_base

DEEPEST = 4  # folders below an output folder: ms-swift's v0-<time>/checkpoint-N, verl's global_step_N/actor/huggingface
_STEP = r"(?:checkpoint|ckpt|(?:global[_-]?)?step|iter|iteration)"
_STATE = "trainer_state.json"
NETS = ("unet", "transformer")  # folders of a pipeline that hold what is trained
_STATE_OF_ACCELERATE = (
    "weights without config.json, as accelerate's save_state leaves them (open-instruct's step_N). Copy the "
    "config.json of the model that training began from into this folder."
)


def expand(checkpoints: Sequence[str]) -> list[str]:
    """The checkpoints, where a folder is given that holds some in the order of their steps.

    TRL, alignment-handbook, LLaMA-Factory, axolotl, Unsloth: checkpoint-N; ms-swift: v0-<time>/checkpoint-N; OpenRLHF:
    global_stepN_hf; open-instruct: step_N; diffusers' scripts: checkpoint-N with a LoRA or a folder unet. The model
    that lies beside or above them is one of them where its trainer_state.json gives it a step of its own. UserError
    where a folder holds several runs.
    """
    return [str(p) for name in checkpoints for p in _inside(Path(name)) or [name]]


def steps_of(checkpoints: Sequence[str], reference: str | None = None) -> dict[int, str]:
    """Checkpoint by step, in the order of their steps. Step 0 is the reference: by default the first checkpoint.

    The step of the others: what is written behind the path, PATH=STEP; else what its trainer_state.json says; else the
    number after a word for steps anywhere in its path (checkpoint-100, global_step2_hf, step_100, or 100 alone); else,
    where none has a step, that of its epoch. UserError naming a checkpoint of which no step is known, two of one, or
    one of two.
    """
    if not checkpoints:
        raise UserError("no checkpoint given. Name model folders, or one folder of checkpoint-* folders.")
    pairs = [given(name) for name in checkpoints]
    base = reference or pairs[0][0]
    rest = [(name, step) for name, step in pairs if not _same_place(name, base)]
    steps = [step if step is not None else own_step(name) for name, step in rest]
    if rest and all(step is None for step in steps):
        steps = [_epoch(name) for name, _ in rest]
    found = {0: base}
    for (name, asked), step in zip(rest, steps, strict=True):
        if step is None:
            raise UserError(f"{name}: of which step is this? Write it behind the path: --checkpoints {name}=STEP")
        if other := next((s for s, known in found.items() if s and _same_place(known, name)), None):
            steps_said = f"step {step}" if other == step else f"step {other} and as step {step}"
            raise UserError(f"{name} is given twice, as {steps_said}. Give each checkpoint once.")
        if step in found:
            more = f" Step 0 is the reference, {base}." if step == 0 else ""
            raise UserError(f"{name} and {found[step]} are both of step {step}.{more} Write --checkpoints PATH=STEP.")
        named = None if asked is not None else _step_in(name)
        if named not in (None, step):
            tell(f"{name}: its {_STATE} says step {step}, its name {named}. It is taken as step {step}.")
        found[step] = name
    return dict(sorted(found.items()))


def own_reference(checkpoint: str) -> str | None:
    """What an adapter says it was trained from: the adapter `ref` that TRL keeps beside it, else its base model; None
    for a whole model, which does not say."""
    base = adapter_base(checkpoint)
    beside = Path(checkpoint) / "ref"
    return str(beside) if base is not None and (beside / "adapter_config.json").exists() else base


def own_step(name: str) -> int | None:
    """The optimizer step of a checkpoint, by its trainer_state.json or its path."""
    path, last = Path(name), _step_in(name)
    if (path / _STATE).is_file():
        state = read_theirs(path / _STATE)
        step, best = whole(state.get("global_step")), state.get("best_model_checkpoint")
        if step is not None and (last is not None or not best):  # else the best one's weights may lie here
            return step
    return last


def run_of(name: str) -> Path:
    """The folder of the run that a checkpoint belongs to: what lies above the part of its path that names the step."""
    path = Path(name)
    for folder in (path, *path.parents):
        if any(_in_part(folder.name, word) is not None for word in (_STEP, "epoch")):
            return folder.parent
        if folder == path and whole(path.name) is not None:
            return folder.parent
    return path


def given(name: str) -> tuple[str, int | None]:
    """PATH=STEP in two; a folder whose name looks like that is a folder. UserError for a STEP that is none."""
    path, sign, step = name.rpartition("=")
    if not path or not sign or Path(name).exists():
        return name, None
    number = whole(step)
    if number is None and Path(path).exists():
        raise UserError(f"{name}: {step[:40]!r} is no step. Write --checkpoints {path}=STEP, STEP a whole number.")
    return (name, None) if number is None else (path, number)


def require_weights(name: str) -> None:
    """DataError naming the converter for a folder that holds a trainer's shards and no weights that can be read."""
    if Path(name).is_dir() and (how := _converter(Path(name))):
        raise DataError(f"{name}: {how}")


def _inside(folder: Path) -> list[Path]:
    """The checkpoints in a folder, in the order of their steps; none where it is one itself, or holds none."""
    if not folder.is_dir() or (_named(folder.name) and _converter(folder)):
        return []
    below, alone = list(_checkpoints(folder, folder.resolve(), DEEPEST)), _is_model(folder)
    numbered = [p for p in below if _place(p, folder) is not None]
    if alone and all(_converter(p) for p in numbered):  # the shards beside its weights
        return []
    if not numbered:
        return [p for p in below if p.parent == folder]
    runs = sorted({run_of(str(p)) for p in numbered if any(map(_named, p.relative_to(folder).parts))})
    if len(runs) > 1:
        some = ", ".join(map(str, runs[:4])) + (" ..." if len(runs) > 4 else "")
        raise UserError(f"{folder}: holds the checkpoints of {len(runs)} runs ({some}). Give the folder of one.")
    found = _ordered(numbered, folder)
    last = max(_place(p, folder) or 0 for p in found)
    if alone and (folder / _STATE).is_file() and (own_step(str(folder)) or 0) > last:
        found.append(folder)  # the model at the end of the training
    left = ", ".join(p.name for p in below if p not in numbered and p.parent == folder)
    if left and not (folder / "model_index.json").exists():  # a pipeline's parts
        tell(f"{folder}: {left} left out, for no step is known of it. To measure it too, give PATH=STEP.")
    return found


def _checkpoints(folder: Path, top: Path, depth: int) -> Iterator[Path]:
    """Folders below that are models, adapters or a trainer's shards; what lies inside of one is part of it. A link to
    what lies below `top` anyway (latest -> checkpoint-100), or above it, is passed over."""
    for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
        target = path.resolve()
        if path.is_symlink() and (target == top or top in target.parents or target in top.parents):
            continue
        if _is_model(path) or _converter(path):
            yield path
        elif depth > 1:
            yield from _checkpoints(path, top, depth - 1)


def _ordered(found: list[Path], folder: Path) -> list[Path]:
    """By step. Of one step the weights stand in for the shards beside them, an adapter for itself merged."""
    whole = {_place(p, folder) for p in found if not _converter(p)}
    kept = [p for p in found if not _converter(p) or _place(p, folder) not in whole]
    kept = [p for p in kept if p.with_name(p.name.removesuffix("-merged")) not in set(kept) - {p}]
    return sorted(kept, key=lambda p: _place(p, folder) or 0)


def _place(path: Path, folder: Path) -> int | None:
    """Where one stands among the others of a folder: its step, else its epoch; by the path below the folder."""
    below = str(path.relative_to(folder))
    alone = (path / _STATE).is_file() or whole(path.name) is not None
    step = own_step(str(path)) if alone else _numbered(below, _STEP)
    return step if step is not None else _epoch(below)


def _named(part: str) -> bool:
    return _in_part(part, _STEP) is not None or _in_part(part, "epoch") is not None or whole(part) is not None


def _converter(folder: Path) -> str:
    """What a folder of shards is and how it becomes a model; empty for everything else."""
    out = f"{folder}-whole"
    after = f"then copy config.json and the tokenizer's files into {out} and give that folder."
    if any(folder.glob("*.safetensors")):
        return "" if _is_model(folder) or not any(folder.glob("random_states_*.pkl")) else _STATE_OF_ACCELERATE
    if (folder / "policy" / "weights").is_dir() and not any((folder / "policy" / "weights").rglob("config.json")):
        return _nemo(folder, out)
    if shards := next((p for p in sorted(folder.glob("pytorch_model_fsdp_*")) if p.is_dir()), None):
        return (
            f"FSDP's shards, no whole weights. Merge them with `accelerate merge-weights {shards} {out}` (axolotl: "
            f"`axolotl merge-sharded-fsdp-weights`), {after}"
        )
    if _zero(folder):  # OpenRLHF: the script lies above
        where, tag = folder.parent, f" --tag {folder.name}"
    elif _named(folder.name) and any(_zero(p) for p in folder.iterdir() if p.is_dir()):
        where, tag = folder, ""
    else:
        return ""
    return (
        f"DeepSpeed's shards (ZeRO), no whole weights. Convert them with `python {where / 'zero_to_fp32.py'} {where} "
        f"{out} --safe_serialization{tag}`, {after}"
    )


def _nemo(folder: Path, out: str) -> str:
    weights = folder / "policy" / "weights"
    megatron = next(iter(sorted(weights.glob("iter_*"))), None)
    kind, script, key = ("distributed", "convert_dcp_to_hf.py", "dcp-ckpt-path")
    if megatron:
        kind, script, key = ("Megatron", "convert_megatron_to_hf.py", "megatron-ckpt-path")
    return (
        f"NeMo-RL's {kind} checkpoint, no weights that can be read. Convert it with NeMo-RL's "
        f"`examples/converters/{script} --config={folder}/config.yaml --{key}={megatron or weights} "
        f"--hf-ckpt-path={out}`, copy the files of {folder}/policy/tokenizer into {out}, and give that folder."
    )


def _zero(folder: Path) -> bool:
    return any(any(folder.glob(pattern)) for pattern in ("*zero_pp_rank_*.pt", "mp_rank_*_model_states.pt"))


def _step_in(name: str) -> int | None:
    """The step that a path says."""
    alone = whole(Path(name).name)
    return _numbered(name, _STEP) if alone is None else alone


def _epoch(name: str) -> int | None:
    return _numbered(name, "epoch")


def _numbered(name: str, word: str) -> int | None:
    """The number after a word in a path; that of its last part which has one."""
    return next((n for part in reversed(Path(name).parts) if (n := _in_part(part, word)) is not None), None)


def _in_part(part: str, word: str) -> int | None:
    """The number behind a word; none where it goes on, as in epoch-1.5, step-5e3 or step-5,000."""
    found = re.findall(rf"(?<![a-z]){word}[-_= ]?([0-9]+)(?![a-z0-9]|[.,][0-9])", part.lower())
    return whole(found[-1]) if found else None


def _same_place(one: str, other: str) -> bool:
    return one == other or (Path(one).exists() and Path(one).resolve() == Path(other).resolve())


def net_of(folder: Path) -> Path | None:
    """Where diffusers keeps the net of a checkpoint: in unet/ or transformer/, or in the folder itself; None where it
    does neither, or where the folder is one to load as it is."""
    found = next((folder / name for name in NETS if (folder / name / "config.json").is_file()), None)
    if found or (folder / "scheduler_config.json").exists() or not (folder / "config.json").is_file():
        return found
    return folder if "_class_name" in read_theirs(folder / "config.json") else None


def has_denoiser(folder: Path) -> bool:
    """Whether a folder holds what may be a denoiser or an adapter of one."""
    return _is_model(folder) or (folder / "model_index.json").is_file()


def _is_model(path: Path) -> bool:
    names = ("config.json", "adapter_config.json", LORA, *(f"{name}/config.json" for name in NETS))
    ours = all((path / name).exists() for name in ("model.safetensors", "trainer_state.json"))  # a denoiser's run's own
    return ours or any((path / name).exists() for name in names)
