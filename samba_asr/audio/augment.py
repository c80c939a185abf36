"""Augmentation for training: SpecAugment (Park et al. 2019) and speed perturbation (Ko et al. 2015).

torchaudio's transforms where it can be imported, else torch code that draws the same numbers in the same order. All
randomness comes from torch's global generator on the CPU.
"""

import functools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samba_asr.audio.torchaudio_import import torchaudio_transforms

LOWPASS_WIDTH = 6
"""Zero crossings of the sinc kept on either side; torchaudio's default."""
ROLLOFF = 0.99
"""Share of the Nyquist frequency kept; torchaudio's default."""


class SpecAugment:
    """Mask stripes of time and of frequency with the utterance's mean.

    n_time_masks stripes, each up to time_mask_share of the utterance's own frames wide, and n_freq_masks stripes, each
    up to freq_mask_bands bands wide. Raises ValueError for a negative number or a share outside [0, 1).
    """

    def __init__(
        self,
        n_time_masks: int = 5,
        time_mask_share: float = 0.05,
        n_freq_masks: int = 2,
        freq_mask_bands: int = 27,
    ) -> None:
        for name, count in (
            ("n_time_masks", n_time_masks),
            ("n_freq_masks", n_freq_masks),
            ("freq_mask_bands", freq_mask_bands),
        ):
            if count < 0:
                raise ValueError(f"{name} ({count}) must be 0 (none) or positive")
        if not 0 <= time_mask_share < 1:
            raise ValueError(f"time_mask_share ({time_mask_share}) must be in [0, 1)")
        self.n_time_masks = n_time_masks
        self.time_mask_share = time_mask_share
        self.n_freq_masks = n_freq_masks
        self.freq_mask_bands = freq_mask_bands

    def __call__(self, features: Tensor, lengths: Tensor) -> Tensor:
        """Return a masked copy of features (batch, frames, n_mels); lengths: (batch,) frames. Padding stays."""
        frames = lengths.tolist()
        widest = [int(length * self.time_mask_share) for length in frames]
        bands = min(self.freq_mask_bands, features.shape[2])
        # torchaudio masks one utterance after the other, which on a GPU takes thousands of small kernels.
        transforms = torchaudio_transforms() if features.device.type == "cpu" else None
        if transforms is None:
            return mask_stripes(features, frames, self.n_time_masks, widest, self.n_freq_masks, bands)
        augment = transforms.SpecAugment(self.n_time_masks, 0, self.n_freq_masks, bands)
        masked = features.clone()
        for i, length in enumerate(frames):
            if length:
                augment.time_mask_param = widest[i]  # its p would bound the frequency masks as well
                masked[i, :length] = augment(features[i, :length].T).T
        return masked


def mask_stripes(
    features: Tensor, frames: Sequence[int], n_time_masks: int, widest: Sequence[int], n_freq_masks: int, bands: int
) -> Tensor:
    """Mask as torchaudio's SpecAugment does, one utterance after the other.

    features: (batch, time, n_mels); frames and widest, per utterance: its length and its widest time mask in frames;
    bands: the widest frequency mask. A width is drawn from uniform(0, widest), then a start from uniform(0, size -
    width), and both are rounded down.
    """
    batch, time, n_mels = features.shape
    masks = n_time_masks + n_freq_masks
    size = torch.tensor([[length] * n_time_masks + [n_mels] * n_freq_masks for length in frames]).view(batch, masks)
    limit = torch.tensor([[width] * n_time_masks + [bands] * n_freq_masks for width in widest]).view(batch, masks)
    lengths = torch.tensor(frames, dtype=torch.int64)
    drawn = (limit > 0) & (lengths[:, None] > 0)  # (batch, masks); no others take numbers
    draws = torch.zeros(batch, masks, 2)
    draws[drawn] = torch.rand(int(drawn.sum()), 2)
    width = draws[:, :, 0] * limit
    start = (draws[:, :, 1] * (size - width)).long()
    end = start + width.long()
    start, end = start[:, :, None].to(features.device), end[:, :, None].to(features.device)

    steps = torch.arange(max(time, n_mels), device=features.device)
    inside = (steps >= start) & (steps < end)  # (batch, masks, max(time, n_mels))
    time_masked = inside[:, :n_time_masks, :time].any(1)
    freq_masked = inside[:, n_time_masks:, :n_mels].any(1)
    lengths = lengths.to(features.device)
    own = (steps[:time] < lengths[:, None])[:, :, None]  # (batch, time, 1)
    mean = torch.where(own, features, 0).sum((1, 2)) / (lengths * n_mels).clamp_min(1)
    return torch.where((time_masked[:, :, None] | freq_masked[:, None, :]) & own, mean[:, None, None], features)


class SpeedPerturbation:
    """Play a waveform at a factor drawn uniformly from factors; pitch and length change.

    Raises ValueError for no factors or one that is not positive.
    """

    def __init__(self, sample_rate: int = 16_000, factors: Sequence[float] = (0.9, 1.0, 1.1)) -> None:
        if not factors or any(int(factor * sample_rate) < 1 for factor in factors):
            raise ValueError(f"factors ({list(factors)}) must be one or more positive numbers")
        self.sample_rate = sample_rate
        self.factors = tuple(factors)

    def __call__(self, waveform: Tensor) -> Tensor:
        """(samples,) float32 to (ceil(samples / factor),)."""
        perturb = _torchaudio_perturbation(self.sample_rate, self.factors)
        if perturb is not None:
            perturbed: Tensor = perturb(waveform)[0]
            return perturbed
        return change_speed(waveform, self.sample_rate, self.factors[int(torch.randint(len(self.factors), ()))])


@functools.cache
def _torchaudio_perturbation(sample_rate: int, factors: tuple[float, ...]) -> nn.Module | None:
    """Not kept in the object, which a worker process could then not unpickle where torchaudio needs its stand-in."""
    transforms = torchaudio_transforms()
    return None if transforms is None else transforms.SpeedPerturbation(sample_rate, factors)


def change_speed(waveform: Tensor, sample_rate: int, factor: float) -> Tensor:
    """Resample (samples,) by windowed sinc interpolation, as torchaudio's Speed does, to (ceil(samples / factor),)."""
    source, target = int(factor * sample_rate), sample_rate
    divisor = math.gcd(source, target)
    source, target = source // divisor, target // divisor
    if source == target:
        return waveform
    kernel, width = _sinc_kernel(source, target)
    padded = F.pad(waveform, (width, width + source))
    phases = F.conv1d(padded[None, None], kernel.to(waveform), stride=source)[0]  # (target, samples / source)
    return phases.T.reshape(-1)[: math.ceil(target * len(waveform) / source)]


@functools.cache
def _sinc_kernel(source: int, target: int) -> tuple[Tensor, int]:
    """Hann-windowed sincs for each of target output phases: (target, 1, 2 * width + source), and width in samples."""
    cutoff = min(source, target) * ROLLOFF
    width = math.ceil(LOWPASS_WIDTH * source / cutoff)
    inputs = torch.arange(-width, width + source, dtype=torch.float64) / source
    outputs = torch.arange(target, dtype=torch.float64)[:, None] / target
    time = ((inputs - outputs) * cutoff).clamp(-LOWPASS_WIDTH, LOWPASS_WIDTH)
    kernel = torch.sinc(time) * torch.cos(time * math.pi / LOWPASS_WIDTH / 2).square() * cutoff / source
    return kernel[:, None].float(), width
