"""Mamba-2's scan (SSD) beside its matrix products alone: how much of its time is not multiplication.

python benchmarks/ssd.py
python benchmarks/ssd.py --batch 8 --length 400 --dtype bfloat16 --threads 1
python benchmarks/ssd.py --device cuda --dtype bfloat16 --batch 16

The products of one chunk are C Bᵀ, that times the inputs, and those into and out of the state, for every head; with the
backward pass there are three times as many. PyTorch computes them as four batched products, over chunks of 32, 64 and
128 frames; the fastest counts. It may do so with instructions that our kernels have not: AMX's, for bfloat16. With
bfloat16 plain PyTorch runs twice: `torch` multiplies in float32, `half` in bfloat16, as a GPU does fast.
"""

import argparse
import itertools
import sys
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from measuring import Result, add_seconds, add_size, figures, timed
from tqdm import tqdm

from samba_asr.evaluation.arguments import positive_int
from samba_asr.ssm.native import load_kernels
from samba_asr.ssm.ssd import ssd_scan

CHUNKS = (32, 64, 128)


def products(
    batch: int, length: int, heads: int, width: int, states: int, chunk: int, kind: dict[str, Any]
) -> Callable[[], None]:
    """Return what computes the products of a forward pass, of random numbers."""
    chunks = batch * -(-length // chunk)
    C, scores = torch.randn(chunks, chunk, states, **kind), torch.randn(chunks * heads, chunk, chunk, **kind)
    by_head, rows = torch.randn(chunks * heads, chunk, width, **kind), torch.randn(chunks, chunk, heads * width, **kind)
    state = torch.randn(chunks, states, heads * width, **kind)

    def run() -> None:
        torch.bmm(C, C.mT)
        torch.bmm(scores, by_head)
        torch.bmm(C.mT, rows)
        torch.bmm(C, state)

    return run


def scans(
    batch: int, length: int, heads: int, width: int, states: int, kind: dict[str, Any]
) -> dict[str, tuple[Callable[[], Any], int]]:
    """Return, by name, what runs a scan, and how many forward passes' products it holds."""
    tensors = [
        torch.randn(batch, length, heads, width, **kind),
        torch.rand(batch, length, heads, **kind),
        -torch.rand(heads, device=kind["device"]),
        torch.randn(batch, length, states, **kind),
        torch.randn(batch, length, states, **kind),
    ]
    leaves = [tensor.clone().requires_grad_() for tensor in tensors]
    weights = torch.randn(batch, length, heads, width, **kind)

    @torch.no_grad()
    def forward(backend: Any) -> None:
        ssd_scan(*tensors, backend=backend)

    def both(backend: Any) -> None:
        y: Any = ssd_scan(*leaves, backend=backend)
        torch.autograd.grad(y, leaves, weights)

    native = kind["device"].type == "cpu" and load_kernels() is not None
    names = ({"auto": "kernels"} if native else {}) | {"torch": "torch"}
    if kind["dtype"] != torch.float32:
        names["half"] = "half"
    found: dict[str, tuple[Callable[[], Any], int]] = {}
    for backend, name in names.items():
        found[f"{name}, forward"] = partial(forward, backend), 1
        found[f"{name}, forward and backward"] = partial(both, backend), 3
    return found


def measure(sizes: Sequence[int], kind: dict[str, Any], seconds: float) -> tuple[float, dict[str, tuple[float, int]]]:
    """Return the seconds of a forward pass's products and, by name, each scan's and how many of these it holds; all run
    in turn."""
    device = kind["device"]
    alone = {chunk: (products(*sizes, chunk, kind), Result()) for chunk in CHUNKS}
    whole = {name: (run, holds, Result()) for name, (run, holds) in scans(*sizes, kind).items()}
    running = [(run, result) for run, result in alone.values()] + [(run, result) for run, _, result in whole.values()]
    for run, _ in running:
        timed(run, device)  # to warm up
    while running:
        for run, result in running:
            result.seconds.append(timed(run, device))
        running = [(run, result) for run, result in running if not result.enough(seconds)]
    fastest = min(result.median for _, result in alone.values())
    return fastest, {name: (result.median, holds) for name, (_, holds, result) in whole.items()}


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, unit in (
        ("batch", [1, 8], "sequences"),
        ("length", [400, 1_500], "frames"),
        ("heads", [12], "heads"),
        ("width", [64], "channels a head"),
        ("states", [64], "states a channel"),
    ):
        add_size(parser, name, default, unit)
    parser.add_argument("--threads", type=positive_int, default=torch.get_num_threads(), metavar="N", help="of the CPU")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="float32")
    add_seconds(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the table; return the exit status: 0, or 2 for wrong usage."""
    options = parse_arguments(arguments)
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    kind = {"device": torch.device(options.device), "dtype": getattr(torch, options.dtype)}
    grid = list(itertools.product(options.batch, options.length, options.heads, options.width, options.states))
    lines = []
    for sizes in tqdm(grid, unit="size"):
        least, found = measure(sizes, kind, options.seconds)
        if not lines:
            names = ["batch", "frames", "heads", "width", "states", "products, ms", *(f"{name}, ms" for name in found)]
            lines += ["| " + " | ".join(names) + " |", "|" + "---:|" * len(names)]
        cells = [f"{figures(1e3 * spent)} ({spent / (holds * least):.2f}x)" for spent, holds in found.values()]
        lines.append("| " + " | ".join([*map(str, sizes), figures(1e3 * least), *cells]) + " |")
    print("\n".join(lines))
    print(f"\n{options.dtype}, {options.device}, {options.threads} threads; in brackets: times of the products alone.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
