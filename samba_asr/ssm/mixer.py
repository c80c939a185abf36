"""Mamba, Mamba-2 and S4D mixers: a projection, a short convolution (not S4D), a scan, a gate, a projection.

Mambas' parameters keep mamba_ssm's names and shapes, so that weights interchange. All mixers have the same two methods:
``forward`` over whole sequences and ``step`` for one frame, state in and state out.
"""

import math
from collections.abc import Callable
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samba_asr.config import MixerConfig
from samba_asr.ssm import cpu_step
from samba_asr.ssm.conv import causal_conv1d, causal_conv1d_step
from samba_asr.ssm.cpu_linear import Linear
from samba_asr.ssm.padding import check_lengths, check_shapes, from_chunks, in_chunks, mask_padding
from samba_asr.ssm.pieces import joined, spans
from samba_asr.ssm.s4d import initial_rates, s4d_scan, s4d_step
from samba_asr.ssm.scan import selective_scan, selective_scan_step
from samba_asr.ssm.ssd import ssd_scan, ssd_step

DELTA_RANGE = (1e-3, 1e-1)
"""Step sizes at initialisation, log-uniform (Mamba paper, section 3.6; S4D's the same)."""
RATES = ("A_log", "A_real_log", "A_imag")
"""Ends of the names of parameters that say how states fade and turn: they need their precision, and no weight decay."""


class Move(NamedTuple):
    """Which of a pool's sequences a step goes on from, and in whose places it puts what comes of them."""

    sources: Tensor
    """(batch,) int64"""
    targets: Tensor
    """(batch,) int64: none twice, none the source of another."""


class MixerState(NamedTuple):
    """What a mixer remembers of the frames so far."""

    conv: Tensor
    """(batch, d_conv - 1, channels); s4d: (batch, 0, d_inner)"""
    ssm: Tensor
    """mamba: (batch, d_inner, d_state); mamba2: (batch, heads, head_dim, d_state); s4d: (batch, d_inner, d_state / 2,
    2), real and imaginary parts; float32."""

    def reorder(self, indices: Tensor) -> "MixerState":
        """Pick sequences, (new batch,) int64: for beams."""
        # On a CPU indexing takes two to four times as long.
        return MixerState(self.conv.index_select(0, indices), self.ssm.index_select(0, indices))

    def write(self, indices: Tensor, state: "MixerState") -> None:
        """Put the states of a batch in the places of others, (batch,) int64."""
        self.conv[indices] = state.conv.to(self.conv.dtype)
        self.ssm[indices] = state.ssm

    def before(self, move: Move | None) -> "MixerState":
        """Return what a step goes on from."""
        return self if move is None else self.reorder(move.sources)

    def after(self, move: Move | None, state: "MixerState") -> "MixerState":
        """Return what there is after a step that came to ``state``: that, or this pool with it in its place."""
        if move is None:
            return state
        self.write(move.targets, state)
        return self


def _initial_log_delta(size: int) -> Tensor:
    low, high = (math.log(limit) for limit in DELTA_RANGE)
    return torch.rand(size) * (high - low) + low


def initial_delta_bias(size: int) -> Tensor:
    """Return what softplus turns into initial step sizes, (size,)."""
    delta = torch.exp(_initial_log_delta(size))
    return delta + torch.log(-torch.expm1(-delta))  # inverse of softplus


def decay_rates(A_log: Tensor) -> Tensor:
    """Return A, negative, in float32 or better."""
    return -torch.exp(A_log.to(torch.promote_types(A_log.dtype, torch.float32)))


def zero_state(A_log: Tensor, *shape: int) -> Tensor:
    """Return a scan's state before any frame, in float32 or better."""
    return A_log.new_zeros(shape, dtype=torch.promote_types(A_log.dtype, torch.float32))


def check_input(x: Tensor, lengths: Tensor | None, d_model: int) -> None:
    """Raise ValueError unless x is (batch, time, d_model) and lengths fit it."""
    if x.dim() != 3 or x.shape[2] != d_model:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (batch, time, {d_model})")
    check_lengths(lengths, x.shape[0], x.shape[1], x.device)


class Mamba(nn.Module):
    """Mamba mixer (arXiv 2312.00752)."""

    def __init__(self, d_model: int, config: MixerConfig) -> None:
        super().__init__()
        self.d_inner = config.expand * d_model
        self.d_state = config.state_size
        self.dt_rank = config.dt_rank or math.ceil(d_model / 16)
        self.in_proj = Linear(d_model, 2 * self.d_inner, bias=False)
        self.conv1d = nn.Conv1d(self.d_inner, self.d_inner, config.d_conv, groups=self.d_inner)
        self.x_proj = Linear(self.d_inner, self.dt_rank + 2 * self.d_state, bias=False)
        self.dt_proj = nn.Linear(self.dt_rank, self.d_inner)
        self.A_log = nn.Parameter(torch.log(torch.arange(1.0, self.d_state + 1)).repeat(self.d_inner, 1))
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = Linear(self.d_inner, d_model, bias=False)
        with torch.no_grad():
            nn.init.uniform_(self.dt_proj.weight, -(self.dt_rank**-0.5), self.dt_rank**-0.5)
            self.dt_proj.bias.copy_(initial_delta_bias(self.d_inner))

    def initial_state(self, batch: int) -> MixerState:
        """Return the state before any frame."""
        weight = self.conv1d.weight
        conv = weight.new_zeros(batch, self.conv1d.kernel_size[0] - 1, self.d_inner)
        return MixerState(conv, zero_state(self.A_log, batch, self.d_inner, self.d_state))

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: MixerState | None = None, reverse: bool = False
    ) -> tuple[Tensor, MixerState]:
        """x: (batch, time, d_model); lengths: (batch,) int64. Returns y, shaped like x, 0 on padding, and the state
        after each sequence's own last frame (its first, if reverse). Raises ValueError for shapes that do not fit."""
        check_input(x, lengths, self.in_proj.in_features)
        y, last = self.mix(self.in_proj(mask_padding(x, lengths)), lengths, state, reverse)
        return self.out_proj(y), last

    def mix(
        self, projected: Tensor, lengths: Tensor | None, state: MixerState | None, reverse: bool
    ) -> tuple[Tensor, MixerState]:
        """As :meth:`forward`, without the first and the last projection: what in_proj gives, (batch, time, its width),
        0 on padding, to what out_proj takes, (batch, time, d_inner)."""
        conv, ssm = (None, None) if state is None else (state.conv, state.ssm)
        x, z = projected.chunk(2, -1)
        x, conv = causal_conv1d(x, self.conv1d.weight, self.conv1d.bias, lengths, conv, reverse)
        delta, B, C = self._selection(x)
        y, ssm = selective_scan(
            x,
            delta,
            decay_rates(self.A_log),
            B,
            C,
            self.D,
            z,
            self.dt_proj.bias,
            delta_softplus=True,
            lengths=lengths,
            initial_state=ssm,
            return_last_state=True,
            reverse=reverse,
        )
        return y, MixerState(conv, ssm)

    def step(self, x: Tensor, state: MixerState, move: Move | None = None) -> tuple[Tensor, MixerState]:
        """Advance one frame: x (batch, d_model). Returns y (batch, d_model) and the new state; with a move, state is a
        pool of sequences, and is changed."""
        before = state.before(move)
        x, z = self.in_proj(x).chunk(2, -1)
        x, conv = causal_conv1d_step(x, self.conv1d.weight, self.conv1d.bias, before.conv)
        delta, B, C = self._selection(x)
        A = decay_rates(self.A_log)
        y, ssm = selective_scan_step(x, delta, A, B, C, before.ssm, self.D, z, self.dt_proj.bias, True)
        return self.out_proj(y), state.after(move, MixerState(conv, ssm))

    def _selection(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        low_rank, B, C = self.x_proj(x).split([self.dt_rank, self.d_state, self.d_state], -1)
        return F.linear(low_rank, self.dt_proj.weight), B, C


class GatedRMSNorm(nn.Module):
    """RMS norm of x * silu(z), as in Mamba-2."""

    def __init__(self, size: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor, z: Tensor) -> Tensor:
        """x, z: (..., size)."""
        return F.rms_norm(x * F.silu(z), self.weight.shape, self.weight.to(x.dtype), self.eps)


def heads_and_groups(d_inner: int, config: MixerConfig) -> tuple[int, int]:
    """Return how many heads, and groups of B and C, there are. Raises ValueError where they do not divide."""
    if d_inner % config.head_dim:
        raise ValueError(f"head_dim ({config.head_dim}) must divide expand * d_model ({d_inner})")
    heads = d_inner // config.head_dim
    groups = config.groups or heads
    if heads % groups:
        raise ValueError(f"groups ({groups}) must divide the number of heads ({heads})")
    return heads, groups


class Mamba2(nn.Module):
    """Mamba-2 mixer (arXiv 2405.21060)."""

    def __init__(self, d_model: int, config: MixerConfig) -> None:
        super().__init__()
        self.d_inner = config.expand * d_model
        self.d_state, self.head_dim, self.chunk_size = config.state_size, config.head_dim, config.chunk_size
        self.heads, self.groups = heads_and_groups(self.d_inner, config)
        self.d_conv_channels = self.d_inner + 2 * self.groups * self.d_state
        self.in_proj = Linear(d_model, self.d_inner + self.d_conv_channels + self.heads, bias=False)
        self.conv1d = nn.Conv1d(self.d_conv_channels, self.d_conv_channels, config.d_conv, groups=self.d_conv_channels)
        self.dt_bias = nn.Parameter(initial_delta_bias(self.heads))
        self.A_log = nn.Parameter(torch.log(torch.empty(self.heads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.norm = GatedRMSNorm(self.d_inner)
        self.out_proj = Linear(self.d_inner, d_model, bias=False)

    def initial_state(self, batch: int) -> MixerState:
        """Return the state before any frame."""
        weight = self.conv1d.weight
        conv = weight.new_zeros(batch, self.conv1d.kernel_size[0] - 1, self.d_conv_channels)
        return MixerState(conv, zero_state(self.A_log, batch, self.heads, self.head_dim, self.d_state))

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: MixerState | None = None, reverse: bool = False
    ) -> tuple[Tensor, MixerState]:
        """As :meth:`Mamba.forward`."""
        check_input(x, lengths, self.in_proj.in_features)
        y, last = self.mix(self.in_proj(mask_padding(x, lengths)), lengths, state, reverse)
        return self.out_proj(y), last

    def mix(
        self, projected: Tensor, lengths: Tensor | None, state: MixerState | None, reverse: bool
    ) -> tuple[Tensor, MixerState]:
        """As :meth:`Mamba.mix`."""
        conv, ssm = (None, None) if state is None else (state.conv, state.ssm)
        z, mixed, delta = self._split(projected)
        mixed, conv = causal_conv1d(mixed, self.conv1d.weight, self.conv1d.bias, lengths, conv, reverse)
        x, B, C = self._selection(mixed)
        y, ssm = ssd_scan(
            x,
            delta,
            decay_rates(self.A_log),
            B,
            C,
            self.D,
            self.dt_bias,
            delta_softplus=True,
            lengths=lengths,
            initial_state=ssm,
            return_last_state=True,
            reverse=reverse,
            chunk_size=self.chunk_size,
        )
        return self.norm(y.flatten(-2), z), MixerState(conv, ssm)

    def step(self, x: Tensor, state: MixerState, move: Move | None = None) -> tuple[Tensor, MixerState]:
        """As :meth:`Mamba.step`."""
        projected, A = self.in_proj(x), decay_rates(self.A_log)
        learnt = cpu_step.Parameters(
            self.conv1d.weight, self.conv1d.bias, A, self.D, self.dt_bias, self.norm.weight, self.norm.eps
        )
        if cpu_step.available(projected, *state, learnt, self.groups, move is not None):
            y, *after = cpu_step.mamba2_step(projected, *state, learnt, self.groups, move)
            return self.out_proj(y), MixerState(*after)
        before = state.before(move)
        z, mixed, delta = self._split(projected)
        mixed, conv = causal_conv1d_step(mixed, self.conv1d.weight, self.conv1d.bias, before.conv)
        x, B, C = self._selection(mixed)
        y, ssm = ssd_step(x, delta, A, B, C, before.ssm, self.D, self.dt_bias, delta_softplus=True)
        return self.out_proj(self.norm(y.flatten(-2), z)), state.after(move, MixerState(conv, ssm))

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, mixed, delta = projected.split([self.d_inner, self.d_conv_channels, self.heads], -1)
        return z, mixed, delta

    def _selection(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return x (..., heads, head_dim), B and C (..., groups, state), without the groups where there is one."""
        x, B, C = mixed.split([self.d_inner, self.groups * self.d_state, self.groups * self.d_state], -1)
        if self.groups > 1:
            B, C = (tensor.unflatten(-1, (self.groups, self.d_state)) for tensor in (B, C))
        return x.unflatten(-1, (self.heads, self.head_dim)), B, C


class S4D(nn.Module):
    """S4D mixer (arXiv 2206.11893) with Mamba's two projections and gate.

    The paper's own block ends in GELU and a GLU instead. With the gate, kinds differ in their scan alone, as where the
    Mamba paper compares them (section 4.6), and directions can share projections. Its kernel is as long as the input:
    there is no short convolution before it.
    """

    def __init__(self, d_model: int, config: MixerConfig) -> None:
        super().__init__()
        self.d_inner = config.expand * d_model
        A = initial_rates(config.state_size // 2, config.s4d_init)
        self.in_proj = Linear(d_model, 2 * self.d_inner, bias=False)
        self.dt_log = nn.Parameter(_initial_log_delta(self.d_inner))
        self.A_real_log = nn.Parameter(torch.log(-A.real).float().repeat(self.d_inner, 1))
        self.A_imag = nn.Parameter(A.imag.float().repeat(self.d_inner, 1))
        self.C = nn.Parameter(torch.randn(self.d_inner, len(A), 2) * 0.5**0.5)  # complex: of variance 1
        self.D = nn.Parameter(torch.ones(self.d_inner))
        self.out_proj = Linear(self.d_inner, d_model, bias=False)

    def initial_state(self, batch: int) -> MixerState:
        """Return the state before any frame."""
        conv = self.D.new_zeros(batch, 0, self.d_inner)
        return MixerState(conv, zero_state(self.A_imag, batch, *self.C.shape))

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, state: MixerState | None = None, reverse: bool = False
    ) -> tuple[Tensor, MixerState]:
        """As :meth:`Mamba.forward`."""
        check_input(x, lengths, self.in_proj.in_features)
        y, last = self.mix(self.in_proj(mask_padding(x, lengths)), lengths, state, reverse)
        return self.out_proj(y), last

    def mix(
        self, projected: Tensor, lengths: Tensor | None, state: MixerState | None, reverse: bool
    ) -> tuple[Tensor, MixerState]:
        """As :meth:`Mamba.mix`."""
        x, z = projected.chunk(2, -1)
        before = None if state is None else self._complex(state, len(x))  # a kernel for each sequence of its own
        y, ssm = s4d_scan(x, *self._learnt(), lengths, before, reverse)
        return y * F.silu(z), MixerState(self.initial_state(len(x)).conv, torch.view_as_real(ssm))

    def step(self, x: Tensor, state: MixerState, move: Move | None = None) -> tuple[Tensor, MixerState]:
        """As :meth:`Mamba.step`."""
        before = state.before(move)
        x, z = self.in_proj(x).chunk(2, -1)
        y, ssm = s4d_step(x, *self._learnt(), self._complex(before, len(x)))
        after = MixerState(before.conv, torch.view_as_real(ssm))
        return self.out_proj(y * F.silu(z)), state.after(move, after)

    def _learnt(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return dt, A, C and D, in float32 or better."""
        kind = torch.promote_types(self.D.dtype, torch.float32)
        A = torch.complex(decay_rates(self.A_real_log), self.A_imag.to(kind))
        return self.dt_log.to(kind).exp(), A, torch.view_as_complex(self.C.to(kind)), self.D

    def _complex(self, state: MixerState, batch: int) -> Tensor:
        """Return (batch, d_inner, d_state / 2)."""
        for part, sizes in ((state.conv, (0, self.d_inner)), (state.ssm, self.C.shape)):
            check_shapes({"initial_state": (part, (batch, *sizes))}, self.C.device)
        return torch.view_as_complex(state.ssm.contiguous())


Mixer = Mamba | Mamba2 | S4D
State = TypeVar("State")


def build_mixer(d_model: int, config: MixerConfig) -> Mixer:
    """Return the mixer that config.kind names. Raises ValueError for hydra, which hears both directions at once."""
    kinds: dict[str, type[Mixer]] = {"mamba": Mamba, "mamba2": Mamba2, "s4d": S4D}
    if config.kind not in kinds:
        raise ValueError(f"kind ({config.kind!r}) must be one of {', '.join(map(repr, kinds))} for a single direction")
    return kinds[config.kind](d_model, config)


def _in_pieces(mixer: nn.Module, x: Tensor, lengths: Tensor | None, reverse: bool) -> Tensor:
    """Mix x (batch, time, d_model) piece after piece, from the last one if reverse; the state goes on."""
    found, state = [], None
    for start, end in spans(x.shape[1])[:: -1 if reverse else 1]:
        own = None if lengths is None else (lengths - start).clamp(0, end - start)
        y, state = mixer(x[:, start:end], own, state, reverse)
        found.append(y)
    return joined(found[::-1] if reverse else found)


def in_parts(
    scan: Callable[[Tensor, None, State], tuple[Tensor, State]], x: Tensor, state: State, ahead: int
) -> tuple[Tensor, State]:
    """Scan x (batch, time, ...) forwards, and return the state before the last frames, ``ahead``."""
    if not ahead:
        return scan(x, None, state)
    size = x.shape[1] - ahead
    y, state = scan(x[:, :size], None, state)
    return torch.cat([y, scan(x[:, size:], None, state)[0]], 1), state


class BidirectionalMixer(nn.Module):
    """The sum of a mixer that reads forwards and one that reads backwards, with weights of their own.

    shared_projections: in_proj and out_proj are common to both, and applied once.
    """

    def __init__(self, d_model: int, config: MixerConfig, shared_projections: bool = False) -> None:
        super().__init__()
        self.forwards = build_mixer(d_model, config)
        self.backwards = build_mixer(d_model, config)
        self.shared_projections = shared_projections
        if shared_projections:
            del self.backwards.in_proj, self.backwards.out_proj

    def out_projections(self) -> list[nn.Module]:
        """Return the last projection of each direction, or their common one."""
        return [mixer.out_proj for mixer in (self.forwards, self.backwards) if hasattr(mixer, "out_proj")]

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x: (batch, time, d_model); lengths: (batch,) int64. Returns y, shaped like x, 0 on padding, and lengths.

        chunk: frames; the backward mixer starts anew at the end of each chunk, so that no frame hears more of the
        future than its own chunk, as in streaming. None: the whole sequence is one chunk.
        """
        check_input(x, lengths, self.forwards.in_proj.in_features)
        if not self.shared_projections:
            return _in_pieces(self.forwards, x, lengths, False) + self._backwards(x, lengths, chunk), lengths
        x = self.forwards.in_proj(mask_padding(x, lengths))
        y = self.forwards.mix(x, lengths, None, False)[0] + self._backwards(x, lengths, chunk)
        return self.forwards.out_proj(y), lengths

    def initial_state(self, batch: int) -> MixerState:
        """Return the state before any frame."""
        return self.forwards.initial_state(batch)

    def advance(self, x: Tensor, state: MixerState, ahead: int = 0) -> tuple[Tensor, MixerState]:
        """Go on by a chunk: x (batch, frames, d_model), all of them the sequences' own. Returns y, shaped like x, and
        the forward mixer's state after it; chunk after chunk, what :meth:`forward` gives with such chunks.

        ahead: of these frames the last, which only lend an ear to those before them: they come again in the next chunk,
        and the state is the one before them.
        """
        forwards, backwards = self.forwards, self.backwards
        if not self.shared_projections:
            y, state = in_parts(forwards, x, state, ahead)
            return y + backwards(x, None, None, True)[0], state
        x = forwards.in_proj(x)
        y, state = in_parts(lambda part, _, before: forwards.mix(part, None, before, False), x, state, ahead)
        return forwards.out_proj(y + backwards.mix(x, None, None, True)[0]), state

    def _backwards(self, x: Tensor, lengths: Tensor | None, chunk: int | None) -> Tensor:
        if chunk is not None:
            return self._chunked_backwards(x, lengths, chunk)
        if self.shared_projections:
            return self.backwards.mix(x, lengths, None, True)[0]
        return _in_pieces(self.backwards, x, lengths, True)

    def _chunked_backwards(self, x: Tensor, lengths: Tensor | None, chunk: int) -> Tensor:
        return from_chunks(self._backwards(*in_chunks(x, lengths, chunk), None), *x.shape[:2])
