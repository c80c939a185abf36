"""Batches of utterances of similar length, as a function of the seed and the step alone."""

import random
from collections.abc import Iterator, Sequence

_JITTER = 0.1


def epoch_batches(
    durations: Sequence[float], batch_seconds: float, seed: int, epoch: int, short_first: bool = False
) -> list[list[int]]:
    """Split one epoch into batches; every utterance is in exactly one.

    Utterances are sorted by length with some jitter, so that neighbours change from epoch to epoch, cut into batches
    whose padded length (longest times count) is at most ``batch_seconds`` (an utterance that is longer by itself makes
    a batch by itself), and the batches shuffled.

    Args:
        durations: seconds of each utterance.
        batch_seconds: cap on the seconds of a batch, padding included.
        seed: of the run.
        epoch: from 0.
        short_first: leave the batches sorted from short to long.
    """
    rng = random.Random(f"batches {seed} {epoch}")
    keys = [duration * rng.uniform(1 - _JITTER, 1 + _JITTER) for duration in durations]
    batches: list[list[int]] = []
    longest = 0.0
    for index in sorted(range(len(durations)), key=keys.__getitem__):
        longest = max(longest, durations[index])
        if not batches or longest * (len(batches[-1]) + 1) > batch_seconds:
            batches.append([])
            longest = durations[index]
        batches[-1].append(index)
    if not short_first:
        rng.shuffle(batches)
    return batches


class BatchSequence:
    """The endless sequence of a run's batches: a batch sampler whose items are (epoch, utterance) pairs.

    It has no length, so a loader over it never ends. Iterating it again starts at ``start_step`` again.
    """

    def __init__(
        self,
        durations: Sequence[float],
        batch_seconds: float,
        seed: int,
        *,
        start_step: int = 0,
        curriculum: bool = False,
    ) -> None:
        if not durations:
            raise ValueError("there is no utterance to make batches of")
        self.durations = durations
        self.batch_seconds = batch_seconds
        self.seed = seed
        self.start_step = start_step
        self.curriculum = curriculum

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        to_skip = self.start_step
        epoch = 0
        while True:
            short_first = self.curriculum and epoch == 0
            batches = epoch_batches(self.durations, self.batch_seconds, self.seed, epoch, short_first)
            for batch in batches[to_skip:]:
                yield [(epoch, index) for index in batch]
            to_skip = max(0, to_skip - len(batches))
            epoch += 1


def dev_batches(durations: Sequence[float], batch_seconds: float) -> list[list[tuple[int, int]]]:
    """Split utterances into batches in order of length, always the same ones; items are (0, utterance) pairs."""
    batches: list[list[tuple[int, int]]] = []
    for index in sorted(range(len(durations)), key=durations.__getitem__):
        if not batches or durations[index] * (len(batches[-1]) + 1) > batch_seconds:
            batches.append([])
        batches[-1].append((0, index))
    return batches
