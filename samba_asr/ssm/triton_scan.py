"""The selective scan's ``triton`` backend: fused kernels for NVIDIA GPUs, forward and backward.

Where sequences x channels are too few to fill the GPU, time is cut into segments that are scanned side by side: each
from a zero state, for what it passes on; then, in a short pass over segments, what enters each; then each for its
outputs. A segment's whole decay is exp(A x its sum of steps). Where there are enough of them, one pass does it, and
every input is read once. The backward pass runs the same way, against the scan's order, from states kept at chunk
borders. Nothing is added up in an order that changes from run to run.

So far the kernels have been interpreted and compiled, and never run or timed on a GPU. So ``auto`` does not take them
on trust: before it first does, a short scan and its gradients must come out as PyTorch computes them.
``SAMBA_ASR_TRITON=0`` in the environment does without them.
"""

import os
import sys
from collections.abc import Callable, Sequence
from functools import cache
from importlib.util import find_spec
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from samba_asr.ssm.native.calls import gradient_wanted

MAX_STATE = 256
CHUNK = 16
"""Frames between two states that the forward pass keeps: with 16 states, as many numbers as u has."""
TRUSTED = 1e-3
"""Difference from PyTorch, over the largest value, that a trial may show."""
WARPS_PER_CORE = 8
"""Warps that fill a multiprocessor: each thread of the backward pass has all the registers that it may have."""
INT32 = 2**31 - 1
"""Beyond this many numbers in one sequence, kernels count in 64 bits, which takes them longer."""


class Shape(NamedTuple):
    """How a program's channels and states lie in threads; see triton_kernels.py."""

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
def installed(oldest: tuple[int, int] = (3, 3)) -> bool:
    """Return whether triton can be imported and is no older than the kernels need; this imports it, which takes a
    moment, so it is asked only where triton is wanted."""
    if find_spec("triton") is None:
        return False
    try:
        import triton
    except ImportError:
        return False
    major, minor = triton.__version__.split(".")[:2]
    return (int(major), int(minor)) >= oldest


@cache
def interpreted() -> bool:
    """Return whether Triton's interpreter runs the kernels on the CPU: TRITON_INTERPRET=1 stood in the environment when
    triton was imported."""
    import triton

    from samba_asr.ssm import triton_kernels

    return not isinstance(triton_kernels.scan_kernel, triton.runtime.JITFunction)


def preferred(u: Tensor, d_state: int, scan: Callable[..., Any]) -> bool:
    """Return whether ``auto`` takes this backend: on an NVIDIA GPU of compute capability 8 or more, if it is usable and
    right there, and SAMBA_ASR_TRITON=0 does not forbid it. scan: :func:`samba_asr.ssm.scan.selective_scan`."""
    if u.device.type != "cuda" or torch.version.cuda is None or os.environ.get("SAMBA_ASR_TRITON") == "0":
        return False
    usable = torch.cuda.get_device_capability(u.device) >= (8, 0) and refusal(u, d_state) is None
    return usable and not interpreted() and agrees(u.device, d_state, u.shape[2], scan)


@cache
def agrees(device: torch.device, d_state: int, channels: int, scan: Callable[..., Any]) -> bool:
    """Return whether the kernels compute on a device what PyTorch does: a short scan of so many states and channels and
    its gradients. Tried once; a line on standard error says where they do not, and why."""
    try:
        error = _trial_error(device, d_state, channels, scan)
        problem = None if error <= TRUSTED else f"they are off by {error:.2g} of the largest value"
    except Exception as raised:  # whatever compilers and drivers that nobody has tried come up with
        problem = f"{type(raised).__name__}: {raised}".splitlines()[0]
    if problem is not None:
        print(f"samba-asr: no Triton kernels on {device} ({problem}); PyTorch does their work, slower", file=sys.stderr)
    return problem is None


@torch.inference_mode(False)
@torch.enable_grad()
def _trial_error(device: torch.device, d_state: int, channels: int, scan: Callable[..., Any]) -> float:
    """Return the largest difference between this backend and ``torch`` in float64, over the largest value of each of y
    and the gradients."""
    generator = torch.Generator().manual_seed(0)  # nobody else's numbers change
    by_time, shared = (2, 2 * CHUNK + 3, channels), (2, 2 * CHUNK + 3, d_state)
    shapes = (by_time, by_time, (channels, d_state), shared, shared, (channels,), by_time, (channels,))
    drawn = [torch.randn(shape, generator=generator) for shape in shapes]
    drawn[2] = -drawn[2].exp()
    weights, lengths = torch.randn(by_time, generator=generator), torch.tensor([by_time[1], CHUNK + 1], device=device)

    def outcome(backend: Literal["torch", "triton"], dtype: torch.dtype) -> list[Tensor]:
        leaves = [tensor.to(device, dtype).requires_grad_() for tensor in drawn]
        y = scan(*leaves, delta_softplus=True, lengths=lengths, backend=backend)
        return [y.detach(), *torch.autograd.grad(y, leaves, weights.to(device, dtype))]

    pairs = zip(outcome("triton", torch.float32), outcome("torch", torch.float64), strict=True)
    return max(float((found - expected).abs().max() / expected.abs().max()) for found, expected in pairs)


def refusal(u: Tensor, d_state: int) -> str | None:
    """Return why this backend cannot do this scan and what to do instead; None if it can."""
    if u.dtype not in _TYPES:
        return f"takes float32, bfloat16 or float16; u is {u.dtype}; use 'torch'"
    if not 1 <= d_state <= MAX_STATE:
        return f"takes 1 to {MAX_STATE} states a channel; A has {d_state}; use 'torch'"
    if not installed():
        return "needs triton 3.3 or newer: pip install -e '.[triton]'"
    if u.device.type != "cuda" and not (u.device.type == "cpu" and interpreted()):
        return f"runs on NVIDIA GPUs; u is on {u.device}; use 'auto'"
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
        return u * 0, state  # which a gradient may pass
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
        self.u, self.delta = _with_rows(u), _with_rows(delta)
        self.kinds = B.dtype, C.dtype
        # Small beside u; as float32, since each thread would widen them again.
        self.B, self.C = B.float().contiguous(), C.float().contiguous()
        self.z = None if z is None else _with_rows(z)
        self.A = A
        self.batch, self.time, self.channels = u.shape
        self.groups, self.state = B.shape[2:]
        self.per_group = self.channels // self.groups
        self.segment = segment_length(self.batch * self.channels, self.time, self.state, u.device)
        self.segments = -(-self.time // self.segment)
        stand_in = self.A  # where a kernel is told that there is nothing to read
        self.options = {
            "A": A,
            "bias": stand_in if bias is None else bias,
            "z": stand_in if self.z is None else self.z,
            "lengths": stand_in if lengths is None else lengths,
            "time": self.time,
            "channels": self.channels,
            "groups": self.groups,
            "per_group": self.per_group,
            "segment": self.segment,
            "segments": self.segments,
            "unit": 1,
            "STATE": self.state,
            "SOFTPLUS": softplus,
            "REVERSE": reverse,
            "HAS_Z": z is not None,
            "HAS_BIAS": bias is not None,
            "HAS_LENGTHS": lengths is not None,
            **_strides("delta", self.delta),
            **_strides("z", self.z),
        }
        self.recurrence = {
            "u": self.u,
            "delta": self.delta,
            "B": self.B,
            "C": self.C,
            "D": stand_in if D is None else D,
            "HAS_D": D is not None,
            "CHUNK": CHUNK,
            **_strides("u", self.u),
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
        chunks = -(-self.time // CHUNK)
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
        least = min(shape.channels for shape in shapes("gradient_kernel", self.state, self.per_group))
        most = -(-self.per_group // least)
        found = {
            **{"d" + name: _like(tensor) for name, tensor in (("u", self.u), ("delta", self.delta))},
            "dz": self.A if self.z is None else _like(self.z),
            "dBC": exits.new_empty(2 * most, *self.B.shape),
            "dA": exits.new_empty(self.batch, self.segments, *by_state),
            "dD": exits.new_empty(self.batch, self.segments, self.channels),
            "dbias": exits.new_empty(self.batch, self.segments, self.channels),
            "dentry": exits.new_empty(self.batch, *by_state),
        }
        sizes = {"batches": self.batch, **_strides("dy", dy)}
        given = {"kept": kept, "exits": exits, "dy": dy}
        shape = self._launch("gradient_kernel", self.segments, **found, **given, **sizes, **self.recurrence)
        blocks = -(-self.per_group // shape.channels)
        dB, dC = found["dBC"][: 2 * blocks].unflatten(0, (2, blocks)).sum(1)
        return (
            found["du"],
            found["ddelta"],
            dB.to(self.kinds[0]),
            dC.to(self.kinds[1]),
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

        given: dict[str, Any] = self.options | arguments
        rows = (given[name] for name in given if name.endswith("_time"))
        wide = self.time * max([self.channels, self.groups * self.state, *rows]) > INT32
        # Triton 3.10 no longer makes a product and a sum one instruction by itself. Its interpreter knows no options.
        options = {} if interpreted() else {"enable_fp_fusion": True}
        with torch.cuda.device_of(self.u):
            tuned[grid](**given, WIDE=wide, **options)
        return Shape(**tuned.best_config.kwargs)

    def _carry(self, states: Tensor, sums: Tensor, backwards: bool) -> None:
        from samba_asr.ssm.triton_kernels import carry_kernel

        block = 128
        grid = -(-self.state * self.channels // block), self.batch
        with torch.cuda.device_of(self.u):
            carry_kernel[grid](
                self.A, states, sums, self.channels, self.segments, STATE=self.state, BACKWARDS=backwards, BLOCK=block
            )


def segment_length(lanes: int, time: int, d_state: int, device: torch.device) -> int:
    """Return how many frames one program scans: all, or fewer where sequences x channels (lanes) leave the GPU idle.

    Cutting time reads most inputs and takes every exponential twice, so half a GPU at work is enough not to.
    """
    warps, room = -(-lanes * _padded(d_state) // (8 * 32)), WARPS_PER_CORE * multiprocessors(device)
    chunks = -(-time // CHUNK)
    segments = 1 if 2 * warps >= room else min(-(-room // warps), chunks)
    return CHUNK * -(-chunks // segments)


@cache
def multiprocessors(device: torch.device) -> int:
    """Return how many multiprocessors a GPU has; 1 for the CPU, where the interpreter runs."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def shapes(kernel: str, d_state: int, per_group: int) -> list[Shape]:
    """Return the shapes worth trying for groups of so many channels.

    The more states a thread holds, the fewer threads repeat what there is to do for each channel; but the backward pass
    holds sixteen numbers for each, and its sums over channels cross fewer lanes where more lanes share out the states.
    """
    states = _padded(d_state)
    most = min(states, 8 if kernel == "gradient_kernel" else 16)
    found = []
    for CT, held in ((1, most), (1, most // 2), (2, most // 2)):
        over_states = states // held if held else 33
        found += [Shape(CT, held, W, over_states, 32 // over_states) for W in (1, 2, 4) if over_states <= 32]
    return [shape for shape in found if shape.channels < 2 * per_group] or found[:1]


def _padded(d_state: int) -> int:
    """Return the states that a program holds: a power of two."""
    return 1 << (d_state - 1).bit_length()


@cache
def _tuned(kernel: str, d_state: int, per_group: int) -> Any:
    """Return a kernel that finds its fastest shape when it first runs; in the interpreter, there is one."""
    import triton

    from samba_asr.ssm import triton_kernels

    tried = shapes(kernel, d_state, per_group)[: 1 if interpreted() else None]
    configs = [triton.Config(shape._asdict(), num_warps=shape.W, num_stages=1) for shape in tried]
    keys = ["KEEP", "ENDS"] if kernel == "scan_kernel" else []
    return triton.autotune(configs, key=keys)(getattr(triton_kernels, kernel))


def _with_rows(tensor: Tensor) -> Tensor:
    """Return a tensor whose last axis lies together in memory, which is all that the kernels ask for."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _like(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device=tensor.device)


def _strides(name: str, tensor: Tensor | None) -> dict[str, int]:
    """Return a tensor's steps in memory from sequence to sequence and frame to frame as a kernel's arguments."""
    return {f"{name}_{axis}": 0 if tensor is None else tensor.stride(i) for i, axis in enumerate(("batch", "time"))}
