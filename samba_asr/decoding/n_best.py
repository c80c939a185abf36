"""The best texts of a recording that was searched in stretches."""

import heapq
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

Scored = tuple[tuple[T, ...], float]
"""A text, as its tokens or its words, and the natural logarithm of its probability; a Hypothesis is one."""


def join_n_best(stretches: Sequence[Sequence[Scored[T]]], count: int) -> list[Scored[T]]:
    """Return the ``count`` best ways to take one text of each stretch, joined, the best first; fewer where there are
    no more. Their scores are sums: stretches are searched by themselves.

    stretches: in order, each with at least one text; none give one empty text.
    """
    joined: list[Scored[T]] = [((), 0.0)]
    for texts in stretches:
        # What is not among the best so far cannot begin one of the best.
        joined = heapq.nlargest(
            count,
            ((head + text, before + log_prob) for head, before in joined for text, log_prob in texts),
            key=lambda scored: scored[1],
        )
    return joined
