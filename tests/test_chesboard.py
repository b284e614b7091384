"""The front door as a person meets it: each mistake ends in one sentence and an exit code, never in a traceback."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import tokenizers
import transformers

import chesboard
from analysis.run import verdict
from analysis.tables import runs
from diagnostics import measures
from diagnostics.flag.flagging import FURTHER
from reports.notebooks import names as notebooks
from trainers import objectives
from trainers.config import OWN, arguments

FAST = ["--learning_rate", "3e-3", "--per_device_train_batch_size", "4", "--save_model", "false"]


@pytest.fixture
def call(monkeypatch, capsys):
    """Run `chesboard ARGS`; returns (exit code, what it printed, what it complained)."""

    def run(*args: str):
        monkeypatch.setattr(sys, "argv", ["chesboard", *map(str, args)])
        with pytest.raises(SystemExit) as ended:
            chesboard.main()
        printed = capsys.readouterr()
        return ended.value.code or 0, printed.out, printed.err

    return run


@pytest.fixture
def trained(call, lm_folder, pairs_file, tmp_path):
    """A finished run folder."""
    code, _, complaint = call(
        "train", "--model", lm_folder, "--data", pairs_file, "--output_dir", tmp_path / "run", *FAST
    )
    assert code == 0, complaint
    return tmp_path / "run"


def test_train_ends_with_the_verdict_and_the_next_command(call, lm_folder, pairs_file, tmp_path):
    run = tmp_path / "a run\x1b[31m"
    code, printed, _ = call("train", "--model", lm_folder, "--data", pairs_file, "--output_dir", run, *FAST)
    assert code == 0
    *_, where, how, following = printed.splitlines()
    assert where.startswith("run: ")
    assert where.endswith("a run\\x1b[31m")
    assert how == "verdict: " + verdict.headline(verdict.judge(runs.load(run)))
    assert re.fullmatch(r"next: chesboard report '.*a run\\x1b\[31m'", following)
    assert "\x1b" not in printed


def one_sentence(complaint: str, *wanted: str) -> None:
    """The complaint is one line of ours that names what it must."""
    lines = [line for line in complaint.splitlines() if line.startswith("chesboard: ")]
    assert len(lines) == 1, complaint
    assert "Traceback" not in complaint
    for text in wanted:
        assert text in lines[0], complaint


def jsonl(path: Path, *rows) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


GOOD = {"prompt": "alpha ?", "chosen": " beta", "rejected": " gamma"}


@pytest.mark.parametrize(
    ("rows", "wanted"),
    [
        ([], ["pairs2.jsonl"]),
        ([GOOD, "{not json"], ["pairs2.jsonl", "line 2"]),
        ([{"prompt": "a", "rejected": "b"}], ["pairs2.jsonl", "chosen"]),
        ([GOOD | {"chosen": ""}], ["pairs2.jsonl", "chosen"]),
        ([GOOD | {"chosen": 3}], ["pairs2.jsonl", "chosen"]),
        ([GOOD | {"rejected": " beta"}], ["pairs2.jsonl", "line 1"]),
    ],
    ids=["empty", "not JSON at line 2", "no chosen", "empty chosen", "chosen is a number", "all rows skipped"],
)
def test_bad_data_names_file_row_and_field(call, lm_folder, tmp_path, rows, wanted):
    path = jsonl(tmp_path / "pairs2.jsonl", *rows)
    for command in (
        ["flag", path, "--model", lm_folder, "--out", tmp_path / "f"],
        ["train", "--model", lm_folder, "--data", path, "--output_dir", tmp_path / "t"],
    ):
        code, _, complaint = call(*command)
        assert code == 3
        one_sentence(complaint, *wanted)


def test_missing_file(call, lm_folder, tmp_path):
    code, _, complaint = call("audit", tmp_path / "none.jsonl", "--model", lm_folder)
    assert code == 3
    one_sentence(complaint, "none.jsonl")


def test_rows_that_cannot_be_used_are_listed_and_the_rest_goes_on(call, lm_folder, tmp_path):
    path = jsonl(tmp_path / "p.jsonl", GOOD, GOOD | {"chosen": ""}, {"prompt": "x", "rejected": "y"})
    code, printed, _ = call("audit", path, "--model", lm_folder, "--out", tmp_path / "audit")
    assert code == 0
    assert "1 of 3 rows kept, 2 skipped; 0 of the kept are doubtful (1 empty_completion, 1 missing_field)." in printed
    assert "Read as prompt: prompt from prompt; chosen from chosen; rejected from rejected" in printed
    frame = pd.read_parquet(tmp_path / "audit" / "audit.parquet")
    assert frame["status"].tolist() == ["kept", "skipped", "skipped"]
    assert "chosen" in frame["reason"][2]


def test_model_folder_missing(call, pairs_file, tmp_path):
    code, _, complaint = call("flag", pairs_file, "--model", tmp_path / "no-model", "--out", tmp_path / "f")
    assert code == 3
    one_sentence(complaint, "no-model", "no such model folder")


def test_tokenizer_without_eos(call, lm_folder, pairs_file, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(lm_folder, folder)
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"[UNK]": 0, "alpha": 1}, unk_token="[UNK]"))
    for path in folder.glob("tokenizer*"):
        path.unlink()
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(folder)
    code, _, complaint = call("flag", pairs_file, "--model", folder, "--out", tmp_path / "f")
    assert code == 3
    one_sentence(complaint, "EOS")


def test_tokenizer_without_pad_is_fine(call, lm_folder, pairs_file, tmp_path):
    folder = tmp_path / "m"
    shutil.copytree(lm_folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    code, _, complaint = call("flag", pairs_file, "--model", folder, "--out", tmp_path / "f")
    assert code == 0, complaint
    with_pad, _, _ = call("flag", pairs_file, "--model", lm_folder, "--out", tmp_path / "g")
    assert with_pad == 0
    a, b = (pd.read_parquet(tmp_path / x / "scores.parquet") for x in "fg")
    pd.testing.assert_frame_equal(a, b)


def test_unknown_key_and_objective(call, lm_folder, pairs_file, tmp_path):
    base = ["train", "--model", lm_folder, "--data", pairs_file, "--output_dir", tmp_path / "r"]
    code, _, complaint = call(*base, "--lerning_rate", "1")
    assert code == 2
    one_sentence(complaint, "unknown key 'lerning_rate'", "learning_rate")
    code, _, complaint = call(*base, "--objective", "dop")
    assert code == 2
    one_sentence(complaint, "unknown objective 'dop'", "dpo")
    assert not (tmp_path / "r").exists()


def test_run_folder_that_exists(call, trained, lm_folder, pairs_file):
    before = (trained / "steps.jsonl").read_bytes()
    code, _, complaint = call("train", "--model", lm_folder, "--data", pairs_file, "--output_dir", trained, *FAST)
    assert code == 2
    one_sentence(complaint, str(trained), "exists already")
    assert (trained / "steps.jsonl").read_bytes() == before


def test_corrupt_run_log(call, trained):
    part = next((trained / "pairs").glob("*.parquet"))
    part.write_bytes(part.read_bytes()[:100])
    for command in (["report", trained], ["gate", trained, "--gates", gates(trained, "probe/logps/chosen", "steps")]):
        code, _, complaint = call(*command)
        assert code == 3
        one_sentence(complaint, part.name)


def gates(folder: Path, metric: str, table: str = "pairs", value: float = -1e9) -> Path:
    path = folder.parent / "gates.yaml"
    path.write_text(f"- {{table: {table}, metric: {metric}, aggregate: mean, op: '>', value: {value}}}\n")
    return path


def test_gate_exit_codes_and_junit(call, trained):
    code, printed, _ = call("gate", trained, "--gates", gates(trained, "chosen_logps"))
    assert code == 0
    assert "pass" in printed
    junit = (trained / "report" / "gates.xml").read_text()
    assert 'tests="1"' in junit
    assert 'failures="0"' in junit
    code, printed, _ = call("gate", trained, "--gates", gates(trained, "chosen_logps", value=1e9))
    assert code == 1
    assert "FAIL" in printed
    assert 'failures="1"' in (trained / "report" / "gates.xml").read_text()


def test_gates_file_with_a_wrong_metric(call, trained):
    code, _, complaint = call("gate", trained, "--gates", gates(trained, "chosen_logp"))
    assert code == 2
    one_sentence(complaint, "chosen_logp", "chosen_logps")


def test_no_command_and_wrong_option(call):
    code, printed, _ = call("--help")
    assert code == 0
    for name in ("demo", "audit", "flag", "train", "compare", "ablate", "trace", "report", "scorecard", "gate", "list"):
        assert name in printed
    assert "pairs" in printed
    code, _, complaint = call("flag")
    assert code == 2
    assert "Missing" in complaint


COMMANDS = ["demo", "show", "audit", "flag", "train", "compare", "ablate", "trace", "report", "scorecard", "gate"]


@pytest.mark.parametrize("name", [*COMMANDS, "pairs rrpo", "pairs leanpo", "pairs vidchain", "pairs mia"])
def test_help_shows_examples(call, name):
    code, printed, _ = call(*name.split(), "--help")
    assert code == 0
    assert f"chesboard {name}" in printed


def test_list_names_everything(call):
    code, printed, _ = call("list", "--details")
    assert code == 0
    for name in ("dpo", "ipo_mean", "ches_score", "run_report", "arXiv:2410.08847"):
        assert name in printed


def test_list_is_a_line_a_name(call, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, printed, _ = call("list")
    assert code == 0
    names = [line.split()[0] for line in printed.splitlines() if line]
    everything = {*objectives.names(), *measures.names(), *FURTHER, *notebooks()}
    assert everything <= set(names)
    assert len(names) < len(everything) + 10
    assert all(len(line) < 90 for line in printed.splitlines()[:-1])


@pytest.mark.parametrize("args", [("--help", "simpo"), ("--objective", "simpo", "--help")])
def test_help_of_train_names_every_key(call, args):
    code, printed, _ = call("train", *args)
    assert code == 0
    shown = re.findall(r"^--(\w+)", printed, flags=re.MULTILINE)
    assert sorted(shown) == sorted([*OWN, *arguments(), *objectives.hyperparameters("simpo")])
    assert re.search(r"--learning_rate 1e-06", printed)
    assert re.search(r"--gamma_beta_ratio +0.5 +of simpo: a number", printed)
    assert re.search(r"--model +required", printed)


def test_help_of_train_for_an_objective_there_is_not(call):
    code, _, complaint = call("train", "--help", "simpoo")
    assert code == 2
    one_sentence(complaint, "unknown objective 'simpoo'", "simpo")


def test_a_card_shows_every_hyperparameter_with_its_default(call):
    code, printed, _ = call("list", "objectives", "simpo")
    assert code == 0
    assert re.search(r"--gamma_beta_ratio +default 0.5; a number", printed)


def test_what_is_not_built_says_why(call):
    code, _, complaint = call("list", "objectives", "distillation_dpo")
    assert code == 2
    one_sentence(complaint, "Distillation-DPO", "gradient is exactly 0")


def test_version(call):
    code, printed, _ = call("--version")
    assert code == 0
    assert re.fullmatch(r"chesboard \d+\.\d+\.\d+\S*\n", printed)


def test_a_shell_can_complete_commands(call, monkeypatch):
    monkeypatch.setenv("_CHESBOARD_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "chesboard tr")
    monkeypatch.setenv("COMP_CWORD", "1")
    _, printed, _ = call()
    assert printed.split() == ["train", "trace"]


def test_the_example_gates_can_be_printed_and_used(call, trained, tmp_path):
    code, printed, _ = call("gate", "--example")
    assert code == 0
    (tmp_path / "gates.yaml").write_text(printed)
    code, printed, _ = call("gate", trained, "--gates", tmp_path / "gates.yaml")
    assert code in (0, 1)
    assert 'tests="5"' in (trained / "report" / "gates.xml").read_text()
    code, _, complaint = call("gate", trained)
    assert code == 2
    one_sentence(complaint, "gate --example")


def test_judging_a_run_needs_no_torch(tmp_path):
    """A fresh process, because this one has torch already."""
    code = "import sys, reports.console, reports.gate; print('torch' in sys.modules)"
    root = str(Path(chesboard.__file__).parent)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert done.stdout == "False\n"


def test_the_demo_does_not_overwrite(call, tmp_path):
    (tmp_path / "file").write_text("mine")
    code, _, complaint = call("demo", "--out", tmp_path)
    assert code == 2
    one_sentence(complaint, "exists already")


def test_escape_codes_in_an_id_do_not_reach_the_terminal(call, lm_folder, tmp_path):
    path = jsonl(tmp_path / "p.jsonl", GOOD | {"id": "\x1b]0;pwned\x07\x1b[31m[bold]x"})
    code, printed, _ = call("flag", path, "--model", lm_folder, "--out", tmp_path / "f")
    assert code == 0
    assert "\x1b" not in printed
    assert "1 pairs scored" in printed


def test_escape_codes_in_a_gate_and_in_paths_do_not_reach_the_terminal(call, trained, tmp_path):
    hostile = "\x1b]0;pwned\x07\x9b31m\r%0A::error::x\u202e"
    path = tmp_path / "gates\x1b[31m.yaml"
    rules = [dict(table="steps", metric="loss", aggregate="last", op="<", value=-1, name=hostile, severity="warning")]
    path.write_text(json.dumps(rules))
    code, printed, _ = call("gate", trained, "--gates", path)
    assert code == 0
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202e]", printed)
    annotation = [line for line in printed.splitlines() if line.startswith("::")]
    assert len(annotation) == 1
    assert annotation[0].startswith("::warning::\\x1b]0;pwned\\x07\\x9b31m\\r%250A::error::x\\u202e: missed")
    path.write_text("x: [")
    code, printed, complaint = call("gate", trained, "--gates", path)
    assert code == 2
    one_sentence(complaint, "gates\\x1b[31m.yaml")
    assert "\x1b" not in printed + complaint


@pytest.mark.parametrize(
    "args",
    [
        ["--learning_rate", "-1"],
        ["--seed", "1099511627776"],
        ["--per_device_train_batch_size", "0"],
        ["--accelerator_config", "loss above 3"],
        ["--objective", "{{{{"],
        ["--num_train_epochs", ".nan"],
        ["--beta", "1e999"],
        ["--lr_scheduler_kwargs", "{none_such: 1}"],
        ["--alarm", "x" * 600],
    ],
)
def test_settings_that_cannot_work_are_named_before_anything_is_read(call, tmp_path, args):
    code, _, complaint = call("train", "--model", "M", "--data", "d", "--output_dir", tmp_path / "r", *args)
    assert code == 2
    one_sentence(complaint, args[0][2:])
    assert len(complaint) < 500
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "args",
    [
        ["--output_dir", "{file}"],
        ["--output_dir", "{file}/x"],
        ["--learning_rate", "foo"],
        ["--gradient_accumulation_steps", "0"],
        ["--report_to", "wandb"],
        ["--data", "[a"],
        ["--config", "{folder}"],
        ["--track", "{folder}"],
        ["--optim", "none_such"],
        ["--max_length", "1"],
    ],
)
def test_wrong_settings_end_in_one_sentence(call, lm_folder, pairs_file, tmp_path, args):
    known = {"file": pairs_file, "folder": str(tmp_path)}
    base = ["--model", lm_folder, "--data", pairs_file, "--output_dir", str(tmp_path / "r")]
    code, _, complaint = call("train", *base, *(a.format(**known) for a in args))
    assert code in (2, 3)
    one_sentence(complaint)


def test_no_argument_of_flag_and_audit_overwrites_a_file(call, lm_folder, pairs_file):
    for command in ("flag", "audit"):
        code, _, complaint = call(command, pairs_file, "--model", lm_folder, "--out", pairs_file)
        assert code in (2, 3)
        one_sentence(complaint)


def test_flag_forecasts_from_the_front_door(call, lm_folder, pairs_file, tmp_path):
    probe = tmp_path / "probe.jsonl"
    probe.write_text(json.dumps({"prompt": "alpha ?", "answer": " beta gamma"}) + "\n")
    start = ["flag", pairs_file, "--model", lm_folder, "--out", tmp_path / "f", "--probe", probe, "--forecast"]
    code, printed, _ = call(*start, "--by", "set_rate", "--below", 0)
    assert code == 0
    assert "the lowest values are most prone" in " ".join(printed.split())
    assert "By set_rate, the first step on the whole data lowers the chosen answer" in " ".join(printed.split())
    scores = pd.read_parquet(tmp_path / "f" / "scores.parquet")
    assert scores[["set_rate", "probe_influence", "self_rate"]].notna().all().all()
    assert (scores["flagged"] == (scores["set_rate"] < 0)).all()
    code, _, complaint = call("flag", pairs_file, "--model", lm_folder, "--out", tmp_path / "g", "--by", "set_rate",
                              "--above", 0)  # fmt: skip
    assert code == 2
    assert "give --below" in complaint
    assert not (tmp_path / "g").exists()
