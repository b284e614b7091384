"""Execute one notebook with papermill, strictly, and turn it into one self-contained HTML page."""

import base64
import hashlib
import re
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jinja2
import nbformat
import papermill
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from markupsafe import Markup
from nbclient.exceptions import DeadKernelError
from nbconvert import HTMLExporter
from papermill.exceptions import PapermillExecutionError

from analysis.questions import Page
from analysis.show import units
from analysis.show.files import FOLDER
from analysis.show.wording import clip
from diagnostics.errors import NotebookError, UserError
from diagnostics.runlog import read_json

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = ROOT / "notebooks"
TEMPLATES = Path(__file__).resolve().parent / "templates"
BESIDE = ("index.html", "report.json")  # what a report holds beside its pages
Links = Sequence[tuple[str, str]]


class ThisPython(AsyncKernelManager):
    """Kernels run the interpreter we run in, whatever kernels the user has installed, and leave no history.

    figures: the folder for figures and tables as files, "" for none (analysis.show.files).
    """

    figures = ""

    @property
    def kernel_spec(self) -> KernelSpec:
        """The one kernel: sys.executable, without the user's IPython profile."""
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        argv += ["--HistoryManager.enabled=False", "--Application.log_level=50"]
        home = str(Path(tempfile.gettempdir()) / "chesboard-ipython")
        return KernelSpec(
            argv=argv, language="python", env={"IPYTHONDIR": home, "MPLBACKEND": "agg", FOLDER: self.figures}
        )


def names() -> list[str]:
    """The notebooks there are."""
    return sorted(p.stem for p in NOTEBOOKS.glob("*.ipynb"))


def takes(name: str) -> set[str]:
    """The parameters of a notebook."""
    return set(papermill.inspect_notebook(NOTEBOOKS / f"{name}.ipynb"))


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


def execute(
    page: Page, out: Path, links: Links = (), beside: Sequence[str] = BESIDE, figures: Path | None = None
) -> Path:
    """Run the notebook into out/<stem>.ipynb, render out/<stem>.html, return that. links, beside: see render; figures:
    a folder for its figures and tables as files, in a folder of the page's stem.

    Raises NotebookError naming notebook, cell and the exception's last line; the failed notebook is kept.
    """
    source, done = NOTEBOOKS / f"{page.notebook}.ipynb", out / f"{page.stem}.ipynb"
    if not source.exists():
        raise UserError(f"{page.notebook}: no such notebook. There are: {', '.join(names())}.")
    check_parameters(source, page.parameters)
    if figures:
        _empty(figures / page.stem)
    try:
        _papermill(source, done, page.parameters, figures / page.stem if figures else None)
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
    return render(done, page.title, links, beside, kind=_kind(page.parameters))


def _kind(parameters: Mapping[str, Any]) -> str:
    """The kind of likelihood of the folder that a page is about, or of the first one."""
    named = (parameters.get(name) for name in ("run_dir", "flag_dir", "after", "run_dirs"))
    folder = next((given if isinstance(given, str) else given[0] for given in named if given), "")
    config = read_json(Path(folder) / "config.json") if folder and (Path(folder) / "config.json").exists() else {}
    return units.of_config(config).kind


def _empty(folder: Path) -> None:
    """Take away the figures and tables of an earlier report, which may hold other numbers, or texts to be left out."""
    for path in folder.glob("*"):
        if re.fullmatch(r"\d\d+-[a-z0-9-]+\.(svg|pdf|txt|csv|tex)", path.name):
            path.unlink()


def beside(out: Path) -> list[str]:
    """What a page of its own finds beside it in a folder."""
    return [name for name in BESIDE if (out / name).is_file()]


def _papermill(source: Path, done: Path, parameters: Mapping[str, Any], figures: Path | None) -> None:
    manager = type("ThisPython", (ThisPython,), {"figures": str(figures or "")})
    papermill.execute_notebook(
        source,
        done,
        parameters=dict(parameters),
        cwd=ROOT,
        kernel_name="python3",
        kernel_manager_class=manager,
        progress_bar=False,
    )


def render(
    notebook: Path, title: str, links: Links = (), beside: Sequence[str] = BESIDE, *, kind: str = "tokens"
) -> Path:
    """Executed notebook -> one HTML file beside it, without code, that fetches nothing. links: address and title of
    other pages of the report; beside: which of overview and JSON it links to.

    A cell that is tagged with kinds of likelihood (analysis.show.units) is shown on pages of these alone (kind). A
    section whose heading is tagged `fold` is folded, under "For experts"; one that only says that something was not
    measured becomes a line of "Not measured here".
    """
    book = nbformat.read(notebook, as_version=4)
    cells = [cell for cell in book.cells if kind in (_kinds(cell) or {kind})]
    sections = [section for section in _sections(cells) if _speaks(section)]
    silent = [section for section in sections if _missing(section)]
    open_, folded = [], []
    for section in sections:
        if section not in silent:
            (folded if "fold" in section[0].metadata.get("tags", []) else open_).append(section)
    last = next((i for i, section in enumerate(open_) if section[0].source.startswith("## Data")), len(open_))
    parts = [_to_html(section) for section in open_]
    body = {"before": parts[:last], "after": parts[last:], "folded": [_folded(section) for section in folded]}
    told = [line for section in silent for line in _lines(section)]
    jumps = [("#pairs", "All pairs")] if any('id="pairs"' in part for part in parts) else []
    done = notebook.with_suffix(".html")
    words = dict(title=title, jumps=jumps, links=links, notebook=notebook.name, silent=told, beside=beside)
    page = template("page.html.j2").render(**words, **body)
    done.write_text(page, encoding="utf-8")
    return done


def _kinds(cell: Any) -> set[str]:
    return set(units.KINDS) & set(cell.metadata.get("tags", []))


def _to_html(cells: list[Any]) -> str:
    exporter = HTMLExporter(template_name="basic", exclude_input=True, exclude_input_prompt=True)
    exporter.exclude_output_prompt = True
    body, _ = exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))
    return body


def _folded(section: list[Any]) -> tuple[str, str]:
    """Heading and body of a section that is folded."""
    return section[0].source.partition("\n")[0].removeprefix("## "), _to_html(section[1:])


def _outputs(section: list[Any]) -> list[str]:
    return [_html(output) for cell in section if cell.cell_type == "code" for output in cell.outputs]


def _missing(section: list[Any]) -> bool:
    """Whether a section says nothing but that something was not measured."""
    outputs = [output for output in _outputs(section) if output]
    return bool(outputs) and all(not _MISSING.sub("", output).strip() for output in outputs)


def _lines(section: list[Any]) -> list[str]:
    """What such a section says, as safe HTML."""
    return [line for output in _outputs(section) for line in _MISSING.findall(output)]


_MISSING = re.compile(r'<p class="quiet missing">(.*?)</p>', re.DOTALL)


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
    outputs = _outputs(section)
    return not outputs or any(outputs)


def _html(output: Any) -> str:
    """The HTML of an output; of any other kind, a word."""
    data = output.get("data", {})
    return data["text/html"] if "text/html" in data else "other"


def template(name: str) -> jinja2.Template:
    """A page template, with autoescape on. It knows our one script, and its hash, by which a browser lets it run."""
    loader = jinja2.FileSystemLoader(TEMPLATES)
    made = jinja2.Environment(loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True)
    script = (TEMPLATES / "page.js").read_text(encoding="utf-8")
    made.globals["script"] = Markup(script)
    made.globals["script_hash"] = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return made.get_template(name)
