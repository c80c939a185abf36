"""The selective scan's ``torch`` backend: plain PyTorch on any device, chunk after chunk in the same memory.

A chunk's exponentials, products and sums are a few large operations; only the recurrence itself goes from frame to
frame, in place. The backward pass is a recurrence the other way round. It keeps one state a chunk and computes the
others again. Within a chunk channels come last, so that every loop over memory is a long one.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from samba_asr.ssm.native.calls import gradient_wanted

CHUNK, GPU_CHUNK = 16, 64
"""Frames whose states are in hand at once, on a CPU and elsewhere."""
IN_CACHE = 1 << 13
"""States of one frame that go through a chunk together on a CPU, for each thread, whose cache holds four tensors of a
chunk of them."""
FEW = 2
"""Frames for which it does not pay to turn a state round, with its channels last, and back again."""


def torch_scan(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, reverse: bool
) -> tuple[Tensor, Tensor]:
    """As :func:`samba_asr.ssm.scan.selective_scan`, whose checks it relies on, without D, z and lengths: u, delta
    (batch, time, groups, channels); A (groups, channels, state); B, C (batch, time, groups, state); state (batch,
    groups, channels, state), all of one type. Returns y, shaped like u, and the last state."""
    inputs = (u, delta, A, B, C, state)
    if not u.shape[1]:
        return torch.zeros_like(u), state
    if u.shape[1] <= FEW:
        return _differentiable(inputs, reverse)
    if gradient_wanted(*inputs):
        result: tuple[Tensor, Tensor] = _TorchScan.apply(*inputs, reverse)  # type: ignore[no-untyped-call]
        return result
    return _forward(inputs, reverse, None)


class _TorchScan(torch.autograd.Function):
    """torch.func, forward-mode derivatives and traces with gradients need the ``reference`` backend."""

    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        *inputs, reverse = arguments
        batch, groups, channels, states = inputs[5].shape
        chunks = -(-inputs[0].shape[1] // _chunk(inputs[0]))
        kept = inputs[5].new_empty(chunks, batch, groups, states, channels)
        y, last = _forward(inputs, reverse, kept)
        ctx.save_for_backward(*inputs, kept)
        ctx.reverse = reverse
        return y, last

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dlast: Tensor) -> tuple[Tensor | None, ...]:
        *inputs, kept = ctx.saved_tensors
        if torch.is_grad_enabled():  # the gradient will itself be differentiated: rare, so slow and simple
            y, last = _differentiable(inputs, ctx.reverse)
            results = [y, last] if last.requires_grad else [y]  # not where C alone has a gradient
            wanted = [tensor for tensor in inputs if tensor.requires_grad]
            found = iter(torch.autograd.grad(results, wanted, [dy, dlast][: len(results)], create_graph=True))
            return *(next(found) if tensor.requires_grad else None for tensor in inputs), None
        with torch.autocast(dy.device.type, enabled=False):
            return *_backward(inputs, ctx.reverse, kept, dy, dlast), None


def _differentiable(inputs: Sequence[Tensor], reverse: bool) -> tuple[Tensor, Tensor]:
    """As :func:`torch_scan`, with all states in memory as they come, and derivatives of any order."""
    u, delta, A, B, C, state = inputs
    decay = torch.exp(delta.unsqueeze(-1) * A)
    drive = (delta * u).unsqueeze(-1) * B.unsqueeze(-2)
    steps, states = list(zip(decay.unbind(1), drive.unbind(1), strict=True)), []
    for decay_t, drive_t in reversed(steps) if reverse else steps:
        state = torch.addcmul(drive_t, decay_t, state)
        states.append(state)
    history = torch.stack(states[::-1] if reverse else states, 1)
    return (history @ C.unsqueeze(-1)).squeeze(-1), state


def _forward(inputs: Sequence[Tensor], reverse: bool, kept: Tensor | None) -> tuple[Tensor, Tensor]:
    """kept, if anything, gets the state at the entry of each chunk: (chunks, batch, groups, state, channels)."""
    u, delta, A, B, C, state = inputs
    y, last = torch.empty_like(u), torch.empty_like(state)
    for block in _blocks(state):
        work = _Work(block.by_channel(A), block.by_sequence(state), _chunk(u), reverse)
        chunks = block.chunks(_chunk(u), (u, delta, y), (B, C))
        entry = block.by_sequence(state)
        for i, (u_, delta_, y_, B_, C_) in reversed(chunks) if reverse else chunks:
            if kept is not None:
                block.kept(kept, i).copy_(entry)
            _, _, after = work.advance(delta_, delta_ * u_, B_, entry)
            y_.copy_((C_.unsqueeze(-2) @ after).squeeze(-2))
            entry = after[0 if reverse else -1]
        block.by_sequence(last).copy_(entry)
    return y, last


def _backward(
    inputs: Sequence[Tensor], reverse: bool, kept: Tensor, dy: Tensor, dlast: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of u, delta, A, B, C and state."""
    u, delta, A, B, C, state = inputs
    du, ddelta, dstate = (torch.empty_like(tensor) for tensor in (u, delta, state))
    dA, dB, dC = (torch.zeros_like(tensor) for tensor in (A, B, C))
    for block in _blocks(state):
        work = _Work(block.by_channel(A), block.by_sequence(state), _chunk(u), reverse, backward=True)
        chunks = block.chunks(_chunk(u), (u, delta, dy, du, ddelta), (B, C, dB, dC))
        dh, drates = block.by_sequence(dlast), torch.zeros_like(work.rates)
        for i, (u_, delta_, dy_, du_, ddelta_, B_, C_, dB_, dC_) in chunks if reverse else reversed(chunks):
            x = delta_ * u_
            decay, before, after = work.advance(delta_, x, B_, block.kept(kept, i))
            dstates, spare = work.retreat(dy_, C_, dh)
            dh = decay[-1 if reverse else 0].clone()
            dC_ += torch.mul(after, dy_.unsqueeze(-2), out=spare).sum(-1)
            dB_ += torch.mul(dstates, x.unsqueeze(-2), out=spare).sum(-1)
            dx = (B_.unsqueeze(-2) @ dstates).squeeze(-2)
            du_.copy_(dx * delta_)
            dpower = decay.mul_(before)  # of the exponent, delta A
            ddelta_.copy_(torch.mul(dpower, work.rates, out=spare).sum(-2).addcmul_(dx, u_))
            drates += dpower.mul_(delta_.unsqueeze(-2)).sum((0, 1))
        block.by_sequence(dstate).copy_(dh)
        block.by_channel(dA).add_(drates)
    return du, ddelta, dA, dB, dC, dstate


class _Work:
    """Room for one chunk of a block, and what happens there. Tensors of states: (frames, batch, groups, state,
    channels)."""

    def __init__(self, rates: Tensor, state: Tensor, chunk: int, reverse: bool, backward: bool = False) -> None:
        """rates: (groups, state, channels), A's; state: (batch, groups, state, channels), one like all others."""
        self.rates, self.reverse = rates.contiguous(), reverse
        self.decay, history = state.new_empty(chunk, *state.shape), state.new_empty(chunk + 1, *state.shape)
        self.before, self.after = (history[1:], history[:-1]) if reverse else (history[:-1], history[1:])
        self.frames = list(zip(self.decay.unbind(), self.before.unbind(), self.after.unbind(), strict=True))
        if backward:
            self.dstates, self.spare = torch.empty_like(self.decay), torch.empty_like(self.decay)
            self.dframes = list(zip(self.decay.unbind(), self.dstates.unbind(), strict=True))

    def advance(self, delta: Tensor, x: Tensor, B: Tensor, entry: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """delta, x: (frames, batch, groups, channels), the step and what it adds; B: (frames, batch, groups, state);
        entry: the state at the chunk's entry. Return each frame's decay, the states before and those after it."""
        size = len(delta)
        decay, before, after = self.decay[:size], self.before[:size], self.after[:size]
        before[-1 if self.reverse else 0].copy_(entry)  # first: it may be the last of the states that are written over
        torch.mul(delta.unsqueeze(-2), self.rates, out=decay).exp_()
        torch.mul(x.unsqueeze(-2), B.unsqueeze(-1), out=after)
        frames = self.frames[:size]
        for decay_t, before_t, after_t in reversed(frames) if self.reverse else frames:
            after_t.addcmul_(decay_t, before_t)
        return decay, before, after

    def retreat(self, dy: Tensor, C: Tensor, dh: Tensor) -> tuple[Tensor, Tensor]:
        """Go back over the frames of the last advance; dh: the gradient of the state at the chunk's exit. Return the
        gradients of the states after each frame, and room for a tensor of states. Decays are multiplied by them: the
        gradients of the states before each frame, but for what comes through its own y."""
        dstates = self.dstates[: len(dy)]
        torch.mul(dy.unsqueeze(-2), C.unsqueeze(-1), out=dstates)
        frames = self.dframes[: len(dy)]
        for decay_t, dstate_t in frames if self.reverse else reversed(frames):
            dh = decay_t.mul_(dstate_t.add_(dh))
        return dstates, self.spare[: len(dy)]


@dataclass(frozen=True)
class _Block:
    """Sequences, groups and channels that go through the chunks together. All that it returns are views."""

    sequences: slice
    groups: slice
    channels: slice

    def chunks(
        self, size: int, of_channels: Sequence[Tensor], of_states: Sequence[Tensor]
    ) -> list[tuple[int, tuple[Tensor, ...]]]:
        """Return the number of each chunk and its part of tensors (batch, time, groups, channels or state), as (frames,
        batch, groups, channels or state)."""
        mine = [tensor[self.sequences, :, self.groups, self.channels] for tensor in of_channels]
        mine += [tensor[self.sequences, :, self.groups] for tensor in of_states]
        return list(enumerate(zip(*(tensor.transpose(0, 1).split(size) for tensor in mine), strict=True)))

    def by_channel(self, tensor: Tensor) -> Tensor:
        """(groups, channels, state) to (groups, state, channels)."""
        return tensor[self.groups, self.channels].transpose(-1, -2)

    def by_sequence(self, tensor: Tensor) -> Tensor:
        """(batch, groups, channels, state) to (batch, groups, state, channels)."""
        return tensor[self.sequences, self.groups, self.channels].transpose(-1, -2)

    def kept(self, tensor: Tensor, chunk: int) -> Tensor:
        """A chunk's of (chunks, batch, groups, state, channels)."""
        return tensor[chunk, self.sequences, self.groups, :, self.channels]


def _blocks(state: Tensor) -> list[_Block]:
    """Return what all sequences, groups and channels of a state (batch, groups, channels, state) are cut into."""
    batch, groups, channels, states = state.shape
    on_cpu, in_caches = state.device.type == "cpu", IN_CACHE * torch.get_num_threads()
    room = in_caches // max(1, states) if on_cpu else batch * groups * channels
    cuts = (
        _cuts(batch, room // max(1, groups * channels)),
        _cuts(groups, room // max(1, channels)),
        _cuts(channels, room),
    )
    return list(itertools.starmap(_Block, itertools.product(*cuts)))


def _cuts(size: int, most: int) -> list[slice]:
    """Cut a dimension into as few parts as may be, of nearly equal sizes."""
    part = -(-size // max(1, -(-size // max(1, most))))
    return [slice(start, start + part) for start in range(0, size, max(1, part))]


def _chunk(u: Tensor) -> int:
    return min(CHUNK if u.device.type == "cpu" else GPU_CHUNK, u.shape[1])
