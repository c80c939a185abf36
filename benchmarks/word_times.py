"""How far the times of words are from the truth: words spoken singly, trimmed of silence, joined with known gaps.

python benchmarks/word_times.py --manifest words.jsonl --model runs/mine/checkpoint

The manifest's recordings hold one word each, such as a text-to-speech voice makes them; each speaker's are joined in
random order. Words are matched with the transcript's by their text; words that were not recognised are left
out. The median error tells a constant lead or lag: subtract it from words.start_shift or words.end_shift in the
checkpoint's config.json, measured on other voices than those that are reported.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from pathlib import Path
from typing import get_args

import numpy as np
import torch
from tqdm import tqdm

from samba_asr.audio.load import load_audio
from samba_asr.config import Search
from samba_asr.evaluation.arguments import positive_int
from samba_asr.evaluation.wer import normalize_for_scoring
from samba_asr.training.manifest import Utterance, read_manifest
from samba_asr.transcriber import Transcriber
from samba_asr.transcript import Word

GAPS = (0.25, 0.6)
"""Seconds between two words, at least and at most, and before the first one and after the last one."""
QUIET = 0.01
"""What is below this share of a word's loudest 10 ms, in amplitude (40 dB), at its begin and end is no part of it."""
WITHIN = (60, 100, 200)
"""Milliseconds: the table counts the words that are no further from the truth."""


@dataclass
class Recording:
    """Words one after the other."""

    waveform: np.ndarray
    """(samples,)"""
    words: list[Word]
    """What was said, with the true times."""


def trimmed(waveform: np.ndarray, sample_rate: int) -> np.ndarray:
    """Return a waveform without the quiet at its begin and end: whole frames of 10 ms."""
    frame = sample_rate // 100
    frames = np.pad(waveform, (0, -len(waveform) % frame)).reshape(-1, frame)
    levels = np.sqrt((frames.astype(np.float64) ** 2).mean(1))
    loud = np.flatnonzero(levels > QUIET * levels.max(initial=0.0))
    return waveform[frame * loud[0] : frame * (loud[-1] + 1)] if len(loud) else waveform[:0]


def joined(words: Sequence[tuple[str, np.ndarray]], sample_rate: int, random: np.random.Generator) -> Recording:
    """Join words, each a text and a waveform, (samples,), with gaps drawn at random."""
    gaps = [np.zeros(round(seconds * sample_rate), np.float32) for seconds in random.uniform(*GAPS, len(words) + 1)]
    parts, samples, said = [gaps[0]], len(gaps[0]), []
    for (text, waveform), gap in zip(words, gaps[1:], strict=True):
        said.append(Word(text, samples / sample_rate, (samples + len(waveform)) / sample_rate, 1.0))
        parts += [waveform, gap]
        samples += len(waveform) + len(gap)
    return Recording(np.concatenate(parts), said)


def recordings(utterances: Sequence[Utterance], count: int, sample_rate: int, seed: int) -> list[Recording]:
    """Join each speaker's words, ``count`` in a recording. Raises as :func:`load_audio` does."""
    random = np.random.default_rng(seed)
    made = []
    for speaker in sorted({utterance.speaker for utterance in utterances}):
        own = [utterance for utterance in utterances if utterance.speaker == speaker]
        spoken = [
            (own[i].text, trimmed(load_audio(own[i].audio, sample_rate), sample_rate))
            for i in random.permutation(len(own))
        ]
        spoken = [word for word in spoken if len(word[1])]
        made += [joined(spoken[i : i + count], sample_rate, random) for i in range(0, len(spoken), count)]
    return made


def errors(said: Sequence[Word], heard: Sequence[Word]) -> list[tuple[float, float]]:
    """Return by how many seconds the start and the end of each word that was recognised are late."""
    texts = [[normalize_for_scoring(word.text) for word in words] for words in (said, heard)]
    blocks = SequenceMatcher(None, *texts, autojunk=False).get_matching_blocks()
    pairs = [(said[b.a + i], heard[b.b + i]) for b in blocks for i in range(b.size)]
    return [(found.start - true.start, found.end - true.end) for true, found in pairs]


def table(late: np.ndarray, words: int) -> str:
    """late: (matched, 2) seconds; words: how many were said."""
    shares = " | ".join(f"within {limit} ms" for limit in WITHIN)
    lines = [
        f"{len(late)} of {words} words recognised\n",
        f"| | median error, ms | median absolute error, ms | 90th percentile, ms | {shares} |",
        "|---|---:|---:|---:" + "|---:" * len(WITHIN) + "|",
    ]
    for name, column in zip(("starts", "ends"), 1000 * late.T, strict=True):
        off = np.abs(column)
        shares = " | ".join(f"{100 * (off <= limit).mean():.1f} %" for limit in WITHIN)
        figures = f"{np.median(column):+.0f} | {np.median(off):.0f} | {np.percentile(off, 90):.0f}"
        lines.append(f"| {name} | {figures} | {shares} |")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, metavar="JSONL", help="recordings of one word each")
    parser.add_argument("--model", help="checkpoint folder, or a name in pretrained/ (default: as transcribe.py)")
    parser.add_argument("--search", choices=get_args(Search), help="how to search (the model's)")
    parser.add_argument("--words", type=positive_int, default=8, metavar="N", help="words in a recording (8)")
    parser.add_argument("--seed", type=int, default=0, help="of the order and the gaps (0)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: PyTorch's)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status: 0, 1 if no word was recognised, 2 for wrong usage."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        utterances = read_manifest(options.manifest)
        transcriber = Transcriber.load(options.model, search=options.search)
        made = recordings(utterances, options.words, transcriber.sample_rate, options.seed)
    except (OSError, ValueError) as error:
        print(f"word_times.py: error: {error}", file=sys.stderr)
        return 2
    late = [
        each
        for recording in tqdm(made, unit="recording", file=sys.stderr)
        for each in errors(recording.words, transcriber.transcribe(recording.waveform).words)
    ]
    if not late:
        print("word_times.py: no word was recognised", file=sys.stderr)
        return 1
    print(f"{transcriber.name}, {transcriber.search.search}: {table(np.array(late), len(utterances))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
