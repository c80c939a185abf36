"""The learning rate over a run."""

import math


def learning_rate_share(step: int, progress: float, *, warmup_steps: int, final_share: float) -> float:
    """Return the learning rate as a share of its peak: a linear warm-up times a cosine.

    Args:
        step: optimiser steps made so far.
        progress: how much of the run is over, 0 to 1 (values outside are clamped).
        warmup_steps: steps over which the factor 0 to 1 rises; the first step already moves.
        final_share: what the cosine falls to.
    """
    warmup = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
    cosine = 0.5 * (1.0 + math.cos(math.pi * min(1.0, max(0.0, progress))))
    return warmup * (final_share + (1.0 - final_share) * cosine)


def run_progress(step: int, max_steps: int, minutes: float, max_minutes: float | None) -> float:
    """Return how much of a run is over, by steps or by the clock, whichever is further."""
    progress = step / max_steps
    return progress if max_minutes is None else max(progress, minutes / max_minutes)
