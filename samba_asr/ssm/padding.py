"""Masks for batches of sequences of different lengths, and the checks of what a layer is given."""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor


def valid_mask(lengths: Tensor, time: int) -> Tensor:
    """Return (batch, time) bool: True on each sequence's own frames. lengths: (batch,) int64."""
    return torch.arange(time, device=lengths.device) < lengths.unsqueeze(1)


def mask_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Set x (batch, time, ...) to 0 past each sequence's length, even where it holds NaN. None: nothing is padding."""
    if lengths is None:
        return x
    mask = ~valid_mask(lengths, x.shape[1])
    return x.masked_fill(mask.reshape(mask.shape + (1,) * (x.dim() - 2)), 0.0)


def flip_within(x: Tensor, lengths: Tensor | None) -> Tensor:
    """Turn each sequence of x (batch, time, channels) round within its own length; padding stays where it is."""
    if lengths is None:
        return x.flip(1)
    steps = torch.arange(x.shape[1], device=x.device)
    last = lengths.unsqueeze(1) - 1
    source = torch.where(steps <= last, last - steps, steps)
    return x.gather(1, source.unsqueeze(-1).expand_as(x))


def in_chunks(x: Tensor, lengths: Tensor | None, chunk: int) -> tuple[Tensor, Tensor]:
    """Cut x (batch, time, channels) into chunks of as many frames, the last one filled up with zeros. Returns (batch *
    chunks, chunk, channels) and how many frames of each are a sequence's own, int64. Raises ValueError for a chunk
    below 1."""
    if chunk < 1:
        raise ValueError(f"chunk ({chunk}) must be a positive number of frames")
    batch, time, width = x.shape
    if lengths is None:
        lengths = torch.full((batch,), time, dtype=torch.int64, device=x.device)
    chunks = -(-time // chunk)
    pieces = F.pad(x, (0, 0, 0, chunks * chunk - time)).reshape(batch * chunks, chunk, width)
    starts = torch.arange(chunks, device=x.device) * chunk
    return pieces, (lengths[:, None] - starts).clamp(0, chunk).flatten()


def from_chunks(pieces: Tensor, batch: int, time: int) -> Tensor:
    """Undo :func:`in_chunks`: (batch * chunks, chunk, ...) to (batch, time, ...)."""
    chunk, *sizes = pieces.shape[1:]
    return pieces.reshape(batch, -(-time // chunk) * chunk, *sizes)[:, :time]


def check_shapes(expected: Mapping[str, tuple[Tensor | None, Sequence[int]]], device: torch.device) -> None:
    """Raise ValueError, with its name, for the first tensor that has not the shape beside it, or is not on the device
    where the scan's first argument is. None has any."""
    for name, (tensor, shape) in expected.items():
        if tensor is not None and tuple(tensor.shape) != tuple(shape):
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, expected {tuple(shape)}")
        check_device(name, tensor, device)


def check_device(name: str, tensor: Tensor | None, device: torch.device) -> None:
    """Raise ValueError, with its name, for a tensor that is on another device. None is on any."""
    if tensor is not None and tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, the first argument on {device}; move it there")


def check_lengths(lengths: Tensor | None, batch: int, time: int, device: torch.device) -> None:
    """Raise ValueError unless lengths is None or (batch,) integers on the device."""
    if lengths is None:
        return
    check_device("lengths", lengths, device)
    if lengths.shape != (batch,):
        raise ValueError(f"lengths has shape {tuple(lengths.shape)}, expected ({batch},): one length a sequence")
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise ValueError(f"lengths is {lengths.dtype}, expected int64: frame counts, not shares")
    if lengths.device.type == "cpu" and batch and not 0 <= int(lengths.min()) <= int(lengths.max()) <= time:
        raise ValueError(f"lengths ({lengths.tolist()}) must lie between 0 and the number of frames, {time}")
