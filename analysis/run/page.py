"""The sections of the run report: each joins a table, its judgement and its figure, and returns a Block."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime
from functools import partial, wraps
from html import escape
from typing import Any

import pandas as pd

from analysis.flag import tables as flags
from analysis.run import (
    advice,
    card,
    curve_figures,
    figures,
    gradient_figures,
    kept,
    live,
    plots,
    readings,
    samples,
    strip,
    verdict,
)
from analysis.run import pairs as pairs_of
from analysis.run.advice import Advice, advise
from analysis.run.card import State
from analysis.scorecard import page as scorecard_page
from analysis.scorecard import predictors, trust
from analysis.show import page, units
from analysis.show.page import Block, Tile
from analysis.show.units import Unit
from analysis.show.wording import ABSENT, clip, number, percent, signed, span, visible
from analysis.tables import curves, displacement, entanglement, first_difference, mass, runs
from analysis.tables import frames as by_frames
from diagnostics.finding import Finding
from diagnostics.runlog import RunLog


def load(run_dir: str) -> RunLog:
    """Read the run that this report is about; of "", see runs.load_run."""
    return runs.load_run(run_dir)


def probed(section: Callable[..., Block]) -> Callable[..., Block]:
    """The section, or nothing where no probe pair was measured after the start: the verdict has said so, and how to
    go on."""

    @wraps(section)
    def made(run: RunLog, *rest: Any, **how: Any) -> Block:
        return section(run, *rest, **how) if verdict.measured(run) else page.EMPTY

    return made


def summary(run: RunLog) -> Block:
    """What run this is, the verdict card (broken or not, which pairs, where the mass went, what next), alarms, and four
    numbers."""
    found = kept.verdict_of(run)
    state = card.state(run, found)
    inside = _card(run, found, state)
    boxed = Block(f'<section class="card {_KIND[state.word]}" aria-label="Verdict">{inside}</section>')
    going = live.of(run)
    still = [page.note(live.words(going), "alarm")] if going.going else []
    told = [page.note(said, "quiet")] if (said := units.of(run).note) else []
    return page.stack(_bar(run), *told, *still, boxed, *_returned(run), *_alarms(run), page.tiles(tiles_of(run, found)))


def _card(run: RunLog, found: list[Finding], state: State) -> str:
    """The word, and a short line for each of the four questions; safe HTML."""
    fired = card.fired(run, found)  # that of the share can be seen in the sentence itself
    more = [fired if "mean" in fired else "", _PROBE if "probe pair" in state.says else ""]
    test = f' <span class="quiet">{escape(said)}</span>' if (said := " ".join(filter(None, more))) else ""
    steps = [_advice(one) for one in advise(run, state, found)]
    lines = {
        "Verdict": f'<span class="says">{escape(state.says)}</span>{test}',
        "Pairs": pairs_of.most_lost(run, state),
        "Mass": escape(card.went_to(run, state)),
        "Next": f"<ol>{''.join(f'<li>{step}</li>' for step in steps)}</ol>" if len(steps) > 1 else "".join(steps),
    }
    listed = "".join(f"<dt>{name}</dt><dd>{safe}</dd>" for name, safe in lines.items() if safe)
    head = f'<p class="word"><span aria-hidden="true">{card.SIGNS[state.word]}</span> {state.word}</p>'
    return f"{head}<dl>{listed}</dl>"


_PROBE = "Probe pairs: training pairs, measured repeatedly."
_KIND = {card.BROKEN: "bad", card.WATCH: "watch", card.NORMAL: "good", card.UNMEASURED: "unmeasured"}


def _bar(run: RunLog) -> Block:
    config, about = run.config, run.manifest
    said = {
        "Run": run.name,
        "objective": config.get("objective", ABSENT),
        "model": _leaf(config.get("model")),
        "data": _leaf(config.get("data")),
        "started": str(about.get("started", "")).replace("T", " ")[:16],
        "took": _duration(about),
    }
    parts = [
        f"<strong>{escape(name)}</strong> {escape(clip(value, 60))}"
        for name, value in said.items()
        if value not in ("", ABSENT)
    ]
    return Block(f'<p class="bar">{" · ".join(parts)}</p>')


def _leaf(path: object) -> str:
    """The last part of a path or hub id."""
    return str(path).rstrip("/").rpartition("/")[2] if path else ABSENT


def _duration(about: Any) -> str:
    try:
        start, end = (datetime.fromisoformat(t) for t in (about["started"], about["finished"]["at"]))
    except (KeyError, TypeError, ValueError):
        return ""
    minutes, seconds = divmod(round((end - start).total_seconds()), 60)
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min {seconds} s"


def _advice(found: Advice) -> str:
    command = page.fold("the command", page.command(found.command)).html if found.command else ""
    caveat = f'<span class="quiet"> {escape(found.caveat)}</span>' if found.caveat else ""
    return f"{escape(found.what)}{caveat}{command}"


def tiles_of(run: RunLog, found: list[Finding]) -> list[Tile]:
    """Share that fell, mean change, accuracy, KL: each with n and interval. The large numbers are of the probe pairs,
    or of the held-out ones where these alone are displaced."""
    share, mean, accuracy, kl = (
        verdict.by_name(found, n) for n in ("displacement/frac", "displacement/chosen", "accuracy", "kl/chosen")
    )
    held, held_mean = (verdict.by_name(found, f"eval/displacement/{n}") for n in ("frac", "chosen"))
    right, n, interval = card.heldout_accuracy(run)
    held_right = replace(accuracy, value=right, n=n, interval=interval)
    state = card.state(run, found)
    turned = state.displaced == ("eval",)
    unit = units.of(run)
    more = _beside_mean(run, unit, mean) if share.n and not turned else ()
    mean, held_mean = map(unit.finding, (mean, held_mean))
    form = partial(signed, digits=unit.digits)
    made = [
        _tile(unit.tiles["fell"], unit.terms["fell"], percent, share, held, turned),
        _tile(unit.mean_change, unit.terms["change"], form, mean, held_mean, turned, more, unit.nats),
        _tile("preference accuracy", unit.terms["accuracy"], percent, accuracy, held_right, turned),
        _tile(
            unit.tiles["kl"], unit.terms["kl"], partial(number, digits=unit.digits), kl, unit=unit.nats, named=turned
        ),
    ]
    if state.cause == "still":  # the signs of differences that are noise
        made[2] = Tile(made[2].label, made[2].meaning, ABSENT, ("nothing moved by more than noise",))
    return made


def _beside_mean(run: RunLog, unit: Unit, mean: Finding) -> tuple[str, ...]:
    """What stands below the mean change of the probe pairs: the same a token, or as a share of the start's."""
    if unit.limits.relative:
        return (unit.share(mean.value, card.start(run, "probe")),)
    tokens = card.per_token(run).dropna() if unit.by_token else pd.Series(dtype=float)
    return (f"{signed(float(tokens.mean()))} a token",) if len(tokens) else ()


def _tile(
    label: str,
    meaning: str,
    form: Callable[[float], str],
    probe: Finding,
    held: Finding | None = None,
    turned: bool = False,
    more: tuple[str, ...] = (),
    unit: str = "",
    named: bool = False,
) -> Tile:
    """One large number. turned: it is of the held-out pairs, and that of the probe pairs stands below it; named: say
    whose it is where it stands alone, too."""
    sides = [("probe", probe), *([("held out", held)] if held and held.n else [])]
    (name, first), *rest = sides[::-1] if turned else sides
    if not probe.n:
        return Tile(label, meaning, ABSENT)
    who = f"{name}: " if rest or named else ""
    lines = [f"{who}n {first.n}, 95 %: {span(first.interval, form)}"]
    lines += [f"{other}: {form(one.value)}, n {one.n}" for other, one in rest]
    return Tile(label, meaning, form(first.value) + unit, (*more, *lines))


def numbers(run: RunLog) -> Block:
    """The verdict in full and every judged number with its interval and n."""
    found = kept.verdict_of(run)
    kind = "note" if found[0].passed is None else "good" if found[0].passed else "bad"
    told = [page.note(said, "quiet")] if (said := units.of(run).values) else []
    return page.stack(
        page.note(found[0].meaning, f"verdict {kind}"),
        *([page.note(said, "quiet")] if (said := card.fired(run, found)) else []),
        *told,
        page.findings(verdict.shown(run, found)[1:], units.of(run).digits),
    )


@probed
def pairs(run: RunLog, worst: int, text: bool = True, flags: Mapping[str, str] | None = None) -> Block:
    """The worst pairs token by token, then all of them. flags: score folders reported beside the run, with the
    addresses of their pages."""
    return pairs_of.section(run, worst, text=text, flags=flags)


@probed
def by_time(run: RunLog) -> Block:
    """Of a denoiser: the error of both sides by time, at the start and at the end."""
    return samples.by_time(run)


def drew(run: RunLog, text: bool) -> Block:
    """Of a denoiser: the samples that it drew on the way, and what their judge says."""
    return strip.drew(run, text=text)


@probed
def known(run: RunLog) -> Block:
    """Whether a measure taken before training told which pairs would fall: one sentence and one plot."""
    found = predictors.collect([run])
    if not predictors.has_numbers(found.card):
        return page.missing("Predictors", scorecard_page.NOTHING)
    judged = trust.judge(found.card)
    named = found.card.loc[found.card["measure"] == judged.name.partition("/")[2]]
    figure = figures.predictors(found.tables[0], named if len(named) else found.card, 1, loss=units.of(run).loss)
    said = [page.note(words) for words in (judged.meaning, trust.under_way(found.early)) if words]
    return page.stack(*said, page.picture(figure, "The best measure against realised displacement"))


@probed
def trajectories(run: RunLog) -> Block:
    """Likelihoods of both sides over steps, and the share of pairs that fell; of the held-out pairs too where they
    alone are displaced."""
    made = []
    for split in _splits_of(run):
        curve = plots.plot_curves(run, split)
        alt = f"{units.of(run).alts['fell']}, {verdict.PAIRS[split]}s"
        made += [page.picture(curve, curve.get_suptitle()), page.picture(plots.plot_displacement(run, split), alt)]
    return page.stack(*made, _splits(run))


def _splits_of(run: RunLog) -> tuple[str, ...]:
    """The splits whose figures are shown, in this order: the probe pairs, and before them the held-out ones where these
    alone are displaced."""
    return ("eval", "probe") if card.shown_split(run) == "eval" else ("probe",)


@probed
def quadrants(run: RunLog) -> Block:
    """What became of each pair (separated, both fell, neither fell, inverted), at the end and by step."""
    return page.stack(*(_quadrants(run, split) for split in _splits_of(run)))


def _quadrants(run: RunLog, split: str) -> Block:
    pairs, rows = verdict.PAIRS[split], runs.rows(run, split)
    shares = displacement.quadrants(runs.ends(rows))
    if not sum(shares["n"]):
        return page.missing("Outcomes", f"No {pairs} was measured on both sides.")
    figure, unit = plots.plot_outcomes(run, split), units.of(run)
    named = {"interval": [span(i, percent) for i in zip(shares["low"], shares["high"])]}
    shown = shares.assign(outcome=[unit.outcome(name) for name in shares["outcome"]], **named)
    shown = shown.drop(columns=["low", "high"])
    table = page.table(shown, {"share": percent}, {"interval": "95 % interval"})
    steadily = page.note(readings.monotone_fall(displacement.monotone_fall(rows), unit, pairs))
    return page.stack(
        page.picture(figure, f"Chosen against rejected change of every {pairs}"),
        table,
        _modes(rows, unit, pairs),
        steadily,
    )


@probed
def scorecard(run: RunLog) -> Block:
    """How well each measure, taken before training, told which pairs lost likelihood."""
    found = predictors.collect([run])
    if not predictors.has_numbers(found.card):
        return page.missing("Predictors", scorecard_page.NOTHING)
    figure = figures.predictors(found.tables[0], found.card, loss=units.of(run).loss)
    return page.stack(scorecard_page.section(found), page.picture(figure, "Measures against realised displacement"))


@probed
def divergence(run: RunLog) -> Block:
    """Exact KL between policy and reference on the probe responses, and what the preference cost in it."""
    splits = [split for split in _splits_of(run) if len(curves.kl(runs.rows(run, split)))]
    if not splits:
        return page.missing("KL", "The run has no reference, or KL was switched off.")
    alt = f"{units.of(run).divergence} over steps, both directions, both sides"
    drawn = [page.picture(plots.plot_kl(run, split), f"{alt}, {verdict.PAIRS[split]}s") for split in splits]
    return page.stack(*drawn, _cost(run))


def gradients(run: RunLog) -> Block:
    """Gradient norms before clipping, in total and by layer group."""
    if curves.gradients(run.steps).empty:
        why = "steps.jsonl has no grad_norm."
        return page.missing("Gradient norms", why) if verdict.measured(run) else page.EMPTY
    whose = "" if "grad_norm" in run.steps else ", as its trainer logged it"
    return page.picture(plots.plot_gradients(run), f"Gradient norm over steps{whose}")


def pulls(run: RunLog) -> Block:
    """Do chosen and rejected pull on the same weights: the band, the two sides' gradients, prediction and outcome; and
    the push on their probabilities, which every run logs."""
    rows, sides = entanglement.measured(run.pairs), entanglement.sides(run.steps)
    if rows.empty or sides.empty:
        if not verdict.measured(run) or not units.of(run).by_token:  # a denoiser has neither these nor a push
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
    """Who holds the probability where the two answers part, and which tokens gained and lost most."""
    if run.mass.empty:
        why = "The run log has no mass table."
        return page.missing("Where the mass went", why) if units.of(run).by_token else page.EMPTY
    split = card.shown_split(run)
    if mass.of_kind(run.mass, ("gained", "chosen"), split).empty:
        return page.missing(f"Where the mass went on {verdict.PAIRS[split]}s", "The log's mass table has none of them.")
    return page.stack(_ledger(run, split), _movers(run, "gained", split), _movers(run, "lost", split))


@probed
def more_mass(run: RunLog) -> Block:
    """Top-k entropy and mass along the answers, five kinds of answers, the end token, tracked groups."""
    return page.EMPTY if run.mass.empty else page.stack(_spread(run), _responses(run), _eos(run), _groups(run))


def frames(run: RunLog) -> Block:
    """Does the answer depend on the frames? One sentence and one figure; nothing where the pairs show nothing."""
    table = by_frames.by_view(runs.rows(run, "probe"))
    if table.empty:
        return page.EMPTY
    title = "Log-prob of the answers with the pairs' own frames and with others in their place"
    picture = page.picture(curve_figures.frames(table, title), title)
    return page.stack(page.note(readings.frames(table)), picture)


@probed
def by_place(run: RunLog) -> Block:
    """What tokens lost by their place relative to the first one in which chosen and rejected differ."""
    found = first_difference.profile(run.tokens)
    if found.table.empty:
        why = "It needs the log-prob of every token of five probe pairs at both ends (`tokens: ends`)."
        return page.missing("Loss by place around the first difference", why) if units.of(run).by_token else page.EMPTY
    sentence = readings.first_difference(found)
    title = "Mean change of a token's log-prob by its place relative to the first difference"
    return page.stack(page.note(sentence), page.picture(curve_figures.first_difference(found.table, title), title))


def data(run: RunLog) -> Block:
    """How the rows were read, and what became of them."""
    read = [page.note(said) for said in [runs.reading(run.manifest)] if said]
    if run.audit.empty:
        return page.stack(*read, page.missing("Data", "The folder has no audit.parquet."))
    rows = [("read", len(run.audit))]
    rows += [(str(status), int(n)) for status, n in run.audit["status"].value_counts().items()]
    counted = run.manifest.get("pairs") or {}
    given = {"probe": "pairs given, measured"} if run.manifest.get("probe_pairs_are") == "given" else {}
    rows += [(words, int(counted[k])) for k, words in (_SPLITS | given).items() if counted.get(k) is not None]
    doubts, remarks = flags.doubts(run.audit), flags.remarks(run.audit)
    reasons = flags.reasons(run.audit)
    skipped = reasons.loc[reasons["status"] != "kept"] if len(reasons) else reasons
    tables = [page.table(t) for t in (skipped, doubts, remarks) if len(t)]
    return page.stack(*read, page.table(pd.DataFrame(rows, columns=["rows", "n"])), *tables)


_SPLITS = {"train": "to train on", "probe": "probe pairs", "eval": "held-out pairs"}


def repeat(run: RunLog) -> Block:
    """The command, what differs from the defaults, versions and hashes, the words of this page, and how to cite."""
    command = advice.repeat(run)
    changed = {k: v for k, v in advice.changed(run).items() if k not in ("resume",)}
    about = {**(run.manifest.get("versions") or {}), "commit": run.manifest.get("commit")}
    told = [page.note("The same run anew, beside this one:", "quiet"), page.command(command)]
    return page.stack(
        *(told if command else []),
        _dictionary("Settings that differ from the defaults", changed),
        _dictionary("Versions", {k: v for k, v in about.items() if v}),
        _dictionary("Hashes", run.manifest.get("hashes") or {}),
        page.fold("Words of this page", page.table(pd.DataFrame(units.of(run).glossary, columns=["word", "meaning"]))),
        page.fold("How to cite", page.command(BIBTEX)),
    )


BIBTEX = """@software{chesboard, title = {Chesboard: displacement and deviation in preference optimization}}
@inproceedings{razin2025unintentional, title = {Unintentional Unalignment: Likelihood Displacement in Direct Preference
  Optimization}, author = {Razin, Noam and Malladi, Sadhika and Bhaskar, Adithya and Chen, Danqi and Arora, Sanjeev and
  Hanin, Boris}, booktitle = {ICLR}, year = {2025}, eprint = {2410.08847}, archivePrefix = {arXiv}}"""


def settings(run: RunLog) -> Block:
    """Everything needed to repeat the run and to read its numbers."""
    shown = {"Conventions": run.manifest.get("conventions") or {}, "Settings": run.config}
    shown["Manifest"] = {k: v for k, v in run.manifest.items() if k != "conventions"}
    return page.stack(*(_dictionary(name, content) for name, content in shown.items()))


def _returned(run: RunLog) -> list[Block]:
    """Says so where the model that a training gave back is not that of its last step."""
    returned, finished = (run.manifest.get(key) for key in ("returned", "finished"))
    if not isinstance(returned, dict) or not isinstance(finished, dict) or returned.get("step") == finished.get("step"):
        return []
    words = f"The training gave back the model of step {returned.get('step')}; this page is about the last step, "
    return [page.note(f"{words}{finished.get('step')}.", "alarm")]


def _alarms(run: RunLog) -> list[Block]:
    """What the run's alarms said."""
    said = run.steps["alarm"].dropna() if "alarm" in run.steps else []
    return [page.note(f"Alarm: {text}", "alarm") for text in said]


def _modes(rows: pd.DataFrame, unit: Unit, pairs: str) -> Block:
    shares = displacement.quadrants_by_step(rows).rename(columns=unit.outcome)
    if shares.empty:
        return page.note("Outcomes by step: a side was not measured.", "quiet")
    rows = unit.turned(rows)
    both = rows.assign(common=(rows["chosen_change"] + rows["rejected_change"]) / 2)
    common, differential = (curves.means(both, column) for column in ("common", "margin_change"))
    ends = [signed(table["mean"].iloc[-1], unit.digits) for table in (common, differential)]
    title = f"Both sides together moved by {ends[0]}{unit.nats}, apart by {ends[1]} (mean of {pairs}s)"
    axis = f"mean change{unit.bracketed}"
    return page.picture(curve_figures.outcomes(shares, common, differential, title, axis), title)


def _cost(run: RunLog) -> Block:
    held = runs.rows(run, "eval")
    rows, pairs = (held, "held-out pair") if len(held) else (runs.rows(run, "probe"), "probe pair")
    table = curves.frontier(rows)
    if table.empty:
        return page.note("The frontier of accuracy and KL needs a measurement after step 0 with KL.", "quiet")
    unit = units.of(run)
    sentence = readings.frontier(table, pairs, unit.distance)
    if len(table) < 2:  # a frontier of one point is none
        return page.note(sentence)
    title = f"What the preference cost: accuracy and margin of {pairs}s by distance from the reference"
    return page.stack(page.picture(curve_figures.frontier(table, title, unit), title), page.note(sentence))


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


def _splits(run: RunLog) -> Block:
    found, unit = [], units.of(run)
    names = {"probe": "probe (training pairs)", "eval": "held-out pairs"}
    for split in sorted(names, key=lambda split: split != card.shown_split(run)):
        name = names[split]
        table = displacement.by_step(runs.rows(run, split))
        if len(table):
            last = table.iloc[-1]
            interval = span((last["share_low"], last["share_high"]), percent)
            found.append(
                (name, int(last["n"]), percent(last["share"]), interval, signed(unit.shown(last["mean"]), unit.digits))
            )
    heads = ["pairs", "n", unit.lost, "95 % interval", f"{unit.mean_change}{unit.bracketed}"]
    return page.table(pd.DataFrame(found, columns=heads))


def _ledger(run: RunLog, split: str) -> Block:
    pairs = verdict.PAIRS[split]
    if mass.ledger(run.mass, split).empty:
        return page.missing("The ledger", f"No {pairs} has a first differing token logged.")
    return page.picture(plots.plot_mass(run, split), f"Probability at the first differing token of {pairs}s, by step")


def _movers(run: RunLog, kind: str, split: str) -> Block:
    table = mass.movers(run.mass, kind, split)
    if table.empty:
        return page.note(f"No token {kind} probability at the first differing position.", "quiet")
    shown = table.head(10).assign(token=[visible(t) for t in table["token"].head(10)]).drop(columns="token_id")
    heads = {"token": f"token that {kind} most", "mass": "summed change", "largest": "largest in one pair"}
    made = page.table(shown, {"mass": signed, "largest": signed}, heads)
    if kind == "lost":
        return made
    return page.stack(page.picture(figures.gainers(table, f"{verdict.PAIRS[split]}s"), "Top gaining tokens"), made)


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


def _dictionary(name: str, content: dict) -> Block:
    if not content:
        return page.EMPTY
    rows = [(k, clip("" if v is None else v, 500)) for k, v in content.items()]
    made = page.table(pd.DataFrame(rows, columns=[name.lower(), "value"]))
    return page.fold(name, made)
