"""Where CTC hears each piece of a text, and where a decoder that listens by windows has to listen for a token."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from samba_asr.text.tokenizer import BLANK_ID

LEAD = 6
"""States: a token is listened for so long before CTC says its first piece, but not before the token before it."""


class Spans(NamedTuple):
    """Where the pieces of a text are said, on CTC's likeliest path through all; each (pieces,) int64, rising."""

    firsts: NDArray[np.int64]
    """The state in which each piece is first said."""
    lasts: NDArray[np.int64]
    """The state in which it is last said."""


def align(
    log_probs: Tensor | NDArray[np.floating], lengths: Sequence[int], pieces: Sequence[Sequence[int]]
) -> list[NDArray[np.int64] | None]:
    """Return the state in which each piece of a text is first said; arguments as of :func:`align_spans`."""
    return [None if spans is None else spans.firsts for spans in align_spans(log_probs, lengths, pieces)]


def align_spans(
    log_probs: Tensor | NDArray[np.floating], lengths: Sequence[int], pieces: Sequence[Sequence[int]]
) -> list[Spans | None]:
    """Return the states in which each piece of a text is said, on CTC's likeliest path through all of them.

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
    came, scores = _likeliest(log_probs, *(torch.from_numpy(a).to(log_probs.device) for a in (labels, skips)))
    lasts = (torch.tensor(lengths, device=log_probs.device) - 1).clamp_min(0)
    ends = scores[lasts, torch.arange(batch, device=log_probs.device)] if len(scores) else scores.new_zeros(batch, 0)
    rows = zip(came.cpu().numpy().swapaxes(0, 1), ends.cpu().numpy(), lengths, map(len, pieces), strict=True)
    return [_way_back(came[:states], ends, count) for came, ends, states, count in rows]


def _likeliest(log_probs: Tensor, labels: Tensor, skips: Tensor) -> tuple[Tensor, Tensor]:
    """labels, skips: (batch, labels). Returns by how many labels the likeliest path to each moved last, int8, and that
    path's score, each (states, batch, labels)."""
    said = log_probs.transpose(0, 1).gather(2, labels.expand(log_probs.shape[1], -1, -1))
    barred = torch.zeros(skips.shape, dtype=said.dtype, device=said.device).masked_fill(~skips, -torch.inf)
    best = said.new_full((len(said), len(labels), labels.shape[1] + 2), -torch.inf)  # two labels more in front
    stay, step, skip = best[:, :, 2:], best[:, :, 1:-1], best[:, :, :-2]
    stay[:1, :, :2] = said[:1, :, :2]
    # A call takes longer than its arithmetic, so a state makes few of them: where paths came from is found afterwards.
    ways = (way[:-1].unbind(0) for way in (stay, step, skip))
    for stays, steps, skipped, now, score in zip(*ways, stay[1:].unbind(0), said[1:].unbind(0), strict=True):
        torch.maximum(torch.maximum(stays, steps), skipped + barred, out=now)
        now += score
    came = torch.zeros(said.shape, dtype=torch.int8, device=said.device)
    came[1:] = step[:-1] > stay[:-1]
    came[1:][skip[:-1] + barred > torch.maximum(stay[:-1], step[:-1])] = 2
    return came, stay


def _way_back(came: NDArray[np.int8], ends: NDArray[np.floating], count: int) -> Spans | None:
    """came: (states, labels) of one recording; ends: (labels,), scores in its last state; count: pieces of its text."""
    label = 2 * count
    if count and len(ends) and ends[label] <= ends[label - 1]:
        label -= 1
    if not len(came) or ends[label] == -np.inf:
        return None
    path = np.empty(len(came), np.int64)
    for state in range(len(came) - 1, -1, -1):
        path[state] = label
        label -= came.item(state, label)
    pieces = 2 * np.arange(count) + 1
    return Spans(path.searchsorted(pieces), path.searchsorted(pieces, "right") - 1)


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
