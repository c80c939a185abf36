"""Mamba's selective scan: h[t] = exp(delta[t] A) h[t-1] + delta[t] B[t] u[t],  y[t] = C[t] h[t] + D u[t].

Shapes follow the Mamba paper (arXiv 2312.00752, algorithm 2): batch, time, channels. Five backends compute the same
recurrence: ``reference``, one obvious step after the other; ``torch``, which spends its time in a few large tensor
operations a chunk; ``cpu``, native kernels; ``triton``, kernels for NVIDIA GPUs; and ``mamba_ssm``, the Mamba authors'
own kernel for these, where it is installed.
"""

from collections.abc import Callable
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from samba_asr.ssm import mamba_ssm_scan
from samba_asr.ssm.cpu_scan import available, cpu_scan
from samba_asr.ssm.native.calls import gradient_wanted
from samba_asr.ssm.padding import check_lengths, check_shapes, mask_padding
from samba_asr.ssm.step_size import recurrence_type, step_size
from samba_asr.ssm.torch_scan import torch_scan
from samba_asr.ssm.triton_scan import preferred, refusal, triton_scan

Backend = Literal["auto", "reference", "torch", "cpu", "triton", "mamba_ssm"]


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
    return_last_state: bool = False,
    reverse: bool = False,
    backend: Backend = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Run the selective scan over a batch of sequences.

    u, delta, z: (batch, time, channels); A: (channels, state), real and negative; B, C: (batch, time, state), or
    (batch, time, groups, state) where each group serves channels / groups neighbouring channels; D, delta_bias:
    (channels,); lengths: (batch,) int64; initial_state: (batch, channels, state).

    Frames past a sequence's length change nothing: not values, not the last state, not gradients; their output is 0.
    ``reverse`` scans each sequence from its own last frame to its first. The recurrence runs in float32 (float64 for
    float64 input). Returns y (batch, time, channels) in u's type and, if asked, the state (batch, channels, state)
    after the last frame scanned. Raises ValueError for shapes that do not fit and for a backend that cannot be used.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, lengths, initial_state)
    batch, _, channels = u.shape
    d_state, groups = A.shape[1], 1 if B.dim() == 3 else B.shape[2]
    tensors = (delta, A, B, C, D, z, delta_bias, lengths, initial_state)
    backend = _choose(backend, u, d_state, tensors, return_last_state)
    compute = recurrence_type(u)
    with torch.autocast(u.device.type, enabled=False):
        if backend in ("cpu", "triton", "mamba_ssm"):
            by_group = (*B.shape[:2], groups, d_state)
            inputs = (u, delta, A, B.reshape(by_group), C.reshape(by_group), D, z, delta_bias, delta_softplus, lengths)
            if backend == "mamba_ssm":
                y, state = mamba_ssm_scan.mamba_ssm_scan(*inputs, reverse)
            else:
                y, state = (cpu_scan if backend == "cpu" else triton_scan)(*inputs, initial_state, reverse)
            return (y.to(u.dtype), state) if return_last_state else y.to(u.dtype)
        u_, B_, C_ = (mask_padding(tensor, lengths).to(compute) for tensor in (u, B, C))
        step = step_size(delta.to(compute), delta_bias, delta_softplus, lengths)
        if initial_state is None:
            initial_state = u_.new_zeros(batch, channels, d_state)
        grouped = (groups, channels // groups)
        y, state = _BACKENDS[backend](
            u_.unflatten(2, grouped),
            step.unflatten(2, grouped),
            A.to(compute).unflatten(0, grouped),
            B_.reshape(*B.shape[:2], groups, d_state),
            C_.reshape(*C.shape[:2], groups, d_state),
            initial_state.to(compute).unflatten(1, grouped),
            reverse,
        )
        y, state = y.flatten(2), state.flatten(1, 2)
        if D is not None:
            y = y + u_ * D.to(compute)
        if z is not None:
            y = y * F.silu(mask_padding(z, lengths).to(compute))
        y = y.to(u.dtype)
    return (y, state) if return_last_state else y


def backends(u: Tensor, d_state: int = 16) -> list[Backend]:
    """Return the backends that can scan tensors like u, with so many states a channel, the obvious one first."""
    named = (name for name in get_args(Backend) if name != "auto")
    return [name for name in named if _refusal(name, u, d_state, (), False) is None]


def _choose(backend: Backend, u: Tensor, d_state: int, others: tuple[Tensor | None, ...], last_state: bool) -> Backend:
    """Return the backend that is asked for, or the best there is. Raises ValueError for one that cannot be used."""
    if backend not in get_args(Backend):
        raise ValueError(f"backend ({backend!r}) must be one of {', '.join(map(repr, get_args(Backend)))}")
    if backend == "auto":
        if u.device.type == "cuda":
            if _refusal("mamba_ssm", u, d_state, others, last_state) is None:
                return "mamba_ssm"
            return "triton" if preferred(u, d_state, selective_scan) else "torch"
        return "cpu" if available(u, d_state, *others) else "torch"
    why = _refusal(backend, u, d_state, others, last_state)
    if why is not None:
        raise ValueError(f"backend {backend!r} {why}")
    return backend


def _refusal(
    backend: Backend, u: Tensor, d_state: int, others: tuple[Tensor | None, ...], last_state: bool
) -> str | None:
    """Return why a backend cannot do this scan and what to do instead; None if it can. others: delta to initial_state,
    as :func:`selective_scan` has them."""
    if backend == "cpu" and not available(u, d_state, *others):
        return (
            f"takes float32, bfloat16 or float16 on a CPU and needs its kernels, which hold 256 states; u is {u.dtype} "
            f"on {u.device}, states {d_state}; use 'torch'"
        )
    if backend == "triton":
        return refusal(u, d_state)
    if backend == "mamba_ssm":
        initial_state = others[-1] if others else None
        return mamba_ssm_scan.refusal(u, d_state, initial_state, last_state and gradient_wanted(u, *others))
    return None


def selective_scan_step(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    state: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    backend: Backend = "auto",
) -> tuple[Tensor, Tensor]:
    """Advance one frame: u, delta, z (batch, channels); B, C (batch, state) or (batch, groups, state); state (batch,
    channels, state). Returns y (batch, channels) and the new state; equal to :func:`selective_scan` on one frame."""
    y, new_state = selective_scan(
        u.unsqueeze(1),
        delta.unsqueeze(1),
        A,
        B.unsqueeze(1),
        C.unsqueeze(1),
        D,
        None if z is None else z.unsqueeze(1),
        delta_bias,
        delta_softplus,
        initial_state=state,
        return_last_state=True,
        backend=backend,
    )
    return y.squeeze(1), new_state


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    lengths: Tensor | None,
    initial_state: Tensor | None,
) -> None:
    if u.dim() != 3:
        raise ValueError(f"u has shape {tuple(u.shape)}, expected (batch, time, channels)")
    batch, time, channels = u.shape
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(f"A has shape {tuple(A.shape)}, expected ({channels}, state)")
    groups = B.shape[2] if B.dim() == 4 else 1
    if groups < 1 or channels % groups:
        raise ValueError(f"B has {groups} groups, which must divide the {channels} channels")
    d_state = A.shape[1]
    by_time = (batch, time, d_state) if B.dim() == 3 else (batch, time, groups, d_state)
    check_shapes(
        {
            "delta": (delta, u.shape),
            "A": (A, (channels, d_state)),
            "B": (B, by_time),
            "C": (C, by_time),
            "D": (D, (channels,)),
            "z": (z, u.shape),
            "delta_bias": (delta_bias, (channels,)),
            "initial_state": (initial_state, (batch, channels, d_state)),
        },
        u.device,
    )
    check_lengths(lengths, batch, time, u.device)


# The backends take clean inputs, grouped: u, delta (batch, time, groups, channels), A (groups, channels, state),
# B, C (batch, time, groups, state), state (batch, groups, channels, state); padding has delta = B = C = u = 0, which
# freezes the state, so a backward scan may simply start at the last frame of the batch.


def _reference(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    outputs = [torch.zeros_like(u[:, 0])] * u.shape[1] if u.shape[1] else []
    frames = range(u.shape[1])
    for t in reversed(frames) if reverse else frames:
        decay = torch.exp(delta[:, t].unsqueeze(-1) * A)
        state = decay * state + (delta[:, t] * u[:, t]).unsqueeze(-1) * B[:, t].unsqueeze(-2)
        outputs[t] = (state * C[:, t].unsqueeze(-2)).sum(-1)
    return torch.stack(outputs, 1) if outputs else torch.zeros_like(u), state


_BACKENDS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {"reference": _reference, "torch": torch_scan}
