"""Any audio or video file to a mono waveform."""

import ctypes
import io
import os
import stat
import sys
import tempfile
import warnings
import weakref
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

import av
import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

BLOCK = 1 << 18
"""Samples decoded at a time, so that an hour in stereo is never held whole."""
SMALLEST_FILE = 128
"""Bytes; FFmpeg is not asked about smaller files: none holds sound."""
IN_MEMORY = 1 << 24
"""Bytes of a decoded recording, four minutes; a longer one waits in a temporary file."""
LOUDEST = 2.0**31
"""Samples beyond this, or not a number, are an error: even unscaled 32-bit integers stay below."""


class AudioDecodeError(ValueError):
    """A file that exists but gives no sound. Attributes: path, reason."""

    def __init__(self, path: str | Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class StoredAudio:
    """A mono waveform, (samples,) float32, of which only the parts that are asked for need memory."""

    def __init__(self) -> None:
        self._file: IO[bytes] = io.BytesIO()
        self._samples = 0
        self._sounds = False

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, part: slice) -> NDArray[np.float32]:
        start, stop, step = part.indices(self._samples)
        samples = np.empty(max(stop - start, 0), np.float32)
        self._file.seek(4 * start)
        self._file.readinto(samples.data)  # type: ignore[attr-defined]  # both kinds of file have it
        return samples[::step]

    def any(self) -> bool:
        """Tell whether any sample is not zero."""
        return self._sounds

    def append(self, samples: NDArray[np.float32]) -> None:
        """Add samples at the end; MemoryError where there is no room for them."""
        try:
            if isinstance(self._file, io.BytesIO) and 4 * self._samples + samples.nbytes > IN_MEMORY:
                self._to_disk(self._file)
            self._file.seek(0, io.SEEK_END)
            self._file.write(samples.tobytes())
            self._file.flush()
        except OSError as error:
            raise MemoryError(
                f"{tempfile.gettempdir()}: no room for the decoded audio ({error.strerror}); TMPDIR=DIR takes another"
            ) from error
        self._samples += len(samples)
        self._sounds = self._sounds or bool(samples.any())

    def _to_disk(self, before: io.BytesIO) -> None:
        """Move what there is into a temporary file, which goes with this object. One in memory needs no such care:
        an interrupt in Python's own code there would be lost."""
        self._file = tempfile.TemporaryFile()  # noqa: SIM115
        weakref.finalize(self, self._file.close)
        self._file.write(before.getbuffer())


Waveform = NDArray[np.float32] | StoredAudio
"""(samples,) in memory, or what gives such parts."""


class _Decoded:
    """What a decoder has made of a file so far: held as mono at the wanted rate, and never at the file's own.

    A stream may change its rate on the way, as joined MP3 files do.
    """

    def __init__(self, sample_rate: int) -> None:
        self.sample_rate = sample_rate
        self.seconds = 0.0
        self.peak = 0.0
        self.problem = ""  # empty: none
        self.samples = StoredAudio()
        self._rate = 0
        self._resampler: soxr.ResampleStream | None = None

    def add(self, samples: np.ndarray, rate: int) -> None:
        """Take the next (channels, samples) float32, at a possible rate."""
        mono = _mono(samples)
        if not mono.size:
            return
        if rate != self._rate:
            self._finish()
            self._rate = rate
            same = rate == self.sample_rate
            self._resampler = None if same else soxr.ResampleStream(rate, self.sample_rate, 1, quality="HQ")
        self.seconds += len(mono) / rate
        self.peak = float(np.maximum(self.peak, np.abs(mono).max()))  # unlike max(), keeps what is not a number
        self.samples.append(self._resampler.resample_chunk(mono) if self._resampler else mono)

    def ended(self, problem: str = "") -> "_Decoded":
        """Say that nothing follows, and what went wrong."""
        self._finish()
        self.problem = problem or ("" if self.seconds else "holds no samples")
        return self

    def _finish(self) -> None:
        if self._resampler:
            self.samples.append(self._resampler.resample_chunk(np.zeros(0, np.float32), last=True))
        self._resampler = None


def load_audio(path: str | Path, sample_rate: int = 16_000) -> np.ndarray:
    """Decode, mix to mono (mean of the channels) and resample.

    Returns (samples,) float32 at sample_rate Hz, integer formats scaled to [-1, 1]. A damaged file gives what can be
    decoded of it, with a warning.
    Raises FileNotFoundError, or AudioDecodeError for a folder, an empty file, one without sound, or samples that are
    not finite; MemoryError where neither memory nor the folder for temporary files has room.
    """
    return open_audio(path, sample_rate)[:]


def open_audio(path: str | Path, sample_rate: int = 16_000) -> StoredAudio:
    """As :func:`load_audio`, for recordings of hours: all is decoded, but kept on disk where it is long."""
    decoded = _decode(path, sample_rate)
    if not decoded.peak <= LOUDEST:
        raise AudioDecodeError(path, f"holds samples that are not sound (largest: {decoded.peak:g}); export it again")
    if not len(decoded.samples):
        raise AudioDecodeError(path, "holds less than one sample")
    return decoded.samples


def checked_waveform(waveform: np.ndarray) -> NDArray[np.float32]:
    """Return a mono waveform, (samples,) floats, as float32; ValueError for another shape or type, or samples that are
    no sound: not finite, or beyond what any format holds."""
    if waveform.ndim != 1:
        raise ValueError(f"a waveform of shape {waveform.shape} must have one dimension: (samples,), mono")
    if not np.issubdtype(waveform.dtype, np.floating):
        raise ValueError(f"a waveform of type {waveform.dtype} must be floats in [-1, 1]; divide int16 by 32768")
    samples = np.ascontiguousarray(waveform, dtype=np.float32)
    low, high = (samples.min(), samples.max()) if samples.size else (0.0, 0.0)  # a mask of an hour is 60 MB
    if not np.isfinite([low, high]).all():
        raise ValueError("a waveform holds NaN or infinite samples; numpy.nan_to_num(waveform) makes them finite")
    if max(-low, high) > LOUDEST:
        raise ValueError(f"a waveform holds samples up to {max(-low, high):g}; it must be floats in [-1, 1]")
    return samples


def audio_duration(path: str | Path) -> float:
    """Return seconds of audio: from the file's header where it is reliable, else by decoding.

    Raises as load_audio does, though a header alone does not tell whether the rest decodes.
    """
    with _open(path) as file:
        seconds = _ffmpeg_duration(file) if _is_mpeg(file) else _sndfile_duration(file) or _ffmpeg_duration(file)
    return seconds if seconds > 0 else _decode(path, 1_000).seconds


def _open(path: str | Path) -> io.FileIO:
    """Open for both decoders: without a buffer, because libsndfile reads from the descriptor."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise AudioDecodeError(path, "is a folder; name the audio files in it")
        if not stat.S_ISREG(mode):
            raise AudioDecodeError(path, "is not a regular file; save the audio to one first")
        file = open(path, "rb", buffering=0)  # noqa: SIM115
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such file") from None
    except OSError as error:
        raise AudioDecodeError(path, f"cannot be opened ({error.strerror})") from error
    if os.fstat(file.fileno()).st_size == 0:
        file.close()
        raise AudioDecodeError(path, "is empty (0 bytes)")
    return file


def _decode(path: str | Path, sample_rate: int) -> _Decoded:
    attempts = []
    with _open(path) as file:
        for decoder in (_decode_ffmpeg,) if _is_mpeg(file) else (_decode_sndfile, _decode_ffmpeg):
            file.seek(0)
            attempts.append(decoder(file, _Decoded(sample_rate)))
            if attempts[-1].seconds and not any(a.problem for a in attempts if a.seconds):
                return attempts[-1]
    best = max(attempts, key=lambda attempt: attempt.seconds)
    if not best.seconds:
        raise AudioDecodeError(path, attempts[-1].problem)
    problem = next(attempt.problem for attempt in attempts if attempt.seconds)
    warnings.warn(f"{path}: damaged ({problem}); {best.seconds:.2f} s of it could be decoded", stacklevel=4)
    return best


def _is_mpeg(file: io.FileIO) -> bool:
    """Tell whether FFmpeg should decode: MPEG audio, by its first bytes.

    libsndfile takes an MP3's length from its first frame where no header tells it, and loses the rest of one whose bit
    rate falls; and it writes about damaged ones to stderr.
    """
    head = file.read(3)
    file.seek(0)
    return head == b"ID3" or (len(head) == 3 and head[0] == 0xFF and head[1] >= 0xE0)


def _rate_problem(rate: int) -> str:
    """A broken header's sample rate would make resampling take all memory."""
    return "" if 1_000 <= rate <= 1_000_000 else f"has an impossible sample rate ({rate} Hz)"


def _decode_sndfile(file: io.FileIO, decoded: _Decoded) -> _Decoded:
    problem = ""
    try:
        with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            rate, missing = sound.samplerate, sound.frames
            if impossible := _rate_problem(rate):
                return decoded.ended(impossible)
            while len(block := sound.read(max(BLOCK // sound.channels, 1), dtype="float32", always_2d=True)):
                decoded.add(block.T, rate)
                missing -= len(block)
            if 0 < missing < 1 << 40:  # streams of unknown length declare more
                problem = f"{missing / rate:.2f} s missing"
    except (soundfile.LibsndfileError, RuntimeError) as error:
        problem = f"libsndfile: {error}"
    return decoded.ended(problem)


def _sndfile_duration(file: io.FileIO) -> float:
    """Return seconds, or 0 if the header does not tell."""
    try:
        with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            known = 0 < sound.frames < 1 << 40 and not _rate_problem(sound.samplerate)
            return float(sound.frames / sound.samplerate) if known else 0.0
    except (soundfile.LibsndfileError, RuntimeError):
        return 0.0
    finally:
        file.seek(0)


class _ForFFmpeg:
    """A file whose failed seeks return -1, as C's do: PyAV writes tracebacks of exceptions to stderr.

    All of it is C's own: an interrupt must not become an exception in here, where PyAV would drop it.
    """

    def __init__(self, file: io.FileIO) -> None:
        self.read, self.tell, self.name = file.read, file.tell, file.name
        self.seek = partial(_lseek(), file.fileno())


@cache
def _lseek() -> Callable[[int, int, int], int]:
    lseek = ctypes.cdll.msvcrt._lseeki64 if sys.platform == "win32" else ctypes.CDLL(None).lseek
    lseek.argtypes, lseek.restype = (ctypes.c_int, ctypes.c_int64, ctypes.c_int), ctypes.c_int64
    seek: Callable[[int, int, int], int] = lseek
    return seek


def _open_ffmpeg(file: io.FileIO) -> av.container.InputContainer:
    """Open with no right to open anything else: a playlist must not make FFmpeg read other files or addresses."""
    return av.open(_ForFFmpeg(file), "r", options={"protocol_whitelist": "none"}, metadata_errors="replace")


def _decode_ffmpeg(file: io.FileIO, decoded: _Decoded) -> _Decoded:
    problem = ""
    size = os.fstat(file.fileno()).st_size
    if size < SMALLEST_FILE:
        return decoded.ended(f"is too short to hold audio ({size} bytes), or is not audio")
    try:
        with _open_ffmpeg(file) as container:
            stream = container.streams.best("audio")
            if stream is None:
                return decoded.ended("has no audio track that can be decoded")
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:  # the next packet may be whole
                    problem = f"FFmpeg: {error.strerror}"
                    continue
                for frame in frames:
                    if not isinstance(frame, av.AudioFrame):
                        continue
                    if impossible := _rate_problem(frame.sample_rate):
                        problem = impossible
                    else:
                        kept = _within(frame, stream) if container.format.name.startswith("mov") else frame.samples
                        decoded.add(_planar(frame)[:, :kept], frame.sample_rate)
    except (av.FFmpegError, OSError) as error:
        problem = f"FFmpeg: {error.strerror}"
    if problem.startswith("FFmpeg") and not decoded.seconds:
        problem = f"is not audio, or is damaged ({problem})"
    return decoded.ended(problem)


def _within(frame: av.AudioFrame, stream: Any) -> int:
    """Return how many of a frame's samples lie before the end that MP4 tells: padding fills up the last frame."""
    if frame.pts is None or stream.duration is None or stream.time_base is None or frame.time_base is None:
        return int(frame.samples)
    end = ((stream.start_time or 0) + stream.duration) * stream.time_base
    samples = round((end - frame.pts * frame.time_base) * frame.sample_rate)
    return samples if 0 < samples < frame.samples else int(frame.samples)  # a frame behind the end: the end is wrong


def _ffmpeg_duration(file: io.FileIO) -> float:
    """Return seconds, or 0 if they are not known without decoding."""
    if os.fstat(file.fileno()).st_size < SMALLEST_FILE:
        return 0.0
    try:
        with _open_ffmpeg(file) as container:
            stream = container.streams.best("audio")
            if not isinstance(stream, av.AudioStream) or _rate_problem(stream.codec_context.sample_rate):
                return 0.0
            if stream.duration is not None and stream.time_base is not None:
                seconds = float(stream.duration * stream.time_base)
            else:
                seconds = (container.duration or 0) / av.time_base
            if container.format.name == "mp3":  # an estimate, unless it agrees with the frames
                frames = sum(float((p.duration or 0) * p.time_base) for p in container.demux(stream) if p.time_base)
                seconds = seconds if abs(seconds - frames) < 0.15 else frames
            return seconds
    except (av.FFmpegError, OSError):
        return 0.0


def _planar(frame: av.AudioFrame) -> np.ndarray:
    """Return a decoded frame's samples: (channels, samples) float32, integers scaled to [-1, 1]."""
    values: np.ndarray = frame.to_ndarray()
    if not frame.format.is_planar:
        values = values.reshape(-1, frame.layout.nb_channels).T
    if values.dtype == np.uint8:
        return (values.astype(np.float32) - 128) / 128
    if values.dtype.kind == "i":
        return values.astype(np.float32) / np.float32(2 ** (8 * values.dtype.itemsize - 1))
    return values.astype(np.float32)


def _mono(samples: np.ndarray) -> np.ndarray:
    """(channels, samples) to (samples,) float32, the mean."""
    with np.errstate(invalid="ignore", over="ignore"):
        mean: np.ndarray = samples.mean(axis=0, dtype=np.float32)
    return mean
