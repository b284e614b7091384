"""Errors a user can cause. Each carries one clear sentence and the exit code of the front door."""


class UserError(Exception):
    """Wrong use or configuration (exit code 2). The message names what is wrong and what to do."""

    exit_code = 2


def printable(text: str) -> str:
    """Text for a terminal: control characters (an id could hold escape codes) are written out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


class DataError(UserError):
    """Data, model or log unreadable, or a run that cannot go on (exit code 3)."""

    exit_code = 3


class NotebookError(UserError):
    """A report notebook crashed (exit code 4)."""

    exit_code = 4
