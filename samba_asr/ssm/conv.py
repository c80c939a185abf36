"""The depthwise causal convolution that stands before each scan."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from samba_asr.ssm.cpu_conv import available, cpu_conv
from samba_asr.ssm.padding import check_lengths, check_shapes, mask_padding


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
    reverse: bool = False,
    backend: Literal["auto", "torch"] = "auto",
) -> tuple[Tensor, Tensor]:
    """Convolve each channel with its own filter, then apply SiLU; a frame sees itself and the width - 1 before it.

    x: (batch, time, channels); weight: (channels, 1, width), as nn.Conv1d stores it; bias: (channels,); lengths:
    (batch,) int64; initial_state: (batch, width - 1, channels), the frames before the first (zeros if None).

    With ``reverse`` a frame sees those after it, up to its sequence's own end. Returns y, shaped like x, and the last
    width - 1 frames seen (in order of time), which start the next call. y's padding may not be 0: mask it, or let a
    scan. backend: auto takes native kernels for float32 and bfloat16 on a CPU; torch never does.

    Raises ValueError for shapes that do not fit.
    """
    _check(x, weight, bias, initial_state)
    batch, time, _ = x.shape
    check_lengths(lengths, batch, time, x.device)
    width = weight.shape[2]
    if backend != "torch" and available(x, width, weight, bias, lengths, initial_state):
        return cpu_conv(x, weight, bias, lengths, initial_state, reverse)
    x = mask_padding(x, lengths)
    if initial_state is None:
        initial_state = x.new_zeros(batch, width - 1, x.shape[2])
    initial_state = initial_state.to(x.dtype)
    if not time:
        return x, initial_state
    if lengths is None:
        lengths = torch.full((batch,), time, dtype=torch.int64, device=x.device)
    ends = (lengths.unsqueeze(1) + torch.arange(width - 1, device=x.device)).unsqueeze(-1).expand_as(initial_state)
    if reverse:
        padded = F.pad(x, (0, 0, 0, width - 1)).scatter(1, ends, initial_state)
        last_state, filters = padded[:, : width - 1], weight.flip(2)
    else:
        padded = torch.cat([initial_state, x], 1)
        last_state, filters = padded.gather(1, ends), weight
    # A Conv2d of height one takes channels-last memory as it is; a depthwise conv1d is ten times slower on a CPU.
    image = padded.transpose(1, 2).unsqueeze(2)  # (batch, channels, 1, time + width - 1)
    bias = None if bias is None else bias.to(x.dtype)
    y = F.conv2d(image, filters.unsqueeze(2).to(x.dtype), bias, groups=x.shape[2]).squeeze(2).transpose(1, 2)
    return F.silu(y), last_state


def causal_conv1d_step(x: Tensor, weight: Tensor, bias: Tensor | None, state: Tensor) -> tuple[Tensor, Tensor]:
    """Advance one frame: x (batch, channels), state (batch, width - 1, channels). Returns y and the new state."""
    _check(x.unsqueeze(1), weight, bias, state)
    window = torch.cat([state.to(x.dtype), x.unsqueeze(1)], 1)
    y = (window * weight.squeeze(1).T.to(x.dtype)).sum(1)
    if bias is not None:
        y = y + bias.to(x.dtype)
    return F.silu(y), window[:, 1:]


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, initial_state: Tensor | None) -> None:
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (batch, time, channels)")
    batch, _, channels = x.shape
    if weight.dim() != 3 or tuple(weight.shape[:2]) != (channels, 1):
        raise ValueError(f"weight has shape {tuple(weight.shape)}, expected ({channels}, 1, width)")
    check_shapes(
        {
            "weight": (weight, weight.shape),
            "bias": (bias, (channels,)),
            "initial_state": (initial_state, (batch, weight.shape[2] - 1, channels)),
        },
        x.device,
    )
