"""The sections of the run report: each joins a table, its judgement and its figure, and returns a Block."""

from html import escape

import pandas as pd

from analysis import curves, displacement, figures, mass, page, predictors, runs, scorecard_page, tokens, verdict
from analysis.page import Block
from analysis.wording import ABSENT, clip, number, percent, signed, span, visible
from diagnostics.runlog import RunLog

PROBE = "The run log has no probe rows; train with probe_every and probe_pairs set."


def load(run_dir: str) -> RunLog:
    """Read the run that this report is about."""
    return runs.load(run_dir)


def summary(run: RunLog) -> Block:
    """The verdict first, then every judged number with its interval and n."""
    found = verdict.judge(run)
    first = found[0]
    kind = "note" if first.passed is None else "good" if first.passed else "bad"
    name = page.note(f"Run {run.name}: {run.config.get('objective', 'objective unknown')}", "quiet")
    return page.stack(name, page.note(first.meaning, f"verdict {kind}"), page.findings(found[1:]))


def trajectories(run: RunLog) -> Block:
    """Likelihoods of both sides over steps, and the share of pairs that fell, for probe and held-out pairs."""
    rows = runs.rows(run, "probe")
    table = displacement.by_step(rows)
    if not any(table["n"]):
        return page.missing("Likelihood over time", PROBE)
    chosen, rejected = (curves.bands(rows, f"{side}_change") for side in runs.SIDES)
    title = (
        f"Chosen moved by {signed(_last(chosen))}, rejected by {signed(_last(rejected))} nats (median of probe pairs)"
    )
    picture = figures.trajectories(chosen, rejected, runs.rows(run, "train"), title)
    return page.stack(
        page.picture(picture, title),
        page.picture(figures.shares(table, displacement.onset(table)), "Share of pairs below their start, by step"),
        _splits(run),
    )


def quadrants(run: RunLog) -> Block:
    """What became of each pair: separated, both fell, both rose, inverted."""
    ends = runs.ends(runs.rows(run, "probe"))
    if ends.empty:
        return page.missing("Outcomes", PROBE)
    shares = displacement.quadrants(ends)
    figure = figures.quadrant(ends, shares, "start_ches_score", "CHES before training")
    shown = shares.assign(interval=[span(i, percent) for i in zip(shares["low"], shares["high"])])
    shown = shown.drop(columns=["low", "high"])
    table = page.table(shown, {"share": percent}, {"interval": "95 % interval"})
    return page.stack(page.picture(figure, "Chosen against rejected change of every probe pair"), table)


def scorecard(run: RunLog) -> Block:
    """How well each measure, taken before training, told which pairs lost likelihood."""
    found = predictors.collect([run])
    if not predictors.has_numbers(found.card):
        return page.missing("Predictors", scorecard_page.NOTHING)
    figure = figures.predictors(found.tables[0], found.card, predictors.NAMES)
    return page.stack(scorecard_page.section(found), page.picture(figure, "Measures against realised displacement"))


def divergence(run: RunLog) -> Block:
    """Exact KL between policy and reference on the probe responses."""
    table = curves.kl(runs.rows(run, "probe"))
    if table.empty:
        return page.missing("KL", "The run has no reference, or KL was switched off.")
    return page.picture(figures.divergence(table), "KL over steps, both directions, both sides")


def gradients(run: RunLog) -> Block:
    """Gradient norms before clipping, in total and by layer group."""
    table = curves.gradients(run.steps)
    if table.empty:
        return page.missing("Gradient norms", "steps.jsonl has no grad_norm.")
    return page.picture(figures.gradients(table), "Gradient norms over steps")


def where_mass_went(run: RunLog) -> Block:
    """The ledger at the first differing token, the tokens that gained and lost most, EOS, tracked groups."""
    if run.mass.empty:
        return page.missing("Where the mass went", "The run log has no mass table.")
    made = [_ledger(run), _movers(run, "gained"), _movers(run, "lost"), _eos(run), _groups(run)]
    return page.stack(*made)


def worst_pairs(run: RunLog, count: int) -> Block:
    """The pairs that lost most chosen likelihood, with their text and what each token lost."""
    found = displacement.worst(runs.ends(runs.rows(run, "probe")), count)
    if found.empty:
        return page.missing("Worst pairs", PROBE)
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
