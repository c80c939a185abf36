"""When the words of a text are said, and how surely, by CTC's alignment; whatever search made the text."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from samba_asr.config import WordConfig
from samba_asr.decoding.stretches import Found
from samba_asr.model.alignment import Spans, align_spans

_DOUBT = 1e-4
"""Raw probabilities are at least this and at most 1 minus this: log-odds stay finite."""


class Placed(NamedTuple):
    """The pieces of a text, or its words, in order; each (pieces,)."""

    firsts: NDArray[np.int64]
    """The state in which each is first said."""
    lasts: NDArray[np.int64]
    """The state in which it is last said."""
    log_probs: NDArray[np.float64]
    """Natural logarithm of its probability."""


def place_pieces(log_probs: NDArray[np.floating], stretches: Sequence[Found]) -> Placed:
    """Find the pieces of an utterance's stretches; CTC gives each the highest of its probabilities where it is said.

    log_probs: (states, vocab_size) of CTC; stretches: their tokens are CTC's pieces. Where a stretch has more pieces
    than CTC can say in its states, they share the states evenly.
    """
    parts = [_place_in_stretch(log_probs[found.start : found.end], found) for found in stretches if found.tokens]
    if not parts:
        nothing = np.zeros(0, np.int64)
        return Placed(nothing, nothing, np.zeros(0))
    return Placed(*map(np.concatenate, zip(*parts, strict=True)))


def _place_in_stretch(log_probs: NDArray[np.floating], found: Found) -> Placed:
    states, pieces = len(log_probs), np.array(found.tokens)
    (spans,) = align_spans(log_probs[None], [states], [found.tokens])
    firsts, lasts = spans or _evenly(states, len(pieces))
    said = [log_probs[first : last + 1, piece].max() for first, last, piece in zip(firsts, lasts, pieces, strict=True)]
    return Placed(found.start + firsts, found.start + lasts, np.array(said, np.float64))


def _evenly(states: int, count: int) -> Spans:
    bounds = states * np.arange(count + 1) // count
    return Spans(bounds[:-1], np.maximum(bounds[1:] - 1, bounds[:-1]))


def place_words(words: Sequence[str], pieces: Sequence[str], placed: Placed) -> Placed:
    """Return where a text's words are said, and the probability of each: the geometric mean of its pieces'.

    words: without spaces; pieces: texts of the pieces in which CTC spells them, at least one of them with a letter;
    placed: the same pieces. A word begins with the piece that has its first letter and ends with the one that has its
    last; were there more letters in the words than in the pieces, or fewer, each would count in proportion.
    """
    spelt = np.cumsum([len("".join(piece.split())) for piece in pieces])
    lengths = np.array([len(word) for word in words], np.int64)
    ends = np.cumsum(lengths)
    starts, ends = (count * spelt[-1] // ends[-1] for count in (ends - lengths, ends))
    firsts = spelt.searchsorted(np.minimum(starts, spelt[-1] - 1), "right")
    lasts = np.maximum(spelt.searchsorted(ends), firsts)
    means = [placed.log_probs[first : last + 1].mean() for first, last in zip(firsts, lasts, strict=True)]
    return Placed(placed.firsts[firsts], placed.lasts[lasts], np.array(means, np.float64))


def word_times(
    words: Placed, seconds_per_state: float, duration: float, config: WordConfig
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the seconds at which words start and end, each (words,): within the recording's duration, no word ending
    before it starts or after the next one does."""
    starts = np.clip(words.firsts * seconds_per_state + config.start_shift, 0.0, duration)
    ends = (words.lasts + 1) * seconds_per_state + config.end_shift
    return starts, np.clip(ends, starts, np.append(starts[1:], duration))


def confidence(log_probs: NDArray[np.floating], config: WordConfig) -> NDArray[np.float64]:
    """Return how likely words are right, (words,), from the natural logarithms of their raw probabilities, (words,)."""
    raw = np.clip(np.exp(log_probs), _DOUBT, 1 - _DOUBT)
    odds = config.confidence_scale * np.log(raw / (1 - raw)) + config.confidence_bias
    certain: NDArray[np.float64] = 1 / (1 + np.exp(-odds))
    return certain
