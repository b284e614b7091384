"""A page of text and pictures with no notebook behind it and no script: one file, in light and dark."""

from html import escape

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<style>
:root {{ color-scheme: light dark; --ink: #1b1b1b; --quiet: #555; --line: #bbb; --page: #fff; --mark: #ffe08a;
  --tint: #e3e3e3; --cyan: #075a78; --green: #1b6b2f; --yellow: #7a5200; --red: #a3152b; --magenta: #7d2a82 }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ --ink: #e4e7ec; --quiet: #a3abb8; --line: #3a404a;
  --page: #16191e; --mark: #6b5200; --tint: #3a404a; --cyan: #7cc0e8; --green: #7fcf9b; --yellow: #e5b454;
  --red: #f08a9b; --magenta: #d9a3dd }} }}
body {{ font: 16px/1.6 system-ui, sans-serif; color: var(--ink); background: var(--page); max-width: 75rem;
  margin: 1rem auto; padding: 0 1rem }}
h1 {{ font-size: 1.5rem; overflow-wrap: anywhere }}
img {{ max-width: 100%; display: block }} figcaption {{ color: var(--quiet); font-size: 0.85rem }}
section, figure {{ break-inside: avoid }}
{style}</style></head><body><main><h1>{title}</h1>
{body}
</main></body></html>
"""


def page(title: str, body: str, style: str) -> str:
    """The whole page. title: plain text; body: safe HTML; style: rules of its own, in the colours named above."""
    return _PAGE.format(title=escape(title), body=body, style=style)
