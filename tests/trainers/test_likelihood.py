"""A likelihood that is no language model's goes through training, probe, log and report: a Gaussian whose completion is
a vector."""

import math
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd
import pytest
import torch
from torch import Tensor, nn
from transformers import TrainingArguments

from diagnostics.errors import UserError
from diagnostics.flag import forecast
from diagnostics.flag.parts import Parts
from diagnostics.likelihood import GIVES
from diagnostics.manifest import manifest
from diagnostics.runlog import RunLogWriter, compact, read_run, write_frame, write_json
from diagnostics.scoring import rows, score
from diagnostics.sequences import Example, Sequence
from diagnostics.stats import SequenceStats
from reports.build import build_report
from trainers.loop.probe import Probe
from trainers.loop.recorder import Recorder
from trainers.loop.reference import LiveReference, precompute
from trainers.loop.schedule import ProbeSchedule
from trainers.loop.trainer import PreferenceTrainer

WIDTH = 3


@dataclass(frozen=True)
class Vectors:
    """R * B prompts x and completions y, (R * B, WIDTH)."""

    x: Tensor
    y: Tensor
    completion_mask: Tensor
    pair_ids: tuple[str, ...]
    names: tuple[str, ...]

    @property
    def rows(self) -> dict[str, slice]:
        n = len(self.pair_ids)
        return {name: slice(k * n, (k + 1) * n) for k, name in enumerate(self.names)}

    def to(self, device: Any) -> "Vectors":
        return replace(self, **{k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)})


class Gaussian:
    """y given x is normal about the model's output, with variance 1; of two of them the KL is |a - b|^2 / 2."""

    kind = "tokens"
    gives = frozenset({"kl"})

    def prepare(self, model: nn.Module) -> None:
        pass

    def collate(self, examples) -> Vectors:
        names = tuple(examples[0].rows)
        media = [e.rows[name].media for name in names for e in examples]
        x, y = (torch.tensor([m[k] for m in media]) for k in (0, 1))
        mask = torch.ones(len(media), 1, dtype=torch.long)
        return Vectors(x, y, mask, tuple(e.pair_id for e in examples), names)

    def batch(self, fields) -> Vectors:
        return Vectors(**fields)

    def drawn(self, batch: Vectors, step, model, reference) -> Vectors:
        return batch

    def run(self, model: nn.Module, batch: Vectors) -> Tensor:
        return model(batch.x)

    def stats(self, batch, policy, reference=None, *, kl=True, kl_gradient=False):
        one = self._stats(batch, policy)
        other = self._stats(batch, reference) if isinstance(reference, Tensor) else reference
        if isinstance(reference, Tensor) and (kl or kl_gradient):
            apart = ((policy - reference) ** 2).sum(1, keepdim=True) / 2
            one = replace(one, per_token_kl=apart, per_token_kl_reverse=apart.detach())
        return self._named(batch, one), self._named(batch, other) if other is not None else {}

    def _stats(self, batch: Vectors, mean: Tensor) -> SequenceStats:
        logps = -((batch.y - mean) ** 2).sum(1, keepdim=True) / 2 - WIDTH / 2 * math.log(2 * math.pi)
        return SequenceStats(logps, batch.completion_mask)

    def _named(self, batch: Vectors, stats: SequenceStats) -> dict[str, SequenceStats]:
        values = {k: v for k, v in vars(stats).items() if v is not None}
        return {name: SequenceStats(**{k: v[at] for k, v in values.items()}) for name, at in batch.rows.items()}

    def cost(self, model: nn.Module):
        return lambda example, longest: len(example.rows)

    def budget(self, model: nn.Module, examples) -> int:
        return 8


def linear(seed: int = 0) -> nn.Linear:
    torch.manual_seed(seed)
    return nn.Linear(WIDTH, WIDTH)


@pytest.fixture
def pairs() -> list[Example]:
    draw = torch.Generator().manual_seed(1)

    def one(k: int) -> Example:
        x, good, bad = torch.randn(3, WIDTH, generator=draw).tolist()
        return Example(
            f"v{k}", k, {n: Sequence((0,), (0,), media=(x, y)) for n, y in (("chosen", good), ("rejected", bad))}
        )

    return [one(k) for k in range(24)]


@pytest.fixture
def train(tmp_path, pairs):
    """Train a few steps with every log on; returns the run folder."""

    def go(objective: str = "dpo", **changes):
        out, likelihood = tmp_path / "run", Gaussian()
        args = TrainingArguments(
            str(out), max_steps=6, per_device_train_batch_size=4, learning_rate=0.05, report_to=[], use_cpu=True,
            save_strategy="no", disable_tqdm=True, remove_unused_columns=False, seed=0,
        )  # fmt: skip
        writer, reference = RunLogWriter(out), LiveReference(linear().requires_grad_(False), likelihood)
        probe = Probe(
            {"probe": pairs[:8]}, None, likelihood=likelihood, reference=reference, track=None,
            start=out / "probe_start.safetensors",
        )  # fmt: skip
        recorder = Recorder(ProbeSchedule(writer, probe, every=3, tokens="all"), before=lambda model: (0.0, True))
        trainer = PreferenceTrainer(
            linear(), args, pairs=pairs, tokenizer=None, likelihood=likelihood, objective=objective,
            reference=reference, recorder=recorder, **changes,
        )  # fmt: skip
        trainer.train()
        writer.close()
        write_json(out / "config.json", {"objective": objective, "model": "gaussian", "data": "vectors", "seed": 0})
        said = dict(device="cpu", engine="gaussian", reference={"kind": "live", "model": "gaussian"})
        said |= dict(objective={"name": objective, "beta": 0.1}, dtypes={"weights": "float32"}, hashes={})
        write_json(out / "manifest.json", manifest(**said) | {"finished": {"step": 6}})
        kept = dict(status="kept", reason="", prompt="x", chosen="y", rejected="z", doubts="")
        kept |= dict(chosen_length=1, rejected_length=1)
        audit = [{"pair_id": p.pair_id, "source_row": p.source_row} | kept for p in pairs]
        write_frame(out / "audit.parquet", pd.DataFrame(audit))
        compact(out)
        return out

    return go


def test_scores_are_those_of_the_density(pairs):
    model, seen = linear(), {}
    for scored in score(model, pairs, likelihood=Gaussian()):
        seen |= {row["pair_id"]: row for row in rows(scored.pairs, scored.stats)}
    for pair in pairs:
        x, y = (torch.tensor(v) for v in pair.chosen.media)
        wanted = torch.distributions.Normal(model(x), 1.0).log_prob(y).sum()
        assert seen[pair.pair_id]["chosen_logps"] == pytest.approx(wanted.item(), rel=1e-6)
        assert math.isnan(seen[pair.pair_id]["ches_score"])
        assert seen[pair.pair_id]["chosen_length"] == 1


def test_it_trains_probes_and_logs(train, capsys):
    log = read_run(train())
    said = "Gaussian does not give hidden states (CHES and its relatives); probabilities of tokens"
    assert capsys.readouterr().out.count(said) == 1
    assert log.steps["loss"].iloc[-1] < log.steps["loss"].iloc[1] == pytest.approx(math.log(2), rel=1e-6)
    probed = log.pairs.query("split == 'probe'")
    assert probed.groupby("step").size().to_dict() == {0: 8, 3: 8, 6: 8}
    last = probed.query("step == 6")
    assert (last["chosen_logps"] > last["ref_chosen_logps"]).mean() > 0.5
    assert (last["chosen_kl"] > 0).all()
    assert last["ches_score"].isna().all()
    assert log.mass.empty
    assert log.tokens.empty


def test_its_report_is_built(train):
    folder = train()
    (page,) = [p.read_text(encoding="utf-8") for p in build_report([folder]).parent.glob("run-*.html")]
    assert "data:image/webp" in page
    assert "Traceback" not in page


def test_a_stored_reference_says_what_the_live_one_does(pairs, tmp_path):
    likelihood, frozen = Gaussian(), linear(1)
    stored = precompute(frozen, pairs, likelihood=likelihood, folder=tmp_path, key={"model": "g"})
    found = []
    for reference in (stored, LiveReference(frozen, likelihood)):
        scored = score(linear(), pairs, likelihood=likelihood, reference=reference)
        found.append({r["pair_id"]: r["ref_chosen_logps"] for s in scored for r in rows(s.pairs, s.stats)})
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_what_it_does_not_give_is_refused_by_name(train, pairs, tmp_path):
    with pytest.raises(UserError, match="grad_every needs the gradients of chosen and rejected apart"):
        train(grad_every=1)
    with pytest.raises(UserError, match="track needs probabilities of tokens"):
        Probe({}, None, likelihood=Gaussian(), reference=None, track={"groups": {}}, start=tmp_path / "s")
    job = forecast.Job(linear(), pairs, Parts(tmp_path), 8, Gaussian())
    with pytest.raises(UserError, match="own_answer_gap needs probabilities of tokens"):
        forecast.check(job.likelihood, job.model, ["own_answer_gap"], "all")
    assert set(Gaussian.gives) < set(GIVES)
