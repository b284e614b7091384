"""The study of displacement in diffusion, seconds-long: its tables, claims by hand, and its page."""

import pandas as pd
import pytest

from analysis import papers as judged
from analysis.papers import Paper, diffusion_displacement
from trainers.papers import diffusion_displacement as trained
from trainers.worlds import digits

PAIRS = 12
QUICK = {
    "pre-training steps": 30, "pairs of a kind": PAIRS, "max_steps": 2, "per_device_train_batch_size": 4, "draws": 4,
    "pairs trained alone": 3, "updates of a pair alone": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def again(rerun, tmp_path_factory):
    folder = tmp_path_factory.mktemp("diffusion")
    return lambda **how: rerun("diffusion_displacement", out=folder, **QUICK, **how)


@pytest.fixture(scope="module")
def paper(again):
    return again()


def test_every_method_is_trained_on_both_kinds(paper):
    sizes = paper.runs.groupby(["kind", "method"]).size()
    assert sizes.to_dict() == {(kind, method): 1 for kind in trained.KINDS for method in trained.METHODS}
    assert set(trained.METHODS) == set(diffusion_displacement.METHODS)
    assert set(trained.KINDS) == set(diffusion_displacement.KINDS)
    assert len(paper.tables["scores"]) == 2 * PAIRS
    assert len(paper.tables["alone"]) == 3


def test_runs_train_as_their_method_says(paper):
    row = paper.runs.set_index(["seed", "kind", "method"])["run"]
    configs = {method: paper.log(row[16, "close", method]).config for method in trained.METHODS}
    assert {method: config["guard"] for method, config in configs.items()} == {
        "plain": "none", "SDPO": "sdpo", "SFT term": "sft", "DPO-Shift": "dpo_shift", "plain, low beta": "none",
    }  # fmt: skip
    assert {m: (c["beta"], c["guard_strength"]) for m, c in configs.items()} == {
        "plain": (2000, None), "SDPO": (2000, 0.9), "SFT term": (2000, 0.1), "DPO-Shift": (2000, 0.9),
        "plain, low beta": (200, None),
    }  # fmt: skip
    log = paper.log(row[16, "close", "plain"])
    assert log.config["data"].endswith("close.safetensors")
    assert log.pairs.query("split == 'probe'").groupby("step").size().to_dict() == {0: PAIRS, 2: PAIRS}


def test_every_claim_has_a_value(paper):
    claims = judged.judge(paper)
    assert {c.id for c in claims if c.n == "–"} == set()
    known = set(diffusion_displacement.measured(paper))
    assert {c.id for c in claims} <= known


def test_errors_and_shares_by_hand():
    # winners .1 .1 rise by .01 and fall by .02: mean -.005 of .1 = -5 %; losers .2 .3 rise by .02 and fall by .01
    pairs = pd.DataFrame(
        {"winner": [0.01, -0.02], "loser": [0.02, -0.01], "start_winner": [0.1, 0.1], "start_loser": [0.2, 0.3]}
    )
    found = diffusion_displacement._run(pairs, {"seed": 1, "kind": "close", "method": "plain", "run": "r"})
    assert found["winner"] == pytest.approx(-5)
    assert found["loser"] == pytest.approx(100 * 0.005 / 0.25)
    assert (found["up"], found["accuracy"], found["both"]) == (0.5, 1.0, 0.5)


def test_claims_on_methods_by_hand():
    errors = {"plain": 10.0, "SDPO": -3.0, "SFT term": -1.0, "DPO-Shift": 2.0, "plain, low beta": 90.0}
    rows = [
        {"seed": 5, "kind": "close", "method": method, "winner": error, "ink": error / 100, "up": 1.0, "loser": 0.0}
        | {"accuracy": 1.0, "both": 0.7, "classes": 0.8, "class_change": -0.1}
        for method, error in errors.items()
    ]
    found = {name: values[5] for name, values in diffusion_displacement._of_kind(pd.DataFrame(rows)).items()}
    assert found["plain_shift"] == 8
    assert found["shift_guards"] == 3  # above the higher of the two
    assert found["low_beta"] == 9
    assert found["guard_cost"] == pytest.approx(-0.11)
    assert found["both_rise"] == 0.7
    assert found["plain_classes"] == -0.1


def test_scores_are_turned_so_that_high_values_speak_for_a_rise(paper, monkeypatch):
    """With rates that are minus the rise, and every other score the rise itself, all agree."""
    rose = {(row["seed"], row["kind"]): pairs for row, pairs in diffusion_displacement._ends(paper)
            if row["method"] == "plain"}  # fmt: skip
    made = []
    for (seed, kind), pairs in rose.items():
        scores = {name: sign * pairs["winner"] for name, (_, sign) in diffusion_displacement.SCORES.items()}
        made.append(pd.DataFrame({"pair": pairs["pair_id"], "seed": seed, "kind": kind} | scores))
    other = Paper(paper.path, paper.record, paper.tables | {"scores": pd.concat(made)})
    ranks = diffusion_displacement.ranks(other)
    assert ranks.loc[:, list(diffusion_displacement.SCORES)].to_numpy() == pytest.approx(1.0)


def test_pairs_alone_by_hand(paper):
    """Three pairs change by -2, 1 and 3: two rose; rates 3, 2 and 1 speak for a rise in this order."""
    labels = {"seed": 16, "kind": "on-policy", "pair": ["a", "b", "c"]}
    changes = pd.DataFrame(labels | {"change": [-2.0, 1.0, 3.0]})
    scores = pd.DataFrame(labels | {name: [3.0, 2.0, 1.0] for name in diffusion_displacement.SCORES})
    other = Paper(paper.path, paper.record, paper.tables | {"alone": changes, "scores": scores})
    found = diffusion_displacement.alone(other).set_index("score")
    assert found.loc["self_rate", ["rose", "n", "spearman", "auroc"]].tolist() == [2, 3, 1, 1]
    assert found.loc["denoising_ches", ["spearman", "auroc"]].tolist() == [-1, 0]


def test_measures_and_runs_see_other_noise():
    assert trained._other(4, 16).seed not in range(1000)


def test_stopped_before_its_end_it_goes_on_without_training_again(again, paper, monkeypatch):
    (paper.path / "paper.json").unlink()
    monkeypatch.setattr("trainers.studies.compare.train", lambda run: pytest.fail(f"trained again: {run.output_dir}"))
    monkeypatch.setattr(digits, "build", lambda *_: pytest.fail("built again"))
    tables = again(shown=False).tables
    for name in ("runs", "use", "scores", "alone"):
        pd.testing.assert_frame_equal(tables[name], paper.tables[name])


def test_a_pair_alone_moves_by_its_own_gradient(tmp_path):
    """The change of a pair alone is the likelihood's error after the updates, less before; without updates nothing."""
    digits.build(tmp_path, 1, steps=5, pairs=3)
    settings = {"draws": 4, "pairs trained alone": 3, "learning_rate": 1e-3, "beta": 2000.0}
    none = trained.alone(digits.paths(tmp_path, "close"), 1, settings | {"updates of a pair alone": 0})
    some = trained.alone(digits.paths(tmp_path, "close"), 1, settings | {"updates of a pair alone": 3})
    assert [row["change"] for row in none] == [0, 0, 0]
    assert all(row["change"] for row in some)
