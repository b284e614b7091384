"""The audit: every row accounted for, every code reachable."""

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from diagnostics.audit import Audit, audit_pairs, counts_table
from diagnostics.errors import DataError
from diagnostics.pairs import read_pairs
from diagnostics.progress import Steps
from diagnostics.runlog import read_frame, write_frame

COLUMNS = [
    *("pair_id", "source_row", "status", "reason", "doubts", "prompt", "chosen", "rejected"),
    *("prompt_length", "chosen_length", "rejected_length", "chosen_has_eos", "rejected_has_eos"),
]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    """One token a byte, but "k" + "y" merge to one; BOS is added."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<s>", "</s>", *letters, "ky"])}
    core = Tokenizer(models.BPE(vocab=vocab, merges=[("k", "y")]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>")


def row(prompt: Any = "q", chosen: Any = "good", rejected: Any = "bad", **columns: Any) -> dict[str, Any]:
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, **columns}


def audit(path: Path, tokenizer: Any, *rows: Any, max_length: int | None = None, truncation: Any = "drop") -> Audit:
    file = path / "pairs.jsonl"
    file.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    return audit_pairs(read_pairs(file), tokenizer, max_length=max_length, truncation=truncation)


def test_every_row_is_kept_or_skipped(tmp_path: Path, tokenizer: Any) -> None:
    rows = [row(), row(chosen=None), row(chosen=" \n"), row("<s>", rejected="good"), row("r"), row(chosen=4)]
    found = audit(tmp_path, tokenizer, *rows)
    assert list(found.frame) == COLUMNS
    assert found.frame["source_row"].tolist() == [0, 1, 2, 3, 4, 5]
    assert found.frame["status"].tolist() == ["kept", "skipped", "skipped", "skipped", "kept", "skipped"]
    codes = [reason.split(":")[0] for reason in found.frame["reason"]]
    assert codes == ["", "missing_field", "empty_completion", "identical_completions", "", "not_text"]
    assert found.frame["doubts"].tolist() == [""] * 6
    assert [t.source_row for t in found.tokenized] == [0, 4]
    assert found.frame.loc[found.frame["status"] == "kept", "pair_id"].tolist() == [t.pair_id for t in found.tokenized]


def test_a_long_audit_says_how_far_it_is(tmp_path: Path, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every row counts as done once, chunk by chunk."""
    counted: list[tuple[str, int, int]] = []

    class Counted(Steps):
        def close(self) -> None:
            counted.append((self.what, self.total, self.done))
            super().close()

    monkeypatch.setattr("diagnostics.audit.Steps", Counted)
    monkeypatch.setattr("diagnostics.audit.CHUNK", 4)
    audit(tmp_path, tokenizer, *[row(prompt=f"q{i}") for i in range(10)])
    assert counted == [("audit", 10, 10)]


def test_lengths_count_bos_and_eos(tmp_path: Path, tokenizer: Any) -> None:
    """One token a byte: prompt <s>q = 2, chosen good</s> = 5, rejected bad</s> = 4."""
    frame = audit(tmp_path, tokenizer, row(), row(chosen="")).frame
    lengths = ["prompt_length", "chosen_length", "rejected_length"]
    assert frame.loc[0, lengths].tolist() == [2, 5, 4]
    assert frame.loc[1, lengths].isna().all()
    assert frame["chosen_has_eos"].tolist() == [True, pd.NA]


def test_the_frame_survives_parquet(tmp_path: Path, tokenizer: Any) -> None:
    frame = audit(tmp_path, tokenizer, row(prompt="<script>"), row(chosen="")).frame
    write_frame(tmp_path / "audit.parquet", frame)
    back = read_frame(tmp_path / "audit.parquet")
    pd.testing.assert_frame_equal(back, frame, check_dtype=False)
    assert back["chosen_has_eos"].isna().tolist() == [False, True]


@pytest.mark.parametrize(
    ("rows", "settings", "doubts"),
    [
        ([row(), row()], {}, ["", "duplicate"]),
        ([row(), row(chosen="bad", rejected="good")], {}, ["contradiction", "contradiction"]),
        ([row("the sk", "y", "x")], {}, ["token_merge"]),
        ([row("<s>q")], {}, ["doubled_bos; special_tokens"]),
        ([row(chosen="x</s>y")], {}, ["special_tokens"]),
        ([row(score_chosen=1, score_rejected=2)], {}, ["sides_swapped"]),
        ([row(score_chosen=2, score_rejected=1)], {}, [""]),
        ([row(score_chosen=2, score_rejected=2)], {}, [""]),
        ([row(**{"chosen-rating": "1", "rejected-rating": "4.5"})], {}, ["sides_swapped"]),
        ([row(chosen_rank=1, rejected_rank=2)], {}, [""]),  # of ranks the lower is the better: not judged
        ([row()], {"max_length": 6, "truncation": "keep_start"}, ["completion_truncated; eos_one_side"]),
        ([row("qq")], {"max_length": 7, "truncation": "keep_end"}, ["prompt_truncated"]),
    ],
)
def test_doubts(tmp_path: Path, tokenizer: Any, rows: list, settings: dict, doubts: list[str]) -> None:
    found = audit(tmp_path, tokenizer, *rows, **settings)
    assert found.frame["doubts"].tolist() == doubts
    assert len(found.tokenized) == len(rows)


@pytest.mark.parametrize(
    ("truncation", "max_length", "code"),
    [
        ("drop", 6, "over_length"),
        ("drop", 2, "prompt_over_length"),
        ("keep_start", 2, "prompt_over_length"),
        ("keep_end", 5, "completion_over_length"),
    ],
)
def test_rows_over_length(tmp_path: Path, tokenizer: Any, truncation: str, max_length: int, code: str) -> None:
    found = audit(tmp_path, tokenizer, row(), max_length=max_length, truncation=truncation)
    assert found.counts == {code: 1}
    assert found.frame.loc[0, "chosen_length"] == 5  # the true length, so that a person sees what would fit
    with pytest.raises(DataError, match=rf"pairs\.jsonl: line 1: {code}.*All 1 rows are skipped"):
        found.require_kept()


def test_truncation_error_names_file_and_line(tmp_path: Path, tokenizer: Any) -> None:
    with pytest.raises(DataError, match=r"pairs\.jsonl: line 2: prompt of 5 tokens"):
        audit(tmp_path, tokenizer, row(), row("long"), max_length=8, truncation="error")


def test_swapped_columns_are_told_for_the_whole_file(tmp_path: Path, tokenizer: Any) -> None:
    rows = [row(f"q{i}", score_chosen=i % 3, score_rejected=1.5) for i in range(9)]
    found = audit(tmp_path, tokenizer, *rows, row("no score"))
    assert (found.scored, found.disagree) == (9, 6)
    assert "in 6 of the 9 rows that have them: the columns chosen and rejected are probably swapped." in found.said()[1]
    assert "swapped" not in audit(tmp_path, tokenizer, row()).said()[1]


def test_counts_table(tmp_path: Path, tokenizer: Any) -> None:
    rows = [row(), row(), row(), row(), row(), row(chosen=""), row(chosen=1), row(chosen=2)]
    table = counts_table(audit(tmp_path, tokenizer, *rows))
    assert table[["code", "kind", "n", "first_rows"]].to_numpy().tolist() == [
        ["not_text", "skipped", 2, "line 7, line 8"],
        ["empty_completion", "skipped", 1, "line 6"],
        ["duplicate", "doubt", 4, "line 2, line 3, line 4"],
    ]
    assert counts_table(audit(tmp_path, tokenizer, row())).empty


def test_chat_text_is_shown_as_rendered(tmp_path: Path, tokenizer: Any) -> None:
    def say(text: str) -> list[dict[str, str]]:
        return [{"role": "user", "content": "hi"}, {"role": "assistant", "content": text}]

    tokenizer.chat_template = (
        "<s>{% for m in messages %}[{{ m.role }}]{{ m.content }}"
        "{% if m.role == 'assistant' %}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    rows = [{"chosen": say("yes"), "rejected": say("no")}, {"chosen": say("a</s>b"), "rejected": say("c")}]
    found = audit(tmp_path, tokenizer, *rows)
    shown = found.frame.loc[0, ["prompt", "chosen", "rejected"]].tolist()
    assert shown == ["<s>[user]hi[assistant]", "yes</s>", "no</s>"]
    assert found.frame["doubts"].tolist() == ["", "special_tokens"]  # the template's own tokens are no doubt


def test_what_a_template_does_to_every_row_is_said_once_and_makes_no_row_doubtful(tmp_path: Path) -> None:
    chat = Path(__file__).parents[1] / "data" / "templates" / "chatml.jinja"
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.add_special_tokens(["</s>", "<|im_start|>", "<|im_end|>"])
    chatty = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    chatty.chat_template = chat.read_text(encoding="utf-8")
    rows = [row([{"role": "user", "content": q}]) for q in ("q", "r", "r")]
    found = audit(tmp_path, chatty, *rows)
    said = found.said()[1]
    assert "; 1 of the kept are doubtful (1 duplicate)." in said
    assert "eos_differs in 3 rows: the chat template ends an answer in something else than EOS" in said
    assert "text_after_end in 3 rows: " in said
    assert counts_table(found)["kind"].tolist() == ["template", "template", "doubt"]


def test_a_template_that_refuses_a_role_says_so_in_its_own_words(tmp_path: Path) -> None:
    """As Gemma's, which refuses a system turn: the row is skipped, and no other is."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(["</s>", *letters])}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    strict: Any = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="</s>")
    strict.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turns here') }}{% endif %}"
        "{% for m in messages %}{{ m.role + ': ' + m.content + '</s>' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    asked, told = {"role": "user", "content": "q"}, {"role": "system", "content": "be brief"}
    sides = [[{"role": "assistant", "content": text}] for text in ("good", "bad")]
    rows = [row([told, asked], *sides), row([asked], *sides)]
    found = audit(tmp_path, strict, *rows)
    assert found.frame["status"].tolist() == ["skipped", "kept"]
    (meaning,) = counts_table(found).query("code == 'template_failed'")["meaning"]
    assert meaning.endswith("the first: the chat template refuses the messages (no system turns here)")
    alone = audit(tmp_path, strict, rows[0])
    assert "1 skipped" in alone.said()[1]
    assert "None can be tokenized." in alone.said()[1]
    with pytest.raises(DataError, match="no system turns here"):
        alone.require_kept()
