"""When pieces are said, as far as CTC tells on the way: where a decoder that listens by windows has to listen."""

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from samba_asr.model.alignment import listening_place
from samba_asr.text.tokenizer import BLANK_ID

SPOKEN = 0.5
"""Probability of a new piece from which on one is expected."""
LATEST = 4
"""States in which a piece is sought after its first mention."""
DOUBT = 0.1
"""Probability that a piece which CTC hears is another one, in the eyes of a decoder that decides by itself."""
_LEAST = 1e-10


class Timing:
    """Of one recording."""

    def __init__(self, log_probs: NDArray[np.floating]) -> None:
        """log_probs: (states, vocab_size) of CTC."""
        self._probs = np.exp(np.asarray(log_probs, np.float64))
        self._states = len(self._probs)
        spoken = 1 - self._probs[:, BLANK_ID]
        self._spoken = [(state, spoken.item(state)) for state in np.flatnonzero(spoken > SPOKEN).tolist()]

    def begin(self) -> int:
        """Return where to listen for a text's first token."""
        return listening_place(0, self._expected(0, BLANK_ID))

    def after(self, piece: int, mentioned: int, now: int) -> int:
        """Return where to listen for what follows a piece that CTC first took into account in one state, seen from
        another: both count from 0, the number of states being the end."""
        end = min(max(now, mentioned) + 1, mentioned + LATEST)
        said = mentioned + int(self._probs[mentioned:end, piece].argmax()) if mentioned < self._states else mentioned
        return self.following(said, piece)

    def following(self, said: int, piece: int) -> int:
        """Return where to listen for what follows a piece that is said in a state."""
        return listening_place(said, self._expected(said + 1, piece))

    def _expected(self, state: int, last: int) -> int:
        """Return the first state from one on that says another piece than the last, or the end."""
        first = bisect_left(self._spoken, (state,))
        for place, spoken in self._spoken[first:]:
            if last == BLANK_ID or spoken - self._probs.item(place, last) > SPOKEN:
                return place
        return self._states


class Follower:
    """Finds a text's pieces in a recording, one after the other, where a decoder writes by itself.

    The state of a piece is where it is first said on the likeliest path through it and all before it
    (:func:`samba_asr.model.alignment.align` knows the pieces after it too); CTC may have heard another in its stead.
    """

    def __init__(self, log_probs: NDArray[np.floating]) -> None:
        """log_probs: (states, vocab_size) of CTC, at least one state."""
        self._probs = np.exp(np.asarray(log_probs, np.float64))
        self._silent = np.log(np.maximum(self._probs[:, BLANK_ID], _LEAST))
        self._reached = np.concatenate([[0.0], np.cumsum(self._silent)[:-1]])  # of getting to each state unsaid

    def follow(self, piece: int) -> int:
        """Return the state in which the text's next piece is said."""
        spoken = 1 - self._probs[:, BLANK_ID]
        said = self._reached + np.log((1 - DOUBT) * self._probs[:, piece] + DOUBT * spoken + _LEAST)
        passing = np.cumsum(np.log(self._probs[:, BLANK_ID] + self._probs[:, piece] + _LEAST))
        going = np.maximum.accumulate(said - passing) + passing
        self._reached = np.concatenate([[-np.inf], going[:-1]])
        return int(said.argmax())
