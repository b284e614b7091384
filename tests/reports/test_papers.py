"""The frame of the paper reruns: rooms that agree, sources for every claim, verdicts, resuming, bad input."""

import json
import re
from importlib import import_module

import nbformat
import pandas as pd
import pytest

from analysis import papers as judged
from analysis.tables.rules import KINDS, decide
from diagnostics.errors import DataError, UserError
from reports import papers
from reports.console import show_ledger
from reports.notebooks import NOTEBOOKS, names
from trainers import papers as made

ENTRIES = [(name, claim) for name, entry in judged.published().items() for claim in entry["claims"]]
CHECKLIST = [*(f"F{k}" for k in range(1, 9)), *(f"T{k}" for k in range(1, 19))]


@pytest.fixture(scope="module")
def optima():
    """What the analysis that trains nothing makes, by its settings: minimised once for all tests."""
    auxdpo, known = import_module("trainers.papers.auxdpo"), {}
    make = auxdpo.make

    def made_once(order, settings):
        asked = json.dumps(settings, sort_keys=True)
        if asked not in known:
            known[asked] = make(order, settings)
        return {name: table.copy() for name, table in known[asked].items()}

    return made_once


@pytest.fixture(autouse=True)
def quick(monkeypatch, optima):
    """The frame is tried with the analysis that trains nothing, here without its slow minimiser in two dimensions."""
    auxdpo = import_module("trainers.papers.auxdpo")
    monkeypatch.setitem(auxdpo.METHODS, "AuxDPO", auxdpo.best)
    monkeypatch.setattr(auxdpo, "make", optima)


def test_the_rooms_know_the_same_papers():
    assert sorted(judged.published()) == sorted(judged.names()) == made.names()
    assert {f"paper_{name}" for name in made.names()} == {name for name in names() if name.startswith("paper_")}


@pytest.mark.parametrize("name", made.names())
def test_an_analysis_says_what_it_sets_and_why(name):
    module = made.load(name)
    assert re.search(r"arXiv:\d{4}\.\d{5}", module.__doc__)
    for setting in module.SETTINGS:
        assert setting.where, setting.name
        assert setting.toy == setting.paper or setting.why, f"{setting.name} differs without a reason"
        assert setting.at("small") == setting.toy or setting.small_why, f"{setting.name} differs at small scale"
    assert module.SEEDS >= 1
    assert module.TUNED.start == 0


@pytest.mark.parametrize(("name", "claim"), ENTRIES, ids=[f"{name}-{claim['id']}" for name, claim in ENTRIES])
def test_every_claim_has_a_source_a_published_value_and_a_rule(name, claim):
    assert claim["by"] in ("paper", "control")
    assert claim["says"]
    assert str(claim["published"])
    assert (claim["where"].startswith("control")) == (claim["by"] == "control")
    assert claim["by"] == "control" or re.search(
        r"\d{4}\.\d{5}|table|figure|section|appendix|abstract", claim["where"], re.I
    )
    assert set(claim["rule"]) <= {"above", "below", "at_least", "at_most", "between"}
    assert len(claim["rule"]) == 1
    assert claim.get("kind", "mean") in KINDS
    assert claim.keys() <= {"id", "says", "where", "published", "by", "rule", "kind", "late", "needs", "within"}
    if ends := claim.get("within"):
        assert re.search({0: "share|AUROC|accuracy", -1: "Spearman"}[ends[0]], claim["says"])
        assert ends[1] == 1
    ids = [c["id"] for c in judged.published()[name]["claims"]]
    assert ids.count(claim["id"]) == 1


def test_every_figure_and_table_is_made_or_has_a_reason():
    shown = {item["item"]: item for item in judged.figures()}
    assert [item for item in CHECKLIST if item not in shown] == []
    for item in shown.values():
        if "made" not in item:
            assert item["reason"]
            continue
        book = nbformat.read(NOTEBOOKS / f"paper_{item['made']}.ipynb", as_version=4)
        headings = {line[3:] for cell in book.cells for line in cell.source.splitlines() if line.startswith("## ")}
        assert item["section"] in headings, item["item"]


@pytest.mark.parametrize(
    ("rule", "interval", "holds"),
    [
        ({"above": 0}, (0.1, 0.2), True),
        ({"above": 0}, (0.0, 0.2), None),
        ({"above": 0}, (-0.2, 0.0), False),
        ({"at_least": 0}, (0.0, 0.2), True),
        ({"below": 1}, (0.5, 0.9), True),
        ({"at_most": 1}, (1.1, 2.0), False),
        ({"between": [1, 2]}, (1.2, 1.8), True),
        ({"between": [1, 2]}, (0.5, 2.5), None),
        ({"between": [1, 2]}, (0.5, 1.5), None),
        ({"between": [1, 2]}, (2.1, 2.5), False),
        ({"above": 0}, None, None),
        ({"above": 0}, (float("nan"), 1.0), None),
    ],
)
def test_verdicts(rule, interval, holds):
    assert decide(interval, rule) is holds


def test_an_interval_over_seeds_is_students(tmp_path):
    # values 1, 2, 3: mean 2, SD 1, t(2) = 4.3027: half width 4.3027 / sqrt(3) = 2.4842
    entry = dict(id="x", says="s", where="w", published="p", rule={"above": 0})
    claim = judged._judged("auxdpo", entry, judged.Measured([1.0, 2.0, 3.0], "3 seeds"))
    assert claim.interval == pytest.approx((2 - 2.4842, 2 + 2.4842), abs=1e-3)
    assert claim.verdict == "cannot be said"
    assert judged._judged("auxdpo", entry, judged.Measured([1.0], "1 seed")).verdict == "cannot be said"


@pytest.mark.parametrize(
    ("values", "rule", "shown"),
    [
        # mean .7, SD .4359, half width 4.3027 * .4359 / sqrt(3) = 1.0828
        ([0.2, 0.9, 1.0], {"above": 0.5}, (0, 1)),
        ([0.98, 0.99, 1.0], {"above": 0.5}, (0.99 - 0.02484, 1)),
        ([0.98, 0.99, 1.0], {"below": 1.01}, (0.99 - 0.02484, 1)),
    ],
)
def test_the_interval_of_a_share_is_shown_within_0_and_1_and_judged_as_it_is(values, rule, shown):
    entry = dict(id="x", says="s", where="w", published="p", rule=rule)
    found = judged.Measured(values, "3 seeds")
    plain = judged._judged("real", entry, found)
    cut = judged._judged("real", entry | {"within": [0, 1]}, found)
    assert cut.interval == pytest.approx(shown, abs=1e-4)
    assert plain.interval[1] > 1
    assert (cut.holds, cut.p, cut.value) == (plain.holds, plain.p, plain.value)


def test_claims_are_judged_on_seeds_that_nobody_had_seen(tmp_path, monkeypatch):
    module, asked = import_module("trainers.papers.small_margins"), []

    def make(order, settings):
        asked.append(order.numbers)
        return {"runs": pd.DataFrame({"world": [], "seed": [], "case": [], "run": [], "failed": []})}

    monkeypatch.setattr(module, "make", make)
    folder = made.rerun("small_margins", made.Order("toy", tmp_path, seeds=3))
    assert [list(seeds) for seeds in asked] == [[16, 17, 18]]
    assert not set(asked[0]) & set(module.TUNED)
    assert judged.seed_words(judged.load(folder)) == (
        "seeds 16 to 18; worlds, settings and rules were chosen by seeds 0 to 15"
    )
    made.rerun("small_margins", made.Order("paper", tmp_path, seeds=3, model="m", data=__file__))
    assert list(asked[1]) == [0, 1, 2]  # another model and data: nothing was chosen by their seeds


def test_an_analysis_made_on_the_seeds_of_its_rules_says_so_and_is_made_again(tmp_path):
    folder = made.rerun("auxdpo", made.Order("toy", tmp_path))
    record = json.loads((folder / "paper.json").read_text(encoding="utf-8"))
    old = {key: value for key, value in record.items() if key != "first seed"}
    (folder / "paper.json").write_text(json.dumps(old), encoding="utf-8")
    assert "rerun it" in judged.seed_words(judged.load(folder))
    assert "rerun it" in papers.ledger(tmp_path).read_text(encoding="utf-8")
    made.rerun("auxdpo", made.Order("toy", tmp_path))
    assert judged.seed_words(judged.load(folder)) == "seed 0"  # nothing is drawn


@pytest.mark.parametrize(("fresh", "note"), [(True, ", judged here on other seeds"), (False, "")])
def test_a_late_rule_says_what_was_seen(fresh, note):
    entry = dict(id="x", says="s", where="w", published="p", rule={"above": 0}, late="two seeds")
    claim = judged._judged("auxdpo", entry, judged.Measured([1.0, 2.0], "2 seeds"), fresh)
    assert claim.note == f"rule set after seeing two seeds{note}"


def test_one_counterexample_refutes_and_its_number_is_on_the_row():
    entry = dict(id="x", says="s", where="w", published="p", rule={"at_most": 1}, kind="every")
    refuted = judged._judged("auxdpo", entry, judged.Measured([0.1, 0.1, 0.1, 1.1], "4 seeds"))
    held = judged._judged("auxdpo", entry, judged.Measured([0.5, 0.5], "2 seeds"))
    assert judged.row(refuted)["verdict"] == "does not hold"
    assert judged.row(refuted)["holds where"] == "in every seed at most 1"
    assert judged.row(held)["verdict"] == "holds"
    assert judged.row(held)["note"].startswith("obeyed in 2 of 2 seeds")
    assert "up to 78 % of all seeds" in judged.row(held)["note"]


def test_equal_seeds_are_not_said_to_be_sure():
    entry = dict(id="x", says="s", where="w", published="p", rule={"above": 0})
    claim = judged._judged("auxdpo", entry, judged.Measured([0.5, 0.5], "2 seeds"))
    assert judged.row(claim)["verdict"] == "cannot be said"
    assert "to 0.5" not in judged.row(claim)["measured (95 % interval)"]


def claim_of(values):
    entry = dict(id="x", says="s", where="w", published="p", rule={"above": 0})
    return judged._judged("auxdpo", entry, judged.Measured(values, "n"))


def test_the_summary_says_what_is_left_at_a_false_discovery_rate():
    # against 0 the first is sure (p 3e-6), the second only just (t = 3.5, p .04, and .05 * 2 / 8 = .0125)
    sure, just = claim_of([1.0, 1.01, 1.02, 1.03]), claim_of([1.0, 2.0, 1.1, 3.2])
    open_, every = [claim_of([-1.0, 1.0, 0.1, 0.2])] * 6, judged._judged(
        "auxdpo", dict(id="x", says="s", where="w", published="p", rule={"above": 0}, kind="every"),
        judged.Measured([1.0], "1 seed"))  # fmt: skip
    assert (sure.holds, just.holds) == (True, True)
    assert 0.02 < just.p < 0.05
    claims = [just, sure, *open_, every]
    assert judged.doubtful(claims) == [True, False, *[False] * 7]
    assert judged.summary(claims) == (
        "9 claims: 3 hold, 0 do not hold, 6 cannot be said. 8 are judged by a mean, each at the 5 % level (2 hold, 0 "
        "do not hold): chance alone would decide up to 1 of so many. At a false-discovery rate of 5 % among them "
        "(Benjamini-Hochberg) 1 holds, 0 do not hold."
    )
    assert "false-discovery rate" in judged.row(just, doubtful=True)["note"]
    assert judged.summary([every]) == "1 claim: 1 holds, 0 do not hold, 0 cannot be said."


def test_a_finished_analysis_is_not_made_again(tmp_path, monkeypatch):
    papers.rerun(["auxdpo"], tmp_path)
    record = (tmp_path / "auxdpo" / "paper.json").read_bytes()
    monkeypatch.setattr(import_module("trainers.papers.auxdpo"), "make", lambda *_: pytest.fail("made again"))
    page, failed = papers.rerun(["auxdpo"], tmp_path)
    assert failed == []
    assert (tmp_path / "auxdpo" / "paper.json").read_bytes() == record
    ledger = json.loads(page.with_name("ledger.json").read_text(encoding="utf-8"))
    assert len(ledger["claims"]) == 9
    assert page.read_text(encoding="utf-8").count("<script") == 1  # ours alone


@pytest.mark.parametrize("name", ["paper.json", "optima.parquet", "settings.parquet"])
@pytest.mark.parametrize("content", [None, b"{half"])
def test_what_is_damaged_or_gone_is_made_again(name, content, tmp_path):
    made.rerun("auxdpo", made.Order("toy", tmp_path))
    whole = judged.load(tmp_path / "auxdpo").tables["optima"]
    path = tmp_path / "auxdpo" / name
    path.unlink() if content is None else path.write_bytes(content)
    made.rerun("auxdpo", made.Order("toy", tmp_path))
    assert judged.load(tmp_path / "auxdpo").tables["optima"].equals(whole)


def test_stopped_while_its_tables_are_written_an_analysis_is_not_finished(tmp_path, monkeypatch):
    folder = made.rerun("auxdpo", made.Order("toy", tmp_path))

    def stopped(path, frame):
        raise KeyboardInterrupt

    monkeypatch.setattr(made, "write_frame", stopped)
    with pytest.raises(KeyboardInterrupt):
        made.rerun("auxdpo", made.Order("toy", tmp_path, changes={"beta values": [1.0]}))
    with pytest.raises(DataError, match="no finished analysis"):
        judged.load(folder)


def test_the_ledger_goes_on_without_an_analysis_that_cannot_be_read(tmp_path):
    for scale in ("toy", "paper"):
        made.rerun("auxdpo", made.Order(scale, tmp_path))
    (tmp_path / "auxdpo" / "optima.parquet").unlink()
    page = papers.ledger(tmp_path)
    ledger = json.loads(page.with_name("ledger.json").read_text(encoding="utf-8"))
    assert {(row["scale"], row["page"]) for row in ledger["claims"]} == {("paper", "auxdpo-paper.html")}
    assert "optima.parquet is gone" in ledger["unreadable"][0]
    assert "optima.parquet is gone" in page.read_text(encoding="utf-8")


def test_the_console_shows_the_scale_that_was_asked_for(tmp_path, capsys):
    for scale in ("toy", "paper"):
        made.rerun("auxdpo", made.Order(scale, tmp_path))
    show_ledger(papers.ledger(tmp_path), ("auxdpo", "paper"))
    said = capsys.readouterr().out
    assert "auxdpo-paper.html" in said
    assert said.count("1.167") == 1


def test_the_ledger_says_claim_by_claim_what_carries_over(tmp_path, capsys):
    def claim(name, values):
        entry = dict(id=name, says=f"says {name}", where="w", published="p", rule={"above": 0})
        return judged._judged("auxdpo", entry, judged.Measured(values, "n"))

    yes, no = [1.0, 1.1, 1.2], [-1.0, -1.1, -1.2]
    toy = [claim("a", yes), claim("b", yes), claim("c", yes), claim("d", no)]
    small = [claim("a", yes), claim("b", no), claim("d", yes)]  # c was not measured, d did not hold before
    assert judged.carried(toy, small, "small") == (
        "Of 3 claims that hold at toy scale, 1 holds, 1 does not hold, 1 cannot be said at small scale."
    )
    rows = {row["claim"]: (row["toy"], row["small"]) for row in judged.beside({"toy": toy, "small": small})}
    assert rows["says b"] == ("holds: 1.100", "does not hold: −1.100")
    assert rows["says c"] == ("holds: 1.100", "–")

    for scale in ("toy", "paper"):
        made.rerun("auxdpo", made.Order(scale, tmp_path))
    page = papers.ledger(tmp_path)
    known = judged.judge(judged.load(tmp_path / "auxdpo"))
    said = judged.carried(known, known, "paper")
    assert said.startswith(f"Of {sum(bool(c.holds) for c in known)} claims")
    assert page.read_text(encoding="utf-8").count(said) == 2  # of this analysis, and of all
    whole, one = json.loads(page.with_name("ledger.json").read_text(encoding="utf-8"))["carried"]
    assert (whole["name"], whole["rows"], one["name"], len(one["rows"])) == ("", [], "auxdpo", 9)
    show_ledger(page, None)
    assert said in " ".join(capsys.readouterr().out.split())


def test_a_change_of_no_setting_or_of_another_kind_is_refused(tmp_path):
    order = made.Order("toy", tmp_path)
    for changes, says in (
        ({"beta value": [1.0]}, "did you mean 'beta values'"),
        ({"beta values": 1.0}, "'beta values': 1.0 is no list"),
    ):
        with pytest.raises(UserError, match=says):
            made.rerun("auxdpo", made.Order("toy", tmp_path, changes=changes))
    assert made.values(made.load("small_margins").SETTINGS, order)["learning_rate"] == 3e-4
    assert papers.settings_of(["SFT steps=4", "beta values=[0.1, 1]"]) == {"SFT steps": 4, "beta values": [0.1, 1]}
    with pytest.raises(UserError, match="write NAME=VALUE"):
        papers.settings_of(["learning_rate"])
    with pytest.raises(UserError, match="leave out --prompt-form"):
        made.rerun("auxdpo", made.Order("toy", tmp_path, form="raw"))


def test_of_several_analyses_each_takes_the_changes_of_its_own_settings():
    names, changes = ["auxdpo", "leanpo"], {"learning_rate": 1e-5, "beta values": [1.0], "nonsense": 1}
    assert papers._changes("leanpo", names, changes) == {"learning_rate": 1e-5, "nonsense": 1}
    assert papers._changes("auxdpo", names, changes) == {"beta values": [1.0], "nonsense": 1}


def test_a_repetition_without_a_number_is_counted():
    entry = dict(id="x", says="s", where="w", published="p", rule={"above": 0})
    claim = judged._judged("auxdpo", entry, judged.Measured([1.0, float("nan"), 1.5], "3 seeds"))
    assert claim.value == 1.25
    assert claim.note == "no number from 1 of 3 repetitions"


def test_claims_are_judged_once_and_again_where_the_analysis_was_made_anew(tmp_path, monkeypatch):
    folder = made.rerun("auxdpo", made.Order("toy", tmp_path))
    first = judged.judge(judged.load(folder))
    analysis, asked = judged.module("auxdpo"), []
    measured = analysis.measured
    monkeypatch.setattr(analysis, "measured", lambda paper: asked.append(paper.name) or measured(paper))
    assert judged.judge(judged.load(folder)) == first
    papers.ledger(tmp_path)
    assert asked == []
    kept = json.loads((folder / "claims.json").read_text(encoding="utf-8"))
    assert [row["verdict"] for row in kept["claims"]] == [claim.verdict for claim in first]

    record = json.loads((folder / "paper.json").read_text(encoding="utf-8"))
    (folder / "paper.json").write_text(json.dumps(record | {"seconds": 2.0}), encoding="utf-8")
    assert judged.judge(judged.load(folder)) == first
    (folder / "claims.json").write_text("{half", encoding="utf-8")
    assert judged.judge(judged.load(folder)) == first
    assert asked == ["auxdpo"] * 2


def test_a_claim_reads_back_as_it_was_judged():
    entry = dict(id="x", says="s", where="w", published="p", rule={"above": 0})
    for values in ([], [1.0], [1.0, 2.0, 3.0], [0.5] * 6):
        claim = judged._judged("auxdpo", entry, judged.Measured(values, f"{len(values)} seeds"))
        read = judged._claim(json.loads(json.dumps(judged._row(claim), allow_nan=False)))
        assert repr(read) == repr(claim)


def test_what_sections_share_is_computed_once_for_a_paper(tmp_path):
    asked = []

    @judged.once
    def table(paper):
        asked.append(paper.path)
        return len(asked)

    one, other = (judged.Paper(tmp_path / name, {}, {}) for name in "ab")
    assert [table(one), table(one), table(other), table(one)] == [1, 1, 2, 1]


def test_the_record_says_what_each_column_is_and_the_tables_have_it(tmp_path):
    folder = made.rerun("auxdpo", made.Order("toy", tmp_path))
    columns = json.loads((folder / "paper.json").read_text(encoding="utf-8"))["columns"]
    assert set(columns) == {"optima", "settings"}
    assert columns["optima"]["reversed"] == {"type": "bool", "meaning": "whether answer 1 is likelier than answer 2"}
    table = pd.read_parquet(folder / "optima.parquet")
    assert set(table) == set(columns["optima"])
    table.drop(columns="t").to_parquet(folder / "optima.parquet")
    with pytest.raises(DataError, match=r"optima\.parquet lacks the column t\. Run `chesboard paper` again"):
        judged.load(folder)
    made.rerun("auxdpo", made.Order("toy", tmp_path))
    assert judged.load(folder).tables["optima"].equals(table)


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        (lambda table: {"optima": table.drop(columns="beta")}, "its table optima lacks the column beta"),
        (lambda table: {"optima": table.assign(t="x")}, "its table optima has str in the column t"),
        (lambda table: {"optima": table.assign(more=1)}, "its table optima has a column more, which is not declared"),
        (lambda table: {"optima": table, "more": table}, "its table more is not declared"),
        (lambda table: {}, "its table optima is not made"),
    ],
)
def test_an_analysis_that_gives_another_table_than_it_declares_is_told(changed, says, tmp_path, monkeypatch):
    module = import_module("trainers.papers.auxdpo")
    make = module.make
    monkeypatch.setattr(module, "make", lambda *given: changed(make(*given)["optima"]))
    with pytest.raises(TypeError, match=f"paper auxdpo: {says}"):
        made.rerun("auxdpo", made.Order("toy", tmp_path))
    assert not (tmp_path / "auxdpo" / "paper.json").exists()


@pytest.mark.parametrize("name", made.names())
def test_every_column_is_declared_with_its_meaning(name):
    tables = made.load(name).TABLES
    assert tables
    for columns in tables.values():
        assert all(field.meaning and not field.meaning.endswith(".") for field in columns.values())
    assert "runs" not in tables or set(made.RUNS) <= set(tables["runs"])


def test_rows_and_groups_by_hand():
    table = pd.DataFrame({"world": [*"bbaa"], "seed": [0, 1, 0, 1], "x": [1.0, 3.0, 5.0, 5.0]})
    assert judged.where(table, world="b", seed=1)["x"].tolist() == [3.0]
    # 1 and 3: mean 2, SD 1.414, half 12.706 * 1.414 / sqrt(2) = 12.71
    shown = judged.spreads(table, {"world": {"a": "first", "b": "second"}}, ["x"])
    assert shown.to_dict("list") == {
        "world": ["first", "second"],
        "seeds": [2, 2],
        "x": ["5.00 ± 0.00", "2.00 ± 12.71"],
    }
    assert judged.spreads(table, {"world": {}}, ["x"])["world"].tolist() == ["b", "a"]


def test_a_crash_leaves_the_other_analyses(tmp_path, monkeypatch):
    def broken(*_):
        raise DataError("pairs.jsonl: line 3 is not JSON.")

    monkeypatch.setattr(import_module("trainers.papers.small_margins"), "make", broken)
    page, failed = papers.rerun(["small_margins", "auxdpo"], tmp_path, jobs=1)
    assert failed == ["small_margins: pairs.jsonl: line 3 is not JSON."]
    assert "misspecified" in page.read_text(encoding="utf-8")
    with pytest.raises(DataError, match="line 3"):
        papers.rerun(["small_margins"], tmp_path, jobs=1)


def test_two_commands_in_one_folder_do_not_get_in_each_others_way(tmp_path):
    with papers.alone(tmp_path), pytest.raises(UserError, match="is at work there"):
        papers.rerun(["auxdpo"], tmp_path)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        (dict(names=["auxdp"]), "did you mean 'auxdpo'"),
        (dict(names=["auxdpo"], model="m"), "at toy scale the models are built here"),
        (dict(names=["auxdpo"], data={"auxdpo": "d"}), "at toy scale the data are built here"),
        (dict(names=["auxdpo"], changes={"beta value": [1.0]}), "did you mean 'beta values'"),
    ],
)
def test_wrong_use_is_one_sentence(how, says, tmp_path):
    with pytest.raises(UserError, match=says):
        papers.rerun(how.pop("names"), tmp_path, **({"scale": "toy", "jobs": 1} | how))


def test_data_for_several_analyses_is_named():
    assert papers.data_by_name(["auxdpo"], ["x.jsonl"]) == {"auxdpo": "x.jsonl"}
    assert papers.data_by_name(["a", "b"], ["b=x=y.jsonl"]) == {"b": "x=y.jsonl"}
    assert papers.data_by_name(["a"], ["day=1/x.jsonl"]) == {"a": "day=1/x.jsonl"}
    assert papers.data_by_name(["a"], ["a=x.jsonl"]) == {"a": "x.jsonl"}
    with pytest.raises(UserError, match="NAME=DATA"):
        papers.data_by_name(["a", "b"], ["x.jsonl"])
