"""What a docstring says: its first paragraph, and the papers it names."""

import inspect
import re


def summary(text: str | None) -> str:
    """First paragraph on one line."""
    return " ".join(inspect.cleandoc(text or "").split("\n\n")[0].split())


def papers(text: str) -> list[str]:
    """arXiv numbers in the order they are named."""
    return list(dict.fromkeys(f"arXiv:{n}" for n in re.findall(r"arXiv[: ](\d{4}\.\d{5})", text)))


def sources(function: object) -> list[str]:
    """Papers named in the function's docstring, else in its file's."""
    return papers(inspect.getdoc(function) or "") or papers(inspect.getdoc(inspect.getmodule(function)) or "")
