"""Hotwords: names and jargon that joint search is to favour, letter by letter as it spells them."""

import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from samba_asr.decoding.lexicon import words_in
from samba_asr.text.normalization import TextForm, normalize_text

_MARKS = ".,?!"
"""What may follow a word without a space, in written text."""
_REMEMBERED = 1 << 16
"""How many pairs of state and piece are worked out once only."""


@dataclass(slots=True)
class _Node:
    """Letters that one or more hotwords begin with."""

    letters: int = 0
    """How many, spaces not counted."""
    boost: float = 0.0
    """What these letters are worth while the hotword goes on: by the weightiest of those that begin so."""
    whole: float | None = None
    """What the hotword is worth that ends here."""
    children: dict[str, int] = field(default_factory=dict)
    """Numbers of the nodes that another letter leads to."""


class HotwordState(NamedTuple):
    """What a text's end still matters for; all relative to the boost of the hotwords that are complete before it."""

    shown: float
    """The boost of the text as it is, complete or not."""
    begun: tuple[tuple[int, float], ...]
    """Nodes of the hotwords that may be under way, with the boost of all that is complete before they begin."""


class Hotwords:
    """A boost for hotwords: each of a hotword's letters, spaces not counted, adds its weight, so that long words, which
    are harder, get more.

    A hotword is one word or several, and counts only as whole words: from a word's begin, and up to a space, the text's
    end or one of the marks ``. , ? !``, so that "new" is not in "news" but in "new, ". While a hotword is under way its
    letters so far count; they are taken back when it fails, and at the text's end. Where hotwords overlap, those count
    that are worth most together: of "new", "new york" and "york times", a text with "new york times" in it has "new"
    and "york times". So a text's score depends on the text alone, not on how it was cut into pieces.
    """

    favours = True
    ROOT = 0

    def __init__(self, weights: Mapping[str, float], pieces: Sequence[str]) -> None:
        """weights: the weight of each hotword, see :func:`read_hotwords`. pieces: the text of each of CTC's, beginning
        with a space where a word begins, "" for special ones.

        Hotwords become normalised text, written or spoken, as the pieces have capitals or not; in written text each may
        also begin with a capital, as it does where a sentence begins, and one in capitals alone stays so. Raises
        ValueError for a hotword of which nothing is left, with a character that no piece has, or whose weight is not a
        positive number; and for two that become the same but differ in weight.
        """
        self._pieces = pieces
        self._nodes = [_Node()]
        for phrase, weight in _spelt(weights, pieces).items():
            self._add(phrase, weight)
        self._after = lru_cache(maxsize=_REMEMBERED)(self._read)
        self._go_on = lru_cache(maxsize=_REMEMBERED)(self._pieces_from)

    def start(self) -> HotwordState:
        """Return the state of the empty text."""
        return HotwordState(0.0, ((self.ROOT, 0.0),))

    def score(self, state: HotwordState, piece: int) -> tuple[float, HotwordState]:
        """Return the boost that a piece adds or takes back, and the state after it."""
        return self._after(state, piece)

    def end(self, state: HotwordState) -> float:
        """Return what the text's end takes back: minus the letters of a hotword that it leaves unfinished."""
        return self._complete(state.begun) - state.shown

    def hoped(self, state: HotwordState) -> Sequence[int]:
        """Return the pieces that go on with a hotword of which the text has some letters."""
        under_way = [node for node, _ in state.begun if node != self.ROOT]
        return self._go_on(under_way[0]) if len(under_way) == 1 else sorted({*chain(*map(self._go_on, under_way))})

    def _pieces_from(self, number: int) -> tuple[int, ...]:
        return tuple(
            piece for piece, letters in enumerate(self._pieces) if letters and self._follow(number, letters) is not None
        )

    def _follow(self, number: int, letters: str) -> int | None:
        """Return the node that letters lead to from another."""
        found: int | None = number
        for letter in letters:
            found = None if found is None else self._nodes[found].children.get(letter)
        return found

    def _add(self, phrase: str, weight: float) -> None:
        number = self.ROOT
        for letter in phrase:
            node = self._nodes[number]
            if letter not in node.children:
                node.children[letter] = len(self._nodes)
                self._nodes.append(_Node(node.letters + (letter != " ")))
            number = node.children[letter]
            node = self._nodes[number]
            node.boost = max(node.boost, weight * node.letters)
        self._nodes[number].whole = weight * self._nodes[number].letters

    def _read(self, state: HotwordState, piece: int) -> tuple[float, HotwordState]:
        """Let a piece follow; the score of the text's complete hotwords moves from the state into what is returned."""
        begun, complete = state.begun, 0.0
        for letter in self._pieces[piece]:
            at_begin = begun[:1] == ((self.ROOT, 0.0),)
            if letter == " " and at_begin:
                continue  # several spaces are as good as one
            if letter == " " or letter in _MARKS:
                gain = self._complete(begun)
                complete += gain
                begun = tuple((node, before - gain) for node, before in begun)
            begun = tuple(self._grown(begun, letter))
            if letter == " ":
                begun = ((self.ROOT, 0.0), *begun)
        shown = max([0.0, *(before + self._nodes[node].boost for node, before in begun)])
        return complete + shown - state.shown, HotwordState(shown, begun)

    def _grown(self, begun: tuple[tuple[int, float], ...], letter: str) -> Iterable[tuple[int, float]]:
        for number, before in begun:
            child = self._nodes[number].children.get(letter)
            if child is not None:
                yield child, before

    def _complete(self, begun: tuple[tuple[int, float], ...]) -> float:
        """Return what hotwords that end here add to those that were complete before."""
        wholes = ((before, self._nodes[number].whole) for number, before in begun)
        return max([0.0, *(before + whole for before, whole in wholes if whole is not None)])


def words_of(weights: Mapping[str, float], pieces: Sequence[str]) -> set[str]:
    """Return the words of hotwords in lower case; arguments and errors as of :class:`Hotwords`."""
    return {word for phrase in _spelt(weights, pieces) for word in words_in(phrase)}


def read_hotwords(source: str | Path) -> dict[str, float]:
    """Return hotwords with their weights, from a list such as "Nadezhda,Kubernetes:2" or from a file with one a line.

    A weight may follow after a colon: it multiplies the boost, and is 1 where none is given. Lines that begin with
    ``#`` are comments. source: a file's path, UTF-8; a str that names no file is a list, with commas in between.

    Raises FileNotFoundError where a str looks like a path (a separator in it, or .txt at its end, and no comma) or a
    Path is given, and there is no such file; ValueError for a file that is not UTF-8, for no hotwords at all, and for
    one that is empty, there twice, or whose weight is not a positive number.
    """
    path = Path(source)
    if os.path.isfile(path):  # unlike Path.is_file, it takes a long list for no file rather than for an error
        return _parsed(_lines(path), f"hotwords file {path}")
    if isinstance(source, Path) or _looks_like_a_path(source):
        raise FileNotFoundError(f"hotwords file {source} is no file; for one hotword put a comma after it")
    return parse_hotwords(source)


def parse_hotwords(text: str) -> dict[str, float]:
    """As :func:`read_hotwords`, of a list alone: no file is looked for, whatever the text is."""
    return _parsed(text.removesuffix(",").split(","), f"hotwords {text!r}")


def _looks_like_a_path(source: str) -> bool:
    separators = [separator for separator in (os.sep, os.altsep, "/") if separator]
    return "," not in source and (source.endswith(".txt") or any(each in source for each in separators))


def _lines(path: Path) -> list[str]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"hotwords file {path} is not UTF-8 text: {error}") from error
    return [line for line in lines if line.strip() and not line.startswith("#")]


def _parsed(entries: Sequence[str], where: str) -> dict[str, float]:
    weights: dict[str, float] = {}
    for entry in entries:
        phrase, colon, weight = entry.rpartition(":") if ":" in entry else (entry, "", "")
        phrase = " ".join(phrase.split())
        if not phrase:
            raise ValueError(f"{where}: {entry!r} is no hotword; leave it out")
        if phrase in weights:
            raise ValueError(f"{where}: {phrase!r} is there twice; leave one out")
        weights[phrase] = _weight(phrase, weight) if colon else 1.0
    if not weights:
        raise ValueError(f"{where}: no hotword is there; write one a line")
    return weights


def _weight(phrase: str, weight: str | float) -> float:
    try:
        value = float(weight)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ValueError(f"weight ({weight}) of hotword {phrase!r} must be a positive number, as in {phrase}:2")
    return value


def _spelt(weights: Mapping[str, float], pieces: Sequence[str]) -> dict[str, float]:
    """Return the normalised texts that count as hotwords, with their weights."""
    known = set("".join(pieces)) | {" "}
    form: TextForm = "written" if any(char.isupper() for char in known) else "spoken"
    names: dict[str, str] = {}
    found: dict[str, float] = {}
    for name, weight in weights.items():
        text = _normalised(name, form)
        if not text:
            raise ValueError(f"hotword {name!r} has no letter or digit")
        if missing := [char for char in text if char not in known]:
            raise ValueError(f"hotword {name!r} has the character {missing[0]!r}, which the model never writes")
        if found.setdefault(text, _weight(name, weight)) != weight:
            raise ValueError(f"hotwords {names[text]!r} and {name!r} are both {text!r} but differ in weight")
        names.setdefault(text, name)
    if form == "written":
        for text, weight in list(found.items()):
            found.setdefault(text[0].upper() + text[1:], weight)
    return found


def _normalised(phrase: str, form: TextForm) -> str:
    text = normalize_text(phrase, form)
    # normalisation takes capitals alone for a corpus that has no others; in a hotword they mean an abbreviation
    shouted = form == "written" and phrase == phrase.upper() and phrase != phrase.lower()
    return text.upper() if shouted else text
