"""Speed and errors beside other recognisers: the same utterances, one at a time, recognisers in turn on one core.

python benchmarks/asr.py --manifest OUT/librispeech-dev-clean.jsonl --limit 200 \
    --peers PEERS.py --peers-python PEERS_VENV/bin/python --engines moonshine-tiny whisper-tiny.en

PEERS.py is any program that is called as `PEERS.py ENGINE MANIFEST.tsv --threads 1`, reads lines of path<tab>text,
leaves loading and decoding audio out of its times and prints a line with `WER=12.3%` and `RTF_wall=0.0123`. Our models
too are loaded and warm and their audio is decoded before the clock starts; what is timed is a whole transcript, from
looking for speech, where that is the default, to words with their times. Rounds alternate between recognisers; the
table has medians. Where the system lets no program choose its core, a last line says so.
"""

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

import numpy as np
import torch

from samba_asr.audio.load import load_audio
from samba_asr.config import Search
from samba_asr.evaluation.arguments import positive_int
from samba_asr.evaluation.wer import ScoredUtterance, score
from samba_asr.training.manifest import Utterance, export_tsv, read_manifest
from samba_asr.transcriber import Transcriber


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return the exit status: 0, 1 for a peer that failed, 2 for usage."""
    parser = build_parser()
    options = parser.parse_args(argv)
    if options.engines and not options.peers:
        parser.error("--engines needs --peers, the program that runs them")
    torch.set_num_threads(1)
    try:
        utterances = read_manifest(options.manifest)[: options.limit]
        if not utterances:
            raise ValueError(f"manifest {options.manifest} holds no utterance")
        ours = [Transcriber.load(options.model, search=search) for search in options.search or [None]]
        waveforms = [load_audio(utterance.audio) for utterance in utterances]
    except (ValueError, OSError) as error:
        print(f"asr.py: error: {error}", file=sys.stderr)
        return 2
    seconds = sum(len(waveform) for waveform in waveforms) / 16_000
    found: dict[str, list[tuple[float, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "utterances.tsv"
        export_tsv(table, utterances)
        for number in range(options.rounds):
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            for transcriber in ours:
                with on_one_core():
                    result = run_ours(transcriber, utterances, waveforms, seconds)
                found.setdefault(title(transcriber), []).append(result)
            for engine in options.engines:
                with on_one_core():
                    found.setdefault(engine, []).append(run_peer(options, engine, table))
    print(f"{len(utterances)} utterances, {seconds:.0f} s; one thread, medians of {options.rounds} rounds\n")
    print("| recogniser | WER % | real-time factor | over the first |\n|---|---|---|---|")
    medians = {name: statistics.median(factor for _, factor in rounds) for name, rounds in found.items()}
    first = next(iter(medians.values()))
    for name, rounds in found.items():
        print(f"| {name} | {100 * rounds[0][0]:.1f} | {medians[name]:.4f} | {medians[name] / first:.2f} |")
    if not hasattr(os, "sched_setaffinity"):
        print("\nThis system moved them between its cores.")
    return 0


@contextmanager
def on_one_core() -> Iterator[None]:
    """Keep this process, and those that it starts, to one core for a while, always the same, where there is a way."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def title(transcriber: Transcriber) -> str:
    """Return what a row calls one of ours."""
    search = transcriber.search
    beam = f", beam {search.beam_size}" if search.search in ("rescoring", "joint") else ""
    return f"{transcriber.name}, {search.search}{beam}"


def run_ours(
    transcriber: Transcriber, utterances: Sequence[Utterance], waveforms: Sequence[np.ndarray], seconds: float
) -> tuple[float, float]:
    """Return the word error rate, as a share, and the real-time factor; seconds: of audio in all."""
    transcriber.transcribe(waveforms[0])
    started = time.perf_counter()
    texts = [transcriber.transcribe(waveform).text for waveform in waveforms]
    passed = time.perf_counter() - started
    scored = [ScoredUtterance(u.audio, u.duration, u.text, text) for u, text in zip(utterances, texts, strict=True)]
    return score(scored).rate, passed / seconds


def run_peer(options: argparse.Namespace, engine: str, table: Path) -> tuple[float, float]:
    """As :func:`run_ours`. Raises SystemExit with the program's own words where it fails."""
    command = [options.peers_python, options.peers, engine, str(table), "--threads", "1"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        sys.exit(f"asr.py: error: {options.peers_python} cannot be run ({error}); --peers-python names a Python")
    numbers = re.search(r"WER=([\d.]+)%.*RTF_wall=([\d.]+)", done.stdout)
    if done.returncode or not numbers:
        sys.exit(f"asr.py: error: {' '.join(command)} gave no figures:\n{done.stderr[-2000:]}{done.stdout[-500:]}")
    return float(numbers[1]) / 100, float(numbers[2])


def build_parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder, or a name in pretrained/ (as transcribe.py)")
    parser.add_argument("--manifest", type=Path, required=True, metavar="JSONL", help="utterances, made by prepare.py")
    parser.add_argument("--limit", type=positive_int, default=200, metavar="N", help="only the first N (200)")
    parser.add_argument(
        "--search", nargs="+", choices=get_args(Search), help="ours, all else as the model has it (the model's own)"
    )
    parser.add_argument("--rounds", type=positive_int, default=3, metavar="N", help="medians are of these (3)")
    parser.add_argument("--peers", metavar="FILE", help="Python program that runs other recognisers")
    parser.add_argument("--peers-python", default=sys.executable, metavar="FILE", help="what runs it (this Python)")
    parser.add_argument("--engines", nargs="+", default=[], metavar="NAME", help="other recognisers, as it names them")
    return parser


if __name__ == "__main__":
    sys.exit(main())
