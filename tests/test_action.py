"""action.yml, run here as it is written: every step in bash, with its inputs in the environment, as GitHub does it."""

import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
RUN = ROOT / "tests" / "data" / "tiny_run"
ACTION = yaml.safe_load((ROOT / "action.yml").read_text())
STEPS = ACTION["runs"]["steps"]
DATA_GATES = "- {table: scores, metric: edit_similarity, aggregate: max, op: '<=', value: 1.0}\n"
HOSTILE = "$(touch ran) `touch ran`; touch ran # 'a\" \\"
IDS = [  # what a runner, a terminal or a page would take for its own
    "::set-output name=code::0", "##[set-output name=code;]0", "::add-mask::displaced", "\x1b[2J\r::error::no",
    "<img src=x onerror=alert(1)>", "[a](javascript:alert(1)) | `b` @everyone",
]  # fmt: skip
GATES = "- {name: it learned, table: steps, metric: loss, aggregate: last, op: <, value: 0.69}\n"


def filled(text: str, inputs: dict[str, str], outputs: dict[str, dict[str, str]]) -> str:
    """The text with `${{ inputs.x }}` and `${{ steps.x.outputs.y }}` put in; any other expression is refused."""

    def value(match: re.Match[str]) -> str:
        kind, *path = match[1].strip().split(".")
        if kind == "inputs":
            return inputs[path[0]]
        assert (kind, path[1]) == ("steps", "outputs"), match[0]
        assert any(step.get("id") == path[0] for step in STEPS), match[0]
        return outputs.get(path[0], {}).get(path[2], "")

    return re.sub(r"\$\{\{(.*?)\}\}", value, text)


def wanted(step: dict, inputs: dict[str, str]) -> bool:
    """Whether the step's `if`, a comparison of an input, lets it run."""
    if "if" not in step:
        return True
    name, op, value = re.fullmatch(r"inputs\.([\w-]+) (!=|==) '(\w*)'", step["if"]).groups()
    return (inputs[name] == value) == (op == "==")


class Job:
    """Runs the action's own steps in a folder; afterwards code, outputs, what was printed and the job's page.

    only: names of the steps to run, all by default. place: where the action itself lies."""

    def __init__(self, folder: Path, only: tuple[str, ...] = (), place: object = ROOT, **given: str) -> None:
        self.place = str(place)
        self.folder, self.outputs, self.code = folder, {}, 0
        self.inputs = {name: said["default"] for name, said in ACTION["inputs"].items()}
        self.inputs |= {"install": "false"} | {name.replace("_", "-"): value for name, value in given.items()}
        tools = folder / "bin"
        tools.mkdir(parents=True, exist_ok=True)
        command = tools / "chesboard"
        command.write_text(f'#!/bin/bash\nexec {sys.executable} {ROOT / "chesboard.py"} "$@"\n')
        command.chmod(0o755)
        self.page = folder / "page.md"
        self.page.write_text("")
        self.printed = ""
        for step in STEPS:
            if "run" in step and wanted(step, self.inputs) and (not only or step["name"] in only):
                self._run(step, tools)
            if self.code:
                break

    def _run(self, step: dict, tools: Path) -> None:
        told, script = self.folder / "output.txt", self.folder / "step.sh"
        told.write_text("")
        script.write_text(step["run"])
        env = {name: filled(str(value), self.inputs, self.outputs) for name, value in step.get("env", {}).items()}
        env |= {"GITHUB_OUTPUT": str(told), "GITHUB_STEP_SUMMARY": str(self.page), "GITHUB_ACTION_PATH": self.place}
        env = os.environ | env | {"PATH": f"{tools}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", str(script)],
            cwd=self.folder, env=env, capture_output=True, text=True,
        )  # fmt: skip
        self.printed += done.stdout + done.stderr
        self.code = done.returncode
        if "id" in step:
            self.outputs[step["id"]] = dict(line.split("=", 1) for line in told.read_text().splitlines())

    def output(self, name: str) -> str:
        """An output of the action."""
        return filled(ACTION["outputs"][name]["value"], self.inputs, self.outputs)


@pytest.fixture(scope="module")
def whole(lm_folder, tmp_path_factory) -> Job:
    """Data and run, each with its gates, in names and with ids that somebody chose to do harm."""
    folder = tmp_path_factory.mktemp("job") / "a folder"
    folder.mkdir()
    rows = [
        {"id": name, "prompt": f"alpha {i} ?", "chosen": " beta gamma", "rejected": f" delta {i}"}
        for i, name in enumerate(IDS)
    ]
    rows.append({"prompt": "alpha ?", "chosen": " secret words", "rejected": " secret words"})
    names = {
        key: f"{HOSTILE}\n{name}" for key, name in (("data", "p.jsonl"), ("data_gates", "d.yaml"), ("gates", "g.yaml"))
    }
    texts = {"data": "".join(json.dumps(row) + "\n" for row in rows), "data_gates": DATA_GATES, "gates": GATES}
    for key, text in texts.items():
        (folder / names[key]).write_text(text)
    return Job(folder, **names, model=lm_folder, run=str(RUN), out=f"out {HOSTILE}")


def test_every_step_runs_and_the_gates_pass(whole):
    assert whole.code == 0, whole.printed
    assert whole.output("passed") == "true"
    assert "identical_completions" in whole.printed
    assert (whole.folder / whole.output("report")).is_file()


def test_the_summary_says_it_all_and_stands_on_the_jobs_page(whole):
    summary = (whole.folder / whole.output("summary")).read_text()
    for words in (
        "Run tiny\\_run",
        "displaced: 100 % of 12 probe pairs",
        "Gates of the data",
        "Gates of the run",
        "it learned",
    ):
        assert words in summary
        assert words in whole.page.read_text()


def test_the_junit_files_have_one_root_each(whole):
    files = sorted((whole.folder / whole.output("junit")).glob("*.xml"))
    assert [file.name for file in files] == ["data.xml", "run.xml"]
    for file in files:
        root = ET.parse(file).getroot()
        assert (root.tag, root.attrib["tests"], root.attrib["failures"]) == ("testsuites", "1", "0")


def test_what_is_uploaded_exists_and_holds_no_texts(whole):
    (upload,) = [step for step in STEPS if "upload-artifact" in step.get("uses", "")]
    paths = [line.strip() for line in filled(upload["with"]["path"], whole.inputs, {}).splitlines()]
    files = [f for path in paths for f in [whole.folder / path, *(whole.folder / path).rglob("*")] if f.is_file()]
    assert {"index.html", "summary.md", "run.xml", "scores.parquet"} <= {file.name for file in files}
    assert not [file for file in files if b"secret words" in file.read_bytes()]
    assert "audit.parquet" not in {file.name for file in files}


def orders(printed: str) -> list[str]:
    """The lines that GitHub's runner takes for commands: `::name::` at a line's start, `##[name]` anywhere in one, but
    between `::stop-commands::TOKEN` and `::TOKEN::`."""
    found, token = [], ""
    for line in printed.splitlines():
        if token:
            token = "" if line.strip() == f"::{token}::" else token
        elif line.startswith("::stop-commands::"):
            token = line.removeprefix("::stop-commands::")
            assert len(token) == 32
        elif line.lstrip().startswith("::") or "##[" in line:
            found.append(line)
    assert not token  # obeyed again for the steps that follow
    return found


def test_no_name_and_no_text_of_the_data_is_a_command(whole):
    """To the shell, to the runner that reads what is printed, or on the job's page."""
    assert whole.code == 0, whole.printed
    assert not [*whole.folder.parent.rglob("ran")]
    assert "##[set" in whole.printed  # the ids were printed, if folded
    assert orders(whole.printed) == []
    assert "\x1b" not in whole.printed
    for text in (whole.page.read_text(), (whole.folder / whole.output("summary")).read_text()):
        assert "\r" not in text
        assert not re.search(r"<img|[^\\]\]\(javascript|@everyone", text)


def test_a_missed_gate_of_severity_warning_is_an_annotation(tmp_path):
    (tmp_path / "gates.yaml").write_text(GATES.replace("0.69", "0.0, severity: warning"))
    job = Job(tmp_path, ("what is asked for", "gates of the run", "verdict"), run=str(RUN), gates="gates.yaml")
    assert job.code == 0
    (said,) = orders(job.printed)
    assert said.startswith("::warning::")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ('{"prompt": "a", "chosen": "b"}\n', "rejected"),
        ("::error::x", "line 1"),
    ],
)
def test_data_without_a_pair_are_one_sentence(tmp_path, lm_folder, text, said):
    (tmp_path / "pairs.jsonl").write_text(text)
    job = Job(tmp_path, ("what is asked for", "audit and flag the data"), data="pairs.jsonl", model=lm_folder)
    assert job.code == 3
    assert re.search(rf"^chesboard: .*pairs\.jsonl.*{said}", job.printed, flags=re.M), job.printed
    assert orders(job.printed) == []


def test_nothing_is_uploaded_where_the_inputs_were_refused():
    """Else `out` could name other folders, a line each, to a step that runs always."""
    (upload,) = [step for step in STEPS if "upload-artifact" in step.get("uses", "")]
    assert "steps.start.outcome == 'success'" in upload["if"]


def test_a_file_of_the_pull_request_is_not_run_in_the_place_of_pip(tmp_path):
    (tmp_path / "pip.py").write_text("open('ran', 'w')")
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text(f'#!/bin/bash\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    job = Job(tmp_path, ("install",), install="true", place=tmp_path / "no action")
    assert job.code
    assert "no action" in job.printed  # pip itself was asked, for what is not there
    assert not (tmp_path / "ran").exists()


def test_a_missed_gate_ends_the_job_with_its_code_after_all_else(tmp_path):
    (tmp_path / "gates.yaml").write_text(GATES.replace("0.69", "0.0"))
    job = Job(tmp_path, ("what is asked for", "gates of the run", "verdict"), run=str(RUN), gates="gates.yaml")
    assert job.code == 1
    assert STEPS[-1]["id"] == "verdict"
    assert job.outputs["run-gates"] == {"code": "1"}
    assert job.output("passed") == "false"
    assert "FAIL" in (tmp_path / job.output("summary")).read_text()


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "give data, or run, or both."),
        ({"data": "x.jsonl"}, "data needs model"),
        ({"run": "r", "data-gates": "g"}, "data-gates judges data"),
        ({"data": "x", "model": "m", "gates": "g"}, "gates judges a run"),
        ({"run": "r", "out": ""}, "out names no folder"),  # else it is the root of the file system
        ({"run": "r", "out": "-p"}, "out names no folder"),
        ({"run": "r", "out": "x\npassed=true"}, "out names no folder"),  # a line more would be an output more
    ],
)
def test_inputs_that_do_not_fit_are_one_sentence(tmp_path, given, said):
    job = Job(tmp_path, **given)
    assert job.code == 2
    assert job.printed.startswith("chesboard: ")
    assert said in job.printed


@pytest.mark.parametrize(
    ("step", "given"),
    [
        ("report", {"run": "--help"}),
        ("report", {"run": str(RUN)}),
        ("gates of the run", {"run": str(RUN), "gates": "--help"}),
    ],
)
def test_an_input_is_never_read_as_a_command_or_an_option(tmp_path, step, given):
    steps = ("what is asked for", step, "verdict")
    job = Job(tmp_path, steps, out="$(touch ran); `touch ran`", baseline="; touch ran", **given)
    assert job.code in (2, 3)
    assert re.search(r"^chesboard: .*(--help|; touch ran)", job.printed, flags=re.M)
    assert not (tmp_path / "ran").exists()
    assert "Usage" not in job.printed


def test_no_step_puts_an_expression_into_a_command():
    for step in STEPS:
        if "run" in step:
            assert step["shell"] == "bash"
            assert "${{" not in step["run"]


def test_actions_are_pinned_as_in_our_own_workflow():
    ours = (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    for step in STEPS:
        if "uses" in step:
            assert re.fullmatch(r"actions/[\w-]+@[0-9a-f]{40}", step["uses"])
            assert step["uses"] in ours


def commands(text: str) -> set[str]:
    """The commands of a text by name and options, without what they are given."""
    found = set()
    for line in re.findall(r"^\s*(?:- )?(chesboard \w.*)$", text, flags=re.M):
        words = line.split(" | ")[0].split()
        options = {word.split("=")[0] for word in words if word.startswith("--") and word not in ("--", "--no-text")}
        found.add(" ".join([words[1], *sorted(options)]))
    return found


def test_the_pages_recipes_are_the_actions_commands():
    page = (ROOT / "docs" / "ci.md").read_text()
    ours = commands("\n".join(step.get("run", "") for step in STEPS))
    (shell,) = re.findall(r"```bash\n(.*?)```", page, flags=re.S)
    github, _, gitlab = re.findall(r"```yaml\n(.*?)```", page, flags=re.S)
    script = yaml.safe_load(gitlab)["chesboard"]["script"]
    assert commands(shell) == commands("\n".join(script)) == ours
    assert {line.split()[0] for line in ours} == {"audit", "flag", "report", "gate"}
    assert subprocess.run(["bash", "-n"], input=shell, text=True).returncode == 0
    steps = yaml.safe_load(github)["jobs"]["pairs"]["steps"]
    (used,) = [step for step in steps if step.get("id") == "chesboard"]
    assert set(used["with"]) <= set(ACTION["inputs"])
    told = dict(re.findall(r"^\| (`[^|]+`) \| ([^|]+) \|$", page, flags=re.M))
    assert {name for cell in told for name in re.findall(r"`([\w-]+)`", cell)} == set(ACTION["inputs"])
