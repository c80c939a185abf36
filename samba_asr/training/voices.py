"""Synthetic speech in many voices: hibari's English voice, its vocoder's parameters bent into other speakers'."""

from typing import Any, NamedTuple

import numpy as np
import soxr
from numpy.typing import NDArray

SAMPLE_RATE = 16_000
LOWEST_PITCH, HIGHEST_PITCH = 50.0, 500.0  # Hz
_VOICED_FROM = 40.0  # Hz; hibari's fundamental frequency is lower where nothing is voiced


class Voice(NamedTuple):
    """A speaker and a way of reading."""

    tract: float
    """Length of the vocal tract, over the original's: formants lie lower where it is longer."""
    pitch: float
    """Fundamental frequency, over the original's."""
    melody: float
    """How far the pitch moves, over the original's, in semitones."""
    speed: float
    """Over the original's."""
    breath: float
    """Natural logarithm of the noise in voiced speech, over the original's."""
    tilt: float
    """Natural logarithm of the amplitude at 12 kHz, over the original's; less of it below."""


def random_voice(rng: np.random.Generator, slowest: float = 1.0, fastest: float = 1.45) -> Voice:
    """Return a low voice or a high one, with even chances, at a speed between these. hibari's own is slow: 2.3 words a
    second, where readers of audio books say 2.7."""
    low = rng.random() < 0.5
    return Voice(
        tract=rng.uniform(1.08, 1.24) if low else rng.uniform(0.92, 1.06),
        pitch=rng.uniform(0.45, 0.72) if low else rng.uniform(0.82, 1.25),
        melody=rng.uniform(0.7, 1.4),
        speed=rng.uniform(slowest, fastest),
        breath=rng.uniform(-0.5, 0.8),
        tilt=rng.uniform(-1.5, 1.0),
    )


class Speaker:
    """hibari-tts (Apache-2.0) with any :class:`Voice`. One thread; 100 s of audio a CPU second or more."""

    def __init__(self) -> None:
        from hibari import SAMPLE_RATE as RATE
        from hibari import Hibari, dsp

        self._engine: Any = Hibari()
        self._synthesise: Any = dsp.synth
        self._rate = RATE

    def __call__(self, text: str, voice: Voice, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return the waveform, (samples,) at 16 kHz in [-1, 1]; empty where nothing can be said."""
        parts = [
            self._speak(ids, voice, rng)
            for ids in map(self._engine.ids, self._engine.phonemize(text))
            if len(ids) > 2  # more than the silence at both ends
        ]
        if not parts:
            return np.zeros(0, np.float32)
        waveform = soxr.resample(np.concatenate(parts), self._rate, SAMPLE_RATE)
        loudest = max(1.0, float(np.abs(waveform).max()))
        return np.asarray(waveform / loudest, np.float32)

    def _speak(self, ids: list[int], voice: Voice, rng: np.random.Generator) -> NDArray[np.float32]:
        inputs = {"ids": np.array([ids], np.int64), "speed": np.array([voice.speed], np.float32)}
        harmonics, phases, noise, residue, delays, pitch = (output[0] for output in self._engine.sess.run(None, inputs))
        bent = bend(harmonics, phases, noise, residue, delays, pitch, voice)
        waveform: NDArray[np.float32] = self._synthesise(*bent, rng)
        return waveform


def bend(
    harmonics: NDArray[np.float32],
    phases: NDArray[np.float32],
    noise: NDArray[np.float32],
    residue: NDArray[np.float32],
    delays: NDArray[np.float32],
    pitch: NDArray[np.float32],
    voice: Voice,
) -> tuple[NDArray[np.float32], ...]:
    """Return hibari's vocoder parameters for another voice, in the same order: spectra (bins, frames), the first and
    third as natural logarithms, and the pitch in Hz (frames,), below 40 where nothing is voiced."""
    bins = len(harmonics)
    warped = [stretch(spectrum, voice.tract) for spectrum in (harmonics, phases, noise, residue)]
    nearest = np.round(np.minimum(np.arange(bins) * voice.tract, bins - 1)).astype(int)
    tilt = voice.tilt * np.linspace(0, 1, bins)[:, None]
    # A lower voice has more harmonics in each band: as loud in all, each must be fainter.
    warped[0] = warped[0] + 0.5 * np.log(voice.pitch) + tilt
    warped[2] = warped[2] + voice.breath
    pitch = pitch.copy()
    voiced = pitch > _VOICED_FROM
    if voiced.any():
        log_pitch = np.log(pitch[voiced])
        middle = np.median(log_pitch)
        moved = np.exp(middle + np.log(voice.pitch) + (log_pitch - middle) * voice.melody)
        pitch[voiced] = moved.clip(LOWEST_PITCH, HIGHEST_PITCH)
    return (*(spectrum.astype(np.float32) for spectrum in (*warped, delays[nearest], pitch)),)


def stretch(spectrum: NDArray[np.float32], factor: float) -> NDArray[np.float32]:
    """Move what stands at bin ``factor * k`` to bin k, (bins, frames), linearly between bins; the last bin goes on."""
    where = np.minimum(np.arange(len(spectrum)) * factor, len(spectrum) - 1)
    low = np.minimum(where.astype(int), len(spectrum) - 2)
    share = (where - low)[:, None]
    result: NDArray[np.float32] = (spectrum[low] * (1 - share) + spectrum[low + 1] * share).astype(np.float32)
    return result
