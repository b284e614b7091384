"""SPO: the best and the worst child of one step, as a step-aware judge sees them. arXiv 2406.04314."""

from diagnostics.stats import PairStats
from trainers.objectives import ObjectiveOutput
from trainers.objectives.d3po import d3po

NEEDS = ("reference",)
LIKELIHOOD = "steps"
PROVENANCE = "code"


def spo(pair: PairStats, *, beta: float = 10.0, clip: float = 0.1) -> ObjectiveOutput:
    """The loss of D3PO between two children of one parent at each step. arXiv 2406.04314 (SPO).

    losses = the mean over steps of -log sigmoid(beta * log r_w - beta * log r_l), r the clipped ratio of d3po; (B,),
    lower is better, log 2 where policy = reference. At each step chosen and rejected are the best and the worst of K
    children of ONE parent, by a judge that knows the step, where its softmax gap is above 0.3; a random child goes on.
    One parent means that x_t is the same on both sides: what tells them apart is x_next - mu alone.
    rewards = beta * the mean over steps of log r. beta 10, clip 0.1, K 4 (2 for SDXL), a learning rate of 6e-5, LoRA of
    rank 4 and 20 steps, of which the first 4 are left out, are the authors'.
    """
    return d3po(pair, beta=beta, clip=clip)
