"""Sampled answers and the three kinds of judges, on local stand-ins."""

import math

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from diagnostics.errors import DataError
from diagnostics.tokenized import tokenize_prompts
from trainers.models import load_tokenizer
from trainers.worlds import lm
from trainers.worlds.judges import as_prompt, first_words, leading_score, load_judge
from trainers.worlds.own_data import CHAT_TEMPLATE

WORDS = "sorry no sure 0 1 INST [ ] / . ! ?".split()


@pytest.fixture
def model_folder(tmp_path):
    tokenizer = lm.word_tokenizer(WORDS)
    return lm.save(lm.build_model(tokenizer, seed=1), tokenizer, tmp_path / "lm")


def classifier(folder, labels: dict[int, str]) -> str:
    """A classifier whose logits are its bias alone: label 1 always wins."""
    tokenizer = lm.word_tokenizer(WORDS)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=32, id2label=labels, label2id={v: k for k, v in labels.items()},
    )  # fmt: skip
    model = BertForSequenceClassification(config)
    with torch.no_grad():
        model.classifier.weight.zero_()
        model.classifier.bias.copy_(torch.tensor([0.0, 1.0]))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_the_rule_looks_at_the_first_word():
    answers = ["Sorry, no", "sure, sorry", "  No.", "", "sorrysorry"]
    assert first_words(["sorry", "no"])([""] * 5, answers) == [0, 1, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "score"),
    [
        (" 1", 1),
        ("0.", 0),
        ("0.5 of it", 0.5),
        ("-1", -1),
        ("Safe", 0),
        ("unsafe\nO3", 1),
        ("score: 1", None),
        ("", None),
    ],
)
def test_a_verdict_is_the_leading_number(text, score):
    found = leading_score(text)
    assert math.isnan(found) if score is None else found == score


@pytest.mark.parametrize(("labels", "score"), [(("fine", "REJECTION"), 0.0), (("refusal", "other"), 1.0)])
def test_a_classifier_refuses_by_its_label(tmp_path, labels, score):
    judge = load_judge(classifier(tmp_path / "c", dict(enumerate(labels))))
    assert judge(["r"] * 40, ["sure . " * 50, *["no"] * 39]) == [score] * 40


def test_a_classifier_without_a_refusal_label_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"none of its labels alone names a refusal \(toxic, fine\)"):
        load_judge(classifier(tmp_path / "c", {0: "toxic", 1: "fine"}))


def test_a_language_model_is_asked_and_its_number_read(model_folder, monkeypatch):
    seen = []

    def said(model, tokenizer, prompts, **how):
        seen.append((prompts, how))
        return ["1", " 0\nbecause", "I think 1"]

    judge = load_judge(str(model_folder))
    monkeypatch.setattr("diagnostics.sampling.answers", said)
    scores = judge(["make a bomb"] * 3, ["sure", "no", "sorry"])
    assert scores[:2] == [1, 0]
    assert math.isnan(scores[2])
    prompts, how = seen[0]
    assert how == {"temperature": 0, "limit": 50}
    assert prompts[0].startswith("[INST] ")
    assert prompts[0].endswith(" [/INST]")
    assert "User Request: make a bomb" in prompts[0]
    assert "Model Response: sure" in prompts[0]


def test_a_real_causal_judge_runs(model_folder):
    assert len(load_judge(str(model_folder))(["no ?"], ["sure ."])) == 1


def test_a_missing_judge_is_one_sentence(tmp_path):
    (tmp_path / "x").mkdir()
    with pytest.raises(DataError, match="no config"):
        load_judge(str(tmp_path / "x"))


def test_prompts_are_tokenized_as_in_training(model_folder):
    tokenizer = load_tokenizer(str(model_folder))
    assert tokenize_prompts(["no sure ?"], tokenizer) == [tuple(tokenizer("no sure ?")["input_ids"])]
    assert as_prompt("no", tokenizer) == "no"
    chat = lm.bpe_tokenizer(["Assistant: User: no"], 280)
    chat.chat_template = CHAT_TEMPLATE
    asked = tokenize_prompts([as_prompt("no", chat)], chat)[0]
    assert str(chat.decode(list(asked))).strip() == "User: no\n\nAssistant:"
