import math

import pandas as pd
import pytest

from analysis import papers as judged
from analysis.papers import video_deviation
from diagnostics.errors import UserError

QUICK = {"SFT steps": 16, "rows of clips": 12, "clips held out": 8, "entries": "dpo,rrpo", "max_steps": 1}
QUICK |= {"learning rates": [3e-3]}


def test_rerun(rerun):
    paper = rerun("video_deviation", seeds=1, **QUICK)
    ends = video_deviation.ends(paper).set_index("method")
    assert sorted(ends.index) == ["DPO", "RRPO"]
    assert (ends["kl"] > 0).all()
    answers = paper.tables["answers"].set_index("run")
    assert len(answers) == 3
    assert answers[["right", "perturbed"]].stack().between(0, 1).all()
    for row in paper.runs.to_dict("records"):
        assert ends.loc[row["method"], "right"] == pytest.approx(100 * answers.loc[row["run"], "right"])
    assert (ends["start_seen"] == answers.loc["", "seen"]).all()
    claims = {c.id: c for c in judged.judge(paper)}
    assert claims["kl_dpo"].value == pytest.approx(ends.loc["DPO", "kl"] / ends.loc["RRPO", "kl"])
    assert claims["accuracy"].value == pytest.approx(ends.loc["RRPO", "right"] - ends.loc["DPO", "right"])
    assert math.isnan(claims["order"].value)  # three of the figure's five are missing
    assert math.isnan(claims["ablation_kl"].value)
    config = paper.log(paper.runs.query("method == 'RRPO'")["run"].iloc[0]).config
    assert (config["beta"], config["alpha"], config["phrase_source"]) == (0.1, 0.01, "auto")


def test_order_by_hand():
    # published: TDPO .07, DPA .55, RRPO 1.01, DDPO 18.67, DPO 23.24; here DPA and RRPO change places: rho = 1 - 6*2/120
    table = pd.DataFrame(
        {"method": ["DPO", "DDPO", "RRPO", "DPA", "TDPO2"], "kl": [9.0, 8.0, 0.1, 0.2, 0.05], "seed": 3}
    )
    order = video_deviation._order(video_deviation.Runs(table.assign(alpha=0.01)))
    assert order.to_dict() == {3: pytest.approx(0.9)}


def test_paper_scale_needs_clips(rerun, tmp_path):
    with pytest.raises(UserError, match="needs --data"):
        rerun("video_deviation", out=tmp_path, seeds=1, scale="paper", model="m", shown=False)
