"""CTC's alignment against every path there is, and torchaudio's; the places where a decoder listens."""

import itertools

import numpy as np
import pytest
import torch

from samba_asr.model.alignment import LEAD, align, align_spans, listening_place, listening_places
from samba_asr.text.tokenizer import BLANK_ID

VOCAB_SIZE = 7


def random_log_probs(*shape, seed):
    logits = 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return logits.log_softmax(-1).numpy()


def said(path):
    """Return the text of a path, with the states in which each of its pieces is first and last said."""
    runs, state = [], 0
    for piece, run in itertools.groupby(path):
        end = state + len(list(run))
        if piece != BLANK_ID:
            runs.append((piece, state, end - 1))
        state = end
    return tuple(piece for piece, _, _ in runs), [first for _, first, _ in runs], [last for _, _, last in runs]


def exhaustive(log_probs, text):
    """Return the first and the last states of the text's likeliest path, out of all paths; None if none says it."""
    paths = [
        (sum(row[piece] for row, piece in zip(log_probs, path, strict=True)), said(path)[1:])
        for path in itertools.product(sorted({BLANK_ID, *text}), repeat=len(log_probs))
        if said(path)[0] == tuple(text)
    ]
    return max(paths, default=(0.0, None))[1] if len(log_probs) else None


def as_lists(alignments):
    return [None if firsts is None else firsts.tolist() for firsts in alignments]


def spans_as_lists(alignments):
    return [None if spans is None else (spans.firsts.tolist(), spans.lasts.tolist()) for spans in alignments]


TEXTS = [[4, 5, 4], [], [4, 4], [5, 5, 5, 6], [6], [4, 4, 4, 4], [1, 4], []]
STATES = [6, 3, 3, 6, 1, 6, 0, 0]


@pytest.mark.parametrize("seed", range(4))
def test_the_likeliest_of_all_paths(seed):
    log_probs = random_log_probs(len(TEXTS), 6, VOCAB_SIZE, seed=seed)
    found = spans_as_lists(align_spans(log_probs, STATES, TEXTS))
    expected = [exhaustive(row[:n], text) for row, n, text in zip(log_probs, STATES, TEXTS, strict=True)]
    assert found == expected
    assert as_lists(align(log_probs, STATES, TEXTS)) == [spans and spans[0] for spans in expected]
    assert [row is None for row in found] == [False, False, False, False, False, True, True, True]


@pytest.mark.parametrize("text", [[4, 5, 6], [4, 4], [5, 4, 4]])
def test_no_fewer_states_than_pieces_and_the_blanks_between_equal_ones(text):
    needed = len(text) + sum(a == b for a, b in itertools.pairwise(text))
    log_probs = random_log_probs(1, needed, VOCAB_SIZE, seed=0)
    assert spans_as_lists(align_spans(log_probs, [needed], [text])) == [exhaustive(log_probs[0], text)]
    assert align(log_probs[:, :-1], [needed - 1], [text]) == [None]


def test_a_piece_may_last():
    log_probs = np.full((1, 7, VOCAB_SIZE), -3.0)
    for state, piece in enumerate([BLANK_ID, 4, 4, 4, 5, BLANK_ID, 4]):
        log_probs[0, state, piece] = -0.1
    assert spans_as_lists(align_spans(log_probs, [7], [[4, 5, 4]])) == [([1, 4, 6], [3, 4, 6])]


def test_equals_torchaudio():
    try:
        from torchaudio.functional import forced_align
    except (ImportError, OSError) as error:
        pytest.skip(f"torchaudio cannot be imported: {error}")
    if not hasattr(torch.ops.torchaudio, "forced_align"):  # another test has imported it without its native library
        pytest.skip("torchaudio's native library does not load")
    random = np.random.default_rng(0)
    for seed in range(5):
        text = random.integers(4, VOCAB_SIZE, 12).tolist()
        log_probs = random_log_probs(1, 60, VOCAB_SIZE, seed=seed)
        (path,), _ = forced_align(torch.from_numpy(log_probs), torch.tensor([text]), blank=BLANK_ID)
        assert spans_as_lists(align_spans(log_probs, [60], [text])) == [said(path.tolist())[1:]]


@pytest.mark.parametrize("rubbish", [1e3, -1e3, float("nan")])
def test_padding_and_neighbours_change_nothing(rubbish):
    texts, states = [[4, 4, 5, 6] * 3, [5], [], [6, 6]], [40, 17, 9, 0]
    log_probs = random_log_probs(4, 40, VOCAB_SIZE, seed=1)
    alone = [
        *(align_spans(row[None, :n], [n], [text])[0] for row, n, text in zip(log_probs, states, texts, strict=True)),
    ]
    for row, n in zip(log_probs, states, strict=True):
        row[n:] = rubbish
    assert spans_as_lists(align_spans(log_probs, states, texts)) == spans_as_lists(alone)
    assert spans_as_lists(align_spans(log_probs[:1], states[:1], texts[:1])) == spans_as_lists(alone[:1])


def test_places_by_hand():
    """Tokens of 2, 1 and 3 pieces: each is listened for LEAD states before its first piece, the end before the last
    state, but none before the piece that is said just before it."""
    firsts = np.array([4, 8, 20, 23, 24, 30])
    assert LEAD == 6
    assert listening_places(firsts, [2, 1, 3], 50) == [0, 14, 20, 44]
    assert listening_places(firsts, [2, 1, 3], 33) == [0, 14, 20, 30]
    assert listening_places(firsts, [1] * 6, 33) == [0, 4, 14, 20, 23, 24, 30]
    assert listening_places(np.array([], int), [], 50) == [44]
    assert listening_places(np.array([], int), [], 2) == [0]
    assert listening_place(0, 2) == 0 and listening_place(3, 4) == 3 and listening_place(3, 30) == 24


def test_without_an_alignment_places_are_spread_evenly():
    assert listening_places(None, [1, 3, 2], 40) == [0, 10, 20, 30]
    assert listening_places(None, [], 40) == [0]
    assert listening_places(None, [1, 2], 0) == [0, 0, 0]


@pytest.mark.parametrize("seed", range(10))
def test_places_go_forward_within_the_recording(seed):
    random = np.random.default_rng(seed)
    counts = random.integers(1, 4, 6).tolist()
    states = int(random.integers(0, 80))
    text = random.integers(4, VOCAB_SIZE, sum(counts)).tolist()
    (firsts,) = align(random_log_probs(1, states, VOCAB_SIZE, seed=seed), [states], [text])
    places = listening_places(firsts, counts, states)
    assert len(places) == len(counts) + 1
    assert places == sorted(places) and places[0] >= 0 and places[-1] <= states
    if firsts is not None:
        begins = [*firsts[np.cumsum([0, *counts[:-1]])], states]
        assert all(place <= begin for place, begin in zip(places, begins, strict=True))
