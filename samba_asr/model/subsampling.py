"""Convolutional stems: log-mel frames to fewer, wider states. Padding is zeroed before every convolution."""

import torch.nn.functional as F
from torch import Tensor, nn

from samba_asr.config import ModelConfig
from samba_asr.ssm.padding import mask_padding
from samba_asr.ssm.pieces import joined, spans

NEIGHBOURS = 2
"""States on either side whose frames reach into a state of :class:`WhisperStem`, and more."""


def _halved(lengths: Tensor) -> Tensor:
    return (lengths + 1) // 2


class Conv4x(nn.Module):
    """Two 3x3 convolutions of stride 2 over time and frequency, then a projection: 100 frames to 25 states."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        channels = config.encoder.subsampling_channels
        bands = (config.features.n_mels + 3) // 4
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


class WhisperStem(nn.Module):
    """Whisper's two Conv1d over time, the second of stride 2 (arXiv 2212.04356): 100 frames to 50 states.

    With whisper4x a third convolution of stride 2 leaves 25 states, with whisper8x a fourth 12.5; each starts as the
    choice of every second one.
    """

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


def build_subsampling(config: ModelConfig) -> Conv4x | WhisperStem:
    """Return the stem that config.encoder.subsampling names."""
    return Conv4x(config) if config.encoder.subsampling == "conv4x" else WhisperStem(config)
