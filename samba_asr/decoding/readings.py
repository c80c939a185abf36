"""What a decoder of tokens makes of pieces: every way to read a text's pieces as tokens, and the last one's begin.

CTC lengthens texts by pieces and the decoder by tokens, which take one piece or several. Of a text that ends within a
token, the decoder's score counts all tokens that go on like this; so it has its say about every piece.
"""

import math
from collections.abc import Iterable, Sequence, Set

import numpy as np
from numpy.typing import NDArray

from samba_asr.decoding.pool import Asked, Pool
from samba_asr.decoding.spelling import SpellingTree
from samba_asr.decoding.timing import Timing
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

MARGIN = 2.5
"""Nats below a text's best reading from which on another one is given up."""


class TokenPrefix:
    """Tokens: one after others. Once the decoder has read them, it knows what may follow."""

    __slots__ = ("ending", "log_probs", "mentioned", "parent", "piece", "place", "score", "token")

    def __init__(self, token: int, parent: "TokenPrefix | None", score: float, piece: int, mentioned: int) -> None:
        """piece: its last one, mentioned: the state in which CTC first took that into account."""
        self.token, self.parent, self.score = token, parent, score
        self.piece, self.mentioned = piece, mentioned
        self.place = -1
        self.log_probs: NDArray[np.float64] | None = None
        self.ending = -math.inf

    @property
    def read(self) -> bool:
        """Whether the decoder has read them."""
        return self.log_probs is not None

    def learn(self, log_probs: NDArray[np.float64], ending: float) -> None:
        """Take what the decoder says: of the tokens in the tree's order, and of the end."""
        self.log_probs, self.ending = log_probs, ending

    def share(self, first: int, end: int) -> float:
        """Return the natural logarithm of what the tokens from one place in the tree's order to another have together.

        It is taken of these alone: with a language model they may be far below the others, where differences of sums
        over all tokens would have lost them.
        """
        assert self.log_probs is not None
        part = self.log_probs[first:end]
        best = part.max()
        return float(best + np.log(np.exp(part - best).sum()))


Readings = dict[tuple[TokenPrefix, int], float]
"""A text's readings: tokens and the node of what follows them, with their natural logarithms."""


class Reader:
    """The readings of the texts in one recording's beam, by the texts' keys; what the decoder remembers of their tokens
    lies in a pool. It never asks by itself: what it has to learn is in :meth:`unread`."""

    def __init__(self, pool: Pool, start: int, tree: SpellingTree, timing: Timing, margin: float = MARGIN) -> None:
        """start: the empty text's place in the pool."""
        self._pool, self._start, self._tree, self._timing, self._margin = pool, start, tree, timing, margin
        self._live: set[TokenPrefix] = set()
        self._readings: dict[int, Readings] = {}
        self._scores: dict[int, float] = {}
        self._grown: dict[int, dict[int, float]] = {}

    def begin(self, key: int) -> None:
        """Start the text, under a key."""
        root = TokenPrefix(BOS_ID, None, 0.0, BLANK_ID, 0)
        self._readings[key] = {(root, SpellingTree.ROOT): 0.0}
        self._scores[key] = 0.0

    def score(self, key: int) -> float:
        """Return the natural logarithm of the decoder's probability of what a text begins with."""
        return self._scores[key]

    def at_most(self, parent: int, piece: int) -> float:
        """Return the score that a text will have with another piece, or one that it cannot exceed."""
        return self._grown.get(parent, {}).get(piece, self._scores[parent])

    def lengthen(self, key: int, parent: int, piece: int, state: int) -> None:
        """Enter the text that is another one, which has been read, and a piece, mentioned in a state."""
        found: Readings = {}
        for prefix, number in self._readings[parent]:
            child = self._tree.nodes[number].children.get(piece)
            if child is None or prefix.log_probs is None:
                continue
            node = self._tree.nodes[child]
            if node.first < node.end:
                found[prefix, child] = prefix.score + prefix.share(node.first, node.end)
            if node.token is not None:
                token = int(self._tree.order[node.token])
                score = prefix.score + prefix.log_probs.item(node.token)
                found[TokenPrefix(token, prefix, score, piece, state), SpellingTree.ROOT] = score
        self._readings[key] = self._likely(found)
        self._scores[key] = _log_sum(self._readings[key].values())
        self._grown.setdefault(parent, {})[piece] = self._scores[key]

    def _likely(self, found: Readings) -> Readings:
        """Give up readings that are far behind; not the best one of whole tokens, with which a text may end."""
        least = max(found.values(), default=-math.inf) - self._margin
        whole = [(score, prefix) for (prefix, node), score in found.items() if node == SpellingTree.ROOT]
        kept = max(whole, key=lambda each: each[0])[1] if whole else None
        return {reading: score for reading, score in found.items() if score >= least or reading[0] is kept}

    def unread(self, keys: Iterable[int], ending: bool = False) -> list[TokenPrefix]:
        """Return what the decoder has to read of texts, all of it at once; readings that are far behind only where the
        text ends."""
        unread: dict[TokenPrefix, None] = {}
        for key in keys:
            readings = self._readings[key]
            least = -math.inf if ending else max(readings.values(), default=0.0) - self._margin
            unread |= {prefix: None for (prefix, _), score in readings.items() if score >= least and not prefix.read}
        return list(unread)

    def asked(self, prefixes: Iterable[TokenPrefix], now: int) -> list[Asked]:
        """Return what the pool has to answer for prefixes, seen from a state; they live in it from now on."""
        asked = []
        for prefix in prefixes:
            prefix.place = self._pool.take()
            self._live.add(prefix)
            source = self._start if prefix.parent is None else prefix.parent.place
            asked.append(Asked(prefix.token, source, prefix.place, self._listen(prefix, now)))
        return asked

    def learn(self, prefixes: Sequence[TokenPrefix], answers: NDArray[np.float64]) -> None:
        """Take the pool's answers, (prefixes, vocab_size)."""
        in_order = answers[:, self._tree.order]
        for prefix, log_probs, ending in zip(prefixes, in_order, answers[:, EOS_ID].tolist(), strict=True):
            prefix.learn(log_probs, ending)

    def final(self, key: int) -> float:
        """Return a text's score, its end included; minus infinity where it ends within a token."""
        return _log_sum(
            prefix.score + prefix.ending for prefix, node in self._readings[key] if node == SpellingTree.ROOT
        )

    def keep(self, keys: Set[int]) -> None:
        """Forget all texts but these."""
        gone = self._readings.keys() - keys
        for key in gone:
            del self._readings[key], self._scores[key]
            self._grown.pop(key, None)
        if not gone:
            return
        wanted = {prefix for readings in self._readings.values() for prefix, _ in readings}
        wanted |= {prefix.parent for prefix in wanted if not prefix.read and prefix.parent is not None}
        self._pool.give_back(prefix.place for prefix in self._live - wanted)
        self._live &= wanted

    def _listen(self, prefix: TokenPrefix, now: int) -> int:
        if prefix.parent is None:
            return self._timing.begin()
        return self._timing.after(prefix.piece, prefix.mentioned, now)


def _log_sum(scores: Iterable[float]) -> float:
    values = list(scores)
    if len(values) == 1:
        return values[0]
    best = max(values, default=-math.inf)
    if best == -math.inf:
        return best
    return best + math.log(sum(math.exp(value - best) for value in values))
