"""Execute one notebook with papermill, strictly, and turn it into one self-contained HTML page."""

import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError

from analysis.questions import Page
from analysis.show.wording import clip
from diagnostics.errors import NotebookError, UserError

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
TEMPLATES = Path(__file__).resolve().parent / "templates"


class ThisPython(AsyncKernelManager):
    """Kernels run the interpreter we run in, whatever kernels the user has installed, and leave no history."""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The one kernel: sys.executable, without the user's IPython profile."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        argv += ["--HistoryManager.enabled=False", "--Application.log_level=50"]
        home = str(Path(tempfile.gettempdir()) / "chesboard-ipython")
        return KernelSpec(argv=argv, language="python", env={"IPYTHONDIR": home, "MPLBACKEND": "agg"})


def names() -> list[str]:
    """The notebooks there are."""
    return sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))


def check_parameters(path: Path, parameters: Mapping[str, Any]) -> None:
    """Raise UserError for a missing parameters cell, or a parameter unknown to the notebook or not given to it.

    papermill itself passes over all three and reports success.
    """
    cells = nbformat.read(path, as_version=4).cells
    if not any("parameters" in c.metadata.get("tags", []) for c in cells):
        raise UserError(f"{path.name}: no cell is tagged `parameters`. Tag the cell that sets the defaults.")
    known = papermill.inspect_notebook(path)
    unknown = sorted(set(parameters) - set(known))
    if unknown:
        raise UserError(f"{path.name}: unknown parameter {unknown[0]}. It takes {', '.join(sorted(known))}.")
    needed = [name for name, p in known.items() if p["default"] in ('""', "''", "[]", "None")]
    missing = sorted(set(needed) - set(parameters))
    if missing:
        raise UserError(f"{path.name}: the parameter {missing[0]} was not given and has no default.")


def execute(page: Page, out: Path) -> Path:
    """Run the notebook into out/<stem>.ipynb, render out/<stem>.html, return that.

    Raises NotebookError naming notebook, cell and the exception's last line; the failed notebook is kept.
    """
    source, done = NOTEBOOKS / f"{page.notebook}.ipynb", out / f"{page.stem}.ipynb"
    if not source.exists():
        raise UserError(f"{page.notebook}: no such notebook. There are: {', '.join(names())}.")
    check_parameters(source, page.parameters)
    try:
        _papermill(source, done, page.parameters)
    except PapermillExecutionError as error:
        reason = clip(f"{error.ename}: {error.evalue}".splitlines()[-1], 300)
        raise NotebookError(
            f"{source.name}, code cell {error.exec_count}: {reason}. The notebook as far as it ran: {done}"
        ) from None
    except DeadKernelError:
        raise NotebookError(
            f"{source.name}: its Python process died, most likely for lack of memory. "
            f"The notebook as far as it ran: {done}"
        ) from None
    return render(done, page.title)


def _papermill(source: Path, done: Path, parameters: Mapping[str, Any]) -> None:
    papermill.execute_notebook(
        source,
        done,
        parameters=dict(parameters),
        cwd=ROOT,
        kernel_name="python3",
        kernel_manager_class=ThisPython,
        progress_bar=False,
    )


def render(notebook: Path, title: str) -> Path:
    """Executed notebook -> one HTML file beside it, without code, that fetches nothing."""
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_input_prompt=True)
    exporter.exclude_output_prompt = True
    book = nbformat.read(notebook, as_version=4)
    book.cells = [cell for section in _sections(book.cells) if _speaks(section) for cell in section]
    body, _ = exporter.from_notebook_node(book)
    done = notebook.with_suffix(".html")
    done.write_text(template("page.html.j2").render(title=title, body=body), encoding="utf-8")
    return done


def _sections(cells: list[Any]) -> list[list[Any]]:
    """The cells, cut before every second-level heading."""
    found: list[list[Any]] = [[]]
    for cell in cells:
        if cell.cell_type == "markdown" and cell.source.startswith("## "):
            found.append([])
        found[-1].append(cell)
    return found


def _speaks(section: list[Any]) -> bool:
    """Whether any of a section's outputs has content; one that has no output at all is kept."""
    outputs = [output for cell in section if cell.cell_type == "code" for output in cell.outputs]
    return not outputs or any(_html(output) for output in outputs)


def _html(output: Any) -> bool:
    """Whether an output shows anything: HTML that is not empty, or any other kind."""
    data = output.get("data", {})
    return bool(data["text/html"]) if "text/html" in data else True


def template(name: str) -> jinja2.Template:
    """A page template, with autoescape on."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    return jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True).get_template(name)
