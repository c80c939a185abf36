"""What a recording says."""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

PAUSE = 0.5
"""Seconds between two words that end a segment."""
LONGEST_SEGMENT = 30.0
"""Seconds; a longer segment is split at its widest gap."""


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

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON: the score to three places."""
        return {"text": self.text, "score": round(self.score, 3)}


@dataclass(frozen=True)
class Segment:
    """Words said without a pause."""

    text: str
    """The words, separated by single spaces."""
    start: float
    """Seconds: the first word's."""
    end: float
    """Seconds: the last word's."""
    confidence: float
    """Mean of the words'."""
    words: tuple[Word, ...]
    """At least one, in order."""


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
        return _mean_confidence(self.words)

    @property
    def segments(self) -> tuple[Segment, ...]:
        """The words between pauses: a segment ends where half a second passes before the next word."""
        return segmented(self.words)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON: seconds to the millisecond, confidence to three places."""
        return {
            "text": self.text,
            "duration": self.duration,
            "confidence": round(self.confidence, 3),
            "segments": [_plain(segment) for segment in self.segments],
            "words": [_plain(word) for word in self.words],
            **({"n_best": [each.to_dict() for each in self.n_best]} if self.n_best else {}),
            "model": self.model,
        }


def segmented(words: tuple[Word, ...]) -> tuple[Segment, ...]:
    """Return words as segments, each word in one: split at pauses, and where a segment would be too long."""
    bounds = [0, *(i for i in range(1, len(words)) if _gap(words, i) >= PAUSE), len(words)]
    parts = [words[first:end] for first, end in pairwise(bounds)]
    return tuple(_segment(short) for part in parts for short in _short_enough(part) if short)


def _short_enough(words: tuple[Word, ...]) -> list[tuple[Word, ...]]:
    """Split words at the widest gap in the middle half of their time, and the two parts again, until none is long."""
    if len(words) < 2 or words[-1].end - words[0].start <= LONGEST_SEGMENT:
        return [words]
    middle, span = (words[0].start + words[-1].end) / 2, words[-1].end - words[0].start
    distances = [abs((words[i - 1].end + words[i].start) / 2 - middle) for i in range(1, len(words))]
    reach = max(span / 4, min(distances))  # where one word fills the middle: the gap that is next to it
    inner = [i for i, distance in enumerate(distances, 1) if distance <= reach]
    best = max(inner, key=lambda i: (round(_gap(words, i), 3), -distances[i - 1]))
    return _short_enough(words[:best]) + _short_enough(words[best:])


def _gap(words: tuple[Word, ...], i: int) -> float:
    return words[i].start - words[i - 1].end


def _segment(words: tuple[Word, ...]) -> Segment:
    text = " ".join(word.text for word in words)
    return Segment(text, words[0].start, words[-1].end, _mean_confidence(words), words)


def _mean_confidence(words: tuple[Word, ...]) -> float:
    return sum(word.confidence for word in words) / len(words) if words else 0.0


def _plain(part: Word | Segment) -> dict[str, Any]:
    return {
        "text": part.text,
        "start": round(part.start, 3),
        "end": round(part.end, 3),
        "confidence": round(part.confidence, 3),
    }
