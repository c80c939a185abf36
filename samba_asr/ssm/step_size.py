"""What both scans do before their recurrence: its precision, and the step sizes that it takes."""

import torch
import torch.nn.functional as F
from torch import Tensor

from samba_asr.ssm.padding import mask_padding


def recurrence_type(x: Tensor) -> torch.dtype:
    """Return the type that the recurrence runs in: float64 for float64 input, else float32."""
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def step_size(delta: Tensor, bias: Tensor | None, softplus: bool, lengths: Tensor | None = None) -> Tensor:
    """Return the recurrence's step sizes, 0 on padding, which leaves the state as it is.

    delta: (batch, time, ...), or (batch, ...) for one frame, in the recurrence's type; bias: its last dimension's.
    """
    step = mask_padding(delta, lengths)
    if bias is not None:
        step = step + bias.to(step.dtype)
    if softplus:
        step = F.softplus(step)
    return mask_padding(step, lengths)  # again: softplus(0 + bias) is not 0
