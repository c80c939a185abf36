"""One frame of a Mamba-2 mixer by native kernels: what its two projections have between them."""

import ctypes
from typing import NamedTuple

import torch
from torch import Tensor

from samba_asr.ssm.cpu_ssd import LANES
from samba_asr.ssm.native import load_kernels
from samba_asr.ssm.native.calls import gradient_wanted, level, pointer


class _Step(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_void_p) for n in ("projected", "conv", "ssm", "next_conv", "next_ssm", "sources", "targets")),
        *((n, ctypes.c_void_p) for n in ("filters", "filter_bias", "A", "D", "dt_bias", "norm", "y")),
        *((n, ctypes.c_int64) for n in ("rows", "channels", "heads", "groups")),
        *((n, ctypes.c_int) for n in ("head_dim", "states", "width")),
        ("eps", ctypes.c_float),
    ]


class Parameters(NamedTuple):
    """What a Mamba-2 mixer has learnt, but for its projections."""

    filters: Tensor
    """(channels, 1, width), of the convolution over x, B and C."""
    filter_bias: Tensor | None
    """(channels,)"""
    A: Tensor
    """(heads,), negative; D and dt_bias alike."""
    D: Tensor
    dt_bias: Tensor
    norm: Tensor
    """(heads * head_dim,), of the gated RMS norm."""
    eps: float


def available(projected: Tensor, conv: Tensor, ssm: Tensor, parameters: Parameters, groups: int, moves: bool) -> bool:
    """Return whether the kernels can do this step: float32 on a CPU, sizes in whole vectors and such as fit, no
    gradient wanted, and there are kernels. moves: whether the states are a pool, of any number of places."""
    learnt = [tensor for tensor in parameters if isinstance(tensor, Tensor)]
    tensors = [projected, conv, ssm, *learnt]
    if not all(tensor.dtype == torch.float32 and tensor.device.type == "cpu" for tensor in tensors):
        return False
    if projected.dim() != 2 or conv.dim() != 3 or ssm.dim() != 4 or gradient_wanted(*tensors):
        return False
    if len(conv) != len(ssm) or not (moves or len(ssm) == len(projected)):
        return False
    heads, head_dim, states = ssm.shape[1:]
    channels, _, width = parameters.filters.shape
    fits = (
        len(parameters.A) == heads
        and len(parameters.norm) == heads * head_dim
        and channels == heads * head_dim + 2 * groups * states
        and tuple(conv.shape[1:]) == (width - 1, channels)
        and projected.shape[1] == heads * head_dim + channels + heads
    )
    whole = head_dim % LANES == 0 and states % LANES == 0
    return fits and whole and conv.is_contiguous() and ssm.is_contiguous() and load_kernels() is not None


def mamba2_step(
    projected: Tensor,
    conv: Tensor,
    ssm: Tensor,
    parameters: Parameters,
    groups: int,
    move: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Advance one frame, where :func:`available` says so.

    projected: (batch, heads * head_dim + channels + heads), what in_proj gives; conv: (places, width - 1, channels);
    ssm: (places, heads, head_dim, states). Without a move there is a place for each row, and the states returned are
    new; with one, (sources, targets), each (batch,) int64, rows go on from their sources and what comes of them is put
    into their targets, in conv and ssm themselves. No target may be there twice, nor be the source of another row.
    Returns y (batch, heads * head_dim), which out_proj takes, conv and ssm. Raises IndexError for places that there are
    not, ValueError for another number of them than of rows.
    """
    kernels = load_kernels()
    assert kernels is not None
    rows, places = len(projected), len(ssm)
    if move is None:
        sources = targets = None
        next_conv, next_ssm = torch.empty_like(conv), torch.empty_like(ssm)
        _check_count("states", places, rows)
    else:
        sources, targets = (_checked(indices, rows, places) for indices in move)
        next_conv, next_ssm = conv, ssm
    filters, filter_bias, A, D, dt_bias, norm, eps = parameters
    filters = filters.squeeze(1).T.contiguous()
    y = projected.new_empty(rows, len(norm))
    tensors = [projected.contiguous(), conv, ssm, next_conv, next_ssm, sources, targets, filters]
    tensors += [None if t is None else t.contiguous() for t in (filter_bias, A, D, dt_bias, norm)]
    heads, head_dim, states = ssm.shape[1:]
    sizes = rows, filters.shape[1], heads, groups, head_dim, states, len(filters), eps
    step = _Step(*map(pointer, (*tensors, y)), *sizes)
    kernels.samba_mamba2_step(ctypes.byref(step), level())
    return y, next_conv, next_ssm


def _checked(indices: Tensor, rows: int, places: int) -> Tensor:
    _check_count("places", len(indices), rows)
    if rows and not 0 <= int(indices.min()) <= int(indices.max()) < places:
        raise IndexError(f"places ({indices.tolist()}) must be between 0 and {places - 1}")
    return indices.to(torch.int64).contiguous()


def _check_count(what: str, found: int, rows: int) -> None:
    if found != rows:
        raise ValueError(f"{found} {what} for {rows} rows: there must be as many")
