"""Words out of pieces: which pieces are whose, when they are said, how likely they are."""

import math

import numpy as np
import pytest

from samba_asr.config import WordConfig
from samba_asr.decoding.stretches import Found
from samba_asr.decoding.words import Placed, confidence, place_pieces, place_words, word_times

A, B, C = 4, 5, 6


def recording(path, sure=0.9):
    """Return log-probabilities, (states, 7): each state says its piece."""
    probs = np.full((len(path), 7), (1 - sure) / 6)
    probs[np.arange(len(path)), path] = sure
    return np.log(probs)


def as_lists(placed):
    return [column.tolist() for column in placed]


def test_pieces_lie_where_they_are_said():
    log_probs = recording([0, A, A, 0, 0, B, C, C, 0])
    log_probs[2, A] = np.log(0.95)  # the surer of its two states counts
    firsts, lasts, probs = as_lists(place_pieces(log_probs, [Found(0, 9, [A, B, C])]))
    assert (firsts, lasts) == ([1, 5, 6], [2, 5, 7])
    assert probs == pytest.approx(np.log([0.95, 0.9, 0.9]))


def test_stretches_are_aligned_each_in_its_own_states():
    log_probs = recording([A, 0, B, 0, A, 0, 0, C])
    stretches = [Found(0, 4, [A, B]), Found(4, 4, []), Found(4, 8, [A, C])]
    assert as_lists(place_pieces(log_probs, stretches))[:2] == [[0, 2, 4, 7]] * 2
    # B is nowhere in the second stretch, and is not sought in the first one
    firsts, _, probs = as_lists(place_pieces(log_probs, [Found(0, 4, [A]), Found(4, 8, [B])]))
    assert firsts[1] >= 4 and probs[1] < np.log(0.1)


def test_pieces_that_ctc_cannot_say_share_the_states_evenly():
    firsts, lasts, probs = as_lists(place_pieces(recording([0, 0, 0, A]), [Found(1, 4, [A, A, A, A, A, A])]))
    assert (firsts, lasts) == ([1, 1, 2, 2, 3, 3], [1, 1, 2, 2, 3, 3])
    assert max(probs[:4]) < np.log(0.1) and probs[5] == pytest.approx(np.log(0.9))
    firsts, lasts, _ = as_lists(place_pieces(recording([0] * 7), [Found(0, 5, [A, A, A, A])]))
    assert (firsts, lasts) == ([0, 1, 2, 3], [0, 1, 2, 4])


def test_no_pieces():
    assert as_lists(place_pieces(recording([0, 0]), [Found(0, 2, [])])) == [[], [], []]
    assert as_lists(place_pieces(recording([]), [])) == [[], [], []]


def test_a_word_has_the_pieces_of_its_letters():
    pieces = [" mis", "ter", "", " quil", "t", " ", "er", " is"]  # joined as "mister quilt er is" would be
    placed = Placed(10 * np.arange(8), 10 * np.arange(8) + 3, -np.arange(8.0))
    firsts, lasts, probs = as_lists(place_words(["mister", "quilt", "er", "is"], pieces, placed))
    assert (firsts, lasts) == ([0, 30, 60, 70], [13, 43, 63, 73])
    assert probs == [-0.5, -3.5, -6.0, -7.0]


def test_a_piece_may_hold_two_words_and_a_word_more_letters():
    placed = Placed(np.array([0, 4]), np.array([1, 5]), np.zeros(2))
    assert as_lists(place_words(["in", "a", "box"], [" in a", " box"], placed))[:2] == [[0, 0, 4], [1, 1, 5]]
    longer = as_lists(place_words(["twenty", "one"], [" 2", "1"], placed))
    assert longer[0][0] == 0 and longer[1][-1] == 5 and longer[0] == sorted(longer[0])
    assert as_lists(place_words(["a", "b", "c"], ["x"], Placed(*(column[:1] for column in placed))))[0] == [0, 0, 0]


def test_times_by_hand():
    words = Placed(np.array([5, 10, 11]), np.array([7, 10, 20]), np.zeros(3))
    starts, ends = word_times(words, 0.04, 1.0, WordConfig())
    assert starts == pytest.approx([0.2, 0.4, 0.44]) and ends == pytest.approx([0.32, 0.44, 0.84])
    starts, ends = word_times(words, 0.04, 0.85, WordConfig(start_shift=-0.05, end_shift=0.13))
    assert starts == pytest.approx([0.15, 0.35, 0.39])
    assert ends == pytest.approx([0.35, 0.39, 0.85])  # up to the next word, and to the recording's end


@pytest.mark.parametrize("shifts", [(0.0, 0.0), (-5.0, 0.1), (5.0, -5.0), (0.3, -0.7), (-0.3, 9.0)])
def test_times_never_go_back_nor_leave_the_recording(shifts):
    random = np.random.default_rng(0)
    for count in (0, 1, 30):
        firsts = np.sort(random.integers(0, 60, count))
        words = Placed(firsts, firsts + random.integers(0, 9, count), np.zeros(count))
        starts, ends = word_times(words, 0.04, 1.7, WordConfig(*shifts))
        times = np.stack([starts, ends], 1).ravel()
        assert (np.diff(times) >= 0).all() and (times >= 0).all() and (times <= 1.7).all()


def test_confidence_is_the_probability_unless_calibrated():
    probs = np.array([0.0, 1e-3, 0.25, 0.5, 0.9, 1.0])
    with np.errstate(divide="ignore"):
        log_probs = np.log(probs)
    assert confidence(log_probs, WordConfig()) == pytest.approx(probs, abs=1.1e-4)
    found = confidence(log_probs, WordConfig(confidence_scale=0.5, confidence_bias=1.0))
    assert found[2] == pytest.approx(1 / (1 + math.exp(0.5 * math.log(3) - 1)))
    assert (np.diff(found) > 0).all() and found[0] > 0 and found[-1] < 1
