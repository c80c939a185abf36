"""Log-mel features, as a module that travels inside a checkpoint."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samba_asr.config import FeatureConfig

SMALLEST_POWER = 1e-10
"""Mel power is clamped here before the logarithm, as in Whisper."""
FRAMES_AT_ONCE = 4096
"""Frames whose spectra fit a processor's cache."""


def librosa_mel_filters(config: FeatureConfig) -> Tensor:
    """Return librosa's mel filters (Slaney's scale and area norm): (n_mels, n_fft // 2 + 1) float32."""
    import librosa

    filters = librosa.filters.mel(sr=config.sample_rate, n_fft=config.n_fft, n_mels=config.n_mels)
    return torch.from_numpy(filters).float()


class LogMel(nn.Module):
    """Waveforms to normalised log10 mel power, in float32 whatever autocast says.

    Frame i is centred on sample i * hop_length. Before its first sample an utterance is reflected, as in Whisper; after
    its last one it continues with zeros, whatever stands in the batch's padding. Frames past its own are zero.

    Buffers, kept in the checkpoint: mel_filters (n_mels, n_fft // 2 + 1); mean and std (n_mels), which only the
    normalisation "global" reads.

    mel_filters: (n_mels, n_fft // 2 + 1); None asks librosa for them. Raises ValueError for another shape.
    """

    mel_filters: Tensor
    mean: Tensor
    std: Tensor
    window: Tensor

    def __init__(self, config: FeatureConfig, mel_filters: Tensor | None = None) -> None:
        super().__init__()
        self.config = config
        if mel_filters is None:
            mel_filters = librosa_mel_filters(config)
        expected = (config.n_mels, config.n_fft // 2 + 1)
        if mel_filters.shape != expected:
            raise ValueError(f"mel_filters has shape {tuple(mel_filters.shape)}; the config asks for {expected}")
        self.register_buffer("mel_filters", mel_filters.detach().float().clone())
        self.register_buffer("mean", torch.zeros(config.n_mels))
        self.register_buffer("std", torch.ones(config.n_mels))
        self.register_buffer("window", torch.hann_window(config.win_length), persistent=False)

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and standard deviation, each (n_mels), of log10 mel power over the training data.

        Raises ValueError for another shape, a value that is not finite, or a std that is not positive.
        """
        for name, value in (("mean", mean), ("std", std)):
            if value.shape != (self.config.n_mels,):
                raise ValueError(f"{name} has shape {tuple(value.shape)}; expected ({self.config.n_mels},)")
            if not bool(torch.isfinite(value).all()):
                raise ValueError(f"{name} holds values that are not finite")
        if not bool((std > 0).all()):
            raise ValueError(f"std (smallest {std.min().item()}) must be positive; a band never changes in this data")
        self.mean.copy_(mean)
        self.std.copy_(std)

    def num_frames(self, waveform_lengths: Tensor) -> Tensor:
        """Samples to frames: ceil(samples / hop_length)."""
        hop = self.config.hop_length
        return torch.div(waveform_lengths + (hop - 1), hop, rounding_mode="floor")

    def forward(self, waveforms: Tensor, waveform_lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Compute features.

        waveforms: (batch, samples), in [-1, 1]; waveform_lengths: (batch,) int64, samples.
        Returns (batch, frames, n_mels) float32 with frames = ceil(samples / hop_length), and (batch,) int64 frames.
        Raises ValueError for other shapes or for integer samples.
        """
        if waveforms.dim() != 2 or waveform_lengths.shape != waveforms.shape[:1]:
            raise ValueError(
                f"waveforms {tuple(waveforms.shape)} and waveform_lengths {tuple(waveform_lengths.shape)} "
                "must be (batch, samples) and (batch,)"
            )
        if not waveforms.is_floating_point():
            raise ValueError(f"waveforms must be floating point in [-1, 1], not {waveforms.dtype}")
        lengths = self.num_frames(waveform_lengths)
        with torch.autocast(waveforms.device.type, enabled=False):
            power = self._mel_power(waveforms, waveform_lengths)
            log_power = power.clamp_min(SMALLEST_POWER).log10()
            own = torch.arange(power.shape[1], device=power.device) < lengths[:, None]  # (batch, frames)
            return self._normalise(log_power, own).masked_fill(~own[:, :, None], 0.0), lengths

    def check_streaming(self) -> None:
        """Raise ValueError where a frame depends on what comes long after it."""
        if self.config.normalisation == "whisper":
            raise ValueError(
                "normalisation ('whisper') needs the loudest frame of the whole recording, which a stream does not "
                "know: take a model trained with 'causal' or 'global'"
            )

    def of_windows(self, samples: Tensor) -> Tensor:
        """Compute the frames of a stretch of a recording, for streams: samples, (batch, samples) float32, begin where
        the first frame's window does, n_fft // 2 before its centre, and end with the last one's.

        Returns (batch, frames, n_mels) float32. Raises ValueError as :meth:`check_streaming`.
        """
        self.check_streaming()
        with torch.autocast(samples.device.type, enabled=False):
            power = self._mel_power_at_once(samples.float())
            return self._normalise(power.clamp_min(SMALLEST_POWER).log10(), None)

    def _mel_power(self, waveforms: Tensor, waveform_lengths: Tensor) -> Tensor:
        """(batch, samples) to (batch, frames, n_mels)."""
        config = self.config
        batch, samples = waveforms.shape
        frames = -(-samples // config.hop_length)
        if batch == 0 or frames == 0:
            return waveforms.new_zeros(batch, frames, config.n_mels, dtype=torch.float32)
        positions = torch.arange(samples, device=waveforms.device)
        waveforms = waveforms.float().masked_fill(positions >= waveform_lengths[:, None], 0.0)

        half = config.n_fft // 2
        after = max((frames - 1) * config.hop_length + config.n_fft - half - samples, half + 1 - samples, 0)
        waveforms = F.pad(waveforms, (0, after))
        waveforms = torch.cat([waveforms[:, 1 : half + 1].flip(1), waveforms], dim=1)
        starts = range(0, frames, FRAMES_AT_ONCE)
        ends = [(min(start + FRAMES_AT_ONCE, frames) - 1) * config.hop_length + config.n_fft for start in starts]
        pieces = [
            self._mel_power_at_once(waveforms[:, start * config.hop_length : end])
            for start, end in zip(starts, ends, strict=True)
        ]
        return torch.cat(pieces, 1)

    def _mel_power_at_once(self, waveforms: Tensor) -> Tensor:
        """(batch, samples), whole windows of the first to the last frame, to (batch, frames, n_mels)."""
        config = self.config
        spectrum = torch.stft(
            waveforms,
            config.n_fft,
            config.hop_length,
            config.win_length,
            window=self.window.float(),
            center=False,
            return_complex=True,
        )
        power = spectrum.real.square() + spectrum.imag.square()  # (batch, n_fft // 2 + 1, frames)
        return power.transpose(1, 2) @ self.mel_filters.float().T

    def _normalise(self, log_power: Tensor, own: Tensor | None) -> Tensor:
        """Normalise (batch, frames, n_mels); own: (batch, frames), true where a frame is the utterance's own, which
        only "whisper" asks for."""
        if self.config.normalisation == "global":
            return (log_power - self.mean.float()) / self.std.float()
        if self.config.normalisation == "causal":
            return (log_power.clamp_min(self.config.log_floor) + 4.0) / 4.0
        assert own is not None
        if log_power.shape[1] == 0:
            return log_power
        loudest = log_power.masked_fill(~own[:, :, None], -torch.inf).amax(dim=(1, 2), keepdim=True)
        return (torch.maximum(log_power, loudest - 8.0) + 4.0) / 4.0
