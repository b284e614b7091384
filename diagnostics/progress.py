"""Progress on a terminal: pairs done, pairs/s, tokens/s and time left. Says nothing where no person watches."""

import time
from collections.abc import Sequence

from tqdm import tqdm

from diagnostics.tokenized import TokenizedPair

_LINE = "{desc}: {percentage:3.0f}%|{bar}| {rate_fmt}, {remaining} left{postfix}"


class Progress:
    """Time left goes by tokens, because the long pairs come first. before: pairs that an earlier start has done."""

    def __init__(self, what: str, pairs: Sequence[TokenizedPair], *, before: int = 0, show: bool = True) -> None:
        self.before, self.pairs, self.done = before, len(pairs), 0
        self.started = time.monotonic()
        self.bar = tqdm(
            total=sum(map(_tokens, pairs)),
            desc=what,
            unit=" tokens",
            unit_scale=True,
            bar_format=_LINE,
            disable=None if show else True,  # None: only on a terminal
        )

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    def add(self, pairs: Sequence[TokenizedPair]) -> None:
        """Count these pairs as done."""
        self.done += len(pairs)
        rate = self.done / max(time.monotonic() - self.started, 1e-9)
        said = f"{self.before + self.done}/{self.before + self.pairs} pairs, {rate:.3g} pairs/s"
        self.bar.set_postfix_str(said, refresh=False)
        self.bar.update(sum(map(_tokens, pairs)))


def _tokens(pair: TokenizedPair) -> int:
    """Tokens that are run through the model: the prompt once, and both completions."""
    return len(pair.prompt_ids) + len(pair.chosen_ids) + len(pair.rejected_ids)
