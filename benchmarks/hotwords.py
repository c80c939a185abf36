"""What hotwords give: how many rare words are recognised with and without them, and what that does to the others.

python benchmarks/hotwords.py --manifest OUT/librispeech-dev-clean.jsonl --train OUT/librispeech-train-clean-5.jsonl

An utterance's hotwords are its own rare words, all but the most frequent of the training texts, and distractors: rare
words of other utterances. Recall is the share of rare words recognised; the others' error rate counts substitutions and
deletions of all other words, and insertions of words that are no hotwords (arXiv 2104.02194 calls it U-WER).
"""

import argparse
import random
import sys
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import jiwer
import torch
from tqdm import tqdm

from samba_asr.audio.load import load_audio
from samba_asr.evaluation.arguments import natural_int, positive_int
from samba_asr.text.normalization import normalize_for_training
from samba_asr.training.manifest import Utterance, read_manifest
from samba_asr.transcriber import Transcriber


@dataclass
class Counts:
    """Of the utterances so far."""

    rare: int = 0
    """Rare words said."""
    recognised: int = 0
    """Rare words recognised."""
    others: int = 0
    """Other words said."""
    errors: int = 0
    """Substitutions and deletions of other words, insertions of words that are no hotwords."""

    def add(self, reference: Sequence[str], hypothesis: Sequence[str], hotwords: Collection[str]) -> None:
        """Count an utterance; hotwords hold all of its rare words."""
        if not reference:
            self.errors += sum(word not in hotwords for word in hypothesis)
            return
        (chunks,) = jiwer.process_words(" ".join(reference), " ".join(hypothesis)).alignments
        for chunk in chunks:
            said = reference[chunk.ref_start_idx : chunk.ref_end_idx]
            written = hypothesis[chunk.hyp_start_idx : chunk.hyp_end_idx]
            rare = sum(word in hotwords for word in said)
            self.rare += rare
            self.others += len(said) - rare
            if chunk.type == "equal":
                self.recognised += rare
            elif chunk.type == "insert":
                self.errors += sum(word not in hotwords for word in written)
            else:
                self.errors += len(said) - rare

    @property
    def recall(self) -> float:
        """Share of the rare words that is recognised."""
        return self.recognised / max(self.rare, 1)

    @property
    def error_rate(self) -> float:
        """Of the other words."""
        return self.errors / max(self.others, 1)


def frequent_words(manifests: Sequence[Path], count: int) -> set[str]:
    """Return the most frequent words of some manifests' texts."""
    words = Counter(
        word for path in manifests for each in read_manifest(path) for word in normalize_for_training(each.text).split()
    )
    return {word for word, _ in words.most_common(count)}


def choose_hotwords(texts: Sequence[Sequence[str]], frequent: Collection[str], distractors: int) -> list[list[str]]:
    """Return each utterance's hotwords: its own rare words and those of others, the same ones every time."""
    rare = [sorted(set(text) - set(frequent)) for text in texts]
    pool = sorted({word for words in rare for word in words})
    chosen = []
    for number, own in enumerate(rare):
        others = [word for word in pool if word not in own]
        chosen.append([*own, *random.Random(number).sample(others, min(distractors, len(others)))])
    return chosen


def measure(
    transcriber: Transcriber, utterances: Sequence[Utterance], hotwords: Sequence[Sequence[str]], boost: float
) -> Counts:
    """Transcribe utterances one by one, each with its hotwords; boost 0: without."""
    transcriber.search = replace(transcriber.search, hotword_boost=boost)
    counts = Counts()
    for utterance, words in tqdm(
        list(zip(utterances, hotwords, strict=True)), desc=f"boost {boost}", unit="utt", file=sys.stderr
    ):
        waveform = load_audio(utterance.audio, transcriber.sample_rate)
        text = transcriber.transcribe(waveform, hotwords=words if boost else None).text
        said, written = (normalize_for_training(each).split() for each in (utterance.text, text))
        counts.add(said, written, set(words))
    return counts


def table(results: dict[float, Counts]) -> str:
    """Return a line for each boost."""
    lines = [
        "| boost a letter | rare words | recognised | recall, % | WER of the others, % |",
        "|---:|---:|---:|---:|---:|",
    ]
    for boost, counts in results.items():
        cells = (counts.rare, counts.recognised, f"{100 * counts.recall:.1f}", f"{100 * counts.error_rate:.2f}")
        lines.append(f"| {boost or 'none'} | " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="checkpoint folder, or a name in pretrained/ (default: as transcribe.py)")
    parser.add_argument("--manifest", type=Path, required=True, metavar="JSONL", help="what is transcribed")
    parser.add_argument("--train", nargs="+", type=Path, required=True, metavar="JSONL", help="texts to count words in")
    parser.add_argument(
        "--frequent", type=natural_int, default=5000, metavar="N", help="words that are not rare (5000)"
    )
    parser.add_argument(
        "--distractors", type=natural_int, default=100, metavar="N", help="rare words of others for each (100)"
    )
    parser.add_argument("--boosts", nargs="+", type=float, metavar="B", help="a letter (the model's)")
    parser.add_argument("--every", type=positive_int, default=1, metavar="N", help="only each Nth utterance (1)")
    parser.add_argument("--beam-size", type=positive_int, metavar="N", help="texts kept on the way (the model's)")
    parser.add_argument("--threads", type=positive_int, metavar="N", help="CPU threads (default: PyTorch's)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status: 0, 2 for wrong usage."""
    options = parse_arguments(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    try:
        utterances = read_manifest(options.manifest)[:: options.every]
        frequent = frequent_words(options.train, options.frequent)
        transcriber = Transcriber.load(options.model, search="joint", beam_size=options.beam_size)
    except (OSError, ValueError) as error:
        print(f"hotwords.py: error: {error}", file=sys.stderr)
        return 2
    texts = [normalize_for_training(utterance.text).split() for utterance in utterances]
    hotwords = choose_hotwords(texts, frequent, options.distractors)
    boosts = [0.0, *(options.boosts or [transcriber.search.hotword_boost])]
    try:
        results = {boost: measure(transcriber, utterances, hotwords, boost) for boost in boosts}
    except (OSError, ValueError) as error:
        print(f"hotwords.py: error: {error}", file=sys.stderr)
        return 2
    print(f"{transcriber.name}, beam of {transcriber.search.beam_size}\n\n{table(results)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
