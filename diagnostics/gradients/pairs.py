"""Every pair's own gradients, without ever holding one: |s_w|, |s_l| and <s_w, s_l>.

s_w and s_l are the gradients of a pair's summed log-probs, chosen and rejected. The gradient of a linear layer's weight
is the sum over tokens of output gradient times input, so one product a side that stops at the layers' outputs gives
them all: layer by layer each pair's share is made, measured, and added to the batch's. For the head the output gradient
is the prediction error e_y - p (before the head's scale or cap, whatever they are).

This way is taken only if it agrees with plain autograd, pair by pair, on a small random batch (`choose_way`).
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import layer_norm
from transformers.pytorch_utils import Conv1D

from diagnostics.batch import Batch
from diagnostics.engine import head_of, innermost
from diagnostics.forward import Outputs, Sides, run_sides
from diagnostics.gradients.whole import Gradient, head_gradients, products, pull_sides
from diagnostics.prepare import trial
from diagnostics.stats import wide

FAST, SLOW = "from activations and output gradients", "plain autograd, pair by pair"

Both = tuple[Tensor, Tensor]  # of chosen and of rejected


@dataclass(frozen=True)
class PairGradients:
    """(B,) float64 each: lengths of a pair's gradients s_w and s_l, and their inner product."""

    chosen_norm: Tensor
    rejected_norm: Tensor
    inner: Tensor

    @property
    def columns(self) -> dict[str, Tensor]:
        """By their names in the `pairs` table."""
        names = ("chosen_grad_norm", "rejected_grad_norm", "grad_inner")
        return dict(zip(names, (self.chosen_norm, self.rejected_norm, self.inner), strict=True))


class Activations:
    """What went into and came out of every module that owns trained parameters, pass by pass."""

    def __init__(self, model: nn.Module, parameters: Sequence[Tensor]) -> None:
        wanted = {id(p) for p in parameters}
        self.head = head_of(model)
        owners = [m for m in model.modules() if any(id(p) in wanted for p in m.parameters(recurse=False))]
        self.modules = [m for m in owners if m is not self.head]
        self.calls: dict[nn.Module, list[tuple[Tensor, Tensor]]] = {m: [] for m in self.modules}

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Look on while open."""

        def look(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            self.calls[module].append((args[0], output))

        handles = [m.register_forward_hook(look) for m in self.modules]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


class Tally:
    """Adds up what each parameter contributes to the pairs' inner products, and to the batch's two gradients.

    weights: (2, B) slope of the loss in each side's log-prob, or None where the batch's gradients are not wanted.
    """

    def __init__(self, count: int, weights: Tensor | None, device: torch.device) -> None:
        self.triples = torch.zeros(3, count, dtype=wide(device), device=device)  # <w, w>, <l, l>, <w, l>
        self.weights = weights
        self.factors: Any = None if weights is None else weights.tolist()  # read once: each reading waits for a GPU
        self.sums: tuple[dict[int, Tensor], dict[int, Tensor]] = ({}, {})

    def inner(self, i: Any, chosen: Tensor, rejected: Tensor, *, more: Both | None = None) -> None:
        """Add inner products of one pair's gradients; more: of a second pair of tensors with the first, both ways."""
        if more is None:
            ends = ((chosen, chosen), (rejected, rejected), (chosen, rejected))
            found = [_dot(a, b) for a, b in ends]
        else:
            other, last = more
            found = [2 * _dot(chosen, other), 2 * _dot(rejected, last), _dot(chosen, last) + _dot(other, rejected)]
        self.triples[:, i] += torch.stack(found)

    def products(self, i: Any, chosen: Both, rejected: Both) -> None:
        """Add inner products of one pair's gradients in a matrix, each a side's inputs and output gradients (tokens,
        numbers): over pairs of tokens while those are few, else from the matrices themselves."""
        (x, g), (z, f) = chosen, rejected
        n, (d, e) = len(x), (x.shape[1], g.shape[1])
        if (n + len(z)) * (d + e) > 2 * d * e:
            self.inner(i, g.T @ x, f.T @ z)
            return
        both, pulled = torch.cat([x, z]), torch.cat([g, f])
        found = (both @ both.T) * (pulled @ pulled.T)
        parts = (found[:n, :n], found[n:, n:], found[:n, n:])
        self.triples[:, i] += torch.stack([p.sum(dtype=self.triples.dtype) for p in parts])

    def of_tokens(self, side: int, pairs: Tensor) -> Tensor:
        """(tokens,) slope of the loss in the log-prob of the pair that each token belongs to; 0 of padding (-1)."""
        assert self.weights is not None
        return torch.cat([self.weights[side], self.weights.new_zeros(1)])[pairs]

    def vectors(self, parameter: Tensor, both: Both) -> None:
        """(B, d) gradients of all pairs in a parameter of d numbers."""
        chosen, rejected = (v.to(self.triples.dtype) for v in both)
        self.triples += torch.stack([(chosen**2).sum(-1), (rejected**2).sum(-1), (chosen * rejected).sum(-1)])
        if self.weights is not None:
            for side, gradient in enumerate(both):
                self.into(side, parameter).add_((self.weights[side].to(gradient) @ gradient).view_as(parameter))

    def into(self, side: int, parameter: Tensor) -> Tensor:
        """Where the batch's gradient in a parameter is added up."""
        if id(parameter) not in self.sums[side]:
            dtype = torch.promote_types(parameter.dtype, torch.float32)  # sums over pairs would round away in bfloat16
            self.sums[side][id(parameter)] = torch.zeros_like(parameter, dtype=dtype)
        return self.sums[side][id(parameter)]

    def pairs(self) -> PairGradients:
        """Lengths and inner products."""
        chosen, rejected, inner = self.triples
        return PairGradients(chosen.clamp(min=0).sqrt(), rejected.clamp(min=0).sqrt(), inner)

    def gradients(self, parameters: Sequence[Tensor]) -> tuple[Gradient, Gradient]:
        """The batch's gradients through chosen and through rejected."""
        chosen, rejected = (
            [None if (found := sums.get(id(p))) is None else found.to(p.dtype) for p in parameters]
            for sums in self.sums
        )
        return chosen, rejected


def choose_way(model: nn.Module, parameters: Sequence[Tensor], *, head: bool) -> str:
    """FAST where it gives, on a small random batch, what plain autograd gives; else SLOW."""
    batch = trial(innermost(model))
    try:
        fast = from_head(model, run_sides(model, batch).out) if head else all_alone(model, batch, parameters)
        slow = one_by_one(model, batch, parameters, head=head)
    except Exception:  # a kind of module that the fast way does not know
        return SLOW
    near = [torch.allclose(a, b, rtol=0.02, atol=1e-6) for a, b in zip(vars(fast).values(), vars(slow).values())]
    return FAST if all(near[:2]) and _near(fast, slow) else SLOW


def from_activations(
    sides: Sides, seen: Activations, parameters: Sequence[Tensor], weights: Tensor | None, *, keep: bool
) -> tuple[PairGradients, tuple[Gradient, Gradient]]:
    """All pairs' gradients, and with weights (2, B) the batch's, in one product a side. keep: keep the graph."""
    spans = _spans(sides)
    count = len(spans[0])
    tally = Tally(count, weights, sides.out.hidden.device)
    wanted = {id(p) for p in parameters}
    tied = next((m for m in seen.modules if _shares(m, seen.head)), None)
    pulled, shared = _head(tally, seen, sides.out, count, wanted, spans, tied)
    middle = len(sides.chosen)
    gradients = [
        _outputs(seen, hidden, part, passes, keep or side == 0)
        for side, (hidden, part, passes) in enumerate(
            zip((sides.chosen, sides.rejected), (pulled[:middle], pulled[middle:]), sides.passes, strict=True)
        )
    ]
    with torch.no_grad(), torch.autocast(sides.out.hidden.device.type, enabled=False):
        for module in seen.modules:
            rows = _Rows(module, seen.calls[module], [g[module] for g in gradients], sides)
            _CONTRIBUTE[_kind(module)](tally, module, rows, spans, shared if module is tied else None)
    return tally.pairs(), tally.gradients(parameters)


def from_head(model: nn.Module, out: Outputs) -> PairGradients:
    """All pairs' gradients in the head's parameters, as far as they act there."""
    count = (int(out.rows.max()) + 1) // 2
    tally, head = Tally(count, None, out.hidden.device), head_of(model)
    seen = Activations(model, [])
    _head(tally, seen, out, count, {id(p) for p in head.parameters()}, None, None)
    return tally.pairs()


def one_by_one(model: nn.Module, batch: Batch, parameters: Sequence[Tensor], *, head: bool = False) -> PairGradients:
    """The same by plain autograd, a pass for every pair."""
    rows = []
    groups = ["all"] * len(parameters)
    for i in range(len(batch.pair_ids)):
        sides = run_sides(model, _single(batch, i))
        ones, middle = torch.ones_like(sides.out.hidden[:, 0]), len(sides.chosen)
        if head:
            parts = (slice(middle), slice(middle, None))
            one, other = (head_gradients(sides.out.part(p), ones[p], parameters)[1] for p in parts)
        else:
            one, other = pull_sides(sides, ones, parameters, keep=False)
        rows.append([products(a, b, groups)[""] for a, b in ((one, one), (other, other), (one, other))])
    found = torch.tensor(rows, dtype=wide(batch.input_ids.device), device=batch.input_ids.device).T
    return PairGradients(found[0].sqrt(), found[1].sqrt(), found[2])


def by_pair(weights: Tensor, out: Outputs) -> Tensor | None:
    """(2, B) slopes of the loss in the sides' log-probs, if every token of a side has the same; else None."""
    table = weights.new_zeros(2 * ((int(out.rows.max()) + 2) // 2))
    table[out.rows] = weights
    return table.view(2, -1) if bool((table[out.rows] == weights).all()) else None


class _Rows:
    """One module's inputs and output gradients as rows (tokens, numbers), by side and pass."""

    def __init__(
        self, module: nn.Module, calls: list[tuple[Tensor, Tensor]], found: list[dict[int, Tensor]], sides: Sides
    ) -> None:
        if len(calls) != len(sides.pairs):
            raise ValueError("a module runs more or less than once a pass")
        parameter = next(module.parameters(recurse=False))
        self.dtype = torch.promote_types(parameter.dtype, torch.float32)
        self.pairs, ids = sides.pairs, isinstance(module, nn.Embedding)
        axis = 1 if ids else _token_axis([x for x, _ in calls], sides)
        self.inputs = [x.flatten() if ids else self._by_token(x, axis) for x, _ in calls]
        self.gradients = [{p: self._by_token(g, axis) for p, g in side.items()} for side in found]
        if [len(x) for x in self.inputs] != [len(p) for p in sides.pairs]:
            raise ValueError("a module does not run on every token")

    def _by_token(self, x: Tensor, axis: int) -> Tensor:
        """(tokens, numbers), or (tokens, heads, numbers) where a module runs on heads."""
        return x.transpose(1, axis).flatten(0, 1).to(self.dtype)

    def of(self, side: int, spans: Any, i: int) -> tuple[Tensor, Tensor]:
        """Inputs and output gradients of one side of one pair."""
        parts = [(self.inputs[p][spans[p][i]], g[spans[p][i]]) for p, g in self.gradients[side].items()]
        return torch.cat([x for x, _ in parts]), torch.cat([g for _, g in parts])

    def per_pair(self, side: int, values: dict[int, Tensor], count: int) -> Tensor:
        """(B, d) sums over the tokens of each pair of values (tokens, d) by pass."""
        first = next(iter(values.values()))
        sums = first.new_zeros(count + 1, first.shape[1])  # padding goes to the last row
        for p, v in values.items():
            sums.index_add_(0, self.pairs[p] % (count + 1), v)
        return sums[:count]


def _linear(tally: Tally, module: nn.Module, rows: _Rows, spans: Any, _: Any) -> None:
    weight: Any = module.weight
    count = tally.triples.shape[1]
    if weight.requires_grad:
        for i in range(count):
            tally.products(i, rows.of(0, spans, i), rows.of(1, spans, i))
        for side in (0, 1) if tally.weights is not None else ():
            for p, g in rows.gradients[side].items():
                x, into = rows.inputs[p], tally.into(side, weight)
                scaled = g * tally.of_tokens(side, rows.pairs[p]).to(g)[:, None]
                into.addmm_(*((x.T, scaled) if isinstance(module, Conv1D) else (scaled.T, x)))
    _bias(tally, module, rows, count)


def _bias(tally: Tally, module: nn.Module, rows: _Rows, count: int) -> None:
    bias: Any = module.bias
    if bias is not None and bias.requires_grad:
        chosen, rejected = (rows.per_pair(side, rows.gradients[side], count) for side in (0, 1))
        tally.vectors(bias, (chosen, rejected))


def _norm(tally: Tally, module: nn.Module, rows: _Rows, spans: Any, _: Any) -> None:
    """A norm's scale (and bias): one gradient a token, made by giving every token a scale of its own."""
    count, weight = tally.triples.shape[1], module.weight
    found = []
    for side in (0, 1):
        values = {p: _scale_gradient(module, rows.inputs[p], g) for p, g in rows.gradients[side].items()}
        found.append(rows.per_pair(side, values, count))
    tally.vectors(weight, (found[0], found[1]))  # type: ignore[arg-type]
    if getattr(module, "bias", None) is not None:
        _bias(tally, module, rows, count)


def _scale_gradient(module: Any, x: Tensor, g: Tensor) -> Tensor:
    """(tokens, d) gradient in the scale; heads share it."""
    if x.ndim == 3:
        return _scale_gradient(module, x.flatten(0, 1), g.flatten(0, 1)).unflatten(0, x.shape[:2]).sum(1)
    if isinstance(module, nn.LayerNorm):
        return layer_norm(x, module.normalized_shape, None, None, module.eps) * g
    with torch.enable_grad():
        scale = module.weight.detach().to(x.dtype).expand(len(x), -1).clone().requires_grad_()
        return torch.autograd.grad(functional_call(module, {"weight": scale}, (x,)), scale, g)[0]


def _embedding(tally: Tally, module: nn.Module, rows: _Rows, spans: Any, shared: Any) -> None:
    """Rows of the table that a pair reads; shared: what the head pulls on the same rows, where it is the same table."""
    weight: Any = module.weight
    own = [{p: _row_gradient(module, rows.inputs[p], g) for p, g in rows.gradients[s].items()} for s in (0, 1)]
    for i in range(tally.triples.shape[1]):
        table = _ids(rows.inputs, spans, i)
        made = []
        for side in (0, 1):
            sums = weight.new_zeros(len(table), weight.shape[1], dtype=rows.dtype)
            for p, g in own[side].items():
                ids = rows.inputs[p][spans[p][i]]
                sums.index_add_(0, torch.searchsorted(table, ids), g[spans[p][i]])
            made.append(sums)
            if tally.weights is not None:
                into = tally.into(side, weight)
                into.index_add_(0, table, sums.to(into.dtype), alpha=tally.factors[side][i])
        tally.inner(i, *made)
        if shared is not None:
            tally.inner(i, *made, more=shared[i])


def _row_gradient(module: Any, ids: Tensor, g: Tensor) -> Tensor:
    """(tokens, D) gradient in the table's row that each token reads; some tables scale what they give."""
    first = 0 if module.padding_idx is None else module.padding_idx + 1
    with torch.enable_grad():
        table = module.weight.detach()[torch.cat([ids.new_zeros(first), ids])].to(g.dtype).requires_grad_()
        read = functional_call(module, {"weight": table}, (torch.arange(first, len(table), device=ids.device),))
        found = torch.autograd.grad(read, table, g)[0][first:]
    return found if module.padding_idx is None else torch.where((ids == module.padding_idx)[:, None], 0.0, found)


def _head(
    tally: Tally, seen: Activations, out: Outputs, count: int, wanted: set[int], spans: Any, tied: nn.Module | None
) -> tuple[Tensor, list[Both]]:
    """The head's share, in groups of pairs whose logits fit one tile. Returns what sum(log-probs) pulls on the hidden
    states, (N, D), and for a tied table what the head pulls on the rows that each pair reads."""
    head: Any = seen.head
    if type(head) is not nn.Linear:
        raise ValueError("the head is not a plain linear layer")
    pulled, shared = torch.zeros_like(out.hidden), list[Both]()
    starts = torch.searchsorted(out.rows, torch.arange(2 * count + 1, device=out.rows.device)).tolist()
    for group in _groups(starts, count, out.tiles()[0].stop):
        index = [torch.arange(starts[r], starts[r + 1]) for r in (*group, *(count + i for i in group))]
        sizes, where = [len(x) for x in index], torch.cat(index).to(out.hidden.device)
        errors = _errors(head, out.part(where))
        with torch.no_grad(), torch.autocast(out.hidden.device.type, enabled=False):
            pulled[where] = (errors.to(head.weight.dtype) @ head.weight).to(pulled.dtype)
            hidden = out.hidden[where].to(errors.dtype)
            pieces = list(zip(errors.split(sizes), hidden.split(sizes), strict=True))
            if id(head.weight) in wanted:
                _head_weight(tally, head, group, pieces, errors, hidden)
            if id(head.bias) in wanted:
                _head_bias(tally, head, group, pieces)
            if tied is not None:
                inputs = [x.flatten() for x, _ in seen.calls[tied]]
                for k, i in enumerate(group):
                    table = _ids(inputs, spans, i)
                    one, other = (pieces[k + side * len(group)] for side in (0, 1))
                    shared.append((one[0][:, table].T @ one[1], other[0][:, table].T @ other[1]))
    return pulled, shared


def _head_weight(
    tally: Tally, head: Any, group: Sequence[int], pieces: list[Both], errors: Tensor, hidden: Tensor
) -> None:
    size = len(group)
    for k, i in enumerate(group):
        (e, h), (f, j) = pieces[k], pieces[k + size]
        tally.products(i, (h, e), (j, f))
    if tally.weights is None:
        return
    middle = sum(len(e) for e, _ in pieces[:size])
    for side, part in enumerate((slice(middle), slice(middle, None))):
        counts = torch.tensor([len(e) for e, _ in pieces[side * size : (side + 1) * size]], device=errors.device)
        scale = tally.weights[side, list(group)].to(hidden.dtype).repeat_interleave(counts)
        into = tally.into(side, head.weight)
        into.addmm_(errors[part].T.to(into.dtype), (hidden[part] * scale[:, None]).to(into.dtype))


def _head_bias(tally: Tally, head: Any, group: Sequence[int], pieces: list[Both]) -> None:
    for k, i in enumerate(group):
        sums = [pieces[k + side * len(group)][0].sum(0) for side in (0, 1)]
        tally.inner(i, sums[0], sums[1])
        if tally.weights is not None:
            for side in (0, 1):
                tally.into(side, head.bias).add_(sums[side], alpha=tally.factors[side][i])


def _errors(head: nn.Module, out: Outputs) -> Tensor:
    """(n, V) derivative of each target's log-prob in the head's own output: e_y - p where nothing follows the head."""
    seen: list[Any] = []
    handle = head.register_forward_hook(lambda m, args, output: seen.append(output))
    found = []
    try:
        for tile in out.tiles():
            part = out.part(tile)
            with torch.enable_grad():
                logits = replace(part, hidden=part.hidden.detach().requires_grad_()).logits()
            with torch.no_grad():
                errors = logits.softmax(-1).neg_()
                errors[torch.arange(len(errors), device=errors.device), part.targets] += 1
            made = seen.pop()
            if made.data_ptr() != logits.data_ptr():
                errors = torch.autograd.grad(logits, made, errors)[0].view_as(errors).to(errors.dtype)
            found.append(errors)
    finally:
        handle.remove()
    return found[0] if len(found) == 1 else torch.cat(found)


def _groups(starts: list[int], count: int, room: int) -> Iterator[list[int]]:
    """Pairs together as long as their rows fit into one tile; a pair that does not fit stands alone."""
    group, used = [], 0
    for i in range(count):
        size = starts[i + 1] - starts[i] + starts[count + i + 1] - starts[count + i]
        if group and used + size > room:
            yield group
            group, used = [], 0
        group.append(i)
        used += size
    yield group


def _token_axis(inputs: list[Tensor], sides: Sides) -> int:
    """The axis after the batch's that counts tokens, in inputs (rows, tokens, ...) or (rows, heads, tokens, ...)."""
    fits = [
        a
        for a in (1, 2)
        if all(x.ndim > a + 1 and x.shape[0] * x.shape[a] == len(p) for x, p in zip(inputs, sides.pairs, strict=True))
    ]
    if len(fits) != 1:
        raise ValueError("a module does not run on every token, or it cannot be told which axis counts them")
    return fits[0]


def _outputs(
    seen: Activations, hidden: Tensor, pulled: Tensor, passes: tuple[int, ...], keep: bool
) -> dict[nn.Module, dict[int, Tensor]]:
    """Gradients of one side's sum(log-probs) in the modules' outputs, by module and pass."""
    places = [(m, p) for m in seen.modules for p in passes]
    outputs = [seen.calls[m][p][1] for m, p in places]
    found = torch.autograd.grad(hidden, outputs, pulled, retain_graph=keep, allow_unused=True) if outputs else ()
    made: dict[nn.Module, dict[int, Tensor]] = {m: {} for m in seen.modules}
    for (m, p), output, gradient in zip(places, outputs, found, strict=True):
        made[m][p] = torch.zeros_like(output) if gradient is None else gradient
    return made


def _spans(sides: Sides) -> list[list[slice]]:
    """By pass and pair: where the pair's tokens stand."""
    count = 1 + max(int(p.max()) for p in sides.pairs)
    found = []
    for pairs in (p.cpu() for p in sides.pairs):
        places = [(pairs == i).nonzero().flatten().tolist() for i in range(count)]
        found.append([slice(at[0], at[-1] + 1) if at else slice(0) for at in places])
    return found


def _ids(inputs: list[Tensor], spans: Any, i: int) -> Tensor:
    """Sorted ids of all tokens that a pair feeds to a table."""
    return torch.cat([x[span[i]] for x, span in zip(inputs, spans, strict=True)]).unique()


def _single(batch: Batch, i: int) -> Batch:
    """A batch of one pair."""
    rows = [i, len(batch.pair_ids) + i]
    values = {k: v[rows] for k, v in vars(batch).items() if isinstance(v, Tensor)}
    lengths = tuple(batch.lengths[row] for row in rows) if batch.lengths is not None else None
    other = 0 if not batch.first or batch.first[rows[0]][0] == batch.first[rows[1]][0] else 1  # a prompt of its own
    seen = batch.visual.of(rows) if batch.visual is not None else None
    first = ((0, 0), (other, 1))
    return replace(batch, **values, pair_ids=(batch.pair_ids[i],), lengths=lengths, first=first, visual=seen)


def all_alone(model: nn.Module, batch: Batch, parameters: Sequence[Tensor]) -> PairGradients:
    """All pairs' gradients by one forward and two backward passes, where `choose_way` says FAST."""
    seen = Activations(model, parameters)
    with seen.watch():
        sides = run_sides(model, batch)
    return from_activations(sides, seen, parameters, None, keep=False)[0]


def _near(fast: PairGradients, slow: PairGradients) -> bool:
    """Inner products, against the size that they could have."""
    return bool(((fast.inner - slow.inner).abs() <= 0.02 * slow.chosen_norm * slow.rejected_norm + 1e-6).all())


def _kind(module: nn.Module) -> str:
    if type(module) in (nn.Linear, Conv1D):
        return "linear"
    if isinstance(module, nn.Embedding):
        return "embedding"
    if isinstance(module, nn.LayerNorm) or ("Norm" in type(module).__name__ and hasattr(module, "weight")):
        return "norm"
    raise ValueError(f"{type(module).__name__} is not known")


def _shares(module: nn.Module, head: nn.Module) -> bool:
    """Whether it is the table of tied embeddings."""
    return isinstance(module, nn.Embedding) and module.weight is getattr(head, "weight", None)


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a, b).sum(dtype=wide(a.device))


_CONTRIBUTE = {"linear": _linear, "norm": _norm, "embedding": _embedding}
