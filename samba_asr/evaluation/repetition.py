"""Runs of words said over and over: what a decoder that has lost the recording writes."""

from collections.abc import Sequence

Run = tuple[str, ...]


def repeated_runs(words: Sequence[str], longest: int = 8, times: int = 4) -> list[Run]:
    """Return the runs of 1 to ``longest`` words that stand ``times`` in a row or more, shortest first.

    Each once: "a a a a" is the run "a", not "a a"; "a b a b a b a b a" is "a b", not also "b a".
    """
    if longest < 1 or times < 2:
        raise ValueError(f"longest ({longest}) must be at least 1 and times ({times}) at least 2")
    found: dict[Run, Run] = {}
    for size in range(1, longest + 1):
        for start in range(len(words) - size * times + 1):
            run = tuple(words[start : start + size])
            if tuple(words[start : start + size * times]) == run * times and not _repeats_itself(run):
                found.setdefault(_first_rotation(run), run)
    return list(found.values())


def invented_runs(reference: str, hypothesis: str, longest: int = 8, times: int = 4) -> list[Run]:
    """Return the hypothesis's repeated runs that the reference does not repeat; texts are split at white space."""
    said = {_first_rotation(run) for run in repeated_runs(reference.split(), longest, times)}
    return [run for run in repeated_runs(hypothesis.split(), longest, times) if _first_rotation(run) not in said]


def _repeats_itself(run: Run) -> bool:
    return any(run == run[:size] * (len(run) // size) for size in range(1, len(run)))


def _first_rotation(run: Run) -> Run:
    return min(run[i:] + run[:i] for i in range(len(run)))
