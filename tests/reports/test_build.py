import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from zipfile import ZipFile

import pandas as pd
import pytest

from analysis import questions
from diagnostics.errors import DataError, UserError
from diagnostics.finding import Finding
from diagnostics.runlog import compact, read_table, write_frame
from reports import build


class Fetched(HTMLParser):
    """The tags of a page, and every address it would load by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.sources: list[str | None] = []

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.sources += [value for name, value in attrs if name in ("src", "srcset", "data", "poster")]


@pytest.fixture(scope="module")
def report(made_up):
    """One report on a run and a score folder, made once."""
    folder, run, flags = made_up
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GITHUB_STEP_SUMMARY", str(folder / "step.md"))
        index = build.build_report([run, flags])
    return index, folder


def test_everything_is_written(report):
    index, _ = report
    assert index.parent.name == "report"
    names = {p.name for p in index.parent.glob("*.html")}
    assert names == {"index.html", "run-my-run-1-b.html", "flag-flags.html"}
    links = set(re.findall(r'href="([^"#]+)"', index.read_text()))
    assert links <= {p.name for p in index.parent.iterdir()}


def test_pages_fetch_nothing_and_run_nothing(report):
    index, _ = report
    for page in index.parent.glob("*.html"):
        html = page.read_text()
        found = Fetched()
        found.feed(html)
        assert not found.tags & {"link", "iframe", "object", "embed", "base"}
        scripts = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
        hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
        assert html.count("<script") == len(scripts) <= 1  # ours alone, which the policy knows by its hash
        assert all(f"script-src 'sha256-{found}'" in html for found in hashes)
        assert all(source and source.startswith("data:image/webp;base64,") for source in found.sources)
        assert "url(" not in html.split("</style>")[0]
        assert "@import" not in html.split("</style>")[0]
        assert "default-src 'none'" in html


def test_the_numbers_can_be_downloaded(report, nasty):
    index, _ = report
    pairs = pd.read_csv(index.parent / "pairs.csv")
    assert len(pairs) == 12
    assert set(pairs["run"]) == {"my run $1$ <b>"}
    assert nasty not in (index.parent / "pairs.csv").read_text()  # numbers alone
    with ZipFile(index.parent / "report.zip") as packed:
        assert set(packed.namelist()) == {p.name for p in index.parent.iterdir()} - {"report.zip"}
        assert packed.read("index.html") == index.read_bytes()


def test_hostile_prompts_are_text_on_the_page(report, nasty):
    index, _ = report
    html = (index.parent / "run-my-run-1-b.html").read_text()
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&lt;/pre&gt; costs $5 and $6" in html
    assert nasty not in html


def test_the_page_holds_figures_and_no_code(report):
    html = (report[0].parent / "run-my-run-1-b.html").read_text()
    assert html.count("data:image/webp") >= 9
    assert "run_page.summary" not in html


def test_report_json_has_the_verdict_and_no_nan(report):
    content = json.loads((report[0].parent / "report.json").read_text(), parse_constant=pytest.fail)
    assert content["verdict"].startswith("displaced: 100 % of 12 probe pairs")
    share = next(f for f in content["entries"][0]["findings"] if f["name"] == "displacement/frac")
    assert share["value"] == 1.0
    assert share["n"] == 12


def test_summary_is_escaped_and_appended_for_ci(report):
    index, folder = report
    summary = (index.parent / "summary.md").read_text()
    assert summary == (folder / "step.md").read_text()
    assert "displaced: 100 % of 12 probe pairs" in summary
    assert "<script>" not in summary
    assert "\\$1\\$" in summary


@pytest.mark.parametrize(
    ("hostile", "shown"),
    [
        ("a\r\n# b", "a\\\\r \\# b"),
        ("see https://evil.example", "see https\\://evil.example"),
        ("WWW.evil.example", "WWW\\.evil.example"),
        ("[x](javascript:1)", "\\[x\\](javascript:1)"),
        ("<img src=x>", "&lt;img src=x&gt;"),
        ("\x1b[31m \u202e", "\\\\x1b\\[31m \\\\u202e"),
        ("@you #1 `c` *b* ~s~ |", "\\@you \\#1 \\`c\\` \\*b\\* \\~s\\~ \\|"),
    ],
)
def test_a_summary_holds_no_markup_of_others(make_run, hostile, shown):
    entry = questions.Headline(hostile, hostile, None, [Finding(hostile, 1.0, 1, None, None, None, hostile)])
    said = build._summary([entry])
    assert said.count(shown) == 4
    assert "\r" not in said
    assert "\x1b" not in said


def test_the_index_lists_scorecards(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_run_all", lambda pages, out, links, figures: None)
    run, other = make_run("a b"), make_run("c")
    for folder in (run / "report", other / "report"):
        folder.mkdir()
    (other / "report" / "scorecard.html").write_text("card")
    page = build.build_report([run, other]).read_text()
    assert '<a href="../../c/report/scorecard.html">Scorecard of c: which predictor to trust</a>' in page
    assert page.count("scorecard.html") == 1
    (run / "report" / "scorecard.html").write_text("card")
    page = build.build_report([run]).read_text()
    assert page.count("scorecard.html") == 1
    assert '<a href="scorecard.html">' in page


def test_a_summary_past_the_limit_is_left_out(tmp_path, monkeypatch):
    place = tmp_path / "step.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(place))
    build._append_step_summary("x" * build.STEP_SUMMARY_LIMIT)
    assert place.stat().st_size < 200


def test_notebooks_follow_what_the_folders_hold(make_run, make_flags, tmp_path):
    runs = [
        make_run(f"d{s}{case}", config=dict(demo_world="refusal", demo_case=case, demo_seed=s))
        for case in ("dpo_all", "keep_random")
        for s in (1, 0)
    ]
    plain, flags = make_run("plain"), make_flags()
    pages = build.pages_of(build.plan(*build.read([tmp_path])))
    assert [(p.notebook, p.stem) for p in pages] == [
        ("demo_report", "demo"),
        ("run_report", "run-d0dpo_all"),
        ("flag_report", "flag-flags"),
        ("run_report", "run-plain"),
    ]
    assert sorted(pages[0].parameters["run_dirs"]) == sorted(str(r) for r in runs)
    assert pages[0].parameters["flag_dirs"] == [str(flags)]
    assert [p.notebook for p in build.pages_of(build.plan(*build.read([plain])))] == ["run_report"]


def test_an_ablation_has_one_page_and_its_runs_none(make_run, tmp_path):
    for arm, by, drop in (("full", None, 0.0), ("flagged", "set_rate", 0.2), ("random", None, 0.2)):
        label = dict(ablate_arm=arm, ablate_by=by, ablate_drop=drop, ablate_equal_steps=False)
        (make_run(arm, config=label) / "board.json").write_text('{"steps": 20}')
    make_run("plain")
    asked = build.plan(*build.read([tmp_path]))
    assert [p.notebook for p in build.pages_of(asked)] == ["ablate_report", "run_report"]
    entries = build.entries_of(asked)
    assert [e.name for e in entries] == ["Filtering", "Run plain"]
    assert (
        "better in 0, worse in 0, and not told apart in 1 (chosen log-prob of held-out pairs, 1 seed)"
        in entries[0].says
    )


def test_folders_of_the_same_name_get_pages_of_their_own(make_run):
    pages = build.pages_of(build.plan(*build.read([make_run("a/run"), make_run("b/run")])))
    assert [p.stem for p in pages] == ["run-run", "run-run-2"]


def test_unreadable_folders_stop_before_any_kernel(make_run, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "_run_all", pytest.fail)
    with pytest.raises(DataError, match="no such folder"):
        build.build_report([tmp_path / "none"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="neither a run log"):
        build.build_report([tmp_path / "empty"])
    torn = make_run("torn")
    (torn / "audit.parquet").write_bytes(b"PAR1 broken")
    with pytest.raises(DataError, match=r"audit.parquet"):
        build.build_report([torn])


def test_a_log_without_a_needed_column_names_it(make_run):
    run = make_run("short", full=False)
    compact(run)
    table = read_table(run, "pairs").drop(columns="rejected_logps")
    for part in (run / "pairs").glob("part-*"):
        part.unlink()
    write_frame(run / "pairs" / "part-00000-r0.parquet", table)
    with pytest.raises(DataError, match="column rejected_logps is missing"):
        build.read([run])


@pytest.mark.parametrize(
    ("asked", "message"), [("flag_report", "hold 1 run and 0 score folders"), ("nope", "There are: ablate_report")]
)
def test_notebooks_that_do_not_fit_are_refused(make_run, asked, message):
    with pytest.raises(UserError, match=message):
        build.build_report([make_run()], notebooks=[asked])


def test_a_question_is_a_folder_with_a_question():
    orders = [question.ORDER for question in questions.every()]
    assert orders == sorted(set(orders))
    names = [question.__name__ for question in questions.every()]
    assert names == [f"analysis.{name}.question" for name in ("compare", "ablate", "demo", "run", "flag")]
    for question in questions.every():
        assert question.take([], []) == (None, [], [])


RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]}


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_no_page_breaks_the_rules_of_access(report, browser, scheme):
    """axe-core, WCAG 2.2 AA; and no page says anything on the console or is wider than a phone."""
    from axe_playwright_python.sync_playwright import Axe

    context = browser.new_context(color_scheme=scheme, bypass_csp=True, viewport={"width": 390, "height": 844})
    for path in sorted(report[0].parent.glob("*.html")):
        page, said = context.new_page(), []
        page.on("pageerror", lambda error, said=said: said.append(str(error)))
        page.on("console", lambda message, said=said: said.append(message.text) if message.type == "error" else None)
        page.goto(path.as_uri())
        assert page.evaluate("document.documentElement.scrollWidth") <= 390, path.name
        page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
        broken = Axe().run(page, options=RULES).response["violations"]
        assert not [(v["id"], v["nodes"][0]["html"][:120]) for v in broken], path.name
        assert said == [], path.name


def test_the_table_of_pairs_sorts_filters_and_links(report, browser):
    """In a browser that keeps our policy: only the script of that hash may run."""
    page = browser.new_page()
    page.goto((report[0].parent / "index.html").as_uri())
    page.locator("table.sortable a[href^=run-]").click()
    table = page.locator("table.sortable").first
    rows = table.locator("tbody tr")
    assert rows.count() == 12

    def column(k: int) -> list[float]:
        return [
            float(cell.get_attribute("data-v")) for cell in table.locator(f"tbody tr td:nth-child({k})[data-v]").all()
        ]

    assert column(3) == sorted(column(3))  # the pair that lost most first
    head = table.locator("th", has=page.get_by_role("button", name="rejected"))
    for order in ("ascending", "descending"):
        head.get_by_role("button").click()
        assert head.get_attribute("aria-sort") == order
        assert column(5) == sorted(column(5), reverse=order == "descending")
    page.get_by_role("searchbox").first.fill("p11")
    visible = [row for row in rows.all() if row.is_visible()]
    assert [row.get_attribute("id") for row in visible] == ["pair-p11"]
    page.get_by_role("searchbox").first.fill("")
    table.get_by_role("link", name="p11", exact=True).click()
    assert page.url.endswith("#pair-p11")
    assert page.locator("#pair-p11 details").get_attribute("open") is not None
    page.go_back()
    page.go_back()
    assert page.url.endswith("index.html")


def test_the_pairs_are_reached_sorted_filtered_and_followed_by_keyboard_alone(report, browser):
    page = browser.new_page()
    page.goto((report[0].parent / "run-my-run-1-b.html").as_uri())

    def tab_to(selector: str, most: int = 40) -> None:
        for _ in range(most):
            page.keyboard.press("Tab")
            if page.evaluate("of => document.activeElement.matches(of)", selector):
                return
        raise AssertionError(f"{selector} is not within {most} stops")

    def seen() -> list[str | None]:
        return [
            row.get_attribute("id")
            for row in page.locator("table.sortable").first.locator("tbody tr").all()
            if row.is_visible()
        ]

    tab_to("a[href='#pairs']", 3)  # past everything above the pairs
    page.keyboard.press("Enter")
    tab_to("select", 3)
    page.keyboard.type("both")
    tab_to("input[type=search]", 1)
    page.keyboard.type("p1")
    assert set(seen()) == {"pair-p1", "pair-p10", "pair-p11"}
    tab_to("th button")
    page.keyboard.press("Enter")
    assert seen() == ["pair-p1", "pair-p10", "pair-p11"]
    page.keyboard.press("Enter")
    assert seen() == ["pair-p11", "pair-p10", "pair-p1"]
    tab_to("tbody a")
    page.keyboard.press("Enter")
    assert page.url.endswith("#pair-p11")
    page.keyboard.press("Tab")  # goes on from the pair
    assert page.evaluate("document.activeElement.closest('tr').id") == "pair-p11"
    page.evaluate("history.back()")
    page.wait_for_url("**#pairs")
    assert seen() == ["pair-p11", "pair-p10", "pair-p1"]  # as it was left
    page.close()
