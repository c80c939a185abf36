"""A lexicon: the words of a language, without probabilities, so that joint search prefers words that exist.

The decoder spells what it has no token for by ear ("plebean"). As the lexicons of CTC decoders without a language model
(Collobert et al. 2016, arXiv 1609.03193), but for a penalty and not a bar: new names can still be written.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

from samba_asr.text.normalization import normalize_text

_ENDS = " .,?!-"
"""What is no part of a word."""
_PLAIN = re.compile(r"[a-z]+(?:'[a-z]+)*")
"""A word as it is in a lexicon."""
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

    def __init__(self, words: frozenset[str], pieces: Sequence[str], more: frozenset[str] = frozenset()) -> None:
        """words: in lower case, sorted once for all lexicons of them. pieces: the text of each of CTC's, beginning with
        a space where a word begins, "" for special ones. more: a few other words."""
        self._words, self._more = words, more
        self._sorted = _sorted(words)
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
        return self._has(letters) or (letters.endswith("'s") and self._has(letters[:-2]))

    def _has(self, letters: str) -> bool:
        return letters in self._words or letters in self._more

    def _begins_one(self, letters: str) -> bool:
        place = bisect_left(self._sorted, letters)
        if place < len(self._sorted) and self._sorted[place].startswith(letters):
            return True
        if any(word.startswith(letters) for word in self._more):
            return True
        return self._is_word(letters) or (letters.endswith("'") and self._has(letters[:-1]))


def words_in(text: str) -> set[str]:
    """Return a text's words as :class:`Lexicon` takes them."""
    return set(re.split(f"[{re.escape(_ENDS)}]+", text.lower())) - {""}


@lru_cache(maxsize=2)
def _sorted(words: frozenset[str]) -> list[str]:
    return sorted(words)


def read_lexicon(path: str | Path) -> frozenset[str]:
    """Return the words of a file, UTF-8, one or more a line and in any case, as models write them: "X-ray" is "x" and
    "ray". Lines that begin with ``#`` do not count.

    Raises FileNotFoundError; ValueError for a file that is not UTF-8 or holds no word.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise FileNotFoundError(f"lexicon {path} is no file; it has a word a line")
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise ValueError(f"lexicon {path} is not UTF-8 text: {error}") from error
    plain = {line for line in lines if _PLAIN.fullmatch(line)}
    others = (normalize_text(line, "spoken").split() for line in lines if line not in plain and line[:1] != "#")
    words = frozenset(word for word in plain.union(*others) if any(letter.isalpha() for letter in word))
    if not words:
        raise ValueError(f"lexicon {path} has no word; write one a line")
    return words
