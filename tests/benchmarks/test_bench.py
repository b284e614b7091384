"""The benchmark compares equal work: every way to score or train gives the same numbers."""

from pathlib import Path

import pytest
import torch


@pytest.fixture
def bench(monkeypatch):
    """The benchmark's scripts, which import each other from their own folder."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import bench

    return bench


@pytest.fixture
def small(bench):
    """A tiny model and six pairs."""
    size = bench.scoring.Size(hidden=128, inner=64, layers=2)
    return bench.scoring.make_models(size, 97), bench.scoring.make_pairs(None, 6, 97)


def test_all_ways_to_score_agree(bench, small):
    found = {name: way(*small) for name, way in bench.scoring.WAYS.items()}
    worst = bench.scoring.agree(found, relative=1e-5)
    assert set(worst) == set(bench.scoring.WAYS)
    values = found["ours, KL both ways"]["p0"]
    assert values.kl > 0
    assert values.chosen < 0


def test_a_way_with_other_numbers_is_refused(bench, small):
    models, pairs = small
    found = {name: bench.scoring.ours_kl(models, pairs) for name in ("ours, KL both ways", "padded")}
    found["padded"]["p3"] = bench.scoring.Scores(chosen=found["padded"]["p3"].chosen * 1.01)
    with pytest.raises(AssertionError, match="padded"):
        bench.scoring.agree(found, relative=1e-4)


def test_all_ways_to_train_agree(bench, small, tmp_path):
    """The same losses in the first three updates, so the first two did the same to the weights."""
    steps = bench.training.make_steps(*small, tmp_path)
    losses = {name: torch.tensor([step() for _ in range(3)]) for name, step in steps.items()}
    for name in steps:
        torch.testing.assert_close(losses[name], losses["naive"], atol=1e-5, rtol=1e-4)
    assert losses["naive"][2] < losses["naive"][0]
    assert (tmp_path / "steps.jsonl").read_text().count("\n") == 3


def test_a_given_model_is_one_more_case(bench, lm_folder, pairs_file, tmp_path):
    """Its own tokens of real pairs, all ways to score and to train in agreement; the shared policy never moves."""
    case = bench.plan_of(quick=False, model=lm_folder).cases[0]
    models, pairs = case.models(), case.read(Path(pairs_file))
    known = {p.pair_id: p for p in bench.scoring.given_pairs(lm_folder, Path(pairs_file), 24)}
    assert len(pairs) == bench.GIVEN_PAIRS
    assert all(known[p.pair_id].rows == p.rows for p in pairs)
    found = {name: way(models, pairs) for name, way in bench.scoring.WAYS.items()}
    bench.scoring.agree(found, relative=1e-5)
    assert all(scores.kl > 1e-6 for scores in found["ours, KL both ways"].values())
    steps = bench.training.make_steps(models, pairs, tmp_path, share=True)
    losses = [step() for _ in range(2) for step in steps.values()]
    assert losses == pytest.approx([losses[0]] * len(losses), abs=1e-5)


def test_the_ceiling_multiplies_what_a_layer_holds(bench, small):
    """As many operations a token as the weights of the layers say: two for each."""
    model = small[0].ours
    layers = sum(w.numel() for w in model.model.layers[0].parameters() if w.ndim == 2)
    products = bench.scoring.body_products(model, tokens=4)
    assert bench.scoring.multiply(products) == 2 * 4 * layers
    assert bench.scoring.head_product(model)[1].shape == model.lm_head.weight.shape


def test_lengths_are_those_of_the_data_or_like_them(bench, tmp_path):
    pairs = bench.scoring.make_pairs(None, 50, 97)
    prompts = sorted(len(p.prompt_ids) for p in pairs)
    assert 40 < prompts[25] < 160  # the median of hh-rlhf is about 83 words
    assert all(len(p.prompt_ids) + len(p.rejected.completion_ids) <= bench.scoring.MAX_LENGTH for p in pairs)


def test_verdicts(bench):
    timings = [bench.Timing("S 32k", way, (s,)) for way, s in (("script", 9.0), *zip(bench.OURS, (2.0, 3.0, 9.0)))]
    verdicts = {v.target: v for v in bench.judge(timings, [], {})}
    assert verdicts["S 32k: CHES only, times the script"].found == 4.5
    assert verdicts["S 32k: CHES only, times the script"].reached
    assert not verdicts["S 32k: KL over both"].reached
    assert verdicts["S 32k: both, times TRL"].reached is None
