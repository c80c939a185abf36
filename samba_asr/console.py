"""The command line's two streams: results on one, everything else on the other, and what can go wrong with both."""

import contextlib
import io
import os
import sys
from typing import TextIO

from tqdm import tqdm

PROGRAM = "samba-asr"


def put(text: str, stream: TextIO) -> None:
    """Write text as it is, at once."""
    tqdm.write(text, file=stream, end="")  # print() would break into a progress bar
    stream.flush()


def say(name: str, message: Exception | str) -> None:
    """Write one line about a recording, or about the program, to standard error."""
    put(f"{PROGRAM}: {name}: {message if isinstance(message, str) else reason(message, name)}\n", sys.stderr)


def reason(error: Exception, name: str) -> str:
    """One line that says what went wrong, without repeating the name."""
    what = getattr(error, "reason", None) or getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(str(what).removeprefix(f"{name}: ").split())


def survive_any_encoding(stream: TextIO) -> None:
    """Let a stream write characters that its encoding lacks."""
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")


def discard(stream: TextIO) -> None:
    """Send what is left in a stream's buffer nowhere, so that the interpreter's last flush cannot fail."""
    with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), stream.fileno())
