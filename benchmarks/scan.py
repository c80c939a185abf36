"""The selective scan: our backends and other people's, side by side: time, peak memory, and how near to the floor.

python benchmarks/scan.py
python benchmarks/scan.py --batch 8 --length 400 --channels 512 --states 16 --threads 1 2

The floor, measured in the same run: our own exponentials alone, one for each frame, channel and state (two with the
backward pass, which computes them again), or reading every input and writing every output once, whichever takes longer.
On a GPU, and without kernels, it is the bytes alone. Next to our backends run a plain
loop in PyTorch and, where they are installed, mambapy's parallel scan, transformers' slow path and mamba_ssm's kernel:
pip install -e '.[benchmarks]'. Whoever needs more memory than --memory sits that size out, whoever is slower than
--patience all larger ones; whoever disagrees with the others stops the run.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from contenders import Contender, contenders
from measuring import Result, add_seconds, add_size, figures, peak_memory, timed
from torch import Tensor
from tqdm import tqdm

from samba_asr.evaluation.arguments import positive_float, positive_int
from samba_asr.ssm.cpu_scan import exponentials
from samba_asr.ssm.native import load_kernels

Pass = Literal["forward", "both", "step"]
CLOCKS = {"wall": time.perf_counter, "processor": time.process_time}
TITLES: dict[Pass, str] = {"forward": "Forward", "both": "Forward and backward", "step": "One step"}


@dataclass(frozen=True)
class Size:
    """Of one problem."""

    batch: int
    length: int
    channels: int
    states: int

    @property
    def numbers(self) -> int:
        """In a (batch, time, channels, state) tensor."""
        return self.batch * self.length * self.channels * self.states

    def bytes_moved(self, which: Pass) -> int:
        """Return what must be read and written in float32: forward u, delta, B, C and y; with the backward pass the
        inputs again, the gradient of y, and those of the inputs; in a step the state, twice."""
        rows, shared = self.batch * self.length * self.channels, self.batch * self.length * self.states
        if which == "step":
            return 4 * 2 * self.batch * self.channels * self.states
        return 4 * (3 * rows + 2 * shared if which == "forward" else 8 * rows + 6 * shared)

    def exponentials(self, which: Pass) -> int:
        """Return how many there are: one for each frame, channel and state, again for the backward pass."""
        if which == "step":
            return self.batch * self.channels * self.states
        return self.numbers * (2 if which == "both" else 1)


def problem(size: Size, device: torch.device, dtype: torch.dtype, gradient: bool) -> list[Tensor]:
    """Return u, delta, A, B and C, of the sizes and with the steps that trained models have."""
    torch.manual_seed(0)
    rows, shared = (size.batch, size.length, size.channels), (size.batch, size.length, size.states)
    made = [
        torch.randn(rows, device=device).to(dtype),
        torch.exp(torch.empty(rows, device=device).uniform_(-7, -2)).to(dtype),
        -torch.arange(1.0, size.states + 1, device=device).repeat(size.channels, 1),
        torch.randn(shared, device=device).to(dtype),
        torch.randn(shared, device=device).to(dtype),
    ]
    return [tensor.requires_grad_(gradient) for tensor in made]


def calls(which: Pass, size: Size, device: torch.device, dtype: torch.dtype) -> Callable[[Contender], Any]:
    """Return what runs one pass of a contender and gives back its result."""
    tensors = problem(size, device, dtype, gradient=which == "both")
    if which == "step":
        u, delta, A, B, C = tensors
        frame = u[:, 0], delta[:, 0], A, B[:, 0], C[:, 0]
        state = torch.randn(size.batch, size.channels, size.states, device=device)

        def step(contender: Contender) -> Any:
            assert contender.step is not None
            with torch.inference_mode():
                result = contender.step(*frame, state.clone())
            return result[0] if isinstance(result, tuple) else result

        return step
    weights = torch.randn(size.batch, size.length, size.channels, device=device).to(dtype)

    def run(contender: Contender) -> Any:
        if which == "forward":
            with torch.inference_mode():
                return contender.scan(*tensors)
        y = contender.scan(*tensors)
        return torch.autograd.grad(y, tensors, weights)

    return run


@dataclass(frozen=True)
class Floor:
    """What this machine can do: exponentials a second (none measured on a GPU), by states, and bytes a second."""

    exponentials: dict[int, float]
    bandwidth: float

    def seconds(self, size: Size, which: Pass) -> float:
        """The least that a scan can take."""
        moving = size.bytes_moved(which) / self.bandwidth
        rate = self.exponentials.get(size.states)
        return max(moving, size.exponentials(which) / rate) if rate else moving


def measured_floor(
    device: torch.device,
    states: Sequence[int],
    clock: Callable[[], float] = time.perf_counter,
    repeats: int = 15,
) -> Floor:
    """Measure the floor with as many threads as PyTorch has now."""
    rates = {}
    for count in states if device.type == "cpu" and load_kernels() is not None else ():
        if count > MOST_STATES:
            continue
        steps = torch.rand(1, 400, 512)  # few enough for a cache
        least = min(timed(lambda n=count, s=steps: exponentials(s, n), device, clock) for _ in range(repeats))  # type: ignore[misc]
        rates[count] = steps.numel() * count / least
    source = torch.ones(1 << 26, device=device)
    target = torch.empty_like(source).fill_(0)
    least = min(timed(lambda: target.copy_(source), device, clock) for _ in range(repeats))
    return Floor(rates, 2 * 4 * source.numel() / least)


Entrant = tuple[Contender, int]
"""With so many threads."""
SLOW = "slow"
MOST_STATES = 256
"""That the kernels hold."""


def compete(
    entrants: Sequence[Entrant],
    which: Pass,
    size: Size,
    before: dict[Size, dict[Entrant, Result]],
    options: argparse.Namespace,
    bar: Any,
) -> dict[Entrant, Result]:
    """Run one pass of one problem: everybody once, for the memory and to warm up, then in turns until everybody's time
    is spent. Raises ValueError where results differ."""
    device, dtype = torch.device(options.device), getattr(torch, options.dtype)
    run = calls(which, size, device, dtype)
    results: dict[Entrant, Result] = {}
    expected = None
    for entrant in entrants:
        contender, threads = entrant
        results[entrant] = result = Result()
        needed = 4 * size.numbers * contender.held[which == "both"]
        smaller = (found[entrant] for other, found in before.items() if other.numbers <= size.numbers)
        if which == "step" and contender.step is None:
            result.refused = "no step"
        elif any(result.refused == SLOW or max(result.seconds, default=0) > options.patience for result in smaller):
            result.refused = SLOW
        elif which != "step" and needed > options.memory * 2**30:
            result.refused = f"{needed / 2**30:.2g} GiB"
        if result.refused:
            bar.update()
            continue
        torch.set_num_threads(threads)
        started = CLOCKS[options.clock]()
        found, result.peak = peak_memory(partial(run, contender), device)
        spent = CLOCKS[options.clock]() - started
        if spent > options.patience:
            result.seconds.append(spent)  # once is enough
        if expected is None:
            expected = found
        difference = max(map(_difference, _parts(found), _parts(expected)))
        if not difference < (1e-3 if dtype == torch.float32 else 0.05):
            raise ValueError(f"{contender.name} differs from the first by {difference:.2g} at {size}")
        del found
        bar.update()
    running = [entrant for entrant in entrants if not results[entrant].refused and not results[entrant].seconds]
    while running:
        for contender, threads in running:
            torch.set_num_threads(threads)
            results[contender, threads].seconds.append(timed(partial(run, contender), device, CLOCKS[options.clock]))
        running = [entrant for entrant in running if not results[entrant].enough(options.seconds)]
    return results


def _parts(result: Any) -> Sequence[Tensor]:
    return [result] if isinstance(result, Tensor) else result


def _difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference, over the largest value."""
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


def tables(
    which: Pass, sizes: dict[Size, dict[Entrant, Result]], entrants: Sequence[Entrant], floors: dict[int, Floor]
) -> Iterator[str]:
    """Yield the Markdown tables of a pass: times with the fraction of the floor's speed, and peak memory."""
    several = len({threads for _, threads in entrants}) > 1
    names = [f"{contender.name}, {threads}" if several else contender.name for contender, threads in entrants]
    head = "| batch | frames | channels | states | " + " | ".join(names) + " |\n|" + "---:|" * (4 + len(names))
    unit, scale = ("µs", 1e6) if which == "step" else ("ms", 1e3)
    rows, memory = [], []
    for size, results in sizes.items():
        cells, peaks = [], []
        for entrant in entrants:
            result = results[entrant]
            if result.refused:
                cells.append(f"- ({result.refused})")
                peaks.append("-")
                continue
            part = floors[entrant[1]].seconds(size, which) / result.median
            cells.append(f"{figures(result.median * scale)} ({figures(100 * part)} %)")
            peaks.append("-" if result.peak is None else figures(result.peak / 2**20))
        start = f"| {size.batch} | {size.length if which != 'step' else 1} | {size.channels} | {size.states} | "
        rows.append(start + " | ".join(cells) + " |")
        memory.append(start + " | ".join(peaks) + " |")
    yield f"{TITLES[which]}, {unit} (of the floor's speed)\n\n{head}\n" + "\n".join(rows)
    if which != "step":
        yield f"{TITLES[which]}, peak memory beyond the inputs, MiB\n\n{head}\n" + "\n".join(memory)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read the command line; exits with status 2 where it is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default, unit in (
        ("batch", [1, 8], "sequences"),
        ("length", [400, 1_500, 15_000], "frames"),
        ("channels", [512, 1_024], "channels"),
        ("states", [16, 64], "states a channel"),
    ):
        add_size(parser, name, default, unit)
    parser.add_argument("--passes", nargs="+", choices=list(TITLES), default=list(TITLES), help="all")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="who runs (all who can)")
    parser.add_argument(
        "--threads", nargs="+", type=positive_int, default=[torch.get_num_threads()], metavar="N", help="CPU threads"
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (cpu)")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32", help="of u (float32)")
    add_seconds(parser)
    parser.add_argument(
        "--patience",
        type=positive_float,
        default=10.0,
        metavar="S",
        help="whoever takes longer is called once, and not at all with larger problems (10)",
    )
    parser.add_argument(
        "--clock",
        choices=list(CLOCKS),
        default="wall",
        help="processor: leaves out what other programs take; for one thread on a busy machine (wall)",
    )
    parser.add_argument("--memory", type=positive_float, default=8.0, metavar="GIB", help="at most (8)")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; return the exit status: 0, 1 where results differ, or 2 for wrong usage."""
    options = parse_arguments(arguments)
    device = torch.device(options.device)
    try:
        entrants = list(itertools.product(contenders(device, options.contenders, max(options.states)), options.threads))
    except (ValueError, RuntimeError) as error:
        print(f"scan.py: error: {error}", file=sys.stderr)
        return 2
    grid = list(itertools.starmap(Size, itertools.product(*(getattr(options, n) for n in Size.__annotations__))))
    floors = {}
    for threads in options.threads:
        torch.set_num_threads(threads)
        floors[threads] = measured_floor(device, options.states, CLOCKS[options.clock])
    for threads, floor in floors.items():
        rates = ", ".join(f"{rate / 1e9:.2f} with {states} states" for states, rate in floor.exponentials.items())
        billions = f"; exponentials a second, in billions: {rates}" if rates else ""
        where = torch.cuda.get_device_name(device) if device.type == "cuda" else f"CPU, {threads} threads"
        print(f"{where}: copies {floor.bandwidth / 1e9:.1f} GB/s, reading and writing{billions}")
    for which in options.passes:
        # A step has no length: only the first stands for it.
        sizes = [size for size in grid if which != "step" or size.length == options.length[0]]
        found: dict[Size, dict[Entrant, Result]] = {}
        with tqdm(total=len(sizes) * len(entrants), unit="run") as bar:
            for size in sizes:
                bar.set_description(f"{which}, {size.batch} x {size.length} x {size.channels} x {size.states}")
                try:
                    found[size] = compete(entrants, which, size, found, options, bar)
                except ValueError as error:
                    print(f"scan.py: error: {error}", file=sys.stderr)
                    return 1
        for table in tables(which, found, entrants, floors):
            print(f"\n{table}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
