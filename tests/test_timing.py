"""Where to listen, as far as CTC tells, in recordings written by hand."""

import numpy as np
import pytest
import torch

from samba_asr.decoding.timing import SPOKEN, Timing
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
    assert SPOKEN == 0.5
    assert timing.begin() == 4  # 6 states before the first piece
    assert timing.following(10, A) == 14
    assert timing.following(20, B) == 34
    assert timing.following(40, C) == 54  # the end


def test_what_comes_at_once_is_listened_for_where_the_last_piece_is():
    timing = Timing(recording(20, {2: A, 4: B, 5: C}))
    assert timing.begin() == 0
    assert timing.following(2, A) == 2
    assert timing.following(4, B) == 4
    assert timing.following(5, C) == 14
    assert Timing(recording(8, {5: C})).following(5, C) == 5


def test_a_long_pause():
    timing = Timing(recording(300, {100: A, 250: B}))
    assert timing.begin() == 94
    assert timing.following(100, A) == 244
    assert timing.following(100, A) == 244
    assert timing.following(250, B) == 294


def test_the_last_piece_going_on_is_not_a_new_one():
    timing = Timing(recording(60, {10: A, 11: A, 12: A, 30: B}))
    assert timing.following(10, A) == 24
    assert timing.following(10, C) == 10  # but to another piece it is
    shared = recording(60, {10: A, 30: B})
    shared[11] = np.log([0.05, 0.01, 0.01, 0.01, 0.5, 0.41, 0.01])  # spoken, but as much the same piece
    assert Timing(shared).following(10, A) == 24


def test_the_end_of_the_recording():
    timing = Timing(recording(30, {28: A}))
    assert timing.following(28, A) == 28
    assert timing.following(29, A) == 29
    assert timing.following(30, A) == 30
    assert timing.following(0, BLANK_ID) == 22


@pytest.mark.parametrize("states", [0, 1, 5, 40])
def test_nothing_said(states):
    timing = Timing(recording(states, {}))
    assert timing.begin() == max(0, states - 6)
    for said in range(states + 1):
        assert timing.following(said, A) == max(said, states - 6)


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
        for piece, state in zip(pieces.tolist(), states, strict=True):
            found.append(timing.following(state, piece))
        assert found == listening_places(firsts, [1] * 12, 80)


def test_float32_from_a_model():
    log_probs = torch.from_numpy(recording(60, {10: A})).float().numpy()
    assert Timing(log_probs).begin() == 4
