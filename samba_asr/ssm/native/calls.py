"""What all calls of the kernels have in common."""

import os
from functools import cache

import torch
from torch import Tensor

from samba_asr.ssm.native import load_kernels


@cache
def level() -> int:
    """The widest instruction set that this CPU has: 2 AVX-512, 1 AVX2, 0 other; SAMBA_ASR_CPU_LEVEL may ask for less.

    Raises ValueError for another number there.
    """
    kernels = load_kernels()
    widest = kernels.samba_level() if kernels else 0
    most = os.environ.get("SAMBA_ASR_CPU_LEVEL", "2")
    if most not in ("0", "1", "2"):
        raise ValueError(f"SAMBA_ASR_CPU_LEVEL ({most}) must be 2 (AVX-512), 1 (AVX2) or 0 (neither)")
    return min(widest, int(most))


def threads_for(work: int, least: int) -> int:
    """Return how many threads share work, each with at least ``least`` of it: sharing takes some time, too."""
    return max(1, min(torch.get_num_threads(), work // least))


def on_cpu(*tensors: Tensor | None) -> bool:
    """Return whether all of these are where a kernel can read them."""
    return all(tensor is None or tensor.device.type == "cpu" for tensor in tensors)


def gradient_wanted(*tensors: Tensor | None) -> bool:
    """Return whether anything will be differentiated."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def pointer(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()


def parts_for(batch: int, threads: int) -> int:
    """Return in how many ranges of channels the threads share each sequence: in one, where sequences can be shared out
    evenly. As in kernels.cpp."""
    return threads if batch % threads else 1
