"""What is measured between a trainer's own logs, into the log that its viewers show."""

from collections.abc import Mapping
from typing import Any

from transformers import Trainer


def show(trainer: Trainer, values: Mapping[str, Any]) -> None:
    """Log these values now, and change nothing of what the trainer itself logs: it still logs at this step if it was
    about to, and a subclass that adds what it has collected to every log (as TRL's do) is not asked."""
    due = trainer.control.should_log
    Trainer.log(trainer, dict(values))
    trainer.control.should_log = due
