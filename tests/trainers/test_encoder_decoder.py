"""A T5 with its tokenizer, as generative retrieval trains it (DDRO, arXiv 2504.05181): a query, and document ids of
which one is right. Trained, flagged, with an adapter, traced; every number is that of one row in the plain forward."""

import json
import random

import forks
import pytest
import tokenizers
import torch
import transformers
from tokenizers import decoders, models, pre_tokenizers, processors
from typer.testing import CliRunner

import chesboard
from chesboard import DisplacementCallback
from diagnostics.errors import DataError
from diagnostics.flag.flagging import flag
from diagnostics.pairs import PreferencePair
from diagnostics.runlog import read_run
from diagnostics.tokenized import tokenize_pair
from trainers.config import make_config
from trainers.models import load_model, load_tokenizer
from trainers.run import train

QUERIES = "who wrote this where is that when was it what river".split()
DOCIDS = [f"doc {a}-{b}" for a in "0123" for b in "0123"]


def save_tokenizer(folder, front: str = "") -> transformers.PreTrainedTokenizerFast:
    """SentencePiece's ways with spaces, and what T5's adds to a text: EOS behind it. front: a token before it."""
    pieces = [
        "<pad>",
        "</s>",
        "<unk>",
        "<s>",
        "\u2581",
        *"abcdefghijklmnopqrstuvwxyz0123-?",
        "\u2581doc",
        "\u2581who",
        "\u2581what",
    ]
    tokenizer = tokenizers.Tokenizer(
        models.Unigram([(p, -float(len(pieces[5:]) if len(p) == 1 else 2)) for p in pieces], 2)
    )
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = [("</s>", 1), ("<s>", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{front} $A </s>".strip(), special_tokens=special)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    )
    fast.save_pretrained(folder)
    return fast


@pytest.fixture(scope="module")
def t5_folder(tmp_path_factory) -> str:
    """A tiny T5 and its tokenizer, saved as users save theirs."""
    folder = tmp_path_factory.mktemp("t5")
    size = len(save_tokenizer(folder))
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=size, d_model=16, d_kv=8, d_ff=32, num_layers=1, num_heads=2, relative_attention_num_buckets=8,
        decoder_start_token_id=0, pad_token_id=0, eos_token_id=1,
    )  # fmt: skip
    transformers.T5ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def rows(tmp_path) -> tuple[str, list[dict[str, str]]]:
    """Queries with a right and a wrong document id."""
    rng = random.Random(0)
    made = []
    for _ in range(12):
        chosen, rejected = rng.sample(DOCIDS, 2)
        made.append({"prompt": " ".join(rng.choices(QUERIES, k=3)), "chosen": chosen, "rejected": rejected})
    path = tmp_path / "docids.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in made))
    return str(path), made


def plain(model, tokenizer, prompt: str, completion: str) -> torch.Tensor:
    """(n, V) log-probs where the decoder predicts a completion, as a seq2seq trainer tokenizes both."""
    ids, labels = (tokenizer(text, return_tensors="pt").input_ids for text in (prompt, completion))
    with torch.no_grad():
        return model(input_ids=ids, labels=labels).logits[0].double().log_softmax(-1)


def logp(model, tokenizer, prompt: str, completion: str) -> float:
    labels = torch.tensor(tokenizer(completion).input_ids)
    return float(plain(model, tokenizer, prompt, completion)[torch.arange(len(labels)), labels].sum())


def test_both_texts_are_tokenized_as_a_seq2seq_trainer_does(t5_folder):
    tokenizer = load_tokenizer(t5_folder)
    made = tokenize_pair(
        PreferencePair("a", 0, "who is it", "doc 1-2", "doc 3"), tokenizer, max_length=None, truncation="drop"
    )
    assert list(made.prompt_ids) == tokenizer("who is it").input_ids
    assert made.prompt_ids[-1] == 1
    for side, text in ((made.chosen, "doc 1-2"), (made.rejected, "doc 3")):
        assert list(side.completion_ids) == tokenizer(text).input_ids
        assert side.has_eos
    assert made.doubts == ()


def test_a_tokenizer_that_begins_every_text_is_refused(tmp_path):
    tokenizer = save_tokenizer(tmp_path, front="<s>")
    tokenizer.encodes = True
    pair = PreferencePair("a", 0, "who", "doc 1", "doc 2")
    with pytest.raises(DataError, match=r"in front of every text.*T5 family"):
        tokenize_pair(pair, tokenizer, max_length=None, truncation="drop")


@pytest.mark.parametrize("lora", [0, 4])
def test_a_run_logs_what_the_plain_forward_says(lora, t5_folder, rows, tmp_path):
    data, made = rows
    keys = {"lora_r": 4, "lora_targets": "q,v"} if lora else {"grad_every": 1, "response_types": 2}
    settings = dict(
        model=t5_folder, data=data, output_dir=str(tmp_path / "run"), learning_rate=3e-2, max_steps=2, probe_pairs=4,
        per_device_train_batch_size=4, heldout_pairs=0, report_to="none", tokens="ends", **keys,
    )  # fmt: skip
    run = train(make_config(settings))
    log, tokenizer, start = read_run(run), load_tokenizer(t5_folder), load_model(t5_folder)
    end = load_model(str(run / "model"))
    assert (end.get_base_model() if lora else end).config.is_encoder_decoder
    texts = {row["pair_id"]: made[row["source_row"]] for row in log.audit.to_dict("records")}
    probe = log.pairs[log.pairs["split"] == "probe"]
    for model, step in ((start, 0), (end, 2)):
        for row in probe[probe["step"] == step].to_dict("records"):
            text = texts[row["pair_id"]]
            for side in ("chosen", "rejected"):
                own, ref = (logp(m, tokenizer, text["prompt"], text[side]) for m in (model, start))
                assert row[f"{side}_logps"] == pytest.approx(own, abs=1e-4)
                assert row[f"ref_{side}_logps"] == pytest.approx(ref, abs=1e-4)
                here, there = (plain(m, tokenizer, text["prompt"], text[side]) for m in (model, start))
                kl = float((there.exp() * (there - here)).sum())
                assert row[f"{side}_kl"] == pytest.approx(kl, rel=1e-3, abs=1e-5)
    moved = probe[probe["step"] == 2]
    assert (moved["chosen_kl"] > 1e-4).all()
    _check_ledger(log.mass, texts, end, tokenizer)
    if not lora:
        parts = log.pairs[(log.pairs["split"] == "train") & (log.pairs["step"] == 1)]
        assert (parts["chosen_grad_norm"] > 0).all()
        assert parts["gradient_cosine"].abs().le(1).all()
        assert log.mass[log.mass["kind"] == "response"]["name"].isin(["own"]).any()


def _check_ledger(mass, texts, model, tokenizer) -> None:
    """The probabilities of both tokens where chosen and rejected first differ."""
    ledger = mass[(mass["step"] == 2) & (mass["split"] == "probe") & mass["kind"].isin(["chosen", "rejected"])]
    assert len(ledger) == 8
    for row in ledger.to_dict("records"):
        text = texts[row["pair_id"]]
        ids, other = (tokenizer(text[side]).input_ids for side in ("chosen", "rejected"))
        at = next(k for k, (a, b) in enumerate(zip(ids, other)) if a != b)
        token = (ids if row["kind"] == "chosen" else other)[at]
        prob = float(plain(model, tokenizer, text["prompt"], text["chosen"])[at, token].exp())
        assert row["token_id"] == token
        assert row["prob"] == pytest.approx(prob, abs=1e-5)


def test_every_pair_is_flagged_by_its_plain_numbers(t5_folder, rows, tmp_path):
    """CHES is of what the head reads where the decoder predicts the completion."""
    data, made = rows
    model, tokenizer = load_model(t5_folder), load_tokenizer(t5_folder)
    scores, *_ = flag(data, model, tokenizer, tmp_path / "flag", model_name=t5_folder, by="last_layer_set_rate")
    for row in scores.to_dict("records"):
        text, sums = made[row["source_row"]], []
        for side in ("chosen", "rejected"):
            seen = []
            hook = model.lm_head.register_forward_pre_hook(lambda _, args, seen=seen: seen.append(args[0][0].double()))
            assert row[f"{side}_logps"] == pytest.approx(logp(model, tokenizer, text["prompt"], text[side]), abs=1e-4)
            hook.remove()
            sums.append(seen[0].sum(0))
        assert row["ches_score"] == pytest.approx(float(sums[0] @ sums[1] - sums[0] @ sums[0]), rel=1e-4, abs=1e-5)
    assert scores[["hidden_rate", "unembedding_rate", "last_layer_set_rate"]].notna().all(axis=None)


def test_the_front_door(t5_folder, rows, tmp_path):
    """show, audit and trace take the folder as any other."""
    data, _ = rows
    said = CliRunner().invoke(chesboard.app, ["show", data, "--model", t5_folder, "--row", "0"])
    assert said.exit_code == 0, said.output
    assert "[END </s>:1]" in said.output
    said = CliRunner().invoke(chesboard.app, ["audit", data, "--model", t5_folder, "--out", str(tmp_path / "audit")])
    assert said.exit_code == 0, said.output
    assert "12 of 12 rows kept" in said.output
    out = tmp_path / "traced"
    words = ["trace", data, "--reference", t5_folder, "--checkpoints", f"{t5_folder}=1", "--out", str(out)]
    said = CliRunner().invoke(chesboard.app, words)
    assert said.exit_code == 0, said.output
    pairs = read_run(out).pairs
    assert pairs[pairs["step"] == 1]["chosen_kl"].eq(0).all()


def test_the_callback_measures_another_trainers_t5(t5_folder, rows, tmp_path):
    """transformers' own trainer on the right document ids, as seq2seq training is; both are measured."""
    data, made = rows
    model, tokenizer = load_model(t5_folder), transformers.AutoTokenizer.from_pretrained(t5_folder)
    items = [{"input_ids": tokenizer(r["prompt"]).input_ids, "labels": tokenizer(r["chosen"]).input_ids} for r in made]
    settings = transformers.TrainingArguments(
        str(tmp_path / "theirs"), max_steps=2, learning_rate=1e-2, use_cpu=True, report_to="none", save_strategy="no",
        per_device_train_batch_size=4, disable_tqdm=True,
    )  # fmt: skip
    collator = transformers.DataCollatorForSeq2Seq(tokenizer, model)
    trainer = transformers.Trainer(
        model,
        settings,
        train_dataset=items,
        data_collator=collator,
        processing_class=tokenizer,
    )
    trainer.add_callback(DisplacementCallback(trainer, tmp_path / "run", pairs=data, probe_pairs=3))
    trainer.train()
    log = read_run(tmp_path / "run")
    last = log.pairs[log.pairs["step"] == 2]
    texts = {row["pair_id"]: made[row["source_row"]] for row in log.audit.to_dict("records")}
    assert len(last) == 3
    for row in last.to_dict("records"):
        text = texts[row["pair_id"]]
        for side in ("chosen", "rejected"):
            assert row[f"{side}_logps"] == pytest.approx(logp(model, tokenizer, text["prompt"], text[side]), abs=1e-4)


def test_a_kill_anywhere_in_its_training_changes_nothing(t5_folder, rows, tmp_path):
    """Log and weights are those of an unbroken run, dropout included (see tests/kills.py, tests/test_kills.py)."""
    done = forks.run("tests/kills.py", "train", 4, tmp_path, t5_folder, rows[0], limit=900)
    assert done.returncode == 0, done.stdout
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["wrong"] == []
    assert found["killed"] >= 4
