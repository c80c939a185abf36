"""The causal convolution's native kernels, forward and backward."""

import ctypes
from typing import Any

import torch
from torch import Tensor

from samba_asr.ssm.native import load_kernels
from samba_asr.ssm.native.calls import gradient_wanted, level, on_cpu, pointer, threads_for


class _Conv(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "weight", "bias", "initial", "lengths", "y", "last")),
        *((name, ctypes.c_int64) for name in ("batch", "time", "channels")),
        *((name, ctypes.c_int) for name in ("width", "reverse", "bfloat16")),
    ]


class _Gradients(ctypes.Structure):
    _fields_ = [(name, ctypes.c_void_p) for name in ("y", "last", "x", "weight", "bias", "initial")]


def available(x: Tensor, width: int, *others: Tensor | None) -> bool:
    """Return whether the kernels can do this convolution: float32 or bfloat16 on a CPU, and they could be built."""
    if not on_cpu(x, *others) or x.dtype not in (torch.float32, torch.bfloat16):
        return False
    kernels = load_kernels()
    return kernels is not None and width <= kernels.samba_max_width()


def cpu_conv(
    x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Tensor | None, initial: Tensor | None, reverse: bool
) -> tuple[Tensor, Tensor]:
    """As :func:`samba_asr.ssm.conv.causal_conv1d`, whose checks it relies on; y's padding is 0."""
    with torch.autocast("cpu", enabled=False):
        inputs = (
            x.contiguous(),
            weight.float().contiguous(),
            None if bias is None else bias.float().contiguous(),
            None if initial is None else initial.float().contiguous(),
            None if lengths is None else lengths.to(torch.int64).contiguous(),
        )
        run = _CpuConv.apply if gradient_wanted(*inputs) else _forward  # a chunk of a stream is short: this counts
        y, last = run(*inputs, reverse)
        return y, last.to(x.dtype)


def _forward(*inputs: Any) -> tuple[Tensor, Tensor]:
    x, weight, *_, reverse = inputs
    kernels = load_kernels()
    assert kernels is not None
    y = torch.empty_like(x)
    last = weight.new_empty(x.shape[0], weight.shape[2] - 1, x.shape[2])
    conv = _conv(inputs[:5], y, last, reverse)
    kernels.samba_conv_forward(ctypes.byref(conv), threads_for(x.numel(), 1 << 17), level())
    return y, last


class _CpuConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*inputs[:5])
        ctx.reverse = inputs[5]
        return _forward(*inputs)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, initial, _ = ctx.saved_tensors
        kernels = load_kernels()
        assert kernels is not None
        dy, dlast = dy.contiguous(), dlast.contiguous()
        dx = torch.empty_like(x)
        dweight, dbias = weight.new_empty(len(x), *weight.shape), weight.new_empty(len(x), len(weight))
        dinitial = torch.empty_like(dlast)
        gradients = _Gradients(*map(pointer, (dy, dlast, dx, dweight, dbias, dinitial)))
        conv = _conv(ctx.saved_tensors, None, None, ctx.reverse)
        kernels.samba_conv_backward(
            ctypes.byref(conv), ctypes.byref(gradients), threads_for(x.numel(), 1 << 17), level()
        )
        return (
            dx,
            dweight.sum(0),
            None if bias is None else dbias.sum(0),
            None if initial is None else dinitial,
            None,
            None,
        )


def _conv(inputs: Any, y: Tensor | None, last: Tensor | None, reverse: bool) -> _Conv:
    x, weight = inputs[:2]
    return _Conv(*map(pointer, (*inputs, y, last)), *x.shape, weight.shape[2], reverse, x.dtype == torch.bfloat16)
