"""The words of a denoiser's run, where verdicts and pages are written for language models: denoising errors have no
nats, tokens or KL; sampling steps have no tokens and no vocabulary."""

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from diagnostics.finding import Finding
from diagnostics.outcomes import MIN_EFFECTS

_NUMBER = r"[−+-]?[\d.]+(?:e[−-]?\d+)?"
# in this order: whole sentences first
_SAID = [
    (r"Exact KL over the vocabulary.*?(?=The frontier below)", "The deviation is a number of its own and no KL. "),
    (r"Exact divergence over the vocabulary, summed over the tokens of a chosen answer", "Mean squared difference of "
     "the outputs of policy and reference on a chosen sample"),
    (r"[Ss]um of the log-probabilities of an answer's tokens, its end included(?:, in nats)?", "minus the denoising "
     "error, mean over the draws"),
    (r"(?:Log-)?[Ll]ikelihoods are summed over the tokens of a response", "Likelihoods are minus the denoising error"),
    (r"1 nat is a factor of 2\.7", "a denoising error that rises makes it fall"),
    (r"0\.01 nats(?: \(a likelihood 1 % lower\)|(?= and more than the noise|, or the noise))",
     f"{MIN_EFFECTS['denoising']:g} of error"),
    (rf" \({_NUMBER} a token\)", ""),
    (rf"{_NUMBER} a token", ""),
    (rf", per token {_NUMBER} → {_NUMBER}", ""),
    (r"√KL(?:\(policy \|\| reference\))?", "√deviation"),
    (r"KL\((?:reference \|\| policy|policy \|\| reference)\)(?: on the chosen answer, nats)?",
     "deviation from the reference"),
    (rf"\bKL (?={_NUMBER})", "deviation "),
    (r"per (chosen|rejected) response", r"per \1 sample"),
    (r" nats lost per token", " likelihood lost"),
    (r", nats per token|,(?: in)? nats| \(nats\)", ""),
    (r"nats lost", "likelihood lost"),
    (rf"({_NUMBER}) nats", r"\1"),
    (r"log-probs?\b", "likelihood"),
]  # fmt: skip
_STEPS = [
    (r"Exact (?:KL|divergence) over the vocabulary, summed over the tokens of a chosen answer", "KL of the Gaussians of"
     " both models, mean over a sample's numbers, summed over the steps of a chosen chain"),
    (r"[Ss]um of the log-probabilities of an answer's tokens, its end included", "sum over sampling steps of the mean "
     "log-prob of a number"),
    (r"summed over the tokens of a response", "summed over the sampling steps of a response"),
    (rf" \({_NUMBER} a token\)", ""),
    (rf"{_NUMBER} a token", ""),
    (rf", per token {_NUMBER} → {_NUMBER}", ""),
]  # fmt: skip
_OF = {"denoising": _SAID, "steps": _STEPS}


def worded(text: str, config: Mapping[str, Any]) -> str:
    """A text about a language model's run, as it reads for a run with this config.json."""
    for pattern, words in _OF.get(str(config.get("likelihood")), ()):
        text = re.sub(pattern, words, text, flags=re.DOTALL)
    return text


def found(findings: list[Finding], config: Mapping[str, Any]) -> list[Finding]:
    """The same findings in these words."""
    return [replace(finding, meaning=worded(finding.meaning, config)) for finding in findings]
