"""Recordings in all kinds of files, whole and broken: the same ones every time."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
from audio_files import encode

SNDFILE = {"wav": "PCM_16", "flac": "PCM_16", "aiff": "PCM_16", "au": "PCM_16", "caf": "PCM_16", "w64": "PCM_24"}
FFMPEG = {"m4a": "aac", "mp4": "aac", "webm": "libopus", "opus": "libopus", "mp3": "libmp3lame"}
FFMPEG |= {"mka": "pcm_s16le", "mp2": "mp2"}


def write_whole(folder: Path, speech: np.ndarray) -> list[Path]:
    """Write (samples,) at 16 kHz in every format, and in shapes that recorders make; return the paths."""
    paths = []
    for suffix, subtype in SNDFILE.items():
        paths.append(folder / f"a.{suffix}")
        soundfile.write(paths[-1], speech, 16_000, subtype, format=suffix.upper())
    for suffix, codec in FFMPEG.items():
        paths.append(folder / f"b.{suffix}")
        rate = 48_000 if codec in ("libopus", "mp2") else 16_000
        encode(paths[-1], speech, codec, rate, suffix == "mp4", options={"fflags": "bitexact"})  # no random numbers
    many = np.tile(speech[:, None], (1, 8))
    strange = np.where(np.arange(len(speech)) == 999, np.nan, speech)
    for name, samples, rate, subtype in (
        ("24-bit.wav", speech, 16_000, "PCM_24"),
        ("not-a-number.au", strange, 16_000, "FLOAT"),
        ("telephone.wav", speech[::2], 8_000, "ULAW"),
        ("studio.flac", np.repeat(speech, 12), 192_000, "PCM_24"),
        ("eight.wav", many, 48_000, "PCM_16"),
        ("silent.wav", 0 * speech, 44_100, "PCM_16"),
        ("no-samples.wav", speech[:0], 16_000, "PCM_16"),
        ("one-sample.wav", speech[:1], 16_000, "PCM_16"),
    ):
        paths.append(folder / name)
        soundfile.write(paths[-1], samples, rate, subtype)
    return paths


def _cut(data: bytearray, luck: random.Random) -> bytes:
    return data[: int(len(data) * luck.random() ** 2)]


def _beheaded(data: bytearray, luck: random.Random) -> bytes:
    return data[luck.randrange(1, 3000) :]


def _flipped(data: bytearray, luck: random.Random) -> bytes:
    for _ in range(luck.choice([1, 10, 300])):
        data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)
    return data


def _bad_header(data: bytearray, luck: random.Random) -> bytes:
    for _ in range(luck.choice([1, 3, 10])):
        data[luck.randrange(min(len(data), 120))] = luck.choice([0, 1, 127, 128, 255, luck.randrange(256)])
    return data


def _hole(data: bytearray, luck: random.Random) -> bytes:
    at = luck.randrange(len(data))
    return data[:at] + bytes(luck.randrange(4000)) + data[at + luck.randrange(4000) :]


def _noise(data: bytearray, luck: random.Random) -> bytes:
    at = luck.randrange(len(data))
    return data[:at] + luck.randbytes(luck.randrange(1, 4000)) + data[at:]


def _whole(data: bytearray, luck: random.Random) -> bytes:
    return data


DAMAGES: tuple[Callable[[bytearray, random.Random], bytes], ...] = (
    _cut,
    _flipped,
    _bad_header,
    _hole,
    _noise,
    _beheaded,
    _whole,
)


def write_broken(folder: Path, whole: list[Path], count: int, seed: int) -> Iterator[Path]:
    """Write so many files, each a whole one that something has happened to, or only its name; yield the paths."""
    luck = random.Random(seed)
    for i in range(count):
        source = whole[i % len(whole)]
        data = source.read_bytes()
        for damage in luck.choices(DAMAGES, k=luck.choice([1, 1, 2])):
            data = bytes(damage(bytearray(data), luck)) if data else data
        suffix = luck.choice([source.suffix, source.suffix, ".wav", ".mp3", ".txt", ""])
        path = folder / f"{i:04}-{source.stem}{source.suffix[1:]}{suffix}"
        path.write_bytes(data)
        yield path
