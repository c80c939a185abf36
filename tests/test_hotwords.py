"""The boost of hotwords against a search through all that a text's hotwords may be; and how hotwords are read."""

import itertools
import random
import re

import pytest

from samba_asr.decoding.hotwords import Hotwords, read_hotwords

LETTERS = ["", "", "", "", " ", "a", "b", "c"]
PIECES = [*LETTERS, " a", " b", "ab", "ba", " ab", "b a", "bc", " a b", "  ", "c "]
WRITTEN = [*PIECES, ".", ",", "a.", ", b", " A", "A", "B", "C"]


def oracle(text, weights, ended):
    """The best sum over hotwords of the text that do not overlap, the last one perhaps unfinished."""
    text = " ".join(text.split()) + " " * (text[-1:] == " " and not ended)
    begins = {0} | {place + 1 for place, letter in enumerate(text) if letter == " "}

    def best(place):
        if place >= len(text):
            return 0.0
        found = [best(place + 1)]
        for phrase, weight in weights.items() if place in begins else ():
            end = place + len(phrase)
            rest = text[place:]
            if rest.startswith(phrase) and (end < len(text) or ended) and (text[end : end + 1] or " ") in " .,?!":
                found.append(weight * len(phrase.replace(" ", "")) + best(end + 1))
            if not ended and phrase.startswith(rest):
                found.append(weight * len(rest.replace(" ", "")))
        return max(found)

    return best(0)


def random_weights(rng, letters, count):
    words = ["".join(rng.choices(letters, k=rng.randint(1, 3))) for _ in range(8)]
    return {" ".join(rng.choices(words, k=rng.randint(1, 3))): rng.choice([0.5, 1.0, 1.0, 2.0]) for _ in range(count)}


def check(hotwords, pieces, weights, text):
    """Every prefix has what its string deserves, whatever the pieces."""
    state, total, string = hotwords.start(), 0.0, ""
    for piece in text:
        gain, state = hotwords.score(state, piece)
        hash(state)
        total += gain
        string += pieces[piece]
        assert total == pytest.approx(oracle(string, weights, ended=False)), string
        assert total + hotwords.end(state) == pytest.approx(oracle(string, weights, ended=True)), string


@pytest.mark.parametrize("seed", range(60))
def test_every_prefix_of_random_texts(seed):
    rng = random.Random(seed)
    weights = random_weights(rng, "ab", rng.randint(1, 6))
    hotwords = Hotwords(weights, PIECES)
    for _ in range(6):
        check(hotwords, PIECES, weights, rng.choices(range(len(PIECES)), k=rng.randint(0, 12)))


@pytest.mark.parametrize("seed", range(20))
def test_every_prefix_of_written_texts(seed):
    rng = random.Random(seed)
    weights = {"A": 1.0, "A b": 2.0, "ab": 1.0, "a.b": 3.0, "b b": 0.5}
    hotwords = Hotwords(weights, WRITTEN)
    known = weights | {"Ab": 1.0, "A.b": 3.0, "B b": 0.5}
    for _ in range(6):
        check(hotwords, WRITTEN, known, rng.choices(range(len(WRITTEN)), k=rng.randint(0, 12)))


def test_every_text_of_a_few_letters():
    weights = {"a": 1.0, "ab": 1.0, "a b": 1.5, "b a": 1.0, "b a b": 1.0}
    pieces = ["", "", "", "", "a", "b", " "]
    hotwords = Hotwords(weights, pieces)
    for text in itertools.product([4, 5, 6], repeat=5):
        check(hotwords, pieces, weights, text)


def score(hotwords, pieces, text):
    state, total = hotwords.start(), 0.0
    for piece in text:
        gain, state = hotwords.score(state, pieces.index(piece))
        total += gain
    return total, total + hotwords.end(state)


def test_an_example_by_hand():
    pieces = ["", "", "", "", " new", " york", " times", " yo", "s", "rk", " "]
    hotwords = Hotwords({"new": 1.0, "New York": 1.0, "york times": 2.0}, pieces)
    assert score(hotwords, pieces, []) == (0, 0)
    assert score(hotwords, pieces, [" new"]) == (3, 3)
    assert score(hotwords, pieces, [" new", "s"]) == (0, 0)
    assert score(hotwords, pieces, ["s", " new"]) == (3, 3)
    assert score(hotwords, pieces, [" new", " yo"]) == (3 + 2 * 2, 3)  # york times is worth more than new york
    assert score(hotwords, pieces, [" new", " yo", "s"]) == (3, 3)
    assert score(hotwords, pieces, [" new", " yo", "rk"]) == (3 + 2 * 4, 7)
    assert score(hotwords, pieces, [" new", " york", " new"]) == (10, 10)
    assert score(hotwords, pieces, [" new", " york", " times"]) == (3 + 2 * 9, 3 + 2 * 9)
    assert score(hotwords, pieces, [" new", " york", " times", "s"]) == (7, 7)


def test_special_pieces_add_nothing():
    hotwords = Hotwords({"ab": 1.0}, PIECES)
    state = hotwords.score(hotwords.start(), PIECES.index("a"))[1]
    assert hotwords.score(state, 1) == (0.0, state)


def test_hotwords_are_normalised_as_the_model_writes():
    spoken = ["", " ", *"abdenrstz'"]
    assert score(Hotwords({"Nadézda": 1.0}, spoken), spoken, "nadezda") == (7, 7)
    written = [*spoken, *"NASD."]
    for hotword, text in [
        ("nadezda", "nadezda"),
        ("nadezda", "Nadezda"),  # a sentence may begin so
        ("NASA", "NASA"),
        ("D. Natz", "D. Natz"),
        ("N.A.S.A.", "N.A.S.A"),
    ]:
        letters = len(text.replace(" ", ""))
        assert score(Hotwords({hotword: 1.0}, written), written, text)[0] == letters
    assert score(Hotwords({"NASA": 1.0}, written), written, "nasa") == (0, 0)
    assert score(Hotwords({"Nadezda": 1.0}, written), written, "nadezda.") == (0, 0)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"ab": 1.0, "aqua": 1.0}, "hotword 'aqua' has the character 'q', which the model never writes"),
        ({"?!": 1.0}, "hotword '?!' has no letter or digit"),
        ({"ab": 0.0}, "weight (0.0) of hotword 'ab' must be a positive number, as in ab:2"),
        ({"ab": float("nan")}, "weight (nan) of hotword 'ab'"),
        ({"ab": 1.0, "AB": 2.0}, "hotwords 'ab' and 'AB' are both 'ab' but differ in weight"),
    ],
)
def test_hotwords_that_cannot_be(weights, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Hotwords(weights, PIECES)


def test_hotwords_that_become_the_same_count_once():
    hotwords = Hotwords({"ab": 2.0, "AB": 2.0}, PIECES)
    assert score(hotwords, PIECES, ["ab"]) == (4, 4)


def test_a_list_of_hotwords():
    assert read_hotwords("Nadezhda") == {"Nadezhda": 1.0}
    assert read_hotwords(" New  York , Kubernetes:2.5,C#") == {"New York": 1.0, "Kubernetes": 2.5, "C#": 1.0}
    assert len(read_hotwords(",".join(map(str, range(2000))))) == 2000  # longer than a file's name may be
    assert read_hotwords("AC/DC,x") == {"AC/DC": 1.0, "x": 1.0}


def test_a_file_of_hotwords(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeff# people\r\nNadézhda: 2\r\n\r\nSmith, John\r\n  New York\r\n".encode())
    for source in (path, str(path)):
        assert read_hotwords(source) == {"Nadézhda": 2.0, "Smith, John": 1.0, "New York": 1.0}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("", "hotwords '': '' is no hotword; leave it out"),
        ("a,,b", "hotwords 'a,,b': '' is no hotword"),
        ("a,:2", "':2' is no hotword"),
        ("a, b,a ", "'a' is there twice; leave one out"),
        ("a:b", "weight (b) of hotword 'a' must be a positive number, as in a:2"),
        ("a:", "weight () of hotword 'a'"),
        ("a:-1", "weight (-1) of hotword 'a'"),
        ("a:0", "weight (0) of hotword 'a'"),
        ("a:inf", "weight (inf) of hotword 'a'"),
        ("a:nan", "weight (nan) of hotword 'a'"),
    ],
)
def test_lists_that_cannot_be_read(source, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        read_hotwords(source)


def test_what_it_hopes_for():
    """The pieces that go on with a hotword that has begun, and none before."""
    pieces = ["", " n", "e", "w", "ew", " y", "or", "k", "o", " nu", "t", " new", "ork", "s", " ", "n"]
    hotwords = Hotwords({"new york": 1.0, "newt": 1.0, "nut": 1.0}, pieces)

    def hoped(*said):
        state = hotwords.start()
        for piece in said:
            _, state = hotwords.score(state, pieces.index(piece))
        return {pieces[piece] for piece in hotwords.hoped(state)}

    assert hoped() == hoped(" ") == set()
    assert hoped(" n") == {"e", "ew"}
    assert hoped(" nu") == {"t"}
    assert hoped(" n", "ew") == {" ", " y", "t"}
    assert hoped(" new", " y") == {"or", "ork", "o"}
    assert hoped(" n", "or") == set()
    assert hoped(" new", " y", "ork") == set()
    both = Hotwords({"new york": 1.0, "york": 1.0, "yore": 1.0}, pieces)
    _, state = both.score(both.score(both.start(), pieces.index(" new"))[1], pieces.index(" y"))
    assert len(state.begun) == 2
    _, state = both.score(state, pieces.index("or"))
    assert {pieces[piece] for piece in both.hoped(state)} == {"k", "e"}


def test_files_that_cannot_be_read(tmp_path):
    for source in (tmp_path / "names", str(tmp_path / "names"), "names.txt"):
        with pytest.raises(FileNotFoundError, match=re.escape(f"hotwords file {source} is no file")):
            read_hotwords(source)
    path = tmp_path / "names.txt"
    path.write_text("# nobody\n\n")
    with pytest.raises(ValueError, match=re.escape(f"hotwords file {path}: no hotword is there; write one a line")):
        read_hotwords(path)
    path.write_bytes(b"\xff\xfea")
    with pytest.raises(ValueError, match=re.escape(f"hotwords file {path} is not UTF-8 text")):
        read_hotwords(path)
