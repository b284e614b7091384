"""The forecast as columns of `flag`: exact products, both directions of a rule, stopping, refusals, two processes."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import forks
import numpy as np
import pandas as pd
import pytest
import torch

from diagnostics import sampling, scoring
from diagnostics.batch import collate
from diagnostics.errors import DataError, UserError
from diagnostics.flag import flagging, forecast, rates, sums
from diagnostics.flag.flagging import check_by, choose, flag
from diagnostics.flag.parts import Parts
from diagnostics.flag.probe_rows import read_probe
from diagnostics.forward import run
from diagnostics.row_stats import row_stats
from diagnostics.sequences import Sequence
from diagnostics.token_likelihood import TokenLikelihood
from trainers.models import load_model, load_tokenizer

TOKENS = TokenLikelihood(0)

ROOT = Path(__file__).parents[3]
PROBE = [{"prompt": "alpha beta ?", "answer": " gamma delta"}, {"prompt": "beta ?", "answer": " kappa"}]


@pytest.fixture
def model(lm_folder):
    """The tiny Llama with weights large enough that its answers differ."""
    made = load_model(lm_folder)
    torch.manual_seed(0)
    with torch.no_grad():
        for p in made.parameters():
            p.mul_(3.0) if p.ndim > 1 else p.add_(torch.randn_like(p) * 0.1)
    return made


@pytest.fixture
def probe(tmp_path):
    path = tmp_path / "probe.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in PROBE))
    return str(path)


@pytest.fixture
def go(model, lm_folder, pairs_file, tmp_path):
    def run(name="job", **options):
        settings = {"model_name": lm_folder, "batch_tokens": 60} | options
        scores, _, audit = flag(pairs_file, model, load_tokenizer(lm_folder), tmp_path / name, **settings)
        return scores, audit.tokenized

    return run


def exact(model, pairs, weights):
    """g+ and g- of every pair, flat, by a backward pass of its own, in float64."""
    found = []
    for pair in pairs:
        stats, _ = row_stats(batch := collate([pair], pad_token_id=0), run(model, batch))
        sides = [torch.autograd.grad(s.logps.sum(), list(weights.values()), retain_graph=True) for s in stats.values()]
        found.append([torch.cat([g.flatten() for g in side]).double() for side in sides])
    return [torch.stack(side) for side in zip(*found, strict=True)]


def agree(got, wanted: torch.Tensor, slope=0.02) -> None:
    """Pearson's correlation at least .99 and a slope of one."""
    got, wanted = np.asarray(got, dtype=float), wanted.numpy()
    assert np.std(wanted) > 0
    assert np.corrcoef(got, wanted)[0, 1] >= 0.999
    assert got @ wanted / (wanted @ wanted) == pytest.approx(1.0, abs=slope)


@pytest.mark.parametrize("parameters", ["all", "head"])
def test_every_column_is_the_exact_product_of_gradients(parameters, go, model, lm_folder, probe):
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    scores, pairs = go(everything=True, by="set_rate", probe=probe, parameters=parameters)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert list(scores["pair_id"]) == [p.pair_id for p in pairs]
    weights = rates.weights_of(model, parameters)
    chosen, rejected = exact(model, pairs, weights)
    mean = (chosen - rejected).mean(0)
    agree(scores["self_rate"], (chosen * (chosen - rejected)).sum(1))
    agree(scores["set_rate"], chosen @ mean)
    agree(scores["set_rate_sign"], chosen @ mean.sign())
    rows = read_probe(probe, load_tokenizer(lm_folder), max_length=None, truncation="drop")
    target = exact(model, rows, weights)[0].mean(0)
    agree(scores["probe_influence"], (chosen - rejected) @ target)
    head = rates.weights_of(model, "head")
    chosen, rejected = exact(model, pairs, head)
    agree(scores["hidden_rate"], (chosen * (chosen - rejected)).sum(1), 1e-4)
    agree(scores["last_layer_set_rate"], chosen @ (chosen - rejected).mean(0), 1e-4)
    total = scores["unembedding_rate"] + scores["hidden_rate"]
    assert scores["features_rate"].tolist() == pytest.approx(total.tolist())


def own_answer(model, prompt, limit, eos):
    """Greedy decoding of one sequence alone, without a cache, and its mean log-prob a token."""
    ids, logps = list(prompt), []
    while len(logps) < limit and (not logps or ids[-1] != eos):
        with torch.no_grad():
            row = model(torch.tensor([ids])).logits[0, -1].double().log_softmax(-1)
        ids.append(int(row.argmax()))
        logps.append(float(row.max()))
    return ids[len(prompt) :], np.mean(logps)


def test_the_own_answer_gap_is_that_of_each_answer_alone(go, model, lm_folder, monkeypatch):
    """Under the gradients' ban: generating and scoring need none. The most off-policy tenth is flagged."""
    monkeypatch.setattr(rates, "weights_of", None)
    plain = copy.deepcopy(model)  # flag runs the other one its own way
    scores, pairs = go(by="own_answer_gap", count=2)
    longest = max(p.longest for p in pairs)
    wanted, lengths = [], set()
    for pair in pairs:
        limit = min(sampling.OWN_TOKENS, longest - len(pair.prompt_ids))
        own, mean = own_answer(plain, pair.prompt_ids, limit, load_tokenizer(lm_folder).eos_token_id)
        lengths.add(len(own))
        row = scores.set_index("pair_id").loc[pair.pair_id]
        wanted.append(mean - row["chosen_logps"] / row["chosen_length"])
    assert len(lengths) > 1
    assert scores["own_answer_gap"].tolist() == pytest.approx(wanted, abs=1e-4)
    assert set(scores.loc[scores["flagged"], "pair_id"]) == set(scores.nlargest(2, "own_answer_gap")["pair_id"])
    assert not set(scores) & set(forecast.CLOSED)


def test_the_chosen_answer_that_the_model_says_anyway_has_no_gap(model, make_pairs, tmp_path):
    pairs = make_pairs(6)
    own = sampling.own_answers(model, pairs, longest=max(p.longest for p in pairs), likelihood=TOKENS, ends={2})
    same = [replace(p, rows={**p.rows, "chosen": Sequence(p.prompt_ids, own[p.pair_id])}) for p in pairs]
    job = forecast.Job(model, same, Parts(tmp_path), 60, TOKENS, ends={2})
    forecast.measure(job, ["own_answer_gap"])
    assert forecast.read(job, ["own_answer_gap"])["own_answer_gap"].tolist() == pytest.approx([0.0] * 6, abs=1e-6)


def test_the_lowest_rates_are_flagged(go):
    scores, _ = go(by="set_rate", count=3)
    assert set(scores.loc[scores["flagged"], "pair_id"]) == set(scores.nsmallest(3, "set_rate")["pair_id"])
    assert scores.nsmallest(1, "set_rate")["rank"].item() == 1
    assert scores.loc[scores["flagged"], "flag_reason"].unique() == ["among the 3 lowest by set_rate"]
    assert {"set_rate", "reference_margin", "needed_loss", "rejected_tail"} <= set(scores)
    assert not {"set_rate_sign", "self_rate", "hidden_rate", "last_layer_set_rate", "own_answer_gap"} & set(
        scores
    )  # not asked for


def test_the_set_gradients_pass_scores_the_pairs_as_the_scoring_pass_does(go, monkeypatch):
    plain, _ = go(name="plain")
    monkeypatch.setattr(flagging, "score_batches", lambda _, groups, **how: iter(groups))  # none: nothing is left
    scores, _ = go(by="set_rate")
    for name in ("chosen_logps", "rejected_logps", *flagging.MEASURES):
        assert scores[name].tolist() == pytest.approx(plain[name].tolist(), rel=1e-5, abs=1e-5), name


def test_passes_of_the_version_before_are_not_taken_for_ours(go, model, lm_folder, tmp_path):
    """A job that it had begun holds rows of other columns under set_rate+ and set_rate-: they are measured anew."""
    whole, _ = go(name="whole", by="set_rate")

    def stop(*_):
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(forecast, "_along", stop)
        with pytest.raises(KeyboardInterrupt):
            go(by="set_rate")
    old = forecast.Parts(tmp_path / "job", "set_rate+")
    with old.writer(0) as write:
        write([{"pair_id": i, "chosen_logps": -1.0, "rejected_logps": -2.0, "length": 1.0} for i in whole["pair_id"]])
    scores, _ = go(by="set_rate")
    assert scores["set_rate"].tolist() == pytest.approx(whole["set_rate"].tolist(), rel=1e-6)


def test_the_cost_is_said_before_it_is_paid(go, capsys):
    go(by="self_rate")
    assert "the forecast takes about as long as 1.1 epochs of DPO (self_rate 1.1)." in capsys.readouterr().out
    every = set(forecast.COLUMNS)
    assert forecast.cost(every).count(",") == len(forecast.EPOCHS) - 1  # no pass without a cost
    go(name="plain")
    assert "epochs" not in capsys.readouterr().out


def test_a_forecast_of_forward_passes_only_takes_no_gradient(go, monkeypatch):
    monkeypatch.setattr(rates, "gradients", None)
    monkeypatch.setattr(rates, "difference", None)
    scores, _ = go(by="last_layer_set_rate", below=0.0)
    assert (scores["flagged"] == (scores["last_layer_set_rate"] < 0)).all()
    assert set(forecast.CLOSED) <= set(scores)


def test_order_and_batching_change_nothing(go, model, lm_folder, pairs_file, tmp_path):
    lines = Path(pairs_file).read_text().splitlines(keepends=True)
    turned = tmp_path / "turned.jsonl"
    turned.write_text("".join(lines[::-1]))
    first, _ = go("a", everything=True)
    second, *_ = flag(
        str(turned), model, load_tokenizer(lm_folder), tmp_path / "b", model_name="b", batch_tokens=500, everything=True
    )
    columns = [c for c in forecast.COLUMNS if c != "probe_influence"]
    a, b = first[columns].to_numpy(), second[columns].to_numpy()[::-1]
    scale = np.abs(a).max(0)
    np.testing.assert_allclose(b / scale, a / scale, atol=2e-3)


def test_a_stopped_forecast_goes_on_where_it_was(go, probe, model, monkeypatch):
    """Stopped within every pass in turn; then no batch is done twice, and the table is the same."""
    monkeypatch.setattr(sums, "SAVE_EVERY", 0.0)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    fitting, calls, last = scoring._fitting, [], [0]

    def counted(work):
        if len(calls) == last[0]:
            raise KeyboardInterrupt
        calls.append(1)
        return fitting(work)

    monkeypatch.setattr(scoring, "_fitting", counted)
    last[0] = -1
    whole, _ = go("whole", everything=True, probe=probe)
    total = len(calls)
    for tenth in range(1, 10, 2):
        calls.clear()
        last[0] = total * tenth // 10
        with pytest.raises(KeyboardInterrupt):
            go(f"job{tenth}", everything=True, probe=probe)
        assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
        last[0] = -1
        again, _ = go(f"job{tenth}", everything=True, probe=probe)
        assert len(calls) == total
        pd.testing.assert_frame_equal(again, whole, rtol=1e-3, atol=1e-3)


def test_a_change_is_refused_by_name(go, probe, monkeypatch, tmp_path):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(flagging, "write_frame", stop)
        with pytest.raises(KeyboardInterrupt):
            go(by="set_rate", probe=probe)
    with pytest.raises(UserError, match=r"another parameters\. Give"):
        go(by="set_rate", probe=probe, parameters="head")
    Path(probe).write_text(json.dumps(PROBE[0]))
    with pytest.raises(UserError, match=r"another probe\. Give"):
        go(by="set_rate", probe=probe)
    with pytest.raises(UserError, match=r"another by, another forecast\. Give"):
        go(by="self_rate", probe=probe)


def test_a_rule_on_the_wrong_side_is_refused():
    frame = pd.DataFrame({"set_rate": [1.0, -2.0, 0.5, np.nan], "ches_score": [1.0, 2.0, 3.0, 4.0]})
    assert choose(frame, "set_rate", below=0.0)["flagged"].tolist() == [False, True, False, False]
    assert choose(frame, "set_rate", quantile=0.5)["rank"].tolist()[:3] == [3, 1, 2]
    with pytest.raises(UserError, match="the lowest values of set_rate are prone to displacement: give --below"):
        choose(frame, "set_rate", above=0.0)
    with pytest.raises(UserError, match="the highest values of ches_score are prone to displacement: give --above"):
        choose(frame, "ches_score", below=0.0)
    with pytest.raises(UserError, match="did you mean 'set_rate'"):
        check_by("set_rates")


def test_every_choice_says_which_end_is_prone():
    for name in flagging.CHOICES:
        assert flagging.prone(name) in ("highest", "lowest")


def test_what_cannot_be_measured_is_refused_in_one_sentence(go, lm_folder, pairs_file, tmp_path):
    with pytest.raises(UserError, match="needs --probe FILE"):
        go(by="probe_influence")
    half = load_model(lm_folder, dtype="bfloat16")
    with pytest.raises(UserError, match=r"set_rate takes differences that are too small for torch.bfloat16"):
        flag(pairs_file, half, load_tokenizer(lm_folder), tmp_path / "h", model_name="m", by="set_rate")
    scores, *_ = flag(pairs_file, half, load_tokenizer(lm_folder), tmp_path / "h", model_name="m", by="hidden_rate")
    assert scores["hidden_rate"].notna().all()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no rows"),
        ("{", "line 1 is not JSON"),
        ('{"prompt": "a", "answer": "b"}\n[1]\n', "line 2: needs prompt"),
        ('{"prompt": "a"}', "line 1: needs prompt"),
        ('{"prompt": [], "answer": "b"}', "line 1: needs prompt"),
        ('{"prompt": "a", "answer": ""}', "line 1: answer has no tokens"),
    ],
)
def test_a_bad_probe_names_its_line(text, said, lm_folder, tmp_path):
    path = tmp_path / "probe.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=said):
        read_probe(path, load_tokenizer(lm_folder), max_length=None, truncation="drop")
    with pytest.raises(DataError, match="no such file"):
        read_probe(tmp_path / "none", load_tokenizer(lm_folder), max_length=None, truncation="drop")


def test_two_processes_add_up_to_the_same(lm_folder, pairs_file, probe, tmp_path):
    one, *_ = flag(pairs_file, load_model(lm_folder), load_tokenizer(lm_folder), tmp_path / "one", model_name="m",
                   everything=True, probe=probe, batch_tokens=60)  # fmt: skip
    driver = tmp_path / "driver.py"
    driver.write_text(
        "import sys\nfrom diagnostics.flag.flagging import flag\n"
        "from trainers.models import load_model, load_tokenizer\n"
        "data, lm, out, probe = sys.argv[1:]\n"
        "flag(data, load_model(lm), load_tokenizer(lm), out, model_name='m', everything=True, probe=probe,"
        " batch_tokens=60)\n"
    )
    done = forks.run(driver, pairs_file, lm_folder, tmp_path / "two", probe, ranks=2)
    assert done.returncode == 0, done.stderr
    two = pd.read_parquet(tmp_path / "two" / "scores.parquet")
    numbers = one.select_dtypes("number").columns.drop("rank")
    scale = one[numbers].abs().max()
    np.testing.assert_allclose(two[numbers] / scale, one[numbers] / scale, atol=1e-3)
