"""Mamba-2's scan by native kernels, forward and backward."""

import ctypes
import math
from typing import Any

import torch
from torch import Tensor

from samba_asr.ssm.native import load_kernels
from samba_asr.ssm.native.calls import gradient_wanted, level, on_cpu, parts_for, pointer, threads_for

LANES = 16
"""Floats in the widest vector: head_dim and states must be multiples of it."""


class _Ssd(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_void_p) for n in ("x", "delta", "B", "C", "A", "D", "bias", "initial", "lengths")),
        *((n, ctypes.c_void_p) for n in ("y", "last", "kept")),
        *((n, ctypes.c_int64) for n in ("batch", "time", "heads", "groups", "chunks")),
        *((n, ctypes.c_int64) for n in ("x_stride", "delta_stride", "B_stride", "C_stride")),
        *((n, ctypes.c_int) for n in ("head_dim", "states", "softplus", "reverse", "bfloat16")),
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [(n, ctypes.c_void_p) for n in ("y", "last", "x", "delta", "B", "C", "A", "D", "bias", "initial")]


def available(x: Tensor, d_state: int, *others: Tensor | None) -> bool:
    """Return whether the kernels can do this scan: float32 or bfloat16 on a CPU, sizes in whole vectors, and there are
    kernels."""
    if not on_cpu(x, *others) or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    return x.shape[3] % LANES == 0 and d_state % LANES == 0 and load_kernels() is not None


def cpu_ssd(
    x: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """As :func:`samba_asr.ssm.ssd.ssd_scan`, whose checks it relies on; B, C: (batch, time, groups, state). Returns y,
    of x's type, and the last state, float32."""
    kind = x.dtype if all(tensor.dtype == x.dtype for tensor in (delta, B, C)) else torch.float32
    rows = [_in_rows(tensor.to(kind)) for tensor in (x, delta, B, C)]
    small = [None if t is None else t.float().contiguous() for t in (A, D, delta_bias, initial_state)]
    with torch.autocast("cpu", enabled=False):
        tensors = [*rows, *small, None if lengths is None else lengths.to(torch.int64).contiguous()]
        if gradient_wanted(*tensors):
            y, last = _CpuSsd.apply(*tensors, delta_softplus, reverse)  # type: ignore[no-untyped-call]
        else:  # a chunk of a stream is short: this counts
            y, last, _ = _forward(tensors, delta_softplus, reverse, False)
        return y.to(x.dtype), last


def _forward(tensors: list[Any], softplus: bool, reverse: bool, gradient: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return y, the last state and, for a gradient, what backward asks for."""
    x, B, A = tensors[0], tensors[2], tensors[4]
    kernels = load_kernels()
    assert kernels is not None
    batch, time, heads, head_dim = x.shape
    y = x.new_empty(x.shape)
    last, kept = A.new_empty(batch, heads, head_dim, B.shape[3]), None
    if gradient:
        kept = A.new_empty(batch, -(-time // kernels.samba_ssd_chunk()), heads, B.shape[3], head_dim)
    ssd = _ssd([*tensors, y, last, kept], softplus, reverse)
    kernels.samba_ssd_forward(ctypes.byref(ssd), _threads(x, B), level())
    return y, last, kept


def _in_rows(tensor: Tensor) -> Tensor:
    """Return (batch, time, ...) with each frame's numbers side by side and frames at equal distances: a view of a wider
    tensor's columns stays one."""
    _, time, *sizes = tensor.shape
    steps = tensor.stride()
    packed = steps[-1] == 1 and (len(sizes) == 1 or steps[2] == sizes[1])
    if packed and steps[0] == time * steps[1] and steps[1] >= math.prod(sizes):
        return tensor
    return tensor.clone(memory_format=torch.contiguous_format)  # contiguous() keeps odd strides of dimensions of size 1


class _CpuSsd(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, softplus, reverse = inputs
        y, last, kept = _forward(tensors, softplus, reverse, True)
        ctx.save_for_backward(*tensors, kept)
        ctx.flags = softplus, reverse
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, kept = ctx.saved_tensors
        x, delta, B, C, A, D, bias, initial, _ = tensors
        kernels = load_kernels()
        assert kernels is not None
        threads = _threads(x, B)
        parts = parts_for(len(x), threads)
        dy, dlast = dy.contiguous(), dlast.contiguous()
        dx, ddelta = x.new_empty(x.shape), A.new_empty(delta.shape)
        dB, dC = A.new_zeros(parts, *B.shape), A.new_zeros(parts, *C.shape)
        dA, dD, dbias = (A.new_empty(len(x), len(A)) for _ in range(3))
        dinitial = torch.empty_like(dlast)
        gradients = _Gradients(*map(pointer, (dy, dlast, dx, ddelta, dB, dC, dA, dD, dbias, dinitial)))
        ssd = _ssd([*tensors, None, None, kept], *ctx.flags)
        kernels.samba_ssd_backward(ctypes.byref(ssd), ctypes.byref(gradients), ctypes.c_int64(parts), threads, level())
        return (
            dx,
            ddelta.to(delta.dtype),
            dB.sum(0).to(B.dtype),
            dC.sum(0).to(C.dtype),
            dA.sum(0),
            None if D is None else dD.sum(0),
            None if bias is None else dbias.sum(0),
            None if initial is None else dinitial,
            None,
            None,
            None,
        )


def _threads(x: Tensor, B: Tensor) -> int:
    return threads_for(x.numel() * B.shape[3], 1 << 20)


def _ssd(tensors: list[Any], softplus: bool, reverse: bool) -> _Ssd:
    x, delta, B, C, *_, kept = tensors
    batch, time, heads, head_dim = x.shape
    chunks = 0 if kept is None else kept.shape[1]
    strides = (tensor.stride(1) for tensor in (x, delta, B, C))
    sizes = (head_dim, B.shape[3], softplus, reverse, x.dtype == torch.bfloat16)
    return _Ssd(*map(pointer, tensors), batch, time, heads, B.shape[2], chunks, *strides, *sizes)
