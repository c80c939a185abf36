"""All tokens by the pieces in which CTC spells them, and back."""

import itertools
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samba_asr.decoding.greedy import UNSAID


class Spelling:
    """How tokens are spelt in pieces."""

    def __init__(self, spellings: Sequence[Sequence[int]]) -> None:
        """spellings: the pieces of each token; none for tokens that no text holds. Raises ValueError where two tokens
        are spelt alike."""
        spelt = sorted((tuple(pieces), token) for token, pieces in enumerate(spellings) if len(pieces))
        for (pieces, token), (same, other) in itertools.pairwise(spelt):
            if pieces == same:
                raise ValueError(f"tokens {token} and {other} are both spelt {pieces}")
        self.pieces: dict[int, tuple[int, ...]] = {token: pieces for pieces, token in spelt}
        """Of each token that texts may hold."""
        self.said: NDArray[np.int64] = np.array(sorted(self.pieces), np.int64)
        """These tokens, (tokens,)."""
        self._tokens = dict(spelt)
        self._longest = max(map(len, self._tokens), default=0)

    def single(self, piece: int) -> int | None:
        """Return the token that is this piece alone."""
        return self._tokens.get((piece,))

    def tokens(self, pieces: Sequence[int]) -> list[int]:
        """Return tokens that pieces spell, each the longest one from where the last ended; pieces that spell none are
        left out."""
        found: list[int] = []
        start = 0
        while start < len(pieces):
            lengths = range(min(self._longest, len(pieces) - start), 0, -1)
            spelt = (tuple(pieces[start : start + length]) for length in lengths)
            longest = next((each for each in spelt if each in self._tokens), None)
            if longest is not None:
                found.append(self._tokens[longest])
            start += 1 if longest is None else len(longest)
        return found


def spelling_of(spellings: Tensor | None, vocab_size: int) -> Spelling:
    """Return how a model's tokens are spelt: (vocab_size, longest) with -1 after each one's end; None: each token is a
    piece of its own. What was made is kept."""
    if spellings is None:
        spellings = torch.arange(vocab_size)[:, None]
    array = spellings.to("cpu", torch.int64).numpy()
    return _spelling(array.tobytes(), array.shape[1])


@lru_cache(maxsize=4)
def _spelling(spellings: bytes, longest: int) -> Spelling:
    """spellings: int64. As bytes they are compared at once, which thousands of tuples take milliseconds for."""
    rows = np.frombuffer(spellings, np.int64).reshape(-1, longest).tolist()
    return Spelling([tuple(piece for piece in row if piece >= 0 and piece not in UNSAID) for row in rows])
