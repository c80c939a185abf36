"""Numbers on the command lines of the evaluation and the benchmarks: types for argparse."""

import argparse


def positive_int(text: str) -> int:
    """Read a whole number of at least 1. Raises ArgumentTypeError for a smaller one, ValueError for anything else."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return int(text)


def natural_int(text: str) -> int:
    """Read a whole number of at least 0. Raises as :func:`positive_int`."""
    if int(text) < 0:
        raise argparse.ArgumentTypeError(f"{text} must be at least 0")
    return int(text)


def positive_float(text: str) -> float:
    """Read a number above 0. Raises as :func:`positive_int`."""
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} must be positive")
    return float(text)
