"""Paper analyses, found by listing this folder: one file = one analysis, the counterpart of trainers/papers/.

A file has `measured(paper) -> dict[str, Measured]`, the value of each of its claims by id, and the sections of its
notebook, notebooks/paper_<name>.ipynb: functions of the Paper that return a Block. It reads the tables that
trainers/papers/<name>.py declares, and run logs; what it makes of logs for several sections is marked `once`. Claims
are judged once, by `judge`, and kept in claims.json.

What the paper says stands beside it in <name>.yaml and nowhere else, typed in once: title, paper (arXiv number), tables
(published numbers shown beside the measured ones), and the claims, each with

    id, says, where   what, in which table or figure (appendix letters of 2410.08847 are those of its version 1; in
                      version 4 they are one later from F on)
    published         its value in the paper
    rule              what decides it on this machine's numbers: above, below, at_least, at_most or between, judged as
                      analysis/tables/rules.py says for its kind
    kind              mean (left out: the 95 % interval of the mean over seeds must obey, or break, the rule), every
                      (one seed that breaks it refutes the claim), some (one seed that obeys shows it), exact (nothing
                      is drawn)
    within            the ends of what the quantity can be by nature, [0, 1] for a share or an AUROC, [-1, 1] for a
                      correlation: the interval is shown within them, and judged as it came out
    by                paper (the paper's own claim) or control (what a reviewer would ask, not in the paper)
    needs             data, where the claim stands only if --data was given
    late              the results that were known when the rule was set; without it the rule stood before its first
                      run. Either way it is judged on seeds that nobody had seen then (TUNED in trainers/papers/): there
                      a late rule is as good as any
"""

import hashlib
import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache, wraps
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import yaml
from numpy.typing import ArrayLike

from analysis.show import page
from analysis.show.page import Block
from analysis.show.wording import count, number, signed, span
from analysis.tables import rules, runs
from analysis.tables.intervals import finite, half_width, mean
from diagnostics.errors import DataError
from diagnostics.runlog import RunLog, read_frame, read_json, write_json
from diagnostics.tables import missing

PUBLISHED = Path(__file__).resolve().parent
RECORD = "paper.json"
CLAIMS = "claims.json"  # beside it: the claims as they were judged, and what they were judged from
EXACT = "exact"  # a claim's n where nothing is drawn
T = TypeVar("T")
WORLDS = {"facts": "facts", "refusal": "refusals", "given": "given data"}
VERDICTS = {True: "holds", False: "does not hold", None: "cannot be said"}


@dataclass(frozen=True)
class Paper:
    """One rerun analysis. path: its folder; record: paper.json; tables: its Parquet files by name; kept: what `once`
    computed from them and from the runs."""

    path: Path
    record: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    kept: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The analysis' name."""
        return str(self.record["name"])

    @property
    def runs(self) -> pd.DataFrame:
        """The finished runs: their labels and folders; empty where the analysis trains none."""
        table = self.tables.get("runs", pd.DataFrame({"run": [], "failed": []}))
        return table.loc[table["failed"] == ""].reset_index(drop=True)

    def log(self, run: str) -> RunLog:
        """The log of one of its runs, by the folder named in the table of runs."""
        return runs.load(self.path.parent / run)


@dataclass(frozen=True)
class Measured:
    """The value of one claim. values: one an independent repetition (seed), which analysis.tables.rules judges;
    interval: the 95 % interval where it comes from elsewhere (a share of pairs, say); n: what was counted, in words;
    geometric: ratios, whose logarithms are averaged."""

    values: Sequence[float] | np.ndarray
    n: str
    interval: tuple[float, float] | None = None
    note: str = ""
    geometric: bool = False


@dataclass(frozen=True)
class Claim:
    """One claim with its verdict: holds True or False, None where it cannot be said; p: see analysis.tables.rules."""

    analysis: str
    id: str
    says: str
    where: str
    published: str
    rule: str
    value: float
    interval: tuple[float, float] | None
    n: str
    holds: bool | None
    note: str = ""
    p: float = math.nan

    @property
    def verdict(self) -> str:
        """In words."""
        return VERDICTS[self.holds]


def names() -> list[str]:
    """The analyses there are, sorted."""
    there = {m.name for m in pkgutil.iter_modules(__path__)}
    return [name for name in published() if name in there]


def load(path: str | Path) -> Paper:
    """Read an analysis' folder. Raises DataError where it is none, not finished, or a table or column of it is gone."""
    runs.require(folder=path)
    path = Path(path)
    if not (path / RECORD).is_file():
        raise DataError(f"{path}: no finished analysis in it. Run `chesboard paper {path.name}` (again); it goes on.")
    record = read_json(path / RECORD)
    gone = [name for name in record.get("tables", []) if not (path / f"{name}.parquet").is_file()]
    if gone:
        raise DataError(f"{path}: its table {gone[0]}.parquet is gone. Run `chesboard paper` again; it goes on.")
    tables = {name: read_frame(path / f"{name}.parquet") for name in record.get("tables", [])}
    for name, table in tables.items():
        lost = missing(table, record.get("columns", {}).get(name, {}))
        if lost:
            raise DataError(
                f"{path}: its table {name}.parquet lacks the column {lost[0]}. Run `chesboard paper` again; it goes on."
            )
    return Paper(path, record, tables)


@cache
def published() -> dict[str, dict[str, Any]]:
    """By analysis what stands in its YAML: title, paper (arXiv number), claims and published tables."""
    return {p.stem: yaml.safe_load(p.read_text(encoding="utf-8")) for p in sorted(PUBLISHED.glob("*.yaml"))}


def figures() -> list[dict[str, str]]:
    """The figures and tables of 2410.08847: item, what it shows, and where it is remade (analysis `made`, heading
    `section` of its notebook) or the `reason` why it is not."""
    return published()["catastrophic"].get("figures", [])


def module(name: str) -> ModuleType:
    """The analysis' file in this folder."""
    return import_module(f"{__name__}.{name}")


def once(compute: Callable[[Paper], T]) -> Callable[[Paper], T]:
    """For a table that several sections and claims ask for: computed at a Paper's first call, and kept with it."""
    name = f"{compute.__module__}.{compute.__qualname__}"

    @wraps(compute)
    def kept(paper: Paper) -> T:
        if name not in paper.kept:
            paper.kept[name] = compute(paper)
        return paper.kept[name]

    return kept


def where(table: pd.DataFrame, **wanted: Any) -> Any:
    """The rows of a table whose columns have these values; typed as `.loc` is, for which a column may be a table."""
    keep = np.ones(len(table), dtype=bool)
    for name, value in wanted.items():
        keep &= (table[name] == value).to_numpy(dtype=bool)
    return table.loc[keep]


def per_seed(found: Mapping[str, pd.Series], n: str = "") -> dict[str, Measured]:
    """Values by seed as they are judged, without those that were not measured. n: in words; else how many seeds."""
    known = {name: values.dropna().tolist() for name, values in found.items()}
    return {name: Measured(values, n or count(len(values), "seed")) for name, values in known.items()}


def spreads(
    table: pd.DataFrame,
    by: Mapping[str, Mapping[Any, str]],
    columns: Sequence[str],
    digits: int = 2,
    sign: bool = False,
) -> pd.DataFrame:
    """One row a group of a table of one row a seed: the group in words, seeds, and every column's mean ± half of its
    95 % interval. by: columns with the words for their values, in the order of the rows; {}: as they stand there."""
    rows = {}
    for key, of in groups(table, *by):
        at = tuple(list(words).index(k) if k in words else len(words) for k, words in zip(key, by.values()))
        head = {name: words.get(k, k) for k, (name, words) in zip(key, by.items())} | {"seeds": len(of)}
        rows[at, len(rows)] = head | {name: plus_minus(of[name], digits, sign=sign) for name in columns}
    return pd.DataFrame([rows[at] for at in sorted(rows)])


def groups(table: pd.DataFrame, *names: str) -> list[tuple[Any, pd.DataFrame]]:
    """The rows of each combination of some columns, in the order of the table."""
    return [(key, rows) for key, rows in table.groupby(list(names), sort=False)]


def judge(paper: Paper) -> list[Claim]:
    """Every claim of this analysis, in order. Judged once: claims.json keeps them, until the record, the YAML or the
    code that judges is another."""
    path, source = paper.path / CLAIMS, _source(paper)
    try:
        known = read_json(path)
    except DataError:
        known = {}
    if known.get("judged from") == source:
        return [_claim(row) for row in known["claims"]]
    found = _anew(paper)
    write_json(path, {"judged from": source, "claims": [_row(claim) for claim in found]})
    return found


def _anew(paper: Paper) -> list[Claim]:
    """Every claim of this analysis, judged now; one that was not measured cannot be said, and is left out where it
    needs what was not given (its key `needs`)."""
    found: Mapping[str, Measured] = module(paper.name).measured(paper)
    entries = published()[paper.name]["claims"]
    wanted = [entry for entry in entries if "needs" not in entry or entry["id"] in found]
    return [_judged(paper.name, entry, found.get(entry["id"]), is_fresh(paper)) for entry in wanted]


def _source(paper: Paper) -> str:
    """What claims are judged from, as a hash: the analysis' record and YAML, its file, this one, and the rules."""
    record = (paper.path / RECORD).read_bytes()
    files = (PUBLISHED / f"{paper.name}.yaml", PUBLISHED / f"{paper.name}.py", Path(__file__), Path(rules.__file__))
    return hashlib.sha256(b"".join([record, *(file.read_bytes() for file in files)])).hexdigest()


def _row(claim: Claim) -> dict[str, Any]:
    """A claim as claims.json holds it: with its verdict in words, and null for a number that there is not."""
    row = asdict(claim) | {"verdict": claim.verdict}
    ends = claim.interval and [_null(end) for end in claim.interval]
    return row | {"value": _null(claim.value), "p": _null(claim.p), "interval": ends}


def _claim(row: Mapping[str, Any]) -> Claim:
    """The reverse of `_row`."""
    told: dict[str, Any] = {name: value for name, value in row.items() if name != "verdict"}
    ends = told["interval"] and tuple(_number(end) for end in told["interval"])
    return Claim(**told | {"value": _number(told["value"]), "p": _number(told["p"]), "interval": ends})


def _null(value: float) -> float | None:
    return None if math.isnan(value) else float(value)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def is_fresh(paper: Paper) -> bool:
    """Whether its seeds are others than those by which worlds, settings and rules were chosen."""
    return "first seed" in paper.record


def seed_words(paper: Paper) -> str:
    """Which seeds were taken, and which were looked at before."""
    first, n = int(paper.record.get("first seed", 0)), int(paper.record["seeds"])
    said = f"seed {first}" if n == 1 else f"seeds {first} to {first + n - 1}"
    if not is_fresh(paper):
        return f"{said}, by some of which worlds, settings and rules were chosen: rerun it with `chesboard paper`"
    return f"{said}; worlds, settings and rules were chosen by seeds 0 to {first - 1}" if first else said


def headline(paper: Paper) -> Block:
    """One sentence: how many claims hold."""
    return page.note(summary(judge(paper)), "verdict")


def summary(claims: Sequence[Claim]) -> str:
    """How many claims hold, do not hold, and cannot be said, and what is left of them for their number."""
    parts = f"{_verdicts(claims)}, {sum(c.holds is None for c in claims)} cannot be said"
    said = f"{count(len(claims), 'claim')}: {parts}."
    by_mean = [c for c in claims if math.isfinite(c.p)]
    if not by_mean:
        return said
    left = [c for c, gone in zip(claims, doubtful(claims)) if math.isfinite(c.p) and not gone]
    return (
        f"{said} {len(by_mean)} are judged by a mean, each at the 5 % level ({_verdicts(by_mean)}): chance alone would "
        f"decide up to {math.ceil(rules.LEVEL * len(by_mean))} of so many. At a false-discovery rate of 5 % among them "
        f"(Benjamini-Hochberg) {_verdicts(left)}."
    )


def _verdicts(claims: Sequence[Claim]) -> str:
    yes, no = (sum(c.holds is holds for c in claims) for holds in (True, False))
    return f"{yes} hold{'s' * (yes == 1)}, {no} do{'es' * (no == 1)} not hold"


def beside(by_scale: Mapping[str, Sequence[Claim]]) -> list[dict[str, str]]:
    """One row a claim of an analysis: what it says, and at each scale its verdict and value; – where it was not
    measured there."""
    known = {scale: {claim.id: claim for claim in of} for scale, of in by_scale.items()}
    every = {claim.id: claim for of in by_scale.values() for claim in of}
    return [
        {"claim": claim.says} | {scale: _at(of.get(name)) for scale, of in known.items()}
        for name, claim in every.items()
    ]


def carried(toy: Sequence[Claim], other: Sequence[Claim], scale: str) -> str:
    """How many of the claims that hold at toy scale hold at another; what was not measured there cannot be said."""
    verdicts = {(claim.analysis, claim.id): claim.holds for claim in other}
    found = [verdicts.get((claim.analysis, claim.id)) for claim in toy if claim.holds]
    yes, no = sum(holds is True for holds in found), sum(holds is False for holds in found)
    said = f"{yes} hold{'s' * (yes == 1)}, {no} do{'es' * (no == 1)} not hold, {len(found) - yes - no} cannot be said"
    return f"Of {count(len(found), 'claim')} that hold{'s' * (len(found) == 1)} at toy scale, {said} at {scale} scale."


def _at(claim: Claim | None) -> str:
    return "–" if claim is None or math.isnan(claim.value) else f"{claim.verdict}: {_digits(claim.value)}"


def claims(paper: Paper) -> Block:
    """The claims table: what is said, the measured value with interval and n, the verdict, the published value."""
    return page.table(pd.DataFrame([row(c) for c in judge(paper)]), below={"claim": "note"})


def row(claim: Claim, doubtful: bool = False) -> dict[str, str]:
    """One line of a claims table, in words. doubtful: its verdict is gone at the false-discovery rate of the ledger."""
    interval = f" ({span(claim.interval, _digits)})" if claim.interval and claim.n != EXACT else ""
    lost = "its verdict does not stand at a false-discovery rate of 5 %" * doubtful
    return {
        "verdict": claim.verdict,
        "claim": claim.says,
        "measured (95 % interval)": _digits(claim.value) + interval,
        "holds where": claim.rule,
        "n": claim.n,
        "published": claim.where if claim.published == "–" else f"{claim.published} [{claim.where}]",
        "note": "; ".join(filter(None, [claim.note, lost])),
    }


def doubtful(claims: Sequence[Claim]) -> list[bool]:
    """Which verdicts by a mean over seeds are gone at a false-discovery rate of 5 % among all of these claims."""
    stand = rules.survivors([c.p for c in claims])
    return [math.isfinite(c.p) and c.holds is not None and not s for s, c in zip(stand, claims)]


def _digits(value: float) -> str:
    return number(value, 3 if abs(value) < 2 else 2)


def plus_minus(values: ArrayLike, digits: int = 2, *, sign: bool = False) -> str:
    """Mean over seeds ± half of its 95 % t interval, in words; the mean alone below two seeds."""
    half = half_width(values)
    middle = (signed if sign else number)(mean(values), digits)
    return middle if math.isnan(half) else f"{middle} ± {number(half, digits)}"


def settings(paper: Paper) -> Block:
    """Paper and toy settings beside each other, with place and reason, and what this rerun took."""
    given = [f"{name}: {paper.record[name]}" for name in ("model", "data") if paper.record.get(name)]
    said = "; ".join([f"Scale: {paper.record['scale']}", seed_words(paper), *given])
    heads = {"name": "setting", "why": "why the toy differs", "small_why": "why small differs"}
    table = paper.tables["settings"].rename(columns=heads)
    if paper.record["scale"] != "small":
        table = table.drop(columns=["small", "why small differs"], errors="ignore")
    failed = paper.tables.get("runs", pd.DataFrame({"failed": []}))
    lost = failed.loc[failed["failed"] != ""]
    missing = (
        [page.note(f"{count(len(lost), 'run')} could not be finished and are left out.", "bad")] if len(lost) else []
    )
    below = {"toy": "why the toy differs", "small": "why small differs"}
    return page.stack(page.note(said), *missing, page.table(table, below=below))


def _judged(analysis: str, entry: Mapping[str, Any], found: Measured | None, fresh: bool = True) -> Claim:
    found = found or Measured([], "–", note="not measured in this rerun")
    values, kind = finite(found.values), entry.get("kind", "mean")
    ruling = rules.judged(values, entry["rule"], kind, geometric=found.geometric, interval=found.interval)
    told = {k: str(entry[k]) for k in ("id", "says", "where", "published")}
    lost = len(found.values) - len(values)
    missing = f"no number from {lost} of {count(len(found.values), 'repetition')}" if lost else ""
    notes = filter(None, [found.note, missing, ruling.note, _late(entry.get("late"), fresh)])
    interval = rules.within(ruling.interval, entry.get("within"))
    return Claim(analysis, **told, rule=rules.words(entry["rule"], kind), value=ruling.value, interval=interval,
                 holds=ruling.holds, n=found.n, note="; ".join(notes), p=ruling.p)  # fmt: skip


def _late(seen: str | None, fresh: bool) -> str:
    """What was known of the results when a claim's rule was set."""
    return f"rule set after seeing {seen}{', judged here on other seeds' * fresh}" if seen else ""
