"""Further rows: from text columns or by hand into one forward pass, under both models; the log stays the pair's."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from diagnostics.errors import DataError, UserError
from diagnostics.likelihood import pair_stats
from diagnostics.runlog import RunLogWriter, read_run
from diagnostics.scoring import score
from diagnostics.sequences import Example, Sequence
from diagnostics.token_likelihood import TokenLikelihood
from trainers.config import make_config
from trainers.loop.ingredients import Ingredients
from trainers.loop.reference import LiveReference, precompute
from trainers.models import load_tokenizer
from trainers.objectives.symmpo import ROWS
from trainers.run import train

TOKENS = TokenLikelihood(0)
FAST = {
    "objective": "symmpo", "learning_rate": 3e-3, "per_device_train_batch_size": 4, "heldout_pairs": 2,
    "probe_pairs": 3, "probe_every": 2, "max_steps": 4, "save_model": True, "response_types": 1,
}  # fmt: skip


def rows(n: int = 22) -> list[dict]:
    """Two things a row, a question on each, three answers: text in place of pictures."""
    words, rng = "alpha beta gamma delta epsilon zeta".split(), random.Random(0)
    found = []
    for i in range(n):
        first, second, wrong = (f" {i} {w}" for w in rng.sample(words, 3))
        row = {"prompt": f"see{first} ?", "chosen": first, "rejected": wrong, "second_answer": second}
        row |= {"second_chosen": second, "second_chosen_prompt": f"see{second} and more ?"}
        found.append(row | {"second_rejected": first, "second_rejected_prompt": f"see{second} and more ?"})
    return found


@pytest.fixture
def go(lm_folder, tmp_path):
    """Train on the rows above with a few keys changed; returns the run log."""

    def make(name: str = "run", data=None, **keys):
        file = tmp_path / f"{name}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in data or rows()))
        values = {"model": lm_folder, "data": str(file), "output_dir": str(tmp_path / name)}
        return read_run(train(make_config(values | FAST | keys)))

    return make


def weights(log):
    return load_file(log.path / "model" / "model.safetensors")


def by_hand(n: int, names=ROWS) -> list[Example]:
    """Examples of random ids with further rows that have another prompt."""
    generator = torch.Generator().manual_seed(3)

    def ids(low):
        size = int(torch.randint(low, 6, (1,), generator=generator))
        return tuple(torch.randint(3, 61, (size,), generator=generator).tolist())

    found = []
    for i in range(n):
        first, second = (1, *ids(1)), (1, *ids(2))
        made = {name: Sequence(first, (*ids(1), 2)) for name in ("chosen", "rejected")}
        made |= {name: Sequence(second if k else first, (*ids(0), 2)) for k, name in enumerate(names)}
        found.append(Example(f"e{i}", i, made))
    return found


@pytest.mark.parametrize(("kind", "tolerance"), [("gpt2", 1e-9), ("llama", 1e-5)])  # llama's norms are float32
def test_every_row_is_that_of_its_own_pass_under_both_models(make_model, make_batch, kind, tolerance):
    """Five rows together, packed (policy) or padded (reference), equal each alone, by name."""
    examples = by_hand(5)
    model, other = make_model(kind).double(), make_model(kind, seed=1).double()
    TOKENS.prepare(model)
    stats = pair_stats(TOKENS, make_batch(examples), TOKENS.run(model, make_batch(examples)),
                       LiveReference(other, TOKENS)(make_batch(examples)))  # fmt: skip
    own = {"chosen": stats.chosen, "rejected": stats.rejected} | stats.extra
    ref = {"chosen": stats.ref_chosen, "rejected": stats.ref_rejected} | stats.ref_extra
    assert own.keys() == ref.keys() == {"chosen", "rejected", *ROWS}
    for found, plain in ((own, model), (ref, other)):
        for i, example in enumerate(examples):
            for name, row in example.rows.items():
                ids = torch.tensor([[*row.prompt_ids, *row.completion_ids]])
                logps = plain(input_ids=ids).logits[0, :-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
                expected = logps[-len(row.completion_ids) :].sum().item()
                assert found[name].logps[i].item() == pytest.approx(expected, abs=tolerance), name
    assert stats.extra["second_chosen"].per_token_kl is not None


def test_a_stored_reference_knows_every_row_by_its_name(make_model, make_batch, tmp_path):
    """Also of pairs without further rows beside them, from the cache too, and in whatever order the rows stand."""
    examples, model = by_hand(6), make_model("llama").double()
    mixed = [*examples[:4], *(e.only(("chosen", "rejected")) for e in examples[4:])]
    for _ in range(2):
        stored = precompute(model, mixed, likelihood=TOKENS, folder=tmp_path, key={"model": "m"})
        live = LiveReference(model, TOKENS)
        for part in (examples[:4], mixed[4:], [e.only(reversed(list(e.rows))) for e in examples[:4]]):
            batch = make_batch(part)
            policy = TOKENS.run(model, batch)
            kept, run = (pair_stats(TOKENS, batch, policy, r(batch)) for r in (stored, live))
            assert kept.ref_extra.keys() == run.ref_extra.keys()
            pairs = [(kept.ref_chosen, run.ref_chosen), (kept.ref_rejected, run.ref_rejected)]
            for one, two in (*pairs, *((kept.ref_extra[n], run.ref_extra[n]) for n in run.ref_extra)):
                torch.testing.assert_close(one.logps, two.logps, rtol=0, atol=1e-5)  # stored as float32


def test_other_prompts_of_the_same_answers_are_other_content(make_model, tmp_path):
    (example,) = by_hand(1)
    model = make_model("llama").double()
    moved = replace(example.rows["second_chosen"], prompt_ids=(1, 5, 9))
    other = replace(example, rows=example.rows | {"second_chosen": moved})
    logps = [precompute(model, [e], likelihood=TOKENS, folder=tmp_path, key={}).logps["e0"] for e in (example, other)]
    assert logps[0]["chosen"] == pytest.approx(logps[1]["chosen"], abs=1e-6)
    assert logps[0]["second_chosen"] != pytest.approx(logps[1]["second_chosen"], abs=1e-3)


def test_examples_with_other_rows_stand_in_other_batches(make_model):
    examples = by_hand(6)
    mixed = [e if i % 2 else e.only(("chosen", "rejected")) for i, e in enumerate(examples)]
    scored = list(score(make_model("llama"), mixed, likelihood=TOKENS))
    assert sorted(p.pair_id for s in scored for p in s.pairs) == [f"e{i}" for i in range(6)]
    assert all(len({tuple(p.rows) for p in s.pairs}) == 1 for s in scored)


def test_an_objective_gets_its_rows_and_no_others(make_pairs):
    examples = by_hand(3, names=[*ROWS, "another"])
    assert list(Ingredients("symmpo", examples, likelihood=TOKENS).pairs["e0"].rows) == ["chosen", "rejected", *ROWS]
    assert list(Ingredients("dpo", examples, likelihood=TOKENS).pairs["e0"].rows) == ["chosen", "rejected"]
    with pytest.raises(UserError, match=r"pair_id pair0: objective 'symmpo' reads the row 'second_answer' .*m1, y_2"):
        Ingredients("symmpo", make_pairs(2), likelihood=TOKENS)


# --- whole runs, from text columns ---


def test_symmpo_trains_logs_its_own_formula_and_resumes(go, capsys):
    """What is read is said. The first update's losses are the formula's, as policy = reference; a run that was stopped
    ends as one that was not; training and probe rows are those of the pair."""
    log = go(save_strategy="steps", save_steps=2)
    assert f"'symmpo' reads further rows, from columns of their names: {', '.join(ROWS)}." in capsys.readouterr().out
    trained, probed = (log.pairs[log.pairs["split"] == name] for name in ("train", "probe"))
    assert sorted(trained["step"].unique()) == [1, 2, 3, 4]
    assert trained["loss"].notna().all()
    assert trained["ref_chosen_logps"].notna().all()
    np.testing.assert_allclose(trained[trained["step"] == 1]["loss"], 4 * np.log(2), atol=1e-4)
    assert set(probed["step"]) == {0, 2, 4}
    assert log.steps["loss"].iloc[-1] < log.steps["loss"].iloc[1]
    real = RunLogWriter.append_step

    def dies(self, row):
        real(self, row)
        if row["step"] == 3:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RunLogWriter, "append_step", dies)
        with pytest.raises(KeyboardInterrupt):
            go("stopped", save_strategy="steps", save_steps=2)
    resumed = go("stopped", save_strategy="steps", save_steps=2, resume="auto")
    again = resumed.pairs[resumed.pairs["split"] == "train"]
    np.testing.assert_allclose(sorted(again["loss"]), sorted(trained["loss"]), rtol=1e-5)
    for name, value in weights(log).items():
        torch.testing.assert_close(weights(resumed)[name], value, rtol=1e-4, atol=1e-5)


def test_rows_are_tokenized_as_answers_to_their_own_prompts(lm_folder, tmp_path):
    from diagnostics.audit import audit_pairs
    from diagnostics.pairs import read_pairs
    from trainers.loop.given import further_rows

    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows(3)))
    settings = {"max_length": None, "truncation": "drop", "append_eos": True}
    tokenizer, table = load_tokenizer(lm_folder), read_pairs(str(file))
    kept = audit_pairs(table, tokenizer, **settings).tokenized
    for pair, made, row in zip(kept, further_rows(table, kept, tokenizer, "symmpo", settings), rows(3), strict=True):
        assert (made.chosen, made.rejected) == (pair.chosen, pair.rejected)
        assert list(made.rows) == ["chosen", "rejected", *ROWS]
        for name in ROWS:
            prompt = row.get(f"{name}_prompt", row["prompt"])
            assert tokenizer.decode(made.rows[name].prompt_ids) == prompt
            assert tokenizer.decode(made.rows[name].completion_ids, skip_special_tokens=True) == row[name]
            assert made.rows[name].has_eos
        assert made.rows["second_rejected"].completion_ids == pair.chosen.completion_ids


def test_a_stored_reference_and_micro_batches_train_the_same(go):
    live, stored = go("live"), go("stored", reference="precomputed")
    small = go("small", per_device_train_batch_size=1, gradient_accumulation_steps=4)
    for other in (stored, small):
        for name, value in weights(live).items():
            torch.testing.assert_close(weights(other)[name], value, rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    "keys", [{}, {"lora_r": 2}, {"grad_parameters": "head"}, {"objective": "dpa"}, {"objective": "tars"}]
)
def test_gradient_instruments_change_no_weights(go, keys):
    """The further rows are run apart then; what they pull is in the rest."""
    columns = {"kl_reference": " zeta", "noisy_chosen": " eta", "clean_chosen": " beta", "clean_rejected": " a b"}
    data = [row | columns | {"kl_reference_prompt": "iota ?"} for row in rows()]
    plain, measured = go("off", data, **keys), go("on", data, grad_every=1, **keys)
    by = [log.pairs[log.pairs["split"] == "train"].sort_values(["step", "pair_id"]) for log in (plain, measured)]
    for name in ("loss", "chosen_rewards", "chosen_logps"):
        np.testing.assert_allclose(by[0][name], by[1][name], rtol=2e-3, atol=1e-4)
    updates = measured.steps[measured.steps["step"] > 0]
    assert updates[["grad/chosen", "grad/rejected"]].notna().all().all()
    if "grad_parameters" not in keys:
        assert (updates["grad/rest"].iloc[1:] > 0).all()  # a KL has no slope at its start


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"second_chosen": None}, r"line 3: objective 'symmpo' reads the row 'second_chosen' \(\(m2, y_2\)"),
        ({"second_chosen": 5}, "text column 'second_chosen' in every row, and its prompt as the text column"),
        ({"second_chosen_prompt": 5}, "text column 'second_chosen_prompt' where it is not the pair's"),
        ({"second_chosen": ""}, "the row 'second_chosen' cannot be used"),
        ({"second_chosen": " alpha" * 60}, "the row 'second_chosen' has .* tokens, over max_length 40"),
    ],
)
def test_a_row_that_the_data_lacks_is_named_before_anything_is_written(go, tmp_path, change, said):
    data = rows()
    data[2] = {k: v for k, v in (data[2] | change).items() if v is not None}
    with pytest.raises(DataError, match=said):
        go(data=data, max_length=40)
    assert not (tmp_path / "run").exists()


def test_a_row_that_is_optional_is_given_to_all_or_none(go):
    """dpa's KL is taken on kl_reference where the data has it; a row without it is then named."""
    columns = {"kl_reference": " zeta", "kl_reference_prompt": "iota ?"}
    data = [row | columns for row in rows()]
    with_rows, without = go("with", data, objective="dpa"), go("without", objective="dpa")
    last = [log.pairs.query("split == 'train' and step == 4").sort_values("pair_id") for log in (with_rows, without)]
    assert (last[0]["loss"].to_numpy() != last[1]["loss"].to_numpy()).any()
    data[5] = rows()[5]
    with pytest.raises(DataError, match="line 6: objective 'dpa' reads the row 'kl_reference'"):
        go("some", data, objective="dpa")


def test_the_spectral_term_reads_token_embeddings_of_both_models(make_model, make_batch):
    from trainers.objectives.tars import ROWS as names
    from trainers.objectives.tars import tars

    examples = by_hand(3, names=names)
    model, other = make_model("llama"), make_model("llama", seed=1)
    batch, live = make_batch(examples), LiveReference(other, TOKENS)
    policy = TOKENS.run(model, batch)
    ingredients = Ingredients("tars", examples, likelihood=TOKENS)
    stats = ingredients.complete(pair_stats(TOKENS, batch, policy, live(batch)), batch, policy, model, live)
    for i, example in enumerate(examples):
        for side, name, plain in (
            (stats.chosen, "chosen", model),
            (stats.ref_extra["clean_chosen"], "clean_chosen", other),
        ):
            row = example.rows[name]
            expected = plain.get_input_embeddings().weight[[*row.prompt_ids, *row.completion_ids]]
            found = side.embeddings[i]
            torch.testing.assert_close(found[~found.isnan().any(-1)], expected, rtol=0, atol=0)
    assert stats.chosen.embeddings.requires_grad
    assert not stats.ref_extra["clean_chosen"].embeddings.requires_grad
    assert tars(stats, margin=50.0).losses.isfinite().all()
    pictured = [replace(e, rows={n: replace(r, media=("x",)) for n, r in e.rows.items()}) for e in examples]
    ingredients = Ingredients("tars", pictured, likelihood=TOKENS)
    stats = ingredients.complete(pair_stats(TOKENS, batch, policy, live(batch)), batch, policy, model, live)
    with pytest.raises(UserError, match="set spectral to 0"):
        tars(stats)
    assert tars(stats, spectral=0).losses.isfinite().all()
