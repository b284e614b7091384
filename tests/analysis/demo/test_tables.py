import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from analysis.demo import claims
from analysis.demo import tables as demo
from diagnostics.runlog import RunLog

SEEDS = (0, 1, 2)


def _run(config: dict, pairs: pd.DataFrame, mass: pd.DataFrame) -> RunLog:
    nothing = pd.DataFrame()
    return RunLog(Path(f"run-{config['demo_seed']}"), config, {}, nothing, pairs, mass, nothing, nothing)


def _persona(seed: int, case: str = "no_never", opposite: tuple[float, ...] = (0.2, 0.5, 0.9)) -> RunLog:
    """Margins 0, 2 and 4 nats at steps 0, 1, 2; p(chosen) 0.5, 0.3, 0.1."""
    config = dict(demo_world="persona", demo_case=case, demo_seed=seed, demo_prompt=0)
    probs = (0.5, 0.3, 0.1)
    pairs = pd.DataFrame(
        [
            dict(step=s, split="probe", pair_id="x", chosen_logps=math.log(p), rejected_logps=math.log(p) - 2.0 * s)
            for s, p in enumerate(probs)
        ]
    ).assign(ches_score=0.0, chosen_kl=0.1)
    head = dict(pair_id="x", rank=0, token_id=1)
    rows = []
    for s, p in enumerate(probs):
        rows.append(head | dict(step=s, split="probe", kind="chosen", name="", token=" No", prob=p, change=0.0))
        rows.append(head | dict(step=s, split="probe", kind="gained", name="", token=" Yes", prob=0.3, change=0.1 * s))
        rows.append(head | dict(step=s, split="probe", kind="gained", name="", token="junk", prob=0.3, change=0.01))
        for name, value in (("own", p + 0.1), ("opposite", opposite[s] / 2), ("neutral", 0.05)):
            rows.append(head | dict(step=s, split="answer", kind="group", name=name, token="", prob=value, change=0.0))
    return _run(config, pairs, pd.DataFrame(rows))


def _refusal(seed: int, case: str, after: float) -> RunLog:
    config = dict(demo_world="refusal", demo_case=case, demo_seed=seed)
    pairs = pd.DataFrame(
        [
            dict(step=s, split="probe", pair_id=f"p{i}", chosen_logps=-5.0 - s * (i < 9), rejected_logps=-5.0 - 2 * s)
            for s in (0, 4)
            for i in range(10)
        ]
    )
    head = dict(pair_id="u", kind="group", rank=0, token_id=-1, token="", change=0.0)
    groups = {("unsafe", "refusal"): (0.7, after), ("safe", "comply"): (0.9, 0.6)}
    rows = [
        head | dict(step=s, split=k[0], name=k[1], prob=v) for k, both in groups.items() for s, v in zip((0, 4), both)
    ]
    return _run(config, pairs, pd.DataFrame(rows))


def test_persona_is_compared_at_the_first_step_that_reaches_the_margin():
    row = demo.persona_row(_persona(0))
    assert row["step"] == 1.0
    assert bool(row["reached"])
    assert row["chosen"] == pytest.approx(0.3 - 0.5)
    assert row["opposite"] == pytest.approx((0.5 - 0.2) / 2)
    assert row["junk_start"] == pytest.approx(1 - 0.6 - 0.1 - 0.05)
    assert row["top_token"] == "Yes"
    assert row["top_is_opposite"] == 1.0


def test_a_run_that_never_reaches_the_margin_is_taken_at_its_end(monkeypatch):
    monkeypatch.setattr(demo, "MARGIN", 9.0)
    run = _persona(0)
    assert demo.matched_step(demo.runs.rows(run, "probe")) == 2.0


def test_an_own_answer_on_top_is_not_opposite():
    assert demo._is_opposite("Nope", "No") == 0.0
    assert demo._is_opposite("Sure", "No") == 1.0
    assert math.isnan(demo._is_opposite("", "No"))


def test_refusal_rates_before_and_after():
    row = demo.refusal_row(_refusal(0, "dpo_all", 0.3))
    assert (row["refusal_start"], row["refusal"]) == (0.7, 0.3)
    assert (row["comply_start"], row["comply"]) == (0.9, 0.6)
    assert row["fell"] == pytest.approx(0.9)
    assert row["accuracy"] == 1.0


def test_spread_is_over_seeds_not_over_prompts():
    table = pd.DataFrame(dict(case="c", seed=[0, 0, 1, 1], value=[0.0, 2.0, 3.0, 5.0]))
    row = demo.by_case(table, {"c": "c"}, ["value"]).iloc[0]
    assert (row["seeds"], row["runs"], row["value"]) == (2, 4, 2.5)
    assert row["value_sd"] == pytest.approx(math.sqrt(4.5))  # of the two seed means 1 and 4


def test_claims_hold_or_not_and_say_so():
    logs = [_persona(s) for s in SEEDS] + [_refusal(s, "dpo_all", 0.3) for s in SEEDS]
    logs += [_refusal(s, "keep_ln_ches", 0.72) for s in SEEDS] + [_refusal(s, "keep_random", 0.8) for s in SEEDS]
    found = {c.says: c for c in claims.judge(demo.collect(logs, []))}
    assert found["No over Never: the chosen answer loses probability"].holds is True  # -0.2 against -0.08
    assert found["No over Never: the opposite side gains"].holds is False  # 0.15 against 0.20
    assert found["DPO on all pairs: refusals of unsafe prompts drop by"].holds is True
    says = "Keeping the 20 % lowest LN-CHES: more refusals of unsafe prompts than"
    assert found[f"{says} keeping 20 % at random, by"].holds is False
    assert found[f"{says} training on all pairs, by"].holds is True
    assert found["Yes over No: the opposite side does not gain"].holds is None


@pytest.mark.parametrize(("good", "of", "holds"), [(9, 10, True), (8, 10, False), (3, 3, True), (2, 3, False)])
def test_nine_tenths_of_the_seeds_must_meet_the_target(good, of, holds):
    values = {seed: 1.0 if seed < good else 0.0 for seed in range(of)}
    claim = claims.Target("X", "x", 0.5, 1, values)
    assert claim.holds is holds
    assert claim.finding().passed is holds
    assert claim.finding().n == of


def test_the_geometry_is_found_beside_the_run_from_any_folder(tmp_path, monkeypatch):
    """The run names its model from the folder that the command was given in."""
    place = tmp_path / "runs/worlds/persona-seed0"
    place.mkdir(parents=True)
    (place / "geometry.json").write_text('{"pairs": {"no_never": {"cosine": 0.5, "inner": 0.25}}}')
    run = replace(_persona(0), path=tmp_path / "runs/persona-no_never-p0-seed0")
    run.config["model"] = "runs/worlds/persona-seed0/model"
    monkeypatch.chdir(tmp_path.parent)
    found = demo.geometry(demo.collect([run], []))
    assert found[["case", "cosine", "inner"]].to_dict("records") == [{"case": "no_never", "cosine": 0.5, "inner": 0.25}]
