"""The tiny models of tests/vlms.py, each with its family and some pairs."""

from typing import Any

import pytest
import vlms

from diagnostics.sequences import Example
from diagnostics.vision.placeholders import family_of


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return vlms.tiny_tokenizer()


@pytest.fixture(scope="session", params=vlms.NAMES)
def made(request: pytest.FixtureRequest, tokenizer: Any, tmp_path_factory: Any) -> tuple[Any, Any]:
    """A model in float64 and its family, by the processor files of a folder."""
    model, name = vlms.model_of(request.param, tokenizer), request.param
    return model, family_of(model.config, str(vlms.processor_files(tmp_path_factory.mktemp(name), name)))


@pytest.fixture
def examples(made: Any, tokenizer: Any) -> list[Example]:
    return vlms.pairs(made[1], tokenizer)
