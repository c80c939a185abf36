"""What a recording says."""

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Word:
    """One word of a recording."""

    text: str
    """Without spaces."""
    start: float
    """Seconds from the begin of the recording."""
    end: float
    """Seconds; not before start, and not after the next word's."""
    confidence: float
    """How likely the word is right, from 0 to 1: in calibrated models, so many of such words are."""


@dataclass(frozen=True)
class Alternative:
    """A text that a recording may hold."""

    text: str
    """The words, separated by single spaces."""
    score: float
    """Natural logarithm of what the search gave it: only differences between texts of one recording mean something."""


@dataclass(frozen=True)
class Transcript:
    """The words of one recording."""

    text: str
    """The words, separated by single spaces; empty where nothing was heard."""
    duration: float
    """Length of the audio in seconds."""
    model: str
    """Name of the model that heard them."""
    words: tuple[Word, ...] = ()
    """The text's words, one by one, in order."""
    n_best: tuple[Alternative, ...] = ()
    """Where they were asked for, this text and others, the best first, no two alike."""

    @property
    def confidence(self) -> float:
        """How many of the words are likely right, from 0 to 1: their mean; 0 where there are none."""
        return sum(word.confidence for word in self.words) / len(self.words) if self.words else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON: seconds to the millisecond, confidence to three places."""
        words = [
            {name: round(value, 3) if isinstance(value, float) else value for name, value in each.items()}
            for each in map(dataclasses.asdict, self.words)
        ]
        return {
            "text": self.text,
            "duration": self.duration,
            "confidence": round(self.confidence, 3),
            "words": words,
            **(
                {"n_best": [{"text": each.text, "score": round(each.score, 3)} for each in self.n_best]}
                if self.n_best
                else {}
            ),
            "model": self.model,
        }
