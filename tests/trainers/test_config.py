"""Flat keys: known ones land in the right place, unknown ones are refused with the nearest name."""

import pytest

from diagnostics.errors import DataError, UserError
from trainers.config import make_config, parse_flags, read_config, read_track, training_arguments

NEEDED = {"model": "m", "data": "d", "output_dir": "o"}


def test_keys_are_sorted_by_what_they_belong_to():
    config = make_config(NEEDED | {"beta": 0.3, "learning_rate": 2e-5, "probe_pairs": 7, "seed": 4})
    assert config.hyperparameters == {"beta": 0.3}
    assert config.training["learning_rate"] == 2e-5
    assert config.probe_pairs == 7
    flat = config.flat()
    assert (flat["beta"], flat["learning_rate"], flat["probe_pairs"], flat["seed"]) == (0.3, 2e-5, 7, 4)
    arguments = training_arguments(config)
    assert (arguments.learning_rate, arguments.seed) == (2e-5, 4)


def test_every_key_of_a_written_config_is_accepted_again():
    first = make_config(NEEDED | {"objective": "simpo", "bf16": True, "lora_r": 4})
    again = make_config(first.flat())
    assert again == first


@pytest.mark.parametrize(
    ("key", "near"), [("lerning_rate", "learning_rate"), ("betaa", "beta"), ("probe_pair", "probe_pairs")]
)
def test_an_unknown_key_names_the_nearest(key, near):
    with pytest.raises(UserError, match=f"unknown key '{key}'; did you mean '{near}'"):
        make_config(NEEDED | {key: 1})


def test_another_objectives_hyperparameter_is_unknown():
    with pytest.raises(UserError, match="unknown key 'gamma"):
        make_config(NEEDED | {"objective": "dpo", "gamma_beta_ratio": 1.0})


def test_an_unknown_objective_names_the_nearest():
    with pytest.raises(UserError, match="unknown objective 'dpoo': did you mean 'dpo'"):
        make_config(NEEDED | {"objective": "dpoo"})


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"reference": "frozen"}, "reference is 'frozen'; it must be one of live, precomputed, none"),
        ({"probe_pairs": -1}, "probe_pairs is '-1'; it must be a whole number"),
        ({"probe_pairs": 1.5}, "probe_pairs is '1.5'"),
        ({"model": ""}, "'model' is missing"),
        ({"learning_rate": "foo"}, "learning_rate is 'foo'; it must be a number"),
        ({"append_eos": "maybe"}, "append_eos is 'maybe'; it must be true or false"),
        (
            {"gradient_accumulation_steps": 0},
            "gradient_accumulation_steps is '0'; it must be a whole number, 1 or more",
        ),
        ({"max_length": 0}, "max_length is '0'"),
    ],
)
def test_wrong_values_are_named(values, said):
    with pytest.raises(UserError, match=said):
        make_config(NEEDED | values)


def test_a_wrong_training_argument_is_named():
    with pytest.raises(UserError, match="optim is 'sgdd'; it must be one of .*, the nearest are sgd"):
        make_config(NEEDED | {"optim": "sgdd"})
    with pytest.raises(UserError, match="training settings do not fit: adam_beta1 is '1'; "):
        training_arguments(make_config(NEEDED | {"adam_beta1": 1}))
    with pytest.raises(UserError, match="training settings do not fit: lr_scheduler_kwargs is "):
        training_arguments(make_config(NEEDED | {"lr_scheduler_kwargs": {"none_such": 1}}))


def test_flags_are_read_as_yaml():
    values = parse_flags(["--learning_rate", "1e-6", "--bf16=true", "--probe-pairs", "3", "--data", "a b.jsonl"])
    assert values == {"learning_rate": 1e-6, "bf16": True, "probe_pairs": 3, "data": "a b.jsonl"}


def test_the_word_no_stays_a_word(tmp_path):
    assert parse_flags(["--save_strategy", "no", "--bf16", "false"]) == {"save_strategy": "no", "bf16": False}
    path = tmp_path / "run.yaml"
    path.write_text("save_strategy: no\nparity: off\nsave_model: false\nlearning_rate: 5e-7\n")
    assert read_config(path) == {"save_strategy": "no", "parity": "off", "save_model": False, "learning_rate": 5e-7}


@pytest.mark.parametrize(("args", "said"), [(["beta", "1"], "stands alone"), (["--beta"], "--beta has no value")])
def test_broken_flags_are_named(args, said):
    with pytest.raises(UserError, match=said):
        parse_flags(args)


def test_a_config_file_is_checked(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 1e-6\nmodel: m\n")
    assert read_config(path) == {"learning_rate": 1e-6, "model": "m"}
    path.write_text("a: [1")
    with pytest.raises(UserError, match="not readable as YAML"):
        read_config(path)
    path.write_text("- 1\n- 2\n")
    with pytest.raises(UserError, match="must hold one 'key: value' a line"):
        read_config(path)
    with pytest.raises(UserError, match="other.yaml: cannot read this file"):
        read_config(tmp_path / "other.yaml")


def test_a_track_file_is_checked(tmp_path):
    path = tmp_path / "track.json"
    path.write_text('{"prompts": [{"id": "a", "set": "s"}], "groups": {"g": ["x"]}}')
    with pytest.raises(DataError, match=r"prompts\.0\.prompt: Field required"):
        read_track(path)
    path.write_text('{"prompts": []}')
    with pytest.raises(DataError, match="must hold prompts"):
        read_track(path)
