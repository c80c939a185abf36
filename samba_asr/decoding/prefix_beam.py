"""CTC prefix beam search: the likeliest texts of one recording, each with all its paths (arXiv 1408.2873)."""

import math
import sys
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
    """Natural logarithm of its probability under CTC, the sum over the paths that the search kept; in joint search its
    whole score."""


class Paths(NamedTuple):
    """Probabilities of a prefix's paths, relative to the beam's best prefix."""

    blank: float
    """Of those that end in blank."""
    voiced: float
    """Of those that end in the prefix's last token."""


class Step(NamedTuple):
    """What CTC says of one state, relative to its best token."""

    probs: NDArray[np.float64]
    """(vocab_size,)"""
    starts: list[tuple[int, float]]
    """The tokens that may lengthen a text, with their probabilities."""


class PrefixSearch:
    """CTC prefix beam search of a recording that goes on: its states come a few at a time, and nothing is done twice.

    Every prefix that a beam has held stands in a tree: it is its parent and its last token. Its key is the parent's
    number times vocab_size plus the token, so that equal prefixes have equal keys without copying or comparing texts.

    Arguments as of :func:`ctc_prefix_beam`, whose texts are those of all states at once; raises ValueError as that
    does.
    """

    ROOT = BLANK_ID
    """Key of the empty prefix; its number is 0."""

    def __init__(self, vocab_size: int, beam_size: int, margin: float = MARGIN) -> None:
        if beam_size < 1:
            raise ValueError(f"beam_size ({beam_size}) must be positive")
        self._vocab_size, self._beam_size, self._margin = vocab_size, beam_size, margin
        self._beam = {self.ROOT: Paths(1.0, 0.0)}
        self._numbers = {self.ROOT: 0}
        self._keys = [self.ROOT]
        self._peaks = self._scales = 0.0
        """Natural logarithms of what the probabilities in the beam are relative to."""

    def advance(self, log_probs: NDArray[np.floating]) -> None:
        """Go on over the states that follow, (states, vocab_size)."""
        for step in self._steps(log_probs):
            grown = self._grow(step)
            ranked = sorted(((blank + voiced, key) for key, (blank, voiced) in grown.items()), reverse=True)
            self._keep({key: grown[key] for prob, key in ranked[: self._beam_size] if prob})

    def texts(self) -> list[Hypothesis]:
        """Return the texts of the states so far, the likeliest first."""
        scale = self._peaks + self._scales
        return [Hypothesis(self._text(key), math.log(sum(paths)) + scale) for key, paths in self._beam.items()]

    @property
    def state_bytes(self) -> int:
        """What the tree of prefixes takes of memory, about."""
        return sys.getsizeof(self._keys) + sys.getsizeof(self._numbers) + 64 * len(self._keys)

    def _steps(self, log_probs: NDArray[np.floating]) -> list[Step]:
        log_probs = np.array(log_probs, np.float64)
        log_probs[:, [BOS_ID, EOS_ID]] = -np.inf
        peaks = log_probs.max(1)
        # Each state's best token counts 1 and so does the beam's best prefix: nothing that matters underflows.
        probs = np.exp(log_probs - peaks[:, None])
        for peak in peaks.tolist():  # one by one: the sum does not depend on how many are read at once
            self._peaks += peak
        return list(map(Step, probs, _starts(probs, self._beam_size, self._margin)))

    def _grow(self, step: Step) -> dict[int, Paths]:
        """Move every prefix over one state: stay by blank or repetition, or grow by a token."""
        beam, vocab_size, probs = self._beam, self._vocab_size, step.probs
        blank = probs.item(BLANK_ID)
        voiced = {key: paths.voiced * probs.item(key % vocab_size) for key, paths in beam.items()}
        for key, paths in beam.items() if step.starts else ():
            total = paths.blank + paths.voiced
            last = key % vocab_size
            first_child = self._number(key) * vocab_size
            for token, prob in step.starts:
                # The same token again is a new one only after a blank.
                grown = (paths.blank if token == last else total) * prob
                child = first_child + token
                voiced[child] = voiced.get(child, 0.0) + grown
        return {
            key: Paths((beam[key].blank + beam[key].voiced) * blank if key in beam else 0.0, prob)
            for key, prob in voiced.items()
        }

    def _keep(self, chosen: dict[int, Paths]) -> None:
        """Go on with these prefixes, best first."""
        scale = sum(next(iter(chosen.values())))
        self._beam = {key: Paths(blank / scale, voiced / scale) for key, (blank, voiced) in chosen.items()}
        self._scales += math.log(scale)

    def _text(self, key: int) -> tuple[int, ...]:
        tokens = []
        while key != self.ROOT:
            number, token = divmod(key, self._vocab_size)
            key = self._keys[number]
            tokens.append(token)
        return tuple(reversed(tokens))

    def _number(self, key: int) -> int:
        number = self._numbers.setdefault(key, len(self._keys))
        if number == len(self._keys):
            self._keys.append(key)
        return number


def ctc_prefix_beam(log_probs: NDArray[np.floating], beam_size: int, margin: float = MARGIN) -> list[Hypothesis]:
    """Return at most ``beam_size`` texts, the likeliest first, and at least one.

    log_probs: (states, vocab_size) of one utterance, without padding. A state lengthens texts by its ``beam_size``
    best tokens at most, and by those alone that are within ``margin`` (nats) of its best one; blank and the repetition
    of a text's last token are always counted. A beam that drops no prefix, with an infinite margin, is exact. Raises
    ValueError for a beam that is not positive.
    """
    search = PrefixSearch(log_probs.shape[1], beam_size, margin)
    search.advance(log_probs)
    return search.texts()


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
