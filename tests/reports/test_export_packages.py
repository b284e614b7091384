"""A run sent to W&B, MLflow and trackio themselves, and read back with what each gives for that; skipped where one is
not installed (`pip install wandb mlflow trackio`). Everything stays in a folder of the test; nothing asks a host."""

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from analysis.tables import runs
from reports import export

RUN = Path(__file__).parents[1] / "data" / "tiny_run"
pytestmark = pytest.mark.filterwarnings("default")  # what is deprecated within the packages is no fault of ours
BLOCK = 32768  # of a .wandb file, which has LevelDB's log format behind 7 bytes of its own


@pytest.fixture
def sent(tmp_path, monkeypatch):
    """Sends the run to a viewer that is told to write below tmp_path."""
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR", "WANDB_CONFIG_DIR", "TRACKIO_DIR"):
        (tmp_path / name).mkdir()
        monkeypatch.setenv(name, str(tmp_path / name))
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    return lambda name: export.send(RUN, name, "preferences")


def check(steps: dict[int, dict[str, float]], pairs: pd.DataFrame) -> None:
    """Every number of every step, and every pair's row, are those of the log to the last bit."""
    logged = {
        int(row["step"]): {k: v for k, v in row.items() if k != "step" and not math.isnan(v)}
        for row in runs.load(RUN).steps.to_dict("records")
    }
    assert steps == logged
    assert sum(map(len, steps.values())) > 300
    ends = runs.ends(runs.rows(runs.load(RUN), "probe")).set_index("pair_id")
    found = pairs.loc[pairs["split"] == "probe"].set_index("pair_id")
    assert len(pairs) == 16
    assert found["chosen"].to_dict() == ends["chosen_change"].to_dict()
    assert found["kl"].to_dict() == ends["chosen_kl"].to_dict()


def records(file: Path) -> Iterator[bytes]:
    """The records of a .wandb file: each in one fragment (kind 1), or first, middle and last (2, 3, 4)."""
    data, at, whole = file.read_bytes(), 7, b""
    while at + 7 <= len(data):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole = (whole if kind in (3, 4) else b"") + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            yield whole


def test_wandb_holds_the_numbers_of_the_log(sent, tmp_path):
    wandb = pytest.importorskip("wandb", reason="wandb is no dependency: pip install wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    assert sent("wandb") == (9, 16)
    wandb.teardown()  # its own process writes the file
    (file,) = tmp_path.glob("WANDB_DIR/wandb/offline-run-*/*.wandb")
    steps, told = {}, []
    for data in records(file):
        record = Record.FromString(data)
        if record.WhichOneof("record_type") == "run":
            told.append((record.run.project, record.run.display_name))
        if record.WhichOneof("record_type") == "history":
            row = {"/".join([i.key] if i.key else i.nested_key): json.loads(i.value_json) for i in record.history.item}
            steps[row["_step"]] = {k: v for k, v in row.items() if not k.startswith(("_", "pairs/"))}
    assert told[0] == ("preferences", "tiny_run")
    (file,) = file.parent.glob("files/media/table/*.json")
    table = json.loads(file.read_text())
    check(steps, pd.DataFrame(table["data"], columns=table["columns"]))


def test_mlflow_holds_the_numbers_of_the_log(sent):
    mlflow = pytest.importorskip("mlflow", reason="mlflow is no dependency: pip install mlflow")
    assert sent("mlflow") == (9, 16)
    (run,) = mlflow.search_runs(experiment_names=["preferences"], output_format="list")
    assert run.info.run_name == "tiny_run"
    assert run.data.params == {key: str(value) for key, value in runs.load(RUN).config.items()}
    steps: dict[int, dict[str, float]] = {}
    for name in run.data.metrics:
        for point in mlflow.MlflowClient().get_metric_history(run.info.run_id, name):
            steps.setdefault(point.step, {})[name] = point.value
    check(steps, mlflow.load_table("pairs.parquet", run_ids=[run.info.run_id]))
    shown = mlflow.load_table("pairs.json", run_ids=[run.info.run_id])
    assert len(shown) == 16


def test_trackio_holds_the_numbers_of_the_log(sent):
    trackio = pytest.importorskip("trackio", reason="trackio is no dependency: pip install trackio")
    from trackio.sqlite_storage import SQLiteStorage

    assert sent("trackio") == (9, 16)
    (run,) = trackio.Api().runs("preferences")
    assert run.name == "tiny_run"
    steps, pairs = {}, pd.DataFrame()
    for row in SQLiteStorage.get_logs("preferences", run.name):
        if "pairs" in row:
            pairs = pd.DataFrame(row["pairs"]["_value"])
        else:
            steps[row["step"]] = {key: value for key, value in row.items() if key not in ("step", "timestamp")}
    check(steps, pairs)
