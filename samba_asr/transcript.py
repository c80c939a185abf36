"""What a recording says."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Transcript:
    """The words of one recording."""

    text: str
    """The words, separated by single spaces; empty where nothing was heard."""
    duration: float
    """Length of the audio in seconds."""
    model: str
    """Name of the model that heard them."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON."""
        return dataclasses.asdict(self)
