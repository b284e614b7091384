import json
import os
import xml.etree.ElementTree as ET
from datetime import UTC, datetime, timedelta

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diagnostics.errors import DataError, UserError
from diagnostics.runlog import RunLogWriter, compact, read_table, write_frame, write_json
from reports import gate

LOSS = dict(table="steps", metric="loss", aggregate="last", op="<", value=0.5)


@pytest.fixture
def judge(make_run, tmp_path):
    """Judge a made-up run (20 steps, probes every 5, all pairs fall) by one gate."""
    run = make_run()

    def one(**gate_fields) -> gate.GateFinding:
        path = tmp_path / "gates.yaml"
        path.write_text(yaml.safe_dump([LOSS | gate_fields]))
        return gate.judge(run, path)[0]

    return one


def test_a_gate_passes_and_misses(judge):
    """The loss is 0.69 - step / 50, so 0.29 at step 20."""
    assert judge(value=0.3).passed is True
    missed = judge(value=0.28)
    assert missed.passed is False
    assert missed.value == pytest.approx(0.29)
    assert missed.n == 1


@pytest.mark.parametrize(
    ("window", "expected"), [("all", 0.49), ("last", 0.29), ("last 2", 0.34), ("steps 5..10", 0.54)]
)
def test_windows(judge, window, expected):
    assert judge(aggregate="mean", window=window).value == pytest.approx(expected)


@pytest.mark.parametrize(
    ("aggregate", "expected"),
    [("mean", 0.49), ("median", 0.49), ("min", 0.29), ("max", 0.69), ("last", 0.29), ("sum", 2.45)],
)
def test_aggregates(judge, aggregate, expected):
    assert judge(aggregate=aggregate, window="all").value == pytest.approx(expected)


@pytest.mark.parametrize(("op", "passed"), [("<", False), ("<=", True), (">", False), (">=", True)])
def test_operators_at_equality(judge, op, passed):
    finding = judge(table="pairs", metric="chosen_kl", aggregate="mean", op=op, value=2.5)
    assert finding.passed is passed


def test_pairs_know_their_change_since_the_start(judge):
    """Pair i falls by 2 (1 + i / 4) nats: of 12 pairs, four lie above -4 (i = 0..3)."""
    finding = judge(table="pairs", metric="chosen_change", aggregate="share_above", bound=-4.0, op="<", value=0.5)
    assert finding.value == pytest.approx(4 / 12)
    assert finding.n == 12


def test_no_data_fails_the_gate(judge):
    finding = judge(table="pairs", metric="chosen_grad_norm", aggregate="mean", value=1e9)
    assert finding.passed is False
    assert "no data" in finding.meaning
    assert judge(window="steps 100..200").passed is False


def test_an_infinite_value_is_seen(tmp_path, make_run):
    run = make_run("inf", full=False)
    with open(run / "steps.jsonl", "a") as file:
        file.write('{"step": 25, "loss": "inf"}\n')
    path = tmp_path / "g.yaml"
    path.write_text(yaml.safe_dump([LOSS | dict(value=1e300)]))
    assert gate.judge(run, path)[0].passed is False


def test_warnings_never_fail_the_run(judge):
    finding = judge(value=0.0, severity="warning", name="50 % off\n")
    assert not gate.failed([finding])
    assert gate.failed([finding, judge(value=0.0)])
    assert gate.warnings([finding])[0].startswith("::warning::50 %25 off\\n")


def test_a_misspelt_metric_names_the_nearest(judge):
    with pytest.raises(UserError, match=r"steps has no metric los; the nearest is loss"):
        judge(metric="los")


def test_text_columns_are_no_metrics(judge):
    with pytest.raises(UserError, match="no metric split"):
        judge(table="pairs", metric="split", aggregate="mean")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([LOSS | {"windw": "all"}], "gate 1, windw: no such field; did you mean window"),
        ([LOSS, LOSS | {"op": "=="}], "gate 2, op: "),
        ([LOSS | {"window": "first 3"}], "steps a..b"),
        ([LOSS | {"value": "much"}], "gate 1, value: "),
        ([{"metric": "loss"}], "gate 1, table: "),
        ([], "holds no gates"),
        ("loss < 3", "holds no gates"),
    ],
)
def test_a_wrong_gates_file_ends_in_one_sentence(tmp_path, content, message):
    path = tmp_path / "gates.yaml"
    path.write_text(yaml.safe_dump(content))
    with pytest.raises(UserError, match=r"gates\.yaml") as error:
        gate.read_gates(path)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.exit_code == 2


def test_a_missing_or_broken_gates_file(tmp_path):
    with pytest.raises(UserError, match="cannot read this file"):
        gate.read_gates(tmp_path / "none.yaml")
    (tmp_path / "broken.yaml").write_text("- op: >\n  x: [")
    with pytest.raises(UserError, match=r"broken.yaml: not readable as YAML at line"):
        gate.read_gates(tmp_path / "broken.yaml")


def test_a_corrupt_run_is_a_data_error(make_run, tmp_path):
    run = make_run("torn")
    (run / "steps.jsonl").write_text('{"step": 0}\nnot json\n{"step": 1}\n')
    path = tmp_path / "gates.yaml"
    path.write_text(yaml.safe_dump([LOSS]))
    with pytest.raises(DataError, match=r"line 2") as error:
        gate.judge(run, path)
    assert error.value.exit_code == 3


def test_scores_are_judged_too(make_flags, tmp_path):
    path = tmp_path / "gates.yaml"
    path.write_text(yaml.safe_dump([dict(table="scores", metric="edit_similarity", aggregate="max", op="<=", value=1)]))
    assert gate.judge(make_flags(), path)[0].n == 40


def test_junit_is_well_formed_whatever_the_names(make_run, tmp_path):
    path, junit = tmp_path / "gates.yaml", tmp_path / "out" / "junit.xml"
    names = ["<b>&\x00\x1b", "a warning", "fine"]
    gates = [LOSS | dict(name=names[0], value=0), LOSS | dict(name=names[1], value=0, severity="warning")]
    path.write_text(yaml.safe_dump([*gates, LOSS | dict(name=names[2])]))
    gate.judge(make_run(), path, junit)
    root = ET.parse(junit).getroot()
    (suite,) = root
    assert (root.tag, suite.tag, suite.attrib["name"]) == ("testsuites", "testsuite", "run")
    for element in (root, suite):
        assert [element.attrib[k] for k in ("tests", "failures", "errors")] == ["3", "1", "0"]
        assert 0 < float(element.attrib["time"]) < 60
    assert sum(float(c.attrib["time"]) for c in suite) <= float(suite.attrib["time"]) + 0.002  # each is rounded
    assert abs(datetime.now(UTC) - datetime.fromisoformat(suite.attrib["timestamp"] + "+00:00")) < timedelta(minutes=1)
    assert [c.attrib["name"] for c in suite] == ["<b>&��", "a warning", "fine"]
    assert [c.find("failure") is not None for c in suite] == [True, False, False]


@pytest.mark.parametrize("traced", [False, True])
def test_the_example_gates_work_on_trained_and_on_traced_runs(make_run, traced):
    """All pairs of the made-up run fall, the chosen side less than the rejected one; a traced run has no loss."""
    run = make_run()
    if traced:
        rows = [json.loads(line) for line in (run / "steps.jsonl").read_text().splitlines()]
        (run / "steps.jsonl").write_text(
            "".join(json.dumps({"step": row["step"], "epoch": "nan"}) + "\n" for row in rows)
        )
    assert [f.passed for f in gate.judge(run, gate.EXAMPLE)] == [False, False, True, True, True]


@pytest.fixture
def plain_run(make_run):
    """One run for all examples."""
    return make_run("mutated", full=False)


PLAIN = st.sampled_from(["", "last", "steps 1..2", "last 3", "pairs", "loss", ">", "é" * 300, True, None, 0, -1, 2**70])
ANY = (
    PLAIN | st.floats() | st.text(max_size=8) | st.lists(PLAIN, max_size=2) | st.dictionaries(PLAIN, PLAIN, max_size=2)
)
TRIES = int(os.environ.get("CHESBOARD_MUTATIONS", "200"))
FIELDS = st.sampled_from([*gate.Gate.model_fields, "windw", "9"])


@settings(
    max_examples=TRIES,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(
    st.lists(st.dictionaries(FIELDS, ANY, max_size=2), min_size=1, max_size=2), st.integers(0, 200), st.text(max_size=2)
)
def test_any_gates_file_works_or_ends_in_one_sentence(plain_run, changes, at, noise):
    text = yaml.safe_dump([LOSS | change for change in changes], allow_unicode=True)
    path = plain_run.parent / "mutated.yaml"
    path.write_text(text[:at] + noise + text[at:])
    error = None
    try:
        gate.judge(plain_run, path)
    except UserError as mistake:
        error = mistake
    # a table that the run lacks (scores) is a DataError, 3
    assert error is None or (error.exit_code in (2, 3) and 10 < len(str(error)) < 500), error


def test_sides_join_by_pair_id_not_by_position(tmp_path, make_run):
    """The step-0 rows come in another order than the last ones; the changes must not notice."""
    run = make_run("shuffled", full=False)
    compact(run)
    table = read_table(run, "pairs").sample(frac=1, random_state=1)
    for part in (run / "pairs").glob("part-*"):
        part.unlink()
    write_frame(run / "pairs" / "part-00000-r0.parquet", table)
    path = tmp_path / "gates.yaml"
    path.write_text(yaml.safe_dump([dict(table="pairs", metric="chosen_change", aggregate="min", op="<", value=0)]))
    assert gate.judge(run, path)[0].value == pytest.approx(-2 * (1 + 11 / 4))


@pytest.mark.parametrize(
    "asked",
    [
        dict(table="pairs", metric="chosen_fell", aggregate="mean", op="<", value=0.5),
        dict(table="pairs", metric="chosen_change", aggregate="share_below", op="<", value=0.5),
        dict(table="pairs", metric="chosen_change", aggregate="mean", op=">=", value=0),
        dict(table="steps", metric="probe/displacement/frac", aggregate="max", window="all", op="<", value=0.5),
    ],
)
@pytest.mark.parametrize(("fall", "passed"), [(-1e-3, True), (-2.0, False)])
def test_rounding_fails_no_gate(tmp_path, make_run, asked, fall, passed):
    """Every chosen answer ends lower; by at most 0.004 nats that is no movement, whatever the log's own share says."""
    run = make_run(fall=fall)
    steps = [json.loads(line) | {"probe/displacement/frac": 1.0} for line in (run / "steps.jsonl").open()]
    (run / "steps.jsonl").write_text("".join(json.dumps(row) + "\n" for row in steps))
    path = tmp_path / "gates.yaml"
    path.write_text(yaml.safe_dump([asked]))
    assert gate.judge(run, path)[0].passed is passed


def test_the_verdict_can_be_gated(judge):
    """Every number of the page's verdict by its name, with the pairs behind it; all 12 pairs fell."""
    found = judge(table="verdict", metric="displaced", value=1)
    assert (found.value, found.passed, found.n) == (1.0, False, 12)
    share = judge(table="verdict", metric="displacement/frac", aggregate="max", value=0.5)
    assert (share.value, share.passed, share.n) == (1.0, False, 12)
    assert judge(table="verdict", metric="eos/chosen", value=0).n == 12
    with pytest.raises(UserError, match="the nearest is displacement/frac"):
        judge(table="verdict", metric="displacement/fraction")


def test_a_verdict_that_cannot_be_said_is_no_data(tmp_path):
    RunLogWriter(tmp_path / "run").append_step({"step": 1, "loss": 0.5})
    write_json(tmp_path / "run" / "config.json", {"objective": "dpo"})
    path = tmp_path / "gates.yaml"
    path.write_text(yaml.safe_dump([LOSS | {"table": "verdict", "metric": "displaced"}]))
    (found,) = gate.judge(tmp_path / "run", path)
    assert (found.passed, found.n) == (False, 0)
    assert "no data" in found.meaning


FELL = dict(table="pairs", metric="chosen_fell", aggregate="mean", against="baseline", op="<=", value=0.1)


@pytest.fixture
def apart(make_run, tmp_path):
    """Judge a made-up run (all pairs fall by 2 nats and more) against another by one gate."""
    run = make_run()

    def one(fall: float, turned: bool = False, **gate_fields) -> gate.GateFinding:
        path = tmp_path / "gates.yaml"
        path.write_text(yaml.safe_dump([FELL | gate_fields]))
        runs = (run, make_run(f"other{fall}", fall=fall))
        return gate.judge(*(runs if turned else runs[::-1])[:1], path, baseline=(runs if turned else runs[::-1])[1])[0]

    return one


@pytest.mark.parametrize(
    ("fall", "turned", "passed"),
    [(0.5, True, False), (0.5, False, True), (-3.0, False, None)],  # worse, better, and both fall entirely
)
def test_a_difference_is_judged_by_its_interval(apart, fall, turned, passed):
    found = apart(fall, turned)
    assert found.passed is passed
    assert found.n == 12
    assert gate.failed([found]) is (passed is False)
    assert len(gate.warnings([found])) == (passed is None)


def test_a_difference_of_means_is_students(apart):
    found = apart(-2.5, metric="chosen_change", op=">", value=-1.0)
    assert found.value == pytest.approx(-0.5 * (1 + 5.5 / 4))
    assert found.interval == pytest.approx((-1.474, -0.901), abs=1e-3)
    assert found.passed is None  # though the number itself is on the wrong side


def test_a_difference_that_is_the_same_in_every_pair_is_judged_by_its_number(apart):
    found = apart(-2.0, metric="chosen_kl", value=0.0)
    assert found.passed is True
    assert "no interval" in found.meaning


@pytest.mark.parametrize("wrong", [dict(table="steps", metric="loss"), dict(aggregate="max"), dict(window="all")])
def test_only_pairs_at_the_end_can_be_held_against_a_baseline(apart, wrong):
    with pytest.raises(UserError, match="against baseline works on pairs"):
        apart(0.5, **wrong)


def test_a_baseline_is_given_where_a_gate_needs_it(make_run, tmp_path):
    run, path = make_run(), tmp_path / "gates.yaml"
    path.write_text(yaml.safe_dump([FELL]))
    with pytest.raises(UserError, match="Give one with --baseline RUN"):
        gate.judge(run, path)
    path.write_text(yaml.safe_dump([LOSS]))
    with pytest.raises(UserError, match="no gate is `against: baseline`"):
        gate.judge(run, path, baseline=run)


def test_a_run_that_stopped_early_does_not_pass_against_a_whole_one(make_run, cut_short, tmp_path):
    path = tmp_path / "gates.yaml"
    path.write_text(yaml.safe_dump([FELL | dict(metric="chosen_change", op=">=", value=0.0)]))
    whole, stopped = make_run("whole"), cut_short(make_run("stopped"))
    for run, baseline in ((stopped, whole), (whole, stopped)):
        found = gate.judge(run, path, baseline=baseline)[0]
        assert found.passed is None
        assert found.meaning.endswith("stopped has not finished, so this is no verdict")
        assert len(gate.warnings([found])) == 1
    about = json.loads((stopped / "manifest.json").read_text())
    write_json(stopped / "manifest.json", about | {"finished": {"step": 10}})
    found = gate.judge(stopped, path, baseline=whole)[0]
    assert found.passed is True
    assert found.meaning.endswith("whole is read at step 20 and stopped at step 10")
