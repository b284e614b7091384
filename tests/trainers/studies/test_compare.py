"""The board's runs: entries, plan, and that nothing finished is run again."""

import json
from pathlib import Path

import pytest
import yaml

from diagnostics.errors import DataError, UserError
from diagnostics.folder import release, take
from reports import build
from trainers.studies import compare as board
from trainers.studies.compare import Entry, parse_entries, parse_rates, plan


@pytest.fixture
def base(tmp_path, lm_folder, pairs_file) -> Path:
    """A config file: two steps on four pairs a batch."""
    values = dict(model=lm_folder, data=pairs_file, max_steps=2, per_device_train_batch_size=4, probe_pairs=4)
    path = tmp_path / "base.yaml"
    path.write_text(yaml.safe_dump(values | dict(heldout_pairs=2, tokens="none", learning_rate=1e-4)))
    return path


def compare(base: Path, out: Path, text: str = "dpo,simpo:beta=1", seeds: int = 1, rates: tuple = ()):
    return board.compare(out, entries=parse_entries(text), seeds=seeds, learning_rates=rates, config=base, jobs=1)


def times(out: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in out.rglob("*") if p.is_file()}


def test_entries_carry_hyperparameters_and_keep_their_label():
    assert parse_entries("dpo, rrpo:alpha=0:phrases=false") == [
        Entry("dpo", "dpo", {}),
        Entry("rrpo:alpha=0:phrases=false", "rrpo", {"alpha": 0, "phrases": False}),
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dpoo", "unknown objective 'dpoo': did you mean 'dpo'"),
        ("ipo", "ipo_sum: Identity preference optimization on summed log-ratios"),
        ("dpo:bta=1", "'dpo:bta=1': unknown hyperparameter 'bta': did you mean 'beta'"),
        ("dpo:beta", "'beta' has no value; write dpo:key=value"),
        ("dpo,dpo", "'dpo' stands there twice"),
        ("dpo:beta=0.5,dpo:beta=.5", "'dpo:beta=.5' stands there twice"),
        (" , ", "is empty"),
    ],
)
def test_wrong_entries_are_refused_by_name(text, message):
    with pytest.raises(UserError) as error:
        parse_entries(text)
    assert message in str(error.value)


def test_learning_rates():
    assert parse_rates(None) == []
    assert parse_rates("1e-6, 5e-6") == [1e-6, 5e-6]
    for text in ("fast", "0", "1e-6,1e-6", "2"):
        with pytest.raises(UserError, match="--learning-rates"):
            parse_rates(text)


def test_plan_gives_every_run_its_label_and_a_folder_of_its_own(tmp_path):
    bases = [dict(model="m", data="d", seed=seed) for seed in (0, 1)]
    runs = plan(parse_entries("dpo,dpo:beta=0.5"), tmp_path, bases, [1e-4, 3e-4])
    assert len({run.output_dir for run in runs}) == len(runs) == 2 * 2 * 2
    last = runs[-1]
    assert last.extras["board_label"] == "dpo:beta=0.5"
    assert (last.hyperparameters["beta"], last.training["learning_rate"], last.seed) == (0.5, 3e-4, 1)
    assert Path(last.output_dir).name == "dpo-beta=0.5-lr0.0003-seed1"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("beta: 0.2", "'beta' belongs to an objective; write it there: --objectives dpo:beta=0.2"),
        ("objective: dpo", "leave out 'objective'"),
        ("output_dir: x", "leave out 'output_dir'"),
        ("learning_rat: 1", "unknown key 'learning_rat'; did you mean 'learning_rate'"),
    ],
)
def test_a_wrong_config_is_refused_before_any_training(base, tmp_path, monkeypatch, line, message):
    monkeypatch.setattr(board, "train", pytest.fail)
    base.write_text(base.read_text() + line + "\n")
    with pytest.raises(UserError) as error:
        compare(base, tmp_path / "out")
    assert message in str(error.value)
    assert not (tmp_path / "out").exists()


def test_a_wrong_value_is_refused_before_any_training(base, tmp_path, monkeypatch):
    monkeypatch.setattr(board, "train", pytest.fail)
    with pytest.raises(UserError, match="beta"):
        compare(base, tmp_path / "out", "dpo,simpo:beta=-1")
    assert not (tmp_path / "out").exists()


def test_finished_runs_are_not_run_again(base, tmp_path, monkeypatch):
    out = tmp_path / "out"
    done, failed = compare(base, out)
    assert ([p.name for p in done], failed) == (["dpo-lr0.0001-seed0", "simpo-beta=1-lr0.0001-seed0"], [])
    record = json.loads((done[0] / "board.json").read_text())
    assert record["steps"] == 2
    assert record["seconds"] > 0
    assert record["cpu_seconds"] > 0
    assert not (done[0] / "model").exists()
    before = times(out)

    with monkeypatch.context() as patch:
        patch.setattr(board, "train", pytest.fail)
        assert compare(base, out) == (done, [])
    assert times(out) == before

    (done[1] / "board.json").unlink()  # as if it had been stopped: only this one starts anew
    assert compare(base, out) == (done, [])
    after = times(out)
    changed = {
        Path(name).parts[len(out.parts)] for name in before.keys() | after.keys() if before.get(name) != after.get(name)
    }
    assert changed == {done[1].name}


def test_a_log_that_lost_its_last_step_is_not_finished(base, tmp_path):
    (done,), _ = compare(base, tmp_path / "out", "dpo")
    log = done / "steps.jsonl"
    whole = log.read_text()
    log.write_text("".join(line + "\n" for line in whole.splitlines()[:-1]))
    compare(base, tmp_path / "out", "dpo")
    assert len(log.read_text().splitlines()) == len(whole.splitlines())


def test_other_settings_or_data_are_refused(base, tmp_path, pairs_file):
    out = tmp_path / "out"
    compare(base, out, "dpo")
    text = base.read_text()
    base.write_text(text.replace("probe_pairs: 4", "probe_pairs: 3"))
    with pytest.raises(UserError, match=r"other settings \(probe_pairs\)"):
        compare(base, out, "dpo")
    base.write_text(text)
    with open(pairs_file, "a") as file:
        file.write('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(UserError, match="the data changed"):
        compare(base, out, "dpo")
    (out / "simpo-lr0.0001-seed0").mkdir()
    (out / "simpo-lr0.0001-seed0" / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match="is no run folder"):
        compare(base, out, "simpo")
    assert (out / "simpo-lr0.0001-seed0" / "notes.txt").exists()


def test_a_run_that_cannot_go_on_is_named_and_tried_again(base, tmp_path, monkeypatch):
    out, real = tmp_path / "out", board.train

    def fails(config):
        if config.objective == "simpo":
            (Path(config.output_dir)).mkdir(parents=True)
            (Path(config.output_dir) / "config.json").write_text(json.dumps(config.flat(), default=str))
            raise DataError("the loss is not finite")
        return real(config)

    with monkeypatch.context() as patch:
        patch.setattr(board, "train", fails)
        done, failed = compare(base, out)
        assert [p.name for p in done] == ["dpo-lr0.0001-seed0"]
        assert failed == ["simpo-beta=1-lr0.0001-seed0: the loss is not finite"]
        with pytest.raises(DataError, match="no run of the board could be finished"):
            compare(base, tmp_path / "other", "simpo")
    done, failed = compare(base, out)
    assert (len(done), failed) == (2, [])


def test_seeds_count_from_the_configs_own(base, tmp_path):
    base.write_text(base.read_text() + "seed: 3\n")
    done, _ = compare(base, tmp_path / "out", "dpo", seeds=2)
    assert [p.name for p in done] == ["dpo-lr0.0001-seed3", "dpo-lr0.0001-seed4"]
    for wrong in ("three", "true", "[1]", "1.5"):
        base.write_text("".join(x for x in base.read_text().splitlines(True) if "seed" not in x) + f"seed: {wrong}\n")
        with pytest.raises(UserError, match=r"seed is '.*'; it must be a whole number"):
            compare(base, tmp_path / "out", "dpo")


def test_one_board_a_folder_and_one_writer_a_run(base, tmp_path):
    out = tmp_path / "out"
    take(out, "compare")
    with pytest.raises(UserError, match=r"process \d+ on host .* \(compare, since"):
        compare(base, out, "dpo")
    release(out)
    take(out / "dpo-lr0.0001-seed0", "train")
    with pytest.raises(UserError, match=r"process \d+ on host .* \(train, since"):
        compare(base, out, "dpo")
    release(out / "dpo-lr0.0001-seed0")


def test_a_stopped_run_is_set_aside_and_is_on_no_report(base, tmp_path):
    (done,), _ = compare(base, tmp_path / "out", "dpo")
    (done / "board.json").unlink()
    steps = done / "steps.jsonl"
    steps.write_text(steps.read_text().splitlines(True)[0])
    compare(base, tmp_path / "out", "dpo")
    assert (done / "aside-1" / "config.json").exists()
    assert build._folders(tmp_path / "out") == [done]
