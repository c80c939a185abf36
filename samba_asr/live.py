"""Live recognition: audio comes block by block, words go out while they are said."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samba_asr.audio.load import checked_waveform
from samba_asr.audio.segments import Speaking
from samba_asr.audio.vad import VoiceDetector, VoiceStream
from samba_asr.decoding.endpoints import Endpointer
from samba_asr.decoding.prefix_beam import PrefixSearch
from samba_asr.long_form import joined
from samba_asr.model.asr import SambaASR
from samba_asr.model.streaming import Chunks, EncoderStream
from samba_asr.text.tokenizer import BLANK_ID
from samba_asr.transcript import Transcript, Word

CHUNK_SECONDS = 0.32
"""Of audio that the encoder hears at once, both ways."""
AHEAD_SECONDS = 0.32
"""Of what follows a chunk that it hears as well: a little of it saves many words."""
PAUSE_SECONDS = 0.7
"""Of silence that end a segment."""
LEAD_SECONDS = 0.64
"""Before voice activity hears speech: what a segment holds of them, for words that begin softly."""
LONGEST_SECONDS = 20.0
"""Of a segment; a longer one is cut where CTC hears a pause."""
PARTIAL_BEAM = 4
"""Texts that CTC's search keeps where a segment is not at its end."""


@dataclass(frozen=True)
class LiveResult:
    """What is heard of a segment of a stream."""

    text: str
    """The words, separated by single spaces; empty only to take back what an earlier result of the segment showed."""
    start: float
    """Seconds from the begin of the stream: the first word's."""
    end: float
    """Seconds: the last word's."""
    words: tuple[Word, ...]
    """The text's words, in order."""
    final: bool
    """Whether the segment is at its end; if not, its next result takes the place of this one."""


class Live:
    """One stream of audio, and what is carried from block to block: no more of it after an hour than after a minute.

    Each chunk that is heard may change the text of the open segment, which CTC's prefix search tells; where the segment
    ends, search (the decoder's and advisers' share included) hears it as a whole. Results are in order, and so are the
    times of their words. What is not speech gives none.

    model: must be able to hear in chunks, ValueError otherwise. detector: tells where somebody speaks; None: CTC does.
    search: a segment's states, (states, d_model), and CTC's log-probabilities, (states, vocab_size), to its transcript;
    read: pieces and the same log-probabilities to theirs. encoding: what the encoder works in, such as a precision.
    chunk_seconds, ahead_seconds, pause_seconds: as of :meth:`samba_asr.transcriber.Transcriber.live`.
    """

    def __init__(
        self,
        model: SambaASR,
        detector: VoiceDetector | None,
        search: Callable[[Tensor, NDArray[np.floating]], Transcript],
        read: Callable[[Sequence[int], NDArray[np.floating]], Transcript],
        encoding: Callable[[], AbstractContextManager[Any]],
        chunk_seconds: float = CHUNK_SECONDS,
        ahead_seconds: float = AHEAD_SECONDS,
        pause_seconds: float | None = PAUSE_SECONDS,
    ) -> None:
        self._seconds_per_state = state = model.seconds_per_state
        if not chunk_seconds >= state:
            raise ValueError(f"chunk_seconds ({chunk_seconds}) must be at least {state}, one of the encoder's states")
        if not ahead_seconds >= 0:
            raise ValueError(f"ahead_seconds ({ahead_seconds}) must not be negative")
        if pause_seconds is not None and not pause_seconds >= 2 * state:
            raise ValueError(f"pause_seconds ({pause_seconds}) must be at least {2 * state}, or None")
        chunk = round(chunk_seconds / state)
        self.sample_rate = model.config.features.sample_rate
        self._search, self._read, self._encoding = search, read, encoding
        self._encoder = EncoderStream(model, chunk, round(ahead_seconds / state))
        samples = round(state * self.sample_rate)
        self._voice = None if detector is None else VoiceStream(detector)
        self._speaking = Speaking(samples)
        pause = None if pause_seconds is None else round(pause_seconds / state)
        self._endpointer = Endpointer(pause, round(LEAD_SECONDS / state), round(LONGEST_SECONDS / state))
        self._chunk = chunk * samples
        # A block is what completes a chunk: whatever sizes are fed, the same calls follow one another.
        self._block = np.empty(self._chunk + self._encoder.lookahead_samples, np.float32)
        self._filled, self._wanted, self._samples = 0, len(self._block), 0
        self._states = model.ctc_head.weight.new_empty(0, model.config.d_model)
        self._log_probs = np.empty((0, model.config.ctc_vocab_size), np.float32)
        self._first = 0
        """The first state that is kept."""
        self._partial: PrefixSearch | None = None
        self._read_states = 0
        """The first state that the search of the open segment has not read."""
        self._shown = ""
        """The text of the open segment's last result."""
        self._finished = False

    @property
    def seconds(self) -> float:
        """Audio that was fed."""
        return self._samples / self.sample_rate

    @property
    def lookahead(self) -> float:
        """Seconds of audio that have to follow a sound, at most, before a result can tell of it."""
        return len(self._block) / self.sample_rate

    @property
    def state_bytes(self) -> int:
        """What is carried at this moment; no more than what a segment of the longest kind needs."""
        parts = [self._encoder, self._voice, self._partial]
        kept = self._block.nbytes + self._states.nbytes + self._log_probs.nbytes
        return kept + sum(part.state_bytes for part in parts if part is not None)

    def feed(self, block: np.ndarray) -> list[LiveResult]:
        """Hear the samples that follow, (samples,) floats in [-1, 1] at :attr:`sample_rate`, any number; return what
        that tells. Raises ValueError for another shape or type and after :meth:`finish`."""
        if not isinstance(block, np.ndarray):
            kind = type(block).__name__
            raise ValueError(f"a block ({kind}) must be a numpy array of floats, (samples,); [waveform] is one block")
        samples = checked_waveform(block)
        if self._finished:
            raise ValueError("this stream is finished; transcriber.live() begins another")
        results = []
        while len(samples):
            taken = samples[: self._wanted - self._filled]
            samples = samples[len(taken) :]
            self._block[self._filled : self._filled + len(taken)] = taken
            self._filled += len(taken)
            self._samples += len(taken)
            if self._filled == self._wanted:
                results += self._hear(self._block[: self._filled].copy())
                self._filled, self._wanted = 0, self._chunk
        return results

    def finish(self) -> list[LiveResult]:
        """End the stream; return what is left of it, and nothing where that was done."""
        if self._finished:
            return []
        self._finished = True
        results = self._hear(self._block[: self._filled].copy(), last=True)
        for segment in self._endpointer.finish():
            results += self._final(*segment)
        return results

    @torch.inference_mode()
    def _hear(self, samples: NDArray[np.float32], last: bool = False) -> list[LiveResult]:
        if self._voice is not None:
            self._speaking.add(self._voice.feed(samples))
            if last:
                self._speaking.add(self._voice.finish())
        with self._encoding():
            heard = [self._encoder.feed(torch.from_numpy(samples)), *([self._encoder.finish()] if last else [])]
        return [result for chunks in heard for result in self._advance(chunks)]

    def _advance(self, chunks: Chunks) -> list[LiveResult]:
        if not len(chunks.log_probs):
            return []
        self._states = torch.cat([self._states, chunks.encoder_out])
        self._log_probs = np.concatenate([self._log_probs, chunks.log_probs.cpu().numpy()])
        voice = None if self._voice is None else self._speaking.take(len(chunks.log_probs))
        results = [
            result for segment in self._endpointer.advance(self._log_probs, voice) for result in self._final(*segment)
        ]
        forgotten = self._endpointer.kept - self._first
        if forgotten:  # a view would hold what is forgotten
            self._states, self._log_probs = self._states[forgotten:].clone(), self._log_probs[forgotten:].copy()
            self._first = self._endpointer.kept
        return results + self._so_far()

    def _final(self, start: int, end: int) -> list[LiveResult]:
        """Search a segment: states start to end - 1."""
        part = slice(start - self._first, end - self._first)
        log_probs = self._log_probs[part]
        shown, self._shown, self._partial = self._shown, "", None
        if (log_probs.argmax(1) == BLANK_ID).all():  # no word, whatever a decoder would make of it
            transcript = Transcript("", 0.0, "")
        else:
            transcript = self._search(self._states[part], log_probs)
        return [self._result(transcript, start, end, final=True)] if transcript.text or shown else []

    def _so_far(self) -> list[LiveResult]:
        """Return what is new in the open segment."""
        begin = self._endpointer.begin
        if begin is None:
            return []
        if self._partial is None:
            self._partial, self._read_states = PrefixSearch(self._log_probs.shape[1], PARTIAL_BEAM), begin
        self._partial.advance(self._log_probs[self._read_states - self._first :])
        end = self._read_states = self._first + len(self._log_probs)
        transcript = self._read(self._partial.texts()[0].tokens, self._log_probs[begin - self._first :])
        if transcript.text == self._shown:
            return []
        self._shown = transcript.text
        return [self._result(transcript, begin, end, final=False)]

    def _result(self, transcript: Transcript, start: int, end: int, final: bool) -> LiveResult:
        """transcript: of states start to end - 1, its times from their begin."""
        begin, until = (state * self._seconds_per_state for state in (start, end))
        words = joined([transcript], [begin], min(until, self.seconds), "", 1).words
        times = (words[0].start, words[-1].end) if words else (begin, begin)
        return LiveResult(transcript.text, *times, words, final)
