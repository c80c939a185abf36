"""Where CTC hears each piece of a text, and where a decoder that listens by windows has to listen for a token."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samba_asr.text.tokenizer import BLANK_ID

LEAD = 6
"""States: a token is listened for so long before CTC says its first piece, but not before the token before it."""


def align(
    log_probs: Tensor | NDArray[np.floating], lengths: Sequence[int], pieces: Sequence[Sequence[int]]
) -> list[NDArray[np.int64] | None]:
    """Return the state in which each piece of a text is first said, on CTC's likeliest path through all of them.

    log_probs: (batch, states, vocab_size), on any device; lengths: states of each; pieces: of each text. None for a
    text that has more pieces than CTC can say in its states.
    """
    log_probs = torch.as_tensor(log_probs)
    batch, longest = len(pieces), max(map(len, pieces), default=0)
    labels = np.full((batch, 2 * longest + 1), BLANK_ID)
    for row, text in zip(labels, pieces, strict=True):
        row[1 : 2 * len(text) : 2] = text
    skips = np.zeros(labels.shape, bool)  # past the blank between two different pieces
    skips[:, 3::2] = labels[:, 3::2] != labels[:, 1:-2:2]
    came, ends = _likeliest(log_probs, *(torch.from_numpy(a).to(log_probs.device) for a in (labels, skips)))
    lasts = (torch.tensor(lengths, device=log_probs.device) - 1).clamp_min(0)
    last = ends[lasts, torch.arange(batch, device=log_probs.device)] if len(ends) else ends.new_zeros(batch, 0)
    return _ways_back(came.cpu().numpy(), last.cpu().numpy(), lengths, [len(text) for text in pieces])


def _likeliest(log_probs: Tensor, labels: Tensor, skips: Tensor) -> tuple[Tensor, Tensor]:
    """labels, skips: (batch, labels). Returns by how many labels the likeliest path to each moved last, int8, and that
    path's score, each (states, batch, labels)."""
    said = log_probs.transpose(0, 1).gather(2, labels.expand(log_probs.shape[1], -1, -1))
    barred = torch.zeros(skips.shape, dtype=said.dtype, device=said.device).masked_fill(~skips, -torch.inf)
    came, ends = [], []
    best = said.new_full((len(labels), labels.shape[1] + 2), -torch.inf)  # two more in front
    for state, scores in enumerate(said):
        if state == 0:
            best[:, 2:4] = scores[:, :2]
            came.append(torch.zeros_like(scores, dtype=torch.int8))
        else:
            ways = torch.stack([best[:, 2:], best[:, 1:-1], best[:, :-2] + barred])
            top, move = ways.max(0)
            came.append(move.to(torch.int8))
            best = torch.cat([best[:, :2], top + scores], 1)
        ends.append(best[:, 2:])
    if not came:
        return labels.new_zeros(0, *labels.shape, dtype=torch.int8), said
    return torch.stack(came), torch.stack(ends)


def _ways_back(
    came: NDArray[np.int8], last: NDArray[np.floating], lengths: Sequence[int], counts: Sequence[int]
) -> list[NDArray[np.int64] | None]:
    """came: (states, batch, labels); last: (batch, labels), scores in each recording's last state; counts: pieces."""
    rows, states, pieces = np.arange(len(counts)), np.array(lengths, np.int64), np.array(counts, np.int64)
    ends = 2 * pieces
    label = ends.copy()
    if last.shape[1] > 1:
        label -= (pieces > 0) & (last[rows, ends] <= last[rows, np.maximum(ends - 1, 0)])
    possible = (states > 0) & (last[rows, label] > -np.inf) if len(came) else states > 0
    firsts = np.zeros((len(counts), max(counts, default=0)), np.int64)
    for state in range(len(came) - 1, -1, -1):
        within = rows[states > state]
        saying = within[label[within] % 2 == 1]
        firsts[saying, label[saying] // 2] = state
        label[within] -= came[state, within, label[within]]
    return [row[:count] if said else None for row, count, said in zip(firsts, counts, possible, strict=True)]


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
