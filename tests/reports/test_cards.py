"""`chesboard list`: its tables, the card of a name, and the nearest name for a wrong one."""

import re
import sys

import pytest

import chesboard
from diagnostics import measures
from diagnostics.flag.flagging import FURTHER
from trainers import objectives


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `chesboard list ARGS` in a wide terminal; returns (exit code, what it printed, what it complained)."""
    monkeypatch.setenv("COLUMNS", "240")

    def run(*args: str):
        monkeypatch.setattr(sys, "argv", ["chesboard", "list", *args])
        with pytest.raises(SystemExit) as ended:
            chesboard.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


def names_in(printed: str) -> set[str]:
    """First cells of the printed tables."""
    return set(re.findall(r"^│ (\w+) +│", printed, flags=re.MULTILINE))


def test_list_holds_all_three_tables(call):
    code, printed, _ = call("--details")
    assert code == 0
    assert names_in(printed) >= {*objectives.names(), *measures.names(), "run_report", "demo_report"}


def test_each_table_alone(call):
    _, printed, _ = call("objectives", "--details")
    assert names_in(printed) == set(objectives.names())
    for text in ("needs", "reference", "2405.14734", "read in the authors' code"):
        assert text in printed
    assert names_in(call("measures", "--details")[1]) == {*measures.names(), *FURTHER}
    assert "run_report" in names_in(call("notebooks", "--details")[1])


def test_every_row_says_how_sure_its_formula_is(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "2000")  # a line a row
    rows = {line.split()[1]: line for line in call("objectives", "--details")[1].splitlines() if line.startswith("│")}
    for name in objectives.names():
        assert f"│ {objectives.module(name).PROVENANCE} " in rows[name]
        for need in (*objectives.needs(name), *objectives.columns(name)):
            assert need in rows[name]


def test_the_card_of_dpo(call):
    code, printed, _ = call("objectives", "dpo")
    assert code == 0
    for text in (
        "losses = -log sigmoid(beta * (u - v))",
        "reference: log-probs of a reference model",
        "--beta   default 0.1",
        "arXiv:2305.18290",
        "read in the authors' code",
        "0.3679",
        "fails the condition for resisting displacement",
        "no: where both answers lose 5 nats",
    ):
        assert text in printed
    rows = [re.findall(r"[-\w.+]+", line) for line in printed.splitlines() if line.startswith("│")]
    assert ["0", "0.6931", "0.05", "0.05", "1"] in rows
    assert ["2", "0.5981", "0.04502", "0.04502", "1"] in rows


@pytest.mark.parametrize("name", objectives.names())
def test_every_card_prints_in_a_narrow_terminal(call, monkeypatch, name):
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, complaint = call("objectives", name)
    assert (code, complaint) == (0, "")
    assert "by autograd" in printed
    assert "nan" not in re.findall(r"\w+", printed)


def test_the_card_of_a_measure_and_of_a_notebook(call):
    _, printed, _ = call("measures", "ches_score")
    assert "CHES = <S+, S-> - <S+, S+>" in printed
    assert "hidden" in printed
    assert "arXiv:2410.08847" in printed
    assert "run_report" in call("notebooks", "run_report")[1]


@pytest.mark.parametrize(
    ("args", "wanted"),
    [
        (("objectives", "ipo_meen"), "unknown objective 'ipo_meen': did you mean 'ipo_mean'"),
        (("objectives", "ipo"), "ipo_mean: Identity preference optimization on log-ratios per token. ipo_nll: IPO"),
        (("objectives", "ipo"), "ipo_sum: Identity preference optimization on summed log-ratios."),
        (("objectives", "simppo"), "did you mean 'simpo'"),
        (("measures", "ches_scor"), "did you mean 'ches_score'"),
        (("notebooks", "run"), "did you mean 'run_report'"),
        (("objektives",), "unknown list 'objektives': did you mean 'objectives'"),
        (("zzz", "dpo"), "none is similar"),
    ],
)
def test_an_unknown_name_is_answered_with_the_nearest(call, args, wanted):
    code, _, complaint = call(*args)
    assert code == 2
    assert wanted in complaint
    assert complaint.startswith("chesboard: ")
    assert len(complaint.splitlines()) == 1


def test_help_shows_examples(call):
    assert "chesboard list objectives dpo" in call("--help")[1]
