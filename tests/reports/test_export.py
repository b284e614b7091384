"""A run in plain files and in other people's viewers. Small stand-ins take down what is called, with which values;
test_export_packages.py asks the packages themselves, where they are installed."""

import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from analysis.tables import runs
from diagnostics.errors import DataError, UserError
from reports import export

DATA = Path(__file__).parents[1] / "data"
RUN = DATA / "tiny_run"


def write(kind, out, path=RUN):
    return {file.stem: file for file in export.write_files(path, out, kind)}


def test_csv_holds_every_number_to_the_last_bit(tmp_path):
    files, run = write("csv", tmp_path), runs.load(RUN)
    assert sorted(files) == ["audit", "columns", "mass", "pairs", "steps", "tokens"]
    for name in ("steps", "pairs", "mass", "tokens"):
        numbers = getattr(run, name).select_dtypes("number").astype(float)
        read = pd.read_csv(files[name], dtype=str, keep_default_na=False)[list(numbers)]
        read = read.map(lambda cell: float(cell) if cell else math.nan)
        pd.testing.assert_frame_equal(read, numbers, check_exact=True)


def test_parquet_holds_the_tables_as_they_are(tmp_path):
    files, run = write("parquet", tmp_path), runs.load(RUN)
    for name in ("steps", "pairs", "mass", "tokens", "audit"):
        pd.testing.assert_frame_equal(pd.read_parquet(files[name]), getattr(run, name), check_exact=True)


def test_a_line_break_inside_a_token_does_not_break_the_csv(tmp_path, monkeypatch):
    strange = pd.DataFrame({"token": ["a\rb", 'c"d', "e\nf", "g,h"], "logp": [-0.1, -0.2, -0.3, math.nan]})
    monkeypatch.setattr(export, "tables_of", lambda path: {"tokens": strange})
    read = pd.read_csv(write("csv", tmp_path)["tokens"])
    assert [t.replace("\r\n", "\n") for t in read["token"]] == strange["token"].to_list()
    assert read["logp"].isna().to_list() == [False, False, False, True]


def test_every_column_of_the_tables_is_described(tmp_path):
    """In the manifest's words where a measure has it; of steps.jsonl the conventions speak."""
    about = json.loads(write("csv", tmp_path)["columns"].read_text())
    told = json.loads((RUN / "manifest.json").read_text())
    assert about["tables"]["pairs"]["ches_score"] == {"type": "float64"} | told["columns"]["ches_score"]
    assert about["conventions"] == told["conventions"]
    silent = [
        (table, name)
        for table, columns in about["tables"].items()
        for name, said in columns.items()
        if table != "steps" and not said["meaning"]
    ]
    assert silent == []
    flags = json.loads(write("csv", tmp_path / "flags", DATA / "tiny_flags")["columns"].read_text())
    assert {"scores", "audit"} == set(flags["tables"])
    assert flags["tables"]["scores"]["chosen_logps"]["unit"] == "nats"


def test_the_run_is_not_written_over():
    with pytest.raises(UserError, match="is a folder of a run"):
        export.write_files(RUN, RUN / "pairs" / "..", "parquet")


def test_no_table_of_another_run_or_of_scores_is_written_over(tmp_path):
    """audit.parquet and scores.parquet are named alike here and there; in a run's table a file more is another part."""
    run, flags = (Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in (RUN, DATA / "tiny_flags"))
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    for out in (run, flags, run / "pairs"):
        with pytest.raises(UserError, match="Give another folder"):
            export.write_files(RUN, out, "parquet")
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before
    assert len(write("csv", run / "tables", run)) == 6  # a folder of its own in the run is nobody's
    assert len(write("csv", run / "tables", run)) == 6  # and may be written again


def test_a_text_stays_as_it_is_also_where_a_spreadsheet_takes_it_for_a_formula(tmp_path, monkeypatch):
    texts = ['=HYPERLINK("http://x","y")', "+1", "-2", "@a", "NA", "a\x00b"]
    monkeypatch.setattr(export, "tables_of", lambda path: {"audit": pd.DataFrame({"prompt": texts})})
    assert pd.read_csv(write("csv", tmp_path)["audit"], dtype=str, keep_default_na=False)["prompt"].to_list() == texts


def test_a_run_without_a_row_is_said(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    with pytest.raises(DataError, match="no table of it has rows"):
        export.write_files(tmp_path / "run", tmp_path / "out", "csv")
    assert not (tmp_path / "out").exists()


def test_a_package_that_is_missing_is_one_sentence(monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # which makes the import fail
    with pytest.raises(
        UserError, match=r"^--to wandb: its package is not installed here. Install it with: pip install"
    ):
        export.send(RUN, "wandb", "p")


class Calls(list):
    """What was called, in order: name, arguments, arguments by name."""

    def taking(self, name, result=None):
        def called(*args, **named):
            self.append((name, args, named))
            return result

        return called

    def named(self, name):
        return [(args, named) for called, args, named in self if called == name]


class Within:
    """A run of theirs, as a context."""

    def __init__(self, calls):
        self.calls, self.log = calls, calls.taking("log")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.calls.append(("end", (), {}))


def table_of(calls):
    return lambda dataframe: calls.append(("Table", (), {"dataframe": dataframe})) or "the table"


@pytest.fixture
def theirs(monkeypatch):
    """A stand-in for one of the packages, and the calls that it got."""

    def make(name):
        calls = Calls()
        within = Within(calls)
        module = {
            "wandb": dict(init=calls.taking("init", within), Table=table_of(calls)),
            "trackio": {n: calls.taking(n) for n in ("init", "log", "finish")} | {"Table": table_of(calls)},
            "mlflow": {n: calls.taking(n) for n in ("set_experiment", "log_params", "log_metrics", "log_table")}
            | {"start_run": calls.taking("start_run", within)},
        }[name]
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**module))
        return calls

    return make


def measured(row):
    return {k: v for k, v in row.items() if k != "step" and not math.isnan(v)}


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_steps_are_sent_with_their_values_and_what_was_not_measured_is_not(theirs, name):
    calls, steps = theirs(name), runs.load(RUN).steps
    assert export.send(RUN, name, "preferences") == (9, 16)
    sent = calls.named("log_metrics" if name == "mlflow" else "log")
    logged = {named["step"]: values for (values,), named in sent if "pairs" not in values}
    assert logged == {int(row["step"]): measured(row) for row in steps.to_dict("records")}
    assert "probe/kl/chosen" in logged[0]
    assert "loss" not in logged[0]  # which step 0 has not


@pytest.mark.parametrize("name", ["wandb", "trackio", "mlflow"])
def test_the_pairs_are_sent_as_one_table_without_texts(theirs, name):
    calls, run = theirs(name), runs.load(RUN)
    export.send(RUN, name, "preferences")
    if name == "mlflow":
        sent = {named["artifact_file"]: named["data"] for _, named in calls.named("log_table")}
        assert set(sent) == {"pairs.json", "pairs.parquet"}
        table = sent["pairs.parquet"]
    else:
        ((_, named),) = calls.named("Table")
        assert [v for (v,), _ in calls.named("log") if "pairs" in v] == [{"pairs": "the table"}]
        table = named["dataframe"]
    assert table["split"].value_counts().to_dict() == {"probe": 12, "eval": 4}
    ends = runs.ends(runs.rows(run, "probe")).set_index("pair_id")["chosen_change"]
    probe = table.loc[table["split"] == "probe"].set_index("pair_id")["chosen"]
    assert probe.to_dict() == ends.to_dict()
    assert not set(table) & {"prompt", "rejected_text", "token"}


def test_each_is_told_the_project_the_run_and_its_settings(theirs):
    config = runs.load(RUN).config
    for name in ("wandb", "trackio"):
        calls = theirs(name)
        export.send(RUN, name, "preferences")
        assert calls[0] == ("init", (), {"project": "preferences", "name": "tiny_run", "config": config})
        assert calls[-1][0] == {"wandb": "end", "trackio": "finish"}[name]
    calls = theirs("mlflow")
    export.send(RUN, "mlflow", "preferences")
    assert calls[:2] == [("set_experiment", ("preferences",), {}), ("start_run", (), {"run_name": "tiny_run"})]
    assert calls.named("log_params") == [(({k: str(v) for k, v in config.items()},), {})]
    assert calls[-1][0] == "end"


def test_their_refusal_is_one_sentence_and_a_fault_of_ours_is_not_hidden(theirs, monkeypatch):
    theirs("wandb")
    refused = type("UsageError", (Exception,), {"__module__": "wandb.errors"})("no\napi key")

    def fail(error):
        def init(**_):
            raise error

        return init

    monkeypatch.setattr(sys.modules["wandb"], "init", fail(refused))
    with pytest.raises(DataError, match=r"wandb did not take it \(UsageError: no api key\)"):
        export.send(RUN, "wandb", "p")
    monkeypatch.setattr(sys.modules["wandb"], "init", fail(KeyError("ours")))
    with pytest.raises(KeyError):
        export.send(RUN, "wandb", "p")


def test_a_score_folder_has_nothing_to_send(theirs):
    theirs("wandb")
    with pytest.raises(DataError, match="there is nothing to send"):
        export.send(DATA / "tiny_flags", "wandb", "p")
