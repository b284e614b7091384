import json
import re
from base64 import b64decode
from dataclasses import replace
from html import unescape
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest

from analysis.demo import page as demo_page
from analysis.flag import page as flag_page
from analysis.run import page as run_page
from analysis.run import verdict
from analysis.show import page
from analysis.show.wording import number, visible
from analysis.tables import pair_table, runs
from diagnostics.runlog import write_frame

SECTIONS = (
    "summary",
    "trajectories",
    "where_mass_went",
    "known",
    "divergence",
    "quadrants",
    "numbers",
    "scorecard",
    "more_mass",
    "by_place",
    "gradients",
    "pulls",
    "settings",
    "data",
    "repeat",
)


class Tags(HTMLParser):
    """The tags a browser would see."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        assert not any(name.startswith("on") for name, _ in attrs)


def tags(html: str) -> set[str]:
    parser = Tags()
    parser.feed(html)
    return parser.tags


def sections(run) -> str:
    made = [getattr(run_page, name)(run) for name in SECTIONS]
    return "\n".join(block.html for block in [*made, run_page.pairs(run, 10)])


def test_hostile_text_shows_as_text(make_run, nasty):
    html = sections(run_page.load(make_run()))
    assert not tags(html) & {"script", "pre", "small", "b"}
    assert unescape(re.sub("<[^>]+>", "", html)).count(nasty) >= 10  # every worst pair shows its prompt
    assert unescape(html).count("<b>can't</b>") >= 20  # and both sides of each, token by token


def test_verdict_of_a_displaced_run(make_run):
    run = run_page.load(make_run())
    words = verdict.headline(verdict.judge(run))
    assert words.startswith("displaced: 100 % of 12 probe pairs lost chosen likelihood (95 % interval 76 % to 100 %)")
    assert "mean −4.75 nats" in words  # -2 (1 + mean(i) / 4) with mean(i) = 5.5
    assert "KL(reference || policy) 2.50 nats per chosen response" in words
    assert "onset at step 5" in words
    assert "$6 & more' (+0.40), ' Yes⏎' (+0.10) per pair, and the chosen one moved by −0.40" in words
    assert "EOS at the end of the chosen responses went from 0.90 to 0.50" in words


def test_verdict_of_a_healthy_run(make_run):
    found = verdict.judge(run_page.load(make_run(fall=0.5)))
    assert found[0].passed is True
    assert found[0].meaning.startswith("not displaced: 0 % of 12 probe pairs lost chosen likelihood")
    assert "onset" not in found[0].meaning
    assert "mass went" not in found[0].meaning


def test_verdict_findings_carry_value_n_and_interval(make_run):
    share = verdict.by_name(verdict.judge(run_page.load(make_run())), "displacement/frac")
    assert (share.value, share.n) == (1.0, 12)
    assert share.interval == pytest.approx((0.757, 1.0), abs=1e-3)


def test_a_bare_log_says_not_measured_and_nothing_breaks(make_run):
    run = run_page.load(make_run(full=False))
    html = sections(run)
    assert "KL: not measured" in html
    assert "Where the mass went: not measured" in html
    assert "Loss by place around the first difference: not measured" in html
    assert "Predictors: not measured" in html
    assert verdict.by_name(verdict.judge(run), "kl/chosen").n == 0
    assert "nan" not in re.sub("<[^>]+>", " ", html).lower().split()


def test_a_log_without_probes_says_so(tmp_path, make_run):
    run = run_page.load(make_run())
    rows = run.pairs[run.pairs["split"] == "train"]
    empty = type(run)(run.path, run.config, {}, run.steps, rows, rows.head(0), rows.head(0), rows.head(0))
    found = verdict.judge(empty)
    assert found[0].passed is None
    assert "no probe pairs" in found[0].meaning
    assert "probe_every" in found[0].meaning
    assert all(getattr(run_page, name)(empty).html == "" for name in ("trajectories", "quadrants", "by_place"))


def test_a_run_that_stopped_early_says_so_once_and_how_to_go_on(make_run):
    """Only step 0 was probed: a page of `not measured` would say nothing more than the verdict."""
    run = run_page.load(make_run())
    start = {name: getattr(run, name).query("step == 0") for name in ("pairs", "mass")}
    early = replace(run, **start, steps=run.steps[run.steps["step"] <= 5])
    first = verdict.judge(early)[0]
    assert first.passed is None
    assert first.meaning == (
        "not measured: the log ends at step 5, before the first measurement after the start, so no pair can be "
        "judged. To go on, give the same command again with --resume auto"
    )
    assert {f.n for f in verdict.judge(early) if f.name != "parity"} == {0}
    kept = ("summary", "numbers", "gradients", "settings", "data", "repeat")
    assert all(getattr(run_page, name)(early).html == "" for name in SECTIONS if name not in kept)
    card = run_page.summary(early).html
    assert "NOT MEASURED" in card
    assert "The log ends at step 5" in card


def test_the_page_says_who_fell_and_who_rose_and_whether_it_harms(make_run):
    """Every type moves by its rate times 1 + mean(i) / 20 = 1.275; H_k rises by .5, M_k stays; see conftest."""
    run = run_page.load(make_run())
    html = unescape(run_page.more_mass(run).html)
    assert "Squeezing: everything fell but what the model would have said anyway. Fell: chosen −1.53" in html
    assert "rose: the model's own answer at the start +0.51 (nats per token, 12 pairs)." in html
    assert "Benign so far" in html
    assert "top-k entropy +0.50 (+0.50 to +0.50) nats, top-k mass 0.00 (no interval) (12 pairs)" in html
    cost = unescape(run_page.divergence(run).html)
    assert "Preference accuracy on 12 held-out pairs" in cost
    assert "Monotone fall: of 12 probe pairs whose chosen response had fallen by step 5, 100 %" in unescape(
        run_page.quadrants(run).html
    )


def test_a_model_of_another_step_that_was_given_back_is_said(make_run):
    run = run_page.load(make_run())
    ends = {"finished": {"step": 20}, "returned": {"step": 10}}
    words = "The training gave back the model of step 10; this page is about the last step, 20."
    assert words in run_page.summary(replace(run, manifest=run.manifest | ends)).html
    assert "gave back" not in run_page.summary(run).html


def test_alarms_stand_under_the_verdict_and_are_escaped(make_run):
    path = make_run()
    with open(path / "steps.jsonl", "a") as file:
        file.write('{"step": 21, "alarm": "loss > 0 <script>"}\n')
    html = run_page.summary(run_page.load(path)).html
    assert '<p class="alarm">Alarm: loss &gt; 0 &lt;script&gt;' in html


def test_one_probe_pair_is_enough(make_run):
    run = run_page.load(make_run(n=1))
    assert verdict.headline(verdict.judge(run)).startswith(
        "displaced: 1 of 1 probe pair lost chosen likelihood, mean −2.00"
    )
    assert "1 of 1" in sections(run)


def test_tokens_show_what_they_lost(make_run):
    """Token t of every response changes by -20 (t - 1) / 20 nats: the first gains one, the third loses one."""
    html = run_page.pairs(run_page.load(make_run()), 1).html
    full = pair_table.scale(run_page.load(make_run()), ["p11"])
    assert full > 1
    rose = f'<span class="rose" style="--s:{0.65 / full:.2f}" title="−1.00 to 0.00 nats (+1.00)">'
    assert html.count(rose) == 2
    assert f'<span class="fell" style="--s:{0.65 / full:.2f}" title=' in html
    assert f"full colour from {number(full)} nats on" in html


def test_worst_pairs_are_cut_to_the_number_asked_for(make_run):
    run = run_page.load(make_run())
    assert run_page.pairs(run, 3).html.count('class="pair"') == 3


def test_frames_stand_beside_their_pair_and_not_without_text(make_run):
    run = run_page.load(make_run())
    rows = [("p11", "8 of 16 frames of the clip", b"one"), ("p11", "the <image>", b"two"), ("p0", "the image", b"zero")]
    write_frame(run.path / "frames.parquet", pd.DataFrame(rows, columns=["pair_id", "words", "picture"]))
    html = run_page.pairs(run, 1).html
    card, table = html.split('<tr id="pair-p11">')
    assert pictures(card) == pictures(table.split("</tr>")[0]) == [row[1:] for row in rows[:2]]
    assert pictures(table.split('<tr id="pair-p0">')[1].split("</tr>")[0]) == [rows[2][1:]]
    assert "the &lt;image&gt;</figcaption>" in html
    assert 'class="frames"' not in run_page.pairs(run, 1, text=False).html


def test_frames_of_the_flagged_pairs_and_of_both_ends(make_flags):
    found = flag_page.load(make_flags())
    rows = [(f"p{i}", "the <image>", f"{i}".encode()) for i in range(40)]
    write_frame(found.path / "frames.parquet", pd.DataFrame(rows, columns=["pair_id", "words", "picture"]))
    html = flag_page.flagged(found).html
    assert pictures(html.split('<tr id="pair-p2">')[1].split("</tr>")[0]) == [rows[2][1:]]
    assert len(pictures(html)) == 4
    assert "too heavy" not in html
    ends = flag_page.extremes(found, 2).html.split('class="pair"')[1:]
    for card in ends:
        assert pictures(card) == [("the <image>", re.findall(r"pair p(\d+)", card)[0].encode())]
    assert len(ends) == 4
    for section in (flag_page.flagged(found, False), flag_page.extremes(found, 2, False)):
        assert 'class="frames"' not in section.html


def test_a_page_takes_frames_until_they_are_too_heavy(tmp_path, monkeypatch, make_run):
    rows = [("a", "w", b"1234"), ("a", "w", b"12"), ("b", "w", b"123"), ("c", "w", b"1"), ("d", "w", b"12345")]
    write_frame(tmp_path / "frames.parquet", pd.DataFrame(rows, columns=["pair_id", "words", "picture"]))
    found = runs.pictures(tmp_path, ["c", "a", "c", "none", "b", "d"], 10)
    assert (found.found, found.left) == (
        {"c": [("w", b"1")], "a": [("w", b"1234"), ("w", b"12")], "b": [("w", b"123")]},
        1,
    )
    assert runs.pictures(tmp_path / "none", ["a"], 10) == runs.Pictures()
    run = run_page.load(make_run())
    heavy = [(f"p{i}", "the image", bytes(1_000_000)) for i in range(12)]
    write_frame(run.path / "frames.parquet", pd.DataFrame(heavy, columns=["pair_id", "words", "picture"]))
    html = run_page.pairs(run, 1).html
    assert "Frames of 9 more pairs would make this page too heavy: see frames.parquet." in html
    assert (
        len(pictures(html)) == 1 + 2 * 3
    )  # a card, and the tables of probed and of held-out pairs, which are the same


def pictures(html: str) -> list[tuple[str, bytes]]:
    """Frames on a page: their words and PNG."""
    found = re.findall('<img class="frames" alt="([^"]*)" src="data:image/png;base64,([^"]*)"', html)
    return [(unescape(words), b64decode(data)) for words, data in found]


def test_every_pair_stands_in_the_table_and_has_a_place_to_link_to(make_run):
    html = run_page.pairs(run_page.load(make_run()), 3).html
    anchors = re.findall(r'<tr id="pair-([^"]+)">', html)
    assert len(anchors) == len(set(anchors)) == 12
    assert all(f'href="#pair-{anchor}"' in html for anchor in anchors)


def test_held_out_pairs_stand_first_where_only_they_fell_with_their_text(make_run):
    run = run_page.load(make_run())
    rows = run.pairs.copy()
    rows.loc[rows["split"] == "probe", "chosen_logps"] += 4 * rows["step"]
    held = rows.loc[rows["split"] == "probe"].assign(split="eval", pair_id="heldout/" + rows["pair_id"])
    held["chosen_logps"] -= 8 * held["step"]
    write_frame(
        run.path / "audit_heldout.parquet", run.audit.assign(pair_id="heldout/" + run.audit["pair_id"].astype(str))
    )
    html = run_page.pairs(replace(run, pairs=pd.concat([rows.loc[rows["split"] == "probe"], held])), 3).html
    assert re.findall(r"<p class=.head.>Pair ([^ :]+)", html) == ["heldout/p11", "heldout/p10", "heldout/p9"]
    assert "not in the audit table" not in html
    assert html.index("All 12 held-out pairs") < html.index("All 12 probe pairs")


def test_without_text_no_text_of_the_data_is_on_the_page(make_run, nasty):
    html = unescape(run_page.pairs(run_page.load(make_run()), 3, text=False).html)
    assert nasty not in html
    assert "can't" not in html
    assert html.count('<tr id="pair-') == 12


def test_flag_page_counts_every_row(make_flags, nasty):
    flags = flag_page.load(make_flags())
    words = flag_page.headline(flags)
    assert words.startswith("4 pairs of 39 flagged (top 10 % by ln_ches_score); 1 row skipped")
    html = "\n".join(
        f(flags).html
        for f in (flag_page.summary, flag_page.distributions, flag_page.agreement, flag_page.length_confounds)
    )
    html += flag_page.extremes(flags, 3).html
    assert not tags(html) & {"script", "pre"}
    assert nasty in unescape(html)
    assert "token_merge" in html
    assert html.count('class="pair"') == 6


def test_flag_page_says_what_the_forecast_is_and_where_it_fails(make_flags):
    """25 of 39 chosen answers forecast to fall; ranked by the rate, so the lowest stands first among the extremes."""
    from analysis.flag import tables

    found = flag_page.load(make_flags())
    assert tables.forecast_words(found.scores) == []
    rate = np.arange(40.0) - 24.5
    order = np.random.default_rng(0).permutation(40)
    scores = found.scores.assign(set_rate=rate[order], self_rate=np.nan, rank=1.0 + order)
    scores.loc[39, ["set_rate", "rank"]] = np.nan
    found = replace(found, scores=scores)
    scored = tables.table(found)
    table = tables.forecast(scored).set_index("measure")
    falls = int((scored["set_rate"] < 0).sum())
    assert table.loc["set_rate", "falls"] == pytest.approx(falls / 39)
    assert table.loc["set_rate", "low"] < falls / 39 < table.loc["set_rate", "high"]
    assert np.isnan(table.loc["self_rate", "falls"])  # no data is no share
    html = flag_page.summary(found).html
    assert f"{100 * falls / 39:.0f} % of 39 pairs" in html
    assert "a guess, which the first probe in training turns into a measurement" in html
    assert ".68 where 84 % fell" in html
    assert tables.ordering(scored) == "set_rate"
    first = flag_page.extremes(found, 1).html
    assert first.index("set_rate −24.50") < first.index("Least displacement-prone")
    few = scored.assign(set_rate=scored["set_rate"] + 20)
    assert "more than half" not in tables.forecast_words(few)[0]


def test_flag_page_shows_the_length_confound(make_flags):
    """In the made-up scores CHES is the length difference plus noise."""
    from analysis.flag import tables

    table = tables.length_confounds(tables.table(flag_page.load(make_flags()))).set_index("measure")
    assert table.loc["ches_score", "spearman"] > 0.95
    assert abs(table.loc["ln_ches_score", "spearman"]) < 0.5


def test_demo_page_shows_runs_side_by_side(make_run, make_flags):
    cases = {"dpo_all": -3.0, "keep_ln_ches": 0.5}
    dirs = [
        str(make_run(f"{case}{s}", fall=fall, config=dict(demo_world="refusal", demo_case=case, demo_seed=s)))
        for case, fall in cases.items()
        for s in (0, 1)
    ]
    demo = demo_page.load(dirs, [str(make_flags())])
    assert demo_page.headline(demo).endswith("over 2 seeds")
    html = demo_page.claims(demo).html + demo_page.refusal(demo).html + demo_page.pair_kinds(demo).html
    html += demo_page.every_run(demo).html + demo_page.persona(demo).html + demo_page.geometry(demo).html
    assert not tags(html) & {"script"}
    assert "The one-token world: not measured" in html
    assert "DPO, 20 % lowest LN-CHES" in html


def test_a_visible_token_keeps_its_spaces():
    assert visible(" Yes\n") == "' Yes⏎'"


@pytest.mark.parametrize("kind", ["run", "flags"])
def test_how_the_rows_were_read_stands_on_the_page(make_run, make_flags, kind):
    folder, page = (make_run(), run_page) if kind == "run" else (make_flags(), flag_page)
    shown = page.data if kind == "run" else page.summary
    assert "Read as" not in shown(page.load(folder)).html
    said = {"said": "Read as prompt: prompt from prompt; ignored: <img src=x>."}
    (folder / "manifest.json").write_text(json.dumps({"reading": said}))
    html = shown(page.load(folder)).html
    assert "Read as prompt: prompt from prompt; ignored: &lt;img src=x&gt;." in html
    for damaged in ([], {"reading": []}, {"reading": {"said": 3}}):
        assert runs.reading(damaged) == ""


def test_no_text_of_a_figure_leaves_its_edge(make_run, monkeypatch):
    """Legends and titles that are wider than their figure are cut off on the page."""
    drawn = {}

    def picture(figure, alt):
        figure.draw_without_rendering()
        drawn[alt] = (figure.get_tightbbox(), figure.get_size_inches())
        return page.EMPTY

    monkeypatch.setattr(page, "picture", picture)
    run = run_page.load(make_run())
    for name in ("trajectories", "where_mass_went", "known", "divergence", "quadrants", "scorecard", "more_mass"):
        getattr(run_page, name)(run)
    assert len(drawn) > 8
    cut = [a for a, (b, (w, h)) in drawn.items() if min(b.x0, b.y0, w - b.x1, h - b.y1) < -0.02]
    assert not cut
