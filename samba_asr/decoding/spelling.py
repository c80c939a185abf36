"""All tokens by the pieces in which CTC spells them, as a tree, so that a decoder of tokens can judge every piece."""

import itertools
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samba_asr.decoding.greedy import UNSAID


class Node(NamedTuple):
    """What some pieces may still become."""

    first: int
    """The tokens that go on from here are those from this place in :attr:`SpellingTree.order` ..."""
    end: int
    """... to the one before this."""
    token: int | None
    """Place in the order of the token that ends here."""
    children: dict[int, int]
    """Numbers of the nodes that another piece leads to."""


class SpellingTree:
    """The tree of all tokens' spellings; its root, number 0, is the begin of every token."""

    ROOT = 0

    def __init__(self, spellings: Sequence[Sequence[int]]) -> None:
        """spellings: the pieces of each token; none for tokens that no text holds. Raises ValueError where two tokens
        are spelt alike."""
        spelt = sorted((tuple(pieces), token) for token, pieces in enumerate(spellings) if len(pieces))
        for (pieces, token), (same, other) in itertools.pairwise(spelt):
            if pieces == same:
                raise ValueError(f"tokens {token} and {other} are both spelt {pieces}")
        self.order: NDArray[np.int64] = np.array([token for _, token in spelt], np.int64)
        """Tokens, (spelt,): those below a node are neighbours."""
        self.pieces: dict[int, tuple[int, ...]] = {token: pieces for pieces, token in spelt}
        """Of each token."""
        self.nodes: list[Node] = []
        self._build([pieces for pieces, _ in spelt], 0, len(spelt), 0)

    def single(self, piece: int) -> int | None:
        """Return the token that is this piece alone."""
        child = self.nodes[self.ROOT].children.get(piece)
        place = None if child is None else self.nodes[child].token
        return None if place is None else int(self.order[place])

    def tokens(self, pieces: Sequence[int]) -> list[int]:
        """Return tokens that pieces spell, each the longest one from where the last ended; pieces that spell none are
        left out."""
        found: list[int] = []
        start = 0
        while start < len(pieces):
            number, end, token = self.ROOT, start, None
            for place in range(start, len(pieces)):
                child = self.nodes[number].children.get(pieces[place])
                if child is None:
                    break
                number = child
                if (ending := self.nodes[number].token) is not None:
                    end, token = place, ending
            if token is not None:
                found.append(int(self.order[token]))
            start = end + 1
        return found

    def _build(self, spelt: list[tuple[int, ...]], first: int, end: int, depth: int) -> int:
        number = len(self.nodes)
        token = first if depth and len(spelt[first]) == depth else None
        node = Node(first if token is None else first + 1, end, token, {})
        self.nodes.append(node)
        start = node.first
        while start < end:
            piece, stop = spelt[start][depth], start
            while stop < end and spelt[stop][depth] == piece:
                stop += 1
            node.children[piece] = self._build(spelt, start, stop, depth + 1)
            start = stop
        return number


def spelling_tree(spellings: Tensor | None, vocab_size: int) -> SpellingTree:
    """Return the tree of a model's spellings, (vocab_size, longest) with -1 after each one's end; None: each token is a
    piece of its own. Trees are kept."""
    if spellings is None:
        spellings = torch.arange(vocab_size)[:, None]
    array = spellings.to("cpu", torch.int64).numpy()
    return _tree(array.tobytes(), array.shape[1])


@lru_cache(maxsize=4)
def _tree(spellings: bytes, longest: int) -> SpellingTree:
    """spellings: int64. As bytes they are compared at once, which thousands of tuples take milliseconds for."""
    rows = np.frombuffer(spellings, np.int64).reshape(-1, longest).tolist()
    return SpellingTree([tuple(piece for piece in row if piece >= 0 and piece not in UNSAID) for row in rows])
