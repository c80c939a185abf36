"""The selective scan's ``mamba_ssm`` backend: the Mamba authors' CUDA kernel, where it is installed.

The kernel takes (batch, channels, time), knows neither lengths nor a direction nor an initial state, and gives its last
state no gradient (mamba_ssm.ops.selective_scan_interface). Lengths and direction are brought about here, by masks and
by turning sequences round; the rest is refused, and the kernel's inputs are all of u's type. A plain pip install of
mamba_ssm leaves the kernel out. Tested around a stand-in of that kernel; no GPU has run it from here.
"""

from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

from samba_asr.ssm.padding import flip_within, mask_padding, valid_mask

MAX_STATE = 256
NO_STEP = -1e4
"""What softplus makes 0 of, in every type."""


@cache
def installed() -> bool:
    """Return whether mamba_ssm and its kernel can be imported: it may be built for another PyTorch."""
    if find_spec("mamba_ssm") is None or find_spec("selective_scan_cuda") is None:
        return False
    try:
        import mamba_ssm.ops.selective_scan_interface  # noqa: F401
    except (ImportError, OSError, RuntimeError):
        return False
    return True


def refusal(u: Tensor, d_state: int, initial_state: Tensor | None, last_state_gradient: bool) -> str | None:
    """Return why this backend cannot do this scan and what to do instead; None if it can."""
    if not installed():
        return "needs mamba_ssm with its kernel, selective_scan_cuda, built for this PyTorch; use 'auto'"
    if u.device.type != "cuda" or u.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"takes float32, bfloat16 or float16 on a GPU; u is {u.dtype} on {u.device}; use 'auto'"
    if not u.numel() or not 1 <= d_state <= MAX_STATE:
        return f"takes 1 to {MAX_STATE} states a channel and some frames; u is {tuple(u.shape)}, states {d_state}"
    if initial_state is not None:
        return "takes no initial_state; use 'auto'"
    if last_state_gradient:
        return "gives its last state no gradient; use 'auto', or torch.no_grad() where none is wanted"
    return None


def mamba_ssm_scan(
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
    reverse: bool,
) -> tuple[Tensor, Tensor]:
    """As :func:`samba_asr.ssm.scan.selective_scan`, whose checks it relies on; B, C: (batch, time, groups, state).
    Returns y, of u's type, and the last state, float32."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    D, delta_bias = (None if tensor is None else tensor.float() for tensor in (D, delta_bias))
    if lengths is not None:
        if not delta_softplus and delta_bias is not None:
            delta, delta_bias = delta.float() + delta_bias, None  # so that padding's steps come to 0
        padding = ~valid_mask(lengths, u.shape[1]).unsqueeze(-1)
        delta = delta.masked_fill(padding, NO_STEP if delta_softplus else 0.0)
        u, B, C = (mask_padding(tensor, lengths) for tensor in (u, B, C))
        z = None if z is None else mask_padding(z, lengths)

    def turned(tensor: Tensor) -> Tensor:
        if not reverse:
            return tensor
        return flip_within(tensor.flatten(2), lengths).reshape(tensor.shape)

    u, delta, B, C = (turned(tensor).to(u.dtype) for tensor in (u, delta, B, C))
    z = None if z is None else turned(z).to(u.dtype).transpose(1, 2)
    B, C = (tensor.permute(0, 2, 3, 1) for tensor in (B, C))  # (batch, groups, state, time)
    y, last = selective_scan_fn(
        u.transpose(1, 2),
        delta.transpose(1, 2),
        A.float(),
        B,
        C,
        D,
        z,
        delta_bias,
        delta_softplus,
        return_last_state=True,
    )
    return turned(y.transpose(1, 2)), last.float()
