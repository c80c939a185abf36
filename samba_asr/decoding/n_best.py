"""The best texts of a recording that was searched in stretches."""

import heapq
from collections.abc import Sequence

from samba_asr.decoding.prefix_beam import Hypothesis


def join_n_best(stretches: Sequence[Sequence[Hypothesis]], count: int) -> list[Hypothesis]:
    """Return the ``count`` best ways to take one text of each stretch, joined, the best first; fewer where there are
    no more. Their scores are sums: stretches are searched by themselves.

    stretches: in order, each with at least one text; none give one empty text.
    """
    joined = [Hypothesis((), 0.0)]
    for texts in stretches:
        # What is not among the best so far cannot begin one of the best.
        joined = heapq.nlargest(
            count,
            (Hypothesis(head.tokens + text.tokens, head.log_prob + text.log_prob) for head in joined for text in texts),
            key=lambda text: text.log_prob,
        )
    return joined
