"""What the command line's arguments name: files, folders, patterns and standard input."""

import glob
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

STDIN = "-"
"""The argument that means standard input."""

_AUDIO = (
    "aac ac3 aif aifc aiff amr ape au caf flac m4a m4b mka mp2 mp3 oga ogg opus rf64 snd spx tta w64 wav wave wma wv"
)
_VIDEO = "3g2 3gp asf avi f4v flv m4v mkv mov mp4 mpeg mpg ogv webm wmv"
SUFFIXES = frozenset(f"{_AUDIO} {_VIDEO}".split())
"""Endings of the names, in any case, of files that are taken from a folder: audio, and video with its sound."""


@dataclass(frozen=True)
class Recording:
    """One thing to transcribe."""

    name: str
    """What outputs and messages call it."""
    path: str
    """Its file; "-" for standard input."""
    problem: str = ""
    """Why it cannot be transcribed; empty where that is still open."""

    @contextmanager
    def opened(self) -> Iterator[str]:
        """Yield the path of a file with its content: standard input is first read to its end."""
        if self.path != STDIN:
            yield self.path
            return
        with tempfile.TemporaryDirectory(prefix="samba-asr-") as folder:
            path = Path(folder) / "stdin"
            with open(path, "wb") as file:
                shutil.copyfileobj(sys.stdin.buffer, file)
            yield str(path)


def find_recordings(arguments: Sequence[str]) -> list[Recording]:
    """Return what arguments name, in their order.

    A folder stands for the files in it and below it whose names end as audio does, sorted; not for hidden ones. A
    pattern (*, ?, [...], ** for any folders) stands for what it matches, sorted, each file once, unless a file has that
    very name. Whatever holds nothing becomes one recording that has a problem.
    """
    return [recording for argument in arguments for recording in _named_by(argument)]


def may_be_several(argument: str) -> bool:
    """Tell whether an argument stands for any number of recordings: a folder or a pattern."""
    return argument != STDIN and (os.path.isdir(argument) or _is_pattern(argument))


def _named_by(argument: str) -> list[Recording]:
    if argument == STDIN:
        return [Recording("stdin", STDIN)]
    if os.path.isdir(argument):
        found = _in_folder(argument)
        return found or [
            Recording(argument, argument, "is a folder without audio files; name those with other endings")
        ]
    if _is_pattern(argument):
        matches = sorted(glob.glob(argument, recursive=True))
        found = [recording for match in matches for recording in (_in_folder(match) or _file(match))]
        return list(dict.fromkeys(found)) or [Recording(argument, argument, "no file has a name like that")]
    return [Recording(argument, argument)]


def _is_pattern(argument: str) -> bool:
    return any(sign in argument for sign in "*?[") and not os.path.lexists(argument)


def _file(path: str) -> list[Recording]:
    return [] if os.path.isdir(path) else [Recording(path, path)]


def _in_folder(folder: str) -> list[Recording]:
    found: list[Recording] = []

    def closed(error: OSError) -> None:
        name = str(error.filename)
        found.append(Recording(name, name, f"cannot be opened ({error.strerror})"))

    if not os.path.isdir(folder):
        return found
    for parent, folders, files in os.walk(folder, onerror=closed):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = [os.path.join(parent, name) for name in files if not name.startswith(".")]
        found += [Recording(path, path) for path in paths if Path(path).suffix[1:].lower() in SUFFIXES]
    return sorted(found, key=lambda recording: Path(recording.path).parts)
