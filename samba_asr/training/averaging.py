"""Uniform averages of checkpoints."""

from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor


def average_states(states: Iterable[Mapping[str, Tensor]], parameters: Collection[str]) -> dict[str, Tensor]:
    """Return the uniform mean of state dicts, oldest first.

    Floating-point ``parameters`` are summed in float64 and returned in their own type; everything else (buffers,
    integers) comes from the last state. At most two states and the sums are in memory at a time, if ``states`` is lazy.

    Args:
        states: state dicts with the same names and shapes.
        parameters: names of those entries that are averaged.

    Raises:
        ValueError: no state, or states that differ in names or shapes.
    """
    sums: dict[str, Tensor] = {}
    last: Mapping[str, Tensor] = {}
    count = 0
    for state in states:
        if count and {name: value.shape for name, value in state.items()} != {n: v.shape for n, v in last.items()}:
            raise ValueError("checkpoints with different names or shapes cannot be averaged")
        for name in parameters:
            if not state[name].is_floating_point():
                continue
            if count:
                sums[name] += state[name]
            else:
                sums[name] = state[name].to(torch.float64, copy=True)
        last = state
        count += 1
    if not count:
        raise ValueError("there is no checkpoint to average")
    return {name: (sums[name] / count).to(value.dtype) if name in sums else value for name, value in last.items()}
