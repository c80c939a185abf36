"""Normalisation of English text for training. Scoring has its own, in samba_asr.evaluation."""

import re
import unicodedata
from typing import Literal

TextForm = Literal["spoken", "written"]
"""spoken: lower case without punctuation; written: with case, and with the marks . , ? ! and hyphens inside words."""

_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u2032\uff07\u00b4`", "'"))
_SMALL = {"æ": "ae", "œ": "oe", "ø": "o", "ß": "ss", "ð": "d", "þ": "th", "ł": "l", "đ": "d", "ħ": "h", "\u0131": "i"}
_CAPITALS = {letter.upper(): plain.capitalize() for letter, plain in _SMALL.items() if letter not in "ß\u0131"}
_LETTERS = _APOSTROPHES | str.maketrans(_SMALL | _CAPITALS | {"\u1e9e": "SS", "\u2010": "-"})
_OTHER = re.compile(r"[^\w']|_")
_OTHER_THAN_WRITTEN = re.compile(r"[^\w'.,?!-]|_")
_CLAUSE_ENDS = re.compile(r"(?<=\w)[;:](?=\s|$)")
_HYPHENS_OUTSIDE_WORDS = re.compile(r"(?<![^\W_])-|-(?![^\W_])")
_APOSTROPHES_OUTSIDE_WORDS = re.compile(r"(?<![^\W_])'|'(?![^\W_])")
_MARKS = re.compile(r"\s*[.,?!][.,?!\s]*")


def normalize_text(text: str, form: TextForm) -> str:
    """Return the text in the form that a model is trained to write.

    spoken: see :func:`normalize_for_training`. written, with the same words:

    - Case stays, but a text without any lower-case letter, as many corpora write, becomes lower case: it tells nothing.
    - ``. , ? !`` stay, attached to the word before them and followed by a space, unless they stand inside a number or
      an abbreviation (3.5, 10,000, U.S.); of several the strongest stays (?! to ?, ... to a full stop). Those before
      the first word go. ``; :`` at a word's end become a comma.
    - Hyphens stay inside words. Everything else is folded or becomes a space as in the spoken form.

    The spoken form of the written form is the text's spoken form.
    """
    if form == "spoken":
        return normalize_for_training(text)
    if form != "written":
        raise ValueError(f"form ({form!r}) must be spoken or written")
    shouted = not any(char.islower() for char in text)
    text = _fold(text, lower=False).replace("''", " ")
    text = _OTHER_THAN_WRITTEN.sub(" ", _CLAUSE_ENDS.sub(",", text))
    text = _HYPHENS_OUTSIDE_WORDS.sub(" ", text)
    text = _APOSTROPHES_OUTSIDE_WORDS.sub("", text)
    text = " ".join(_MARKS.sub(_attached, text).split())
    return text.lower() if shouted else text


def _attached(marks: re.Match[str]) -> str:
    """Return what takes the place of a run of marks and spaces."""
    before, after = marks.string[: marks.start()][-1:], marks.string[marks.end() :][:1]
    inside = {".": str.isalnum, ",": str.isdigit}.get(marks[0])
    if inside is not None and inside(before) and inside(after):
        return marks[0]
    return next(mark for mark in "?!.," if mark in marks[0]) + " " if before else ""


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
    text = _fold(text, lower=True).replace("''", " ")
    words = (word.strip("'") for word in _OTHER.sub(" ", text).split())
    return " ".join(word for word in words if word)


def _fold(text: str, lower: bool) -> str:
    text = unicodedata.normalize("NFKD", text.translate(_APOSTROPHES))
    text = text.lower() if lower else text
    # Mn: combining accents; Cf: invisible marks such as the soft hyphen
    text = "".join(char for char in text if unicodedata.category(char) not in ("Mn", "Cf"))
    return unicodedata.normalize("NFKC", text.translate(_LETTERS))
