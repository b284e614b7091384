"""Which placeholder tokens a family of vision-language models wants for an image or a clip. No torch."""

from collections.abc import Sequence
from typing import Protocol

from diagnostics.media import Kind, Media


class Family(Protocol):
    """How a family of models writes media into text."""

    @property
    def tags(self) -> dict[Kind, str]:
        """The one placeholder that the family's chat templates write for an image or a clip."""
        ...

    def expand(self, text: str, media: Sequence[Media]) -> str:
        """A rendered prompt whose i-th tag stands for the i-th of the media, with all the placeholders in its place.

        Raises DataError where the text has more or fewer tags than there are media, or another kind.
        """
        ...
