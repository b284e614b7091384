"""Tables and sentences for a terminal. Untrusted text is printed as plain text, never as markup."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from diagnostics.errors import printable


def table(*columns: str, title: str | None = None) -> Table:
    """An empty table; long cells are folded."""
    made = Table(title=title, show_lines=False)
    for name in columns:
        made.add_column(name, overflow="fold")
    return made


def add(to: Table, *values: object) -> None:
    """Add a row."""
    to.add_row(*(Text(printable(str(v))) for v in values))


def say(*lines: str) -> None:
    """Sentences, one a line."""
    for line in lines:
        Console().print(Text(printable(line)), soft_wrap=True)
