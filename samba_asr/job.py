"""One recording's way through the command line: read, transcribed, written, and what is said about it."""

import sys
import time
import warnings
from typing import TYPE_CHECKING, NamedTuple

from samba_asr.atomic import replacing
from samba_asr.audio.load import open_audio
from samba_asr.console import put, say
from samba_asr.outputs import Outputs
from samba_asr.recordings import Recording
from samba_asr.writers import WRITERS

if TYPE_CHECKING:
    from samba_asr.transcriber import Transcriber
    from samba_asr.transcript import Transcript

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


def transcribe_one(transcriber: "Transcriber", recording: Recording, output: Outputs | None, form: Form) -> bool:
    """Print one recording's words, or write them to its outputs; complain and return False where that fails."""
    try:
        if recording.problem:
            raise ValueError(recording.problem)
        begin = time.perf_counter()
        transcript = _heard(transcriber, recording, form)
        took = time.perf_counter() - begin
        contents = [WRITERS[name](transcript, recording.name, form.word_timestamps) for name in form.formats]
        if output is not None:
            for path, content in zip(output.paths, contents, strict=True):
                with replacing(path) as partial:
                    partial.write_text(content, encoding="utf-8", errors="backslashreplace", newline="\n")
    except (OSError, ValueError, RuntimeError, MemoryError) as error:
        say(recording.name, error)
        return False
    if output is None:
        prefixed = form.several and form.formats == ("txt",)
        put(_with_path(recording.name, contents[0]) if prefixed else contents[0], sys.stdout)
    if form.verbose:
        factor = took / transcript.duration
        say(recording.name, f"{transcript.duration:.2f} s in {took:.2f} s, real-time factor {factor:.3f}")
    return True


def _heard(transcriber: "Transcriber", recording: Recording, form: Form) -> "Transcript":
    """Transcribe, and tell unless quiet what is odd about the recording."""
    with recording.opened() as path, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        waveform = open_audio(path, transcriber.sample_rate)
        if not waveform.any():
            warnings.warn("is silent: every sample is zero", stacklevel=1)
        transcript = transcriber.transcribe(waveform, n_best=form.n_best)
    for warning in caught if not form.quiet else ():
        say(recording.name, str(warning.message).removeprefix(f"{path}: "))
    return transcript


def _with_path(name: str, lines: str) -> str:
    """Begin each line with a path and a tab; a path that would break its line is escaped, any other is itself."""
    field = name.translate(ESCAPES) if set(name) & set("\t\n\r") else name
    return "".join(f"{field}\t{line}\n" for line in lines.removesuffix("\n").split("\n"))
