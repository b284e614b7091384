"""manifest.json: what a number in this folder means and how to get it again. No torch tensors."""

import hashlib
import importlib.metadata
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from diagnostics.outcomes import MIN_EFFECT

CONVENTIONS = {
    "logps": "sum of log-probabilities over completion tokens in nats; EOS included, prompt excluded",
    "length": "completion tokens, EOS included",
    "kl": "exact KL(reference || policy) over the vocabulary, summed over completion tokens of that side, in nats; "
    "kl_reverse is KL(policy || reference) on the same tokens",
    "ches_score": "<S+, S- - S+>, S = sum of the head's input vectors that predict the completion tokens, in float64; "
    "higher means more prone to displacement (arXiv:2410.08847, Def. 2); ln_ches_score uses means (Def. 3)",
    "grad": "gradients of the update's loss through the chosen and through the rejected log-probs, before clipping "
    "(grad/cosine below 0: they pull against each other); grad_total adds up their norms over the measured updates",
    "chosen_grad_norm": "length of the gradient of the pair's summed chosen log-prob; grad_inner is its inner product "
    "with that of the rejected one",
    "slack": "nats to the nearer edge of the disentanglement band (arXiv:2604.18239); below 0 a small step on the pair "
    "alone lowers the chosen or raises the rejected answer",
    "push_ratio": "push_ratio/log_mean: mean of log p(chosen) - log p(rejected), the log of how much harder a loss of "
    "the margin pushes the rejected probability; push_ratio/over_100: share of pairs where that is over 100 times "
    "(arXiv:2404.04626)",
    "grad_push_ratio": "on gradient steps: length of the loss's gradient in the weights through the rejected log-prob "
    "over that through the chosen one, |d_l s_l| / |d_w s_w|",
    "fell": f"a log-prob is lower by more than {MIN_EFFECT} nats per answer (a likelihood 1 % lower) and by more than "
    "the noise at the start (parity: noise or max_difference, the larger; 0 where not measured): than the "
    "reference's in steps.jsonl, than at step 0 on the pages",
    "rewards": "the objective's implicit rewards (beta * (policy - reference) log-probs for DPO)",
    "train rows": "measured in the forward pass of update `step`, with the weights before that update",
    "probe and eval rows": "measured in eval mode with the weights after `step` updates; probe pairs are training "
    "pairs, eval pairs are held out",
    "missing": "NaN where not measured, never 0",
    "weights_moved": "share of the trained weights that differ at the end from the start; n were compared",
    "dropout": "switched off in policy and reference",
}

_PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "tokenizers", "pandas", "pyarrow", "numpy")


def manifest(**content: Any) -> dict[str, Any]:
    """Versions, platform, commit and conventions, with whatever the caller adds."""
    versions = {"python": platform.python_version(), "chesboard": _version("chesboard")}
    versions |= {name: _version(name) for name in _PACKAGES}
    return {
        "versions": versions,
        "commit": _commit(),
        "platform": platform.machine(),
        "started": now(),
        **content,
        "conventions": CONVENTIONS | content.get("conventions", {}),
    }


def now() -> str:
    """The time, to the second, with its zone."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def file_hash(path: str | Path) -> str | None:
    """Content hash of a local file; None for anything else (a hub id)."""
    if not Path(path).is_file():
        return None
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Commit of this checkout, or None outside git."""
    here = Path(__file__).parent
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
