"""Convolutional stems: log-mel frames to fewer, wider states. Padding is zeroed before every convolution."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samba_asr.config import ModelConfig
from samba_asr.ssm.padding import mask_padding
from samba_asr.ssm.pieces import joined, spans

NEIGHBOURS = 2
"""States on either side whose frames reach into a state of :class:`WhisperStem`, and more."""


class StemState(NamedTuple):
    """What a stem remembers of the frames so far."""

    inputs: tuple[Tensor, ...]
    """For each convolution over time, in order, the last of its inputs before those to come, (batch, 1, ...): zeros at
    the start, as padding is."""


def _halved(lengths: Tensor) -> Tensor:
    return (lengths + 1) // 2


def _own(x: Tensor, length: int) -> Tensor:
    """Set x (batch, time, ...) to 0 from a length on, which may be beyond its end."""
    return x if length >= x.shape[1] else F.pad(x[:, :length], (0, 0) * (x.dim() - 2) + (0, x.shape[1] - length))


class Conv4x(nn.Module):
    """Two 3x3 convolutions of stride 2 over time and frequency, then a projection: 100 frames to 25 states."""

    lookahead = 0
    """Frames that :meth:`advance` hears beyond those that it makes states of."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.encoder.subsampling_channels
        bands = (config.features.n_mels + 3) // 4
        self.n_mels = config.features.n_mels
        self.conv1 = nn.Conv2d(1, channels, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride=2, padding=1)
        self.out_proj = nn.Linear(channels * bands, config.d_model)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """features: (batch, frames, n_mels); lengths: (batch,) int64 frames. Returns x (batch, ceil(frames / 4),
        d_model) and its lengths."""
        x = mask_padding(features, lengths).unsqueeze(1)
        x = F.gelu(self.conv1(x))  # (batch, channels, frames / 2, n_mels / 2)
        lengths = _halved(lengths)
        x = mask_padding(x.transpose(1, 2), lengths).transpose(1, 2)
        x = F.gelu(self.conv2(x))  # (batch, channels, frames / 4, n_mels / 4)
        return self.out_proj(x.transpose(1, 2).flatten(2)), _halved(lengths)

    def initial_state(self, batch: int) -> StemState:
        """Return the state before any frame."""
        channels, _, _, _ = self.conv1.weight.shape
        halved = (self.n_mels + 1) // 2
        weight = self.conv1.weight
        return StemState((weight.new_zeros(batch, 1, self.n_mels), weight.new_zeros(batch, 1, channels, halved)))

    def advance(self, features: Tensor, own: int, state: StemState) -> tuple[Tensor, StemState]:
        """Go on by some states: features (batch, 4 * states, n_mels), the next frames, of which the first ``own`` are
        the recording's; fewer than all of them end it. Returns x (batch, states, d_model) and the new state."""
        frames = _own(features, own)
        x = self._convolve(self.conv1, torch.cat([state.inputs[0], frames], 1).unsqueeze(2))
        halves = _own(x, (own + 1) // 2)
        x = self._convolve(self.conv2, torch.cat([state.inputs[1], halves], 1))
        return self.out_proj(x.flatten(2)), StemState((frames[:, -1:].clone(), halves[:, -1:].clone()))

    @staticmethod
    def _convolve(conv: nn.Conv2d, x: Tensor) -> Tensor:
        """(batch, 2 * frames + 1, channels, bands) to (batch, frames, channels, bands / 2), not padded in time."""
        y = F.conv2d(x.transpose(1, 2), conv.weight, conv.bias, stride=2, padding=(0, 1))
        return F.gelu(y).transpose(1, 2)


class WhisperStem(nn.Module):
    """Whisper's two Conv1d over time, the second of stride 2 (arXiv 2212.04356): 100 frames to 50 states.

    With whisper4x a third convolution of stride 2 leaves 25 states, with whisper8x a fourth 12.5; each starts as the
    choice of every second one.
    """

    lookahead = 1
    """As :attr:`Conv4x.lookahead`."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(config.features.n_mels, config.d_model, 3, padding=1)
        self.conv2 = nn.Conv1d(config.d_model, config.d_model, 3, stride=2, padding=1)
        self.join = self._every_second(config) if config.encoder.subsampling in ("whisper4x", "whisper8x") else None
        self.join_again = self._every_second(config) if config.encoder.subsampling == "whisper8x" else None
        self.factor = config.encoder.subsampling_factor

    @staticmethod
    def _every_second(config: ModelConfig) -> nn.Conv1d:
        join = nn.Conv1d(config.d_model, config.d_model, 3, stride=2, padding=1)
        nn.init.dirac_(join.weight)
        assert join.bias is not None
        nn.init.zeros_(join.bias)
        return join

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """features: (batch, frames, n_mels); lengths: (batch,) int64 frames. Returns x (batch, states, d_model), states
        = ceil(frames / 2), halved and rounded up once more for whisper4x and twice for whisper8x, and its lengths."""
        states = (lengths + self.factor - 1) // self.factor
        pieces = []
        for start, end in spans(-(-features.shape[1] // self.factor)):
            before = min(start, NEIGHBOURS)
            first, last = (start - before) * self.factor, (end + NEIGHBOURS) * self.factor
            heard = features[:, first:last]
            x, _ = self._convolve(heard, (lengths - first).clamp(0, heard.shape[1]))
            pieces.append(x[:, before : before + end - start])
        return joined(pieces), states

    def _convolve(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, at once."""
        x = F.gelu(self.conv1(mask_padding(features, lengths).transpose(1, 2)))
        x = mask_padding(x.transpose(1, 2), lengths).transpose(1, 2)
        x, lengths = F.gelu(self.conv2(x)).transpose(1, 2), _halved(lengths)
        for join in (self.join, self.join_again):
            if join is not None:
                x = join(mask_padding(x, lengths).transpose(1, 2)).transpose(1, 2)
                lengths = _halved(lengths)
        return x, lengths

    def initial_state(self, batch: int) -> StemState:
        """As :meth:`Conv4x.initial_state`."""
        weights = [conv.weight for conv in self._convolutions()]
        return StemState(tuple(weight.new_zeros(batch, 1, weight.shape[1]) for weight in weights))

    def advance(self, features: Tensor, own: int, state: StemState) -> tuple[Tensor, StemState]:
        """As :meth:`Conv4x.advance`: features (batch, states * factor + 1, n_mels), the next states' frames and the
        one after them, which comes again as the first one of the next call."""
        x, kept = _own(features, own), []
        for conv, before in zip(self._convolutions(), state.inputs, strict=True):
            first = conv is self.conv1
            kept.append(x[:, -2:-1].clone() if first else x[:, -1:].clone())
            # As a product of matrices: for a few frames that is three times as quick as conv1d.
            windows = torch.cat([before, x], 1).unfold(1, 3, conv.stride[0]).flatten(2)
            x = F.linear(windows, conv.weight.flatten(1), conv.bias)
            own = own if first else (own + 1) // 2
            x = _own(F.gelu(x) if first or conv is self.conv2 else x, own)
        return x, StemState(tuple(kept))

    def _convolutions(self) -> list[nn.Conv1d]:
        return [conv for conv in (self.conv1, self.conv2, self.join, self.join_again) if conv is not None]


def build_subsampling(config: ModelConfig) -> Conv4x | WhisperStem:
    """Return the stem that config.encoder.subsampling names."""
    return Conv4x(config) if config.encoder.subsampling == "conv4x" else WhisperStem(config)
