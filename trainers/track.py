"""The file of tracked prompts: after which of them the probability of which groups of tokens is followed."""

from pathlib import Path
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from diagnostics.errors import DataError, UserError


class ChatMessage(BaseModel):
    """A turn of a chat."""

    role: str
    content: str


class TrackedPrompt(BaseModel):
    """A prompt, text or chat messages, after which token groups are followed; `set` names the prompts it is averaged
    with."""

    id: str
    set: str
    prompt: str | list[ChatMessage] = Field(min_length=1)


class Track(BaseModel):
    """A track file: prompts, and groups of tokens by name."""

    prompts: list[TrackedPrompt] = Field(min_length=1)
    groups: dict[str, list[str]] = Field(min_length=1)


def read_track(path: str | Path) -> dict[str, Any]:
    """A track file: {"prompts": [{"id", "set", "prompt"}], "groups": {name: [token, ...]}}."""
    try:
        return Track.model_validate_json(Path(path).read_bytes()).model_dump()
    except OSError as error:
        raise UserError(f"{path}: the track file cannot be read ({error.strerror}).") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path}: {where}: {first['msg']}. It must hold prompts (a list of objects with id, set and "
            "prompt, which is text or a list of chat messages) and groups (lists of tokens by name)."
        ) from None
