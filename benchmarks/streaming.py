"""Live recognition beside transcribing whole recordings: errors, how late words come, what is carried, and its cost.

python benchmarks/streaming.py --manifest OUT/librispeech-dev-clean.jsonl --stride 8 --threads 1

Each utterance is fed as a microphone would, 20 ms at a time, without waiting: latencies count the audio that was fed,
the time that the machine took for it stands beside them. Finals are joined for the word error rate: with no pauses (an
utterance is one segment, unless it is long) and with the command line's. A first word comes so long after the state in
which CTC begins it; a word is shown so long after its end, by the first result that has as many words; a final comes so
long after its last word. At last an hour of utterances with 0.3 s between them, in which the first minute comes again
in the middle and at the end: the cost of a minute, of the same sound, must not depend on when it comes.
"""

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from samba_asr.audio.load import load_audio
from samba_asr.evaluation.arguments import natural_int, positive_float, positive_int
from samba_asr.evaluation.report import percent
from samba_asr.evaluation.wer import ScoredUtterance, score
from samba_asr.live import PAUSE_SECONDS
from samba_asr.training.manifest import Utterance, read_manifest
from samba_asr.transcriber import Transcriber

BLOCK = 0.02
"""Seconds fed at a time."""
GAP = 0.3
"""Seconds of silence between the utterances of the hour."""
MINUTE = 60.0
"""Seconds."""


@dataclass
class Row:
    """One way to hear the utterances, and what was measured."""

    name: str
    chunk: float | None = None
    """Seconds; None: whole recordings."""
    ahead: float = 0.0
    """Seconds that are heard after each chunk, with it."""
    pause: float | None = None
    """Seconds that end a segment."""
    texts: list[str] = field(default_factory=list)
    segments: int = 0
    first: list[float] = field(default_factory=list)
    """Of each utterance: audio fed when its first word was shown, after CTC had begun it; seconds, like all below."""
    work: list[float] = field(default_factory=list)
    """What the machine took for the block that showed it."""
    words: list[float] = field(default_factory=list)
    """Of each word that was shown before its segment's end."""
    finals: list[float] = field(default_factory=list)
    state: int = 0
    """Bytes, at most."""
    cpu: float = 0.0
    audio: float = 0.0


def hear(transcriber: Transcriber, waveform: np.ndarray, row: Row) -> None:
    """Stream an utterance."""
    assert row.chunk is not None
    live = transcriber.live(chunk_seconds=row.chunk, ahead_seconds=row.ahead, pause_seconds=row.pause)
    size, texts, shown, begun = round(BLOCK * transcriber.sample_rate), [], 0, False
    starts: list[int | None] = [*range(0, len(waveform), size), None]  # None: the end
    begin = time.process_time()
    for start in starts:
        before = time.perf_counter()
        results = live.finish() if start is None else live.feed(waveform[start : start + size])
        if not results:
            continue
        row.state = max(row.state, live.state_bytes)
        for result in results:
            if result.words and not begun:
                begun = True
                row.first.append(live.seconds - (result.start - transcriber.words.start_shift))
                row.work.append(time.perf_counter() - before)
            if result.final:
                texts.append(result.text)
                row.finals += [live.seconds - result.end] if result.words else []
                shown = max(shown - len(result.words), 0)  # what follows the cut of a long segment was shown
            else:
                row.words += [live.seconds - word.end for word in result.words[shown:]]
                shown = max(shown, len(result.words))
    row.cpu += time.process_time() - begin
    row.audio += len(waveform) / transcriber.sample_rate
    row.segments += len(texts)
    row.texts.append(" ".join(filter(None, texts)))


def transcribe(transcriber: Transcriber, waveform: np.ndarray, row: Row) -> None:
    """Transcribe an utterance as a whole."""
    begin = time.process_time()
    row.texts.append(transcriber.transcribe(waveform).text)
    row.cpu += time.process_time() - begin
    row.audio += len(waveform) / transcriber.sample_rate
    row.segments += 1


def table(rows: Sequence[Row], references: Sequence[str]) -> str:
    """Return the Markdown table; the first row is what the others are compared with."""
    names = ["heard", "segments", "WER, %", "errors against whole, %", "first word after, s: median, 95 %, most"]
    names += ["work for it, ms", "a word after, s", "final after, s", "carried, MB", "processor, ms/s"]
    lines = ["| " + " | ".join(names) + " |", "|---|" + "---:|" * (len(names) - 1)]
    rates = [
        score([ScoredUtterance("", 0.0, *pair) for pair in zip(references, row.texts, strict=True)]) for row in rows
    ]
    for row, rate in zip(rows, rates, strict=True):
        more = f"{100 * (rate.rate / rates[0].rate - 1):+.1f}" if row.chunk and rates[0].rate else "-"
        cells = [row.name, row.segments, percent(rate.rate), more, spread(row.first), mean(row.work, 1000, 0)]
        cells += [mean(row.words), mean(row.finals), f"{row.state / 1e6:.2f}" if row.state else "-"]
        lines.append("| " + " | ".join(map(str, [*cells, f"{1000 * row.cpu / row.audio:.1f}"])) + " |")
    return "\n".join(lines)


def spread(seconds: Sequence[float]) -> str:
    """Median, 95th percentile and maximum."""
    return ", ".join(f"{np.percentile(seconds, share):.2f}" for share in (50, 95, 100)) if seconds else "-"


def mean(seconds: Sequence[float], factor: float = 1.0, digits: int = 2) -> str:
    """Mean, in other units."""
    return f"{factor * np.mean(seconds):.{digits}f}" if seconds else "-"


def minutes_of(utterances: Sequence[Utterance], minutes: int, sample_rate: int) -> Iterator[np.ndarray]:
    """Yield so many minutes of utterances, one after the other: the middle one and the last are the first again.

    Raises ValueError where there are too few utterances, and as :func:`load_audio` does.
    """
    size = round(MINUTE * sample_rate)
    gap = np.zeros(round(GAP * sample_rate), np.float32)
    waiting, first, left = np.zeros(0, np.float32), None, iter(utterances)
    for number in range(minutes):
        if first is not None and number in (minutes // 2, minutes - 1):
            yield first
            continue
        while len(waiting) < size:
            utterance = next(left, None)
            if utterance is None:
                raise ValueError(
                    f"the manifest is too short for {minutes} minutes; give a larger one, or lower --minutes"
                )
            waiting = np.concatenate([waiting, load_audio(utterance.audio, sample_rate), gap])
        minute, waiting = waiting[:size], waiting[size:]
        first = minute if first is None else first
        yield minute


def hour(transcriber: Transcriber, utterances: Sequence[Utterance], chunk: tuple[float, float], minutes: int) -> str:
    """Stream an hour; print the minutes that are the same as rows of a table, and return what there was in all."""
    live = transcriber.live(chunk_seconds=chunk[0], ahead_seconds=chunk[1])
    size = round(BLOCK * transcriber.sample_rate)
    print("| minute | processor, ms/s | carried at its end, MB | at most so far, MB |\n|---:|---:|---:|---:|")
    most, words = 0, 0
    made = minutes_of(utterances, minutes, transcriber.sample_rate)
    for number, minute in enumerate(tqdm(made, total=minutes, unit="min", file=sys.stderr)):
        begin = time.process_time()
        for start in range(0, len(minute), size):
            results = live.feed(minute[start : start + size])
            most = max(most, live.state_bytes)
            words += sum(len(result.words) for result in results if result.final)
        spent = 1000 * (time.process_time() - begin) / MINUTE
        if number in (0, minutes // 2, minutes - 1):
            cells = f"{spent:.1f} | {live.state_bytes / 1e6:.2f} | {most / 1e6:.2f}"
            print(f"| {number + 1} | {cells} |", flush=True)
    return f"\n{words} words in {minutes} minutes."


def chunk_and_ahead(text: str) -> tuple[float, float]:
    """Read "S" or "S+A". Raises as :func:`positive_float`."""
    chunk, plus, ahead = text.partition("+")
    return positive_float(chunk), positive_float(ahead) if plus else 0.0


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=Path, required=True, metavar="JSONL", help="utterances not trained on")
    parser.add_argument("--stride", type=positive_int, default=1, metavar="N", help="every Nth utterance (1)")
    parser.add_argument("--limit", type=natural_int, metavar="N", help="so many at most; 0: the hour alone (all)")
    parser.add_argument("--model", help="checkpoint folder, or a name in pretrained/ (default: as transcribe.py)")
    parser.add_argument(
        "--chunks",
        nargs="+",
        type=chunk_and_ahead,
        default=[(0.64, 0.0), (0.32, 0.32), (0.64, 0.32)],
        metavar="S",
        help="seconds heard at once, or S+A: and A seconds that follow (0.64 0.32+0.32 0.64+0.32)",
    )
    parser.add_argument(
        "--pauses", nargs="+", type=positive_float, default=[PAUSE_SECONDS], metavar="S", help=f"({PAUSE_SECONDS})"
    )
    parser.add_argument("--minutes", type=natural_int, default=60, metavar="N", help="of the hour; 0: none (60)")
    parser.add_argument(
        "--minute-chunk", type=chunk_and_ahead, default=(0.32, 0.32), metavar="S", help="its chunk (0.32+0.32)"
    )
    parser.add_argument("--threads", type=positive_int, default=1, metavar="N", help="CPU threads (1)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return the exit status: 0, or 2 for wrong usage."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    rows = [Row("whole")]
    for chunk, ahead in options.chunks:
        name = f"{chunk:g} s and {ahead:g} s" if ahead else f"{chunk:g} s"
        rows += [Row(f"{name}, no pause", chunk, ahead)]
        rows += [Row(f"{name}, pauses of {pause:g} s", chunk, ahead, pause) for pause in options.pauses]
    try:
        utterances = read_manifest(options.manifest)
        chosen = utterances[:: options.stride][: options.limit]
        transcriber = Transcriber.load(options.model)
        for row in rows[1:]:  # warms up, too, and complains before an hour has passed
            hear(transcriber, np.zeros(transcriber.sample_rate, np.float32), Row("", row.chunk, row.ahead, row.pause))
        for utterance in tqdm(chosen, unit="utt", file=sys.stderr):
            waveform = load_audio(utterance.audio, transcriber.sample_rate)
            for row in rows:
                transcribe(transcriber, waveform, row) if row.chunk is None else hear(transcriber, waveform, row)
        if chosen:
            print(table(rows, [utterance.text for utterance in chosen]), end="\n\n")
        if options.minutes:
            print(hour(transcriber, utterances, options.minute_chunk, options.minutes), end="\n\n")
    except (OSError, ValueError) as error:
        print(f"streaming.py: error: {error}", file=sys.stderr)
        return 2
    print(
        f"{transcriber.name}, {transcriber.search.search} search of finals, {len(chosen)} utterances, "
        f"{options.threads} threads, reading files left out"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
