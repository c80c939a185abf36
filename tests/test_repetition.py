"""Runs of words said over and over."""

import itertools

import pytest

from samba_asr.evaluation.repetition import invented_runs, repeated_runs


@pytest.mark.parametrize(
    ("text", "runs"),
    [
        ("", []),
        ("a a a", []),
        ("a a a a", ["a"]),
        ("a a a a a a a a a", ["a"]),
        ("a a a b a", []),
        ("x a a a a y b b b b", ["a", "b"]),
        ("a b a b a b a", []),
        ("a b a b a b a b", ["a b"]),
        ("a b a b a b a b a", ["a b"]),
        ("b a b a b a b a b", ["b a"]),
        ("so " + "on and on " * 4, ["on and on"]),
        ("a a b " * 4, ["a a b"]),
        ("1 2 3 4 5 6 7 8 " * 4, ["1 2 3 4 5 6 7 8"]),
        ("1 2 3 4 5 6 7 8 9 " * 4, []),
        ("the cat and the dog and the cow and the hen and", []),
    ],
)
def test_runs_by_hand(text, runs):
    assert [" ".join(run) for run in repeated_runs(text.split())] == runs


def test_runs_equal_a_look_at_every_place():
    for words in itertools.product("ab", repeat=9):
        found = {run for run in repeated_runs(words, longest=3, times=3)}
        text = "".join(words)
        for size in (1, 2, 3):
            there = {
                text[i : i + size] for i in range(10 - 3 * size) if text[i : i + size] * 3 == text[i : i + 3 * size]
            }
            turned = {run[i:] + run[:i] for run in there if len(set(run)) > 1 or size == 1 for i in range(size)}
            mine = {"".join(run[i:] + run[:i]) for run in found if len(run) == size for i in range(size)}
            assert mine == turned
        assert len({frozenset(run[i:] + run[:i] for i in range(len(run))) for run in found}) == len(found)


def test_other_lengths_and_times():
    assert repeated_runs(["a", "b", "a", "b"], times=2) == [("a", "b")]
    assert repeated_runs(["a", "b", "a", "b"], longest=1, times=2) == []
    for longest, times in ((0, 4), (8, 1)):
        with pytest.raises(ValueError, match=rf"longest \({longest}\).*times \({times}\)"):
            repeated_runs(["a"], longest, times)


def test_what_was_said_is_not_invented():
    song = "row row row row your boat"
    assert invented_runs(song, song) == []
    assert invented_runs(song, f"{song} boat boat boat") == [("boat",)]
    assert invented_runs("row your boat", song) == [("row",)]
    assert invented_runs("", "") == []
    assert invented_runs("to and " * 5, "and to " * 5) == []  # the same run, begun elsewhere
    assert invented_runs("to and " * 3, "to and " * 4) == [("to", "and")]
