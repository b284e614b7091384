"""The reference part of the documentation's site, in Markdown, from the docstrings and registries: nothing of it is
written by hand, and nothing is kept. docs/hooks.py hands it to mkdocs.
"""

import html
import inspect
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from analysis import papers as judged
from analysis.run.page import BIBTEX
from diagnostics import codes, measures
from diagnostics.columns import Column
from diagnostics.docstrings import sources, summary
from diagnostics.flag.flagging import CHOICES, FURTHER, prone
from diagnostics.manifest import CONVENTIONS
from reports import catalogue
from reports.console import number
from trainers import objectives
from trainers import papers as made
from trainers.card import Card, Push, card
from trainers.config import USUAL
from trainers.loop.columns import MEANS

ROOT = Path(__file__).resolve().parents[1]
_MARKUP = {ord(c): f"&#{ord(c)};" for c in "\\*_[]|~#"}  # what Markdown would read as markup


def pages() -> dict[str, str]:
    """Every page, by its path from docs/."""
    found = {f"objectives/{name}.md": objective(card(name)) for name in objectives.names()}
    found |= {f"measures/{name}.md": measure(name) for name in measures.names()}
    found |= {f"measures/{name}.md": forecast(name, column) for name, column in FURTHER.items()}
    found |= {f"analyses/{name}.md": analysis(name, entry) for name, entry in judged.published().items()}
    return found | {
        "objectives/index.md": all_objectives(),
        "measures/index.md": all_measures(),
        "analyses/index.md": all_analyses(),
        "columns.md": columns(),
        "keys.md": keys(),
        "cite.md": cite(),
    }


def questions(texts: Mapping[str, str]) -> str:
    """The list of questions with the first paragraph of each answer. texts: Markdown by file name."""
    said = [f"## [{_title(text)}]({name})\n\n{_first(text)}" for name, text in texts.items()]
    return "\n\n".join(["# My question", *said])


def objective(shown: Card) -> str:
    """An objective's page: its docstring, what its file says, and how it pushes the two answers."""
    rows = [(words(what), words(said)) for what, said in catalogue.card_rows(shown)]
    parts = [f"# {shown.name}", _docstring(shown.formula), _table(("", "what its file says"), rows)]
    parts += [f"    chesboard train --model my-model --data pairs.jsonl --output_dir runs/a --objective {shown.name}"]
    parts += [f"It stands in `trainers/objectives/{shown.name}.py`."]
    if shown.margins:
        parts += ["## How it pushes the two answers", "[How to read it](index.md#how-to-read-a-card)."]
        unit = "nats" if objectives.likelihood(shown.name) == "tokens" else "units"
        parts += [f"By the margin of log-ratios, in {unit}:", _pushes("margin", shown.margins)]
        parts += [f"As the rejected answer fades (v, its log-ratio, in {unit}; the chosen one's is 0):"]
        parts += [_pushes("v", shown.far[::3])]
    parts += ["## Does it displace by construction?"]
    facts = catalogue.properties(shown)
    parts += [_table(("", "value", "meaning"), [(words(q), number(f.value), words(f.words)) for q, f in facts])]
    return _page(parts)


def all_objectives() -> str:
    """The list of objectives."""
    rows = []
    for name in objectives.names():
        file, needs = objectives.module(name), list(objectives.needs(name))
        needs += [f"likelihood {kind}" for kind in [objectives.likelihood(name)] if kind != "tokens"]
        says, paper = catalogue.meaning(name), ", ".join(sources(objectives.load(name)))
        rows.append((f"[{name}]({name}.md)", words(says), ", ".join(needs), file.PROVENANCE, words(paper)))
    return _page(
        [
            "# Objectives",
            f"{len(rows)} objectives: names for `--objective`. A page holds the formula as its function says it, what "
            "it reads of the data, and its card.",
            _table(("objective", "what it is", "needs", "formula", "paper"), rows),
            "## How sure a formula is",
            _table(("word", "meaning"), [(k, words(v)) for k, v in objectives.PROVENANCES.items()]),
            "## What an objective needs",
            _table(("word", "meaning"), [(k, words(v)) for k, v in objectives.WORDS.items()]),
            "## Which likelihood it is defined on",
            "Tokens, where nothing else is said.",
            _table(("word", "meaning"), [(k, words(v)) for k, v in objectives.LIKELIHOODS.items()]),
            "## How to read a card",
            *map(words, catalogue.CARD_NOTES),
        ]
    )


def measure(name: str) -> str:
    """A measure's page."""
    function, column = measures.load(name), measures.column(name)
    file = Path(inspect.getfile(function)).name
    parts = [f"# {name}", _docstring(inspect.getdoc(function) or ""), _facts(name, column)]
    return _page([*parts, f"It stands in `diagnostics/measures/{file}`."])


def forecast(name: str, column: Column) -> str:
    """The page of a column that only `chesboard flag` measures."""
    parts = [f"# {name}", f"{words(column.meaning)}.", _facts(name, column)]
    return _page([*parts, "What it costs and how far it was right: [which measure to flag by](../flagging.md)."])


def all_measures() -> str:
    """The list of measures."""
    every = measures.columns() | FURTHER
    rows = [(f"[{n}]({n}.md)", words(c.label), words(c.meaning), c.prone) for n, c in every.items()]
    heads = ("column", "label", "what it is", "prone end")
    return _page(
        [
            "# Measures",
            "What is measured of a pair. A name is its column in every table; the prone end is the one that is taken "
            "to mean displacement. How far each of them told who would fall: [flagging](../flagging.md).",
            _table(heads, rows),
        ]
    )


def columns() -> str:
    """Columns of the tables, keys, and the codes of an audit."""
    every = measures.columns() | FURTHER
    held = {name: "run" if name in measures.names() else "flag" for name in every}
    held |= {name: "both" for name, column in measures.columns().items() if column.flags}
    rows = [(f"[{name}](measures/{name}.md)", words(c.unit), words(c.meaning), held[name]) for name, c in every.items()]
    return _page(
        [
            "# Columns and codes",
            "Which files a run writes stands under [file formats](run-log.md).",
            "## What the numbers mean",
            "`conventions` in every manifest.json:",
            _table(("key", "meaning"), [(_code(k), words(v)) for k, v in CONVENTIONS.items()]),
            "## Columns of a pair",
            "What a run measures (`pairs/`), what `chesboard flag` does (`scores.parquet`), or both.",
            _table(("column", "unit", "meaning", "where"), rows),
            "## Keys of steps.jsonl that are means over pairs",
            "With `probe/` or `eval/` before it at a probe, where it is measured there. The rest are the trainer's "
            "own, and what stands under `conventions`.",
            _table(("key", "mean of the column"), [(_code(k), _code(v)) for k, v in MEANS.items()]),
            "## Why a row is skipped",
            "`reason` in audit.parquet:",
            _table(("code", "meaning"), [(_code(k), words(v)) for k, v in codes.SKIPS.items()]),
            "## What is doubtful about a row that is kept",
            "`doubts` in audit.parquet:",
            _table(("code", "meaning"), [(_code(k), words(v)) for k, v in codes.DOUBTS.items()]),
        ]
    )


def keys() -> str:
    """The keys of `chesboard train`."""
    heads, parts = ("key", "default", "what it is"), ["# Keys of a run"]
    parts += ["Flat keys of `chesboard train --config run.yaml`, or `--key value` behind it ([training](training.md))."]
    for group, rows in catalogue.own_keys().items():
        parts += [f"## {group.capitalize()}", _table(heads, [(_code(n), _code(d), words(w)) for n, d, w in rows])]
    theirs = [(_code(n), _code(d), words(w)) for n, d, w in catalogue.their_keys()]
    parts += ["## Of the objective", "Its own page has them: [objectives](objectives/index.md)."]
    parts += ["## Of transformers", "Every field of TrainingArguments, with its own words:", _table(heads, theirs)]
    parts += ["## What other trainers call them", "A key of another trainer is refused with the name it has here:"]
    return _page([*parts, _table(("theirs", "here"), [(_code(a), _code(b)) for a, b in USUAL.items()])])


def analysis(name: str, entry: Mapping[str, Any]) -> str:
    """An analysis' page: its claims with their rules, and its settings beside the paper's."""
    module = made.load(name)
    claims = [(words(c["says"]), words(c["where"]), words(c["published"]), _rule(c), c["by"]) for c in entry["claims"]]
    settings = made.table_of_settings(module.SETTINGS)[["name", "paper", "where", "toy", "why"]]
    heads = ("setting", "paper", "where", "toy", "why another")
    scale = "toy" if "toy" in made.scales(module) else "small"
    command = f"chesboard paper {name}" + (" --scale small --model my-model" if scale == "small" else "")
    return _page(
        [
            f"# {name}: {words(entry['title'])}",
            words(summary(module.__doc__)),
            f"Paper: {_paper(entry)}.",
            f"    {command}",
            "## Claims",
            "`by control`: what the paper leaves out. How a claim is judged: [papers rerun](../papers.md).",
            _table(("claim", "where", "published", "rule", "by"), claims),
            "## Settings",
            _table(heads, [tuple(map(words, row)) for row in settings.astype(str).to_numpy()]),
        ]
    )


def all_analyses() -> str:
    """The list of analyses."""
    rows = [
        (f"[{name}]({name}.md)", words(entry["title"]), _paper(entry), str(len(entry["claims"])))
        for name, entry in judged.published().items()
    ]
    about = "Published analyses that `chesboard paper` reruns. What was found: [papers rerun](../papers.md)."
    return _page(["# Claim by claim", about, _table(("analysis", "what it reruns", "paper", "claims"), rows)])


def cite() -> str:
    """How to cite, from CITATION.cff, and the papers of what is measured and trained."""
    said = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    measured = [(f"[{n}](measures/{n}.md)", words(", ".join(sources(measures.load(n))))) for n in measures.names()]
    trained = [(f"[{n}](objectives/{n}.md)", words(", ".join(sources(objectives.load(n))))) for n in objectives.names()]
    parts = ["# How to cite", words(said["message"]), f"````bibtex\n{BIBTEX}\n````", "## The papers of what you report"]
    return _page([*parts, _table(("measure or objective", "paper"), [r for r in (*measured, *trained) if r[1]])])


def words(text: str) -> str:
    """Plain text as Markdown shows it unchanged, but what stands in `backticks` is code, and a paper a link."""
    safe = html.escape(" ".join(str(text).split()), quote=False).translate(_MARKUP)
    safe = re.sub(r"`([^`]*)`", r"<code>\1</code>", safe)
    return re.sub(r"arXiv[: ](\d{4}\.\d{5})", r"[arXiv:\1](https://arxiv.org/abs/\1)", safe)


def _page(parts: Iterable[str]) -> str:
    return "\n\n".join(part for part in parts if part) + "\n"


def _title(text: str) -> str:
    return text.partition("\n")[0].removeprefix("# ")


def _first(text: str) -> str:
    """The first paragraph behind the title."""
    return text.split("\n\n")[1]


def _docstring(text: str) -> str:
    """As it is written, formulas and line breaks too."""
    return f"````{{.text .docstring}}\n{text}\n````"


def _code(text: str) -> str:
    return f"<code>{html.escape(text, quote=False).translate(_MARKUP)}</code>" if text else ""


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; nothing where it has no row."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([f"| {' | '.join(heads)} |", "|---" * len(heads) + "|", *lines]) if lines else ""


def _facts(name: str, column: Column) -> str:
    """What a column is, and how to see it."""
    rows = [("label", words(column.label)), ("unit", words(column.unit)), ("meaning", words(column.meaning))]
    if name in CHOICES:
        rows += [("flagged", f"the {prone(name)} values"), ("flag by it", _code(f"--by {name}"))]
    if name in measures.names():
        rows += [("needs", words(", ".join(sorted(measures.needs(name))) or "nothing more"))]
        rows += [("paper", words(", ".join(sources(measures.load(name))) or "none"))]
        rows += [("mean in steps.jsonl", _code(column.mean) or "no")]
    if column.float32:
        rows += [("weights", "float32 only")]
    command = f"chesboard list measures {name}"
    if name in CHOICES and name != "probe_influence":
        command = f"chesboard flag pairs.jsonl --model my-model --out runs/flag --by {name}"
    return _table(("", ""), rows) + f"\n\n    {command}"


def _pushes(where: str, pushes: Sequence[Push]) -> str:
    others = sorted({name for push in pushes for name in push.others})
    heads = (where, "loss", "d_w", "d_l", "d_w / d_l", *(f"push on {name}" for name in others))
    rows = [
        (f"{p.at:g}", *map(number, (p.loss, p.chosen, p.rejected, p.ratio, *(p.others.get(o, 0.0) for o in others))))
        for p in pushes
    ]
    return _table([words(head) for head in heads], rows)


def _paper(entry: Mapping[str, Any]) -> str:
    """The paper of an analysis, or its papers, as links."""
    return words(re.sub(r"(?<!\d)(\d{4}\.\d{5})", r"arXiv:\1", str(entry["paper"])))


def _rule(claim: Mapping[str, Any]) -> str:
    """A claim's rule in words."""
    ((way, value),) = claim["rule"].items()
    limit = " and ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{claim.get('kind', 'mean')}: {way.replace('_', ' ')} {limit}"
