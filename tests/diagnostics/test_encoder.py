"""Encoder-decoder models: every number is that of one row alone in the model's own forward, in float64."""

import pytest
import torch
import transformers

from diagnostics.engine import engine_of
from diagnostics.errors import DataError
from diagnostics.forward import run, run_sides
from diagnostics.gradients.pairs import one_by_one
from diagnostics.prepare import prepare
from diagnostics.row_stats import pair_stats
from diagnostics.sampling import draw

VOCAB = 61
SIZES = dict(vocab_size=VOCAB, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
SPECIAL = dict(decoder_start_token_id=0, pad_token_id=0, eos_token_id=1)
BART = dict(
    vocab_size=VOCAB, d_model=16, encoder_layers=2, decoder_layers=2, encoder_attention_heads=2,
    decoder_attention_heads=2, encoder_ffn_dim=32, decoder_ffn_dim=32,
    max_position_embeddings=64, forced_eos_token_id=None,
)  # fmt: skip
# T5's tied head reads what the decoder gives times d_model ** -0.5; that of T5 v1.1 is untied and reads it as it is
MODELS = {
    "t5": ("T5", dict(**SIZES, relative_attention_num_buckets=4, relative_attention_max_distance=6)),
    "t5 v1.1": (
        "T5", dict(**SIZES, scale_decoder_outputs=False, tie_word_embeddings=False, feed_forward_proj="gated-gelu")
    ),
    "bart": ("Bart", BART),
}  # fmt: skip


def build(name: str, seed: int = 0) -> transformers.PreTrainedModel:
    """A random model in float64, with weights large enough that its answers differ."""
    kind, settings = MODELS[name]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{kind}Config")(**settings, **SPECIAL)
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.ndim > 1 else parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def plain(model, row) -> tuple[torch.Tensor, torch.Tensor]:
    """(n, V) log-probs at the completion of one row, and the head's inputs there, by the model's own forward."""
    seen = []
    hook = model.get_output_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))
    with torch.no_grad():
        out = model(input_ids=torch.tensor([row.prompt_ids]), labels=torch.tensor([row.completion_ids]))
    hook.remove()
    torch.testing.assert_close(out.loss, -_picked(out.logits[0].log_softmax(-1), row).mean(), atol=1e-9, rtol=0)
    return out.logits[0].log_softmax(-1), seen[0]


def _picked(logps, row) -> torch.Tensor:
    return logps[torch.arange(len(row.completion_ids)), torch.tensor(list(row.completion_ids))]


@pytest.fixture(params=sorted(MODELS))
def name(request) -> str:
    """Every model in turn."""
    return request.param


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("prepared", [False, True])
def test_numbers_are_those_of_one_row_alone(name, prepared, side, make_pairs, make_batch):
    model, reference = build(name), build(name, seed=1)
    if prepared:
        prepare(model), prepare(reference)
        assert engine_of(model).tiled
        assert not engine_of(model).packed
    pairs = make_pairs(5)[::-1]
    batch = make_batch(pairs, side)
    with torch.no_grad():
        found = pair_stats(batch, run(model, batch), run(reference, batch))
    for i, pair in enumerate(pairs):
        for one, row in ((found.chosen, pair.chosen), (found.rejected, pair.rejected)):
            (own, hidden), (ref, _) = plain(model, row), plain(reference, row)
            mask = one.completion_mask[i].bool()
            wanted = {
                "per_token_logps": _picked(own, row),
                "per_token_kl": (ref.exp() * (ref - own)).sum(-1),
                "per_token_kl_reverse": (own.exp() * (own - ref)).sum(-1),
            }
            for key, value in wanted.items():
                torch.testing.assert_close(getattr(one, key)[i][mask], value, atol=1e-9, rtol=0)
            torch.testing.assert_close(one.hidden_sum[i], hidden.sum(0), atol=1e-9, rtol=0)
            torch.testing.assert_close(one.last_hidden[i], hidden[-1], atol=1e-9, rtol=0)


def test_gradients_of_the_sides_are_those_of_one_row_alone(name, make_pairs, make_batch):
    model, pairs = build(name), make_pairs(3)
    prepare(model)
    batch, parameters = make_batch(pairs), list(model.parameters())
    found = one_by_one(model, batch, parameters)
    for i, pair in enumerate(pairs):
        sides = []
        for row in (pair.chosen, pair.rejected):
            ids, labels = torch.tensor([row.prompt_ids]), torch.tensor([row.completion_ids])
            summed = -model(input_ids=ids, labels=labels).loss * len(row.completion_ids)
            gradient = torch.autograd.grad(summed, parameters, allow_unused=True)
            sides.append(
                torch.cat(
                    [torch.zeros_like(p).flatten() if g is None else g.flatten() for p, g in zip(parameters, gradient)]
                )
            )
        torch.testing.assert_close(found.chosen_norm[i], sides[0].norm(), atol=1e-6, rtol=1e-9)
        torch.testing.assert_close(found.rejected_norm[i], sides[1].norm(), atol=1e-6, rtol=1e-9)
        torch.testing.assert_close(found.inner[i], sides[0] @ sides[1], atol=1e-6, rtol=1e-9)
    sides = run_sides(model, batch)
    torch.testing.assert_close(sides.out.hidden, run(model, batch).hidden, atol=1e-9, rtol=0)


def test_own_answers_are_those_of_generate(name):
    model = build(name)
    prepare(model)
    prompts = [(5, 9, 4, 1), (7, 1), (12, 30, 8, 22, 9, 1)]
    found = draw(model, prompts, 6, pad=0, ends={1})
    for prompt, answer in zip(prompts, found, strict=True):
        made = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False, num_beams=1)[0].tolist()
        assert tuple(made[1 : 1 + len(answer)]) == answer  # behind the decoder's start token
        assert len(answer) == 6 or answer[-1] == 1


def test_a_model_whose_numbers_depend_on_its_neighbours_is_refused():
    model = build("t5")
    encode = model.encoder.forward

    def careless(*args, **kwargs):
        return encode(*args, **(kwargs | {"attention_mask": torch.ones_like(kwargs["attention_mask"])}))

    model.encoder.forward = careless
    with pytest.raises(DataError, match="a longer one stands beside it"):
        prepare(model)


def test_a_model_without_a_start_token_is_refused(make_pairs, make_batch):
    model = build("t5")
    model.config.decoder_start_token_id = None
    with pytest.raises(DataError, match="decoder_start_token_id"):
        run(model, make_batch(make_pairs(2)))
