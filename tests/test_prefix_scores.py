"""CTC's scores of texts that go on, against every path there is."""

import itertools
import math

import numpy as np
import pytest

from samba_asr.decoding.greedy import UNSAID
from samba_asr.decoding.prefix_scores import PrefixScores, Reached, log_sum, softened
from samba_asr.text.tokenizer import BLANK_ID

PIECES = [1, 4, 5]


def random_case(states, seed):
    logits = 2 * np.random.default_rng(seed).standard_normal((states, 6))
    return logits - np.logaddexp.reduce(logits, 1, keepdims=True)


def paths(log_probs):
    """Return every path of blanks and pieces: its probability, its text, and the states where pieces are first said."""
    for path in itertools.product([BLANK_ID, *PIECES], repeat=len(log_probs)):
        before = (BLANK_ID, *path)
        firsts = [t for t, piece in enumerate(path) if piece not in (BLANK_ID, before[t])]
        text = tuple(path[t] for t in firsts)
        yield math.exp(sum(row[piece] for row, piece in zip(log_probs, path, strict=True))), text, firsts


def lengthened(scores, texts):
    """Lengthen all texts, of equal lengths, at once; return what the last piece's call gave, and all states reached."""
    voiced, blank = (np.repeat(part, len(texts), 0) for part in scores.begin())
    said, lasts = None, np.zeros(len(texts), np.int64)
    for pieces in np.array(texts).T:
        said, (voiced, blank) = scores.lengthen(Reached(voiced, blank), lasts, pieces)
        lasts = pieces
    return said, Reached(voiced, blank)


def only_these(log_probs):
    """Leave blank and PIECES alone: what others have is no text's."""
    log_probs = log_probs.copy()
    log_probs[:, [i for i in range(6) if i not in (BLANK_ID, *PIECES)]] = -np.inf
    return log_probs


@pytest.mark.parametrize("states", [1, 2, 5])
@pytest.mark.parametrize("length", [1, 2, 3])
def test_every_text_against_all_paths(states, length):
    log_probs = random_case(states, states)
    texts = list(itertools.product(PIECES, repeat=length))
    said, reached = lengthened(PrefixScores(log_probs), texts)
    assert said.shape == reached.voiced.shape == reached.blank.shape == (len(texts), states)
    everything = list(paths(log_probs))
    for row, text in enumerate(texts):
        for state in range(states):
            # What comes after the state counts whole, and paths of these pieces alone do not: give each its rest.
            begun = [(prob, firsts) for prob, given, firsts in paths(log_probs[: state + 1]) if given[:length] == text]
            first = math.fsum(prob for prob, firsts in begun if firsts[length - 1] == state)
            assert math.exp(said[row, state]) == pytest.approx(first, rel=1e-9, abs=1e-300)
        whole = math.fsum(prob for prob, given, _ in everything if given == text)
        assert math.exp(reached.whole()[row]) == pytest.approx(whole, rel=1e-9, abs=1e-300)


def test_what_a_text_may_become_adds_up_to_it():
    """A text goes on as itself alone, or with one of the pieces."""
    log_probs = only_these(random_case(6, 3))
    log_probs -= np.logaddexp.reduce(log_probs, 1, keepdims=True)
    scores = PrefixScores(log_probs)
    for text in [(4,), (4, 4), (1, 5, 4)]:
        said, reached = lengthened(scores, [text])
        alone = math.exp(reached.whole()[0])
        longer = [math.exp(log_sum(lengthened(scores, [(*text, piece)])[0])[0]) for piece in PIECES]
        assert math.exp(log_sum(said)[0]) == pytest.approx(alone + sum(longer), rel=1e-9)


@pytest.mark.parametrize("text", [(), (4,), (5, 5), (1, 4, 1)])
def test_starting_tells_what_lengthening_would(text):
    scores = PrefixScores(random_case(7, 5))
    reached = lengthened(scores, [text])[1] if text else scores.begin()
    start = scores.start(reached, text[-1:])
    for piece in range(6):
        if piece in UNSAID:
            assert start[piece] == -np.inf
        else:
            assert start[piece] == pytest.approx(log_sum(lengthened(scores, [(*text, piece)])[0])[0], rel=1e-12)


def test_long_recordings_and_hopeless_numbers():
    log_probs = random_case(4000, 1) * 20
    log_probs[:, 4] = -np.inf
    scores = PrefixScores(log_probs)
    said, reached = lengthened(scores, [(5, 1, 5), (4, 4, 4)])
    assert np.isfinite(reached.whole()).all() and (log_sum(said) < 0).all()
    assert not np.isnan(said).any() and not np.isnan(reached.blank).any()


def test_more_pieces_than_states_are_never_said():
    said, reached = lengthened(PrefixScores(random_case(3, 0)), [(4, 5, 4, 1), (4, 4, 1, 5)])
    assert (log_sum(said) == -np.inf).all() and (reached.whole() == -np.inf).all()
    assert PrefixScores(np.zeros((0, 6))).begin().whole().tolist() == [0.0]


def test_softened_keeps_whether_a_piece_is_said():
    log_probs = random_case(5, 2)
    blank = np.exp(log_probs[:, :1])
    expected = np.concatenate([blank, (1 - blank) * (np.exp(log_probs[:, 1:]) / (1 - blank)) ** 0.4], 1)
    assert np.exp(softened(log_probs, 0.4)) == pytest.approx(expected, rel=1e-9)
    assert softened(log_probs, 1.0) is log_probs


@pytest.mark.parametrize("gap", [5.0, 16.0, 17.0, 40.0])
def test_softened_where_blank_rounds_to_one(gap):
    """In float32 as in float64: what is said at all stays as unlikely as it is."""
    logits = np.array([[0.0, -gap, -gap - 1, -gap - 3]])
    exact = logits - log_sum(logits)[:, None]
    rounded = exact.astype(np.float32)
    expected = softened(exact, 0.5)
    assert expected[:, 1] == pytest.approx(-gap, abs=0.5)
    assert softened(rounded, 0.5) == pytest.approx(expected, abs=1e-5)
