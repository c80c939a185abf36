"""A linear layer that is quick for a few rows, where PyTorch's product on a CPU is not: a decoder's step, a stream's
chunk."""

import ctypes
import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samba_asr.ssm.native import load_kernels
from samba_asr.ssm.native.calls import gradient_wanted, level, pointer

MOST_ROWS = 32
"""Up to here the kernels were measured: twice to three times as quick as PyTorch, at 32 rows still a quarter."""


class _Linear(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_void_p) for n in ("x", "weights", "bias", "y")),
        *((n, ctypes.c_int64) for n in ("rows", "inputs", "outputs")),
        ("float16", ctypes.c_int),
    ]


class _Packed(NamedTuple):
    """A packed copy, and what it is a copy of."""

    weight: Tensor
    place: tuple[int, int, int | None]
    """Its address and version, and the bias's address."""
    columns: Tensor


class Linear(nn.Linear):
    """As torch.nn.Linear. Given a few rows (..., in_features) in float32 on a CPU, in evaluation mode and with no
    gradient wanted, native kernels multiply them with a copy of the weights that is packed for them at first use: in
    float16 where that loses nothing, as with weights that a checkpoint holds so, since to fetch them from memory takes
    longer than to compute."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._packed: _Packed | None = None

    def train(self, mode: bool = True) -> "Linear":
        """As torch.nn.Module's; the packed copy is dropped, since fused optimisers change weights unnoticed."""
        self._packed = None
        return super().train(mode)

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features)."""
        rows = math.prod(x.shape[:-1])
        columns = None if self.training or not 0 < rows <= MOST_ROWS else self._columns(x)
        if columns is None:
            return super().forward(x)
        x = x.contiguous()
        y = x.new_empty(*x.shape[:-1], self.out_features)
        sizes = rows, self.in_features, self.out_features
        linear = _Linear(*map(pointer, (x, columns, self.bias, y)), *sizes, columns.dtype == torch.float16)
        kernels = load_kernels()
        assert kernels is not None
        kernels.samba_linear(ctypes.byref(linear), level())
        return y

    def _columns(self, x: Tensor) -> Tensor | None:
        """Return the weights as kernels.cpp wants them, packed anew where they have changed; None where the kernels
        cannot multiply x with them."""
        weight, bias = self.weight, self.bias
        if x.dtype != torch.float32 or x.device.type != "cpu" or x.shape[-1] != self.in_features:
            return None
        if gradient_wanted(x, weight, bias) or torch.is_autocast_enabled("cpu") or weight.is_inference():
            return None  # a weight born in inference mode has no version
        place, old = (weight.data_ptr(), weight._version, pointer(bias)), self._packed
        if old is None or old.weight is not weight or old.place != place:
            usable = all(
                tensor.dtype == torch.float32 and tensor.device.type == "cpu" and tensor.is_contiguous()
                for tensor in (weight, bias)
                if tensor is not None
            )
            kernels = load_kernels()
            if not usable or kernels is None:
                return None
            old = self._packed = _Packed(weight, place, _pack(weight.detach(), kernels.samba_linear_columns()))
        return old.columns


def _pack(weight: Tensor, columns: int) -> Tensor:
    """Return a matrix (outputs, inputs) as (outputs / columns, inputs, columns), missing outputs 0."""
    weight = _narrow(weight) if _reads_float16() else weight
    padded = F.pad(weight, (0, 0, 0, -len(weight) % columns))
    packed: Tensor = padded.unflatten(0, (-1, columns)).transpose(1, 2).contiguous()
    return packed


def _reads_float16() -> bool:
    """Return whether the CPU has an instruction for it; without, float16 is slower than float32."""
    return level() > 0


def _narrow(weight: Tensor) -> Tensor:
    """Return a matrix in float16 if that changes nothing, as it is otherwise."""
    narrow = weight.half()
    return narrow if bool(narrow.isfinite().all()) and torch.equal(narrow.float(), weight) else weight
