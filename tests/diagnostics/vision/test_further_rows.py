"""Further rows with another picture or question: one batch, each as it is alone, on every family."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
import torch
import vlms
from PIL import Image

from diagnostics.audit import audit_pairs
from diagnostics.errors import DataError
from diagnostics.frames import open_media
from diagnostics.likelihood import pair_stats
from diagnostics.pairs import read_pairs
from diagnostics.runlog import read_run
from diagnostics.sequences import Example, Sequence
from diagnostics.token_likelihood import TokenLikelihood
from trainers.config import make_config
from trainers.loop.given import further_rows
from trainers.loop.ingredients import Ingredients
from trainers.loop.reference import LiveReference
from trainers.models import load_tokenizer
from trainers.objectives import load, rows
from trainers.run import train


def examples(name: str, family: Any, tokenizer: Any) -> list[Example]:
    """Three pairs about a picture of their own; a row that is of another picture shows the second one."""
    found = []
    for k in range(3):
        first, second = (
            vlms.pair(f"e{k}", family, tokenizer, (vlms.media(10 * k + i),), "to the left", "up , then down")
            for i in (0, 1)
        )
        other = [n for n in rows(name) if n.startswith(("second_c", "second_r", "other_v", "other_b", "retrieved"))]
        made = {
            n: (second if n in other else first).rows["rejected" if n.endswith("rejected") else "chosen"]
            for n in rows(name)
        }
        found.append(replace(first, rows={**first.rows, **made}))
    return found


def alone(model: Any, likelihood: TokenLikelihood, row: Sequence) -> float:
    """Log-prob of a row in a batch of its own."""
    batch = likelihood.collate([Example("alone", 0, {"row": row})])
    with torch.no_grad():
        own, _ = likelihood.stats(batch, likelihood.run(model, batch))
    return own["row"].logps.item()


@pytest.mark.parametrize("name", ["symmpo", "rdpo", "mcm_dpo"])
def test_every_row_is_that_of_its_own_pass_and_the_loss_is_of_these(made, tokenizer, name):
    model, family = made
    found, likelihood = examples(name, family, tokenizer), TokenLikelihood(0, family=family)
    likelihood.prepare(model)
    ingredients = Ingredients(name, found, likelihood=likelihood)
    batch = likelihood.collate([group[0] for group in ingredients.groups])
    stats = pair_stats(likelihood, batch, likelihood.run(model, batch), LiveReference(model, likelihood)(batch))
    both = {"chosen": stats.chosen, "rejected": stats.rejected} | stats.extra
    assert both.keys() == found[0].rows.keys()
    for row, side in both.items():
        for i, example in enumerate(found):
            assert side.logps[i].item() == pytest.approx(alone(model, likelihood, example.rows[row]), abs=1e-9), row
    start = load(name)(stats).losses  # policy = reference
    assert start.tolist() == pytest.approx([start[0].item()] * 3, abs=1e-9)
    picture = stats.extra[next(n for n in rows(name) if n.endswith("chosen"))]
    assert (picture.logps - stats.chosen.logps).abs().min() > 1e-6  # another picture, another number
    (gradient,) = torch.autograd.grad(start.sum(), model.get_input_embeddings().weight)
    assert gradient.isfinite().all()


def test_symmpo_trains_on_two_pictures_a_row_from_data(tokenizer, tmp_path):
    """`second_chosen_image` beside the pair's `image`: each row shows its own; losses start at 4 log 2."""
    folder, draw = vlms.save("qwen25", tmp_path / "model", tokenizer), []
    for k in range(6):
        for n in ("first", "second"):
            Image.fromarray(vlms.media(2 * k + (n == "second")).frames()[0]).save(tmp_path / f"{n}{k}.png")
        other = {f"second_{side}_image": f"second{k}.png" for side in ("chosen", "rejected")}
        answers = {"second_answer": " up", "second_chosen": " up", "second_rejected": " to the left"}
        asked = {"second_rejected_prompt": "which way does it move , then ?"} if k % 2 else {}
        pair = {"prompt": f"which way {k} ?", "chosen": " to the left", "rejected": " still", "image": f"first{k}.png"}
        draw.append(pair | other | answers | asked)
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in draw))
    model, table = load_tokenizer(str(folder)), read_pairs(str(data))
    settings: Any = {"max_length": None, "truncation": "drop", "append_eos": True}
    kept = audit_pairs(table, model, **settings).tokenized
    made = further_rows(table, kept, model, "symmpo", settings)
    for k, example in enumerate(made):
        first, second = (open_media([str(tmp_path / f"{n}{k}.png")], "image", source="") for n in ("first", "second"))
        for name, row in example.rows.items():
            expected = second if name in ("second_chosen", "second_rejected") else first
            assert [m.digest for m in row.media] == [expected.digest], name
        assert (example.rows["second_rejected"].prompt_ids == example.prompt_ids) == (k % 2 == 0)
    keys = {"model": str(folder), "data": str(data), "output_dir": str(tmp_path / "run"), "objective": "symmpo"}
    keys |= {"max_steps": 2, "per_device_train_batch_size": 3, "heldout_pairs": 0, "probe_pairs": 2}
    log = read_run(train(make_config(keys | {"save_model": False, "report_to": "none", "learning_rate": 1e-3})))
    trained = log.pairs[log.pairs["split"] == "train"]
    assert trained[trained["step"] == 1]["loss"].tolist() == pytest.approx([4 * math.log(2)] * 3, abs=1e-4)
    assert trained["loss"].notna().all()
    draw[3]["second_chosen_image"] = "missing.png"
    data.write_text("".join(json.dumps(row) + "\n" for row in draw))
    with pytest.raises(DataError, match="line 4: objective 'symmpo': the row 'second_chosen' cannot be used"):
        train(make_config(keys | {"output_dir": str(tmp_path / "other")}))
