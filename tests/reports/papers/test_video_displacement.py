import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vlms

from analysis import papers as judged
from analysis.papers import video_displacement
from diagnostics.pairs import read_pairs
from trainers.papers import load, values
from trainers.studies.paper_runs import Order

QUICK = {"SFT steps": 16, "rows of clips": 12, "clips held out": 8, "max_steps": 1, "learning_rate": 3e-3}
QUICK |= {"entries": "dpo", "entries on LeanPO's pairs": ""}


def test_rerun(rerun):
    paper = rerun("video_displacement", seeds=1, **QUICK)
    ends = video_displacement.ends(paper).set_index(["pairs", "told", "method"])
    assert len(ends) == 2
    assert ends.loc[("rrpo", True, "DPO"), "length"] == ends.loc[("rrpo", False, "DPO"), "length"]
    assert ends.loc[("rrpo", True, "DPO"), "start"] != ends.loc[("rrpo", False, "DPO"), "start"]
    claims = {c.id: c for c in judged.judge(paper)}
    clip, words = (ends.loc[("rrpo", told, "DPO"), "chosen"] for told in (False, True))
    assert claims["worse"].value == pytest.approx(clip - words)
    runs = {row["told"]: paper.log(row["run"]).config for row in paper.runs.query("pairs == 'rrpo'").to_dict("records")}
    shown, told = ({p.pair_id: p for p in read_pairs(runs[t]["data"]).pairs} for t in (False, True))
    assert shown.keys() == told.keys()
    for name, pair in shown.items():
        assert (pair.media, told[name].media) != ((), ())
        assert not told[name].media
        assert told[name].prompt.endswith(pair.prompt.split("\n")[-1])


def test_equal_margin_by_hand():
    # pair a, clips: chosen -1 at margin 2, -3 at 6, so -2 at 4; words: margin 5 in one step, chosen -1 there, so -0.8
    rows = [
        (False, 0, 0.0, 0.0),
        (False, 2, 2.0, -1.0),
        (False, 4, 6.0, -3.0),
        (True, 0, 0.0, 0.0),
        (True, 2, 5.0, -1.0),
    ]
    names = ["told", "step", "margin_change", "chosen_change"]
    one = pd.DataFrame(rows, columns=names).assign(pairs="rrpo", method="DPO", seed=1, pair_id="a", chosen_logps=-0.1)
    # pair b moves nowhere, and was unlikely with its clip
    other = one.assign(margin_change=0.0, chosen_change=0.0, pair_id="b", chosen_logps=[-9.0, -9, -9, 0, 0])
    paper = judged.Paper(None, {}, {})  # pyright: ignore[reportArgumentType]
    paper.kept["analysis.papers.video_displacement._probes"] = pd.concat([one, other])
    (sure,) = video_displacement.among_sure(paper).to_dict("records")
    assert (sure["margin"], sure["clip"], sure["n"]) == (4, -2, 1)
    assert sure["words"] == pytest.approx(-0.8)
    assert sure["difference"] == pytest.approx(-1.2)
    (both,) = video_displacement.at_equal_margin(paper).to_dict("records")
    # means of both pairs: margins 1, 3 and 2.5, chosen -0.5, -1.5 and -0.5; at 2.5: clips -1.25, words -0.5
    assert (both["margin"], both["clip"], both["words"], both["n"]) == (2.5, -1.25, -0.5, 2)


@pytest.mark.parametrize(
    ("analysis", "family", "published", "quick"),
    [
        ("video_deviation", "llava", {"lora_r": 128, "lora_alpha": 256, "alpha": 0.01}, {"learning rates": [1e-2]}),
        ("video_displacement", "qwen25", {"freeze_vision": True, "weight_decay": 0.1}, {"learning_rate": 1e-2}),
    ],
)
def test_paper_scale_on_a_stand_in_of_the_real_class(rerun, tmp_path, analysis, family, published, quick):
    """A tiny model of the class that the published checkpoint has, from a folder as a hub's, with RRPO's rows."""
    tokenizer = vlms.tiny_tokenizer()
    (tmp_path / "model").mkdir()
    model = vlms.save(family, tmp_path / "model", tokenizer)
    rows: list[dict[str, Any]] = []
    for k in range(20):
        np.save(tmp_path / f"{k}.npy", vlms.media(k, 4).frames())
        words = ("to the <MASK> left </MASK>", "to the <MASK> right </MASK>")
        plain = [w.replace("<MASK> ", "").replace(" </MASK>", "") for w in words]
        row = {"sample_id": f"s{k}", "question": "<image>\nwhich way ?", "answer": plain[0], "pred": plain[1]}
        rows.append(row | {"answer_masked": words[0], "pred_masked": words[1], "media_path": f"{k}.npy"})
    data = tmp_path / "pairs.json"
    data.write_text(json.dumps(rows), encoding="utf-8")
    quick |= {"pairs probed": 2, "bf16": None, "max_steps": 2, "gradient_accumulation_steps": 2, "entries": "rrpo"}
    paper = rerun(analysis, out=tmp_path / "out", seeds=1, scale="paper", model=str(model), data=data, **quick)
    log = paper.log(paper.runs.query("method == 'RRPO'")["run"].iloc[0])
    assert {name: log.config[name] for name in published} == published
    assert log.config["frames"] == 16
    assert log.config["lr_scheduler_type"] == "cosine"
    assert (log.audit["status"] == "kept").all()


def test_paper_scale_is_the_published_setting():
    settings = values(load("video_deviation").SETTINGS, Order("paper", None, 1))  # pyright: ignore[reportArgumentType]
    assert settings["per_device_train_batch_size"] * settings["gradient_accumulation_steps"] == 32
    assert settings["learning rates"][-1] == 5e-6
    settings = values(load("video_displacement").SETTINGS, Order("paper", None, 1))  # pyright: ignore[reportArgumentType]
    assert "leanpo:label_smoothing=0.2" in settings["entries"]
    assert settings["learning_rate"] == 5e-7
