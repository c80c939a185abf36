"""Who takes part in scan.py: our backends, a plain loop, mambapy, transformers."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from samba_asr.audio.torchaudio_import import torchaudio_transforms
from samba_asr.ssm.scan import Backend, backends, selective_scan, selective_scan_step

Scan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""u, delta (batch, time, channels), A (channels, state), B, C (batch, time, state) to y (batch, time, channels)."""
Step = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], Any]
"""The same without time, and the state (batch, channels, state)."""


@dataclass(frozen=True)
class Contender:
    """Somebody's scan. ``held``: an estimate of the memory that it needs, going forward and with the backward pass, in
    float32 tensors of (batch, time, channels, state)."""

    name: str
    scan: Scan
    step: Step | None
    held: tuple[float, float]


def plain_loop(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """The scan as one would write it down in PyTorch, but for `unbind`, without which it is several times slower."""
    decay = torch.exp(delta.unsqueeze(-1) * A)
    drive = (delta * u).unsqueeze(-1) * B.unsqueeze(2)
    state, outputs = torch.zeros_like(drive[:, 0]), []
    for decay_t, drive_t, C_t in zip(decay.unbind(1), drive.unbind(1), C.unbind(1), strict=True):
        state = decay_t * state + drive_t
        outputs.append((state @ C_t.unsqueeze(-1)).squeeze(-1))
    return torch.stack(outputs, 1)


def plain_step(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> Tensor:
    """One step of it."""
    state = torch.exp(delta.unsqueeze(-1) * A) * state + (delta * u).unsqueeze(-1) * B.unsqueeze(1)
    return (state @ C.unsqueeze(-1)).squeeze(-1)


def mambapy_scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
    """mambapy's pscan, called as its own Mamba block does."""
    from mambapy.pscan import pscan

    states = pscan(torch.exp(delta.unsqueeze(-1) * A), (delta.unsqueeze(-1) * B.unsqueeze(2)) * u.unsqueeze(-1))
    return (states @ C.unsqueeze(-1)).squeeze(-1)


def transformers_contender() -> Contender:
    """What transformers does without mamba_ssm. Raises ImportError for a release that has no such functions."""
    torchaudio_transforms()  # which imports torchaudio where a plain import, like transformers', would fail
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan, mamba_selective_state_update

    def scan(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor) -> Tensor:
        u, delta, B, C = (tensor.transpose(1, 2) for tensor in (u, delta, B, C))
        y: Tensor = mamba_selective_scan(u, delta, A, B, C).transpose(1, 2)
        return y

    def step(u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor) -> Any:
        return mamba_selective_state_update(state, u, delta, A, B, C)

    return Contender("transformers", scan, step, (4, 9))


def contenders(device: torch.device, wanted: Sequence[str] | None, states: int) -> list[Contender]:
    """Return who can run here with so many states, ours first, or those ``wanted``. Raises ValueError for a name that
    cannot."""
    probe = torch.zeros(1, device=device)
    found = []
    for name in backends(probe, states):
        if name == "reference" and name not in (wanted or ()):
            continue  # its backward pass takes time that grows with the square of the length
        step = partial(selective_scan_step, backend=name)
        held = {"reference": (0.1, 6.0), "torch": (0.1, 0.4)}.get(name, (0.05, 0.25))
        found.append(Contender(name, partial(_ours, name), None if name == "mamba_ssm" else step, held))
    found.append(Contender("plain loop", plain_loop, plain_step, (3, 7)))
    if find_spec("mambapy"):
        found.append(Contender("mambapy", mambapy_scan, None, (6, 14)))
    if find_spec("transformers"):
        try:
            found.append(transformers_contender())
        except ImportError as error:
            print(f"scan.py: transformers is left out: {error}", file=sys.stderr)
    names = [contender.name for contender in found]
    missing = [name for name in wanted or () if name not in names]
    if missing:
        raise ValueError(f"--contenders: {', '.join(missing)} cannot run here; there are: {', '.join(names)}")
    return [contender for contender in found if wanted is None or contender.name in wanted]


def _ours(backend: Backend, *tensors: Tensor) -> Tensor:
    y: Any = selective_scan(*tensors, backend=backend)
    return y
