"""Untrusted text in Markdown."""

import html
import re

from diagnostics.errors import printable


def escaped(text: str) -> str:
    """Text for Markdown: no control characters, no HTML, no markup, and no address that becomes a link by itself."""
    safe = html.escape(printable(text.replace("\n", " ")), quote=False)
    safe = re.sub(r"([\\`*_\[\]|~#@$])", r"\\\1", safe)
    return re.sub(r"(?i)\b(www)\.", r"\1\\.", safe).replace("://", "\\://")
