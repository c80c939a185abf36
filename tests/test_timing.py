"""Where to listen, as far as CTC tells, in recordings written by hand."""

import itertools

import numpy as np
import pytest
import torch

from samba_asr.decoding.timing import DOUBT, LATEST, SPOKEN, Follower, Timing
from samba_asr.model.alignment import align, listening_places
from samba_asr.text.tokenizer import BLANK_ID

A, B, C = 4, 5, 6


def recording(states, pieces, sure=0.9):
    """Return log-probabilities: pieces by their states, blank elsewhere; the rest of each state is shared."""
    probs = np.full((states, 7), (1 - sure) / 6)
    probs[:, BLANK_ID] = sure
    for state, piece in pieces.items():
        probs[state] = (1 - sure) / 6
        probs[state, piece] = sure
    return np.log(probs)


def test_by_hand():
    timing = Timing(recording(60, {10: A, 20: B, 21: B, 40: C}))
    assert (SPOKEN, LATEST) == (0.5, 4)
    assert timing.begin() == 4  # 6 states before the first piece
    assert timing.after(A, 10, 11) == 14
    assert timing.after(B, 20, 40) == 34
    assert timing.after(C, 40, 60) == 54  # the end


def test_what_comes_at_once_is_listened_for_where_the_last_piece_is():
    timing = Timing(recording(20, {2: A, 4: B, 5: C}))
    assert timing.begin() == 0
    assert timing.after(A, 2, 4) == 2
    assert timing.after(B, 4, 5) == 4
    assert timing.after(C, 5, 20) == 14
    assert Timing(recording(8, {5: C})).after(C, 5, 8) == 5


def test_a_long_pause():
    timing = Timing(recording(300, {100: A, 250: B}))
    assert timing.begin() == 94
    assert timing.after(A, 100, 101) == 244
    assert timing.after(A, 100, 250) == 244
    assert timing.after(B, 250, 300) == 294


def test_the_last_piece_going_on_is_not_a_new_one():
    timing = Timing(recording(60, {10: A, 11: A, 12: A, 30: B}))
    for now in (10, 11, 13, 30):
        assert timing.after(A, 10, now) == 24
    assert timing.after(C, 10, 13) == 10  # but to another piece it is
    shared = recording(60, {10: A, 30: B})
    shared[11] = np.log([0.05, 0.01, 0.01, 0.01, 0.5, 0.41, 0.01])  # spoken, but as much the same piece
    assert Timing(shared).after(A, 10, 12) == 24


def test_a_piece_that_is_mentioned_before_it_is_said():
    timing = Timing(recording(60, {11: A, 13: B, 30: C}))
    assert timing.after(A, 9, 10) == 9  # as far as is known by then, it is said at 9
    assert timing.after(A, 9, 11) == 11
    assert timing.after(A, 9, 30) == 11
    late = Timing(recording(60, {12: A, 13: A, 14: B}))
    assert late.after(A, 9, 60) == 12  # sought in the states 9 to 12
    assert late.after(A, 8, 60) == 8  # no further than 11: there all states are alike, and the first one counts


def test_the_end_of_the_recording():
    timing = Timing(recording(30, {28: A}))
    assert timing.after(A, 28, 30) == 28
    assert timing.after(A, 29, 30) == 29
    assert timing.after(A, 30, 30) == 30
    assert timing.after(BLANK_ID, 0, 0) == 22


@pytest.mark.parametrize("states", [0, 1, 5, 40])
def test_nothing_said(states):
    timing = Timing(recording(states, {}))
    assert timing.begin() == max(0, states - 6)
    for mentioned in range(states + 1):
        assert timing.after(A, mentioned, states) == max(mentioned, states - 6)


def test_where_ctc_is_sure_a_search_listens_as_training_does():
    random = np.random.default_rng(0)
    for _ in range(20):
        states = np.sort(random.choice(80, 12, replace=False)).tolist()
        pieces = A + random.integers(1, 3, 12).cumsum() % 3  # none twice in a row
        log_probs = recording(80, dict(zip(states, pieces.tolist(), strict=True)), sure=0.97)
        (firsts,) = align(log_probs[None], [80], [pieces.tolist()])
        assert firsts.tolist() == states
        timing = Timing(log_probs)
        found = [timing.begin()]
        for piece, state, after in zip(pieces.tolist(), states, [*states[1:], 80], strict=True):
            found.append(timing.after(piece, state, after))
        assert found == listening_places(firsts, [1] * 12, 80)


def test_float32_from_a_model():
    log_probs = torch.from_numpy(recording(60, {10: A})).float().numpy()
    assert Timing(log_probs).begin() == 4


def followed(log_probs, pieces):
    follower = Follower(log_probs)
    return [follower.follow(piece) for piece in pieces]


@pytest.mark.parametrize("seed", range(6))
def test_a_follower_takes_the_likeliest_of_all_ways_so_far(seed):
    """Out of all places of the pieces before; between two pieces nothing else is said."""
    generator = torch.Generator().manual_seed(seed)
    log_probs = (2 * torch.randn(7, 6, generator=generator, dtype=torch.float64)).log_softmax(-1).numpy()
    probs, text = np.exp(log_probs), [4, 5, 5, 3]

    def score(places):
        total = np.log(probs[: places[0], 0]).sum()
        for piece, place, after in zip(text, places, [*places[1:], places[-1]], strict=False):
            total += np.log((1 - DOUBT) * probs[place, piece] + DOUBT * (1 - probs[place, 0]))
            total += np.log(probs[place + 1 : after, 0] + probs[place + 1 : after, piece]).sum()
        return total

    expected = [max(itertools.combinations(range(7), count), key=score)[-1] for count in range(1, 5)]
    assert followed(log_probs, text) == expected


def test_a_follower_agrees_with_the_alignment_where_ctc_is_certain():
    rng = np.random.default_rng(4)
    pieces = rng.integers(4, 9, 12).tolist()
    states = np.sort(rng.choice(np.arange(0, 80, 2), 12, replace=False))
    logits = np.full((80, 9), -6.0)
    logits[:, 0] = 3.0
    logits[states, 0], logits[states, pieces] = -3.0, 4.0
    log_probs = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
    (firsts,) = align(log_probs[None], [80], [pieces])
    assert followed(log_probs, pieces) == firsts.tolist() == states.tolist()
    wrong = [4 if i == 5 and piece != 4 else piece for i, piece in enumerate(pieces)]  # another than CTC heard
    assert followed(log_probs, wrong)[6:] == states[6:].tolist()
