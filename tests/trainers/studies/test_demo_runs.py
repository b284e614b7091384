"""The demo's list of runs: complete, readable by the trainer, and what each case says it is."""

import json

import pandas as pd
import pytest

from trainers.config import make_config
from trainers.studies import demo_runs as worlds
from trainers.track import read_track
from trainers.worlds import persona, refusal


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(scope="module")
def refusal_runs(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(worlds.refusal.build, "__kwdefaults__", {"steps": 1})
        world = worlds.refusal_world(root, 4)
    ids = [json.loads(line)["pair_id"] for line in world["data"].read_text().splitlines()]
    scores = pd.Series({pair_id: -float(k) for k, pair_id in enumerate(ids)})
    return ids, worlds.refusal_runs(root, 4, world, scores.sample(frac=1, random_state=0))


@pytest.fixture(scope="module")
def persona_runs(root):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(persona.build.__kwdefaults__, "steps", 1)
        return worlds.persona_runs(root, 4)


def check(run: dict) -> dict:
    """The run's config as the trainer sees it, with every path present and the output folder free."""
    labels = {k: v for k, v in run.items() if k.startswith("demo_")}
    config = make_config({k: v for k, v in run.items() if k not in labels}, extras=labels)
    assert read_track(str(config.track))["groups"]
    assert (config.heldout_pairs, config.seed, labels["demo_seed"]) == (0, 4, 4)
    flat = config.flat()
    assert flat["beta"] == 0.1
    assert flat["max_grad_norm"] == flat["weight_decay"] == 0.0
    return flat


def test_persona_runs_are_three_cases_on_five_prompts(persona_runs):
    cases = [(run["demo_case"], run["demo_prompt"]) for run in persona_runs]
    assert sorted(cases) == sorted((case, k) for case in persona.CASES for k in range(5))
    assert len({run["output_dir"] for run in persona_runs}) == 15
    for run in persona_runs:
        flat = check(run)
        assert not flat["append_eos"]
        assert flat["max_steps"] == 100


def test_refusal_runs_filter_what_they_say(refusal_runs):
    ids, runs = refusal_runs
    assert [run["demo_case"] for run in runs] == ["dpo_all", "keep_ln_ches", "keep_random", "dpo_nll"]
    kept = {}
    for run in runs:
        flat = check(run)
        with open(flat["data"], encoding="utf-8") as file:
            kept[run["demo_case"]] = [json.loads(line)["pair_id"] for line in file]
        assert flat["objective"] == ("dpo_nll" if run["demo_case"] == "dpo_nll" else "dpo")
    assert kept["dpo_all"] == kept["dpo_nll"] == ids
    assert kept["keep_ln_ches"] == ids[-51:]  # the scores fall with the row, so the lowest fifth is the last one
    assert len(kept["keep_random"]) == 51
    assert set(kept["keep_random"]) < set(ids)
    assert kept["keep_random"] != kept["keep_ln_ches"]


def test_kept_rows_are_the_data_sets_own_rows(refusal_runs):
    _, runs = refusal_runs
    rows = {run["demo_case"]: open(run["data"], encoding="utf-8").read().splitlines() for run in runs}
    assert set(rows["keep_ln_ches"]) < set(rows["dpo_all"])
    assert {json.loads(line)["kind"] for line in rows["dpo_all"]} == {"two_refusals", "mixed"}
    assert refusal.PAIRS == len(rows["dpo_all"])
