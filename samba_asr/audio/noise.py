"""Augmentation of training waveforms by a room's echo, noise and level, all in plain torch, on the CPU.

All randomness comes from the generator that is handed over, or from torch's global one.
"""

import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from samba_asr.audio.load import AudioDecodeError, load_audio

NOISE_CORNER = 50.0
"""Hertz; coloured noise is flat below, or most of its power would be where nobody hears it."""
ECHO_DELAY = 0.0025
"""Seconds from the direct sound to the first echo: a detour of 0.86 m."""
FULL_SCALE = 1.0
"""Largest sample that raising the level may lead to."""

_DECAY = math.log(1000)  # natural logarithm of 60 dB in amplitude
_INT16_MAX = 32767
_PROBABILITIES = ("room_probability", "noise_probability", "gain_probability", "noise_only_probability")
_RANGES = ("room_rt60", "room_direct_ratio", "noise_snr", "noise_slope", "gain", "noise_only_level")

_log = logging.getLogger(__name__)


class WaveformAugment:
    """Put speech into a room, add noise and change the level, each with a probability of its own, in this order.

    Args:
        sample_rate: Hz.
        noises: recordings at that rate, each (samples,) of any type; without any, coloured noise is made.
        room_probability: of an echo.
        room_rt60: seconds in which the echo fades by 60 dB, lowest and highest, as in all ranges here.
        room_direct_ratio: power of the direct sound over that of the echo, dB.
        noise_probability: of noise.
        noise_snr: mean power of the speech, pauses included, over that of the noise, dB.
        noise_slope: of coloured noise, dB an octave: white is 0, pink -3, brown -6.
        gain_probability: of another level.
        gain: change of the level, dB; no sample is raised beyond full scale.
        noise_only_probability: of noise in the utterance's stead, see :meth:`noise_only`.
        noise_only_level: mean power of that noise over that of the utterance, dB.

    Raises ValueError for probabilities outside [0, 1] and ranges that are empty or cannot be.
    """

    def __init__(
        self,
        sample_rate: int = 16_000,
        noises: Sequence[Tensor] = (),
        *,
        room_probability: float = 0.0,
        room_rt60: tuple[float, float] = (0.15, 0.8),
        room_direct_ratio: tuple[float, float] = (0.0, 15.0),
        noise_probability: float = 0.0,
        noise_snr: tuple[float, float] = (5.0, 30.0),
        noise_slope: tuple[float, float] = (-6.0, 0.0),
        gain_probability: float = 0.0,
        gain: tuple[float, float] = (-12.0, 6.0),
        noise_only_probability: float = 0.0,
        noise_only_level: tuple[float, float] = (-40.0, 0.0),
    ) -> None:
        self.sample_rate = sample_rate
        self.noises = [noise for noise in noises if noise.any()]
        self.room_probability = room_probability
        self.room_rt60 = room_rt60
        self.room_direct_ratio = room_direct_ratio
        self.noise_probability = noise_probability
        self.noise_snr = noise_snr
        self.noise_slope = noise_slope
        self.gain_probability = gain_probability
        self.gain = gain
        self.noise_only_probability = noise_only_probability
        self.noise_only_level = noise_only_level
        for name in _PROBABILITIES:
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be in [0, 1]")
        for name in _RANGES:
            low, high = getattr(self, name)
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise ValueError(f"{name} ({low}, {high}) must be two numbers, the lower first")
        if room_rt60[0] <= 0:
            raise ValueError(f"room_rt60 {tuple(room_rt60)} must be positive seconds")

    @property
    def active(self) -> bool:
        """Whether it ever changes anything."""
        return any(getattr(self, name) > 0 for name in _PROBABILITIES)

    def noise_only(self, waveform: Tensor, generator: Generator | None = None) -> Tensor | None:
        """Return noise in the stead of a waveform (samples,), as long as it is, in which nobody speaks: a recording or,
        for half of them and without any, coloured noise. None for those that keep their speech."""
        if not self.noise_only_probability or not waveform.any():
            return None
        drawn = torch.rand(2, generator=generator).tolist()
        if drawn[0] >= self.noise_only_probability:
            return None
        noise = self._noise(len(waveform), generator) if drawn[1] < 0.5 else self._made(len(waveform), generator)
        level = _rms(waveform) * 10 ** (_uniform(self.noise_only_level, generator) / 20)
        return noise * (level / max(_rms(noise), torch.finfo(torch.float32).tiny))

    def __call__(self, waveform: Tensor, generator: Generator | None = None) -> Tensor:
        """Return (samples,) float32 of the same length; the waveform itself, (samples,) float32, is left alone.

        Silence stays what it is. Whether a change is made does not hang on the others' probabilities.
        """
        drawn = torch.rand(3, generator=generator).tolist()
        if not waveform.any():
            return waveform
        if drawn[0] < self.room_probability:
            rt60, ratio = _uniform(self.room_rt60, generator), _uniform(self.room_direct_ratio, generator)
            waveform = add_echo(waveform, impulse_response(rt60, ratio, self.sample_rate, generator))
        if drawn[1] < self.noise_probability:
            snr = _uniform(self.noise_snr, generator)
            waveform = add_noise(waveform, self._noise(len(waveform), generator), snr)
        if drawn[2] < self.gain_probability:
            waveform = change_level(waveform, _uniform(self.gain, generator))
        return waveform

    def _noise(self, samples: int, generator: Generator | None) -> Tensor:
        if not self.noises:
            return self._made(samples, generator)
        recording = self.noises[_integer(len(self.noises), generator)]
        return excerpt(recording, samples, generator).float()

    def _made(self, samples: int, generator: Generator | None) -> Tensor:
        return coloured_noise(samples, _uniform(self.noise_slope, generator), self.sample_rate, generator)


def add_echo(waveform: Tensor, response: Tensor) -> Tensor:
    """Convolve (samples,) with an impulse response (taps,); same length, same mean power, the rest of the tail lost."""
    samples, overlap = len(waveform), len(response) - 1
    size = 2 ** max(math.ceil(math.log2(2 * len(response))), 12)
    hop = size - overlap
    blocks = math.ceil(samples / hop)
    # Many short transforms (overlap-save) are several times faster than one of the whole length.
    padded = F.pad(waveform, (overlap, blocks * hop - samples)).unfold(0, size, hop)  # (blocks, size)
    spectra = torch.fft.rfft(padded) * torch.fft.rfft(response, size)
    echoed: Tensor = torch.fft.irfft(spectra, size)[:, overlap:].reshape(-1)[:samples]
    return echoed * (_rms(waveform) / max(_rms(echoed), torch.finfo(torch.float32).tiny))


def impulse_response(
    rt60: float, direct_ratio: float, sample_rate: int = 16_000, generator: Generator | None = None
) -> Tensor:
    """Return a made-up room's impulse response: (taps,) float32.

    The direct sound, 1 at tap 0, then Gaussian noise that fades by 60 dB in rt60 seconds and ends there. direct_ratio:
    energy of the direct sound over that of the noise, dB.
    """
    delay = math.ceil(ECHO_DELAY * sample_rate)
    taps = max(math.ceil(rt60 * sample_rate), 1)
    fading = torch.exp(torch.arange(taps) * (-_DECAY / (rt60 * sample_rate)))
    echo = torch.randn(taps, generator=generator) * fading
    response = torch.zeros(delay + taps)
    response[0] = 1.0
    response[delay:] = echo * (10 ** (-direct_ratio / 20) / float(echo.norm()))
    return response


def add_noise(waveform: Tensor, noise: Tensor, snr: float) -> Tensor:
    """Add noise (samples,) to a waveform (samples,) so that their mean powers are snr dB apart; silent noise: none."""
    level = _rms(noise)
    return waveform + noise * (_rms(waveform) * 10 ** (-snr / 20) / level) if level else waveform


def excerpt(recording: Tensor, samples: int, generator: Generator | None = None) -> Tensor:
    """Return samples of a recording (any number above 0,) from a random place on, in a loop if it is shorter."""
    length = len(recording)
    if length >= samples:
        start = _integer(length - samples + 1, generator)
        return recording[start : start + samples]
    start = _integer(length, generator)
    return recording.repeat(samples // length + 2)[start : start + samples]


def coloured_noise(samples: int, slope: float, sample_rate: int = 16_000, generator: Generator | None = None) -> Tensor:
    """Return (samples,) float32 of Gaussian noise whose power changes by slope dB an octave from NOISE_CORNER up."""
    size = _fast_size(samples)
    bins = size // 2 + 1
    frequencies = torch.arange(bins) * (sample_rate / size)
    envelope = (frequencies / NOISE_CORNER).clamp_min(1.0) ** (slope / (20 * math.log10(2)))
    envelope[0] = 0.0
    spectrum = torch.view_as_complex(torch.randn(bins, 2, generator=generator))
    noise: Tensor = torch.fft.irfft(spectrum * envelope, size)
    return noise[:samples]


def change_level(waveform: Tensor, decibels: float) -> Tensor:
    """Return (samples,) louder or softer; not so loud that a sample passes full scale."""
    factor = 10 ** (decibels / 20)
    if factor > 1:
        factor = max(1.0, min(factor, FULL_SCALE / float(waveform.abs().max())))
    return waveform * factor


def load_noises(folder: str | Path, sample_rate: int = 16_000) -> list[Tensor]:
    """Read all recordings in a folder and its subfolders, in the order of their paths.

    Each (samples,) int16, raised to full scale: only its shape matters, and this halves the memory. Files that hold no
    audio are left out, with a line in the log.

    Raises FileNotFoundError without such a folder, ValueError if nothing in it is a recording.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"noise folder {folder} does not exist")
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("."))

    def load(path: Path) -> Tensor | None:
        try:
            waveform = torch.from_numpy(load_audio(path, sample_rate))
        except AudioDecodeError as error:
            _log.info("noise: left out %s", error)
            return None
        peak = float(waveform.abs().max())
        return (waveform * (_INT16_MAX / peak)).round().short() if peak else None

    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as pool:
        noises = [noise for noise in pool.map(load, paths) if noise is not None]
    if not noises:
        raise ValueError(f"noise folder {folder} holds no recording that can be read and is not silent")
    seconds = sum(len(noise) for noise in noises) / sample_rate
    _log.info("noise: %d recordings, %.2f h", len(noises), seconds / 3600)
    return noises


def _rms(waveform: Tensor) -> float:
    return float(waveform.norm()) / math.sqrt(len(waveform))


def _uniform(limits: tuple[float, float], generator: Generator | None) -> float:
    return limits[0] + (limits[1] - limits[0]) * float(torch.rand((), generator=generator))


def _integer(count: int, generator: Generator | None) -> int:
    return int(torch.randint(count, (), generator=generator))


def _fast_size(least: int) -> int:
    """Return an even number of small factors that is not much larger, for the Fourier transform."""
    powers = (2 ** max(math.ceil(math.log2(least / odd)), 1) * odd for odd in (1, 3, 5, 9, 15, 25, 27))
    return int(min(powers))
