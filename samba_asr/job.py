"""Recordings' way through the command line: read, transcribed, written, and what is said about them."""

import sys
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

from samba_asr.atomic import replacing
from samba_asr.audio.load import StoredAudio, open_audio
from samba_asr.batches import FAILURES, Outcome
from samba_asr.console import put, say
from samba_asr.outputs import Outputs
from samba_asr.recordings import Recording
from samba_asr.writers import WRITERS

if TYPE_CHECKING:
    from samba_asr.transcriber import Transcriber

ESCAPES = str.maketrans({"\t": r"\t", "\n": r"\n", "\r": r"\r", "\\": r"\\"})


class Form(NamedTuple):
    """What is written, and how much is said."""

    formats: tuple[str, ...]
    """Names of writers."""
    word_timestamps: bool
    """With the words one by one."""
    several: bool
    """More than one recording, or as many as there are: on standard output each line of txt begins with a path."""
    quiet: bool
    """Nothing but errors."""
    verbose: bool
    """How long each recording took."""
    n_best: int = 1
    """Texts of each recording; with 1, no others than its own."""


def transcribe_all(
    transcriber: "Transcriber", tasks: Sequence[tuple[Recording, Outputs | None]], form: Form
) -> Iterator[bool]:
    """Print each recording's words, or write them to its outputs; complain and yield False where that fails.

    In the order given, each as soon as it can be, however many are transcribed at once.
    """
    oddities: deque[list[str]] = deque()
    waveforms = _read_each((recording for recording, _ in tasks), transcriber.sample_rate, oddities)
    outcomes = transcriber.transcribe_many(waveforms, n_best=form.n_best)
    for (recording, output), outcome in zip(tasks, outcomes, strict=True):
        for oddity in oddities.popleft() if not form.quiet else ():
            say(recording.name, oddity)
        yield _finish(recording, output, outcome, form)


def _read_each(
    recordings: Iterable[Recording], sample_rate: int, oddities: deque[list[str]]
) -> Iterator[StoredAudio | Exception]:
    """Yield each recording's samples, or why there are none; note what is odd about it."""
    for recording in recordings:
        oddities.append([])
        try:
            read: StoredAudio | Exception = _read(recording, sample_rate, oddities[-1])
        except FAILURES as error:
            read = error
        yield read
        del read  # while this waits


def _read(recording: Recording, sample_rate: int, oddities: list[str]) -> StoredAudio:
    if recording.problem:
        raise ValueError(recording.problem)
    with recording.opened() as path, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        waveform = open_audio(path, sample_rate)
    oddities += [str(warning.message).removeprefix(f"{path}: ") for warning in caught]
    if not waveform.any():
        oddities.append("is silent: every sample is zero")
    return waveform


def _finish(recording: Recording, output: Outputs | None, outcome: Outcome, form: Form) -> bool:
    """Write a transcript and tell how fast it came, or say what is in the way."""
    transcript, seconds = outcome
    try:
        if isinstance(transcript, Exception):
            raise transcript
        contents = [WRITERS[name](transcript, recording.name, form.word_timestamps) for name in form.formats]
        if output is not None:
            for path, content in zip(output.paths, contents, strict=True):
                with replacing(path) as partial:
                    partial.write_text(content, encoding="utf-8", errors="backslashreplace", newline="\n")
    except FAILURES as error:
        say(recording.name, error)
        return False
    if output is None:
        prefixed = form.several and form.formats == ("txt",)
        put(_with_path(recording.name, contents[0]) if prefixed else contents[0], sys.stdout)
    if form.verbose:
        factor = seconds / transcript.duration
        say(recording.name, f"{transcript.duration:.2f} s in {seconds:.2f} s, real-time factor {factor:.3f}")
    return True


def _with_path(name: str, lines: str) -> str:
    """Begin each line with a path and a tab; a path that would break its line is escaped, any other is itself."""
    field = name.translate(ESCAPES) if set(name) & set("\t\n\r") else name
    return "".join(f"{field}\t{line}\n" for line in lines.removesuffix("\n").split("\n"))
