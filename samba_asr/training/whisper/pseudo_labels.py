"""A teacher's case and punctuation on a transcript that has none: its words, written as the teacher writes them."""

import difflib
import re
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import jiwer

from samba_asr.evaluation.wer import normalize_for_scoring
from samba_asr.text.normalization import normalize_for_training, normalize_text

_PIECE = re.compile(r"([^\W_]+(?:'[^\W_]+)*)([.,?!]*)(-?)")
_TITLES = frozenset(
    ("mr", "mrs", "dr", "st", "prof", "capt", "gov", "gen", "sen", "rep", "pres", "rev", "hon", "lt", "col", "jr", "sr")
)
"""Abbreviations that transcripts spell out: MISTER is written as Mr."""
ALIKE = 0.5
"""Share of two words' letters that are the same, in order, from which one may be the other misheard."""


class Label(NamedTuple):
    """A transcript with case and punctuation, and how far its teacher can be believed."""

    text: str
    """In the written form (see :func:`normalize_text`)."""
    agreed: int
    """Words in which transcript and teacher agree."""
    words: int
    """Those of the longer of the two."""

    @property
    def agreement(self) -> float:
        """Share of words that agree; 1 where neither has any."""
        return self.agreed / self.words if self.words else 1.0


class _Piece(NamedTuple):
    """A teacher's word, or the part of one that is a word in the spoken form: well- of well-known, U. of U.S."""

    word: str
    """As it is said: lower case, no marks."""
    cased: str
    """Without marks."""
    marks: str
    """What follows it: . , ? !"""
    joint: str
    """What joins it to the next piece: a space, a hyphen or nothing."""


def write_as(transcript: str, teacher: str) -> Label:
    """Put the teacher's case and punctuation on a transcript.

    Where the two agree word for word, as error rates count it, the teacher's writing stands: MISTER becomes Mr. All
    other words are the transcript's, in lower case. The teacher's capital and marks are put on those that it spells in
    another way (color, 5) or mishears as something alike: names, most of all. A hyphen joins two words if the teacher
    joins them and both agree.
    """
    words = normalize_for_training(transcript).split()
    pieces = _pieces(teacher)
    partners = _partners(words, [piece.word for piece in pieces])
    agreeing = {i: j for i, j in partners.items() if _key(words[i]) == _key(pieces[j].word)}
    text = ""
    for i, word in enumerate(words):
        if i not in partners:
            text += f"{word} "
            continue
        piece = pieces[partners[i]]
        joined = piece.joint != " " and i in agreeing and agreeing.get(i + 1) == partners[i] + 1
        inside = piece.joint != " " and not joined  # its marks made sense only before the piece that is lost
        abbreviation = piece.word in _TITLES and i not in agreeing  # its full stop ends nothing
        text += (
            _written(word, piece) + ("" if inside or abbreviation else piece.marks) + (piece.joint if joined else " ")
        )
    return Label(normalize_text(text, "written"), len(agreeing), max(len(words), len(pieces)))


def _pieces(teacher: str) -> list[_Piece]:
    pieces = []
    for written in normalize_text(teacher, "written").split():
        found = list(_PIECE.finditer(written))
        for i, (cased, marks, hyphen) in enumerate(match.groups() for match in found):
            joint = " " if i + 1 == len(found) else hyphen
            pieces.append(_Piece(cased.lower(), cased, marks, joint))
    return pieces


def _written(word: str, piece: _Piece) -> str:
    if piece.word == word or (piece.word in _TITLES and _key(piece.word) == _key(word)):
        return piece.cased
    return word.capitalize() if piece.cased[0].isupper() else word


@cache
def _key(word: str) -> str:
    """Return what words that count as the same have in common, without spaces."""
    return normalize_for_scoring(word).replace(" ", "_") or word


def _partners(words: Sequence[str], others: Sequence[str]) -> dict[int, int]:
    """Return the place among others of each word that agrees with one there, or is alike, in an alignment with fewest
    errors."""
    if not words or not others:
        return {}
    output = jiwer.process_words(" ".join(map(_key, words)), " ".join(map(_key, others)))
    pairs = [
        (chunk.ref_start_idx + i, chunk.hyp_start_idx + i)
        for chunk in output.alignments[0]
        for i in range(min(chunk.ref_end_idx - chunk.ref_start_idx, chunk.hyp_end_idx - chunk.hyp_start_idx))
    ]
    return {i: j for i, j in pairs if _key(words[i]) == _key(others[j]) or _alike(words[i], others[j])}


def _alike(word: str, other: str) -> bool:
    return difflib.SequenceMatcher(None, word, other, autojunk=False).ratio() >= ALIKE
