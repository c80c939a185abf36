"""Manifests: one JSON object a line, one line an utterance, the same for every corpus."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from samba_asr.atomic import replacing


@dataclass(frozen=True)
class Utterance:
    """One recording and what was said in it."""

    audio: str
    """Path of the audio file. In a manifest: absolute, or relative to the manifest's folder."""
    duration: float
    """Seconds."""
    text: str
    """The corpus's own text; training and scoring each normalise it in their own way."""
    speaker: str
    """The corpus's name for the speaker; empty where it has none."""
    corpus: str
    """The corpus's name."""


_FIELDS = tuple(field.name for field in dataclasses.fields(Utterance))


def read_manifest(path: str | Path) -> list[Utterance]:
    """Read a manifest; relative audio paths come back joined to its folder.

    Raises FileNotFoundError, or ValueError naming the file and the line of the first mistake.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"manifest {path} does not exist; recipes/librispeech/prepare.py makes manifests")
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason})") from error
    utterances = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                utterances.append(_parse(line, path.parent))
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from error
    return utterances


def _parse(line: str, folder: Path) -> Utterance:
    try:
        values = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg})") from error
    if not isinstance(values, dict) or sorted(values) != sorted(_FIELDS):
        found = ", ".join(values) if isinstance(values, dict) else repr(values)
        raise ValueError(f"needs exactly the keys {', '.join(_FIELDS)}; found {found}")
    for name in ("audio", "text", "speaker", "corpus"):
        if not isinstance(values[name], str):
            raise ValueError(f"{name} ({values[name]!r}) must be a string")
    duration: Any = values["duration"]
    if isinstance(duration, bool) or not isinstance(duration, (int, float)):
        raise ValueError(f"duration ({duration!r}) must be a number of seconds")
    if not (math.isfinite(duration) and duration > 0):
        raise ValueError(f"duration ({duration}) must be positive")
    if not values["audio"]:
        raise ValueError("audio must not be empty")
    audio = str(folder / values["audio"])  # an absolute path stays as it is
    return Utterance(audio, float(duration), values["text"], values["speaker"], values["corpus"])


def write_manifest(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write a manifest, whole or not at all. Makes the parent folder.

    An absolute audio path below the manifest's folder becomes relative to it, so that the two can move together.
    """
    path = Path(path)
    folder = path.parent.absolute()
    with _writer(path) as out:
        for utterance in utterances:
            values = dataclasses.asdict(utterance)
            audio = Path(utterance.audio)
            if audio.is_relative_to(folder):
                values["audio"] = audio.relative_to(folder).as_posix()
            out.write(json.dumps(values, ensure_ascii=False) + "\n")


def export_tsv(path: str | Path, utterances: Iterable[Utterance]) -> None:
    """Write ``audio<tab>text`` lines, white space in the text as single spaces. Makes the parent folder.

    Raises ValueError where an audio path holds a tab or a newline.
    """
    with _writer(Path(path)) as out:
        for utterance in utterances:
            if any(mark in utterance.audio for mark in "\t\n\r"):
                raise ValueError(
                    f"{utterance.audio!r}: a path with a tab or a newline has no place in a .tsv; rename it"
                )
            out.write(f"{utterance.audio}\t{' '.join(utterance.text.split())}\n")


@contextmanager
def _writer(path: Path) -> Iterator[TextIO]:
    """Open a text file that takes ``path``'s place when the block ends without an error; make the parent folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as partial, open(partial, "w", encoding="utf-8", newline="\n") as out:
        yield out
