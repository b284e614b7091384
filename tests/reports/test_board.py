"""The board's tables, judgement and page, on made-up runs whose numbers are known.

In a made-up run chosen answer i of 12 ends fall * (1 + i/4) nats away from its reference, rejected 1.5 times that
minus 2; so over i = 0 .. 11 the mean chosen log-ratio is fall * 2.375.
"""

import json
import math
import re
from html import unescape
from statistics import mean

import numpy as np
import pandas as pd
import pytest

from analysis.compare import board
from analysis.compare import figures as board_figures
from analysis.compare import page as board_page
from analysis.compare import verdict as board_verdict
from analysis.tables.intervals import half_width
from diagnostics.errors import DataError
from diagnostics.runlog import read_json, write_json
from reports import build

SECTIONS = (
    *("verdict", "setting", "displacement", "trajectories", "deviation", "accuracy", "frontier", "comparisons"),
    *("lengths", "incentives"),
)
THREE = {("dpo", 1e-4, s): -2.0 - s / 10 for s in range(3)} | {("rrpo:alpha=0.1", 1e-4, s): 0.5 for s in range(3)}


@pytest.fixture
def made(make_board):
    """DPO displaced, RRPO not, three seeds each."""
    return board_page.load([str(p) for p in make_board(THREE)])


def text(html: str) -> str:
    return unescape(re.sub("<[^>]+>", " ", re.sub(r'src="[^"]+"', "", html)))


def test_half_width_is_student_t():
    # SD of 1, 2, 3 is 1 and t(0.975, 2) = 4.302652729911275, so half the interval is 4.3026... / sqrt(3)
    assert half_width([1, 2, 3]) == pytest.approx(4.302652729911275 / math.sqrt(3), rel=1e-9)
    assert math.isnan(half_width([1.0, math.nan]))


def test_a_run_is_measured_from_its_log(made):
    row = made.runs.iloc[0]
    assert (row["label"], row["rate"], row["seed"], row["probe_n"]) == ("dpo", 1e-4, 0, 12)
    chosen = [-2 * (1 + i / 4) for i in range(12)]
    rejected = [1.5 * c - 2 for c in chosen]
    assert row["probe_chosen"] == pytest.approx(mean(chosen))
    assert row["probe_rejected"] == pytest.approx(mean(rejected))
    assert row["probe_drift"] == pytest.approx((mean(chosen) + mean(rejected)) / 2)
    assert row["probe_margin"] == pytest.approx(mean(chosen) - mean(rejected))
    assert (row["probe_fell"], row["eval_implicit"]) == (1.0, 1.0)
    assert row["start_eval_implicit"] == 0.0  # a tie is not a win
    # chosen -20 - i - 2 (1 + i/4) against rejected -22 - i - 3 (1 + i/4) - 2: always likelier
    assert row["eval_ranking"] == 1.0
    assert row["eval_kl"] == 20 / 8
    assert row["eval_kl_token"] == pytest.approx(mean(2.5 / (8 + i % 3) for i in range(12)))
    assert row["eval_kl_reverse"] == pytest.approx(20 / 9)
    assert row["eval_preferred_length"] == pytest.approx(mean(8 + i % 3 for i in range(12)))
    assert math.isnan(row["chosen_incentive"])
    assert (row["seconds"], row["cpu_seconds"]) == (2.0, 1.5)


def test_top_token_and_sampled_accuracy_come_from_the_first_difference(make_run):
    run = board_page.runs.load(make_run(config=dict(board_label="dpo")))
    mass = pd.DataFrame(
        dict(step=20, split="eval", pair_id=p, kind=k, token_id=t, prob=v)
        for p, k, t, v in [
            ("p0", "chosen", 3, 0.5), ("p0", "argmax", 3, 0.5), ("p1", "chosen", 3, 0.1), ("p1", "argmax", 9, 0.8),
            ("p0", "chosen_eos", 1, 0.9),
        ]
    )  # fmt: skip
    object.__setattr__(run, "mass", mass)
    row = board.run_row(run, {})
    assert (row["eval_top"], row["eval_sampled"], row["eval_eos"]) == (0.5, pytest.approx(0.3), 0.9)
    assert math.isnan(row["probe_top"])
    assert math.isnan(row["seconds"])


def test_summary_keeps_the_order_and_counts_seeds(made):
    table = board.summary(made, ["probe_chosen", "chosen_incentive"])
    assert list(table["label"]) == ["dpo", "rrpo:alpha=0.1"]
    values = [(-2.0 - s / 10) * 2.375 for s in range(3)]
    assert table["probe_chosen"][0] == pytest.approx(mean(values))
    assert table["probe_chosen_half"][0] == pytest.approx(half_width(values))
    assert (table["probe_chosen_seeds"][0], table["chosen_incentive_seeds"][0]) == (3, 0)


def test_verdict_names_who_displaced(made):
    assert board_verdict.headline(made) == (
        "Of 2 objectives, over 3 seeds: 1 displaced (dpo); 1 did not displace (rrpo:alpha=0.1)"
    )
    assert board_verdict.ratio_sentences(made) == [
        "Held-out KL of DPO over that of RRPO with alpha 0.1: 1.00 (geometric mean of 3 seeds, 1.00 to 1.00)."
    ]
    states = {f.name: f.passed for f in board_verdict.findings(made)}
    assert (states["displaced/dpo"], states["displaced/rrpo:alpha=0.1"]) == (False, True)


def test_an_interval_that_holds_one_half_is_unclear():
    cases = [(0.7, (0.4, 1.0)), (0.9, (0.6, 1.0)), (0.1, (0.0, 0.4)), (math.nan, (math.nan, math.nan))]
    judged = [board_verdict.Judged(("dpo", 1.0), share, interval, 3).state for share, interval in cases]
    assert judged == ["unclear", "displaced", "did not displace", None]


def test_a_share_over_seeds_never_leaves_0_and_100(made):
    """Two seeds at 0 and 1: the t interval is 50 % -+ 635."""
    rows = made.runs["label"] == "dpo"
    made.runs.loc[rows, "probe_fell"] = [0.0, 1.0, math.nan]
    html = board_page.displacement(made).html
    assert "50 % (0 % to 100 %)" in html
    assert "± 635" not in html
    assert board_verdict.judge(made)[0].words == "50 %, 0 % to 100 %"


def test_ratios_are_taken_seed_by_seed(made):
    made.runs["eval_kl"] = [2.0, 6.0, 8.0, 1.0, 2.0, 4.0]
    found = board.ratios(made, "eval_kl", ("dpo", 1e-4), ("rrpo:alpha=0.1", 1e-4))
    assert found.tolist() == [2.0, 3.0, 2.0]
    assert board_verdict.ratio_sentences(made)[0].endswith("2.29 (geometric mean of 3 seeds, 2.00 to 3.00).")


def test_frontier_holds_what_no_other_beats_in_both():
    table = pd.DataFrame(dict(kl=[1.0, 2.0, 2.0, 3.0, math.nan], accuracy=[0.5, 0.9, 0.8, 0.9, 1.0]))
    assert board.frontier(table, "kl", "accuracy").tolist() == [True, True, False, False, False]


def test_labels_beside_the_frontier_do_not_cover_each_other():
    places = board_figures.spaced(np.array([0.1, 0.5, 0.5, 0.51, 0.98, 0.99]), 0.1)
    assert (np.diff(places) > 0.0999).all()
    assert places[0] == pytest.approx(0.1)
    assert 0 <= places.min() <= places.max() <= 1
    assert len(board_figures.spaced(np.linspace(0, 1, 40), 0.1)) == 40


def test_other_data_within_a_seed_is_told(make_board):
    folders = make_board({("dpo", 1e-4, 0): -1.0, ("simpo", 1e-4, 0): -1.0, ("dpo", 1e-4, 1): -1.0})
    for folder, digest in zip(folders, "aab"):
        write_json(folder / "manifest.json", dict(hashes=dict(data=digest, model="m")))
    assert board.mixed(board_page.load([str(f) for f in folders])) == []
    write_json(folders[1] / "manifest.json", dict(hashes=dict(data="other", model="m")))
    changed = board_page.load([str(f) for f in folders])
    assert board.mixed(changed) == ["data"]
    assert "the data was not the same in all runs" in text(board_page.verdict(changed).html)


def test_unfinished_runs_are_named_and_left_out(make_board):
    folders = make_board({("dpo", 1e-4, 0): -1.0, ("simpo", 1e-4, 0): -1.0, ("ipo_sum", 1e-4, 0): -1.0})
    write_json(folders[1] / "board.json", dict(error="the loss is <not> finite"))
    (folders[2] / "board.json").unlink()
    found = board_page.load([str(f) for f in folders])
    assert list(found.runs["label"]) == ["dpo"]
    html = board_page.verdict(found).html
    assert "Left out: r1 (the loss is &lt;not&gt; finite)" in html
    assert "Left out: r2 (stopped before its end)" in html
    (folders[0] / "board.json").unlink()
    with pytest.raises(DataError, match="none of these runs is finished"):
        board_page.load([str(f) for f in folders])


def test_every_section_holds_every_objective_and_the_numbers_of_the_logs(make_board):
    runs = {(label, rate, s): -2.0 for label in ("dpo", "simpo", "<b>$x$") for rate in (1e-4, 3e-4) for s in (0, 1)}
    found = board_page.load([str(p) for p in make_board(runs)])
    html = {name: getattr(board_page, name)(found).html for name in SECTIONS}
    assert "<b>" not in "".join(html.values())
    for name in ("verdict", "displacement", "deviation", "accuracy", "lengths", "setting"):
        assert all(label in text(html[name]) for label in ("dpo", "simpo", "<b>$x$")), name
    assert text(html["displacement"]).count("−4.75 ± 0.00") >= 6  # -2 * 2.375
    assert "2.50 ± 0.00" in text(html["deviation"])
    assert "before training" in text(html["accuracy"])
    assert "not measured" in text(html["incentives"])
    assert "2.5 ± 6.4" in text(html["setting"])  # 2 s and 3 s: t(0.975, 1) = 12.706, SD 0.7071, / sqrt(2)
    assert "LeanPO, dynamic label smoothing" not in text(html["comparisons"])
    assert "Not trained: leanpo, leanpo:dynamic=false." in text(html["comparisons"])


def test_logs_without_kl_lengths_and_mass_say_so(make_board):
    found = board_page.load([str(p) for p in make_board({("dpo", 1e-4, 0): -2.0}, full=False)])
    html = {name: text(getattr(board_page, name)(found).html) for name in SECTIONS}
    assert "KL: not measured" in html["deviation"]
    assert "frontier: not measured" in html["frontier"]
    assert "not measured" in html["lengths"]


def test_the_report_has_one_page_for_the_board(make_board):
    folders = make_board({("dpo", 1e-4, 0): -2.0, ("simpo", 1e-4, 0): 0.5})
    pages = build.pages_of(build.plan(*build.read(folders)))
    assert [(p.notebook, p.stem) for p in pages] == [("objective_board", "board")]
    assert [p.notebook for p in build.pages_of(build.plan(*build.read(folders[:1])))] == ["run_report"]
    index = build.build_report(folders, out=folders[0].parent / "report")
    page = text((index.parent / "board.html").read_text())
    for folder in folders:
        assert read_json(folder / "config.json")["board_label"] in page
    assert "−4.75" in page
    content = json.loads((index.parent / "report.json").read_text(), parse_constant=pytest.fail)
    assert [e["name"] for e in content["entries"]] == ["The board"]
    assert content["verdict"].startswith("Of 2 objectives, over 1 seed: 1 displaced (dpo)")


def test_a_board_of_denoisers_shows_their_errors(make_board):
    folders = make_board({("diffusion_dpo", 1e-4, 0): -2.0, ("flow_dpo", 1e-4, 0): 0.5})
    for folder in folders:
        write_json(folder / "config.json", read_json(folder / "config.json") | {"likelihood": "denoising"})
    made = board_page.load([str(p) for p in folders])
    row = made.runs.iloc[0]
    assert row["probe_chosen"] == pytest.approx(mean(2 * (1 + i / 4) for i in range(12)))  # its error rose
    assert (row["probe_fell"], row["eval_implicit"]) == (1.0, 1.0)
    assert row["probe_margin"] > 0  # the rejected error rose more
    html = "".join(getattr(board_page, name)(made).html for name in SECTIONS)
    said = text(html) + " ".join(f.meaning for f in board_verdict.findings(made))
    assert "chosen error, change" in said
    assert "deviation from the reference is 2.50 per held-out chosen sample" in said
    assert not re.search(r"\bnats?\b|\btokens?\b|KL\b|EOS", said)
