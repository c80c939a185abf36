"""The encoder as a stream: audio comes in blocks of any size, states come out in chunks that never change again."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samba_asr.model.asr import SambaASR
from samba_asr.model.encoder import BlockState, EncoderState, initial_states


class Chunks(NamedTuple):
    """States that have become final, in order after those before them."""

    encoder_out: Tensor
    """(states, d_model)"""
    log_probs: Tensor
    """(states, CTC's vocab_size), float32 at least."""


class _State(NamedTuple):
    encoder: EncoderState
    ctc: tuple[BlockState, ...]


class EncoderStream:
    """What ``encode_features(..., chunk)`` and ``ctc_log_probs(..., chunk)`` give, made while the audio comes in.

    All work is done in whole chunks, so that nothing depends on how the audio is cut into blocks; between chunks only
    the forward mixers' states and a few samples and frames are kept. A chunk costs the same whatever came before it.

    chunk: states, at least 1. Raises ValueError for another, and for a model in training mode or with features that
    depend on the whole recording.
    """

    def __init__(self, model: SambaASR, chunk: int) -> None:
        if chunk < 1:
            raise ValueError(f"chunk ({chunk}) must be a positive number of states")
        if model.training:
            raise ValueError("the model is in training mode, in which it drops things at random: call model.eval()")
        model.features.check_streaming()
        self.model = model
        self.chunk = chunk
        config = model.config.features
        self._hop, self._half = config.hop_length, config.n_fft // 2
        self._factor = model.config.encoder.subsampling_factor
        self._frames = chunk * self._factor
        self._windows = model.encoder.subsampling.lookahead * self._hop + config.n_fft - self._hop
        self._weight = model.ctc_head.weight
        # From the beginning of a chunk's first frame to the end of the last one that it hears.
        size = self._frames * self._hop + max(self._windows, self._half)
        self._samples = torch.zeros(1, size, device=self._weight.device)
        self._filled = self._half  # before the first sample, it is reflected
        self._first, self._ended = True, False
        self._state = _State(model.encoder.initial_state(1), initial_states(model.ctc_blocks, 1))

    @property
    def lookahead_samples(self) -> int:
        """Samples after a chunk's end that must have come before it is computed."""
        return self._samples.shape[1] - self._half - self._frames * self._hop

    @property
    def state_bytes(self) -> int:
        """Bytes of everything that is kept between chunks, room for a chunk's samples included; it does not change."""
        return sum(tensor.untyped_storage().nbytes() for tensor in (self._samples, *_tensors(self._state)))

    @torch.inference_mode()
    def feed(self, samples: Tensor) -> Chunks:
        """Hear what comes next, (samples,) floats in [-1, 1] at the model's rate; return the states that it makes
        final, perhaps none. Raises ValueError for another shape or type, and after the end."""
        if samples.dim() != 1 or not samples.is_floating_point():
            kind = f"of shape {tuple(samples.shape)}, {samples.dtype},"
            raise ValueError(f"samples {kind} must be (samples,), floats in [-1, 1]")
        if self._ended:
            raise ValueError("a stream that has been finished hears no more: make a new one")
        found, taken = [], 0
        while taken < len(samples):
            some = min(len(samples) - taken, self._samples.shape[1] - self._filled)
            self._samples[0, self._filled : self._filled + some] = samples[taken : taken + some]
            self._filled, taken = self._filled + some, taken + some
            if self._filled == self._samples.shape[1]:
                found.append(self._advance(self._frames + self.model.encoder.subsampling.lookahead))
        return self._joined(found)

    @torch.inference_mode()
    def finish(self) -> Chunks:
        """Say that nothing follows; return the states that were still open, none where it has been said before."""
        found = []
        while not self._ended:
            own = -(-(self._filled - self._half) // self._hop)
            if own > 0:
                self._samples[:, self._filled :] = 0
                found.append(self._advance(own))
            self._ended = own <= self._frames
        return self._joined(found)

    def _advance(self, own: int) -> Chunks:
        """Compute a chunk, or less where fewer frames are left, ``own``, and go on to the next one's samples."""
        if self._first:
            self._samples[:, : self._half] = self._samples[:, self._half + 1 : 2 * self._half + 1].flip(1)
            self._first = False
        frames = min(self._frames, -(-own // self._factor) * self._factor)
        size = frames * self._hop + self._windows
        features = self.model.features.of_windows(self._samples[:, :size]).to(self._weight.dtype)
        encoder_out, encoder = self.model.encoder.advance(features, own, self._state.encoder)
        log_probs, ctc = self.model.advance_ctc(encoder_out, self._state.ctc)
        self._state = _State(encoder, ctc)
        past = self._frames * self._hop
        self._samples[:, :-past] = self._samples[:, past:].clone()
        self._filled -= past
        return Chunks(encoder_out[0], log_probs[0])

    def _joined(self, found: list[Chunks]) -> Chunks:
        if len(found) == 1:
            return found[0]
        nothing = Chunks(*(self._weight.new_zeros(0, size) for size in self._weight.shape[::-1]))
        return Chunks(*map(torch.cat, zip(nothing, *found, strict=True)))


def _tensors(state: Any) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
        return
    for part in state:
        yield from _tensors(part)
