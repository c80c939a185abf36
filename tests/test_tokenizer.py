"""Tokenizer and training normalisation."""

import hashlib
import pickle
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
import sentencepiece

from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID, UNK_ID, Tokenizer

LETTERS = "abcdefghijklmnopqrstuvwxyz"


@pytest.fixture(scope="module")
def texts(clips) -> list[str]:
    """The clips' words, and two lines that hold every letter."""
    pangram = ["the quick brown fox jumps over the lazy dog", "i don't know o'clock"]
    return [normalize_for_training(text) for _, text in clips] + pangram


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request, texts) -> Tokenizer:
    return Tokenizer.train(texts, 64, request.param)


def test_special_ids_are_fixed(tokenizer):
    assert (BLANK_ID, UNK_ID, BOS_ID, EOS_ID) == (0, 1, 2, 3)
    processor = sentencepiece.SentencePieceProcessor(model_proto=tokenizer.model_proto)
    assert [processor.id_to_piece(i) for i in range(4)] == ["<blank>", "<unk>", "<s>", "</s>"]
    assert processor.get_piece_size() == tokenizer.vocab_size == 64


def test_round_trip(tokenizer, texts):
    for text in [*texts, LETTERS, "a", ""]:
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert all(4 <= i < 64 for i in ids)
    assert tokenizer.encode("  the \n fox ") == tokenizer.encode("the fox")


def test_decode_drops_special_ids(tokenizer):
    ids = tokenizer.encode("the lazy dog")
    assert tokenizer.decode([BOS_ID, *ids[:2], BLANK_ID, UNK_ID, *ids[2:], EOS_ID, BLANK_ID]) == "the lazy dog"
    assert tokenizer.decode([BLANK_ID, EOS_ID]) == tokenizer.decode([]) == ""


@pytest.mark.parametrize("outside", [-1, 64])
def test_decode_refuses_ids_outside(tokenizer, outside):
    with pytest.raises(ValueError, match=rf"{outside} is outside the vocabulary \(0 to 63\)"):
        tokenizer.decode([5, outside])


def test_unknown_characters_and_spelled_out_specials(tokenizer):
    assert UNK_ID in tokenizer.encode("the 7 foxes")
    assert tokenizer.decode(tokenizer.encode("fox7")) == "fox"
    assert not {BLANK_ID, BOS_ID, EOS_ID} & set(tokenizer.encode("<s> </s> <blank>"))


def test_save_load_and_pickle(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.model")
    loaded = Tokenizer.load(tmp_path / "tokenizer.model")
    assert loaded.model_proto == tokenizer.model_proto == (tmp_path / "tokenizer.model").read_bytes()
    copy = pickle.loads(pickle.dumps(tokenizer))  # data-loading workers and checkpoints need it
    assert loaded.encode(LETTERS) == copy.encode(LETTERS) == tokenizer.encode(LETTERS)


def test_text_is_not_normalised(tokenizer):
    assert UNK_ID in tokenizer.encode("THE FOX")


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_training_is_the_same_in_another_process(kind, texts):
    code = (
        "import sys, hashlib; from samba_asr.text.tokenizer import Tokenizer;"
        f"proto = Tokenizer.train(sys.stdin.read().split('\\n'), 60, {kind!r}).model_proto;"
        "print(hashlib.sha256(proto).hexdigest())"
    )
    run = subprocess.run([sys.executable, "-c", code], input="\n".join(texts), capture_output=True, text=True)
    assert run.stdout.strip() == hashlib.sha256(Tokenizer.train(texts, 60, kind).model_proto).hexdigest()
    assert run.stderr == ""  # SentencePiece would log its whole training


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_too_little_text_names_the_largest_size(kind, texts, capfd):
    with pytest.raises(ValueError, match=r"vocab_size \(5000\) is too large .* at most \d+") as error:
        Tokenizer.train(texts, 5000, kind)
    largest = int(str(error.value).split("at most ")[1].split(",")[0])
    assert Tokenizer.train(texts, largest, kind).vocab_size == largest
    with pytest.raises(ValueError, match="too large"):
        Tokenizer.train(texts, largest + 1, kind)
    assert capfd.readouterr() == ("", "")


def test_too_small_a_size_names_the_smallest(texts):
    smallest = 4 + len(LETTERS) + 2  # special pieces, letters, apostrophe and word mark
    with pytest.raises(ValueError, match=rf"vocab_size \({smallest - 1}\) must be at least {smallest}"):
        Tokenizer.train(texts, smallest - 1, "bpe")
    assert Tokenizer.train(texts, smallest, "bpe").vocab_size == smallest
    with pytest.raises(ValueError, match="must be at least 8"):  # the word mark also counts without a space
        Tokenizer.train(["abc"], 7)


@pytest.mark.parametrize("kind", ["unigram", "bpe"])
def test_very_long_lines_count_too(kind):
    long = "zebra " * 2000  # longer than SentencePiece takes by default
    assert UNK_ID not in Tokenizer.train([long, "quick fox"], 18, kind).encode("zebra")


def test_bad_arguments(texts):
    with pytest.raises(ValueError, match="every text is empty"):
        Tokenizer.train(["", "  \n"], 64)
    with pytest.raises(ValueError, match="kind \\('word'\\) must be"):
        Tokenizer.train(texts, 64, "word")


def test_bad_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"prepare\.py makes one"):
        Tokenizer.load(tmp_path / "absent.model")
    for content, message in ((b"", "is empty"), (b"no such thing", "not a SentencePiece model")):
        (tmp_path / "bad.model").write_bytes(content)
        with pytest.raises(ValueError, match=rf"bad\.model: .*{message}"):
            Tokenizer.load(tmp_path / "bad.model")


def test_a_model_with_other_special_ids_is_refused(tmp_path, texts):
    with open(tmp_path / "m.model", "wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=file, vocab_size=50, minloglevel=2
        )
    with pytest.raises(ValueError, match=r"\(-1, 0, 1, 2\) must be \(0, 1, 2, 3\)"):
        Tokenizer.load(tmp_path / "m.model")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        (" \t\n ", ""),
        ("... -- ' '' \"!?", ""),
        ("MISTER QUILTER IS", "mister quilter is"),
        ("  two \n lines ", "two lines"),
        ("Well-known; Twenty\u2013one\u2014no.", "well known twenty one no"),
        ("don\u2019t don't don\u00b4t don`t don\u02bct", "don't don't don't don't don't"),
        ("five o'clock", "five o'clock"),
        ("'tis the dogs' 'single' \u2018curly\u2019", "tis the dogs single curly"),
        ("rock 'n' roll ''n''", "rock n roll n"),
        ("he said ''yes''and''no''", "he said yes and no"),
        ("caf\u00e9 cafe\u0301 na\u00efve \u00c5ngstr\u00f6m", "cafe cafe naive angstrom"),
        ("\u00c6gir \u0153uvre Stra\u00dfe STRA\u1e9eE \u0141\u00f3d\u017a", "aegir oeuvre strasse strasse lodz"),
        ("\u0130stanbul", "istanbul"),
        ("\uff26\uff55\uff4c\uff4c \ufb01ne x\u00b2", "full fine x2"),
        ("co\u00adop zero\u200bwidth \ufeffbom", "coop zerowidth bom"),
        ("10,000 and 3.5 snake_case a/b", "10 000 and 3 5 snake case a b"),
        ("\u0447\u0430\u0439 \u8336", "\u0447\u0430\u0438 \u8336"),
    ],
)
def test_normalisation(text, expected):
    assert normalize_for_training(text) == expected


def test_normalisation_of_all_sorts_of_characters():
    for code in (*range(0x10000), *range(0x10000, sys.maxunicode, 17)):
        char = chr(code)
        result = normalize_for_training(f"A{char}b")
        assert normalize_for_training(result) == result
        assert result == " ".join(result.split()) and all(c.isalnum() or c in " '" for c in result), hex(code)
        if unicodedata.category(char)[0] in "PSZ" and unicodedata.normalize("NFKC", char) == char:
            assert result in ("a b", "a'b"), hex(code)


def test_a_tokenizer_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "tokenizer.model"
    path.write_bytes(b"old")
    write = Path.write_bytes

    def run_full(self, data):
        write(self, data[: len(data) // 2])
        raise OSError("no space left")

    tokenizer = Tokenizer.train(["a few words for a tokenizer"] * 3, 20)
    monkeypatch.setattr(Path, "write_bytes", run_full)
    with pytest.raises(OSError, match="no space left"):
        tokenizer.save(path)
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]
