"""An n-gram language model's say in joint search, from an ARPA or KenLM binary file."""

import bz2
import gzip
import lzma
import math
import re
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple, Protocol

import numpy as np

_REMEMBERED = 1 << 16
"""How many answers of a kind are worked out once only."""
_BINARY = b"mmap lm http://kheafield.com/code"
"""What KenLM's binary files begin with."""
_PACKED: dict[bytes, Callable[[Path], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_NO_WORDS = {"<s>", "</s>", "<unk>", "<UNK>"}
_MARKS = ".,?!"
_SELDOM = 0.01
"""Share of a vocabulary up to which words in capitals, or with marks, are mere accidents in it."""
_LN10 = math.log(10)


class Model(Protocol):
    """What is used of kenlm.Model, whose states are kenlm.State; logarithms to the base of 10."""

    def BeginSentenceWrite(self, state: Any, /) -> Any:
        """Write into a state what is remembered of an empty text."""

    def BaseScore(self, in_state: Any, word: str, out_state: Any, /) -> float:
        """Return the log-probability of a word after a state, and write the state after it."""

    def __contains__(self, word: str, /) -> bool:
        """Whether the model knows a word."""


class NGramState(NamedTuple):
    """What the next word depends on."""

    context: Any
    """The model's state after the complete words."""
    letters: str
    """Of the word after them; always "" where the model's words are pieces."""


class NGram:
    """Scores of a model whose words are words, or CTC's pieces with ``\u2581`` where a word begins.

    A piece is scored at once. A word is when it is complete; until then a text has, for the letters of its last word,
    the probability of all words that begin so, by their unigrams, or that of an unknown word if it is more. It is known
    for ARPA files alone: KenLM's binary files list no words, and there a word's letters cost nothing until it is
    complete, so that a beam must be wide. A text's score depends on its string alone, pieces of no text left out.

    Words are looked up as the model has them: in capitals where it has no others, or in lower case; and without marks
    and hyphens where it has no marks. A word that it does not know has the probability of its ``<unk>``, and one in
    10^100 where it has none.
    """

    favours = True

    def __init__(
        self,
        model: Model,
        new_context: Callable[[], Any],
        pieces: Sequence[str],
        unigrams: Mapping[str, float] | None = None,
    ) -> None:
        """new_context: makes a state of the model, kenlm.State. pieces: the text of each of CTC's, beginning with a
        space where a word begins, "" for special ones. unigrams: of all the model's words, log-probabilities to the
        base of 10; None: not known. Raises ValueError for a model of pieces that are not CTC's."""
        self._model, self._new_context = model, new_context
        self.of_pieces = _has_pieces(model, pieces, unigrams)
        """Whether the model's words are pieces."""
        if self.of_pieces:
            self._texts = [piece.replace(" ", "\u2581") or "<unk>" for piece in pieces]
        else:
            form = _Form.of(unigrams if unigrams is not None else _known(model, pieces))
            self._texts = [form.apply(piece) for piece in pieces]
        self._beginnings = None if unigrams is None or self.of_pieces else _Beginnings(unigrams)
        self._word = lru_cache(maxsize=_REMEMBERED)(self._ask)
        self._after = lru_cache(maxsize=_REMEMBERED)(self._read)

    @classmethod
    def load(cls, path: str | Path, pieces: Sequence[str]) -> "NGram":
        """Read a model of two or more words a time: an ARPA file, perhaps packed (.gz, .bz2, .xz), or KenLM's binary.

        pieces: as above. Raises FileNotFoundError, ValueError for a file that is no such model, and RuntimeError where
        kenlm is not installed.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"n-gram model {path} does not exist")
        try:
            import kenlm
        except ImportError as error:
            raise RuntimeError(f"n-gram models need kenlm ({error}): pip install 'samba-asr[ngram]'") from error
        settings = kenlm.Config()
        settings.show_progress = False
        settings.arpa_complain = kenlm.ARPALoadComplain.NONE
        try:
            model = kenlm.Model(str(path), settings)
        except (OSError, RuntimeError) as error:
            raise ValueError(f"{path} is no n-gram model that KenLM reads: {_reason(error)}") from error
        try:
            return cls(model, kenlm.State, pieces, _unigrams(path))
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def start(self) -> NGramState:
        """Return the state of the empty text."""
        context = self._new_context()
        self._model.BeginSentenceWrite(context)
        return NGramState(context, "")

    def score(self, state: NGramState, piece: int) -> tuple[float, NGramState]:
        """Return what a piece adds to a text's log-probability, and the state after it."""
        return self._after(state, piece)

    def end(self, state: NGramState) -> float:
        """Return the log-probability of the end, that of the last word included."""
        total, context = self._complete(state)
        return total - self._begun(state.letters) + self._word(context, "</s>")[0]

    def hoped(self, state: NGramState) -> Sequence[int]:
        """Return no piece: see :meth:`PieceScorer.hoped`."""
        return ()

    def _read(self, state: NGramState, piece: int) -> tuple[float, NGramState]:
        if self.of_pieces:
            score, context = self._word(state.context, self._texts[piece])
            return score, NGramState(context, "")
        total = -self._begun(state.letters)
        first, *others = self._texts[piece].split(" ")
        state = NGramState(state.context, state.letters + first)
        for letters in others:
            score, context = self._complete(state)
            total += score
            state = NGramState(context, letters)
        return total + self._begun(state.letters), state

    def _complete(self, state: NGramState) -> tuple[float, Any]:
        return self._word(*state) if state.letters else (0.0, state.context)

    def _ask(self, context: Any, word: str) -> tuple[float, Any]:
        after = self._new_context()
        return self._model.BaseScore(context, word, after) * _LN10, after

    def _begun(self, letters: str) -> float:
        return self._beginnings.log_prob(letters) if self._beginnings is not None and letters else 0.0


class _Beginnings:
    """The probability of all words that begin alike."""

    def __init__(self, unigrams: Mapping[str, float]) -> None:
        self._words = sorted(unigrams)
        self._probs = np.power(10.0, [unigrams[word] for word in self._words])
        self._least = 10.0 ** max(unigrams.get("<unk>", -100.0), unigrams.get("<UNK>", -100.0))
        self.log_prob = lru_cache(maxsize=_REMEMBERED)(self._sum)

    def _sum(self, letters: str) -> float:
        first, end = bisect_left(self._words, letters), bisect_left(self._words, letters + "\U0010ffff")
        return math.log(max(float(self._probs[first:end].sum()), self._least))


class _Form(NamedTuple):
    """How a model of words writes them."""

    case: Callable[[str], str]
    plain: bool
    """Without marks, and hyphens part words."""

    @classmethod
    def of(cls, words: Mapping[str, float] | set[str]) -> "_Form":
        names = set(words) - _NO_WORDS
        seldom = _SELDOM * len(names)
        small = sum(any(map(str.islower, word)) for word in names) > seldom
        large = sum(any(map(str.isupper, word)) for word in names) > seldom
        marked = sum(word[-1] in _MARKS for word in names) > seldom
        case = str if small and large else str.upper if large else str.lower
        return cls(case, not marked)

    def apply(self, piece: str) -> str:
        if self.plain:
            piece = re.sub(r"[^\w']|_", " ", piece)
        return self.case(piece)


def _known(model: Model, pieces: Sequence[str]) -> set[str]:
    """Return some words that a model knows: from pieces that are words, in all forms."""
    words = {piece[1:].lower() for piece in pieces if re.fullmatch(r" \w+", piece)}
    forms = {case(word) + mark for word in words for case in (str, str.upper, str.title) for mark in ("", *_MARKS)}
    return {form for form in forms if form in model}


def _has_pieces(model: Model, pieces: Sequence[str], unigrams: Mapping[str, float] | None) -> bool:
    """Tell a model of pieces from one of words."""
    own = {piece.replace(" ", "\u2581") for piece in pieces if piece}
    known = sum(piece in model for piece in own)
    begins = any(piece in model for piece in own if piece[0] == "\u2581")
    if not begins and not any(word.startswith("\u2581") for word in unigrams or ()):
        return False
    others = len(unigrams.keys() - _NO_WORDS) - known if unigrams is not None else 0
    if 2 * known < len(own) or others > len(own):
        raise ValueError(
            f"the model's words are pieces of another tokenizer: of the recogniser's {len(own)} pieces it knows {known}"
            f"{f', and {others} others' if others else ''}; make it from texts in this one's pieces, or from words"
        )
    return True


def _reason(error: Exception) -> str:
    """Return KenLM's words without the path, which ours has, and without places in its source."""
    text = re.sub(r"^Cannot read model '.*?' \((.*)\)$", r"\1", " ".join(str(error).split()))
    return re.sub(r"^\S+:\d+ in .* threw \w+(?: because `.*?')?\.\s*", "", text)


def _unigrams(path: Path) -> dict[str, float] | None:
    """Return the words of an ARPA file with their log-probabilities, to the base of 10; None for a binary one."""
    with path.open("rb") as file:
        start = file.read(len(_BINARY))
    if start == _BINARY:
        return None
    unpack = next((unpack for magic, unpack in _PACKED.items() if start.startswith(magic)), None)
    with path.open("rb") if unpack is None else unpack(path) as lines:
        return dict(_entries(lines))


def _entries(lines: IO[bytes]) -> Iterator[tuple[str, float]]:
    inside = False
    for line in lines:
        if line.startswith(b"\\"):
            if inside:
                return
            inside = line.strip() == b"\\1-grams:"
        elif inside and (cells := line.split()):  # bytes part at ASCII white space alone, as KenLM does
            yield cells[1].decode(errors="replace"), float(cells[0])
