"""Mamba-2's scan, in which A is one number a head: the state-space dual form (SSD), chunked matrix products.

h[t] = exp(delta[t] A) h[t-1] + delta[t] x[t] B[t]ᵀ,  y[t] = h[t] C[t] + D x[t], from arXiv 2405.21060, section 6.
Within a chunk the scan is one masked matrix product; between chunks only the states at the borders are passed on. On
a CPU native kernels do it, where there are any.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from samba_asr.ssm.cpu_ssd import available, cpu_ssd
from samba_asr.ssm.padding import check_lengths, check_shapes, mask_padding
from samba_asr.ssm.step_size import recurrence_type, step_size

Backend = Literal["auto", "torch", "half"]


def ssd_scan(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    reverse: bool = False,
    chunk_size: int = 64,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the SSD scan over a batch of sequences.

    x: (batch, time, heads, head_dim); delta: (batch, time, heads); A, D, delta_bias: (heads,), A negative; B, C:
    (batch, time, state), shared by all heads, or (batch, time, groups, state), each by heads / groups neighbouring
    ones; lengths: (batch,) int64; initial_state: (batch, heads, head_dim, state).

    Padding, ``reverse`` and precision are as in :func:`samba_asr.ssm.scan.selective_scan`, but for the matrix products'
    with ``half``. ``chunk_size`` (frames) changes the speed without native kernels, never values beyond rounding.

    backend: ``torch`` is plain PyTorch, products in float32 (float64 for float64 input). ``half`` is the same with
    factors and results of the products in the bfloat16 or float16 of x, B and C, as a GPU multiplies fast; steps,
    decays, their sums, the state that goes from chunk to chunk, and what is added up within a product stay float32.
    ``auto`` takes native kernels for float32 and bfloat16 on a CPU where head_dim and state are multiples of 16, and
    ``half`` on an NVIDIA GPU for such inputs.

    Returns y, shaped like x, and, if asked, the state (batch, heads, head_dim, state) after the last frame scanned.
    Raises ValueError for shapes that do not fit and for a backend that does not suit the inputs.
    """
    _check(x, delta, A, B, C, D, delta_bias, initial_state)
    check_lengths(lengths, x.shape[0], x.shape[1], x.device)
    if chunk_size < 1:
        raise ValueError(f"chunk_size ({chunk_size}) must be positive")
    B, C = _grouped(B), _grouped(C)
    products = _product_type(backend, x, B, C)
    if backend == "auto" and available(x, B.shape[3], delta, A, B, C, D, delta_bias, lengths, initial_state):
        y, state = cpu_ssd(x, delta, A, B, C, D, delta_bias, delta_softplus, lengths, initial_state, reverse)
        return (y, state) if return_last_state else y
    compute = recurrence_type(x)
    batch, time, heads, head_dim = x.shape
    with torch.autocast(x.device.type, enabled=False):
        x_ = mask_padding(x, lengths).to(compute)
        B_, C_ = (mask_padding(tensor, lengths).to(products) for tensor in (B, C))
        step = step_size(delta.to(compute), delta_bias, delta_softplus, lengths)
        if initial_state is None:
            state = x_.new_zeros(batch, B.shape[-1], heads, head_dim)
        else:
            state = initial_state.to(compute).permute(0, 3, 1, 2)  # (batch, state, heads, head_dim)
        y, state = _by_group(x_, step, step * A.to(compute), B_, C_, state, reverse, min(chunk_size, max(time, 1)))
        if D is not None:
            y = y + x_ * D.to(compute).unsqueeze(-1)
        y = y.to(x.dtype)
    return (y, state.permute(0, 2, 3, 1).contiguous()) if return_last_state else y


def ssd_step(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """Advance one frame: x (batch, heads, head_dim), delta (batch, heads), B, C (batch, state) or (batch, groups,
    state), state (batch, heads, head_dim, state). Returns y (batch, heads, head_dim) and the new state."""
    _check(x.unsqueeze(1), delta.unsqueeze(1), A, B.unsqueeze(1), C.unsqueeze(1), D, delta_bias, state)
    compute = recurrence_type(x)
    with torch.autocast(x.device.type, enabled=False):
        x_, B_, C_ = (tensor.to(compute) for tensor in (x, B, C))
        B_, C_ = (_for_heads(tensor, x.shape[1]) for tensor in (B_, C_))
        step = step_size(delta.to(compute), delta_bias, delta_softplus)
        decay = torch.exp(step * A.to(compute))[..., None, None]
        driven = (step.unsqueeze(-1) * x_).unsqueeze(-1)
        state = decay * state.to(compute) + driven * B_  # addcmul takes ten times as long on a CPU
        y = (state * C_).sum(-1)  # a product of many small matrices is slower
        if D is not None:
            y = y + x_ * D.to(compute).unsqueeze(-1)
    return y.to(x.dtype), state


def _check(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    if x.dim() != 4:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (batch, time, heads, head_dim)")
    batch, time, heads, head_dim = x.shape
    if B.dim() not in (3, 4) or tuple(B.shape[:2]) != (batch, time):
        expected = f"({batch}, {time}, state) or ({batch}, {time}, groups, state)"
        raise ValueError(f"B has shape {tuple(B.shape)}, expected {expected}")
    if B.dim() == 4 and (not B.shape[2] or heads % B.shape[2]):
        expected = f"({batch}, {time}, groups, state)"
        raise ValueError(f"B has shape {tuple(B.shape)}, expected {expected} with groups dividing the {heads} heads")
    check_shapes(
        {
            "delta": (delta, (batch, time, heads)),
            "A": (A, (heads,)),
            "B": (B, B.shape),
            "C": (C, B.shape),
            "D": (D, (heads,)),
            "delta_bias": (delta_bias, (heads,)),
            "initial_state": (initial_state, (batch, heads, head_dim, B.shape[-1])),
        },
        x.device,
    )


def _product_type(backend: Backend, x: Tensor, B: Tensor, C: Tensor) -> torch.dtype:
    """Return the type in which matrices are multiplied. Raises ValueError for a backend that does not suit them."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend ({backend!r}) must be one of {', '.join(map(repr, get_args(Backend)))}")
    half = x.dtype in (torch.bfloat16, torch.float16) and x.dtype == B.dtype == C.dtype
    if backend == "half" and not half:
        raise ValueError(
            f"backend 'half' takes x, B and C all in bfloat16 or all in float16; they are {x.dtype}, {B.dtype} and "
            f"{C.dtype}; use 'torch'"
        )
    return x.dtype if backend == "half" or (backend == "auto" and half and x.is_cuda) else recurrence_type(x)


def _grouped(tensor: Tensor) -> Tensor:
    """(batch, time, state) to (batch, time, 1, state)."""
    return tensor.unsqueeze(2) if tensor.dim() == 3 else tensor


def _for_heads(tensor: Tensor, heads: int) -> Tensor:
    """(batch, state) or (batch, groups, state) to (batch, 1 or heads, 1, state)."""
    if tensor.dim() == 3:
        return tensor.repeat_interleave(heads // tensor.shape[1], 1).unsqueeze(2)
    return tensor[:, None, None]


def _by_group(
    x: Tensor, delta: Tensor, log_step: Tensor, B: Tensor, C: Tensor, state: Tensor, reverse: bool, chunk: int
) -> tuple[Tensor, Tensor]:
    """B, C (batch, time, groups, state); the rest as in :func:`_chunked`, for which each group is a sequence."""
    batch, groups = x.shape[0], B.shape[2]

    def fold(tensor: Tensor) -> Tensor:
        grouped: Tensor = tensor.unflatten(2, (groups, -1))
        return grouped.transpose(1, 2).flatten(0, 1)

    def unfold(tensor: Tensor) -> Tensor:
        grouped: Tensor = tensor.unflatten(0, (batch, groups))
        return grouped.transpose(1, 2).flatten(2, 3)

    B, C = (tensor.transpose(1, 2).flatten(0, 1) for tensor in (B, C))
    y, state = _chunked(fold(x), fold(delta), fold(log_step), B, C, fold(state), reverse, chunk)
    return unfold(y), unfold(state)


def _chunked(
    x: Tensor, delta: Tensor, log_step: Tensor, B: Tensor, C: Tensor, state: Tensor, reverse: bool, chunk: int
) -> tuple[Tensor, Tensor]:
    """x (batch, time, heads, head_dim), log_step (batch, time, heads): each frame's log decay, state (batch, state,
    heads, head_dim); padding has delta = 0. Products are in the type of B and C, everything else in that of x."""
    time = x.shape[1]
    x, delta, log_step, B, C = (_split(tensor, chunk) for tensor in (x, delta, log_step, B, C))
    # (batch, chunks, chunk, ...). Log decay from a chunk's entry up to and including each frame: a running sum, from
    # the right if reversed.
    log_decay = log_step.cumsum(2)
    total = log_decay[:, :, -1]  # (batch, chunks, heads)
    if reverse:
        log_decay = total.unsqueeze(2) - log_decay + log_step
    driven = x * delta.unsqueeze(-1)

    y = _within(driven, log_decay, B, C, reverse)
    # What each chunk adds to the state at its exit, then the states at the entries, chunk after chunk.
    leaving = driven * torch.exp(total.unsqueeze(2) - log_decay).unsqueeze(-1)
    added = (B.transpose(2, 3) @ leaving.flatten(3).to(B.dtype)).unflatten(
        3, leaving.shape[3:]
    )  # (batch, chunks, state, ...)
    passing = torch.exp(total)[:, :, None, :, None]
    entries = []
    steps = list(zip(added.unbind(1), passing.unbind(1), strict=True))
    for added_c, passing_c in reversed(steps) if reverse else steps:
        entries.append(state)
        state = added_c + passing_c * state
    if entries:
        entry = torch.stack(entries[::-1] if reverse else entries, 1)
        carried = (C @ entry.flatten(3).to(C.dtype)).unflatten(3, entry.shape[3:])
        y = y + carried * torch.exp(log_decay).unsqueeze(-1)
    return y.flatten(1, 2)[:, :time], state


def _within(driven: Tensor, log_decay: Tensor, B: Tensor, C: Tensor, reverse: bool) -> Tensor:
    """What frames of a chunk give to one another: (batch, chunks, chunk, heads, head_dim)."""
    chunk = driven.shape[2]
    ones = torch.ones(chunk, chunk, dtype=torch.bool, device=driven.device)
    outside = (ones.tril(-1) if reverse else ones.triu(1)).unsqueeze(0)
    by_head = log_decay.transpose(2, 3)  # (batch, chunks, heads, chunk)
    decay = (by_head.unsqueeze(-1) - by_head.unsqueeze(-2)).masked_fill(outside, -torch.inf).exp()
    scores = (C @ B.transpose(2, 3)).unsqueeze(2) * decay  # (batch, chunks, heads, chunk, chunk)
    return (scores.to(C.dtype) @ driven.transpose(2, 3).to(C.dtype)).transpose(2, 3)


def _split(tensor: Tensor, chunk: int) -> Tensor:
    """(batch, time, ...) to (batch, chunks, chunk, ...), filled up with zeros, which leave the state as it is."""
    missing = -tensor.shape[1] % chunk
    if missing:
        tensor = F.pad(tensor, (0, 0) * (tensor.dim() - 2) + (0, missing))
    return tensor.reshape(tensor.shape[0], tensor.shape[1] // chunk, chunk, *tensor.shape[2:])
