"""The encoder as a stream: audio comes in blocks of any size, states come out in chunks that never change again."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samba_asr.model.asr import SambaASR
from samba_asr.model.encoder import BlockState, initial_states
from samba_asr.model.subsampling import StemState


class Chunks(NamedTuple):
    """States that have become final, in order after those before them."""

    encoder_out: Tensor
    """(states, d_model)"""
    log_probs: Tensor
    """(states, CTC's vocab_size), float32 at least."""


class _State(NamedTuple):
    stem: StemState
    waiting: Tensor
    """(1, states, d_model), what the stem gave that the blocks have not done with."""
    blocks: tuple[BlockState, ...]
    ctc: tuple[BlockState, ...]


class EncoderStream:
    """What ``encode_features(..., chunk)`` and ``ctc_log_probs(..., chunk)`` give, made while the audio comes in.

    All work is done in whole chunks, so that nothing depends on how the audio is cut into blocks; between chunks only
    the forward mixers' states and a few samples and frames are kept. A chunk costs the same whatever came before it.

    chunk: states, at least 1; ahead: states after its end that a chunk hears as well, which costs as much as if it were
    so much longer; best with a large common divisor. Raises ValueError for others, and for a model in training mode or
    with features that depend on the whole recording.
    """

    def __init__(self, model: SambaASR, chunk: int, ahead: int = 0) -> None:
        if chunk < 1:
            raise ValueError(f"chunk ({chunk}) must be a positive number of states")
        if ahead < 0:
            raise ValueError(f"ahead ({ahead}) must not be negative: a number of states, or 0")
        if model.training:
            raise ValueError("the model is in training mode, in which it drops things at random: call model.eval()")
        model.features.check_streaming()
        self.model, self.chunk, self.ahead = model, chunk, ahead
        config, stem = model.config.features, model.encoder.subsampling
        self._hop, self._half = config.hop_length, config.n_fft // 2
        self._factor = model.config.encoder.subsampling_factor
        # What the stem hears at once: the blocks wait for no more than they hear.
        self._frames = math.gcd(chunk, ahead) * self._factor
        self._windows = stem.lookahead * self._hop + config.n_fft - self._hop
        self._weight = model.ctc_head.weight
        # From the beginning of its first frame to the end of the last one.
        size = self._frames * self._hop + max(self._windows, self._half)
        self._samples = torch.zeros(1, size, device=self._weight.device)
        self._filled = self._half  # before the first sample, it is reflected
        self._first, self._ended = True, False
        waiting = self._weight.new_zeros(1, 0, model.config.d_model)
        blocks, ctc = (initial_states(blocks, 1) for blocks in (model.encoder.blocks, model.ctc_blocks))
        self._state = _State(stem.initial_state(1), waiting, blocks, ctc)

    @property
    def lookahead_samples(self) -> int:
        """Samples after a chunk's end that must have come before it is computed."""
        windows = self._samples.shape[1] - self._half - self._frames * self._hop
        return self.ahead * self._factor * self._hop + windows

    @property
    def state_bytes(self) -> int:
        """Bytes of everything that is kept between chunks, room for samples included: as many after an hour as after a
        minute."""
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
                self._listen(self._frames + self.model.encoder.subsampling.lookahead)
                if self._state.waiting.shape[1] >= self.chunk + self.ahead:
                    found.append(self._think())
        return self._joined(found)

    @torch.inference_mode()
    def finish(self) -> Chunks:
        """Say that nothing follows; return the states that were still open, none where it has been said before."""
        found = []
        while not self._ended:
            own = -(-(self._filled - self._half) // self._hop)
            if own > 0:
                self._samples[:, self._filled :] = 0
                self._listen(own)
            self._ended = own <= self._frames
        while self._state.waiting.shape[1]:
            found.append(self._think())
        return self._joined(found)

    def _listen(self, own: int) -> None:
        """Make the stem's states of the samples, or of less where fewer frames are left, ``own``."""
        if self._first:
            self._samples[:, : self._half] = self._samples[:, self._half + 1 : 2 * self._half + 1].flip(1)
            self._first = False
        frames = min(self._frames, -(-own // self._factor) * self._factor)
        samples = self._samples[:, : frames * self._hop + self._windows]
        features = self.model.features.of_windows(samples).to(self._weight.dtype)
        x, stem = self.model.encoder.subsampling.advance(features, own, self._state.stem)
        self._state = self._state._replace(stem=stem, waiting=torch.cat([self._state.waiting, x], 1))
        past = self._frames * self._hop
        self._samples[:, :-past] = self._samples[:, past:].clone()
        self._filled -= past

    def _think(self) -> Chunks:
        """Make a chunk of the stem's states, the last one shorter, and of those ahead."""
        _, waiting, blocks, ctc = self._state
        heard = waiting[:, : self.chunk + self.ahead]
        ahead = max(heard.shape[1] - self.chunk, 0)
        encoder_out, blocks = self.model.encoder.advance(heard, blocks, ahead)
        log_probs, ctc = self.model.advance_ctc(encoder_out, ctc, ahead)
        self._state = self._state._replace(waiting=waiting[:, self.chunk :].clone(), blocks=blocks, ctc=ctc)
        return Chunks(encoder_out[0, : self.chunk], log_probs[0, : self.chunk])

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
