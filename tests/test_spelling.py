"""The tree of spellings against all tokens, one by one."""

import itertools

import numpy as np
import pytest
import torch

from samba_asr.decoding.spelling import SpellingTree, spelling_tree

SPELLINGS = [(), (1,), (), (), (4,), (5,), (6,), (4, 5), (4, 5, 6), (5, 5), (6, 4, 6, 4), (4, 6), ()]


def check(tree, spellings):
    """Every possible prefix leads to a node, or to none, as the tokens one by one say."""
    assert sorted(tree.order) == [token for token, pieces in enumerate(spellings) if pieces]
    longest = max(map(len, spellings))
    pieces = sorted({piece for spelling in spellings for piece in spelling})
    reached = set()
    for prefix in itertools.chain(*(itertools.product(pieces, repeat=n) for n in range(longest + 1))):
        going_on = [
            t for t, spelt in enumerate(spellings) if len(spelt) > len(prefix) and spelt[: len(prefix)] == prefix
        ]
        ending = [token for token, spelt in enumerate(spellings) if spelt and spelt == prefix]
        number = SpellingTree.ROOT
        for piece in prefix:
            number = tree.nodes[number].children.get(piece) if number is not None else None
        if not going_on and not ending:
            assert number is None
            continue
        node = tree.nodes[number]
        reached.add(number)
        assert sorted(tree.order[node.first : node.end]) == going_on
        assert ([] if node.token is None else [tree.order[node.token]]) == ending
    assert reached == set(range(len(tree.nodes)))


def test_what_is_below_each_node():
    check(SpellingTree(SPELLINGS), SPELLINGS)


@pytest.mark.parametrize("seed", range(5))
def test_what_is_below_each_node_of_random_spellings(seed):
    random = np.random.default_rng(seed)
    spelt = {tuple(random.integers(4, 8, random.integers(1, 5)).tolist()) for _ in range(60)}
    spellings = [(), *random.permutation(np.array([*spelt, None], object)[:-1]).tolist(), ()]
    check(SpellingTree(spellings), spellings)


def test_a_tree_of_nothing():
    tree = SpellingTree([(), ()])
    assert len(tree.order) == 0
    assert tree.nodes == [(0, 0, None, {})]


def test_two_tokens_that_are_spelt_alike():
    with pytest.raises(ValueError, match=r"tokens 2 and 4 are both spelt \(5, 6\)"):
        SpellingTree([(), (5,), (5, 6), (6,), (5, 6)])


def test_of_a_model_whose_ctc_says_tokens():
    spellings = [() if token in (0, 2, 3) else (token,) for token in range(9)]
    tree = spelling_tree(None, 9)
    check(tree, spellings)
    assert tree.order.tolist() == [1, 4, 5, 6, 7, 8]


def test_of_a_models_table():
    table = torch.full((13, 4), -1, dtype=torch.int16)
    for token, pieces in enumerate(SPELLINGS):
        table[token, : len(pieces)] = torch.tensor(pieces)
    for special in (0, 2, 3):  # as the model begins: each id by itself
        table[special, 0] = special
    check(spelling_tree(table, 7), SPELLINGS)
    assert spelling_tree(table.clone(), 7) is spelling_tree(table, 7)
    identity = torch.arange(9, dtype=torch.int16)[:, None]
    assert spelling_tree(identity, 9) is spelling_tree(None, 9)


def test_the_longest_tokens():
    tree = SpellingTree(SPELLINGS)
    assert tree.tokens([4, 5, 6, 4, 5, 4, 6, 5]) == [8, 7, 11, 5]
    assert tree.tokens([6, 4, 6, 5, 5]) == [6, 11, 9]  # the long token breaks off: a short one, and on from its end
    assert tree.tokens([]) == []
    assert tree.tokens([4, 9, 5]) == [4, 5]
