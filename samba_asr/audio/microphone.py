"""A microphone's sound in blocks, through sounddevice (PortAudio), which nothing else here needs."""

import queue
from collections.abc import Iterator
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

BLOCK_SECONDS = 0.05
"""Of sound at a time."""
ROOM = 1200
"""Blocks, a minute, that wait to be heard; what comes while there are more is lost."""
_WAIT = 0.5
"""Seconds after which an interrupt is seen where no sound comes; some systems wake no thread that waits for it."""


def _sounddevice() -> Any:
    try:
        import sounddevice
    except ImportError as error:
        raise RuntimeError("a microphone needs sounddevice: pip install 'samba-asr[mic]'") from error
    except OSError as error:  # its package is there; on Linux it does not bring the library
        raise RuntimeError(
            f"a microphone needs PortAudio ({error}): sudo apt install libportaudio2, or as your system names it"
        ) from error
    except Exception as error:  # an exception of its own: no sound system to talk to
        raise RuntimeError(f"a microphone needs PortAudio, which does not start here ({error})") from error
    return sounddevice


def microphones() -> list[str]:
    """Return a line for each device that records: its number and name. RuntimeError as of :class:`Microphone`."""
    sounddevice = _sounddevice()
    default = sounddevice.default.device[0]
    return [
        f"{number}\t{device['name']}{' (default)' if number == default else ''}"
        for number, device in enumerate(sounddevice.query_devices())
        if device["max_input_channels"] > 0
    ]


class Microphone:
    """Iterates over what a microphone hears, from then on: blocks, (samples,) float32 in [-1, 1] at sample_rate.

    device: its number, or a part of its name; None: the system's choice. One that has no such rate is heard at its own
    and resampled. Raises RuntimeError where sounddevice, PortAudio or such a device is missing or cannot be used.
    """

    def __init__(self, device: str | None = None, sample_rate: int = 16_000) -> None:
        sounddevice = _sounddevice()
        chosen = int(device) if device is not None and device.isdecimal() else device
        self._error: type[Exception] = sounddevice.PortAudioError
        self._blocks: queue.SimpleQueue[NDArray[np.float32] | None] = queue.SimpleQueue()
        self.lost = False
        """Whether sound was dropped, because the machine was too busy."""
        try:
            found = sounddevice.query_devices(chosen, "input")
        except (ValueError, self._error) as error:
            wanted = "there is no microphone" if device is None else f"no microphone {device!r}"
            raise RuntimeError(f"{wanted} ({error}); samba-asr mic --list-devices tells which there are") from error
        self.name = str(found["name"])
        form = {"device": chosen, "channels": 1, "dtype": "float32"}
        rate = sample_rate
        try:
            sounddevice.check_input_settings(samplerate=rate, **form)
        except self._error:
            rate = round(found["default_samplerate"])
        self._resampler = None if rate == sample_rate else soxr.ResampleStream(rate, sample_rate, 1, dtype="float32")
        with_name = {"blocksize": round(BLOCK_SECONDS * rate), "callback": self._take, "finished_callback": self.stop}
        try:
            self._stream = sounddevice.InputStream(samplerate=rate, **form, **with_name)
        except self._error as error:
            raise self._unusable(error) from error

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        try:
            self._stream.start()
        except self._error as error:
            raise self._unusable(error) from error
        try:
            while (block := self._next()) is not None:
                yield block if self._resampler is None else self._resampler.resample_chunk(block)
        finally:
            self._stream.close()
        if self._resampler is not None:
            yield self._resampler.resample_chunk(np.zeros(0, np.float32), last=True)

    def stop(self) -> None:
        """Hear no more; may be called from another thread or a signal's handler."""
        self._blocks.put(None)

    def _next(self) -> NDArray[np.float32] | None:
        while True:
            try:
                return self._blocks.get(timeout=_WAIT)
            except queue.Empty:
                continue

    def _take(self, samples: NDArray[np.float32], count: int, times: object, status: Any) -> None:
        """What PortAudio calls from its own thread; samples: (count, 1), not ours to keep."""
        full = self._blocks.qsize() >= ROOM
        self.lost = self.lost or full or bool(status.input_overflow)
        if not full:
            self._blocks.put(samples[:, 0].copy())

    def _unusable(self, error: Exception) -> RuntimeError:
        return RuntimeError(
            f"microphone {self.name!r} cannot be used ({error}): is another program holding it? "
            "--device-name chooses another, samba-asr mic --list-devices tells which there are"
        )
