"""Flat keys: known ones land in the right place, unknown ones are refused with the nearest name."""

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from diagnostics.errors import DataError, UserError
from trainers import objectives
from trainers.arguments import training_arguments
from trainers.check import check
from trainers.config import (
    OWN,
    USUAL,
    arguments,
    make_config,
    parse_flags,
    read_config,
)
from trainers.track import read_track

NEEDED = {"model": "m", "data": "d", "output_dir": "o"}


def test_keys_are_sorted_by_what_they_belong_to():
    config = make_config(NEEDED | {"beta": 0.3, "learning_rate": 2e-5, "probe_pairs": 7, "seed": 4})
    assert config.hyperparameters == {"beta": 0.3}
    assert config.training["learning_rate"] == 2e-5
    assert config.probe_pairs == 7
    flat = config.flat()
    assert (flat["beta"], flat["learning_rate"], flat["probe_pairs"], flat["seed"]) == (0.3, 2e-5, 7, 4)
    made = training_arguments(config)
    assert (made.learning_rate, made.seed) == (2e-5, 4)


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
        ({"beta": 1e30}, "beta is '1e.30'; it must be a number, 2147483647 at most"),
        ({"learning_rate": float("inf")}, "learning_rate is 'inf'; it must be a number"),
        ({"max_steps": 10**400}, "max_steps is '10{59} ...'; it must be a whole number, 2147483647 at most"),
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
    with pytest.raises(UserError, match=r"optim is 'sgdd'; it must be one of .*, the nearest are sgd"):
        make_config(NEEDED | {"optim": "sgdd"})
    with pytest.raises(UserError, match="training settings do not fit: adam_beta1 is '1'; "):
        training_arguments(make_config(NEEDED | {"adam_beta1": 1}))
    with pytest.raises(UserError, match="training settings do not fit: lr_scheduler_kwargs is "):
        training_arguments(make_config(NEEDED | {"lr_scheduler_kwargs": {"none_such": 1}}))
    with pytest.raises(UserError, match="torch_compile: no run on a CPU is compiled"):
        training_arguments(make_config(NEEDED | {"torch_compile": True, "use_cpu": True}))


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
    with pytest.raises(UserError, match=r"other\.yaml: cannot read this file"):
        read_config(tmp_path / "other.yaml")


def test_a_track_file_is_checked(tmp_path):
    path = tmp_path / "track.json"
    path.write_text('{"prompts": [{"id": "a", "set": "s"}], "groups": {"g": ["x"]}}')
    with pytest.raises(DataError, match=r"prompts\.0\.prompt: Field required"):
        read_track(path)
    path.write_text('{"prompts": []}')
    with pytest.raises(DataError, match="must hold prompts"):
        read_track(path)


def test_ipo_alone_is_refused_with_what_each_ipo_is():
    """Trainers differ in which of the two they call so; the run log names the one that was chosen."""
    with pytest.raises(UserError, match=r"ipo_mean: .* per token\..* ipo_sum: .* on summed log-ratios\.$"):
        make_config(NEEDED | {"objective": "ipo"})
    assert make_config(NEEDED | {"objective": "ipo_sum"}).flat()["objective"] == "ipo_sum"


# --- whatever is written, it works or ends in one short sentence ----------------------------------------------------

EXAMPLES = int(os.environ.get("CHESBOARD_MUTATIONS", "200"))  # 1000 take two minutes of one core
# what sets the process up for other hardware or for the hub, and not only itself
ELSEWHERE = {"deepspeed", "fsdp", "fsdp_config", "parallelism_config", "push_to_hub", "ddp_backend", "local_rank"}
WORDS = st.sampled_from(
    ["", " ", "no", "auto", "none", "loss above 3", "\x1b[31m", "a\nb", "é" * 600, "{", "{}", "[1", "x > 1 for 3"]
)
NUMBERS = st.one_of(
    st.sampled_from([0, -1, 1, 0.5, -0.0, 1e-320, 1e308, 2**31, 2**32, 2**63, 10**29, -(10**29), True, False, None]),
    st.floats(),
    st.integers(-(10**25), 10**25),
)
VALUES = st.recursive(
    WORDS | NUMBERS | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=4,
)
KEYS = st.sampled_from(sorted({*OWN, *arguments(), "beta", "gamma", "alpha", "label_smoothing"})) | st.text(max_size=12)
LINES = ["model: m", "data: d", "output_dir: o", "objective: simpo", "beta: 0.1", "learning_rate: 5e-7", "bf16: false"]
PIECES = ["!!int ", "!!bool", "!!python/object:x ", "&a ", "*a", "[", "{", "}", ": ", "- ", "'", '"', "#", "\t", "\x00"]
PIECES += ["<<", "%", "@", "`", "|", ">", "? ", "9" * 40, "\n", "\r", "\u2028", "[" * 30, "{a: " * 25, "---\n", "..."]


def usable_or_one_sentence(work) -> None:
    error = None
    try:
        work()
    except UserError as mistake:
        error = mistake
    assert error is None or (error.exit_code == 2 and 10 < len(str(error)) < 500), error


def prepared(values):
    """As far as a run looks at its settings before it reads anything."""
    config = make_config(values)
    check(config)
    if not ELSEWHERE & values.keys():
        training_arguments(config)


@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(st.dictionaries(KEYS, VALUES, min_size=1, max_size=3), st.sampled_from(objectives.names()))
def test_any_value_works_or_is_named(values, objective):
    usable_or_one_sentence(lambda: prepared(NEEDED | {"objective": objective} | values))


@settings(max_examples=EXAMPLES, deadline=None, database=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_change_of_a_config_file_works_or_is_named(tmp_path_factory, data):
    text = "\n".join(data.draw(st.permutations(LINES)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text = (
            text[:at]
            + data.draw(st.sampled_from(PIECES) | st.text(max_size=3))
            + text[at + data.draw(st.integers(0, 2)) :]
        )
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    usable_or_one_sentence(lambda: prepared(read_config(path)))


@pytest.mark.parametrize("objective", objectives.names())
def test_every_objective_works_with_its_defaults(objective):
    more = {"reward_model": "r"} if "reward model" in objectives.needs(objective) else {}
    more |= {"likelihood": objectives.likelihood(objective)}
    config = make_config(NEEDED | more | {"objective": objective})
    check(config)
    assert set(config.hyperparameters) == set(objectives.hyperparameters(objective))


@pytest.mark.parametrize(
    ("objective", "key", "meant"),
    [
        ("simpo", "gamma", "gamma_beta_ratio"),
        ("simpo", "simpo_gamma", "gamma_beta_ratio"),
        ("dpo", "kl_coef", "beta"),
        ("dpo", "lr", "learning_rate"),
        ("dpo", "LR", "learning_rate"),
        ("dpo", "epochs", "num_train_epochs"),
        ("dpo", "batch_size", "per_device_train_batch_size"),
        ("dpo", "max_len", "max_length"),
        ("dpo", "warmup", "warmup_steps"),
        ("dpo", "warmup_ratio", "warmup_steps"),
        ("dpo", "model_name_or_path", "model"),
        ("dpo", "learning-rate", "learning_rate"),
        ("dpo_nll", "rpo_alpha", "alpha"),
    ],
)
def test_the_usual_names_of_keys_are_known(objective, key, meant):
    with pytest.raises(UserError, match=f"unknown key '{key}'; did you mean '{meant}'"):
        make_config(NEEDED | {"objective": objective, key: 1})


def test_every_usual_name_means_a_key_there_is():
    every = {*OWN, *arguments(), *(key for name in objectives.names() for key in objectives.hyperparameters(name))}
    assert set(USUAL.values()) <= every
    assert not set(USUAL) & {*OWN, *arguments()}


def test_another_objectives_key_says_whose_it_is():
    with pytest.raises(UserError, match=r"'gamma_beta_ratio': it belongs to objective .*simpo"):
        make_config(NEEDED | {"gamma_beta_ratio": 1.0})


def test_folders_called_like_numbers_stay_themselves(tmp_path):
    assert parse_flags(["--output_dir", "007", "--data", "true"]) == {"output_dir": "007", "data": "true"}
    path = tmp_path / "run.yaml"
    path.write_text("output_dir: 007\nsplit: 2020-01-01\nrun_name: 0x1F\n")
    assert read_config(path) == {"output_dir": "007", "split": "2020-01-01", "run_name": "0x1F"}
    assert make_config(NEEDED | {"output_dir": 7}).output_dir == "7"
    with pytest.raises(UserError, match=r"data is '1.5'; it must be text"):
        make_config(NEEDED | {"data": 1.5})


def test_a_key_that_stands_twice_is_refused(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 1e-6\nlearning_rate: 1e-3\n")
    with pytest.raises(UserError, match=r"line 2 .*'learning_rate' stands twice"):
        read_config(path)


def test_a_mapping_may_be_given_as_itself_as_json_or_as_a_file(tmp_path):
    (tmp_path / "accelerate.json").write_text('{"split_batches": false}')
    for value in ({"split_batches": False}, '{"split_batches": false}', str(tmp_path / "accelerate.json")):
        training_arguments(make_config(NEEDED | {"accelerator_config": value}))
    for value in ("loss above 3", "{", str(tmp_path), 3, ["a"]):
        with pytest.raises(UserError, match=r"accelerator_config is .*; it must be a mapping"):
            make_config(NEEDED | {"accelerator_config": value})


def test_a_key_that_is_newer_than_a_run_has_its_default_there():
    config = make_config({"model": "m", "data": "d", "output_dir": "o"})
    older = {k: v for k, v in json.loads(json.dumps(config.flat())).items() if k != "frames"}
    assert config.changed(older) == []
    assert make_config({"model": "m", "data": "d", "output_dir": "o", "frames": 4}).changed(older) == ["frames"]
