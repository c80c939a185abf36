"""A lexicon: the words of a language, without probabilities, so that joint search prefers words that exist.

The decoder spells what it has no token for by ear ("plebean"). As the lexicons of CTC decoders without a language model
(Collobert et al. 2016, arXiv 1609.03193), but for a penalty and not a bar: new names can still be written.
"""

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path

_ENDS = " .,?!-"
"""What is no part of a word."""
_REMEMBERED = 1 << 16
"""How many pairs of state and piece are worked out once only."""


class Lexicon:
    """Minus one for each word that the lexicon lacks, as soon as none of its words begins so.

    Words are compared in lower case, end at a space, a hyphen, the text's end or one of the marks ``. , ? !``, and may
    have ``'s`` after them. What holds another character than letters and apostrophes, such as a number, is no word to
    judge once that character is there. So a text's score depends on the text alone, not on how it was cut into pieces.
    What is remembered of a text are the letters of the word under way, None once there is no more to say of it.
    """

    favours = False  # it only takes away

    def __init__(self, words: Iterable[str], pieces: Sequence[str]) -> None:
        """words: in lower case. pieces: the text of each of CTC's, beginning with a space where a word begins, "" for
        special ones."""
        self._words = frozenset(words)
        self._sorted = sorted(self._words)
        self._pieces = pieces
        self._after = lru_cache(maxsize=_REMEMBERED)(self._read)

    def start(self) -> str | None:
        """Return the state of the empty text."""
        return ""

    def score(self, state: str | None, piece: int) -> tuple[float, str | None]:
        """Return what a piece takes away, 0 or less, and the state after it."""
        return self._after(state, piece)

    def end(self, state: str | None) -> float:
        """Return what the text's end takes away: the word under way may be only the begin of one."""
        return -1.0 if state and not self._is_word(state) else 0.0

    def hoped(self, state: str | None) -> Sequence[int]:
        """Return nothing: what takes away hopes for nothing."""
        return ()

    def _read(self, state: str | None, piece: int) -> tuple[float, str | None]:
        added = 0.0
        for letter in self._pieces[piece].lower():
            if letter in _ENDS:
                added, state = added + self.end(state), ""
            elif state is not None and not (letter.isalpha() or letter == "'"):
                state = None
            elif state is not None:
                state += letter
                if not self._begins_one(state):
                    added, state = added - 1.0, None
        return added, state

    def _is_word(self, letters: str) -> bool:
        return letters in self._words or (letters.endswith("'s") and letters[:-2] in self._words)

    def _begins_one(self, letters: str) -> bool:
        place = bisect_left(self._sorted, letters)
        if place < len(self._sorted) and self._sorted[place].startswith(letters):
            return True
        return self._is_word(letters) or (letters.endswith("'") and letters[:-1] in self._words)


def read_lexicon(path: str | Path) -> frozenset[str]:
    """Return the words of a file, UTF-8 with one a line, in lower case; empty lines and those with ``#`` first do not
    count. Raises FileNotFoundError; ValueError for a file that is not UTF-8, holds no word, or several in a line."""
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"lexicon {path} is no file; it has a word a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"lexicon {path} is not UTF-8 text: {error}") from error
    words = frozenset(line.strip().lower() for line in lines if line.strip() and not line.startswith("#"))
    if not words:
        raise ValueError(f"lexicon {path} has no word; write one a line")
    if several := next((word for word in words if len(word.split()) > 1), None):
        raise ValueError(f"lexicon {path}: {several!r} is more than one word; write one a line")
    return words
