"""Time and memory of a call, for the benchmarks beside this file."""

import argparse
import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from samba_asr.evaluation.arguments import positive_float, positive_int


@dataclass
class Result:
    """What was measured of one contender: seconds of each call and peak bytes beyond the inputs; why not, if not."""

    seconds: list[float] = field(default_factory=list)
    peak: int | None = None
    refused: str | None = None

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)

    def enough(self, seconds: float) -> bool:
        """Return whether to stop: after so many seconds and three calls, or one where that takes ten times as long."""
        spent = sum(self.seconds)
        return (spent >= seconds and len(self.seconds) >= 3) or spent >= 10 * seconds or len(self.seconds) >= 300


def timed(call: Callable[[], Any], device: torch.device, clock: Callable[[], float] = time.perf_counter) -> float:
    """Return the seconds that a call takes by a clock, work on a GPU included."""
    _wait(device)
    start = clock()
    call()
    _wait(device)
    return clock() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory(call: Callable[[], Any], device: torch.device) -> tuple[Any, int | None]:
    """Run a call; return its result and the most bytes that it had beyond those in use before; None where the system
    does not tell (it is Linux that lets a process forget its peak)."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        result = call()
        _wait(device)
        return result, torch.cuda.max_memory_allocated(device) - before
    forget = Path("/proc/self/clear_refs")
    if not forget.exists():
        return call(), None
    ctypes.CDLL(None).malloc_trim(0)  # what was freed goes back to the system, to be counted again
    forget.write_text("5")
    before = _resident("VmRSS")
    result = call()
    return result, _resident("VmHWM") - before


def _resident(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name + ":"))


def figures(number: float) -> str:
    """Three figures, no exponent."""
    return f"{number:.0f}" if number >= 100 else f"{number:.3g}"


def add_size(parser: argparse.ArgumentParser, name: str, default: list[int], unit: str) -> None:
    """Add an option that takes one number or several."""
    shown = " ".join(map(str, default))
    parser.add_argument(
        f"--{name}", nargs="+", type=positive_int, default=default, metavar="N", help=f"{unit} ({shown})"
    )


def add_seconds(parser: argparse.ArgumentParser) -> None:
    """Add the option that :meth:`Result.enough` goes by."""
    parser.add_argument(
        "--seconds",
        type=positive_float,
        default=1.0,
        metavar="S",
        help="for each figure, and three calls; ten times as long at most (1)",
    )
