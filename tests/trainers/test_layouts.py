"""A trainer's whole output folder is one argument: its checkpoints in order, its log, and what cannot be read named.

No trainer is installed: each test writes the files that the tool named in its docstring or id is documented, or was
read in its code, to write.
"""

import json
import shutil
import sys
import types
from pathlib import Path

import pandas as pd
import pytest
import torch

from analysis.tables import curves
from diagnostics.errors import DataError, UserError
from diagnostics.runlog import RunLogWriter, read_run
from trainers.imported import read_logs
from trainers.layouts import expand, own_reference, require_weights, steps_of
from trainers.models import add_lora, load_model, load_policy, load_tokenizer
from trainers.trace import trace


def whole(folder: Path, **state) -> Path:
    """A folder as save_pretrained leaves it, with the trainer's state where one is given."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").touch()
    if state:
        (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def adapter(folder: Path, base: str = "base") -> Path:
    """A folder as peft leaves it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    (folder / "adapter_model.safetensors").touch()
    return folder


def files(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return folder


def trl(out):
    """The model of the end beside its checkpoints; its state was not saved, so its step is not known."""
    whole(out)
    for n in (500, 1000):
        whole(out / f"checkpoint-{n}", global_step=n, log_history=[], best_model_checkpoint="x")
    return {500: "checkpoint-500", 1000: "checkpoint-1000"}


def alignment_handbook(out):
    """trainer.save_state(): the state of the end beside the last model; one checkpoint kept."""
    whole(out, global_step=1200, best_model_checkpoint=None)
    whole(out / "checkpoint-1000", global_step=1000)
    (out / "train_results.json").write_text("{}")
    return {1000: "checkpoint-1000", 1200: ""}


def llama_factory(out):
    """Adapters; PiSSA's own folders beside them."""
    adapter(out)
    for n in (20, 100):
        adapter(out / f"checkpoint-{n}")
    adapter(out / "pissa_backup")
    return {20: "checkpoint-20", 100: "checkpoint-100"}


def axolotl(out):
    """Adapters, and merged/ of `axolotl merge-lora`."""
    adapter(out)
    adapter(out / "checkpoint-8")
    adapter(out / "checkpoint-16")
    whole(out / "merged")
    return {8: "checkpoint-8", 16: "checkpoint-16"}


def ms_swift(out):
    """output/v0-<time>/checkpoint-N, with checkpoint-N-merged of `swift export --merge_lora true`."""
    run = "v0-20250101-120000"
    adapter(out / run / "checkpoint-50")
    adapter(out / run / "checkpoint-90")
    whole(out / run / "checkpoint-90-merged")
    files(out / run, "args.json", "runs/events.out.tfevents.1", "images/train_loss.png")
    return {50: f"{run}/checkpoint-50", 90: f"{run}/checkpoint-90"}


def openrlhf(out):
    """--save_hf_ckpt: global_stepN_hf beside DeepSpeed's global_stepN."""
    for n in (20, 100):
        whole(out / f"global_step{n}_hf")
        files(out / f"global_step{n}", "mp_rank_00_model_states.pt", "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    files(out, "latest", "zero_to_fp32.py")
    return {20: "global_step20_hf", 100: "global_step100_hf"}


def open_instruct(out):
    """step_N, to which config.json was copied, beside the last model."""
    whole(out)
    for n in (9, 10):
        files(whole(out / f"step_{n}"), "random_states_0.pkl", "COMPLETED")
    return {9: "step_9", 10: "step_10"}


def unsloth(out):
    """TRL's folders with adapters."""
    adapter(out / "checkpoint-30")
    adapter(out / "checkpoint-60")
    return {30: "checkpoint-30", 60: "checkpoint-60"}


def zero_2(out):
    """transformers' Trainer with DeepSpeed ZeRO-2: the weights whole, DeepSpeed's shards inside."""
    for n in (5, 6):
        files(
            whole(out / f"checkpoint-{n}"), f"global_step{n}/bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt", "latest"
        )
    return {5: "checkpoint-5", 6: "checkpoint-6"}


def adapter_named_ref(out):
    """TRL, started from an adapter: the adapter `ref` inside of each checkpoint is no checkpoint."""
    for n in (5, 6):
        adapter(adapter(out / f"checkpoint-{n}") / "ref")
    return {5: "checkpoint-5", 6: "checkpoint-6"}


LAYOUTS = [
    *(trl, alignment_handbook, llama_factory, axolotl, ms_swift, openrlhf, open_instruct, unsloth),
    *(zero_2, adapter_named_ref),
]


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_an_output_folder_gives_its_checkpoints_in_order(write, tmp_path):
    expected = {step: str(tmp_path / "out" / name) for step, name in write(tmp_path / "out").items()}
    found = expand([str(tmp_path / "out")])
    assert found == list(expected.values())
    assert steps_of(found, "base") == {0: "base"} | expected
    assert expand([found[0]]) == [found[0]]  # one of them is itself


def test_what_has_no_step_is_left_out_aloud(tmp_path, capsys):
    axolotl(tmp_path)
    expand([str(tmp_path)])
    assert "merged left out, for no step is known of it" in capsys.readouterr().out


def test_the_folder_of_several_runs_is_refused(tmp_path):
    """ms-swift: v0-, v1- ... below one output folder."""
    for run in ("v0-a", "v1-b"):
        whole(tmp_path / run / "checkpoint-5")
    with pytest.raises(UserError, match=r"holds the checkpoints of 2 runs \(.*v0-a, .*v1-b\)\. Give the folder of one"):
        expand([str(tmp_path)])


@pytest.mark.parametrize(
    ("name", "step"),
    [
        *((name, 5) for name in ("checkpoint_5", "CHECKPOINT-5", "checkpoint-005", "ckpt5", "checkpoint-5 (copy)")),
        *((name, 5) for name in ("iter_0000005", "epoch=1-step=5.ckpt", "step5_of_100", "5")),
        *((name, None) for name in ("checkpoint-5e3", "checkpoint-5k", "checkpoint-5,000", "epoch-1.5", "step-0.5")),
        *((name, None) for name in ("checkpoint-", "checkpoint-last", "checkpoint-\u0665", "\u0665", "substep5", "-5")),
        *((name, None) for name in ("checkpoint-" + "9" * 20, "9" * 20)),  # no table holds such a step
    ],
)
def test_a_name_gives_its_step_or_is_asked_for_it(name, step, tmp_path):
    folder = str(whole(tmp_path / name))
    if step is not None:
        assert list(steps_of([folder], "base")) == [0, step]
    else:
        with pytest.raises(UserError, match="of which step is this"):
            steps_of([folder], "base")


@pytest.mark.parametrize(
    ("state", "outcome"),
    [
        *(('{"global_step": ' + n + "}", 9) for n in ("9", "9.0", '"9"')),
        *(('{"global_step": ' + n + "}", 10) for n in ("true", "-9", "NaN", "null", "9.5", "1" + "0" * 30, "[9]")),
        *((text, "cannot be read as JSON") for text in ("", '{"global_step": 9, "log_hi', "[]", "null", "[" * 10**5)),
        ('{"global_step": 0}', "Step 0 is the reference, base"),
        ('{"global_step": 5}', "are both of step 5"),
    ],
)
def test_a_spoiled_state_is_a_sentence_or_leaves_the_name(state, outcome, tmp_path, capsys):
    whole(tmp_path / "checkpoint-5")
    (whole(tmp_path / "checkpoint-10") / "trainer_state.json").write_text(state)
    if isinstance(outcome, int):
        assert list(steps_of(expand([str(tmp_path)]), "base")) == [0, 5, outcome]
        assert ("says step 9, its name 10" in capsys.readouterr().out) == (outcome == 9)
    else:
        with pytest.raises(UserError, match=outcome):
            steps_of(expand([str(tmp_path)]), "base")


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ('{"current_steps": 3, "loss": NaN, "lr": -Infinity}\n', {3: {"loss": float("nan"), "lr": float("-inf")}}),
        ('{"current_steps": 3, "loss": %s}\n' % ("9" * 400), {3: {"loss": float("inf")}}),
        ('{"current_steps": 3, "loss": 1, "said": "a\u2028b\x85"}\r\n', {3: {"loss": 1.0}}),
        ('{"current_steps": 3.0, "loss": 1}\n[1]\n\n', {3: {"loss": 1.0}}),
        ('{"current_steps": "%s", "loss": 1}\n' % ("9" * 5000), {}),
        *(('{"current_steps": ' + n + ', "loss": 1}\n', {}) for n in ("9" * 30, "-3", "true", '"\u00b2"')),
        *((text, "line 1 is not JSON") for text in ('{"current_steps": 1, "lo{"current_steps": 2, "loss": 1}\n',
                                                    "\0\n", "[" * 10**5 + "\n", "9" * 5000 + "\n")),
    ],
)  # fmt: skip
def test_a_spoiled_log_is_a_sentence_or_its_own_numbers(text, rows, tmp_path):
    (tmp_path / "trainer_log.jsonl").write_text(text, encoding="utf-8", newline="")
    if isinstance(rows, dict):
        wanted = {step: {f"theirs/{key}": value for key, value in row.items()} for step, row in rows.items()}
        assert repr(read_logs(tmp_path, []).rows) == repr(wanted)  # NaN is NaN
    else:
        with pytest.raises(DataError, match=rows):
            read_logs(tmp_path, [])


def test_a_log_that_is_cut_within_a_letter_or_is_a_folder(tmp_path):
    path = tmp_path / "trainer_log.jsonl"
    path.write_bytes(b'{"current_steps": 3, "loss": 1, "said": "\xe4"}\n{"current_steps": 4, "said": "\xc3')
    assert read_logs(tmp_path, []).rows == {3: {"theirs/loss": 1.0}}
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"trainer_log\.jsonl: cannot be read"):
        read_logs(tmp_path, [])


def test_links_to_what_is_there_anyway_are_passed_over(tmp_path):
    """latest -> checkpoint-10, a copy by link under another step, links in a circle, to nothing, to the folder."""
    out = tmp_path / "out"
    for n in (5, 10):
        whole(out / f"checkpoint-{n}", global_step=n)
    links = {"latest": "checkpoint-10", "checkpoint-11": "checkpoint-10", "self": "self", "checkpoint-20": "gone"}
    for name, target in (links | {"up": ".."} | {"here": "."}).items():
        (out / name).symlink_to(target)
    assert [Path(p).name for p in expand([str(out)])] == ["checkpoint-5", "checkpoint-10"]
    whole(tmp_path / "disk" / "checkpoint-30")
    (out / "checkpoint-30").symlink_to(tmp_path / "disk" / "checkpoint-30")  # on another disk
    (tmp_path / "link").symlink_to(out)
    assert [Path(p).name for p in expand([str(tmp_path / "link")])][-1] == "checkpoint-30"


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["checkpoint-5", "checkpoint-5/"], "checkpoint-5/ is given twice, as step 5"),
        (["checkpoint-5=5", "checkpoint-5=5"], "checkpoint-5 is given twice, as step 5"),
        (["checkpoint-5=5", "checkpoint-5=6"], "checkpoint-5 is given twice, as step 5 and as step 6"),
        (["checkpoint-5=7", "checkpoint-10=7"], "are both of step 7"),
        (["checkpoint-5=10", "checkpoint-10"], "are both of step 10"),
        *(([f"checkpoint-5={step}"], "is no step") for step in ("-5", "5.0", "", "5 ", "\u0665", "9" * 20, "5/100")),
    ],
)
def test_what_stands_behind_a_path_is_its_step_or_refused(given, said, tmp_path):
    for n in (5, 10):
        whole(tmp_path / f"checkpoint-{n}")
    names = expand([f"{tmp_path}/{name}" for name in given])
    with pytest.raises(UserError, match=said):
        steps_of(names, "base")
    assert list(steps_of([f"{tmp_path}/checkpoint-5=0010"], "base")) == [0, 10]


def test_the_best_model_is_not_taken_for_the_last(tmp_path):
    """transformers' Trainer with load_best_model_at_end: the state is of the end, the weights are of the best."""
    whole(tmp_path, global_step=30, best_model_checkpoint="checkpoint-10")
    whole(tmp_path / "checkpoint-20", global_step=20, best_model_checkpoint="checkpoint-10")
    assert list(steps_of(expand([str(tmp_path)]), "base")) == [0, 20]
    with pytest.raises(UserError, match="of which step is this"):
        steps_of(["base", str(tmp_path)])


def zero_3(out):
    folder = files(out / "checkpoint-5", "config.json", "latest", "zero_to_fp32.py", "global_step5/zero_pp_rank_0_x.pt")
    return folder, f"`python {folder}/zero_to_fp32.py {folder} {folder}-whole --safe_serialization`"


def zero_openrlhf(out):
    folder = files(out, "latest", "zero_to_fp32.py") / "global_step5"
    files(folder, "mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_optim_states.pt")
    return folder, f"`python {out}/zero_to_fp32.py {out} {folder}-whole --safe_serialization --tag global_step5`"


def zero_accelerate(out):
    folder = files(out / "step_5", "latest", "zero_to_fp32.py", "pytorch_model/mp_rank_00_model_states.pt")
    return folder, f"`python {folder}/zero_to_fp32.py {folder} {folder}-whole --safe_serialization`"


def fsdp(out):
    folder = files(out / "checkpoint-5", "pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp")
    (folder / "trainer_state.json").write_text('{"global_step": 5}')
    return folder, f"`accelerate merge-weights {folder}/pytorch_model_fsdp_0 {folder}-whole`"


def nemo_rl(out):
    folder = files(out / "step_5", "config.yaml", "training_info.json", "policy/weights/__0_0.distcp")
    return folder, f"convert_dcp_to_hf.py --config={folder}/config.yaml --dcp-ckpt-path={folder}/policy/weights "


def nemo_rl_megatron(out):
    folder = files(out / "step_5", "config.yaml", "policy/weights/iter_0000000/common.pt")
    said = f"convert_megatron_to_hf.py --config={folder}/config.yaml --megatron-ckpt-path={folder}/policy/weights/iter_"
    return folder, said


def open_instruct_state(out):
    folder = files(out / "step_5", "model.safetensors", "optimizer.bin", "random_states_0.pkl", "COMPLETED")
    return folder, "accelerate's save_state leaves them (open-instruct's step_N). Copy the config.json"


SHARDS = [zero_3, zero_openrlhf, zero_accelerate, fsdp, nemo_rl, nemo_rl_megatron, open_instruct_state]


@pytest.mark.parametrize("write", SHARDS, ids=lambda write: write.__name__)
def test_shards_get_the_sentence_that_names_their_converter(write, tmp_path):
    """Of transformers' Trainer and accelerate with ZeRO-3 and FSDP, of OpenRLHF, NeMo-RL and open-instruct."""
    folder, said = write(tmp_path / "out")
    for given in (tmp_path / "out", folder):
        with pytest.raises(DataError) as error:
            trace("none.jsonl", [str(given)], tmp_path / "t", reference="base")
        assert str(error.value).startswith(f"{folder}: ")
        assert said in str(error.value)
    whole(folder)
    require_weights(str(folder))  # whole now


def test_an_adapter_says_what_it_was_trained_from(tmp_path):
    assert own_reference(str(adapter(tmp_path / "checkpoint-5", "my/base"))) == "my/base"
    adapter(tmp_path / "checkpoint-5" / "ref", "my/base")
    assert own_reference(str(tmp_path / "checkpoint-5")) == str(tmp_path / "checkpoint-5" / "ref")
    assert own_reference(str(whole(tmp_path / "checkpoint-6"))) is None


HISTORY = [
    {"step": 1, "epoch": 0.1, "loss": 0.6931, "grad_norm": 4.5, "learning_rate": 1e-6, "rewards/chosen": 0.0,
     "rewards/margins": 0.0, "logps/chosen": -276.4, "logits/chosen": -1.5},
    {"step": 2, "epoch": 0.2, "loss": 0.5, "grad_norm": float("nan"), "logps/chosen": -270.0},
    {"step": 2, "epoch": 0.2, "eval_loss": 0.6, "eval_logps/rejected": -250.0, "eval_runtime": 3.0},
    {"step": 4, "epoch": 0.4, "train_runtime": 9.0, "total_flos": 1e9},
]  # fmt: skip


def test_the_state_of_the_trainer_is_read(tmp_path):
    """transformers' Trainer: log_history of the newest trainer_state.json; of TRL, the loss is not known."""
    old, new = whole(tmp_path / "checkpoint-2", global_step=2, log_history=HISTORY[:1]), tmp_path / "checkpoint-4"
    whole(new, global_step=4, log_history=HISTORY)
    found = read_logs(tmp_path, [str(old), str(new)])
    assert found.source == str(new / "trainer_state.json")
    assert sorted(found.rows) == [1, 2]
    assert found.rows[1]["theirs/logps/chosen"] == -276.4
    assert found.rows[2]["theirs/eval_loss"] == 0.6
    assert found.rows[2]["theirs/loss"] == 0.5
    assert not any("logits" in key or "runtime" in key for row in found.rows.values() for key in row)
    assert set(found.meanings) == {key for row in found.rows.values() for key in row}
    assert "which loss it was, the files beside the weights do not say" in found.meanings["theirs/logps/chosen"]
    assert found.meanings["theirs/eval_logps/rejected"].startswith(
        "log-prob of the rejected answers, mean of the means of the evaluation set's batches; "
    )


def test_a_run_of_ours_has_a_log_of_its_own(tmp_path):
    """Chesboard: run/steps.jsonl, run/checkpoints/checkpoint-N."""
    folder = whole(tmp_path / "run" / "checkpoints" / "checkpoint-4", global_step=4, log_history=HISTORY)
    assert read_logs(folder.parent, [str(folder)]).rows
    files(tmp_path / "run", "steps.jsonl")
    assert not read_logs(folder.parent, [str(folder)]).rows


def test_llama_factorys_log_is_read(tmp_path):
    """LLaMA-Factory: trainer_log.jsonl; of a step that stands twice the last line counts, one that is cut does not."""
    lines = [
        {"current_steps": 5, "total_steps": 20, "loss": 0.69, "accuracy": 0.5, "lr": 1e-6, "elapsed_time": "0:00:01"},
        {"current_steps": 5, "total_steps": 20, "loss": 0.68, "accuracy": 0.6, "lr": 1e-6, "percentage": 25.0},
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / "trainer_log.jsonl").write_text(text + '{"current_steps": 1')
    found = read_logs(tmp_path, [])
    assert found.rows == {5: {"theirs/loss": 0.68, "theirs/accuracy": 0.6, "theirs/lr": 1e-6}}
    (tmp_path / "trainer_log.jsonl").write_text("no json\n" + text)
    with pytest.raises(UserError, match=r"trainer_log\.jsonl: line 1 is not JSON"):
        read_logs(tmp_path, [])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"rlhf_type": "dpo", "loss_type": None}, "line before; a sum over an answer's tokens"),
        ({"rlhf_type": "orpo"}, "line before; a mean over an answer's tokens"),
        ({"rlhf_type": "dpo", "loss_type": "ipo"}, "do not say"),
    ],
)
def test_ms_swifts_log_is_read_and_its_settings_say_sum_or_mean(settings, said, tmp_path):
    """ms-swift: logging.jsonl with `global_step/max_steps` (older: global_step), settings in args.json."""
    row = {"loss": 0.5, "logps/chosen": -3.0, "global_step/max_steps": "5/100", "percentage": "5.00%"}
    (tmp_path / "logging.jsonl").write_text(json.dumps(row) + "\n" + json.dumps({"loss": 0.4, "global_step": 6}) + "\n")
    (tmp_path / "args.json").write_text(json.dumps(settings))
    found = read_logs(tmp_path, [])
    assert found.rows == {5: {"theirs/loss": 0.5, "theirs/logps/chosen": -3.0}, 6: {"theirs/loss": 0.4}}
    assert said in found.meanings["theirs/logps/chosen"]


def test_llama_factorys_settings_say_sum_or_mean(tmp_path):
    """LLaMA-Factory's web UI: training_args.yaml with pref_loss."""
    whole(tmp_path, global_step=1, log_history=HISTORY[:1])
    (tmp_path / "training_args.yaml").write_text("stage: dpo\npref_loss: simpo\n")
    assert "a mean over an answer's tokens" in read_logs(tmp_path, []).meanings["theirs/logps/chosen"]


def test_event_files_are_read_where_tensorboard_is(tmp_path, monkeypatch, capsys):
    """OpenRLHF: train/<key>, eval/<key>. The reader is a stand-in with the methods of tensorboard's."""
    files(tmp_path, "runs/a/events.out.tfevents.1.host")
    module = "tensorboard.backend.event_processing.event_accumulator"
    monkeypatch.setitem(sys.modules, module, None)
    assert not read_logs(tmp_path, []).rows
    assert capsys.readouterr().out.count("the package tensorboard is not installed") == 1
    scalars = {"train/chosen_reward": [(1, 0.5), (2, 0.75)], "eval/loss": [(2, 0.5)], "train/made_up": [(1, 9.0)]}

    class EventAccumulator:
        def __init__(self, path, size_guidance):
            assert Path(path) == tmp_path / "runs" / "a"
            assert size_guidance == {"scalars": 0}  # all of them

        def Reload(self):
            self.loaded = True

        def Tags(self):
            return {"scalars": list(scalars) if self.loaded else []}

        def Scalars(self, tag):
            return [types.SimpleNamespace(wall_time=0.0, step=step, value=value) for step, value in scalars[tag]]

    names = module.split(".")
    for end in range(1, len(names)):
        monkeypatch.setitem(sys.modules, ".".join(names[:end]), types.ModuleType(".".join(names[:end])))
    monkeypatch.setitem(sys.modules, module, types.SimpleNamespace(EventAccumulator=EventAccumulator))
    found = read_logs(tmp_path, [])
    assert found.rows == {
        1: {"theirs/chosen_reward": 0.5},
        2: {"theirs/chosen_reward": 0.75, "theirs/eval_loss": 0.5},
    }


@pytest.fixture
def adapters(lm_folder, tmp_path) -> Path:
    """LLaMA-Factory's folder of LoRA checkpoints 2 and 4, with trainer_state.json and trainer_log.jsonl."""
    out = tmp_path / "saves" / "lora"
    for n in (2, 4):
        model = add_lora(load_policy(lm_folder), r=2, alpha=4, targets="all-linear")
        torch.manual_seed(n)
        with torch.no_grad():
            for name, weight in model.named_parameters():
                if "lora_B" in name:
                    weight += 0.1 * n * torch.randn_like(weight)
        model.save_pretrained(out / f"checkpoint-{n}")
        state = {"global_step": n, "log_history": [r for r in HISTORY if r["step"] <= n]}
        (out / f"checkpoint-{n}" / "trainer_state.json").write_text(json.dumps(state))
    (out / "trainer_log.jsonl").write_text('{"current_steps": 1, "loss": 9.0}\n')
    return out


def test_a_folder_of_adapters_is_one_argument(lm_folder, adapters, pairs_file, tmp_path, capsys):
    """LLaMA-Factory: no reference is named, the log lies beside."""
    log = read_run(trace(pairs_file, [str(adapters)], tmp_path / "t", pairs=4))
    assert log.config["reference_model"] == lm_folder
    assert log.steps["step"].tolist() == [0, 1, 2, 4]
    assert log.steps["theirs/loss"].dropna().tolist() == [0.6931, 0.5]
    measured = log.steps.set_index("step")["probe/logps/chosen"]
    assert measured.notna().tolist() == [True, False, True, True]
    assert log.steps["theirs/logps/chosen"].dropna().tolist() == [-276.4, -270.0]
    assert set(log.pairs["step"]) == {0, 2, 4}
    assert curves.gradients(log.steps)["total"].to_dict() == {1: 4.5}
    assert set(log.manifest["imported"]["keys"]) == {c for c in log.steps if c.startswith("theirs/")}
    assert log.manifest["imported"]["source"].endswith("checkpoint-4/trainer_state.json")
    assert "what the trainer logged is kept beside, as theirs/epoch" in capsys.readouterr().out
    trace(pairs_file, [str(adapters)], tmp_path / "t", pairs=4)
    assert "all 3 checkpoints are measured" in capsys.readouterr().out


def test_stopped_anywhere_it_goes_on_to_the_same_log(adapters, pairs_file, tmp_path, monkeypatch):
    """The rows that the trainer logged before a checkpoint are written once, whenever it was stopped."""
    whole_log = read_run(trace(pairs_file, [str(adapters)], tmp_path / "whole", pairs=4))
    real, wrote = RunLogWriter.append_step, []

    def dies(self, row):
        if row["step"] in (1, 4) and row["step"] not in wrote:
            wrote.append(row["step"])
            if row["step"] == 1:
                real(self, row)
            raise KeyboardInterrupt
        real(self, row)

    monkeypatch.setattr(RunLogWriter, "append_step", dies)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            trace(pairs_file, [str(adapters)], tmp_path / "t", pairs=4)
    log = read_run(trace(pairs_file, [str(adapters)], tmp_path / "t", pairs=4))
    assert wrote == [1, 4]
    for table in ("pairs", "mass", "tokens", "steps"):
        pd.testing.assert_frame_equal(getattr(whole_log, table), getattr(log, table), check_like=True)


def test_the_adapter_ref_is_the_reference(adapters, pairs_file, tmp_path):
    """TRL, started from an adapter: `ref` lies in every checkpoint. Here the first has not moved from it."""
    for n in (2, 4):
        shutil.copytree(adapters / "checkpoint-2", tmp_path / "ref")
        shutil.move(tmp_path / "ref", adapters / f"checkpoint-{n}" / "ref")
    log = read_run(trace(pairs_file, [str(adapters)], tmp_path / "t", pairs=4))
    assert log.config["reference_model"] == str(adapters / "checkpoint-2" / "ref")
    moved = (log.pairs["chosen_logps"] - log.pairs["ref_chosen_logps"]).abs().groupby(log.pairs["step"]).max()
    assert moved[0] == moved[2] == 0.0 < moved[4]
    assert log.steps["step"].tolist() == [0, 1, 2, 4]


def test_steps_of_ones_own_take_no_log(adapters, pairs_file, tmp_path):
    """Where PATH=STEP counts otherwise than the trainer did, its rows have no place."""
    log = read_run(trace(pairs_file, [f"{adapters}/checkpoint-2=7"], tmp_path / "t", pairs=4))
    assert log.steps["step"].tolist() == [0, 7]
    assert not [c for c in log.steps if c.startswith("theirs/")]


@pytest.fixture
def templated(lm_folder, tmp_path) -> Path:
    """A sharded checkpoint of ms-swift whose tokenizer has a chat template, which the start's has not."""
    folder = tmp_path / "output" / "v0-20250101-120000" / "checkpoint-2"
    model = load_model(lm_folder)
    with torch.no_grad():
        model.lm_head.weight += 0.1
    model.save_pretrained(folder, max_shard_size="20KB")
    assert (folder / "model.safetensors.index.json").exists()
    tokenizer = load_tokenizer(lm_folder)
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
    tokenizer.save_pretrained(folder)
    return folder


def test_the_checkpoints_own_tokenizer_reads_the_data_where_it_is_asked_for(
    lm_folder, templated, tmp_path, pairs_file, capsys
):
    """ms-swift, sharded."""
    trace(pairs_file, [str(tmp_path / "output")], tmp_path / "a", reference=lm_folder, pairs=3)
    said = capsys.readouterr().err
    assert f"with the tokenizer of {lm_folder}; that of {templated} has another chat template." in said
    assert f"give --tokenizer {templated}" in said
    chat = tmp_path / "chat.jsonl"
    row = {"prompt": [{"role": "user", "content": "alpha"}]}
    row |= {side: [{"role": "assistant", "content": side}] for side in ("chosen", "rejected")}
    chat.write_text(json.dumps(row) + "\n")
    with pytest.raises((DataError, UserError), match="chat template"):
        trace(str(chat), [str(tmp_path / "output")], tmp_path / "b", reference=lm_folder)
    given = {"reference": lm_folder, "tokenizer": str(templated)}
    log = read_run(trace(str(chat), [str(tmp_path / "output")], tmp_path / "c", **given))
    assert log.config["tokenizer"] == str(templated)
    assert len(log.pairs) == 2
    assert f"that of {lm_folder} has another chat template." in capsys.readouterr().err


def test_another_vocabulary_is_found_before_anything_is_measured(lm_folder, pairs_file, tmp_path):
    """Embeddings that were resized in training, for tokens that the start does not know."""
    folder = tmp_path / "checkpoint-2"
    model, tokenizer = load_model(lm_folder), load_tokenizer(lm_folder)
    model.resize_token_embeddings(len(tokenizer) + 8)
    model.save_pretrained(folder)
    with pytest.raises(DataError, match=r"checkpoint-2: has a vocabulary of \d+ tokens, and the reference .* one of"):
        trace(pairs_file, [str(folder)], tmp_path / "t", reference=lm_folder)
    tokenizer.add_tokens([" alpha", " bravo", "a"])
    same = shutil.copytree(lm_folder, tmp_path / "checkpoint-3")
    tokenizer.save_pretrained(same)
    with pytest.raises(UserError, match=r"the tokenizer writes token \d+, but the reference .* has \d+ embeddings"):
        trace(pairs_file, [str(same)], tmp_path / "t", reference=lm_folder, tokenizer=str(same))
    assert not (tmp_path / "t").exists()


def test_a_start_that_is_not_given_is_said(lm_folder, pairs_file, tmp_path, capsys):
    """Whole checkpoints do not say what they were trained from; the log before the first of them has no place."""
    for n in (2, 4):
        shutil.copytree(lm_folder, tmp_path / "out" / f"checkpoint-{n}")
    state = {"global_step": 4, "log_history": [*HISTORY, {"step": 3, "loss": 0.4}]}
    (tmp_path / "out" / "checkpoint-4" / "trainer_state.json").write_text(json.dumps(state))
    log = read_run(trace(pairs_file, [str(tmp_path / "out")], tmp_path / "t", pairs=3))
    assert "warning: no --reference: changes count from" in capsys.readouterr().err
    assert log.steps["step"].tolist() == [0, 3, 4]
