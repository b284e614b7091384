"""DisplacementCallback in TRL's own trainers, where TRL is installed: weights are the same to the last bit with and
without it, and its numbers are those that TRL logs."""

import hashlib
import json
import random
from pathlib import Path

import numpy as np
import pandas as pd
import peft
import pytest
import torch
from datasets import Dataset, disable_progress_bars
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback

from diagnostics.errors import UserError
from diagnostics.runlog import read_run
from trainers.callback import DisplacementCallback

trl = pytest.importorskip("trl", minversion="1.16.0", reason="TRL is optional: pip install -e '.[trl]'")
pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore:You are importing from 'trl.experimental'")
disable_progress_bars()

KEYS = {
    "learning_rate": 3e-3, "max_steps": 4, "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": "none",
    "seed": 0, "gradient_checkpointing": False, "bf16": False, "use_cpu": True, "save_strategy": "no",
    "max_grad_norm": 0.4, "disable_tqdm": True, "train_sampling_strategy": "sequential",
}  # fmt: skip
EVALUATED = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 8}


def lora(trained: bool = False):
    """Of a new adapter, or of one that is not zero at its start."""
    return peft.LoraConfig(
        r=2, lora_dropout=0.3, target_modules="all-linear", exclude_modules="lm_head", task_type="CAUSAL_LM",
        init_lora_weights=not trained,
    )  # fmt: skip


# the policy and the trainer's keys; which reference that is; whether TRL's own training numbers have no dropout
WAYS = {
    "full": ({}, "ref_model"),
    "LoRA": ({"peft_config": lora()}, "off"),
    "LoRA with dropout": ({"peft_config": lora(), "disable_dropout": False}, "off"),
    "an adapter trained before": ({"wrap": lora(trained=True)}, "ref"),
    "checkpointing": ({"gradient_checkpointing": True}, "ref_model"),
    "accumulation": ({"gradient_accumulation_steps": 2, "per_device_train_batch_size": 2}, "ref_model"),
    "precomputed": ({"precompute_ref_log_probs": True}, "sums"),
    "a reference that moves": ({"sync_ref_model": True, "ref_model_sync_steps": 2}, "moving"),
    "bfloat16": ({"bf16": True}, "ref_model"),
    "cut": ({"max_length": 13}, "ref_model"),
}


@pytest.fixture
def texts(pairs_file):
    return [json.loads(line) for line in Path(pairs_file).read_text().splitlines()]


def train(lm_folder, texts, place, *, callback, wrap=None, peft_config=None, also=None, resume=None, **keys):
    """A DPOTrainer of 16 pairs, the other 8 held out, after its training."""
    torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
    model = AutoModelForCausalLM.from_pretrained(lm_folder, dtype=torch.float32)
    arguments = trl.DPOConfig(str(place / "theirs"), **(KEYS | EVALUATED | keys))
    trainer = trl.DPOTrainer(
        peft.get_peft_model(model, wrap) if wrap else model, args=arguments, peft_config=peft_config,
        train_dataset=Dataset.from_list(texts[:16]), eval_dataset=Dataset.from_list(texts[16:]),
        processing_class=AutoTokenizer.from_pretrained(lm_folder),
    )  # fmt: skip
    if also:
        trainer.add_callback(also)
    if callback:
        trainer.add_callback(DisplacementCallback(trainer, place / "run", every=1))
    trainer.train(resume_from_checkpoint=resume)
    return trainer


def outcome(trainer):
    """A hash of the weights; which are trained; random states; what TRL logged itself."""
    digest = hashlib.sha256()
    for name, weight in sorted(trainer.model.state_dict().items()):
        digest.update(name.encode() + weight.contiguous().numpy().tobytes())
    timed = ("runtime", "_per_second")
    own = [{k: v for k, v in e.items() if not k.endswith(timed)} for e in trainer.state.log_history]
    own = [entry for entry in own if "probe/n" not in entry]
    trained = [p.requires_grad for p in trainer.model.parameters()]
    return digest.hexdigest(), trained, own, (random.random(), np.random.random(), float(torch.rand(1)))  # noqa: NPY002


def largest_differences(trainer, log):
    """Of the logged numbers from ours, by key, in nats: an update's batch under the weights before it is the probe of
    the step before; an evaluation is the held-out pairs of its own step."""
    pairs = log.pairs.assign(row=log.pairs["pair_id"].map(log.audit.set_index("pair_id")["source_row"]))
    found = {}
    for entry in trainer.state.log_history:
        if "eval_logps/chosen" in entry:
            rows, head = pairs[(pairs["split"] == "eval") & (pairs["step"] == entry["step"])], "eval_"
        elif "logps/chosen" in entry:
            first = 4 * (entry["step"] - 1)
            rows, head = pairs[(pairs["split"] == "probe") & (pairs["step"] == entry["step"] - 1)], ""
            rows = rows[rows["row"].between(first, first + 3)]
        else:
            continue
        assert len(rows) == (8 if head else 4)
        for side in ("chosen", "rejected"):
            rewards = trainer.beta * (rows[f"{side}_logps"] - rows[f"ref_{side}_logps"]).mean()
            for key, own in ((f"logps/{side}", rows[f"{side}_logps"].mean()), (f"rewards/{side}", rewards)):
                found[head + key] = max(found.get(head + key, 0.0), abs(own - entry[head + key]))
    return found


@pytest.mark.parametrize(("keys", "kind"), WAYS.values(), ids=WAYS)
def test_a_dpo_trainer(lm_folder, texts, tmp_path, keys, kind):
    """In float32 every logged number is ours to 1e-5 nats, of sums of about 30; with bfloat16 to its rounding."""
    trainer = train(lm_folder, texts, tmp_path, callback=True, **keys)
    ours, log = outcome(trainer), read_run(tmp_path / "run")
    assert outcome(train(lm_folder, texts, tmp_path, callback=False, **keys)) == ours
    assert log.manifest["reference"]["kind"] == kind
    assert log.manifest["parity"]["passed"]
    assert log.steps["probe/n"].tolist() == [16] * 5
    assert log.pairs["chosen_kl"].notna().all() != (kind == "sums")
    found = largest_differences(trainer, log)
    assert len(found) == 8
    if keys.get("disable_dropout") is False:
        found = {k: v for k, v in found.items() if k.startswith("eval_")}
    limit = 0.05 if keys.get("bf16") else 1e-5
    assert max(found.values()) <= limit, found
    doubts = set(";".join(log.audit["doubts"]).replace(" ", "").split(";")) - {""}
    assert ("completion_truncated" in doubts) == ("max_length" in keys)


class Breaks(TrainerCallback):
    """A training that is stopped in the middle."""

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            raise KeyboardInterrupt


def test_a_dpo_trainer_that_resumes(lm_folder, texts, tmp_path):
    kept = {"save_strategy": "steps", "save_steps": 2, "callback": True}
    (tmp_path / "whole").mkdir()
    train(lm_folder, texts, tmp_path / "whole", **kept)
    with pytest.raises(KeyboardInterrupt):
        train(lm_folder, texts, tmp_path, also=Breaks(), **kept)
    train(lm_folder, texts, tmp_path, resume=str(tmp_path / "theirs" / "checkpoint-2"), **kept)
    log, whole = read_run(tmp_path / "run"), read_run(tmp_path / "whole" / "run")
    pd.testing.assert_frame_equal(log.pairs, whole.pairs)
    pd.testing.assert_frame_equal(log.mass, whole.mass)
    columns = [name for name in whole.steps if name != "num_tokens"]  # TRL counts these anew
    pd.testing.assert_frame_equal(log.steps[columns], whole.steps[columns])


def sft(model, arguments, texts, tokenizer):
    rows = Dataset.from_list([{"prompt": row["prompt"], "completion": row["chosen"]} for row in texts])
    return trl.SFTTrainer(model, args=trl.SFTConfig(**arguments), train_dataset=rows, processing_class=tokenizer)


def kto(model, arguments, texts, tokenizer):
    rows = [{"prompt": r["prompt"], "completion": r[side], "label": side == "chosen"}
            for r in texts for side in ("chosen", "rejected")]  # fmt: skip
    data = Dataset.from_list(rows)
    return trl.KTOTrainer(model, args=trl.KTOConfig(**arguments), train_dataset=data, processing_class=tokenizer)


def orpo(model, arguments, texts, tokenizer):
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    data = Dataset.from_list(texts)
    return ORPOTrainer(model, args=ORPOConfig(**arguments), train_dataset=data, processing_class=tokenizer)


def simpo(model, arguments, texts, tokenizer):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    data, arguments = Dataset.from_list(texts), CPOConfig(**arguments, loss_type="simpo", remove_unused_columns=False)
    return CPOTrainer(model, args=arguments, train_dataset=data, processing_class=tokenizer)


@pytest.mark.parametrize(("make", "kind"), [(sft, "start"), (kto, "ref_model"), (orpo, "start"), (simpo, "start")])
def test_other_trainers_with_pairs_that_are_given(lm_folder, texts, tmp_path, make, kind):
    ends = []
    for callback in (True, False):
        model = AutoModelForCausalLM.from_pretrained(lm_folder, dtype=torch.float32)
        arguments = {"output_dir": str(tmp_path / "theirs")} | KEYS
        torch.manual_seed(0), random.seed(0), np.random.seed(0)  # noqa: NPY002
        trainer = make(model, arguments, texts[:16], AutoTokenizer.from_pretrained(lm_folder))
        if callback:
            with pytest.raises(UserError, match="Give the pairs to measure: pairs="):
                DisplacementCallback(trainer, tmp_path / "run")
            given = {"pairs": texts[:16], "heldout": texts[16:]}
            trainer.add_callback(DisplacementCallback(trainer, tmp_path / "run", every=2, **given))
        trainer.train()
        ends.append(outcome(trainer))
    assert ends[0] == ends[1]
    log = read_run(tmp_path / "run")
    assert log.manifest["reference"]["kind"] == kind
    assert log.steps.loc[log.steps["probe/n"] == 16, "step"].tolist() == [0, 2, 4]
    assert log.steps["loss"].notna().tolist() == [False, True, True, True, True]
