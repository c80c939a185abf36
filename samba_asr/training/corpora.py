"""Find speech corpora in a folder and read them, whatever their layout, as lists of utterances."""

import hashlib
import json
import logging
import os
import random
import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from tqdm import tqdm

from samba_asr.audio.load import audio_duration
from samba_asr.text.normalization import normalize_for_training
from samba_asr.training.manifest import Utterance

Layout = Literal["librispeech", "common-voice", "kaldi", "ljspeech", "synthetic"]

_AUDIO_SUFFIXES = (
    *(".wav", ".flac", ".sph", ".w64", ".aiff", ".aif", ".au", ".caf"),
    *(".opus", ".ogg", ".oga", ".mp3", ".m4a", ".aac", ".mp4", ".webm", ".mka", ".wma", ".amr", ".3gp"),
)
"""Endings looked for where a corpus names a recording without one; the first wins."""
_SPLIT_NAME = re.compile(r"(train|dev|test|val|eval)", re.IGNORECASE)
_UNCHECKED = ("validated", "invalidated", "other")
"""Tables of Common Voice beside its splits: all checked clips, rejected ones, and ones not checked yet."""
_MANIFEST_NAME = re.compile(r"manifest(-\d+)?\.tsv")
"""Tables of synthetic speech: one, or one for each process that spoke."""
_WARNINGS_SHOWN = 10
_SEARCH_DEPTH = 3

_log = logging.getLogger(__name__)


class _Entry(NamedTuple):
    """What a corpus says of one recording."""

    name: str  # its own name for it
    audio: Path | None  # None where the file is absent
    text: str
    speaker: str
    problem: str = ""  # why it cannot be used, where the table itself says so


@dataclass(frozen=True)
class Split:
    """One part of a corpus."""

    corpus: str
    """Name of the corpus: librispeech, commonvoice, ljspeech; a Kaldi folder's own name; synthetic-FOLDER."""
    name: str
    """train-clean-5, dev, ...; train where the corpus has no splits."""
    utterances: list[Utterance]
    """In the natural order of their paths, which are absolute; never empty."""
    skipped: int
    """Utterances left out: audio missing or unreadable, or no words."""


def find_corpora(folder: str | Path) -> list[Path]:
    """Return the corpus folders at or below ``folder`` (down to three levels), in natural order."""
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"data folder {folder} does not exist")
    return list(_find_corpora(folder, _SEARCH_DEPTH))


def _find_corpora(folder: Path, depth: int) -> Iterator[Path]:
    layout = detect_layout(folder)
    own: set[Path] = set()
    if layout:
        yield folder
        own = set(_split_folders(folder, layout).values())
    if depth and folder not in own and layout not in ("common-voice", "ljspeech", "synthetic"):
        for child in _children(folder):
            if child not in own:
                yield from _find_corpora(child, depth - 1)


def detect_layout(folder: str | Path) -> Layout | None:
    """Return the layout of a corpus folder, or of one split's folder; None for any other folder."""
    folder = Path(folder)
    if (folder / "metadata.csv").is_file() and (folder / "wavs").is_dir():
        return "ljspeech"
    if (folder / "clips").is_dir() and _common_voice_tables(folder):
        return "common-voice"
    if any(_is_synthetic(table) for table in _synthetic_tables(folder)):
        return "synthetic"
    layouts: tuple[Layout, ...] = ("kaldi", "librispeech")
    return next((layout for layout in layouts if _split_folders(folder, layout)), None)


def corpus_name(folder: str | Path, layout: Layout | None = None) -> str:
    """Return the name that manifests give the corpus in this folder."""
    folder = Path(folder).absolute()
    layout = layout or _layout(folder)
    if layout == "synthetic":
        return f"synthetic-{folder.name}"
    if layout != "kaldi":
        return layout.replace("-", "")
    lone_split = (folder / "wav.scp").is_file() and _SPLIT_NAME.match(folder.name)
    return (folder.parent if lone_split else folder).name


def scan_corpus(folder: str | Path, layout: Layout | None = None, progress: bool = False) -> list[Split]:
    """Read a corpus, or one split of it, in natural order; texts stay as the corpus has them.

    Utterances without audio, with unreadable audio or without words are left out: logged as warnings, ten lines and a
    count. A split that loses all its utterances so is left out too.

    Raises FileNotFoundError without such a folder, and ValueError for an unknown layout or a table that cannot be read.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise FileNotFoundError(f"corpus folder {folder} does not exist")
    layout = layout or _layout(folder)
    if layout not in get_args(Layout):
        raise ValueError(f"layout ({layout!r}) must be one of {', '.join(map(repr, get_args(Layout)))}")
    corpus = corpus_name(folder, layout)
    splits = [_make_split(corpus, name, entries, progress) for name, entries in _READERS[layout](folder)]
    if not splits:
        raise ValueError(f"{folder} holds nothing of the layout {layout!r}")
    return [split for split in splits if split.utterances]


def hold_out(utterances: list[Utterance], share: float) -> tuple[list[Utterance], list[Utterance]]:
    """Split utterances into (train, dev) with about ``share`` of the hours in dev, the same way every time.

    Nobody speaks in both; where speakers are unknown or too few for that, no text is in both.
    """
    if not 0 <= share < 1:
        raise ValueError(f"share ({share}) must be in [0, 1)")
    for key in (_speaker, _words):
        chosen = _groups_within(utterances, share, key)
        if chosen:
            break
    train = [utterance for utterance in utterances if key(utterance) not in chosen]
    return train, [utterance for utterance in utterances if key(utterance) in chosen]


def _speaker(utterance: Utterance) -> str:
    return utterance.speaker


def _words(utterance: Utterance) -> str:
    return normalize_for_training(utterance.text)


def _groups_within(utterances: list[Utterance], share: float, key: Callable[[Utterance], str]) -> set[str]:
    """Choose keys whose utterances make up at most ``share`` of the seconds; none if they do not reach half of it."""
    seconds: dict[str, float] = defaultdict(float)
    for utterance in utterances:
        seconds[key(utterance)] += utterance.duration
    limit = share * sum(seconds.values())
    names = sorted(seconds)
    random.Random(0).shuffle(names)
    chosen: set[str] = set()
    held = 0.0
    for name in names:
        if held + seconds[name] <= limit:
            chosen.add(name)
            held += seconds[name]
    return chosen if held >= limit / 2 else set()


def _layout(folder: Path) -> Layout:
    layout = detect_layout(folder)
    if layout is None:
        raise ValueError(f"{folder} has none of the layouts {', '.join(get_args(Layout))}: see prepare.py --help")
    return layout


def _make_split(corpus: str, name: str, entries: list[_Entry], progress: bool) -> Split:
    problems: list[str] = []
    present: list[tuple[Path, _Entry]] = []
    for entry in entries:
        if entry.problem:
            problems.append(f"{entry.name}: {entry.problem}")
        elif entry.audio is None:
            problems.append(f"{entry.name}: audio is missing")
        elif not normalize_for_training(entry.text):
            problems.append(f"{entry.name}: no words in its text ({entry.text!r})")
        else:
            present.append((entry.audio, entry))
    present.sort(key=lambda pair: _natural(str(pair[0])))
    utterances = []
    durations = _durations([audio for audio, _ in present], f"{corpus} {name}", progress)
    for (audio, entry), duration in zip(present, durations, strict=True):
        if isinstance(duration, float):
            utterances.append(Utterance(str(audio), duration, entry.text, entry.speaker, corpus))
        else:
            problems.append(f"{entry.name}: {duration}")
    _report(f"{corpus} {name}", problems, len(entries))
    return Split(corpus, name, utterances, len(problems))


def _durations(paths: list[Path], title: str, progress: bool) -> list[float | Exception]:
    """Return the seconds of each file, or the reason why it cannot be read."""

    def measure(path: Path) -> float | Exception:
        try:
            return round(audio_duration(path), 4)
        except (ValueError, OSError) as error:
            return error

    disable = None if progress else True  # None: only where standard error is a terminal
    with ThreadPoolExecutor(max_workers=min(8, (os.cpu_count() or 1) * 2)) as pool:
        bar = tqdm(pool.map(measure, paths), title, len(paths), unit="file", leave=False, disable=disable)
        return list(bar)


def _report(title: str, problems: list[str], total: int) -> None:
    for problem in problems[:_WARNINGS_SHOWN]:
        _log.warning("%s: skipped %s", title, problem)
    if len(problems) > _WARNINGS_SHOWN:
        _log.warning("%s: ... and %d more", title, len(problems) - _WARNINGS_SHOWN)
    if problems:
        _log.warning("%s: skipped %d of %d utterances", title, len(problems), total)


def _read_librispeech(folder: Path) -> Iterator[tuple[str, list[_Entry]]]:
    """``split/speaker/chapter/*.trans.txt``: lines ``ID TEXT``, ID.<any ending> beside it."""
    for split, split_folder in _split_folders(folder, "librispeech").items():
        entries = []
        for table in sorted(split_folder.glob("*/*/*.trans.txt"), key=lambda path: _natural(str(path))):
            find = _audio_finder(table.parent)
            for number, line in _lines(table):
                name, _, text = line.strip().partition(" ")
                entries.append(_Entry(f"{table}:{number} ({name})", find(name), text.strip(), table.parts[-3]))
        yield split, entries


def _read_common_voice(folder: Path) -> Iterator[tuple[str, list[_Entry]]]:
    """``*.tsv`` with the columns path and sentence (and client_id), unquoted; recordings in clips/."""
    find = _audio_finder(folder / "clips")
    for split, table in _common_voice_tables(folder).items():
        lines = _lines(table)
        header = next(lines)[1].split("\t")
        entries = []
        for number, line in lines:
            cells = line.split("\t")
            if len(cells) < len(header):
                raise ValueError(f"{table}:{number}: {len(cells)} columns, the header has {len(header)}")
            row = dict(zip(header, cells, strict=False))
            name = row["path"].removeprefix("clips/")
            speaker = row.get("client_id", "")
            entries.append(_Entry(f"{table}:{number} ({name})", find(name), row["sentence"].strip(), speaker))
        yield split, entries


def _common_voice_tables(folder: Path) -> dict[str, Path]:
    """Map split to table; the checked clips as a whole are ``train`` where no table names a split."""
    tables = {}
    for table in sorted(folder.glob("*.tsv"), key=lambda path: _natural(path.name)):
        header = next(_lines(table), (0, ""))[1].split("\t")
        if {"path", "sentence"} <= set(header):
            tables[table.stem] = table
    splits = {name: table for name, table in tables.items() if name not in _UNCHECKED}
    if not splits and "validated" in tables:
        return {"train": tables["validated"]}
    return splits


def _read_kaldi(folder: Path) -> Iterator[tuple[str, list[_Entry]]]:
    """``wav.scp``, ``text`` and perhaps ``utt2spk``: lines ``UTTERANCE VALUE``."""
    for split, split_folder in _split_folders(folder, "kaldi").items():
        if (split_folder / "segments").exists():
            raise ValueError(
                f"{split_folder}/segments: segments are not read; cut the recordings into utterances first"
            )
        if not (split_folder / "text").is_file():
            raise FileNotFoundError(f"{split_folder} has a wav.scp but no text file")
        speakers = _kaldi_table(split_folder / "utt2spk") if (split_folder / "utt2spk").is_file() else {}
        texts = _kaldi_table(split_folder / "text")
        audio = _kaldi_table(split_folder / "wav.scp")
        entries = []
        for name in sorted(texts.keys() | audio.keys(), key=_natural):
            path = _kaldi_audio(split_folder, name, audio[name]) if name in audio else None
            title = f"{split_folder.name}/{name}"
            entries.append(_Entry(title, path, texts.get(name, ""), speakers.get(name, "")))
        yield split, entries


def _kaldi_table(path: Path) -> dict[str, str]:
    table = {}
    for number, line in _lines(path):
        name, *value = line.split(maxsplit=1)
        if name in table:
            raise ValueError(f"{path}:{number}: utterance {name} is there twice")
        table[name] = value[0].strip() if value else ""
    return table


def _kaldi_audio(folder: Path, name: str, value: str) -> Path | None:
    """Return the file, whose path is absolute or relative to the folder or its parent; None where it is absent."""
    if value.endswith("|"):
        raise ValueError(f"{folder}/wav.scp: {name} is a command ({value!r}); write its output to a file and name that")
    paths = (Path(os.path.normpath(parent / value)) for parent in (folder, folder.parent))
    return next((path for path in paths if path.is_file()), None)


def _read_ljspeech(folder: Path) -> Iterator[tuple[str, list[_Entry]]]:
    """``metadata.csv``: lines ``ID|text|text with numbers spelled out``, unquoted; recordings in wavs/."""
    find = _audio_finder(folder / "wavs")
    table = folder / "metadata.csv"
    entries = []
    for number, line in _lines(table):
        cells = line.split("|")
        if len(cells) < 2:
            raise ValueError(f"{table}:{number}: must read ID|text|normalised text; found {line!r}")
        entries.append(_Entry(f"{table}:{number} ({cells[0]})", find(cells[0]), cells[-1].strip(), "LJ"))
    yield "train", entries


def _read_synthetic(folder: Path) -> Iterator[tuple[str, list[_Entry]]]:
    """``manifest.tsv``, ``manifest-0.tsv``, ...: lines ``path<TAB>text<TAB>voice``, a JSON object; audio beside them.

    The tables may still grow: what is not a whole line is left out. Of two lines for one recording the later one
    counts, as where speaking was interrupted and began again.
    """
    find = _audio_finder(folder)
    entries: list[_Entry] = []
    places: dict[str, int] = {}
    for table in _synthetic_tables(folder):
        for number, line in enumerate(table.read_bytes().split(b"\n"), 1):
            if not line.strip():
                continue
            cells = line.decode("utf-8-sig", errors="replace").rstrip("\r").split("\t")
            title = f"{table}:{number} ({cells[0]})"
            voice = _voice_name(cells[2]) if len(cells) == 3 else ""
            if not voice:
                entries.append(_Entry(title, None, "", "", "not a line of path, text and voice; is it cut?"))
                continue
            if cells[0] in places:
                earlier = entries[places[cells[0]]]
                entries[places[cells[0]]] = earlier._replace(problem=f"{table.name}:{number} has it again")
            places[cells[0]] = len(entries)
            entries.append(_Entry(title, find(cells[0]), cells[1].strip(), voice))
    yield "train", entries


def _synthetic_tables(folder: Path) -> list[Path]:
    tables = (table for table in folder.glob("manifest*.tsv") if _MANIFEST_NAME.fullmatch(table.name))
    return sorted(tables, key=lambda path: _natural(path.stem))


def _is_synthetic(table: Path) -> bool:
    """Tell whether a table begins with a path, a text and a voice."""
    with table.open("rb") as file:
        cells = file.readline().decode("utf-8-sig", errors="replace").rstrip("\r\n").split("\t")
    return len(cells) == 3 and bool(_voice_name(cells[2]))


def _voice_name(text: str) -> str:
    """Return a short name, the same for the same settings in any order; empty for what is not a JSON object."""
    try:
        settings = json.loads(text)
    except ValueError:
        return ""
    if not isinstance(settings, dict):
        return ""
    return "voice-" + hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


_READERS: dict[str, Callable[[Path], Iterator[tuple[str, list[_Entry]]]]] = {
    "librispeech": _read_librispeech,
    "common-voice": _read_common_voice,
    "kaldi": _read_kaldi,
    "ljspeech": _read_ljspeech,
    "synthetic": _read_synthetic,
}


def _split_folders(folder: Path, layout: Layout) -> dict[str, Path]:
    """Map split to folder, for layouts with a folder a split: ``folder`` itself, or those of its children that are."""
    if layout == "kaldi":
        if (folder / "wav.scp").is_file():
            return {folder.name if _SPLIT_NAME.match(folder.name) else "train": folder}
        return {c.name: c for c in _children(folder) if _SPLIT_NAME.match(c.name) and (c / "wav.scp").is_file()}
    if layout == "librispeech":
        if any(folder.glob("*/*/*.trans.txt")):
            return {folder.absolute().name: folder}
        return {child.name: child for child in _children(folder) if any(child.glob("*/*/*.trans.txt"))}
    return {}


def _children(folder: Path) -> list[Path]:
    return sorted((child for child in folder.iterdir() if child.is_dir()), key=lambda path: _natural(path.name))


def _audio_finder(folder: Path) -> Callable[[str], Path | None]:
    """Return a function from a recording's name, with or without its ending, to the file in ``folder`` or None."""

    @cache
    def listing() -> dict[str, str]:
        names = sorted(os.listdir(folder))
        index = {}
        for suffix in reversed(_AUDIO_SUFFIXES):
            index.update({name[: -len(suffix)]: name for name in names if name.lower().endswith(suffix)})
        return index

    def find(name: str) -> Path | None:
        if (folder / name).is_file():
            return folder / name
        stem = os.path.splitext(name)[0]
        found = listing().get(name) or listing().get(stem)
        return folder / found if found else None

    return find


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line numbers and lines of a UTF-8 text file, blank ones left out."""
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text ({error.reason})") from error


def _natural(text: str) -> list[tuple[int, str]]:
    """Sort key that reads numbers as numbers: a2 before a10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)] + [(-2, text)]
