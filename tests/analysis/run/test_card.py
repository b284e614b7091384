"""The card of a run: its word, and what it says to do next, each with its precondition."""

import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.run import advice, card, overview, page, verdict
from diagnostics.runlog import RunLog

NONE = pd.DataFrame()
SETTINGS = {"model": "m", "data": "my pairs.jsonl", "output_dir": "runs/a", "objective": "dpo", "learning_rate": 1e-4}


def run(
    probe: list[float],
    heldout: list[float] | None = None,
    *,
    rejected: float = -5.0,
    kl: float = 0.5,
    loss: float = 0.6,
    manifest: dict[str, Any] | None = None,
    rate: float = 1e-4,
    steps: tuple[int, ...] = (0, 1),
) -> RunLog:
    """A log whose chosen answers changed by these nats at step 1, the rejected ones by `rejected`."""
    rows = [
        dict(
            step=step, split=split, pair_id=f"{split}{i}", chosen_logps=-20 + moved * step, chosen_length=10,
            rejected_logps=-9 + rejected * step, chosen_kl=kl * step, rejected_kl=kl * step,
        )
        for split, changes in (("probe", probe), ("eval", heldout or []))
        for i, moved in enumerate(changes)
        for step in steps
    ]  # fmt: skip
    log = pd.DataFrame(dict(step=[0, 1], learning_rate=[math.nan, rate], loss=[math.nan, loss]))
    config = SETTINGS | {"learning_rate": rate}
    return RunLog(
        Path("run"), config, {"given": list(config)} | (manifest or {}), log, pd.DataFrame(rows), NONE, NONE, NONE
    )


def word(*args: Any, **settings: Any) -> str:
    made = run(*args, **settings)
    return card.state(made, verdict.judge(made)).word


def said(*args: Any, **settings: Any) -> str:
    made = run(*args, **settings)
    return card.state(made, verdict.judge(made)).says


def whats(*args: Any, **settings: Any) -> list[advice.Advice]:
    made = run(*args, **settings)
    found = verdict.judge(made)
    return advice.advise(made, card.state(made, found), found)


FELL, ROSE = [-2.0] * 12, [2.0] * 12
APART = {"parity": {"noise": 1e-6, "noise_floor": 1e-5, "max_difference": 14.0, "n": 8, "passed": False}}


@pytest.mark.parametrize(
    ("expected", "args", "settings"),
    [
        (card.BROKEN, (FELL,), {}),
        (card.WATCH, ([-0.1] * 12,), {}),  # all fell, but the mean answer is 90 % as likely as it was
        (card.NORMAL, (ROSE,), {}),
        (card.BROKEN, (ROSE, FELL), {}),  # held-out answers alone
        (card.WATCH, ([-2.0] * 6 + [2.0] * 6,), {}),  # half of them: not clear
        (card.WATCH, (ROSE,), {"kl": 10.5}),
        (card.NORMAL, (ROSE,), {"kl": 9.5}),
        (card.WATCH, (ROSE,), {"rejected": 5.0}),  # the rejected answers gained more
        (card.BROKEN, ([0.0] * 12,), {"rejected": 0.0, "rate": 0.0}),  # nothing was trained
        (card.WATCH, ([1e-4] * 12,), {"rejected": 1e-4}),  # nothing moved measurably yet
        (card.BROKEN, ([1e-4] * 12,), {"rejected": 1e-4, "manifest": {"finished": {"step": 1}}}),
        (card.UNMEASURED, (FELL,), {"steps": (0,)}),
        (card.BROKEN, (ROSE,), {"loss": math.inf}),
        (card.WATCH, (ROSE,), {"manifest": APART}),  # another reference may be meant
        (card.BROKEN, (FELL,), {"manifest": APART}),
    ],
)
def test_the_word(expected: str, args: tuple[Any, ...], settings: dict[str, Any]) -> None:
    assert word(*args, **settings) == expected


def test_the_sentence_counts_answers_the_worse_pairs_first() -> None:
    assert said(FELL).startswith(
        "All 12 chosen answers of probe pairs became less likely (95 %: 76 to 100 %), −2.00 nats"
    )
    words = said(ROSE, FELL)
    assert words.index("All 12 chosen answers of held-out pairs") < words.index(
        "None of 12 chosen answers of probe pairs"
    )
    assert "3 of 4 chosen answers of probe pairs became less likely, " in said(
        [-1.0, -1.0, -1.0, 1.0]
    )  # too few to say
    assert "another" not in said(ROSE)
    assert "differ by at most 14.00 nats at step 0" in said(ROSE, manifest=APART)


def test_a_preference_that_is_not_carried_over_is_said() -> None:
    assert "accuracy 0 % of 12, 95 %: 0 % to 24 %" in said(ROSE, [1.0] * 12, rejected=1.5)
    assert "not clearly learned" not in said(ROSE, ROSE)


def test_two_models_difference_is_no_noise() -> None:
    """A reference that is another model than the start does not hide what fell since the start."""
    assert "All 12 chosen" in said(FELL, manifest=APART)


def test_advice_is_a_command_with_this_runs_settings() -> None:
    lower = next(a for a in whats(FELL) if a.what.startswith("Lower"))
    assert lower.command == (
        "chesboard train --model m --data 'my pairs.jsonl' --objective dpo --learning_rate 2e-05 "
        "--output_dir runs/a-next"
    )
    assert lower.caveat.startswith("Thin")
    sft = next(a for a in whats(FELL) if a.what.startswith("Add an SFT term"))
    assert "--objective dpo_nll" in sft.command


@pytest.mark.parametrize(
    ("what", "args", "settings"),
    [
        ("Nothing to do about displacement.", (ROSE,), {}),
        ("Go on with this run.", (FELL,), {"steps": (0,)}),
        ("Look at learning_rate (it was 0.0)", ([0.0] * 12,), {"rejected": 0.0, "rate": 0.0}),
        ("If that is not meant", (ROSE,), {"manifest": APART}),
        ("Go back to a checkpoint", (ROSE,), {"loss": math.inf}),
        ("Read some held-out pairs", (ROSE, FELL), {}),
        ("Lower the learning rate.", (ROSE,), {"kl": 20.0}),
        ("Measure more probe pairs than 12.", ([-2.0] * 6 + [2.0] * 6,), {}),
        ("Check that chosen and rejected", (ROSE,), {"rejected": 5.0}),
    ],
)
def test_each_rule_speaks_where_it_applies(what: str, args: tuple[Any, ...], settings: dict[str, Any]) -> None:
    found = [a.what for a in whats(*args, **settings)]
    assert any(words.startswith(what) for words in found), found
    if not what.startswith("Nothing"):
        assert not any(words.startswith("Nothing") for words in found)


def test_the_overview_puts_the_worst_run_first() -> None:
    names = {"fine": run(ROSE), "bad": run(FELL), "worse": run([-3.0] * 20)}
    logs = [RunLog(Path(name), *(getattr(log, f) for f in FIELDS)) for name, log in names.items()]
    html = overview.table(logs, {"bad": "run-bad.html"}).html
    assert max(html.index(">bad<"), html.index("worse")) < html.index("fine")
    assert 'href="run-bad.html"' in html
    assert overview.counts(logs) == "2 BROKEN, 1 NORMAL"


def test_runs_that_differ_in_their_seed_alone_are_one_line_with_the_worst_first() -> None:
    made = {"a": (run(ROSE), 0), "b": (run(FELL), 1), "c": (run(ROSE), 2), "other": (run(ROSE, rate=1e-3), 0)}
    logs = [
        RunLog(Path(name), log.config | {"seed": seed}, *(getattr(log, f) for f in FIELDS[1:]))
        for name, (log, seed) in made.items()
    ]
    html = overview.table(logs, {"a": "run-a.html"}).html
    assert html.count("<tr>") == 3  # the head, b with its two other seeds, and the other rate
    line = html[html.index(">b<") : html.index(">other<")]
    assert "and 2 of other seeds" in line
    assert 'href="run-a.html"' in line


FIELDS = ("config", "manifest", "steps", "pairs", "mass", "tokens", "audit")


def tiles(*args: Any, **settings: Any) -> list[page.Tile]:
    made = run(*args, **settings)
    return page.tiles_of(made, verdict.judge(made))


def test_the_large_numbers_are_of_the_pairs_that_the_word_is_about():
    """BROKEN beside a large 0 % reads as a mistake: where held-out pairs alone fell, theirs is the large one."""
    fell, change, accuracy, _ = tiles(ROSE, FELL)
    assert (fell.value, change.value) == ("100 %", "−2.00 nats")
    assert fell.below[0].startswith("held out: n 12, 95 %")
    assert fell.below[1] == "probe: 0 %, n 12"
    assert accuracy.below[1] == "probe: 100 %, n 12"
    fell, *_ = tiles(FELL, ROSE)
    assert (fell.value, fell.below[1]) == ("100 %", "held out: 0 %, n 12")
    assert tiles(FELL)[0].below[0].startswith("n 12, 95 %")


def test_a_run_that_moved_nothing_has_no_accuracy():
    still = {"rejected": 0.0, "manifest": {"finished": {"step": 1}}}
    assert [tile.value for tile in tiles([1e-4] * 12, **still)][2] == "not measured"
    assert tiles(ROSE)[2].value == "100 %"
