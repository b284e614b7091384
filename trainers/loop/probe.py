"""The probe: fixed pairs and prompts measured again and again, to see where the probability went."""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from diagnostics import sequences
from diagnostics.diffusion.stats import DenoisingStats
from diagnostics.engine import device_of, evaluating
from diagnostics.errors import DataError, UserError
from diagnostics.forward import Outputs
from diagnostics.likelihood import GIVES, Likelihood
from diagnostics.row_stats import with_top_tokens
from diagnostics.scoring import Scored, batches, rows, score
from diagnostics.sequences import Example
from diagnostics.stats import PAIR
from diagnostics.token_likelihood import TokenLikelihood, padded
from diagnostics.token_text import token_text, token_texts
from diagnostics.tokenized import end_ids, tokenize_prompts
from diagnostics.vision import prior
from trainers.loop.columns import ProbeRows
from trainers.loop.reference import LiveReference
from trainers.loop.responses import Responses

OWN = "own/"  # before the pair_id of a kept own answer
TOP = 10  # tokens kept at each end: most gained and most lost
TOGETHER = 64  # pairs whose distributions over the vocabulary are held at once


class Probe:
    """Measures fixed pairs (split `probe`: training pairs, `eval`: held-out pairs) and tracked prompts.

    start: where the distributions of the first measurement (and the model's own answers) are kept, so that a resumed
        run compares with the same start; DataError where it is gone then. responses: of how many probe pairs further
        answers are followed (see Responses); seed: of them.
    """

    def __init__(
        self,
        pairs: dict[str, Sequence[Example]],
        tokenizer: PreTrainedTokenizerBase | None,
        *,
        likelihood: Likelihood,
        reference: Callable[[Any], Any] | None,
        track: dict[str, Any] | None,
        start: Path,
        resumed: bool = False,
        responses: int = 0,
        seed: int = 0,
    ) -> None:
        self.pairs = {name: [pair.only(PAIR) for pair in some] for name, some in pairs.items()}
        self.likelihood = likelihood
        self.tokenizer: Any = tokenizer  # of a likelihood that gives tokens
        self.reference = reference
        self.start_file, self.saved = start, resumed
        self.start = _read_start(start) if resumed else {}
        self.texts = {-1: ""}  # by token id
        self.responses = None
        if isinstance(likelihood, TokenLikelihood) and tokenizer is not None:
            followed, ends = self.pairs.get("probe", ())[:responses], end_ids(tokenizer)
            self.responses = Responses(followed, likelihood=likelihood, ends=ends, seed=seed)
        if track and "tokens" not in likelihood.gives:
            raise UserError(f"track needs {GIVES['tokens']}, which {type(likelihood).__name__} does not give.")
        self.groups, self.prompts, self.sets = {}, [], {}
        if track and tokenizer is not None:
            self.groups = {name: token_ids(tokens, tokenizer) for name, tokens in track["groups"].items()}
            self.prompts = _prompts(track, tokenizer)
            self.sets = {p["id"]: p["set"] for p in track["prompts"]}

    def measure(self, model: nn.Module, step: int, epoch: float, *, tokens: bool, without: bool = False) -> ProbeRows:
        """Measure everything once, with the weights after `step` updates. tokens: also one row a token, or draw;
        without: also the pairs' answers with other frames in the place of theirs, where any shows some (vision.prior).
        """
        out, has_tokens = ProbeRows(), "tokens" in self.likelihood.gives
        same = isinstance(self.reference, LiveReference) and self.reference.same(model)
        for name, pairs in self.pairs.items():
            head = {"step": step, "epoch": epoch, "split": name}
            for scored in score(model, pairs, likelihood=self.likelihood, reference=self.reference, same=same):
                stats = scored.stats
                if has_tokens:
                    stats = with_top_tokens(scored.batch, scored.policy, stats)
                    out.mass += self._mass(scored, step, name)
                out.pairs += [head | row for row in rows(scored.pairs, stats)]
                if tokens and has_tokens and name == "probe":
                    out.tokens += self._tokens(scored, step, name)
                if tokens and self.likelihood.kind == "denoising":
                    out.draws += draw_rows(scored, step, name)
        out.pairs = self._with_prior(model, out.pairs, without)
        out.mass += self._tracked(model, step) if self.prompts else []
        if self.responses:
            known = set(self.start)
            out.mass += self._responses(self.responses, model, step, out.pairs)
            out.samples += self._own(step, set(self.start) - known)
        if not self.saved and PartialState().is_main_process:
            half = self.start_file.with_name(self.start_file.name + ".tmp")
            save_file(self.start, half)
            os.replace(half, self.start_file)
        self.saved = True
        return out

    def _with_prior(self, model: nn.Module, rows: list[dict[str, Any]], measured: bool) -> list[dict[str, Any]]:
        """The rows with the language-prior meter's columns, NaN where it was not taken; without them in a run whose
        pairs show nothing."""
        likelihood = self.likelihood
        everything = [row for some in self.pairs.values() for pair in some for row in pair.rows.values()]
        if not isinstance(likelihood, TokenLikelihood) or not any(row.media for row in everything):
            return rows
        found = {}
        for name, pairs in self.pairs.items() if measured else ():
            taken = prior.without(model, pairs, likelihood=likelihood)
            found |= {(name, pair_id): values for pair_id, values in taken.items()}
        nothing = dict.fromkeys(prior.COLUMNS, math.nan)
        return [row | nothing | found.get((row["split"], row["pair_id"]), {}) for row in rows]

    def _mass(self, scored: Scored, step: int, split: str) -> list[dict[str, Any]]:
        """Where the probability is at the first position in which chosen and rejected differ."""
        first = first_rows(scored.policy, len(scored.batch.input_ids))
        found: list[dict[str, Any]] = []
        for i, pair in enumerate(scored.pairs):
            found += self._eos_rows(scored, i, pair, {"step": step, "split": split, "pair_id": pair.pair_id})
        differ = [(i, at) for i, pair in enumerate(scored.pairs) if (at := first_difference(pair)) is not None]
        for k in range(0, len(differ), TOGETHER):
            part = differ[k : k + TOGETHER]
            probs = scored.policy.logits([first[i] + at for i, at in part]).softmax(-1)
            pairs = [scored.pairs[i] for i, _ in part]
            both = [
                tuple(row.completion_ids[at] for row in p.rows.values()) for p, (_, at) in zip(pairs, part, strict=True)
            ]
            heads = [{"step": step, "split": split, "pair_id": p.pair_id} for p in pairs]
            found += self._ledger(probs, torch.tensor(both, device=probs.device), heads)
        return found

    def _ledger(self, probs: Tensor, both: Tensor, heads: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Rows of n pairs. probs: (n, V) at their first difference; both: (n, 2) ids of the two tokens there."""
        keys = [f"{head['split']}/{head['pair_id']}" for head in heads]
        for key, now in zip(keys, probs, strict=True):
            if key not in self.start:
                self.start[key] = now.cpu().clone()
        start = torch.stack([self.start[key] for key in keys]).to(probs.device)
        change, top = probs - start, min(TOP, probs.shape[1])
        picked = [both, probs.argmax(-1, keepdim=True), change.topk(top).indices, (-change).topk(top).indices]
        ids = torch.cat(picked, 1)
        kinds = [(kind, 0) for kind in ("chosen", "rejected", "argmax")]
        kinds += [(kind, n) for kind in ("gained", "lost") for n in range(top)]
        values = [v.gather(1, ids).tolist() for v in (probs, start)]
        others = [[1.0 - two for two in v.gather(1, both).sum(1).tolist()] for v in (probs, start)]
        found = []
        for head, tokens, now, then, *other in zip(heads, ids.tolist(), *values, *others, strict=True):
            rows = zip(kinds, tokens, now, then, strict=True)
            found += [self._mass_row(head, kind, n, token, a, b) for (kind, n), token, a, b in rows]
            found.append(self._mass_row(head, "other", 0, -1, *other))
        return found

    def _eos_rows(self, scored: Scored, i: int, pair: Example, head: dict[str, Any]) -> list[dict[str, Any]]:
        """Probability of its own end token (EOS, or the end of a turn) where each completion ends."""
        ends = (
            ("chosen_eos", scored.stats.chosen, pair.chosen),
            ("rejected_eos", scored.stats.rejected, pair.rejected),
        )
        found = []
        for kind, stats, side in ends:
            if side.has_eos:
                prob = float(stats.per_token_logps[i][stats.completion_mask[i].bool()][-1].exp())
                start = self.start.setdefault(f"{kind}/{head['split']}/{pair.pair_id}", torch.tensor(prob))
                found.append(self._mass_row(head, kind, 0, side.completion_ids[-1], prob, float(start)))
        return found

    def _tracked(self, model: nn.Module, step: int) -> list[dict[str, Any]]:
        """Probability mass of each token group at the first response position of each tracked prompt."""
        found = []
        for group in batches(self.prompts, 8192, padded):
            probs = _next_token_probs(self.likelihood, model, group)
            for pair, row in zip(group, probs, strict=True):
                head = {"step": step, "split": self.sets[pair.pair_id], "pair_id": pair.pair_id}
                for name, ids in self.groups.items():
                    prob = float(row[ids].sum())
                    start = self.start.setdefault(f"group/{name}/{pair.pair_id}", torch.tensor(prob))
                    found.append(self._mass_row(head, "group", 0, -1, prob, float(start), name=name))
        return found

    def _responses(
        self, responses: Responses, model: nn.Module, step: int, pairs: list[dict[str, Any]]
    ) -> list[dict[str, Any]]:
        """Geometric mean probability of a token, exp(log-prob / length), of each answer to the followed prompts."""
        followed = {p.pair_id for p in responses.pairs}
        own = {k.removeprefix(OWN): v for k, v in self.start.items() if k.startswith(OWN)}
        values = [
            (row["pair_id"], side, row[f"{side}_logps"] / row[f"{side}_length"])
            for row in pairs
            if row["split"] == "probe" and row["pair_id"] in followed
            for side in ("chosen", "rejected")
        ]
        values += responses.measure(model, own)
        self.start |= {OWN + pair_id: ids for pair_id, ids in own.items()}
        found = []
        for pair_id, name, value in values:
            head, prob = {"step": step, "split": "probe", "pair_id": pair_id}, math.exp(value)
            start = self.start.setdefault(f"response/{name}/{pair_id}", torch.tensor(prob, dtype=torch.float64))
            found.append(self._mass_row(head, "response", 0, -1, prob, float(start), name=name))
        return found

    def _own(self, step: int, made: set[str]) -> list[dict[str, Any]]:
        """The model's own answers that were made now, as rows of samples."""
        found = []
        for key in sorted(key for key in made if key.startswith(OWN)):
            ids = self.start[key].tolist()
            text = str(self.tokenizer.decode(ids, skip_special_tokens=True))
            head = {"step": step, "round": 0, "prompt_id": key.removeprefix(OWN), "sampler": "policy, greedy"}
            found.append(head | {"sample": 0, "seed": 0, "text": text, "tokens": len(ids), "score": math.nan})
        return found

    def _mass_row(
        self, head: dict[str, Any], kind: str, rank: int, token_id: int, prob: float, start: float, name: str = ""
    ) -> dict[str, Any]:
        if token_id not in self.texts:
            self.texts[token_id] = token_text(self.tokenizer, token_id)
        return head | {
            "kind": kind,
            "name": name,
            "rank": rank,
            "token_id": token_id,
            "token": self.texts[token_id],
            "prob": prob,
            "prob_start": start,
            "change": prob - start,
        }

    def _tokens(self, scored: Scored, step: int, split: str) -> list[dict[str, Any]]:
        """One row a completion token: log-prob under policy and reference, exact KL."""
        stats, found = scored.stats, []
        sides = (("chosen", stats.chosen, stats.ref_chosen), ("rejected", stats.rejected, stats.ref_rejected))
        for side, policy, ref in sides:
            for i, pair in enumerate(scored.pairs):
                ids = pair.rows[side].completion_ids
                mask = policy.completion_mask[i].bool()
                nan = [float("nan")] * len(ids)
                logps = policy.per_token_logps[i][mask].tolist()
                refs = ref.per_token_logps[i][mask].tolist() if ref else nan
                kls = policy.per_token_kl[i][mask].tolist() if policy.per_token_kl is not None else nan
                texts = token_texts(self.tokenizer, ids)
                for k, (t, text, a, b, c) in enumerate(zip(ids, texts, logps, refs, kls, strict=True)):
                    found.append(
                        {
                            "step": step,
                            "split": split,
                            "pair_id": pair.pair_id,
                            "side": side,
                            "position": k,
                            "token_id": t,
                            "token": text,
                            "logp": a,
                            "ref_logp": b,
                            "kl": c,
                        }
                    )
        return found


def draw_rows(scored: Scored, step: int, split: str) -> list[dict[str, Any]]:
    """One row a draw of time and noise: the denoising error under policy and reference, and the deviation."""
    stats, found = scored.stats, []
    for side, policy, ref in (
        ("chosen", stats.chosen, stats.ref_chosen), ("rejected", stats.rejected, stats.ref_rejected)
    ):  # fmt: skip
        count, nan = policy.completion_mask.shape[1], torch.full_like(policy.per_token_logps, torch.nan)
        times = policy.times if isinstance(policy, DenoisingStats) and policy.times is not None else nan
        columns = {
            "time": times,
            "error": -policy.per_token_logps * count,
            "ref_error": -ref.per_token_logps * count if ref else nan,
            "deviation": policy.per_token_kl * count if policy.per_token_kl is not None else nan,
        }
        values = {name: column.double().tolist() for name, column in columns.items()}
        found += [
            {"step": step, "split": split, "pair_id": pair.pair_id, "side": side, "draw": k}
            | {name: of[i][k] for name, of in values.items()}
            for i, pair in enumerate(scored.pairs)
            for k in range(count)
        ]
    return found


def _read_start(path: Path) -> dict[str, Tensor]:
    """What the first measurement found. DataError where it cannot be read: another start would give other changes."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise DataError(
            f"{path}: the start of this run cannot be read ({error}), and without it nothing measured from here on "
            "could be compared. Restore this file, or start anew in another folder."
        ) from None


def first_difference(pair: Example) -> int | None:
    """Index of the first completion token in which the sides differ; None where one side begins with the other."""
    for k, (a, b) in enumerate(zip(pair.chosen.completion_ids, pair.rejected.completion_ids, strict=False)):
        if a != b:
            return k
    return None


def first_rows(out: Outputs, n: int) -> list[int]:
    """Index into the N predicted positions at which each of the n batch rows begins."""
    counts = out.rows.bincount(minlength=n)
    return (counts.cumsum(0) - counts).tolist()


def token_ids(tokens: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids of tokens looked up by name. Raises DataError for one that the vocabulary lacks."""
    vocabulary = tokenizer.get_vocab()
    missing = [t for t in tokens if t not in vocabulary]
    if missing:
        raise DataError(f"the track file names the token '{missing[0]}', which this tokenizer does not have.")
    return [vocabulary[t] for t in tokens]


def _prompts(track: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    """The tracked prompts, each with a completion of one token, which marks the position to look at."""
    asked = track["prompts"]
    found = tokenize_prompts([prompt["prompt"] for prompt in asked], tokenizer)
    rows = [{"next": sequences.Sequence(ids, ids[-1:], has_eos=False)} for ids in found]
    return [Example(prompt["id"], -1, row) for prompt, row in zip(asked, rows, strict=True)]


def _next_token_probs(likelihood: Likelihood, model: nn.Module, prompts: Sequence[Example]) -> Tensor:
    """(N, V) probabilities of the token after each prompt."""
    with torch.no_grad(), evaluating(model):
        return likelihood.run(model, likelihood.collate(prompts).to(device_of(model))).logits().softmax(-1)
