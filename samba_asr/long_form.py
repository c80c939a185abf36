"""Recordings of any length: cut into spans that are transcribed one by one, and their transcripts joined again."""

import os
from collections.abc import Sequence
from dataclasses import replace

from samba_asr.audio.load import Waveform
from samba_asr.audio.segments import Span, quiet_segments, speech_segments
from samba_asr.audio.vad import SAMPLE_RATE, VoiceDetector, has_detector
from samba_asr.decoding.n_best import join_n_best
from samba_asr.decoding.stretches import LONGEST_SECONDS
from samba_asr.transcript import Alternative, Transcript


def forget_shapes() -> None:
    """Keep oneDNN from holding memory for each length that it has met: some 25 MB, in a cache of 1024 primitives. A
    few are enough for what comes again and again, such as a stream's chunks.

    It reads this when it first works; who set it otherwise is left alone.
    """
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16")


class Cutter:
    """Tells which spans of a recording to transcribe.

    vad: True: where somebody speaks, whatever the recording's length; False: all recordings whole, long ones in one
    pass (see :mod:`samba_asr.one_pass`); None: recordings
    longer than :data:`LONGEST_SECONDS` where somebody speaks or, without a detector, cut at their quietest places.
    """

    def __init__(self, vad: bool | None, sample_rate: int) -> None:
        if vad and sample_rate != SAMPLE_RATE:
            raise ValueError(
                f"vad: silero-vad hears {SAMPLE_RATE} Hz, and this model {sample_rate}; leave vad out, or give False"
            )
        self.vad = vad
        self.longest = round(LONGEST_SECONDS * sample_rate)
        listens = vad or (vad is None and sample_rate == SAMPLE_RATE and has_detector())
        self.detector = VoiceDetector.load() if listens else None

    @property
    def way(self) -> str:
        """How recordings are cut, in words."""
        if self.vad is False:
            return "in one pass"
        if self.detector is None:
            return "cut at their quietest places (pip install silero-vad to find speech)"
        return f"{'as all, ' if self.vad else ''}where silero-vad hears speech"

    def whole(self, waveform: Waveform) -> bool:
        """Tell whether a recording, (samples,), is one that others would cut, and is not to be; none in which nothing
        is heard."""
        return self.vad is False and len(waveform) > self.longest and bool(waveform.any())

    def spans(self, waveform: Waveform) -> list[Span]:
        """Return the spans of a recording, (samples,), in order; none of one in which nothing is heard."""
        if not waveform.any():
            return []
        if self.vad is False or (self.vad is None and len(waveform) <= self.longest):
            return [Span(0, len(waveform))]
        if self.detector is None:
            return quiet_segments(waveform, self.longest)
        return speech_segments(self.detector.voice(waveform), len(waveform), self.longest)


def joined(parts: Sequence[Transcript], starts: Sequence[float], duration: float, model: str, count: int) -> Transcript:
    """Return the transcript of a recording from those of its parts, in order.

    starts: seconds from the recording's begin to each part's; duration: the recording's seconds; count: of the best
    texts, 1 for no others.
    """
    ends = [*starts[1:], duration]  # where one part ends as the next begins, rounding must not let words overlap
    words = tuple(
        replace(word, start=min(start + word.start, end), end=min(start + word.end, end))
        for part, start, end in zip(parts, starts, ends[: len(parts)], strict=True)
        for word in part.words
    )
    of_parts = [[(f" {each.text}", each.score) for each in part.n_best] for part in parts]
    n_best = join_n_best(of_parts, count) if parts and count > 1 else ()
    texts: dict[str, float] = {}
    for text, score in n_best:
        texts.setdefault(" ".join(text.split()), score)
    alternatives = tuple(Alternative(text, score) for text, score in texts.items())
    return Transcript(" ".join(part.text for part in parts if part.text), duration, model, words, alternatives)
