"""Any audio or video file to a mono waveform."""

import io
import os
import stat
import warnings
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import soundfile
import soxr

BLOCK = 1 << 18
"""Samples decoded at a time, so that an hour in stereo is never held whole."""
SMALLEST_FILE = 128
"""Bytes; FFmpeg is not asked about smaller files: none holds sound."""
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


class _Decoded(NamedTuple):
    samples: np.ndarray  # (samples,) float32, mean of the channels
    sample_rate: int
    problem: str  # empty: none

    @property
    def seconds(self) -> float:
        return len(self.samples) / max(self.sample_rate, 1)


def load_audio(path: str | Path, sample_rate: int = 16_000) -> np.ndarray:
    """Decode, mix to mono (mean of the channels) and resample.

    Returns (samples,) float32 at sample_rate Hz, integer formats scaled to [-1, 1]. A damaged file gives what can be
    decoded of it, with a warning.
    Raises FileNotFoundError, or AudioDecodeError for a folder, an empty file, one without sound, or samples that are
    not finite.
    """
    samples, rate, _ = _decode(path)
    peak = float(np.abs(samples).max())
    if not peak <= LOUDEST:
        raise AudioDecodeError(path, f"holds samples that are not sound (largest: {peak:g}); export it again")
    if rate != sample_rate:
        samples = soxr.resample(samples, rate, sample_rate, quality="HQ")
    if not samples.size:
        raise AudioDecodeError(path, "holds less than one sample")
    return samples


def audio_duration(path: str | Path) -> float:
    """Return seconds of audio: from the file's header where it is reliable, else by decoding.

    Raises as load_audio does, though a header alone does not tell whether the rest decodes.
    """
    with _open(path) as file:
        seconds = _ffmpeg_duration(file) if _is_mpeg(file) else _sndfile_duration(file) or _ffmpeg_duration(file)
    if seconds > 0:
        return seconds
    samples, rate, _ = _decode(path)
    return len(samples) / rate


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


def _decode(path: str | Path) -> _Decoded:
    attempts = []
    with _open(path) as file:
        for decoder in (_decode_ffmpeg,) if _is_mpeg(file) else (_decode_sndfile, _decode_ffmpeg):
            file.seek(0)
            attempts.append(decoder(file))
            if attempts[-1].samples.size and not any(a.problem for a in attempts if a.samples.size):
                return attempts[-1]
    best = max(attempts, key=lambda attempt: attempt.seconds)
    if not best.samples.size:
        raise AudioDecodeError(path, attempts[-1].problem)
    problem = next(attempt.problem for attempt in attempts if attempt.samples.size)
    warnings.warn(f"{path}: damaged ({problem}); {best.seconds:.2f} s of it could be decoded", stacklevel=3)
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


def _joined(blocks: list[np.ndarray], rate: int, problem: str = "") -> _Decoded:
    if blocks and not _rate_problem(rate):
        return _Decoded(np.concatenate(blocks), rate, problem)
    return _Decoded(np.zeros(0, np.float32), 0, (blocks and _rate_problem(rate)) or problem or "holds no samples")


def _decode_sndfile(file: io.FileIO) -> _Decoded:
    blocks: list[np.ndarray] = []
    rate, problem = 0, ""
    try:
        with soundfile.SoundFile(file.fileno(), closefd=False) as sound:
            rate = sound.samplerate
            missing = sound.frames
            while len(block := sound.read(max(BLOCK // sound.channels, 1), dtype="float32", always_2d=True)):
                blocks.append(_mono(block.T))
                missing -= len(block)
            if 0 < missing < 1 << 40:  # streams of unknown length declare more
                problem = f"{missing / rate:.2f} s missing"
    except (soundfile.LibsndfileError, RuntimeError) as error:
        problem = f"libsndfile: {error}"
    return _joined(blocks, rate, problem)


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


def _open_ffmpeg(file: io.FileIO) -> av.container.InputContainer:
    """Open with no right to open anything else: a playlist must not make FFmpeg read other files or addresses."""
    return av.open(file, "r", options={"protocol_whitelist": "none"}, metadata_errors="replace")


def _decode_ffmpeg(file: io.FileIO) -> _Decoded:
    blocks: list[np.ndarray] = []
    rate, problem = 0, ""
    size = os.fstat(file.fileno()).st_size
    if size < SMALLEST_FILE:
        return _joined([], rate, f"is too short to hold audio ({size} bytes), or is not audio")
    try:
        with _open_ffmpeg(file) as container:
            stream = container.streams.best("audio")
            if stream is None:
                return _joined([], rate, "has no audio track that can be decoded")
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.FFmpegError as error:  # the next packet may be whole
                    problem = f"FFmpeg: {error.strerror}"
                    continue
                for frame in frames:
                    if isinstance(frame, av.AudioFrame):
                        rate = rate or frame.sample_rate
                        blocks.append(_mono(_planar(frame)))
    except (av.FFmpegError, OSError) as error:
        problem = f"FFmpeg: {error.strerror}" if blocks else f"is not audio, or is damaged (FFmpeg: {error.strerror})"
    return _joined(blocks, rate, problem)


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
