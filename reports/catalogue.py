"""What there is, for a terminal: objectives, measures and notebooks, an objective's card, the keys of `train`."""

import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import MISSING
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from diagnostics import measures
from diagnostics.docstrings import papers, sources, summary
from diagnostics.errors import printable
from diagnostics.flag.flagging import FURTHER, prone
from diagnostics.names import unknown
from reports.console import number
from reports.tables import add, say
from reports.tables import table as new_table
from trainers import objectives
from trainers.card import Card, Property, Push, card
from trainers.config import DEFAULTS, OWN, arguments
from trainers.values import wanted

KINDS = ("objectives", "measures", "notebooks")
CARD_NOTES = (
    "d_w = -dL/dz_w and d_l = dL/dz_l, z a summed log-prob in nats: above 0, chosen is raised and rejected lowered. "
    "To first order in a small step, chosen rises only if d_w / d_l > <s_w, s_l> / |s_w|^2, and rejected falls only if "
    "d_w / d_l < |s_l|^2 / <s_w, s_l>; s is the gradient of z in the weights, <s_w, s_l> > 0 (arXiv:2604.18239). "
    "A push on X is -dL/dX: above 0 raises X. A dash is no number.",
    "One standard pair, nothing sampled: 10 tokens a side, reference log-prob -1 a token, margins split evenly, v the "
    "rejected answer's log-ratio. All else is neutral: KL 0, every token in one phrase, a batch of equal pairs.",
)
DENOISER_NOTES = (
    CARD_NOTES[0].replace("a summed log-prob in nats", "minus a sample's denoising error, or a step's mean log-prob"),
    "One standard pair, nothing sampled: 10 draws (or steps) a side, under the reference an error of 1 at each, "
    "margins split evenly, v the rejected sample's log-ratio. All else is neutral: no deviation, one segment.",
)
_NOTEBOOKS = Path(__file__).parents[1] / "notebooks"


def show_list(what: str | None = None, name: str | None = None, *, details: bool = False) -> None:
    """The names of objectives, measures and notebooks with a line each, their tables, or what one name stands for."""
    if what is not None and what not in KINDS:
        raise unknown("list", what, KINDS)
    wanted_kinds = KINDS if what is None else (what,)
    if name is None and details:
        _show_tables(wanted_kinds)
    elif name is None:
        _show_names(wanted_kinds)
    elif what == "objectives":
        show_card(card(name))
    else:
        _show_text(*(_measure_text(name) if what == "measures" else _notebook_text(name)))


def show_keys(objective: str) -> None:
    """Every key of `chesboard train` with its default and a line of help, in groups."""
    groups = own_keys()
    types = objectives.kinds(objective)
    groups["objective"] += [
        (name, _default(default), f"of {objective}: {wanted(default, types[name])}")
        for name, default in objectives.hyperparameters(objective).items()
    ]
    for group, rows in groups.items():
        say("", f"Keys, {group}:")
        Console().print(_grid([(f"--{name}", default, words) for name, default, words in rows]))
    say("", "Keys, every field of transformers' TrainingArguments:")
    for name, default, words in their_keys():
        line = f"--{name} {default}".rstrip() + f"  {words}"
        Console().print(Text(printable(line)), no_wrap=True, overflow="ellipsis")
    say("", f"Hyperparameters are those of {objective}; `chesboard train --help NAME` shows another objective's.")


def own_keys() -> dict[str, list[tuple[str, str, str]]]:
    """Our own keys in groups: name, default in words, a line of help."""
    groups: dict[str, list[tuple[str, str, str]]] = {"model": [], "data": [], "objective": []}
    for name, key in OWN.items():
        groups.setdefault(key.metadata["group"], []).append((name, _default(key.default), key.metadata["help"]))
    return groups


def their_keys() -> list[tuple[str, str, str]]:
    """The keys of transformers, likewise, with what its own help says."""
    helps = {name: str(key.metadata.get("help", "")).replace("%%", "%") for name, key in arguments().items()}
    return [
        (name, _default(DEFAULTS.get(name, key.default)), " ".join(helps[name].split()))
        for name, key in arguments().items()
    ]


def _default(value: Any) -> str:
    if value is MISSING:
        return "required"
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(getattr(value, "value", value))


def _grid(rows: Sequence[Sequence[str]], *, one_line: bool = False) -> Table:
    """Columns without lines; the last one is cut where it does not fit, or folded."""
    table, left = Table(show_header=False, box=None, padding=(0, 2, 0, 0)), Console().width - 2
    for column in list(zip(*rows, strict=True))[:-1]:
        table.add_column(no_wrap=True, min_width=max(map(len, column)))
        left -= max(map(len, column)) + 2
    table.add_column(no_wrap=one_line, overflow="ellipsis" if one_line else "fold", max_width=max(left, 20))
    for row in rows:
        add(table, *row)
    return table


def _show_names(kinds: Sequence[str]) -> None:
    """A name and as much of its meaning as fits in one line."""
    rows = {
        "objectives": [(name, meaning(name)) for name in objectives.names()],
        "measures": [row[:2] for row in _measures()] + [(name, column.meaning) for name, column in FURTHER.items()],
        "notebooks": [row[:2] for row in _notebooks()],
    }
    for kind in kinds:
        say(f"{kind}:")
        Console().print(_grid(rows[kind], one_line=True))
        say("")
    say(f"more of one: chesboard list {kinds[0]} NAME   of all, with papers: chesboard list --details")


def _show_tables(kinds: Sequence[str]) -> None:
    """From the docstrings and the notebooks' first cells."""
    console = Console()
    for kind in kinds:
        if kind == "objectives":
            console.print(_objective_table())
            continue
        table = new_table(kind, "what it is", "source")
        for row in _measures() if kind == "measures" else _notebooks():
            add(table, *row)
        console.print(table)
        if kind == "measures":
            console.print(_further_table())
    if "objectives" in kinds:
        say("one objective's card: chesboard list objectives NAME")


def _further_table() -> Table:
    """The columns that only `chesboard flag` measures, and which of their values it flags."""
    table = new_table("flag --by", "what it is", "flagged")
    for name, column in FURTHER.items():
        add(table, name, column.meaning, prone(name))
    table.caption = "flag --by takes these, and CHES, LN-CHES, last-hidden and edit similarity, flagged highest"
    return table


def _objective_table() -> Table:
    """Every objective: what it is, what it reads, how sure its formula is, its paper."""
    table = new_table("objective", "what it is", "needs", "formula", "paper")
    for name in objectives.names():
        function = objectives.load(name)
        reads = [*objectives.needs(name), *(f"column {c}" for c in objectives.columns(name))]
        reads += [f"row {row}" for row in objectives.rows(name)]
        kind = objectives.likelihood(name)
        reads += [] if kind == "tokens" else [f"likelihood {kind}"]
        sure = objectives.module(name).PROVENANCE
        add(table, name, meaning(name), ", ".join(reads) or "-", sure, ", ".join(p[6:] for p in sources(function)))
    for column in (table.columns[0], table.columns[4]):
        column.no_wrap = True
    table.caption = "paper: arXiv number; formula: " + "; ".join(objectives.PROVENANCES.values())
    return table


def meaning(objective: str) -> str:
    """What an objective is, in a line."""
    return re.split(r"\. (?:arXiv|Source)", summary(objectives.load(objective).__doc__))[0].rstrip(".")


def show_card(shown: Card) -> None:
    """One objective: its formula, what it reads, how sure it is, and how it pushes the two answers."""
    _show_text(shown.name, shown.formula, card_rows(shown))
    console = Console()
    if shown.margins:
        unit = "nats" if shown.likelihood == "tokens" else "units"
        console.print(_push_table(shown.margins, f"margin ({unit})", "incentives and the margin of log-ratios"))
        console.print(_push_table(shown.far[::3], f"v ({unit})", "incentives as the rejected answer fades (u = 0)"))
    table = new_table("by autograd", "value", "meaning", title="does it displace by construction?")
    for question, fact in properties(shown):
        add(table, question, number(fact.value), fact.words)
    console.print(table)
    say(*(CARD_NOTES if shown.likelihood == "tokens" else DENOISER_NOTES))


def properties(card: Card) -> list[tuple[str, Property]]:
    """The questions on displacement that a card answers."""
    return [
        ("d_w / d_l as rejected -> 0", card.far_ratio),
        ("d_l bounded as rejected -> 0", card.far_rejected),
        ("absolute chosen likelihood enters", card.common_fall),
        ("argmin f (f-divergence)", card.argmin),
    ]


def card_rows(card: Card) -> list[tuple[str, str]]:
    """What the objective's file says beside its formula."""
    rows = [("needs", f"{word}: {objectives.WORDS[word]}") for word in card.needs] or [("needs", "nothing more")]
    rows += [("column", f"{name} (here at {value:g})") for name, value in card.columns.items()]
    rows += [("row", f"{name}: {meaning}") for name, meaning in card.rows.items()]
    if card.likelihood != "tokens":
        rows += [("likelihood", objectives.LIKELIHOODS[card.likelihood]), ("unit", f"{card.unit:g} of it")]
    rows += [("formula", objectives.PROVENANCES[card.provenance])]
    types = objectives.kinds(card.name)
    keys = [(f"--{key}", f"default {value}; {wanted(value, types[key])}") for key, value in card.defaults.items()]
    rows += keys or [("hyperparameters", "none")]
    return [*rows, ("paper", ", ".join(card.papers) or "none")]


def _push_table(pushes: Sequence[Push], where: str, title: str) -> Table:
    others = sorted({name for p in pushes for name in p.others})
    table = new_table(where, "loss", "d_w", "d_l", "d_w / d_l", *(f"push on {name}" for name in others), title=title)
    for p in pushes:
        add(table, f"{p.at:g}", *map(number, (p.loss, p.chosen, p.rejected, p.ratio)), *(
            number(p.others.get(name, 0.0)) for name in others
        ))  # fmt: skip
    return table


def _show_text(name: str, text: str, rows: Sequence[tuple[str, str]]) -> None:
    """A docstring as it stands, then what goes with it."""
    say(name, "", *text.splitlines(), "")
    Console().print(_grid(rows))


def _measure_text(name: str) -> tuple[str, str, list[tuple[str, str]]]:
    if name in FURTHER:
        return name, FURTHER[name].meaning + ".", [("unit", FURTHER[name].unit), ("flagged", prone(name))]
    function = measures.load(name)
    column = measures.column(name)
    rows = [("needs", ", ".join(sorted(measures.needs(name)))), ("paper", ", ".join(sources(function)))]
    rows += [("unit", column.unit), ("prone", column.prone or "not known"), ("in steps.jsonl", column.mean or "no")]
    return name, inspect.getdoc(function) or "", rows


def _notebook_text(name: str) -> tuple[str, str, list[tuple[str, str]]]:
    known = {row[0]: row for row in _notebooks()}
    if name not in known:
        raise unknown("notebook", name, known)
    return name, known[name][1], [("paper", known[name][2])]


def _measures() -> list[tuple[str, str, str]]:
    return [(n, summary(measures.load(n).__doc__), ", ".join(sources(measures.load(n)))) for n in measures.names()]


def _notebooks() -> list[tuple[str, str, str]]:
    found = []
    for path in sorted(_NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        text = "".join(cells[0]["source"]) if cells else ""
        found.append((path.stem, summary(text.lstrip("# ")), ", ".join(papers("".join(map(str, cells))))))
    return found
