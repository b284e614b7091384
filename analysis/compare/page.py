"""The sections of the board: each joins a table, its judgement and its figure, and returns a Block."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from analysis.compare import board as tables
from analysis.compare import figures
from analysis.compare import verdict as judged
from analysis.compare.board import Board
from analysis.compare.figures import Dots
from analysis.run import overview
from analysis.show import page
from analysis.show.page import Block
from analysis.show.style import CHOSEN, REJECTED
from analysis.show.wording import percent, span
from analysis.tables import runs
from analysis.tables.intervals import geometric_mean


def load(run_dirs: list[str]) -> Board:
    """Read every run of the board."""
    runs.require(run_dirs=run_dirs)
    return tables.collect([runs.load(p) for p in run_dirs])


def verdict(board: Board) -> Block:
    """The sentences first: who displaced, who did not, and the KL ratios; then what is missing or wrong."""
    found = [page.note(board.unit.note, "quiet")] if board.unit.note else []
    found += [page.note(judged.headline(board), "verdict")]
    found += [page.note(s) for s in (*judged.displacement_sentences(board), *judged.ratio_sentences(board))]
    changed = tables.mixed(board)
    if changed:
        words = f"Careful: the {' and '.join(changed)} was not the same in all runs of a seed, so they do not compare."
        found.append(page.note(words, "verdict bad"))
    found += [page.note(f"Left out: {name} ({why})", "quiet") for name, why in board.unfinished.items()]
    return page.stack(*found)


def setting(board: Board) -> Block:
    """What all runs share: model, data, sizes, seeds; and the time they took."""
    config, first = board.logs[0].config, board.runs.iloc[0]
    rows = {
        "objectives and learning rates": str(len(board.entries)),
        "seeds": ", ".join(str(s) for s in sorted(set(board.runs["seed"]))),
        "model": "a tiny Llama that knows 80 facts, trained here" if _embedded(board) else config.get("model"),
        "data": "pairs that state a true and a wrong value" if _embedded(board) else config.get("data"),
        "measured pairs a seed": f"{first['probe_n']:.0f} training pairs, {first['eval_n']:.0f} held-out pairs",
        "updates": ", ".join(str(n) for n in sorted({_updates(run) for run in board.logs})),
        "optimizer": f"{config.get('optim', 'adamw_torch')}, {config.get('lr_scheduler_type', 'linear')} schedule",
        "batch size": config.get("per_device_train_batch_size"),
    }
    shared = page.table(pd.DataFrame([{"what": k, "value": v} for k, v in rows.items()]))
    return page.stack(shared, page.heading("Time"), _table(board, ["seconds", "cpu_seconds"]))


def displacement(board: Board) -> Block:
    """Log-ratios of both sides, share displaced, common-mode drift."""
    ratio, unit = board.unit.ratio, board.unit
    shown = {f"{ratio}, {words} pairs{unit.bracketed}": figures.sides(split) for split, words in tables.SPLITS.items()}
    shares = {f"displaced, {words} pairs": [Dots(f"{s}_fell", CHOSEN, "")] for s, words in tables.SPLITS.items()}
    blocks = [
        page.picture(
            _dots(board, shown, scale="far"), f"{unit.ratios} of chosen and rejected {unit.answer}s by objective"
        ),
        page.picture(_dots(board, shares, at=0.5), unit.alts["objectives"]),
    ]
    for split, words in tables.SPLITS.items():
        names = [f"{split}_{k}" for k in ("chosen", "rejected", "margin", "drift", "fell")]
        blocks += [page.heading(f"{words.capitalize()} pairs"), _table(board, names, plain=True)]
    return page.stack(*blocks)


def trajectories(board: Board) -> Block:
    """Chosen log-ratio over steps, one small panel an objective."""
    blocks = []
    for split, words in tables.SPLITS.items():
        paths = board.paths.loc[board.paths["split"] == split]
        labels = list(dict.fromkeys(paths["label"]))
        figure = figures.trajectories(paths, labels, f"chosen {board.unit.ratio}, {words} pairs{board.unit.bracketed}")
        blocks.append(page.picture(figure, f"Chosen {board.unit.ratio} over steps, {words}, by objective"))
    return page.stack(*blocks)


def deviation(board: Board) -> Block:
    """KL both ways, per response and per token, on held-out chosen answers."""
    unit = board.unit
    names = ["eval_kl", "eval_kl_reverse", "eval_kl_token", "eval_kl_reverse_token"]
    names = names if unit.by_token else names[:1]
    if not _measured(board, "eval_kl"):
        return page.missing("KL", "It needs held-out pairs and a live reference.")
    per = f"{',' if unit.nats else ''}{unit.nats} per chosen {unit.response}"
    shown = {f"{unit.divergences['kl']}{per}": [Dots("eval_kl", CHOSEN, "")]}
    if unit.by_token:
        shown[f"{unit.divergences['kl_reverse']}{per}"] = [Dots("eval_kl_reverse", REJECTED, "")]
    figure = _dots(board, shown, scale="log", at=None)
    return page.stack(
        page.picture(figure, f"{unit.divergence} between reference and policy by objective"), _table(board, names)
    )


def frontier(board: Board) -> Block:
    """KL against held-out accuracy, and which entries no other one beats in both."""
    heights = {f"eval_{k}": _head(board, f"eval_{k}") for k in ("sampled", "top", "ranking")}
    heights = {k: v for k, v in heights.items() if _measured(board, k)}
    if not heights or not _measured(board, "eval_kl"):
        return page.missing("The deviation frontier", "It needs held-out pairs and a live reference.")
    begin = tables.start(board, list(heights))
    figure = figures.frontier(board.runs, _labels(board), heights, begin, board.unit)
    summary = tables.summary(board, ["eval_kl", *heights])
    words, less = [], board.unit.divergence if board.unit.nats else "deviation"
    for name, what in heights.items():
        best = summary.loc[tables.frontier(summary, "eval_kl", name)].sort_values("eval_kl")
        on = ", ".join(judged.entry_name(board, (r["label"], r["rate"])) for r in best.to_dict("records"))
        if on:
            words.append(page.note(f"On the frontier of {what} (no other has both less {less} and more of it): {on}."))
    return page.stack(
        page.picture(figure, f"Held-out accuracy against {less}, one point an objective and learning rate"), *words
    )


def accuracy(board: Board) -> Block:
    """Implicit, ranking, top-token and sampled-token accuracy."""
    names = [f"eval_{k}" for k in ("implicit", "ranking", *(("top", "sampled") if board.unit.by_token else ()))]
    return _table(board, [*names, "probe_implicit"], begin=True)


def every_run(board: Board, pages: Mapping[str, str] | None = None) -> Block:
    """One line a finished run. pages: addresses of the runs' own pages, by their folders."""
    logs = [log for log in board.logs if log.name not in board.unfinished]
    return overview.each(logs, [_line(tables.head(log)) for log in logs], pages or {})


def _line(head: Mapping[str, Any]) -> dict[str, str]:
    return {"objective": head["label"], "learning rate": f"{head['rate']:g}", "seed": str(head["seed"])}


def comparisons(board: Board) -> Block:
    """The comparisons of the RRPO and of the LeanPO paper, as far as their entries were trained; of language models."""
    if not board.unit.by_token:
        return page.EMPTY
    made = [(words, _comparison(board, known)) for words, known in (("RRPO", tables.RRPO), ("LeanPO", tables.LEANPO))]
    return page.stack(*(block for words, table in made for block in (page.heading(words), table)))


def lengths(board: Board) -> Block:
    """What length has to do with it, as far as a run log can say; nothing where answers have none."""
    if not board.unit.by_token:
        return page.EMPTY
    names = ["eval_length_rho", "eval_preferred_length", "eval_chosen_length", "eval_rejected_length", "eval_eos"]
    return _table(board, names, begin=True)


def incentives(board: Board) -> Block:
    """The weights each objective puts on pushing the two sides, means over the train rows of the run."""
    names = ["chosen_incentive", "rejected_incentive"]
    if not board.runs[names].notna().to_numpy().any():
        return page.missing("Incentives", "These run logs do not hold them.")
    columns = [Dots(names[0], CHOSEN, "on chosen"), Dots(names[1], REJECTED, "on rejected")]
    per = "nat" if board.unit.nats else "unit of the error"
    figure = _dots(board, {f"loss per {per}, mean over train rows": columns})
    return page.stack(page.picture(figure, "Per-side incentives by objective"), _table(board, names))


HEADS = {
    "chosen": "chosen log-ratio",
    "rejected": "rejected log-ratio",
    "drift": "common drift",
    "fell": "displaced",
    "margin": "margin",
    "implicit": "implicit accuracy",
    "ranking": "ranking accuracy",
    "top": "top-token accuracy",
    "sampled": "sampled-token accuracy",
    "kl": "KL(ref || policy) per chosen response",
    "kl_reverse": "KL(policy || ref) per chosen response",
    "kl_token": "KL(ref || policy) per token",
    "kl_reverse_token": "KL(policy || ref) per token",
    "length_rho": "margin with length difference, Spearman",
    "preferred_length": "length of the likelier answer",
    "chosen_length": "length of the chosen answer",
    "rejected_length": "length of the rejected answer",
    "eos": "EOS where the chosen answer ends",
    "chosen_incentive": "on chosen",
    "rejected_incentive": "on rejected",
    "seconds": "wall seconds a run",
    "cpu_seconds": "CPU seconds a run",
}
_OF_ERRORS = HEADS | {
    "chosen": "chosen error, change",
    "rejected": "rejected error, change",
    "drift": "common drift of the errors",
    "ranking": "chosen error the lower one",
    "kl": "deviation per chosen sample",
}
_OF_CHAINS = HEADS | {"kl": "KL(ref || policy) per chosen chain"}
_HEADS = {"tokens": HEADS, "steps": _OF_CHAINS, "denoising": _OF_ERRORS}
DIGITS = {"kl_token": 4, "kl_reverse_token": 4, "chosen_incentive": 4, "rejected_incentive": 4, "preferred_length": 1}
DIGITS |= {"chosen_length": 1, "rejected_length": 1, "seconds": 1, "cpu_seconds": 1}
MOVED = ("implicit", "margin", "length_rho")  # compare with the reference, so there is nothing before training
SIGNED = ("chosen", "rejected", "drift", "margin", "length_rho")


def _table(board: Board, names: Sequence[str], *, begin: bool = False, plain: bool = False) -> Block:
    """Mean ± half interval of some columns, one row an entry; begin: with a first row for the start; plain: the
    heads leave out which pairs."""
    summary = tables.summary(board, names)
    rows = [_shown(row, names) for row in summary.to_dict("records")]
    if begin:
        first = {"label": "before training", "rate": math.nan} | tables.start(board, names)
        moved = {name: "–" for name in names if _bare(name) in MOVED}
        rows = [_shown(first, names) | moved, *rows]
    heads = {n: _head(board, n, plain) for n in names}
    return page.table(pd.DataFrame(rows), heads=heads | {"label": "objective", "rate": "learning rate"})


def _comparison(board: Board, known: Mapping[str, str]) -> Block:
    names = ["eval_kl", "probe_fell", "probe_chosen", "eval_sampled", "eval_top"]
    summary = tables.summary(board, names)
    rows = []
    for row in summary.loc[summary["label"].isin(known)].sort_values("rate", kind="stable").to_dict("records"):
        shown = _shown(row | {"label": f"{known[str(row['label'])]} ({row['label']})"}, names)
        rows.append(shown | {"KL of DPO over its own": _over(board, row)})
    if not rows:
        return page.missing("This comparison", "None of its entries was trained.")
    absent = [label for label in known if label not in set(summary["label"])]
    said = [page.note(f"Not trained: {', '.join(absent)}.", "quiet")] if absent else []
    heads = {n: _head(board, n) for n in names} | {"label": "objective", "rate": "learning rate"}
    return page.stack(page.table(pd.DataFrame(rows), heads=heads), *said)


def _over(board: Board, row: Mapping[Any, Any]) -> str:
    """KL of DPO at the same learning rate, divided by this entry's: geometric mean and range over seeds."""
    rate = row["rate"]
    if ("dpo", rate) not in board.entries or row["label"] == "dpo":
        return "–"
    values = tables.ratios(board, "eval_kl", ("dpo", rate), (str(row["label"]), rate))
    return f"{geometric_mean(values):.1f} ({values.min():.1f} to {values.max():.1f})" if len(values) else "–"


def _shown(row: Mapping[Any, Any], names: Sequence[str]) -> dict[str, Any]:
    rate = row["rate"]
    first = {"label": row["label"], "rate": "–" if math.isnan(rate) else f"{rate:g}", "seeds": row["seeds"]}
    return first | {name: _cell(row, name) for name in names}


def _cell(row: Mapping[Any, Any], name: str) -> str:
    value, half, n = row[name], row[f"{name}_half"], row[f"{name}_seeds"]
    if math.isnan(value):
        return "not measured"
    bare = _bare(name)
    if bare in tables.SHARES:
        words = f"{percent(value)} ({span((row[f'{name}_low'], row[f'{name}_high']), percent)})"
        return words + (f" (n = {n})" if n < row["seeds"] else "")
    digits, sign = DIGITS.get(bare, 2), "+" if bare in SIGNED else ""
    words = f"{round(value, digits) + 0.0:{sign}.{digits}f}".replace("-", "−")  # + 0.0: no minus zero
    words += "" if math.isnan(half) else f" ± {half:.{digits}f}"
    return words + (f" (n = {n})" if n < row["seeds"] else "")


def _head(board: Board, name: str, plain: bool = False) -> str:
    split = next((s for s in tables.SPLITS if name.startswith(f"{s}_")), None)
    words = _HEADS[board.unit.kind][_bare(name)]
    return f"{words}, {tables.SPLITS[split]}" if split and not plain else words


def _bare(name: str) -> str:
    return name.removeprefix("probe_").removeprefix("eval_")


def _dots(board: Board, shown: dict[str, list[Dots]], **settings: Any) -> Any:
    names = [judged.entry_name(board, entry) for entry in board.entries]
    return figures.dots(board.runs, board.entries, names, shown, **settings)


def _measured(board: Board, name: str) -> bool:
    return bool(board.runs[name].notna().to_numpy().any())


def _labels(board: Board) -> list[str]:
    return list(dict.fromkeys(label for label, _ in board.entries))


def _embedded(board: Board) -> bool:
    return all(run.config.get("board_world") == "facts" for run in board.logs)


def _updates(run: Any) -> int:
    return int(run.steps["step"].max()) if len(run.steps) else 0
