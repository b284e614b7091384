"""A denoiser goes through training, probe, log and report: its winner error, its draws, and what it does not give."""

import math
import re

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import TrainingArguments

from diagnostics.diffusion.denoiser import MLPDenoiser
from diagnostics.diffusion.likelihood import DenoisingLikelihood
from diagnostics.diffusion.sample import Sample, sample_pair
from diagnostics.errors import UserError
from diagnostics.manifest import manifest
from diagnostics.runlog import RunLogWriter, compact, read_run, write_frame, write_json
from diagnostics.sequences import Example
from reports.build import build_report
from trainers.denoisers import CONVENTIONS
from trainers.loop.probe import Probe
from trainers.loop.recorder import Recorder
from trainers.loop.reference import LiveReference
from trainers.loop.schedule import ProbeSchedule
from trainers.loop.trainer import PreferenceTrainer

SIZE, CLASSES = 6, 3


def mlp(seed: int = 0) -> MLPDenoiser:
    torch.manual_seed(seed)
    return MLPDenoiser(size=SIZE, classes=CLASSES, width=16, blocks=1)


def draw_pairs(n: int = 24) -> list[Example]:
    draw = np.random.default_rng(0)

    def sample(k: int, shift: float) -> Sample:
        values = (draw.normal(size=SIZE) + shift).astype(np.float32)
        return Sample(values, {"class_labels": np.array(k % CLASSES)})

    return [sample_pair(f"p{k}", k, {"chosen": sample(k, 0.5), "rejected": sample(k, -0.5)}) for k in range(n)]


@pytest.fixture
def train(tmp_path):
    """Train a few steps with every log on; returns the run folder and the trainer."""

    def go(name: str = "run", objective: str = "diffusion_dpo", pairs=None, likelihood=None, resume=None, **changes):
        out, likelihood, pairs = tmp_path / name, likelihood or DenoisingLikelihood(draws=4), pairs or draw_pairs()
        settings = {
            "max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 0.01, "report_to": [], "use_cpu": True,
            "save_strategy": "no", "disable_tqdm": True, "remove_unused_columns": False, "seed": 0,
        }  # fmt: skip
        args = TrainingArguments(str(out), **(settings | changes))
        writer, reference = RunLogWriter(out), LiveReference(mlp().requires_grad_(False), likelihood)
        probe = Probe(
            {"probe": draw_pairs()[:8]}, None, likelihood=likelihood, reference=reference, track=None,
            start=out / "probe_start.safetensors",
        )  # fmt: skip
        recorder = Recorder(ProbeSchedule(writer, probe, every=3, tokens="all"), before=lambda model: (0.0, True))
        trainer = PreferenceTrainer(
            mlp(), args, pairs=pairs, tokenizer=None, likelihood=likelihood, objective=objective,
            hyperparameters={"beta": 20.0}, reference=reference, recorder=recorder,
        )  # fmt: skip
        trainer.train(resume_from_checkpoint=resume)
        writer.close()
        config = {"objective": objective, "likelihood": likelihood.kind, "model": "mlp", "data": "samples", "seed": 0}
        write_json(out / "config.json", config)
        said = dict(device="cpu", engine="denoiser", reference={"kind": "live", "model": "mlp"})
        said |= dict(objective={"name": objective, "beta": 20.0}, dtypes={"weights": "float32"}, hashes={})
        said |= dict(conventions=CONVENTIONS)
        write_json(out / "manifest.json", manifest(**said) | {"finished": {"step": 6}})
        kept = dict(status="kept", reason="", prompt="x", chosen="y", rejected="z", doubts="")
        kept |= dict(chosen_length=1, rejected_length=1)
        write_frame(
            out / "audit.parquet",
            pd.DataFrame([{"pair_id": p.pair_id, "source_row": p.source_row} | kept for p in draw_pairs()]),
        )
        compact(out)
        return out, trainer

    return go


def test_it_trains_probes_and_logs(train, capsys):
    folder, _ = train(max_steps=24, per_device_train_batch_size=8, learning_rate=0.003)
    log = read_run(folder)
    said = "DenoisingLikelihood does not give hidden states (CHES and its relatives); probabilities of tokens"
    assert capsys.readouterr().out.count(said) == 1
    assert log.steps["loss"].iloc[1] == pytest.approx(math.log(2), rel=1e-6)
    probed = log.pairs.query("split == 'probe'")
    assert probed.groupby("step").size().to_dict() == dict.fromkeys(range(0, 25, 3), 8)
    first, last = probed.query("step == 0"), probed.query("step == 24")
    assert np.allclose(first["chosen_logps"], first["ref_chosen_logps"], rtol=1e-6)
    assert ((last["chosen_logratios"] - last["rejected_logratios"]) > 0).mean() > 0.7
    assert (last["chosen_kl"] > 0).all()
    assert last["ches_score"].isna().all()
    assert "probe/push_ratio/log_mean" not in log.steps
    assert log.steps["push_ratio/over_100"].isna().all()
    assert log.mass.empty
    assert log.tokens.empty


def test_its_draws_are_logged_and_make_the_likelihood(train):
    log = read_run(train()[0])
    assert log.draws.groupby("step").size().to_dict() == dict.fromkeys((0, 3, 6), 8 * 2 * 4)
    errors = log.draws.query("side == 'chosen'").groupby(["step", "pair_id"])["error"].mean()
    rows = log.pairs.query("split == 'probe'").set_index(["step", "pair_id"])["chosen_logps"]
    assert np.allclose(errors, -rows.loc[errors.index], rtol=1e-6)
    assert (log.draws.groupby("draw")["time"].nunique() == 1).all()  # the same times for all
    per_pair = log.draws.groupby(["step", "pair_id", "side"])
    deviation = per_pair["deviation"].mean().xs("chosen", level="side")
    kl = log.pairs.query("split == 'probe'").set_index(["step", "pair_id"])["chosen_kl"]
    assert np.allclose(deviation, kl.loc[deviation.index], rtol=1e-5)


def test_a_fall_is_judged_in_errors_not_in_nats(train):
    """A winner's error that rises by 1e-3 is a fall: a hundredth of a nat is no measure for it."""
    log = read_run(train()[0])
    rows = log.pairs.query("split == 'probe' and step == 6")
    share = (rows["chosen_logratios"] < -1e-4).mean()
    assert 0 < share < 1
    assert log.steps.query("step == 6")["probe/displacement/frac"].item() == share


def test_its_report_is_built(train):
    folder, _ = train()
    (page,) = [p.read_text(encoding="utf-8") for p in build_report([folder]).parent.glob("run-*.html")]
    assert "data:image/webp" in page
    assert "Traceback" not in page
    text = re.sub(r"<(script|style)\b.*?</\1>|<[^>]*>", " ", page, flags=re.DOTALL)
    assert "A denoiser is trained here" in text
    said = text.replace("it is no KL and has no nats", "").replace("a quarter of a nat of", "")
    assert not re.findall(r"[^.]{0,40}(?:\bnats?\b|\d a token|CHES|1 % lower|\bKL\()[^.]{0,40}", said)


def weights(trainer) -> dict[str, torch.Tensor]:
    return {k: v.double() for k, v in trainer.model.state_dict().items()}


def apart(one, other) -> float:
    a, b = weights(one), weights(other)
    return max(float((a[k] - b[k]).abs().max()) for k in a)


def test_micro_batches_change_nothing(train):
    whole = train("whole")[1]
    parts = train("parts", per_device_train_batch_size=1, gradient_accumulation_steps=4)[1]
    other = train("other", likelihood=DenoisingLikelihood(draws=4, seed=1))[1]
    assert apart(whole, parts) < 2e-4 < apart(whole, other)


def test_a_resumed_run_draws_what_an_unbroken_one_does(train, tmp_path):
    whole = train("whole")[1]
    train("broken", max_steps=6, save_strategy="steps", save_steps=3)
    went_on = train("on", resume=str(tmp_path / "broken" / "checkpoint-3"))[1]
    assert apart(whole, went_on) == 0


def test_an_objective_of_tokens_is_refused_by_name(train):
    with pytest.raises(UserError, match="objective 'dpo' is defined on log-probs of a language model's tokens: set"):
        train(objective="dpo")
