"""Long recordings in pieces that fit a processor's cache: a second of audio costs the same whatever follows it."""

from collections.abc import Sequence

import torch
from torch import Tensor

PIECE = 1024
"""States; an encoder of Whisper's width reads 41 s at once."""


def spans(time: int) -> list[tuple[int, int]]:
    """Return where each piece of a sequence begins and ends; where a gradient is wanted, there is one."""
    if torch.is_grad_enabled() or time <= PIECE:
        return [(0, time)]
    return [(start, min(start + PIECE, time)) for start in range(0, time, PIECE)]


def joined(pieces: Sequence[Tensor]) -> Tensor:
    """Return pieces (batch, time, ...) as one; a single one is not copied."""
    return torch.cat(list(pieces), 1) if len(pieces) > 1 else pieces[0]
