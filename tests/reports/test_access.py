"""The kinds of page that test_build.py does not make, in a real browser: WCAG 2.2 AA by axe-core, no error, and none
wider than a phone."""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import numpy as np
import pandas as pd
import pytest
from axe_playwright_python.sync_playwright import Axe

from diagnostics.diffusion.sample import Sample
from diagnostics.files import write_json
from diagnostics.media import Media
from diagnostics.runlog import RunLogWriter, write_frame
from diagnostics.vision import thumbs
from reports import notebooks, papers, show, standalone
from trainers import papers as made

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
LINKS = [("index.html", "Overview"), ("run-a.html", "Run a")]


def _page(at: Path, name: str, **parameters: Any) -> Path:
    """The page of a notebook whose cells run here, which saves the time of a kernel for each."""
    book = nbformat.read(notebooks.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    names: dict[str, Any] = {}
    for cell in book.cells:
        if cell.cell_type == "code":
            shown = _run(cell.source, names)
            names |= parameters if "parameters" in cell.metadata.get("tags", []) else {}
            if hasattr(shown, "_repr_html_"):
                cell.outputs = [nbformat.v4.new_output("display_data", {"text/html": shown._repr_html_()})]
    stem = f"{name}-{Path(parameters.get('run_dir', name)).name}"
    nbformat.write(book, at / f"{stem}.ipynb")
    return notebooks.render(at / f"{stem}.ipynb", name, LINKS, kind=notebooks._kind(parameters))


def _run(source: str, names: dict[str, Any]) -> Any:
    """What the last line of a cell gives, where it is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), names)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), names) if last else None


def _denoiser(path: Path) -> str:
    """Give a run the draws and the samples of a denoiser's."""
    rows = [
        dict(step=step, split="probe", pair_id=f"p{i}", side=side, draw=k, time=time, error=0.1 + step * k / 200,
             ref_error=0.1, deviation=step / 100)
        for step in (0, 20) for i in range(24) for side in thumbs.PAIR for k, time in enumerate((100, 500, 900))
    ]  # fmt: skip
    log = RunLogWriter(path)
    log.append("draws", rows)
    log.close()
    seen = thumbs.seen(Sample(np.linspace(-1, 1, 192, dtype=np.float32).reshape(3, 8, 8)))
    shown = [(f"p{i}", side, seen[1]) for i in range(24) for side in thumbs.PAIR if seen]
    write_frame(path / "frames.parquet", pd.DataFrame(shown, columns=["pair_id", "words", "picture"]))
    return str(path)


def _clips(path: Path) -> str:
    """Give a run the frames of a clip a pair."""
    clip = thumbs.strip(Media("video", "0", load=lambda: np.zeros((8, 16, 24, 3), np.uint8)))
    shown = [(f"p{i}", "8 of 8 frames of the clip", clip) for i in range(24)]
    write_frame(path / "frames.parquet", pd.DataFrame(shown, columns=["pair_id", "words", "picture"]))
    return str(path)


@pytest.fixture(scope="module")
def pages(tmp_path_factory, writers) -> list[Path]:
    """One of each kind, of runs with numbers everywhere."""
    at = tmp_path_factory.mktemp("kinds")
    write_run, write_flags = writers

    def run(name: str, fall: float, board: bool = False, **config: Any) -> str:
        path = write_run(at / name, fall=fall, n=24, config=config)
        if board:
            write_json(path / "board.json", dict(steps=20, seconds=2.0, cpu_seconds=1.5))
        return str(path)

    flags = str(write_flags(at / "flags", n=40))
    rivals = [("dpo", -2.0), ("rrpo:alpha=0.1", 0.5)]
    board = [
        run(f"b{s}{name[:3]}", fall, True, board_label=name, learning_rate=1e-4, seed=s)
        for name, fall in rivals for s in range(3)
    ]  # fmt: skip
    arms = [("full", None, 0.0, -2.0), ("flagged", "set_rate", 0.2, -0.5), ("random", None, 0.2, -1.5)]
    ablated = [
        run(f"a{s}{arm}", fall, True, ablate_arm=arm, ablate_by=by, ablate_drop=drop, ablate_equal_steps=False, seed=s)
        for arm, by, drop, fall in arms for s in range(3)
    ]  # fmt: skip
    cases = [("refusal", "dpo_all", -3.0), ("refusal", "keep_ln_ches", 0.5), ("persona", "no_never", -1.0)]
    demo = [
        run(f"d{world}{case}{s}", fall, demo_world=world, demo_case=case, demo_seed=s)
        for world, case, fall in cases for s in (0, 1)
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        auxdpo = import_module("trainers.papers.auxdpo")
        patch.setitem(auxdpo.METHODS, "AuxDPO", auxdpo.best)
        paper = [made.rerun("auxdpo", made.Order(scale, at / "papers")) for scale in ("toy", "paper")]
        return [
            _page(at, "run_report", run_dir=_denoiser(write_run(at / "den", n=24, config={"likelihood": "denoising"}))),
            _page(at, "run_report", run_dir=_clips(write_run(at / "clips", n=24))),
            _page(at, "flag_report", flag_dir=flags),
            _page(at, "scorecard", run_dirs=board[:1], scores=[flags]),
            _page(at, "diff_report", before=board[0], after=board[3], before_page="run-a.html"),
            _page(at, "objective_board", run_dirs=board),
            _page(at, "ablate_report", run_dirs=ablated),
            _page(at, "demo_report", run_dirs=demo, flag_dirs=[flags]),
            _page(at, "paper_auxdpo", folder=str(paper[0])),
            papers.ledger(at / "papers"),
            _row(at / "row.html"),
        ]


def _row(path: Path) -> Path:
    """A page as `chesboard show --html` writes it, in every one of its styles."""
    styles = ["bold", "dim", "reverse", "cyan", "green", "yellow", "red", "magenta"]
    body = "".join(f'<p class="{style}">what is {style}</p>' for style in styles)
    path.write_text(standalone.page("pairs.jsonl, row 0", body, show.PAGE_STYLE), encoding="utf-8")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_kind_of_page_breaks_the_rules_of_access(pages, browser, scheme):
    context = browser.new_context(color_scheme=scheme, bypass_csp=True, viewport={"width": 390, "height": 844})
    faults = {}
    for path in pages:
        tab, said = context.new_page(), []
        tab.on("pageerror", lambda error, said=said: said.append(str(error)))
        tab.on("console", lambda message, said=said: said.append(message.text) if message.type == "error" else None)
        tab.goto(path.as_uri())
        tab.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        broken = Axe().run(tab, options=RULES).response["violations"]
        found = [(v["id"], v["nodes"][0]["html"][:160]) for v in broken] + said
        width = tab.evaluate("document.documentElement.scrollWidth")
        faults[path.name] = found + ([f"{width} pixels wide"] if width > 390 else [])
        tab.close()
    assert not {name: found for name, found in faults.items() if found}
    context.close()
