"""A linear layer that is quick for a few rows, as in a decoder's step, where PyTorch's product on a CPU is not."""

import ctypes
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samba_asr.ssm.native import load_kernels
from samba_asr.ssm.native.calls import gradient_wanted, level, on_cpu, pointer

MOST_ROWS = 16
"""Up to here the kernels were measured, and twice to three times as quick as PyTorch."""


class _Linear(ctypes.Structure):
    _fields_ = [
        *((n, ctypes.c_void_p) for n in ("x", "weights", "bias", "y")),
        *((n, ctypes.c_int64) for n in ("rows", "inputs", "outputs")),
        ("float16", ctypes.c_int),
    ]


class _Packed(NamedTuple):
    """A packed copy, and what it is a copy of."""

    weight: Tensor
    place: tuple[int, int]
    """Its address and version."""
    columns: Tensor


class Linear(nn.Linear):
    """As torch.nn.Linear. Given a few rows (rows, in_features) in float32 on a CPU, in evaluation mode and with no
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
        if not self._few(x):
            return super().forward(x)
        kernels = load_kernels()
        assert kernels is not None
        x, packed = x.contiguous(), self._pack(kernels.samba_linear_columns())
        y = x.new_empty(len(x), self.out_features)
        sizes = len(x), self.in_features, self.out_features
        linear = _Linear(*map(pointer, (x, packed, self.bias, y)), *sizes, packed.dtype == torch.float16)
        kernels.samba_linear(ctypes.byref(linear), level())
        return y

    def _few(self, x: Tensor) -> bool:
        few = not self.training and x.dim() == 2 and 0 < len(x) <= MOST_ROWS and x.shape[1] == self.in_features
        if not few or not on_cpu(x, self.weight) or gradient_wanted(x, self.weight, self.bias):
            return False
        parameters = [self.weight] if self.bias is None else [self.weight, self.bias]
        ready = all(tensor.dtype == torch.float32 and tensor.is_contiguous() for tensor in (x[:0], *parameters))
        known = not self.weight.is_inference()  # such a one has no version
        return ready and known and not torch.is_autocast_enabled("cpu") and load_kernels() is not None

    def _pack(self, columns: int) -> Tensor:
        """Return the weights as kernels.cpp wants them, packed anew where they have changed."""
        place = self.weight.data_ptr(), self.weight._version
        old = self._packed
        if old is None or old.weight is not self.weight or old.place != place:
            weight = self.weight.detach()
            padded = F.pad(_narrow(weight) if _reads_float16() else weight, (0, 0, 0, -self.out_features % columns))
            old = _Packed(self.weight, place, padded.unflatten(0, (-1, columns)).transpose(1, 2).contiguous())
            self._packed = old
        return old.columns


def _reads_float16() -> bool:
    """Return whether the CPU has an instruction for it; without, float16 is slower than float32."""
    return level() > 0


def _narrow(weight: Tensor) -> Tensor:
    """Return a matrix in float16 if that changes nothing, as it is otherwise."""
    narrow = weight.half()
    return narrow if bool(narrow.isfinite().all()) and torch.equal(narrow.float(), weight) else weight
