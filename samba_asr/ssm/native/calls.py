"""What all calls of the kernels have in common."""

from functools import cache

import torch
from torch import Tensor

from samba_asr.ssm.native import load_kernels


@cache
def level() -> int:
    """The widest instruction set that this CPU has: 2 AVX-512, 1 AVX2, 0 other."""
    kernels = load_kernels()
    return kernels.samba_level() if kernels else 0


def threads_for(work: int, least: int) -> int:
    """Return how many threads share work, each with at least ``least`` of it: starting one costs some 20 us."""
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
