"""N-gram models against back-off by hand, straight from an ARPA file; kenlm itself where it is installed."""

import bz2
import gzip
import importlib.util
import lzma
import math
import random
import re
import subprocess
import sys

import pytest

from samba_asr.decoding.ngram import NGram

WORDS = """\\data\\
ngram 1=10
ngram 2=7
ngram 3=3

\\1-grams:
-1.5\t<unk>
-99\t<s>\t-0.3
-0.9\t</s>
-0.7\ta\t-0.2
-0.8\tab\t-0.4
-1.1\tabba\t-0.1
-2.2\tabé
-1.3\tb
-1.2\tb'a\t-0.25
-1.9\tc\t-0.15

\\2-grams:
-0.4\t<s> a\t-0.3
-0.6\ta ab\t-0.05
-0.5\tab </s>
-0.9\tab a\t-0.35
-0.3\tabba b'a\t-0.45
-0.8\tb'a b
-0.2\t<unk> ab\t-0.6

\\3-grams:
-0.15\t<s> a ab
-0.25\ta ab </s>
-0.35\tabba b'a b

\\end\\
"""
PIECES = ["", "", "", "", " ", "a", "b", "'", " a", " ab", "ba", "b ", "a b", "'a", "c", " c a", "  "]
OF_PIECES = """\\data\\
ngram 1=15
ngram 2=5

\\1-grams:
-2.5\t<unk>
-99\t<s>\t-0.3
-0.9\t</s>
-0.7\ta\t-0.2
-0.8\tb\t-0.4
-1.1\t'
-1.2\t\u2581\t-0.15
-1.3\t\u2581a\t-0.1
-1.4\t\u2581ab\t-0.25
-1.5\tba
-1.6\tb\u2581
-1.7\ta\u2581b\t-0.3
-1.8\t'a
-1.9\tc
-2.1\t\u2581\u2581

\\2-grams:
-0.4\t<s> \u2581a
-0.5\t\u2581a b
-0.6\tb </s>
-0.2\t\u2581ab \u2581
-0.3\ta\u2581b <unk>

\\end\\
"""
KENLM = importlib.util.find_spec("kenlm") is not None
MODELS = ["by hand", pytest.param("kenlm", marks=pytest.mark.skipif(not KENLM, reason="kenlm is not installed"))]


class State:
    """What kenlm's states are: written once, then only compared."""

    def __init__(self):
        self.words = None

    def __eq__(self, other):
        return self.words == other.words

    def __hash__(self):
        return hash(self.words)


class BackOff:
    """What kenlm.Model does, by the definition of back-off; of the file's n-grams with "<unk>" among them."""

    def __init__(self, arpa):
        self.entries = {}
        for line in arpa.split("\\1-grams:")[1].split("\n"):
            if line[:1] == "-":
                prob, *words = line.split()
                order = len(words) if words[-1][0] != "-" or len(words) == 1 else len(words) - 1
                self.entries[tuple(words[:order])] = (float(prob), float(words[order]) if words[order:] else 0.0)
        self.order = max(map(len, self.entries))

    def __contains__(self, word):
        return (word,) in self.entries and word != "<unk>"

    def prob(self, history, word):
        history = history[max(0, len(history) - self.order + 1) :]
        if (*history, word) in self.entries:
            return self.entries[(*history, word)][0]
        return self.entries.get(history, (0.0, 0.0))[1] + self.prob(history[1:], word)

    def known(self, word):
        return word if (word,) in self.entries else "<unk>"

    def BeginSentenceWrite(self, state):
        assert state.words is None
        state.words = ("<s>",)

    def BaseScore(self, before, word, after):
        assert after.words is None  # nobody's state is overwritten
        after.words = (*before.words, self.known(word))[1 - self.order :]
        return self.prob(before.words, self.known(word))

    def total(self, words):
        """Return the natural logarithm of the probability that a text begins with words."""
        history, total = ("<s>",), 0.0
        for word in map(self.known, words):
            total += self.prob(history, word)
            history += (word,)
        return total * math.log(10)

    def beginning(self, letters):
        """Return the natural logarithm of the probability of words with these first letters."""
        no_words = ("<s>", "</s>", "<unk>")
        found = [10**prob for key, (prob, _) in self.entries.items() if key[0].startswith(letters) and len(key) == 1]
        assert not letters.startswith(no_words)
        return math.log(max(sum(found), 10 ** self.entries["<unk>",][0])) if letters else 0.0


def unigrams(arpa):
    return {key[0]: prob for key, (prob, _) in BackOff(arpa).entries.items() if len(key) == 1}


def build(kind, arpa, pieces, folder):
    if kind == "by hand":
        return NGram(BackOff(arpa), State, pieces, unigrams(arpa))
    (folder / "model.arpa").write_text(arpa, encoding="utf-8")
    return NGram.load(folder / "model.arpa", pieces)


def scores(ngram, text):
    """Return the score of all a text's prefixes, each with the score that it has as a whole text."""
    state, total = ngram.start(), 0.0
    found = [(total, total + ngram.end(state))]
    for piece in text:
        gain, state = ngram.score(state, piece)
        hash(state)
        total += gain
        found.append((total, total + ngram.end(state)))
    return found


def close(value):
    return pytest.approx(value, abs=1e-4)  # kenlm's are float32


@pytest.mark.parametrize("kind", MODELS)
def test_every_prefix_of_texts_in_words(kind, tmp_path):
    ngram, oracle, rng = build(kind, WORDS, PIECES, tmp_path), BackOff(WORDS), random.Random(0)
    assert not ngram.of_pieces
    for _ in range(300):
        text = rng.choices(range(len(PIECES)), k=rng.randint(0, 12))
        for length, (score, whole) in enumerate(scores(ngram, text)):
            string = "".join(PIECES[piece] for piece in text[:length])
            words = string.split()
            complete = words if string[-1:] in (" ", "") else words[:-1]
            letters = "" if string[-1:] in (" ", "") else words[-1]
            assert score == close(oracle.total(complete) + oracle.beginning(letters)), string
            assert whole == close(oracle.total([*words, "</s>"])), string


@pytest.mark.parametrize("kind", MODELS)
def test_every_prefix_of_texts_in_pieces(kind, tmp_path):
    pieces = [piece for piece in PIECES if piece != " c a"]
    ngram, oracle, rng = build(kind, OF_PIECES, pieces, tmp_path), BackOff(OF_PIECES), random.Random(0)
    assert ngram.of_pieces
    for _ in range(300):
        text = rng.choices(range(len(pieces)), k=rng.randint(0, 12))
        words = [pieces[piece].replace(" ", "\u2581") or "<unk>" for piece in text]
        for length, (score, whole) in enumerate(scores(ngram, text)):
            assert score == close(oracle.total(words[:length]))
            assert whole == close(oracle.total([*words[:length], "</s>"]))


def test_without_unigrams_a_word_is_scored_when_it_is_complete():
    ngram, oracle = NGram(BackOff(WORDS), State, PIECES), BackOff(WORDS)
    text = [PIECES.index(piece) for piece in (" a", "b", "ba", " ", "c", " a")]
    found = [score for score, _ in scores(ngram, text)]
    assert found == [*[0.0] * 4, *[close(oracle.total(["abba"]))] * 2, close(oracle.total(["abba", "c"]))]
    assert scores(ngram, text)[-1][1] == close(oracle.total(["abba", "c", "a", "</s>"]))


def test_a_beginning_by_hand():
    ngram = NGram(BackOff(WORDS), State, PIECES, unigrams(WORDS))
    assert scores(ngram, [PIECES.index(" ab")])[-1][0] == pytest.approx(math.log(10**-0.8 + 10**-1.1 + 10**-2.2))
    assert scores(ngram, [PIECES.index("c")])[-1][0] == pytest.approx(math.log(10**-1.5))  # rarer than the unknown
    assert scores(ngram, [PIECES.index("'")])[-1][0] == pytest.approx(math.log(10**-1.5))


@pytest.mark.parametrize("listed", [True, False], ids=["words listed", "not listed"])
@pytest.mark.parametrize("case", [str.upper, str.lower, str.title])
@pytest.mark.parametrize("marked", [True, False])
def test_words_are_looked_up_as_the_model_has_them(listed, case, marked):
    words = ["the", "The", "it's", "The."] if case is str.title else [case("the"), case("it's")]
    words = [word for word in words if marked or word[-1] != "."] + (["the.", "THE."] if marked else [])
    if case is str.title:
        words.append("THE")
    arpa = "\\1-grams:\n-9 <unk>\n-1 <s>\n-1 </s>\n" + "".join(f"-{2 + n} {word}\n" for n, word in enumerate(words))
    pieces = ["", " the", " The", " it's", ".", "-", " THE", "the"]
    ngram = NGram(BackOff(arpa), State, pieces, unigrams(arpa) if listed else None)
    oracle = BackOff(arpa)

    def whole(*text):
        return scores(ngram, [pieces.index(piece) for piece in text])[-1][1]

    if marked or case is str.title:  # capitals and small letters: as they are
        assert whole(" The") == close(oracle.total(["The", "</s>"]))
    else:
        assert whole(" The") == whole(" the") == whole(" THE") == close(oracle.total([case("the"), "</s>"]))
        assert whole(" it's") == close(oracle.total([case("it's"), "</s>"]))
    if marked:
        assert whole(" THE", ".") == close(oracle.total(["THE.", "</s>"]))
    else:
        assert whole(" the", ".") == whole(" the")
        assert whole(" the", "-", "the", ".", " the") == close(whole(*[" the"] * 3))


def test_pieces_of_another_tokenizer():
    few = "\\1-grams:\n-1 <unk>\n-1 <s>\n-1 </s>\n-1 \u2581the\n-1 \u2581of\n"
    for listed in (unigrams(few), None):
        with pytest.raises(ValueError, match=r"of another tokenizer: of the recogniser's 5 pieces it knows 1[;,]"):
            NGram(BackOff(few), State, ["", " the", "a", "b", "c", "d"], listed)
    others = "\\1-grams:\n-1 <unk>\n-1 <s>\n-1 </s>\n-1 \u2581of\n-1 f\n"
    with pytest.raises(ValueError, match="of the recogniser's 2 pieces it knows 0, and 2 others; make it from texts"):
        NGram(BackOff(others), State, ["", " the", "a"], unigrams(others))
    many = few + "-1 a\n-1 b\n-1 cd\n-1 e\n-1 f\n-1 g\n"
    with pytest.raises(ValueError, match="of the recogniser's 3 pieces it knows 3, and 5 others; make it from texts"):
        NGram(BackOff(many), State, ["", " the", "a", "b"], unigrams(many))


@pytest.fixture
def kenlm():
    return pytest.importorskip("kenlm")


PACKERS = [pytest.param(gzip.compress, "gz"), pytest.param(bz2.compress, "bz2"), pytest.param(lzma.compress, "xz")]


@pytest.mark.parametrize(("pack", "ending"), PACKERS)
def test_a_packed_file(kenlm, tmp_path, pack, ending):
    path = tmp_path / f"model.arpa.{ending}"
    path.write_bytes(pack(WORDS.encode()))
    try:
        kenlm.Model(str(path))
    except OSError as error:
        assert "support" in str(error)
        with pytest.raises(ValueError, match="support"):
            NGram.load(path, PIECES)
        pytest.skip(f"this kenlm was built without {ending}")
    assert scores(NGram.load(path, PIECES), [8])[-1][0] == close(BackOff(WORDS).beginning("a"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "End of file Byte: 0"),
        (b"hello\nworld\n", r'first non-empty line was "hello" not \data'),
        (WORDS.encode()[:200], "End of file in the 2-gram"),
        (WORDS.encode().replace(b"-0.7\ta", b"?\ta"), 'Could not parse "?" into a float'),
        (b"mmap lm http://kheafield.com/code format version 5\n\0" + bytes(200), "File looks like it should be loaded"),
        (bytes(range(256)) * 20, ""),
    ],
)
def test_a_broken_file(kenlm, tmp_path, capfd, content, reason):
    path = tmp_path / "model (1).arpa"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(f"{path} is no n-gram model that KenLM reads: {reason}")) as caught:
        NGram.load(path, PIECES)
    assert "\n" not in str(caught.value) and "threw" not in str(caught.value)
    assert str(caught.value).count("model (1)") == 1
    assert capfd.readouterr() == ("", "")


def test_a_model_is_read_in_silence(kenlm, tmp_path, capfd):
    build("kenlm", WORDS, PIECES, tmp_path)
    assert capfd.readouterr() == ("", "")


def test_an_error_of_ours_names_the_file(kenlm, tmp_path):
    path = tmp_path / "model.arpa"
    path.write_text(OF_PIECES, encoding="utf-8")
    with pytest.raises(ValueError, match=re.escape(f"{path}: the model's words are pieces of another tokenizer")):
        NGram.load(path, [*PIECES, *[f" {letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]])


def test_a_file_that_does_not_exist(tmp_path):
    for path in (tmp_path, tmp_path / "model.arpa"):
        with pytest.raises(FileNotFoundError, match=re.escape(f"n-gram model {path} does not exist")):
            NGram.load(path, PIECES)


def test_without_kenlm_the_error_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "kenlm", None)
    path = tmp_path / "model.arpa"
    path.write_text(WORDS)
    with pytest.raises(RuntimeError, match=re.escape("pip install 'samba-asr[ngram]'")):
        NGram.load(path, PIECES)


def test_reading_unigrams_of_files(tmp_path, monkeypatch):
    """The file's reader without kenlm: a stand-in says what kenlm would."""

    class Config:
        show_progress = arpa_complain = None

    class ARPALoadComplain:
        NONE = 0

    stand_in = type(sys)("kenlm")
    stand_in.Config, stand_in.ARPALoadComplain, stand_in.State = Config, ARPALoadComplain, State
    stand_in.Model = lambda path, settings: BackOff(WORDS)
    monkeypatch.setitem(sys.modules, "kenlm", stand_in)
    text = [PIECES.index(piece) for piece in (" ab", "ba", "b ", "c")]
    expected = scores(build("by hand", WORDS, PIECES, tmp_path), text)
    path = tmp_path / "model"
    for content in (WORDS.encode(), *(pack.values[0](WORDS.encode()) for pack in PACKERS)):
        path.write_bytes(content)
        assert scores(NGram.load(path, PIECES), text) == expected
    path.write_bytes(b"mmap lm http://kheafield.com/code format version 5\n\0")
    assert scores(NGram.load(path, PIECES), text) == scores(NGram(BackOff(WORDS), State, PIECES), text)


def test_importing_it_loads_no_kenlm():
    code = "import sys, samba_asr.decoding.ngram; assert 'kenlm' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
