"""The questions that a report answers, found by listing this folder: one folder with a question.py = one question.

A question.py has

    ORDER               its place in the report: a small number comes first, and is offered the folders first
    take(logs, scores)  (what it found of its own among run logs and score folders, None for nothing; the logs and
                        the scores that it leaves to the questions after it)
    pages(found)        the pages to make of it
    entries(found)      its lines in the overview: headline and findings
"""

import pkgutil
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import analysis
from diagnostics.finding import Finding


@dataclass(frozen=True)
class Page:
    """One notebook to run: its name, the title of its page, its parameters, and the stem of the files it makes."""

    notebook: str
    title: str
    parameters: Mapping[str, Any]
    stem: str


@dataclass(frozen=True)
class Headline:
    """One line of the overview: a name, a sentence, whether it is good news (None where nothing is judged), and what to
    know before its findings are read."""

    name: str
    says: str
    good: bool | None
    findings: list[Finding]
    note: str = ""


@cache
def every() -> list[ModuleType]:
    """The questions, in their order."""
    folders = [m.name for m in pkgutil.iter_modules(analysis.__path__, "analysis.") if m.ispkg]
    found = [import_module(f"{name}.question") for name in folders if find_spec(f"{name}.question")]
    return sorted(found, key=lambda question: question.ORDER)


def slug(name: str) -> str:
    """A name as part of a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "run"
