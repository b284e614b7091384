"""The documentation's site as `make docs` builds it: every page, link and anchor, nothing from another host, access."""

import os
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe

from diagnostics import measures
from diagnostics.flag.flagging import FURTHER
from trainers import objectives, papers

ROOT = Path(__file__).parents[2]
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}
LOADS = ("script", "img", "iframe", "source", "video", "audio", "embed", "object")
OTHER = ("http:", "https:", "//")


class Page(HTMLParser):
    """What a page links to, loads, says, and can be linked to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.loads: list[str] = []
        self.text: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found[name] for name in ("id", "name") if name in found}
        if tag == "a" and "href" in found:
            self.links.append(found["href"])
        if tag == "link" or tag in LOADS:
            self.loads += [found[name] for name in ("href", "src", "srcset", "data") if name in found]

    def handle_data(self, data: str) -> None:
        self.text.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """Built as a person does it, warnings being errors."""
    at = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(at)]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return at


@pytest.fixture(scope="module")
def pages(site) -> dict[Path, Page]:
    return {path: Page(path) for path in sorted(site.rglob("*.html"))}


def test_every_link_and_anchor_resolves(site, pages):
    lost = []
    for path, page in pages.items():
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme or parts.netloc:
                continue
            base = site if parts.path.startswith("/") else path.parent
            target = (base / unquote(parts.path).lstrip("/")).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            if not target.exists() or (parts.fragment and unquote(parts.fragment) not in pages[target].anchors):
                lost.append(f"{path.relative_to(site)}: {link}")
    assert not lost


def test_nothing_is_loaded_from_another_host(site, pages):
    assert not [(path.name, url) for path, page in pages.items() for url in page.loads if url.startswith(OTHER)]
    styles = "".join(path.read_text(encoding="utf-8") for path in site.rglob("*.css"))
    assert not [part[:60] for part in styles.split("url(")[1:] if part.lstrip("'\"").startswith(OTHER)]
    assert "@import" not in styles


def test_everything_that_has_a_name_has_a_page_with_its_own_words(site, pages):
    """Formulas stand as their docstrings have them; the text of a page is what a person reads."""
    texts = {path.relative_to(site).as_posix(): plain("".join(page.text)) for path, page in pages.items()}
    for name in objectives.names():
        assert plain(objectives.load(name).__doc__) in texts[f"objectives/{name}.html"]
    for name in measures.names():
        assert plain(measures.load(name).__doc__) in texts[f"measures/{name}.html"]
    for name, column in FURTHER.items():
        assert plain(column.meaning) in texts[f"measures/{name}.html"]
    for name in papers.names():
        assert f"chesboard paper {name}" in texts[f"analyses/{name}.html"]
    asked = {f"questions/{path.stem}.html" for path in (ROOT / "docs" / "questions").glob("*.md")}
    assert asked <= texts.keys()
    assert all(Path(name).name in (site / "questions" / "index.html").read_text() for name in asked)


def plain(text: str | None) -> str:
    return " ".join((text or "").split())


@pytest.mark.parametrize(("scheme", "wide"), [("light", 390), ("light", 1440), ("dark", 390), ("dark", 1440)])
def test_pages_can_be_used_by_everyone_and_ask_no_other_host(site, browser, scheme, wide):
    context = browser.new_context(color_scheme=scheme, bypass_csp=True, viewport={"width": wide, "height": 844})
    faults = {}
    for name in ("questions/chosen-falls.html", "objectives/dpo.html"):
        page, said = context.new_page(), []
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("request", lambda asked, said=said: said.append(asked.url) if asked.url.startswith(OTHER) else None)
        page.goto((site / name).as_uri())
        broken = Axe().run(page, options=RULES).response["violations"]
        width = page.evaluate("document.documentElement.scrollWidth")
        faults[name] = [(v["id"], [n["html"][:160] for n in v["nodes"]]) for v in broken] + said
        faults[name] += [f"{width} pixels wide"] if width > wide else []
        page.close()
    context.close()
    assert not {name: found for name, found in faults.items() if found}
