"""Where CTC hears each piece of a text, and where a decoder that listens by windows has to listen for a token."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from samba_asr.text.tokenizer import BLANK_ID

LEAD = 6
"""States: a token is listened for so long before CTC says its first piece, but not before the token before it."""


def align(
    log_probs: NDArray[np.floating], lengths: Sequence[int], pieces: Sequence[Sequence[int]]
) -> list[NDArray[np.int64] | None]:
    """Return the state in which each piece of a text is first said, on CTC's likeliest path through all of them.

    log_probs: (batch, states, vocab_size); lengths: states of each; pieces: of each text. None for a text that has more
    pieces than CTC can say in its states.
    """
    batch, longest = len(pieces), max(map(len, pieces), default=0)
    labels = np.full((batch, 2 * longest + 1), BLANK_ID)
    for row, text in zip(labels, pieces, strict=True):
        row[1 : 2 * len(text) : 2] = text
    states = log_probs.shape[1]
    skips = np.zeros(labels.shape, bool)  # past the blank between two different pieces
    skips[:, 3::2] = labels[:, 3::2] != labels[:, 1:-2:2]
    best = np.full((batch, labels.shape[1] + 2), -np.inf)  # two more in front
    best[:, 2] = 0.0
    came = np.zeros((states, batch, labels.shape[1]), np.int8)
    ends = np.zeros((batch, labels.shape[1]))
    rows = np.arange(batch)
    lasts = np.array(lengths) - 1
    for state in range(states):
        ways = np.stack([best[:, 2:], best[:, 1:-1], np.where(skips, best[:, :-2], -np.inf)])
        if state == 0:
            ways = np.stack([best[:, 2:], best[:, 1:-1], np.full_like(ends, -np.inf)])
        came[state] = ways.argmax(0)
        best[:, 2:] = ways.max(0) + log_probs[rows[:, None], state, labels]
        ended = lasts == state
        ends[ended] = best[ended, 2:]
    return [
        _way_back(came[:length, row], ends[row], len(text)) if length else None
        for row, (length, text) in enumerate(zip(lengths, pieces, strict=True))
    ]


def _way_back(came: NDArray[np.int8], end: NDArray[np.floating], count: int) -> NDArray[np.int64] | None:
    """came: (states, labels), how each label was reached; end: (labels,) scores."""
    label = 2 * count if not count or end[2 * count] > end[2 * count - 1] else 2 * count - 1
    if end[label] == -np.inf:
        return None
    firsts = np.zeros(count, np.int64)
    for state in range(len(came) - 1, -1, -1):
        if label % 2:
            firsts[label // 2] = state
        label -= int(came[state, label])
    return firsts


def listening_places(firsts: NDArray[np.int64] | None, counts: Sequence[int], states: int) -> list[int]:
    """Return where to listen for each token and for the end of the text: len(counts) + 1 places.

    firsts: of all pieces, from :func:`align`; counts: pieces of each token; states: of the recording. Without an
    alignment the tokens are spread evenly.
    """
    if firsts is None:
        return [states * i // (len(counts) + 1) for i in range(len(counts) + 1)]
    places, before, piece = [], 0, 0
    for count in counts:
        places.append(listening_place(before, int(firsts[piece])))
        piece += count
        before = int(firsts[piece - 1])
    return [*places, listening_place(before, states)]


def listening_place(before: int, expected: int) -> int:
    """Return where to listen for a token: before: where the last piece of the token before it is said, 0 at the start;
    expected: where its own first piece is."""
    return max(before, expected - LEAD, 0)
