"""Where speech that goes on and on begins and ends: live recognition in segments that a search takes one by one."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samba_asr.decoding.stretches import cut_at_blanks
from samba_asr.text.tokenizer import BLANK_ID


class Endpointer:
    """Cuts a stream of states into segments as it comes; what it needs does not grow with the stream.

    A segment begins ``lead`` states before the first one that holds speech, but not within the segment before it. It
    ends in the middle of a pause of ``pause`` states, in which there is no voice and CTC says blank alone; None: of no
    pause. One that gets longer than ``longest`` is cut where CTC hears a pause, by the rule of
    :func:`samba_asr.decoding.stretches.cut_at_blanks`, and what follows the cut goes on.
    """

    def __init__(self, pause: int | None, lead: int, longest: int) -> None:
        self.pause, self.lead, self.longest = pause, lead, longest
        self.begin: int | None = None
        """The open segment's first state; None while there is none."""
        self.kept = 0
        """The first state of the log-probabilities that the next call has to begin with."""
        self._next = self._active = 0
        """The state to be looked at; the last one of the open segment that holds speech."""

    def advance(self, log_probs: NDArray[np.floating], voice: Sequence[bool] | None) -> list[tuple[int, int]]:
        """Look at the states that are new; return the segments that end, in order: their first states and
        those after their last.

        log_probs: CTC's, (states, vocab_size), of all states from :attr:`kept` on; voice: whether somebody speaks, of
        the new ones; None: nobody can tell, and where CTC says anything there is speech.
        """
        first = self.kept
        said = (log_probs[self._next - first :].argmax(1) != BLANK_ID).tolist()
        ended = []
        for spoken, heard in zip(said, said if voice is None else voice, strict=True):
            ended += self._look(log_probs, first, spoken, heard)
        if self.begin is None:
            self.kept = max(self.kept, self._next - self.lead)
        return ended

    def finish(self) -> list[tuple[int, int]]:
        """Return the segment that is open where the stream ends."""
        return [] if self.begin is None else [self._end(self._next)]

    def _look(self, log_probs: NDArray[np.floating], first: int, spoken: bool, heard: bool) -> list[tuple[int, int]]:
        """Look at the next state; log_probs: from the state ``first`` on."""
        now, self._next = self._next, self._next + 1
        if self.begin is None:
            if heard:
                self.begin, self._active = max(self.kept, now - self.lead), now
                self.kept = self.begin
            return []
        if spoken or heard:
            self._active = now
        if self.pause is not None and now - self._active >= self.pause:
            # nobody may have spoken since a cut at longest
            return [self._end(max(self._active + 1 + self.pause // 2, self.begin + 1))]
        if self._next - self.begin <= self.longest:
            return []
        open_ones = log_probs[self.begin - first : self._next - first]
        _, cut = cut_at_blanks(open_ones, len(open_ones), self.longest)[0]
        ended = self._end(self.begin + cut)
        self.begin = self.kept
        return [ended]

    def _end(self, end: int) -> tuple[int, int]:
        assert self.begin is not None
        segment = self.begin, end
        self.begin, self.kept = None, end
        return segment
