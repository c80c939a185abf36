"""What a recogniser writes that nobody said: endless sentences, repeated words, words in noise and music.

python benchmarks/robustness.py --model runs/mine/checkpoint --manifests OUT/librispeech-dev-clean.jsonl

The first table counts, for each manifest, utterances whose text has more than twice the words of the reference, and
those with 1 to 8 words four times in a row that the reference does not repeat; examples follow. The second one shows
what is written for sounds without any speech. Every number should be 0. Without --manifests: the second table alone.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from tqdm import tqdm

from samba_asr.audio.noise import coloured_noise
from samba_asr.config import Search
from samba_asr.evaluation.arguments import positive_int
from samba_asr.evaluation.repetition import invented_runs
from samba_asr.evaluation.wer import normalize_for_scoring
from samba_asr.training.manifest import Utterance, read_manifest
from samba_asr.transcriber import Transcriber

CHORDS = ((60, 64, 67), (67, 71, 74), (69, 72, 76), (65, 69, 72))
"""C, G, A minor, F as MIDI notes: two seconds each, over and over."""
SHOWN = 120
"""Characters of an example."""


@dataclass
class Counts:
    """What went wrong in one manifest."""

    utterances: int = 0
    """Those that could be read."""
    unreadable: int = 0
    too_long: int = 0
    repeating: int = 0
    examples: list[str] = field(default_factory=list)
    """A line for each."""

    def add(self, audio: str, reference: str, hypothesis: str) -> None:
        """Judge one normalised text."""
        self.utterances += 1
        said, written = len(reference.split()), len(hypothesis.split())
        runs = invented_runs(reference, hypothesis)
        self.too_long += written > 2 * said
        self.repeating += bool(runs)
        if written > 2 * said:
            self.examples.append(f"{audio}: {written} words for {said}: {shortened(hypothesis)}")
        if runs:
            self.examples.append(f"{audio}: again and again: {shortened(', '.join(map(' '.join, runs)))}")


def shortened(text: str) -> str:
    """Return a text's beginning."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."


def check(transcriber: Transcriber, utterances: Sequence[Utterance], name: str) -> Counts:
    """Transcribe utterances one by one and count; an unreadable one is said on standard error."""
    counts = Counts()
    for utterance in tqdm(utterances, desc=name, unit="utt", file=sys.stderr):
        try:
            text = transcriber.transcribe(utterance.audio).text
        except (OSError, ValueError) as error:
            tqdm.write(f"robustness.py: {error}", file=sys.stderr)
            counts.unreadable += 1
        else:
            counts.add(utterance.audio, normalize_for_scoring(utterance.text), normalize_for_scoring(text))
    return counts


def sounds(seconds: float, sample_rate: int) -> dict[str, np.ndarray]:
    """Return sounds without speech by their names, each (samples,) float32 in [-1, 1]; the same ones every time."""
    samples = round(seconds * sample_rate)
    times = np.arange(samples) / sample_rate
    random = np.random.default_rng(0)
    pink = coloured_noise(samples, -3.0, sample_rate, torch.Generator().manual_seed(0)).numpy()
    made = {
        "silence": np.zeros(samples),
        "almost silence (16-bit rounding noise)": random.integers(-1, 2, samples) / 32768,
        "white noise": 0.1 * random.standard_normal(samples),
        "pink noise": 0.1 * pink / pink.std(),
        "440 Hz tone": 0.3 * np.sin(2 * np.pi * 440 * times),
        "chords": chords(times),
    }
    return {name: waveform.clip(-1, 1).astype(np.float32) for name, waveform in made.items()}


def chords(times: np.ndarray) -> np.ndarray:
    """Return a progression of plucked chords at these times in seconds, (samples,)."""
    bar = (times // 2).astype(int) % len(CHORDS)
    notes = 440 * 2 ** ((np.array(CHORDS)[bar] - 69) / 12)  # (samples, 3) Hz
    phases = 2 * np.pi * notes * (times % 2)[:, None]
    strings = sum(np.sin(harmonic * phases) / harmonic**2 for harmonic in range(1, 5))
    fade = np.minimum((times % 2) / 0.01, 1) * np.exp(-1.5 * (times % 2))
    waveform: np.ndarray = 0.15 * fade * strings.sum(1)
    return waveform


def manifest_table(results: Mapping[str, Counts]) -> str:
    """Return the first table and its examples."""
    lines = [
        "| set | utterances | unreadable | more than twice the words | repeating |",
        "|---|---:|---:|---:|---:|",
    ]
    for name, counts in results.items():
        cells = (name, counts.utterances, counts.unreadable, counts.too_long, counts.repeating)
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    examples = [f"- {line}" for counts in results.values() for line in counts.examples]
    return "\n".join([*lines, *(["", *examples] if examples else [])])


def sound_table(transcriber: Transcriber, seconds: float) -> str:
    """Return the second table."""
    lines = [f"| {seconds:g} s of | words | text |", "|---|---:|---|"]
    for name, waveform in sounds(seconds, transcriber.sample_rate).items():
        text = transcriber.transcribe(waveform).text
        lines.append(f"| {name} | {len(text.split())} | {shortened(text)} |")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder, or a name in pretrained/ (default: as transcribe.py)")
    parser.add_argument("--manifests", nargs="+", type=Path, default=[], metavar="JSONL", help="one set each")
    parser.add_argument("--search", choices=get_args(Search), help="how to search (the model's)")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N utterances of each set")
    parser.add_argument("--seconds", type=positive_int, default=60, metavar="S", help="length of each sound (60)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: PyTorch's)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return the exit status: 0, 1 if a recording could not be read, 2 for wrong usage."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        sets = {str(path): read_manifest(path)[: options.limit] for path in options.manifests}
        transcriber = Transcriber.load(options.model, options.device, search=options.search)
    except (OSError, ValueError) as error:
        print(f"robustness.py: error: {error}", file=sys.stderr)
        return 2
    print(f"{transcriber.name}, {transcriber.search.search}\n")
    results = {name: check(transcriber, utterances, name) for name, utterances in sets.items()}
    if results:
        print(f"{manifest_table(results)}\n")
    print(sound_table(transcriber, options.seconds))
    return int(any(counts.unreadable for counts in results.values()))


if __name__ == "__main__":
    sys.exit(main())
