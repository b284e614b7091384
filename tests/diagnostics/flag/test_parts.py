"""A scoring job that is killed, changed or shared between processes: always the same table, or one clear sentence."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import diagnostics.flag.flagging as flagging
from diagnostics.errors import DataError, UserError
from diagnostics.flag.flagging import flag
from trainers.models import load_model, load_tokenizer

ROOT = Path(__file__).parents[3]
TOKENS = 60  # one to three pairs a batch

# a process that forks itself, so that one import serves many starts; each start kills itself before or after a batch of
# its own, drawn by seed: by the clock, a loaded machine would be killed elsewhere, or too early for ever
KILLER = """
import os, random, signal, sys
from pathlib import Path
import torch
import diagnostics.flag.flagging as flagging
from trainers.models import load_model, load_tokenizer, quiet
quiet()
torch.set_num_threads(1)
data, lm, out = sys.argv[1:]
model, tokenizer, rng, kills = load_model(lm), load_tokenizer(lm), random.Random(0), 0
score = flagging.rows
for name in flagging.MEASURES:
    flagging.measures.load(name)  # imported once, not in every start
def start(folder, batch=None, after=False):
    def rows(*given):
        nonlocal batch
        batch = None if batch is None else batch - 1
        if batch == 0 and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        found = score(*given)
        if batch == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found
    pid = os.fork()
    if pid == 0:
        flagging.rows = rows
        flagging.flag(data, model, tokenizer, folder, model_name=lm, batch_tokens=60, write_kept=folder + "/kept.jsonl")
        os._exit(0)
    return pid
os.waitpid(start(out + "-whole"), 0)
while not Path(out, "scores.parquet").exists() or Path(out, "parts").exists():
    status = os.waitpid(start(out, rng.randint(1, 2), rng.random() < 0.5), 0)[1]
    assert os.WIFSIGNALED(status) or status == 0
    kills += os.WIFSIGNALED(status)
    assert kills < 100
print(kills)
"""


@pytest.fixture
def go(lm_folder, pairs_file, tmp_path):
    """Flag in small batches; `model` changes the loaded model first."""

    def run(name: str, *, data: str = pairs_file, dtype: str = "float32", change=None, **options):
        model, tokenizer = load_model(lm_folder, dtype=dtype), load_tokenizer(lm_folder)
        if change:
            change(model, tokenizer)
        settings = {"model_name": lm_folder, "batch_tokens": TOKENS} | options
        flag(data, model, tokenizer, tmp_path / name, **settings)
        return (tmp_path / name / "scores.parquet").read_bytes()

    return run


@pytest.fixture
def stopped(go, monkeypatch):
    """A job that was interrupted after some batches; returns (how to go on, batches that were scored)."""

    def stop(name: str = "job", after: int = 4, **options):
        calls, rows = [], flagging.rows

        def counted(pairs, *rest):
            if len(calls) == after:
                raise KeyboardInterrupt
            calls.append([p.pair_id for p in pairs])
            return rows(pairs, *rest)

        with monkeypatch.context() as patch:
            patch.setattr(flagging, "rows", counted)
            with pytest.raises(KeyboardInterrupt):
                go(name, **options)
        return calls

    return stop


def test_a_stopped_job_goes_on_and_scores_nothing_twice(go, stopped, monkeypatch, tmp_path):
    whole = go("whole")
    first = {i for batch in stopped() for i in batch}
    assert len(first) >= 4
    assert not (tmp_path / "job" / "scores.parquet").exists()
    later, rows = [], flagging.rows
    monkeypatch.setattr(flagging, "rows", lambda p, *r: (later.extend(x.pair_id for x in p), rows(p, *r))[1])
    assert go("job") == whole
    assert len(later) == len(set(later)) == 24 - len(first)
    assert not first & set(later)
    assert {p.name for p in (tmp_path / "job").iterdir()} == {
        "scores.parquet", "audit.parquet", "config.json", "manifest.json",
    }  # fmt: skip


def test_a_finished_job_stays_as_it_is(go, monkeypatch, tmp_path, capsys):
    """A loop that starts it again for ever comes to an end; other settings do not pass for these."""
    table = go("job")
    monkeypatch.setattr(flagging, "rows", pytest.fail)
    kept = tmp_path / "kept.jsonl"
    assert go("job", write_kept=str(kept)) == table
    assert "job: holds the scores already; nothing is left to do." in capsys.readouterr().out
    assert len(kept.read_text().splitlines()) == 22
    with pytest.raises(UserError, match=r"holds scores already, made with another by\."):
        go("job", by="ches_score")
    (tmp_path / "job" / "config.json").unlink()
    with pytest.raises(UserError, match="another kind"):
        go("job")


def test_killed_while_removing_its_parts_it_is_finished(go, monkeypatch, tmp_path):
    table, real = go("whole"), shutil.rmtree

    def dies(folder, **how):
        if folder.exists():
            next(folder.rglob("*.arrow")).unlink()  # some are gone, others not
            raise KeyboardInterrupt
        real(folder, **how)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", dies)
        with pytest.raises(KeyboardInterrupt):
            go("job")
    monkeypatch.setattr(flagging, "rows", pytest.fail)
    assert go("job") == table
    assert not list((tmp_path / "job").glob("parts*"))


def test_stopped_between_the_table_and_the_rows_written_back(go, monkeypatch, tmp_path):
    """The last thing that a job removes is its parts, so that what comes before is done again."""
    kept = tmp_path / "kept.jsonl"
    with monkeypatch.context() as patch:
        patch.setattr(flagging, "write_back", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            go("job", write_kept=str(kept))
    table = (tmp_path / "job" / "scores.parquet").read_bytes()
    assert go("job", write_kept=str(kept)) == table
    assert len(kept.read_text().splitlines()) == 22


def test_a_torn_part_is_scored_again(go, stopped, tmp_path):
    whole = go("whole")
    stopped()
    (part,) = (tmp_path / "job" / "parts" / "pairs").glob("*.arrow")
    part.write_bytes(part.read_bytes()[:-300])
    assert go("job") == whole


def weights(model, tokenizer):
    with torch.no_grad():
        model.lm_head.weight[0, 0] += 1e-3


def vocabulary(model, tokenizer):
    tokenizer.add_tokens(["omega"])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"change": weights}, r"another model \(its weights\)\."),
        ({"change": vocabulary}, r"another tokenizer\."),
        ({"dtype": "bfloat16"}, r"another dtype\."),
        ({"max_length": 90}, r"another max_length\."),
        ({"by": "ches_score", "count": 3}, r"another by, another count\."),
        ({"append_eos": False}, r"another append_eos\."),
        ({"batch_tokens": 70}, r"another batch_tokens\."),
    ],
    ids=["weights", "tokenizer", "dtype", "max_length", "rule", "eos", "batch"],
)
def test_a_change_is_refused_by_name(go, stopped, tmp_path, options, said):
    stopped()
    with pytest.raises(UserError, match=f"job: scoring was begun here with {said} Give the same again"):
        go("job", **options)
    assert not (tmp_path / "job" / "scores.parquet").exists()


def test_changed_data_is_refused_and_moved_data_is_not(go, stopped, pairs_file, tmp_path):
    whole = go("whole")
    stopped()
    moved = tmp_path / "moved.jsonl"
    lines = Path(pairs_file).read_text().splitlines(keepends=True)
    moved.write_text("".join(lines[:-1]))
    with pytest.raises(UserError, match=r"begun here with another data set\."):
        go("job", data=str(moved))
    moved.write_text("".join(lines))
    assert go("job", data=str(moved)) == whole


def test_a_folder_of_another_run_is_left_alone(go, tmp_path):
    (tmp_path / "job").mkdir()
    config = tmp_path / "job" / "config.json"
    config.write_text(json.dumps({"objective": "dpo"}))
    with pytest.raises(UserError, match="holds a run of another kind"):
        go("job")
    assert json.loads(config.read_text()) == {"objective": "dpo"}


def test_rows_that_another_process_should_have_written_are_missed(go, monkeypatch):
    monkeypatch.setattr(flagging, "score_batches", lambda *a, **k: iter(()))
    with pytest.raises(DataError, match="24 pairs are not in this folder"):
        go("job")


def test_killed_at_random_moments_it_ends_in_the_same_file(lm_folder, pairs_file, tmp_path):
    """SIGKILL, as the kernel or a batch system sends it; each start goes on from the last."""
    out, whole = tmp_path / "job", tmp_path / "job-whole"
    command = [sys.executable, "-c", KILLER, pairs_file, lm_folder, str(out)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) >= 3, done.stdout
    for name in ("scores.parquet", "kept.jsonl"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
