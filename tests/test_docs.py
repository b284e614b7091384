"""What README, CONTRIBUTING and docs/ tell people to type: commands, options and targets that there are, and links to
files that there are."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer

import chesboard
from diagnostics.flag.flagging import CHOICES
from trainers import objectives
from trainers.config import OWN, arguments, make_config, parse_flags

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUESTIONS = sorted((ROOT / "docs" / "questions").glob("*.md"))
APP = typer.main.get_command(chesboard.app)
TARGETS = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.M))
named = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)


def typed(path: Path) -> list[str]:
    """Every line of a block and every inline code that starts a command; those that were broken, joined."""
    text = path.read_text(encoding="utf-8").replace("\\\n", " ")
    fenced = re.findall(r"^```\w*\n(.*?)^```", text, flags=re.M | re.S)
    plain = re.sub(r"^```\w*\n.*?^```", "", text, flags=re.M | re.S)
    blocks = [line for block in fenced for line in block.splitlines()]
    blocks += re.findall(r"^ {4,}(\S.*)", plain, flags=re.M)
    inline = [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", plain)]
    return [line for line in blocks + inline if re.match(r"(chesboard|torchrun|accelerate launch|make) ", line)]


def words(line: str) -> list[str]:
    """What follows `chesboard`, without a comment."""
    parts = shlex.split(line.partition(" # ")[0])
    start = next((i for i, part in enumerate(parts) if part in ("chesboard", "chesboard.py")), len(parts))
    return parts[start + 1 :]


def command_of(parts: list[str]) -> tuple[Any, list[str]]:
    """The command that is meant and what follows it; None for a placeholder (COMMAND, ...)."""
    rest = list(parts)
    command: Any = APP
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        name = rest.pop(0)
        if name.isupper() or name == "...":
            return None, []
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    return command, rest


def options_of(command: Any) -> set[str]:
    known = {option for param in command.params for option in (*param.opts, *param.secondary_opts)} | {"--help"}
    if command.name == "train":
        hyper = {key for name in objectives.names() for key in objectives.hyperparameters(name)}
        known |= {f"--{key}" for key in (*OWN, *arguments(), *hyper)}
    return known


@named
def test_every_command_that_is_shown_is_there_with_its_options(path):
    for line in typed(path):
        if line.startswith("make "):
            target = line.split()[1]
            assert target in TARGETS, f"{line}: the Makefile has no target {target}"
            continue
        command, rest = command_of(words(line))
        given = [word.partition("=")[0] for word in rest if re.match(r"--?[a-z]", word)]
        unknown = set(given) - options_of(command) if command else set()
        assert not unknown, f"{line}: {command.name} has no {', '.join(sorted(unknown))}"


def test_options_that_are_not_there_are_seen(tmp_path):
    """The check bites: in a block, in a line that was broken, and inline."""
    page = tmp_path / "page.md"
    for text in ("    chesboard flag x --model m \\\n        --no-such 1\n", "so `chesboard report runs/x --no-such`."):
        page.write_text(text)
        with pytest.raises(AssertionError, match="no-such"):
            test_every_command_that_is_shown_is_there_with_its_options(page)
    page.write_text("```\nchesboard flagg x\n```\n")
    with pytest.raises(AssertionError, match="flagg"):
        test_every_command_that_is_shown_is_there_with_its_options(page)


@pytest.mark.parametrize("path", QUESTIONS, ids=lambda path: path.stem)
def test_the_commands_of_a_question_can_be_given_as_they_stand(path):
    """With their values: keys of a run, objectives and measures that there are."""
    lines = [line for line in typed(path) if len(words(line)) > 1]  # `chesboard train` alone is its name
    assert lines, "a question shows how to see it"
    for line in lines:
        command, rest = command_of(words(line))
        context = command.make_context(command.name, list(rest))
        if command.name == "train":
            make_config(parse_flags(context.args))
        if command.name in ("flag", "ablate"):
            assert context.params["by"] in CHOICES
    for name in re.findall(r"--objective (\w+)", path.read_text()):
        objectives.load(name)


@named
def test_every_link_to_a_file_leads_somewhere(path):
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", path.read_text(encoding="utf-8"))
    lost = [link for link in links if not link.startswith("http") and not (path.parent / link).exists()]
    assert not lost
