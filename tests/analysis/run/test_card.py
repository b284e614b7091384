"""The card of a run: its word, and what it says to do next, each with its precondition."""

import dataclasses
import math
from html import unescape
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from matplotlib.text import Text

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
    assert words.startswith("All 12 chosen answers of held-out pairs became less likely")
    assert "Of probe pairs: none of 12 (95 %" in words
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
        "--output_dir runs/a-learning_rate"
    )
    assert lower.what == "Lower the learning rate from 0.0001 to 2e-05."
    assert lower.caveat.startswith("Weak evidence")
    sft = next(a for a in whats(FELL) if a.what.startswith("Add an SFT term"))
    assert "--objective dpo_nll" in sft.command


@pytest.mark.parametrize(
    ("what", "args", "settings"),
    [
        ("Nothing to do about displacement.", (ROSE,), {}),
        ("Start this run over, from step 0.", (FELL,), {"steps": (0,)}),
        ("Look at learning_rate (it was 0.0)", ([0.0] * 12,), {"rejected": 0.0, "rate": 0.0}),
        ("If that is not meant", (ROSE,), {"manifest": APART}),
        ("Go back to a checkpoint", (ROSE,), {"loss": math.inf}),
        ("Read held-out beside training pairs", (ROSE, FELL), {}),
        ("Read held-out beside training pairs", (ROSE, [1.0] * 12), {"rejected": 1.5}),
        ("Lower the learning rate from", (ROSE,), {"kl": 20.0}),
        ("Measure 64 probe pairs instead of 12.", ([-2.0] * 6 + [2.0] * 6,), {}),
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


def test_the_overview_speaks_of_errors_where_denoisers_were_trained() -> None:
    made = {"text": run(FELL), "denoiser": run([-0.25] * 20)}
    made["denoiser"].config["likelihood"] = "denoising"
    text, denoiser = (RunLog(Path(name), *(getattr(log, f) for f in FIELDS)) for name, log in made.items())
    html = overview.table([denoiser], {}).html
    assert "+0.250" in html
    assert "whose chosen sample got a higher denoising error" in html
    assert not [word for word in ("nats", "KL", "fell", "answer") if word in html]
    both = overview.table([text, denoiser], {}).html
    assert all(words in both for words in ("of denoisers of the error", "+0.250", "nats"))
    assert "of denoisers" not in overview.table([text], {}).html


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


def denoiser(probe: list[float], *, deviation: float = 0.01, rejected: float = 0.02, **config: Any) -> RunLog:
    """A log whose chosen errors of .1 changed by these at step 1, the rejected ones of .1 by `rejected`."""
    made = run([-moved for moved in probe], rejected=-rejected, kl=deviation)
    pairs = made.pairs.assign(
        chosen_length=1.0,
        chosen_logps=made.pairs["chosen_logps"] + 19.9,
        rejected_logps=made.pairs["rejected_logps"] + 8.9,
    )
    settings = made.config | {"likelihood": "denoising", "objective": "diffusion_dpo", "beta": 2000.0, "guard": "none"}
    settings |= config
    return dataclasses.replace(made, pairs=pairs, config=settings, manifest={"given": list(settings)})


@pytest.mark.parametrize(
    ("expected", "moved", "deviation"),
    [
        (card.BROKEN, 0.5, 0.3),  # sixfold
        (card.BROKEN, 0.101, 0.1),  # doubled
        (card.WATCH, 0.099, 0.1),
        (card.WATCH, 0.02, 0.03),  # plain Diffusion-DPO on digits
        (card.NORMAL, -0.003, 0.005),  # with a guard
        (card.WATCH, -0.003, 0.11),  # held, but far away
        (card.WATCH, 9e-5, 0.0),  # within the least movement
    ],
)
def test_a_denoiser_is_judged_by_its_own_errors(expected, moved, deviation):
    made = denoiser([moved] * 12, deviation=deviation, rejected=moved + 0.02 * (abs(moved) > 1e-4))
    assert card.state(made, verdict.judge(made)).word == expected


def test_what_is_said_of_a_denoiser_is_said_of_errors():
    made = denoiser([0.5] * 12, deviation=0.3, rejected=0.6)
    found = verdict.judge(made)
    says = card.state(made, found).says
    assert says == (
        "All 12 chosen samples of probe pairs got a higher denoising error (95 %: 76 to 100 %), +0.500 (+500 % of the "
        "start's 0.100) on average."
    )
    assert verdict.by_name(found, "displacement/chosen").value == pytest.approx(-0.5)  # report.json: a likelihood
    assert verdict.by_name(found, "displacement/chosen").meaning == "mean change +0.500 (+500 % of the start's 0.100)"
    assert verdict.by_name(found, "displacement/rejected").meaning.endswith("moved by 0.600 on average")
    tiles = page.tiles_of(made, found)
    assert [tile.value for tile in tiles] == ["100 %", "+0.500", "100 %", "0.300"]
    assert tiles[1].below[0] == "+500 % of the start's 0.100"
    assert "nats" not in " ".join(f.meaning for f in found)
    html = page.numbers(made).html + page.repeat(made).html + page.pulls(made).html + page.where_mass_went(made).html
    assert not [w for w in ("nats", "mass/gained", "kl_reverse", "CHES,", "token") if w in html.partition("How to")[0]]
    figures = [page.plots.plot_curves(made), page.plots.plot_outcomes(made), page.plots.plot_kl(made)]
    drawn = [t for figure in figures for t in _texts(figure)]
    assert "change of the denoising error" in drawn
    assert "Chosen moved by +0.500, rejected by +0.600 (mean of probe pairs; the line is their median)" in drawn
    assert not [t for t in drawn if "nats" in t or "KL" in t]
    axes = figures[1].axes[0]
    assert axes.get_xlim()[0] > axes.get_xlim()[1]  # errors fall to the right


def _texts(figure: Any) -> list[str]:
    return [t.get_text() for t in figure.findobj(Text) if t.get_text()]


def test_a_denoiser_is_told_what_was_measured_on_denoisers():
    def said(made: RunLog) -> list[advice.Advice]:
        found = verdict.judge(made)
        return advice.advise(made, card.state(made, found), found)

    broken = {a.what: a for a in said(denoiser([0.5] * 12))}
    assert "--guard sdpo" in broken["Add a guard (sdpo, or sft) that holds the chosen error."].command
    assert not any(what.startswith("Raise beta") for what in broken)  # 2000 is as far as was measured
    low = {a.what: a for a in said(denoiser([0.5] * 12, beta=200.0))}
    assert "--beta 2000.0" in low["Raise beta from 200 to 2000."].command
    assert broken["Lower the learning rate from 0.0001 to 2e-05."].caveat == "Not measured on denoisers."
    assert not any(a.what.startswith("Raise beta") for a in said(denoiser([0.02] * 12, beta=200.0)))
    guarded = [a.what for a in said(denoiser([0.02] * 12, guard="sdpo"))]
    assert guarded == ["Lower the learning rate from 0.0001 to 2e-05."]
    assert [a.what for a in said(denoiser([-0.003] * 12))] == ["Nothing to do about displacement."]


def test_a_lower_rate_is_no_advice_where_held_out_pairs_prefer_the_rejected_answer():
    """Swapped labels: a lower rate would learn the wrong way round too."""
    swapped = run(ROSE, FELL, rejected=-1.0)  # held out: chosen -2, rejected -1
    found = verdict.judge(swapped)
    said = [a.what for a in advice.advise(swapped, card.state(swapped, found), found)]
    assert [what[:27] for what in said] == ["Read held-out beside traini"]
    fallen = [a.what for a in whats(ROSE, FELL, rejected=-5.0)]
    assert any(what.startswith("Lower the learning rate from") for what in fallen)


def test_a_preference_that_is_not_carried_over_has_a_next_step():
    """Half of the held-out pairs prefer their chosen answer: more pairs or more training, beside `nothing to do`."""
    made = run(ROSE, [1.0, 2.0] * 6, rejected=1.5)
    made = dataclasses.replace(made, config=made.config | {"num_train_epochs": 1})
    found = verdict.judge(made)
    said = advice.advise(made, card.state(made, found), found)
    assert [a.what for a in said] == [
        "Nothing to do about displacement.",
        "For held-out pairs, train 2 epochs instead of 1 and hold out more than 12.",
    ]
    assert "--num_train_epochs 2" in said[1].command


def test_a_killed_run_says_what_going_on_does(tmp_path: Path):
    """Without a checkpoint --resume auto starts over; with one it goes on from the newest. 3 steps are a quarter of an
    epoch: 12 were planned."""
    made = run(FELL, steps=(0,))
    steps = pd.DataFrame(dict(step=[0, 3], epoch=[0.0, 0.25], learning_rate=1e-4, loss=0.6))
    made = dataclasses.replace(made, path=tmp_path, steps=steps, config=made.config | {"num_train_epochs": 1})
    found = verdict.judge(made)
    state = card.state(made, found)
    assert state.says.startswith("The log ends at step 3 of 12, before the first measurement")
    (first,) = advice.advise(made, state, found)
    assert (first.what, first.caveat) == (
        "Start this run over, from step 0.",
        "It has no checkpoint to go on from: the old log is set aside.",
    )
    (tmp_path / "checkpoints" / "checkpoint-2").mkdir(parents=True)
    (first,) = advice.advise(made, state, found)
    assert (first.what, first.caveat) == ("Go on with this run.", "It goes on from its checkpoint of step 2.")


def _mass(split: str, gain: float) -> list[dict[str, Any]]:
    """The mass rows of one pair at step 1: `oh` gained so much where the answers part."""
    of = dict(split=split, pair_id=f"{split}0", step=1, name="")
    return [
        of | dict(kind="chosen", token="a", token_id=1, prob=0.2, change=-gain, prob_start=0.2 + gain),
        of | dict(kind="gained", token="oh", token_id=2, prob=gain, change=gain, prob_start=0.0),
    ]


@pytest.mark.parametrize(
    ("args", "settings", "mass", "lost", "went"),
    [
        ((FELL,), {}, [*_mass("probe", 0.5)], "pair-probe0", "The model now says, where the two answers part, 'oh'"),
        ((ROSE, FELL), {}, [*_mass("probe", 0.5), *_mass("eval", 0.02)], "heldout-pair-eval0", "most 'oh', +0.02."),
        ((ROSE,), {}, [*_mass("probe", 0.02)], "No probe pair", "No token gained 0.1 in probability"),
        ((ROSE, FELL), {}, [*_mass("probe", 0.5)], "heldout-pair-eval0", "Not measured."),
        (([0.0] * 12,), {"rejected": 0.0, "rate": 0.0}, [], "None: nothing moved.", "Nowhere: nothing moved."),
        ((FELL,), {"steps": (0,)}, [], "Not measured.", "Not measured."),
    ],
)
def test_the_card_names_pairs_and_tokens_of_the_split_that_it_judges(args, settings, mass, lost, went):
    made = run(*args, **settings)
    made = dataclasses.replace(made, mass=pd.DataFrame(mass) if mass else NONE)
    html = page.summary(made).html
    pairs, mass_line = (html.partition(f"<dt>{name}</dt><dd>")[2].partition("</dd>")[0] for name in ("Pairs", "Mass"))
    assert lost in pairs
    assert went in unescape(mass_line)


def test_the_card_says_which_test_fired():
    """Ten of sixteen fell, by far: the share's interval holds one half, the mean's lies below the least movement."""
    made = run([-4.0] * 10 + [0.2] * 6)
    found = verdict.judge(made)
    assert card.fired(made, found).startswith("Displaced by the mean: its interval, −")
    assert card.fired(made, found).endswith("lies wholly below −0.01.")
    made = run(FELL)
    assert card.fired(made, verdict.judge(made)) == "Displaced by the share: its interval lies above one half."
    made = run(ROSE)
    assert card.fired(made, verdict.judge(made)) == ""
