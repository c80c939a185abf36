"""CTC prefix beam search against every path there is, and against PyTorch's CTC loss."""

import itertools
import math
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from samba_asr.decoding.greedy import ctc_greedy
from samba_asr.decoding.prefix_beam import Hypothesis, PrefixSearch, ctc_prefix_beam
from samba_asr.text.tokenizer import BLANK_ID, BOS_ID, EOS_ID

WIDE = 10_000
TOKENS = [1, 4, 5]


def random_log_probs(states, vocab_size, seed=0, scale=2.0):
    logits = np.random.default_rng(seed).normal(0, scale, (states, vocab_size))
    return torch.from_numpy(logits).log_softmax(-1).numpy()


def every_text(log_probs):
    """Return each text's log-probability, from all paths without begin and end, one by one."""
    texts = {}
    for path in itertools.product([BLANK_ID, *TOKENS], repeat=len(log_probs)):
        text = tuple(token for token, _ in itertools.groupby(path) if token != BLANK_ID)
        texts.setdefault(text, []).append(math.exp(sum(row[token] for row, token in zip(log_probs, path, strict=True))))
    return {text: math.log(math.fsum(probs)) for text, probs in texts.items()}


@pytest.mark.parametrize("states", [1, 2, 5])
@pytest.mark.parametrize("seed", range(5))
def test_a_beam_that_drops_nothing_is_exact(states, seed):
    log_probs = random_log_probs(states, 6, seed)
    expected = every_text(log_probs)
    found = ctc_prefix_beam(log_probs, WIDE, margin=math.inf)
    assert [h.tokens for h in found] == sorted(expected, key=expected.get, reverse=True)
    for hypothesis in found:
        assert hypothesis.log_prob == pytest.approx(expected[hypothesis.tokens], abs=1e-10)


@pytest.mark.parametrize("seed", range(20))
def test_a_narrow_beam_finds_the_best_text(seed):
    log_probs = random_log_probs(6, 6, seed, scale=3.0)
    expected = every_text(log_probs)
    found = ctc_prefix_beam(log_probs, 8)
    assert len(found) == 8
    assert found[0].tokens == max(expected, key=expected.get)
    assert found[0].log_prob == pytest.approx(expected[found[0].tokens], abs=0.05)
    for hypothesis in found:  # a sum over some of the paths is never more than that over all
        assert hypothesis.log_prob <= expected[hypothesis.tokens] + 1e-10


def speech(states, vocab_size, seed=0):
    """Posteriors as a trained model has them: blank with almost all the mass between short peaks, some of them torn."""
    random = np.random.default_rng(seed)
    logits = random.normal(0, 1.5, (states, vocab_size))
    logits[:, BLANK_ID] += 14
    for state in np.flatnonzero(random.random(states - 1) < 0.12):
        token, other = random.integers(4, vocab_size, 2)
        logits[state, token] += 14 + random.normal(2, 2)
        logits[state, other] += 14 - random.uniform(0, 5)
        logits[state + 1, token] += 14 + random.normal(-2, 3)
    return torch.from_numpy(logits).log_softmax(-1).numpy()


@pytest.mark.parametrize(("beam_size", "lost"), [(8, 0.7), (64, 0.3)])
def test_long_recordings_keep_the_paths_that_count(beam_size, lost):
    log_probs = speech(400, 50)
    found = ctc_prefix_beam(log_probs, beam_size)
    assert len({h.tokens for h in found}) == len(found) == beam_size
    for hypothesis in found[:8]:
        text = torch.tensor([hypothesis.tokens])
        sizes = torch.tensor([400]), torch.tensor([text.shape[1]])
        exact = -F.ctc_loss(torch.from_numpy(log_probs)[:, None], text, *sizes, BLANK_ID, reduction="sum").item()
        assert exact - lost < hypothesis.log_prob < exact + 1e-9
    greedy = tuple(ctc_greedy(torch.from_numpy(log_probs)[None], torch.tensor([400]))[0])
    score = {h.tokens: h.log_prob for h in found}
    assert found[0].log_prob >= score.get(greedy, -math.inf)
    assert [h.log_prob for h in found] == sorted(score.values(), reverse=True)


def test_the_sum_of_paths_beats_the_best_path():
    """Blank twice is the best path (.36), but the token has three paths (.64)."""
    log_probs = np.log(np.array([[0.6, 1e-9, 1e-9, 1e-9, 0.4]] * 2))
    best, empty = ctc_prefix_beam(log_probs, 2)
    assert (best.tokens, empty.tokens) == ((4,), ())
    assert math.exp(best.log_prob) == pytest.approx(0.64, abs=1e-6)
    assert math.exp(empty.log_prob) == pytest.approx(0.36, abs=1e-6)


def test_a_token_repeats_only_after_a_blank():
    path = [4, 4, BLANK_ID, 4, 5, 5, BLANK_ID, 4]
    log_probs = np.log(np.eye(6)[path] * 0.994 + 0.001)
    assert ctc_prefix_beam(log_probs, 8)[0].tokens == (4, 4, 5, 4)


def test_a_repetition_counts_even_where_it_starts_nothing():
    """Token 4 at the second state is far below the margin, but its path is one of the text's own."""
    log_probs = np.log(np.array([[1e-8, 1e-30, 1e-30, 1e-30, 1.0, 1e-30], [0.99, 1e-30, 1e-30, 1e-30, 1e-5, 1e-2]]))
    found = {h.tokens: h.log_prob for h in ctc_prefix_beam(log_probs, 8, margin=5.0)}
    assert found[(4,)] == pytest.approx(math.log(0.99 + 1e-5), abs=1e-7)
    assert (4, 5) in found
    assert () in found


def test_margin_and_beam_size_limit_what_starts():
    log_probs = np.log(np.array([[0.5, 1e-30, 1e-30, 1e-30, 0.3, 0.15, 0.05]]))
    assert {h.tokens for h in ctc_prefix_beam(log_probs, 8)} == {(), (4,), (5,), (6,)}
    assert {h.tokens for h in ctc_prefix_beam(log_probs, 8, margin=1.0)} == {(), (4,)}
    assert [h.tokens for h in ctc_prefix_beam(log_probs, 2)] == [(), (4,)]


def test_begin_and_end_are_never_said():
    log_probs = random_log_probs(20, 8)
    log_probs[::2, BOS_ID] = log_probs[1::2, EOS_ID] = -1e-3
    for hypothesis in ctc_prefix_beam(log_probs, 8):
        assert not {BLANK_ID, BOS_ID, EOS_ID} & set(hypothesis.tokens)


def test_no_state_is_the_empty_text():
    assert ctc_prefix_beam(np.zeros((0, 6)), 8) == [Hypothesis((), 0.0)]


@pytest.mark.parametrize("blank", [0.0, -800.0])
def test_hopeless_numbers_do_not_underflow(blank):
    log_probs = np.full((3000, 6), -2000.0)
    log_probs[:, BLANK_ID] = blank
    (best, *_) = ctc_prefix_beam(log_probs, 8)
    assert best == ((), 3000 * blank)


def test_the_caller_s_array_is_left_alone():
    log_probs = random_log_probs(5, 6).astype(np.float32)
    log_probs.flags.writeable = False
    ctc_prefix_beam(log_probs, 8)


def test_beam_size_must_be_positive():
    with pytest.raises(ValueError, match=r"beam_size \(0\) must be positive"):
        ctc_prefix_beam(random_log_probs(5, 6), 0)


@pytest.mark.parametrize("vocab_size", [256, 1000])
def test_half_a_minute_takes_little_time(vocab_size):
    """50 states a second; a budget for slow machines, five times what is aimed at."""
    log_probs = speech(1500, vocab_size)
    start = time.process_time()
    ctc_prefix_beam(log_probs, 8)
    assert time.process_time() - start < 30 * 0.05


@pytest.mark.parametrize("size", [1, 7, 64])
def test_states_that_are_appended_change_nothing(size):
    """To the last bit: also after no states at all, and where texts are asked for on the way."""
    log_probs = speech(150, 50).astype(np.float32)
    search = PrefixSearch(50, 8)
    assert search.texts() == ctc_prefix_beam(log_probs[:0], 8)
    for start in range(0, len(log_probs), size):
        search.advance(log_probs[start : start + size])
        search.advance(log_probs[:0])
        end = min(start + size, len(log_probs))
        if start % 5 == 0:
            assert search.texts() == ctc_prefix_beam(log_probs[:end], 8)
    assert search.texts() == ctc_prefix_beam(log_probs, 8)


def test_appending_states_does_not_cost_those_before(monkeypatch):
    grown = []
    grow = PrefixSearch._grow
    monkeypatch.setattr(PrefixSearch, "_grow", lambda search, step: grown.append(step) or grow(search, step))
    search = PrefixSearch(50, 4)
    for _ in range(5):
        search.advance(speech(20, 50))
    assert len(grown) == 100
