"""Where a decoder that listens by windows has to listen for what comes next."""

from bisect import bisect_left

import numpy as np
from numpy.typing import NDArray

from samba_asr.model.alignment import listening_place
from samba_asr.text.tokenizer import BLANK_ID

SPOKEN = 0.5
"""Probability of a new piece from which on one is expected."""


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
