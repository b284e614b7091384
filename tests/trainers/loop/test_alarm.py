"""Alarms: what is understood, when one sets in, what it leaves behind."""

import math
import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

import chesboard
from diagnostics.errors import UserError
from diagnostics.runlog import read_json, read_run
from trainers.config import make_config, read_config
from trainers.loop.alarm import Alarms, parse
from trainers.loop.columns import PROBE_KEYS, STEP_KEYS
from trainers.run import train


def read(text):
    return [str(c) for c in parse(text, probed=PROBE_KEYS, steps=STEP_KEYS)]


def fired(text: str, values: list[float], key: str = "probe/displacement/frac") -> list[int]:
    """Steps at which the alarm sets in when the key takes these values at steps 1, 2, ..."""
    alarms = Alarms(parse(text, probed=PROBE_KEYS, steps=STEP_KEYS))
    return [step for step, value in enumerate(values, 1) if alarms.judge({"step": step, key: value})]


def test_a_key_that_is_probed_means_the_probe_and_others_stand_as_they_are():
    assert read("displacement/frac > 0.8 for 3") == ["probe/displacement/frac > 0.8 for 3"]
    assert read("eval/kl/chosen>=2") == ["eval/kl/chosen >= 2"]
    assert read("loss < 1e-3 for 2; grad_norm > 50") == ["loss < 0.001 for 2", "grad_norm > 50"]
    assert read(["topk_mass/chosen < .9", "track/unsafe/refusal<0.5"]) == [
        "probe/topk_mass/chosen < 0.9",
        "track/unsafe/refusal < 0.5",
    ]
    assert read("probe/response/own > -1") == ["probe/response/own > -1"]
    assert read(" ; ".join(read("common_mode < -2 for 4; rewards/margins > 9"))) == [
        "probe/common_mode < -2 for 4",
        "rewards/margins > 9",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "displacement/frak > 0.8",
            "nothing that is logged is called displacement/frak; did you mean displacement/frac",
        ),
        ("probe/kl/chsen > 1", "did you mean probe/kl/chosen"),
        ("zzz > 1", "the keys are"),
        ("displacement/frac = 0.8", "cannot be read; write for example: displacement/frac > 0.8 for 3"),
        ("displacement/frac > much", "cannot be read"),
        ("displacement/frac > nan", "cannot be read"),
        ("displacement/frac > 0.8 for 0", "cannot be read"),
        ("displacement/frac > 0.8 for ever", "cannot be read"),
        ("loss > 1; displacement/frac", "alarm 'displacement/frac' cannot be read"),
        (["loss > 1", 3], "alarm '3' cannot be read"),
        (3, "alarm '3' cannot be read"),
    ],
)
def test_what_cannot_be_read_is_refused_before_training(text, message):
    with pytest.raises(UserError, match=message):
        make_config({"model": "m", "data": "d", "output_dir": "o", "alarm": text})


def test_a_list_in_the_config_file_is_kept_as_one_text(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("model: m\ndata: d\noutput_dir: o\nalarm:\n  - displacement/frac > 0.8 for 3\n  - loss > 2\n")
    config = make_config(read_config(path))
    assert config.alarm == "probe/displacement/frac > 0.8 for 3; loss > 2"
    assert make_config({"model": "m", "data": "d", "output_dir": "o", "alarm": config.alarm}).alarm == config.alarm
    with pytest.raises(UserError, match="alarm_action is 'halt'; it must be one of warn, stop"):
        make_config({"model": "m", "data": "d", "output_dir": "o", "alarm_action": "halt"})


def test_it_sets_in_at_the_third_evaluation_in_a_row_and_is_said_once():
    assert fired("displacement/frac > 0.8 for 3", [0.9, 0.9, 0.7, 0.9, 0.9, 0.9, 0.9, 0.9]) == [6]
    assert fired("displacement/frac > 0.8 for 3", [0.9, 0.9, 0.7, 0.9, 0.9, 0.8]) == []  # 0.8 is not above 0.8
    assert fired("displacement/frac > 0.8", [0.9, 0.9, 0.1, 0.9]) == [1, 4]  # passed, and set in again


def test_a_step_without_the_key_is_no_evaluation():
    assert fired("displacement/frac > 0.8 for 2", [0.9, math.nan, 0.9, 0.9]) == [3]
    alarms = Alarms(parse("displacement/frac > 0.8 for 2", probed=PROBE_KEYS, steps=STEP_KEYS))
    assert [alarms.judge({"step": s, "loss": 1.0} | row) for s, row in enumerate([{}, {}])] == [[], []]
    assert alarms.unseen() == ["probe/displacement/frac > 0.8 for 2"]


@pytest.mark.parametrize(("op", "steps"), [(">", [3]), (">=", [2]), ("<", [1]), ("<=", [1])])
def test_operators_at_equality(op, steps):
    values = [0.0, 1.0, 2.0]
    assert fired(f"loss {op} 1", values, "loss") == steps


@pytest.fixture
def go(lm_folder, pairs_file, tmp_path):
    """A run of 6 steps, probed at each second one, whose learning rate displaces nearly everything."""

    def run(name: str, **keys):
        values = {"model": lm_folder, "data": pairs_file, "output_dir": str(tmp_path / name)}
        values |= {"learning_rate": 3e-3, "per_device_train_batch_size": 4, "probe_pairs": 4, "heldout_pairs": 2}
        return read_run(train(make_config(values | {"probe_every": 2, "response_types": 2} | keys)))

    return run


def test_a_warning_is_said_logged_and_changes_nothing(go, capsys):
    plain = go("plain", save_model=False)
    log = go("warned", save_model=False, alarm="kl/chosen >= 0 for 2; loss > 100")
    assert "alarm: probe/kl/chosen >= 0 for 2 (step 4:" in capsys.readouterr().out
    texts = log.steps.set_index("step")["alarm"].dropna()
    assert texts.index.tolist() == [4]  # evaluations at steps 2, 4, 6; step 0 is none
    assert texts[4].startswith("probe/kl/chosen >= 0 for 2 (step 4: ")
    assert log.steps.drop(columns="alarm").equals(plain.steps)
    assert log.pairs.equals(plain.pairs)


def test_stop_leaves_a_model_a_checkpoint_and_a_whole_log(go, tmp_path, capsys):
    log = go("stopped", alarm="kl/chosen >= 0 for 2", alarm_action="stop")
    assert log.steps["step"].tolist() == [0, 1, 2, 3, 4]
    probe = log.pairs[log.pairs["split"] == "probe"]
    assert sorted(set(probe["step"])) == [0, 2, 4]
    assert sorted(set(log.tokens["step"])) == [0, 4]
    assert not list((tmp_path / "stopped").rglob("*.arrow"))
    said = capsys.readouterr().out
    assert "stopped by its alarm: probe/kl/chosen >= 0 for 2 (step 4:" in said
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "stopped" / "model")
    saved = AutoModelForCausalLM.from_pretrained(tmp_path / "stopped" / "checkpoints" / "checkpoint-4")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), saved.parameters(), strict=True))


def test_a_stopped_run_goes_on_with_or_without_its_alarm(go):
    plain = go("plain", save_model=False)
    go("run", alarm="kl/chosen >= 0 for 2", alarm_action="stop")
    assert read_json(plain.path.parent / "run" / "config.json")["alarm_action"] == "stop"
    counted = go("run", alarm="kl/chosen >= 0 for 2", alarm_action="stop", resume=True)
    assert counted.steps["step"].tolist() == list(range(7))  # one evaluation is left: counted anew, that is not two
    go("again", alarm="kl/chosen >= 0 for 2", alarm_action="stop")
    free = go("again", resume=True)
    assert free.pairs["chosen_logps"].tolist() == pytest.approx(plain.pairs["chosen_logps"].tolist(), rel=1e-5)


def test_a_step_key_stops_between_probes_and_the_last_probe_is_made(go):
    log = go("loss", alarm="loss > 0 for 3", alarm_action="stop", save_model=False)
    assert log.steps["step"].tolist() == [0, 1, 2, 3]
    assert sorted(set(log.pairs[log.pairs["split"] == "probe"]["step"])) == [0, 2, 3]
    assert log.steps["probe/kl/chosen"].notna().tolist() == [True, False, True, True]
    assert sorted(set(log.tokens["step"])) == [0, 3]


def test_an_alarm_on_what_this_run_does_not_measure_is_refused_at_step_0(go):
    with pytest.raises(UserError, match="this run does not measure probe/kl/chosen; the nearest key that it does is"):
        go("stored", alarm="kl/chosen > 1", reference="precomputed", save_model=False)


def test_a_key_that_never_came_is_named_at_the_end(go, capsys):
    go("unseen", alarm="grad_norm/nothing > 1", save_model=False)
    assert "alarm 'grad_norm/nothing > 1' could not set in: its key was never measured." in capsys.readouterr().out


def test_a_stopped_run_is_no_failure_of_the_command(lm_folder, pairs_file, tmp_path, capsys, monkeypatch):
    command = ["chesboard", "train", "--model", lm_folder, "--data", pairs_file, "--output_dir", str(tmp_path / "run")]
    monkeypatch.setattr(sys, "argv", [*command, "--alarm", "loss > 0", "--alarm_action", "stop"])
    with pytest.raises(SystemExit) as ended:
        chesboard.main()
    assert ended.value.code in (None, 0)
    assert "stopped by its alarm: loss > 0 (step 1:" in capsys.readouterr().out
