"""S4D's scan, in which nothing depends on the input: h[t] = exp(dt A) h[t-1] + (exp(dt A) - 1) / A x[t],
y[t] = 2 Re(C h[t]) + D x[t], from arXiv 2206.11893: diagonal complex A, zero-order hold, B = 1 (only its product with C
counts), and a state for each pair of conjugates.

Such a scan is a convolution with one long kernel a channel, and a Fourier transform computes that. So a frame's
rounding errors are those of the loudest frame of its sequence, not of the frames before it.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from samba_asr.config import S4DInit
from samba_asr.ssm.padding import check_lengths, check_shapes, flip_within, mask_padding
from samba_asr.ssm.step_size import recurrence_type


def initial_rates(states: int, init: S4DInit) -> Tensor:
    """Return A of one channel, (states,) complex128, its imaginary part from the lowest frequency up (section 4).

    lin: -1/2 + i pi n. legs: the eigenvalues of HiPPO-LegS's normal part, of 2 states numbers, above the real axis.
    """
    if init == "lin":
        return torch.complex(torch.full((states,), -0.5).double(), math.pi * torch.arange(states).double())
    root = (torch.arange(2 * states).double() + 0.5).sqrt()
    below = torch.outer(root, root).tril(-1)
    hermitian = torch.complex(torch.zeros_like(below), below - below.T)  # -i times the skew-symmetric part
    frequencies = torch.linalg.eigvalsh(hermitian)[states:]
    return torch.complex(torch.full_like(frequencies, -0.5), frequencies)


def s4d_scan(
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    C: Tensor,
    D: Tensor,
    lengths: Tensor | None = None,
    initial_state: Tensor | None = None,
    reverse: bool = False,
) -> tuple[Tensor, Tensor]:
    """Run the scan over a batch of sequences.

    x: (batch, time, channels); dt, D: (channels,), dt positive; A, C: (channels, states) complex, A's real part
    negative; lengths: (batch,) int64; initial_state: (batch, channels, states) complex.

    Padding, ``reverse`` and precision are as in :func:`samba_asr.ssm.scan.selective_scan`. Returns y, shaped like x,
    and the state (batch, channels, states) after the last frame scanned. Raises ValueError for shapes that do not fit.
    """
    _check(x, dt, A, C, D, initial_state)
    batch, time, _ = x.shape
    check_lengths(lengths, batch, time, x.device)
    if not x.numel():
        return x, A.new_zeros(batch, *A.shape) if initial_state is None else initial_state
    with torch.autocast(x.device.type, enabled=False):
        given = mask_padding(x, lengths).to(recurrence_type(x))
        turned = flip_within(given, lengths)
        scanned, latest_first = (turned, given) if reverse else (given, turned)
        log_step, entering = _discretised(dt, A)
        coarse, fine = _powers(log_step, time)
        y = _convolved(scanned, _series(entering * C, coarse, fine)[:, :time])
        state = entering * _moments(latest_first, coarse, fine)
        if initial_state is not None:
            left = C * log_step.exp() * initial_state
            y = y + _series(left, coarse, fine)[..., :time].mT
            frames = torch.full((batch,), time, device=x.device) if lengths is None else lengths
            state = state + (log_step * frames[:, None, None]).exp() * initial_state
        y = y + scanned * D.to(y.dtype)
        y = mask_padding(flip_within(y, lengths) if reverse else y, lengths)
    return y.to(x.dtype), state


def s4d_step(x: Tensor, dt: Tensor, A: Tensor, C: Tensor, D: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
    """Advance one frame: x (batch, channels), state (batch, channels, states) complex. Returns y and the new state."""
    _check(x.unsqueeze(1), dt, A, C, D, state)
    with torch.autocast(x.device.type, enabled=False):
        given = x.to(recurrence_type(x))
        log_step, entering = _discretised(dt, A)
        state = log_step.exp() * state + entering * given.unsqueeze(-1)
        y = 2 * (C * state).sum(-1).real + D.to(given.dtype) * given
    return y.to(x.dtype), state


def _check(x: Tensor, dt: Tensor, A: Tensor, C: Tensor, D: Tensor, initial_state: Tensor | None) -> None:
    if x.dim() != 3:
        raise ValueError(f"x has shape {tuple(x.shape)}, expected (batch, time, channels)")
    batch, _, channels = x.shape
    if A.dim() != 2 or len(A) != channels:
        raise ValueError(f"A has shape {tuple(A.shape)}, expected ({channels}, states)")
    check_shapes(
        {
            "dt": (dt, (channels,)),
            "A": (A, A.shape),
            "C": (C, A.shape),
            "D": (D, (channels,)),
            "initial_state": (initial_state, (batch, *A.shape)),
        },
        x.device,
    )


def _discretised(dt: Tensor, A: Tensor) -> tuple[Tensor, Tensor]:
    """Return by what a frame multiplies the states, as a logarithm, and what it adds to them for x = 1."""
    log_step = dt.unsqueeze(-1) * A
    return log_step, torch.expm1(log_step) / A


def _powers(log_step: Tensor, time: int) -> tuple[Tensor, Tensor]:
    """Return two factors of the Vandermonde matrix: exp(log_step t) for each t < time is coarse[t // size] fine[t %
    size], so that neither it nor a product with it takes time * states numbers. log_step: (channels, states); coarse:
    (channels, blocks, states); fine: (channels, size, states), both complex."""
    size = max(1, math.isqrt(time))
    within = torch.arange(size, device=log_step.device)
    blocks = size * torch.arange(-(-time // size), device=log_step.device)
    return _exp(log_step, blocks), _exp(log_step, within)


def _exp(log_step: Tensor, steps: Tensor) -> Tensor:
    """Return exp(log_step t) for each t of steps: (channels, steps, states). Of complex numbers torch's own takes five
    times as long on a CPU."""
    fading = (log_step.real.unsqueeze(1) * steps.unsqueeze(-1)).exp()
    turned = log_step.imag.unsqueeze(1) * steps.unsqueeze(-1)
    return torch.complex(fading * turned.cos(), fading * turned.sin())


def _series(weights: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
    """Return 2 Re(sum over states of weights * exp(log_step t)) for each t from 0 to time or a little more: (...,
    channels, t); weights: (..., channels, states) complex."""
    left = torch.view_as_real(weights.unsqueeze(-2) * coarse).flatten(-2)
    right = torch.view_as_real(fine.conj().resolve_conj()).flatten(-2)  # Re(ab) = Re a Re b - Im a Im b
    return 2 * (left @ right.mT).flatten(-2)


def _moments(x: Tensor, coarse: Tensor, fine: Tensor) -> Tensor:
    """Return the sum over t of x[t] exp(log_step t): (batch, channels, states) complex; x: (batch, time, channels)."""
    blocks, size = coarse.shape[1], fine.shape[1]
    padded = F.pad(x, (0, 0, 0, blocks * size - x.shape[1]))
    by_block = padded.unflatten(1, (blocks, size)).permute(0, 3, 1, 2)  # (batch, channels, blocks, size)
    within = torch.view_as_complex((by_block @ torch.view_as_real(fine).flatten(-2)).unflatten(-1, (-1, 2)))
    return (within * coarse).sum(-2)


def _convolved(x: Tensor, kernel: Tensor) -> Tensor:
    """Return the causal convolution of x (batch, time, channels) with kernel (channels, time)."""
    time = x.shape[1]
    size = min(odd << max(0, -(-2 * time // odd) - 1).bit_length() for odd in (1, 3, 5))  # quick to transform
    spectrum = torch.fft.rfft(x, size, dim=1) * torch.fft.rfft(kernel, size, dim=1).T
    y: Tensor = torch.fft.irfft(spectrum, size, dim=1)[:, :time]
    return y
