"""The sections of the run report: each joins a table, its judgement and its figure, and returns a Block."""

from collections.abc import Callable
from functools import wraps
from html import escape
from typing import Any

import pandas as pd

from analysis.run import curve_figures, figures, gradient_figures, kept, readings, verdict
from analysis.scorecard import page as scorecard_page
from analysis.scorecard import predictors
from analysis.show import page
from analysis.show.page import Block
from analysis.show.wording import ABSENT, clip, number, percent, signed, span, visible
from analysis.tables import curves, displacement, entanglement, first_difference, mass, runs, tokens
from diagnostics.runlog import RunLog


def load(run_dir: str) -> RunLog:
    """Read the run that this report is about."""
    return runs.load(run_dir)


def probed(section: Callable[..., Block]) -> Callable[..., Block]:
    """The section, or nothing where no probe pair was measured after the start: the verdict has said so, and how to
    go on."""

    @wraps(section)
    def made(run: RunLog, *rest: Any) -> Block:
        return section(run, *rest) if verdict.measured(run) else page.EMPTY

    return made


def summary(run: RunLog) -> Block:
    """The verdict first, then every judged number with its interval and n."""
    found = kept.verdict_of(run)
    first = found[0]
    kind = "note" if first.passed is None else "good" if first.passed else "bad"
    name = page.note(f"Run {run.name}: {run.config.get('objective', 'objective unknown')}", "quiet")
    verdict_note = page.note(first.meaning, f"verdict {kind}")
    read = [page.note(said, "quiet") for said in [runs.reading(run.manifest)] if said]
    return page.stack(name, *read, verdict_note, *_alarms(run), page.findings(found[1:]))


@probed
def trajectories(run: RunLog) -> Block:
    """Likelihoods of both sides over steps, and the share of pairs that fell, for probe and held-out pairs."""
    rows = runs.rows(run, "probe")
    table = displacement.by_step(rows)
    chosen, rejected = (curves.bands(rows, f"{side}_change") for side in runs.SIDES)
    moves = ((side, _last(table)) for side, table in (("Chosen", chosen), ("rejected", rejected)))
    words = [f"{side}{' moved' if side == 'Chosen' else ''} by {signed(by)}" for side, by in moves if by == by]
    title = f"{', '.join(words)} nats (median of probe pairs)"
    picture = figures.trajectories(chosen, rejected, runs.rows(run, "train"), title)
    return page.stack(
        page.picture(picture, title),
        page.picture(
            figures.shares(table, displacement.onset(table)), "Share of pairs whose chosen answer fell, by step"
        ),
        _splits(run),
    )


@probed
def quadrants(run: RunLog) -> Block:
    """What became of each pair (separated, both fell, neither fell, inverted), at the end and by step."""
    rows = runs.rows(run, "probe")
    ends = runs.ends(rows)
    shares = displacement.quadrants(ends)
    if not sum(shares["n"]):
        return page.missing("Outcomes", "No probe pair was measured on both sides.")
    figure = figures.quadrant(ends, shares, "start_ches_score", "CHES before training")
    shown = shares.assign(interval=[span(i, percent) for i in zip(shares["low"], shares["high"])])
    shown = shown.drop(columns=["low", "high"])
    table = page.table(shown, {"share": percent}, {"interval": "95 % interval"})
    steadily = page.note(readings.monotone_fall(displacement.monotone_fall(rows)))
    return page.stack(
        page.picture(figure, "Chosen against rejected change of every probe pair"), table, _modes(rows), steadily
    )


@probed
def scorecard(run: RunLog) -> Block:
    """How well each measure, taken before training, told which pairs lost likelihood."""
    found = predictors.collect([run])
    if not predictors.has_numbers(found.card):
        return page.missing("Predictors", scorecard_page.NOTHING)
    figure = figures.predictors(found.tables[0], found.card)
    return page.stack(scorecard_page.section(found), page.picture(figure, "Measures against realised displacement"))


@probed
def divergence(run: RunLog) -> Block:
    """Exact KL between policy and reference on the probe responses, and what the preference cost in it."""
    table = curves.kl(runs.rows(run, "probe"))
    if table.empty:
        return page.missing("KL", "The run has no reference, or KL was switched off.")
    return page.stack(page.picture(figures.divergence(table), "KL over steps, both directions, both sides"), _cost(run))


def gradients(run: RunLog) -> Block:
    """Gradient norms before clipping, in total and by layer group."""
    table = curves.gradients(run.steps)
    if table.empty:
        why = "steps.jsonl has no grad_norm."
        return page.missing("Gradient norms", why) if verdict.measured(run) else page.EMPTY
    return page.picture(figures.gradients(table), "Gradient norms over steps")


def pulls(run: RunLog) -> Block:
    """Do chosen and rejected pull on the same weights: the band, the two sides' gradients, prediction and outcome; and
    the push on their probabilities, which every run logs."""
    rows, sides = entanglement.measured(run.pairs), entanglement.sides(run.steps)
    if rows.empty or sides.empty:
        if not verdict.measured(run):
            return page.EMPTY
        why = "Train with grad_every set, 10 for example."
        return page.stack(page.missing("Gradients of chosen and rejected apart", why), _push(run))
    parts = [page.picture(gradient_figures.sides(sides), "Gradient norms of both sides over steps, and their sums")]
    steps = entanglement.by_step(rows)
    if len(entanglement.first_slack(rows)):
        picture = gradient_figures.band(steps, entanglement.first_slack(rows))
        parts.append(page.picture(picture, "Log of the incentive ratio in its band, and the slack of the first pairs"))
    else:
        why = "No measured pair was pushed up on its chosen and down on its rejected side."
        parts.append(page.missing("The band", why))
    found = entanglement.agreement(entanglement.realised(rows, run.pairs), runs.noise(run))
    return page.stack(*parts, _prediction(found), _push(run))


@probed
def where_mass_went(run: RunLog) -> Block:
    """Top-k entropy and mass, the response types, the ledger at the first differing token, gainers, EOS, groups."""
    if run.mass.empty:
        return page.missing("Where the mass went", "The run log has no mass table.")
    made = [
        _spread(run),
        _responses(run),
        _ledger(run),
        _movers(run, "gained"),
        _movers(run, "lost"),
        _eos(run),
        _groups(run),
    ]
    return page.stack(*made)


@probed
def by_place(run: RunLog) -> Block:
    """What tokens lost by their place relative to the first one in which chosen and rejected differ."""
    found = first_difference.profile(run.tokens)
    if found.table.empty:
        why = "It needs the tokens of five probe pairs at the first and at the last step (`tokens: ends`)."
        return page.missing("The first differing token", why)
    sentence = readings.first_difference(found)
    title = "Mean change of a token's log-prob by its place relative to the first difference"
    return page.stack(page.note(sentence), page.picture(curve_figures.first_difference(found.table, title), title))


@probed
def worst_pairs(run: RunLog, count: int) -> Block:
    """The pairs that lost most chosen likelihood, with their text and what each token lost."""
    found = displacement.worst(runs.ends(runs.rows(run, "probe")), count)
    if found.empty:
        return page.note("No probe pair's chosen response lost likelihood.")
    texts = runs.texts(run.audit)
    legend = page.note(
        "Red tokens lost log-probability, green ones gained; rest the pointer on a token for its numbers."
    )
    return page.stack(legend, *(_pair(run, row, texts) for row in found.to_dict("records")))


def settings(run: RunLog) -> Block:
    """Everything needed to repeat the run and to read its numbers."""
    shown = {"Conventions": run.manifest.get("conventions") or {}, "Settings": run.config}
    shown["Manifest"] = {k: v for k, v in run.manifest.items() if k != "conventions"}
    return page.stack(*(_dictionary(name, content) for name, content in shown.items()))


def _alarms(run: RunLog) -> list[Block]:
    """What the run's alarms said."""
    said = run.steps["alarm"].dropna() if "alarm" in run.steps else []
    return [page.note(f"Alarm: {text}", "alarm") for text in said]


def _modes(rows: pd.DataFrame) -> Block:
    shares = displacement.quadrants_by_step(rows)
    if shares.empty:
        return page.note("Outcomes by step: a side was not measured.", "quiet")
    both = rows.assign(common=(rows["chosen_change"] + rows["rejected_change"]) / 2)
    common, differential = (curves.means(both, column) for column in ("common", "margin_change"))
    ends = [signed(table["mean"].iloc[-1]) for table in (common, differential)]
    title = f"Both sides together moved by {ends[0]} nats, apart by {ends[1]} (mean of probe pairs)"
    return page.picture(curve_figures.outcomes(shares, common, differential, title), title)


def _cost(run: RunLog) -> Block:
    held = runs.rows(run, "eval")
    rows, pairs = (held, "held-out pair") if len(held) else (runs.rows(run, "probe"), "probe pair")
    table = curves.frontier(rows)
    if table.empty:
        return page.note("The frontier of accuracy and KL needs a probe after step 0 with KL.", "quiet")
    sentence = readings.frontier(table, pairs)
    title = f"What the preference cost: accuracy and margin of {pairs}s against the distance from the reference"
    return page.stack(page.picture(curve_figures.frontier(table, title), title), page.note(sentence))


def _spread(run: RunLog) -> Block:
    rows = curves.per_token(runs.rows(run, "probe"))
    measured = [curves.change(rows, f"chosen_{name}") for name in _SPREAD]
    if not measured[-1].n:
        return page.note("Top-k entropy and mass were not logged in this run.", "quiet")
    tables = {
        label: {side: curves.means(rows, f"{side}_{name}") for side in runs.SIDES} for name, label in _SPREAD.items()
    }
    title = "Along both responses: likelihood, and entropy and mass of the ten most likely tokens"
    return page.stack(page.note(readings.spread(*measured)), page.picture(curve_figures.spread(tables, title), title))


_SPREAD = {"avg_logps": "log-likelihood (nats)", "topk_entropy": "top-k entropy (nats)", "topk_mass": "top-k mass"}


def _responses(run: RunLog) -> Block:
    table = mass.responses(run.mass)
    if len(set(table["step"])) < 2:
        return page.note("Response types were not followed in this run.", "quiet")
    title = "Five kinds of answers to the same prompts: mean change with 95 % interval"
    last = table.loc[table["step"] == table["step"].max()]
    shown = pd.DataFrame(
        {
            "answer": [mass.RESPONSES[t] for t in last["name"]],
            "pairs": last["n"].to_list(),
            "nats per token at the end": last["logp"].to_list(),
            "change": last["change"].to_list(),
            "95 % interval": [span(i, signed) for i in zip(last["low"], last["high"])],
        }
    )
    made = page.table(shown, {"nats per token at the end": number, "change": signed})
    return page.stack(
        page.note(readings.responses(table)), page.picture(curve_figures.responses(table, title), title), made
    )


def _push(run: RunLog) -> Block:
    table = entanglement.push_by_step(runs.rows(run, "probe"))
    if table.empty:
        return page.missing("Push on the probabilities", "A side's likelihood was not measured.")
    title = "How much harder a loss of the margin pushes the rejected probability than the chosen one"
    return page.stack(page.note(readings.push(table)), page.picture(gradient_figures.push(table, title), title))


def _prediction(table: pd.DataFrame) -> Block:
    last = table.iloc[-1]
    if not int(last["n"]):
        return page.missing("Predicted and realised direction", "No measured pair was measured again later.")
    interval = span((last["low"], last["high"]), percent)
    words = f"The first-order direction of the chosen answer was right for {percent(last['share'])} of {last['n']} "
    words += f"pairs (95 % interval {interval})."
    shown = table.assign(interval=[span(i, percent) for i in zip(table["low"], table["high"])])
    heads = {"predicted": "chosen answer predicted to", "right": "did", "interval": "95 % interval"}
    return page.stack(page.note(words), page.table(shown.drop(columns=["low", "high"]), {"share": percent}, heads))


def _last(table: pd.DataFrame) -> float:
    return float(table["q50"].iloc[-1]) if len(table) else float("nan")


def _splits(run: RunLog) -> Block:
    found = []
    for split, name in (("probe", "probe (training pairs)"), ("eval", "held-out pairs")):
        table = displacement.by_step(runs.rows(run, split))
        if len(table):
            last = table.iloc[-1]
            interval = span((last["share_low"], last["share_high"]), percent)
            found.append((name, int(last["n"]), percent(last["share"]), interval, signed(last["mean"])))
    heads = ["pairs", "n", "lost chosen likelihood", "95 % interval", "mean change (nats)"]
    return page.table(pd.DataFrame(found, columns=heads))


def _ledger(run: RunLog) -> Block:
    table = mass.ledger(run.mass)
    if table.empty:
        return page.missing("The ledger", "No probe pair has a first differing token logged.")
    return page.picture(
        figures.ledger(table, mass.probe_count(run)), "Probability at the first differing token, by step"
    )


def _movers(run: RunLog, kind: str) -> Block:
    table = mass.movers(run.mass, kind)
    if table.empty:
        return page.note(f"No token {kind} probability at the first differing position.", "quiet")
    shown = table.head(10).assign(token=[visible(t) for t in table["token"].head(10)]).drop(columns="token_id")
    heads = {"token": f"token that {kind} most", "mass": "summed change", "largest": "largest in one pair"}
    made = page.table(shown, {"mass": signed, "largest": signed}, heads)
    return page.stack(page.picture(figures.gainers(table), "Top gaining tokens"), made) if kind == "gained" else made


def _eos(run: RunLog) -> Block:
    table = mass.eos(run.mass)
    if table.empty:
        return page.missing("EOS", "No response ends in EOS, or EOS was not logged.")
    words = [
        f"{c.split('_')[0]} {number(table[c].dropna().iloc[0])} to {number(table[c].dropna().iloc[-1])}" for c in table
    ]
    title = f"EOS probability where the responses end: {', '.join(words)}"
    colours = {"chosen_eos": figures.CHOSEN, "rejected_eos": figures.REJECTED}
    return page.picture(figures.lines(table, title, "probability of EOS", colours), title)


def _groups(run: RunLog) -> Block:
    table = mass.tracked(run.mass)
    if table.empty:
        return page.note("No tracked prompts in this run.", "quiet")
    title = "Tracked answers: probability of each group at the first response token"
    return page.picture(figures.lines(table, title, "probability"), title)


def _pair(run: RunLog, row: dict, texts: pd.DataFrame) -> Block:
    known = row["pair_id"] in texts.index
    text = (
        texts.loc[row["pair_id"]] if known else dict.fromkeys(("prompt", *runs.SIDES), "(text not in the audit table)")
    )
    head = f"chosen {signed(row['chosen_change'])} nats, rejected {signed(row['rejected_change'])} nats"
    head += f"; CHES before training {number(row.get('start_ches_score', float('nan')))}; pair {row['pair_id']}"
    sides = [_response(run, row["pair_id"], side, text[side]) for side in runs.SIDES]
    return page.card(head, page.text("prompt", text["prompt"]), *sides)


def _response(run: RunLog, pair_id: str, side: str, text: str) -> Block:
    table = tokens.losses(run, pair_id, side)
    if table.empty:
        return page.text(side, text)
    words = not any(" " in t for t in table["token"])  # whole words without their spaces
    spans = (" " if words else "").join(_token(t) for t in table.head(400).to_dict("records"))
    rest = f"… ({len(table) - 400} more tokens)" if len(table) > 400 else ""
    label = f"{side} ({len(table)} tokens)"
    return Block(
        f'<div class="text"><span class="label">{escape(label)}</span><div class="words">{spans}{rest}</div></div>'
    )


def _token(row: dict) -> str:
    """One token, coloured by its change: full colour at 3 nats."""
    change = row["change"]
    strength = min(1.0, abs(change) / 3.0) * 0.75 if change == change else 0.0
    colour = f"rgba({'209,73,91' if change < 0 else '60,141,90'},{strength:.2f})"
    title = f"{visible(row['token'])}: {number(row['before'])} to {number(row['after'])} nats ({signed(change)})"
    return f'<span style="background:{colour}" title="{escape(title)}">{escape(_shown(row["token"]))}</span>'


def _shown(token: str) -> str:
    return visible(token)[1:-1].replace("⏎", "⏎\n") or "∅"


def _dictionary(name: str, content: dict) -> Block:
    if not content:
        return page.note(f"{name}: {ABSENT}", "quiet")
    rows = [(k, clip("" if v is None else v, 500)) for k, v in content.items()]
    made = page.table(pd.DataFrame(rows, columns=[name.lower(), "value"]))
    return Block(f"<details open><summary>{escape(name)}</summary>{made.html}</details>")
