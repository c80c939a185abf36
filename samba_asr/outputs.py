"""Files that transcripts are written to: one for each recording and format, and none for two."""

import os
import tempfile
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from samba_asr.recordings import Recording


class Outputs(NamedTuple):
    """Where one recording's transcript goes."""

    paths: tuple[Path, ...]
    """A file for each format."""
    renamed: str
    """What to tell the user about another name than the recording's; empty where there is nothing to tell."""

    @property
    def exist(self) -> bool:
        """Whether every file is there."""
        return all(path.is_file() for path in self.paths)


def output_paths(recordings: Sequence[Recording], folder: Path, formats: Sequence[str]) -> list[Outputs]:
    """Name the outputs of each recording: its stem; where that is taken, the stem and a number.

    No two outputs share a name, on a file system that ignores case neither, and none is one of the inputs. Formats are
    the names' endings.
    """
    inputs = {os.path.realpath(recording.path) for recording in recordings}  # resolve() fails for a link to itself
    stems = {_same_name(Path(recording.name).stem) for recording in recordings}
    taken: set[str] = set()
    outputs = []
    for recording in recordings:
        stem = Path(recording.name).stem
        name, number = stem, 1
        paths = _named(folder, name, formats)
        while (
            _same_name(name) in taken
            or (number > 1 and _same_name(name) in stems)
            or any(os.path.realpath(path) in inputs for path in paths)
        ):
            number += 1
            name = f"{stem}-{number}"
            paths = _named(folder, name, formats)
        taken.add(_same_name(name))
        files = ", ".join(map(str, paths))
        why = f"goes to {files}, because {_named(folder, stem, formats)[0].name} is taken by another recording"
        outputs.append(Outputs(paths, why if number > 1 else ""))
    return outputs


def make_writable(folder: Path) -> None:
    """Make a folder and try it; raises OSError where nothing can be written to it."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=folder):
        pass


def _named(folder: Path, name: str, formats: Sequence[str]) -> tuple[Path, ...]:
    return tuple(folder / f"{name}.{extension}" for extension in formats)


def _same_name(name: str) -> str:
    return unicodedata.normalize("NFC", name).casefold()
