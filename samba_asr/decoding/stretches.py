"""Long recordings in stretches: the decoder learned from utterances of seconds, so it reads no more than 30 at once."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from samba_asr.decoding.prefix_beam import Hypothesis
from samba_asr.text.tokenizer import BLANK_ID

LONGEST_SECONDS = 30.0
"""Of one stretch."""
STRETCHES_AT_ONCE = 8
"""In one batch: what the decoder takes of memory does not grow with the recording."""


class Stretch(NamedTuple):
    """States start to end - 1 of one utterance."""

    row: int
    """The utterance's place in its batch."""
    start: int
    end: int


class Found(NamedTuple):
    """What a search found in states start to end - 1 of one utterance."""

    start: int
    end: int
    tokens: list[int]
    n_best: tuple[Hypothesis, ...] = ()
    """joint: this text and others, in CTC's pieces, the best first."""


def cut_at_blanks(log_probs: NDArray[np.floating], length: int, longest: int) -> list[tuple[int, int]]:
    """Cut an utterance where the CTC head hears a pause; return each stretch's first state and the one after its last.

    log_probs: (states, vocab_size), of which the first ``length`` count. Every stretch has 1 to ``longest`` states, and
    together they are all states in order; no stretch for no state. A cut is the middle of the likeliest run of blank in
    the second half of what a stretch may hold; without a run it follows the state where blank is likeliest.
    """
    if longest < 1:
        raise ValueError(f"longest ({longest}) must be positive")
    stretches = []
    start = 0
    while length - start > longest:
        low = start + longest // 2
        # The last stretch should not be a snippet, such as the silence after the last word.
        high = min(start + longest, length - longest // 4)
        end = low + _best_cut(log_probs[low:high])
        stretches.append((start, end))
        start = end
    return [*stretches, (start, length)] if start < length else stretches


def _best_cut(log_probs: NDArray[np.floating]) -> int:
    """Return how many of these states, (states, vocab_size), come before the cut: one at least."""
    blank = np.exp(log_probs[:, BLANK_ID])
    is_blank = log_probs.argmax(1) == BLANK_ID
    runs = np.flatnonzero(np.diff(is_blank.astype(np.int8), prepend=0, append=0)).reshape(-1, 2).tolist()
    if not runs:
        return int(blank.argmax()) + 1
    # The sum counts the run's states, each for as much as it is blank.
    start, end = max(runs, key=lambda run: float(blank[run[0] : run[1]].sum()))
    return int(start + end + 1) // 2


def stretch_batches(
    encoder_out: Tensor, stretches: Sequence[Stretch]
) -> Iterator[tuple[list[Stretch], Tensor, Tensor]]:
    """Yield the stretches in order, a few at a time, each time with their states and lengths.

    encoder_out: (batch, states, d_model). States come as (stretches, states, d_model), 0 on padding, lengths as
    (stretches,) int64.
    """
    for first in range(0, len(stretches), STRETCHES_AT_ONCE):
        batch = list(stretches[first : first + STRETCHES_AT_ONCE])
        states = pad_sequence([encoder_out[row, start:end] for row, start, end in batch], batch_first=True)
        lengths = torch.tensor([end - start for _, start, end in batch], device=encoder_out.device)
        yield batch, states, lengths
