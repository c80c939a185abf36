"""Where a stream's segments begin and end: against a regular expression over the states, and by hand."""

import re

import numpy as np
import pytest

from samba_asr.decoding.endpoints import Endpointer
from samba_asr.decoding.stretches import cut_at_blanks
from samba_asr.text.tokenizer import BLANK_ID

PAUSE, LEAD, LONGEST = 6, 4, 50


def posteriors(said, seed=0):
    """CTC's log-probabilities: a piece's where something is said, else blank's are highest."""
    probs = np.random.default_rng(seed).uniform(0.01, 0.2, (len(said), 6))
    probs[np.arange(len(said)), np.where(said, 5, BLANK_ID)] += np.random.default_rng(seed).uniform(1, 9, len(said))
    return np.log(probs / probs.sum(1, keepdims=True))


def segments_of(states, sizes, pause=PAUSE, longest=10_000, voice=True):
    """Feed states a few at a time; v: voice, s: only CTC says something, b: both, a point: neither."""
    log_probs = posteriors([state in "sb" for state in states])
    endpointer, found, end = Endpointer(pause, LEAD, longest), [], 0
    while end < len(states):
        start, end = end, end + sizes[end % len(sizes)]
        new = [state in "vb" for state in states[start:end]] if voice else None
        kept = endpointer.kept
        found += endpointer.advance(log_probs[kept:end], new)
        assert kept <= endpointer.kept
        held = min(end, len(states)) - endpointer.kept
        assert held <= (LEAD if endpointer.begin is None else longest + LEAD)
        assert endpointer.begin in (None, endpointer.kept)
    return found + endpointer.finish()


def by_expression(states, pause):
    """Segments from the first voice on, until neither voice nor CTC says anything for a pause."""
    before = 0
    for match in re.finditer(rf"[vb][vbs.]*?(?=\.{{{pause}}}|$)", states):
        ends = match.end() == len(states)
        end = match.end() if ends else match.end() + pause // 2
        yield max(before, match.start() - LEAD), end
        before = end


@pytest.mark.parametrize("sizes", [[1], [16], [3, 50, 1, 7]])
@pytest.mark.parametrize("seed", range(5))
def test_segments_are_what_lies_between_pauses(seed, sizes):
    random = np.random.default_rng(seed)
    runs = zip(random.choice(list("vsb.."), 100).tolist(), random.integers(1, 12, 100).tolist(), strict=True)
    states = "".join(state * count for state, count in runs)
    expected = list(by_expression(states, PAUSE))
    assert len(expected) > 5
    assert segments_of(states, sizes) == expected


def test_what_only_ctc_says_begins_nothing_but_is_not_cut_off():
    assert segments_of("." * 20 + "s" * 20 + "." * 20, [5]) == []
    assert segments_of("." * 20 + "v" + "..s.." * 5 + "." * 20, [5]) == [(16, 21 + 25 - 2 + 3)]


def test_without_a_detector_ctc_says_where_speech_is():
    states = "." * 20 + "ss..s" + "." * 20 + "s"
    assert segments_of(states, [4], voice=False) == [(16, 28), (41, 46)]


def test_a_segment_begins_before_the_voice_but_after_the_one_before_it():
    states = "..v" + "." * PAUSE + "v" + "." * 20
    assert segments_of(states, [1]) == segments_of(states, [30]) == [(0, 6), (6, 13)]


def test_no_pause_ends_nothing():
    states = "v" + "." * 40
    assert segments_of(states, [7], pause=None) == [(0, 41)]


@pytest.mark.parametrize("sizes", [[1], [16]])
def test_long_speech_is_cut_where_ctc_hears_a_pause(sizes):
    states = "b" * 28 + "vvv" + "b" * 60 + "v" + "b" * 40
    found = segments_of(states, sizes, longest=LONGEST)
    log_probs = posteriors([state in "sb" for state in states])
    expected, start = [], 0
    while len(states) - start > LONGEST:
        _, cut = cut_at_blanks(log_probs[start : start + LONGEST + 1], LONGEST + 1, LONGEST)[0]
        expected.append((start, start + cut))
        start += cut
    assert found == [*expected, (start, len(states))]
    assert found[0] == (0, 30)  # the middle of the pause


def test_no_states_and_silence_are_nothing():
    endpointer = Endpointer(PAUSE, LEAD, LONGEST)
    assert endpointer.advance(posteriors([]), []) == endpointer.finish() == []
    assert segments_of("." * 500, [16]) == []


@pytest.mark.parametrize("sizes", [[1], [16], [3, 50, 1, 7]])
@pytest.mark.parametrize("pause", [20, 30, 49, 75, 200])
@pytest.mark.parametrize("spoken", [1, 15, 60])
def test_pauses_longer_than_segments_may_be(spoken, pause, sizes):
    states = "." * 10 + "v" * spoken + "." * 300 + "v" * 9
    found = segments_of(states, sizes, pause, LONGEST)
    bounds = [bound for segment in found for bound in segment]
    assert bounds == sorted(bounds) and all(begin < end for begin, end in found)
    assert {state for begin, end in found for state in range(begin, end)} >= {
        place for place, state in enumerate(states) if state == "v"
    }
