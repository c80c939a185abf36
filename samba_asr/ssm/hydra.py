"""Hydra: one mixer that hears both directions, a quasiseparable matrix (arXiv 2407.09941).

A frame hears those before it by one scan and those after it by another, over the same x with one step bias and one
decay a head; itself it hears by a factor of its own. So y = shift(scan(x)) + shift back(scan back(x)) + (D + x W) x:
both scans come one frame late, or the diagonal would be counted twice.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from samba_asr.config import MixerConfig
from samba_asr.ssm.conv import causal_conv1d
from samba_asr.ssm.cpu_linear import Linear
from samba_asr.ssm.mixer import (
    GatedRMSNorm,
    MixerState,
    check_input,
    decay_rates,
    heads_and_groups,
    initial_delta_bias,
    zero_state,
)
from samba_asr.ssm.padding import from_chunks, in_chunks, mask_padding
from samba_asr.ssm.ssd import ssd_scan


def centred_conv1d(x: Tensor, weight: Tensor, bias: Tensor | None, chunk: int | None = None) -> Tensor:
    """Convolve each channel with its own filter, then apply SiLU; a frame sees as many frames before as after it.

    x: (batch, time, channels), 0 on padding; weight: (channels, 1, width), width odd; bias: (channels,). chunk: frames;
    none sees beyond the end of its own chunk. Returns y, shaped like x; its padding may not be 0.
    """
    batch, time, _ = x.shape
    side = weight.shape[2] // 2
    if chunk is None or chunk >= time:
        return causal_conv1d(F.pad(x, (0, 0, 0, side)), weight, bias)[0][:, side:]
    chunks = -(-time // chunk)
    padded = F.pad(x, (0, 0, side, chunks * chunk - time))
    windows = padded.unfold(1, side + chunk, chunk).flatten(0, 1).transpose(1, 2)  # a chunk and what is before it
    y = causal_conv1d(F.pad(windows, (0, 0, 0, side)), weight, bias)[0][:, 2 * side :]
    return from_chunks(y, batch, time)


class HydraState(NamedTuple):
    """What a mixer remembers of the chunks so far."""

    mixer: MixerState
    """conv: (batch, d_conv - 1, channels), the convolution's last inputs; ssm: the forward scan's state, (batch, heads,
    head_dim, d_state)."""
    last: Tensor
    """(batch, 1, heads, head_dim): the forward scan's last output, which the next frame hears."""


class Hydra(nn.Module):
    """Hydra mixer, in place of a :class:`samba_asr.ssm.mixer.BidirectionalMixer`; gate and norm are Mamba-2's.

    Both directions have B, C and step sizes of their own, and share the rest.
    """

    def __init__(self, d_model: int, config: MixerConfig) -> None:
        super().__init__()
        self.d_inner = config.expand * d_model
        self.d_state, self.head_dim, self.chunk_size = config.state_size, config.head_dim, config.chunk_size
        self.heads, self.groups = heads_and_groups(self.d_inner, config)
        self.d_conv_channels = self.d_inner + 4 * self.groups * self.d_state
        self.in_proj = Linear(d_model, self.d_inner + self.d_conv_channels + 2 * self.heads, bias=False)
        width = 2 * config.d_conv - 1
        self.conv1d = nn.Conv1d(self.d_conv_channels, self.d_conv_channels, width, groups=self.d_conv_channels)
        self.dt_bias = nn.Parameter(initial_delta_bias(self.heads))
        self.A_log = nn.Parameter(torch.log(torch.empty(self.heads).uniform_(1, 16)))
        self.D = nn.Parameter(torch.ones(self.heads))
        self.fc_D = Linear(self.d_inner, self.heads, bias=False)
        self.norm = GatedRMSNorm(self.d_inner)
        self.out_proj = Linear(self.d_inner, d_model, bias=False)

    def out_projections(self) -> list[nn.Module]:
        """Return the last projection, in a list as :meth:`BidirectionalMixer.out_projections` does."""
        return [self.out_proj]

    def forward(
        self, x: Tensor, lengths: Tensor | None = None, chunk: int | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """As :meth:`samba_asr.ssm.mixer.BidirectionalMixer.forward`; long inputs are mixed at once. With a chunk the
        convolution ends at the chunk's end, too."""
        check_input(x, lengths, self.in_proj.in_features)
        if chunk is not None and chunk < 1:
            raise ValueError(f"chunk ({chunk}) must be a positive number of frames")
        projected = self.in_proj(mask_padding(x, lengths))
        z, mixed, steps = self._split(projected)
        mixed = centred_conv1d(mixed, self.conv1d.weight, self.conv1d.bias, chunk)
        before, _, _ = self._before(mixed, steps, lengths)
        y = before + self._after(mixed, steps, lengths, chunk)
        return self._gated(y, mixed, z), lengths  # z is 0 on padding, and so is what it gates

    def initial_state(self, batch: int) -> HydraState:
        """Return the state before any frame."""
        weight = self.conv1d.weight
        conv = weight.new_zeros(batch, self.conv1d.kernel_size[0] // 2, self.d_conv_channels)
        ssm = zero_state(self.A_log, batch, self.heads, self.head_dim, self.d_state)
        return HydraState(MixerState(conv, ssm), weight.new_zeros(batch, 1, self.heads, self.head_dim))

    def advance(self, x: Tensor, state: HydraState, ahead: int = 0) -> tuple[Tensor, HydraState]:
        """As :meth:`samba_asr.ssm.mixer.BidirectionalMixer.advance`."""
        z, mixed, steps = self._split(self.in_proj(x))
        side, size = state.mixer.conv.shape[1], x.shape[1] - ahead
        heard = torch.cat([state.mixer.conv, mixed], 1)
        mixed = centred_conv1d(heard, self.conv1d.weight, self.conv1d.bias)[:, side:]
        before, ssm, last = self._before(mixed[:, :size], steps[:, :size], None, state)
        after = HydraState(MixerState(heard[:, size : size + side].clone(), ssm), last)
        if ahead:
            before = torch.cat([before, self._before(mixed[:, size:], steps[:, size:], None, after)[0]], 1)
        return self._gated(before + self._after(mixed, steps, None, None), mixed, z), after

    def _split(self, projected: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z, mixed, steps = projected.split([self.d_inner, self.d_conv_channels, 2 * self.heads], -1)
        return z, mixed, steps

    def _gated(self, y: Tensor, mixed: Tensor, z: Tensor) -> Tensor:
        """Add what each frame hears of itself to what it hears of others, (batch, time, heads, head_dim); gate it."""
        own = mixed[..., : self.d_inner]
        factor = self.fc_D(own) + self.D.to(own.dtype)
        y = y + own.unflatten(-1, (self.heads, self.head_dim)) * factor.unsqueeze(-1)
        gated: Tensor = self.out_proj(self.norm(y.flatten(-2), z))
        return gated

    def _before(
        self, mixed: Tensor, steps: Tensor, lengths: Tensor | None, state: HydraState | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return what each frame hears of those before it, (batch, time, heads, head_dim), not masked; the scan's last
        state, and its last output."""
        y, ssm = self._scan(mixed, steps, lengths, reverse=False, ssm=None if state is None else state.mixer.ssm)
        first = y.new_zeros(len(y), 1, *y.shape[2:]) if state is None else state.last
        heard = torch.cat([first, y], 1)
        return heard[:, :-1], ssm, heard[:, -1:].clone()

    def _after(self, mixed: Tensor, steps: Tensor, lengths: Tensor | None, chunk: int | None) -> Tensor:
        """Return what each frame hears of those after it, in its chunk: (batch, time, heads, head_dim)."""
        if chunk is not None:
            (mixed_, own), (steps_, _) = (in_chunks(tensor, lengths, chunk) for tensor in (mixed, steps))
            return from_chunks(self._after(mixed_, steps_, own, None), *mixed.shape[:2])
        y, _ = self._scan(mixed, steps, lengths, reverse=True)
        return F.pad(y, (0, 0, 0, 0, 0, 1))[:, 1:]

    def _scan(
        self, mixed: Tensor, steps: Tensor, lengths: Tensor | None, reverse: bool, ssm: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """mixed: (batch, time, d_conv_channels), x and each direction's B and C; steps: (batch, time, 2 * heads); ssm:
        the state to start from. Returns y, (batch, time, heads, head_dim), and the last state."""
        x, *forwards, B, C = mixed.split([self.d_inner, *[self.groups * self.d_state] * 4], -1)
        if not reverse:
            B, C = forwards
        if self.groups > 1:
            B, C = (tensor.unflatten(-1, (self.groups, self.d_state)) for tensor in (B, C))
        y, ssm = ssd_scan(
            x.unflatten(-1, (self.heads, self.head_dim)),
            steps.chunk(2, -1)[reverse],
            decay_rates(self.A_log),
            B,
            C,
            None,
            self.dt_bias,
            delta_softplus=True,
            lengths=lengths,
            initial_state=ssm,
            return_last_state=True,
            reverse=reverse,
            chunk_size=self.chunk_size,
        )
        return y, ssm
