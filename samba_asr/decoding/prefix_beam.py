"""CTC prefix beam search: the likeliest texts of one recording, each with all its paths (arXiv 1408.2873)."""

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from samba_asr.decoding.greedy import UNSAID
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

MARGIN = 10.0
"""A token this many nats below its state's best one starts nothing: paths through it are lost, e^-10 of a text's."""


class Hypothesis(NamedTuple):
    """A text that the recording may hold."""

    tokens: tuple[int, ...]
    """Without special ones but the unknown."""
    log_prob: float
    """Natural logarithm of its probability under CTC: the sum over the paths that the search kept."""


class _Paths(NamedTuple):
    """Probabilities of a prefix's paths, relative to the beam's best prefix."""

    blank: float
    """Of those that end in blank."""
    voiced: float
    """Of those that end in the prefix's last token."""


class _Prefixes:
    """Every prefix that a beam has held, as a tree: a prefix is its parent and its last token.

    Its key is the parent's number times vocab_size plus the token, so that equal prefixes have equal keys without
    copying or comparing texts. The empty one has key 0 and number 0.
    """

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size = vocab_size
        self.numbers = {BLANK_ID: 0}
        self.keys = [BLANK_ID]

    def number(self, key: int) -> int:
        """Return a prefix's number; a new one where it has none."""
        number = self.numbers.setdefault(key, len(self.keys))
        if number == len(self.keys):
            self.keys.append(key)
        return number

    def text(self, key: int) -> tuple[int, ...]:
        """Return a prefix's tokens."""
        tokens = []
        while key != BLANK_ID:
            number, token = divmod(key, self.vocab_size)
            tokens.append(token)
            key = self.keys[number]
        return tuple(reversed(tokens))


def ctc_prefix_beam(log_probs: NDArray[np.floating], beam_size: int, margin: float = MARGIN) -> list[Hypothesis]:
    """Return at most ``beam_size`` texts, the likeliest first, and at least one.

    log_probs: (states, vocab_size) of one utterance, without padding. A state lengthens texts by its ``beam_size``
    best tokens at most, and by those alone that are within ``margin`` (nats) of its best one; blank and the repetition
    of a text's last token are always counted. A beam that drops no prefix, with an infinite margin, is exact.
    """
    if beam_size < 1:
        raise ValueError(f"beam_size ({beam_size}) must be positive")
    log_probs = np.array(log_probs, np.float64)
    log_probs[:, [BOS_ID, EOS_ID]] = -np.inf
    peaks = log_probs.max(1)
    # Each state's best token counts 1 and so does the beam's best prefix: nothing that matters underflows.
    probs = np.exp(log_probs - peaks[:, None])
    log_scale = float(peaks.sum())
    prefixes = _Prefixes(log_probs.shape[1])
    beam = {BLANK_ID: _Paths(1.0, 0.0)}
    for row, starts in zip(probs, _starts(probs, beam_size, margin), strict=True):
        beam, scale = _pruned(_advanced(beam, row, starts, prefixes), beam_size)
        log_scale += math.log(scale)
    return [Hypothesis(prefixes.text(key), math.log(sum(paths)) + log_scale) for key, paths in beam.items()]


def _starts(probs: NDArray[np.float64], count: int, margin: float) -> list[list[tuple[int, float]]]:
    """Return the tokens that may start at each state, with their probabilities."""
    spoken = probs.copy()
    spoken[:, UNSAID] = 0.0
    count = min(count, spoken.shape[1])
    best = np.argpartition(spoken, -count, axis=1)[:, -count:]
    values = np.take_along_axis(spoken, best, axis=1)
    floor = math.exp(-margin)
    return [
        [(token, prob) for token, prob in zip(*row, strict=True) if prob > floor]
        for row in zip(best.tolist(), values.tolist(), strict=True)
    ]


def _advanced(
    beam: dict[int, _Paths], probs: NDArray[np.float64], starts: list[tuple[int, float]], prefixes: _Prefixes
) -> dict[int, _Paths]:
    """Move every prefix over one state, probs (vocab_size,): stay by blank or repetition, or grow by a token."""
    vocab_size = prefixes.vocab_size
    blank = probs.item(BLANK_ID)
    voiced = {key: paths.voiced * probs.item(key % vocab_size) for key, paths in beam.items()}
    for key, paths in beam.items() if starts else ():
        total = paths.blank + paths.voiced
        last = key % vocab_size
        first_child = prefixes.number(key) * vocab_size
        for token, prob in starts:
            # The same token again is a new one only after a blank.
            grown = (paths.blank if token == last else total) * prob
            child = first_child + token
            voiced[child] = voiced.get(child, 0.0) + grown
    return {
        key: _Paths((beam[key].blank + beam[key].voiced) * blank if key in beam else 0.0, prob)
        for key, prob in voiced.items()
    }


def _pruned(beam: dict[int, _Paths], size: int) -> tuple[dict[int, _Paths], float]:
    """Return the ``size`` best possible prefixes, best first, over the best one's probability; and that one."""
    ranked = sorted(((blank + voiced, key) for key, (blank, voiced) in beam.items()), reverse=True)[:size]
    scale = ranked[0][0]
    return {key: _Paths(beam[key].blank / scale, beam[key].voiced / scale) for prob, key in ranked if prob}, scale
