"""What CTC says of texts that are lengthened a piece at a time, each text's paths counted whole (arXiv 1609.06773).

CTC's score of a text that goes on is that of all paths through the recording that say it first, whatever they say
next. All states are taken into account at once: no text is ahead of another.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from samba_asr.decoding.greedy import UNSAID
from samba_asr.text.tokenizer import BLANK_ID

_LEAST = -1e3
"""Natural logarithm of a probability that counts as none; sums of it over a recording keep nine digits."""


class Reached(NamedTuple):
    """How likely each text, and nothing else, is said by the end of each state: natural logarithms, (texts, states)."""

    voiced: NDArray[np.float64]
    """Of paths that end in the text's last piece."""
    blank: NDArray[np.float64]
    """Of paths that end in blank."""

    def whole(self) -> NDArray[np.float64]:
        """Return how likely each text is all that the recording says, (texts,)."""
        if not self.blank.shape[1]:
            return np.zeros(len(self.blank))  # nothing is said for certain
        return np.logaddexp(self.voiced[:, -1], self.blank[:, -1])


class PrefixScores:
    """Of one recording."""

    def __init__(self, log_probs: NDArray[np.floating]) -> None:
        """log_probs: (states, vocab_size) of CTC."""
        self._log_probs = np.maximum(np.asarray(log_probs, np.float64), _LEAST).T.copy()
        self._silence = self._log_probs[BLANK_ID].cumsum()
        self._spoken = log_sum(self._log_probs[BLANK_ID + 1 :].T)  # BLANK_ID is 0

    def begin(self) -> Reached:
        """Return what there is of one text, the empty one."""
        return Reached(np.full((1, len(self._silence)), -np.inf), self._silence[None].copy())

    def lengthen(
        self, reached: Reached, lasts: NDArray[np.int64], pieces: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], Reached]:
        """Let each text go on with a piece.

        lasts: (texts,), their last pieces, BLANK_ID of the empty one; pieces: (texts,). Returns the natural logarithms
        of how likely each state is the first to say the new piece, (texts, states), whose sum over the states is the
        longer text's score while it goes on, and what there is of it. At least one state.
        """
        own = self._log_probs[pieces]  # (texts, states)
        # The same piece again is a new one only after a blank.
        again = (lasts == pieces)[:, None]
        before = np.where(again, reached.blank, np.logaddexp(reached.blank, reached.voiced))[:, :-1]
        first = np.where(lasts == BLANK_ID, own[:, 0], -np.inf)
        said = np.concatenate([first[:, None], own[:, 1:] + before], 1)
        voiced = _carried(said, own.cumsum(1))
        left = np.full_like(said, -np.inf)
        left[:, 1:] = voiced[:, :-1] + self._log_probs[BLANK_ID, 1:]
        return said, Reached(voiced, _carried(left, self._silence[None]))

    def start(self, reached: Reached, last: Sequence[int], margin: float = np.inf) -> NDArray[np.float64]:
        """Return the score that one text would have with each piece, (vocab_size,). last: its last piece, or none.
        margin: nats; states count nothing where any piece is so much less likely to be said than in the best one."""
        before = np.concatenate([[-np.inf if last else 0.0], np.logaddexp(reached.blank, reached.voiced)[0, :-1]])
        any_piece = before + self._spoken
        states = any_piece >= any_piece.max() - margin
        scores = log_sum(self._log_probs[:, states] + before[states])
        for piece in last:
            after_blank = np.concatenate([[-np.inf], reached.blank[0, :-1]])
            scores[piece] = log_sum(self._log_probs[piece] + after_blank)
        scores[list(UNSAID)] = -np.inf
        return scores


def softened(log_probs: NDArray[np.floating], spelling_weight: float) -> NDArray[np.floating]:
    """Raise what CTC says of pieces, given that one is said, to a power; log_probs: (states, vocab_size)."""
    if spelling_weight == 1:
        return log_probs
    blank = log_probs[:, :1].astype(np.float64)
    spoken = log_sum(log_probs[:, 1:].astype(np.float64))[:, None]  # one minus blank is nothing where that rounds to 1
    return np.concatenate([blank, spoken + spelling_weight * (log_probs[:, 1:] - spoken)], 1)


def log_sum(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the logarithm of the sum of the exponentials over the last axis; minus infinity where all are."""
    best = values.max(-1, keepdims=True)
    offset = np.where(np.isfinite(best), best, 0.0)
    with np.errstate(divide="ignore"):
        result: NDArray[np.float64] = np.log(np.exp(values - offset).sum(-1)) + offset[..., 0]
    return result


def _carried(entered: NDArray[np.float64], staying: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return what has entered by each state and stayed since: x[t] = logaddexp(x[t - 1] + stay[t], entered[t]).

    staying: the running sum of stay; all (texts, states) or alike.
    """
    return staying + np.logaddexp.accumulate(entered - staying, axis=1)
