"""The selective scan's ``triton`` backend: fused kernels for NVIDIA GPUs, forward and backward.

Where sequences x channels are too few to fill the GPU, time is cut into segments that are scanned side by side: each from
a zero state, for what it passes on; then, in a short pass over segments, what enters each; then each for its outputs.
A segment's whole decay is exp(A x its sum of steps). Where there are enough of them, one pass does it, and every input
byte is read once. The backward pass runs the same way, against the scan's order, from states kept at chunk borders.

``SAMBA_ASR_TRITON=0`` keeps ``auto`` from choosing this backend.
"""

import os
from collections.abc import Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, NamedTuple

import torch
from torch import Tensor

from samba_asr.ssm.native.calls import gradient_wanted

MAX_STATE = 256
TILES = 4
"""Tiles in a chunk. The backward pass holds as many states in registers; the memory that keeps one a chunk falls with it."""
WARPS_PER_CORE = 8
"""Warps that a multiprocessor holds at once, when each thread has all the registers it may have."""


class Shape(NamedTuple):
    """How a program's tile lies in threads; see triton_kernels.py."""

    K: int
    CT: int
    NT: int
    W: int
    NL: int
    CL: int

    @property
    def channels(self) -> int:
        return self.CT * self.W * self.CL


_Tensors = tuple[Tensor | None, ...]
_TYPES = (torch.float32, torch.bfloat16, torch.float16)


@cache
def installed() -> bool:
    """Return whether triton can be imported; it is imported, which takes a moment, only where it is wanted."""
    if find_spec("triton") is None:
        return False
    try:
        import triton  # noqa: F401
    except ImportError:
        return False
    return True


@cache
def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels on the CPU: TRITON_INTERPRET=1 stood in the environment when
    triton was imported."""
    import triton

    from samba_asr.ssm import triton_kernels

    return not isinstance(triton_kernels.scan_kernel, triton.runtime.JITFunction)


def preferred(u: Tensor, d_state: int, *others: Tensor | None) -> bool:
    """Return whether ``auto`` takes this backend: on an NVIDIA GPU of compute capability 8 or more, where it can be used."""
    if u.device.type != "cuda" or torch.version.cuda is None or os.environ.get("SAMBA_ASR_TRITON") == "0":
        return False
    return torch.cuda.get_device_capability(u.device) >= (8, 0) and refusal(u, d_state, *others) is None


def refusal(u: Tensor, d_state: int, *others: Tensor | None) -> str | None:
    """Return why this backend cannot do this scan and what to do instead; None if it can."""
    if u.dtype not in _TYPES:
        return f"takes float32, bfloat16 or float16; u is {u.dtype}; use 'torch'"
    if not 1 <= d_state <= MAX_STATE:
        return f"takes 1 to {MAX_STATE} states a channel; A has {d_state}; use 'torch'"
    if not installed():
        return "needs triton: pip install -e '.[triton]'"
    if u.device.type != "cuda" and not (u.device.type == "cpu" and interpreted()):
        return f"runs on NVIDIA GPUs; u is on {u.device}; use 'auto'"
    elsewhere = {str(tensor.device) for tensor in others if tensor is not None and tensor.device != u.device}
    if elsewhere:
        return f"needs all tensors on one device; u is on {u.device}, others on {', '.join(sorted(elsewhere))}"
    return None


def triton_scan(
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
    Returns y, of u's type, and the last state, float32."""
    if not u.numel():
        state = u.new_zeros(len(u), *A.shape, dtype=torch.float32) if initial_state is None else initial_state.float()
        return torch.zeros_like(u), state
    rows = [None if t is None else t if t.dtype in _TYPES else t.float() for t in (u, delta, B, C, z)]
    small = [None if t is None else t.float().contiguous() for t in (A, D, delta_bias, initial_state)]
    keep = gradient_wanted(*rows, *small)
    result: tuple[Tensor, Tensor] = _TritonScan.apply(  # type: ignore[no-untyped-call]
        *rows, *small, lengths, delta_softplus, reverse, keep
    )
    return result


class _TritonScan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *tensors, lengths, softplus, reverse, keep = inputs
        call = _Call(tensors, lengths, softplus, reverse)
        y, last, kept = call.forward(keep)
        ctx.save_for_backward(*tensors, lengths, kept)
        ctx.flags = softplus, reverse
        return y, last

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> _Tensors:
        *tensors, lengths, kept = ctx.saved_tensors
        gradients = _Call(tensors, lengths, *ctx.flags).backward(kept, dy, dlast)
        given = (gradient if tensor is not None else None for gradient, tensor in zip(gradients, tensors, strict=True))
        return (*given, None, None, None, None)


class _Call:
    """One scan's arguments, as the kernels take them. tensors: u, delta, B, C, z, A, D, bias, initial state."""

    def __init__(self, tensors: Sequence[Tensor | None], lengths: Tensor | None, softplus: bool, reverse: bool) -> None:
        u, delta, B, C, z, A, D, bias, self.initial = tensors
        assert u is not None and delta is not None and B is not None and C is not None and A is not None
        self.u, self.delta, self.B, self.C = (_with_rows(tensor) for tensor in (u, delta, B, C))
        self.z = None if z is None else _with_rows(z)
        self.A = A
        self.batch, self.time, self.channels = u.shape
        self.groups, self.state = B.shape[2:]
        self.per_group = self.channels // self.groups
        self.chunk = TILES * _tile_frames(self.state)
        self.segment = segment_length(self.batch * self.channels, self.time, self.chunk, self.state, u.device)
        self.segments = -(-self.time // self.segment)
        stand_in = self.A  # where a kernel is told that there is nothing to read
        self.options = {
            "A": A,
            "bias": stand_in if bias is None else bias,
            "z": stand_in if self.z is None else self.z,
            "lengths": stand_in if lengths is None else lengths,
            "time": self.time,
            "channels": self.channels,
            "per_group": self.per_group,
            "segment": self.segment,
            "segments": self.segments,
            "STATE": self.state,
            "SOFTPLUS": softplus,
            "REVERSE": reverse,
            "HAS_Z": z is not None,
            "HAS_BIAS": bias is not None,
            "HAS_LENGTHS": lengths is not None,
            **_strides("delta", self.delta),
            **_strides("C", self.C),
            **_strides("z", self.z),
        }
        self.recurrence = {
            "u": self.u,
            "delta": self.delta,
            "B": self.B,
            "C": self.C,
            "D": stand_in if D is None else D,
            "HAS_D": D is not None,
            "CHUNK": self.chunk,
            **_strides("u", self.u),
            **_strides("B", self.B),
        }

    def forward(self, keep: bool) -> tuple[Tensor, Tensor, Tensor | None]:
        """Return y, the last state (batch, channels, state) and, if asked, the state before each chunk."""
        entry, sums = self._borders()
        if self.initial is None:
            entry[:, 0] = 0
        else:
            entry[:, 0] = self.initial.transpose(1, 2)
        y = torch.empty(self.u.shape, dtype=self.u.dtype, device=self.u.device)
        last = entry.new_empty(self.batch, self.state, self.channels)
        chunks = -(-self.time // self.chunk)
        kept = entry.new_empty(self.batch, chunks, self.state, self.channels) if keep else None
        given = {"entry": entry, "sums": sums, "y": y, "last": last, "kept": last if kept is None else kept}
        if self.segments > 1:
            self._launch("scan_kernel", self.segments - 1, **given, **self.recurrence, KEEP=False, ENDS=True)
            self._carry(entry, sums, backwards=False)
        self._launch("scan_kernel", self.segments, **given, **self.recurrence, KEEP=keep, ENDS=False)
        return y, last.transpose(1, 2), kept

    def backward(self, kept: Tensor, dy: Tensor, dlast: Tensor) -> _Tensors:
        """Return the gradients of the tensors that this was made of, whether they were given or not."""
        dy = _with_rows(dy)
        exits, sums = self._borders()
        exits[:, -1] = dlast.transpose(1, 2)
        if self.segments > 1:
            given = {"delta": self.delta, "C": self.C, "exits": exits, "sums": sums}
            self._launch("adjoint_kernel", self.segments - 1, dy=dy, **given, **_strides("dy", dy))
            self._carry(exits, sums, backwards=True)
        by_state = (self.state, self.channels)
        least = min(shape.channels for shape in shapes(self.state, self.per_group))
        shares = (-(-self.per_group // least), *self.B.shape)
        found = {
            **{"d" + name: _like(tensor) for name, tensor in (("u", self.u), ("delta", self.delta))},
            "dz": self.A if self.z is None else _like(self.z),
            "dB": exits.new_empty(shares),
            "dC": exits.new_empty(shares),
            "dA": exits.new_empty(self.batch, self.segments, *by_state),
            "dD": exits.new_empty(self.batch, self.segments, self.channels),
            "dbias": exits.new_empty(self.batch, self.segments, self.channels),
            "dentry": exits.new_empty(self.batch, *by_state),
        }
        sizes = {"batches": self.batch, "groups": self.groups, **_strides("dy", dy)}
        given = {"kept": kept, "exits": exits, "dy": dy}
        shape = self._launch("gradient_kernel", self.segments, **found, **given, **sizes, **self.recurrence)
        blocks = -(-self.per_group // shape.channels)
        return (
            found["du"],
            found["ddelta"],
            found["dB"][:blocks].sum(0).to(self.B.dtype),
            found["dC"][:blocks].sum(0).to(self.C.dtype),
            found["dz"],
            found["dA"].sum((0, 1)).T,
            found["dD"].sum((0, 1)),
            found["dbias"].sum((0, 1)),
            found["dentry"].transpose(1, 2),
        )

    def _borders(self) -> tuple[Tensor, Tensor]:
        """Return room for what enters each segment and for its sum of steps."""
        states = self.A.new_empty(self.batch, self.segments, self.state, self.channels)
        return states, self.A.new_empty(self.batch, self.segments, self.channels)

    def _launch(self, kernel: str, segments: int, **arguments: Any) -> Shape:
        """Run a kernel over all blocks of channels, segments and sequences; return the shape of its tile."""
        tuned = _tuned(kernel, self.state, self.per_group)

        def grid(meta: dict[str, int]) -> tuple[int, int, int]:
            block = meta["CT"] * meta["W"] * meta["CL"]
            return self.groups * -(-self.per_group // block), segments, self.batch

        with torch.cuda.device_of(self.u):
            tuned[grid](**self.options, **arguments)
        return Shape(**tuned.best_config.kwargs)

    def _carry(self, states: Tensor, sums: Tensor, backwards: bool) -> None:
        from samba_asr.ssm.triton_kernels import carry_kernel

        block = 128
        grid = -(-self.state * self.channels // block), self.batch
        with torch.cuda.device_of(self.u):
            carry_kernel[grid](
                self.A, states, sums, self.channels, self.segments, STATE=self.state, BACKWARDS=backwards, BLOCK=block
            )


def segment_length(lanes: int, time: int, chunk: int, d_state: int, device: torch.device) -> int:
    """Return how many frames one program scans: all, or fewer where sequences x channels (lanes) leave the GPU idle.

    Cutting time reads most inputs and takes every exponential twice, so half a GPU at work is enough not to.
    """
    cores = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    shape = shapes(d_state, lanes)[0]
    warps, room = -(-lanes // (shape.CT * shape.CL)), WARPS_PER_CORE * cores
    chunks = -(-time // chunk)
    segments = 1 if 2 * warps >= room else min(-(-room // warps), chunks)
    return chunk * -(-chunks // segments)


def shapes(d_state: int, per_group: int) -> list[Shape]:
    """Return the tiles worth trying for blocks of so many channels, the narrowest first."""
    states = 1 << (d_state - 1).bit_length()
    over_states = min(max(4, states // 16), states)  # lanes of a warp over states: no thread holds more than 16 of them
    held = states // over_states
    wide = 2 if held <= 4 else 1
    found = [
        Shape(_tile_frames(d_state), CT, held, W, over_states, 32 // over_states)
        for CT, W in ((wide, 1), (wide, 2), (wide, 4), (wide, 8), (1, 4))
    ]
    fitting = [shape for shape in found if shape.channels < 2 * per_group]
    return fitting or found[:1]


def _tile_frames(d_state: int) -> int:
    """Return the frames of a tile: 64 values in each thread fill its registers in the backward pass."""
    return 8 if d_state <= 16 else 4


@cache
def _tuned(kernel: str, d_state: int, per_group: int) -> Any:
    """Return a kernel that finds its fastest tile when it first runs; in the interpreter, there is one tile."""
    import triton

    from samba_asr.ssm import triton_kernels

    tiles = shapes(d_state, per_group)[: 1 if interpreted() else None]
    configs = [triton.Config(tile._asdict(), num_warps=tile.W, num_stages=1) for tile in tiles]
    keys = {"scan_kernel": ["KEEP", "ENDS"]}.get(kernel, [])
    return triton.autotune(configs, key=keys)(getattr(triton_kernels, kernel))


def _with_rows(tensor: Tensor) -> Tensor:
    """Return a tensor whose last axis lies together in memory, which is all that the kernels ask for."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _strides(name: str, tensor: Tensor | None) -> dict[str, int]:
    """Return a tensor's steps in memory as a kernel's arguments; of (batch, time, groups, state) three."""
    axes = ("batch", "time") if tensor is None or tensor.dim() == 3 else ("batch", "time", "group")
    return {f"{name}_{axis}": 0 if tensor is None else tensor.stride(i) for i, axis in enumerate(axes)}
