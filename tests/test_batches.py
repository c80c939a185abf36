"""Batches across recordings: in order, of like lengths, little held, and one recording's trouble is its own."""

import itertools
import weakref

import numpy as np
import pytest

from samba_asr import batches
from samba_asr.audio.segments import Span
from samba_asr.batches import AHEAD, Batches, Outcome
from samba_asr.transcript import Transcript

LONGEST = 100


class Audio:
    """What stands for a recording: the lengths of its spans, which lie one after another."""

    def __init__(self, name, *lengths):
        self.name, self.lengths = name, lengths

    def __len__(self):
        return sum(self.lengths)


class Machine:
    """Hears "NAME:LENGTH" in each span, and remembers what it was asked."""

    def __init__(self, size, broken=()):
        self.size, self.broken = size, set(broken)
        self.heard, self.open, self.read_so_far = [], weakref.WeakSet(), []

    def read(self, given):
        if given is None:
            raise ValueError("no sound")
        self.read_so_far.append(given.name)
        audio = Audio(given.name, *given.lengths)  # as if decoded: who holds it, holds its samples
        self.open.add(audio)
        ends = list(itertools.accumulate(given.lengths))
        return audio, [Span(end - length, end) for length, end in zip(given.lengths, ends, strict=True)]

    def hear(self, pieces):
        self.heard.append([(audio.name, span.end - span.start) for audio, span in pieces])
        if self.broken & set(self.heard[-1]):
            raise RuntimeError("too much")
        return [Transcript(f"{audio.name}:{span.end - span.start}", 1.0, "m") for audio, span in pieces]

    def join(self, audio, spans, parts):
        return Transcript(" ".join(part.text for part in parts), float(len(audio)), "m")

    def outcomes(self, recordings):
        return Batches(self.read, self.hear, self.join, self.size, LONGEST).outcomes(recordings)

    def results(self, recordings):
        return [getattr(outcome.result, "text", outcome.result) for outcome in self.outcomes(recordings)]


def drawn(random, count):
    """Recordings of no, one or many spans; some of them long."""
    many = random.choice([0, 1, 1, 1, 2, 40], count)
    return [Audio(f"r{i}", *random.integers(1, random.choice([100, 150]), n).tolist()) for i, n in enumerate(many)]


@pytest.mark.parametrize("size", [1, 2, 5, 16])
def test_whatever_the_batches_the_transcripts_are_the_recordings(size):
    random = np.random.default_rng(size)
    recordings = drawn(random, 200)
    machine = Machine(size)
    assert machine.results(recordings) == [" ".join(f"{r.name}:{n}" for n in r.lengths) for r in recordings]
    assert sorted(itertools.chain(*machine.heard)) == sorted((r.name, n) for r in recordings for n in r.lengths)
    assert max(map(len, machine.heard)) == size
    assert all(len(batch) == 1 for batch in machine.heard if max(n for _, n in batch) > LONGEST)
    if size > 1:
        short = [[n for _, n in batch] for batch in machine.heard if max(n for _, n in batch) <= LONGEST]
        assert sum(map(len, short)) > 0.9 * size * len(short)  # nearly full
        assert sum(len(batch) * max(batch) for batch in short) < 1.3 * sum(map(sum, short))  # hardly padded


@pytest.mark.parametrize("size", [1, 2, 5])
def test_few_recordings_and_samples_are_held(size):
    random = np.random.default_rng(size)
    machine = Machine(size)
    ahead = AHEAD * (size - 1) + 1
    done = 0
    for done, _ in enumerate(machine.outcomes(iter(drawn(random, 300))), 1):
        assert len(machine.read_so_far) - done <= ahead
        assert len(machine.open) <= ahead + 1
        held = sorted(map(len, machine.open))
        assert sum(held[:-2]) <= ahead * LONGEST  # but for the first, and the last that was read
    assert done == 300 and not machine.open


def test_a_recording_is_done_before_those_behind_it_are_read():
    machine = Machine(2)
    outcomes = machine.outcomes(Audio(f"r{i}", 50, 50, 50, 50) for i in itertools.count())
    for i in range(20):
        assert next(outcomes).result.text.startswith(f"r{i}:50 ")
        assert len(machine.heard) <= 2 * i + 6 and len(machine.read_so_far) < i + AHEAD


def test_what_is_first_is_in_every_batch():
    machine = Machine(3)
    long = Audio("long", *range(10, 90))
    assert len(machine.results([long, *(Audio(f"s{i}", 50) for i in range(30))])) == 31
    while machine.heard and not all(name.startswith("s") for name, _ in machine.heard[-1]):
        machine.heard.pop()
    firsts = [batch for batch in machine.heard if any(name == "long" for name, _ in batch)]
    assert firsts == machine.heard[: len(firsts)]


def test_nothing_is_read_before_it_is_asked_for_and_nothing_is_no_trouble():
    machine = Machine(4)
    assert machine.results([]) == []
    outcomes = machine.outcomes(Audio("r", 1) for _ in range(3))
    assert not machine.read_so_far
    assert len(list(outcomes)) == 3


@pytest.mark.parametrize("size", [1, 4])
def test_what_fails_fails_alone(size):
    """In reading, before it, and in the model, where the spans of others are in the same batch."""
    recordings = [Audio("a", 50), Audio("b", 50, 51), None, Audio("c", 50), OSError("gone"), Audio("d", 50), Audio("e")]
    machine = Machine(size, broken=[("b", 51), ("d", 50)])
    found = machine.results(recordings)
    assert [found[0], found[3], found[6]] == ["a:50", "c:50", ""]
    assert [f"{type(error).__name__} {error}" for error in (found[i] for i in (1, 2, 4, 5))] == [
        "RuntimeError too much",
        "ValueError no sound",
        "OSError gone",
        "RuntimeError too much",
    ]
    assert all(error.__traceback__ is None for error in found if isinstance(error, Exception))
    assert not machine.open
    tries = list(itertools.chain(*machine.heard))
    assert tries.count(("a", 50)) <= 2 and tries.count(("b", 51)) <= 2
    if size == 1:
        assert max(map(tries.count, tries)) == 1  # nothing is tried again by itself that was by itself


def test_a_span_of_what_has_failed_is_not_heard():
    machine = Machine(1, broken=[("a", 50)])
    assert machine.results([Audio("a", 10, 50, 40), Audio("b", 30)])[1] == "b:30"
    assert machine.heard == [[("a", 50)], [("b", 30)]]


def test_a_mistake_is_nobody_s_trouble():
    machine = Machine(2)
    machine.join = None
    with pytest.raises(TypeError):
        machine.results([Audio("a", 1)])


def test_time_is_shared_by_length(monkeypatch):
    """Of a clock that each look moves: a second for each reading, for each batch as many as it has samples."""
    clock = itertools.count()
    monkeypatch.setattr(batches.time, "perf_counter", lambda: float(next(clock)))
    machine = Machine(2)
    hear = machine.hear

    def slow(pieces):
        for _ in range(sum(span.end - span.start for _, span in pieces) - 1):
            next(clock)
        return hear(pieces)

    machine.hear = slow
    found = list(machine.outcomes([Audio("a", 30, 10), Audio("b", 9), None, Audio("c", 100)]))
    assert [outcome.seconds for outcome in found] == pytest.approx([1 + 40, 1 + 9, 1, 1 + 100])
    assert all(isinstance(outcome, Outcome) for outcome in found)
