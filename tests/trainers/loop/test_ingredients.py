"""What objectives read besides the two answers: made from the data, put beside every batch, checked at the start."""

import json
import random
from dataclasses import replace

import pytest
import torch

from diagnostics.errors import DataError, UserError
from diagnostics.forward import run
from diagnostics.pairs import read_pairs
from diagnostics.row_stats import pair_stats
from diagnostics.runlog import read_run
from diagnostics.sequences import Sequence, pair_of
from diagnostics.token_likelihood import TokenLikelihood
from trainers.config import make_config
from trainers.loop.given import cleaned, gather
from trainers.loop.ingredients import Given, Ingredients, mismatched
from trainers.loop.reference import LiveReference
from trainers.models import load_tokenizer
from trainers.run import train

TOKENS = TokenLikelihood(0)

SETTINGS = {"max_length": None, "truncation": "drop", "append_eos": True}
FAST = {"learning_rate": 3e-3, "per_device_train_batch_size": 4, "heldout_pairs": 0, "probe_pairs": 4}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows(n: int = 12) -> list[dict]:
    """Pairs with every field that any objective reads; every three share a prompt."""
    from trainers import objectives

    further = [f for name in objectives.names() for f in objectives.rows(name) | objectives.optional_rows(name)]
    rng = random.Random(0)
    words = "alpha beta gamma delta epsilon zeta eta theta".split()

    def text(low, high):
        return "".join(" " + w for w in rng.choices(words, k=rng.randint(low, high)))

    found = []
    for i in range(n):
        steps = {side: [text(2, 3), text(1, 3)] for side in ("chosen", "rejected")}
        found.append(
            {"pair_id": f"p{i}", "prompt": f"iota {i // 3} ?", "chosen": "".join(steps["chosen"]),
             "rejected": "".join(steps["rejected"]), "gold": text(2, 4), "prefix": " kappa",
             "score_chosen": 1 + rng.random(), "rejected_score": rng.random(), "tie": bool(i % 2),
             "chosen_steps": steps["chosen"], "rejected_steps": steps["rejected"], "semantic_distance": 0.3,
             "chosen_other": [0.1, i], "rejected_other": [0.4, 1.0], "chosen_source_logps": [-1.0, -2.0],
             "rejected_source_logps": [-1.5, -2.5], "chosen_relevance": 1, "rejected_relevance": 0,
             "chosen_proposal_logps": -7.0, "rejected_proposal_logps": -9.0}
            | {name: text(1, 4) for name in further} | {f"{further[0]}_prompt": "kappa ?"}
        )  # fmt: skip
    return found


@pytest.fixture
def go(lm_folder, tmp_path):
    """Train on the rows above with a few keys changed; returns the run log."""

    def make(objective: str, data=None, name: str = "run", **keys):
        file = write(tmp_path / f"{name}.jsonl", data or rows())
        values = {"model": lm_folder, "data": file, "output_dir": str(tmp_path / name), "save_model": False}
        return read_run(train(make_config(values | FAST | {"objective": objective} | keys)))

    return make


@pytest.fixture
def table(tmp_path):
    """A pair table of rows."""
    return lambda data: read_pairs(write(tmp_path / "table.jsonl", data))


def tokenized(found, tokenizer):
    from diagnostics.audit import audit_pairs

    return audit_pairs(found, tokenizer, **SETTINGS).tokenized


# --- every objective trains ---


def test_every_objective_of_the_folder_trains_three_steps(go, lm_folder):
    """From one data set that holds every field, by the front door's own function; losses are finite and rows whole."""
    from trainers import objectives

    few = {"probe_every": 100, "probe_pairs": 1, "response_types": 0, "tokens": "none"}
    for name in objectives.names():
        if objectives.likelihood(name) != "tokens":  # tests/trainers/test_denoising_run.py
            continue
        log = go(name, name=name, reward_model=lm_folder, **few)
        trained = log.pairs[log.pairs["split"] == "train"]
        assert sorted(trained["pair_id"]) == sorted(f"p{i}" for i in range(12)), name
        assert trained["loss"].notna().all(), name
        assert trained["chosen_incentive"].notna().all(), name
        assert log.steps["loss"].notna().sum() >= 1, name


# --- the reference, only where it is needed ---


def test_a_reference_free_objective_runs_the_reference_at_probes_only(go, monkeypatch):
    calls = []
    plain = LiveReference.__call__
    monkeypatch.setattr(LiveReference, "__call__", lambda self, batch: (calls.append(1), plain(self, batch))[1])
    log = go("simpo", probe_every=100)
    counted = len(calls)
    calls.clear()
    go("dpo", name="dpo", probe_every=100)
    assert len(calls) == counted + 3  # once more in each of the three steps
    by = dict(list(log.pairs.groupby("split")))
    assert by["train"]["ref_chosen_logps"].isna().all()
    assert by["train"]["chosen_kl"].isna().all()
    assert by["probe"][["ref_chosen_logps", "chosen_kl"]].notna().all().all()


def test_the_kl_is_taken_where_the_log_or_the_objective_asks_for_it(go):
    quiet = go("dpo", log_kl=False).pairs
    assert quiet[quiet["split"] == "train"]["chosen_kl"].isna().all()
    assert quiet[quiet["split"] == "probe"]["chosen_kl"].notna().all()
    needed = go("tdpo1", name="tdpo1", log_kl=False).pairs
    assert needed[needed["split"] == "train"]["chosen_kl"].notna().all()


@pytest.mark.parametrize(
    ("objective", "keys", "said"),
    [
        ("rrpo", {"reference": "precomputed"}, "set reference to live"),
        ("kto", {"reference": "precomputed"}, "set reference to live"),
        ("dpo", {"reference": "none"}, "needs a reference"),
        ("tgdpo", {}, "set reward_model"),
        ("step_dpo", {"append_eos": True}, "defined without EOS"),
    ],
)
def test_what_an_objective_cannot_have_is_said_before_training(go, objective, keys, said, tmp_path):
    with pytest.raises(UserError, match=said):
        go(objective, **keys)
    assert not (tmp_path / "run").exists()


# --- columns ---


def test_an_objective_for_ties_trains_on_data_without_any(go):
    """With nu = 1 a tie is impossible, and none is tried."""
    data = [row | {"tie": 0} for row in rows()]
    assert go("dpo_rk", data, nu=1.0).pairs["loss"].notna().any()


def test_one_prompt_has_no_other_prompts_answers(go, tmp_path):
    with pytest.raises(UserError, match="all the data has one prompt"):
        go("kto", [row | {"prompt": "iota ?"} for row in rows()])


def test_foreign_answers_are_cut_to_the_longest_row():
    pairs = [pair_of("a", 0, (1,) * 9, (5, 2), (6, 2)), pair_of("b", 1, (1,), (7,) * 9, (8, 2))]
    made = mismatched(pairs)
    assert (made["a"].chosen.completion_ids, made["a"].rejected.completion_ids) == ((7, 7), (8, 2))
    assert made["b"].chosen.completion_ids == (5, 2)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"tie": None}, "line 3: objective 'dpo_rk' reads the column 'tie', which this row does not have"),
        ({"tie": "x"}, "line 3: objective 'dpo_rk' reads the column 'tie', which holds 'x' here"),
        ({"tie": [1, 0]}, "column 'tie' has 2 numbers here, but no list of in"),
    ],
)
def test_a_missing_or_wrong_column_is_named_with_its_row(go, change, said, tmp_path):
    data = rows()
    data[2] = {k: v for k, v in (data[2] | change).items() if v is not None}
    with pytest.raises(DataError) as caught:
        go("dpo_rk", data)
    assert said in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_columns_reach_the_objective_in_the_order_of_the_batch(lm_folder, table):
    found, tokenizer = table(rows()), load_tokenizer(lm_folder)
    kept = tokenized(found, tokenizer)
    given = gather(found, kept, {}, tokenizer, "madpo", phrase_source="auto", settings=SETTINGS)
    data = {r["pair_id"]: r for r in rows()}
    for pair in kept:  # score_chosen is another spelling of chosen_score
        row = data[pair.pair_id]
        assert given.columns[pair.pair_id] == {
            "chosen_score": row["score_chosen"],
            "rejected_score": row["rejected_score"],
        }


# --- phrases ---


def test_tagged_phrases_mark_their_tokens_and_are_not_trained_on(lm_folder, table):
    tagged = {
        "prompt": "iota ?",
        "chosen": " alpha <MASK>beta gamma</MASK> delta",
        "rejected": " alpha <MASK>zeta</MASK>",
    }
    plain = {"prompt": "iota ?", "chosen": " alpha beta gamma delta", "rejected": " alpha zeta"}
    tokenizer = load_tokenizer(lm_folder)
    found, spans = cleaned(table([tagged]), "rrpo")
    (pair,) = tokenized(found, tokenizer)
    (same,) = tokenized(table([plain]), tokenizer)
    assert (pair.chosen.completion_ids, pair.rejected.completion_ids) == (
        same.chosen.completion_ids,
        same.rejected.completion_ids,
    )
    given = gather(found, [pair], spans, tokenizer, "rrpo", phrase_source="auto", settings=SETTINGS)
    chosen, rejected = given.phrases[pair.pair_id]
    inside = "".join(tokenizer.decode([t]) for t, n in zip(pair.chosen.completion_ids, chosen) if n)
    assert inside.strip() == "beta gamma"
    assert "".join(tokenizer.decode([t]) for t, n in zip(pair.rejected.completion_ids, rejected) if n).strip() == "zeta"
    assert chosen[-1] == rejected[-1] == 0  # EOS


def test_without_tags_phrases_are_what_a_token_diff_replaces(lm_folder, table):
    row = {"prompt": "iota ?", "chosen": " alpha beta gamma", "rejected": " alpha zeta gamma"}
    tokenizer = load_tokenizer(lm_folder)
    found = table([row])
    (pair,) = tokenized(found, tokenizer)
    given = gather(found, [pair], {}, tokenizer, "rrpo", phrase_source="auto", settings=SETTINGS)
    chosen, _ = given.phrases[pair.pair_id]
    assert "".join(tokenizer.decode([t]) for t, n in zip(pair.chosen.completion_ids, chosen) if n).strip() == "beta"


def test_a_broken_tag_is_named_with_its_row(table):
    with pytest.raises(DataError, match=r"line 1: chosen: .*tag"):
        cleaned(table([{"prompt": "a", "chosen": " b <MASK>c", "rejected": " d"}]), "dpo")


def test_marks_stand_where_the_tokens_stand(make_batch):
    """Two pairs of unequal lengths: numbers land on completion tokens, whatever the padding."""
    from trainers.loop.ingredients import marked

    pairs = [pair_of("a", 0, (1, 5), (3, 4, 2), (6, 2)), pair_of("b", 1, (1,), (7, 2), (8, 9, 9, 2))]
    marks = {"a": ((1, 2, 0), (3, 0)), "b": ((4, 0), (0, 5, 5, 0))}
    for side in ("right", "left"):
        batch = make_batch(pairs, side)
        chosen, rejected = marked(batch, marks)
        mask = batch.completion_mask.bool()
        assert [chosen[i][mask[i]].tolist() for i in (0, 1)] == [[1, 2, 0], [4, 0]]
        assert [rejected[i][mask[2 + i]].tolist() for i in (0, 1)] == [[3, 0], [0, 5, 5, 0]]
        assert chosen[~mask[:2]].sum() == 0


# --- lists, other prompts' answers, a third answer, steps ---


def test_whole_lists_stand_in_one_batch(go):
    log = go("infonca", per_device_train_batch_size=2)  # two lists of three rows
    trained = log.pairs[log.pairs["split"] == "train"]
    for _, step in trained.groupby("step"):
        lists = [int(p[1:]) // 3 for p in step["pair_id"]]
        assert len(lists) == 6
        assert all(lists.count(x) == 3 for x in lists)


def test_mismatched_answers_are_another_prompts(make_model, make_pairs, make_batch):
    """The column equals scoring prompt i with the next prompt's answers, one at a time."""
    model, other = make_model("llama"), make_model("llama", seed=1)
    pairs = make_pairs(4)
    swapped = mismatched(pairs)
    for pair, following in zip(pairs, [*pairs[1:], pairs[0]]):
        made = swapped[pair.pair_id]
        assert (made.prompt_ids, made.chosen.completion_ids) == (pair.prompt_ids, following.chosen.completion_ids)
    batch, reference = make_batch(pairs), LiveReference(other, TOKENS)
    policy = run(model, batch)
    ingredients = Ingredients("kto", pairs, likelihood=TOKENS)
    stats = ingredients.complete(pair_stats(batch, policy, reference(batch)), batch, policy, model, reference)
    found = stats.columns["mismatched_logratios"]
    for i, pair in enumerate(pairs):
        alone = make_batch([swapped[pair.pair_id]])
        with torch.no_grad():
            expected = pair_stats(alone, run(model, alone), reference(alone))
        ratios = [
            s.logps - r.logps
            for s, r in ((expected.chosen, expected.ref_chosen), (expected.rejected, expected.ref_rejected))
        ]
        assert found[i].item() == pytest.approx(float(sum(ratios)) / 2, abs=1e-4)
    assert not found.requires_grad


def test_the_gold_answer_is_scored_under_the_policy_with_gradient(make_model, make_pairs, make_batch):
    pairs = make_pairs(3)
    gold = {p.pair_id: replace(p, rows={"gold": Sequence(p.prompt_ids, (5, 6, 2))}) for p in pairs}
    model, batch = make_model("llama"), make_batch(pairs)
    policy = run(model, batch)
    ingredients = Ingredients("triple_po", pairs, likelihood=TOKENS, given=Given(gold=gold))
    stats = ingredients.complete(pair_stats(batch, policy), batch, policy, model, None)
    for i, pair in enumerate(pairs):
        ids = torch.tensor([[*pair.prompt_ids, 5, 6, 2]])
        logps = model(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0][-3:]
        assert stats.extra["gold"].logps[i].item() == pytest.approx(logps.sum().item(), abs=1e-4)
    assert stats.extra["gold"].logps.requires_grad


def test_step_similarity_is_the_cosine_with_the_best_answers_step(make_model, make_pairs, make_batch):
    """By a plain loop over steps; the best answer's own tokens have cosine 1, tokens outside steps 0."""
    pairs = [
        pair_of("a", 0, (1, 5), (3, 4, 7, 2), (6, 9, 2)),
        pair_of("b", 1, (1, 5), (8, 4, 2), (6, 9, 2)),
    ]
    marks = {"a": ((1, 1, 2, 0), (1, 2, 0)), "b": ((1, 2, 0), (1, 3, 0))}
    scores = {"a": {"chosen_score": 1.0, "rejected_score": 0.0}, "b": {"chosen_score": 3.0, "rejected_score": 0.0}}
    model, batch = make_model("llama"), make_batch(pairs)
    with torch.no_grad():
        policy = run(model, batch)
        ingredients = Ingredients("tpo_tree", pairs, likelihood=TOKENS, given=Given(columns=scores, steps=marks))
        stats = ingredients.complete(pair_stats(batch, policy), batch, policy, model, None)
    hidden = {row: policy.hidden[policy.rows == row].double() for row in range(4)}
    numbers = [marks["a"][0], marks["b"][0], marks["a"][1], marks["b"][1]]
    sides = [stats.chosen, stats.chosen, stats.rejected, stats.rejected]
    for row, side, i in zip(range(4), sides, (0, 1, 0, 1)):
        got = side.step_similarity[i][side.completion_mask[i].bool()]
        for k, step in enumerate(numbers[row]):
            if step == 0:
                assert got[k] == 0
                continue
            if step == 3:  # the best answer has two steps
                assert got[k] == -1
                continue
            own = hidden[row][[j for j, s in enumerate(numbers[row]) if s == step]].mean(0)
            best = hidden[1][[j for j, s in enumerate(numbers[1]) if s == step]].mean(0)
            assert got[k].item() == pytest.approx(float(torch.cosine_similarity(own, best, dim=0)), abs=1e-9)


def test_a_prefix_stands_behind_the_prompt_and_nothing_ends(lm_folder, table):
    found, _ = cleaned(table(rows(1)), "step_dpo")
    assert found.pairs[0].prompt == "iota 0 ? kappa"
    config = make_config({"model": "m", "data": "d", "output_dir": "o", "objective": "step_dpo"})
    assert config.append_eos is False


def test_statistics_over_batches_survive_a_resume(go, tmp_path):
    keys = {"num_train_epochs": 2.0, "save_strategy": "steps", "save_steps": 3, "probe_every": 100}
    whole = go("bco", name="whole", **keys)
    go("bco", name="part", **keys)
    for path in (tmp_path / "part" / "checkpoints").glob("checkpoint-6"):
        for file in sorted(path.rglob("*"), reverse=True):
            file.unlink() if file.is_file() else file.rmdir()
        path.rmdir()
    resumed = go("bco", name="part", resume=True, **keys)
    assert resumed.steps["loss"].dropna().tolist() == pytest.approx(whole.steps["loss"].dropna().tolist(), abs=1e-6)


# --- incentives ---


def test_incentives_of_dpo_are_beta_times_the_sigmoid(go):
    """d_w = d_l = beta * sigmoid(-beta * margin), the derivative in the summed log-probs."""
    log = go("dpo", beta=0.3)
    trained = log.pairs[log.pairs["split"] == "train"]
    margin = (trained["chosen_rewards"] - trained["rejected_rewards"]).to_numpy()
    expected = 0.3 * torch.sigmoid(-torch.tensor(margin)).numpy()
    assert trained["chosen_incentive"].to_numpy() == pytest.approx(expected, abs=1e-6)
    assert trained["rejected_incentive"].to_numpy() == pytest.approx(expected, abs=1e-6)


def test_a_loaded_reward_policy_is_read(go, lm_folder):
    """A reward policy equal to the reference rewards no token: tgdpo is then dpo."""
    tgdpo = go("tgdpo", name="t", reward_model=lm_folder, beta=0.1)
    dpo = go("dpo", name="d", beta=0.1)
    a, b = (
        x.pairs[x.pairs["split"] == "train"].set_index(["step", "pair_id"])["loss"].sort_index() for x in (tgdpo, dpo)
    )
    assert a.to_numpy() == pytest.approx(b.to_numpy(), abs=1e-7)
