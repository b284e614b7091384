"""DPO as a misspecified estimator: the reward of each method's optimum as one pair is compared more often."""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from analysis.papers import EXACT, Measured, Paper, where
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CYCLE, NEUTRAL, below, panels, styled
from analysis.show.wording import number


def measured(paper: Paper) -> dict[str, Measured]:
    """The claims' values, at beta 1 where none is named."""
    table = paper.tables["optima"]
    dpo = where(table, method="DPO")
    many = dpo.loc[dpo["n"].isin([5, 20, 100])]
    fallen = where(dpo, n=5).set_index("beta")["reward"] < 1
    inferred = "The counts are inferred: at ten both DPO and IPO match the published rewards."
    return {
        "one": _exact(_reward(table, "DPO", 1)),
        "five": _exact(_reward(table, "DPO", 5)),
        "reversed": _exact(float(many["reversed"].mean())),
        "betas": _exact(float(fallen.mean())),
        "dpo": _exact(_reward(table, "DPO", 10), inferred),
        "ipo": _exact(_reward(table, "IPO", 10), inferred),
        "auxdpo": _exact(_reward(table, "AuxDPO", 10)),
        "counts": _exact(float(np.ptp(where(table, method="AuxDPO", beta=1)["reward"]))),
        "short": _exact(_reward(table, "reward − β KL", 10) - _reward(table, "AuxDPO", 10)),
    }


def curves(paper: Paper) -> Block:
    """Reward of the optimum over the count of the third pair."""
    return page.picture(draw(paper.tables["optima"]), "Reward of each method's optimum by the count of the third pair")


def optima(paper: Paper) -> Block:
    """The optima at beta 1 for a few counts."""
    table = paper.tables["optima"]
    shown = table.loc[(table["beta"] == 1) & table["n"].isin([1, 5, 10, 20, 100])]
    return page.table(shown.drop(columns=["beta"]), {k: number for k in ("n", "t", "reward", "p1", "p2", "p3")})


@styled
def draw(table: pd.DataFrame) -> Figure:
    """One line a method, solid at beta 1; DPO at the other betas dashed. table: columns method, beta, n, reward."""
    figure, (axes,) = panels(1, width=8.0, height=4.4)
    for colour, (method, rows) in zip(CYCLE, where(table, beta=1).groupby("method", sort=False)):
        axes.plot(rows["n"], rows["reward"], color=colour, lw=2, label=str(method))
    for beta, rows in table.loc[(table["method"] == "DPO") & (table["beta"] != 1)].groupby("beta"):
        axes.plot(rows["n"], rows["reward"], "--", color=NEUTRAL, lw=1, label=f"DPO, β {beta:g}")
    axes.axhline(1.0, color=NEUTRAL, lw=0.8, ls=":")
    axes.set(
        xscale="log", xlabel="comparisons of the third pair, for one of each other", ylabel="reward of the optimum"
    )
    axes.set_title("DPO follows the counts below the reference's reward (dotted)")
    below(axes, 3)
    return figure


def _exact(value: float, note: str = "") -> Measured:
    return Measured([value], EXACT, note=note)


def _reward(table: pd.DataFrame, method: str, n: int, beta: float = 1.0) -> float:
    rows = where(table, method=method, n=n, beta=beta)["reward"]
    return float(rows.iloc[0])
