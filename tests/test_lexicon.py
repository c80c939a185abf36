"""The lexicon: its words, and what it takes off texts, whatever pieces they are cut into."""

import random
import re

import pytest

from samba_asr.config import SearchConfig
from samba_asr.decoding.advisers import NOBODY, advisers_of
from samba_asr.decoding.lexicon import Lexicon, read_lexicon
from samba_asr.decoding.token_beam import Weights

WORDS = ["a", "an", "ana", "ban", "banana", "nab", "nan", "o'nan", "'an"]
MORE = ["bas", "asb"]
PIECES = [
    *["", "", "", ""],
    *" abns'1-.,?!",
    " a",
    " ba",
    "an",
    "na",
    "ana",
    "'a",
    "'s",
    " n",
    "b.",
    "B",
    "A",
    " 1",
    "n-",
]


def unknown(text):
    """Count the words that the lexicon lacks, another way: by expressions, and by trying all of its words."""
    whole = {*WORDS, *MORE, *(word + "'s" for word in WORDS + MORE)}
    count = 0
    for word in re.split(r"[ .,?!-]+", text.lower()):
        letters = re.match(r"[a-z']*", word)[0]
        if letters == word:
            count += word not in whole and word != ""
        else:  # a number in it: no word to judge, unless it was lost before
            count += letters != "" and not any(each.startswith(letters) for each in whole)
    return count


def total(lexicon, cut):
    state, added = lexicon.start(), 0.0
    for piece in cut:
        score, state = lexicon.score(state, piece)
        assert score <= 0
        added += score
    return added + lexicon.end(state)


@pytest.mark.parametrize("seed", range(4))
def test_random_texts_in_random_pieces(seed):
    rng, lexicon = random.Random(seed), Lexicon(frozenset(WORDS), PIECES, frozenset(MORE))
    found = set()
    for _ in range(3000):
        cut = [rng.randrange(len(PIECES)) for _ in range(rng.randrange(9))]
        text = "".join(PIECES[piece] for piece in cut)
        assert total(lexicon, cut) == -unknown(text), text
        found.add(unknown(text))
    assert found >= {0, 1, 2, 3}


def test_a_word_is_lost_as_soon_as_no_word_begins_so():
    lexicon = Lexicon(frozenset(WORDS), PIECES)
    ids = {piece: i for i, piece in enumerate(PIECES)}
    scores, state = [], lexicon.start()
    for piece in (" ba", "na", "b", "an", " a", "n", "'", "a"):
        score, state = lexicon.score(state, ids[piece])
        scores.append(score)
    assert scores == [0, 0, -1, 0, 0, 0, 0, -1] and lexicon.end(state) == 0
    assert lexicon.hoped(state) == ()
    assert lexicon.end("bana") == -1 and lexicon.end("ana's") == lexicon.end("") == lexicon.end(None) == 0


def test_words_of_a_file(tmp_path):
    path = tmp_path / "words"
    path.write_text("\ufeff# names\nMarjoram\n\n  o'clock \n # no\nX-ray caf\u00e9\no\u2019er\n", encoding="utf-8")
    assert read_lexicon(path) == read_lexicon(str(path)) == {"marjoram", "o'clock", "x", "ray", "cafe", "o'er"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"# nothing\n\n", "has no word; write one a line"),
        (b"# numbers\n123\n---\n", "has no word; write one a line"),
    ],
)
def test_files_that_cannot_be_read(tmp_path, content, message):
    path = tmp_path / "words"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_lexicon(path)
    with pytest.raises(FileNotFoundError, match=r"lexicon .*nowhere is no file; it has a word a line"):
        read_lexicon(tmp_path / "nowhere")


def test_who_has_a_say():
    joint = SearchConfig("joint", unknown_word_penalty=1.5)
    ((weight, scorer),) = advisers_of(joint, None, {}, frozenset(["ban"]), PIECES).piece_scorers
    assert weight == 1.5 and total(scorer, [PIECES.index(" a"), PIECES.index("b")]) == -1
    for search in (SearchConfig("ctc"), SearchConfig("joint", unknown_word_penalty=0.0)):
        assert advisers_of(search, None, {}, frozenset(["ban"]), PIECES) == NOBODY
    assert advisers_of(joint, None, {}, None, PIECES) == NOBODY


def test_hotwords_are_words_too():
    """In written text, too, where words end at marks and hyphens."""
    pieces = ["", *" abnAN-."]
    hotwords = {"Nab bab": 1.0, "Nan-Ab": 1.0, "A.N.": 1.0}
    _, (_, lexicon) = advisers_of(SearchConfig("joint"), None, hotwords, frozenset(["a"]), pieces).piece_scorers
    for text, lost in (("nab", 0), ("Nab bab a", 0), ("Nan-Ab", 0), ("A.N.", 0), ("ba", 1), ("ban", 1), ("na", 1)):
        assert total(lexicon, map(pieces.index, text)) == -lost, text


def test_only_who_favours_widens_the_search():
    joint, words = SearchConfig("joint"), frozenset(["a"])
    alone, both = (advisers_of(joint, None, hotwords, words, PIECES) for hotwords in ({}, {"ban": 1.0}))
    assert [Weights(joint, advisers, 1.0).favours for advisers in (alone, both)] == [False, True]
