"""Whether words are as often right as their confidence says, and how to make it so."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import jiwer
import numpy as np
from numpy.typing import NDArray

from samba_asr.evaluation.wer import normalize_for_scoring

BINS = 15
"""Of equally many words each."""
_DOUBT = 1e-4
"""Confidences are at least this and at most 1 minus this where log-odds are made of them."""
_STEPS, _RIDGE = 50, 1e-6


class Bin(NamedTuple):
    """Words of about one confidence."""

    confidence: float
    """Their mean."""
    right: float
    """The share of them that is right."""
    words: int


@lru_cache(maxsize=20_000)
def _normalized(word: str) -> tuple[str, ...]:
    return tuple(normalize_for_scoring(word).split())


def judge(reference: str, hypothesis: str) -> list[bool | None]:
    """Return for each word of a hypothesis, split at white space, whether it is right; None where that cannot be said.

    Right are the words that jiwer's alignment with the reference finds in it, both normalised word by word. Nothing can
    be said of a word of which normalisation leaves nothing, such as "uh".
    """
    words = [_normalized(word) for word in hypothesis.split()]
    said = " ".join(part for word in reference.split() for part in _normalized(word))
    (chunks,) = jiwer.process_words(said, " ".join(part for word in words for part in word)).alignments
    hits = {i for chunk in chunks if chunk.type == "equal" for i in range(chunk.hyp_start_idx, chunk.hyp_end_idx)}
    ends = np.cumsum([len(word) for word in words]).tolist()
    return [
        hits.issuperset(range(end - len(word), end)) if word else None for word, end in zip(words, ends, strict=True)
    ]


def reliability(confidences: Sequence[float], right: Sequence[bool], bins: int = BINS) -> list[Bin]:
    """Return words in at most ``bins`` bins, the least confident first; of equally many, up to one."""
    order = np.argsort(np.asarray(confidences), kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    certain, hits = np.asarray(confidences, np.float64), np.asarray(right, np.float64)
    return [Bin(float(certain[part].mean()), float(hits[part].mean()), len(part)) for part in parts]


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Return by how much confidence and the share of right words differ, in the mean over words; 0 without words.

    Source: Naeini et al., "Obtaining well calibrated probabilities using Bayesian binning", 2015.
    """
    words = sum(each.words for each in bins)
    return sum(each.words * abs(each.confidence - each.right) for each in bins) / words if words else 0.0


def fit_logistic(confidences: Sequence[float], right: Sequence[bool]) -> tuple[float, float]:
    """Return the scale and the bias of the log-odds of confidences with which right words are likeliest.

    Source: Platt, "Probabilistic outputs for support vector machines", 1999; by Newton's method. Raises ValueError
    where no word is right, or none is wrong.
    """
    hits = np.asarray(right, np.float64)
    if not len(hits) or hits.min() == hits.max():
        raise ValueError(f"of {len(hits)} words {int(hits.sum())} are right: calibration needs right and wrong ones")
    raw = np.clip(np.asarray(confidences, np.float64), _DOUBT, 1 - _DOUBT)
    inputs = np.stack([np.log(raw / (1 - raw)), np.ones_like(raw)], 1)
    weights: NDArray[np.float64] = np.zeros(2)
    for _ in range(_STEPS):
        certain = 1 / (1 + np.exp(-inputs @ weights))
        slope = inputs.T @ (hits - certain) - _RIDGE * weights
        bend = (inputs * (certain * (1 - certain))[:, None]).T @ inputs + _RIDGE * np.eye(2)
        weights = weights + np.linalg.solve(bend, slope)
    return float(weights[0]), float(weights[1])
