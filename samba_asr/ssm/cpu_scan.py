"""The selective scan's ``cpu`` backend: native kernels, forward and backward."""

import ctypes
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from samba_asr.ssm.native import load_kernels
from samba_asr.ssm.native.calls import gradient_wanted, level, on_cpu, parts_for, pointer, threads_for

_POINTERS = ("u", "delta", "A", "B", "C", "D", "z", "bias", "initial", "lengths", "y", "last", "kept")
_GRADIENTS = ("y", "last", "u", "delta", "z", "B", "C", "A", "D", "bias", "initial")


class _Scan(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in _POINTERS),
        *((name, ctypes.c_int64) for name in ("batch", "time", "channels", "groups", "chunks")),
        *((name, ctypes.c_int) for name in ("states", "softplus", "reverse")),
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in _GRADIENTS]


def available(u: Tensor, d_state: int, *others: Tensor | None) -> bool:
    """Return whether the kernels can do this scan: float32, bfloat16 or float16 on a CPU, and they could be built."""
    if not on_cpu(u, *others) or u.dtype == torch.float64:
        return False
    kernels = load_kernels()
    return kernels is not None and d_state <= kernels.samba_max_states()


def cpu_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    lengths: Tensor | None,
    initial_state: Tensor | None,
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """As :func:`samba_asr.ssm.scan.selective_scan`, whose checks it relies on; B, C: (batch, time, groups, state).
    Returns y and the last state, both float32."""
    tensors = (u, delta, A, B, C, D, z, delta_bias, initial_state)
    plain = [None if tensor is None else tensor.float().contiguous() for tensor in tensors]
    plain.append(None if lengths is None else lengths.to(torch.int64).contiguous())
    result: tuple[Tensor, Tensor] = _CpuScan.apply(  # type: ignore[no-untyped-call]
        *plain, delta_softplus, reverse, gradient_wanted(*tensors)
    )
    return result


def exponentials(delta: Tensor, d_state: int) -> Tensor:
    """Return, for each channel, its sum over time and states of exp(-delta n): delta (batch, time, channels), n from 1
    to d_state; the result (batch, channels) float32. It takes as many exponentials as a scan and next to nothing else:
    what benchmarks/scan.py measures a scan against. Raises ValueError where there are no kernels for so many states."""
    kernels = load_kernels()
    if kernels is None or d_state > kernels.samba_max_states():
        raise ValueError(f"there are no kernels for {d_state} states")
    delta = delta.float().contiguous()
    A = -torch.arange(1.0, d_state + 1).repeat(delta.shape[2], 1)
    sums, shared = torch.empty(delta.shape[0], delta.shape[2]), delta.new_empty(0, 0, 1)
    scan = _scan([delta, delta, A, shared, *[None] * 6, sums, None, None], False, False)
    kernels.samba_exponentials(ctypes.byref(scan), _threads(delta, A), level())
    return sums


class _CpuScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, softplus, reverse, gradient = inputs
        u, A = tensors[0], tensors[2]
        kernels = load_kernels()
        assert kernels is not None
        batch, time, channels = u.shape
        y, last, kept = torch.empty_like(u), u.new_empty(batch, channels, A.shape[1]), None
        if gradient:
            kept = u.new_empty(batch, -(-time // kernels.samba_chunk()), channels, A.shape[1])
        scan = _scan([*tensors, y, last, kept], softplus, reverse)
        kernels.samba_scan_forward(ctypes.byref(scan), _threads(u, A), level())
        ctx.save_for_backward(*tensors, kept)
        ctx.flags = softplus, reverse
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, lengths, kept = ctx.saved_tensors
        u, _, A, B, C, D, z, bias, initial = tensors
        kernels = load_kernels()
        assert kernels is not None
        threads = _threads(u, A)
        parts = parts_for(len(u), threads)
        batch, _, channels = u.shape
        found = {
            "u": torch.empty_like(u),
            "delta": torch.empty_like(u),
            "z": None if z is None else torch.empty_like(u),
            "B": B.new_zeros(parts, *B.shape),
            "C": C.new_zeros(parts, *C.shape),
            "A": A.new_empty(batch, *A.shape),
            "D": u.new_empty(batch, channels),
            "bias": u.new_empty(batch, channels),
            "initial": A.new_empty(batch, *A.shape),
        }
        given = {"y": dy.contiguous(), "last": dlast.contiguous()}
        gradients = _Gradients(*(pointer((given | found)[name]) for name in _GRADIENTS))
        scan = _scan([*tensors, lengths, None, None, kept], *ctx.flags)
        kernels.samba_scan_backward(
            ctypes.byref(scan), ctypes.byref(gradients), ctypes.c_int64(parts), threads, level()
        )
        summed = {name: tensor.sum(0) for name, tensor in found.items() if name in ("A", "B", "C", "D", "bias")}
        return (
            found["u"],
            found["delta"],
            summed["A"],
            summed["B"],
            summed["C"],
            None if D is None else summed["D"],
            found["z"],
            None if bias is None else summed["bias"],
            None if initial is None else found["initial"],
            None,
            None,
            None,
            None,
        )


def _scan(tensors: Sequence[Tensor | None], softplus: bool, reverse: bool) -> _Scan:
    u, A, B, kept = tensors[0], tensors[2], tensors[3], tensors[-1]
    assert u is not None and A is not None and B is not None
    chunks = 0 if kept is None else kept.shape[1]
    return _Scan(*map(pointer, tensors), *u.shape, B.shape[2], chunks, A.shape[1], softplus, reverse)


def _threads(u: Tensor, A: Tensor) -> int:
    return threads_for(u.numel() * A.shape[1], 1 << 18)
