"""Word error rates of a set: errors summed over words summed, never an average of rates."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import jiwer
import numpy as np
from whisper_normalizer.english import EnglishTextNormalizer

DURATION_EDGES = (2.0, 5.0, 10.0, 15.0, 20.0, 30.0)
"""Seconds between the buckets of :func:`score_by_duration`."""


@dataclass(frozen=True)
class ScoredUtterance:
    """What was said and what was recognised."""

    audio: str
    """Path of the recording."""
    duration: float
    """Seconds."""
    reference: str
    """The corpus's text, as it is."""
    hypothesis: str
    """The recogniser's text, as it is."""
    speaker: str = ""
    """Speaker's name in the corpus."""
    corpus: str = ""
    """Corpus's name."""
    confidences: tuple[float, ...] = ()
    """Of the hypothesis's words, split at white space; none where they are not known."""
    times: tuple[tuple[float, float], ...] = ()
    """Seconds at which those words start and end; none where they were not asked for."""
    n_best: tuple[str, ...] = ()
    """The hypothesis and others, the best first; none where they were not asked for."""


@dataclass(frozen=True)
class WER:
    """Counts of word errors, of one utterance or, added up, of a set."""

    substitutions: int = 0
    """Words replaced by another."""
    deletions: int = 0
    """Words of the reference left out."""
    insertions: int = 0
    """Words that the reference does not have."""
    words: int = 0
    """Words of the reference."""

    @property
    def errors(self) -> int:
        """Substitutions, deletions and insertions."""
        return self.substitutions + self.deletions + self.insertions

    @property
    def hits(self) -> int:
        """Words recognised."""
        return self.words - self.substitutions - self.deletions

    @property
    def rate(self) -> float:
        """Errors over words: 0 without errors, infinite for errors where nothing was said."""
        if self.words:
            return self.errors / self.words
        return math.inf if self.errors else 0.0

    def __add__(self, other: "WER") -> "WER":
        return WER(
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
            self.words + other.words,
        )


@dataclass(frozen=True)
class DurationBucket:
    """The errors of the utterances of about one length."""

    low: float
    """Shortest duration, in seconds."""
    high: float
    """Durations are below it, in seconds; infinite in the last bucket."""
    utterances: int
    """How many there are."""
    wer: WER
    """Their errors."""


@cache
def _normalizer() -> EnglishTextNormalizer:
    return EnglishTextNormalizer()


def normalize_for_scoring(text: str) -> str:
    """Return the text as public leaderboards compare it: lower case, no punctuation, one spelling, numbers as digits.

    Source: Whisper's English normaliser (arXiv 2212.04356, appendix C), from the package whisper-normalizer.
    """
    return " ".join(_normalizer()(text).split())


def scoring_pair(utterance: ScoredUtterance, raw: bool = False) -> tuple[str, str]:
    """Return reference and hypothesis as they are compared: normalised, or (raw) only with single spaces."""
    if raw:
        return " ".join(utterance.reference.split()), " ".join(utterance.hypothesis.split())
    return normalize_for_scoring(utterance.reference), normalize_for_scoring(utterance.hypothesis)


def _align(reference: str, hypothesis: str) -> Any:
    # jiwer splits at the plain space alone
    return jiwer.process_words(" ".join(reference.split()), " ".join(hypothesis.split()))


def count_errors(reference: str, hypothesis: str) -> WER:
    """Return the fewest errors between two texts, split at white space and compared as they are."""
    output = _align(reference, hypothesis)
    words = len(output.references[0])
    return WER(output.substitutions, output.deletions, output.insertions, words)


def score_each(utterances: Sequence[ScoredUtterance], raw: bool = False) -> list[WER]:
    """Return each utterance's errors, normalised or raw (see :func:`scoring_pair`)."""
    return [count_errors(*scoring_pair(utterance, raw)) for utterance in utterances]


def score(utterances: Sequence[ScoredUtterance], raw: bool = False) -> WER:
    """Return the set's errors: each kind summed, words summed; normalised or raw (see :func:`scoring_pair`)."""
    return sum(score_each(utterances, raw), WER())


def character_error_rate(utterances: Sequence[ScoredUtterance]) -> float:
    """Return character errors over characters, each summed over the set, in the normalised texts, spaces included."""
    errors = characters = 0
    for utterance in utterances:
        reference, hypothesis = scoring_pair(utterance)
        output = jiwer.process_characters(reference, hypothesis)
        errors += output.substitutions + output.deletions + output.insertions
        characters += len(reference)
    if characters:
        return errors / characters
    return math.inf if errors else 0.0


def confidence_interval(wers: Sequence[WER], resamples: int = 1000, seed: int = 0) -> tuple[float, float]:
    """Return the 95 % interval of the set's rate: utterances drawn with replacement, the rate of each draw.

    Draws in which nothing was said are left out; without any other the interval is the rate itself.
    Source: Bisani and Ney, "Bootstrap estimates for confidence intervals in ASR performance evaluation", 2004.
    """
    errors = np.array([wer.errors for wer in wers])
    words = np.array([wer.words for wer in wers])
    if words.sum() == 0:
        rate = sum(wers, WER()).rate
        return rate, rate
    random = np.random.default_rng(seed)
    rates = []
    for _ in range(resamples):
        drawn = random.integers(0, len(wers), len(wers))
        total = words[drawn].sum()
        if total:
            rates.append(errors[drawn].sum() / total)
    low, high = np.percentile(rates, [2.5, 97.5])
    return float(low), float(high)


def paired_bootstrap(
    first: Sequence[WER], second: Sequence[WER], resamples: int = 10_000, seed: int = 0
) -> tuple[float, tuple[float, float], float]:
    """Compare two recognisers on the same utterances, in the same order.

    Returns how much lower the second one's rate is; the 95 % interval of that; and the share of draws in which it is
    not lower: below 0.05, it is better by more than chance. Draws in which nothing was said are left out. Raises
    ValueError where the utterances are not the same, or nothing was said in all of them.
    Source: as :func:`confidence_interval`.
    """
    words = np.array([wer.words for wer in first])
    if words.tolist() != [wer.words for wer in second]:
        raise ValueError("the two sets of results are not of the same utterances")
    if not words.sum():
        raise ValueError("nothing was said in any utterance: there is nothing to compare")
    gained = np.array([one.errors - other.errors for one, other in zip(first, second, strict=True)])
    random = np.random.default_rng(seed)
    sums = np.empty((resamples, 2), np.int64)
    for row in sums:
        drawn = random.integers(0, len(words), len(words))
        row[:] = gained[drawn].sum(), words[drawn].sum()
    gains = sums[sums[:, 1] > 0, 0] / sums[sums[:, 1] > 0, 1]
    low, high = np.percentile(gains, [2.5, 97.5])
    return float(gained.sum() / words.sum()), (float(low), float(high)), float((gains <= 0).mean())


def score_by_duration(
    utterances: Sequence[ScoredUtterance], wers: Sequence[WER], edges: Sequence[float] = DURATION_EDGES
) -> list[DurationBucket]:
    """Return the errors of utterances of about one length, shortest first, empty buckets left out.

    ``wers`` are :func:`score_each`'s, ``edges`` (seconds, rising) lie between the buckets: low <= duration < high.
    """
    bounds = [0.0, *edges, math.inf]
    buckets = []
    for low, high in pairwise(bounds):
        inside = [wer for utterance, wer in zip(utterances, wers, strict=True) if low <= utterance.duration < high]
        if inside:
            buckets.append(DurationBucket(low, high, len(inside), sum(inside, WER())))
    return buckets


def worst(wers: Sequence[WER], count: int) -> list[int]:
    """Return the positions of the ``count`` worst utterances that have errors: most errors first, then highest rate."""
    order = sorted(range(len(wers)), key=lambda i: (-wers[i].errors, -wers[i].rate))
    return [i for i in order[:count] if wers[i].errors]


def alignment_text(reference: str, hypothesis: str, width: int = 100) -> str:
    """Return the two texts below each other with a letter below each error, in lines of about ``width`` characters."""
    output = _align(reference, hypothesis)
    text: str = jiwer.visualize_alignment(output, show_measures=False, skip_correct=False, line_width=width)
    lines = [line.rstrip() for line in text.splitlines()]
    return "\n".join(line for line in lines if not line.startswith("=== ")).strip("\n")
