"""The verdict of a finished run, judged once: verdict.json in its folder, read by page, index, summary and gate.

What wrote the run judges it at its end. The file holds for the log and the rules that it was made from: where either
has changed, or there is none (a log still being written, one of a run among many), the log is judged as it is read.
"""

import hashlib
import json
from functools import cache
from pathlib import Path

import analysis
from analysis.run import verdict
from diagnostics import finding, outcomes
from diagnostics.errors import DataError
from diagnostics.files import read_json, write_json
from diagnostics.finding import Finding
from diagnostics.runlog import RunLog

FILE = "verdict.json"


def keep(run: RunLog) -> list[Finding]:
    """Judge the run and write verdict.json; its findings, the verdict first (see verdict.judge)."""
    found = verdict.judge(run)
    content = {"verdict": verdict.headline(found), "log": _log(run), "rules": _rules()}
    write_json(run.path / FILE, content | {"findings": [f.as_json() for f in found]})
    return found


def verdict_of(run: RunLog) -> list[Finding]:
    """The same findings, from verdict.json where it is of this log and by these rules, else judged now."""
    try:
        kept = read_json(run.path / FILE)
        if (kept["log"], kept["rules"]) == (_log(run), _rules()):
            return [finding.from_json(found) for found in kept["findings"]]
    except (DataError, KeyError, TypeError, ValueError):
        pass  # none, or one that is damaged
    return verdict.judge(run)


def _log(run: RunLog) -> str:
    """What the log is known by: its settings, and its manifest with the checksum of every file."""
    text = json.dumps([run.config, run.manifest, len(run.steps), len(run.pairs)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def _rules() -> str:
    """What judges: the code of the analyses, and of what counts as a fall."""
    files = [*sorted(Path(analysis.__path__[0]).rglob("*.py")), Path(outcomes.__file__)]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
