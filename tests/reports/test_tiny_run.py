"""The committed run, made by `chesboard train` on a tiny model: 8 steps of DPO on 36 pairs, 12 of them probed."""

from pathlib import Path

import pytest

from analysis.flag import page as flag_page
from analysis.run import page as run_page
from analysis.run import verdict
from analysis.tables import mass, runs, tokens
from reports import build, gate

DATA = Path(__file__).parent.parent / "data"
SECTIONS = (
    "summary",
    "trajectories",
    "quadrants",
    "scorecard",
    "divergence",
    "gradients",
    "where_mass_went",
    "more_mass",
    "known",
    "numbers",
    "data",
    "repeat",
    "by_place",
    "settings",
)


@pytest.fixture(scope="module")
def run():
    """The committed run log."""
    return runs.load(DATA / "tiny_run")


def test_the_verdict_agrees_with_what_the_trainer_logged(run):
    """Two ways to the same numbers: ours from the pair rows, the trainer's from its steps."""
    last, found = run.steps.iloc[-1], verdict.judge(run)
    for name, key in {
        "displacement/chosen": "probe/displacement/chosen",
        "displacement/frac": "probe/displacement/frac",
        "accuracy": "probe/rewards/accuracies",
        "kl/chosen": "probe/kl/chosen",
        "kl_reverse/rejected": "probe/kl_reverse/rejected",
    }.items():
        finding = verdict.by_name(found, name)
        assert finding.value == pytest.approx(last[key], abs=1e-6), name
        assert finding.n == last["probe/n"] == 12
    assert found[0].meaning.startswith("displaced: 100 % of 12 probe pairs")
    assert verdict.by_name(found, "parity").passed is True


def test_tracked_groups_agree_with_what_the_trainer_logged(run):
    first, last = mass.first_and_last(mass.tracked(run.mass), "unsafe: refusal")
    assert first == pytest.approx(run.steps["track/unsafe/refusal"].iloc[0], abs=1e-6)
    assert last == pytest.approx(run.steps["track/unsafe/refusal"].iloc[-1], abs=1e-6)


def test_the_ledger_adds_up_to_one(run):
    table = mass.ledger(run.mass)
    assert table[["chosen", "rejected", "other"]].sum(axis=1).to_list() == pytest.approx([1.0] * len(table), abs=1e-6)


def test_token_losses_add_up_to_the_pairs_loss(run):
    ends = runs.ends(runs.rows(run, "probe")).set_index("pair_id")
    for pair_id, row in ends.iterrows():
        for side in ("chosen", "rejected"):
            change = tokens.losses(run, pair_id, side)["change"].sum()
            assert change == pytest.approx(row[f"{side}_change"], abs=1e-4)


def test_every_section_measures_something(run):
    for name in SECTIONS:
        assert "not measured." not in getattr(run_page, name)(run).html, name
    assert run_page.pairs(run, 10).html.count('class="pair"') == 10


def test_the_example_gates_stop_this_run():
    findings = gate.judge(DATA / "tiny_run", Path(gate.__file__).parent / "templates" / "gates.yaml")
    assert [f.passed for f in findings] == [False, False, True, True, True]
    assert gate.failed(findings)


def test_the_flag_page_reads_the_committed_scores():
    flags = flag_page.load(DATA / "tiny_flags")
    assert flag_page.headline(flags).startswith("4 pairs of 40 flagged")
    for section in (flag_page.summary, flag_page.distributions, flag_page.agreement):
        assert "not measured." not in section(flags).html
    assert "differ by the same in every pair" in flag_page.length_confounds(flags).html


def test_the_committed_folders_hold_no_machine_path():
    for path in DATA.rglob("*.*"):
        assert not any(word in path.read_bytes() for word in (b"/home/", b"/tmp/")), path


def test_a_folder_of_folders_is_searched():
    logs, scores = build.read([DATA])
    assert [log.name for log in logs] == ["tiny_run"]
    assert [found.name for found in scores] == ["tiny_flags"]
