"""Many recordings in turn: spans of several share a batch, and what is held does not grow with their number."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from samba_asr.audio.load import Waveform
from samba_asr.transcript import Transcript

if TYPE_CHECKING:
    from samba_asr.audio.segments import Span  # which imports PyTorch; the command line's help goes without

AHEAD = 8
"""Batches' worth of recordings that are read ahead, for spans of about one length to share a batch: of LibriSpeech's
dev-clean, padding is then a twelfth of what is heard two at a time, a quarter 16 at a time."""
FAILURES = (OSError, ValueError, RuntimeError, MemoryError)
"""What may be wrong with one recording and not with the others."""

Given = TypeVar("Given")


class Outcome(NamedTuple):
    """What became of one recording."""

    result: Transcript | Exception
    """What is said in it, or why that cannot be told."""
    seconds: float
    """Spent on it: to read it, to look for speech, and of each batch's time its share of the batch's samples."""


@dataclass(eq=False)
class _Recording:
    """One on its way to a result."""

    waveform: Waveform | None = None
    spans: Sequence["Span"] = ()
    heard: dict["Span", Transcript] = field(default_factory=dict)
    result: Transcript | Exception | None = None
    seconds: float = 0.0

    @property
    def left(self) -> "list[Span]":
        """Spans that nobody has heard yet."""
        return [] if self.result is not None else [span for span in self.spans if span not in self.heard]

    def end(self, result: Transcript | Exception) -> None:
        """Hold the result alone; an error's traceback would hold tensors."""
        self.result = result.with_traceback(None) if isinstance(result, Exception) else result
        self.waveform, self.heard = None, {}

    @contextmanager
    def failing_alone(self) -> Iterator[None]:
        """Let an error be this recording's result."""
        try:
            yield
        except FAILURES as error:
            self.end(error)


_Piece = tuple[_Recording, "Span"]


@dataclass(frozen=True)
class Batches(Generic[Given]):
    """Does for any number of recordings what is done for one, a batch of spans at a time."""

    read: Callable[[Given], tuple[Waveform, Sequence["Span"]]]
    """Gives a recording's samples, and the spans of it that are to be heard."""
    hear: Callable[[Sequence[tuple[Waveform, "Span"]]], Sequence[Transcript]]
    """Gives the transcripts of a batch."""
    join: Callable[[Waveform, Sequence["Span"], Sequence[Transcript]], Transcript]
    """Gives a recording's transcript from those of its spans."""
    size: int
    """Spans of a batch, at most."""
    longest: int
    """Samples of a span that shares a batch; a longer one is heard by itself."""

    def outcomes(self, recordings: Iterable[Given | Exception]) -> Iterator[Outcome]:
        """Yield what became of each recording, in order, as soon as that is known of it and of those before it.

        An error among the recordings is its own outcome. Every batch has a span of the first recording that is not
        done. Where a batch fails, its spans are heard one by one, and only those recordings fail whose spans do.
        """
        coming, more = iter(recordings), True
        queue: deque[_Recording] = deque()
        while queue or more:
            if queue and queue[0].result is not None:
                done = queue.popleft()
                yield Outcome(done.result, done.seconds)  # type: ignore[arg-type]  # it is not None
            elif more and self._has_room(queue):
                more = self._read_next(coming, queue)
            else:
                self._hear_next(queue)

    def _has_room(self, queue: Sequence[_Recording]) -> bool:
        """Tell whether to read on: whatever the first recording's length, little is held of those behind it."""
        ahead = AHEAD * (self.size - 1) + 1
        behind = sum(len(each.waveform) for each in islice(queue, 1, None) if each.waveform is not None)
        return len(queue) < ahead and behind < ahead * self.longest

    def _read_next(self, coming: Iterator[Given | Exception], queue: deque[_Recording]) -> bool:
        """Return whether there was one."""
        begin, recording = time.perf_counter(), _Recording()
        try:
            given = next(coming)
        except StopIteration:
            return False
        with recording.failing_alone():
            if isinstance(given, Exception):
                raise given
            recording.waveform, recording.spans = self.read(given)
        recording.seconds = time.perf_counter() - begin
        self._end_if_heard(recording)
        queue.append(recording)
        return True

    def _hear_next(self, queue: Sequence[_Recording]) -> None:
        batch = self._batch(queue)
        begin = time.perf_counter()
        if len(batch) > 1:
            with suppress(*FAILURES):
                self._hear(batch)
        for recording, span in batch:
            if span in recording.left:
                with recording.failing_alone():
                    self._hear([(recording, span)])
        seconds_per_sample = (time.perf_counter() - begin) / sum(map(_samples, batch))
        for recording, span in batch:
            recording.seconds += seconds_per_sample * _samples((recording, span))
            self._end_if_heard(recording)

    def _batch(self, queue: Sequence[_Recording]) -> list[_Piece]:
        """Return the longest span that is left of the first recording, and others of about that length."""
        waiting = [(recording, span) for recording in queue for span in recording.left]
        most = max(_samples(piece) for piece in waiting if piece[0] is queue[0])
        if most > self.longest:
            return [next(piece for piece in waiting if _samples(piece) == most)]
        short = [piece for piece in waiting if _samples(piece) <= self.longest]
        return sorted(short, key=lambda piece: abs(_samples(piece) - most))[: self.size]

    def _hear(self, batch: Sequence[_Piece]) -> None:
        pieces = [(recording.waveform, span) for recording, span in batch if recording.waveform is not None]
        for (recording, span), transcript in zip(batch, self.hear(pieces), strict=True):
            recording.heard[span] = transcript

    def _end_if_heard(self, recording: _Recording) -> None:
        if recording.waveform is not None and not recording.left:
            with recording.failing_alone():
                parts = [recording.heard[span] for span in recording.spans]
                recording.end(self.join(recording.waveform, recording.spans, parts))


def _samples(piece: _Piece) -> int:
    return piece[1].end - piece[1].start
