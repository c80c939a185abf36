"""Pack utterances into the 30 s windows that Whisper hears, and cut windows back into what the student hears.

A teacher's states of an utterance cost the same however short it is, since Whisper pads to 30 s; so utterances share
windows. The student never sees padding: it gets stretches of one or more whole utterances, cut anew at each pass.
"""

import random
from collections.abc import Sequence
from typing import NamedTuple

import torch

from samba_asr.training.whisper.network import WINDOW_SECONDS

STATE_SAMPLES = 320
"""Samples of 16 kHz audio a state of Whisper's encoder: places in a window are multiples of it."""
SAMPLE_RATE = 16_000
"""Whisper's."""
WINDOW_STATES = WINDOW_SECONDS * SAMPLE_RATE // STATE_SAMPLES
"""States of a window."""
GAP_STATES = (5, 50)
"""Fewest and most states of silence after an utterance."""


class Placement(NamedTuple):
    """Where an utterance lies in a window, in states."""

    utterance: int
    start: int
    end: int
    """Its last state and one; the silence after it is not counted."""


class Stretch(NamedTuple):
    """A part of a window, in states."""

    window: int
    start: int
    end: int


def pack_windows(samples: Sequence[int], seed: int) -> list[list[Placement]]:
    """Pack utterances, in random order, into windows with random gaps; every one that fits a window is in one.

    samples: each utterance's length in samples at 16 kHz.
    """
    rng = random.Random(f"windows {seed}")
    order = list(range(len(samples)))
    rng.shuffle(order)
    windows: list[list[Placement]] = []
    start = WINDOW_STATES
    for utterance in order:
        states = -(-samples[utterance] // STATE_SAMPLES)
        if not 0 < states <= WINDOW_STATES:
            continue
        if start + states > WINDOW_STATES:
            windows.append([])
            start = rng.randint(0, min(GAP_STATES[1], WINDOW_STATES - states))
        windows[-1].append(Placement(utterance, start, start + states))
        start += states + rng.randint(*GAP_STATES)
    return windows


def pack_in_order(states: Sequence[int]) -> list[tuple[int, int]]:
    """Return the window and the state in it where each utterance of a batch begins, in order, with random gaps.

    states: of each, at most a window's. Draws from torch's generator.
    """
    gaps = torch.randint(GAP_STATES[0], GAP_STATES[1] + 1, (len(states),)).tolist()
    places: list[tuple[int, int]] = []
    window, start = 0, 0
    for count, gap in zip(states, gaps, strict=True):
        if start + count > WINDOW_STATES:
            window, start = window + 1, 0
        places.append((window, start))
        start += count + gap
    return places


def cut_stretches(
    window: int, placements: Sequence[Placement], rng: random.Random, whole_share: float
) -> list[Stretch]:
    """Cut a window between utterances into stretches; the silences go to either side at random.

    whole_share: probability that a boundary between two utterances is not cut.
    """
    stretches = []
    start = rng.randint(0, placements[0].start)
    for i, placement in enumerate(placements):
        last = i + 1 == len(placements)
        limit = WINDOW_STATES if last else placements[i + 1].start
        if last or rng.random() >= whole_share:
            cut = rng.randint(placement.end, min(limit, placement.end + GAP_STATES[1]))
            stretches.append(Stretch(window, start, cut))
            start = rng.randint(cut, limit)
    return stretches
