"""What mkdocs does besides: pages made from the code, README.md as the first page, folders in the nav.

Nothing that is made here is committed: reports/reference.py writes it anew at every build.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

from diagnostics import measures
from diagnostics.flag.flagging import FURTHER
from reports import reference
from trainers import objectives

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {"README": "index.md", "CHANGELOG": "changelog.md", "CONTRIBUTING": "contributing.md"}  # pages of root files


def on_files(files: Any, config: Any) -> Any:
    """Add the pages that do not lie in docs/, then give the nav every page."""
    asked = re.findall(r"questions/(?!index)([\w-]+\.md)", str(config.nav))
    questions = {name: (ROOT / "docs/questions" / name).read_text(encoding="utf-8") for name in asked}
    made = reference.pages() | {"questions/index.md": reference.questions(questions)}
    made |= {page: (ROOT / f"{name}.md").read_text(encoding="utf-8") for name, page in OUTSIDE.items()}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text.replace("](docs/", "](")))
    found = sorted(file.src_uri for file in files.documentation_pages())
    config.nav = _nav(config.nav, found)
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links to files beside docs/ become links to their pages; the first `name` of a measure or an objective, one to
    its own page."""
    up = "../" * page.file.src_uri.count("/")
    text = re.sub(r"\]\((?:\.\./)*(README|CHANGELOG|CONTRIBUTING)\.md", lambda m: f"]({up}{OUTSIDE[m[1]]}", markdown)
    known = {name: f"measures/{name}.md" for name in (*measures.names(), *FURTHER)}
    known = {name: f"objectives/{name}.md" for name in objectives.names()} | known
    known.pop(Path(page.file.src_uri).stem, None)
    return _linked(text, {name: up + path for name, path in known.items()})


def on_page_content(html: str, **_: Any) -> str:
    """A table wider than a phone is scrolled by keyboard too."""
    box = '<div class="wide" tabindex="0" role="group" aria-label="Table">'
    return html.replace("<table>", f"{box}<table>").replace("</table>", "</table></div>")


def _nav(entries: list[Any], found: list[str]) -> list[Any]:
    """The nav of mkdocs.yml with its folders filled. A page of docs/ that stands nowhere comes last."""
    told = re.findall(r"[\w/-]+\.md|[\w-]+/(?=')", str(entries))
    rest = [path for path in found if not path.startswith(tuple(told))]
    last: dict[str, Any] = entries[-1]
    ((name, pages),) = last.items()
    return [*map(lambda entry: _filled(entry, found), entries[:-1]), {name: [*pages, *rest]}]


def _filled(entry: Any, found: list[str]) -> Any:
    """An entry of the nav; one that ends in "/" becomes the index and all pages of that folder."""
    if isinstance(entry, dict):
        return {title: _filled(value, found) for title, value in entry.items()}
    if isinstance(entry, list):
        return [_filled(value, found) for value in entry]
    if entry.endswith("/"):
        inside = [path for path in found if path.startswith(entry)]
        return sorted(inside, key=lambda path: (not path.endswith("/index.md"), path))
    return entry


def _linked(text: str, pages: dict[str, str]) -> str:
    """Markdown in which the first `name` of each page, outside of code, headings and links, is a link to it."""
    lines, fenced = [], False
    for line in text.split("\n"):
        fenced ^= line.lstrip().startswith("```")
        if not fenced and not line.startswith(("#", "    ", "```")):
            line = re.sub(r"(?<![\[`])`(\w+)`(?!`)", lambda m: _link(m, pages), line)
        lines.append(line)
    return "\n".join(lines)


def _link(found: re.Match[str], pages: dict[str, str]) -> str:
    page = pages.pop(found[1], None)
    return f"[{found[0]}]({page})" if page else found[0]
