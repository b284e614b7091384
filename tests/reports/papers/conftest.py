import ast
from pathlib import Path

import nbformat
import pytest

from analysis import papers as judged
from analysis.papers import Paper
from reports.notebooks import NOTEBOOKS
from trainers import papers as made
from trainers.studies.demo_runs import FACTS, REFUSALS
from trainers.studies.paper_runs import Order
from trainers.worlds import facts, lm, own_data, refusal
from trainers.worlds.own_data import CHAT_TEMPLATE

STEPS = 30  # of the model that is made of given data; its own 500 took a seventh of a test file's time
PAIRS, HELD_OUT, SAMPLES = 48, 24, 400  # of both small worlds; their own 256, 160 or 300, and thousands take minutes


@pytest.fixture(scope="module", autouse=True)
def small():
    """Worlds of a few dozen pairs: nothing that is tested here depends on how many there are."""
    with pytest.MonkeyPatch.context() as patch:
        for world in (facts, refusal):
            for name, size in (("PAIRS", PAIRS), ("HELD_OUT", HELD_OUT), ("SAMPLES", SAMPLES)):
                patch.setattr(world, name, size)
        for standard in (FACTS, REFUSALS):
            patch.setitem(standard, "probe_pairs", PAIRS)
            patch.setitem(standard, "response_types", 4)
        patch.setitem(FACTS, "heldout_pairs", HELD_OUT)
        patch.setitem(own_data.build.__kwdefaults__, "steps", STEPS)
        yield


def show(paper: Paper) -> None:
    """Run the analysis' notebook in this process, without a kernel; the page is what its cells end with, one by one."""
    names, shown = {}, []
    for cell in nbformat.read(NOTEBOOKS / f"paper_{paper.name}.ipynb", as_version=4).cells:
        if cell.cell_type == "code":
            *body, last = ast.parse(cell.source).body
            given = isinstance(last, ast.Expr)
            exec(compile(ast.Module(body if given else [*body, last], []), cell.source, "exec"), names)
            if given:
                shown.append(eval(compile(ast.Expression(last.value), cell.source, "eval"), names)._repr_html_())
        if "parameters" in cell.metadata.get("tags", []):
            names["folder"] = str(paper.path)
    paper.path.with_name(f"{paper.path.name}.html").write_text("\n".join(shown), encoding="utf-8")


@pytest.fixture(scope="session")
def rerun(tmp_path_factory):
    """Rerun an analysis seconds-long, and show it; returns it read back. Worlds and runs are shared by all.

    The cells of its notebook are run here, which takes no kernel; test_auxdpo.py goes the whole way.
    """
    root = tmp_path_factory.mktemp("papers")

    def make(
        name: str, *, out: Path = root, seeds=1, scale="toy", model=None, data=None, form=None, shown=True, **changes
    ):
        out.mkdir(parents=True, exist_ok=True)
        order = Order(scale, out, seeds, model, str(data) if data else None, None, changes, form=form)
        paper = judged.load(made.rerun(name, order))
        if shown:
            show(paper)
        return paper

    return make


@pytest.fixture(scope="session")
def chat_model():
    """Writes a tiny untrained Llama with a chat template, of the given text; its folder."""

    def make(folder: Path, texts: list[str], *, vocabulary: int = 400, extra: tuple[str, ...] = ()) -> str:
        tokenizer = lm.bpe_tokenizer(texts, vocabulary, extra=extra)
        tokenizer.chat_template = CHAT_TEMPLATE
        return str(lm.save(lm.build_model(tokenizer, seed=0, positions=512), tokenizer, folder))

    return make


@pytest.fixture
def stand_in(chat_model, tmp_path):
    """The same as a local folder in place of a hub id."""
    return lambda texts, **how: chat_model(tmp_path / "stand-in", texts, **how)
