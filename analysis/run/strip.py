"""What a denoiser drew while it trained: the same noise at every step, and its judge's score beside the error."""

import io

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from PIL import Image

from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CYCLE, DARK, SIDE, below, panels, styled
from analysis.show.wording import clip, count, number, percent, signed, span
from analysis.tables import runs
from analysis.tables.intervals import finite, mean_interval, paired_share_interval, wilson
from diagnostics.runlog import RunLog

SHOWN, STEPS = 8, 10  # samples, and steps, that a page shows


def drew(run: RunLog, *, text: bool = True) -> Block:
    """The pictures, one row a sample and one column a step; and the denoising error and the judge's score by step.
    text: False leaves the pictures, and what was asked for, out."""
    if run.samples.empty or "image" not in run.samples:
        return page.EMPTY
    made = []
    table, errors = scores(run.samples), by_step(run)
    if len(table):
        title = said(run.samples)
        kinds = {"denoising": run.config.get("likelihood") == "denoising", "shares": are_shares(run.samples)}
        made.append(page.picture(use(table, errors, title, **kinds), title))
    rows = chosen(run.samples)
    if text and len(rows):
        samples, steps = (len(set(rows[name])) for name in ("sample", "step"))
        words = f"{count(samples, 'sample')} at {count(steps, 'step')}, each row from"
        made.append(page.picture(pictures(rows), f"{words} one noise"))
    return page.stack(*made) if made else page.note("The samples that it drew are no pictures, and none was judged.")


def chosen(samples: pd.DataFrame) -> pd.DataFrame:
    """The rows with a picture of the first samples, at steps spread evenly from the first to the last."""
    rows = samples.loc[samples["image"].notna()]
    steps, numbers = np.unique(rows["step"]), np.unique(rows["sample"])[:SHOWN]
    steps = steps[np.unique(np.linspace(0, len(steps) - 1, STEPS).round().astype(int))] if len(steps) else steps
    return rows.loc[rows["step"].isin(steps) & rows["sample"].isin(numbers)]


def scores(samples: pd.DataFrame) -> pd.DataFrame:
    """step, n, mean score, low and high: the 95 % interval of the mean over the samples that were judged (Wilson's
    where all scores are 0 or 1, else Student's). No row where none was."""
    found = []
    for step, group in samples.groupby("step"):
        values = finite(group["score"])
        if len(values):
            found.append((step, len(values), float(values.mean()), *_interval(values)))
    return pd.DataFrame(found, columns=["step", "n", "mean", "low", "high"])


def _points(share: float) -> str:
    return signed(100 * share, 0)


def _interval(values: np.ndarray) -> tuple[float, float]:
    return wilson(float(values.sum()), len(values)) if np.isin(values, (0, 1)).all() else mean_interval(values)


def by_step(run: RunLog) -> pd.DataFrame:
    """step, side and value: minus the mean likelihood of the probe pairs (of sampling steps: the mean log-prob)."""
    sign = -1.0 if run.config.get("likelihood") == "denoising" else 1.0
    rows = run.pairs.loc[run.pairs["split"] == "probe"] if len(run.pairs) else run.pairs
    found = [
        (step, side, sign * float(finite(group[f"{side}_logps"]).mean()))
        for step, group in (rows.groupby("step") if len(rows) else ())
        for side in runs.SIDES
    ]
    return pd.DataFrame(found, columns=["step", "side", "value"])


def said(samples: pd.DataFrame) -> str:
    """The score of the first and of the last step in words; of shares, with the interval of their difference, the same
    samples counted twice."""
    judged = samples.loc[samples["score"].notna()]
    begin, end = int(judged["step"].min()), int(judged["step"].max())
    ends = judged.loc[judged["step"].isin([begin, end])]
    wide = ends.pivot(index="sample", columns="step", values="score").dropna()
    first, last = wide[begin].to_numpy(), wide[end].to_numpy()
    what, form = ("Of the class asked for", percent) if are_shares(judged) else ("The judge's mean score", number)
    words = f"{what}: {form(first.mean())} at step {begin}"
    if begin == end:
        return f"{words} ({count(len(wide), 'sample')})"
    if are_shares(judged):
        both, only_first, only_last = (int(np.sum(v)) for v in (first * last, first * (1 - last), (1 - first) * last))
        neither = len(wide) - both - only_first - only_last
        change = f"{span(paired_share_interval(both, only_first, only_last, neither), _points)} points"
    else:
        change = span(mean_interval(last - first), signed)
    words += f", {form(last.mean())} at step {end}"
    return f"{words} (95 % interval of the change: {change}; {count(len(wide), 'sample')}, from the same noise)"


def are_shares(samples: pd.DataFrame) -> bool:
    """Whether a mean score is a share: every one is 0 or 1."""
    return bool(np.isin(finite(samples["score"]), (0, 1)).all())


@styled
def use(table: pd.DataFrame, errors: pd.DataFrame, title: str, *, denoising: bool, shares: bool) -> Figure:
    """The denoising error of both sides by step, mean of the probe pairs, and the judge's score with its interval.
    table: scores; errors: by_step; denoising: whether these are errors; shares: whether the scores are 0 or 1."""
    figure, (left, right) = panels(2, height=3.4)
    for side, mine in errors.groupby("side"):
        left.plot(mine["step"], mine["value"], "o-", ms=3, color=SIDE[str(side)], label=str(side))
    left.set(ylabel="denoising error" if denoising else "log-prob of the steps", xlabel="step")
    below(left, 2)
    right.fill_between(table["step"], table["low"], table["high"], color=CYCLE[2], alpha=0.18, lw=0)
    right.plot(table["step"], table["mean"], "o-", ms=3, color=CYCLE[2])
    right.set(ylabel="samples of the class asked for" if shares else "judge's score of the samples", xlabel="step")
    if shares or table["mean"].between(0, 1).all():
        right.set_ylim(-0.02, 1.02)
        right.axhline(1, color=DARK, lw=0.5)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold", wrap=True)
    return figure


@styled
def pictures(rows: pd.DataFrame) -> Figure:
    """One row a sample, one column a step; beside a row what was asked for, under a picture a score of 0 or 1 as ✖ or
    ✔, another as a number. rows: of the samples table, with pictures."""
    steps, numbers = np.unique(rows["step"]), np.unique(rows["sample"])
    figure, axes = panels(len(steps) * len(numbers), height=0.95, width=1.1 + 0.85 * len(steps), rows=len(numbers))
    at = {(row["sample"], row["step"]): row for row in rows.to_dict("records")}
    for k, axis in enumerate(axes):
        number_, step = numbers[k // len(steps)], steps[k % len(steps)]
        axis.set(xticks=[], yticks=[])
        axis.grid(False)
        for spine in axis.spines.values():
            spine.set_visible(False)
        if row := at.get((number_, step)):
            axis.imshow(np.asarray(Image.open(io.BytesIO(row["image"]))))
            axis.set_xlabel(_mark(row["score"]), fontsize=7, labelpad=1)
        if k < len(steps):
            axis.set_title(f"step {step}", fontsize=8)
        if k % len(steps) == 0 and row:
            asked = clip(str(row["text"] or ""), 18)
            axis.set_ylabel(asked, rotation=0, ha="right", va="center", fontsize=8, parse_math=False)
    return figure


def _mark(score: float) -> str:
    if np.isnan(score):
        return ""
    return {0.0: "✖", 1.0: "✔"}.get(score, number(score))
