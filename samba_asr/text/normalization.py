"""Normalisation of English text for training. Scoring has its own, in samba_asr.evaluation."""

import re
import unicodedata

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u2032\uff07\u00b4`", "'"))
_LETTERS = _APOSTROPHES | str.maketrans(
    {"æ": "ae", "œ": "oe", "ø": "o", "ß": "ss", "ð": "d", "þ": "th", "ł": "l", "đ": "d", "ħ": "h", "\u0131": "i"}
)
_OTHER = re.compile(r"[^\w']|_")


def normalize_for_training(text: str) -> str:
    """Return lower-case words of letters, digits and apostrophes with single spaces; "" where nothing is left.

    - Compatibility forms become plain ones (NFKC); accents and ligatures fold to ASCII as English transcripts write
      them: café to cafe, Ægir to aegir. Letters of other scripts stay.
    - Curly apostrophes, primes, backticks and acute accents that stand alone become ``'``. It stays inside a word
      (don't, o'clock) and goes at either end, where it cannot be told from a quotation mark: 'tis to tis, dogs' to
      dogs.
    - Everything else, hyphens and dashes included, becomes a space: well-known to well known, 3.5 to 3 5.
      Numbers and symbols are not spelled out.
    """
    text = _fold(text).replace("''", " ")
    words = (word.strip("'") for word in _OTHER.sub(" ", text).split())
    return " ".join(word for word in words if word)


def _fold(text: str) -> str:
    text = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES)).lower()
    # Mn: combining accents; Cf: invisible marks such as the soft hyphen
    text = "".join(char for char in text if unicodedata.category(char) not in ("Mn", "Cf"))
    return unicodedata.normalize("NFKC", text.translate(_LETTERS))
