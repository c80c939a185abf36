"""Texts of several recordings in one scorer's state: what their searches ask for at the same time is one step."""

from collections.abc import Generator, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from samba_asr.decoding.scorers import Reorderable, TokenScorer
from samba_asr.ssm.mixer import Move

Result = TypeVar("Result")


class Asked(NamedTuple):
    """What comes after a token?"""

    token: int
    source: int
    """Place in the pool of the text that it follows."""
    target: int
    """Place in the pool of the text with it, from :meth:`Pool.take`."""
    listening: int
    """State of the recording where what comes next is expected."""


class Pool:
    """The states of all texts that searches still consider, at places that they take and give back."""

    def __init__(self, scorer: TokenScorer[Any], start: Reorderable, recordings: int, device: torch.device) -> None:
        """start: the empty text of each recording, which keep the first places."""
        self._scorer, self._device = scorer, device
        self._size = 2 * recordings
        self._state = start.reorder(torch.arange(self._size, device=device) % recordings)  # a copy
        self._free = list(range(recordings, self._size))

    def take(self) -> int:
        """Return a place that nobody has."""
        if not self._free:
            indices = torch.arange(2 * self._size, device=self._device) % self._size
            self._state = self._state.reorder(indices)
            self._free += range(self._size, 2 * self._size)
            self._size *= 2
        return self._free.pop()

    def give_back(self, places: Iterable[int]) -> None:
        """Let places go."""
        self._free += places

    def read(self, asked: Sequence[Asked]) -> NDArray[np.float64]:
        """Let the scorer read all that is asked, at once; return what it says of every token, (asked, vocab_size)."""
        tokens, sources, targets, places = torch.tensor(asked, device=self._device).unbind(1)
        scores, self._state = self._scorer.score(self._state, tokens, Move(sources, targets), places)
        result: NDArray[np.float64] = scores.cpu().numpy()
        return result


Search = Generator[list[Asked], NDArray[np.float64], Result]
"""Asks, is sent what the scorer says of every token, (asked, vocab_size), and at last returns what it has found."""


def run_together(searches: Sequence[Search[Result]], pool: Pool) -> list[Result]:
    """Run searches, each till it asks, then answer all of them at once, and so on; return what each has found."""
    found: dict[int, Result] = {}
    asked: dict[int, list[Asked]] = {}

    def go_on(number: int, answer: NDArray[np.float64] | None) -> None:
        try:
            asked[number] = searches[number].send(answer)  # type: ignore[arg-type]  # None starts a generator
        except StopIteration as end:
            found[number] = end.value

    for number in range(len(searches)):
        go_on(number, None)
    while asked:
        numbers = list(asked)
        ends = np.cumsum([len(asked[number]) for number in numbers])[:-1]
        answers = np.split(pool.read([each for number in numbers for each in asked[number]]), ends)
        asked.clear()
        for number, answer in zip(numbers, answers, strict=True):
            go_on(number, answer)
    return [found[number] for number in range(len(searches))]
