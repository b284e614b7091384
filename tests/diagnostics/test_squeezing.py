import pytest
import torch

from diagnostics.sequences import pair_of
from diagnostics.squeezing import confidence, negative_step, preference_step
from diagnostics.token_likelihood import TokenLikelihood

TOKENS = TokenLikelihood(0)

P = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)


def test_a_negative_step_by_hand():
    # z moves by (.5, .3, .2 - 1); .5 e^.5 = .82436, .3 e^.3 = .40496, .2 e^-.8 = .08987; Z = 1.31918, ln Z = .27701
    moved = [0.5 - 0.27701, 0.3 - 0.27701, -0.8 - 0.27701]
    assert negative_step(P, 2, 1.0).tolist() == pytest.approx(moved, abs=1e-5)


def test_a_preference_step_by_hand():
    # z moves by (1, 0, -1): .5 e = 1.35914, .3, .2 / e = .07358; Z = 1.73272, ln Z = .54969
    assert preference_step(P, 0, 2, 1.0).tolist() == pytest.approx([0.45031, -0.54969, -1.54969], abs=1e-5)


def test_the_steps_are_gradient_steps_in_the_logits():
    logits = P.log().requires_grad_()
    logps = logits.log_softmax(-1)
    (down,) = torch.autograd.grad(logps[2], logits, retain_graph=True)
    (up,) = torch.autograd.grad(logps[1], logits)
    for direction, found in ((-down, negative_step(P, 2, 0.7)), (up - down, preference_step(P, 1, 2, 0.7))):
        after = (logits.detach() + 0.7 * direction).log_softmax(-1)
        assert found.tolist() == pytest.approx((after - P.log()).tolist(), abs=1e-12)


def test_no_entry_of_a_sharp_softmax_is_lost():
    sharp = torch.tensor([1 - 1e-12, 1e-12], dtype=torch.float64)
    assert negative_step(sharp, 1, 10.0).isfinite().all()


def test_confidence_is_the_mean_over_an_answers_tokens(make_model):
    model = make_model("llama")
    pair = pair_of("a", 0, (5, 6), (7, 8, 2), (9, 2))
    other = pair_of("b", 1, (5, 6, 7, 8), (4, 3, 3, 3, 3, 2), (7, 2))
    found = {(r["pair_id"], r["side"]): r for r in confidence(model, [pair, other], likelihood=TOKENS)}
    for side, answer in (("chosen", (7, 8, 2)), ("rejected", (9, 2))):
        with torch.no_grad():
            probs = model(torch.tensor([[5, 6, *answer]])).logits[0, 1:-1].double().softmax(-1)
        top = probs.max(-1).values
        assert found["a", side]["argmax"] == pytest.approx(float(top.log().mean()), abs=1e-5)
        assert found["a", side]["rest"] == pytest.approx(float((1 - top).log().mean()), abs=1e-5)
