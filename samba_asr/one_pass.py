"""A long recording in one pass: the encoder goes through it once, what it remembers never cut; the decoder gets
stretches, cut at pauses, as soon as they are complete. Neither time a second nor memory depends on the length."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samba_asr.audio.load import Waveform
from samba_asr.decoding.stretches import cut_at_blanks
from samba_asr.model.asr import SambaASR
from samba_asr.model.streaming import Chunks, EncoderStream

CHUNK_SECONDS = 24.0
"""What the encoder's backward mixers hear at once ..."""
AHEAD_SECONDS = 2.0
"""... and as much of what follows as the end of it needs."""
STRETCH_SECONDS = 15.0
"""Of a stretch: in longer ones the decoder, which learned from shorter ones, now and then stops too early."""


class Part(NamedTuple):
    """A stretch of a recording."""

    start: int
    """Its first state."""
    encoder_out: Tensor
    """(states, d_model)"""
    log_probs: NDArray[np.floating]
    """(states, CTC's vocab_size)"""


def parts(model: SambaASR, waveform: Waveform) -> Iterator[Part]:
    """Yield all states of a recording, (samples,) at the model's rate, in order, as the stretches that
    :func:`cut_at_blanks` makes of the whole. Raises ValueError as :class:`EncoderStream`."""
    longest = round(STRETCH_SECONDS / model.seconds_per_state)
    start, waiting, ended = 0, None, False
    chunks = _chunks(model, waveform)
    while not ended:
        found = next(chunks, None)
        ended = found is None
        if found is not None:
            waiting = found if waiting is None else Chunks(*map(torch.cat, zip(waiting, found, strict=True)))
        assert waiting is not None
        log_probs = waiting.log_probs.cpu().numpy()
        done = 0
        for first, end in cut_at_blanks(log_probs, len(log_probs), longest):
            if not ended and len(log_probs) - first < longest + longest // 4:
                break  # what follows may move this cut
            yield Part(start + first, waiting.encoder_out[first:end], log_probs[first:end])
            done = end
        start, waiting = start + done, Chunks(*(tensor[done:] for tensor in waiting))


def _chunks(model: SambaASR, waveform: Waveform) -> Iterator[Chunks]:
    chunk, ahead = (round(seconds / model.seconds_per_state) for seconds in (CHUNK_SECONDS, AHEAD_SECONDS))
    stream = EncoderStream(model, chunk, ahead)
    block = round(CHUNK_SECONDS * model.config.features.sample_rate)
    for start in range(0, len(waveform), block):
        yield stream.feed(torch.tensor(waveform[start : start + block]))
    yield stream.finish()
