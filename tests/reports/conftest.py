"""Made-up run and score folders with known numbers, written by the run log's own writer."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from diagnostics.files import write_json
from diagnostics.runlog import RunLogWriter, read_table, write_frame

NASTY = "<script>alert(1)</script></pre> costs $5 and $6 & more"
STEPS = (0, 5, 10, 15, 20)


def _pair_row(step: int, split: str, i: int, fall: float, rng: np.random.Generator) -> dict:
    ches = float(i - 6)
    lost = fall * step * (1 + i / 4) / 20
    row = dict(step=step, epoch=step / 20, split=split, pair_id=f"p{i}", loss=0.69 - step / 50)
    row |= dict(chosen_logps=-20.0 - i + lost, rejected_logps=-22.0 - i + 1.5 * lost - step / 10)
    row |= dict(ref_chosen_logps=-20.0 - i, ref_rejected_logps=-22.0 - i)
    row |= dict(chosen_length=8.0 + i % 3, rejected_length=9.0 + i % 5, chosen_rewards=0.1 * lost)
    row |= dict(rejected_rewards=0.1 * (1.5 * lost - step / 10), chosen_kl=step / 8, rejected_kl=step / 5)
    row |= dict(chosen_kl_reverse=step / 9, rejected_kl_reverse=step / 6, ches_score=ches, ln_ches_score=ches / 9)
    row |= dict(last_hidden_similarity=rng.normal(), edit_similarity=rng.random())
    row |= {f"{side}_topk_entropy": 1.5 + i / 50 + step / 40 for side in ("chosen", "rejected")}
    row |= {f"{side}_topk_mass": 0.9 - i / 100 for side in ("chosen", "rejected")}
    return row | dict.fromkeys(("chosen_grad_norm", "rejected_grad_norm", "grad_inner"), math.nan)


def _mass_rows(step: int, i: int, fall: float) -> list[dict]:
    moved = 0.02 * step * abs(fall) / 2
    ledger = [("chosen", 0.5 - moved), ("rejected", 0.2 - moved / 4), ("argmax", 0.5), ("other", 0.3 + 1.25 * moved)]
    ledger += [("chosen_eos", 0.9 - moved), ("rejected_eos", 0.8 - moved)]
    base = dict(step=step, split="probe", pair_id=f"p{i}")
    rows = [
        base | dict(kind=k, name=k, rank=0, token_id=3, token="a", prob=p, prob_start=p, change=0.0) for k, p in ledger
    ]
    for kind, token, change in (("gained", NASTY, moved), ("gained", " Yes\n", moved / 4), ("lost", "No", -moved)):
        rows.append(
            base | dict(kind=kind, name=token, rank=0, token_id=7, token=token, prob=0.3, prob_start=0.1, change=change)
        )
    return rows


def _response_rows(step: int, i: int) -> list[dict]:
    """Every answer falls by up to a nat a token, but the model's own rises by half of that."""
    base = dict(step=step, split="probe", pair_id=f"p{i}", kind="response", rank=0, token_id=-1, token="")
    base |= dict(prob_start=math.nan, change=math.nan)
    moves = {"chosen": -1.2, "rejected": -1.5, "own": 0.4, "other": -0.8, "shuffled": -0.3}
    moved = {name: move * (1 + i / 20) * step / 20 for name, move in moves.items()}
    return [base | dict(name=name, prob=math.exp(-2.0 + move)) for name, move in moved.items()]


def _group_rows(step: int) -> list[dict]:
    base = dict(step=step, kind="group", rank=0, token_id=-1, token="", prob_start=math.nan, change=math.nan)
    values = {("unsafe", "refusal"): 0.7 - step / 50, ("safe", "comply"): 0.9 - step / 100}
    return [base | dict(split=s, pair_id=f"{s}0", name=g, prob=p) for (s, g), p in values.items()]


def _token_rows(step: int, i: int) -> list[dict]:
    words = ["Sorry", " I", " <b>can't</b>", "\n", "$x$"]
    base = dict(step=step, pair_id=f"p{i}", token_id=5, ref_logp=-1.0, kl=step / 40)
    return [
        base | dict(side=s, position=t, token=w, logp=-1.0 - step * (t - 1) / 20)
        for s in ("chosen", "rejected")
        for t, w in enumerate(words)
    ]


def write_run(path: Path, *, fall: float = -2.0, n: int = 12, full: bool = True, config: dict | None = None) -> Path:
    """A run of n probe pairs over 20 steps; fall: nats a chosen response moves by the end, times 1 + i / 4."""
    rng = np.random.default_rng(0)
    log = RunLogWriter(path)
    write_json(
        log.path / "config.json", dict(model="tiny & <small>", objective="dpo", beta=0.1, seed=0) | (config or {})
    )
    for step in STEPS:
        rows = [_pair_row(step, split, i, fall, rng) for split in ("probe", "eval", "train") for i in range(n)]
        if not full:
            keep = ("step", "split", "pair_id", "chosen_logps", "rejected_logps")
            rows = [{k: r[k] for k in keep} for r in rows]
        log.append("pairs", rows)
        log.append_step({"step": step, "loss": 0.69 - step / 50, "grad_norm": 1.0 + step, "grad_norm/head": 0.5 + step})
        if full:
            rows = [r for i in range(n) for r in (*_mass_rows(step, i, fall), *_response_rows(step, i))]
            log.append("mass", rows + _group_rows(step))
            log.append("tokens", [r for i in range(n) for r in _token_rows(step, i)])
    log.close()
    if full:
        parity = dict(noise_floor=1e-5, max_difference=2e-6, n=n, passed=True)
        write_json(log.path / "manifest.json", dict(conventions={"logps": "sums in nats, EOS included"}, parity=parity))
        write_frame(path / "audit.parquet", audit(n))
    return path


def audit(n: int) -> pd.DataFrame:
    """n kept rows and two skipped ones; the text is hostile."""
    rows = [dict(pair_id=f"p{i}", source_row=i, status="kept", reason="", doubts="") for i in range(n)]
    rows += [dict(pair_id=f"s{i}", source_row=n + i, status="skipped", reason="empty", doubts="") for i in range(2)]
    frame = pd.DataFrame(rows).assign(prompt=NASTY, chosen="fine </pre>", rejected="<img src=x onerror=alert(2)>")
    frame.loc[0, "doubts"] = "duplicate; token_merge"
    frame["kind"] = ["two_refusals" if i % 2 else "mixed" for i in range(len(frame))]
    return frame


def write_flags(path: Path, *, n: int = 40) -> Path:
    """A score folder of n pairs, one of them skipped."""
    rng = np.random.default_rng(1)
    path.mkdir(parents=True, exist_ok=True)
    chosen, rejected = rng.integers(4, 40, n), rng.integers(4, 40, n)
    scores = pd.DataFrame(dict(pair_id=[f"p{i}" for i in range(n)], source_row=range(n), status="scored", reason=""))
    scores = scores.assign(prompt_length=9, chosen_length=chosen, rejected_length=rejected, chosen_logps=-2.0 * chosen)
    scores = scores.assign(rejected_logps=-2.1 * rejected, ches_score=(rejected - chosen) + rng.normal(size=n))
    scores = scores.assign(ln_ches_score=rng.normal(size=n), last_hidden_similarity=rng.normal(size=n))
    scores = scores.assign(edit_similarity=rng.random(n), rank=np.arange(1, n + 1), flagged=np.arange(n) < 4)
    scores["flag_reason"] = np.where(scores["flagged"], "top 10 % by ln_ches_score", "")
    scores.loc[n - 1, ["status", "reason"]] = ["skipped", "empty"]
    scores.loc[n - 1, ["ches_score", "ln_ches_score", "rank"]] = math.nan
    write_frame(path / "scores.parquet", scores)
    write_frame(path / "audit.parquet", audit(n))
    return path


@pytest.fixture
def make_run(tmp_path):
    """Write a made-up run under tmp_path."""
    return lambda name="run", **settings: write_run(tmp_path / name, **settings)


@pytest.fixture
def cut_short():
    """Take the rows of the pairs after step 10 away from a run; returns it."""

    def cut(run: Path) -> Path:
        rows = read_table(run, "pairs").query("step <= 10")
        shutil.rmtree(run / "pairs")
        log = RunLogWriter(run)
        log.append("pairs", rows.to_dict("records"))
        log.close()
        return run

    return cut


@pytest.fixture
def make_board(tmp_path):
    """Write the finished runs of a board under tmp_path: {(label, learning rate, seed): fall}; returns the folders."""

    def write(runs: dict[tuple[str, float, int], float], **settings) -> list[Path]:
        folders = []
        for (label, rate, seed), fall in runs.items():
            config = dict(board_label=label, learning_rate=rate, seed=seed)
            folders.append(write_run(tmp_path / f"r{len(folders)}", fall=fall, config=config, **settings))
            write_json(folders[-1] / "board.json", dict(steps=20, seconds=2.0 + seed, cpu_seconds=1.5))
        return folders

    return write


@pytest.fixture
def make_flags(tmp_path):
    """Write a made-up score folder under tmp_path."""
    return lambda name="flags", **settings: write_flags(tmp_path / name, **settings)


@pytest.fixture(scope="session")
def writers() -> tuple[Any, Any]:
    """What writes a made-up run and a made-up score folder, for fixtures of a whole module."""
    return write_run, write_flags


@pytest.fixture(scope="module")
def made_up(tmp_path_factory) -> tuple[Path, Path, Path]:
    """A folder with a run of an awkward name and a score folder in it."""
    folder = tmp_path_factory.mktemp("report")
    return folder, write_run(folder / "my run $1$ <b>"), write_flags(folder / "flags")


@pytest.fixture
def nasty() -> str:
    """The hostile text that every prompt holds."""
    return NASTY


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A real browser: the system's Chromium, or the one that `playwright install chromium` fetched."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if found is None and not Path(play.chromium.executable_path).exists():
            pytest.skip("no Chromium here: install one, or `playwright install chromium`")
        opened = play.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield opened
        opened.close()
