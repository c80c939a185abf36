"""What the tests of the scans, the convolution and the mixers share."""

from collections.abc import Callable

import torch
from torch import Tensor

WRONG_LENGTHS = {
    "negative": torch.tensor([-1, 2]),
    "above time": torch.tensor([2, 6]),
    "shares": torch.tensor([0.5, 1.0]),
    "bool": torch.tensor([True, False]),
    "one missing": torch.tensor([3]),
    "two axes": torch.tensor([[3], [2]]),
}
"""Lengths that no batch of 2 sequences of 5 frames has."""


def randn(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


def outcome(function: Callable, inputs: dict) -> dict[str, Tensor]:
    """Return y, state and the gradient of a random weighting of both for every floating-point input.

    The weights cover y's padding too, so nothing that stands there may reach a gradient.
    """
    leaves = {
        name: value.detach().clone().requires_grad_() if torch.is_tensor(value) and value.is_floating_point() else value
        for name, value in inputs.items()
    }
    y, state = function(**leaves)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out.dtype) for out in (y, state)]
    torch.autograd.backward([y, state], weights)
    found = {"y": y.detach(), "state": state.detach()}
    for name, leaf in leaves.items():
        if torch.is_tensor(leaf) and leaf.requires_grad:
            found[f"gradient of {name}"] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
    return found


def with_padding(tensor: Tensor, lengths: Tensor, value: float) -> Tensor:
    """Write value past each sequence's length."""
    tensor = tensor.clone()
    for row, length in enumerate(lengths.tolist()):
        tensor[row, length:] = value
    return tensor


def padding_of(tensor: Tensor, lengths: Tensor) -> Tensor:
    return torch.cat([tensor[row, length:].flatten() for row, length in enumerate(lengths.tolist())])


def on_threads(run: Callable[[], dict[str, Tensor]], counts: tuple[int, ...] = (1, 2, 5)) -> list[dict[str, Tensor]]:
    """Return what a function returns with each number of threads."""
    before, results = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            results.append(run())
    finally:
        torch.set_num_threads(before)
    return results
