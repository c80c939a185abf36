"""A vocabulary of Whisper's tokens: the pieces of CTC first, each token's spelling, each token's embedding."""

import random
from itertools import accumulate

import pytest
import torch
from distil_cases import close
from test_whisper_vocabulary import write_vocabulary

from samba_asr.text.normalization import normalize_for_training
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID, UNK_ID, Tokenizer
from samba_asr.training.whisper.tokens import (
    LEAST_SHARE,
    Speller,
    build_tokenizer,
    spellings,
    token_embeddings,
    token_shares,
    word_counts,
)
from samba_asr.training.whisper.vocabulary import WhisperVocabulary

PIECES = 40
MERGES = [
    "Ġ t",
    "h e",
    "Ġt he",
    "e r",
    "i n",
    "in g",
    "Ġ a",
    "Ġa n",
    "Ġan d",
    "Ġ o",
    "Ġo f",
    "' s",
    "o r",
    "Ġ i",
    "Ġi n",
]


@pytest.fixture(scope="module")
def texts(clips):
    return [normalize_for_training(text) for _, text in clips]


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def pieces(request, texts):
    return Tokenizer.train(texts, PIECES, request.param)


@pytest.fixture(scope="module")
def whisper(tmp_path_factory):
    path = tmp_path_factory.mktemp("vocabulary") / "tokenizer.json"
    write_vocabulary(path, merges=MERGES)
    return WhisperVocabulary.load(path)


@pytest.fixture(scope="module")
def shares(texts, whisper):
    return token_shares(word_counts(texts), whisper)


@pytest.fixture(scope="module")
def tokenizer(pieces, whisper, shares):
    return build_tokenizer(pieces, whisper, shares, 1000)


def test_shares_are_of_whispers_tokens(whisper):
    shares = token_shares({"the": 3, "he": 1.5}, whisper)
    assert list(shares) == [" the", " ", "he"]  # " he" is a space and "he"
    assert shares == {" the": 3 / 6, " ": 1.5 / 6, "he": 1.5 / 6}


def test_the_pieces_come_first_and_the_rest_by_need(pieces, whisper, shares, tokenizer):
    assert tokenizer.pieces()[:PIECES] == pieces.pieces()
    others = tokenizer.pieces()[PIECES:]
    assert len(set(tokenizer.pieces())) == tokenizer.vocab_size and {" and", "ing"} <= set(others)
    assert all(whisper.decode(whisper.encode(text)) == text and len(whisper.encode(text)) == 1 for text in others)
    parts = {whisper.decode([token]) for pair in whisper.merges.values() for token in pair}
    order = [text for text in others if text not in parts]  # these come with what is made of them
    by_share = [shares.get(text, LEAST_SHARE) for text in order]
    assert by_share == sorted(by_share, reverse=True)
    whole = build_tokenizer(pieces, whisper, {" and": 0.6}, 1000).pieces()
    fewer = build_tokenizer(pieces, whisper, {" and": 0.6, "er": 0.4}, whole.index(" and")).pieces()
    assert whole[whole.index(" and") - 1] in (" an", *pieces.pieces()) and " and" not in fewer and "er" in fewer


def boundaries(texts):
    return set(accumulate(map(len, texts)))


@pytest.mark.parametrize("size", [PIECES + 6, 1000])
def test_texts_are_split_where_whisper_splits_them(texts, pieces, whisper, shares, size):
    """With all of its tokens exactly so; where some are missing, there, but for a word in twenty, and within these."""
    tokenizer = build_tokenizer(pieces, whisper, shares, size)
    known, draws = tokenizer.pieces(), random.Random(1)
    alphabet = ["the", "and", "ing", "er", "or", "of", *"theringandofs"]
    words = ["".join(draws.choices(alphabet, k=draws.randint(1, 5))) for _ in range(300)]
    words += [word for text in texts for word in text.split()]
    theirs = [[whisper.decode([token]) for token in whisper.encode(f" {word}")] for word in words]
    ours = [[known[token] for token in tokenizer.encode(word)] for word in words]
    crossed = sum(not boundaries(one) <= boundaries(other) for one, other in zip(theirs, ours, strict=True))
    if size == 1000:
        assert ours == theirs
    else:
        assert ours != theirs and crossed < len(words) / 20


def test_what_is_encoded_comes_back(texts, tokenizer):
    for text in texts:
        ids = tokenizer.encode(text)
        assert UNK_ID not in ids and tokenizer.decode(ids) == text
    said = [tokenizer.pieces()[i] for i in tokenizer.encode("the king and the")]
    assert said[0] == " the" and "ing" in said and said[-2:] == [" and", " the"]


def test_spellings_make_up_the_texts(pieces, tokenizer):
    table = spellings(pieces, tokenizer)
    assert table.dtype == torch.int16 and table.shape[0] == tokenizer.vocab_size
    assert torch.equal(table[:PIECES, 0], torch.arange(PIECES, dtype=torch.int16)) and (table[:PIECES, 1:] == -1).all()
    for i, text in list(enumerate(tokenizer.pieces()))[PIECES:]:
        row = table[i][table[i] >= 0].tolist()
        assert row and "".join(pieces.pieces()[piece] for piece in row) == text and min(row) > EOS_ID
        assert (table[i][len(row) :] == -1).all()
    assert (table[:, -1] >= 0).any()


def test_spellings_are_the_likeliest(texts):
    pieces = Tokenizer.train(texts, PIECES)
    for word in sorted({word for text in texts for word in text.split()}):
        assert Speller(pieces).spell(f" {word}") == pieces.encode(word), word
    assert Speller(pieces).spell("1") == Speller(pieces).spell("") == []


@torch.no_grad()
def test_a_token_is_whispers_or_the_mean_of_several(whisper, tokenizer):
    embedding = torch.randn(300, 5)
    found = token_embeddings(tokenizer, whisper, embedding)
    assert found.shape == (tokenizer.vocab_size, 5)
    for i, text in list(enumerate(tokenizer.pieces()))[EOS_ID + 1 :]:
        tokens = whisper.encode(text)
        close(found[i], sum(embedding[token] for token in tokens) / len(tokens), 1e-6)
        assert i < PIECES or len(tokens) == 1
    assert not found[BLANK_ID].any()
    assert torch.equal(found[EOS_ID], embedding[whisper.end_id])
    assert torch.equal(found[BOS_ID], embedding[whisper.prompt[-1]])
    close(found[UNK_ID], embedding[: whisper.end_id].mean(0))


@pytest.mark.parametrize("size", [5, PIECES])
def test_a_size_without_a_place_is_refused(pieces, whisper, shares, size):
    with pytest.raises(ValueError, match=rf"vocab_size \({size}\) must be above that of .* pieces \({PIECES}\)"):
        build_tokenizer(pieces, whisper, shares, size)
