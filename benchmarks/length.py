"""Speed and errors by the recording's length: the same utterances one by one and joined into longer recordings.

python benchmarks/length.py --model runs/mine/checkpoint --manifest OUT/librispeech-dev-clean.jsonl --search rescoring
python benchmarks/length.py --manifest OUT/librispeech-dev-clean.jsonl --vad --total 3600 --seconds 300 3600 --rounds 1

Utterances that follow each other in the manifest are joined with 0.3 s of silence up to each length, so that every row
of the table holds the same words. Times are medians over rounds that take the lengths in turn: whatever slows the
machine slows all rows. Linear cost shows as the same time for a second of audio in every row; words that get lost or
invented in long recordings show in the word error rates. --vad: recordings of more than 30 s are cut where nobody
speaks, as the command line does; without, the encoder takes them in one pass. Memory is the peak of a process of its
own that transcribes a row's longest recording from a file.
"""

import argparse
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import get_args

import numpy as np
import soundfile
import torch

from samba_asr.audio.load import load_audio
from samba_asr.config import Search
from samba_asr.evaluation.arguments import positive_float, positive_int
from samba_asr.evaluation.report import percent
from samba_asr.evaluation.wer import ScoredUtterance, score
from samba_asr.training.manifest import read_manifest
from samba_asr.transcriber import Transcriber

PAUSE = 0.3
"""Seconds of silence between joined utterances."""
PEAK = """
import resource, sys, torch
from samba_asr.transcriber import Transcriber
path, model, device, search, vad, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
Transcriber.load(model or None, device, search, vad=None if vad == "True" else False).transcribe(path)
kilo = 1 if sys.platform == "darwin" else 1024
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo)
"""
"""A program that prints the bytes that transcribing a file needed at most."""


@dataclass(frozen=True)
class Recording:
    """Samples, (samples,) float32, and what is said in them."""

    waveform: np.ndarray
    text: str


@dataclass
class Row:
    """One length: its recordings and what was measured."""

    name: str
    recordings: list[Recording]
    sample_rate: int
    encoder: list[float] = field(default_factory=list)
    """Seconds of each round."""
    whole: list[float] = field(default_factory=list)
    """Seconds of each round."""
    texts: dict[str, list[str]] = field(default_factory=dict)
    """By search."""
    memory: float = 0.0
    """MiB."""

    @property
    def seconds(self) -> float:
        """Audio, pauses included."""
        return sum(len(recording.waveform) for recording in self.recordings) / self.sample_rate

    def wer(self, search: str) -> str:
        """The word error rate of a search's texts, in percent."""
        pairs = zip(self.recordings, self.texts[search], strict=True)
        return percent(score([ScoredUtterance("", 0.0, recording.text, text) for recording, text in pairs]).rate)


def read_recordings(manifest: Path, seconds: float, sample_rate: int) -> list[Recording]:
    """Read the manifest's first utterances, so many that they last ``seconds``.

    Raises FileNotFoundError or ValueError for a manifest that is missing, wrong or too small, and for lost audio.
    """
    recordings: list[Recording] = []
    samples = 0
    for utterance in read_manifest(manifest):
        if samples >= seconds * sample_rate:
            break
        recordings.append(Recording(load_audio(utterance.audio, sample_rate), utterance.text))
        samples += len(recordings[-1].waveform)
    if samples < seconds * sample_rate:
        raise ValueError(
            f"manifest {manifest} holds {samples / sample_rate:.0f} s of audio, fewer than the {seconds:g} s wanted; "
            "give a larger one, or lower --total and --seconds"
        )
    return recordings


def joined(recordings: Sequence[Recording], seconds: float, sample_rate: int) -> list[Recording]:
    """Join consecutive recordings while they last no more than ``seconds``; a longer one stays as it is."""
    pause = np.zeros(round(PAUSE * sample_rate), np.float32)
    groups: list[list[Recording]] = []
    samples = 0.0
    for recording in recordings:
        samples += len(pause) + len(recording.waveform)
        if not groups or samples > seconds * sample_rate:
            groups.append([])
            samples = len(recording.waveform)
        groups[-1].append(recording)
    return [
        Recording(
            np.concatenate([part for recording in group for part in (pause, recording.waveform)][1:]),
            " ".join(recording.text for recording in group),
        )
        for group in groups
    ]


@torch.inference_mode()
def encode(transcriber: Transcriber, waveform: np.ndarray) -> None:
    """Run the encoder over a whole recording and wait for it."""
    device = next(transcriber.model.parameters()).device
    samples = torch.from_numpy(waveform)[None].to(device)
    states, _ = transcriber.model.encode(samples, torch.tensor([len(waveform)], device=device))
    states[0, -1, 0].item()


def timed(run: Callable[[np.ndarray], object], recordings: Sequence[Recording]) -> float:
    """Return the seconds that all recordings take, one after the other."""
    start = time.perf_counter()
    for recording in recordings:
        run(recording.waveform)
    return time.perf_counter() - start


def peak_memory(row: Row, options: argparse.Namespace, search: str) -> float:
    """Return the MiB that a process needs to transcribe a row's longest recording, the model and PyTorch included."""
    longest = max(row.recordings, key=lambda recording: len(recording.waveform))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "longest.wav"
        soundfile.write(path, longest.waveform, row.sample_rate)
        flags = [path, options.model or "", options.device, search, options.vad, torch.get_num_threads()]
        done = subprocess.run([sys.executable, "-c", PEAK, *map(str, flags)], stdout=subprocess.PIPE, check=True)
    return int(done.stdout) / 2**20


def measure(transcriber: Transcriber, rows: Sequence[Row], options: argparse.Namespace) -> None:
    """Fill the rows: the texts of CTC and of the transcriber's search first, which also warms up, then the times."""
    own = transcriber.search
    for row in rows:
        for search in dict.fromkeys(("ctc", own.search)):
            transcriber.search = replace(own, search=search)
            row.texts[search] = [transcriber.transcribe(recording.waveform).text for recording in row.recordings]
        row.memory = peak_memory(row, options, own.search)
        print(f"{row.name}: {len(row.recordings)} recordings, {row.seconds:.0f} s", file=sys.stderr)
    for number in range(options.rounds):
        for row in rows:
            if not options.vad:
                row.encoder.append(timed(lambda waveform: encode(transcriber, waveform), row.recordings))
            row.whole.append(timed(transcriber.transcribe, row.recordings))
        print(f"round {number + 1} of {options.rounds} is timed", file=sys.stderr)


def table(rows: Sequence[Row], search: str) -> str:
    """Return the Markdown table."""
    searches = list(dict.fromkeys(("ctc", search)))
    names = ["recordings", "number", "mean, s", "encoder, ms/s", f"{search}, ms/s", *(f"WER {s}, %" for s in searches)]
    names.append("memory, MiB")
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    for row in rows:
        times = (seconds and 1000 * statistics.median(seconds) / row.seconds for seconds in (row.encoder, row.whole))
        cells = [row.name, len(row.recordings), f"{row.seconds / len(row.recordings):.1f}"]
        cells += [f"{milliseconds:.2f}" if milliseconds else "-" for milliseconds in times]
        cells += [*(row.wer(s) for s in searches), f"{row.memory:.0f}"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder, or a name in pretrained/ (default: as transcribe.py)")
    parser.add_argument("--manifest", type=Path, required=True, help="what prepare.py writes, of a set not trained on")
    parser.add_argument(
        "--seconds",
        nargs="+",
        type=positive_float,
        default=[30.0, 60.0, 300.0],
        metavar="S",
        help="lengths (30 60 300)",
    )
    parser.add_argument("--total", type=positive_float, default=600.0, metavar="S", help="audio a row, at least (600)")
    parser.add_argument(
        "--search", choices=get_args(Search), help="beside ctc, and the one that is timed (the model's)"
    )
    parser.add_argument("--vad", action="store_true", help="cut what is longer than 30 s; the encoder is not timed")
    parser.add_argument("--rounds", type=positive_int, default=3, metavar="N", help="times are medians over these (3)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: PyTorch's)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status: 0, or 2 for wrong usage."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        transcriber = Transcriber.load(
            options.model, options.device, options.search, vad=None if options.vad else False
        )
        rate = transcriber.sample_rate
        utterances = read_recordings(options.manifest, max(options.total, *options.seconds), rate)
    except (OSError, ValueError) as error:
        print(f"length.py: error: {error}", file=sys.stderr)
        return 2
    rows = [Row("one by one", utterances, rate)]
    rows += [Row(f"up to {seconds:g} s", joined(utterances, seconds, rate), rate) for seconds in options.seconds]
    measure(transcriber, rows, options)
    print(table(rows, transcriber.search.search))
    print(
        f"\n{transcriber.name} on {options.device}, {torch.get_num_threads()} threads, median of {options.rounds} "
        f"rounds; ms/s: milliseconds of work for a second of audio, reading files left out; {transcriber.cutter.way}."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
