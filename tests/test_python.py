"""What `import chesboard` gives to one's own notebook."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from datasets import Dataset, DatasetDict
from transformers import AutoModelForCausalLM, AutoTokenizer

import chesboard
from analysis.run import verdict
from analysis.tables import runs
from diagnostics.errors import DataError, UserError
from diagnostics.flag.flagging import flag
from trainers.models import load_model, load_tokenizer

ROOT = Path(__file__).parents[1]
DATA = ROOT / "tests" / "data"
PLOTS = [name for name in dir(chesboard) if name.startswith("plot_")]


def test_importing_it_is_light_and_so_is_reading_a_run():
    code = (
        "import sys, chesboard; heavy = {'torch', 'transformers', 'pandas', 'matplotlib'}\n"
        "print(sorted(heavy & {*sys.modules}))\n"
        f"chesboard.plot_curves(chesboard.load_run({str(DATA / 'tiny_run')!r}))\n"
        "print(sorted({'torch', 'transformers'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["[]", "[]"], done.stderr


def test_every_name_that_is_offered_is_there_and_says_what_it_does():
    assert {"DisplacementCallback", "judge", "load_run", "load_scores", "score_pairs"} < {*dir(chesboard)}
    assert len(PLOTS) == 6
    for name in chesboard._OFFERED:
        assert len(getattr(chesboard, name).__doc__) > 60, name
    with pytest.raises(AttributeError, match="no attribute 'load_runs'"):
        _ = chesboard.load_runs


def test_the_run_and_its_verdict_are_those_of_the_page():
    run = chesboard.load_run(DATA / "tiny_run")
    assert len(run.pairs) == 108
    assert list(map(str, chesboard.judge(run))) == list(map(str, verdict.judge(runs.load(DATA / "tiny_run"))))
    assert len(chesboard.load_scores(DATA / "tiny_flags")) == 40


@pytest.mark.parametrize("name", PLOTS)
def test_a_plot_is_a_picture_in_any_notebook(name):
    figure = getattr(chesboard, name)(chesboard.load_run(DATA / "tiny_run"))
    assert figure._repr_png_().startswith(b"\x89PNG")
    assert any(axes.has_data() for axes in figure.axes)


def test_a_plot_draws_what_the_pairs_say():
    run = chesboard.load_run(DATA / "tiny_run")
    rows = runs.rows(run, "eval")
    median = rows.groupby("step")["chosen_change"].median()
    line = next(line for line in chesboard.plot_curves(run, "eval").axes[0].lines if line.get_label() == "median")
    assert list(line.get_ydata()) == pytest.approx(median.to_list(), abs=1e-12)


def test_what_was_not_measured_is_said(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "steps.jsonl").write_text('{"step": 1, "loss": 0.5}\n')
    run = chesboard.load_run(tmp_path)
    for name in PLOTS:
        with pytest.raises(DataError, match=f"^{tmp_path.name}: "):
            getattr(chesboard, name)(run)


def test_without_a_path_it_is_the_variable_then_the_newest(tmp_path, monkeypatch):
    monkeypatch.delenv(runs.RUN, raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(
        DataError, match=r"no folder is given, and there is no run below runs/. Give one, or set CHESBO"
    ):
        chesboard.load_run()
    for age, name in enumerate(("new", "old", "aside-1")):
        shutil.copytree(DATA / "tiny_run", tmp_path / "runs" / name)
        os.utime(tmp_path / "runs" / name / "config.json", (1000 - age, 1000 - age))
    os.utime(tmp_path / "runs" / "aside-1" / "config.json", (2000, 2000))
    shutil.copytree(DATA / "tiny_flags", tmp_path / "runs" / "flag")
    assert chesboard.load_run().name == "new"
    monkeypatch.setenv(runs.RUN, "runs/old")
    assert chesboard.load_run().name == "old"
    assert len(chesboard.load_scores()) == 40  # which the variable does not name
    monkeypatch.setenv(runs.RUN, "runs/gone")
    with pytest.raises(DataError, match=r"runs/gone: no such run folder"):
        chesboard.load_run()


def test_a_folder_of_scores_is_no_run():
    """Else its verdict would read as that of a run that was stopped."""
    with pytest.raises(DataError, match=r"tiny_flags: holds scores, not a run\. Read it with load_scores"):
        chesboard.load_run(DATA / "tiny_flags")


def given_as(kind, path):
    rows = [json.loads(line) for line in Path(path).read_text().splitlines()]
    return {"file": path, "rows": rows, "frame": pd.DataFrame(rows)}[kind]


@pytest.mark.parametrize("kind", ["file", "rows", "frame"])
def test_scores_are_those_of_flag_whatever_the_pairs_are_given_as(kind, lm_folder, pairs_file, tmp_path):
    model, tokenizer = load_model(lm_folder), load_tokenizer(lm_folder)
    wanted, *_ = flag(pairs_file, model, tokenizer, tmp_path / "flag", model_name=lm_folder, max_length=128)
    found = chesboard.score_pairs(model, tokenizer, given_as(kind, pairs_file))
    pd.testing.assert_frame_equal(found, wanted, check_exact=False, rtol=1e-12)
    assert found["status"].eq("scored").sum() > 20


def test_scoring_leaves_model_and_random_states_alone(lm_folder, pairs_file):
    """As others load them: in training mode, without what load_tokenizer notes."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(lm_folder).train(), AutoTokenizer.from_pretrained(lm_folder)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    states = torch.get_rng_state(), random.getstate()
    chesboard.score_pairs(model, tokenizer, pairs_file)
    assert model.training
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1] == random.getstate()


def test_pairs_that_are_none_are_one_sentence(lm_folder):
    model, tokenizer = load_model(lm_folder), load_tokenizer(lm_folder)
    with pytest.raises(UserError, match=r"given as int. Give a file, a hub id, a data set, a DataFrame or a list"):
        chesboard.score_pairs(model, tokenizer, 3)


def test_several_splits_are_one_sentence(lm_folder):
    model, tokenizer = load_model(lm_folder), load_tokenizer(lm_folder)
    one = Dataset.from_list([{"prompt": "a", "chosen": " b", "rejected": " c"}])
    with pytest.raises(
        UserError, match=r"a DatasetDict with the splits train, test\. Give one of them: pairs\['train'\]"
    ):
        chesboard.score_pairs(model, tokenizer, DatasetDict({"train": one, "test": one}))
    assert chesboard.score_pairs(model, tokenizer, one)["status"].to_list() == ["scored"]


@pytest.mark.parametrize("tokenizer", [None, "gpt2", object()])
def test_no_tokenizer_and_no_model_are_one_sentence(lm_folder, pairs_file, tokenizer):
    with pytest.raises(UserError, match=r"is no tokenizer\. Give the model's own"):
        chesboard.score_pairs(load_model(lm_folder), tokenizer, pairs_file)
    with pytest.raises(UserError, match=r"'gpt2' is no model\. Give one that is loaded"):
        chesboard.score_pairs("gpt2", load_tokenizer(lm_folder), pairs_file)


def test_a_run_shows_itself_in_one_line():
    run = chesboard.load_run(DATA / "tiny_run")
    assert repr(run) == (
        f"RunLog({str(DATA / 'tiny_run')!r}: {len(run.steps)} steps, {len(run.pairs)} pairs, {len(run.mass)} mass, "
        f"{len(run.tokens)} tokens, {len(run.audit)} audit)"
    )
