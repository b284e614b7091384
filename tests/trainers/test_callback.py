"""DisplacementCallback in a trainer that is not ours (TRL's own are in test_callback_trl.py): nothing of the training
is changed by it, and its numbers are the trainer's."""

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import forks
import numpy as np
import pandas as pd
import peft
import pytest
import their_trainer
import torch
import vlms
from datasets import disable_progress_bars
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    EarlyStoppingCallback,
    MixtralConfig,
    MixtralForCausalLM,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainingArguments,
)

from analysis.run import verdict
from diagnostics.errors import DataError, UserError
from diagnostics.folder import release
from diagnostics.pairs import read_pairs
from diagnostics.run_folder import RunFolder
from diagnostics.runlog import read_run
from trainers.callback import DisplacementCallback, random_states_kept

disable_progress_bars()
ROOT = Path(__file__).parents[2]


@pytest.fixture
def texts(pairs_file):
    return [json.loads(line) for line in Path(pairs_file).read_text().splitlines()]


@pytest.fixture
def make(lm_folder, texts, tmp_path):
    """A trainer of the first 16 pairs, the others held out; writes to `theirs`."""
    return lambda **keys: their_trainer.make(lm_folder, texts[:16], tmp_path / "theirs", held=texts[16:], **keys)


@pytest.fixture
def measured(make, tmp_path):
    """Train with the callback into `place`; returns the trainer and the log. also: a further callback; keys: the
    trainer's."""

    def train(callback=None, place="run", resume=None, also=None, **keys):
        trainer = make(**keys)
        for one in also if isinstance(also, list) else [also] if also else []:
            trainer.add_callback(one)
        trainer.add_callback(DisplacementCallback(trainer, tmp_path / place, **({"every": 2} | (callback or {}))))
        trainer.train(resume_from_checkpoint=resume)
        return trainer, read_run(tmp_path / place)

    return train


def lora(model):
    return peft.get_peft_model(
        model, peft.LoraConfig(r=2, lora_dropout=0.3, target_modules="all-linear", task_type="CAUSAL_LM")
    )


def outcome(trainer):
    """All that a training leaves: weights, what is trained, modes, random states, what the trainer logged itself."""
    own = [entry for entry in trainer.state.log_history if "loss" in entry]
    return {
        "weights": {k: v.clone() for k, v in trainer.model.state_dict().items()},
        "trained": [p.requires_grad for p in trainer.model.parameters()],
        "modes": [m.training for m in trainer.model.modules()],
        "reference": [m.training for m in trainer.ref_model.modules()] if trainer.ref_model else [],
        "log": own,
        "random": draws(),
    }


def draws():
    return random.random(), np.random.random(), float(torch.rand(1))  # noqa: NPY002


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, weight in one["weights"].items():
        assert torch.equal(weight, other["weights"][name]), name
    for key in one.keys() - {"weights"}:
        assert one[key] == other[key], key


class Draws(TrainerCallback):
    """Someone who draws from every random state in each step, as data loaders and dropout do."""

    def on_step_begin(self, args, state, control, **kwargs):
        draws()


WAYS = {
    "full": {},
    "LoRA with dropout": {"wrap": lora},
    "checkpointing": {"gradient_checkpointing": True},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2},
    "mixed precision": {"bf16": True},
}


@pytest.mark.parametrize("keys", WAYS.values(), ids=WAYS)
def test_nothing_of_the_training_is_changed(make, measured, keys):
    """Bit for bit; also what the trainer logs, at steps that are probed and at others."""
    ends = []
    for callback in (False, True):
        random.seed(0), np.random.seed(0)  # noqa: NPY002
        if callback:
            trainer, log = measured({"every": 1}, **keys)
        else:
            trainer = make(**keys)
            trainer.train()
        ends.append(outcome(trainer))
    assert_same(*ends)
    assert log.steps["step"].tolist() == [0, 1, 2, 3, 4]
    assert log.steps["probe/displacement/chosen"].notna().all()
    assert log.manifest["weights_moved"]["share"] > 0.1
    assert log.pairs["chosen_kl"].notna().all()


def test_a_reference_in_train_mode_stays_in_it(make, tmp_path):
    """Its dropout is part of the trainer's own numbers."""
    trainer = make(max_steps=1)
    trainer.ref_model.train()
    trainer.ref_model.model.layers[0].eval()
    before = outcome(trainer)["reference"]
    trainer.add_callback(DisplacementCallback(trainer, tmp_path / "run"))
    trainer.train()
    assert outcome(trainer)["reference"] == before
    assert len(set(before)) == 2


def test_its_numbers_are_the_trainers(measured, texts):
    """An update's batch under the weights before it: the probe of the step before. Pairs in the data set's order."""
    trainer, log = measured({"every": 1})
    probe = log.pairs[log.pairs["split"] == "probe"]
    audit = log.audit.set_index("pair_id")
    assert len(probe) == 5 * 16
    for entry in outcome(trainer)["log"]:
        step = entry["step"]
        rows = probe[probe["step"] == step - 1]
        batch = rows[rows["pair_id"].map(audit["source_row"]).between(4 * (step - 1), 4 * step - 1)]
        assert len(batch) == 4
        assert batch["chosen_logps"].mean() == pytest.approx(entry["logps/chosen"], rel=1e-6)
        assert batch["rejected_logps"].mean() == pytest.approx(entry["logps/rejected"], rel=1e-6)
        rewards = 0.1 * (batch["chosen_logps"] - batch["ref_chosen_logps"])
        assert rewards.mean() == pytest.approx(entry["rewards/chosen"], abs=1e-6)
        line = log.steps.set_index("step").loc[step]
        for key in ("loss", "grad_norm", "learning_rate", "logps/chosen", "rewards/chosen"):
            assert line[key] == entry[key]
        groups = [v for k, v in line.items() if k.startswith("grad_norm/")]
        assert sum(g * g for g in groups) ** 0.5 == pytest.approx(entry["grad_norm"], rel=1e-5)
        assert entry["grad_norm"] > 0.4  # it was clipped
    shown = [entry for entry in trainer.state.log_history if "probe/kl/chosen" in entry]
    assert [entry["step"] for entry in shown] == [0, 1, 2, 3, 4]
    assert shown[-1]["probe/kl/chosen"] == log.steps["probe/kl/chosen"].iloc[-1] > 0
    assert log.manifest["parity"]["passed"]
    assert log.manifest["parity"]["max_difference"] == 0
    assert set(log.pairs["split"]) == {"probe", "eval"}
    assert {"gained", "lost", "chosen_eos", "response"} <= set(log.mass["kind"])


def test_the_log_is_one_that_the_pages_read(measured, lm_folder, pairs_file):
    _, log = measured()
    found = verdict.judge(log)
    assert verdict.by_name(found, "parity").passed
    assert 16 in {finding.n for finding in found}
    assert log.config["command"] == "callback"
    assert log.config["learning_rate"] == 3e-3
    assert log.manifest["finished"] == {"step": 4}
    assert log.manifest["pairs"] == {"train": 16, "probe": 16, "eval": 8}
    assert log.manifest["probe_pairs_are"] == "trained on"
    assert log.manifest["reference"]["kind"] == "ref_model"
    ids = {pair.pair_id for pair in read_pairs(pairs_file).pairs[:16]}
    assert set(log.pairs.loc[log.pairs["split"] == "probe", "pair_id"]) == ids  # those of `chesboard flag`
    assert not (log.path / "lock.json").exists()


def test_random_states_are_kept():
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    wanted = draws()
    random.seed(0), np.random.seed(0), torch.manual_seed(0)  # noqa: NPY002
    with random_states_kept():
        draws()
    assert draws() == wanted


def test_precomputed_sums_are_the_reference_and_there_is_no_kl(make, measured):
    first = make()
    batch = first.collate([first.train_dataset[i] for i in range(16)])
    chosen, rejected = (values.tolist() for values in first.reference(None, batch))
    _, log = measured(sums={"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}, callback={"heldout_pairs": 0})
    assert log.manifest["reference"]["kind"] == "sums"
    assert log.manifest["parity"]["passed"]
    assert log.pairs["chosen_kl"].isna().all()
    assert log.tokens["ref_logp"].isna().all()
    wanted = dict(zip(log.audit.set_index("source_row").loc[range(16), "pair_id"], chosen, strict=True))
    assert log.pairs["ref_chosen_logps"].tolist() == [wanted[i] for i in log.pairs["pair_id"]]


class Breaks(TrainerCallback):
    """A training that is stopped in the middle."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_log_goes_on_where_its_trainer_resumes(measured, tmp_path):
    kept = {"save_strategy": "steps", "save_steps": 2}
    _, whole = measured({"every": 1}, place="whole", **kept)
    with pytest.raises(KeyboardInterrupt):
        measured({"every": 1}, also=Breaks(), **kept)
    checkpoint = str(tmp_path / "theirs" / "checkpoint-2")
    with pytest.raises(UserError, match=r"goes on from step 2, but .* holds no log of its start"):
        measured(place="other", resume=checkpoint, **kept)
    _, log = measured({"every": 1}, resume=checkpoint, **kept)
    for table in ("steps", "pairs", "mass", "tokens", "samples"):
        pd.testing.assert_frame_equal(getattr(log, table), getattr(whole, table))
    with pytest.raises(UserError, match="the pairs changed since this run was started"):
        measured({"probe_pairs": 3}, resume=checkpoint, **kept)


def test_a_new_training_sets_the_old_log_aside(measured, tmp_path):
    measured()
    _, log = measured(max_steps=2)
    assert log.steps["step"].tolist() == [0, 1, 2]
    assert read_run(tmp_path / "run" / "aside-1").steps["step"].max() == 4


def test_a_trainer_that_trains_twice_writes_two_logs(measured, tmp_path):
    trainer, first = measured({"alarm": "loss > 0"})
    trainer.train()
    log = read_run(tmp_path / "run")
    assert log.steps["loss"].notna().tolist() == first.steps["loss"].notna().tolist() == [False, True, True, True, True]
    assert log.steps["alarm"].notna().tolist() == first.steps["alarm"].notna().tolist()
    assert log.pairs["chosen_logps"].iloc[0] != first.pairs["chosen_logps"].iloc[0]


class StopsAtThree(TrainerCallback):
    """A training that ends before its time."""

    def on_log(self, args, state, control, logs, **kwargs):
        if "loss" in logs and state.global_step == 3:
            control.should_training_stop = True


def test_a_training_that_ends_early_is_measured_at_its_end(measured):
    _, log = measured({"every": 2}, also=StopsAtThree())
    assert log.steps.loc[log.steps["probe/n"].notna(), "step"].tolist() == [0, 2, 3]
    assert log.manifest["finished"] == {"step": 3}
    assert set(log.tokens["step"]) == {0, 3}


@pytest.mark.parametrize("every", [2, 3], ids=["at a probe", "between probes"])
def test_early_stopping_at_the_end_of_an_epoch_is_measured_before_the_best_weights_come_back(measured, capsys, every):
    """The log is of the last step's weights, the model that is returned is another: that is said."""
    kept = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "max_steps": 12}
    kept |= {"metric_for_best_model": "eval_worse", "greater_is_better": False, "per_device_train_batch_size": 8}
    seen = {}

    class Last(TrainerCallback):
        def on_epoch_end(self, args, state, control, model=None, **keys):
            seen["last"] = model.model.embed_tokens.weight.detach().clone()

        def on_evaluate(self, args, state, control, metrics, **keys):
            metrics["eval_worse"] = float(state.global_step)

    stops = EarlyStoppingCallback(early_stopping_patience=1)
    trainer, log = measured({"every": every}, also=[Last(), stops], **kept)
    assert trainer.state.best_global_step == 2
    assert trainer.state.global_step == 4
    probed = log.steps.loc[log.steps["probe/n"].notna(), "step"].tolist()
    assert probed == ([0, 2, 4] if every == 2 else [0, 3, 4])
    assert set(log.tokens["step"]) == {0, 4}
    assert log.manifest["finished"] == {"step": 4}
    assert log.manifest["returned"]["step"] == 2
    assert "returns the weights of step 2 (load_best_model_at_end); the log ends at 4" in capsys.readouterr().out
    assert not torch.equal(seen["last"], trainer.model.model.embed_tokens.weight)
    assert log.manifest["weights_moved"]["largest"] > 0
    RunFolder(log.path).go_on(4, {})
    assert not {"finished", "returned"} & set(read_run(log.path).manifest)


def test_a_best_checkpoint_that_the_trainer_cannot_read_by_name_is_said(lm_folder, texts, tmp_path, capsys):
    """Mixtral's experts are saved under other names than the model's own: the Trainer leaves them out."""
    AutoTokenizer.from_pretrained(lm_folder).save_pretrained(tmp_path / "mixtral")
    sizes: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "vocab_size": 512}
    sizes |= {"num_attention_heads": 2, "num_key_value_heads": 1, "num_local_experts": 2}
    torch.manual_seed(0)
    MixtralForCausalLM(MixtralConfig(**sizes)).save_pretrained(tmp_path / "mixtral")
    keys = {"eval_strategy": "epoch", "save_strategy": "epoch", "load_best_model_at_end": True, "max_steps": -1}
    keys |= {"metric_for_best_model": "eval_worse", "greater_is_better": False, "per_device_train_batch_size": 8}

    class Worse(TrainerCallback):
        def on_evaluate(self, args, state, control, metrics, **keys):
            metrics["eval_worse"] = float(state.global_step)

    trainer = their_trainer.make(
        tmp_path / "mixtral", texts[:8], tmp_path / "theirs", held=texts[8:12], num_train_epochs=2, **keys
    )
    trainer.add_callback(Worse())
    trainer.add_callback(DisplacementCallback(trainer, tmp_path / "run", every=0))
    trainer.train()
    best = AutoModelForCausalLM.from_pretrained(trainer.state.best_model_checkpoint).state_dict()
    left = sorted(k for k, v in trainer.model.state_dict().items() if not torch.equal(v, best[k]))
    assert left
    assert all("experts" in name or "mlp" in name for name in left)
    said = capsys.readouterr().err
    assert "loads" in said
    assert "by name and left" in said


def test_weights_that_are_gone_before_they_could_be_measured_are_no_end(make, tmp_path, capsys):
    """A trainer that exchanges them and says nothing before."""
    trainer = make(max_steps=4, load_best_model_at_end=True, eval_strategy="epoch", save_strategy="epoch")
    callback = DisplacementCallback(trainer, tmp_path / "run", every=0)
    state, control = trainer.state, TrainerControl()
    state.max_steps = 4
    callback.on_train_begin(trainer.args, state, control)
    state.global_step = 2
    callback.on_epoch_end(trainer.args, state, control)
    with torch.no_grad():
        trainer.model.model.embed_tokens.weight.add_(1)
    callback.on_train_end(trainer.args, state, control)
    log = read_run(tmp_path / "run")
    assert "finished" not in log.manifest
    assert log.steps["step"].tolist() == [0]
    assert "the weights of step 2 were exchanged before they could be measured" in capsys.readouterr().out


def test_a_training_that_resumes_at_its_end_is_measured_there(measured, tmp_path):
    """Its checkpoint lies between two probes."""
    kept = {"save_strategy": "steps", "save_steps": 2, "max_steps": -1, "per_device_train_batch_size": 8}
    with pytest.raises(KeyboardInterrupt):
        measured({"every": 3}, also=Breaks(), num_train_epochs=2, **kept)
    checkpoint = str(tmp_path / "theirs" / "checkpoint-2")
    _, log = measured({"every": 3}, resume=checkpoint, num_train_epochs=1, **kept)
    assert log.steps.loc[log.steps["probe/n"].notna(), "step"].tolist() == [0, 2]
    assert log.manifest["finished"] == {"step": 2}


def test_alarms_of_the_probe_and_of_the_trainers_log(measured, capsys):
    """Two at one step, each in a line of its own; the second ends the training."""
    alarm = {"alarm": "kl/chosen >= 0; rewards/chosen < 9 for 2; slack/mean > 0"}
    _, log = measured(alarm)
    row = log.steps.set_index("step").loc[2]
    said = f"probe/kl/chosen >= 0 (step 2: {row['probe/kl/chosen']:.4g})"
    assert row["alarm"] == f"{said}; rewards/chosen < 9 for 2 (step 2: {row['rewards/chosen']:.4g})"
    assert log.steps["step"].max() == 4
    assert "alarm 'slack/mean > 0' could not set in" in capsys.readouterr().out
    _, log = measured({"alarm": "loss > 0 for 3", "alarm_action": "stop"})
    assert log.steps["step"].max() == 3
    assert "finished" not in log.manifest
    assert log.steps["probe/n"].notna().tolist() == [True, False, True, True]


def test_a_log_does_not_go_on_with_another_reference(make, measured, tmp_path):
    """Of another kind, or of other weights; the log stays as it was, and goes on with the one that it had."""
    kept = {"save_strategy": "steps", "save_steps": 2}
    with pytest.raises(KeyboardInterrupt):
        measured(also=Breaks(), **kept)
    checkpoint, before = str(tmp_path / "theirs" / "checkpoint-2"), (tmp_path / "run" / "steps.jsonl").read_bytes()
    wrong = r"run: the reference is not the one that this run was started with \({}"
    with pytest.raises(
        UserError, match=wrong.format("it is the policy as it was at step 0.*; it was the trainer's ref")
    ):
        measured(resume=checkpoint, sums={"other": [0.0] * 16}, **kept)
    for move in (1e-4, -1e-4):
        trainer = make(**kept)
        with torch.no_grad():
            trainer.ref_model.model.norm.weight.add_(move)
        trainer.add_callback(DisplacementCallback(trainer, tmp_path / "run", every=2))
        with pytest.raises(UserError, match=wrong.format("its log-probs differ by .* nats, and rounding explains")):
            trainer.train(resume_from_checkpoint=checkpoint)
    assert (tmp_path / "run" / "steps.jsonl").read_bytes() == before
    _, log = measured(resume=checkpoint, **kept)
    assert log.manifest["finished"] == {"step": 4}


@pytest.mark.parametrize("twice", [True, False], ids=["one twice", "two"])
def test_two_callbacks_of_one_folder_are_refused_before_anything_is_touched(make, tmp_path, twice):
    trainer = make()
    first = DisplacementCallback(trainer, tmp_path / "run")
    trainer.add_callback(first)
    trainer.add_callback(first if twice else DisplacementCallback(trainer, tmp_path / "theirs" / ".." / "run"))
    with pytest.raises(UserError, match="two DisplacementCallbacks of this trainer write to this folder"):
        trainer.train()
    assert not (tmp_path / "run").exists()


def test_a_training_whose_folder_another_one_takes_ends_its_log_alone(make, tmp_path, capsys):
    """Two trainers of one process at once: neither log holds a row of the other."""
    trainers = [make(max_steps=2) for _ in range(2)]
    first, second = (DisplacementCallback(trainer, tmp_path / "run", every=1) for trainer in trainers)
    events = [(t.args, t.state, t.control) for t in trainers]
    first.on_train_begin(*events[0])
    second.on_train_begin(*events[1])
    trainers[0].state.global_step = 1
    trainers[0].state.max_steps = 2
    first.on_step_end(*events[0])
    first.on_train_end(*events[0])
    assert capsys.readouterr().out.count("its log ends here. ") == 1
    assert (tmp_path / "run" / "lock.json").exists()  # the second's
    trainers[1].state.max_steps = trainers[1].state.global_step = 2
    second.on_step_end(*events[1])
    second.on_train_end(*events[1])
    assert read_run(tmp_path / "run").pairs["step"].unique().tolist() == [0, 2]
    assert read_run(tmp_path / "run" / "aside-1").pairs["step"].unique().tolist() == [0]
    assert not (tmp_path / "run" / "lock.json").exists()


def test_a_folder_that_is_gone_when_the_log_is_closed(make, tmp_path, capsys):
    trainer = make(max_steps=2)
    callback = DisplacementCallback(trainer, tmp_path / "run")
    callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    shutil.rmtree(tmp_path / "run")
    callback.on_train_end(trainer.args, trainer.state, trainer.control)
    assert capsys.readouterr().out.count("its log ends here. ") == 1


class Removes(TrainerCallback):
    def __init__(self, place):
        self.place = place

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 2:
            shutil.rmtree(self.place)


def test_a_folder_that_is_removed_ends_the_log_and_not_the_training(measured, tmp_path, capsys):
    with pytest.raises(DataError, match="no such run folder"):
        measured({"every": 1}, also=Removes(tmp_path / "run"))
    said = capsys.readouterr().out
    assert said.count("warning: the training goes on, and its log ends here. ") == 1
    assert said.count("its folder was removed meanwhile") == 1
    assert "'train_loss'" in said  # the trainer came to its end
    assert not (tmp_path / "run").exists()


def test_nothing_is_written_behind_the_end(measured):
    trainer, log = measured()
    before = (log.path / "steps.jsonl").read_bytes()
    trainer.state.global_step += 1
    trainer.log({"loss": 2.0})
    assert (log.path / "steps.jsonl").read_bytes() == before


def test_what_is_asked_for_is_said_where_it_cannot_be(make, tmp_path):
    trainer = make()
    for keys in ({"every": "50"}, {"every": 1.5}, {"every": True}, {"heldout_pairs": -1}, {"probe_pairs": 0}):
        name, value = next(iter(keys.items()))
        with pytest.raises(UserError, match=f"{name} is {value!r}. Give a whole number of"):
            DisplacementCallback(trainer, tmp_path / "run", **keys)
    for pairs in (5, {"prompt": ["a"], "chosen": ["b"], "rejected": ["c"]}, [1, 2]):
        with pytest.raises(UserError, match=f"the pairs to measure are given as {type(pairs).__name__}. Give a file"):
            DisplacementCallback(trainer, tmp_path / "run", pairs=pairs)


def test_where_the_pairs_come_from_is_said_as_it_is(make, texts, tmp_path, capsys):
    """Of streams the first ones, and how many they hold is not known; of many eval sets those that hold token ids."""
    trainer = make()
    whole = DisplacementCallback(trainer, tmp_path / "run").probed
    assert (whole.rows, whole.given) == (16, False)
    assert "drawn from the trainer's own data set" in whole.said
    given = DisplacementCallback(trainer, tmp_path / "run", pairs=texts[:5]).probed
    assert (given.rows, given.given) == (None, True)
    held = trainer.eval_dataset
    trainer.eval_dataset = {"a": held, "b": held.select([]), "c": held.remove_columns("chosen_ids")}
    capsys.readouterr()
    found = DisplacementCallback(trainer, tmp_path / "run").heldout
    assert len(found.pairs) == 8
    assert "Left out, as they hold no pairs as token ids: b, c." in found.said
    assert "the trainer's sets a, b, c: Left out" in capsys.readouterr().out
    trainer.train_dataset = trainer.train_dataset.to_iterable_dataset()
    stream = DisplacementCallback(trainer, tmp_path / "run", probe_pairs=5).probed
    assert stream.rows is None
    assert stream.said.startswith("5 pairs that come first in the trainer's own data set")


def test_sequences_are_those_that_the_trainer_trains_on(make, tmp_path):
    trainer = make()
    long = max(range(16), key=lambda i: len(trainer.train_dataset[i]["chosen_ids"]))
    row = trainer.train_dataset[long]
    prompt, chosen = row["prompt_ids"], row["chosen_ids"]
    for keep, most in (("start", len(prompt) + 2), ("end", len(prompt) + 1), ("end", 3)):
        trainer.max_length, trainer.keep = most, keep
        found = DisplacementCallback(trainer, tmp_path / "run").probed
        pair = next(p for p in found.pairs if p.source_row == long)
        part = (prompt + chosen)[:most] if keep == "start" else (prompt + chosen)[-most:]
        assert [*pair.chosen.prompt_ids, *pair.chosen.completion_ids] == part
        batch = trainer.collate([row])
        assert len(pair.chosen.completion_ids) == int(batch["completion_mask"][0, 1:].sum())
        assert ("completion_truncated" if keep == "start" else "prompt_truncated") in pair.doubts
        assert pair.chosen.has_eos is (keep == "end")
        assert pair.doubts[0] in found.frame.set_index("source_row").loc[long, "doubts"]
        assert pair.doubts[0] in found.said


def test_what_follows_the_end_of_an_answer_is_said(make, tmp_path):
    """As behind the end of a turn, where a chat template breaks the line."""
    trainer = make()
    rows = [row | {"chosen_ids": [*row["chosen_ids"], 7]} for row in trainer.train_dataset.to_list()]
    trainer.train_dataset = trainer.train_dataset.from_list(rows)
    found = DisplacementCallback(trainer, tmp_path / "run").probed
    assert "In 16 of them tokens follow the end of an answer, which the trainer counts" in found.said
    assert {pair.chosen.has_eos for pair in found.pairs} == {False}
    assert all(pair.chosen.completion_ids[-1] == 7 for pair in found.pairs)
    assert "follow" not in DisplacementCallback(make(), tmp_path / "run").probed.said


def sft(lm_folder, texts, out, **keys):
    """Plain fine-tuning on the chosen answers by transformers' own Trainer."""
    tokenizer = AutoTokenizer.from_pretrained(lm_folder)
    ids = [tokenizer(row["prompt"] + row["chosen"])["input_ids"][:6] for row in texts]
    rows = [{"input_ids": i, "labels": i} for i in ids if len(i) == 6]
    model = AutoModelForCausalLM.from_pretrained(lm_folder, dtype=torch.float32)
    arguments = TrainingArguments(str(out), **(their_trainer.KEYS | keys))
    return Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)


def test_any_trainer_with_pairs_that_are_given(lm_folder, pairs_file, texts, tmp_path):
    """What fine-tuning on chosen answers does to rejected ones; the reference is the model at step 0, also for a
    trainer that resumes."""
    logs, kept = [], {"save_strategy": "steps", "save_steps": 2}
    for pairs, also, resume in ((pairs_file, None, None), (texts, Breaks(), None), (texts, None, "checkpoint-2")):
        trainer = sft(lm_folder, texts, tmp_path / "theirs", **kept)
        trainer.add_callback(also or Draws())
        place = tmp_path / ("file" if pairs is pairs_file else "rows")
        trainer.add_callback(DisplacementCallback(trainer, place, every=1, pairs=pairs, heldout=texts[:4]))
        if also:
            with pytest.raises(KeyboardInterrupt):
                trainer.train()
            continue
        trainer.train(resume_from_checkpoint=resume and str(tmp_path / "theirs" / resume))
        logs.append(read_run(place))
    pd.testing.assert_frame_equal(logs[0].pairs, logs[1].pairs)
    pd.testing.assert_frame_equal(logs[0].steps, logs[1].steps)
    log = logs[0]
    assert log.manifest["reference"]["kind"] == "start"
    assert "train" not in log.manifest["pairs"]
    assert log.manifest["probe_pairs_are"] == "given"
    probe = log.pairs[log.pairs["split"] == "probe"].set_index("pair_id")
    start = probe[probe["step"] == 0]
    for side in ("chosen", "rejected"):
        assert (probe[f"ref_{side}_logps"] - start[f"{side}_logps"]).abs().max() == pytest.approx(0, abs=1e-5)
    end = probe[probe["step"] == 4]
    assert (end["chosen_logps"] > start["chosen_logps"]).mean() > 0.9
    assert end["rejected_logps"].notna().all()
    assert end["chosen_kl"].isna().all()


def test_float16_that_a_cpu_does_not_cast_to_is_not_claimed(measured):
    """accelerate casts nothing then: the numbers, and the noise of them, are those of float32."""
    (_, plain), (_, half) = measured(place="plain"), measured(place="half", fp16=True)
    assert half.manifest["dtypes"] == plain.manifest["dtypes"]
    assert half.manifest["dtypes"]["autocast"] == "none"
    assert half.manifest["parity"] == plain.manifest["parity"]
    pd.testing.assert_frame_equal(half.pairs, plain.pairs)


def test_a_vision_language_model_with_a_plain_tokenizer(tmp_path, lm_folder, texts, monkeypatch, capsys):
    """It is shown its images, by the family that its config names; a model of text alone is not, and that is said."""
    tokenizer = vlms.tiny_tokenizer()
    folder = vlms.save("qwen25", tmp_path / "model", tokenizer)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32)
    Image.fromarray(vlms.media(1).frames()[0]).save(tmp_path / "a.png")
    pairs = [{"prompt": f"which {i} ?", "chosen": " left", "rejected": " up"} for i in range(3)]
    pairs = [row | {"image": str(tmp_path / "a.png")} for row in pairs[:2]] + pairs[2:]
    rows = [{"input_ids": [5, 6, 7], "labels": [5, 6, 7]}] * 8
    arguments = TrainingArguments(str(tmp_path / "theirs"), **(their_trainer.KEYS | {"max_steps": 1}))
    trainer = Trainer(model, arguments, train_dataset=rows, processing_class=tokenizer)
    trainer.add_callback(DisplacementCallback(trainer, tmp_path / "run", pairs=pairs))
    trainer.train()
    log = read_run(tmp_path / "run")
    assert log.audit["status"].tolist() == ["kept"] * 3
    assert np.isfinite(log.pairs["chosen_logps"]).all()
    lengths = log.audit.set_index("source_row")["prompt_length"]
    assert lengths[0] > lengths[2]  # placeholders
    assert not hasattr(tokenizer, "family")  # the trainer's own is as it was
    assert "left out" not in capsys.readouterr().out
    DisplacementCallback(sft(lm_folder, texts, tmp_path / "sft"), tmp_path / "text", pairs=pairs)
    assert "pairs: 2 of 3 rows are left out: the row has images or videos" in capsys.readouterr().out
    monkeypatch.setattr("trainers.models.family_of", lambda config: None)
    with pytest.raises(UserError, match=r"how a model of type qwen2_5_vl is shown them is not known here\. Leave"):
        DisplacementCallback(trainer, tmp_path / "other", pairs=pairs)


def test_what_cannot_be_measured_is_refused_before_the_training(make, lm_folder, texts, tmp_path):
    trainer = make()
    for out in ("theirs", "."):
        with pytest.raises(UserError, match=r"the trainer writes into this folder\. Give an `out` of its own"):
            DisplacementCallback(trainer, tmp_path / out)
    DisplacementCallback(trainer, tmp_path / "theirs" / "chesboard")
    with pytest.raises(UserError, match="Trainer's train set holds no pairs as token ids"):
        DisplacementCallback(sft(lm_folder, texts, tmp_path / "sft"), tmp_path / "run")
    with pytest.raises(UserError, match="nothing that is logged is called loses"):
        DisplacementCallback(trainer, tmp_path / "run", alarm="loses > 3")
    with pytest.raises(UserError, match=r"every is -1\. Give a whole number of 0 or more"):
        DisplacementCallback(trainer, tmp_path / "run", every=-1)
    with pytest.raises(UserError, match="alarm_action is 'shout'"):
        DisplacementCallback(trainer, tmp_path / "run", alarm_action="shout")
    trainer.processing_class = None
    with pytest.raises(UserError, match="the trainer has no tokenizer"):
        DisplacementCallback(trainer, tmp_path / "run")
    trainer = make()
    trainer.data_collator = lambda rows: {"input_ids": torch.zeros(1, 3)}
    with pytest.raises(UserError, match="gives no batch of chosen and rejected"):
        DisplacementCallback(trainer, tmp_path / "run")
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"command": "train"}')
    trainer = make()
    trainer.add_callback(DisplacementCallback(trainer, other))
    with pytest.raises(UserError, match="holds something else than a log of this callback"):
        trainer.train()
    release(other)


TWO = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import their_trainer
from accelerate import PartialState
from chesboard import DisplacementCallback
folder, pairs, place, ranks = sys.argv[1:]
texts = [json.loads(line) for line in Path(pairs).read_text().splitlines()]
trainer = their_trainer.make(
    folder, texts[:16], Path(place) / f"theirs{ranks}", held=texts[16:], per_device_train_batch_size=4 // int(ranks)
)
trainer.add_callback(DisplacementCallback(trainer, Path(place) / f"run{ranks}", every=2))
trainer.train()
PartialState().wait_for_everyone()
PartialState().destroy_process_group()
"""


def test_two_processes_write_the_log_of_one(lm_folder, pairs_file, tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(TWO)
    logs = []
    for ranks in (1, 2):
        done = forks.run(script, lm_folder, pairs_file, tmp_path, ranks, ranks=ranks)
        assert done.returncode == 0, done.stdout
        assert done.stdout.count("step 0: policy and reference differ") == 1
        logs.append(read_run(tmp_path / f"run{ranks}"))
    one, two = logs
    assert one.steps["step"].tolist() == two.steps["step"].tolist()
    pd.testing.assert_frame_equal(one.pairs, two.pairs, rtol=1e-5, atol=1e-5)


SHARDED = """
import json, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
import their_trainer
from accelerate import PartialState
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from chesboard import DisplacementCallback
folder, pairs, place, ranks = sys.argv[1:]
texts = [json.loads(line) for line in Path(pairs).read_text().splitlines()]
trainer = their_trainer.make(folder, texts[:16], Path(place) / f"theirs{ranks}", held=texts[16:])
with torch.no_grad():
    for parameter in trainer.model.parameters():
        parameter.mul_(1.25)
if int(ranks) > 1:  # as accelerate does it on GPUs; on CPUs it does not
    for model in (trainer.model, trainer.ref_model):
        for part in (*model.model.layers, model):
            fully_shard(part)
    trainer.is_fsdp_enabled, trainer.model_wrapped = True, trainer.model
callback = DisplacementCallback(trainer, Path(place) / f"run{ranks}")
trainer.state.max_steps = 1
given = trainer.args, trainer.state, trainer.control
callback.on_train_begin(*given)
trainer.state.global_step = 1
callback.on_step_end(*given)
callback.on_train_end(*given)
for model in (trainer.model, trainer.ref_model) if int(ranks) > 1 else ():
    assert all(isinstance(parameter, DTensor) for parameter in model.parameters())
PartialState().wait_for_everyone()
PartialState().destroy_process_group()
"""


def test_a_sharded_model_is_measured_by_all_processes_at_once(lm_folder, pairs_file, tmp_path):
    """Policy and reference sharded by FSDP2; the policy is another model than the reference."""
    script = tmp_path / "driver.py"
    script.write_text(SHARDED)
    logs = []
    for ranks in (1, 2):
        done = forks.run(script, lm_folder, pairs_file, tmp_path, ranks, ranks=ranks)
        assert done.returncode == 0, done.stdout
        logs.append(read_run(tmp_path / f"run{ranks}"))
    pd.testing.assert_frame_equal(logs[0].pairs, logs[1].pairs, rtol=1e-4, atol=1e-5)
    assert logs[0].pairs["chosen_kl"].min() > 1e-3
    assert logs[1].manifest["engine"].startswith("padded rows; head at once")


def test_it_is_named_at_the_front_door_which_stays_light():
    code = (
        "import sys, chesboard\n"
        "print({'torch', 'transformers'} & {*sys.modules} or '-')\n"
        "from chesboard import DisplacementCallback\n"
        "print(DisplacementCallback.__module__, hasattr(chesboard, 'other'))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["-", "trainers.callback False"], done.stderr
