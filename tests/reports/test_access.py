"""The kinds of page that test_build.py does not make, in a real browser: WCAG 2.2 AA by axe-core, no error, and none
wider than a phone."""

import ast
from importlib import import_module
from pathlib import Path
from typing import Any

import nbformat
import pytest
from axe_playwright_python.sync_playwright import Axe

from diagnostics.files import write_json
from reports import notebooks, papers
from trainers import papers as made

RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
LINKS = [("index.html", "Overview"), ("run-a.html", "Run a")]


def _page(at: Path, name: str, **parameters: Any) -> Path:
    """The page of a notebook whose cells run here, which saves the time of a kernel for each."""
    book = nbformat.read(notebooks.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    words: dict[str, Any] = {}
    for cell in book.cells:
        if cell.cell_type == "code":
            shown = _run(cell.source, words)
            words |= parameters if "parameters" in cell.metadata.get("tags", []) else {}
            if hasattr(shown, "_repr_html_"):
                cell.outputs = [nbformat.v4.new_output("display_data", {"text/html": shown._repr_html_()})]
    nbformat.write(book, at / f"{name}.ipynb")
    return notebooks.render(at / f"{name}.ipynb", name, LINKS)


def _run(source: str, words: dict[str, Any]) -> Any:
    """What the last line of a cell gives, where it is an expression."""
    tree = ast.parse(source)
    last = tree.body.pop() if isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "cell", "exec"), words)
    return eval(compile(ast.Expression(last.value), "cell", "eval"), words) if last else None


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
        _page(at, "scorecard", run_dirs=board[:1], scores=[flags]),
        _page(at, "diff_report", before=board[0], after=board[3], before_page="run-a.html"),
        _page(at, "objective_board", run_dirs=board),
        _page(at, "ablate_report", run_dirs=ablated),
        _page(at, "demo_report", run_dirs=demo, flag_dirs=[flags]),
        _page(at, "paper_auxdpo", folder=str(paper[0])),
        papers.ledger(at / "papers"),
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_kind_of_page_breaks_the_rules_of_access(pages, browser, scheme):
    context = browser.new_context(color_scheme=scheme, bypass_csp=True, viewport={"width": 390, "height": 844})
    faults = {}
    for path in pages:
        page, said = context.new_page(), []
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("console", lambda message, said=said: said.append(message.text) if message.type == "error" else None)
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        broken = Axe().run(page, options=RULES).response["violations"]
        found = [(v["id"], v["nodes"][0]["html"][:160]) for v in broken] + said
        width = page.evaluate("document.documentElement.scrollWidth")
        faults[path.name] = found + ([f"{width} pixels wide"] if width > 390 else [])
        page.close()
    assert not {name: found for name, found in faults.items() if found}
    context.close()
