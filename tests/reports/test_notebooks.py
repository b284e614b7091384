import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from diagnostics.errors import NotebookError, UserError
from reports import notebooks
from reports.notebooks import Page

FORBIDDEN = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.For, ast.While, ast.If, ast.Lambda, ast.With)
COMPREHENSIONS = (ast.ListComp, ast.DictComp, ast.SetComp, ast.GeneratorExp, ast.IfExp)


def _notebook(path: Path, *cells: str, tagged: bool = True) -> Path:
    made = [nbformat.v4.new_code_cell(c) for c in cells]
    if tagged:
        made[0].metadata["tags"] = ["parameters"]
    kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    nbformat.write(nbformat.v4.new_notebook(cells=made, metadata=kernel), path)
    return path


@pytest.mark.parametrize("name", notebooks.names())
def test_notebooks_are_thin(name):
    book = nbformat.read(notebooks.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    code = [c for c in book.cells if c.cell_type == "code"]
    assert len(code) <= 20
    assert "parameters" in code[0].metadata.tags
    for cell in code:
        assert cell.outputs == []
        assert cell.execution_count is None
        for node in ast.walk(ast.parse(cell.source)):
            assert not isinstance(node, FORBIDDEN + COMPREHENSIONS)
            if isinstance(node, ast.Import):
                pytest.fail(f"{name} imports {node.names[0].name}")
            if isinstance(node, ast.ImportFrom):
                assert str(node.module).split(".")[0] in (
                    ("chesboard", "pandas") if name == "tutorial" else ("analysis",)
                )


def test_the_notebooks_are_there():
    assert [name for name in notebooks.names() if not name.startswith("paper_")] == [
        "ablate_report",
        "demo_report",
        "diff_report",
        "flag_report",
        "objective_board",
        "run_report",
        "scorecard",
        "tutorial",
    ]


def test_a_misspelt_parameter_is_refused():
    path = notebooks.NOTEBOOKS / "run_report.ipynb"
    with pytest.raises(
        UserError, match=r"run_report.ipynb: unknown parameter run_dirr. It takes flags, run_dir, text, worst"
    ):
        notebooks.check_parameters(path, {"run_dirr": "x"})


def test_a_parameter_without_default_must_be_given():
    with pytest.raises(UserError, match="run_dir was not given"):
        notebooks.check_parameters(notebooks.NOTEBOOKS / "run_report.ipynb", {"worst": 3})


def test_a_notebook_without_parameters_cell_is_refused(tmp_path):
    path = _notebook(tmp_path / "untagged.ipynb", "x = 1", tagged=False)
    with pytest.raises(UserError, match=r"untagged.ipynb: no cell is tagged `parameters`"):
        notebooks.check_parameters(path, {"x": 2})


def test_a_notebook_that_raises_names_cell_and_reason_and_is_kept(tmp_path, monkeypatch):
    _notebook(tmp_path / "bad.ipynb", "x = 1", "assert x == 7", "raise ValueError('the <reason>')")
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    with pytest.raises(NotebookError, match=r"bad.ipynb, code cell 4: ValueError: the <reason>") as error:
        notebooks.execute(Page("bad", "Bad", {"x": 7}, "out"), tmp_path)
    assert error.value.exit_code == 4
    assert "\n" not in str(error.value)
    kept = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    assert any(o.output_type == "error" for c in kept.cells if c.cell_type == "code" for o in c.outputs)
    assert not (tmp_path / "out.html").exists()


def test_figures_and_tables_lie_in_a_folder_of_the_page(tmp_path, monkeypatch):
    code = "import pandas as pd\nfrom analysis.show import page\npage.table(pd.DataFrame({'a': [x]}))"
    _notebook(tmp_path / "tables.ipynb", "x = 1", code)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    old = tmp_path / "figures" / "out"
    old.mkdir(parents=True)
    for name in ("07-pairs.csv", "mine.csv"):
        (old / name).write_text("a text that is to be left out now")
    notebooks.execute(Page("tables", "Tables", {"x": 7}, "out"), tmp_path, figures=tmp_path / "figures")
    assert not (old / "07-pairs.csv").exists()
    assert (old / "mine.csv").exists()
    assert (tmp_path / "figures" / "out" / "01-table.csv").read_text() == "a\n7\n"


def test_an_unknown_notebook_lists_the_known_ones(tmp_path):
    with pytest.raises(
        UserError,
        match="There are: ablate_report, demo_report, diff_report, flag_report, objective_board, paper_auxdpo",
    ):
        notebooks.execute(Page("nope", "", {}, "out"), tmp_path)


def test_the_title_is_escaped(tmp_path):
    path = _notebook(tmp_path / "plain.ipynb", "x = 1")
    page = notebooks.render(path, "<script>x</script>").read_text()
    assert "<title>&lt;script&gt;x&lt;/script&gt;</title>" in page


def test_a_cell_that_is_tagged_with_kinds_of_likelihood_stands_on_their_pages_alone(tmp_path):
    book = nbformat.v4.new_notebook(
        cells=[
            nbformat.v4.new_markdown_cell("# Always"),
            nbformat.v4.new_markdown_cell("of answers", metadata={"tags": ["tokens", "other"]}),
            nbformat.v4.new_markdown_cell("of errors", metadata={"tags": ["denoising"]}),
            nbformat.v4.new_markdown_cell("of both", metadata={"tags": ["tokens", "denoising"]}),
        ]
    )
    nbformat.write(book, tmp_path / "page.ipynb")
    shown = {}
    for kind in ("tokens", "steps", "denoising"):
        text = notebooks.render(tmp_path / "page.ipynb", "t", kind=kind).read_text()
        shown[kind] = [words for words in ("Always", "of answers", "of errors", "of both") if words in text]
    assert shown["tokens"] == ["Always", "of answers", "of both"]
    assert shown["steps"] == ["Always"]
    assert shown["denoising"] == ["Always", "of errors", "of both"]


DATA = Path(__file__).parents[1] / "data"


def _run(*command: str, cwd: Path, **environment: str) -> str:
    """A command of this Python with our rooms on its path; what it printed. It must end well."""
    env = os.environ | {"PYTHONPATH": str(notebooks.ROOT)} | environment
    done = subprocess.run([sys.executable, "-m", *command], cwd=cwd, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


def _outputs(path: Path) -> str:
    book = nbformat.read(path, as_version=4)
    return "\n".join(str(o) for c in book.cells if c.cell_type == "code" for o in c.outputs)


def test_the_tutorial_runs_with_plain_papermill_on_the_run_that_it_is_given(tmp_path):
    source, done = str(notebooks.NOTEBOOKS / "tutorial.ipynb"), tmp_path / "out.ipynb"
    _run("papermill", source, str(done), "-p", "run_dir", str(DATA / "tiny_run"), cwd=tmp_path)
    shown = _outputs(done)
    assert "displaced: 100 % of 12 probe pairs lost chosen likelihood" in shown
    assert shown.count("image/png") == 4
    assert "nats lost" in shown


def test_a_notebook_runs_with_plain_nbconvert_on_the_newest_run(tmp_path):
    """From its own parameter comment: nothing given takes the newest run below runs/."""
    for name in ("older", "newer"):
        shutil.copytree(DATA / "tiny_run", tmp_path / "runs" / name)
    os.utime(tmp_path / "runs" / "older" / "config.json", (1, 1))
    (tmp_path / "notebooks").mkdir()
    source = shutil.copy(notebooks.NOTEBOOKS / "run_report.ipynb", tmp_path / "notebooks")
    _run("nbconvert", "--to", "notebook", "--execute", "--output", "out.ipynb", str(source), cwd=tmp_path)
    assert "<strong>Run</strong> newer" in _outputs(tmp_path / "notebooks" / "out.ipynb")


@pytest.mark.parametrize("name", notebooks.names())
def test_the_first_cell_says_what_to_pass(name):
    """Every parameter that has no default of use is followed by a word on what it is."""
    cell = next(
        c
        for c in nbformat.read(notebooks.NOTEBOOKS / f"{name}.ipynb", as_version=4).cells
        if "parameters" in c.metadata.get("tags", [])
    )
    lines = [line for line in cell.source.splitlines() if line.strip()]
    folders = [
        line for line in lines if line.split(" = ")[0] in ("run_dir", "run_dirs", "flag_dir", "folder", "before")
    ]
    assert folders
    assert all("folder" in line.partition("#")[2] for line in folders)
