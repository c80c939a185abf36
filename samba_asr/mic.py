"""The command line's live half: samba-asr mic writes what is said while it is said."""

import argparse
import contextlib
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from samba_asr.audio.load import open_audio
from samba_asr.audio.microphone import Microphone, microphones
from samba_asr.config import Search
from samba_asr.console import PROGRAM, put, reason, say
from samba_asr.search_options import add_search_options, search_settings
from samba_asr.transcript import Transcript
from samba_asr.writers import WRITERS

if TYPE_CHECKING:
    from samba_asr.live import Live, LiveResult

DONE, FAILED, USAGE, INTERRUPTED = 0, 1, 2, 130

DESCRIPTION = """\
Write what a microphone hears while it is said, until Ctrl-C.

A line for each segment, which a pause ends, goes to standard output. What is heard so
far of the next one stands below, where standard error is a terminal: it changes while
it grows, and once more when its segment ends and the decoder has read all of it."""

EPILOG = """\
examples:
  {program} mic                                the system's own microphone
  {program} mic --list-devices                 which microphones there are
  {program} mic --device-name USB > notes.txt  one that is called so
  {program} mic --hotwords Nadezhda,Kubernetes names that it would not know
  {program} mic --file talk.mp3                the same of a file, without a microphone

A recording or a folder that is called mic is transcribed by {program} ./mic.

exit status:
  0 done (also by Ctrl-C at a microphone)   1 the file or the microphone failed
  2 wrong usage (no such model, bad option, no microphone)   130 interrupted"""


def run(argv: Sequence[str]) -> int:
    """Run the command line behind ``mic``; return its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        if arguments.list_devices:
            put("".join(f"{line}\n" for line in microphones()), sys.stdout)
            return DONE
        source = (
            _Recording(arguments.file, not arguments.quiet) if arguments.file else Microphone(arguments.device_name)
        )
        live = _live(arguments)
    except (OSError, ValueError, RuntimeError) as error:
        say("error", " ".join(str(error).split()))
        return USAGE
    rewrites = sys.stderr.isatty() and not arguments.quiet
    screen = _Screen(arguments.word_timestamps, rewrites)
    if rewrites:
        say(source.name, "speak; Ctrl-C ends" if isinstance(source, Microphone) else "Ctrl-C ends")
    try:
        with _interrupt_calls(source.stop):
            for block in source:
                screen.show(live.feed(block))
            screen.show(live.finish())
    except (ValueError, RuntimeError, MemoryError) as error:
        screen.clear()
        say(source.name, error)
        return FAILED
    if isinstance(source, Microphone):
        if source.lost and not arguments.quiet:
            say(source.name, "sound was lost: the machine is too busy")
        return DONE
    return INTERRUPTED if source.stopped else DONE


class _Recording:
    """Iterates over a file's samples, as a microphone does."""

    def __init__(self, path: Path, warns: bool) -> None:
        self.name = str(path)
        self.stopped = False
        self._path, self._warns = path, warns

    def __iter__(self) -> Iterator[NDArray[np.float32]]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            try:
                waveform = open_audio(self._path)
            except OSError as error:
                raise ValueError(reason(error, self.name)) from error
        for warning in caught if self._warns else ():
            say(self.name, str(warning.message).removeprefix(f"{self.name}: "))
        for start in range(0, len(waveform), 16_000):
            if self.stopped:
                return
            yield waveform[start : start + 16_000]

    def stop(self) -> None:
        self.stopped = True


class _Screen:
    """Final lines on standard output; where it is a terminal, what is heard so far in standard error's last line."""

    def __init__(self, word_timestamps: bool, rewrites: bool) -> None:
        self._word_timestamps, self._rewrites = word_timestamps, rewrites
        self._width = 0

    def show(self, results: "Sequence[LiveResult]") -> None:
        for result in results:
            if not result.final:
                self._rewrite(result.text)
                continue
            self.clear()
            if result.text:
                transcript = Transcript(result.text, result.end, "", result.words)
                put(WRITERS["txt"](transcript, "", self._word_timestamps), sys.stdout)

    def clear(self) -> None:
        if self._width:
            put("\r" + " " * self._width + "\r", sys.stderr)
            self._width = 0

    def _rewrite(self, text: str) -> None:
        if not self._rewrites:
            return
        room = max(shutil.get_terminal_size().columns - 1, 10)
        line = text if len(text) <= room else f"...{text[3 - room :]}"
        put("\r" + line.ljust(self._width), sys.stderr)
        self._width = len(line)


@contextlib.contextmanager
def _interrupt_calls(stop: Callable[[], None]) -> Iterator[None]:
    """Let the first Ctrl-C call something; a second one interrupts as ever."""

    def first(number: int, frame: object) -> None:
        signal.signal(signal.SIGINT, before)
        stop()

    before = signal.signal(signal.SIGINT, first)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _live(arguments: argparse.Namespace) -> "Live":
    import torch  # takes two seconds: not before there is something to hear

    from samba_asr.transcriber import Transcriber

    if arguments.threads < 1:
        raise ValueError(f"--threads ({arguments.threads}) must be 1 or more")
    torch.set_num_threads(arguments.threads)
    transcriber = Transcriber.load(
        arguments.model, arguments.device, arguments.search, **search_settings(arguments), vad=arguments.vad
    )
    return transcriber.live(
        chunk_seconds=arguments.chunk_seconds,
        ahead_seconds=arguments.ahead_seconds,
        pause_seconds=arguments.pause_seconds,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"{PROGRAM} mic",
        description=DESCRIPTION,
        epilog=EPILOG.format(program=PROGRAM),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--device-name", metavar="NAME", help="the microphone: its number, or a part of its name")
    source.add_argument("--file", type=Path, metavar="AUDIO", help="hear a file instead, as fast as the machine can")
    parser.add_argument("--list-devices", action="store_true", help="print the microphones there are, and end")
    parser.add_argument("-q", "--quiet", action="store_true", help="say nothing but errors")
    parser.add_argument(
        "--word-timestamps",
        action="store_true",
        help="below each line one for each word: start, end (seconds from the begin), confidence and the word",
    )
    parser.add_argument(
        "--chunk-seconds",
        type=float,
        default=0.32,
        metavar="S",
        help="how much is heard at once: with less, words come earlier and more is computed (default: 0.32)",
    )
    parser.add_argument(
        "--ahead-seconds",
        type=float,
        default=0.32,
        metavar="S",
        help="how much of what follows is heard with each chunk, which waits for it; without, many more words "
        "are wrong (default: 0.32)",
    )
    parser.add_argument(
        "--pause-seconds", type=float, default=0.7, metavar="S", help="a longer silence ends a line (default: 0.7)"
    )
    model = parser.add_argument_group("model and machine")
    model.add_argument("--model", metavar="MODEL", help=f"a checkpoint folder or a model's name (see {PROGRAM} --help)")
    model.add_argument("--device", default="cpu", help="what computes: cpu, cuda or cuda:N (default: cpu)")
    model.add_argument("--threads", type=int, default=1, metavar="N", help="CPU threads (default: 1, chunks are short)")
    model.add_argument(
        "--vad",
        action=argparse.BooleanOptionalAction,
        help="--no-vad: hear words where silero-vad hears no voice (default: --vad where it is installed)",
    )
    search = parser.add_argument_group("search, of each line as a whole")
    search.add_argument("--search", choices=get_args(Search), help=f"see {PROGRAM} --help (default: the model's)")
    add_search_options(search)
    return parser
