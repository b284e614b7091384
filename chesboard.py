"""Chesboard's front door: one small file, one function a command, no logic of its own.

Start here: `chesboard demo` runs the whole main job; `chesboard COMMAND --help` shows examples.
"""

import functools
import importlib.metadata
import importlib.util
import inspect
import os
import shlex
import signal
import sys
import tempfile
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer
from typer.core import TyperCommand

from diagnostics import folder
from diagnostics.errors import DataError, UserError, printable

ROOMS = ("diagnostics", "trainers", "analysis", "reports")
ALONE = "newest"  # what --resume means where it stands alone
OUT_OF_MEMORY = "out of memory; lower the batch size or max_length, or use a smaller model. What was logged is kept."
NETWORK = ("httpx", "huggingface_hub", "requests", "urllib3")  # libraries that ask a host
# words of the errors with which a process sees that another of its job is gone
LOST = (
    "DistBackendError",
    "DistNetworkError",
    "DistStoreError",
    "gloo",
    "NCCL",
    "Connection closed",
    "Connection reset",
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="See likelihood displacement and deviation in preference optimization: before, during and after training.",
)


_OFFERED = {  # what `import chesboard` gives to Python, and where it stands
    "DisplacementCallback": "trainers.callback",
    "judge": "analysis.run.verdict",
    "load_run": "analysis.tables.runs",
    "load_scores": "analysis.tables.runs",
    "score_pairs": "trainers.score_pairs",
} | dict.fromkeys(
    ("plot_curves", "plot_displacement", "plot_gradients", "plot_kl", "plot_mass", "plot_outcomes"),
    "analysis.run.plots",
)


def __getattr__(name: str) -> Any:
    """`chesboard.load_run`, `from chesboard import DisplacementCallback` and the like: loaded only when asked for."""
    if name not in _OFFERED:
        raise AttributeError(f"module 'chesboard' has no attribute {name!r}")
    return getattr(importlib.import_module(_OFFERED[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_OFFERED})


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(printable(f"chesboard {importlib.metadata.version('chesboard')}"))
        raise typer.Exit()


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version and exit.")
    ] = False,
) -> None: ...


class Train(TyperCommand):
    """`train --help [OBJECTIVE]` goes on with every key, made from the fields that hold them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Print the help where it is asked for, before anything else is looked at."""
        if "--help" in args:
            from reports.catalogue import show_keys

            self.get_help(ctx)
            names = [name for flag, name in pairwise(args) if flag in ("--help", "--objective")]
            show_keys(names[0] if names and not names[0].startswith("-") else "dpo")
            ctx.exit()
        return super().parse_args(ctx, args)


Data = Annotated[
    str, typer.Argument(help="Preference file (.jsonl, .json, .csv, .parquet, also .gz), folder or hub id.")
]
Model = Annotated[str, typer.Option("--model", "-m", help="Model folder or hub id (safetensors).")]
Split = Annotated[str | None, typer.Option(help="Split of a hub data set.")]
MaxLength = Annotated[
    int | None, typer.Option(min=1, help="Longest prompt + completion in tokens; default is the model's limit.")
]
Truncation = Annotated[
    Literal["drop", "keep_start", "keep_end", "error"],
    typer.Option(help="Beyond it: drop, keep_start, keep_end or error. Never silent."),
]
Frames = Annotated[int, typer.Option(min=1, help="Most frames that are taken of a clip, evenly spread.")]
MediaFolder = Annotated[
    str | None, typer.Option(help="Folder that paths of images and clips are relative to; default is the data's own.")
]
Eos = Annotated[bool, typer.Option("--eos/--no-eos", help="End every completion (EOS; in chats the end of the turn).")]
REAL_MODEL = "HuggingFaceTB/SmolLM2-135M-Instruct"  # small enough for a laptop, with a chat template
Text = Annotated[bool, typer.Option(help="Show the texts of the data; without, pages hold numbers alone.")]
Likelihood = Annotated[
    Literal["tokens", "denoising"], typer.Option(help="tokens: language models; denoising: diffusion and flow models.")
]
Draws = Annotated[int, typer.Option(min=1, help="Of denoisers: fixed draws of time and noise.")]
Paths = Annotated[list[Path], typer.Argument(help="Run folders (from train or demo) or flag folders.")]


@app.command()
def demo(
    data: Annotated[
        str | None, typer.Option(help="Train a small LM from scratch on this preference file instead.")
    ] = None,
    persona: Annotated[
        Path | None, typer.Option(help="Real persona statements (JSONL) for the one-token world.")
    ] = None,
    real: Annotated[bool, typer.Option("--real", help="On a real pretrained chat model instead, see --model.")] = False,
    model: Annotated[str, typer.Option("--model", "-m", help="With --real: model folder or hub id.")] = REAL_MODEL,
    out: Annotated[Path, typer.Option(help="Folder for the runs and the report.")] = Path("runs/demo"),
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; spreads are over seeds.")] = 3,
    jobs: Annotated[int, typer.Option(min=1, help="Seeds (with --real: runs) worked on at the same time.")] = 2,
) -> None:
    """The whole main job on the embedded default: build tiny models and data, flag, train with every log on, report.

    With --real on a pretrained chat model (4 GB of memory a job for 135 M weights); stopped, the same command goes on.

    Examples:

        chesboard demo

        chesboard demo --data my_pairs.jsonl --out runs/mine

        chesboard demo --real --model my-chat-model --out runs/real
    """
    if real:
        return _papers(["real"], out, "small", seeds, model, {"real": data} if data else {}, jobs)
    from reports.build import build_report
    from reports.console import say
    from trainers.studies.demo import run_demo, run_own_data

    runs = run_own_data(data, out) if data else run_demo(out, seeds=seeds, jobs=jobs, persona=persona)
    say(f"report: {build_report(runs, out=out / 'report')}")


@app.command()
def show(
    data: Data,
    model: Model,
    row: Annotated[int, typer.Option(min=0, help="Which row, counted from 0.")] = 0,
    plain: Annotated[bool, typer.Option("--plain", help="Without colour (also where NO_COLOR is set).")] = False,
    html: Annotated[Path | None, typer.Option(help="Write a page with frames of clips to this file instead.")] = None,
    split: Split = None,
    frames: Frames = 16,
    media_folder: MediaFolder = None,
    max_length: MaxLength = None,
    truncation: Truncation = "drop",
    eos: Eos = True,
) -> None:
    """Show one row as the model sees it, token by token: prompt, answers, their ends, ids, and what was left out.

    Examples:

        chesboard show my_pairs.jsonl --model my-model

        chesboard show my_pairs.jsonl --model my-model --row 12 --plain

        chesboard show my_clips.jsonl --model my-video-model --row 3 --html row3.html
    """
    from diagnostics.diffusion.denoiser import refuse
    from diagnostics.pairs import read_pairs
    from reports.show import show_row, write_row
    from trainers.models import config_limit, load_tokenizer, longest

    refuse(model, "show")
    table = read_pairs(data, split=split, frames=frames, media_folder=media_folder)
    settings: Any = {
        "max_length": longest(max_length, config_limit(model)),
        "truncation": truncation,
        "append_eos": eos,
    }
    if html is not None:
        return write_row(html, table, load_tokenizer(model), row, settings)
    show_row(table, load_tokenizer(model), row, settings, plain=plain)


pairs_app = typer.Typer(no_args_is_help=True, help="Make preference pairs of a vision-language model's own answers.")
app.add_typer(pairs_app, name="pairs")


def _asking(
    data: Annotated[
        str,
        typer.Argument(help="Rows of one clip or image (video, media_path ...), question and answer: file or hub id."),
    ],
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for the pairs, the audit and the contact sheet.")],
    *,
    seed: Annotated[int, typer.Option(min=0, max=2**31, help="Seed of all that is drawn.")] = 0,
    limit: Annotated[int, typer.Option(min=1, help="Most tokens of an answer.")] = 256,
    split: Split = None,
    frames: Frames = 16,
    media_folder: MediaFolder = None,
) -> None:
    """What every maker of pairs is asked with."""


def pairs_command(own: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function of own options and `how` a command of `pairs`, which has the options of `_asking` too: what the
    function returns is shown."""

    @functools.wraps(own)
    def command(**given: Any) -> None:
        from reports.sheet import show_made

        how = {name: given.pop(name) for name in shared}
        show_made(own(how, **given), how["frames"])

    shared = inspect.signature(_asking).parameters
    _, *options = inspect.signature(own).parameters.values()
    ordered: Any = sorted([*shared.values(), *options], key=lambda p: p.kind)
    command.__signature__ = inspect.Signature(ordered)  # pyright: ignore[reportAttributeAccessIssue]
    command.__annotations__ = {p.name: p.annotation for p in ordered}
    return pairs_app.command()(command)


@pairs_command
def rrpo(
    how: Any,
    *,
    perturb: Annotated[
        str, typer.Option(help="Separated by commas, in order: mask, local_shuffle, global_shuffle, augment.")
    ] = "mask,local_shuffle",
    checker: Annotated[
        str, typer.Option(help="What finds answers right: rule (short answers), or a model folder or hub id to ask.")
    ] = "rule",
    temperature: Annotated[float, typer.Option(min=0, help="Of the answers; 0 takes the likeliest tokens.")] = 0.0,
) -> Any:
    """RRPO's pairs: the model's own wrong answers on perturbed clips against the true ones, differing phrases marked.

    Stopped and started again, it goes on where it was. The file is trained on as it is, on the clean clips.

    Examples:

        chesboard pairs rrpo questions.jsonl --model my-video-model --out runs/rrpo

        chesboard train --model my-video-model --data runs/rrpo/pairs.json --objective rrpo --output_dir runs/a
    """
    from trainers.worlds.video_pairs import rrpo as make

    names = [name.strip() for name in perturb.split(",") if name.strip()]
    return make(**how, perturbations=names, checker=checker, temperature=temperature)


@pairs_command
def leanpo(how: Any) -> Any:
    """LeanPO's pairs: the model's answer with the truth as a hint, improved once, against its own on an augmented clip.

    Stopped and started again, it goes on where it was.

    Examples:

        chesboard pairs leanpo questions.jsonl --model my-video-model --out runs/leanpo

        chesboard train --model my-video-model --data runs/leanpo/pairs.jsonl --objective leanpo --output_dir runs/a
    """
    from trainers.worlds.video_pairs import leanpo as make

    return make(**how)


@pairs_command
def vidchain(
    how: Any,
    *,
    metric: Annotated[
        str, typer.Option(help="What gives points: words (F1 of words), or soda_d (times of events, without words).")
    ],
    temperature: Annotated[float, typer.Option(min=0, help="Of the three answers.")] = 1.0,
) -> Any:
    """VidChain's pairs: of three answers, every two that a metric sets ten points of a hundred apart.

    Stopped and started again, it goes on where it was. VidChain's own metric (SODA c) needs METEOR, and is not here.

    Examples:

        chesboard pairs vidchain questions.jsonl --model my-video-model --metric words --out runs/vidchain

        chesboard train --model my-video-model --data runs/vidchain/pairs.jsonl --beta 0.5 --output_dir runs/a
    """
    from trainers.worlds.vidchain_pairs import vidchain as make

    return make(**how, metric=metric, temperature=temperature)


@pairs_command
def mia(
    how: Any,
    *,
    form: Annotated[str, typer.Option(help="sequence, or grid: a collage (Qwen models alone).")] = "sequence",
) -> Any:
    """MIA-DPO's pairs: a row's image among others, and the answer of a model that looked at those too much.

    Stopped and started again, it goes on where it was.

    Examples:

        chesboard pairs mia questions.jsonl --model my-vision-model --out runs/mia

        chesboard train --model my-vision-model --data runs/mia/pairs.jsonl --beta 0.1 --output_dir runs/a
    """
    from trainers.worlds.mia_pairs import mia as make

    return make(**how, form=form)


@app.command()
def audit(
    data: Data,
    model: Model,
    out: Annotated[Path | None, typer.Option(help="Folder for audit.parquet; default is runs/audit.")] = None,
    split: Split = None,
    frames: Frames = 16,
    media_folder: MediaFolder = None,
    max_length: MaxLength = None,
    truncation: Truncation = "drop",
    eos: Eos = True,
) -> None:
    """Read, tokenise and check every row; list what is wrong or doubtful with which row. Trains nothing.

    Example:

        chesboard audit my_pairs.jsonl --model my-model

        chesboard audit my_images.parquet --model my-diffusion-model
    """
    from diagnostics.audit import audit_pairs, counts_table
    from diagnostics.diffusion.denoiser import is_denoiser
    from diagnostics.pairs import read_pairs
    from diagnostics.runlog import write_frame
    from reports.console import say, show_counts
    from trainers.denoisers import audit_samples
    from trainers.models import config_limit, load_tokenizer, longest

    if is_denoiser(model):
        found = audit_samples(data, model, split=split, media_folder=media_folder)
    else:
        table = read_pairs(data, split=split, frames=frames, media_folder=media_folder)
        limit = longest(max_length, config_limit(model))
        found = audit_pairs(table, load_tokenizer(model), max_length=limit, truncation=truncation, append_eos=eos)
    path = (out or Path("runs/audit")) / "audit.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_frame(path, found.frame)
    say(*found.said())
    show_counts(counts_table(found), path)


@app.command()
def flag(
    data: Data,
    model: Model,
    out: Annotated[Path, typer.Option(help="Folder for scores.parquet and audit.parquet.")],
    by: Annotated[
        str | None,
        typer.Option(
            help="Measure to rank by (`chesboard list measures`); default ln_ches_score, of denoisers set_rate."
        ),
    ] = None,
    quantile: Annotated[
        float | None, typer.Option(help="Flag the most prone beyond this quantile (default 0.9, a tenth).")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Flag this many pairs.")] = None,
    above: Annotated[float | None, typer.Option(help="Flag pairs above this value (where high is prone).")] = None,
    below: Annotated[float | None, typer.Option(help="Flag pairs below this value (where low is prone).")] = None,
    forecast: Annotated[bool, typer.Option("--forecast", help="Measure all of the forecast, whatever --by.")] = False,
    parameters: Annotated[
        Literal["all", "head"], typer.Option(help="Weights that rates are taken in: all or head.")
    ] = "all",
    probe: Annotated[
        str | None, typer.Option(help="JSONL of prompt and answer to protect, for probe_influence.")
    ] = None,
    write_kept: Annotated[
        str | None, typer.Option(help="Write the rows not flagged, in the data's own format.")
    ] = None,
    write_flagged: Annotated[str | None, typer.Option(help="Write the flagged rows, in the data's own format.")] = None,
    split: Split = None,
    frames: Frames = 16,
    media_folder: MediaFolder = None,
    max_length: MaxLength = None,
    truncation: Truncation = "drop",
    eos: Eos = True,
    dtype: Annotated[
        str, typer.Option(help="Weights: float32, bfloat16 or float16. Sums are float64 anyway.")
    ] = "float32",
    device_map: Annotated[
        Literal["auto", "balanced", "sequential", "cpu"] | None,
        typer.Option(help="Spread one model over all devices: auto, balanced, sequential or cpu."),
    ] = None,
    likelihood: Likelihood = "tokens",
    draws: Draws = 16,
    seed: Annotated[int, typer.Option(min=0, help="Of denoisers: seed of the draws; 0 gives those of a run.")] = 0,
) -> None:
    """Score every pair before training and flag those prone to displacement.

    Stopped at any moment and started again with the same command, it goes on where it was. Started by torchrun or
    accelerate, the processes share the pairs, each on its own GPU (or on the CPU).

    CHES and its kin flag the highest values; the rates (set_rate, self_rate, ...) forecast how a chosen log-prob
    moves, and flag the lowest. A measure knows its own side.

    Examples:

        chesboard flag my_pairs.jsonl --model my-model --out runs/flag

        chesboard flag my_pairs.jsonl --model my-model --out runs/flag --by ches_score --write-kept kept.jsonl

        chesboard flag my_pairs.jsonl --model my-model --out runs/flag --by set_rate --below 0

        chesboard flag my_pairs.jsonl --model my-model --out runs/flag --by probe_influence --probe refusals.jsonl

        chesboard flag pick.parquet --likelihood denoising --model sd15 --out runs/flag

        torchrun --nproc_per_node 2 chesboard.py flag my_pairs.jsonl --model my-model --out runs/flag

        accelerate launch --multi_gpu --num_processes 2 -m chesboard flag my_pairs.jsonl -m my-model --out runs/flag
    """
    from diagnostics.diffusion.denoiser import refuse
    from diagnostics.flag.flagging import DEFAULT, check_by, prone
    from diagnostics.flag.flagging import flag as flag_pairs
    from diagnostics.processes import agree, leave, processes
    from reports.console import say, show_flagged
    from trainers.models import load_to_device, load_tokenizer, longest, model_limit

    if likelihood == "denoising":
        if forecast or probe or parameters != "all":
            raise UserError(
                "of denoisers all measures are taken, in all weights: leave --forecast, --probe and --parameters out."
            )
        from diagnostics.flag import samples
        from trainers.denoisers import load_denoiser

        by = by or samples.DEFAULT
        denoiser: Any = load_denoiser(model, dtype=dtype, cache=out.parent / "latents")
        rule: Any = {"quantile": quantile, "count": count, "above": above, "below": below}
        rule |= {"write_kept": write_kept, "write_flagged": write_flagged}
        scores, _, audit = samples.flag(
            data, denoiser, out, model_name=model, by=by, split=split, media_folder=media_folder, draws=draws,
            seed=seed, **rule,
        )  # fmt: skip
        say(*audit.said())
        return show_flagged(scores, by, prone(by), out)
    by = by or DEFAULT
    agree(lambda: check_by(by))
    agree(lambda: refuse(model, "flag"))
    loaded, tokenizer = agree(
        lambda: (load_to_device(model, dtype=dtype, device_map=device_map), load_tokenizer(model))
    )
    scores, _, audit = flag_pairs(
        data,
        loaded,
        tokenizer,
        out,
        model_name=model,
        by=by,
        quantile=quantile,
        count=count,
        above=above,
        below=below,
        everything=forecast,
        parameters=parameters,
        probe=probe,
        split=split,
        frames=frames,
        media_folder=media_folder,
        max_length=longest(max_length, model_limit(loaded)),
        truncation=truncation,
        append_eos=eos,
        write_kept=write_kept,
        write_flagged=write_flagged,
    )
    if processes().is_main_process:
        say(*audit.said())
        show_flagged(scores, by, prone(by), out)
    leave()


@app.command(cls=Train, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def train(
    context: typer.Context,
    config: Annotated[Path | None, typer.Option(help="YAML file of flat keys.")] = None,
    resume: Annotated[
        str | None,
        typer.Option(
            metavar="[auto]",
            help="Go on from the run folder's newest whole checkpoint. auto: start, go on, or end at once where the "
            "run is finished; a run without a checkpoint starts over, its log set aside.",
        ),
    ] = None,
) -> None:
    """Instrumented training. Every key may stand in the config file or follow as --key value; unknown keys fail.

    `chesboard train --help` lists all keys, `chesboard train --help simpo` those of another objective.

    Examples:

        chesboard train --config run.yaml

        chesboard train --model my-model --data pairs.jsonl --output_dir runs/a --objective dpo --beta 0.1

        chesboard train --config run.yaml --alarm "displacement/frac > 0.8 for 3" --alarm_action stop

        chesboard train --config run.yaml --resume

        until chesboard train --config run.yaml --resume auto; do sleep 60; done
    """
    from diagnostics.processes import leave, processes
    from reports.console import show_run
    from trainers.config import make_config, parse_flags, read_config
    from trainers.run import train as train_run

    values = (read_config(config) if config else {}) | parse_flags(context.args)
    values |= {"resume": True if resume == ALONE else resume} if resume else {}
    run = train_run(make_config(values))
    if processes().is_main_process:
        show_run(run)
    leave()


@app.command()
def compare(
    objectives: Annotated[
        str | None, typer.Option(help="Separated by commas; with hyperparameters: rrpo:alpha=0:phrases=false.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; intervals are over seeds.")] = 3,
    config: Annotated[
        Path | None, typer.Option(help="YAML of flat keys, as for train: your model and data. Default: a tiny world.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for the runs and the report.")] = Path("runs/compare"),
    learning_rates: Annotated[
        str | None, typer.Option(help="Separated by commas; every objective is trained with each.")
    ] = None,
    jobs: Annotated[int, typer.Option(min=1, help="Runs worked on at the same time.")] = 2,
) -> None:
    """The board: train the same model on the same pairs with each objective, and report them side by side.

    Started again, it goes on where it was: finished runs are not run again. Weights are not kept, unless the config
    says `save_model: true`. Without --config it builds tiny models that know facts: about five minutes of one core.

    Examples:

        chesboard compare

        chesboard compare --objectives dpo,simpo,rrpo:alpha=0.1 --learning-rates 1e-4,3e-4 --out runs/three

        chesboard compare --config base.yaml --objectives dpo,dpo:beta=0.5,dpo_nll --learning-rates 5e-7,1e-6
    """
    from reports.build import build_report
    from reports.console import say
    from trainers.studies.compare import DEFAULT_OBJECTIVES, parse_entries, parse_rates
    from trainers.studies.compare import compare as train_all

    entries = parse_entries(objectives if objectives is not None else ",".join(DEFAULT_OBJECTIVES))
    rates = parse_rates(learning_rates)
    done, failed = train_all(out, entries=entries, seeds=seeds, learning_rates=rates, config=config, jobs=jobs)
    say(f"report: {build_report(done, out=out / 'report')}")
    if failed:
        raise DataError(f"{len(failed)} runs are missing on the board. The first one said: {failed[0]}")


@app.command()
def ablate(
    config: Annotated[Path, typer.Option(help="YAML of flat keys, as for train: the run on all pairs.")],
    by: Annotated[str, typer.Option(help="Column of the scores that flags: ln_ches_score, set_rate, ...")],
    scores: Annotated[Path, typer.Option(help="scores.parquet of the config's data, from `chesboard flag`.")],
    drop: Annotated[str, typer.Option(help="Shares of the pairs to leave out, separated by commas.")] = "0.05,0.1,0.2",
    seeds: Annotated[int, typer.Option(min=1, help="How many seeds; intervals are over seeds.")] = 3,
    out: Annotated[Path, typer.Option(help="Folder for the runs and the report.")] = Path("runs/ablate"),
    jobs: Annotated[int, typer.Option(min=1, help="Runs worked on at the same time.")] = 2,
) -> None:
    """Does a filter help? Train on all pairs, without the flagged ones, and without as many random ones, each also
    with as many optimizer steps as the run on all pairs; report them side by side.

    All runs of a seed are measured on the same held-out and the same probe pairs. Started again, finished runs are not
    run again; another --by or --drop into the same folder adds to it. The report takes in everything in the folder.

    Examples:

        chesboard ablate --config run.yaml --by ln_ches_score --scores runs/flag/scores.parquet

        chesboard ablate --config run.yaml --by set_rate --scores runs/flag --drop 0.2,0.8 --seeds 5
    """
    from reports.build import build_report
    from reports.console import say
    from trainers.studies.ablate import ablate as train_all
    from trainers.studies.ablate import parse_drops

    _, failed = train_all(config, scores, out, by=by, drops=parse_drops(drop), seeds=seeds, jobs=jobs)
    say(f"report: {build_report([out], out=out / 'report')}")
    if failed:
        raise DataError(f"{len(failed)} runs are missing in the comparison. The first one said: {failed[0]}")


@app.command()
def paper(
    name: Annotated[str | None, typer.Argument(help="Which analysis; see --list.")] = None,
    scale: Annotated[
        Literal["toy", "small", "paper"],
        typer.Option(help="toy: tiny models on a CPU; small: a given model; paper: its own models and settings."),
    ] = "toy",
    model: Annotated[str | None, typer.Option(help="Model folder or hub id, at small and paper scale.")] = None,
    data: Annotated[
        list[str] | None, typer.Option(help="Data set, file or hub id; with --all NAME=DATA, repeated.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="How many seeds; default is the analysis' own.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the analyses, their runs and the ledger.")] = Path(
        "runs/papers"
    ),
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at the same time; default 2 at toy scale, else 1.")
    ] = None,
    changed: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=VALUE: a setting, named as on the page; repeat.")
    ] = None,
    prompt_form: Annotated[
        Literal["chat", "raw"] | None,
        typer.Option(help="Rows as chats or raw text; default: chat where the model has a chat template."),
    ] = None,
    all_papers: Annotated[bool, typer.Option("--all", help="Every analysis, and the ledger of all claims.")] = False,
    list_papers: Annotated[bool, typer.Option("--list", help="The analyses there are.")] = False,
) -> None:
    """Rerun a paper's analysis: your numbers beside the published ones, and claim by claim whether it holds, does not
    hold, or cannot be said at this size. Started again, it goes on where it was; analyses share their runs.

    Examples:

        chesboard paper --list

        chesboard paper auxdpo

        chesboard paper catastrophic --data ends-justify-means.jsonl --seeds 3

        chesboard paper unalignment --scale small --model my-chat-model --set learning_rate=1e-5

        chesboard paper ches_subsets --scale paper --model allenai/OLMo-1B-hf

        chesboard paper --all
    """
    from reports.console import show_papers
    from reports.papers import at, data_by_name, listed, settings_of

    if list_papers:
        return show_papers(listed())
    if all_papers == bool(name):
        raise UserError("give the name of one analysis, or --all; `chesboard paper --list` names them.")
    wanted = [name] if name else at(scale)
    given, changes = data_by_name(wanted, data or []), settings_of(changed or [])
    _papers(wanted, out, scale, seeds, model, given, jobs, changes=changes, form=prompt_form)


def _papers(
    names: list[str],
    out: Path,
    scale: Any,
    seeds: int | None,
    model: str | None,
    data: dict[str, str],
    jobs: int | None,
    **how: Any,
) -> None:
    """Rerun these analyses and show their claims; of several, how many hold."""
    from reports.console import show_ledger
    from reports.papers import rerun

    ledger, failed = rerun(names, out, scale=scale, seeds=seeds, model=model, data=data, jobs=jobs, **how)
    show_ledger(ledger, (names[0], scale) if len(names) == 1 else None)
    if failed:
        raise DataError(f"{len(failed)} analyses could not be made. The first one said: {failed[0]}")


@app.command()
def trace(
    data: Data,
    checkpoints: Annotated[
        list[str], typer.Option(help="Output folder of any trainer, model folder or LoRA adapter; repeat.")
    ],
    out: Annotated[Path, typer.Option(help="Run folder to write.")],
    reference: Annotated[
        str | None, typer.Option(help="Reference model; default is an adapter's own base, else the first checkpoint.")
    ] = None,
    tokenizer: Annotated[
        str | None, typer.Option(help="Model whose tokenizer and chat template read the data; default: the reference.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="How many pairs to measure, drawn by seed.")] = 256,
    track: Annotated[str | None, typer.Option(help="JSON file of prompts and token groups to follow.")] = None,
    split: Split = None,
    frames: Frames = 16,
    media_folder: MediaFolder = None,
    max_length: MaxLength = None,
    truncation: Truncation = "drop",
    eos: Eos = True,
    dtype: Annotated[str, typer.Option(help="Weights: float32, bfloat16 or float16.")] = "float32",
    seed: Annotated[int, typer.Option(min=0, max=2**32 - 1, help="Seed of the draw.")] = 0,
    likelihood: Likelihood = "tokens",
    draws: Draws = 16,
) -> None:
    """Make the run log afterwards, from checkpoints that any trainer wrote. Started again, it goes on where it was.

    Examples:

        chesboard trace my_pairs.jsonl --reference my-model --checkpoints out/ --out runs/traced

        chesboard trace pick.parquet --likelihood denoising --reference sd15 --checkpoints dpo-out --out runs/traced
    """
    from reports.console import show_run
    from trainers.trace import trace as trace_run

    done = trace_run(
        data, checkpoints, out, reference=reference, tokenizer=tokenizer, pairs=pairs, split=split, frames=frames,
        media_folder=media_folder, max_length=max_length, truncation=truncation, append_eos=eos, dtype=dtype,
        track=track, seed=seed, likelihood=likelihood, draws=draws,
    )  # fmt: skip
    show_run(done)


@app.command()
def report(
    runs: Paths,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the report; default is report/ in the first run.")
    ] = None,
    text: Text = True,
    baseline: Annotated[
        Path | None, typer.Option(help="A run that every other one is held against, pair by pair.")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Folder for every figure as SVG, PDF and data, every table as CSV and LaTeX.")
    ] = None,
) -> None:
    """Execute the notebooks on run logs and flag folders; write HTML, report.json and summary.md.

    Examples:

        chesboard report runs/a runs/b

        chesboard report runs/a --no-text

        chesboard report runs/a --baseline runs/before

        chesboard report runs/a --figures paper/figures
    """
    from reports.build import build_report
    from reports.console import say

    say(f"report: {build_report(runs, out=out, text=text, baseline=baseline, figures=figures)}")


@app.command()
def watch(
    run: Annotated[Path, typer.Argument(help="Run folder, of a run that is still going.")],
    every: Annotated[float, typer.Option(min=0.2, help="Seconds between two looks at its log.")] = 5.0,
    once: Annotated[bool, typer.Option("--once", help="Print once and exit.")] = False,
) -> None:
    """The verdict, four numbers and the share that fell by step of a run that is still going, in the terminal. Ends
    with the run, or with ctrl-c.

    Example:

        chesboard watch runs/dpo
    """
    from reports.watch import watch as watch_run

    try:
        watch_run(run, every=every, once=once)
    except Stopped as stopped:
        if stopped.signal != "SIGINT":  # ctrl-c is how a watch ends
            raise


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(help="Run folder that the other is held against.")],
    after: Annotated[Path, typer.Argument(help="Run folder, on the same pairs.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the page; default is report/ in the second run.")] = None,
    text: Annotated[
        bool, typer.Option(help="Show the texts of the data; without, the page holds numbers alone.")
    ] = True,
) -> None:
    """Two runs on the same pairs side by side: paired differences with intervals, pairs that changed class, settings
    that differ. Prints five lines of Markdown for a pull request and writes a page.

    Example:

        chesboard diff runs/dpo runs/dpo-nll
    """
    from reports.console import say
    from reports.diff import make

    _, lines, page = make(before, after, out, text=text)
    say(*(f"- {line}" for line in lines), f"page: {page}")


@app.command()
def scorecard(
    runs: Annotated[list[Path], typer.Argument(help="Run folders: one, or the seeds of one setting.")],
    scores: Annotated[
        list[Path] | None, typer.Option(help="scores.parquet of their data; one for all runs, or repeat it per run.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write to; default is report/ in the first run.")] = None,
) -> None:
    """Which predictor told, before training, which pairs would lose chosen likelihood: every measure of the scores
    and of the run log against what happened, with intervals, and one sentence that says which to trust here.

    Examples:

        chesboard scorecard runs/dpo --scores runs/flag/scores.parquet

        chesboard scorecard runs/seed0 runs/seed1 runs/seed2 --scores runs/flag
    """
    from reports.console import say, show_scorecard
    from reports.scorecard import make

    found, page = make(runs, scores or [], out)
    show_scorecard(found)
    say(f"page: {page}")


@app.command()
def gate(
    run: Annotated[Path | None, typer.Argument(help="Run folder.")] = None,
    gates: Annotated[Path | None, typer.Option(help="YAML file of gates.")] = None,
    junit: Annotated[Path | None, typer.Option(help="JUnit XML; default is report/gates.xml in the run.")] = None,
    baseline: Annotated[
        Path | None, typer.Option(help="A run that gates `against: baseline` hold this one against, pair by pair.")
    ] = None,
    example: Annotated[bool, typer.Option("--example", help="Print a commented gates file to start from.")] = False,
) -> None:
    """Judge a run by declarative gates, write JUnit XML; exit code 1 if a gate fails.

    Examples:

        chesboard gate --example > gates.yaml

        chesboard gate runs/a --gates gates.yaml

        chesboard gate runs/a --gates gates.yaml --baseline runs/before
    """
    from reports.gate import EXAMPLE, judge, show

    if example:
        return typer.echo(EXAMPLE.read_text(encoding="utf-8"), nl=False)
    if run is None or gates is None:
        raise UserError("give a run folder and --gates FILE; `chesboard gate --example` prints a file to start from.")
    findings = judge(run, gates, junit or run / "report" / "gates.xml", baseline)
    if not show(findings):
        raise typer.Exit(1)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="Run folder, or a folder that `chesboard flag` wrote (to files alone).")],
    csv: Annotated[Path | None, typer.Option(help="Folder for every table as CSV, and columns.json.")] = None,
    parquet: Annotated[Path | None, typer.Option(help="Folder for every table as Parquet, and columns.json.")] = None,
    to: Annotated[
        Literal["wandb", "mlflow", "trackio"] | None, typer.Option(help="Viewer to send steps and pairs to.")
    ] = None,
    project: Annotated[str, typer.Option(help="With --to: the viewer's project or experiment.")] = "chesboard",
) -> None:
    """A run in plain files with a dictionary of its columns, or in W&B, MLflow or trackio.

    Examples:

        chesboard export runs/dpo --csv tables

        chesboard export runs/dpo --parquet tables

        chesboard export runs/dpo --to mlflow --project preferences
    """
    from reports.console import say
    from reports.export import send, write_files

    if not (csv or parquet or to):
        raise UserError("say where to: --csv FOLDER, --parquet FOLDER, or --to wandb, mlflow or trackio.")
    for folder_, kind in ((csv, "csv"), (parquet, "parquet")):
        if folder_:
            say(*map(str, write_files(run, folder_, kind)))
    if to:
        steps, pairs = send(run, to, project)
        say(f"sent to {to}, project {project}: {steps} steps and {pairs} pairs.")


@app.command(name="list")
def list_all(
    what: Annotated[str | None, typer.Argument(help="objectives, measures or notebooks; default is all.")] = None,
    name: Annotated[str | None, typer.Argument(help="One of them: its card.")] = None,
    details: Annotated[bool, typer.Option("--details", help="Tables with needs, source and paper.")] = False,
) -> None:
    """Every objective, measure and notebook with its paper, read from their own docstrings.

    An objective's card adds how it pushes the two answers, computed from its function: the incentives at several
    margins, their ratio as the rejected answer fades, and whether the absolute chosen likelihood enters.

    Examples:

        chesboard list

        chesboard list --details

        chesboard list objectives dpo
    """
    from reports.catalogue import show_list

    show_list(what, name, details=details)


def main() -> None:
    """Entry point: a user's mistake ends in one sentence and an exit code, never in a traceback; so does a signal, and
    a fault of ours, whose traceback goes to a file."""
    with _signals():
        try:
            _check_rooms()
            app(_arguments(sys.argv[1:]), standalone_mode=True, prog_name="chesboard")
        except UserError as error:
            _end(str(error), error.exit_code)
        except Stopped as error:
            _end(_stopped(error.signal), error.code)
        except MemoryError:
            _end(OUT_OF_MEMORY, 3)
        except OSError as error:
            place = f"{error.filename}: " if error.filename else ""
            _end(_known(error) or f"{place}{error.strerror or error}. Check the path and the space left.", 3)
        except Exception as error:
            if known := _known(error):
                _end(known, 3)
            _end(_fault(), 70)


class Stopped(SystemExit):
    """A signal that ends the job: every file is closed on the way out. Its code is 128 and the signal's number."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)
        self.signal = signal.Signals(number).name


@contextmanager
def _signals() -> Iterator[None]:
    """SIGINT and SIGTERM raise Stopped. While that closes the job a second SIGINT ends it at once."""

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Stopped(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _arguments(given: list[str]) -> list[str]:
    """The command line, where `--resume` of train may stand alone or take a value."""
    alone = [a == "--resume" and (b is None or b.startswith("--")) for a, b in zip(given, [*given[1:], None])]
    return [f"--resume={ALONE}" if lone else a for a, lone in zip(given, alone)] if given[:1] == ["train"] else given


def _end(sentence: str, code: Any) -> NoReturn:
    """Say it and leave. One of several processes leaves at once: what the others wait for would hold it back."""
    print(f"chesboard: {printable(sentence)}", file=sys.stderr)
    if _processes() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _processes() -> int:
    """How many processes torchrun or accelerate started for this job."""
    return int(os.environ.get("WORLD_SIZE") or 1)


def _stopped(name: str) -> str:
    """What a signal ended, and the command that goes on."""
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    more = " --resume auto" if command == "train" and "--resume" not in sys.argv else ""
    if _processes() > 1:
        how = f"start the same again, with{more}" if more else "start the same again"
    else:
        started = sys.orig_argv if sys.argv[0].endswith(".py") else ["chesboard", *sys.argv[1:]]
        how = shlex.join(started) + more
    return f"stopped by {name}; what was logged is whole and kept. To go on: {how}"


def _known(error: Exception) -> str:
    """The sentence for what is no fault of ours: no memory left, no way to a host, or another process of the job gone;
    else empty."""
    said = f"{type(error).__name__} {error}"
    if type(error).__module__.startswith(NETWORK):
        return f"a host that this run needs cannot be reached, or refuses ({' '.join(str(error).split())[:200]})."
    if "OutOfMemoryError" in said or "can't allocate memory" in said:
        return OUT_OF_MEMORY
    if _processes() > 1 and any(word in said for word in LOST):
        return (
            "another process of this job has ended, so this one cannot go on; see what that one said. What was logged "
            "is kept: start the same again" + " with --resume auto." * (sys.argv[1:2] == ["train"])
        )
    return ""


def _fault() -> str:
    """Write the traceback into the folder that was being written, or where there is none, a temporary one."""
    text = traceback.format_exc()
    for place in (*folder.latest, Path(tempfile.mkdtemp(prefix="chesboard-"))):
        with suppress(OSError):
            (place / folder.FAULT).write_text(text, encoding="utf-8")
            last = text.strip().splitlines()[-1][:200]
            return f"this is a fault of Chesboard: please report it with the file {place / folder.FAULT} ({last})."
    return f"this is a fault of Chesboard: please report it.\n{text}"


def _check_rooms() -> None:
    """Our folders have plain names: stop if another project's folder of the same name is found first."""
    here = Path(__file__).resolve().parent
    for room in ROOMS:
        spec = importlib.util.find_spec(room)
        found = Path(spec.origin).resolve().parent if spec and spec.origin else None
        if found != here / room:
            raise DataError(
                f"'{room}' resolves to {found}, not to {here / room}. Run from the checkout, or rename the other."
            )


if __name__ == "__main__":
    main()
