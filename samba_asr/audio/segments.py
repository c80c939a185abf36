"""Long recordings in segments that a recogniser takes one by one: where somebody speaks, cut where nobody does."""

from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from samba_asr.audio.load import Waveform
from samba_asr.audio.vad import BLOCK, FRAME

SPEECH = 0.5
"""Probability of speech with which speech begins."""
SILENCE = 0.35
"""Probability of speech below which it ends; between the two it goes on."""
PADDING = 7
"""Frames, 0.22 s, before and after speech that are part of it: its soft beginnings and ends."""
PAUSE = 32
"""Frames, 1 s: a longer silence parts segments."""
SMOOTHED = 7
"""Frames, 0.22 s, that are seen together where speech without a pause has to be cut."""


class Span(NamedTuple):
    """Samples start to end - 1 of a recording."""

    start: int
    end: int


class Speaking:
    """Tells in which spans of a recording that goes on somebody speaks, by what is said of its frames on the way.

    samples: of a span, at least :data:`FRAME`: each holds an end of a frame.
    """

    def __init__(self, samples: int) -> None:
        self._samples = samples
        self._frames: list[bool] = []
        self._first = self._span = 0
        self._speaks = False

    def add(self, voice: NDArray[np.floating]) -> None:
        """Take the probabilities of speech in the frames that follow, (frames,)."""
        for probability in voice.tolist():
            self._speaks = probability >= (SILENCE if self._speaks else SPEECH)
            self._frames.append(self._speaks)

    def take(self, spans: int) -> list[bool]:
        """Return of the spans that follow whether there is speech in any frame of each, as far as frames are known."""
        bounds = [self._samples * (self._span + i) for i in range(spans + 1)]
        frames, first = self._frames, self._first
        heard = [any(frames[start // FRAME - first : -(-end // FRAME) - first]) for start, end in pairwise(bounds)]
        self._span += spans
        self._first = bounds[-1] // FRAME
        self._frames = frames[self._first - first :]
        return heard


def speech_segments(voice: NDArray[np.floating], samples: int, longest: int) -> list[Span]:
    """Return the segments in which somebody speaks, in order, none overlapping; none for a recording without speech.

    voice: the probability of speech in each frame, (frames,); samples: of the recording; longest: samples of a segment
    at most, at least :data:`FRAME`. Speech of less than that with short pauses is one segment; longer speech is cut
    where it is least likely, in the second half of what a segment may hold.
    """
    most = _frames(longest)
    smooth = _around(voice, SMOOTHED)
    joined: list[list[int]] = []
    for first, end in (part for spoken in _spoken(voice) for part in _cut(*spoken, smooth, most)):
        if joined and end - joined[-1][0] <= most and first - joined[-1][1] <= PAUSE - 2 * PADDING:
            joined[-1][1] = end
        else:
            joined.append([first, end])
    return [Span(first * FRAME, min(end * FRAME, samples)) for first, end in joined]


def quiet_segments(waveform: Waveform, longest: int) -> list[Span]:
    """Cut a whole recording, (samples,), into segments of ``longest`` samples at most, at its quietest places; this
    needs no detector. Segments of zeros are left out."""
    levels = _around(_powers(waveform), SMOOTHED)
    parts = _cut(0, len(levels), levels, _frames(longest))
    segments = [Span(first * FRAME, min(end * FRAME, len(waveform))) for first, end in parts]
    return [segment for segment in segments if waveform[segment.start : segment.end].any()]


def _frames(samples: int) -> int:
    if samples < FRAME:
        raise ValueError(f"longest ({samples}) must be at least {FRAME} samples")
    return samples // FRAME


def _spoken(voice: NDArray[np.floating]) -> list[tuple[int, int]]:
    """Return the frames that hold speech, padded: first and one after the last, in order, none touching."""
    decided = np.select([voice >= SPEECH, voice < SILENCE], [1, 0], -1)
    # Frames between the two thresholds are what the last decided one before them is; before the first, silence.
    last = np.maximum.accumulate(np.where(decided >= 0, np.arange(len(voice)), -1))
    speaks = (decided[last] == 1) & (last >= 0)
    padded = _around(speaks, 2 * PADDING + 1) > 0.5
    edges = np.flatnonzero(np.diff(padded.astype(np.int8), prepend=0, append=0))
    return list(zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True))


def _cut(first: int, end: int, levels: NDArray[np.floating], longest: int) -> list[tuple[int, int]]:
    """Cut frames first to end - 1 into parts of ``longest`` at most, where ``levels`` are lowest."""
    parts = []
    while end - first > longest:
        # The last part should not be a snippet.
        low, high = first + longest // 2, min(first + longest, end - longest // 4)
        cut = low + 1 + int(levels[low:high].argmin()) if high > low else first + longest
        parts.append((first, cut))
        first = cut
    return [*parts, (first, end)] if end > first else parts


def _around(values: NDArray[np.generic], width: int) -> NDArray[np.float64]:
    """Return for each value the sum of the odd number of values around it."""
    sums = np.cumsum(np.pad(values.astype(np.float64), (width // 2 + 1, width // 2)))
    return sums[width:] - sums[:-width]


def _powers(waveform: Waveform) -> NDArray[np.float32]:
    """Return each frame's power: (frames,); the last frame may be short."""
    powers = [np.zeros(0, np.float32)]
    for start in range(0, len(waveform), BLOCK):
        block = waveform[start : start + BLOCK]
        frames = np.pad(block, (0, -len(block) % FRAME)).reshape(-1, FRAME)
        powers.append(np.einsum("fs,fs->f", frames, frames))
    return np.concatenate(powers)
