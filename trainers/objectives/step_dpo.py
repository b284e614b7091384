"""Step-DPO: DPO on the first wrong step behind a correct prefix. arXiv 2406.18629."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput
from trainers.objectives.dpo import dpo

NEEDS = ("reference", "no eos", "prefix")
PROVENANCE = "code"


def step_dpo(pair: PairStats, *, beta: float = 0.5) -> ObjectiveOutput:
    """DPO whose prompt is the question with its correct steps, and whose answers are one step. arXiv 2406.18629.

    losses = dpo(beta) = -log sigmoid(beta * (u - v)), u and v the log-ratios (policy - reference, nats, summed over
    the tokens of one reasoning step, no EOS) of the right and the wrong next step; (B,), lower is better; rewards as
    in dpo. What differs is the data: the prompt ends with the text field 'prefix', the steps both answers share, and
    no EOS is appended, as the solution goes on. The authors use beta 0.5 with 7B models over 8 epochs on 10,000 pairs.
    As in dpo both likelihoods can fall.
    """
    return dpo(pair, beta=beta)
