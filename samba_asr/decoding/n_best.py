"""The best texts of a recording that was searched in stretches."""

import heapq
from collections.abc import Sequence

Scored = tuple[str, float]
"""A text and its score."""
_Way = tuple["_Way | None", str]
"""The way through all stretches but the last, and the last one's text: recordings of hours have thousands."""


def join_n_best(stretches: Sequence[Sequence[Scored]], count: int) -> list[Scored]:
    """Return the ``count`` best ways to take one text of each stretch, joined, the best first; fewer where there are
    no more. Their scores are sums: stretches are searched by themselves.

    stretches: in order, each with at least one text, none twice; none give one empty text.
    """
    joined: list[tuple[_Way | None, float]] = [(None, 0.0)]
    for texts in stretches:
        # What is not among the best so far cannot begin one of the best.
        ways = ((head[1] + text[1], -i, -j) for i, head in enumerate(joined) for j, text in enumerate(texts))
        best = heapq.nlargest(count, ways)
        joined = [((joined[-i][0], texts[-j][0]), score) for score, i, j in best]
    return [("".join(_texts(way)), score) for way, score in joined]


def _texts(way: "_Way | None") -> list[str]:
    """Return what a way took of each stretch."""
    texts = []
    while way is not None:
        way, text = way
        texts.append(text)
    return texts[::-1]
