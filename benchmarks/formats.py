"""What a file's format changes in the words: the same recordings as wav, flac, mp3, m4a and at 44.1 kHz in stereo.

python benchmarks/formats.py --manifest OUT/librispeech-dev-clean.jsonl --limit 100

Each recording becomes 16-bit wav at the model's rate, and from that the other files; all are transcribed as files. The
table counts the texts that are not those of the wav, and the word error rates against these and against the manifest.
Flac loses nothing: a single other text there is an error, and the exit status 1.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import get_args

import av
import numpy as np
import soundfile
import soxr
import torch
from tqdm import tqdm

from samba_asr.audio.load import load_audio
from samba_asr.config import Search
from samba_asr.evaluation.arguments import positive_int
from samba_asr.evaluation.wer import WER, count_errors, normalize_for_scoring
from samba_asr.training.manifest import Utterance, read_manifest
from samba_asr.transcriber import Transcriber

BASE, LOSSLESS = "wav", "flac"


def encoded(codec: str, bit_rate: int) -> Callable[[Path, np.ndarray, int], None]:
    """Return what writes (samples,) int16 at a rate in Hz with one of FFmpeg's codecs."""

    def write(path: Path, samples: np.ndarray, rate: int) -> None:
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate, layout="mono", bit_rate=bit_rate)
            frame = av.AudioFrame.from_ndarray(samples[None], "s16", "mono")
            frame.sample_rate, frame.pts, frame.time_base = (
                rate,
                0,
                Fraction(1, rate),
            )  # so that the codec's delay is told
            resampler = av.AudioResampler(stream.format, "mono", rate, stream.codec_context.frame_size or None)
            for piece in [*resampler.resample(frame), *resampler.resample(None)]:
                container.mux(stream.encode(piece))
            container.mux(stream.encode(None))

    return write


def plain(path: Path, samples: np.ndarray, rate: int) -> None:
    """Write (samples,) int16 in the format that the path ends in."""
    soundfile.write(path, samples, rate, "PCM_16")


def studio(path: Path, samples: np.ndarray, rate: int) -> None:
    """Write (samples,) int16 at 44.1 kHz in two channels."""
    resampled = soxr.resample(samples, rate, 44_100, quality="HQ")
    soundfile.write(path, np.stack([resampled, resampled], axis=1), 44_100, "PCM_16")


FORMATS: Mapping[str, tuple[str, Callable[[Path, np.ndarray, int], None]]] = {
    BASE: ("a.wav", plain),
    LOSSLESS: ("a.flac", plain),
    "mp3, 128 kbit/s": ("a.mp3", encoded("libmp3lame", 128_000)),
    "m4a (AAC), 64 kbit/s": ("a.m4a", encoded("aac", 64_000)),
    "wav, 44.1 kHz, stereo": ("b.wav", studio),
}
"""By its name in the table: a file's name, and what writes it."""


def texts_of(transcriber: Transcriber, utterance: Utterance, folder: Path) -> dict[str, str]:
    """Return what is written for one recording in each format, normalised. Raises as :func:`load_audio` does."""
    samples = (load_audio(utterance.audio, transcriber.sample_rate) * 32_767).clip(-32_768, 32_767).astype(np.int16)
    texts = {}
    for name, (file, write) in FORMATS.items():
        write(folder / file, samples, transcriber.sample_rate)
        texts[name] = normalize_for_scoring(transcriber.transcribe(folder / file).text)
    return texts


def table(texts: Sequence[Mapping[str, str]], references: Sequence[str]) -> str:
    """texts: each recording's, by format; references: what was said."""
    lines = ["| format | other texts | WER against the wav | WER |", "|---|---:|---:|---:|"]
    for name in FORMATS:
        own, base = ([each[key] for each in texts] for key in (name, BASE))
        other = sum(a != b for a, b in zip(own, base, strict=True))
        lines.append(f"| {name} | {other} | {100 * rate(base, own):.2f} % | {100 * rate(references, own):.2f} % |")
    return "\n".join(lines)


def rate(references: Iterable[str], hypotheses: Iterable[str]) -> float:
    """Return the word error rate of a set of normalised texts."""
    return sum(map(count_errors, references, hypotheses), WER()).rate


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, metavar="JSONL", help="recordings")
    parser.add_argument("--limit", type=positive_int, default=100, metavar="N", help="so many, evenly spread (100)")
    parser.add_argument("--model", help="checkpoint folder, or a name in pretrained/ (default: as transcribe.py)")
    parser.add_argument("--search", choices=get_args(Search), help="how to search (the model's)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: PyTorch's)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status: 0, 1 if flac changed a text, 2 for wrong usage."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        utterances = read_manifest(options.manifest)
        count = min(options.limit, len(utterances))
        utterances = [utterances[i * len(utterances) // count] for i in range(count)]
        transcriber = Transcriber.load(options.model, search=options.search)
        with tempfile.TemporaryDirectory() as folder:
            bar = tqdm(utterances, unit="utt", file=sys.stderr)
            texts = [texts_of(transcriber, utterance, Path(folder)) for utterance in bar]
    except (OSError, ValueError) as error:
        print(f"formats.py: error: {error}", file=sys.stderr)
        return 2
    print(f"{transcriber.name}, {transcriber.search.search}, {len(texts)} recordings\n")
    print(table(texts, [normalize_for_scoring(utterance.text) for utterance in utterances]))
    return int(any(each[LOSSLESS] != each[BASE] for each in texts))


if __name__ == "__main__":
    sys.exit(main())
