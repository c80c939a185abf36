"""Spellings there and back, against all tokens one by one."""

import numpy as np
import pytest
import torch

from samba_asr.decoding.spelling import Spelling, spelling_of

SPELLINGS = [(), (1,), (), (), (4,), (5,), (6,), (4, 5), (4, 5, 6), (5, 5), (6, 4, 6, 4), (4, 6), ()]


def check(spelling, spellings):
    assert spelling.said.tolist() == [token for token, pieces in enumerate(spellings) if pieces]
    assert spelling.pieces == {token: pieces for token, pieces in enumerate(spellings) if pieces}
    for piece in range(12):
        alone = [token for token, pieces in enumerate(spellings) if pieces == (piece,)]
        assert spelling.single(piece) == (alone[0] if alone else None)


def longest_first(pieces, spellings):
    """Cut pieces into tokens, from the left, each the longest of all that fit."""
    fit = [
        (len(spelt), token) for token, spelt in enumerate(spellings) if spelt and tuple(pieces[: len(spelt)]) == spelt
    ]
    if not pieces:
        return []
    size, token = max(fit, default=(1, None))
    return ([] if token is None else [token]) + longest_first(pieces[size:], spellings)


def test_by_hand():
    check(Spelling(SPELLINGS), SPELLINGS)


@pytest.mark.parametrize("seed", range(5))
def test_random_spellings(seed):
    random = np.random.default_rng(seed)
    spelt = {tuple(random.integers(4, 8, random.integers(1, 5)).tolist()) for _ in range(60)}
    spellings = [(), *random.permutation(np.array([*spelt, None], object)[:-1]).tolist(), ()]
    spelling = Spelling(spellings)
    check(spelling, spellings)
    for _ in range(30):
        pieces = random.integers(3, 9, random.integers(0, 12)).tolist()
        assert spelling.tokens(pieces) == longest_first(pieces, spellings)


def test_of_nothing():
    spelling = Spelling([(), ()])
    assert len(spelling.said) == 0 and spelling.tokens([4, 5]) == [] and spelling.single(4) is None


def test_two_tokens_that_are_spelt_alike():
    with pytest.raises(ValueError, match=r"tokens 2 and 4 are both spelt \(5, 6\)"):
        Spelling([(), (5,), (5, 6), (6,), (5, 6)])


def test_of_a_model_whose_ctc_says_tokens():
    spellings = [() if token in (0, 2, 3) else (token,) for token in range(9)]
    spelling = spelling_of(None, 9)
    check(spelling, spellings)
    assert spelling.said.tolist() == [1, 4, 5, 6, 7, 8]


def test_of_a_models_table():
    table = torch.full((13, 4), -1, dtype=torch.int16)
    for token, pieces in enumerate(SPELLINGS):
        table[token, : len(pieces)] = torch.tensor(pieces)
    for special in (0, 2, 3):  # as the model begins: each id by itself
        table[special, 0] = special
    check(spelling_of(table, 7), SPELLINGS)
    assert spelling_of(table.clone(), 7) is spelling_of(table, 7)
    identity = torch.arange(9, dtype=torch.int16)[:, None]
    assert spelling_of(identity, 9) is spelling_of(None, 9)


def test_the_longest_tokens():
    spelling = Spelling(SPELLINGS)
    assert spelling.tokens([4, 5, 6, 4, 5, 4, 6, 5]) == [8, 7, 11, 5]
    assert spelling.tokens([6, 4, 6, 5, 5]) == [6, 11, 9]  # the long token breaks off: a short one, and on from its end
    assert spelling.tokens([]) == []
    assert spelling.tokens([4, 9, 5]) == [4, 5]
